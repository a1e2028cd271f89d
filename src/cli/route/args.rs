//! The commands of `route`, their options, and the arguments read by that table. Pure.

use lexopt::prelude::*;
use lexopt::{Error, Parser};

use crate::config::spelling::did_you_mean;
use crate::ops::checks;

/// An option: its name, and what its value is; none: it has no value.
pub type Opt = (&'static str, Option<&'static str>);

/// A command.
pub struct Sub {
    pub name: &'static str,
    /// What stands behind its name, for people.
    pub operand: Option<&'static str>,
    pub needs_operand: bool,
    pub options: &'static [Opt],
    pub what: &'static str,
}

const ACCEPTED: [Opt; 5] = [
    ("split-brain-accepted", None),
    ("target-accepted", None),
    ("other-name", None),
    ("other-partition-count", None),
    ("not-for-go", None),
];

/// Options that every command has.
pub const COMMON: &[Opt] = &[
    ("config", Some("FILE")),
    ("zookeeper", Some("HOST:PORT,...")),
    ("root", Some("ZNODE")),
    ("clusters-root", Some("ZNODE")),
    ("digest-file", Some("FILE")),
    ("proxies", Some("HOST:PORT,... or none")),
    ("wait-s", Some("N")),
    ("timeout-ms", Some("N")),
    ("json", None),
];

/// All commands, in the order of the help.
pub const SUBS: &[Sub] = &[
    Sub {
        name: "ls",
        operand: None,
        needs_operand: false,
        options: &[("cluster", Some("NAME")), ("like", Some("PATTERN")), ("broken", None)],
        what: "list routes",
    },
    Sub {
        name: "get",
        operand: Some("TABLE"),
        needs_operand: true,
        options: &[],
        what: "show one route: its record, version, ACL, and what each proxy serves",
    },
    Sub {
        name: "set",
        operand: Some("TABLE"),
        needs_operand: true,
        options: &[
            ("cluster", Some("NAME")),
            ("metas", Some("HOST:PORT,...")),
            ("if-version", Some("N")),
            ("save", Some("FILE")),
            ACCEPTED[0],
            ACCEPTED[1],
            ACCEPTED[2],
            ACCEPTED[3],
            ACCEPTED[4],
        ],
        what: "write one route, and wait until every proxy serves it",
    },
    Sub {
        name: "rm",
        operand: Some("TABLE"),
        needs_operand: true,
        options: &[("if-version", Some("N")), ("save", Some("FILE"))],
        what: "delete one route, and wait until no proxy serves it",
    },
    Sub {
        name: "export",
        operand: None,
        needs_operand: false,
        options: &[],
        what: "print all routes as a routes file",
    },
];

/// What the arguments said.
pub struct Args {
    pub sub: &'static Sub,
    pub operand: Option<String>,
    given: Vec<(&'static str, String)>,
}

impl Args {
    /// The last value of an option.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values(name).last()
    }

    /// All values of an option that may be given several times.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.given.iter().filter(move |(given, _)| *given == name).map(|(_, value)| value.as_str())
    }

    pub fn is_set(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// A number, or the default.
    pub fn number(&self, name: &str) -> Result<Option<u64>, String> {
        let read =
            |text: &str| text.parse().map_err(|_| format!("--{name}: want a number, got {text:?}"));
        self.value(name).map(read).transpose()
    }
}

/// Reads what stands behind `route`. `None`: help is wanted.
pub fn parse(parser: &mut Parser) -> Result<Option<Args>, Error> {
    let name = match parser.next()? {
        Some(Value(word)) => word.string()?,
        Some(Long("help") | Short('h')) => return Ok(None),
        Some(other) => return Err(other.unexpected()),
        None => return Err("want a command behind route".into()),
    };
    let sub = SUBS.iter().find(|sub| sub.name == name).ok_or_else(|| {
        let meant = did_you_mean(&name, SUBS.iter().map(|sub| sub.name));
        let meant = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
        format!("no such command: route {name}{meant}")
    })?;
    let mut args = Args { sub, operand: None, given: Vec::new() };
    while let Some(arg) = parser.next()? {
        match arg {
            Value(word) if args.operand.is_none() && sub.operand.is_some() => {
                args.operand = Some(word.string()?);
            }
            Long("help") | Short('h') => return Ok(None),
            Long(name) => {
                let mut known = sub.options.iter().chain(COMMON);
                let Some((name, value)) = known.find(|(known, _)| *known == name) else {
                    return Err(arg.unexpected());
                };
                let value = match value {
                    Some(_) => parser.value()?.string()?,
                    None => String::new(),
                };
                args.given.push((name, value));
            }
            _ => return Err(arg.unexpected()),
        }
    }
    if sub.needs_operand && args.operand.is_none() {
        let wanted = sub.operand.unwrap_or_default();
        return Err(format!("route {}: want {wanted}", sub.name).into());
    }
    Ok(Some(args))
}

/// The help.
pub fn help() -> String {
    let mut text = "\
meta-proxy route: routes in ZooKeeper, planned, checked, written, and seen at every proxy

Usage:
"
    .to_owned();
    let shown = |(name, value): &Opt| match value {
        Some(value) => format!("[--{name} {value}]"),
        None => format!("[--{name}]"),
    };
    for sub in SUBS {
        let operand = match (sub.operand, sub.needs_operand) {
            (Some(operand), true) => format!(" {operand}"),
            (Some(operand), false) => format!(" [{operand}]"),
            (None, _) => String::new(),
        };
        text += &format!("  meta-proxy route {}{operand}\n", sub.name);
        text += &format!("      {}\n", sub.what);
        let rules: Vec<&str> = checks::RULES.iter().map(|rule| checks::option(*rule)).collect();
        let own = sub.options.iter().filter(|(name, _)| !rules.contains(name));
        let own: Vec<String> = own.map(shown).collect();
        if !own.is_empty() {
            text += &format!("      {}\n", own.join(" "));
        }
        if sub.options.iter().any(|(name, _)| rules.contains(name)) {
            text += "      and options that set rules aside, see below\n";
        }
    }
    text += "
Where the routes are, and who serves them:
  --config FILE            the settings of a proxy
  --zookeeper A,B --root R instead of it, or above it
  --digest-file FILE       user:password for protected znodes, in a file
  --proxies H:P,...        the pages of all proxies, which must serve what is written; none: none is looked at
  --wait-s N               wait for them for so long [30]
  --timeout-ms N           time for each cluster and each request [5000]
  --json                   print JSON

Options that set a rule aside (exit code 5 names the rule):
  --split-brain-accepted   the old cluster lives, and clients go on writing there
  --target-accepted        the new cluster does not answer, lacks the table, or denies its clients
  --other-name             the new cluster calls itself otherwise than the route does
  --other-partition-count  the table has another partition count there
  --not-for-go             one address, which the Go proxy cannot use

Exit codes: 0 done or the same, 1 failed, 2 arguments that mean nothing, 3 it differs or is in conflict,
4 applied in part, or a proxy does not serve it yet, 5 a rule refuses it. Nothing is changed with 1, 2, 3 and 5.
";
    text
}
