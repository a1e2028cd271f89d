//! Settings that are good alone but contradict each other. Pure.
//!
//! A fault cannot work; a warning works, but perhaps not as the operator expects.

use std::net::SocketAddr;

use super::keys::Keys;
use super::settings::Settings;

/// Reports all contradictions to `keys`.
pub fn check(settings: &Settings, keys: &mut Keys) {
    let Settings { accept, client, stop, .. } = settings;
    let mut ports = vec![("listen", settings.listen)];
    let further = settings.listeners.iter().map(|listener| ("listeners", listener.listen));
    for (key, addr) in further.chain(settings.admin.map(|admin| ("admin.listen", admin))) {
        if let Some((other, _)) = ports.iter().find(|(_, other)| is_same_socket(*other, addr)) {
            keys.fault(key, format!("want another port than that of {other}, got {addr}"));
        }
        ports.push((key, addr));
    }
    let (delay, min_age, grace) =
        (stop.delay.as_millis(), stop.min_age.as_millis(), stop.grace.as_millis());
    if delay + min_age > grace {
        let what = format!(
            "{grace} is less than stop.delay + stop.min_age, {}: connections are closed before \
             they are min_age old, and Go clients do not reconnect for a minute",
            delay + min_age
        );
        keys.warn("stop.grace", what);
    }
    let parts = [
        (
            "limits.max_connections_per_address",
            accept.max_connections_per_address,
            "limits.max_connections",
            accept.max_connections,
        ),
        (
            "limits.max_pending_per_client",
            client.max_pending as usize,
            "limits.max_pending",
            client.max_pending_total,
        ),
        (
            "limits.max_unread_bytes",
            client.max_unread_bytes,
            "limits.max_unread_total_bytes",
            client.max_unread_total_bytes,
        ),
    ];
    for (part, of_one, whole, of_all) in parts {
        // A default above a small total is no mistake of the operator.
        if of_one > of_all && keys.is_set(part) {
            keys.warn(part, format!("{of_one} is above {whole}, {of_all}: that limit applies"));
        }
    }
}

/// Whether the two addresses share connections: with SO_REUSEPORT the second listens without an error.
fn is_same_socket(one: SocketAddr, other: SocketAddr) -> bool {
    let meet = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && meet
}
