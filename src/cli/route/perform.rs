//! Carries out a plan for an operator: shows it, checks it, saves it, asks him, writes it, and waits for the proxies.
//!
//! ```text
//! plan ─▶ rules ─▶ saved as a file ─▶ nobody holds ─▶ confirmed ─▶ written ─▶ every proxy serves it
//!           └ 5                         └ 5            └ 1          └ 1 3 4     └ 4
//! ```

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::args::Args;
use super::context::Context;
use super::{Ended, text};
use crate::logging::line::Utc;
use crate::ops::checks::{self, Move, Refusal};
use crate::ops::plan::{Change, Data, Plan, Znode};
use crate::ops::proxies::{self, Seen};
use crate::ops::record;
use crate::ops::store::{Run, Store};
use crate::ops::{Fault, Outcome, apply, clusters};
use crate::route::record::Target;
use crate::upstream::resolver::Resolver;

/// Refusals that are shown in full.
const SHOWN: usize = 20;

/// A plan of these changes.
pub fn make(args: &Args, context: &Context, changes: Vec<Change>) -> Plan {
    let now = Utc::now();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
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
        undoes: None,
        accepted: accepted.collect(),
        changes,
    }
}

/// Does all of it.
pub fn perform(args: &Args, context: &Context, store: &mut Store, plan: &Plan) -> Ended {
    context.say(&text::plan(plan));
    let moves = moves(store, plan)?;
    let wanted = moves.iter().flat_map(|each| [&each.old, &each.new]).flatten();
    let sets: Vec<Vec<String>> = wanted.map(|place| place.metas.clone()).collect();
    let views = clusters::look(sets, context.limit);
    let refused = checks::refusals(&moves, &views, &plan.accepted);
    if !refused.is_empty() {
        return Err(Fault::new(Outcome::Refused, refusals(&refused)));
    }
    context.must_know_proxies()?;
    let file = save(args, plan)?;
    let proxies = context.proxies.addresses();
    refuse_while_held(proxies)?;
    let mut run = apply::look(store, plan)?;
    confirm(args, plan, &moves)?;
    let written = write(context, store, plan, &mut run);
    if let Err(fault) = written {
        report(context, plan, &file, fault.outcome, &run, &[]);
        let why = format!("{}\n{} has the state before and after", fault.why, file.display());
        return Err(Fault::new(fault.outcome, why));
    }
    context.say(&format!(
        "{} written. {} has the state before and after.\n",
        text::counted(plan.changes.len(), "change"),
        file.display()
    ));
    let expected = apply::expected(store, plan, &run)?;
    let seen = wait(context, proxies, &expected);
    let outcome = match seen.iter().all(|seen| seen.served.is_ok()) {
        true => Outcome::Done,
        false => Outcome::Partly,
    };
    report(context, plan, &file, outcome, &run, &seen);
    Ok(outcome)
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

/// Waits until all proxies serve it, and tells of each.
fn wait(context: &Context, proxies: &[String], expected: &[proxies::Expected]) -> Vec<Seen> {
    let seen = proxies::wait(proxies, expected, context.wait);
    for one in &seen {
        context.say(&match &one.served {
            Ok(()) => format!("{}: serves it, after {} ms\n", one.proxy, one.took.as_millis()),
            Err(why) => format!("{}: DOES NOT SERVE IT: {why}\n", one.proxy),
        });
    }
    if proxies.is_empty() {
        context.say("no proxy was looked at\n");
    }
    seen
}

fn report(
    context: &Context,
    plan: &Plan,
    file: &std::path::Path,
    outcome: Outcome,
    run: &Run,
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
        "applied": true,
        "done": run.done(),
        "proxies": seen,
        "exit_code": outcome as u8,
    });
    crate::cli::print(&format!("{told:#}\n"));
}

/// The plan as a file, which must not be there, and is on the disk before anything is written.
fn save(args: &Args, plan: &Plan) -> Result<PathBuf, Fault> {
    let default = || format!("route-{}.json", plan.id);
    let path = PathBuf::from(args.value("save").map_or_else(default, str::to_owned));
    let saved = OpenOptions::new().write(true).create_new(true).open(&path).and_then(|mut file| {
        file.write_all(plan.to_file().as_bytes())?;
        file.sync_all()
    });
    let told =
        |e| Fault::failed(format!("{}: {e}; --save FILE puts the plan elsewhere", path.display()));
    saved.map(|()| path.clone()).map_err(told)
}

/// What the changes mean for tables.
fn moves(store: &mut Store, plan: &Plan) -> Result<Vec<Move>, Fault> {
    let clusters = store.clusters()?;
    let by_name = store.place.clusters_root.is_some();
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
        });
    }
    if renewed != clusters {
        for row in store.routes()?.rows {
            let new = store.place_of(&row.znode.data, &renewed).ok();
            let old = row.place.ok();
            if new != old {
                moves.push(Move { table: row.table, old, new, names_cluster: true });
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
    let mut text = "refused, nothing is written:\n".to_owned();
    for ((option, why), tables) in by_why.iter().take(SHOWN) {
        let more = tables.len().saturating_sub(3);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let some = tables[..tables.len().min(3)].join(", ");
        text += &format!("  {some}{more}: {why} (--{option})\n");
    }
    text.trim_end().to_owned()
}

/// What each proxy says of one table, in words.
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

/// Routes that are held are nobody's to write: what the proxies serve is not what is in ZooKeeper.
fn refuse_while_held(proxies: &[String]) -> Result<(), Fault> {
    let resolver = Resolver::start();
    for proxy in proxies {
        // One that does not answer is told in the end.
        if let Ok(proxies::Page { hold: Some(hold), .. }) =
            proxies::page(proxy, &resolver, Some("."))
        {
            let why = format!("refused, nothing is written: {proxy} holds routes: {hold}");
            return Err(Fault::new(Outcome::Refused, why));
        }
    }
    Ok(())
}

/// More than one table wants a word: typed at a terminal, the number of tables without one.
fn confirm(args: &Args, plan: &Plan, moves: &[Move]) -> Result<(), Fault> {
    let count = moves.len().max(plan.changes.len());
    if count < 2 {
        return Ok(());
    }
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
    let mut names: Vec<&str> =
        moves.iter().filter_map(|each| Some(each.new.as_ref()?.cluster.as_str())).collect();
    names.sort_unstable();
    names.dedup();
    let word = match names.as_slice() {
        [one] => (*one).to_owned(),
        _ => count.to_string(),
    };
    let _ = write!(io::stderr(), "{count} tables change. Type {word} to write it: ");
    let mut line = String::new();
    let _ = io::stdin().lock().read_line(&mut line);
    match line.trim() == word {
        true => Ok(()),
        false => Err(Fault::failed("not confirmed, nothing is written")),
    }
}
