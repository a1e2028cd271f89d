//! `route finish` ends what a move left: the old cluster denies clients of the table until nobody needs that any more.
//!
//! ```text
//! journal   option      what it does
//! moved     -           every proxy serves the new route ─▶ the old cluster is opened ─▶ the journal is deleted
//! none      --from C    the same for a cluster that a fence closed, or whose journal is lost
//! any       --forget    tells what may stand ─▶ the route is pinned ─▶ the journal is deleted, nothing else is touched
//! ```

use std::thread;
use std::time::Duration;

use super::Ended;
use super::args::Args;
use super::context::Context;
use super::moving::{pages, place_now};
use super::single::target;
use crate::ops::control::Control;
use crate::ops::moving::journal::{Journal, Keeper, Phase};
use crate::ops::moving::look::Cluster;
use crate::ops::plan::Znode;
use crate::ops::proxies::{self, Expected};
use crate::ops::record::Place;
use crate::ops::store::{Store, check_name};
use crate::ops::{Fault, Outcome, apply};
use crate::zk::codec::Op;

/// Each step at a cluster is tried so often: a leader may be elected meanwhile.
const TRIES: u32 = 5;
/// After the first try; doubles.
const PAUSE: Duration = Duration::from_millis(300);

/// Ends a move.
pub fn finish(args: &Args) -> Ended {
    let context = Context::new(args)?;
    let table = args.operand.as_deref().unwrap_or_default();
    check_name(table)?;
    let mut store = context.open()?;
    let keeper = Keeper::of(&store, table);
    let found = keeper.read(&mut store)?;
    store.sync()?;
    let none = || Fault::failed(format!("{}: there is no move of {table}", keeper.place()));
    if args.is_set("forget") {
        let (journal, version) = found.ok_or_else(none)?;
        return forget(args, &context, &mut store, &keeper, &journal, version);
    }
    let named = args.value("from");
    let (old, before) = match (&found, named) {
        (Some((journal, _)), _) if journal.phase != Phase::Moved => {
            let why = format!("the move did not end: {}; {}", journal.shown(), journal.ways());
            return Err(Fault::new(Outcome::Refused, why));
        }
        (Some((journal, _)), None) => (&journal.from.cluster, &journal.proxies[..]),
        (Some((journal, _)), Some(named)) if *named == journal.from.cluster => {
            (&journal.from.cluster, &journal.proxies[..])
        }
        (_, Some(named)) => (&named.to_owned(), &[][..]),
        (None, None) => {
            let Fault { why, .. } = none();
            return Err(Fault::failed(format!(
                "{why}; --from CLUSTER opens one that a fence closed, or whose journal is lost"
            )));
        }
    };
    let moved = found.as_ref().map(|(journal, _)| journal).filter(|one| one.from.cluster == *old);
    let old = match (args.value("metas"), moved) {
        (None, Some(journal)) => place_now(&mut store, &journal.from),
        (metas, _) => target(&mut store, old, metas)?,
    };
    let (znode, now) = route(&mut store, table)?;
    if let Some(journal) = moved.filter(|journal| journal.to.cluster != now.cluster) {
        let why = format!(
            "{table}: want a route to {}, got one to {}; {}",
            journal.to.cluster,
            now.shown(),
            journal.ways()
        );
        return Err(Fault::new(Outcome::Differs, why));
    }
    let needs_word = now.cluster != old.cluster;
    if needs_word {
        all_serve(&context, &mut store, table, &znode, &now, before, &old)?;
    } else {
        context
            .say(&format!("{table} is routed to {}, which may deny its clients.\n", old.cluster));
    }
    if !args.is_set("apply") {
        let word = if needs_word { "--clients-moved " } else { "" };
        let why = format!("Nothing is changed. Do it: the same with {word}--apply");
        return Ok(context.nothing_to_do(&why));
    }
    if needs_word && !args.is_set("clients-moved") {
        let why = "refused, nothing is changed: want --clients-moved, when every client was restarted or has used the \
                   table since";
        return Err(Fault::new(Outcome::Refused, why));
    }
    let mut cluster = Cluster::new(old.clone(), table, context.limit);
    insist(|| open(&mut cluster)).map_err(|why| {
        let ways = moved.map(|journal| format!("; {}", journal.ways())).unwrap_or_default();
        Fault::failed(format!("{why}{ways}"))
    })?;
    if let Some((_, version)) = found.as_ref().filter(|_| moved.is_some()) {
        keeper.delete(&mut store, *version)?;
    }
    forget_fence(&mut store, &mut cluster)?;
    let why = format!(
        "done: {} takes clients of the table again, within its config-sync interval",
        old.cluster
    );
    Ok(context.ends_well(1, &why))
}

/// Deletes the env, and looks whether it is gone.
fn open(cluster: &mut Cluster) -> Result<(), String> {
    let denies = |cluster: &mut Cluster| -> Result<bool, String> {
        // One that was dropped denies nobody.
        Ok(cluster.app()?.is_some_and(|app| app.denies().is_some()))
    };
    if !denies(cluster)? {
        return Ok(());
    }
    cluster.delete_env()?;
    match denies(cluster)? {
        false => Ok(()),
        true => Err(format!("{}: it goes on denying clients", cluster.place.cluster)),
    }
}

/// A cluster that denies nobody any more is not one that a fence closed.
fn forget_fence(store: &mut Store, cluster: &mut Cluster) -> Result<(), Fault> {
    let Some(control) = Control::of(store) else { return Ok(()) };
    let leader = cluster.view().leader;
    match leader.is_some_and(|leader| leader.apps.values().all(|app| app.denies().is_none())) {
        true => control.forget_fenced(store, &cluster.place.cluster),
        false => Ok(()),
    }
}

fn route(store: &mut Store, table: &str) -> Result<(Znode, Place), Fault> {
    let path = store.znode_of(table);
    let clusters = store.clusters()?;
    let znode = store.znode(&path)?;
    let znode = znode.ok_or_else(|| Fault::failed(format!("{path}: no such znode")))?;
    let place = store.place_of(&znode.data, &clusters);
    let place = place.map_err(|why| Fault::new(Outcome::Differs, format!("{path}: {why}")))?;
    Ok((znode, place))
}

/// Fails unless every proxy serves the route as it is now.
fn all_serve(
    context: &Context,
    store: &mut Store,
    table: &str,
    znode: &Znode,
    now: &Place,
    before: &[String],
    old: &Place,
) -> Result<(), Fault> {
    context.must_know_proxies()?;
    let proxies = pages(context, store, before)?;
    let (zxid, place) = (znode.stat.mzxid, Some(now.clone()));
    let expected = [Expected { table: table.to_owned(), zxid, place, by_cluster: false }];
    let root = apply::root(store)?;
    let seen = proxies::wait(&proxies, &root, &expected, context.wait);
    for one in &seen {
        if let Err(why) = &one.served {
            let why = format!(
                "refused, nothing is changed: {} does not serve {}: {why}. If it is gone for good, name the others by \
                 --proxies",
                one.proxy, now.cluster
            );
            return Err(Fault::new(Outcome::Refused, why));
        }
    }
    context.say(&format!(
        "{} proxies serve {}, none serves {}.\nA client that neither read nor wrote since may still hold the route to {}. \
         Nobody can see it, and what it writes there after this is lost.\n",
        seen.len(),
        now.cluster,
        old.cluster,
        old.cluster
    ));
    Ok(())
}

/// Deletes the journal of a move that no command can end, and tells what it may have left.
fn forget(
    args: &Args,
    context: &Context,
    store: &mut Store,
    keeper: &Keeper,
    journal: &Journal,
    version: i32,
) -> Ended {
    let (table, old, new) = (&journal.table, &journal.from.cluster, &journal.to.cluster);
    let places = [&journal.from, &journal.to].map(|place| place_now(store, place));
    for (place, other) in [(&places[0], new), (&places[1], old)] {
        let cluster = &place.cluster;
        let told = match Cluster::new(place.clone(), table, context.limit).side(other) {
            Err(why) => format!("it is not known what {cluster} does: {why}"),
            Ok((_, None)) => format!("{cluster} does not have {table}"),
            Ok((side, Some(_))) => {
                let denies = match &side.denies {
                    Some(value) => format!("DENIES its clients: {value}"),
                    None => "takes its clients".to_owned(),
                };
                let ships = match &side.duplication {
                    Some(duplication) => {
                        format!("duplicates it to {other} (id {})", duplication.id)
                    }
                    None => format!("does not duplicate it to {other}"),
                };
                format!("{cluster} {denies}, and {ships}")
            }
        };
        context.say(&format!("{told}\n"));
    }
    let (znode, now) = match route(store, table) {
        Ok((znode, place)) => (Some(znode), format!("leads to {}", place.shown())),
        Err(fault) => (None, fault.why),
    };
    context.say(&format!("the route of {table}: {now}\n"));
    if !args.is_set("apply") {
        let why = format!("Nothing is changed. Forget {}: the same with --apply", journal.shown());
        return Ok(context.nothing_to_do(&why));
    }
    // A run that still goes on must not write the route.
    if let Some(znode) = znode {
        let (path, version) = (store.znode_of(table), znode.stat.version);
        let pin = Op::SetData { path: path.clone(), data: znode.data, version };
        let pinned = store.session().request(pin);
        pinned.map_err(|e| Fault::failed(format!("{path}: {e}, nothing is forgotten")))?;
    }
    keeper.delete(store, version)?;
    let why = format!(
        "forgotten: {}. Nothing else was changed: what is said above stands; meta-proxy route finish {table} --from CLUSTER \
         opens a cluster",
        journal.shown()
    );
    Ok(context.ends_well(1, &why))
}

/// Tries with a growing pause.
pub fn insist(mut step: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let mut pause = PAUSE;
    for _ in 1..TRIES {
        if let Ok(()) = step() {
            return Ok(());
        }
        thread::sleep(pause);
        pause *= 2;
    }
    step()
}
