//! The next step of a move, from what is seen. Pure: no step is taken here, and no clock is read.
//!
//! ```text
//! route at A   A's env      next
//! A            none         B->A if wanted ─▶ refuse writes
//! A            *write       wait until in force ─▶ until drained ─▶ write the route
//! A, back      any          pin the route ─▶ delete the env ─▶ end B->A ─▶ wait for late requests ─▶ backed out
//! B            not *all     proxies serve B ─▶ refuse all; at once if A refuses no writes
//! B            *all         wait until in force ─▶ A stood still ─▶ drained ─▶ end A->B ─▶ done
//! elsewhere    any          halt
//! ```
//! [`force`](super::force) has the proof that A refuses writes, and that B has all. It counts only for the duplication and
//! the tables that the move began with: a duplication that was made anew never ships what was unsent before.
//!
//! **After step 5** a server that has not heard of the env may still become a primary. Its writes are shipped, as A->B ends
//! only after another interval, and the run tells of them. There is no way back then: B has taken writes that A lacks.
//!
//! **Late requests.** A request whose answer was lost may still be carried out. The route is safe from it by its version.
//! The env and B->A are not, so both are looked at again for a while, and the journal stays until such a request is too old.

use std::collections::BTreeMap;

use super::force::{Primaries, Proof, SLACK_MS};
use super::state::{Ids, Partition, Route, Seen, Side};
use crate::ops::admin_move::{DENY_ALL, DENY_WRITES};

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
    pub proof: Proof,
    /// The answer to a request was lost, so it may still be carried out.
    pub may_come_late: bool,
    /// A request is carried out within this time, or much later.
    pub late_ms: u64,
    /// The version of the route when the move began.
    pub version: i32,
    pub ids: Ids,
}

/// A partition without writes gets an empty mutation each 100 s at most, and each three intervals at least.
const EMPTY_MS: u64 = 90_000;
const EMPTY_INTERVALS: u64 = 3;

impl Terms {
    /// Time from the first look that showed the env until it is in force.
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
    /// Until it is in force on each primary, for this many ms at least.
    AwaitForce(u64),
    /// Until B has all.
    AwaitDrained,
    /// The route goes to B, if its znode still has this version.
    WriteRoute(i32),
    /// Until all proxies serve it.
    AwaitProxies,
    /// `reconfig*all` on A.
    DenyAll,
    /// Until it is in force there and A stood still, for this many ms at most.
    AwaitStill(u64),
    /// End A->B.
    RemoveDuplication(i32),
    Done,
    /// Go back from now on, for this reason.
    GoBack(String),
    /// Write the route as it is, if its znode still has this version.
    PinRoute(i32),
    /// Delete the env of A.
    Open,
    /// Until earlier requests have come or never come, for this many ms.
    AwaitLate(u64),
    /// End B->A, which this move made.
    RemoveReverse(i32),
    BackedOut,
    /// Nothing can be done, for this reason. A stays as it is.
    Halt(String),
}

/// The memory of one run between its looks.
#[derive(Clone, Debug)]
pub struct Decider {
    pub terms: Terms,
    /// It goes back.
    pub is_back: bool,
    /// The route got this version at this time, so that no old request can change it, and no new one is sent.
    pinned: Option<(i32, u64)>,
    proxies_serve: bool,
    /// This run saw A refuse writes.
    was_refused: bool,
    /// Since when B->A does not run though it must.
    reverse_since_ms: Option<u64>,
    /// When this run first saw A refuse writes.
    writes_since_ms: Option<u64>,
    /// When this run first saw A refuse all.
    all_since_ms: Option<u64>,
    pub primaries: Primaries,
    /// Decrees of A, and when: first seen with writes refused and the route at B.
    base: Option<(u64, BTreeMap<i32, i64>)>,
}

impl Decider {
    pub fn new(terms: Terms, is_back: bool) -> Self {
        let primaries = Primaries::new(terms.proof);
        Decider {
            terms,
            is_back,
            pinned: None,
            proxies_serve: false,
            was_refused: false,
            reverse_since_ms: None,
            writes_since_ms: None,
            all_since_ms: None,
            primaries,
            base: None,
        }
    }

    /// All proxies serve the new route.
    pub fn proxies_serve(&mut self) {
        self.proxies_serve = true;
    }

    /// The route was pinned, and its znode has this version since.
    pub fn pinned(&mut self, version: i32, now_ms: u64) {
        self.pinned = Some((version, now_ms));
    }

    /// For how long this run has seen A refuse writes.
    pub fn refused_ms(&self, now_ms: u64) -> u64 {
        self.writes_since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms))
    }

    /// Whether writes were refused for longer than the limit.
    pub fn is_past_limit(&self, now_ms: u64) -> bool {
        self.refused_ms(now_ms) > self.terms.max_refused_ms
    }

    /// The next step.
    pub fn next(&mut self, seen: &Seen) -> Step {
        self.look(seen);
        match &seen.route {
            Route::Elsewhere(what) => Step::Halt(format!("somebody changed the route: {what}")),
            Route::New => self.after_route(seen),
            Route::WasNew => Step::Halt(
                "somebody set the route back to the old cluster, which lacks what the new one took since".to_owned(),
            ),
            Route::Old { version } if self.is_back => self.back(seen, *version),
            Route::Old { version } => self.before_route(seen, *version),
        }
    }

    fn look(&mut self, seen: &Seen) {
        let since = |since: Option<u64>, is: bool| is.then(|| since.unwrap_or(seen.now_ms));
        self.writes_since_ms = since(self.writes_since_ms, denies_writes(&seen.old));
        self.all_since_ms = since(self.all_since_ms, denies_all(&seen.old));
        self.was_refused |= self.writes_since_ms.is_some();
        let lacks_reverse = self.terms.keeps_undo && !ships(&seen.reverse);
        self.reverse_since_ms = since(self.reverse_since_ms, lacks_reverse);
        let (force_ms, times) = (self.terms.force_ms(), (seen.now_ms, seen.end_ms));
        self.primaries.look(force_ms, denies_writes(&seen.old), &seen.partitions, times);
        // Before the env is in force decrees grow as they like.
        let is_in_force = self.primaries.is_in_force(seen.now_ms);
        if seen.route == Route::New && is_in_force && self.base.is_none() {
            self.base = Some((seen.now_ms, decrees(&seen.partitions)));
        }
    }

    fn before_route(&self, seen: &Seen, version: i32) -> Step {
        if let Some(why) = self.stands_in_the_way(seen, version) {
            return Step::GoBack(why);
        }
        if self.reverse_since_ms.is_some() {
            return match seen.new.duplication {
                None => Step::AddReverse,
                Some(_) => Step::AwaitReverse,
            };
        }
        if seen.old.denies.is_none() {
            return Step::DenyWrites;
        }
        if !self.primaries.is_in_force(seen.now_ms) {
            return Step::AwaitForce(self.primaries.left_ms(seen.now_ms));
        }
        match self.primaries.is_drained(&seen.partitions, seen.now_ms) {
            true => Step::WriteRoute(version),
            false => Step::AwaitDrained,
        }
    }

    /// Why the table cannot go to B.
    fn stands_in_the_way(&self, seen: &Seen, version: i32) -> Option<String> {
        let Terms { ids, .. } = self.terms;
        if version != self.terms.version {
            let was = self.terms.version;
            return Some(format!("somebody wrote the route: want version {was}, got {version}"));
        }
        for (side, wanted, name) in
            [(&seen.old, ids.old_app, "old"), (&seen.new, ids.new_app, "new")]
        {
            if side.app_id != Some(wanted) {
                return Some(format!(
                    "the table was dropped or made anew in the {name} cluster: {}",
                    want_app(wanted, side.app_id)
                ));
            }
        }
        if let Some(value) = &seen.new.denies {
            return Some(format!("the new cluster denies clients of the table: {value}"));
        }
        match &seen.old.duplication {
            None => return Some("there is no duplication to the new cluster".to_owned()),
            Some(duplication) if duplication.id != ids.duplication => {
                let (wanted, got) = (ids.duplication, duplication.id);
                return Some(format!(
                    "the duplication to the new cluster was made anew, and does not ship what was written before: want \
                     id {wanted}, got {got}"
                ));
            }
            Some(duplication) => {
                if let Some(why) = duplication.why_it_may_lose() {
                    return Some(format!("the duplication to the new cluster: {why}"));
                }
            }
        }
        match &seen.old.denies {
            None if self.was_refused => {
                return Some("somebody deleted the env that refuses writes".to_owned());
            }
            Some(other) if !denies_writes(&seen.old) => {
                return Some(format!("somebody set the table's env to {other}"));
            }
            _ => {}
        }
        let limit_s = self.terms.max_refused_ms / 1_000;
        if self.is_past_limit(seen.now_ms) {
            return Some(format!("writes were refused for {limit_s} s, the limit"));
        }
        let waited_ms = self.reverse_since_ms.map_or(0, |since_ms| seen.now_ms - since_ms);
        (waited_ms > self.terms.max_refused_ms).then(|| {
            format!("for {limit_s} s not every primary of the new cluster duplicated back")
        })
    }

    fn after_route(&self, seen: &Seen) -> Step {
        let Terms { ids, .. } = self.terms;
        // Another table of this name, or none, takes no writes that belong to this one.
        if seen.old.app_id != Some(ids.old_app) {
            return if self.proxies_serve { Step::Done } else { Step::AwaitProxies };
        }
        if !denies_all(&seen.old) {
            // Somebody may have set another value. Only `reconfig*all` makes every client ask again.
            return match refuses_writes(&seen.old) && !self.proxies_serve {
                true => Step::AwaitProxies,
                false => Step::DenyAll,
            };
        }
        let since_ms = self.all_since_ms.unwrap_or(seen.now_ms);
        let left_ms = (since_ms + self.terms.force_ms()).saturating_sub(seen.now_ms);
        let Some((base_ms, base)) = &self.base else { return Step::AwaitStill(left_ms) };
        let left_ms = left_ms.max((base_ms + SLACK_MS).saturating_sub(seen.now_ms));
        if left_ms > 0 || !self.primaries.is_in_force(seen.now_ms) {
            return Step::AwaitStill(left_ms);
        }
        if !self.proxies_serve {
            return Step::AwaitProxies;
        }
        let allowed = most_empty(self.terms.interval_ms, seen.now_ms - base_ms);
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
        if seen.new.app_id != Some(ids.new_app) {
            return Step::Halt(format!(
                "the new cluster has lost the table: {}",
                want_app(ids.new_app, seen.new.app_id)
            ));
        }
        if let Some(value) = &seen.new.denies {
            return Step::Halt(format!(
                "the new cluster denies clients of the table, too: {value}"
            ));
        }
        match &seen.old.duplication {
            // Somebody else may have written the route before all was shipped.
            Some(_) if !self.primaries.is_drained(&seen.partitions, seen.now_ms) => {
                Step::AwaitDrained
            }
            Some(duplication) => Step::RemoveDuplication(duplication.id),
            None => Step::Done,
        }
    }

    fn back(&self, seen: &Seen, version: i32) -> Step {
        // The pin gives the route a new version. A late run fails on the old one.
        let pinned_ms = match self.pinned {
            Some((pinned, at_ms)) if pinned == version => at_ms,
            _ => return Step::PinRoute(version),
        };
        // A value that somebody else set is left alone.
        if denies_writes(&seen.old) {
            return Step::Open;
        }
        if let Some(reverse) = seen.new.duplication.as_ref().filter(|_| self.terms.made_undo) {
            return Step::RemoveReverse(reverse.id);
        }
        let late_ms = (pinned_ms + self.terms.late_ms).saturating_sub(seen.now_ms);
        match late_ms > 0 && self.terms.may_come_late {
            true => Step::AwaitLate(late_ms),
            false => Step::BackedOut,
        }
    }
}

/// Empty mutations that a partition without writes may get in this time.
pub fn most_empty(interval_ms: u64, time_ms: u64) -> i64 {
    1 + (time_ms / EMPTY_MS.min(EMPTY_INTERVALS * interval_ms.max(1))) as i64
}

fn want_app(wanted: i32, got: Option<i32>) -> String {
    let got = got.map_or("none".to_owned(), |id| id.to_string());
    format!("want app id {wanted}, got {got}")
}

/// All partitions ship.
fn ships(partitions: &[Partition]) -> bool {
    !partitions.is_empty() && partitions.iter().all(Partition::is_duplicating)
}

/// This move, or one like it, has the cluster refuse writes.
pub fn denies_writes(side: &Side) -> bool {
    side.denies.as_deref() == Some(DENY_WRITES) || denies_all(side)
}

fn denies_all(side: &Side) -> bool {
    side.denies.as_deref() == Some(DENY_ALL)
}

/// The cluster refuses writes, by whatever value.
fn refuses_writes(side: &Side) -> bool {
    side.denies.as_deref().is_some_and(|value| value.ends_with("write") || value.ends_with("all"))
}

/// The decree that each primary has prepared.
pub fn decrees(partitions: &[Partition]) -> BTreeMap<i32, i64> {
    let decree = |partition: &Partition| (partition.replica.index, partition.replica.prepared);
    partitions.iter().map(decree).collect()
}

#[cfg(test)]
mod tests;
