//! A move, written down before anything is changed: below the control znode, else in a file.
//!
//! ```text
//! moving ─▶ moved ─▶ (gone, when it is finished)
//!   └▶ back ─▶ (gone, when all is back)
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::logging::line::Utc;
use crate::ops::Fault;
use crate::ops::control::Control;
use crate::ops::plan::{Data, Znode};
use crate::ops::record::Place;
use crate::ops::store::Store;
use crate::zk::codec::Op;

/// The znode above the moves, below the control znode.
const MOVES: &str = "moves";
const FORM: u32 = 1;

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
    pub table: String,
    pub phase: Phase,
    pub from: Place,
    pub to: Place,
    /// The route, before and after.
    pub before: Data,
    pub after: Data,
    pub keeps_undo: bool,
    /// B->A was not there before.
    pub made_undo: bool,
    pub made: String,
    pub by: String,
    /// When writes were refused first, s since 1970.
    pub denied_at_s: Option<u64>,
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

    /// How it stands, for people.
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

    /// The command that ends it, behind `meta-proxy route`.
    pub fn way_on(&self) -> String {
        match self.phase {
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

/// Where the journal of a table is.
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
            None => Keeper::File(format!("route-move-{table}.json").into()),
        }
    }

    /// Its path.
    pub fn place(&self) -> String {
        match self {
            Keeper::Znode(_, path) => path.clone(),
            Keeper::File(path) => path.display().to_string(),
        }
    }

    pub fn read(&self, store: &mut Store) -> Result<Option<Journal>, Fault> {
        let bytes = match self {
            Keeper::Znode(_, path) => store.znode(path)?.map(|found| found.data),
            Keeper::File(path) => match fs::read(path) {
                Ok(bytes) => Some(bytes),
                Err(e) if e.kind() == ErrorKind::NotFound => None,
                Err(e) => return Err(Fault::failed(format!("{}: {e}", path.display()))),
            },
        };
        bytes.map(|bytes| Journal::read(&self.place(), &bytes)).transpose()
    }

    /// Fails if there is one already.
    pub fn create(&self, store: &mut Store, journal: &Journal) -> Result<(), Fault> {
        let failed = |e: String| Fault::failed(format!("{}: {e}", self.place()));
        match self {
            Keeper::Znode(control, path) => control
                .create(store, path, journal.bytes())
                .map(drop)
                .map_err(|e| failed(e.to_string())),
            Keeper::File(path) => {
                let created = OpenOptions::new().write(true).create_new(true).open(path);
                created
                    .and_then(|mut file| {
                        file.write_all(&journal.bytes())?;
                        file.sync_all()
                    })
                    .and_then(|()| sync_folder(path))
                    .map_err(|e| failed(e.to_string()))
            }
        }
    }

    /// Writes it anew. It is on the disk when this returns.
    pub fn put(&self, store: &mut Store, journal: &Journal) -> Result<(), Fault> {
        let failed = |e: String| Fault::failed(format!("{}: {e}", self.place()));
        match self {
            Keeper::Znode(_, path) => {
                let data = journal.bytes();
                let op = Op::SetData { path: path.clone(), data, version: -1 };
                store.session().request(op).map(drop).map_err(|e| failed(e.to_string()))
            }
            Keeper::File(path) => {
                let new = path.with_extension("json.new");
                let written = File::create(&new).and_then(|mut file| {
                    file.write_all(&journal.bytes())?;
                    file.sync_all()?;
                    fs::rename(&new, path)?;
                    sync_folder(path)
                });
                written.map_err(|e| failed(e.to_string()))
            }
        }
    }

    /// The move is over.
    pub fn delete(&self, store: &mut Store) -> Result<(), Fault> {
        let failed = |e: String| Fault::failed(format!("{}: {e}", self.place()));
        match self {
            Keeper::Znode(_, path) => store.delete(path),
            Keeper::File(path) => match fs::remove_file(path) {
                Err(e) if e.kind() != ErrorKind::NotFound => Err(failed(e.to_string())),
                _ => Ok(()),
            },
        }
    }
}

/// A rename or a new name is on the disk with its folder.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// All moves below the control znode.
pub fn all(store: &mut Store) -> Result<Vec<Journal>, Fault> {
    let Some(control) = Control::of(store) else { return Ok(Vec::new()) };
    let parent = control.below(MOVES);
    let moves = store.below(&parent)?.unwrap_or_default();
    let read =
        |(name, znode): &(String, Znode)| Journal::read(&format!("{parent}/{name}"), &znode.data);
    moves.iter().map(read).collect()
}
