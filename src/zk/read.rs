//! Reads of ZooKeeper: the requests of each, and the outcome. Pure.
//!
//! ```text
//! root ────▶ exists ─▶ there | missing ─▶ exists of what is above ─▶ ...
//! names ───▶ getChildren
//! table ───▶ getData ─▶ record | missing ─▶ exists of the root: only a root that stands makes it a deletion
//! cluster ─▶ getData ─▶ record | missing ─▶ exists, with a watch that tells when it comes
//! ```

use super::codec::{Answer, Code, Op, Stat};
use crate::route::names::Names;

/// Something to read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// Whether the root is there, and how new: the heartbeat.
    Root,
    /// The names of all tables.
    Names,
    /// The record of a table.
    Table(Box<str>),
    /// The record of a cluster.
    Cluster(Box<str>),
}

/// The outcome of a read.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// The root is there.
    Root(Stat),
    /// The root is not there. `pzxid`: of the last creation or deletion below the nearest znode above it, no older than
    /// its own.
    NoRoot { pzxid: i64 },
    /// The children of the root.
    Names(Names),
    /// Bytes of the znode of a table or cluster, and how old it is.
    Record { data: Vec<u8>, stat: Stat },
    /// A table that is not there, and the root as it was just after; `None`: no root either.
    Absent { root: Option<Stat> },
}

/// The same, or why it found nothing.
pub type ReadResult = Result<Found, ReadError>;

/// Why a read found nothing.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadError {
    /// There is no such znode.
    NoNode,
    /// An ACL forbids it.
    NoAuth,
}

/// Where things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The znode above the tables.
    pub root: String,
    /// The znode above the clusters, if they have znodes of their own.
    pub clusters_root: Option<String>,
}

impl Paths {
    /// Paths of tables and clusters are at most so much longer than their names.
    pub fn parent_bytes(&self) -> usize {
        self.clusters_root.as_ref().map_or(0, String::len).max(self.root.len()) + 1
    }

    /// The znode of what is read.
    pub fn of(&self, what: &What) -> String {
        match what {
            What::Root | What::Names => self.root.clone(),
            What::Table(table) => format!("{}/{table}", self.root),
            What::Cluster(name) => {
                format!("{}/{name}", self.clusters_root.as_deref().unwrap_or_default())
            }
        }
    }

    /// Tells from a watch's path what has changed; `None` if it is none of ours.
    pub fn what_is(&self, path: &str) -> Option<What> {
        if path == self.root {
            return Some(What::Root);
        }
        let (above, name) = path.rsplit_once('/')?;
        match above {
            above if above == self.root => Some(What::Table(name.into())),
            above if Some(above) == self.clusters_root.as_deref() => {
                Some(What::Cluster(name.into()))
            }
            _ => None,
        }
    }
}

/// A read that is under way.
#[derive(Debug)]
pub struct Read {
    what: What,
    path: String,
    step: Step,
}

#[derive(Debug)]
enum Step {
    First,
    /// A znode above a root that is missing.
    Above(String),
    /// The root of a table that is missing.
    RootOf,
    /// A cluster that is missing.
    Missing,
}

/// The meaning of an answer for a read.
#[derive(Debug)]
pub enum Progress {
    /// Another request follows.
    Ask(Read, Op),
    /// It has ended.
    Done(What, ReadResult),
    /// No read can go on with this error.
    Failed(Code),
}

impl Read {
    /// Begins with this request.
    pub fn begin(what: What, paths: &Paths) -> (Self, Op) {
        let path = paths.of(&what);
        let (of, watch) = (path.clone(), true);
        let op = match what {
            // With a watch, so that a root that is missing is noticed when it comes.
            What::Root => Op::Exists { path: of, watch },
            What::Names => Op::GetChildren { path: of, watch },
            What::Table(_) | What::Cluster(_) => Op::GetData { path: of, watch },
        };
        (Read { what, path, step: Step::First }, op)
    }

    /// A request was answered.
    pub fn answered(self, result: Result<Answer, Code>, paths: &Paths) -> Progress {
        let Read { what, path, step } = self;
        let ask = |what, path, step, op| Progress::Ask(Read { what, path, step }, op);
        let found = match (step, &what, result) {
            (Step::First, What::Root, Ok(Answer::Stat(stat))) => Ok(Found::Root(stat)),
            (Step::First, What::Root, Err(Code::NO_NODE)) => return Self::above(what, path),
            (Step::Above(_), _, Ok(Answer::Stat(stat))) => Ok(Found::NoRoot { pzxid: stat.pzxid }),
            (Step::Above(above), _, Err(Code::NO_NODE)) => return Self::above(what, above),
            (Step::First, _, Ok(Answer::Children(names, _))) => Ok(Found::Names(names)),
            (Step::First, _, Ok(Answer::Data(data, stat))) => Ok(Found::Record { data, stat }),
            (Step::First, What::Table(_), Err(Code::NO_NODE)) => {
                let op = Op::Exists { path: paths.root.clone(), watch: false };
                return ask(what, path, Step::RootOf, op);
            }
            (Step::RootOf, _, Ok(Answer::Stat(stat))) => Ok(Found::Absent { root: Some(stat) }),
            (Step::RootOf, _, Err(Code::NO_NODE)) => Ok(Found::Absent { root: None }),
            (Step::First, What::Cluster(_), Err(Code::NO_NODE)) => {
                let op = Op::Exists { path: path.clone(), watch: true };
                return ask(what, path, Step::Missing, op);
            }
            // It has just come.
            (Step::Missing, _, Ok(_)) => {
                let op = Op::GetData { path: path.clone(), watch: true };
                return ask(what, path, Step::First, op);
            }
            (_, _, Err(Code::NO_NODE)) => Err(ReadError::NoNode),
            (_, _, Err(Code::NO_AUTH)) => Err(ReadError::NoAuth),
            (_, _, Err(code)) => return Progress::Failed(code),
            (_, _, Ok(_)) => unreachable!("an answer is of the kind that was asked for"),
        };
        Progress::Done(what, found)
    }

    /// Looks for what is above a znode that is missing.
    fn above(what: What, path: String) -> Progress {
        let above = match path.rsplit_once('/') {
            Some(("", name)) if !name.is_empty() => "/".to_owned(),
            Some((above, _)) if !above.is_empty() => above.to_owned(),
            // There is no ZooKeeper without its top.
            _ => return Progress::Done(what, Ok(Found::NoRoot { pzxid: 0 })),
        };
        let op = Op::Exists { path: above.clone(), watch: false };
        Progress::Ask(Read { what, path, step: Step::Above(above) }, op)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers one request after another; the paths asked for, and what the read came to.
    fn read(what: What, answers: &[Result<Answer, Code>]) -> (Vec<String>, String) {
        let paths = Paths { root: "/a/r".to_owned(), clusters_root: Some("/c".to_owned()) };
        let (mut read, mut op) = Read::begin(what, &paths);
        let mut asked = Vec::new();
        for answer in answers {
            let (path, watch) = match op {
                Op::Exists { path, watch } | Op::GetData { path, watch } => (path, watch),
                Op::GetChildren { path, watch } => (path, watch),
                other => panic!("{other:?}"),
            };
            asked.push(format!("{path}{}", if watch { "!" } else { "" }));
            (read, op) = match read.answered(answer.clone(), &paths) {
                Progress::Ask(read, op) => (read, op),
                Progress::Done(_, found) => return (asked, format!("{found:?}")),
                Progress::Failed(code) => return (asked, format!("{code:?}")),
            };
        }
        panic!("it asks on: {op:?}");
    }

    #[test]
    fn a_path_is_a_table_or_a_cluster_by_the_znode_right_above_it() {
        let table = |name: &str| Some(What::Table(name.into()));
        let cluster = |name: &str| Some(What::Cluster(name.into()));
        for (root, clusters_root, path, want) in [
            ("/r", None, "/r", Some(What::Root)),
            ("/r", None, "/r/t", table("t")),
            ("/r", None, "/rr/t", None),
            ("/r", Some("/c"), "/c/c1", cluster("c1")),
            ("/r", Some("/c"), "/c", None),
            ("/p/tables", Some("/p"), "/p/tables", Some(What::Root)),
            ("/p/tables", Some("/p"), "/p/tables/t", table("t")),
            ("/p/tables", Some("/p"), "/p/c1", cluster("c1")),
            ("/p", Some("/p/clusters"), "/p/clusters/c1", cluster("c1")),
            ("/p", Some("/p/clusters"), "/p/t", table("t")),
        ] {
            let clusters_root = clusters_root.map(str::to_owned);
            let paths = Paths { root: root.to_owned(), clusters_root };
            assert_eq!(paths.what_is(path), want, "{paths:?} {path}");
        }
    }

    #[test]
    fn what_is_missing_is_told_with_what_is_above_it() {
        let stat = |pzxid| Ok(Answer::Stat(Stat { pzxid, ..Stat::default() }));
        let data = || Ok(Answer::Data(vec![1], Stat::default()));
        let (none, table, cluster) =
            (Err(Code::NO_NODE), What::Table("t".into()), What::Cluster("c".into()));
        for (why, what, answers, asked, found) in [
            ("a root", What::Root, vec![stat(7)], "/a/r!", "pzxid: 7"),
            ("no root", What::Root, vec![none.clone(), stat(5)], "/a/r! /a", "NoRoot { pzxid: 5 }"),
            (
                "nothing above it",
                What::Root,
                vec![none.clone(), none.clone(), stat(3)],
                "/a/r! /a /",
                "NoRoot { pzxid: 3 }",
            ),
            ("a record", table.clone(), vec![data()], "/a/r/t!", "data: [1]"),
            (
                "a table that is gone",
                table.clone(),
                vec![none.clone(), stat(9)],
                "/a/r/t! /a/r",
                "Absent { root: Some(",
            ),
            (
                "its root too",
                table.clone(),
                vec![none.clone(), none.clone()],
                "/a/r/t! /a/r",
                "Absent { root: None }",
            ),
            ("a hidden table", table.clone(), vec![Err(Code::NO_AUTH)], "/a/r/t!", "NoAuth"),
            (
                "no cluster",
                cluster.clone(),
                vec![none.clone(), none.clone()],
                "/c/c! /c/c!",
                "NoNode",
            ),
            (
                "one that comes",
                cluster,
                vec![none, stat(1), data()],
                "/c/c! /c/c! /c/c!",
                "data: [1]",
            ),
            ("no names", What::Names, vec![Err(Code::NO_NODE)], "/a/r!", "NoNode"),
            ("a strange error", table, vec![Err(Code(-5))], "/a/r/t!", "-5"),
        ] {
            let (was_asked, came_to) = read(what, &answers);
            assert_eq!(was_asked.join(" "), asked, "{why}");
            assert!(came_to.contains(found), "{why}: {came_to}");
        }
    }
}
