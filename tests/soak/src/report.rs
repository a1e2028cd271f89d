//! The report of a wrong answer: enough to understand it without another run.

use std::fmt::Write;
use std::time::Duration;

use harness::scratch::tail;

use crate::checker::Wrong;
use crate::history::{History, Version};
use crate::weather::{Trouble, Weather};
use crate::world::World;

/// Versions of the table that are shown before the oldest that was allowed.
const VERSIONS_BEFORE: usize = 6;
/// Lines of the proxy's log.
const LOG_LINES: usize = 60;
/// Lines of it that name the table.
const TABLE_LINES: usize = 20;
/// Troubles that were over for longer explain nothing.
const TROUBLE_BEFORE: Duration = Duration::from_secs(20);

/// The answer, the table's history, the weather, and what the proxy logged.
pub fn wrong_answer(world: &World, wrong: &Wrong, history: &History, weather: &Weather) -> String {
    let asked = &wrong.asked;
    let name = world.name(asked.view.table);
    let mut text = format!("wrong answer: {wrong}\nthe table is {name}; its true history:\n");
    let first = wrong.oldest.saturating_sub(VERSIONS_BEFORE);
    for (number, version) in history.versions().iter().enumerate().skip(first) {
        if version.sent <= asked.answered + TROUBLE_BEFORE {
            let _ = writeln!(text, "  {number:4} {}", version_line(world, version));
        }
    }
    let _ = writeln!(text, "asked at {}, fault={}", world.time_of_day(asked.sent), world.fault());
    text.push_str("troubles:\n");
    for trouble in weather.around(asked.sent.saturating_sub(TROUBLE_BEFORE), asked.answered) {
        let _ = writeln!(text, "  {}", trouble_line(trouble));
    }
    let stalls = world.stalls_in(asked.sent, asked.answered);
    let _ = writeln!(text, "meanwhile this process did not run, 50 ms and longer: {stalls:.3?}");
    text.push_str(&proxy_log(world, asked.view.proxy, name));
    text
}

fn version_line(world: &World, version: &Version) -> String {
    let Version { sent, returned, value, mzxid } = version;
    let returned = returned.map_or("under way".to_owned(), |at| format!("{at:.3?}"));
    let mzxid = mzxid.map_or(String::new(), |zxid| format!(", zxid {zxid:#x}"));
    format!("sent {sent:.3?} ({}), returned {returned}: {value:?}{mzxid}", world.time_of_day(*sent))
}

fn trouble_line(trouble: &Trouble) -> String {
    let Trouble { what, whom, excuse, from, until } = trouble;
    let until = until.map_or("now".to_owned(), |until| format!("{until:.3?}"));
    format!("{from:.3?} to {until}: {what}, {whom:?}, {excuse:?}")
}

/// A proxy's log lines of a table, and its last lines.
fn proxy_log(world: &World, proxy: usize, table: &str) -> String {
    let log = world.proxy(proxy).log();
    let names = |line: &&str| {
        line.split(|c: char| c.is_whitespace() || "=/:;,".contains(c)).any(|word| word == table)
    };
    let lines: Vec<&str> = log.lines().filter(names).collect();
    let mut text = format!("---- log of proxy {proxy}, lines about {table}\n");
    let _ = writeln!(text, "{}", tail(&lines.join("\n"), TABLE_LINES));
    let others = |line: &&str| !line.contains(" table=") && !line.contains(" znode ");
    let lines: Vec<&str> = log.lines().filter(others).collect();
    let _ = writeln!(text, "---- log of proxy {proxy}, its end without changes of tables");
    let _ = writeln!(text, "{}\n----", tail(&lines.join("\n"), LOG_LINES));
    text
}
