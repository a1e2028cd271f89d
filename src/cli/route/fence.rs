//! `route fence`: a cluster came back after a disaster. Its tables that live elsewhere deny their clients from now on.

use std::collections::BTreeMap;

use super::Ended;
use super::args::Args;
use super::context::Context;
use super::finish::insist;
use super::perform::confirm_tables;
use super::single::target;
use super::text::counted;
use crate::ops::admin_move::DENY_ALL;
use crate::ops::control::Control;
use crate::ops::moving::journal::Keeper;
use crate::ops::moving::look::Cluster;
use crate::ops::record::Place;
use crate::ops::store::{Store, check_name};
use crate::ops::view::is_same_cluster;
use crate::ops::{Fault, Outcome, clusters};

/// Makes the cluster deny clients of tables that live elsewhere, and ends their duplication there.
pub fn fence(args: &Args) -> Ended {
    let context = Context::new(args)?;
    let operand = args.operand.as_deref().unwrap_or_default();
    let mut store = context.open()?;
    let (place, table) = match target(&mut store, operand, args.value("metas")) {
        Ok(place) => (place, None),
        // The operand may be a table that left its cluster by a move or a plan.
        Err(unknown) => match left(&mut store, operand)? {
            Some(place) => (place, Some(operand)),
            None => return Err(unknown),
        },
    };
    let name = place.cluster.as_str();
    let view = Cluster::new(place.clone(), "", context.limit).view();
    let leader = view.leader.as_ref();
    let leader = leader.ok_or_else(|| {
        let why = view.why_no_leader();
        Fault::failed(format!("{name}: no leader answers: {why}; fence it when one does"))
    })?;
    if let Some(own) = leader.name.as_ref().filter(|own| *own != name) {
        let why = format!("refused, nothing is changed: {name} calls itself {own}");
        return Err(Fault::new(Outcome::Refused, why));
    }
    let wanted: Vec<&str> = args.values("table").chain(table).collect();
    let rows = store.routes()?.rows.into_iter();
    let mut elsewhere: BTreeMap<String, Place> = rows
        .filter(|row| leader.apps.contains_key(&row.table))
        .filter(|row| wanted.is_empty() || wanted.contains(&row.table.as_str()))
        .filter_map(|row| Some((row.table, row.place.ok()?)))
        .filter(|(_, now)| now.cluster != name)
        .collect();
    let sets = elsewhere.values().map(|now| now.metas.clone());
    let homes = clusters::look(sets, context.limit);
    // Only a table whose home is another cluster may be closed: one cluster may have two names.
    elsewhere.retain(|table, now| {
        let home = homes.get(&now.metas).and_then(|view| view.leader.as_ref());
        match home {
            Some(home) if home.addr == leader.addr || is_same_cluster(home, leader) => false,
            _ if wanted.contains(&table.as_str()) => true,
            Some(home) => {
                let ships = clusters::duplicates(home, table, &[name], context.limit);
                if ships {
                    let cluster = &now.cluster;
                    context.say(&format!(
                        "WARN: {table}: {cluster}, its home, duplicates it to {name}, which would stall that, so it is left as \
                         it is; --table {table} closes it all the same\n"
                    ));
                }
                !ships
            }
            None => {
                let cluster = &now.cluster;
                context.say(&format!(
                    "WARN: {table}: it is routed to {cluster}, whose leader does not answer, so it is left as it is; \
                     --table {table} closes it all the same\n"
                ));
                false
            }
        }
    });
    if elsewhere.is_empty() {
        let why = format!("{name} has no table that is routed elsewhere");
        return Ok(context.nothing_to_do(&why));
    }
    for (table, now) in &elsewhere {
        let cluster = &now.cluster;
        context.say(&format!("{table}: it is routed to {cluster}, and {name} has it, too\n"));
    }
    context.say(&format!(
        "WARN: until each replica server of {name} hears of it, for some 30 s, it may take writes that are lost, and ship \
         late writes over newer ones. Only cutting its network prevents that.\n"
    ));
    let count = counted(elsewhere.len(), "table");
    if !args.is_set("apply") {
        let why = format!("Nothing is changed. Close {name} for {count}: the same with --apply");
        return Ok(context.nothing_to_do(&why));
    }
    if elsewhere.len() > 1 {
        confirm_tables(args, elsewhere.len(), name)?;
    }
    // From now on `verify` looks at it, even if no route names it any more.
    if let Some(control) = Control::of(&store) {
        control.note_fenced(&mut store, &place)?;
    }
    let mut failed: Vec<String> = Vec::new();
    for (table, now) in &elsewhere {
        let cluster = &now.cluster;
        // Servers know each other by the names in their settings, which need not be those of routes.
        let home = homes.get(&now.metas).and_then(|view| view.leader.as_ref());
        let own = home.and_then(|leader| leader.name.as_ref());
        let is_home = |remote: &String| remote == cluster || Some(remote) == own;
        let mut old = Cluster::new(place.clone(), table, context.limit);
        let mut others = Vec::new();
        // Late writes that are shipped do harm at once, so the duplication ends first.
        let closed = insist(|| {
            others.clear();
            for duplication in old.duplications()? {
                match is_home(&duplication.remote) {
                    true => old.remove_duplication(duplication.id)?,
                    false => others.push(duplication.remote),
                }
            }
            old.set_env(DENY_ALL)
        });
        match closed {
            Ok(()) if !others.is_empty() => context.say(&format!(
                "{table}: {name} denies its clients, and ships nothing to {cluster}. WARN: it ships to {}\n",
                others.join(", ")
            )),
            Ok(()) => context.say(&format!(
                "{table}: {name} denies its clients, and ships nothing to {cluster}\n"
            )),
            Err(why) => failed.push(format!("{table}: {why}")),
        }
    }
    if failed.is_empty() {
        return Ok(context.ends_well(elsewhere.len(), &format!("{name} is closed for {count}")));
    }
    Err(Fault::new(Outcome::Partly, format!("not all is closed:\n{}", failed.join("\n"))))
}

/// The cluster that a table left, by the journal of its move or by the newest plan that changed its route.
fn left(store: &mut Store, table: &str) -> Result<Option<Place>, Fault> {
    if check_name(table).is_err() {
        return Ok(None);
    }
    if let Some(Ok((journal, _))) = Keeper::of(store, table).read(store)? {
        return Ok(Some(journal.from));
    }
    let Some(control) = Control::of(store) else { return Ok(None) };
    let clusters = store.clusters()?;
    for entry in control.entries(store)?.iter().rev() {
        let changes = control.plan(store, &entry.id)?.changes;
        let before = changes.into_iter().find(|change| change.name() == table);
        if let Some(before) = before.and_then(|change| change.before) {
            return Ok(store.place_of(&before.data.0, &clusters).ok());
        }
    }
    Ok(None)
}
