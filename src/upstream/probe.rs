//! Probes: `meta-watch` regularly asks each MetaServer of each routed cluster for a table that cannot exist. A probe
//! never blocks, and has its own connection.
//!
//! ```text
//!                 leader: ERR_OBJECT_NOT_FOUND        follower: ERR_FORWARD_TO_OTHERS        silent: neither in time
//! well:      each probe_interval
//! in doubt or failing: at once, then after 0.2 s, 0.4 s ... 1.5 s, until one answers
//! ```
//! Probes show pages and metrics which servers are alive, before a standby is needed. They show the cluster which
//! server leads, and that it is well again without any query. Probes alone never refuse a query (`upstream::health`).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use mio::{Registry, Token};
use slab::Slab;

use super::cluster::{Cluster, Probed};
use super::health::{FIRST_PROBE_PAUSE, MAX_PROBE_PAUSE};
use super::link::{CONNECT_TIMEOUT, Link, LinkError};
use super::sharing::{Key, Sent};
use crate::spread::Spread;
use crate::wire::answer::Answer;
use crate::wire::message;

/// A server that takes longer than this to answer a probe is silent.
const PROBE_LIMIT: Duration = Duration::from_millis(1000);

/// A valid table name that no table has.
static PROBE_ARGS: LazyLock<Key> =
    LazyLock::new(|| message::query_args("meta-proxy.probe.no-such-table").into());

/// Tokens of probes start here; other tokens of the same `Poll` are below.
pub(super) const FIRST_PROBE: usize = usize::MAX / 2;

/// How often to check probes under way.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// One probe under way.
struct Probe {
    /// Id of the cluster.
    cluster: u64,
    link: Link,
}

/// The probes of one cluster.
struct Plan {
    cluster: Weak<Cluster>,
    /// When to probe next; `None`: only when queries fail.
    next_at: Option<Instant>,
    pause: Duration,
    started_at: Instant,
    under_way: usize,
    is_answered: bool,
}

/// All probes. `meta-watch` owns them.
pub(super) struct Probes {
    registry: Registry,
    interval: Duration,
    /// By id of the cluster.
    plans: HashMap<u64, Plan>,
    probes: Slab<Probe>,
    /// When to look again for due probes.
    look_at: Option<Instant>,
    spread: Spread,
}

impl Probes {
    /// `interval` is the time between two probes of a MetaServer; zero: probe only clusters in trouble.
    pub(super) fn new(registry: Registry, interval: Duration) -> Self {
        let spread = Spread::new(std::process::id().into());
        let (plans, probes) = (HashMap::new(), Slab::new());
        Probes { registry, interval, plans, probes, look_at: None, spread }
    }

    /// A random time of up to `at_most`, so that probes of many clusters do not coincide.
    fn jitter(&mut self, at_most: Duration) -> Duration {
        at_most.mul_f64((self.spread.number() % 1000) as f64 / 1000.0)
    }

    /// Adds a cluster that a route names from now on. Its first probes start within an interval, a second at most.
    pub(super) fn add(&mut self, id: u64, cluster: Weak<Cluster>, now: Instant) {
        let first = self.jitter(self.interval.min(Duration::from_secs(1)));
        let next_at = (!self.interval.is_zero()).then_some(now + first);
        let plan = Plan {
            next_at,
            pause: FIRST_PROBE_PAUSE,
            started_at: now,
            under_way: 0,
            is_answered: false,
            cluster,
        };
        self.plans.insert(id, plan);
        self.look_by(next_at);
    }

    /// Probes a cluster at once, because its queries failed in a row.
    pub(super) fn probe_now(&mut self, cluster: &Arc<Cluster>, now: Instant) {
        if let Some(plan) = self.plans.get_mut(&cluster.id) {
            (plan.next_at, plan.pause) = (Some(now), FIRST_PROBE_PAUSE);
            self.look_by(Some(now));
        }
    }

    fn look_by(&mut self, at: Option<Instant>) {
        self.look_at = [self.look_at, at].into_iter().flatten().min();
    }

    /// When to call [`Probes::run`] again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.look_at
    }

    /// Begins due probes, and ends those whose time is over.
    pub(super) fn run(&mut self, now: Instant) {
        if self.look_at.is_none_or(|at| now < at) {
            return;
        }
        self.look_at = None;
        let late: Vec<usize> = self
            .probes
            .iter()
            .filter(|(_, probe)| now >= probe.link.since() + CONNECT_TIMEOUT)
            .map(|(slot, _)| slot)
            .collect();
        late.into_iter().for_each(|slot| self.progress(slot));
        self.plans.retain(|_, plan| plan.cluster.strong_count() > 0);
        let due: Vec<Arc<Cluster>> = self
            .plans
            .values()
            .filter(|plan| plan.under_way == 0 && plan.next_at.is_some_and(|at| at <= now))
            .filter_map(|plan| plan.cluster.upgrade())
            .collect();
        due.iter().for_each(|cluster| self.begin(cluster, now));
        let next = self.plans.values().filter(|plan| plan.under_way == 0);
        let next = next.filter_map(|plan| plan.next_at).min();
        self.look_by(next);
        if !self.probes.is_empty() {
            self.look_by(Some(now + LOOK_EVERY));
        }
    }

    /// Probes all servers of a cluster.
    fn begin(&mut self, cluster: &Arc<Cluster>, now: Instant) {
        let servers = cluster.servers();
        let key = cluster.id;
        let plan = self.plans.get_mut(&key).expect("a cluster that is due has a plan");
        (plan.started_at, plan.is_answered) = (now, false);
        plan.under_way = servers.len();
        if servers.is_empty() {
            // The names of the cluster have no address yet.
            plan.next_at = Some(now + MAX_PROBE_PAUSE);
        }
        for server in servers {
            match self.send(key, server) {
                Ok(slot) => self.progress(slot),
                Err(why) => self.over(key, server, Probed::Silent(why.kind())),
            }
        }
    }

    fn send(&mut self, cluster: u64, server: SocketAddr) -> Result<usize, LinkError> {
        let mut link = Link::connect(server)?;
        link.ask(vec![Sent { key: PROBE_ARGS.clone(), number: 0 }]);
        let entry = self.probes.vacant_entry();
        let slot = entry.key();
        link.register(&self.registry, Token(FIRST_PROBE + slot))?;
        entry.insert(Probe { cluster, link });
        Ok(slot)
    }

    /// Handles an event on the link of this token.
    pub(super) fn ready(&mut self, token: usize) {
        self.progress(token - FIRST_PROBE);
    }

    fn progress(&mut self, slot: usize) {
        let Some(probe) = self.probes.get_mut(slot) else {
            return;
        };
        let (cluster, addr, mut answers) = (probe.cluster, probe.link.addr, Vec::new());
        let was_connected = probe.link.is_connected();
        let progress = probe.link.progress(&mut answers);
        let said = match (progress, answers.pop().map(|answered| answered.answer)) {
            (_, Some(Answer::Leader { .. })) => Probed::Leader,
            (_, Some(Answer::Follower { .. })) => Probed::Follower,
            (Err(why), None) => Probed::Silent(why.kind()),
            (Ok(_), None) if probe.link.since().elapsed() >= PROBE_LIMIT => {
                Probed::Silent(LinkError::TimedOut.kind())
            }
            (Ok(_), None) => {
                // Once connected, wait for bytes to read.
                if !was_connected && probe.link.is_connected() {
                    let token = Token(FIRST_PROBE + slot);
                    let again = probe.link.reregister(&self.registry, token);
                    // If this fails, the time limit ends the probe.
                    debug_assert!(again.is_ok());
                }
                return;
            }
        };
        let mut probe = self.probes.remove(slot);
        // Deregistering fails only for a link that is not registered.
        let _ = probe.link.deregister(&self.registry);
        self.over(cluster, addr, said);
    }

    /// Records that one probe has ended.
    fn over(&mut self, key: u64, server: SocketAddr, said: Probed) {
        let Some(plan) = self.plans.get_mut(&key) else {
            return;
        };
        plan.under_way -= 1;
        plan.is_answered |= !matches!(said, Probed::Silent(_));
        let Some(cluster) = plan.cluster.upgrade() else {
            return;
        };
        cluster.probed(server, said);
        if plan.under_way > 0 {
            return;
        }
        let (is_answered, started_at) = (plan.is_answered, plan.started_at);
        if !is_answered {
            cluster.probed_in_vain();
        }
        let is_in_trouble = !is_answered && (cluster.is_in_trouble() || !self.interval.is_zero());
        let jitter = self.jitter(self.interval / 5);
        let plan = self.plans.get_mut(&key).expect("the plan of a probe under way");
        plan.next_at = match is_in_trouble {
            true => Some(started_at + plan.pause),
            false if self.interval.is_zero() => None,
            false => Some(started_at + self.interval * 9 / 10 + jitter),
        };
        plan.pause = match is_answered {
            true => FIRST_PROBE_PAUSE,
            false => MAX_PROBE_PAUSE.min(2 * plan.pause),
        };
        let next_at = plan.next_at;
        self.look_by(next_at);
    }
}
