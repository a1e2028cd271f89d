//! Limits on the queries under way and the bytes of clients, summed over one host and over all hosts. Atomics only.
//!
//! ```text
//! connection ──▶ host: at most a quarter of the queries, half of the bytes ──▶ all: max_pending, max_unread_total_bytes
//! ```
//! The limit per host keeps one busy or hostile host from shutting out the others.
//!
//! An answer that many clients share is in memory once: [`Hold`] lives as long as the answer, and counts for the first
//! host that left some of it unsent.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::config::ClientLimits;
use crate::metrics::Shed;

/// One host may have one in four of all queries under way.
const HOSTS_FOR_ALL_QUERIES: usize = 4;
/// One host may have half of all held bytes.
const HOSTS_FOR_ALL_BYTES: usize = 2;

#[derive(Debug, Default)]
pub struct Sums {
    /// Queries under way, by their weight.
    pending: AtomicUsize,
    /// Bytes of unsent answers and unfinished frames.
    held_bytes: AtomicUsize,
}

impl Sums {
    /// Queries under way, by their weight.
    pub fn pending(&self) -> usize {
        self.pending.load(SeqCst)
    }

    /// Bytes of unsent answers and unfinished frames.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(SeqCst)
    }
}

/// The queries and bytes that the connections of one host hold together.
#[derive(Debug)]
pub struct HostShare {
    /// The host, see [`super::host::host_of`].
    pub host: IpAddr,
    own: Sums,
    all: Arc<Sums>,
}

impl HostShare {
    pub fn new(host: IpAddr, all: Arc<Sums>) -> Self {
        HostShare { host, own: Sums::default(), all }
    }

    /// Counts a query of this weight as under way, unless a limit is reached.
    pub fn begin_query(&self, weight: usize, limits: &ClientLimits) -> Result<(), Shed> {
        if self.is_full(limits) {
            return Err(Shed::Unread);
        }
        let own = self.own.pending.fetch_add(weight, SeqCst) + weight;
        let all = self.all.pending.fetch_add(weight, SeqCst) + weight;
        let max_all = limits.max_pending_total;
        let max_own = (max_all / HOSTS_FOR_ALL_QUERIES).max(1);
        let shed = if own > max_own {
            Shed::AddressPending
        } else if all > max_all {
            Shed::Pending
        } else {
            return Ok(());
        };
        self.end_query(weight);
        Err(shed)
    }

    /// How many more queries may be under way, over all hosts, counting the caller's own as free.
    pub fn free_queries(&self, limits: &ClientLimits) -> usize {
        (limits.max_pending_total + 1).saturating_sub(self.all.pending())
    }

    /// Uncounts a query of this weight: it is answered, or never will be.
    pub fn end_query(&self, weight: usize) {
        self.own.pending.fetch_sub(weight, SeqCst);
        self.all.pending.fetch_sub(weight, SeqCst);
    }

    /// Sets the bytes that `counted` counts. Adds the new bytes before it subtracts the old ones, so that no sum ever
    /// wraps below 0.
    pub fn set_held(&self, counted: &AtomicUsize, bytes: usize) {
        if bytes > 0 || counted.load(SeqCst) > 0 {
            self.add_held(bytes);
            self.release(counted.swap(bytes, SeqCst));
        }
    }

    fn add_held(&self, bytes: usize) {
        self.own.held_bytes.fetch_add(bytes, SeqCst);
        self.all.held_bytes.fetch_add(bytes, SeqCst);
    }

    fn release(&self, bytes: usize) {
        self.own.held_bytes.fetch_sub(bytes, SeqCst);
        self.all.held_bytes.fetch_sub(bytes, SeqCst);
    }

    /// Whether this host, or all hosts together, hold more bytes than they may.
    pub fn is_full(&self, limits: &ClientLimits) -> bool {
        self.all.held_bytes() > limits.max_unread_total_bytes || self.is_host_full(limits)
    }

    /// Whether this host holds more bytes than it may.
    pub fn is_host_full(&self, limits: &ClientLimits) -> bool {
        self.own.held_bytes() > limits.max_unread_total_bytes / HOSTS_FOR_ALL_BYTES
    }

    /// Whether all hosts together hold twice as many bytes as they may.
    pub fn is_flooded(&self, limits: &ClientLimits) -> bool {
        self.all.held_bytes() / 2 > limits.max_unread_total_bytes
    }
}

/// Bytes that count as held as long as this value lives.
#[derive(Debug)]
pub struct Hold {
    share: Arc<HostShare>,
    bytes: usize,
}

impl Hold {
    pub fn new(share: &Arc<HostShare>, bytes: usize) -> Self {
        share.add_held(bytes);
        Hold { share: share.clone(), bytes }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.share.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn limits() -> ClientLimits {
        ClientLimits {
            max_frame_bytes: 1,
            max_pending: 1,
            max_pending_total: 100,
            max_unread_bytes: 1,
            max_unread_total_bytes: 1_000,
            frame_timeout: Duration::ZERO,
            unread_timeout: Duration::ZERO,
        }
    }

    #[test]
    fn one_host_gets_a_quarter_of_the_queries_and_all_hosts_no_more_than_all() {
        let (limits, all) = (limits(), Arc::new(Sums::default()));
        let hosts: Vec<HostShare> =
            (0..5).map(|n| HostShare::new([10, 0, 0, n].into(), all.clone())).collect();
        for host in &hosts[..4] {
            assert_eq!(host.begin_query(24, &limits), Ok(()));
            assert_eq!(host.begin_query(2, &limits), Err(Shed::AddressPending));
            assert_eq!(host.begin_query(1, &limits), Ok(()));
        }
        assert_eq!(hosts[4].begin_query(1, &limits), Err(Shed::Pending));
        assert_eq!(all.pending(), 100, "what is refused is not counted");
        hosts[0].end_query(25);
        assert_eq!(hosts[4].begin_query(1, &limits), Ok(()));
    }

    #[test]
    fn a_host_that_holds_half_of_the_bytes_is_refused_and_others_are_not() {
        let (limits, all) = (limits(), Arc::new(Sums::default()));
        let [greedy, other] =
            [1, 2].map(|n| Arc::new(HostShare::new([10, 0, 0, n].into(), all.clone())));
        let first = Hold::new(&greedy, 501);
        assert_eq!(greedy.begin_query(1, &limits), Err(Shed::Unread));
        assert_eq!(other.begin_query(1, &limits), Ok(()));
        let second = Hold::new(&other, 500);
        assert_eq!(other.begin_query(1, &limits), Err(Shed::Unread), "all hold too much");
        drop((first, second));
        assert_eq!((all.held_bytes(), greedy.begin_query(1, &limits)), (0, Ok(())));
    }
}
