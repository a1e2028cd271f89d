//! ```text
//! fuzz [--frames N | --seconds N] [--seed N]
//! ```
//! 10^8 frames take some minutes: `cargo run --release -p fuzz -- --frames 100000000`. Exit codes: 0 nothing was found,
//! 1 bytes were found and are printed, 2 bad arguments.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use fuzz::{Until, run, targets};
use lexopt::prelude::*;

fn parse() -> Result<(Until, u64), lexopt::Error> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (mut until, mut seed) = (Until::Frames(10_000_000), now.as_secs());
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("frames") => until = Until::Frames(parser.value()?.parse()?),
            Long("seconds") => until = Until::Time(Duration::from_secs(parser.value()?.parse()?)),
            Long("seed") => seed = parser.value()?.parse()?,
            _ => return Err(arg.unexpected()),
        }
    }
    Ok((until, seed))
}

fn main() -> ExitCode {
    let (until, seed) = match parse() {
        Ok(parsed) => parsed,
        Err(why) => {
            eprintln!("fuzz: {why}");
            return ExitCode::from(2);
        }
    };
    println!("seed={seed}");
    let start = Instant::now();
    match run(&targets::ALL, seed, until) {
        Ok(counts) => {
            for ((target, outcome), count) in &counts {
                println!("{target:<16} {outcome:<24} {count:>12}");
            }
            let frames: u64 = counts.values().sum();
            let seconds = start.elapsed().as_secs_f64();
            println!("frames={frames} seconds={seconds:.0} found=0");
            ExitCode::SUCCESS
        }
        Err(found) => {
            let hex: String = found.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            println!(
                "FAILED seed={seed} target={:?} frame={} bytes={hex}",
                found.target, found.frame
            );
            ExitCode::FAILURE
        }
    }
}
