//! The control znode, beside the root: it lists the proxies, and carries an operator's orders. Pure.
//!
//! ```text
//! <control root>/members/<session>   by each proxy, ephemeral: the address of its pages
//!               /accept              by the route tool: accepted holds, and routes that it will delete
//!               /journal/<plan>      by the route tool: what was changed, by whom, when and why
//! ```
//! An order is about one thing only, so it may stay after the proxies have read it: an accept names one process, and a
//! deletion names the last change of the route. A process may be listed twice for a while, with its present session and
//! with an earlier one that has not expired yet.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The znode above the proxies.
pub const MEMBERS: &str = "members";
/// The znode of the orders.
pub const ACCEPT: &str = "accept";
/// The znode above the plans.
pub const JOURNAL: &str = "journal";

/// A proxy's own entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Identifies the process, also among earlier processes with the same pid.
    pub id: String,
    /// `host:port` of its pages; `None`: it has no pages.
    pub pages: Option<String>,
    /// Where clients connect.
    pub listen: String,
    pub version: String,
    pub host: String,
}

impl Member {
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub fn from_bytes(data: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(data).map_err(|e| e.to_string())
    }
}

/// The name of a member's znode.
pub fn member_name(session: i64) -> String {
    format!("{session:#x}")
}

/// An operator accepts a hold of one proxy as the proxy showed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Id of the proxy.
    pub member: String,
    /// The root's czxid; 0: the root is missing.
    pub czxid: i64,
    /// Number of cached tables that are gone.
    pub gone: usize,
    /// When the operator said so, seconds since 1970.
    pub at_s: u64,
}

/// A route that will be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// zxid of the last change of the route.
    pub mzxid: i64,
    /// When the operator said so, seconds since 1970.
    pub at_s: u64,
}

/// An operator's orders.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    #[serde(default)]
    pub accepts: Vec<Accepted>,
    /// By table.
    #[serde(default)]
    pub deletes: BTreeMap<String, Deletion>,
}

impl Word {
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub fn from_bytes(data: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(data).map_err(|e| e.to_string())
    }

    /// Whether a route that last changed with `mzxid` may disappear. The order does not cover a later change.
    pub fn deletes(&self, table: &str, mzxid: i64) -> bool {
        self.deletes.get(table).is_some_and(|deletion| mzxid <= deletion.mzxid)
    }

    /// Removes older orders.
    pub fn forget_before(&mut self, at_s: u64) {
        self.accepts.retain(|accepted| accepted.at_s >= at_s);
        self.deletes.retain(|_, deletion| deletion.at_s >= at_s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_about_one_thing_only() {
        let said = |at_s| Deletion { mzxid: 30, at_s };
        let mut word = Word {
            accepts: vec![Accepted { member: "0x1".into(), czxid: 7, gone: 3, at_s: 100 }],
            deletes: [("orders".to_owned(), said(100)), ("items".to_owned(), said(200))].into(),
        };
        assert_eq!(Word::from_bytes(&word.to_bytes()), Ok(word.clone()));
        assert!(word.deletes("orders", 30) && word.deletes("orders", 29));
        assert!(!word.deletes("orders", 31), "it was made again after the word");
        assert!(!word.deletes("users", 1));
        word.forget_before(150);
        assert!(word.accepts.is_empty() && word.deletes.len() == 1);
        assert_eq!(Word::from_bytes(b"{}"), Ok(Word::default()));
        assert!(Word::from_bytes(b"").is_err());
    }
}
