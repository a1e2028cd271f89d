//! Which host a client address belongs to. Pure.
//!
//! An IPv4 client of an IPv6 socket is shown and counted as IPv4. One machine usually has a whole IPv6 /64 for itself, so limits
//! for an address count a /64 as one.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The address as the client knows it: an IPv4 client of an IPv6 socket has its IPv4 address.
pub fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// The address that stands for the client's host in all limits and turns.
pub fn host_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_host_are_one() {
        for (why, ip, host) in [
            ("IPv4 is itself", "10.1.2.3", "10.1.2.3"),
            ("IPv4 that came by an IPv6 socket", "::ffff:10.1.2.3", "10.1.2.3"),
            ("a /64", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("another /64", "2001:db8:1:3::1", "2001:db8:1:3::"),
            ("loopback", "::1", "::"),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(host_of(ip), host.parse::<IpAddr>().unwrap(), "{why}");
        }
        let shown = canonical("[::ffff:10.1.2.3]:99".parse().unwrap());
        assert_eq!(shown.to_string(), "10.1.2.3:99");
        let shown = canonical("[2001:db8::1]:99".parse().unwrap());
        assert_eq!(shown.to_string(), "[2001:db8::1]:99");
    }
}
