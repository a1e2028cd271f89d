//! Arguments to a command, its result to an exit code.

mod check;
mod query;
mod serve;

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use lexopt::prelude::*;

const USAGE: &str = "\
meta-proxy: one address in front of many Apache Pegasus clusters

Usage:
  meta-proxy CONFIG [LOGFILE]                run on the settings in CONFIG
  meta-proxy --routes FILE [CONFIG [LOGFILE]]
                                             run on a routes file instead of ZooKeeper
  meta-proxy check CONFIG                    say what is wrong with CONFIG
  meta-proxy query TABLE --via HOST:PORT     ask as a client does

Options:
  --listen IP:PORT    where clients connect, instead of what CONFIG says
  --json              query: print JSON
  --timeout-ms N      query: give up after N ms [5000]
  --version, --help

The log goes to LOGFILE or stderr; RUST_LOG chooses levels, as in RUST_LOG=debug.
";

/// What to do.
enum Command {
    Serve(serve::Options),
    Check(PathBuf),
    Query(query::Options),
    Print(String),
}

/// Runs what the arguments say. The code is 0 for success, 1 for failure, 2 for arguments that mean nothing.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match parse(args) {
        Ok(Command::Serve(options)) => {
            let code = serve::run(&options);
            crate::logging::flush();
            code
        }
        Ok(Command::Check(config)) => check::run(&config),
        Ok(Command::Query(options)) => query::run(&options),
        Ok(Command::Print(text)) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Err(e) => {
            complain(&format!("{e}\n\n{USAGE}"));
            ExitCode::from(2)
        }
    }
}

/// Prints to stdout. Who closes it, as `head` does, has read enough.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Prints to stderr, if that can be written to.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "meta-proxy: {text}");
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, lexopt::Error> {
    let mut parser = lexopt::Parser::from_iter(args);
    let mut words: Vec<OsString> = Vec::new();
    let mut routes: Option<PathBuf> = None;
    let mut listen: Option<SocketAddr> = None;
    let mut via: Option<String> = None;
    let mut json = false;
    let mut timeout_ms: Option<u64> = None;
    while let Some(arg) = parser.next()? {
        match arg {
            Value(word) => words.push(word),
            Long("routes") => routes = Some(parser.value()?.into()),
            Long("listen") => listen = Some(parser.value()?.parse()?),
            Long("via") => via = Some(parser.value()?.string()?),
            Long("json") => json = true,
            Long("timeout-ms") => timeout_ms = Some(parser.value()?.parse()?),
            Long("help") | Short('h') => return Ok(Command::Print(USAGE.to_owned())),
            Long("version") | Short('V') => {
                return Ok(Command::Print(
                    concat!("meta-proxy ", env!("CARGO_PKG_VERSION"), "\n").to_owned(),
                ));
            }
            _ => return Err(arg.unexpected()),
        }
    }
    let for_serve = routes.is_some() || listen.is_some();
    let for_query = via.is_some() || json || timeout_ms.is_some();
    match (words.first().and_then(|word| word.to_str()), via) {
        (Some("check"), _) => match words.len() {
            2 if !for_serve && !for_query => Ok(Command::Check(words.remove(1).into())),
            _ => Err("want: check CONFIG".into()),
        },
        (Some("query"), Some(via)) if words.len() == 2 && !for_serve => {
            let table = words.remove(1).string()?;
            let timeout = Duration::from_millis(timeout_ms.unwrap_or(5_000));
            Ok(Command::Query(query::Options { table, via, json, timeout }))
        }
        (Some("query"), _) => {
            Err("want: query TABLE --via HOST:PORT [--json] [--timeout-ms N]".into())
        }
        _ if for_query => Err("--via, --json and --timeout-ms are for query".into()),
        _ if words.len() > 2 || (words.is_empty() && routes.is_none()) => {
            Err("want a settings file, or --routes FILE".into())
        }
        _ => {
            let mut words = words.into_iter().map(PathBuf::from);
            let (config, log_file) = (words.next(), words.next());
            Ok(Command::Serve(serve::Options { config, log_file, routes, listen }))
        }
    }
}
