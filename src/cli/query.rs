//! `meta-proxy query TABLE --via HOST:PORT`: asks a proxy or a MetaServer as a client does, and prints
//! the answer.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lexopt::Parser;
use lexopt::prelude::*;
use serde_json::json;

use super::rdsn_query;
use crate::upstream::link::ask_once;
use crate::upstream::resolver::Resolver;
use crate::wire::address::is_host_port;
use crate::wire::answer::Answer;
use crate::wire::config_view::{self, Address, ConfigView};
use crate::wire::error_code::{ERR_FORWARD_TO_OTHERS, ERR_OK};
use crate::wire::message;
use crate::wire::protocol::Protocol;
use crate::wire::rdsn;

pub const HELP: &str = "\
meta-proxy query: ask a proxy or a MetaServer as a client does, and print the answer

Usage:
  meta-proxy query TABLE --via HOST:PORT [--protocol thft | rdsn] [--json] [--timeout-ms N]

  --via HOST:PORT         whom to ask
  --protocol thft | rdsn  ask as Go, Java, Python and Node clients do, or as C++ clients do [thft]
  --json                  print JSON: table, err, app_id, partition_count, host_port_fields, partitions
  --timeout-ms N          give up after N ms [5000]

Exit codes: 0 the answer is ERR_OK, 1 it is another, or there is none, 2 arguments that mean nothing.
";

/// The arguments of the command.
pub struct Options {
    /// The table.
    pub table: String,
    /// The proxy or MetaServer to ask, `host:port`.
    pub via: String,
    /// How to ask.
    pub protocol: Protocol,
    /// Print JSON.
    pub json: bool,
    /// When to give up.
    pub timeout: Duration,
}

/// `None`: help is wanted.
pub fn parse(parser: &mut Parser) -> Result<Option<Options>, lexopt::Error> {
    let (mut table, mut via) = (None, None);
    let (mut protocol, mut json) = (Protocol::Thft, false);
    let mut timeout = Duration::from_secs(5);
    while let Some(arg) = parser.next()? {
        match arg {
            Value(word) if table.is_none() => table = Some(word.string()?),
            Long("via") => via = Some(parser.value()?.string()?),
            Long("protocol") => {
                protocol = match parser.value()?.string()?.as_str() {
                    "thft" => Protocol::Thft,
                    "rdsn" => Protocol::Rdsn,
                    other => {
                        return Err(format!("want --protocol thft or rdsn, got {other}").into());
                    }
                }
            }
            Long("json") => json = true,
            Long("timeout-ms") => timeout = Duration::from_millis(parser.value()?.parse()?),
            Long("help") | Short('h') => return Ok(None),
            _ => return Err(arg.unexpected()),
        }
    }
    let (Some(table), Some(via)) = (table, via) else {
        return Err("want a table, and --via HOST:PORT".into());
    };
    Ok(Some(Options { table, via, protocol, json, timeout }))
}

/// 0 if the answer is ERR_OK.
pub fn run(options: &Options) -> ExitCode {
    match ask(options) {
        Ok(view) => {
            super::print(&match options.json {
                true => format!("{:#}\n", as_json(&options.table, &view)),
                false => as_text(&options.table, &view),
            });
            if view.err == ERR_OK { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(why) => {
            super::complain(&why);
            ExitCode::FAILURE
        }
    }
}

fn ask(options: &Options) -> Result<ConfigView, String> {
    let end = Instant::now() + options.timeout;
    let resolver = Resolver::start();
    let addrs = resolver.resolve(&options.via, end);
    let mut why = match is_host_port(&options.via) {
        true => format!("{}: the host has no address, or none was found in time", options.via),
        false => format!("{}: want host:port", options.via),
    };
    for addr in addrs {
        let answer = match options.protocol {
            Protocol::Thft => ask_thft(addr, &options.table, end),
            Protocol::Rdsn => ask_rdsn(addr, &options.table, end),
        };
        match answer {
            Ok(view) => return Ok(view),
            Err(e) => why = format!("{addr}: {e}"),
        }
    }
    Err(why)
}

fn ask_thft(addr: SocketAddr, table: &str, end: Instant) -> Result<ConfigView, String> {
    let answered = ask_once(addr, &message::query_args(table), end).map_err(|e| e.to_string())?;
    match answered.answer {
        Answer::Leader { result_at, .. } => {
            config_view::read(&answered.frame[result_at..]).map_err(|e| e.to_string())
        }
        Answer::Follower { leader } => Ok(follower(leader)),
    }
}

fn ask_rdsn(addr: SocketAddr, table: &str, end: Instant) -> Result<ConfigView, String> {
    let result = rdsn_query::ask(addr, &message::query_args(table), end)?;
    rdsn::check_result(&result).map_err(|e| format!("a C++ client aborts on the answer: {e}"))?;
    let view = config_view::read(&result).map_err(|e| e.to_string())?;
    match view.err.as_str() {
        ERR_FORWARD_TO_OTHERS => {
            Ok(follower(view.partitions.into_iter().next().and_then(|p| p.primary)))
        }
        _ => Ok(view),
    }
}

fn follower(leader: Option<Address>) -> ConfigView {
    let err = match leader {
        Some(leader) => format!("{ERR_FORWARD_TO_OTHERS} ({leader})"),
        None => ERR_FORWARD_TO_OTHERS.to_owned(),
    };
    ConfigView { err, ..ConfigView::default() }
}

fn as_text(table: &str, view: &ConfigView) -> String {
    let (app_id, count) = (view.app_id, view.partition_count);
    let host_ports = if view.host_port_fields { ", with host_port fields" } else { "" };
    let mut text =
        format!("{table}: {}, app id {app_id}, {count} partitions{host_ports}\n", view.err);
    for partition in &view.partitions {
        let primary = partition.primary.as_ref().map_or("none".to_owned(), Address::to_string);
        let secondaries: Vec<String> =
            partition.secondaries.iter().map(Address::to_string).collect();
        text += &format!(
            "  {:>4}  ballot {:<6} primary {primary:<21} secondaries {}\n",
            partition.index,
            partition.ballot,
            if secondaries.is_empty() { "none".to_owned() } else { secondaries.join(" ") }
        );
    }
    text
}

fn as_json(table: &str, view: &ConfigView) -> serde_json::Value {
    let partitions: Vec<_> = view
        .partitions
        .iter()
        .map(|partition| {
            let secondaries: Vec<String> =
                partition.secondaries.iter().map(Address::to_string).collect();
            json!({
                "index": partition.index,
                "ballot": partition.ballot,
                "primary": partition.primary.as_ref().map(Address::to_string),
                "secondaries": secondaries,
            })
        })
        .collect();
    json!({
        "table": table,
        "err": view.err,
        "app_id": view.app_id,
        "partition_count": view.partition_count,
        "host_port_fields": view.host_port_fields,
        "partitions": partitions,
    })
}
