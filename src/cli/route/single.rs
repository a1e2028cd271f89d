//! `route set` and `rm`: one table, written at once.

use std::collections::BTreeMap;

use super::Ended;
use super::args::Args;
use super::context::Context;
use super::perform::{Performance, make, perform};
use crate::ops::plan::{After, Before, Change, Data, Right, Znode};
use crate::ops::record::{self, Place};
use crate::ops::store::{Store, check_name};
use crate::ops::{Fault, Outcome};

/// Writes the route of one table.
pub fn set(args: &Args) -> Ended {
    let context = Context::new(args)?;
    let table = args.operand.as_deref().unwrap_or_default();
    check_name(table)?;
    let cluster = args.value("cluster").ok_or_else(|| Fault::usage("want --cluster NAME"))?;
    let mut store = context.open()?;
    let now = read(args, &mut store, table)?;
    let place = target(&mut store, cluster, args.value("metas"))?;
    let clusters = store.clusters()?;
    let acl = match now {
        Some(_) => Vec::new(),
        None => store.acl(&store.place.root.clone())?,
    };
    let change = change_to(&store, &clusters, &acl, table, now.as_ref(), &place)?;
    write(args, &context, store, change)
}

/// Deletes the route of one table.
pub fn rm(args: &Args) -> Ended {
    let context = Context::new(args)?;
    let table = args.operand.as_deref().unwrap_or_default();
    check_name(table)?;
    let mut store = context.open()?;
    let znode = store.znode_of(table);
    let now = read(args, &mut store, table)?;
    let now = now.ok_or_else(|| Fault::failed(format!("{znode}: no such znode")))?;
    let mut before = before(&now);
    before.acl = store.acl(&znode)?;
    write(args, &context, store, Change { znode, before: Some(before), after: None })
}

fn write(args: &Args, context: &Context, mut store: Store, change: Change) -> Ended {
    let plan = make(args, context, vec![change]);
    perform(args, context, &mut store, Performance::new(plan, true))
}

/// The znode of a table, of the version that was asked for.
fn read(args: &Args, store: &mut Store, table: &str) -> Result<Option<Znode>, Fault> {
    store.sync()?;
    let znode = store.znode_of(table);
    let now = store.znode(&znode)?;
    let wanted = args.number("if-version").map_err(Fault::usage)?;
    let version = now.as_ref().map(|now| i64::from(now.stat.version));
    match wanted.map(|wanted| wanted as i64) {
        Some(wanted) if version != Some(wanted) => {
            let got = version.map_or("no znode".to_owned(), |version| version.to_string());
            let why = format!("{znode}: want version {wanted}, got {got}");
            Err(Fault::new(Outcome::Differs, why))
        }
        _ => Ok(now),
    }
}

/// A znode as a plan shows it.
pub fn before(now: &Znode) -> Before {
    let (version, mzxid) = (now.stat.version, now.stat.mzxid);
    Before { data: Data(now.data.clone()), version, mzxid, acl: Vec::new() }
}

/// The change that has a table live there. One without a znode gets this ACL.
pub fn change_to(
    store: &Store,
    clusters: &BTreeMap<String, Znode>,
    acl: &[Right],
    table: &str,
    now: Option<&Znode>,
    place: &Place,
) -> Result<Change, Fault> {
    let names_clusters = store.place.clusters_root.is_some();
    let data = now.map(|now| now.data.as_slice());
    let written = record::write(place, data, names_clusters).into_bytes();
    if store.place_of(&written, clusters).as_ref() != Ok(place) {
        let why = format!(
            "{table}: its record names its cluster only, and {} has other addresses, or none: change the cluster's \
             znode (route metas)",
            place.cluster
        );
        return Err(Fault::usage(why));
    }
    // One that says the same stays as it is, to the byte.
    let data = match data.filter(|data| record::is_same(data, &written)) {
        Some(data) => data.to_vec(),
        None => written,
    };
    let acl = if now.is_none() { acl.to_vec() } else { Vec::new() };
    let after = Some(After { data: Data(data), acl });
    Ok(Change { znode: store.znode_of(table), before: now.map(before), after })
}

/// Where a cluster is: as given, by its own znode, or as all routes that name it say.
pub fn target(store: &mut Store, cluster: &str, metas: Option<&str>) -> Result<Place, Fault> {
    if let Some(metas) = metas {
        return Place::new(cluster, metas).map_err(|bad| Fault::usage(bad.to_string()));
    }
    let routes = store.routes()?;
    if let Some(znode) = routes.clusters.get(cluster) {
        let record = crate::route::record::read(&znode.data);
        let record = record.map_err(|bad| Fault::failed(format!("cluster {cluster}: {bad}")))?;
        return Ok(Place { cluster: cluster.to_owned(), metas: record.meta_addrs });
    }
    let named = routes.rows.into_iter().filter_map(|row| row.place.ok());
    let mut places: Vec<Place> = named.filter(|place| place.cluster == cluster).collect();
    places.sort_by(|one, other| one.metas.cmp(&other.metas));
    places.dedup();
    match places.len() {
        1 => Ok(places.remove(0)),
        0 => Err(Fault::usage(format!("no route names {cluster}: want --metas HOST:PORT,..."))),
        n => {
            let sets: Vec<String> = places.iter().map(Place::shown).collect();
            Err(Fault::usage(format!(
                "routes name {cluster} with {n} sets of addresses, want --metas HOST:PORT,...:\n  {}",
                sets.join("\n  ")
            )))
        }
    }
}
