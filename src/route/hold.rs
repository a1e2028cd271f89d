//! Decides whether a missing root or table is a deletion. Pure: observations and the time come in, a decision comes
//! out.
//!
//! ```text
//! the root is ─┬─ the one whose routes are cached ──▶ its tables are followed
//!              └─ missing, another, or older ───────▶ ROOT HELD: the proxy uses nothing of it
//!                                                       └─ until the root is back, or an operator accepts
//! a table is absent ─┬─ few are within a minute ────▶ gone; a copy of its route is kept for that minute
//!                    └─ many are ───────────────────▶ TABLES HELD: the kept routes return; records are followed,
//!                                                     deletions are not
//!                                                       └─ until all of them are back, or an operator accepts
//! ```
//! `zk-watch` owns this value, by way of `zk::meaning`. It keeps at most the routes that the cache held a minute ago. A
//! hold has no time limit: while it lasts, clients are served the earlier routes, and an operator is told.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Tables that disappear within this time are judged together, and return together.
pub const WINDOW: Duration = Duration::from_secs(60);
/// This many tables may disappear within [`WINDOW`], whatever their share is.
const FEW: usize = 10;
/// One in this many tables may disappear within [`WINDOW`].
const SHARE: usize = 5;

/// The identity of a root: zxid and time of its creation distinguish it from another root at the same path.
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
    /// The root does not exist.
    Missing,
    /// The root exists. `is_older`: ZooKeeper has forgotten changes that the proxy had seen.
    There { identity: Identity, is_older: bool },
}

/// Why routes are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The root is missing.
    RootMissing,
    /// Another root is at the same path.
    RootForeign,
    /// ZooKeeper has forgotten changes that the proxy had seen.
    RootOlder,
    /// Too many tables disappeared within a minute.
    TablesGone,
}

impl Kind {
    pub const ALL: [Kind; 4] =
        [Kind::RootMissing, Kind::RootForeign, Kind::RootOlder, Kind::TablesGone];

    /// Name in metrics and pages.
    pub fn label(self) -> &'static str {
        match self {
            Kind::RootMissing => "root_missing",
            Kind::RootForeign => "root_foreign",
            Kind::RootOlder => "root_older",
            Kind::TablesGone => "tables_gone",
        }
    }

    /// Whether the proxy uses nothing below the root.
    pub fn is_of_root(self) -> bool {
        self != Kind::TablesGone
    }
}

/// A hold as the pages show it. To accept it, an operator names the root's czxid and the number of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Why routes are held.
    pub kind: Kind,
    /// When the hold began.
    pub since: Instant,
    /// The present root; `None`: the root is missing.
    pub root: Option<Identity>,
    /// Number of cached tables that an accept removes.
    pub gone: usize,
}

impl Shown {
    /// The root's czxid; 0 if the root is missing.
    pub fn czxid(&self) -> i64 {
        self.root.map_or(0, |root| root.czxid)
    }
}

/// A copy of the state for other threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The root whose routes are cached; `None`: not known.
    pub known: Option<Identity>,
    /// The hold, if there is one.
    pub shown: Option<Shown>,
    /// Whether there is no root, with or without a hold.
    pub is_rootless: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Absence<T> {
    /// The table is gone.
    Gone,
    /// The route stays. If the hold begins now, these tables return, because they disappeared shortly before.
    Held(Vec<(Box<str>, T)>),
}

/// Why an accept is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No routes are held.
    NotHeld,
    /// The accept does not match the present hold.
    Changed(Shown),
}

struct RootHold {
    kind: Kind,
    since: Instant,
    seen: Option<Identity>,
    /// Number of cached tables that an accept removes: all of them, as long as `zk-watch` has not looked for them below
    /// this root.
    gone: usize,
    /// The tables that `zk-watch` has looked for and that are not below this root.
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

/// The present hold, and recent absences that may begin one. `T` is the cached value of a table.
pub struct Hold<T> {
    is_on: bool,
    known: Option<Identity>,
    /// If the root is unknown: the oldest cached change. A root that was created later never had that route.
    oldest_zxid: Option<i64>,
    is_rootless: bool,
    root: Option<RootHold>,
    tables: Option<TablesHold>,
    /// Tables that disappeared within [`WINDOW`], in order.
    aside: VecDeque<Aside<T>>,
    /// Tables that may disappear, because an operator said so.
    expected: HashSet<Box<str>>,
}

impl<T> Hold<T> {
    /// The cached routes came from the root `known`; if it is unknown, `oldest_zxid` is their oldest change. If `is_on`
    /// is false, every absence is a deletion.
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

    /// Continues a hold of an earlier process: these tables were held.
    pub fn restore(&mut self, gone: impl IntoIterator<Item = Box<str>>, now: Instant) {
        let gone: HashSet<Box<str>> = gone.into_iter().collect();
        if self.is_on && !gone.is_empty() {
            self.tables = Some(TablesHold { since: now, gone });
        }
    }

    /// Whether holds are on.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Turns holds on or off. Off: every absence is a deletion, and a present hold ends.
    pub fn set_on(&mut self, is_on: bool) {
        self.is_on = is_on;
    }

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

    /// Whether the proxy uses nothing below the root, because the root is held or missing.
    pub fn is_blind(&self) -> bool {
        self.root.is_some() || (self.is_on && self.is_rootless)
    }

    /// Whether any hold is on, so that no absence is a deletion.
    pub fn is_holding(&self) -> bool {
        self.root.is_some() || self.tables.is_some() || self.is_rootless
    }

    /// Whether this may be the root whose routes are cached.
    pub fn may_be(&self, identity: Identity) -> bool {
        self.known.is_none_or(|known| known == identity)
    }

    /// Records what a server shows of the root, while `cached` tables are cached. If a hold begins, returns the tables
    /// that disappeared shortly before.
    pub fn see_root(&mut self, seen: Seen, cached: usize, now: Instant) -> Vec<(Box<str>, T)> {
        self.is_rootless = seen == Seen::Missing;
        let (kind, seen) = match seen {
            // The proxy has never known a root.
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

    /// Records which of the cached tables are not below the held root.
    pub fn note_absent(&mut self, absent: Vec<Box<str>>) {
        if let Some(held) = &mut self.root {
            (held.gone, held.absent) = (absent.len(), Some(absent));
        }
    }

    /// A cached table is absent below the known root. `cached` counts this table, too; `value` is its cached value.
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

    /// A table has a record below the known root.
    pub fn present(&mut self, table: &str) {
        self.expected.remove(table);
        self.aside.retain(|aside| *aside.table != *table);
        self.return_one(table);
    }

    /// Returns the held tables that are in the list of all names again.
    pub fn found_among(&mut self, is_name: impl Fn(&str) -> bool) -> Vec<Box<str>> {
        self.aside.retain(|aside| !is_name(&aside.table));
        let held = self.tables.iter().flat_map(|held| &held.gone);
        held.filter(|table| is_name(table)).cloned().collect()
    }

    /// Whether this table is held.
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

    /// An operator says that this table may disappear.
    pub fn expect_gone(&mut self, table: Box<str>) {
        self.expected.insert(table);
    }

    /// An operator names another ZooKeeper: accepts whatever root it has, and these cached tables may disappear.
    pub fn start_anew(&mut self, cached: Vec<Box<str>>) {
        (self.known, self.oldest_zxid, self.root, self.tables) = (None, None, None, None);
        self.is_rootless = false;
        self.aside.clear();
        self.expected = cached.into_iter().collect();
    }

    /// An operator accepts the hold that he was shown: a root's czxid, 0 for a missing root, and a number of tables.
    /// From then on that root is the known one, and the tables that are held or not below it may disappear. If it is
    /// not known which tables these are, all of `all` may.
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
