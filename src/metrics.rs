//! The proxy's counters: relaxed atomics. The code that handles an event counts it, and `admin::metrics` reads the
//! counts.
//!
//! Counters of a table are in its entry of the route table, and counters of a cluster are in the cluster. They end with
//! the entry, which bounds the number of labels.

use std::marker::PhantomData;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::wire::error_code::OwnError;

/// A number that grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the latency buckets, us. Without trouble, answers take tens to hundreds; the last bound is above the
/// default deadline of a query.
pub const LATENCY_BOUNDS_US: [u64; 15] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000,
];

/// How long answers took.
#[derive(Debug, Default)]
pub struct Latency {
    /// One per bound; the last one counts answers above all bounds.
    buckets: [Count; LATENCY_BOUNDS_US.len() + 1],
    sum_us: Count,
}

impl Latency {
    /// Counts `n` answers that took this long.
    pub fn add(&self, took: Duration, n: u64) {
        let took_us = took.as_micros() as u64;
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound_us| *bound_us < took_us);
        self.buckets[bucket].add(n);
        self.sum_us.add(n * took_us);
    }

    /// Answers by bucket, and the sum of their times.
    pub fn get(&self) -> ([u64; LATENCY_BOUNDS_US.len() + 1], Duration) {
        let buckets = std::array::from_fn(|index| self.buckets[index].get());
        (buckets, Duration::from_micros(self.sum_us.get()))
    }
}

/// A reason for counting an event: one of a few.
pub trait Reason: Copy + 'static {
    const ALL: &'static [Self];

    /// Index in [`Self::ALL`].
    fn index(self) -> usize;

    /// Value of the label.
    fn label(self) -> &'static str;
}

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$why:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$why])* $variant,)+ }

        impl Reason for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn index(self) -> usize {
                self as usize
            }

            fn label(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

reasons! {
    /// Why the proxy answers a query `ERR_SERVICE_NOT_ACTIVE` without asking a cluster.
    Shed {
        /// Too many queries of the client are under way.
        ClientPending => "client_pending",
        /// Too many queries of the client's address are under way.
        AddressPending => "address_pending",
        /// Too many queries of all clients are under way.
        Pending => "pending",
        /// All clients, or those of its address, hold too many bytes.
        Unread => "unread",
        /// The cluster is failing.
        FailingCluster => "failing_cluster",
    }
}

reasons! {
    /// Why a connection is not accepted.
    Refusal {
        /// Too many connections are open.
        MaxConnections => "max_connections",
        /// Too many connections from the client's address are open.
        MaxPerAddress => "max_connections_per_address",
        /// The system refuses the connection.
        System => "system",
    }
}

reasons! {
    /// Why a connection closed.
    Closed {
        /// The client closed it.
        Client => "client",
        /// A read or write failed.
        Io => "io",
        /// The client sent bytes that are no request.
        Malformed => "malformed",
        /// The client did not finish a frame in time.
        HalfFrame => "half_frame",
        /// The client does not take its answers.
        Unread => "unread",
        /// The proxy lost a query by a bug.
        QueryLost => "query_lost",
        /// The proxy drains or stops.
        Stop => "stop",
    }
}

reasons! {
    /// Methods other than QueryConfig.
    OtherMethod {
        /// `RPC_NEGOTIATION`.
        Negotiation => "negotiation",
        /// A method that only a MetaServer serves.
        NotServed => "not_served",
    }
}

reasons! {
    /// Which clients cannot use a MetaServer's answer as it is.
    Unfit {
        /// Clients at a port without host_port fields: the proxy cannot remove the fields.
        HostPortFields => "host_port_fields",
        /// C++ clients.
        Rdsn => "rdsn",
    }
}

impl Reason for OwnError {
    const ALL: &'static [Self] =
        &[OwnError::UnknownTable, OwnError::UnusableRoute, OwnError::Unavailable];

    fn index(self) -> usize {
        // Match by name, so that a reason missing in ALL does not compile.
        match self {
            OwnError::UnknownTable => 0,
            OwnError::UnusableRoute => 1,
            OwnError::Unavailable => 2,
        }
    }

    fn label(self) -> &'static str {
        self.name()
    }
}

/// A number that grows, and the time when it last grew.
#[derive(Debug, Default)]
pub struct Tally {
    count: Count,
    /// Milliseconds since the process started, at least 1; 0: never.
    last_ms: AtomicU64,
}

impl Tally {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.last_ms.store(now_ms(), Relaxed);
        self.count.add(n);
    }

    pub fn get(&self) -> u64 {
        self.count.get()
    }

    /// Time since the number last grew; `None`: never.
    pub fn last(&self) -> Option<Duration> {
        let last_ms = Some(self.last_ms.load(Relaxed)).filter(|last_ms| *last_ms > 0)?;
        Some(Duration::from_millis(now_ms().saturating_sub(last_ms)))
    }
}

/// Time since the process started, at least 1.
fn now_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    1 + START.elapsed().as_millis() as u64
}

/// Counts by reason.
#[derive(Debug)]
pub struct By<R: Reason>(Box<[Tally]>, PhantomData<R>);

impl<R: Reason> Default for By<R> {
    fn default() -> Self {
        By(R::ALL.iter().map(|_| Tally::default()).collect(), PhantomData)
    }
}

impl<R: Reason> By<R> {
    pub fn at(&self, why: R) -> &Tally {
        &self.0[why.index()]
    }

    /// All counts.
    pub fn all(&self) -> impl Iterator<Item = (R, &Tally)> {
        R::ALL.iter().copied().zip(&*self.0)
    }
}

/// Counters of the whole proxy.
#[derive(Debug, Default)]
pub struct Metrics {
    /// From a query's arrival to its answer.
    pub latency: Latency,
    /// Answers of the proxy itself.
    pub own_errors: By<OwnError>,
    /// Calls to clusters.
    pub calls: Count,
    /// Queries that shared the call of another query.
    pub flights_joined: Count,
    /// Queries refused without asking a cluster.
    pub shed: By<Shed>,
    /// Requests other than QueryConfig.
    pub other_methods: By<OtherMethod>,
    /// Connections accepted.
    pub accepted: Count,
    /// Connections not accepted.
    pub refused: By<Refusal>,
    /// Connections closed.
    pub closed: By<Closed>,
    /// Answers of MetaServers with something unexpected in them.
    pub unfit: By<Unfit>,
    /// Queries that waited for ZooKeeper.
    pub misses: Count,
    /// Failed pushes to the falcon agent.
    pub falcon_failures: Count,
    /// Whether the last push failed.
    pub falcon_fails: AtomicBool,
}

impl Metrics {
    /// Counts an answer of the proxy itself.
    pub fn own_error(&self, error: OwnError) {
        self.own_errors.at(error).add(1);
    }

    /// Connections open now.
    pub fn connections(&self) -> u64 {
        let closed: u64 = self.closed.all().map(|(_, closed)| closed.get()).sum();
        self.accepted.get().saturating_sub(closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_has_its_place<R: Reason + std::fmt::Debug + PartialEq>() {
        for (index, why) in R::ALL.iter().enumerate() {
            assert_eq!(why.index(), index, "{why:?}");
        }
        let counts = By::<R>::default();
        counts.at(R::ALL[1]).add(3);
        let counted: Vec<R> =
            counts.all().filter(|(_, n)| n.get() == 3).map(|(why, _)| why).collect();
        assert_eq!(counted, [R::ALL[1]]);
        assert!(counts.at(R::ALL[0]).last().is_none() && counts.at(R::ALL[1]).last().is_some());
    }

    #[test]
    fn every_reason_has_its_own_count() {
        each_has_its_place::<Shed>();
        each_has_its_place::<Refusal>();
        each_has_its_place::<Closed>();
        each_has_its_place::<OtherMethod>();
        each_has_its_place::<Unfit>();
        each_has_its_place::<OwnError>();
    }

    #[test]
    fn an_answer_falls_into_the_bucket_whose_bound_it_does_not_exceed() {
        let latency = Latency::default();
        for (us, bucket) in [(0, 0), (50, 0), (51, 1), (2_000_000, 14), (2_000_001, 15)] {
            let before = latency.get().0[bucket];
            latency.add(Duration::from_micros(us), 2);
            assert_eq!(latency.get().0[bucket], before + 2, "{us} us");
        }
        assert_eq!(latency.get().1, Duration::from_micros(2 * 4_000_102));
    }
}
