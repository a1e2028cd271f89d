//! `route move`: a table goes to another cluster while both live, and no acknowledged write is lost.
//!
//! ```text
//! route, journal ─┬─ no journal ─▶ checks ─┬─ shown only: 0      (STOP: 5)
//!                 │                        └─ journal made ─▶ run ─▶ 0 done, 1 all is back, 4 A still denies
//!                 └─ journal ─▶ gone on with, or taken back (--back)
//! ```

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use super::Ended;
use super::args::Args;
use super::context::{Context, Proxies};
use super::perform::{make, refuse_while_held};
use super::progress::Progress;
use super::single::{change_to, target};
use crate::ops::admin_move::Duplication;
use crate::ops::moving::checks::{self, Check, Level, Wish, seconds};
use crate::ops::moving::decide::{Decider, Terms, least_max_refused_ms};
use crate::ops::moving::force::Proof;
use crate::ops::moving::journal::{Journal, Keeper, Phase};
use crate::ops::moving::look::Cluster;
use crate::ops::moving::run::Run;
use crate::ops::moving::state::Ids;
use crate::ops::plan::Data;
use crate::ops::record::Place;
use crate::ops::store::{Store, check_name};
use crate::ops::{Fault, Outcome};

/// Writes are refused for so long at most, unless the servers need longer.
const MAX_REFUSED_MS: u64 = 120_000;
/// The config-sync interval of servers that cannot be asked for theirs.
const INTERVAL_MS: u64 = 30_000;

/// Moves a table, goes on with a move, or takes one back.
pub fn route_move(args: &Args) -> Ended {
    let context = Context::new(args)?;
    let table = args.operand.as_deref().unwrap_or_default();
    check_name(table)?;
    let max_refused_ms = args.value("max-refused").map(span_ms).transpose()?;
    let mut store = context.open()?;
    store.sync()?;
    let keeper = Keeper::of(&store, table);
    let journal = keeper.must_read(&mut store, table)?.map(|(journal, _)| journal);
    let begun = match (journal, args.is_set("back")) {
        (Some(journal), true) if journal.phase == Phase::Moved => {
            return Err(Fault::new(Outcome::Differs, after_it(&journal)));
        }
        (Some(journal), _) if journal.phase != Phase::Moved => {
            Some(resume(args, &context, journal)?)
        }
        (None, true) => {
            let place = keeper.place();
            return Err(Fault::failed(format!(
                "{place}: there is no move of {table} to take back; meta-proxy route finish {table} --from CLUSTER opens a \
                 cluster that denies clients of it"
            )));
        }
        (journal, _) => match begin(args, &context, &mut store, &keeper, journal)? {
            Begun::Ended(outcome) => return Ok(outcome),
            Begun::Journal(journal) => Some(*journal),
            Begun::Shown => None,
        },
    };
    let Some(journal) = begun else {
        context.say("Nothing is changed. Do it: the same with --apply\n");
        return Ok(Outcome::Done);
    };
    if !args.is_set("apply") {
        let why = format!("{}\nNothing is changed; {}", journal.shown(), journal.way_on());
        return Ok(context.nothing_to_do(&why));
    }
    let is_back = args.is_set("back");
    run(&context, store, keeper, journal, Ways { max_refused_ms, proof: proof(args)?, is_back })
}

fn proof(args: &Args) -> Result<Proof, Fault> {
    match (args.is_set("probe"), args.is_set("no-probe")) {
        (true, true) => Err(Fault::usage("want --probe or --no-probe, got both")),
        (true, false) => Ok(Proof::Probe),
        (false, true) => Ok(Proof::Clock),
        (false, false) => Ok(Proof::ClockAndProbe),
    }
}

/// `90s`, `5m`: in ms.
fn span_ms(text: &str) -> Result<u64, Fault> {
    Ok(super::verify::span("max-refused", text)?.as_millis() as u64)
}

fn after_it(journal: &Journal) -> String {
    let Journal { table, from, to, .. } = journal;
    let way = match journal.keeps_undo {
        true => format!(
            "first meta-proxy route finish {table} --clients-moved --apply, then meta-proxy route move {table} --to {} \
             --apply",
            from.cluster
        ),
        false => {
            format!("there is no duplication back: what {} took since is missing there", to.cluster)
        }
    };
    format!("{table}: it is in {} since. The way back to {}: {way}", to.cluster, from.cluster)
}

/// A move that was begun and did not end.
fn resume(args: &Args, context: &Context, journal: Journal) -> Result<Journal, Fault> {
    let shown = journal.shown();
    if args.is_set("back") {
        if journal.was_new {
            let why = format!(
                "{}: the route led to {} already, and {} lacks what clients wrote since: {}, and then back by a move",
                journal.table,
                journal.to.cluster,
                journal.from.cluster,
                journal.way_on()
            );
            return Err(Fault::new(Outcome::Differs, why));
        }
        context.say(&format!("taken back: {shown}\n"));
        return Ok(journal);
    }
    if args.is_set("keep-undo") && !journal.keeps_undo {
        let why = format!("the move was begun without --keep-undo: {shown}; {}", journal.way_on());
        return Err(Fault::new(Outcome::Differs, why));
    }
    let to = args.value("to").unwrap_or(&journal.to.cluster);
    if to != journal.to.cluster || journal.phase == Phase::Back {
        let why = format!("a move is under way: {shown}; {}", journal.way_on());
        return Err(Fault::new(Outcome::Differs, why));
    }
    context.say(&format!("gone on with: {shown}\n"));
    Ok(journal)
}

enum Begun {
    Ended(Outcome),
    /// The checks were shown.
    Shown,
    Journal(Box<Journal>),
}

fn begin(
    args: &Args,
    context: &Context,
    store: &mut Store,
    keeper: &Keeper,
    moved: Option<Journal>,
) -> Result<Begun, Fault> {
    let table = args.operand.as_deref().unwrap_or_default();
    let to = args.value("to").ok_or_else(|| Fault::usage("want --to CLUSTER"))?;
    let path = store.znode_of(table);
    let znode = store.znode(&path)?;
    let znode = znode.ok_or_else(|| Fault::failed(format!("{path}: no such znode")))?;
    let clusters = store.clusters()?;
    let from = store.place_of(&znode.data, &clusters).map_err(Fault::failed)?;
    if from.cluster == to {
        let why = format!("{table}: it is routed to {to}");
        return Ok(Begun::Ended(context.nothing_to_do(&why)));
    }
    if let Some(moved) = moved {
        let why = format!("the last move is not finished: {}; {}", moved.shown(), moved.way_on());
        return Err(Fault::new(Outcome::Refused, why));
    }
    let to = target(store, to, args.value("metas"))?;
    let change = change_to(store, &clusters, &[], table, Some(&znode), &to)?;
    let (keeps_undo, proxies) = (args.is_set("keep-undo"), context.proxies(store)?);
    if args.is_set("apply") {
        context.must_know_proxies()?;
        context.must_find(&proxies)?;
        refuse_while_held(context, &proxies)?;
    }
    let max_refused_ms = args.value("max-refused").map(span_ms).transpose()?;
    let Checked { checks, ids, has_reverse } =
        check(context, table, (&from, &to), keeps_undo, max_refused_ms, proof(args)?);
    let is_stopped = checks.iter().any(|check| check.level == Level::Stop);
    let ids = ids.filter(|_| !is_stopped);
    let lines: String = checks.iter().map(|check| format!("{check}\n")).collect();
    context.say(&lines);
    let Some(ids) = ids else {
        if context.json {
            report(table, &from, &to, &checks, "stopped", Outcome::Refused);
        }
        let why = "a check stops it, nothing is changed";
        return Err(told(context, Fault::new(Outcome::Refused, why)));
    };
    if !args.is_set("apply") {
        if context.json {
            report(table, &from, &to, &checks, "checked", Outcome::Done);
        }
        return Ok(Begun::Shown);
    }
    let plan = make(args, context, Vec::new());
    let after = change.after.map(|after| after.data).unwrap_or(Data(Vec::new()));
    let journal = Journal {
        form: Journal::FORM,
        id: plan.id,
        table: table.to_owned(),
        phase: Phase::Moving,
        from,
        to,
        before: Data(znode.data.clone()),
        after,
        version: znode.stat.version,
        ids,
        proxies,
        keeps_undo,
        made_undo: keeps_undo && !has_reverse,
        made: plan.made,
        by: plan.by,
        denied_at_s: None,
        unanswered_at_s: None,
        drained: None,
        was_new: false,
    };
    if let Err(fault) = keeper.create(store, &journal) {
        let begun = keeper.must_read(store, table)?.map(|(other, _)| other);
        let why = begun.map(|other| format!("another run began a move: {}", other.shown()));
        return Err(Fault::failed(why.unwrap_or(fault.why)));
    }
    context.say(&format!("the move is in {}\n", keeper.place()));
    Ok(Begun::Journal(Box::new(journal)))
}

/// The checks and what they saw.
struct Checked {
    checks: Vec<Check>,
    /// `None`: something is not there.
    ids: Option<Ids>,
    /// B->A is there.
    has_reverse: bool,
}

fn check(
    context: &Context,
    table: &str,
    (from, to): (&Place, &Place),
    keeps_undo: bool,
    max_refused_ms: Option<u64>,
    proof: Proof,
) -> Checked {
    let mut old = Cluster::new(from.clone(), table, context.limit);
    let mut new = Cluster::new(to.clone(), table, context.limit);
    let (old_view, new_view) = (old.view(), new.view());
    let seen = |cluster: &mut Cluster, other: &str| {
        let duplications = cluster.duplications();
        let to_other = |duplication: &&Duplication| duplication.remote == other;
        let id =
            duplications.as_ref().ok().and_then(|all| all.iter().find(to_other)).map(|one| one.id);
        let app =
            cluster.app().and_then(|app| app.ok_or_else(|| "the table is not there".to_owned()));
        let app_id = app.as_ref().ok().map(|app| app.app_id);
        let partitions = app.and_then(|app| cluster.partitions(&app, id));
        ((duplications, partitions, cluster.interval_ms()), app_id, id)
    };
    let (mut old_seen, old_app, duplication) = seen(&mut old, &to.cluster);
    let probe = match &mut old_seen.1 {
        Ok(partitions) if proof != Proof::Clock => {
            let mut all: Vec<_> = partitions.iter_mut().collect();
            old_app.map(|app_id| old.probe(app_id, &mut all))
        }
        _ => None,
    };
    let (new_seen, new_app, reverse) = seen(&mut new, &from.cluster);
    let ids = || {
        let (old_app, new_app, duplication) = (old_app?, new_app?, duplication?);
        Some(Ids { old_app, new_app, duplication })
    };
    let ships_at_once = old_seen.0.as_ref().is_ok_and(|all| all.iter().all(|one| one.has_decrees));
    let least_ms = least_max_refused_ms(*old_seen.2.as_ref().unwrap_or(&0), ships_at_once);
    let side = |place, view, (duplications, partitions, interval_ms), probe| checks::Seen {
        place,
        view,
        duplications,
        partitions,
        interval_ms,
        probe,
    };
    let wish = Wish {
        keeps_undo,
        max_refused_ms: Some(max_refused_ms.unwrap_or(MAX_REFUSED_MS.max(least_ms))),
        least_ms,
    };
    let (old, new) = (side(from, &old_view, old_seen, probe), side(to, &new_view, new_seen, None));
    let checks = checks::checks(table, &old, &new, &wish);
    Checked { checks, ids: ids(), has_reverse: reverse.is_some() }
}

/// The pages that must serve the new route: also those of proxies that were there when the move began, for one that is
/// cut off from ZooKeeper goes on serving the old one.
pub fn pages(
    context: &Context,
    store: &mut Store,
    before: &[String],
) -> Result<Vec<String>, Fault> {
    let mut pages = context.proxies(store)?;
    if context.proxies == Proxies::Members {
        context.must_find(&pages)?;
        pages.extend(before.iter().cloned());
        pages.sort_unstable();
        pages.dedup();
    }
    Ok(pages)
}

/// Where the cluster is now: its MetaServers may have been replaced since.
pub fn place_now(store: &mut Store, place: &Place) -> Place {
    target(store, &place.cluster, None).unwrap_or_else(|_| place.clone())
}

/// The options of one run.
struct Ways {
    max_refused_ms: Option<u64>,
    proof: Proof,
    is_back: bool,
}

/// Runs a move from where it is.
fn run(context: &Context, mut store: Store, keeper: Keeper, journal: Journal, ways: Ways) -> Ended {
    let Ways { max_refused_ms, proof, is_back } = ways;
    context.must_know_proxies()?;
    let (table, before) = (journal.table.clone(), journal.proxies.clone());
    if !is_back {
        pages(context, &mut store, &before)?;
    }
    let places = [&journal.from, &journal.to].map(|place| place_now(&mut store, place));
    let [mut old, new] = places.map(|place| Cluster::new(place, &table, context.limit));
    let is_back = is_back || journal.phase == Phase::Back;
    // A run that goes back needs only the old cluster.
    let (interval_ms, least_ms) = match is_back {
        true => (old.interval_ms().unwrap_or(INTERVAL_MS), 0),
        false => {
            let seen = old.interval_ms().and_then(|ms| Ok((ms, old.duplications()?)));
            let (interval_ms, duplications) = seen
                .map_err(|why| Fault::new(Outcome::Partly, format!("{why}; {}", journal.ways())))?;
            let ships_at_once = duplications.iter().all(|one| one.has_decrees);
            let least_ms = least_max_refused_ms(interval_ms, ships_at_once);
            if let Some(limit_ms) = max_refused_ms.filter(|limit_ms| *limit_ms < least_ms) {
                let (limit, least) = (seconds(limit_ms), seconds(least_ms));
                let why = format!(
                    "--max-refused: want {least} at least, which these servers need, got {limit}"
                );
                return Err(Fault::new(Outcome::Refused, why));
            }
            (interval_ms, least_ms)
        }
    };
    let terms = Terms {
        interval_ms,
        max_refused_ms: max_refused_ms.unwrap_or(MAX_REFUSED_MS).max(least_ms),
        keeps_undo: journal.keeps_undo,
        made_undo: journal.made_undo,
        proof,
        may_come_late: false,
        late_ms: context.limit.as_millis() as u64,
        version: journal.version,
        ids: journal.ids,
    };
    let decider = Decider::new(terms, is_back);
    let (from, to) = (journal.from.clone(), journal.to.clone());
    let find = |store: &mut Store| pages(context, store, &before);
    let mut progress = Progress::new(context)?;
    let mut run = Run {
        store: &mut store,
        keeper,
        journal,
        journal_version: None,
        old,
        new,
        decider,
        proxies: &find,
        wait: context.wait,
        signal: signals()?,
        start: Instant::now(),
        is_warned: false,
        is_open: false,
        znode: None,
        is_asked_back: is_back,
    };
    let ended = run.run(&mut |told| progress.tell(&told));
    progress.end();
    let outcome = ended.as_ref().map_or_else(|fault| fault.outcome, |(outcome, _)| *outcome);
    if context.json {
        let told = ended.as_ref().map_or_else(|fault| fault.why.as_str(), |(_, told)| told);
        report(&table, &from, &to, &[], told, outcome);
    }
    let (outcome, why) = ended.map_err(|fault| told(context, fault))?;
    match outcome {
        Outcome::Done => context.say(&format!("done: {why}\n")),
        _ => return Err(told(context, Fault::new(outcome, why))),
    }
    if run.journal.phase == Phase::Moved {
        let denies = match run.is_open {
            true => String::new(),
            false => format!(
                "{} goes on denying clients of the table, so that none stays there; ",
                from.cluster
            ),
        };
        let after = after_it(&run.journal);
        context.say(&format!("{denies}{}\n{after}\n", run.journal.way_on()));
    }
    Ok(outcome)
}

/// Marks the fault as printed if JSON is wanted.
fn told(context: &Context, fault: Fault) -> Fault {
    if context.json { fault.told() } else { fault }
}

/// One signal asks to go back, a second Ctrl-C ends the process at once.
fn signals() -> Result<Arc<AtomicBool>, Fault> {
    let came = Arc::new(AtomicBool::new(false));
    // A lost terminal may send two SIGHUPs.
    for signal in [SIGTERM, SIGHUP] {
        flag::register(signal, came.clone()).map_err(|e| Fault::failed(format!("signals: {e}")))?;
    }
    flag::register_conditional_shutdown(SIGINT, Outcome::Partly as i32, came.clone())
        .and_then(|_| flag::register(SIGINT, came.clone()))
        .map_err(|e| Fault::failed(format!("signals: {e}")))?;
    Ok(came)
}

fn report(table: &str, from: &Place, to: &Place, checks: &[Check], told: &str, outcome: Outcome) {
    let checks: Vec<_> = checks.iter().map(ToString::to_string).collect();
    let told = json!({
        "table": table,
        "from": from.cluster,
        "to": to.cluster,
        "checks": checks,
        "told": told,
        "exit_code": outcome as u8,
    });
    crate::cli::print(&format!("{told:#}\n"));
}
