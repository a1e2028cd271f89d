//! The reversed mapping: which table lives in which cluster, from the clusters' own lists. Pure.

use std::collections::BTreeMap;

use super::record::Place;
use super::view::{Row, View};

/// The meaning of the clusters' lists for the routes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Tables without a route, and where they live.
    pub new: Vec<(String, Place)>,
    /// Tables whose route is right already.
    pub same: Vec<String>,
    /// Tables that the operator has to place, and why.
    pub conflicts: Vec<(String, String)>,
}

/// Compares the lists of these clusters with the routes, but for tables that are left out. Clusters without a leader have
/// no list.
pub fn compare(rows: &[Row], clusters: &[(Place, &View)], left_out: &[&str]) -> Imported {
    let mut homes: BTreeMap<&str, Vec<&Place>> = BTreeMap::new();
    for (place, view) in clusters {
        for table in view.leader.iter().flat_map(|leader| leader.apps.keys()) {
            if !left_out.contains(&table.as_str()) {
                homes.entry(table).or_default().push(place);
            }
        }
    }
    let routes: BTreeMap<&str, &Row> = rows.iter().map(|row| (row.table.as_str(), row)).collect();
    let mut imported = Imported::default();
    for (table, places) in homes {
        let route = routes.get(table).map(|row| &row.place);
        let owned = table.to_owned();
        match (route, places.as_slice()) {
            (Some(Ok(place)), places) if places.contains(&place) => imported.same.push(owned),
            (None, [place]) => imported.new.push((owned, (*place).clone())),
            (None, places) => {
                let names: Vec<&str> = places.iter().map(|place| place.cluster.as_str()).collect();
                let why = format!("it is in {}, and has no route", names.join(" and in "));
                imported.conflicts.push((owned, why));
            }
            (Some(route), places) => {
                let names: Vec<String> = places.iter().map(|place| place.shown()).collect();
                let routed = match route {
                    Ok(place) => place.shown(),
                    Err(why) => format!("a record that cannot be used ({why})"),
                };
                let why = format!("it is routed to {routed}, and is in {}", names.join(" and in "));
                imported.conflicts.push((owned, why));
            }
        }
    }
    imported
}
