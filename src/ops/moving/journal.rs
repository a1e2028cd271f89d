//! The journal of a move. It is written before anything changes: below the control znode, or in a file without one.
//!
//! ```text
//! moving ─▶ moved ─▶ (gone, when it is finished)
//!   └▶ back ─▶ (gone, when all is back)
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::state::Ids;
use crate::logging::line::Utc;
use crate::ops::Fault;
use crate::ops::control::Control;
use crate::ops::plan::Data;
use crate::ops::record::Place;
use crate::ops::store::Store;
use crate::zk::codec::{Answer, Code, Op};
use crate::zk::session::Failed;

/// The znode above the moves, below the control znode.
const MOVES: &str = "moves";
const FORM: u32 = 1;
const FILE_VERSION: i32 = 0;
/// A MetaServer repeats a write until its own ZooKeeper takes it. After this time the request counts as lost.
const LATE_S: u64 = 600;

/// How far a move is meant to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Moving,
    /// It is taken back.
    Back,
    /// It is done, and the old cluster still denies its clients.
    Moved,
}

/// A move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    pub form: u32,
    /// Tells this move from another move of the same table.
    pub id: String,
    pub table: String,
    pub phase: Phase,
    pub from: Place,
    pub to: Place,
    /// The route, before and after.
    pub before: Data,
    pub after: Data,
    /// The version of the route's znode, before.
    pub version: i32,
    pub ids: Ids,
    /// The pages of the proxies that were registered when the move began.
    pub proxies: Vec<String>,
    pub keeps_undo: bool,
    /// The move adds B->A.
    pub made_undo: bool,
    pub made: String,
    pub by: String,
    /// When writes were refused first, s since 1970.
    pub denied_at_s: Option<u64>,
    /// When a request was sent whose answer is not known, s since 1970.
    pub unanswered_at_s: Option<u64>,
    /// Set just before the move writes the route: B had all writes.
    pub drained: Option<Drained>,
    /// A run has seen the route lead to B.
    pub was_new: bool,
}

/// The state of A when B had all its writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// s since 1970.
    pub at_s: u64,
    /// The decree of each partition.
    pub decrees: BTreeMap<i32, i64>,
}

impl Journal {
    pub const FORM: u32 = FORM;

    /// The move, for people.
    pub fn shown(&self) -> String {
        format!(
            "{} from {} to {}, begun by {} at {}",
            self.table, self.from.cluster, self.to.cluster, self.by, self.made
        )
    }

    /// The state of the move, for people.
    pub fn stands(&self) -> String {
        let (shown, old) = (self.shown(), &self.from.cluster);
        match (self.phase, self.denied_at_s) {
            (Phase::Moved, _) => {
                format!("{shown}, is done, and {old} still denies clients of the table")
            }
            (_, None) => format!("{shown}, did not end"),
            (_, Some(at_s)) => {
                let at = Utc(Duration::from_secs(at_s));
                format!("{shown}, did not end, and {old} may deny clients of the table since {at}")
            }
        }
    }

    /// For how long a request may still be carried out, in s; `None`: each was answered, or is too old.
    pub fn late_s(&self) -> Option<u64> {
        let age_s = Utc::now().0.as_secs().saturating_sub(self.unanswered_at_s?);
        LATE_S.checked_sub(age_s).filter(|left_s| *left_s > 0)
    }

    /// The command that ends it, behind `meta-proxy route`.
    pub fn way_on(&self) -> String {
        match self.phase {
            Phase::Moving if self.was_new || self.drained.is_some() => format!(
                "go on by meta-proxy route move {} --to {} --apply",
                self.table, self.to.cluster
            ),
            Phase::Moving => format!(
                "go on by meta-proxy route move {0} --to {1} --apply, or back by meta-proxy route move {0} --back \
                 --apply",
                self.table, self.to.cluster
            ),
            Phase::Back => format!("go on by meta-proxy route move {} --back --apply", self.table),
            Phase::Moved => format!(
                "when no client has the old route any more: meta-proxy route finish {} --clients-moved --apply",
                self.table
            ),
        }
    }

    /// The command that ends it, and the one that helps if a cluster is gone.
    pub fn ways(&self) -> String {
        format!(
            "{}; if a cluster or the table there is gone for good, meta-proxy route finish {} --forget tells what stands, and \
             forgets the move",
            self.way_on(),
            self.table
        )
    }

    fn bytes(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    fn read(place: &str, bytes: &[u8]) -> Result<Self, Fault> {
        let journal: Journal = serde_json::from_slice(bytes)
            .map_err(|e| Fault::failed(format!("{place}: want a move's journal, got {e}")))?;
        match journal.form {
            FORM => Ok(journal),
            other => Err(Fault::failed(format!("{place}: want form {FORM}, got {other}"))),
        }
    }
}

/// A journal and its version. `Err`: nobody can read it.
pub type Read = Result<(Journal, i32), Fault>;
/// A table and the journal of its move. `Err`: nobody can read it.
pub type Listed = (String, Result<Journal, Fault>);

/// Where the journal of a table is. Each change names the version that was read, so that two runs of one move never write
/// over each other. A file is one host's and has no versions.
pub enum Keeper {
    Znode(Control, String),
    File(PathBuf),
}

impl Keeper {
    pub fn of(store: &Store, table: &str) -> Self {
        match Control::of(store) {
            Some(control) => {
                let path = control.below(&format!("{MOVES}/{table}"));
                Keeper::Znode(control, path)
            }
            None => {
                let file = PathBuf::from(format!("route-move-{table}.json"));
                Keeper::File(std::path::absolute(&file).unwrap_or(file))
            }
        }
    }

    /// Its path.
    pub fn place(&self) -> String {
        match self {
            Keeper::Znode(_, path) => path.clone(),
            Keeper::File(path) => path.display().to_string(),
        }
    }

    /// `None`: there is none.
    pub fn read(&self, store: &mut Store) -> Result<Option<Read>, Fault> {
        let found = match self {
            Keeper::Znode(_, path) => match store.session().request(get(path)) {
                Ok(Answer::Data(data, stat)) => Some((data, stat.version)),
                Ok(other) => return Err(self.failed(format!("{other:?}"))),
                Err(Failed::Code(Code::NO_NODE)) => None,
                // A retry would fail the same way.
                Err(Failed::Code(code)) => return Ok(Some(Err(self.failed(code)))),
                Err(e) => return Err(self.failed(e)),
            },
            Keeper::File(path) => match fs::read(path) {
                Ok(bytes) => Some((bytes, FILE_VERSION)),
                Err(e) if e.kind() == ErrorKind::NotFound => None,
                Err(e) => return Err(self.failed(e)),
            },
        };
        let read = |(bytes, version): (Vec<u8>, i32)| {
            Journal::read(&self.place(), &bytes).map(|journal| (journal, version))
        };
        Ok(found.map(read))
    }

    /// Reads the journal. A journal that nobody can read is a fault.
    pub fn must_read(
        &self,
        store: &mut Store,
        table: &str,
    ) -> Result<Option<(Journal, i32)>, Fault> {
        self.read(store)?.transpose().map_err(|fault| {
            Fault::failed(format!(
                "{}; meta-proxy route finish {table} --forget --apply deletes it, and route verify tells what stands",
                fault.why
            ))
        })
    }

    /// Creates the journal and returns its version. Fails if one exists.
    pub fn create(&self, store: &mut Store, journal: &Journal) -> Result<i32, Fault> {
        match self {
            Keeper::Znode(control, path) => {
                control.create(store, path, journal.bytes()).map_err(|e| self.failed(e))?;
                Ok(0)
            }
            Keeper::File(path) => {
                let made = write_beside(path, journal).and_then(|new| {
                    // A link fails if the name exists, and never shows half a file.
                    let linked = fs::hard_link(&new, path);
                    fs::remove_file(&new)?;
                    linked?;
                    sync_folder(path)
                });
                made.map(|()| FILE_VERSION).map_err(|e| self.failed(e))
            }
        }
    }

    /// Replaces this version of the journal, and returns the new version. The journal is on the disk then.
    pub fn put(&self, store: &mut Store, journal: &Journal, version: i32) -> Result<i32, Fault> {
        match self {
            Keeper::Znode(_, path) => Ok(store.set(path, journal.bytes(), version)?.version),
            Keeper::File(path) => {
                let put = write_beside(path, journal).and_then(|new| {
                    fs::rename(&new, path)?;
                    sync_folder(path)
                });
                put.map(|()| FILE_VERSION).map_err(|e| self.failed(e))
            }
        }
    }

    /// Deletes this version of the journal. A journal that does not exist is no fault.
    pub fn delete(&self, store: &mut Store, version: i32) -> Result<(), Fault> {
        match self {
            Keeper::Znode(_, path) => store.delete(path, version),
            Keeper::File(path) => match fs::remove_file(path) {
                Err(e) if e.kind() != ErrorKind::NotFound => Err(self.failed(e)),
                _ => Ok(()),
            },
        }
    }

    fn failed(&self, why: impl fmt::Display) -> Fault {
        Fault::failed(format!("{}: {why}", self.place()))
    }
}

/// Writes the journal to a file beside it, to the disk.
fn write_beside(path: &Path, journal: &Journal) -> io::Result<PathBuf> {
    let new = path.with_extension("json.new");
    let mut file = File::create(&new)?;
    file.write_all(&journal.bytes())?;
    file.sync_all()?;
    Ok(new)
}

/// Writes a folder to the disk, and with it a new name in it.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn get(path: &str) -> Op {
    Op::GetData { path: path.to_owned(), watch: false }
}

/// The moves below the control znode.
pub fn all(store: &mut Store) -> Result<Vec<Listed>, Fault> {
    let Some(control) = Control::of(store) else { return Ok(Vec::new()) };
    let tables = store.children(&control.below(MOVES))?.unwrap_or_default();
    let mut found = Vec::with_capacity(tables.len());
    for table in tables {
        if let Some(read) = Keeper::of(store, &table).read(store)? {
            found.push((table, read.map(|(journal, _)| journal)));
        }
    }
    Ok(found)
}
