//! The command line.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use harness::zookeeper::Sessions;
use lexopt::{Arg, Parser, ValueExt};

use crate::faults::{FAULTS, Fault};
use crate::weather::Bounds;

/// The task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Fault upon fault.
    Soak,
    /// Measure a reconnect.
    Scale,
    /// Very many tables with very long names.
    LongNames,
    /// Three clients of ZooKeeper in the same trouble.
    ZkClients,
    /// Clusters that die, hang and slow down.
    Clusters,
}

/// How to do it.
pub struct Options {
    /// The proxy's binary.
    pub proxy: PathBuf,
    /// Time for faults.
    pub time: Duration,
    /// All decisions follow from it.
    pub seed: u64,
    /// How many tables may exist.
    pub tables: usize,
    /// How many proxies run.
    pub proxies: usize,
    /// Those that may happen.
    pub faults: Vec<&'static Fault>,
    /// Whether servers give sessions of their own; if not said, every second seed has it so.
    pub local_sessions: Option<bool>,
    /// How much the machine may be late.
    pub slack: Duration,
    /// Only tell what proxies hold after a fault, and let them hold more than before.
    pub untidy: bool,
}

impl Options {
    fn new(command: Command, proxy: PathBuf) -> Self {
        let (tables, proxies) = match command {
            Command::Soak => (200, 2),
            Command::Scale => (10_000, 20),
            Command::LongNames => (20_000, 1),
            Command::ZkClients => (10_000, 1),
            Command::Clusters => (400, 1),
        };
        Options {
            proxy,
            time: Duration::from_secs(60),
            seed: SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs()),
            tables,
            proxies,
            faults: FAULTS.iter().collect(),
            local_sessions: None,
            slack: Duration::from_millis(400),
            untidy: false,
        }
    }

    /// The promises, and what is granted to the machine on top of each.
    pub fn bounds(&self) -> Bounds {
        Bounds::PROMISED.with_slack(self.slack)
    }

    /// Whether each server gives sessions by itself.
    pub fn sessions(&self) -> Sessions {
        match self.local_sessions.unwrap_or(self.seed % 2 == 1) {
            true => Sessions::Local,
            false => Sessions::Global,
        }
    }

    fn read(&mut self, name: &str, parser: &mut Parser) -> Result<(), lexopt::Error> {
        match name {
            "proxy" => self.proxy = parser.value()?.into(),
            "seconds" => self.time = Duration::from_secs(parser.value()?.parse()?),
            "seed" => self.seed = parser.value()?.parse()?,
            "tables" => self.tables = at_least_1(parser)?,
            "proxies" => self.proxies = at_least_1(parser)?,
            "slack-ms" => self.slack = Duration::from_millis(parser.value()?.parse()?),
            "local-sessions" => self.local_sessions = Some(parser.value()?.parse()?),
            "untidy" => self.untidy = true,
            "faults" => self.faults = faults(&parser.value()?.string()?)?,
            _ => return Err("no such option".into()),
        }
        Ok(())
    }
}

/// Reads the command line of this process.
pub fn parse() -> Result<(Command, Options), String> {
    let this = std::env::current_exe().map_err(|e| format!("where am I? {e}"))?;
    // The proxy of the same build.
    let proxy = this.with_file_name("meta-proxy");
    let (command, options) = read(Parser::from_env(), proxy)?;
    if !options.proxy.exists() {
        let proxy = options.proxy.display();
        return Err(format!("{proxy}: no such file; say where the proxy is by --proxy"));
    }
    Ok((command, options))
}

fn read(mut parser: Parser, proxy: PathBuf) -> Result<(Command, Options), String> {
    let mut command = Command::Soak;
    let mut options = Options::new(command, proxy.clone());
    let mut is_first = true;
    while let Some(arg) = parser.next().map_err(|e| e.to_string())? {
        match arg {
            Arg::Long(name) => {
                let name = name.to_owned();
                options.read(&name, &mut parser).map_err(|e| format!("--{name}: {e}"))?;
            }
            Arg::Value(word) if is_first => {
                command = match word.to_str() {
                    Some("scale") => Command::Scale,
                    Some("long-names") => Command::LongNames,
                    Some("zk-clients") => Command::ZkClients,
                    Some("clusters") => Command::Clusters,
                    _ => {
                        return Err(format!(
                            "want scale, long-names, zk-clients, clusters or options, got {word:?}"
                        ));
                    }
                };
                options = Options::new(command, proxy.clone());
            }
            other => return Err(other.unexpected().to_string()),
        }
        is_first = false;
    }
    Ok((command, options))
}

fn at_least_1(parser: &mut Parser) -> Result<usize, lexopt::Error> {
    let number: usize = parser.value()?.parse()?;
    if number == 0 { Err("want at least 1, got 0".into()) } else { Ok(number) }
}

fn faults(list: &str) -> Result<Vec<&'static Fault>, lexopt::Error> {
    let named = |name: &str| FAULTS.iter().find(|fault| fault.name == name);
    list.split(',')
        .map(|name| {
            named(name).ok_or_else(|| {
                let names: Vec<&str> = FAULTS.iter().map(|fault| fault.name).collect();
                format!("fault {name:?}: want some of {}", names.join(",")).into()
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_line(line: &str) -> Result<(Command, Options), String> {
        read(Parser::from_args(line.split_whitespace()), "meta-proxy".into())
    }

    #[test]
    fn what_is_not_said_is_as_the_command_has_it() {
        for (line, command, tables, proxies, seconds) in [
            ("", Command::Soak, 200, 2, 60),
            ("--seconds 7 --proxies 1", Command::Soak, 200, 1, 7),
            ("scale", Command::Scale, 10_000, 20, 60),
            ("scale --tables 5", Command::Scale, 5, 20, 60),
            ("long-names", Command::LongNames, 20_000, 1, 60),
        ] {
            let (found, options) = read_line(line).expect(line);
            assert_eq!(found, command, "{line}");
            assert_eq!((options.tables, options.proxies), (tables, proxies), "{line}");
            assert_eq!(options.time, Duration::from_secs(seconds), "{line}");
        }
        let (_, options) = read_line("--faults refuse,junk --seed 9 --untidy").expect("good");
        let names: Vec<&str> = options.faults.iter().map(|fault| fault.name).collect();
        assert_eq!(options.sessions(), Sessions::Local);
        let (_, global) = read_line("--seed 9 --local-sessions false").expect("good");
        assert_eq!(global.sessions(), Sessions::Global);
        assert_eq!((names, options.seed, options.untidy), (vec!["refuse", "junk"], 9, true));
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        for (line, want) in [
            ("--faults rain", "--faults: fault \"rain\": want some of kill-follower,"),
            ("--tables 0", "--tables: want at least 1"),
            ("--tables", "--tables: missing argument"),
            ("--rain", "--rain: no such option"),
            ("rain", "want scale, long-names, zk-clients, clusters or options"),
            ("--seed 1 scale", "unexpected argument"),
        ] {
            let found = read_line(line).map(|_| ()).expect_err(line);
            assert!(found.contains(want), "{line}: {found}");
        }
    }
}
