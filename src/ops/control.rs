//! The control znode as the tool uses it: members, the operator's word (accepted holds, planned deletions), the journal.
//!
//! ```text
//! begin(plan) ─▶ journal/<plan>/0, 1, ...: the plan's file in pieces ─▶ journal/<plan>: who, when, why, "begun"
//! end(plan)   ─▶ journal/<plan>: "done", or why not
//! ```
//! The plan stands there whole before its head does. So a run that was killed can be gone on with, or taken back, from any
//! host. The newest [`KEPT`] plans are kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::plan::{Plan, Znode};
use super::record::Place;
use super::store::{ANY_VERSION, Store};
use super::{Fault, Outcome};
use crate::logging::line::Utc;
use crate::route::control::{ACCEPT, JOURNAL, MEMBERS, Member, Word};
use crate::zk::codec::{Acl, Answer, Code, Op};
use crate::zk::session::Failed;

/// Plans in the journal.
pub const KEPT: usize = 500;
/// A server takes no znode of 1 MiB.
const PIECE_BYTES: usize = 512 * 1024;
const MAX_WORD_BYTES: usize = 900 * 1024;
/// Proxies read the operator's word within seconds. An entry of this age is removed.
const WORD_LIVES_S: u64 = 3_600;
/// Tries to write the word while other tools write it.
const WORD_TRIES: usize = 10;
/// The znode above the clusters that a fence closed.
const FENCED: &str = "fenced";

/// A plan in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub id: String,
    pub kind: String,
    pub made: String,
    pub by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undoes: Option<String>,
    pub changes: usize,
    /// The file that the tool saved on its host.
    pub file: String,
    pub pieces: usize,
    pub state: State,
    /// How it ended, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<String>,
}

impl Entry {
    /// Nobody noted how the plan ended.
    pub fn is_open(&self) -> bool {
        self.state == State::Begun
    }
}

/// How a plan stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A run writes it, or was killed.
    Begun,
    /// All of it is written, and every proxy serves it.
    Done,
    /// It stopped.
    Stopped,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::Begun => "begun",
            State::Done => "done",
            State::Stopped => "stopped",
        }
    }
}

/// The control znode.
pub struct Control {
    root: String,
    /// A digest protects it.
    has_digest: bool,
}

impl Control {
    /// Returns the control znode that goes with these routes. If the settings have a digest, only its holders have rights there.
    pub fn of(store: &Store) -> Option<Self> {
        let root = store.place.control_root.clone()?;
        let has_digest = store.place.digest.is_some() || store.place.control_digest.is_some();
        Some(Control { root, has_digest })
    }

    /// The proxies that are registered, each once.
    pub fn members(&self, store: &mut Store) -> Result<Vec<Member>, Fault> {
        let parent = format!("{}/{MEMBERS}", self.root);
        let mut members: BTreeMap<String, Member> = BTreeMap::new();
        for (name, znode) in store.below(&parent)?.unwrap_or_default() {
            let member = Member::from_bytes(&znode.data);
            let member = member.map_err(|e| Fault::failed(format!("{parent}/{name}: {e}")))?;
            members.insert(member.id.clone(), member);
        }
        Ok(members.into_values().collect())
    }

    /// Creates the znode below which proxies register, if it is missing.
    pub fn make_members(&self, store: &mut Store) -> Result<(), Fault> {
        let path = format!("{}/{MEMBERS}", self.root);
        let made = self.ensure(store, &path, Vec::new());
        made.map_err(|e| Fault::failed(format!("{path}: {e}")))
    }

    /// Adds to the operator's word.
    pub fn say(&self, store: &mut Store, add: impl Fn(&mut Word, u64)) -> Result<(), Fault> {
        let path = format!("{}/{ACCEPT}", self.root);
        let now_s = Utc::now().0.as_secs();
        for _ in 0..WORD_TRIES {
            let found = store.znode(&path)?;
            let mut word = match &found {
                // No proxy could read a broken word, so it is replaced.
                Some(znode) => Word::from_bytes(&znode.data).unwrap_or_default(),
                None => Word::default(),
            };
            word.forget_before(now_s.saturating_sub(WORD_LIVES_S));
            add(&mut word, now_s);
            let data = word.to_bytes();
            if data.len() > MAX_WORD_BYTES {
                let why = format!(
                    "{path}: want at most {MAX_WORD_BYTES} bytes of it; delete fewer routes at once"
                );
                return Err(Fault::failed(why));
            }
            let said = match found {
                Some(znode) => {
                    let version = znode.stat.version;
                    store.session().request(Op::SetData { path: path.clone(), data, version })
                }
                None => self.create(store, &path, data),
            };
            match said {
                Ok(_) => return Ok(()),
                Err(Failed::Code(Code::BAD_VERSION | Code::NODE_EXISTS | Code::NO_NODE)) => {}
                Err(e) => return Err(Fault::failed(format!("{path}: {e}"))),
            }
        }
        Err(Fault::failed(format!("{path}: others change it all the time")))
    }

    /// Writes the plan to the journal, before anything of it is written to routes.
    pub fn begin(&self, store: &mut Store, plan: &Plan, file: &str) -> Result<(), Fault> {
        self.forget_old(store)?;
        let path = self.entry(&plan.id);
        let failed = |e: Failed| Fault::failed(format!("{path}: {e}; nothing is written"));
        let text = plan.to_file();
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(PIECE_BYTES).collect();
        let entry = Entry {
            id: plan.id.clone(),
            kind: plan.kind.clone(),
            made: plan.made.clone(),
            by: plan.by.clone(),
            why: plan.why.clone(),
            undoes: plan.undoes.clone(),
            changes: plan.changes.len(),
            file: file.to_owned(),
            pieces: pieces.len(),
            state: State::Begun,
            told: None,
        };
        // A second run of the same plan finds its znodes there.
        self.ensure(store, &path, Vec::new()).map_err(failed)?;
        for (number, piece) in pieces.iter().enumerate() {
            self.ensure(store, &format!("{path}/{number}"), piece.to_vec()).map_err(failed)?;
        }
        self.put(store, &entry)
    }

    /// Notes how a plan ended.
    pub fn end(
        &self,
        store: &mut Store,
        plan: &Plan,
        outcome: Outcome,
        told: &str,
    ) -> Result<(), Fault> {
        let path = self.entry(&plan.id);
        let mut entry = self.read(store, &path)?;
        entry.state = if outcome == Outcome::Done { State::Done } else { State::Stopped };
        entry.told = Some(told.to_owned());
        self.put(store, &entry)
    }

    /// All plans, the oldest first.
    pub fn entries(&self, store: &mut Store) -> Result<Vec<Entry>, Fault> {
        let parent = format!("{}/{JOURNAL}", self.root);
        let found = store.below(&parent)?.unwrap_or_default();
        // An entry without a head belongs to a run that was killed before it wrote any route.
        let entry = |(_, znode): (String, Znode)| serde_json::from_slice(&znode.data).ok();
        Ok(found.into_iter().filter_map(entry).collect())
    }

    /// A plan as it was when it began.
    pub fn plan(&self, store: &mut Store, id: &str) -> Result<Plan, Fault> {
        let path = self.entry(id);
        let entry = self.read(store, &path)?;
        let pieces: Vec<String> =
            (0..entry.pieces).map(|number| format!("{path}/{number}")).collect();
        let mut text = Vec::new();
        for (piece, znode) in pieces.iter().zip(store.read(&pieces)?) {
            let znode = znode.ok_or_else(|| Fault::failed(format!("{piece}: no such znode")))?;
            text.extend(znode.data);
        }
        let bad = |e: String| Fault::failed(format!("{path}: {e}"));
        let text = String::from_utf8(text).map_err(|e| bad(e.to_string()))?;
        Plan::from_file(&text).map_err(bad)
    }

    /// Notes that a fence closed this cluster.
    pub fn note_fenced(&self, store: &mut Store, place: &Place) -> Result<(), Fault> {
        let path = self.fenced_path(&place.cluster);
        let data = serde_json::to_vec(place).unwrap_or_default();
        match self.create(store, &path, data.clone()) {
            Err(Failed::Code(Code::NODE_EXISTS)) => store.set(&path, data, ANY_VERSION).map(drop),
            made => made.map(drop).map_err(|e| Fault::failed(format!("{path}: {e}"))),
        }
    }

    /// The clusters that a fence closed.
    pub fn fenced(&self, store: &mut Store) -> Result<Vec<Place>, Fault> {
        let parent = self.below(FENCED);
        let read = |(name, znode): (String, Znode)| {
            let bad = |e| Fault::failed(format!("{parent}/{name}: {e}"));
            serde_json::from_slice(&znode.data).map_err(bad)
        };
        store.below(&parent)?.unwrap_or_default().into_iter().map(read).collect()
    }

    /// The cluster is open again.
    pub fn forget_fenced(&self, store: &mut Store, cluster: &str) -> Result<(), Fault> {
        store.delete(&self.fenced_path(cluster), ANY_VERSION)
    }

    fn fenced_path(&self, cluster: &str) -> String {
        self.below(&format!("{FENCED}/{}", cluster.replace('/', "_")))
    }

    /// A znode below it.
    pub fn below(&self, path: &str) -> String {
        format!("{}/{path}", self.root)
    }

    fn entry(&self, id: &str) -> String {
        format!("{}/{JOURNAL}/{id}", self.root)
    }

    fn read(&self, store: &mut Store, path: &str) -> Result<Entry, Fault> {
        let found = store.znode(path)?;
        let found = found.ok_or_else(|| Fault::failed(format!("{path}: no such znode")))?;
        serde_json::from_slice(&found.data).map_err(|e| Fault::failed(format!("{path}: {e}")))
    }

    fn put(&self, store: &mut Store, entry: &Entry) -> Result<(), Fault> {
        let path = self.entry(&entry.id);
        let data = serde_json::to_vec(entry).unwrap_or_default();
        store.set(&path, data, ANY_VERSION).map(drop)
    }

    fn forget_old(&self, store: &mut Store) -> Result<(), Fault> {
        let parent = format!("{}/{JOURNAL}", self.root);
        let names = store.children(&parent)?.unwrap_or_default();
        let old = names.len().saturating_sub(KEPT - 1);
        for name in &names[..old] {
            let path = format!("{parent}/{name}");
            let pieces = store.children(&path)?.unwrap_or_default();
            let pieces = pieces.iter().map(|piece| format!("{path}/{piece}"));
            for path in pieces.chain([path.clone()]) {
                store.delete(&path, ANY_VERSION)?;
            }
        }
        Ok(())
    }

    /// Creates a znode, and those above it that are missing.
    pub fn create(&self, store: &mut Store, path: &str, data: Vec<u8>) -> Result<Answer, Failed> {
        let op = |path: &str, data: Vec<u8>| Op::Create {
            path: path.to_owned(),
            data,
            acl: vec![Acl::all(self.has_digest)],
            is_ephemeral: false,
        };
        match store.session().request(op(path, data.clone())) {
            Err(Failed::Code(Code::NO_NODE)) => {}
            other => return other,
        }
        for (end, _) in path.match_indices('/').skip(1) {
            there(store.session().request(op(&path[..end], Vec::new())))?;
        }
        store.session().request(op(path, data))
    }

    /// Creates a znode that may be there already, and those above it that are missing.
    fn ensure(&self, store: &mut Store, path: &str, data: Vec<u8>) -> Result<(), Failed> {
        there(self.create(store, path, data))
    }
}

/// Treats a znode that exists already as created.
fn there(created: Result<Answer, Failed>) -> Result<(), Failed> {
    match created {
        Ok(_) | Err(Failed::Code(Code::NODE_EXISTS)) => Ok(()),
        Err(e) => Err(e),
    }
}
