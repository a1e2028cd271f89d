//! `route import`: routes from the clusters' own lists, or from a file.

use std::collections::BTreeMap;
use std::fs;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::Ended;
use super::args::Args;
use super::context::{Context, host_ports};
use super::perform::{Performance, make, perform};
use super::single::{before, change_to};
use super::text::counted;
use crate::ops::import::{Imported, compare};
use crate::ops::plan::{After, Change, Data};
use crate::ops::record::{self, Place};
use crate::ops::store::{Routes, Store, check_name};
use crate::ops::{Fault, Outcome, clusters};

const MAX_DELETE: u64 = 5;

pub fn import(args: &Args) -> Ended {
    match (args.value("file"), args.is_set("cluster")) {
        (Some(file), false) => of_file(args, file),
        (None, true) => of_clusters(args),
        _ => Err(Fault::usage("want --cluster NAME=HOST:PORT,... or --file FILE")),
    }
}

/// `--cluster NAME=HOST:PORT,...`
pub fn named_clusters(args: &Args) -> Result<Vec<Place>, Fault> {
    let place = |text: &str| {
        let (name, metas) = text.split_once('=').ok_or_else(|| {
            Fault::usage(format!("--cluster: want NAME=HOST:PORT,..., got {text:?}"))
        })?;
        host_ports("cluster", metas)?;
        Place::new(name, metas).map_err(|bad| Fault::usage(format!("--cluster: {bad}")))
    };
    args.values("cluster").map(place).collect()
}

fn of_clusters(args: &Args) -> Ended {
    let context = Context::new(args)?;
    let places = named_clusters(args)?;
    let views = clusters::look(places.iter().map(|place| place.metas.clone()), context.limit);
    let mut lists = Vec::new();
    for place in places {
        let view = views.get(&place.metas);
        let view = view.filter(|view| view.leader.is_some()).ok_or_else(|| {
            let why = view.map(|view| view.why_no_leader()).unwrap_or_default();
            // With half a list, tables in two clusters would look like tables in one.
            Fault::failed(format!("no leader of {} answers: {why}", place.cluster))
        })?;
        lists.push((place, view));
    }
    let mut store = context.open()?;
    let routes = store.routes()?;
    let left_out: Vec<&str> = args.values("exclude").collect();
    let Imported { new, same, conflicts } = compare(&routes.rows, &lists, &left_out);
    context.say(&format!(
        "{} new, {} the same, {} in conflict\n",
        new.len(),
        same.len(),
        conflicts.len()
    ));
    for (table, why) in &conflicts {
        context.say(&format!("CONFLICT {table}: {why}\n"));
    }
    if !conflicts.is_empty() {
        if context.json {
            let conflicts: Map<String, Value> =
                conflicts.into_iter().map(|(table, why)| (table, why.into())).collect();
            let new: Vec<&String> = new.iter().map(|(table, _)| table).collect();
            let told = json!({"new": new, "same": same, "conflicts": conflicts, "exit_code": 3});
            crate::cli::print(&format!("{told:#}\n"));
        }
        let why = "nothing is written: say where they belong by route set, or leave them out by --exclude TABLE";
        let fault = Fault::new(Outcome::Differs, why);
        return Err(if context.json { fault.told() } else { fault });
    }
    let acl = store.acl(&store.place.root.clone())?;
    let changes = new
        .iter()
        .map(|(table, place)| change_to(&store, &routes.clusters, &acl, table, None, place))
        .collect::<Result<Vec<_>, _>>()?;
    finish(args, &context, store, changes)
}

fn of_file(args: &Args, file: &str) -> Ended {
    let context = Context::new(args)?;
    let text = fs::read_to_string(file).map_err(|e| Fault::usage(format!("{file}: {e}")))?;
    let wanted: BTreeMap<String, Box<RawValue>> =
        serde_json::from_str(&text).map_err(|e| Fault::usage(format!("{file}: {e}")))?;
    wanted.keys().try_for_each(|table| check_name(table))?;
    let mut store = context.open()?;
    let Routes { rows, clusters } = store.routes()?;
    let acl = store.acl(&store.place.root.clone())?;
    let mut now: BTreeMap<String, _> =
        rows.into_iter().map(|row| (row.table.clone(), row)).collect();
    let mut changes = Vec::new();
    for (table, record) in &wanted {
        let data = record.get().as_bytes().to_vec();
        let place = store.place_of(&data, &clusters);
        place.map_err(|why| Fault::usage(format!("{file}: {table}: {why}")))?;
        let row = now.remove(table);
        if row.as_ref().is_some_and(|row| record::is_same(&row.znode.data, &data)) {
            continue;
        }
        let acl = if row.is_none() { acl.clone() } else { Vec::new() };
        let after = Some(After { data: Data(data), acl });
        let before = row.map(|row| before(&row.znode));
        changes.push(Change { znode: store.znode_of(table), before, after });
    }
    let same = wanted.len() - changes.len();
    let kept = now.len();
    let mut gone = 0;
    if args.is_set("prune") {
        gone = kept;
        let max = args.number("max-delete").map_err(Fault::usage)?.unwrap_or(MAX_DELETE);
        if gone as u64 > max {
            let why = format!(
                "refused, nothing is written: {} are not in {file}, want at most {max} (--max-delete)",
                counted(gone, "route")
            );
            return Err(Fault::new(Outcome::Refused, why));
        }
        for (table, row) in &now {
            let znode = store.znode_of(table);
            let mut before = before(&row.znode);
            before.acl = store.acl(&znode)?;
            changes.push(Change { znode, before: Some(before), after: None });
        }
    }
    context.say(&format!(
        "{} to write, {same} the same, {gone} to delete, {} not in the file and kept\n",
        changes.len() - gone,
        kept - gone
    ));
    finish(args, &context, store, changes)
}

fn finish(args: &Args, context: &Context, mut store: Store, changes: Vec<Change>) -> Ended {
    if changes.is_empty() {
        return Ok(context.nothing_to_do("nothing is to be written"));
    }
    let applies = args.is_set("apply");
    let act = Performance::new(make(args, context, changes), applies);
    let outcome = perform(args, context, &mut store, act)?;
    Ok(if applies { outcome } else { Outcome::Differs })
}
