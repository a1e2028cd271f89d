//! The hosts of all clients: how many connections each has, and its share of the limits. Pure.
//!
//! A host without connections keeps its share while its queries are under way. Otherwise it could reconnect to get a
//! new share.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::share::{HostShare, Sums};

/// Forget hosts without a connection once there are more hosts than twice the connected ones and this many.
const SPARE: usize = 64;

/// All hosts, owned by `accept`.
pub struct Hosts {
    by_ip: HashMap<IpAddr, Host>,
    /// Hosts that have a connection.
    connected: usize,
    all: Arc<Sums>,
}

struct Host {
    connections: usize,
    share: Arc<HostShare>,
}

impl Hosts {
    /// The shares of the hosts are parts of `all`.
    pub fn new(all: Arc<Sums>) -> Self {
        Hosts { by_ip: HashMap::new(), connected: 0, all }
    }

    /// Connections of this host.
    pub fn connections(&self, ip: IpAddr) -> usize {
        self.by_ip.get(&ip).map_or(0, |host| host.connections)
    }

    /// The share of the host, for a new connection. Call [`Hosts::connected`] once the connection is registered.
    pub fn share(&mut self, ip: IpAddr) -> Arc<HostShare> {
        if let Some(host) = self.by_ip.get(&ip) {
            return host.share.clone();
        }
        if self.by_ip.len() > 2 * self.connected + SPARE {
            self.by_ip.retain(|_, host| host.connections > 0 || Arc::strong_count(&host.share) > 1);
        }
        let share = Arc::new(HostShare::new(ip, self.all.clone()));
        self.by_ip.insert(ip, Host { connections: 0, share: share.clone() });
        share
    }

    /// Counts a new connection of the host. Only after [`Hosts::share`].
    pub fn connected(&mut self, ip: IpAddr) {
        if let Some(host) = self.by_ip.get_mut(&ip) {
            self.connected += usize::from(host.connections == 0);
            host.connections += 1;
        }
    }

    /// Uncounts a connection of the host.
    pub fn disconnected(&mut self, ip: IpAddr) {
        if let Some(host) = self.by_ip.get_mut(&ip) {
            host.connections -= 1;
            self.connected -= usize::from(host.connections == 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_keeps_its_share_while_its_queries_are_under_way() {
        let mut hosts = Hosts::new(Arc::default());
        let ip = |n: u16| IpAddr::from([10, 0, (n >> 8) as u8, n as u8]);
        let share = hosts.share(ip(1));
        hosts.connected(ip(1));
        hosts.connected(ip(1));
        assert_eq!(hosts.connections(ip(1)), 2);
        for _ in 0..2 {
            hosts.disconnected(ip(1));
        }
        for n in 2..1_000 {
            drop(hosts.share(ip(n)));
            hosts.connected(ip(n));
            hosts.disconnected(ip(n));
        }
        assert!(Arc::ptr_eq(&share, &hosts.share(ip(1))), "it has come again");
        assert!(hosts.by_ip.len() <= SPARE + 2, "{} hosts are kept", hosts.by_ip.len());
    }
}
