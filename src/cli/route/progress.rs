//! Tells how a move goes on: one line that is rewritten at a terminal, else a line now and then.
//!
//! ```text
//! run ─▶ bounded queue ─▶ printer (thread) ─▶ stdout, stderr
//! ```
//! A terminal can stop taking output. The move must not stop with it: writes are refused meanwhile. So a thread prints, and
//! what finds the queue full is left out.

use std::io::{self, IsTerminal, Write};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::context::Context;
use crate::ops::Fault;
use crate::ops::moving::checks::seconds;
use crate::ops::moving::decide::Step;
use crate::ops::moving::run::Report;
use crate::ops::moving::state::{Partition, Seen};

/// Between two lines of progress that is no terminal's.
const LINES_EVERY: Duration = Duration::from_secs(5);
/// Partitions that a line of progress names.
const NAMED: usize = 4;
/// Lines that wait for the printer.
const MAX_LINES: usize = 1_000;

enum Text {
    Out(String),
    Err(String),
}

pub struct Progress {
    is_json: bool,
    is_terminal: bool,
    /// The terminal shows a line that the next one replaces.
    is_open: bool,
    last: Option<Instant>,
    last_again: String,
    lines: Sender<Text>,
    printer: JoinHandle<()>,
}

impl Progress {
    pub fn new(context: &Context) -> Result<Self, Fault> {
        let (lines, queue) = bounded(MAX_LINES);
        let printer = thread::Builder::new().name("printer".to_owned()).spawn(|| print(queue));
        Ok(Progress {
            is_json: context.json,
            is_terminal: io::stderr().is_terminal() && !context.json,
            is_open: false,
            last: None,
            last_again: String::new(),
            lines,
            printer: printer.map_err(|e| Fault::failed(format!("a thread: {e}")))?,
        })
    }

    pub fn tell(&mut self, report: &Report<'_>) {
        match report {
            Report::Step(text) => {
                self.last = None;
                self.say(format!("{text}\n"));
            }
            // One line for one reason.
            Report::Again(why) => {
                if self.last_again != *why {
                    self.last_again = (*why).to_owned();
                    self.say(format!("tried again: {why}\n"));
                }
            }
            Report::Wait { step, seen, refused_ms } => {
                if self.is_terminal {
                    self.is_open = true;
                    self.send(Text::Err(format!("\r\x1b[K{}", line(step, seen, *refused_ms))));
                    return;
                }
                if self.last.is_none_or(|last| last.elapsed() >= LINES_EVERY) {
                    self.last = Some(Instant::now());
                    self.say(format!("{}\n", line(step, seen, *refused_ms)));
                }
            }
        }
    }

    fn say(&mut self, text: String) {
        if std::mem::take(&mut self.is_open) {
            self.send(Text::Err("\n".to_owned()));
        }
        if !self.is_json {
            self.send(Text::Out(text));
        }
    }

    fn send(&self, text: Text) {
        // A full queue means that nobody reads.
        let _ = self.lines.try_send(text);
    }

    /// Waits until all is printed.
    pub fn end(mut self) {
        if std::mem::take(&mut self.is_open) {
            self.send(Text::Err("\n".to_owned()));
        }
        drop(self.lines);
        // It fails only if the printer panicked, which is told by then.
        let _ = self.printer.join();
    }
}

fn print(queue: Receiver<Text>) {
    for text in queue {
        match text {
            Text::Out(text) => _ = crate::cli::print(&text),
            Text::Err(text) => _ = io::stderr().write_all(text.as_bytes()),
        }
    }
}

fn line(step: &Step, seen: &Seen, refused_ms: u64) -> String {
    let what = match step {
        Step::AwaitReverse => "until every primary duplicates back".to_owned(),
        Step::AwaitForce(0) => "3 until every primary says that it refuses writes".to_owned(),
        Step::AwaitForce(ms) => format!("3 in force everywhere in {}", seconds(*ms)),
        Step::AwaitDrained => "4 until the new cluster has all".to_owned(),
        Step::AwaitLate(ms) => {
            format!("until no late request can come, {}", seconds(*ms))
        }
        Step::AwaitStill(0) => "7 until every primary says that it refuses writes".to_owned(),
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
