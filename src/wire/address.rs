//! Addresses `host:port` in settings and routes. Pure.

use std::net::SocketAddr;

/// Longest host name (RFC 1035).
const MAX_HOST_LEN: usize = 253;

/// Whether `text` is `name:port`, `1.2.3.4:port` or `[v6]:port`, the port not 0.
pub fn is_host_port(text: &str) -> bool {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return addr.port() != 0;
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    // A host of digits and dots is an IPv4 address that did not parse.
    (1..=MAX_HOST_LEN).contains(&host.len())
        && host.bytes().all(good)
        && host.bytes().any(|b| b.is_ascii_alphabetic())
        && !port.starts_with('+')
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}
