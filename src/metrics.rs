//! What the proxy counts. Relaxed atomics, written where things happen; read by `admin::metrics` when somebody asks.
//!
//! What belongs to a table is counted in its entry of the route table, what belongs to a cluster in the cluster, so
//! that it goes with them and labels stay bounded.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::wire::error_code::OwnError;

/// A number that grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// So many more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the latency buckets, us. Answers in calm take tens to hundreds; the last is above the default
/// deadline of a query.
pub const LATENCY_BOUNDS_US: [u64; 15] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000,
];

/// How long answers took.
#[derive(Debug, Default)]
pub struct Latency {
    /// By bound; the last is above all of them.
    buckets: [Count; LATENCY_BOUNDS_US.len() + 1],
    sum_us: Count,
}

impl Latency {
    /// `n` answers took so long.
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

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$why:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$why])* $variant,)+ }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Value of the label.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

reasons! {
    /// Why a query is answered `ERR_SERVICE_NOT_ACTIVE` without a try.
    Shed {
        /// Its client has as many under way as it may.
        ClientPending => "client_pending",
        /// All clients together have.
        Pending => "pending",
        /// Too many queries wait for ZooKeeper.
        Misses => "misses",
        /// Its cluster keeps failing.
        FailingCluster => "failing_cluster",
    }
}

reasons! {
    /// Why a connection is not accepted.
    Refusal {
        /// As many are open as may be.
        MaxConnections => "max_connections",
        /// As many from that address.
        MaxPerAddress => "max_connections_per_address",
        /// The system lets none be opened.
        System => "system",
    }
}

reasons! {
    /// Why a connection closed.
    Closed {
        /// The client closed it.
        Client => "client",
        /// Reading or writing failed.
        Io => "io",
        /// What came can never become a request.
        Malformed => "malformed",
        /// A frame was not finished in time.
        HalfFrame => "half_frame",
        /// The client does not take its answers.
        Unread => "unread",
        /// A query was lost by a fault of ours.
        QueryLost => "query_lost",
        /// The proxy drains or stops.
        Stop => "stop",
    }
}

reasons! {
    /// What else than QueryConfig was asked.
    OtherMethod {
        /// `RPC_NEGOTIATION`.
        Negotiation => "negotiation",
        /// A method that only a MetaServer serves.
        NotServed => "not_served",
    }
}

/// Counts by one of the enums above.
#[derive(Debug)]
pub struct By<const N: usize>([Count; N]);

impl<const N: usize> Default for By<N> {
    fn default() -> Self {
        By(std::array::from_fn(|_| Count::default()))
    }
}

impl<const N: usize> By<N> {
    /// The count at this place of the enum.
    pub fn at(&self, index: usize) -> &Count {
        &self.0[index]
    }
}

/// What is counted for the whole proxy.
#[derive(Debug, Default)]
pub struct Metrics {
    /// From a query's arrival to its answer.
    pub latency: Latency,
    /// Answers that the proxy gave itself, by [`OwnError`].
    pub own_errors: By<3>,
    /// Calls to clusters.
    pub calls: Count,
    /// Queries that joined a call instead of making one of their own.
    pub flights_joined: Count,
    /// By [`Shed`].
    pub shed: By<{ Shed::ALL.len() }>,
    /// By [`OtherMethod`].
    pub other_methods: By<{ OtherMethod::ALL.len() }>,
    /// Connections accepted.
    pub accepted: Count,
    /// By [`Refusal`].
    pub refused: By<{ Refusal::ALL.len() }>,
    /// By [`Closed`].
    pub closed: By<{ Closed::ALL.len() }>,
    /// Queries that waited for ZooKeeper.
    pub misses: Count,
    /// Pushes that the falcon agent did not take.
    pub falcon_failures: Count,
}

impl Metrics {
    /// An own answer was given.
    pub fn own_error(&self, error: OwnError) {
        self.own_errors.at(error as usize).add(1);
    }

    /// Connections open now.
    pub fn connections(&self) -> u64 {
        let closed: u64 = Closed::ALL.iter().map(|why| self.closed.at(*why as usize).get()).sum();
        self.accepted.get().saturating_sub(closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
