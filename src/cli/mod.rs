//! Arguments to a command, its result to an exit code.

mod check;
mod log_file;
mod query;
mod rdsn_query;
#[cfg(feature = "route")]
mod route;
mod serve;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use lexopt::prelude::*;
use lexopt::{Error, Parser};

use crate::config::spelling::did_you_mean;
use crate::version;

const HELP: &str = "\
meta-proxy: one address in front of many Apache Pegasus clusters

Usage:
  meta-proxy CONFIG [LOGFILE]              run on the settings in CONFIG
  meta-proxy --routes FILE [CONFIG [LOGFILE]]
                                           run on a routes file instead of ZooKeeper
  meta-proxy check CONFIG                  say what is wrong with CONFIG
  meta-proxy query TABLE --via HOST:PORT   ask as a client does
  meta-proxy route COMMAND ...             routes in ZooKeeper: list, plan, write, verify
  meta-proxy help [run | check | query | route]
                                           say more of one of them
  meta-proxy --version

Exit codes: 0 success, 1 failure, 2 arguments that mean nothing.
";

/// Words that are no CONFIG.
#[cfg(feature = "route")]
const COMMANDS: &[&str] = &["check", "query", "route", "help", "run"];
#[cfg(not(feature = "route"))]
const COMMANDS: &[&str] = &["check", "query", "help", "run"];

enum Command {
    Serve(serve::Options),
    Check(check::Options),
    Query(query::Options),
    #[cfg(feature = "route")]
    Route(route::Options),
    Print(String),
}

/// Arguments that mean nothing, and the help that says what would.
struct Misuse(Error, String);

/// Runs what the arguments say. The code is 0 for success, 1 for failure, 2 for arguments that mean nothing.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match parse(Parser::from_iter(args)) {
        Ok(Command::Serve(options)) => {
            let code = serve::run(&options);
            crate::logging::flush();
            code
        }
        Ok(Command::Check(options)) => check::run(&options),
        Ok(Command::Query(options)) => query::run(&options),
        #[cfg(feature = "route")]
        Ok(Command::Route(options)) => route::run(&options),
        Ok(Command::Print(text)) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Err(Misuse(e, help)) => {
            complain(&format!("{e}\n\n{help}"));
            ExitCode::from(2)
        }
    }
}

/// Prints to stdout, and says whether that was possible. A reader that closes it, as `head` does, has read enough.
fn print(text: &str) -> bool {
    let mut stdout = std::io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            complain(&format!("stdout: {e}"));
            false
        }
        _ => true,
    }
}

/// Prints to stderr, if that can be written to.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "meta-proxy: {text}");
}

fn parse(mut parser: Parser) -> Result<Command, Misuse> {
    let first = parser.try_raw_args().and_then(|args| args.peek().map(OsStr::to_owned));
    let command = first.as_ref().and_then(|word| word.to_str());
    let command = command.filter(|word| COMMANDS.contains(word));
    if command.is_some() {
        // It is taken: what follows are its arguments.
        let _ = parser.next();
    }
    let (parsed, help) = match command {
        Some("check") => (check::parse(&mut parser).map(|it| it.map(Command::Check)), check::HELP),
        Some("query") => (query::parse(&mut parser).map(|it| it.map(Command::Query)), query::HELP),
        #[cfg(feature = "route")]
        Some("route") => {
            let parsed = route::parse(&mut parser).map(|it| it.map(Command::Route));
            return told(parsed, &route::help());
        }
        Some("help") => (help(&mut parser).map(|text| Some(Command::Print(text))), HELP),
        Some(_) => (serve::parse(&mut parser).map(|it| it.map(Command::Serve)), serve::HELP),
        None => {
            let parsed = match first.as_deref().and_then(OsStr::to_str) {
                Some("--version" | "-V") => Ok(Some(Command::Print(version::line()))),
                Some("--help" | "-h") => Ok(Some(Command::Print(HELP.to_owned()))),
                _ => serve::parse(&mut parser).map(|it| it.map(Command::Serve)),
            };
            (parsed, HELP)
        }
    };
    told(parsed, help)
}

fn told(parsed: Result<Option<Command>, Error>, help: &str) -> Result<Command, Misuse> {
    match parsed {
        Ok(Some(command)) => Ok(command),
        // `--help` stands behind the command.
        Ok(None) => Ok(Command::Print(help.to_owned())),
        Err(e) => Err(Misuse(e, help.to_owned())),
    }
}

/// The help of the command that is named, or of all.
fn help(parser: &mut Parser) -> Result<String, Error> {
    let text = match parser.next()? {
        None => HELP,
        Some(Value(word)) => match word.to_str() {
            Some("run") => serve::HELP,
            Some("check") => check::HELP,
            Some("query") => query::HELP,
            #[cfg(feature = "route")]
            Some("route") => return Ok(route::help()),
            _ => return Err(no_such_command(&word)),
        },
        Some(other) => return Err(other.unexpected()),
    };
    Ok(text.to_owned())
}

/// A word that is neither a command nor a file, with the command that was meant.
fn no_such_command(word: &OsStr) -> Error {
    let shown = word.display();
    let meant = word.to_str().and_then(|word| did_you_mean(word, COMMANDS.iter().copied()));
    match meant {
        Some(meant) => format!("no such command: {shown}; did you mean {meant}?").into(),
        None => format!("no such command: {shown}").into(),
    }
}

/// Fails if the first word of the arguments is a mistyped command: it is like one, and no file has that name.
fn refuse_mistyped(word: &OsStr) -> Result<(), Error> {
    let is_like_one =
        word.to_str().is_some_and(|word| did_you_mean(word, COMMANDS.iter().copied()).is_some());
    match is_like_one && fs::symlink_metadata(word).is_err() {
        true => Err(no_such_command(word)),
        false => Ok(()),
    }
}
