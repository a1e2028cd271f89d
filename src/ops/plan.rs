//! A plan: for each znode its data before and after. It is a value and a file. Pure.
//!
//! ```text
//! change   before     after      request                   undo
//! set      data v12   data       set if version is 12      set data of before
//! create   -          data       create                    delete
//! delete   data v12   -          delete if version is 12   create, with the ACL of before
//! ```

use std::collections::BTreeSet;
use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use crate::wire::message::is_table_name;
use crate::zk::codec::{Acl, Op, Stat};

/// Changes of one plan. ZooKeeper takes some thousands a second.
pub const MAX_CHANGES: usize = 200_000;

/// The version of the file format.
const FORM: u32 = 1;

/// Bytes of a znode: text in the file, hexadecimal where they are none.
#[derive(Clone, PartialEq, Eq)]
pub struct Data(pub Vec<u8>);

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
                json!({ "hex": hex }).serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if let Some(text) = value.as_str() {
            return Ok(Data(text.as_bytes().to_vec()));
        }
        let hex = value.get("hex").and_then(Value::as_str).filter(|hex| hex.is_ascii());
        let hex = hex.filter(|hex| hex.len() % 2 == 0);
        let hex = hex.ok_or_else(|| D::Error::custom("want text, or {\"hex\": ...}"))?;
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).map_err(D::Error::custom);
        (0..hex.len()).step_by(2).map(byte).collect::<Result<_, _>>().map(Data)
    }
}

/// The rights that somebody has on a znode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Right {
    /// ZooKeeper's bits: read 1, write 2, create 4, delete 8, admin 16.
    pub permissions: i32,
    pub scheme: String,
    pub id: String,
}

impl fmt::Display for Right {
    /// As zkCli.sh takes it: `world:anyone:cdrwa`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.scheme, self.id)?;
        let bits = [(4, 'c'), (8, 'd'), (1, 'r'), (2, 'w'), (16, 'a')];
        let letters = bits.iter().filter(|(bit, _)| self.permissions & bit != 0);
        letters.map(|(_, letter)| letter).try_for_each(|letter| write!(f, "{letter}"))
    }
}

impl From<Acl> for Right {
    fn from(acl: Acl) -> Self {
        Right { permissions: acl.permissions, scheme: acl.scheme, id: acl.id }
    }
}

impl From<Right> for Acl {
    fn from(right: Right) -> Self {
        Acl { permissions: right.permissions, scheme: right.scheme, id: right.id }
    }
}

/// A znode as it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    pub data: Data,
    pub version: i32,
    pub mzxid: i64,
    /// The ACL that an undo creates it with. Only for a deletion.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acl: Vec<Right>,
}

/// A znode as it shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    pub data: Data,
    /// The ACL to create it with. Only for a creation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acl: Vec<Right>,
}

/// One znode that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub znode: String,
    /// `None`: the znode does not exist.
    pub before: Option<Before>,
    /// `None`: the change deletes the znode.
    pub after: Option<After>,
}

impl Change {
    /// The last part of the path: the table's name, or the cluster's.
    pub fn name(&self) -> &str {
        self.znode.rsplit('/').next().unwrap_or_default()
    }

    pub fn is_deletion(&self) -> bool {
        self.after.is_none()
    }

    /// The request that makes the change, or fails if the znode is not as it was seen.
    pub fn op(&self) -> Op {
        let path = self.znode.clone();
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => {
                Op::SetData { path, data: after.data.0.clone(), version: before.version }
            }
            (Some(before), None) => Op::Delete { path, version: before.version },
            (None, after) => {
                let (data, acl) =
                    after.clone().map(|after| (after.data.0, after.acl)).unwrap_or_default();
                let acl = acl.into_iter().map(Acl::from).collect();
                Op::Create { path, data, acl, is_ephemeral: false }
            }
        }
    }
}

/// A znode as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Znode {
    pub data: Vec<u8>,
    pub stat: Stat,
}

/// How a change stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The znode is as planned. Its mzxid; 0: it does not exist.
    Done(i64),
    /// The znode is as it was seen.
    Due,
    /// The znode is neither.
    Conflict,
}

/// How `change` stands while its znode is `now`.
pub fn state(change: &Change, now: Option<&Znode>) -> State {
    match (now, &change.before, &change.after) {
        (None, _, None) => State::Done(0),
        (Some(now), _, Some(after)) if now.data == after.data.0 => State::Done(now.stat.mzxid),
        (None, None, Some(_)) => State::Due,
        (Some(now), Some(before), _)
            if (&now.data, now.stat.version, now.stat.mzxid)
                == (&before.data.0, before.version, before.mzxid) =>
        {
            State::Due
        }
        _ => State::Conflict,
    }
}

/// Shows the znode as the plan has it, and as it is.
pub fn conflict(change: &Change, now: Option<&Znode>) -> String {
    let shown = |data: &[u8], version: i32| {
        format!("{} (version {version})", String::from_utf8_lossy(data))
    };
    let none = || "no znode".to_owned();
    let before = change.before.as_ref();
    let before = before.map_or_else(none, |before| shown(&before.data.0, before.version));
    let after = change.after.as_ref();
    let after =
        after.map_or_else(none, |after| String::from_utf8_lossy(&after.data.0).into_owned());
    let now = now.map_or_else(none, |now| shown(&now.data, now.stat.version));
    format!("{}: shown {before}\n  planned {after}\n  there now {now}", change.znode)
}

/// A rule that somebody set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accepted {
    SplitBrain,
    OtherPartitionCount,
    OtherName,
    Target,
    NotForGo,
    Moving,
}

/// Changes that belong together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub form: u32,
    /// Unique, and in the order of time.
    pub id: String,
    /// The command that made it.
    pub kind: String,
    /// When, RFC 3339.
    pub made: String,
    /// Its maker, `user@host`.
    pub by: String,
    pub zookeeper: Vec<String>,
    pub root: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clusters_root: Option<String>,
    /// Its purpose, in the operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The plan that this one undoes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undoes: Option<String>,
    #[serde(default)]
    pub accepted: Vec<Accepted>,
    pub changes: Vec<Change>,
}

impl Plan {
    pub const FORM: u32 = FORM;

    /// The form of the file: one line a change, so that people and `diff` can read it.
    pub fn to_file(&self) -> String {
        let head = Plan { changes: Vec::new(), ..self.clone() };
        let mut head = serde_json::to_string_pretty(&head).unwrap_or_default();
        let end = head.rfind("[]").unwrap_or(head.len());
        head.truncate(end);
        let changes =
            self.changes.iter().map(|change| serde_json::to_string(change).unwrap_or_default());
        let changes: Vec<String> = changes.map(|change| format!("    {change}")).collect();
        format!("{head}[\n{}\n  ]\n}}\n", changes.join(",\n"))
    }

    /// Reads a file, and checks that it only touches what a plan may touch.
    pub fn from_file(text: &str) -> Result<Self, String> {
        let plan: Plan = serde_json::from_str(text).map_err(|e| format!("want a plan, got {e}"))?;
        plan.check()?;
        Ok(plan)
    }

    pub fn check(&self) -> Result<(), String> {
        if self.form != FORM {
            return Err(format!("want a plan of form {FORM}, got {}", self.form));
        }
        if self.changes.len() > MAX_CHANGES {
            let count = self.changes.len();
            return Err(format!("want at most {MAX_CHANGES} changes, got {count}"));
        }
        let znodes: BTreeSet<&str> =
            self.changes.iter().map(|change| change.znode.as_str()).collect();
        if znodes.len() < self.changes.len() {
            return Err("want each znode once, got one twice".to_owned());
        }
        let parents = [Some(&self.root), self.clusters_root.as_ref()];
        for change in &self.changes {
            let parent = change.znode.rsplit_once('/').map(|(parent, _)| parent);
            let is_child = parents.iter().flatten().any(|root| Some(root.as_str()) == parent);
            if !is_child || !is_table_name(change.name()) {
                return Err(format!("want a znode below {}, got {}", self.root, change.znode));
            }
            if change.before.is_none() && change.after.is_none() {
                return Err(format!("{}: want a change, got none", change.znode));
            }
        }
        Ok(())
    }

    /// The znode of a table.
    pub fn is_table(&self, change: &Change) -> bool {
        change.znode.rsplit_once('/').is_some_and(|(parent, _)| parent == self.root)
    }
}

/// The changes that undo a plan, made from the znodes as they are now. `Err`: changes that are in conflict, with both sides.
pub fn undo(plan: &Plan, now: &[Option<Znode>]) -> Result<Vec<Change>, Vec<String>> {
    let (mut changes, mut conflicts) = (Vec::new(), Vec::new());
    for (change, now) in plan.changes.iter().zip(now) {
        let data = |now: &Znode| now.data.clone();
        let (was, planned) = (
            change.before.as_ref().map(|before| before.data.0.clone()),
            change.after.as_ref().map(|after| after.data.0.clone()),
        );
        let there = now.as_ref().map(data);
        if there == was {
            continue;
        }
        if there != planned {
            conflicts.push(conflict(change, now.as_ref()));
            continue;
        }
        let before = now.as_ref().map(|now| Before {
            data: Data(now.data.clone()),
            version: now.stat.version,
            mzxid: now.stat.mzxid,
            acl: change.after.as_ref().map(|after| after.acl.clone()).unwrap_or_default(),
        });
        let after = change.before.as_ref().map(|before| After {
            data: before.data.clone(),
            acl: if change.is_deletion() { before.acl.clone() } else { Vec::new() },
        });
        changes.push(Change { znode: change.znode.clone(), before, after });
    }
    if conflicts.is_empty() { Ok(changes) } else { Err(conflicts) }
}

#[cfg(test)]
mod tests;
