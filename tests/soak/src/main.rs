//! Routes stay true, whatever happens to ZooKeeper: the proof.
//!
//! ```text
//! soak [--seconds N] [--seed N] [--tables N] [--proxies N] [--faults A,B] [--slack-ms N] [--untidy] [--proxy PATH]
//!      [--local-sessions true|false]
//! soak scale [--tables N] [--proxies N] [--proxy PATH]
//! soak long-names [--tables N] [--proxy PATH]
//! soak zk-clients [--tables N]
//! soak clusters [--seconds N] [--seed N] [--slack-ms N] [--proxy PATH]
//! ```
//! The first runs real proxies on a real ensemble of three while one fault after the other happens to it, and holds every
//! single answer against the true history of its table: see `checker` for what is allowed, `faults` for what happens. The
//! first wrong answer ends the run, with all that is needed to understand it. The others print what a reconnect of many
//! proxies with many tables costs, and whether very many tables with very long names are served. `clusters` needs no
//! ZooKeeper: clusters die, hang and slow down, see there.
//!
//! Exit codes: 0 all answers were right, 1 one was wrong or something broke, 2 bad arguments.
#![forbid(unsafe_code)]

mod aftermath;
mod arguments;
mod checker;
mod clusters;
mod crowd;
mod drive;
mod faults;
mod history;
mod observer;
mod report;
mod scale;
mod weather;
mod world;
mod zk_clients;

use std::env;
use std::panic::catch_unwind;
use std::process::ExitCode;

use arguments::Command;

fn main() -> ExitCode {
    // `zk-clients` starts this.
    if let [_, first, kind, addr, count] = &env::args().collect::<Vec<_>>()[..]
        && first == "zk-client"
    {
        let done = zk_clients::be(kind, addr, count.parse().unwrap_or(0));
        return done.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let (command, options) = match arguments::parse() {
        Ok(parsed) => parsed,
        Err(why) => {
            eprintln!("soak: {why}");
            return ExitCode::from(2);
        }
    };
    let seed = options.seed;
    println!("seed={seed}");
    // The harness panics when it cannot go on, and has then told why.
    let done = catch_unwind(|| match command {
        Command::Soak => drive::soak(&options),
        Command::Scale => scale::reconnect(&options),
        Command::LongNames => scale::long_names(&options),
        Command::ZkClients => zk_clients::compare(&options),
        Command::Clusters => clusters::soak(&options),
    });
    match done.unwrap_or_else(|_| Err("a panic, see above".to_owned())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("FAILED seed={seed}\n{why}\nFAILED seed={seed}");
            ExitCode::FAILURE
        }
    }
}
