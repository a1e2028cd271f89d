//! `route move`: a table goes to another cluster while both live, and no acknowledged write is lost.
//!
//! ```text
//! route, journal ─┬─ no journal ─▶ checks ─┬─ shown only: 0      (STOP: 5)
//!                 │                        └─ journal made ─▶ run ─▶ 0 done, 1 all is back, 4 A still denies
//!                 └─ journal ─▶ gone on with, or taken back (--back)
//! ```

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use super::Ended;
use super::args::Args;
use super::context::Context;
use super::perform::{make, refuse_while_held};
use super::single::{change_to, target};
use crate::ops::moving::checks::{self, Check, Level, Wish, seconds};
use crate::ops::moving::decide::{Decider, Step, Terms, least_max_refused_ms};
use crate::ops::moving::journal::{Journal, Keeper, Phase};
use crate::ops::moving::look::Cluster;
use crate::ops::moving::run::{Run, Told};
use crate::ops::moving::state::{Partition, Seen};
use crate::ops::plan::{Data, Znode};
use crate::ops::record::Place;
use crate::ops::store::{Store, check_name};
use crate::ops::{Fault, Outcome};
use crate::wire::admin_move::Duplication;

/// Writes are refused for so long at most, unless the servers need longer.
const MAX_REFUSED_MS: u64 = 120_000;
/// The config-sync interval of servers that cannot be asked for theirs.
const INTERVAL_MS: u64 = 30_000;
/// Between two lines of progress that is no terminal's.
const LINES_EVERY: Duration = Duration::from_secs(5);
/// Partitions that a line of progress names.
const NAMED: usize = 4;

/// Moves a table, goes on with a move, or takes one back.
pub fn route_move(args: &Args) -> Ended {
    let context = Context::new(args)?;
    let table = args.operand.as_deref().unwrap_or_default();
    check_name(table)?;
    let max_refused_ms = args.value("max-refused").map(span_ms).transpose()?;
    let mut store = context.open()?;
    store.sync()?;
    // The route before the journal: a run that goes back says so in the journal before it gives the route a new version.
    let path = store.znode_of(table);
    let znode = store.znode(&path)?;
    let znode = znode.ok_or_else(|| Fault::failed(format!("{path}: no such znode")))?;
    let keeper = Keeper::of(&store, table);
    let journal = keeper.read(&mut store)?;
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
                "{place}: there is no move of {table} to take back"
            )));
        }
        (journal, _) => match begin(args, &context, &mut store, &keeper, journal, &znode)? {
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
    run(&context, store, keeper, journal, &znode, max_refused_ms, is_back)
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
        context.say(&format!("taken back: {shown}\n"));
        return Ok(journal);
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
    znode: &Znode,
) -> Result<Begun, Fault> {
    let table = args.operand.as_deref().unwrap_or_default();
    let to = args.value("to").ok_or_else(|| Fault::usage("want --to CLUSTER"))?;
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
    let change = change_to(store, &clusters, &[], table, Some(znode), &to)?;
    let (keeps_undo, proxies) = (args.is_set("keep-undo"), context.proxies(store)?);
    if args.is_set("apply") {
        context.must_know_proxies()?;
        context.must_find(&proxies)?;
        refuse_while_held(context, &proxies)?;
    }
    let max_refused_ms = args.value("max-refused").map(span_ms).transpose()?;
    let (checks, made_undo) = check(context, table, (&from, &to), keeps_undo, max_refused_ms);
    let is_stopped = checks.iter().any(|check| check.level == Level::Stop);
    let lines: String = checks.iter().map(|check| format!("{check}\n")).collect();
    context.say(&lines);
    if is_stopped {
        if context.json {
            report(table, &from, &to, &checks, "stopped", Outcome::Refused);
        }
        let why = "a check stops it, nothing is changed";
        return Err(told(context, Fault::new(Outcome::Refused, why)));
    }
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
        table: table.to_owned(),
        phase: Phase::Moving,
        from,
        to,
        before: Data(znode.data.clone()),
        after,
        keeps_undo,
        made_undo,
        made: plan.made,
        by: plan.by,
        denied_at_s: None,
    };
    keeper.create(store, &journal)?;
    context.say(&format!("the move is in {}\n", keeper.place()));
    Ok(Begun::Journal(Box::new(journal)))
}

/// All checks, and whether the duplication back is to be made.
fn check(
    context: &Context,
    table: &str,
    (from, to): (&Place, &Place),
    keeps_undo: bool,
    max_refused_ms: Option<u64>,
) -> (Vec<Check>, bool) {
    let mut old = Cluster::new(from.clone(), table, context.limit);
    let mut new = Cluster::new(to.clone(), table, context.limit);
    let (old_view, new_view) = (old.view(), new.view());
    let (old_name, new_name) = (old.name.clone(), new.name.clone());
    let seen = |cluster: &mut Cluster, other: &str| {
        let duplications = cluster.duplications();
        let to_other = |duplication: &&Duplication| duplication.remote == other;
        let id =
            duplications.as_ref().ok().and_then(|all| all.iter().find(to_other)).map(|one| one.id);
        let app =
            cluster.app().and_then(|app| app.ok_or_else(|| "the table is not there".to_owned()));
        let partitions = app.and_then(|app| cluster.partitions(&app, id));
        (duplications, partitions, cluster.interval_ms())
    };
    let (old_seen, new_seen) = (seen(&mut old, &new_name), seen(&mut new, &old_name));
    let has_reverse =
        new_seen.0.as_ref().is_ok_and(|all| all.iter().any(|one| one.remote == old_name));
    let ships_at_once = old_seen.0.as_ref().is_ok_and(|all| all.iter().all(|one| one.has_decrees));
    let least_ms = least_max_refused_ms(*old_seen.2.as_ref().unwrap_or(&0), ships_at_once);
    let side = |place, view, (duplications, partitions, interval_ms)| checks::Seen {
        place,
        view,
        duplications,
        partitions,
        interval_ms,
    };
    let wish = Wish {
        keeps_undo,
        max_refused_ms: Some(max_refused_ms.unwrap_or(MAX_REFUSED_MS.max(least_ms))),
        least_ms,
    };
    let (old, new) = (side(from, &old_view, old_seen), side(to, &new_view, new_seen));
    (checks::checks(table, &old, &new, &wish), keeps_undo && !has_reverse)
}

/// Does what is left of a move.
fn run(
    context: &Context,
    mut store: Store,
    keeper: Keeper,
    journal: Journal,
    znode: &Znode,
    max_refused_ms: Option<u64>,
    is_back: bool,
) -> Ended {
    context.must_know_proxies()?;
    let proxies = context.proxies(&mut store)?;
    if !is_back {
        context.must_find(&proxies)?;
    }
    let table = journal.table.clone();
    let mut old = Cluster::new(journal.from.clone(), &table, context.limit);
    let mut new = Cluster::new(journal.to.clone(), &table, context.limit);
    let is_back = is_back || journal.phase == Phase::Back;
    let partly = |why: String| Fault::new(Outcome::Partly, format!("{why}; {}", journal.way_on()));
    // One that goes back needs nothing of them but to open the old cluster: the new one may be lost.
    let (interval_ms, least_ms) = match is_back {
        true => (old.interval_ms().unwrap_or(INTERVAL_MS), 0),
        false => {
            for cluster in [&mut old, &mut new] {
                let view = cluster.view();
                if view.leader.is_none() {
                    let (name, why) = (&cluster.place.cluster, view.why_no_leader());
                    return Err(partly(format!("{name}: no leader answers: {why}")));
                }
            }
            // The limit is never less than can be kept.
            let interval_ms = old.interval_ms().map_err(partly)?;
            let duplications = old.duplications().map_err(partly)?;
            let ships_at_once = duplications.iter().all(|one| one.has_decrees);
            (interval_ms, least_max_refused_ms(interval_ms, ships_at_once))
        }
    };
    let terms = Terms {
        interval_ms,
        max_refused_ms: max_refused_ms.unwrap_or(MAX_REFUSED_MS).max(least_ms),
        keeps_undo: journal.keeps_undo,
        made_undo: journal.made_undo,
        may_be_denied: journal.denied_at_s.is_some(),
        version: znode.stat.version,
    };
    let decider = Decider::new(terms, is_back);
    let (from, to) = (journal.from.clone(), journal.to.clone());
    let mut progress = Progress::new(context);
    let mut run = Run {
        store: &mut store,
        keeper,
        journal,
        old,
        new,
        decider,
        proxies,
        wait: context.wait,
        signal: signals()?,
        start: Instant::now(),
        znode: Some(znode.clone()),
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
        context.say(&format!(
            "{} goes on denying clients of the table, so that none stays there; {}\n{}\n",
            from.cluster,
            run.journal.way_on(),
            after_it(&run.journal)
        ));
    }
    Ok(outcome)
}

/// The JSON has it already.
fn told(context: &Context, fault: Fault) -> Fault {
    if context.json { fault.told() } else { fault }
}

/// One signal asks to go back, a second Ctrl-C ends the process at once.
fn signals() -> Result<Arc<AtomicBool>, Fault> {
    let came = Arc::new(AtomicBool::new(false));
    // A terminal that is lost may say so twice.
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

/// How it goes on: one line that is rewritten at a terminal, else a line now and then.
struct Progress<'a> {
    context: &'a Context,
    is_terminal: bool,
    /// A line stands that is to be rewritten.
    is_open: bool,
    last: Option<Instant>,
    last_again: String,
}

impl<'a> Progress<'a> {
    fn new(context: &'a Context) -> Self {
        let is_terminal = io::stderr().is_terminal() && !context.json;
        Progress { context, is_terminal, is_open: false, last: None, last_again: String::new() }
    }

    fn tell(&mut self, told: &Told<'_>) {
        match told {
            Told::Step(text) => {
                self.end();
                self.last = None;
                self.context.say(&format!("{text}\n"));
            }
            // One line for one reason.
            Told::Again(why) => {
                if self.last_again != *why {
                    self.end();
                    self.last_again = (*why).to_owned();
                    self.context.say(&format!("tried again: {why}\n"));
                }
            }
            Told::Wait { step, seen, refused_ms } => {
                if self.is_terminal {
                    self.is_open = true;
                    let _ = write!(io::stderr(), "\r\x1b[K{}", line(step, seen, *refused_ms));
                    return;
                }
                if self.last.is_none_or(|last| last.elapsed() >= LINES_EVERY) {
                    self.last = Some(Instant::now());
                    self.context.say(&format!("{}\n", line(step, seen, *refused_ms)));
                }
            }
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.is_open) {
            let _ = writeln!(io::stderr());
        }
    }
}

fn line(step: &Step, seen: &Seen, refused_ms: u64) -> String {
    let what = match step {
        Step::AwaitReverse => "until every primary duplicates back".to_owned(),
        Step::AwaitForce(ms) => format!("3 in force everywhere in {}", seconds(*ms)),
        Step::AwaitDrained => "4 until the new cluster has all".to_owned(),
        Step::AwaitStill(ms) => {
            format!("7 in force everywhere in {}, and it stands still", seconds(*ms))
        }
        other => format!("{other:?}"),
    };
    let mut busy: Vec<&Partition> = seen.partitions.iter().collect();
    busy.sort_by_key(|partition| std::cmp::Reverse(partition.unsent().unwrap_or(i64::MAX)));
    let shown = busy.iter().take(NAMED).map(|partition| {
        let unsent = partition.unsent().map_or("?".to_owned(), |unsent| unsent.to_string());
        format!("{} D {} unsent {unsent}", partition.replica.index, partition.replica.prepared)
    });
    let shown: Vec<String> = shown.collect();
    let more = seen.partitions.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    let unsent = seen.unsent().map_or("?".to_owned(), |unsent| unsent.to_string());
    format!(
        "{what}; writes refused for {}; unsent {unsent}; partitions {}{more}",
        seconds(refused_ms),
        shown.join(", ")
    )
}
