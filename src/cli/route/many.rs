//! `route switch`, `metas` and `undo`: plans of many tables.

use std::collections::BTreeSet;
use std::fs;

use super::Ended;
use super::args::Args;
use super::context::Context;
use super::perform::{Performance, make, perform, read};
use super::single::{before, change_to, target};
use super::text::counted;
use crate::ops::checks::option;
use crate::ops::plan::{self, Accepted, After, Change, Data, Znode};
use crate::ops::record::{self, Place};
use crate::ops::store::{Routes, Store};
use crate::ops::view::{Row, Views, is_same_cluster};
use crate::ops::{Fault, Outcome, apply, clusters};

/// Sends tables to another cluster by changing their znodes only: the old cluster is gone.
pub fn switch(args: &Args) -> Ended {
    let context = Context::new(args)?;
    let mut store = context.open()?;
    if let Some(file) = args.value("plan") {
        let plan = read(&mut store, file)?;
        let act = Performance::new(plan, args.is_set("apply"));
        let act = Performance { file: Some(file.into()), ..act };
        return perform(args, &context, &mut store, act);
    }
    if args.is_set("apply") {
        return Err(Fault::usage("a switch is planned first: want --plan FILE with --apply"));
    }
    let to = args.value("to").ok_or_else(|| Fault::usage("want --to CLUSTER, or --plan FILE"))?;
    let place = target(&mut store, to, args.value("metas"))?;
    let routes = store.routes()?;
    let tables = wanted(args, &routes)?;
    let broken: Vec<&str> = routes
        .rows
        .iter()
        .filter(|row| row.place.is_err() && !tables.contains(row.table.as_str()))
        .map(|row| row.table.as_str())
        .collect();
    if args.is_set("from") && !broken.is_empty() {
        crate::cli::complain(&format!(
            "WARN: records that cannot be used are of no cluster and stay as they are: {}",
            broken.join(", ")
        ));
    }
    let rows = routes.rows.iter().filter(|row| tables.contains(row.table.as_str()));
    let mut changes = Vec::new();
    for row in rows.filter(|row| row.place.as_ref() != Ok(&place)) {
        let znode = Some(&row.znode);
        changes.push(change_to(&store, &routes.clusters, &[], &row.table, znode, &place)?);
    }
    if changes.is_empty() {
        let why = format!("{}: all of them are routed to {to}", counted(tables.len(), "table"));
        return Ok(context.nothing_to_do(&why));
    }
    context.say(
        "WARN: writes that the old cluster took and had not sent to the new one are missing there, and nobody can tell \
         which. Clients of servers that refuse ask again at once, clients of servers that fell silent after some 31 s.\n",
    );
    let act = Performance::new(make(args, &context, changes), false);
    perform(args, &context, &mut store, act)
}

/// The tables that the arguments choose.
fn wanted<'a>(args: &'a Args, routes: &'a Routes) -> Result<BTreeSet<&'a str>, Fault> {
    let known: BTreeSet<&str> = routes.rows.iter().map(|row| row.table.as_str()).collect();
    let mut named: Vec<String> = args.operand.iter().cloned().collect();
    if let Some(file) = args.value("tables-file") {
        let text = fs::read_to_string(file).map_err(|e| Fault::usage(format!("{file}: {e}")))?;
        let lines = text.lines().map(str::trim);
        named.extend(
            lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned),
        );
    }
    let missing: Vec<&str> =
        named.iter().map(String::as_str).filter(|name| !known.contains(name)).collect();
    if !missing.is_empty() {
        return Err(Fault::usage(format!("no such route: {}", missing.join(", "))));
    }
    let from = args.value("from");
    if named.is_empty() && from.is_none() {
        return Err(Fault::usage("want TABLE, --tables-file FILE or --from CLUSTER"));
    }
    let excluded: Vec<&str> = args.values("exclude").collect();
    let is_of = |row: &&Row| {
        from.is_none_or(|from| row.place.as_ref().is_ok_and(|place| place.cluster == from))
            && (named.is_empty() || named.contains(&row.table))
            && !excluded.contains(&row.table.as_str())
    };
    let tables: BTreeSet<&str> =
        routes.rows.iter().filter(is_of).map(|row| row.table.as_str()).collect();
    match (tables.is_empty(), from) {
        (true, Some(from)) => Err(Fault::usage(format!("no such table is routed to {from}"))),
        (true, None) => Err(Fault::usage("no table is left")),
        (false, _) => Ok(tables),
    }
}

/// Takes a plan back.
pub fn undo(args: &Args) -> Ended {
    let context = Context::new(args)?;
    let file = args.operand.as_deref().unwrap_or_default();
    let mut store = context.open()?;
    let done = read(&mut store, file)?;
    let now = apply::znodes(&mut store, &done)?;
    let changes = plan::undo(&done, &now).map_err(|conflicts| {
        let why = "changed since, not what the plan wrote, nothing is written:";
        Fault::new(Outcome::Differs, format!("{why}\n{}", conflicts.join("\n")))
    })?;
    if changes.is_empty() {
        return Ok(context.nothing_to_do(&format!("{file}: nothing of it is to be undone")));
    }
    let mut plan = make(args, &context, changes);
    plan.undoes = Some(done.id);
    let act = Performance::new(plan, args.is_set("apply"));
    let act = Performance { undoes: Some(file.to_owned()), ..act };
    perform(args, &context, &mut store, act)
}

/// Replaces a MetaServer, in the cluster's znode or in all routes that list it.
pub fn metas(args: &Args) -> Ended {
    let context = Context::new(args)?;
    let cluster = args.value("cluster").ok_or_else(|| Fault::usage("want --cluster NAME"))?;
    let pair = args.value("replace").and_then(|pair| pair.split_once('='));
    let (old, new) = pair.ok_or_else(|| Fault::usage("want --replace OLD:PORT=NEW:PORT"))?;
    Place::new(cluster, new).map_err(|bad| Fault::usage(format!("--replace: {bad}")))?;
    let mut store = context.open()?;
    let routes = store.routes()?;
    let (changes, sets) = replace(&store, &routes, cluster, old, new)?;
    if changes.is_empty() {
        let is_new = |row: &Row| {
            row.place.as_ref().is_ok_and(|place| place.metas.iter().any(|meta| meta == new))
        };
        if routes.rows.iter().any(is_new) {
            let why = format!("{cluster}: {new} is in its routes, and {old} in none");
            return Ok(context.nothing_to_do(&why));
        }
        return Err(Fault::failed(format!("{cluster}: no route of it lists {old}")));
    }
    if !args.is_set(option(Accepted::Target)) {
        check_member(
            &clusters::look(sets.into_iter().chain([vec![new.to_owned()]]), context.limit),
            new,
        )?;
    }
    let act = Performance::new(make(args, &context, changes), args.is_set("apply"));
    perform(args, &context, &mut store, act)
}

type Sets = BTreeSet<Vec<String>>;

/// The changes, and the sets of addresses that they change.
fn replace(
    store: &Store,
    routes: &Routes,
    cluster: &str,
    old: &str,
    new: &str,
) -> Result<(Vec<Change>, Sets), Fault> {
    let (mut changes, mut sets) = (Vec::new(), Sets::new());
    let exchanged = |metas: &[String]| -> Option<String> {
        let mut metas: Vec<&str> = metas.iter().map(String::as_str).collect();
        *metas.iter_mut().find(|meta| **meta == old)? = new;
        Some(metas.join(","))
    };
    let change = |path: String, znode: &Znode, metas: &str| {
        let place = Place::new(cluster, metas).map_err(|bad| Fault::failed(bad.to_string()))?;
        let data = record::write_with_addrs(&place, &znode.data).into_bytes();
        let after = Some(After { data: Data(data), acl: Vec::new() });
        Ok::<_, Fault>(Change { znode: path, before: Some(before(znode)), after })
    };
    if let Some(znode) = routes.clusters.get(cluster) {
        let record = crate::route::record::read(&znode.data);
        let record = record.map_err(|bad| Fault::failed(format!("cluster {cluster}: {bad}")))?;
        if let Some(metas) = exchanged(&record.meta_addrs) {
            let root = store.place.clusters_root.as_deref().unwrap_or_default();
            changes.push(change(format!("{root}/{cluster}"), znode, &metas)?);
            sets.insert(record.meta_addrs);
        }
    }
    for row in &routes.rows {
        let Ok(now) = &row.place else { continue };
        let by_name = store.place.clusters_root.is_some()
            && matches!(
                record::read(&row.znode.data, true),
                Ok(crate::route::record::Target::Cluster(_))
            );
        if now.cluster != cluster || by_name {
            continue;
        }
        if let Some(metas) = exchanged(&now.metas) {
            changes.push(change(store.znode_of(&row.table), &row.znode, &metas)?);
            sets.insert(now.metas.clone());
        }
    }
    Ok((changes, sets))
}

/// Fails unless the new server belongs to the cluster.
fn check_member(views: &Views, new: &str) -> Result<(), Fault> {
    let alone = [new.to_owned()];
    let refuse = |why: String| {
        let option = option(Accepted::Target);
        Fault::new(Outcome::Refused, format!("refused, nothing is written: {why} (--{option})"))
    };
    let view = views.get(alone.as_slice());
    let leader = view.and_then(|view| view.leader.as_ref());
    let leader = leader.ok_or_else(|| {
        let why = view.map(|view| view.why_no_leader()).unwrap_or_default();
        refuse(format!("{new} neither leads a cluster nor names its leader: {why}"))
    })?;
    let others = views.iter().filter(|(metas, _)| metas.as_slice() != alone);
    let mut others = others.filter_map(|(_, view)| view.leader.as_ref());
    match others.find(|other| other.addr != leader.addr && !is_same_cluster(other, leader)) {
        None => Ok(()),
        Some(other) => {
            let name = |name: &Option<String>| name.clone().unwrap_or_default();
            let (is, was) = (name(&leader.name), name(&other.name));
            Err(refuse(format!(
                "{new} is of the cluster {is} (leader {}), not of {was} (leader {})",
                leader.addr, other.addr
            )))
        }
    }
}
