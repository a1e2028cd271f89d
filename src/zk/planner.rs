//! The next read of `zk-watch`. Pure: events and time come in, actions come out.
//!
//! ```text
//!             up: root, then SetWatches for all whose watch stood
//!   DOWN ─────────────────────────────────────────────▶ LIVE: heartbeat, changes, misses, first reads, sweep
//!    ▲                                                     │
//!    └── down: what had fired or was being read is kept ◀──┘
//! ```
//! A znode whose watch stood when the connection was cut is not read again: the server tells which changed since. That
//! covers neither a znode whose watch had fired already nor one that was being read, so those stay in the plan over a cut.
//! The first heartbeat of a connection shows the root's identity and age; nothing else is asked before it is answered.
//! The order of reads: znodes whose watch reported a change, then by turns what queries wait for and what was never read yet, busiest
//! tables first, then the sweep, which reads all tables slowly and without end, because a watch may be lost.
//!
//! The list of names is long, so it is paced: the longer it is, the longer it is not read again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::mem;
use std::time::{Duration, Instant};

use super::codec::{LEN_BYTES, MAX_SET_WATCHES_BYTES};
use super::read::What;
use crate::mutant;
use crate::spread::Spread;

/// Reads at once. Their requests share one connection, so it is the round trip that limits them.
pub const MAX_READS: usize = 64;
/// Time between heartbeats.
const BEAT: Duration = Duration::from_secs(1);
/// The sweep: at most 20 reads a second.
const SWEEP_STEP: Duration = Duration::from_millis(50);
/// And no round faster than this, give or take a fifth.
const SWEEP_ROUND: Duration = Duration::from_secs(30);
/// The list of names is not read again for so long per name: 10,000 of them cost some 60 KB/s at most.
const NAMES_PAUSE_PER_NAME: Duration = Duration::from_micros(500);
/// But for so long at least.
const MIN_NAMES_PAUSE: Duration = Duration::from_millis(50);
/// And no longer than this.
const MAX_NAMES_PAUSE: Duration = Duration::from_secs(60);

/// The next action.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Read this.
    Read(What),
    /// Set the watches of these again, which were read before.
    SetWatches(Vec<What>),
    /// Say which tables are cached: a round of the sweep begins.
    StartSweep,
    /// All routes that were cached when the connection came are confirmed; it took so long.
    AllConfirmed(Duration),
}

/// The meaning of a finished read for the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// The answer was taken.
    #[default]
    Settled,
    /// It was of no use, and no watch tells when it will be: read again after this time.
    Again(Duration),
    /// It names a cluster whose record is to be read.
    Waits,
    /// The root is not the one whose routes are cached: nothing below it is worth a read.
    Held,
}

struct Reading {
    /// It changed while being read.
    again: bool,
    /// To be cached even if it is not: queries wait for it, or all tables are to be cached.
    is_wanted: bool,
}

/// The plan, owned by `zk-watch`.
pub struct Planner {
    /// Since when there is a connection.
    live_since: Option<Instant>,
    parent_bytes: usize,
    reading: HashMap<What, Reading>,
    changes: VecDeque<What>,
    misses: VecDeque<Box<str>>,
    /// Tables that queries wait for, until they are served: what was read of one may be lost with its connection, or wait
    /// for another read.
    waited_for: HashSet<Box<str>>,
    is_turn_of_misses: bool,
    /// When to read again what could not be read well.
    later: HashMap<What, Instant>,
    /// Cached tables that no read has confirmed since they were cached: they have no watch.
    unread: HashSet<Box<str>>,
    first_reads: VecDeque<Box<str>>,
    /// Watches to be set again.
    resets: VecDeque<What>,
    resetting: usize,
    preload: VecDeque<Box<str>>,
    unconfirmed: HashSet<Box<str>>,
    confirmed: Option<Duration>,
    /// The last heartbeat of the connection has found the root whose routes are cached.
    is_greeted: bool,
    is_root_changed: bool,
    beat_at: Instant,
    /// The names are to be read, but not before a time.
    are_names_due: bool,
    names_at: Instant,
    sweep: VecDeque<Box<str>>,
    sweep_at: Instant,
    sweep_round_at: Instant,
    spread: Spread,
}

impl Planner {
    /// Without a connection. `seed` spreads many proxies that do the same at the same time. Paths of tables and clusters
    /// are at most `parent_bytes` longer than their names.
    pub fn new(now: Instant, seed: u64, parent_bytes: usize) -> Self {
        Planner {
            parent_bytes,
            live_since: None,
            reading: HashMap::new(),
            changes: VecDeque::new(),
            misses: VecDeque::new(),
            waited_for: HashSet::new(),
            is_turn_of_misses: false,
            later: HashMap::new(),
            unread: HashSet::new(),
            first_reads: VecDeque::new(),
            resets: VecDeque::new(),
            resetting: 0,
            preload: VecDeque::new(),
            unconfirmed: HashSet::new(),
            confirmed: None,
            is_greeted: false,
            is_root_changed: false,
            beat_at: now,
            are_names_due: false,
            names_at: now,
            sweep: VecDeque::new(),
            sweep_at: now,
            sweep_round_at: now,
            spread: Spread::new(seed),
        }
    }

    /// Paths of tables and clusters are from now on at most so much longer than their names.
    pub fn set_parent_bytes(&mut self, parent_bytes: usize) {
        self.parent_bytes = parent_bytes;
    }

    /// These tables are cached, and no watch of theirs stands: each is to be read.
    pub fn distrust(&mut self, cached: Vec<Box<str>>) {
        self.unread = cached.into_iter().collect();
    }

    /// There is a connection. `cached` is to be confirmed, in this order: by its watch that is set again, or by a read.
    /// So are the watches of the `others`.
    pub fn up(&mut self, cached: Vec<Box<str>>, others: Vec<What>, now: Instant) {
        self.live_since = Some(now);
        self.unconfirmed = cached.iter().cloned().collect();
        // Nothing tells whether that has changed.
        let later = mem::take(&mut self.later);
        self.changes.extend(later.into_keys());
        let planned: HashSet<&What> = self.changes.iter().collect();
        let (unread, watched): (Vec<_>, Vec<_>) =
            cached.into_iter().partition(|table| self.unread.contains(table));
        let watched = watched.into_iter().map(What::Table).chain(others);
        self.resets = watched.filter(|what| !planned.contains(what)).collect();
        if mutant::is("sets-no-watches-again") {
            self.resets.clear();
        }
        self.first_reads = unread.into();
        let mut lost = self.waited_for.clone();
        for table in &self.misses {
            lost.remove(table);
        }
        self.misses.extend(lost);
        (self.is_greeted, self.is_root_changed) = (false, false);
        self.beat_at = now;
        self.sweep_round_at = now + self.spread.around(SWEEP_ROUND);
        self.note_confirmed(now);
    }

    /// All of these are to be read again, in this order: the root is the right one, and was not.
    pub fn confirm_again(&mut self, cached: Vec<Box<str>>, now: Instant) {
        self.unread = cached.iter().cloned().collect();
        self.resets.clear();
        if let Some(since) = &mut self.live_since {
            *since = now;
            self.unconfirmed = self.unread.clone();
            self.first_reads = cached.into();
            self.note_confirmed(now);
        }
    }

    /// The connection is gone. Znodes whose watch had fired, and those that were being read, are read over the next one.
    pub fn down(&mut self) {
        self.live_since = None;
        if mutant::is("forgets-what-fired") {
            self.reading.clear();
            self.changes.clear();
        }
        for (what, _) in self.reading.drain() {
            match what {
                What::Root => {} // the next connection begins with it
                What::Names => self.are_names_due = true,
                What::Table(table) if self.waited_for.contains(&table) => {} // `up` plans its read
                what => self.changes.push_front(what),
            }
        }
        self.resets.clear();
        self.resetting = 0;
        self.first_reads.clear();
        self.preload.clear();
        self.sweep.clear();
        self.confirmed = None;
    }

    /// Whether watches of a connection that is gone are being set again.
    pub fn is_resetting(&self) -> bool {
        self.resetting > 0 || !self.resets.is_empty()
    }

    /// Queries wait for a table that is not cached.
    pub fn miss(&mut self, table: &str) {
        self.waited_for.insert(table.into());
        self.misses.push_back(table.into());
    }

    /// Queries wait for this table no more.
    pub fn served(&mut self, table: &str) {
        self.waited_for.remove(table);
    }

    /// Forgets the misses that nobody waits for any more.
    pub fn keep_misses(&mut self, is_waited_for: impl Fn(&str) -> bool) {
        self.misses.retain(|table| is_waited_for(table));
        self.waited_for.retain(|table| is_waited_for(table));
    }

    /// This is to be read: a watch told that it changed, or what was read says so.
    pub fn changed(&mut self, what: What) {
        match what {
            What::Names => self.are_names_due = true,
            What::Root => self.is_root_changed = true,
            what => self.changes.push_back(what),
        }
    }

    /// Whether it is being read.
    pub fn reads(&self, what: &What) -> bool {
        self.reading.contains_key(what)
    }

    /// Whether what is being read is to be cached even if it is not.
    pub fn wants(&self, what: &What) -> bool {
        self.reading.get(what).is_some_and(|reading| reading.is_wanted)
    }

    /// The number of names in the list that was read.
    pub fn names_read(&mut self, count: usize, now: Instant) {
        let pause = NAMES_PAUSE_PER_NAME.saturating_mul(count.try_into().unwrap_or(u32::MAX));
        self.names_at = now + pause.clamp(MIN_NAMES_PAUSE, MAX_NAMES_PAUSE);
    }

    /// A read ended. False: it changed meanwhile, so that the answer says little.
    pub fn done(&mut self, what: What, verdict: Verdict, now: Instant) -> bool {
        if what == What::Root {
            self.is_greeted = verdict != Verdict::Held;
        }
        let reading = self.reading.remove(&what);
        let again = reading.as_ref().is_some_and(|reading| reading.again);
        let is_wanted = reading.is_some_and(|reading| reading.is_wanted);
        if let What::Table(table) = &what {
            self.unread.remove(table);
            if !again && !matches!(verdict, Verdict::Waits | Verdict::Held) {
                self.confirmed(table, now);
            }
        }
        match verdict {
            // Queries that wait for it still do.
            _ if again
                && is_wanted
                && let What::Table(table) = what =>
            {
                self.misses.push_front(table)
            }
            _ if again => self.changed(what),
            Verdict::Again(after) => drop(self.later.insert(what, now + after)),
            // The root was missing when this was read, and may be back when it is looked at.
            Verdict::Held
                if let What::Table(table) = what
                    && self.waited_for.contains(&table) =>
            {
                self.misses.push_back(table)
            }
            Verdict::Settled | Verdict::Waits | Verdict::Held => {}
        }
        !again
    }

    /// These watches stand again, and those that have not fired had nothing to tell. Returns the latter.
    pub fn watches_set(&mut self, mut set: Vec<What>) -> Vec<What> {
        self.resetting = self.resetting.saturating_sub(1);
        let fired: HashSet<&What> = self.changes.iter().chain(self.reading.keys()).collect();
        set.retain(|what| !fired.contains(what));
        set
    }

    /// All that can be known of a table is known.
    pub fn confirmed(&mut self, table: &str, now: Instant) {
        if self.unconfirmed.remove(table) {
            self.note_confirmed(now);
        }
    }

    fn note_confirmed(&mut self, now: Instant) {
        if let Some(since) = self.live_since
            && self.unconfirmed.is_empty()
        {
            self.confirmed = Some(now - since);
        }
    }

    /// Tables that nobody has asked for yet, to be read when there is nothing else to do.
    pub fn preload(&mut self, tables: Vec<Box<str>>) {
        self.preload = tables.into();
    }

    /// The tables of a round of the sweep.
    pub fn sweep(&mut self, tables: Vec<Box<str>>) {
        self.sweep = tables.into();
    }

    /// Returns the next action; ask again until there is none.
    pub fn next_action(&mut self, now: Instant) -> Option<Action> {
        self.live_since?;
        if self.reading.len() + self.resetting >= self.max_reads() {
            return None;
        }
        if self.is_greeted
            && let Some(took) = self.confirmed.take()
        {
            return Some(Action::AllConfirmed(took));
        }
        if self.beat_at <= now && !self.reads(&What::Root) {
            self.beat_at = now + BEAT;
            return Some(self.start(What::Root, false));
        }
        if !self.is_greeted {
            return self.next_of_root(now);
        }
        if let Some(chunk) = self.next_resets() {
            return Some(Action::SetWatches(chunk));
        }
        if self.sweep.is_empty() && self.sweep_round_at <= now {
            self.sweep_round_at = now + self.spread.around(SWEEP_ROUND);
            return Some(Action::StartSweep);
        }
        if self.are_names_due && self.names_at <= now {
            self.are_names_due = false;
            self.changes.push_back(What::Names);
        }
        if mem::take(&mut self.is_root_changed) {
            self.changes.push_front(What::Root);
        }
        while let Some(what) = self.changes.pop_front() {
            match self.reading.get_mut(&what) {
                Some(reading) => reading.again = true,
                None => return Some(self.start(what, false)),
            }
        }
        while let Some((what, is_wanted)) = self.next_refresh(now) {
            match self.reading.get_mut(&what) {
                Some(reading) => reading.is_wanted |= is_wanted,
                None => return Some(self.start(what, is_wanted)),
            }
        }
        None
    }

    /// Without the right root only what tells of it is read.
    fn next_of_root(&mut self, now: Instant) -> Option<Action> {
        if mem::take(&mut self.is_root_changed) {
            return Some(self.start(What::Root, false));
        }
        if self.are_names_due && self.names_at <= now {
            self.are_names_due = false;
            return Some(self.start(What::Names, false));
        }
        None
    }

    /// As many watches as one request takes.
    fn next_resets(&mut self) -> Option<Vec<What>> {
        let mut bytes = 0;
        let fits = |what: &&What| {
            let name_bytes = match what {
                What::Root | What::Names => 0,
                What::Table(name) | What::Cluster(name) => name.len(),
            };
            bytes += LEN_BYTES + self.parent_bytes + name_bytes;
            bytes <= MAX_SET_WATCHES_BYTES
        };
        let count = self.resets.iter().take_while(fits).count();
        self.resetting += usize::from(count > 0);
        (count > 0).then(|| self.resets.drain(..count).collect())
    }

    /// And whether it is to be cached even if it is not.
    fn next_refresh(&mut self, now: Instant) -> Option<(What, bool)> {
        // Reads take turns, so that a client that always asks for new names keeps no route from being confirmed.
        self.is_turn_of_misses = !self.is_turn_of_misses;
        if self.is_turn_of_misses
            && let Some(table) = self.misses.pop_front()
        {
            return Some((What::Table(table), true));
        }
        while let Some(table) = self.first_reads.pop_front() {
            if self.unread.contains(&table) {
                return Some((What::Table(table), false));
            }
        }
        if let Some(table) = self.misses.pop_front() {
            return Some((What::Table(table), true));
        }
        if let Some(what) = self.later.iter().find(|(_, at)| **at <= now).map(|(what, _)| what) {
            let what = what.clone();
            self.later.remove(&what);
            return Some((what, false));
        }
        if let Some(table) = self.preload.pop_front() {
            return Some((What::Table(table), true));
        }
        if self.sweep_at <= now
            && let Some(table) = self.sweep.pop_front()
        {
            self.sweep_at = now + SWEEP_STEP;
            return Some((What::Table(table), false));
        }
        None
    }

    fn start(&mut self, what: What, is_wanted: bool) -> Action {
        // The outcome of this read says whether there must be another.
        self.later.remove(&what);
        self.reading.insert(what.clone(), Reading { again: false, is_wanted });
        Action::Read(what)
    }

    /// A heartbeat tells what root this is. Nothing is read before it is answered.
    fn max_reads(&self) -> usize {
        if self.is_greeted { MAX_READS } else { 1 }
    }

    /// When there may be something to do although nothing happens; `None`: never.
    pub fn wake_at(&self) -> Option<Instant> {
        self.live_since?;
        // A read that is due and has no room waits for the end of another one, not for a time.
        let has_room = self.reading.len() + self.resetting < self.max_reads();
        has_room.then(|| self.next_read_at())
    }

    /// When the next read is due that is not due now.
    fn next_read_at(&self) -> Instant {
        let beat = (!self.reads(&What::Root)).then_some(self.beat_at);
        let names = self.are_names_due.then_some(self.names_at);
        if !self.is_greeted {
            return beat.into_iter().chain(names).min().unwrap_or(self.beat_at);
        }
        let sweep = if self.sweep.is_empty() { self.sweep_round_at } else { self.sweep_at };
        self.later.values().copied().chain(beat).chain(names).fold(sweep, Instant::min)
    }
}

#[cfg(test)]
mod tests;
