//! The work of operators on routes: planned, checked, written one compare-and-set at a time, and seen at every proxy.
//!
//! ```text
//! what is there ─┐                                  ┌─ rules: a cluster that lives, has another name, lacks the table
//!  (store)       ├─▶ plan: znode, before, after ─▶ checks ─▶ saved as a file ─▶ journal ─▶ apply ─▶ seen ─▶ done
//! what is wanted ┘   (pure; also the undo file)    (pure)                     (znode)    (store)   (proxies' pages)
//!  (place, file, the clusters' own lists)
//! ```
//! **Who owns what.** ZooKeeper owns the routes. A plan is a value: for each znode what was there (data, version, mzxid,
//! ACL) and what shall be there. It is written down before anything else is, so it says at any time what was wanted.
//!
//! **How it fails.** A change is one request: a set, a delete or a create that only succeeds on the version that the plan
//! shows. So a znode holds what was there or what was planned, whatever stops the tool: kill -9, a lost ZooKeeper, a second
//! tool. How far a run came is read from the znodes; the journal of the control znode only says who wrote which plan, and how it ended. A change is *done* if its znode holds what
//! was planned, *due* if it is as the plan shows it, and in *conflict* otherwise. A second run does what is due. An undo
//! is a plan of its own, made from what is there now: what the first one wrote goes back, anything else is a conflict.
//! A request whose answer was lost is looked at again, never sent again unseen.
//!
//! **What bounds it.** 64 requests are under way at once, each waits for a limit; plans have at most
//! [`plan::MAX_CHANGES`] changes; pages and answers of clusters have a limit of bytes; clusters are asked by 16 threads.
//! The caller's thread does everything else.
//!
//! **One bad peer.** A cluster that does not answer costs its time-out once, beside the others. A proxy that does not
//! answer is told by name, and keeps the tool from saying that all is done.

pub mod admin_rpc;
pub mod plan;
pub mod record;
pub mod view;

pub mod checks;
pub mod import;
pub mod verify;

pub mod store;

pub mod control;

pub mod admin_move;
pub mod at_once;
pub mod http;

pub mod clusters;
pub mod proxies;

pub mod apply;

pub mod moving;

use std::fmt;

/// How a command ended, which is its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done, or was so already.
    Done = 0,
    /// It failed, and nothing was changed.
    Failed = 1,
    /// The arguments mean nothing.
    Usage = 2,
    /// Something else is there than was expected. Nothing was changed.
    Differs = 3,
    /// Some of it is done, or some proxy does not serve it yet.
    Partly = 4,
    /// A rule forbids it. Nothing was changed.
    Refused = 5,
}

/// Why a command did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub outcome: Outcome,
    pub why: String,
    /// The JSON output has the fault already.
    pub is_told: bool,
}

impl Fault {
    pub fn new(outcome: Outcome, why: impl Into<String>) -> Self {
        Fault { outcome, why: why.into(), is_told: false }
    }

    /// Marks the fault as printed.
    pub fn told(self) -> Self {
        Fault { is_told: true, ..self }
    }

    pub fn failed(why: impl Into<String>) -> Self {
        Fault::new(Outcome::Failed, why)
    }

    pub fn usage(why: impl Into<String>) -> Self {
        Fault::new(Outcome::Usage, why)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}
