//! A session for who asks one thing after another and waits for each answer: commands, not the proxy.
//!
//! It is [`connection`](super::connection) with a caller that blocks. A request that was under way when the connection was
//! cut fails with [`Code::CONNECTION_LOSS`]: whether it was done only a look can tell.

use std::collections::VecDeque;
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

/// Requests of a pipeline that are under way at once.
const WINDOW: usize = 64;

/// An answer with the zxid of its header, which is that of the change if the request made one.
pub type Outcome = Result<(i64, Answer), Failed>;

/// Why a request has no answer.
#[derive(Clone, Debug)]
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
        digests: &[String],
        limit: Duration,
    ) -> io::Result<Self> {
        let resolver = Arc::new(Resolver::start());
        let resolve = Box::new(move |name: &str| resolver.known(name));
        let digests = digests.to_vec();
        let options = Options { address: address.to_vec(), timeout, digests, root: None };
        let (connection, events) =
            Connection::start(options, resolve, 0, std::process::id().into())?;
        let why = "no server was reached yet".to_owned();
        Ok(Session { events, connection, link: None, last_ticket: 0, limit, why })
    }

    /// Asks, and waits for the answer.
    pub fn request(&mut self, op: Op) -> Result<Answer, Failed> {
        let until = Instant::now() + self.limit;
        // Events since the last request.
        while let Ok(event) = self.events.try_recv() {
            self.hear(event);
        }
        let link = self.link(until)?;
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

    /// Asks many, [`WINDOW`] of them at once, and returns the outcomes in their order. It ends early when the connection
    /// does, when no answer comes for the limit of a request, or with the first outcome that is `bad`: nothing more is
    /// asked then, what is under way is waited for, and what was not asked has no outcome. `done` is told how many are
    /// answered.
    pub fn pipeline(
        &mut self,
        ops: Vec<Op>,
        bad: impl Fn(&Outcome) -> bool,
        mut done: impl FnMut(usize),
    ) -> Vec<Outcome> {
        let count = ops.len();
        let mut outcomes = Vec::with_capacity(count);
        let mut rest = ops.into_iter();
        let mut under_way: VecDeque<u64> = VecDeque::new();
        while let Ok(event) = self.events.try_recv() {
            self.hear(event);
        }
        let link = match self.link(Instant::now() + self.limit) {
            Ok(link) => link,
            Err(failed) => {
                outcomes.extend((count > 0).then_some(Err(failed)));
                return outcomes;
            }
        };
        let mut asks_more = true;
        loop {
            while asks_more && under_way.len() < WINDOW {
                let Some(op) = rest.next() else { break };
                self.last_ticket += 1;
                self.connection.ask(link, self.last_ticket, op);
                under_way.push_back(self.last_ticket);
            }
            let Some(first) = under_way.front() else { return outcomes };
            match self.next(Instant::now() + self.limit) {
                Ok(Event::Reply { ticket, zxid, result }) if ticket == *first => {
                    under_way.pop_front();
                    let outcome = result.map(|answer| (zxid, answer)).map_err(Failed::Code);
                    asks_more &= !bad(&outcome);
                    outcomes.push(outcome);
                    done(outcomes.len());
                }
                Ok(event) => self.hear(event),
                Err(_) => self.link = None,
            }
            if self.link != Some(link) {
                let lost = || Err(Failed::Code(Code::CONNECTION_LOSS));
                outcomes.extend(under_way.iter().map(|_| lost()));
                return outcomes;
            }
        }
    }

    fn link(&mut self, until: Instant) -> Result<u64, Failed> {
        loop {
            match self.link {
                Some(link) => return Ok(link),
                None => self.hear(self.next(until)?),
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
            Event::Reply { .. }
            | Event::Pong { .. }
            | Event::Fired { .. }
            | Event::Looked { .. } => {}
        }
    }
}
