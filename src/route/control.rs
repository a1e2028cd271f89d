//! The control znode, a znode beside the root: which proxies there are, and what an operator said. Pure.
//!
//! ```text
//! <control root>/members/<session>   by each proxy, ephemeral: where its pages are
//!               /accept              by the route tool: holds that are accepted, and routes that will be deleted
//!               /journal/<plan>      by the route tool: what was changed, by whom, when and why
//! ```
//! A word is said about one thing only, so that it may stay after it has been heard: an accept names the process that it is
//! for, and a deletion the change that the route had last. A process may be there twice for a while, by the session that it
//! has and by one that has not expired yet.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The znode above the proxies.
pub const MEMBERS: &str = "members";
/// The znode of the word.
pub const ACCEPT: &str = "accept";
/// The znode above the plans.
pub const JOURNAL: &str = "journal";

/// A proxy, as it tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Tells the process from every other one, also from those that had its number before.
    pub id: String,
    /// `host:port` of its pages; none: it has no pages.
    pub pages: Option<String>,
    /// Where clients connect.
    pub listen: String,
    pub version: String,
    pub host: String,
}

impl Member {
    /// Bytes of the znode.
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

/// A hold of one proxy that is accepted as it was shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The proxy, by its id.
    pub member: String,
    /// The root's czxid; 0: it is missing.
    pub czxid: i64,
    /// Cached tables that are gone.
    pub gone: usize,
    /// When it was said, seconds since 1970.
    pub at_s: u64,
}

/// A route that will be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// zxid of the last change of the route.
    pub mzxid: i64,
    /// When it was said, seconds since 1970.
    pub at_s: u64,
}

/// An operator's word.
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

    /// Whether a route that last changed with `mzxid` may go. One that changed later was made after the word.
    pub fn deletes(&self, table: &str, mzxid: i64) -> bool {
        self.deletes.get(table).is_some_and(|deletion| mzxid <= deletion.mzxid)
    }

    /// Takes what is older than this out.
    pub fn forget_before(&mut self, at_s: u64) {
        self.accepts.retain(|accepted| accepted.at_s >= at_s);
        self.deletes.retain(|_, deletion| deletion.at_s >= at_s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_about_one_thing_only() {
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
