//! Whether an absence is believed. Pure: what was seen and the time come in, a decision comes out.
//!
//! ```text
//! the root is ─┬─ the one whose routes are cached ──▶ its tables are followed
//!              └─ missing, another, or older ───────▶ ROOT HELD: nothing of it is used
//!                                                       └─ until the root is back, or an operator accepts
//! a table is absent ─┬─ few are within a minute ────▶ gone; its route is kept aside for that minute
//!                    └─ many are ───────────────────▶ TABLES HELD: what is aside returns; records are followed,
//!                                                     absences are not
//!                                                       └─ until all of them are back, or an operator accepts
//! ```
//! `zk-watch` owns it, by way of `zk::meaning`. It holds at most what the cache held a minute ago. No time ends a hold:
//! while it lasts, clients are served what was known before it, and an operator is told.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Tables that go within this time are judged together, and return together.
pub const WINDOW: Duration = Duration::from_secs(60);
/// This many tables may go within [`WINDOW`], whatever their share is.
const FEW: usize = 10;
/// One table in this many may go within [`WINDOW`].
const SHARE: usize = 5;

/// The identity of a root: zxid and time of its creation tell it from another one at the same path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// zxid of its creation.
    pub czxid: i64,
    /// Time of its creation, ms since 1970.
    pub ctime_ms: i64,
}

/// The root as a server of ZooKeeper shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is not there.
    Missing,
    /// It is there. `is_older`: ZooKeeper has forgotten changes that were seen before.
    There { identity: Identity, is_older: bool },
}

/// Why routes are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The root is missing.
    RootMissing,
    /// There is another root at the same path.
    RootForeign,
    /// ZooKeeper has forgotten changes that were seen before.
    RootOlder,
    /// Too many tables went within a minute.
    TablesGone,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] =
        [Kind::RootMissing, Kind::RootForeign, Kind::RootOlder, Kind::TablesGone];

    /// Its name in metrics and pages.
    pub fn label(self) -> &'static str {
        match self {
            Kind::RootMissing => "root_missing",
            Kind::RootForeign => "root_foreign",
            Kind::RootOlder => "root_older",
            Kind::TablesGone => "tables_gone",
        }
    }

    /// Whether nothing below the root is used.
    pub fn is_of_root(self) -> bool {
        self != Kind::TablesGone
    }
}

/// A hold as an operator sees it. To accept it, he names the root's czxid and the number of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Why routes are held.
    pub kind: Kind,
    /// When that began.
    pub since: Instant,
    /// The root as it is now; `None`: it is missing.
    pub root: Option<Identity>,
    /// Cached tables that an accept takes away.
    pub gone: usize,
}

impl Shown {
    /// The root's czxid; 0 if the root is missing.
    pub fn czxid(&self) -> i64 {
        self.root.map_or(0, |root| root.czxid)
    }
}

/// A view for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The root whose routes are cached, as far as it is known.
    pub known: Option<Identity>,
    /// The hold, if there is one.
    pub shown: Option<Shown>,
    /// There is no root, whether or not routes are held because of it.
    pub is_rootless: bool,
}

/// The meaning of a table's absence.
#[derive(Debug, PartialEq, Eq)]
pub enum Absence<T> {
    /// The table is gone.
    Gone,
    /// Its route serves on. These tables return: they went shortly before, and the hold begins now.
    Held(Vec<(Box<str>, T)>),
}

/// Why an accept is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing is held.
    NotHeld,
    /// It is not what is held now.
    Changed(Shown),
}

struct RootHold {
    kind: Kind,
    since: Instant,
    seen: Option<Identity>,
    /// Cached tables that an accept takes away: all of them, as long as they were not looked for below this root.
    gone: usize,
    /// Those that were looked for and are not below it.
    absent: Option<Vec<Box<str>>>,
}

struct TablesHold {
    since: Instant,
    gone: HashSet<Box<str>>,
}

struct Aside<T> {
    table: Box<str>,
    value: T,
    went: Instant,
}

/// Holds and what may have to be held. `T` is what is cached of a table.
pub struct Hold<T> {
    is_on: bool,
    known: Option<Identity>,
    /// With an unknown root: the oldest change that is cached. A root that was created later never had it.
    oldest_zxid: Option<i64>,
    is_rootless: bool,
    root: Option<RootHold>,
    tables: Option<TablesHold>,
    /// Tables that went within [`WINDOW`], in their order.
    aside: VecDeque<Aside<T>>,
    /// Tables that may go: somebody said so.
    expected: HashSet<Box<str>>,
}

impl<T> Hold<T> {
    /// For routes that were cached from the root `known`, or if that is not known, whose oldest change is `oldest_zxid`.
    /// With `is_on` false every absence is believed.
    pub fn new(is_on: bool, known: Option<Identity>, oldest_zxid: Option<i64>) -> Self {
        Hold {
            is_on,
            known,
            oldest_zxid,
            is_rootless: false,
            root: None,
            tables: None,
            aside: VecDeque::new(),
            expected: HashSet::new(),
        }
    }

    /// Goes on with a hold of an earlier process: these tables were held.
    pub fn restore(&mut self, gone: impl IntoIterator<Item = Box<str>>, now: Instant) {
        let gone: HashSet<Box<str>> = gone.into_iter().collect();
        if self.is_on && !gone.is_empty() {
            self.tables = Some(TablesHold { since: now, gone });
        }
    }

    /// Whether it ever holds anything.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// From now on it holds, or believes every absence; nothing is held then.
    pub fn set_on(&mut self, is_on: bool) {
        self.is_on = is_on;
    }

    /// How it stands.
    pub fn view(&self) -> View {
        View { known: self.known, shown: self.shown(), is_rootless: self.is_rootless }
    }

    fn shown(&self) -> Option<Shown> {
        if let Some(RootHold { kind, since, seen, gone, .. }) = self.root {
            return Some(Shown { kind, since, root: seen, gone });
        }
        let TablesHold { since, gone } = self.tables.as_ref()?;
        let (since, root, gone) = (*since, self.known, gone.len());
        Some(Shown { kind: Kind::TablesGone, since, root, gone })
    }

    /// Whether nothing below the root is used: it is held, or there is none.
    pub fn is_blind(&self) -> bool {
        self.root.is_some() || (self.is_on && self.is_rootless)
    }

    /// Whether absences are not believed, of no table.
    pub fn is_holding(&self) -> bool {
        self.root.is_some() || self.tables.is_some() || self.is_rootless
    }

    /// Whether this is the root whose routes are cached, or none is known.
    pub fn may_be(&self, identity: Identity) -> bool {
        self.known.is_none_or(|known| known == identity)
    }

    /// A server shows the root, while `cached` tables are cached. If a hold begins, returns the tables that went shortly
    /// before.
    pub fn see_root(&mut self, seen: Seen, cached: usize, now: Instant) -> Vec<(Box<str>, T)> {
        self.is_rootless = seen == Seen::Missing;
        let (kind, seen) = match seen {
            // Nothing was ever known of any root.
            Seen::Missing if self.known.is_none() && cached == 0 => return Vec::new(),
            Seen::Missing => (Some(Kind::RootMissing), None),
            Seen::There { identity, is_older } => {
                let never_had = |zxid: i64| zxid < identity.czxid;
                let is_foreign = match self.known {
                    Some(known) => known != identity,
                    None => self.oldest_zxid.is_some_and(never_had),
                };
                let kind = match (is_foreign, is_older) {
                    (true, _) => Some(Kind::RootForeign),
                    (false, true) => Some(Kind::RootOlder),
                    (false, false) => None,
                };
                (kind, Some(identity))
            }
        };
        let Some(kind) = kind.filter(|_| self.is_on) else {
            self.root = None;
            if seen.is_some() {
                (self.known, self.oldest_zxid) = (seen, None);
            }
            return Vec::new();
        };
        let back = match self.root {
            Some(_) => Vec::new(),
            None => self.take_aside(now),
        };
        let gone = cached + back.len();
        match &self.root {
            Some(held) if (held.kind, held.seen) == (kind, seen) => {}
            held => {
                let since = held.as_ref().map_or(now, |held| held.since);
                self.root = Some(RootHold { kind, since, seen, gone, absent: None });
            }
        }
        back
    }

    /// Notes which of the cached tables are not below the root that is held.
    pub fn note_absent(&mut self, absent: Vec<Box<str>>) {
        if let Some(held) = &mut self.root {
            (held.gone, held.absent) = (absent.len(), Some(absent));
        }
    }

    /// A cached table is absent, while the root is the one that is known. `cached` counts it, and `value` is what is
    /// cached of it.
    pub fn absent(&mut self, table: &str, value: T, cached: usize, now: Instant) -> Absence<T> {
        if !self.is_on || self.expected.remove(table) {
            self.return_one(table);
            return Absence::Gone;
        }
        if self.root.is_some() {
            return Absence::Held(Vec::new());
        }
        if let Some(held) = &mut self.tables {
            held.gone.insert(table.into());
            return Absence::Held(Vec::new());
        }
        self.forget_old(now);
        let (gone, before) = (self.aside.len() + 1, self.aside.len() + cached);
        let is_much = gone > FEW && gone * SHARE > before;
        let is_all = gone == before && before > 1;
        if !is_much && !is_all {
            self.aside.push_back(Aside { table: table.into(), value, went: now });
            return Absence::Gone;
        }
        let back = self.take_aside(now);
        let names = back.iter().map(|(table, _)| table.clone()).chain([table.into()]);
        self.tables = Some(TablesHold { since: now, gone: names.collect() });
        Absence::Held(back)
    }

    /// A table has a record, below the root that is known.
    pub fn present(&mut self, table: &str) {
        self.expected.remove(table);
        self.aside.retain(|aside| *aside.table != *table);
        self.return_one(table);
    }

    /// Returns the held tables that are in the list of all names: they are there again.
    pub fn found_among(&mut self, is_name: impl Fn(&str) -> bool) -> Vec<Box<str>> {
        self.aside.retain(|aside| !is_name(&aside.table));
        let held = self.tables.iter().flat_map(|held| &held.gone);
        held.filter(|table| is_name(table)).cloned().collect()
    }

    /// Whether the absence of this very table is held.
    pub fn holds(&self, table: &str) -> bool {
        self.tables.as_ref().is_some_and(|held| held.gone.contains(table))
    }

    /// Forgets held tables that are not cached any more.
    pub fn keep(&mut self, is_cached: impl Fn(&str) -> bool) {
        self.expected.retain(|table| is_cached(table));
        if let Some(held) = &mut self.tables {
            held.gone.retain(|table| is_cached(table));
        }
        self.end_if_empty();
    }

    /// An operator says that this table may go.
    pub fn expect_gone(&mut self, table: Box<str>) {
        self.expected.insert(table);
    }

    /// An operator names another ZooKeeper: whatever root it has is taken, and these cached tables may go.
    pub fn start_anew(&mut self, cached: Vec<Box<str>>) {
        (self.known, self.oldest_zxid, self.root, self.tables) = (None, None, None, None);
        self.is_rootless = false;
        self.aside.clear();
        self.expected = cached.into_iter().collect();
    }

    /// An operator accepts what he was shown: a root's czxid, 0 for a missing one, and a number of tables. From then on
    /// that root is the one that is known, and the tables that are held, or not below it, may go; `all` that are cached may
    /// if nobody knows which these are.
    pub fn accept(
        &mut self,
        czxid: i64,
        gone: usize,
        all: Vec<Box<str>>,
    ) -> Result<Shown, Refusal> {
        let shown = self.shown().ok_or(Refusal::NotHeld)?;
        if (shown.czxid(), shown.gone) != (czxid, gone) {
            return Err(Refusal::Changed(shown));
        }
        let tables = self.tables.take().into_iter().flat_map(|held| held.gone);
        self.expected.extend(tables);
        if let Some(held) = self.root.take() {
            (self.known, self.oldest_zxid) = (shown.root, None);
            if shown.root.is_some() {
                self.expected.extend(held.absent.unwrap_or(all));
            }
        }
        self.aside.clear();
        Ok(shown)
    }

    fn take_aside(&mut self, now: Instant) -> Vec<(Box<str>, T)> {
        self.forget_old(now);
        self.aside.drain(..).map(|aside| (aside.table, aside.value)).collect()
    }

    fn forget_old(&mut self, now: Instant) {
        while self.aside.front().is_some_and(|aside| aside.went + WINDOW <= now) {
            self.aside.pop_front();
        }
    }

    fn return_one(&mut self, table: &str) {
        if let Some(held) = &mut self.tables {
            held.gone.remove(table);
        }
        self.end_if_empty();
    }

    fn end_if_empty(&mut self) {
        if self.tables.as_ref().is_some_and(|held| held.gone.is_empty()) {
            self.tables = None;
        }
    }
}

#[cfg(test)]
mod tests;
