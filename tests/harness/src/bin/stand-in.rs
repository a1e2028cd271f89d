//! A small cluster that stands in for a real one: one MetaServer and one replica server, in memory, with the tables it
//! is told to have. For demonstrations, and for trying real clients by hand.
//!
//! ```text
//! stand-in --name NAME --table TABLE[:PARTITIONS] ... [--listen ADDR] [--until-eof]
//! ```
//! Prints `NAME meta=ADDR` once it can be asked, then serves until it is killed, or until its standard input ends.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;

use harness::cluster::Cluster;

const USAGE: &str =
    "usage: stand-in --name NAME --table TABLE[:PARTITIONS] ... [--listen ADDR] [--until-eof]";
const PARTITIONS: i32 = 4;

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("stand-in: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let tables: Vec<(&str, i32)> =
        options.tables.iter().map(|(table, partitions)| (table.as_str(), *partitions)).collect();
    let cluster = Cluster::start_on(options.listen, &tables)
        .map_err(|e| format!("cannot listen on {}: {e}", options.listen))?;
    cluster.meta.keep_requests(false); // it may run for days
    println!("{} meta={}", options.name, cluster.meta.addr());

    if options.until_eof {
        io::copy(&mut io::stdin(), &mut io::sink()).map_err(|e| format!("standard input: {e}"))?;
        return Ok(());
    }
    loop {
        thread::park();
    }
}

struct Options {
    name: String,
    tables: Vec<(String, i32)>,
    listen: SocketAddr,
    until_eof: bool,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut name, mut tables, mut until_eof) = (None, Vec::new(), false);
        let mut listen = SocketAddr::from(([127, 0, 0, 1], 0));
        while let Some(option) = args.next() {
            if option == "--until-eof" {
                until_eof = true;
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{option}: no value\n{USAGE}"))?;
            match option.as_str() {
                "--name" => name = Some(value),
                "--table" => tables.push(parse_table(&value)?),
                "--listen" => {
                    listen = value.parse().map_err(|e| format!("--listen {value}: {e}"))?;
                }
                _ => return Err(format!("{option}: no such option\n{USAGE}")),
            }
        }
        match name {
            Some(name) if !tables.is_empty() => Ok(Options { name, tables, listen, until_eof }),
            _ => Err(format!("--name and at least one --table are needed\n{USAGE}")),
        }
    }
}

fn parse_table(text: &str) -> Result<(String, i32), String> {
    let Some((table, partitions)) = text.split_once(':') else {
        return Ok((text.to_owned(), PARTITIONS));
    };
    match partitions.parse() {
        Ok(partitions @ 1..) => Ok((table.to_owned(), partitions)),
        _ => Err(format!("--table {text}: want 1 or more partitions, got {partitions:?}")),
    }
}
