//! Whether A's primaries refuse writes, and whether B has all that they took. Pure.
//!
//! **In force.** A replica server hears of the env at its next config-sync, which nobody can see. So a run waits for the
//! longest interval since it saw the env, for each partition since it saw this primary with this ballot. A run that is
//! resumed waits again, since an env that it finds may be a moment old. A config-sync that fails is repeated only after
//! another interval, and a server may have another interval than it says. So each primary is probed then: a write that
//! never sets anything shows whether it refuses writes. The answer counts once the next look shows the same primary,
//! because a server that is no primary refuses writes, too.
//!
//! **Drained.** With the env in force no new write begins. Then all looks of 2 s, or two after a probe, show the same decree
//! D, prepared and committed, at the same primary with the same ballot, so nothing is on its way through the replicas.
//! After the last look at D the primary says that it duplicates, and how many mutations are unsent. Mutations are shipped
//! in their order. So B has all writes once no more is unsent than came after the first decree in force: servers before
//! 2.6 hold the newest mutation back, which is an empty one by then.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::state::Partition;

/// Slack of a config-sync: it has to be answered and carried out. Decrees stand still for as long.
pub const SLACK_MS: u64 = 2_000;
/// Looks at one decree after a probe.
const STILL_LOOKS: u32 = 2;

/// The evidence that a primary refuses writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    /// The interval has passed, and then it says so.
    #[default]
    ClockAndProbe,
    /// It says so.
    Probe,
    /// The interval has passed. Servers with authentication answer no probe.
    Clock,
}

/// A's primaries since this run saw A refuse writes.
#[derive(Clone, Debug, Default)]
pub struct Primaries {
    proof: Proof,
    /// From an env that was seen until it is in force.
    force_ms: u64,
    /// When the env was first seen.
    env_ms: Option<u64>,
    known: BTreeMap<i32, Primary>,
}

/// A primary since it was first seen as such.
#[derive(Clone, Copy, Debug)]
struct Primary {
    server: SocketAddr,
    ballot: i64,
    since_ms: u64,
    /// Its decree at the last look, if nothing was on its way.
    decree: Option<i64>,
    /// Since when each look showed this decree.
    still_since_ms: u64,
    /// It said to a probe that it refuses writes.
    is_probed: bool,
    /// Looks that showed this decree, all after that.
    still_looks: u32,
    /// The first decree with the env in force and nothing on its way. Later mutations are empty.
    last_write: Option<i64>,
}

impl Primaries {
    pub fn new(proof: Proof) -> Self {
        Primaries { proof, ..Primaries::default() }
    }

    /// Takes a look into account. The env was read at `now_ms`, the decrees between that and `end_ms`, a probe after them.
    pub fn look(
        &mut self,
        force_ms: u64,
        is_denied: bool,
        partitions: &[Partition],
        (now_ms, end_ms): (u64, u64),
    ) {
        self.force_ms = force_ms;
        self.env_ms = is_denied.then(|| self.env_ms.unwrap_or(now_ms));
        let seen = partitions.iter().map(|one| (one.replica.index, self.primary(one, end_ms)));
        self.known = seen.collect();
        for primary in self.known.values_mut().filter(|one| one.last_write.is_none()) {
            let is_sure = match self.proof {
                Proof::Clock => left_ms(self.env_ms, primary.since_ms, force_ms, now_ms) == 0,
                Proof::Probe | Proof::ClockAndProbe => primary.still_looks > 0,
            };
            primary.last_write = primary.decree.filter(|_| is_sure);
        }
    }

    fn primary(&self, partition: &Partition, end_ms: u64) -> Primary {
        let (server, ballot) = (partition.server, partition.replica.ballot);
        let decree = (!partition.is_writing()).then_some(partition.replica.committed);
        let new = Primary {
            server,
            ballot,
            since_ms: end_ms,
            decree,
            still_since_ms: end_ms,
            is_probed: partition.refuses == Some(true),
            still_looks: 0,
            last_write: None,
        };
        let last = self.last(partition).filter(|_| self.env_ms.is_some());
        last.map_or(new, |last| Primary {
            since_ms: last.since_ms,
            still_since_ms: if decree == last.decree { last.still_since_ms } else { end_ms },
            is_probed: last.is_probed || new.is_probed,
            still_looks: match (last.is_probed, decree == last.decree) {
                (true, true) => last.still_looks + 1,
                (true, false) => 1,
                (false, _) => 0,
            },
            last_write: last.last_write,
            ..new
        })
    }

    /// The primary of this partition, if it is the same as at the last look.
    fn last(&self, partition: &Partition) -> Option<&Primary> {
        let is_same = |last: &&Primary| {
            (last.server, last.ballot) == (partition.server, partition.replica.ballot)
        };
        self.known.get(&partition.replica.index).filter(is_same)
    }

    /// Until the clock says that the env is in force at each primary.
    pub fn left_ms(&self, now_ms: u64) -> u64 {
        let left = |primary: &Primary| {
            let is_sure = self.proof == Proof::Probe && primary.is_probed;
            if is_sure { 0 } else { left_ms(self.env_ms, primary.since_ms, self.force_ms, now_ms) }
        };
        let none = || left_ms(self.env_ms, 0, self.force_ms, now_ms);
        self.known.values().map(left).max().unwrap_or_else(none)
    }

    /// Whether the primary of this partition is to be probed.
    pub fn needs_probe(&self, partition: &Partition, now_ms: u64) -> bool {
        let is_due = match self.proof {
            Proof::Probe => true,
            Proof::ClockAndProbe => self.left_ms(now_ms) == 0,
            Proof::Clock => false,
        };
        is_due && self.last(partition).is_none_or(|last| !last.is_probed)
    }

    /// Whether every primary refuses writes.
    pub fn is_in_force(&self, now_ms: u64) -> bool {
        let is_proved = |primary: &Primary| self.proof == Proof::Clock || primary.is_probed;
        !self.known.is_empty() && self.left_ms(now_ms) == 0 && self.known.values().all(is_proved)
    }

    /// Whether B has all writes that A took.
    pub fn is_drained(&self, partitions: &[Partition], now_ms: u64) -> bool {
        let is_drained = |partition: &Partition| {
            let Some(primary) = self.last(partition) else { return false };
            let is_long = primary.still_since_ms + SLACK_MS <= now_ms;
            let is_still = is_long || primary.still_looks >= STILL_LOOKS;
            let empty = primary.decree.zip(primary.last_write).map(|(now, last)| now - last);
            let unsent = partition.unsent().filter(|_| partition.is_duplicating());
            is_still && unsent.zip(empty).is_some_and(|(unsent, empty)| unsent <= empty)
        };
        self.is_in_force(now_ms) && partitions.iter().all(is_drained)
    }
}

fn left_ms(env_ms: Option<u64>, since_ms: u64, force_ms: u64, now_ms: u64) -> u64 {
    match env_ms {
        Some(env_ms) => (env_ms.max(since_ms) + force_ms).saturating_sub(now_ms),
        None => force_ms,
    }
}
