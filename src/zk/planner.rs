//! What `zk-watch` does next: when to dial, what to read, when to give a client up. Pure: events and time come
//! in, actions come out.
//!
//! ```text
//!            dial due              dialed
//!   DOWN ───────────────▶ DIALING ─────────▶ LIVE: every cached route is read again
//!    ▲ ▲                     │                │    heartbeat, changes, misses, re-reads, sweep
//!    │ └──── failed, late ───┘                │
//!    └───── any doubt: a late or failed read, a state, a watcher gone
//! ```
//! The first heartbeat shows whether the server lags, so nothing is read before it is answered.
//! In doubt a client is given up, never repaired: watches may have been lost, and only reading everything
//! again shows what changed. What is read first: what a watch told of, then by turns what queries wait for and what is
//! to be confirmed, busiest tables first, then the sweep, which reads all tables slowly for ever because
//! no watch is to be trusted blindly.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::client::{MAX_READS, What};

/// Time between heartbeats.
const BEAT: Duration = Duration::from_secs(1);
/// A read that takes longer has lost its client.
const READ_LIMIT: Duration = Duration::from_secs(2);
/// A dial that takes longer is as good as failed.
const DIAL_LIMIT: Duration = Duration::from_secs(5);
/// Pause before dialing again after a failure, doubled up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// See [`FIRST_PAUSE`].
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// A client that lived for less did not end the trouble that the one before had.
const STABLE: Duration = Duration::from_secs(2);
/// The sweep: at most 20 reads a second.
const SWEEP_STEP: Duration = Duration::from_millis(50);
/// And no round faster than this, give or take a fifth.
const SWEEP_ROUND: Duration = Duration::from_secs(30);

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Find a server and make a client with this generation.
    Dial(u64),
    /// Give the client up, for this reason.
    GiveUp(String),
    /// Read this.
    Read(What),
    /// Say which tables are cached: a round of the sweep begins.
    StartSweep,
    /// All routes that were cached when the client came are confirmed; it took so long.
    AllConfirmed(Duration),
}

/// What a finished read means for the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The answer was taken.
    Settled,
    /// It was of no use, and no watch tells when it will be: read again after this time.
    Again(Duration),
    /// It names a cluster whose record is to be read.
    Waits,
}

enum Trust {
    Down { dial_at: Instant },
    Dialing { since: Instant },
    Live { since: Instant },
}

struct Reading {
    since: Instant,
    /// It changed while being read.
    again: bool,
    /// To be cached even if it is not: queries wait for it, or all tables are to be cached.
    is_wanted: bool,
}

/// The plan, owned by `zk-watch`.
pub struct Planner {
    trust: Trust,
    generation: u64,
    pause: Duration,
    reading: HashMap<What, Reading>,
    changes: VecDeque<What>,
    misses: VecDeque<Box<str>>,
    is_turn_of_misses: bool,
    /// When to read again what could not be read well.
    later: HashMap<What, Instant>,
    rereads: VecDeque<Box<str>>,
    preload: VecDeque<Box<str>>,
    unconfirmed: HashSet<Box<str>>,
    confirmed: Option<Duration>,
    /// The first heartbeat has been answered.
    is_greeted: bool,
    beat_at: Instant,
    sweep: VecDeque<Box<str>>,
    sweep_at: Instant,
    sweep_round_at: Instant,
    random: u64,
}

impl Planner {
    /// Dials at once. `seed` spreads many proxies that do the same at the same time.
    pub fn new(now: Instant, seed: u64) -> Self {
        Planner {
            trust: Trust::Down { dial_at: now },
            generation: 0,
            pause: Duration::ZERO,
            reading: HashMap::new(),
            changes: VecDeque::new(),
            misses: VecDeque::new(),
            is_turn_of_misses: false,
            later: HashMap::new(),
            rereads: VecDeque::new(),
            preload: VecDeque::new(),
            unconfirmed: HashSet::new(),
            confirmed: None,
            is_greeted: false,
            beat_at: now,
            sweep: VecDeque::new(),
            sweep_at: now,
            sweep_round_at: now,
            random: seed | 1,
        }
    }

    /// The generation of the client that counts, if there is one.
    pub fn live(&self) -> Option<u64> {
        matches!(self.trust, Trust::Live { .. }).then_some(self.generation)
    }

    /// Whether this is the dial that is waited for.
    pub fn awaits(&self, generation: u64) -> bool {
        matches!(self.trust, Trust::Dialing { .. }) && self.generation == generation
    }

    /// Cached routes that no read has confirmed since the client came; all of them while there is none.
    pub fn unconfirmed(&self) -> usize {
        self.unconfirmed.len()
    }

    /// The dial made a client. `cached` is to be confirmed in this order, for `missing` queries wait. What the first
    /// heartbeat finds tells whether to read the names.
    pub fn dialed(&mut self, cached: Vec<Box<str>>, missing: Vec<Box<str>>, now: Instant) {
        self.trust = Trust::Live { since: now };
        self.misses.extend(missing);
        self.unconfirmed = cached.iter().cloned().collect();
        self.rereads.extend(cached);
        self.is_greeted = false;
        self.beat_at = now;
        let round = self.jitter(SWEEP_ROUND);
        self.sweep_round_at = now + round;
        self.note_confirmed(now);
    }

    /// The dial failed.
    pub fn dial_failed(&mut self, now: Instant) {
        self.pause = MAX_PAUSE.min(FIRST_PAUSE.max(2 * self.pause));
        let pause = self.jitter(self.pause);
        self.trust = Trust::Down { dial_at: now + pause };
    }

    /// The client is given up: what it was to read is moot.
    fn down(&mut self, now: Instant) {
        let stable = matches!(self.trust, Trust::Live { since } if now >= since + STABLE);
        self.pause =
            if stable { Duration::ZERO } else { MAX_PAUSE.min(FIRST_PAUSE.max(2 * self.pause)) };
        let pause = self.jitter(self.pause);
        self.trust = Trust::Down { dial_at: now + pause };
        self.reading.clear();
        self.changes.clear();
        self.misses.clear();
        self.later.clear();
        self.rereads.clear();
        self.preload.clear();
        self.sweep.clear();
        self.confirmed = None;
    }

    /// The client cannot be trusted.
    #[must_use]
    pub fn doubt(&mut self, why: String, now: Instant) -> Action {
        self.down(now);
        Action::GiveUp(why)
    }

    /// Queries wait for a table that is not cached. Without a client [`Planner::dialed`] will tell of it.
    pub fn miss(&mut self, table: &str) {
        if self.live().is_some() {
            self.misses.push_back(table.into());
        }
    }

    /// Forgets the misses that nobody waits for any more.
    pub fn keep_misses(&mut self, is_waited_for: impl Fn(&str) -> bool) {
        self.misses.retain(|table| is_waited_for(table));
    }

    /// A watch told that this changed.
    pub fn changed(&mut self, what: What) {
        self.changes.push_back(what);
    }

    /// Whether what is being read is to be cached even if it is not.
    pub fn wants(&self, what: &What) -> bool {
        self.reading.get(what).is_some_and(|reading| reading.is_wanted)
    }

    /// A read ended. False: it changed meanwhile, so that the answer says little.
    pub fn done(&mut self, what: What, verdict: Verdict, now: Instant) -> bool {
        self.is_greeted |= what == What::Root;
        let again = self.reading.remove(&what).is_some_and(|reading| reading.again);
        match verdict {
            _ if again => self.changes.push_back(what),
            Verdict::Again(after) => drop(self.later.insert(what, now + after)),
            Verdict::Settled | Verdict::Waits => {}
        }
        !again
    }

    /// What can be known of a table is known.
    pub fn confirmed(&mut self, table: &str, now: Instant) {
        if self.unconfirmed.remove(table) {
            self.note_confirmed(now);
        }
    }

    fn note_confirmed(&mut self, now: Instant) {
        if let Trust::Live { since } = self.trust
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

    /// What to do now; ask again until there is nothing.
    pub fn next_action(&mut self, now: Instant) -> Option<Action> {
        match self.trust {
            Trust::Down { dial_at } if dial_at <= now => {
                self.generation += 1;
                self.trust = Trust::Dialing { since: now };
                Some(Action::Dial(self.generation))
            }
            Trust::Dialing { since } if since + DIAL_LIMIT <= now => {
                self.dial_failed(now);
                None
            }
            Trust::Down { .. } | Trust::Dialing { .. } => None,
            Trust::Live { .. } => self.next_live(now),
        }
    }

    fn next_live(&mut self, now: Instant) -> Option<Action> {
        if self.reading.values().any(|reading| reading.since + READ_LIMIT <= now) {
            let why = format!("a read took longer than {READ_LIMIT:?}");
            return Some(self.doubt(why, now));
        }
        if self.reading.len() >= self.max_reads() {
            return None;
        }
        if self.is_greeted
            && let Some(took) = self.confirmed.take()
        {
            return Some(Action::AllConfirmed(took));
        }
        if self.beat_at <= now && !self.reading.contains_key(&What::Root) {
            self.beat_at = now + BEAT;
            return Some(self.start(What::Root, false, now));
        }
        if self.sweep.is_empty() && self.sweep_round_at <= now {
            let round = self.jitter(SWEEP_ROUND);
            self.sweep_round_at = now + round;
            return Some(Action::StartSweep);
        }
        while let Some(what) = self.changes.pop_front() {
            match self.reading.get_mut(&what) {
                Some(reading) => reading.again = true,
                None => return Some(self.start(what, false, now)),
            }
        }
        while let Some((what, is_wanted)) = self.next_refresh(now) {
            match self.reading.get_mut(&what) {
                Some(reading) => reading.is_wanted |= is_wanted,
                None => return Some(self.start(what, is_wanted, now)),
            }
        }
        None
    }

    /// And whether it is to be cached even if it is not.
    fn next_refresh(&mut self, now: Instant) -> Option<(What, bool)> {
        // By turns, so that who asks for ever new names keeps no route from being confirmed.
        self.is_turn_of_misses = !self.is_turn_of_misses;
        if self.is_turn_of_misses
            && let Some(table) = self.misses.pop_front()
        {
            return Some((What::Table(table), true));
        }
        while let Some(table) = self.rereads.pop_front() {
            if self.unconfirmed.contains(&table) {
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

    fn start(&mut self, what: What, is_wanted: bool, now: Instant) -> Action {
        // What comes of this read says whether there must be another.
        self.later.remove(&what);
        self.reading.insert(what.clone(), Reading { since: now, again: false, is_wanted });
        Action::Read(what)
    }

    /// The first heartbeat tells whether the server lags. Nothing is read before it is answered.
    fn max_reads(&self) -> usize {
        if self.is_greeted { MAX_READS } else { 1 }
    }

    /// When there may be something to do although nothing happens.
    pub fn wake_at(&self) -> Instant {
        match self.trust {
            Trust::Down { dial_at } => dial_at,
            Trust::Dialing { since } => since + DIAL_LIMIT,
            Trust::Live { .. } => {
                let late = self.reading.values().map(|reading| reading.since + READ_LIMIT).min();
                // What is due but has no room waits for the end of a read, not for a time.
                let next_read =
                    (self.reading.len() < self.max_reads()).then(|| self.next_read_at());
                late.into_iter().chain(next_read).min().unwrap_or(self.beat_at)
            }
        }
    }

    /// When the next read is due that is not due now.
    fn next_read_at(&self) -> Instant {
        let sweep = if self.sweep.is_empty() { self.sweep_round_at } else { self.sweep_at };
        let beat = (!self.reading.contains_key(&What::Root)).then_some(self.beat_at);
        self.later.values().copied().chain(beat).fold(sweep, Instant::min)
    }

    /// `span`, a fifth more or less.
    fn jitter(&mut self, span: Duration) -> Duration {
        // xorshift64: any spread will do.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        span.mul_f64(0.8 + 0.4 * (self.random % 1024) as f64 / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str) -> What {
        What::Table(name.into())
    }

    fn reads(planner: &mut Planner, now: Instant) -> Vec<What> {
        let mut reads = Vec::new();
        while let Some(action) = planner.next_action(now) {
            match action {
                Action::Read(what) => reads.push(what),
                Action::AllConfirmed(_) => {}
                other => panic!("{other:?}"),
            }
        }
        reads
    }

    fn live(cached: &[&str], missing: &[&str]) -> (Planner, Instant) {
        let now = Instant::now();
        let mut planner = Planner::new(now, 7);
        assert_eq!(planner.next_action(now), Some(Action::Dial(1)));
        assert!(planner.awaits(1));
        let boxed = |names: &[&str]| names.iter().map(|&name| name.into()).collect();
        planner.dialed(boxed(cached), boxed(missing), now);
        assert_eq!(planner.next_action(now), Some(Action::Read(What::Root)));
        assert_eq!(planner.next_action(now), None, "the server may lag");
        assert!(planner.wake_at() > now);
        planner.done(What::Root, Verdict::Settled, now);
        (planner, now)
    }

    #[test]
    fn a_new_client_reads_what_queries_wait_for_then_confirms_all() {
        let (mut planner, now) = live(&["busy", "idle"], &["new"]);
        let want = [table("new"), table("busy"), table("idle")];
        assert_eq!(reads(&mut planner, now), want);
        assert_eq!(planner.unconfirmed(), 2);
        let later = now + Duration::from_millis(9);
        for what in want {
            assert!(planner.done(what, Verdict::Settled, later));
        }
        ["busy", "idle"].iter().for_each(|table| planner.confirmed(table, later));
        let took = Duration::from_millis(9);
        assert_eq!(planner.next_action(later), Some(Action::AllConfirmed(took)));
        assert_eq!(planner.next_action(later), None);
    }

    #[test]
    fn reads_at_once_are_bounded_and_changes_come_first() {
        let names: Vec<String> = (0..40).map(|n| format!("t{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (mut planner, now) = live(&names, &[]);
        let first = reads(&mut planner, now);
        assert_eq!(first.len(), MAX_READS);
        planner.miss("missed");
        planner.changed(table("changed"));
        planner.done(first[0].clone(), Verdict::Settled, now);
        planner.done(first[1].clone(), Verdict::Settled, now);
        assert_eq!(reads(&mut planner, now), [table("changed"), table("missed")]);
    }

    #[test]
    fn many_misses_keep_no_route_from_being_confirmed() {
        let (mut planner, now) = live(&["a", "b"], &["m0", "m1", "m2", "m3", "m4"]);
        let want = ["m0", "a", "m1", "b", "m2", "m3", "m4"].map(table);
        assert_eq!(reads(&mut planner, now), want);
    }

    #[test]
    fn misses_that_nobody_waits_for_are_forgotten() {
        let (mut planner, now) = live(&[], &[]);
        (0..MAX_READS).for_each(|n| planner.changed(table(&format!("t{n}"))));
        let busy = reads(&mut planner, now);
        (0..1000).for_each(|n| planner.miss(&format!("m{n}")));
        planner.keep_misses(|table| table == "m7");
        for what in busy {
            planner.done(what, Verdict::Settled, now);
        }
        assert_eq!(reads(&mut planner, now), [table("m7")]);
    }

    #[test]
    fn a_change_during_a_read_is_read_again() {
        let (mut planner, now) = live(&["t"], &[]);
        reads(&mut planner, now);
        planner.changed(table("t"));
        assert_eq!(reads(&mut planner, now), [], "one read of a znode at a time");
        assert!(!planner.done(table("t"), Verdict::Settled, now));
        assert_eq!(reads(&mut planner, now), [table("t")]);
    }

    #[test]
    fn only_what_queries_wait_for_and_preloaded_tables_are_wanted() {
        let (mut planner, now) = live(&["cached"], &["missed"]);
        planner.preload(vec!["preloaded".into()]);
        planner.changed(table("changed"));
        reads(&mut planner, now);
        for (name, want) in
            [("cached", false), ("missed", true), ("preloaded", true), ("changed", false)]
        {
            assert_eq!(planner.wants(&table(name)), want, "{name}");
        }
        planner.miss("changed");
        assert_eq!(reads(&mut planner, now), [], "it is being read");
        assert!(planner.wants(&table("changed")));
    }

    #[test]
    fn what_cannot_be_read_is_read_again_once_and_not_once_more_each_time() {
        let (mut planner, start) = live(&[], &[]);
        let pause = Duration::from_secs(5);
        let mut now = start;
        for round in 0..100 {
            now += Duration::from_millis(10);
            // As each round of the sweep does.
            planner.changed(What::Cluster("c".into()));
            planner.beat_at = now + 2 * pause;
            assert_eq!(reads(&mut planner, now), [What::Cluster("c".into())], "round {round}");
            planner.done(What::Cluster("c".into()), Verdict::Again(pause), now);
        }
        assert_eq!(reads(&mut planner, now + pause), [What::Cluster("c".into())]);
        assert_eq!(reads(&mut planner, now + pause), []);
    }

    #[test]
    fn it_does_not_wake_up_for_what_cannot_be_done_yet() {
        let (mut planner, start) = live(&[], &[]);
        assert_eq!(reads(&mut planner, start + BEAT), [What::Root]);
        let now = start + BEAT + BEAT + Duration::from_millis(1);
        assert_eq!(reads(&mut planner, now), [], "the heartbeat is under way");
        assert!(planner.wake_at() > now);
        planner.done(What::Root, Verdict::Settled, now);
        assert!(planner.wake_at() <= now, "the next one is due");
        reads(&mut planner, now);
        (0..MAX_READS).for_each(|n| planner.changed(table(&format!("t{n}"))));
        assert_eq!(reads(&mut planner, now).len(), MAX_READS - 1);
        planner.sweep_round_at = now;
        assert!(planner.wake_at() > now, "all readers are busy");
    }

    #[test]
    fn a_late_read_gives_the_client_up_and_dials_at_once_then_slower() {
        let (mut planner, start) = live(&["t"], &[]);
        reads(&mut planner, start);
        let now = start + READ_LIMIT;
        assert!(planner.wake_at() <= now);
        assert!(matches!(planner.next_action(now), Some(Action::GiveUp(_))));
        assert_eq!(planner.unconfirmed(), 1, "stale until read again");
        planner.miss("m");
        assert_eq!(planner.next_action(now), Some(Action::Dial(2)), "it had been stable");
        let mut last = Duration::ZERO;
        let mut at = now;
        for _ in 0..8 {
            planner.dial_failed(at);
            last = planner.wake_at() - at;
            at = planner.wake_at();
            assert!(matches!(planner.next_action(at), Some(Action::Dial(_))));
        }
        assert!(last >= MAX_PAUSE.mul_f64(0.8) && last <= MAX_PAUSE.mul_f64(1.2), "{last:?}");
        let late = at + DIAL_LIMIT;
        assert_eq!(planner.next_action(late), None);
        assert!(!planner.awaits(9), "a dial that takes for ever is not waited for");
    }

    #[test]
    fn the_sweep_is_slow_and_never_ends() {
        let (mut planner, start) = live(&[], &[]);
        let mut now = start;
        let mut swept = Vec::new();
        let mut rounds = 0;
        while now < start + Duration::from_secs(100) {
            match planner.next_action(now) {
                Some(Action::StartSweep) => {
                    rounds += 1;
                    planner.sweep((0..100).map(|n| format!("t{n}").into()).collect());
                }
                Some(Action::Read(what)) => {
                    if what != What::Root && what != What::Names {
                        swept.push(now);
                    }
                    planner.done(what, Verdict::Settled, now);
                }
                Some(_) => {}
                None => now = planner.wake_at().max(now + Duration::from_millis(1)),
            }
        }
        assert!((2..=4).contains(&rounds), "{rounds} rounds in 100 s");
        assert_eq!(swept.len(), 100 * rounds);
        assert!(swept.windows(2).all(|pair| pair[1] - pair[0] >= SWEEP_STEP));
    }
}
