//! Routes against clusters: what does not go together. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::view::{Leader, Row, ServerReply, View, Views, is_same_cluster};

/// The kinds of findings, in the order of the report.
pub const KINDS: [&str; 9] =
    ["NOWHERE", "TWICE", "UNROUTED", "BROKEN", "DEAD", "ALIAS", "META", "NAME", "ENV"];

/// A route and a cluster that do not go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// One of [`KINDS`].
    pub kind: &'static str,
    /// A table or a cluster.
    pub subject: String,
    pub what: String,
    /// The state is as planned. It is reported, and not counted as a fault.
    pub is_allowed: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {} {}", self.kind, self.subject, self.what)
    }
}

/// A table that is available in more than one cluster.
pub struct Twice {
    pub table: String,
    /// The addresses of both clusters, and the names that routes give them.
    pub home: (Vec<String>, String),
    pub other: (Vec<String>, String),
}

/// Clusters by their addresses, with the name that the routes or the operator give them.
pub type Names = BTreeMap<Vec<String>, String>;

/// The name of each set of addresses.
pub fn names(rows: &[Row], more: &[(String, Vec<String>)]) -> Names {
    let routed = rows.iter().filter_map(|row| row.place.as_ref().ok());
    let routed = routed.map(|place| (place.metas.clone(), place.cluster.clone()));
    more.iter().map(|(name, metas)| (metas.clone(), name.clone())).chain(routed).collect()
}

/// Tables that are available in more than one of the clusters, by way of two sets of addresses that are not one cluster's.
pub fn twice(rows: &[Row], views: &Views, names: &Names) -> Vec<Twice> {
    let mut found = Vec::new();
    let clusters = distinct(views);
    for row in rows {
        let Ok(home) = &row.place else { continue };
        let Some(here) = leader(views, &home.metas) else { continue };
        if !here.apps.contains_key(&row.table) {
            continue;
        }
        let others = clusters.iter().filter(|(_, other)| {
            other.addr != here.addr
                && !is_same_cluster(here, other)
                && other.apps.contains_key(&row.table)
        });
        found.extend(others.map(|(metas, _)| Twice {
            table: row.table.clone(),
            home: (home.metas.clone(), home.cluster.clone()),
            other: ((*metas).clone(), names.get(*metas).cloned().unwrap_or_default()),
        }));
    }
    found
}

/// One view per cluster, also if several sets of addresses lead to it.
fn distinct(views: &Views) -> Vec<(&Vec<String>, &Leader)> {
    let mut found: Vec<(&Vec<String>, &Leader)> = Vec::new();
    for (metas, view) in views {
        if let Some(leader) = &view.leader
            && !found
                .iter()
                .any(|(_, other)| other.addr == leader.addr || is_same_cluster(other, leader))
        {
            found.push((metas, leader));
        }
    }
    found
}

/// All findings. `twice` has the tables that are there twice, and between which clusters each is duplicated, in words.
/// `moved` has the tables that moved and the clusters they left, which deny their clients until the move is finished.
pub fn findings(
    rows: &[Row],
    views: &Views,
    names: &Names,
    twice: &[(Twice, Option<String>)],
    moved: &[(String, String)],
) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut tell = |kind, subject: &str, what: String, is_allowed| {
        found.push(Finding { kind, subject: subject.to_owned(), what, is_allowed });
    };
    for row in rows {
        let place = match &row.place {
            Ok(place) => place,
            Err(why) => {
                tell("BROKEN", &row.table, format!("cannot be used: {why}"), false);
                continue;
            }
        };
        let Some(leader) = leader(views, &place.metas) else { continue };
        match leader.apps.get(&row.table) {
            None => {
                let what = format!("-> {}: the cluster does not have it", place.cluster);
                tell("NOWHERE", &row.table, what, false);
            }
            Some(app) => {
                if let Some(value) = app.denies() {
                    tell(
                        "ENV",
                        &row.table,
                        format!("on {} denies clients: {value}", place.cluster),
                        false,
                    );
                }
            }
        }
    }
    let is_moved = |twice: &Twice| {
        moved.iter().any(|(table, from)| *table == twice.table && *from == twice.other.1)
    };
    for (twice, duplicated) in twice {
        // A move or a fence leaves a copy that denies clients.
        let other = leader(views, &twice.other.0).and_then(|other| other.apps.get(&twice.table));
        let denies = other.and_then(|app| app.denies());
        let stalled = format!("{}->{}", twice.home.1, twice.other.1);
        let allowed = match (duplicated, denies) {
            // A table that denies clients refuses duplicated writes, too.
            (Some(text), Some(value)) if *text == stalled && !is_moved(twice) => {
                let what = format!(
                    "-> {}, whose duplication {text} stalls: {} denies clients: {value}",
                    twice.home.1, twice.other.1
                );
                tell("TWICE", &twice.table, what, false);
                continue;
            }
            (Some(text), _) => Some(format!(" (allowed: duplication {text})")),
            (None, Some(value)) => {
                Some(format!(" (allowed: {} denies clients: {value})", twice.other.1))
            }
            (None, None) => None,
        };
        let is_allowed = allowed.is_some();
        let what = format!(
            "-> {}, also available in {}{}",
            twice.home.1,
            twice.other.1,
            allowed.unwrap_or_default()
        );
        tell("TWICE", &twice.table, what, is_allowed);
    }
    let home: BTreeMap<&str, &Vec<String>> = rows
        .iter()
        .filter_map(|row| Some((row.table.as_str(), &row.place.as_ref().ok()?.metas)))
        .collect();
    for (metas, there) in distinct(views) {
        for (table, app) in &there.apps {
            let leads_there = |home: &Vec<String>| {
                let own = leader(views, home);
                home == metas || own.is_some_and(|own| own.addr == there.addr)
            };
            // The case that the route leads there is reported above.
            if let (Some(value), Some(home)) = (app.denies(), home.get(table.as_str()))
                && !leads_there(home)
            {
                let (old, new) = (name_of(names, metas), name_of(names, home));
                let what = format!(
                    "on {old} denies clients: {value} (allowed: it is routed to {new}; route finish ends it)"
                );
                tell("ENV", table, what, true);
            }
        }
    }
    let routed: BTreeSet<&str> = rows.iter().map(|row| row.table.as_str()).collect();
    for (metas, leader) in distinct(views) {
        let name = name_of(names, metas);
        let unrouted = leader.apps.iter().filter(|(table, _)| !routed.contains(table.as_str()));
        for (table, app) in unrouted {
            tell("UNROUTED", table, format!("in {name}, no znode"), false);
            if let Some(value) = app.denies() {
                let what = format!("on {name} denies clients: {value}; it has no route");
                tell("ENV", table, what, false);
            }
        }
    }
    let mut sets: BTreeMap<&str, Vec<&Vec<String>>> = BTreeMap::new();
    for (metas, name) in names {
        sets.entry(name).or_default().push(metas);
    }
    for (name, sets) in sets.iter().filter(|(_, sets)| sets.len() > 1) {
        let shown: Vec<String> = sets.iter().map(|metas| metas.join(",")).collect();
        tell(
            "ALIAS",
            name,
            format!("has {} address sets: {}", sets.len(), shown.join(" | ")),
            false,
        );
    }
    for (metas, view) in views {
        check_cluster(name_of(names, metas), view, &mut tell);
    }
    found.sort_by_key(|finding| KINDS.iter().position(|kind| *kind == finding.kind));
    // Several sets of addresses may lead to one cluster. Each finding is reported once.
    found.dedup();
    found
}

fn name_of<'a>(names: &'a Names, metas: &[String]) -> &'a str {
    names.get(metas).map(String::as_str).unwrap_or_default()
}

fn check_cluster(name: &str, view: &View, tell: &mut impl FnMut(&'static str, &str, String, bool)) {
    match &view.leader {
        None => tell("DEAD", name, format!("no leader answers: {}", view.why_no_leader()), false),
        Some(leader) => {
            if let Some(own) = leader.name.as_ref().filter(|own| *own != name) {
                let what = format!("is what the route says, {own} is what the cluster says");
                tell("NAME", name, what, false);
            }
            for (addr, said) in &view.servers {
                if let ServerReply::Nothing(why) = said {
                    tell("META", name, format!("lists {addr}: {why}"), false);
                }
            }
        }
    }
}

fn leader<'a>(views: &'a Views, metas: &[String]) -> Option<&'a Leader> {
    views.get(metas)?.leader.as_ref()
}
