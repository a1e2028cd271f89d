//! How fast is meta-proxy, and what does it cost, beside no proxy at all, HAProxy and others?
//!
//! ```text
//!                        ┌─ direct ────────────────┐
//! load, in bench all ────┼─ haproxy, child process ┼──▶ bench meta, child process
//!   closed, open, herd   ├─ peer, child process    │       │ stand-in MetaServer, two of them
//!                        └─ meta-proxy, likewise ──┘
//!                                 └── routes ── ZooKeeper, child process
//! ```
//! Read on in `run` (rounds and turns), `rows` (what is measured), `load` and `meta` (both ends), `report`.
#![forbid(unsafe_code)]

mod connection;
mod crowd;
mod frames;
mod load;
mod meta;
mod report;
mod routes;
mod rows;
mod run;
mod syscalls;
mod tally;
mod target;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use lexopt::prelude::*;

use crate::frames::Question;
use crate::load::Load;
use crate::rows::{FIRST_CLUSTER, Sizes};
use crate::target::Launcher;

const USAGE: &str = "\
bench: meta-proxy side by side with no proxy, HAProxy and others

Usage:
  bench all [OPTIONS]             every row, every target, round after round; then the report
    --rounds N                    how often everything is measured [5]
    --quick                       short phases; one round unless --rounds says otherwise
    --only ROW                    only this row; may be given again: start, one-client, clients, ten, spread, pipelined,
                                  pipelined-ten, open-loop, herd, churn, idle, switch, cold, unknown, syscalls, crowd
                                  (all of crowd-mute, crowd-slow, crowd-dying, crowd-refusing, crowd-greedy,
                                  crowd-greedy-host, crowd-greedy-hosts)
    --syscalls                    also count system calls, by perf or strace
    --proxy PATH                  the meta-proxy binary [target/release/meta-proxy]
    --haproxy PATH                the haproxy binary [haproxy]
    --haproxy-threads N           its nbthread [as many as processors, which is its default]
    --peer CMD                    another proxy: {config} stands for the path of a settings file as the Go
                                  meta-proxy has it, {log} for that of a log; it listens on port 34601, and runs
                                  in a folder of its own, so its path must be whole
    --rate N                      queries/s of the open loop [half of what the peer can do, else 5000]
    --herd N                      clients that ask at once [9900]
    --idle N                      clients that do nothing [9900]
    --partitions N                of the table in every answer [64]
    --routes zookeeper|file       where meta-proxy has its routes; a file excludes the peer and the rows
                                  switch, cold, unknown [zookeeper]
    --report PATH                 [target/bench/report.md]
  bench meta [OPTIONS]            the stand-in MetaServer, until stdin ends; a line in, a line of counters out
    --listen IP:PORT              [127.0.0.1:0]
    --partitions N                [64]
    --app-id N                    [1]
  bench load IP:PORT [OPTIONS]    the load generator alone, for a profiler's sake
    --clients N                   connections [64]
    --depth N                     queries under way on each [1]
    --rate N                      an open loop instead, of so many queries/s
    --tables N                    bench, or spread00, spread01... [1]
    --seconds N                   [5]
";

/// The command.
enum Task {
    All(Box<run::Options>),
    Meta(meta::Options),
    Load(LoadOptions),
    Help,
}

struct LoadOptions {
    target: SocketAddr,
    clients: usize,
    depth: usize,
    rate: Option<f64>,
    tables: usize,
    during: Duration,
}

fn main() -> ExitCode {
    let done = match parse() {
        Ok(Task::All(options)) => run::run(&options),
        Ok(Task::Meta(options)) => meta::run(&options).map_err(|e| format!("meta: {e}")),
        Ok(Task::Load(options)) => load_alone(&options).map_err(|e| format!("load: {e}")),
        Ok(Task::Help) => {
            print!("{USAGE}");
            Ok(())
        }
        Err(e) => {
            eprintln!("bench: {e}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn load_alone(options: &LoadOptions) -> std::io::Result<()> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    let tables = match options.tables {
        1 => vec![routes::TABLE.to_owned()],
        many => routes::spread().into_iter().take(many).collect(),
    };
    let questions = tables.iter().map(|table| Question::new(table)).collect();
    let mut load = Load::connect(options.target, options.clients, questions)?;
    let tally = match options.rate {
        Some(rate) => load.open(rate, options.during)?.tally,
        None => load.closed(options.depth, options.during)?,
    };
    let (rate, count, errors) = (tally.rate(), tally.count(), tally.errors());
    let [p50, p99, p999] = tally.quantiles_us([0.5, 0.99, 0.999]);
    println!(
        "rate={rate:.0} count={count} errors={errors} p50_us={p50:.1} p99_us={p99:.1} p999_us={p999:.1}"
    );
    Ok(())
}

fn parse() -> Result<Task, lexopt::Error> {
    let mut parser = lexopt::Parser::from_env();
    match parser.next()? {
        Some(Value(word)) if word == "all" => parse_all(parser),
        Some(Value(word)) if word == "meta" => parse_meta(parser),
        Some(Value(word)) if word == "load" => parse_load(parser),
        Some(Long("help") | Short('h')) => Ok(Task::Help),
        Some(odd) => Err(odd.unexpected()),
        None => Err("want all, meta or load".into()),
    }
}

fn parse_all(mut parser: lexopt::Parser) -> Result<Task, lexopt::Error> {
    let (mut rounds, mut quick) = (None, false);
    let (mut herd, mut idle) = (None, None);
    let mut options = run::Options {
        rounds: 5,
        sizes: Sizes::full(),
        only: Vec::new(),
        launcher: Launcher {
            haproxy: "haproxy".into(),
            haproxy_threads: None,
            meta_proxy: "target/release/meta-proxy".into(),
            peer: None,
        },
        rate: None,
        partitions: 64,
        zookeeper: true,
        syscalls: false,
        report: PathBuf::from("target/bench/report.md"),
    };
    while let Some(arg) = parser.next()? {
        match arg {
            Long("rounds") => rounds = Some(parser.value()?.parse()?),
            Long("quick") => quick = true,
            Long("only") => options.only.push(parser.value()?.string()?),
            Long("syscalls") => options.syscalls = true,
            Long("proxy") => options.launcher.meta_proxy = parser.value()?.into(),
            Long("haproxy") => options.launcher.haproxy = parser.value()?.into(),
            Long("haproxy-threads") => {
                options.launcher.haproxy_threads = Some(parser.value()?.parse()?);
            }
            Long("peer") => options.launcher.peer = Some(parser.value()?.string()?),
            Long("rate") => options.rate = Some(parser.value()?.parse_with(positive)?),
            Long("herd") => herd = Some(parser.value()?.parse()?),
            Long("idle") => idle = Some(parser.value()?.parse()?),
            Long("partitions") => options.partitions = parser.value()?.parse()?,
            Long("routes") => {
                options.zookeeper = match parser.value()?.string()?.as_str() {
                    "zookeeper" => true,
                    "file" => false,
                    odd => {
                        return Err(format!("--routes: want zookeeper or file, got {odd}").into());
                    }
                }
            }
            Long("report") => options.report = parser.value()?.into(),
            Long("help") | Short('h') => return Ok(Task::Help),
            _ => return Err(arg.unexpected()),
        }
    }
    if quick {
        (options.rounds, options.sizes) = (1, Sizes::quick());
    }
    options.rounds = rounds.unwrap_or(options.rounds);
    options.sizes.herd = herd.unwrap_or(options.sizes.herd);
    options.sizes.idle = idle.unwrap_or(options.sizes.idle);
    if options.launcher.peer.is_some() && !options.zookeeper {
        return Err("--peer needs its routes in ZooKeeper".into());
    }
    Ok(Task::All(Box::new(options)))
}

fn parse_meta(mut parser: lexopt::Parser) -> Result<Task, lexopt::Error> {
    let mut options = meta::Options {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        app_id: FIRST_CLUSTER,
        partitions: 64,
    };
    while let Some(arg) = parser.next()? {
        match arg {
            Long("listen") => options.listen = parser.value()?.parse()?,
            Long("app-id") => options.app_id = parser.value()?.parse()?,
            Long("partitions") => options.partitions = parser.value()?.parse()?,
            _ => return Err(arg.unexpected()),
        }
    }
    Ok(Task::Meta(options))
}

fn parse_load(mut parser: lexopt::Parser) -> Result<Task, lexopt::Error> {
    let mut target = None;
    let (mut clients, mut depth, mut rate, mut tables) = (64, 1, None, 1);
    let mut during = Duration::from_secs(5);
    while let Some(arg) = parser.next()? {
        match arg {
            Value(word) if target.is_none() => target = Some(word.parse()?),
            Long("clients") => clients = parser.value()?.parse()?,
            Long("depth") => depth = parser.value()?.parse()?,
            Long("rate") => rate = Some(parser.value()?.parse_with(positive)?),
            Long("tables") => tables = parser.value()?.parse()?,
            Long("seconds") => {
                during = Duration::from_secs_f64(parser.value()?.parse_with(positive)?);
            }
            _ => return Err(arg.unexpected()),
        }
    }
    match target {
        Some(target) => {
            Ok(Task::Load(LoadOptions { target, clients, depth, rate, tables, during }))
        }
        None => Err("load: want the address to ask".into()),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err(format!("want a number above 0, got {text}")),
    }
}
