//! A session for who asks one thing after another and waits for each answer: commands, not the proxy.
//!
//! It is [`connection`](super::connection) with a caller that blocks. A request that was under way when the connection was
//! cut fails with [`Code::CONNECTION_LOSS`]: whether it was done only a look can tell.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::codec::{Answer, Code, Op};
use super::connection::{Connection, Event, Options};
use crate::upstream::resolver::Resolver;

/// An open session. Dropping it ends it.
pub struct Session {
    // Before the connection, which waits until its events are taken.
    events: Receiver<Event>,
    connection: Connection,
    link: Option<u64>,
    last_ticket: u64,
    limit: Duration,
    why: String,
}

/// Why a request has no answer.
#[derive(Debug)]
pub enum Failed {
    /// The server refused it.
    Code(Code),
    /// There is no connection, for this reason.
    Unreachable(String),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::Code(code) => code.fmt(f),
            Failed::Unreachable(why) => write!(f, "ZooKeeper cannot be reached: {why}"),
        }
    }
}

impl Session {
    /// Connects to one of the servers. Each request waits at most for `limit`.
    pub fn connect(
        address: &[String],
        timeout: Duration,
        digest: Option<&str>,
        limit: Duration,
    ) -> io::Result<Self> {
        let resolver = Arc::new(Resolver::start());
        let resolve = Box::new(move |name: &str| resolver.known(name));
        let digest = digest.map(str::to_owned);
        let options = Options { address: address.to_vec(), timeout, digest, root: None };
        let (connection, events) =
            Connection::start(options, resolve, 0, std::process::id().into())?;
        let why = "no server was reached yet".to_owned();
        Ok(Session { events, connection, link: None, last_ticket: 0, limit, why })
    }

    /// Asks, and waits for the answer.
    pub fn request(&mut self, op: Op) -> Result<Answer, Failed> {
        let until = Instant::now() + self.limit;
        // What happened since the last request.
        while let Ok(event) = self.events.try_recv() {
            self.hear(event);
        }
        let link = loop {
            match self.link {
                Some(link) => break link,
                None => self.hear(self.next(until)?),
            }
        };
        self.last_ticket += 1;
        self.connection.ask(link, self.last_ticket, op);
        loop {
            match self.next(until)? {
                Event::Reply { ticket, result, .. } if ticket == self.last_ticket => {
                    return result.map_err(Failed::Code);
                }
                event => self.hear(event),
            }
            if self.link != Some(link) {
                return Err(Failed::Code(Code::CONNECTION_LOSS));
            }
        }
    }

    fn next(&self, until: Instant) -> Result<Event, Failed> {
        self.events.recv_deadline(until).map_err(|_| Failed::Unreachable(self.why.clone()))
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Up { link, .. } => self.link = Some(link),
            Event::Down(why) => (self.link, self.why) = (None, why),
            Event::Reply { .. } | Event::Fired { .. } | Event::Looked { .. } => {}
        }
    }
}
