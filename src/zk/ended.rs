//! Why there is no link to ZooKeeper: in words, and what it means for the address. Pure.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use super::codec::{Code, Malformed};
use super::dial::Failure;

/// Why there is no link, or none any more.
pub enum Ended {
    /// The thread is to end.
    Stopped,
    /// It is to be made with other options.
    Changed,
    /// The session is no more.
    Expired,
    /// Nobody takes a connection.
    Unreachable,
    /// No byte came for so long, while one was due.
    Mute(Duration),
    /// The socket has an error, or its end.
    Io(io::Error),
    /// The server speaks another protocol.
    Foreign(Malformed),
    /// The digest is refused.
    Unproved(Code),
    /// The asker does not believe the server, for this reason.
    Distrusted(String),
}

impl From<io::Error> for Ended {
    fn from(e: io::Error) -> Self {
        Ended::Io(e)
    }
}

impl From<Malformed> for Ended {
    fn from(malformed: Malformed) -> Self {
        Ended::Foreign(malformed)
    }
}

impl Ended {
    /// In words, and what it means for the address. `was_up`: a session had been granted.
    pub fn told(&self, host: &Host, was_up: bool) -> (Failure, String) {
        let other = |why: &dyn fmt::Display| (Failure::Other, format!("{host}: {why}"));
        match self {
            Ended::Stopped => other(&"the proxy stops"),
            Ended::Changed => other(&"the settings changed"),
            Ended::Expired => other(&"the session has expired"),
            Ended::Unreachable => other(&"takes no connection"),
            Ended::Mute(span) => {
                (Failure::Other, format!("no answer from {host} in {} s", span.as_secs_f64()))
            }
            Ended::Io(e) if is_end(e) && was_up => other(&"it closed the connection"),
            Ended::Io(e) if is_end(e) => {
                let why = "it closes the connection instead of granting a session: it is full (maxClientCnxns), has no \
                           quorum, knows less than was seen before, or is no ZooKeeper";
                (Failure::Early, format!("{host}: {why}"))
            }
            Ended::Io(e) => {
                let is_refused = e.kind() == ErrorKind::ConnectionRefused;
                let failure = if is_refused { Failure::Refused } else { Failure::Other };
                (failure, format!("{host}: {}", plain(e)))
            }
            Ended::Foreign(malformed) => other(malformed),
            Ended::Unproved(code) => other(&format!("zookeeper.digest: {code}")),
            Ended::Distrusted(why) => other(why),
        }
    }
}

/// An address, and how it is told: with the name that it has in the settings.
#[derive(Clone)]
pub struct Host {
    pub addr: SocketAddr,
    pub name: String,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.parse() == Ok(self.addr) {
            true => write!(f, "{}", self.addr),
            false => write!(f, "{} ({})", self.name, self.addr),
        }
    }
}

fn is_end(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionReset
            | ErrorKind::BrokenPipe
            | ErrorKind::ConnectionAborted
    )
}

/// Without the system's number for it, which tells an operator nothing.
fn plain(e: &io::Error) -> String {
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
