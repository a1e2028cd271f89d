//! The state of the connection to ZooKeeper, for pages and metrics. Only `zk-watch` writes it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use super::connection::Granting;

/// Whether changes of routes are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// There is no connection, and changes go unseen.
    Down,
    /// There is one, and what changed before it came is being read.
    Confirming,
    /// There is one, and all that is cached is current.
    Confirmed,
}

/// Whether the route tool finds this proxy, below the control znode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Membership {
    /// There is no control znode.
    #[default]
    Off,
    /// The proxy has not told yet that it is there.
    Due,
    /// It has.
    Member,
    /// It cannot, for this reason.
    Fault(String),
}

/// The state of the connection.
#[derive(Clone, Debug)]
pub struct View {
    /// Whether changes are noticed.
    pub trust: Trust,
    /// Since when it is so.
    pub since: Instant,
    /// The server, while there is a connection.
    pub server: Option<SocketAddr>,
    /// The session, once the server has answered.
    pub session: Option<Granting>,
    /// The znode above the tables.
    pub root: String,
    /// The session time-out asked for.
    pub asked_timeout: Duration,
    /// Connections built since the start.
    pub built: u64,
    /// The newest change that a server answered by, over the connection that there is.
    pub seen_zxid: i64,
    /// Whether the route tool finds this proxy.
    pub membership: Membership,
    /// Why the last connection was given up, or not made.
    pub fault: Option<String>,
}

/// The view, shared.
#[derive(Clone)]
pub struct Status(Arc<Mutex<View>>);

impl Status {
    /// Nothing is known yet.
    pub fn new(root: &str, asked_timeout: Duration) -> Self {
        Status(Arc::new(Mutex::new(View {
            trust: Trust::Down,
            since: Instant::now(),
            server: None,
            session: None,
            root: root.to_owned(),
            asked_timeout,
            built: 0,
            seen_zxid: 0,
            membership: Membership::Off,
            fault: None,
        })))
    }

    /// As it is now.
    pub fn view(&self) -> View {
        self.0.lock().clone()
    }

    /// There is a connection to this server.
    pub fn connected(&self, server: SocketAddr, session: Granting) {
        let mut view = self.0.lock();
        (view.server, view.session) = (Some(server), Some(session));
        view.built += 1;
        view.seen_zxid = 0;
        turn(&mut view, Trust::Confirming);
    }

    /// A server answered that knows of changes up to this one.
    pub fn saw(&self, zxid: i64) {
        let mut view = self.0.lock();
        view.seen_zxid = view.seen_zxid.max(zxid);
    }

    /// From now on another time-out is asked for, and the tables are below this znode.
    pub fn asks(&self, root: &str, timeout: Duration) {
        let mut view = self.0.lock();
        view.asked_timeout = timeout;
        view.root = root.to_owned();
    }

    /// Whether the route tool finds this proxy has changed.
    pub fn is(&self, membership: Membership) {
        self.0.lock().membership = membership;
    }

    /// All that was cached is current.
    pub fn confirmed(&self) {
        turn(&mut self.0.lock(), Trust::Confirmed);
    }

    /// Routes that were current may not be any more.
    pub fn unconfirmed(&self) {
        let mut view = self.0.lock();
        if view.trust == Trust::Confirmed {
            turn(&mut view, Trust::Confirming);
        }
    }

    /// There is no connection, and why.
    pub fn down(&self, why: &str) {
        let mut view = self.0.lock();
        (view.server, view.session) = (None, None);
        view.fault = Some(why.to_owned());
        turn(&mut view, Trust::Down);
    }
}

fn turn(view: &mut View, trust: Trust) {
    if view.trust != trust {
        (view.trust, view.since) = (trust, Instant::now());
    }
}
