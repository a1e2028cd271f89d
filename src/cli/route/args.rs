//! The commands of `route`, their options, and the arguments read by that table. Pure.

use lexopt::prelude::*;
use lexopt::{Error, Parser};

use crate::config::spelling::did_you_mean;

/// An option: its name, and what its value is; none: it has no value.
pub type Opt = (&'static str, Option<&'static str>);

/// A command.
pub struct Sub {
    pub name: &'static str,
    /// The operand behind its name, for people.
    pub operand: Option<&'static str>,
    pub needs_operand: bool,
    pub options: &'static [Opt],
    /// Whether it writes routes by a plan.
    pub writes: Writes,
    pub what: &'static str,
}

/// Whether a command writes routes, and by which rules.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    Nothing,
    /// Only what was there before, or nothing any more.
    WithoutRules,
    /// Routes that the rules allow.
    ByRules,
}

/// Options of commands that write.
const WRITING: &[Opt] = &[("save", Some("FILE")), ("why", Some("TEXT"))];

/// Options of commands that the rules can refuse.
const RULES: &[Opt] = &[
    ("split-brain-accepted", None),
    ("target-accepted", None),
    ("other-name", None),
    ("other-partition-count", None),
    ("not-for-go", None),
    ("moving-accepted", None),
];

impl Sub {
    /// All options but those that every command has.
    pub fn own_options(&self) -> impl Iterator<Item = &'static Opt> {
        let writing = if self.writes == Writes::Nothing { &[][..] } else { WRITING };
        let rules = if self.writes == Writes::ByRules { RULES } else { &[][..] };
        self.options.iter().chain(writing).chain(rules)
    }
}

/// Options that every command has.
pub const COMMON: &[Opt] = &[
    ("config", Some("FILE")),
    ("zookeeper", Some("HOST:PORT,...")),
    ("root", Some("ZNODE")),
    ("clusters-root", Some("ZNODE")),
    ("control-root", Some("ZNODE")),
    ("digest-file", Some("FILE")),
    ("control-digest-file", Some("FILE")),
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
        writes: Writes::Nothing,
        what: "list routes",
    },
    Sub {
        name: "get",
        operand: Some("TABLE"),
        needs_operand: true,
        options: &[],
        writes: Writes::Nothing,
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
        ],
        writes: Writes::ByRules,
        what: "write one route, and wait until every proxy serves it",
    },
    Sub {
        name: "rm",
        operand: Some("TABLE"),
        needs_operand: true,
        options: &[("if-version", Some("N")), ("moving-accepted", None)],
        writes: Writes::WithoutRules,
        what: "delete one route, and wait until no proxy serves it",
    },
    Sub {
        name: "switch",
        operand: Some("TABLE"),
        needs_operand: false,
        options: &[
            ("to", Some("CLUSTER")),
            ("from", Some("CLUSTER")),
            ("metas", Some("HOST:PORT,...")),
            ("tables-file", Some("FILE")),
            ("exclude", Some("TABLE")),
            ("plan", Some("FILE")),
            ("apply", None),
            ("yes-tables", Some("N")),
        ],
        writes: Writes::ByRules,
        what: "disaster: the old cluster is gone. Plan it into a file, then apply that with --plan",
    },
    Sub {
        name: "undo",
        operand: Some("PLAN"),
        needs_operand: true,
        options: &[("apply", None), ("yes-tables", Some("N"))],
        writes: Writes::WithoutRules,
        what: "take back what a plan wrote",
    },
    Sub {
        name: "move",
        operand: Some("TABLE"),
        needs_operand: true,
        options: &[
            ("to", Some("CLUSTER")),
            ("metas", Some("HOST:PORT,...")),
            ("keep-undo", None),
            ("probe", None),
            ("no-probe", None),
            ("max-refused", Some("SPAN")),
            ("back", None),
            ("apply", None),
        ],
        writes: Writes::Nothing,
        what: "planned: both clusters live, one duplicates the table to the other, and no acknowledged write is lost",
    },
    Sub {
        name: "finish",
        operand: Some("TABLE"),
        needs_operand: true,
        options: &[
            ("from", Some("CLUSTER")),
            ("metas", Some("HOST:PORT,...")),
            ("clients-moved", None),
            ("forget", None),
            ("apply", None),
        ],
        writes: Writes::Nothing,
        what: "after a move or a fence: the old cluster takes clients of the table again, when none has the old route",
    },
    Sub {
        name: "fence",
        operand: Some("CLUSTER-or-TABLE"),
        needs_operand: true,
        options: &[
            ("metas", Some("HOST:PORT,...")),
            ("table", Some("TABLE")),
            ("apply", None),
            ("yes-tables", Some("N")),
        ],
        writes: Writes::Nothing,
        what: "after a disaster, when the old cluster answers again: close it for tables that are routed elsewhere",
    },
    Sub {
        name: "metas",
        operand: None,
        needs_operand: false,
        options: &[
            ("cluster", Some("NAME")),
            ("replace", Some("OLD:PORT=NEW:PORT")),
            ("apply", None),
            ("yes-tables", Some("N")),
        ],
        writes: Writes::ByRules,
        what: "replace a MetaServer in the cluster's znode, or in all routes that list it",
    },
    Sub {
        name: "import",
        operand: None,
        needs_operand: false,
        options: &[
            ("cluster", Some("NAME=HOST:PORT,...")),
            ("file", Some("FILE")),
            ("exclude", Some("TABLE")),
            ("prune", None),
            ("max-delete", Some("N")),
            ("apply", None),
            ("yes-tables", Some("N")),
        ],
        writes: Writes::ByRules,
        what: "routes from the clusters' own lists of tables, or from a file that export wrote",
    },
    Sub {
        name: "verify",
        operand: None,
        needs_operand: false,
        options: &[
            ("cluster", Some("NAME=HOST:PORT,...")),
            ("every", Some("SPAN")),
            ("listen", Some("IP:PORT")),
        ],
        writes: Writes::Nothing,
        what: "compare ZooKeeper with every cluster, once, or again and again as metrics",
    },
    Sub {
        name: "history",
        operand: Some("TABLE"),
        needs_operand: false,
        options: &[("last", Some("N"))],
        writes: Writes::Nothing,
        what: "what was written, by whom, when and why; of one table, or of all",
    },
    Sub {
        name: "accept",
        operand: None,
        needs_operand: false,
        options: &[("apply", None), ("yes-tables", Some("N"))],
        writes: Writes::Nothing,
        what: "show which proxies hold routes, and accept what each shows: the tables that are gone may go",
    },
    Sub {
        name: "export",
        operand: None,
        needs_operand: false,
        options: &[],
        writes: Writes::Nothing,
        what: "print all routes as a routes file",
    },
];

/// The arguments.
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
                let mut known = sub.own_options().chain(COMMON);
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
        let own = sub.own_options().filter(|option| !RULES.contains(option));
        let own: Vec<String> = own.map(shown).collect();
        if !own.is_empty() {
            text += &format!("      {}\n", own.join(" "));
        }
        if sub.writes == Writes::ByRules {
            text += "      and options that set rules aside, see below\n";
        }
    }
    text += "
Where the routes are, and who serves them:
  --config FILE            the settings of a proxy
  --zookeeper A,B --root R instead of it, or above it
  --clusters-root C        the znode above the clusters, where routes may name theirs only
  --digest-file FILE       user:password for protected znodes, in a file
  --control-root C         the control znode: proxies are found there, and history is kept there
  --control-digest-file F  user:password for it, in a file
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
  --moving-accepted        a move of the table did not end

Exit codes: 0 done or the same, 1 failed, 2 arguments that mean nothing, 3 it differs or is in conflict,
4 applied in part, or a proxy does not serve it yet, 5 a rule refuses it. Nothing is changed with 1 (a move took all back), 2, 3 and 5.
";
    text
}
