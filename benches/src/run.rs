//! `bench all`: every row, every target, round after round. Within a round the targets take turns at each row, and who
//! begins changes from round to round, so that the weather of the machine falls on all of them alike.

use std::env;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::report::Results;
use crate::routes::{self, TABLE};
use crate::rows::{About, Bed, CROWD, ROWS, Row, SYSCALLS, Sizes, WIDE};
use crate::target::{self, Kind, Launcher};

/// The arguments of `bench all`.
pub struct Options {
    /// How often everything is measured.
    pub rounds: usize,
    /// How much.
    pub sizes: Sizes,
    /// Only these rows, if any are named.
    pub only: Vec<String>,
    /// How targets are started.
    pub launcher: Launcher,
    /// Queries per second of the open loop.
    pub rate: Option<f64>,
    /// Partitions of the table in the answers.
    pub partitions: i32,
    /// Whether routes stand in ZooKeeper or in a file.
    pub zookeeper: bool,
    /// Whether system calls are counted.
    pub syscalls: bool,
    /// Where the report goes.
    pub report: PathBuf,
}

/// A script that runs this program says in it what it was called with itself.
const COMMAND: &str = "BENCH_COMMAND";
/// If nobody says otherwise, and there is no peer to take the measure from.
const OPEN_RATE: f64 = 5_000.0;

/// Measures, prints each result as a line of `key=value`, then the report; that is also written to its file, after each
/// round.
pub fn run(options: &Options) -> Result<(), String> {
    let started = Instant::now();
    let rows = rows(options)?;
    let kinds = kinds(options)?;
    let _alone = alone()?;
    rlimit::increase_nofile_limit(u64::MAX).map_err(|e| format!("RLIMIT_NOFILE: {e}"))?;
    let load_before = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let _held = options.launcher.peer.as_ref().map(|_| target::hold_peer_port()).transpose()?;
    let mut bed = Bed::new(options.sizes.clone(), options.partitions, options.zookeeper)
        .map_err(|e| format!("stand-in MetaServer: {e}"))?;
    if let Some(folder) = options.report.parent() {
        fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    let mut results = Results::default();
    let mut report = String::new();
    for round in 1..=options.rounds {
        results.next_round();
        for row in &rows {
            bed.open_rate = open_rate(options, &results);
            for at in 0..kinds.len() {
                let kind = kinds[(round - 1 + at) % kinds.len()];
                if row.about.includes(kind) {
                    measure(&mut bed, options, row, kind, round, &mut results);
                }
            }
        }
        // After each round, so that a run that is cut short has not been for nothing.
        let about = about(options, round, started.elapsed(), &load_before);
        report = format!("{about}\n{}", results.markdown(&kinds));
        fs::write(&options.report, &report)
            .map_err(|e| format!("{}: {e}", options.report.display()))?;
    }
    println!("\n{report}\nreport={}", options.report.display());
    Ok(())
}

fn measure(
    bed: &mut Bed,
    options: &Options,
    row: &Row,
    kind: Kind,
    round: usize,
    results: &mut Results,
) {
    let about = format!("row={} round={round} target={kind}", row.id);
    // A stand-in or a proxy that cannot be had panics, as in a test; here the other rows are to be measured all the same.
    let measured = catch_unwind(AssertUnwindSafe(|| {
        let measure = |bed: &mut Bed, table: &str| {
            let target = options.launcher.start(kind, &bed.meta, &bed.routes, table)?;
            (row.measure)(bed, &target)
        };
        if row.id == WIDE {
            bed.with_many_partitions(|bed| measure(bed, &routes::wide()[0]))
        } else {
            measure(bed, TABLE)
        }
    }))
    .unwrap_or_else(|_| Err("a panic, see above".to_owned()));
    match measured {
        Ok(values) => {
            let shown: Vec<String> =
                values.iter().map(|(name, value)| format!("{name}={value:.3}")).collect();
            println!("{about} {}", shown.join(" "));
            results.add(row.id, kind, &values);
        }
        Err(why) => {
            println!("{about} failed={why:?}");
            results.fail(row.id, kind, &why);
        }
    }
}

fn rows(options: &Options) -> Result<Vec<&'static Row>, String> {
    let known = || ROWS.iter().map(|row| row.id).collect::<Vec<_>>().join(", ");
    // `crowd` names all rows that begin so.
    let is_named = |row: &Row, only: &str| {
        row.id.strip_prefix(only).is_some_and(|rest| rest.is_empty() || only == CROWD)
    };
    if let Some(odd) = options.only.iter().find(|only| !ROWS.iter().any(|row| is_named(row, only)))
    {
        return Err(format!("--only {odd}: want one of {}", known()));
    }
    let wanted = |row: &&Row| match options.only.is_empty() {
        true => row.id != SYSCALLS || options.syscalls,
        false => options.only.iter().any(|only| is_named(row, only)),
    };
    let possible = |row: &&Row| options.zookeeper || row.about != About::Routers;
    Ok(ROWS.iter().filter(wanted).filter(possible).collect())
}

/// Two that measure at the same time measure each other. The lock ends with the file, and so with this process.
fn alone() -> Result<File, String> {
    let path = env::temp_dir().join("meta-proxy-bench.lock");
    let file = File::create(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(e) => Err(format!("another bench runs on this machine ({}: {e})", path.display())),
    }
}

/// The targets that can be started here.
fn kinds(options: &Options) -> Result<Vec<Kind>, String> {
    let Launcher { haproxy, meta_proxy, peer, .. } = &options.launcher;
    if !meta_proxy.is_file() {
        return Err(format!("no meta-proxy at {}: see --proxy", meta_proxy.display()));
    }
    if options.zookeeper && version(Path::new("java"), "--version").is_none() {
        return Err("no java to run ZooKeeper: install it, or use --routes file".to_owned());
    }
    let mut kinds = Kind::ALL.to_vec();
    if version(haproxy, "-v").is_none() {
        println!("target=haproxy skipped=\"{} cannot be run\"", haproxy.display());
        kinds.retain(|kind| *kind != Kind::HaProxy);
    }
    if peer.is_none() {
        kinds.retain(|kind| *kind != Kind::Peer);
    }
    Ok(kinds)
}

/// Half of what the peer can do, once that is known.
fn open_rate(options: &Options, results: &Results) -> f64 {
    let half_of_peer = || Some((results.first("clients", "rate", Kind::Peer)? / 2.0).round());
    options.rate.or_else(half_of_peer).unwrap_or(OPEN_RATE)
}

/// On what and by which command the numbers came about.
fn about(options: &Options, rounds: usize, took: Duration, load_before: &str) -> String {
    let typed = || env::args().map(quoted).collect::<Vec<_>>().join(" ");
    let command = env::var(COMMAND).unwrap_or_else(|_| typed());
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("an unknown processor", |(_, model)| model);
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let Launcher { haproxy, haproxy_threads, meta_proxy, peer } = &options.launcher;
    let threads = haproxy_threads.map_or(cores, usize::from);
    let mut lines = vec![
        format!("`{command}`"),
        format!(
            "{rounds} round(s) in {} s on {cores} x {cpu}, Linux {}, load before it {}; {} partitions; routes in {}.",
            took.as_secs(),
            kernel.trim(),
            load_before.split_whitespace().next().unwrap_or("unknown"),
            options.partitions,
            if options.zookeeper { "ZooKeeper" } else { "a file" },
        ),
        version(meta_proxy, "--version").unwrap_or_default(),
    ];
    if let Some(version) = version(haproxy, "-v") {
        lines.push(format!("{version}, mode tcp, {threads} threads."));
    }
    if let Some(peer) = peer {
        lines.push(format!("Peer: `{peer}`."));
    }
    lines.join("\n\n") + "\n"
}

/// As it would be typed into a shell.
fn quoted(word: String) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:=-+@%,".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word,
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// The first line that a program says of itself.
fn version(program: &Path, flag: &str) -> Option<String> {
    let output: io::Result<_> = Command::new(program).arg(flag).stderr(Stdio::null()).output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    Some(text.lines().next()?.to_owned())
}
