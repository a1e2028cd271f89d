//! `route history` and `accept`: what stands below the control znode, for people.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Ended;
use super::args::Args;
use super::context::Context;
use super::perform::confirm_tables;
use super::text::{counted, diff, table};
use crate::ops::control::{Control, Entry};
use crate::ops::plan::Change;
use crate::ops::proxies::{self, Hold};
use crate::ops::store::{Store, check_name};
use crate::ops::{Fault, Outcome};
use crate::route::control::Accepted;

/// Plans that are shown without `--last`.
const LAST: u64 = 20;
/// Between two looks at proxies that hold.
const PAUSE: Duration = Duration::from_millis(200);

fn control(store: &Store) -> Result<Control, Fault> {
    Control::of(store).ok_or_else(|| Fault::usage("want --control-root ZNODE"))
}

/// Plans that were written, the newest last.
pub fn history(args: &Args) -> Ended {
    let context = Context::new(args)?;
    let name = args.operand.as_deref();
    name.map_or(Ok(()), check_name)?;
    let last = args.number("last").map_err(Fault::usage)?.unwrap_or(LAST) as usize;
    let mut store = context.open()?;
    let control = control(&store)?;
    let mut shown: Vec<(Entry, Option<Change>)> = Vec::new();
    for entry in control.entries(&mut store)?.into_iter().rev() {
        if shown.len() == last {
            break;
        }
        let change = match name {
            None => None,
            Some(name) => {
                let changes = control.plan(&mut store, &entry.id)?.changes;
                let change = changes.into_iter().find(|change| change.name() == name);
                if change.is_none() {
                    continue;
                }
                change
            }
        };
        shown.push((entry, change));
    }
    shown.reverse();
    if context.json {
        let plans: Vec<Value> = shown.iter().map(json_of).collect();
        crate::cli::print(&format!("{:#}\n", json!({ "plans": plans })));
        return Ok(Outcome::Done);
    }
    let line = |(entry, _): &(Entry, Option<Change>)| {
        vec![
            entry.made.clone(),
            entry.by.clone(),
            entry.changes.to_string(),
            entry.state.name().to_owned(),
            entry.id.clone(),
            entry.why.clone().unwrap_or_default(),
        ]
    };
    let head = ["MADE", "BY", "CHANGES", "STATE", "PLAN", "WHY"];
    if name.is_none() {
        let lines: Vec<Vec<String>> = shown.iter().map(line).collect();
        crate::cli::print(&table(&head, &lines));
        return Ok(Outcome::Done);
    }
    for one in &shown {
        crate::cli::print(&table(&head, &[line(one)]));
        if let Some(change) = &one.1 {
            crate::cli::print(&diff(change));
        }
    }
    Ok(Outcome::Done)
}

fn json_of((entry, change): &(Entry, Option<Change>)) -> Value {
    let mut told = serde_json::to_value(entry).unwrap_or_default();
    if let Some(change) = change {
        told["change"] = serde_json::to_value(change).unwrap_or_default();
    }
    told
}

/// A proxy that holds routes.
struct Holder {
    member: String,
    pages: String,
    hold: Hold,
}

/// Accepts what the proxies hold, as it was shown.
pub fn accept(args: &Args) -> Ended {
    let context = Context::new(args)?;
    let mut store = context.open()?;
    let control = Control::of(&store).ok_or_else(|| {
        Fault::usage(
            "want --control-root ZNODE, by which the proxies hear of it; without one, accept at each of them: \
             curl -X POST, see the page of the proxy",
        )
    })?;
    let holders = holders(&control, &mut store)?;
    let shown = |holder: &Holder| json!({"member": holder.member, "pages": holder.pages, "hold": holder.hold.to_string()});
    let report = |accepted: bool, left: &[Holder], outcome: Outcome| {
        if context.json {
            let told = json!({
                "held_by": holders.iter().map(shown).collect::<Vec<_>>(),
                "accepted": accepted,
                "still_held_by": left.iter().map(shown).collect::<Vec<_>>(),
                "exit_code": outcome as u8,
            });
            crate::cli::print(&format!("{told:#}\n"));
        }
        Ok(outcome)
    };
    if holders.is_empty() {
        context.say("no proxy holds routes\n");
        return report(false, &[], Outcome::Done);
    }
    for holder in &holders {
        context.say(&format!("{} holds routes: {}\n", holder.pages, holder.hold));
    }
    let gone = holders.iter().map(|holder| holder.hold.gone).max().unwrap_or(0);
    if !args.is_set("apply") {
        context.say(&format!(
            "nothing is accepted. Clients are served what was known before. To let {} go: meta-proxy route accept \
             --apply\n",
            counted(gone, "table")
        ));
        return report(false, &holders, Outcome::Differs);
    }
    confirm_tables(args, gone, &gone.to_string())?;
    control.say(&mut store, |word, at_s| {
        word.accepts.extend(holders.iter().map(|holder| Accepted {
            member: holder.member.clone(),
            czxid: holder.hold.czxid_number(),
            gone: holder.hold.gone,
            at_s,
        }));
    })?;
    let end = Instant::now() + context.wait;
    let left = loop {
        let left = self::holders(&control, &mut store)?;
        if left.is_empty() || Instant::now() + PAUSE >= end {
            break left;
        }
        thread::sleep(PAUSE);
    };
    for holder in &holders {
        let still = left.iter().find(|left| left.member == holder.member);
        context.say(&match still {
            None => format!("{}: holds nothing any more\n", holder.pages),
            Some(still) => format!("{}: STILL HOLDS ROUTES: {}\n", still.pages, still.hold),
        });
    }
    let outcome = if left.is_empty() { Outcome::Done } else { Outcome::Partly };
    report(true, &left, outcome)
}

fn holders(control: &Control, store: &mut Store) -> Result<Vec<Holder>, Fault> {
    let members = control.members(store)?;
    if members.is_empty() {
        control.make_members(store)?;
        return Err(Fault::failed(
            "no proxy has told that it is there; if ZooKeeper lost the control znode, they do so within a minute",
        ));
    }
    let pages: Vec<String> = members.iter().filter_map(|member| member.pages.clone()).collect();
    let holds = proxies::holds(&pages);
    let holder = |(pages, hold): (String, Result<Option<Hold>, String>)| {
        let hold = match hold {
            Ok(hold) => hold?,
            Err(why) => {
                crate::cli::complain(&format!(
                    "WARN: {pages} does not say whether it holds: {why}"
                ));
                return None;
            }
        };
        let member = members.iter().find(|member| member.pages.as_deref() == Some(&pages))?;
        Some(Holder { member: member.id.clone(), pages, hold })
    };
    let mut holders: Vec<Holder> = holds.into_iter().filter_map(holder).collect();
    holders.sort_by(|one, other| one.pages.cmp(&other.pages));
    Ok(holders)
}
