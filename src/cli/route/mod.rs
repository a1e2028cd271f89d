//! `meta-proxy route ...`: the commands, over what `ops` can do.
//!
//! ```text
//! args ─▶ context: settings, ZooKeeper, proxies ─┬▶ look (ls, get, export), verify, control (history, accept) ─▶ text or JSON
//!                                                ├▶ moving (move), finish, fence: two clusters, step by step
//!                                                └▶ a plan: single (set, rm), many (switch, undo, metas), bring (import)
//!                                                     └▶ perform: rules, file, journal, writes, proxies ─▶ exit code
//! ```

mod args;
mod bring;
mod context;
mod control;
mod fence;
mod finish;
mod look;
mod many;
mod moving;
mod perform;
mod progress;
mod single;
mod text;
mod verify;

use std::process::ExitCode;

use lexopt::Parser;
use serde_json::json;

use self::args::Args;
use crate::ops::{Fault, Outcome};

/// The arguments.
pub struct Options(Args);

/// `None`: help is wanted.
pub fn parse(parser: &mut Parser) -> Result<Option<Options>, lexopt::Error> {
    Ok(args::parse(parser)?.map(Options))
}

pub fn help() -> String {
    args::help()
}

/// Runs the command.
pub fn run(Options(args): &Options) -> ExitCode {
    let done = match args.sub.name {
        "ls" => look::ls(args),
        "get" => look::get(args),
        "export" => look::export(args),
        "set" => single::set(args),
        "rm" => single::rm(args),
        "switch" => many::switch(args),
        "metas" => many::metas(args),
        "undo" => many::undo(args),
        "move" => moving::route_move(args),
        "finish" => finish::finish(args),
        "fence" => fence::fence(args),
        "import" => bring::import(args),
        "verify" => verify::verify(args),
        "history" => control::history(args),
        "accept" => control::accept(args),
        other => Err(Fault::failed(format!("route {other} is not built in"))),
    };
    let outcome = done.unwrap_or_else(|Fault { outcome, why, is_told }| {
        super::complain(&why);
        if args.is_set("json") && !is_told {
            let told = json!({ "error": why, "exit_code": outcome as u8 });
            super::print(&format!("{told:#}\n"));
        }
        outcome
    });
    ExitCode::from(outcome as u8)
}

/// The command's result.
type Ended = Result<Outcome, Fault>;
