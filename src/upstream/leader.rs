//! Chooses which server to ask next. Pure: addresses and time in, an address out.
//!
//! ```text
//! the leader ─▶ servers of the list ─▶ those that failed lately ─▶ leaders that followers named and that failed lately
//! ```
//! [`Memory`] belongs to a cluster: which server led last or was named by a follower since, and which servers failed
//! lately. When the list changes, the memory forgets leaders that the new list does not name.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A server that failed comes last for this long. Clients notice a leader election in less time, and an operator waits
/// longer after a restart.
const DISTRUST: Duration = Duration::from_secs(3);

/// Servers outside the list to remember because a follower named them. A true forward names the leader, so one is
/// enough; more come from servers that disagree or lie.
const MAX_NAMED: usize = 3;

/// Facts that calls have learned of the MetaServers of one cluster.
#[derive(Debug, Default)]
pub struct Memory {
    servers: Vec<SocketAddr>,
    leader: Option<SocketAddr>,
    /// Leaders outside the list that followers named.
    named: Vec<SocketAddr>,
    failed_at: HashMap<SocketAddr, Instant>,
}

impl Memory {
    /// The server that answered last as leader, or was named as leader since.
    pub fn leader(&self) -> Option<SocketAddr> {
        self.leader
    }

    /// The addresses of the list.
    pub fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// Sets the addresses of the list. True: they differ from before.
    pub fn set_servers(&mut self, servers: Vec<SocketAddr>) -> bool {
        if servers == self.servers {
            return false;
        }
        self.servers = servers;
        self.named.clear();
        self.leader = self.leader.filter(|leader| self.servers.contains(leader));
        true
    }

    /// Whether the list has this address, or a follower has named it since the list changed. An answer of any other
    /// server was on its way when the list changed.
    pub fn is_known(&self, addr: &SocketAddr) -> bool {
        self.servers.contains(addr) || self.named.contains(addr)
    }

    /// Records that `addr` answered as leader. True: the leader is new.
    pub fn led(&mut self, addr: SocketAddr) -> bool {
        self.failed_at.remove(&addr);
        self.is_known(&addr) && self.leader.replace(addr) != Some(addr)
    }

    /// Records that `follower` names `leader`. That server is next, or last if it failed lately.
    pub fn named(&mut self, follower: SocketAddr, leader: SocketAddr, now: Instant) {
        if !self.is_known(&follower) {
            return;
        }
        if !self.servers.contains(&leader) && !self.named.contains(&leader) {
            if self.named.len() == MAX_NAMED {
                self.named.remove(0);
            }
            self.named.push(leader);
        }
        if !self.is_distrusted(&leader, now) {
            self.leader = Some(leader);
        }
    }

    /// Records that `addr` gave no usable answer.
    pub fn failed(&mut self, addr: SocketAddr, now: Instant) {
        // Forget old failures, so that the map stays small.
        self.failed_at.retain(|_, at| now < *at + DISTRUST);
        self.failed_at.insert(addr, now);
        self.deposed(addr);
    }

    /// Records that `addr` does not lead.
    pub fn deposed(&mut self, addr: SocketAddr) {
        if self.leader == Some(addr) {
            self.leader = None;
        }
    }

    fn is_distrusted(&self, addr: &SocketAddr, now: Instant) -> bool {
        self.failed_at.get(addr).is_some_and(|at| now < *at + DISTRUST)
    }

    /// Chooses the server for a question. `is_tried` says which servers were asked in this round, or still have the
    /// question.
    pub fn choose(
        &self,
        is_tried: impl Fn(&SocketAddr) -> bool,
        now: Instant,
    ) -> Option<SocketAddr> {
        let is_free = |addr: &&SocketAddr| !is_tried(addr);
        let is_good = |addr: &&SocketAddr| !self.is_distrusted(addr, now);
        self.leader
            .as_ref()
            .filter(is_free)
            .or_else(|| self.servers.iter().filter(is_free).find(is_good))
            .or_else(|| self.servers.iter().chain(&self.named).find(is_free))
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], n))
    }

    fn memory(servers: &[u16]) -> Memory {
        let mut memory = Memory::default();
        memory.set_servers(servers.iter().map(|n| server(*n)).collect());
        memory
    }

    fn round(memory: &Memory, now: Instant) -> Vec<u16> {
        let mut tried = Vec::new();
        while let Some(addr) = memory.choose(|addr| tried.contains(addr), now) {
            tried.push(addr);
        }
        tried.iter().map(SocketAddr::port).collect()
    }

    #[test]
    fn the_leader_first_and_failed_servers_last() {
        let start = Instant::now();
        let mut memory = memory(&[1, 2, 3]);
        assert_eq!(round(&memory, start), [1, 2, 3]);
        assert!(memory.led(server(3)));
        assert!(!memory.led(server(3)));
        assert_eq!(round(&memory, start), [3, 1, 2]);
        memory.failed(server(3), start);
        memory.failed(server(1), start);
        assert_eq!(round(&memory, start), [2, 1, 3]);
        assert_eq!(round(&memory, start + DISTRUST), [1, 2, 3], "forgiven");
        memory.named(server(1), server(9), start);
        assert!(!memory.led(server(9)));
        assert_eq!(round(&memory, start), [9, 2, 1, 3], "a leader outside the list");
    }

    #[test]
    fn a_forward_is_followed_unless_its_leader_has_just_failed() {
        let start = Instant::now();
        let mut memory = memory(&[1, 2, 3]);
        memory.named(server(1), server(2), start);
        assert_eq!(round(&memory, start), [2, 1, 3]);
        memory.failed(server(2), start);
        memory.named(server(1), server(2), start);
        assert_eq!(round(&memory, start), [1, 3, 2], "it has just failed");
        memory.named(server(1), server(9), start);
        assert_eq!(round(&memory, start), [9, 1, 3, 2], "outside the list");
        memory.failed(server(9), start);
        memory.named(server(1), server(9), start);
        assert_eq!(round(&memory, start), [1, 3, 2, 9]);
        for liar in 20..30 {
            memory.failed(server(liar), start);
            memory.named(server(1), server(liar), start);
        }
        assert_eq!(round(&memory, start).len(), 3 + MAX_NAMED, "liars cannot keep a query busy");
    }

    #[test]
    fn a_leader_ends_with_the_list_that_named_it() {
        let start = Instant::now();
        let mut memory = memory(&[1, 2]);
        memory.led(server(1));
        assert!(!memory.set_servers(vec![server(1), server(2)]));
        assert!(memory.set_servers(vec![server(1), server(3)]));
        assert_eq!(memory.leader(), Some(server(1)), "it is named still");
        memory.named(server(1), server(9), start);
        memory.led(server(9));
        memory.set_servers(vec![server(3), server(4)]);
        assert_eq!(round(&memory, start), [3, 4], "nobody names 9 or 1 now");
        // These answers were on the way when the list changed.
        assert!(!memory.led(server(9)));
        memory.named(server(1), server(9), start);
        assert_eq!(round(&memory, start), [3, 4], "who answers late names nobody");
        memory.named(server(3), server(9), start);
        assert_eq!(round(&memory, start), [9, 3, 4], "named since");
    }
}
