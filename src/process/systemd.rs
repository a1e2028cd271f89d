//! Sends messages to the service manager, and takes the sockets it has opened: sd_notify(3), sd_watchdog_enabled(3),
//! sd_listen_fds(3), without libsystemd. Without a service manager these functions do nothing.

use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use listenfd::ListenFd;
use log::warn;
use rustix::time::{ClockId, clock_gettime};

pub struct Notifier {
    manager: Option<(UnixDatagram, SocketAddr)>,
}

impl Notifier {
    /// Connects to the socket that the environment names.
    pub fn from_env() -> Self {
        let name = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let open = |name: &OsStr| Ok((UnixDatagram::unbound()?, address(name)?));
        let manager = name.as_deref().and_then(|name| {
            let opened: io::Result<_> = open(name);
            opened.inspect_err(|e| warn!("NOTIFY_SOCKET {}: {e}", name.display())).ok()
        });
        Notifier { manager }
    }

    /// Reports that the proxy serves; `status` is text for people.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}\n"));
    }

    /// Reports that the proxy reads its settings again; [`Notifier::ready`] must follow.
    pub fn reloading(&self) {
        // Since systemd 253 the message needs the time, so that systemd can tell it from an earlier one.
        let now = clock_gettime(ClockId::Monotonic);
        let us = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={us}\n"));
    }

    /// Reports that the proxy stops; `status` is text for people.
    pub fn stopping(&self, status: &str) {
        self.tell(&format!("STOPPING=1\nSTATUS={status}\n"));
    }

    /// Feeds the watchdog.
    pub fn alive(&self) {
        self.tell("WATCHDOG=1\n");
    }

    fn tell(&self, state: &str) {
        if let Some((socket, manager)) = &self.manager
            && let Err(e) = socket.send_to_addr(state.as_bytes(), manager)
        {
            warn!("cannot send {:?} to the service manager: {e}", state.trim_end());
        }
    }
}

/// An address from a path, or from an abstract name after `@`.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
}

/// The interval of the service manager's watchdog, if it has one.
pub fn watchdog_interval() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let is_for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let interval = number("WATCHDOG_USEC").filter(|us| is_for_us && *us > 0)?;
    Some(Duration::from_micros(interval))
}

/// Sockets that the service manager has opened for the proxy.
#[derive(Default)]
pub struct Given {
    /// The first socket, for clients.
    pub clients: Option<TcpListener>,
    /// The second socket, for the pages.
    pub admin: Option<TcpListener>,
}

/// Takes the sockets over. Call this before the first thread starts, because it changes the environment.
pub fn given() -> io::Result<Given> {
    let mut sockets = ListenFd::from_env();
    Ok(Given { clients: sockets.take_tcp_listener(0)?, admin: sockets.take_tcp_listener(1)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_have_paths_or_abstract_names() {
        let path = address(OsStr::new("/run/systemd/notify")).unwrap();
        assert_eq!(path.as_pathname().unwrap().to_str(), Some("/run/systemd/notify"));
        let name = address(OsStr::new("@/org/freedesktop/notify")).unwrap();
        assert_eq!(name.as_abstract_name(), Some(&b"/org/freedesktop/notify"[..]));
    }
}
