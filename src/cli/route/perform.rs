//! Carries out a plan for an operator: shows it, checks it, saves it, asks him, writes it, and waits for the proxies.
//!
//! ```text
//! plan ─▶ rules ─▶ saved as a file ─┬─ shown only: 0
//!           └ 5                     └─▶ nobody holds ─▶ confirmed ─▶ journal ─▶ written ─▶ every proxy serves it ─▶ journal
//!                                         └ 5            └ 1 2        └ 1        └ 1 3 4     └ 4
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::Args;
use super::context::Context;
use super::{Ended, text};
use crate::admin::falcon::host_name;
use crate::logging::line::Utc;
use crate::ops::checks::{self, Move, Refusal};
use crate::ops::control::Control;
use crate::ops::moving::journal::{self, Phase};
use crate::ops::plan::{Accepted, Change, Data, Plan, Znode};
use crate::ops::proxies::{self, Seen};
use crate::ops::record;
use crate::ops::store::{Run, Store};
use crate::ops::{Fault, Outcome, apply, clusters};
use crate::route::control::Deletion;
use crate::route::record::Target;
use crate::upstream::resolver::Resolver;

/// Refusals that are shown in full.
const SHOWN: usize = 20;

/// A plan and how it is carried out.
pub struct Performance {
    pub plan: Plan,
    /// The file that it is in, if it came from one.
    pub file: Option<PathBuf>,
    /// Write it, and do not only show it.
    pub applies: bool,
    /// The plan that this one takes back, as `undo` was told. The rules do not count then: it goes back to what was there.
    pub undoes: Option<String>,
}

impl Performance {
    /// Performs a new plan.
    pub fn new(plan: Plan, applies: bool) -> Self {
        Performance { plan, file: None, applies, undoes: None }
    }

    /// The command that applies it, behind `meta-proxy route`.
    fn command(&self, file: &Path) -> String {
        match &self.undoes {
            None => format!("switch --plan {} --apply", file.display()),
            Some(undone) => format!("undo {undone} --apply"),
        }
    }
}

/// A plan of these changes.
pub fn make(args: &Args, context: &Context, changes: Vec<Change>) -> Plan {
    let now = Utc::now();
    let host = host_name();
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    let user = user.unwrap_or_else(|_| "unknown".to_owned());
    let accepted = checks::RULES.into_iter().filter(|rule| args.is_set(checks::option(*rule)));
    Plan {
        form: Plan::FORM,
        id: format!("{}-{}-{}", now.stamp(), args.sub.name, std::process::id()),
        kind: args.sub.name.to_owned(),
        made: now.to_string(),
        by: format!("{user}@{host}"),
        zookeeper: context.place.address.clone(),
        root: context.place.root.clone(),
        clusters_root: context.place.clusters_root.clone(),
        why: args.value("why").map(str::to_owned),
        undoes: None,
        accepted: accepted.collect(),
        changes,
    }
}

/// Shows, checks, saves, confirms and writes the plan, and waits for the proxies.
pub fn perform(args: &Args, context: &Context, store: &mut Store, mut act: Performance) -> Ended {
    for rule in checks::RULES {
        if args.is_set(checks::option(rule)) && !act.plan.accepted.contains(&rule) {
            act.plan.accepted.push(rule);
        }
    }
    let plan = &act.plan;
    context.say(&text::plan(plan));
    let moves = moves(store, plan)?;
    match act.undoes {
        None => check(context, plan, &moves)?,
        Some(_) => warn(context, &moves),
    }
    if act.applies {
        context.must_know_proxies()?;
    }
    let file = match &act.file {
        Some(file) => file.clone(),
        // An undo is planned anew when it is applied.
        None if !act.applies && act.undoes.is_some() => PathBuf::new(),
        None => save(args, plan)?,
    };
    let again = act.command(&file);
    if !act.applies {
        let count = text::counted(plan.changes.len(), "change");
        let place = match file.as_os_str().is_empty() {
            true => String::new(),
            false => format!(" The plan is in {}.", file.display()),
        };
        context.say(&format!(
            "{count} planned, nothing is written.{place}\nApply it: meta-proxy route {again}\n"
        ));
        report(context, plan, &file, Outcome::Done, None, &[]);
        return Ok(Outcome::Done);
    }
    let proxies = context.proxies(store)?;
    context.must_find(&proxies)?;
    refuse_while_held(context, &proxies)?;
    let mut run = apply::look(store, plan)?;
    confirm(args, plan, &moves)?;
    let due = plan.changes.len() - run.done();
    begin(store, plan, &file)?;
    if let Err(fault) = write(context, store, plan, &mut run) {
        report(context, plan, &file, fault.outcome, Some((&run, &fault.why)), &[]);
        end(context, store, plan, fault.outcome, &fault.why);
        let why = format!(
            "{}\nThe plan is in {1}. Go on: meta-proxy route {again}. Back: meta-proxy route undo {1} --apply",
            fault.why,
            file.display()
        );
        return Err(Fault::new(fault.outcome, why).told());
    }
    let before = match plan.changes.len() - due {
        0 => String::new(),
        n => format!(", {n} as planned before"),
    };
    context.say(&format!(
        "{} written{before}. The way back: meta-proxy route undo {} --apply\n",
        text::counted(due, "change"),
        file.display()
    ));
    let expected = apply::expected(store, plan, &run)?;
    let seen = wait(context, store, proxies, &expected)?;
    let behind: Vec<&str> =
        seen.iter().filter(|seen| seen.served.is_err()).map(|seen| seen.proxy.as_str()).collect();
    let (outcome, told) = match behind.is_empty() {
        true => (Outcome::Done, format!("all {} proxies serve it", seen.len())),
        false => (Outcome::Partly, format!("written; not served by {}", behind.join(", "))),
    };
    end(context, store, plan, outcome, &told);
    report(context, plan, &file, outcome, Some((&run, "")), &seen);
    Ok(outcome)
}

/// Fails if a rule refuses one of the moves.
fn check(context: &Context, plan: &Plan, moves: &[Move]) -> Result<(), Fault> {
    let refused = refused(context, moves, &plan.accepted);
    match refused.is_empty() {
        true => Ok(()),
        false => {
            let why = format!("refused, nothing is written:\n{}", refusals(&refused));
            Err(Fault::new(Outcome::Refused, why))
        }
    }
}

/// Warns of rules that an undo breaks. The undo is not refused, because the present place may be worse.
fn warn(context: &Context, moves: &[Move]) {
    let refused = refused(context, moves, &[]);
    if !refused.is_empty() {
        context.say(&format!("WARN: the way back is not refused, but\n{}\n", refusals(&refused)));
    }
}

fn refused(context: &Context, moves: &[Move], accepted: &[Accepted]) -> Vec<Refusal> {
    let wanted = moves.iter().flat_map(|each| [&each.old, &each.new]).flatten();
    let sets: BTreeSet<Vec<String>> = wanted.map(|place| place.metas.clone()).collect();
    let views = clusters::look(sets, context.limit);
    checks::refusals(moves, &views, accepted)
}

/// Writes the plan to the journal and announces deletions, before any route is written.
fn begin(store: &mut Store, plan: &Plan, file: &Path) -> Result<(), Fault> {
    let Some(control) = Control::of(store) else { return Ok(()) };
    let deletions: Vec<(String, i64)> = plan
        .changes
        .iter()
        .filter(|change| change.is_deletion() && plan.is_table(change))
        .filter_map(|change| Some((change.name().to_owned(), change.before.as_ref()?.mzxid)))
        .collect();
    control.begin(store, plan, &file.display().to_string())?;
    if deletions.is_empty() {
        return Ok(());
    }
    control.say(store, |word, at_s| {
        let said = deletions.iter().map(|(table, mzxid)| {
            let mzxid = *mzxid;
            (table.clone(), Deletion { mzxid, at_s })
        });
        word.deletes.extend(said);
    })
}

/// Notes in the journal how the plan ended. If that fails, the changes stand all the same.
fn end(context: &Context, store: &mut Store, plan: &Plan, outcome: Outcome, told: &str) {
    if let Some(control) = Control::of(store)
        && let Err(fault) = control.end(store, plan, outcome, told)
    {
        context.say(&format!("WARN: the journal does not say how it ended: {fault}\n"));
    }
}

fn write(context: &Context, store: &mut Store, plan: &Plan, run: &mut Run) -> Result<(), Fault> {
    let count = plan.changes.len();
    let shows = count > 1 && !context.json && io::stderr().is_terminal();
    let done = |n: usize| {
        if shows && (n.is_multiple_of(100) || n == count) {
            let _ = write!(io::stderr(), "\r{n} of {count} written");
        }
    };
    let written = apply::write(store, plan, run, done);
    if shows {
        let _ = writeln!(io::stderr());
    }
    written
}

/// Waits until all proxies serve the plan, also proxies that start meanwhile, and prints a line for each.
fn wait(
    context: &Context,
    store: &mut Store,
    mut proxies: Vec<String>,
    expected: &[proxies::Expected],
) -> Result<Vec<Seen>, Fault> {
    let root = apply::root(store)?;
    let mut seen = proxies::wait(&proxies, &root, expected, context.wait);
    // A proxy that started meanwhile may have read the old routes.
    let now = context.proxies(store)?;
    let late: Vec<String> = now.iter().filter(|proxy| !proxies.contains(proxy)).cloned().collect();
    seen.extend(proxies::wait(&late, &root, expected, context.wait));
    proxies.extend(late);
    // A proxy that has stopped serves nobody.
    seen.retain(|seen| seen.served.is_ok() || now.contains(&seen.proxy));
    for one in &seen {
        context.say(&match &one.served {
            Ok(()) => format!("{}: serves it, after {} ms\n", one.proxy, one.took.as_millis()),
            Err(why) => format!("{}: DOES NOT SERVE IT: {why}\n", one.proxy),
        });
    }
    if proxies.is_empty() {
        context.say("no proxy was looked at\n");
    }
    Ok(seen)
}

fn report(
    context: &Context,
    plan: &Plan,
    file: &Path,
    outcome: Outcome,
    run: Option<(&Run, &str)>,
    seen: &[Seen],
) {
    if !context.json {
        return;
    }
    let seen: Vec<Value> = seen
        .iter()
        .map(|seen| {
            json!({
                "proxy": seen.proxy,
                "serves": seen.served.is_ok(),
                "why": seen.served.as_ref().err(),
                "took_ms": seen.took.as_millis() as u64,
            })
        })
        .collect();
    let told = json!({
        "id": plan.id,
        "file": file.display().to_string(),
        "changes": plan.changes.len(),
        "applied": run.is_some(),
        "done": run.map(|(run, _)| run.done()),
        "error": run.map(|(_, why)| why).filter(|why| !why.is_empty()),
        "proxies": seen,
        "exit_code": outcome as u8,
    });
    crate::cli::print(&format!("{told:#}\n"));
}

/// Saves the plan as a new file, to the disk, before any route is written.
fn save(args: &Args, plan: &Plan) -> Result<PathBuf, Fault> {
    let default = || format!("route-{}.json", plan.id);
    let path = PathBuf::from(args.value("save").map_or_else(default, str::to_owned));
    let saved = OpenOptions::new().write(true).create_new(true).open(&path).and_then(|mut file| {
        file.write_all(plan.to_file().as_bytes())?;
        file.sync_all()
    });
    saved.map(|()| path.clone()).map_err(|e| {
        // Half a file is no plan.
        if e.kind() != io::ErrorKind::AlreadyExists {
            let _ = std::fs::remove_file(&path);
        }
        Fault::failed(format!("{}: {e}; --save FILE puts the plan elsewhere", path.display()))
    })
}

/// A plan: a file, or else one of the journal, by its id.
pub fn read(store: &mut Store, name: &str) -> Result<Plan, Fault> {
    match std::fs::read_to_string(name) {
        Ok(text) => Plan::from_file(&text).map_err(|e| Fault::usage(format!("{name}: {e}"))),
        Err(e) => match Control::of(store).filter(|_| !name.contains('/')) {
            Some(control) => control.plan(store, name),
            None => Err(Fault::usage(format!("{name}: {e}"))),
        },
    }
}

/// The moves of tables that the changes make.
fn moves(store: &mut Store, plan: &Plan) -> Result<Vec<Move>, Fault> {
    let clusters = store.clusters()?;
    let by_name = store.place.clusters_root.is_some();
    let under_way: BTreeSet<String> = journal::all(store)?
        .into_iter()
        .filter(|(_, journal)| !matches!(journal, Ok(journal) if journal.phase == Phase::Moved))
        .map(|(table, _)| table)
        .collect();
    let mut moves = Vec::new();
    let mut renewed = clusters.clone();
    for change in &plan.changes {
        if !plan.is_table(change) {
            let after = change.after.as_ref().map(|after| after.data.clone());
            let after = after.unwrap_or(Data(Vec::new()));
            renewed.insert(
                change.name().to_owned(),
                Znode { data: after.0, stat: Default::default() },
            );
            continue;
        }
        let before = change.before.as_ref().map(|before| &before.data.0);
        let after = change.after.as_ref().map(|after| &after.data.0);
        let new = after.map(|data| store.place_of(data, &clusters)).transpose();
        let new = new.map_err(|why| Fault::usage(format!("{}: {why}", change.znode)))?;
        let named = |data: &Vec<u8>| matches!(record::read(data, by_name), Ok(Target::Cluster(_)));
        moves.push(Move {
            table: change.name().to_owned(),
            old: before.and_then(|data| store.place_of(data, &clusters).ok()),
            new,
            names_cluster: after.is_some_and(named),
            is_moving: under_way.contains(change.name()),
        });
    }
    if renewed != clusters {
        for row in store.routes()?.rows {
            let new = store.place_of(&row.znode.data, &renewed).ok();
            let old = row.place.ok();
            if new != old {
                moves.push(Move {
                    table: row.table,
                    old,
                    new,
                    names_cluster: true,
                    is_moving: false,
                });
            }
        }
    }
    Ok(moves)
}

fn refusals(refused: &[Refusal]) -> String {
    let mut by_why: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for refusal in refused {
        let key = (checks::option(refusal.rule), refusal.why.as_str());
        by_why.entry(key).or_default().push(&refusal.table);
    }
    let mut text = String::new();
    for ((option, why), tables) in by_why.iter().take(SHOWN) {
        let more = tables.len().saturating_sub(3);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let some = tables[..tables.len().min(3)].join(", ");
        text += &format!("  {some}{more}: {why} (--{option})\n");
    }
    text.trim_end().to_owned()
}

/// Returns what each proxy serves for one table.
pub fn served_by(proxies: &[String], table: &str) -> Vec<(String, String)> {
    let resolver = Resolver::start();
    let said = |proxy: &String| match proxies::page(proxy, &resolver, Some(table)) {
        Err(why) => format!("no page: {why}"),
        Ok(page) => match page.routes.iter().find(|listed| listed.table == table) {
            None => "not cached".to_owned(),
            Some(listed) => {
                let cluster = listed.cluster.as_deref().unwrap_or("unusable");
                let marks = [(listed.stale, ", stale"), (listed.held, ", held")];
                let marks = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark);
                let marks: String = marks.collect();
                format!("{cluster} ({}) mzxid {:#x}{marks}", listed.metas.join(","), listed.zxid)
            }
        },
    };
    proxies.iter().map(|proxy| (proxy.clone(), said(proxy))).collect()
}

/// Refuses to write while a proxy holds routes, because it does not serve what ZooKeeper has.
pub fn refuse_while_held(context: &Context, proxies: &[String]) -> Result<(), Fault> {
    for (proxy, hold) in proxies::holds(proxies) {
        match hold {
            Ok(None) => {}
            Ok(Some(hold)) => {
                let why = format!("refused, nothing is written: {proxy} holds routes: {hold}");
                return Err(Fault::new(Outcome::Refused, why));
            }
            // A proxy that does not answer must not stop a switch in a disaster. The last check names it again.
            Err(why) => {
                context.say(&format!("WARN: {proxy} does not say whether it holds routes: {why}\n"))
            }
        }
    }
    Ok(())
}

/// Asks for a confirmation if more than one table changes: typed at a terminal, else `--yes-tables`.
fn confirm(args: &Args, plan: &Plan, moves: &[Move]) -> Result<(), Fault> {
    let count = moves.len().max(plan.changes.len());
    if count < 2 {
        return Ok(());
    }
    let mut names: Vec<&str> =
        moves.iter().filter_map(|each| Some(each.new.as_ref()?.cluster.as_str())).collect();
    names.sort_unstable();
    names.dedup();
    let word = match names.as_slice() {
        [one] => (*one).to_owned(),
        _ => count.to_string(),
    };
    confirm_tables(args, count, &word)
}

/// Fails unless the operator types `word`, or gave the number of tables.
pub fn confirm_tables(args: &Args, count: usize, word: &str) -> Result<(), Fault> {
    let given = args.number("yes-tables").map_err(Fault::usage)?;
    if let Some(given) = given {
        return match given == count as u64 {
            true => Ok(()),
            false => Err(Fault::usage(format!(
                "--yes-tables: want {count}, the tables that change, got {given}"
            ))),
        };
    }
    if !io::stdin().is_terminal() {
        let why = format!("{count} tables change: want --yes-tables {count}, or a terminal");
        return Err(Fault::usage(why));
    }
    let _ = write!(io::stderr(), "{count} tables change. Type {word} to write it: ");
    let mut line = String::new();
    let _ = io::stdin().lock().read_line(&mut line);
    match line.trim() == word {
        true => Ok(()),
        false => Err(Fault::failed("not confirmed, nothing is written")),
    }
}
