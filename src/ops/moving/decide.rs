//! The next step of a move, from what is seen. Pure: no step is taken here, and no clock is read.
//!
//! ```text
//! route at A   A's env      next
//! A            none         B->A if wanted ─▶ refuse writes
//! A            *write       wait until in force ─▶ until drained ─▶ write the route
//! A, back      any          pin the route ─▶ delete the env ─▶ end B->A ─▶ backed out
//! B            not *all     proxies serve B ─▶ refuse all; at once if A refuses nothing
//! B            *all         wait until in force ─▶ A stood still ─▶ drained ─▶ end A->B ─▶ done
//! elsewhere    any          halt
//! ```
//! **In force.** A replica server hears of the env at its next config-sync, which nobody can see. So this run waits for the
//! longest interval since it saw the env, for each partition since it saw this primary with this ballot. A run that is
//! resumed waits again, since an env that it finds may be a moment old.
//!
//! **Drained.** With the env in force no new write begins. Then two looks show the same decree D, prepared and committed,
//! at the same primary with the same ballot, so nothing is on its way through the replicas. After the second look at D the
//! primary says that it duplicates and that nothing is unsent, so B has all up to D. The decrees that MetaServers list are
//! never used: they are equal while mutations wait.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::state::{Partition, Route, Seen, Side};
use crate::wire::admin_move::{DENY_ALL, DENY_WRITES};

/// The rules of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The longest config-sync interval of A's replica servers.
    pub interval_ms: u64,
    /// Writes are refused by this run for so long at most before the route is written.
    pub max_refused_ms: u64,
    /// B->A must run before B has clients.
    pub keeps_undo: bool,
    /// B->A was made by this move, and ends with it if it is taken back.
    pub made_undo: bool,
    /// A request that has A refuse writes may be under way: the journal says that one was sent.
    pub may_be_denied: bool,
    /// The version of the route when this run began. A request of an earlier run names an older one.
    pub version: i32,
}

/// Slack of a config-sync: it has to be answered and carried out.
const SLACK_MS: u64 = 2_000;
/// A partition without writes gets an empty mutation each 100 s; intervals are 30 s.
const EMPTY_INTERVALS: u64 = 3;

impl Terms {
    /// From an env that was seen until it is in force.
    pub fn force_ms(&self) -> u64 {
        force_ms(self.interval_ms)
    }
}

fn force_ms(interval_ms: u64) -> u64 {
    interval_ms + SLACK_MS
}

/// The least limit that can be kept: the env gets in force, and does so again at a primary that is elected meanwhile.
/// Servers before 2.6 ship the last mutation with the empty one after it.
pub fn least_max_refused_ms(interval_ms: u64, ships_last_at_once: bool) -> u64 {
    let empty = if ships_last_at_once { 0 } else { 4 * interval_ms };
    2 * force_ms(interval_ms) + empty
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Begin a duplication B->A.
    AddReverse,
    /// Until every primary of B ships to A.
    AwaitReverse,
    /// `reconfig*write` on A.
    DenyWrites,
    /// Until it is in force on each primary: so many ms at most.
    AwaitForce(u64),
    /// Until B has all.
    AwaitDrained,
    /// The route goes to B, if its znode still has this version.
    WriteRoute(i32),
    /// Until all proxies serve it.
    AwaitProxies,
    /// `reconfig*all` on A.
    DenyAll,
    /// Until it is in force there, and A stood still: so many ms at most.
    AwaitStill(u64),
    /// End A->B.
    RemoveDuplication(i32),
    Done,
    /// From now on it goes back, for this reason.
    GoBack(String),
    /// Write the route as it is, if its znode still has this version.
    PinRoute(i32),
    /// Delete the env of A.
    Open,
    /// End B->A, which this move made.
    RemoveReverse(i32),
    BackedOut,
    /// Nothing can be done, for this reason. A stays as it is.
    Halt(String),
}

/// The memory of this run.
#[derive(Clone, Debug)]
pub struct Decider {
    pub terms: Terms,
    /// It goes back.
    pub is_back: bool,
    /// The route was written at the version that is seen now, so that no old request can change it.
    pinned: Option<i32>,
    /// A was opened, whether or not it was seen to refuse writes.
    is_opened: bool,
    proxies_serve: bool,
    /// When this run first saw A refuse writes.
    writes_since_ms: Option<u64>,
    /// When this run first saw A refuse all.
    all_since_ms: Option<u64>,
    primaries: BTreeMap<i32, Primary>,
    /// Decrees of A, and when: first seen with writes refused and the route at B.
    base: Option<(u64, BTreeMap<i32, i64>)>,
}

/// A primary since it was first seen as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Primary {
    server: SocketAddr,
    ballot: i64,
    since_ms: u64,
    /// Its decree at the last look, if nothing was on its way.
    decree: Option<i64>,
    /// The look before showed the same.
    is_still: bool,
}

impl Decider {
    pub fn new(terms: Terms, is_back: bool) -> Self {
        Decider {
            terms,
            is_back,
            pinned: None,
            is_opened: false,
            proxies_serve: false,
            writes_since_ms: None,
            all_since_ms: None,
            primaries: BTreeMap::new(),
            base: None,
        }
    }

    /// All proxies serve the new route.
    pub fn proxies_serve(&mut self) {
        self.proxies_serve = true;
    }

    /// The route was pinned, and its znode has this version since.
    pub fn pinned(&mut self, version: i32) {
        self.pinned = Some(version);
    }

    /// The env of A was deleted.
    pub fn opened(&mut self) {
        self.is_opened = true;
    }

    /// For how long this run has seen A refuse writes.
    pub fn refused_ms(&self, now_ms: u64) -> u64 {
        self.writes_since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms))
    }

    /// Whether nothing may be waited for any longer.
    pub fn is_past_limit(&self, now_ms: u64) -> bool {
        self.refused_ms(now_ms) > self.terms.max_refused_ms
    }

    /// The next step.
    pub fn next(&mut self, seen: &Seen) -> Step {
        self.look(seen);
        match &seen.route {
            Route::Elsewhere(what) => Step::Halt(format!("somebody changed the route: {what}")),
            Route::New => self.after_route(seen),
            Route::Old { version } if self.is_back => self.back(seen, *version),
            Route::Old { version } => self.before_route(seen, *version),
        }
    }

    fn look(&mut self, seen: &Seen) {
        let since = |since: Option<u64>, is: bool| is.then(|| since.unwrap_or(seen.now_ms));
        self.writes_since_ms = since(self.writes_since_ms, denies_writes(&seen.old));
        self.all_since_ms = since(self.all_since_ms, denies_all(&seen.old));
        self.primaries = seen
            .partitions
            .iter()
            .map(|partition| (partition.replica.index, self.primary(partition, seen.end_ms)))
            .collect();
        // Before the env is in force decrees grow as they like.
        let is_in_force = self.force_left_ms(seen.now_ms) == 0;
        if seen.route == Route::New && is_in_force && self.base.is_none() {
            self.base = Some((seen.now_ms, decrees(&seen.partitions)));
        }
    }

    fn primary(&self, partition: &Partition, end_ms: u64) -> Primary {
        let (server, ballot) = (partition.server, partition.replica.ballot);
        let decree = (!partition.is_writing()).then_some(partition.replica.committed);
        match self.primaries.get(&partition.replica.index) {
            Some(last) if (last.server, last.ballot) == (server, ballot) => {
                let is_still = decree.is_some() && decree == last.decree;
                Primary { decree, is_still, ..*last }
            }
            _ => Primary { server, ballot, since_ms: end_ms, decree, is_still: false },
        }
    }

    fn before_route(&self, seen: &Seen, version: i32) -> Step {
        if version != self.terms.version {
            let was = self.terms.version;
            return Step::GoBack(format!(
                "somebody wrote the route: want version {was}, got {version}"
            ));
        }
        if let Some(value) = &seen.new.denies {
            return Step::GoBack(format!("the new cluster denies clients of the table: {value}"));
        }
        match &seen.old.duplication {
            None => return Step::GoBack("there is no duplication to the new cluster".to_owned()),
            Some(duplication) if !duplication.is_shipping_log() => {
                let status = duplication.status_name();
                return Step::GoBack(format!(
                    "want the duplication to the new cluster in DS_LOG, got {status}"
                ));
            }
            Some(_) => {}
        }
        if self.is_past_limit(seen.now_ms) {
            let limit_s = self.terms.max_refused_ms / 1_000;
            return Step::GoBack(format!("writes were refused for {limit_s} s, the limit"));
        }
        if self.terms.keeps_undo {
            if seen.new.duplication.is_none() {
                return Step::AddReverse;
            }
            if seen.reverse.is_empty() || !seen.reverse.iter().all(Partition::is_duplicating) {
                return Step::AwaitReverse;
            }
        }
        match &seen.old.denies {
            None => return Step::DenyWrites,
            Some(_) if denies_writes(&seen.old) => {}
            Some(other) => return Step::Halt(format!("somebody set the table's env to {other}")),
        }
        let left_ms = self.force_left_ms(seen.now_ms);
        if left_ms > 0 {
            return Step::AwaitForce(left_ms);
        }
        match self.is_drained(seen) {
            true => Step::WriteRoute(version),
            false => Step::AwaitDrained,
        }
    }

    /// Until the env is in force on each primary.
    fn force_left_ms(&self, now_ms: u64) -> u64 {
        let Some(env_ms) = self.writes_since_ms else { return self.terms.force_ms() };
        let since = self.primaries.values().map(|primary| primary.since_ms.max(env_ms));
        let newest_ms = since.max().unwrap_or(env_ms);
        (newest_ms + self.terms.force_ms()).saturating_sub(now_ms)
    }

    fn is_drained(&self, seen: &Seen) -> bool {
        !seen.partitions.is_empty()
            && self.primaries.values().all(|primary| primary.is_still)
            && seen
                .partitions
                .iter()
                .all(|partition| partition.is_duplicating() && partition.unsent() == Some(0))
    }

    fn after_route(&self, seen: &Seen) -> Step {
        if seen.old.denies.is_some() && !denies_writes(&seen.old) {
            let value = seen.old.denies.clone().unwrap_or_default();
            return Step::Halt(format!("somebody set the old cluster's env to {value}"));
        }
        if !denies_all(&seen.old) {
            return match seen.old.denies.is_some() && !self.proxies_serve {
                true => Step::AwaitProxies,
                false => Step::DenyAll,
            };
        }
        let since_ms = self.all_since_ms.unwrap_or(seen.now_ms);
        let left_ms = (since_ms + self.terms.force_ms()).saturating_sub(seen.now_ms);
        let Some((base_ms, base)) = &self.base else { return Step::AwaitStill(left_ms) };
        let left_ms = left_ms.max((base_ms + SLACK_MS).saturating_sub(seen.now_ms));
        if left_ms > 0 {
            return Step::AwaitStill(left_ms);
        }
        if !self.proxies_serve {
            return Step::AwaitProxies;
        }
        let empty_ms = EMPTY_INTERVALS * self.terms.interval_ms.max(1);
        let allowed = 1 + ((seen.now_ms - base_ms) / empty_ms) as i64;
        let now = decrees(&seen.partitions);
        let grown = now.iter().find_map(|(index, decree)| {
            let by = decree - base.get(index)?;
            (by > allowed).then(|| format!("partition {index} by {by}, want {allowed} at most"))
        });
        if let Some(grown) = grown {
            return Step::Halt(format!(
                "the old cluster still takes writes though it denies its clients: {grown}"
            ));
        }
        match &seen.old.duplication {
            // Somebody else may have written the route before all was shipped.
            Some(_) if !self.is_drained(seen) => Step::AwaitDrained,
            Some(duplication) => Step::RemoveDuplication(duplication.id),
            None => Step::Done,
        }
    }

    fn back(&self, seen: &Seen, version: i32) -> Step {
        match &seen.old.denies {
            Some(_) if !denies_writes(&seen.old) => {}
            // With the route pinned, a run that comes late sees that this one went back.
            None if self.is_opened || !self.terms.may_be_denied => {}
            _ if self.pinned == Some(version) => return Step::Open,
            _ => return Step::PinRoute(version),
        }
        match &seen.new.duplication {
            Some(reverse) if self.terms.made_undo => Step::RemoveReverse(reverse.id),
            _ => Step::BackedOut,
        }
    }
}

fn denies_writes(side: &Side) -> bool {
    side.denies.as_deref() == Some(DENY_WRITES) || denies_all(side)
}

fn denies_all(side: &Side) -> bool {
    side.denies.as_deref() == Some(DENY_ALL)
}

fn decrees(partitions: &[Partition]) -> BTreeMap<i32, i64> {
    let decree = |partition: &Partition| (partition.replica.index, partition.replica.prepared);
    partitions.iter().map(decree).collect()
}

#[cfg(test)]
mod tests;
