//! `route finish` ends what a move left: the old cluster denies clients of the table until nobody needs that any more.
//!
//! ```text
//! journal   option      what it does
//! moved     -           every proxy serves the new route ─▶ the old cluster is opened ─▶ the journal is deleted
//! none      --from C    the same for a cluster that a fence closed, or whose journal is lost; at once if no route leads
//!                       elsewhere
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
use crate::ops::store::{ANY_VERSION, Store, check_name};
use crate::ops::{Fault, Outcome, apply};

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
    store.sync()?;
    let none = || Fault::failed(format!("{}: there is no move of {table}", keeper.place()));
    if args.is_set("forget") {
        return match keeper.read(&mut store)?.ok_or_else(none)? {
            Ok((journal, version)) => {
                forget(args, &context, &mut store, &keeper, &journal, version)
            }
            Err(fault) => forget_unreadable(args, &context, &mut store, &keeper, &fault.why),
        };
    }
    let found = match args.value("from") {
        None => Some(keeper.must_read(&mut store, table)?.ok_or_else(|| {
            let Fault { why, .. } = none();
            Fault::failed(format!(
                "{why}; --from CLUSTER opens one that a fence closed, or whose journal is lost"
            ))
        })?),
        // The operator says which cluster is meant, so a journal that nobody can read does no harm.
        Some(from) => keeper
            .read(&mut store)?
            .and_then(Result::ok)
            .filter(|(journal, _)| journal.from.cluster == from || journal.phase != Phase::Moved),
    };
    if let Some((journal, _)) = &found {
        may_finish(journal)?;
    }
    let old = match (args.value("metas"), args.value("from"), &found) {
        (None, _, Some((journal, _))) => place_now(&mut store, &journal.from),
        (metas, Some(from), _) => target(&mut store, from, metas)?,
        (metas, None, found) => {
            let from = found.as_ref().map_or("", |(journal, _)| journal.from.cluster.as_str());
            target(&mut store, from, metas)?
        }
    };
    let route = route(&mut store, table)?;
    let elsewhere = route.as_ref().filter(|(_, now)| now.cluster != old.cluster);
    let journal = found.as_ref().map(|(journal, _)| journal);
    if let (Some(journal), Some((_, now))) = (journal, &route)
        && journal.to.cluster != now.cluster
    {
        let why = format!(
            "{table}: want a route to {}, got one to {}; {}",
            journal.to.cluster,
            now.shown(),
            journal.ways()
        );
        return Err(Fault::new(Outcome::Differs, why));
    }
    match (elsewhere, &route) {
        (Some((znode, now)), _) => {
            let before = journal.map_or(&[][..], |journal| &journal.proxies);
            all_serve(&context, &mut store, table, (znode, now), before, &old)?;
        }
        (None, Some(_)) => context
            .say(&format!("{table} is routed to {}, which may deny its clients.\n", old.cluster)),
        (None, None) => context.say(&format!("{table} has no route.\n")),
    }
    if !args.is_set("apply") {
        let word = if elsewhere.is_some() { "--clients-moved " } else { "" };
        let why = format!("Nothing is changed. Do it: the same with {word}--apply");
        return Ok(context.nothing_to_do(&why));
    }
    if elsewhere.is_some() && !args.is_set("clients-moved") {
        let why = "refused, nothing is changed: want --clients-moved, when every client was restarted or has used the \
                   table since";
        return Err(Fault::new(Outcome::Refused, why));
    }
    let mut cluster = Cluster::new(old.clone(), table, context.limit);
    let mut opened = Opened::Already;
    insist(|| {
        opened = open(&mut cluster)?;
        Ok(())
    })
    .map_err(|why| {
        let ways = journal.map(|journal| format!("; {}", journal.ways())).unwrap_or_default();
        Fault::failed(format!("{why}{ways}"))
    })?;
    if let Some((_, version)) = &found {
        keeper.delete(&mut store, *version)?;
    }
    let name = &old.cluster;
    let why = match opened {
        Opened::Now => {
            format!(
                "done: {name} takes clients of the table again, within its config-sync interval"
            )
        }
        Opened::Already => format!("done: {name} denies no client of the table"),
        Opened::Gone => {
            // Under another name, or recalled, it still denies its clients. So it is looked at on.
            if let Some(control) = Control::of(&store) {
                control.note_fenced(&mut store, &old)?;
            }
            format!(
                "done, but {name} does not have {table}. If it has another name there now, or is recalled, it denies its \
                 clients: route verify shows it as ENV"
            )
        }
    };
    if opened != Opened::Gone {
        forget_fence(&mut store, &mut cluster)?;
    }
    Ok(context.ends_well(1, &why))
}

/// Fails while the move goes on, or one of its requests may still close the old cluster.
fn may_finish(journal: &Journal) -> Result<(), Fault> {
    if journal.phase != Phase::Moved {
        let why = format!("the move did not end: {}; {}", journal.shown(), journal.ways());
        return Err(Fault::new(Outcome::Refused, why));
    }
    match journal.late_s() {
        None => Ok(()),
        Some(late_s) => {
            let why = format!(
                "refused, nothing is changed: the answer to a request of the move was lost, and it may still be carried out; \
                 try again in {late_s} s"
            );
            Err(Fault::new(Outcome::Refused, why))
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Opened {
    Now,
    Already,
    /// The cluster does not have the table.
    Gone,
}

/// Deletes the env, and looks whether it is gone.
fn open(cluster: &mut Cluster) -> Result<Opened, String> {
    let denies = |cluster: &mut Cluster| -> Result<Option<bool>, String> {
        Ok(cluster.app()?.map(|app| app.denies().is_some()))
    };
    match denies(cluster)? {
        None => return Ok(Opened::Gone),
        Some(false) => return Ok(Opened::Already),
        Some(true) => cluster.delete_env()?,
    }
    match denies(cluster)? {
        Some(true) => Err(format!("{}: it goes on denying clients", cluster.place.cluster)),
        _ => Ok(Opened::Now),
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

fn route(store: &mut Store, table: &str) -> Result<Option<(Znode, Place)>, Fault> {
    let path = store.znode_of(table);
    let clusters = store.clusters()?;
    let Some(znode) = store.znode(&path)? else { return Ok(None) };
    let place = store.place_of(&znode.data, &clusters);
    let place = place.map_err(|why| Fault::new(Outcome::Differs, format!("{path}: {why}")))?;
    Ok(Some((znode, place)))
}

/// Fails unless every proxy serves the route as it is now.
fn all_serve(
    context: &Context,
    store: &mut Store,
    table: &str,
    (znode, now): (&Znode, &Place),
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
    let znode = store.znode(&store.znode_of(table))?;
    let now = match route(store, table) {
        Ok(Some((_, place))) => format!("leads to {}", place.shown()),
        Ok(None) => "there is none".to_owned(),
        Err(fault) => fault.why,
    };
    context.say(&format!("the route of {table}: {now}\n"));
    if !args.is_set("apply") {
        let why = format!("Nothing is changed. Forget {}: the same with --apply", journal.shown());
        return Ok(context.nothing_to_do(&why));
    }
    // A run that still goes on must not write the route.
    if let Some(znode) = znode {
        let (path, version) = (store.znode_of(table), znode.stat.version);
        let pinned = store.set(&path, znode.data, version);
        pinned.map_err(|fault| Fault::failed(format!("{}, nothing is forgotten", fault.why)))?;
    }
    // `verify` looks at them from now on, also when no route names them any more.
    if let Some(control) = Control::of(store) {
        for place in &places {
            control.note_fenced(store, place)?;
        }
    }
    keeper.delete(store, version)?;
    let why = format!(
        "forgotten: {}. Nothing else was changed: what is said above stands; meta-proxy route finish {table} --from CLUSTER \
         opens a cluster",
        journal.shown()
    );
    Ok(context.ends_well(1, &why))
}

/// Deletes a journal that nobody can read, so nobody knows which clusters it was about.
fn forget_unreadable(
    args: &Args,
    context: &Context,
    store: &mut Store,
    keeper: &Keeper,
    why: &str,
) -> Ended {
    context.say(&format!(
        "a journal that nobody can read: {why}\nIts clusters may deny clients of the table: route verify shows them as ENV, \
         --cluster adds those that no route names.\n"
    ));
    if !args.is_set("apply") {
        return Ok(context.nothing_to_do("Nothing is changed. Delete it: the same with --apply"));
    }
    keeper.delete(store, ANY_VERSION)?;
    Ok(context.ends_well(1, "deleted"))
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
