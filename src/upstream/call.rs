//! Calls: round trips to one MetaServer, each with many questions. A worker makes calls while it holds a place of the
//! cluster.
//!
//! ```text
//! Place::run ─▶ next_call: questions on a link ─▶ drive: write, read, wait ─┬─ all answered: the link is idle, next call
//!      ▲                                             │ each answer as it     ├─ the link broke: other servers are asked
//!      │                                             ▼ comes                 └─ silent for a slice: parked
//!      └──────────────────────────── answers to all queries                          │
//!                                                                                    ▼
//! resume ◀── job ◀── watch: bytes came on the link, or its time is over ◀────────── watch
//! ```

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::cluster::{Cluster, Parked, Place, SLICE};
use super::link::{Answered, Link, LinkError};
use crate::activity::{self, SERVING};
use crate::client::ask::{Ask, answer_all};
use crate::client::outbox::Body;
use crate::wire::answer::Answer;

/// A call polls for an answer for this long before it sleeps, if answers usually come sooner.
const SPIN: Duration = Duration::from_micros(60);

/// After this many calls to one cluster, the worker looks for other work.
const CALLS_IN_A_ROW: usize = 16;

/// A question with a larger answer has its own call from then on, so that no small answer waits behind it.
const LARGE_BYTES: usize = 64 * 1024;

/// Writing this many answers takes as long as a call, so another worker makes the next call meanwhile.
const MANY_ANSWERS: usize = 16;

enum Driven {
    /// All questions are answered, or the link broke. The place ended with the last answer.
    Ended,
    /// The MetaServer is silent.
    Silent(Link),
}

struct Given {
    /// Queries and their answers.
    asks: Vec<(Ask, Arc<Body>)>,
    /// The place for the call that another worker makes meanwhile.
    next: Option<Place>,
}

impl Place {
    /// Makes calls until no question is left. Blocks for at most a slice without an answer.
    pub fn run(mut self) {
        let cluster = self.cluster().clone();
        for _ in 0..CALLS_IN_A_ROW {
            let patience = cluster.patience();
            let Some(link) = cluster.next_call(&mut self) else {
                return;
            };
            let driven = cluster.drive(link, patience, Some(&mut self));
            match self.after(driven) {
                Some(place) => self = place,
                None => return,
            }
        }
        cluster.upstream.work.call(self);
    }

    /// Returns this place if it has not ended, or another one if one more call is useful.
    fn after(self, driven: Driven) -> Option<Place> {
        let cluster = self.cluster().clone();
        let held = match driven {
            Driven::Ended => self.if_held(),
            Driven::Silent(link) => {
                self.park(link);
                None
            }
        };
        held.or_else(|| cluster.begin())
    }
}

/// Continues a parked call: bytes came on its link, or the time for its connection is over.
pub fn resume(parked: Parked) {
    let Parked { cluster, link, is_slow } = parked;
    if is_slow {
        // Another server has these questions too, so read what is there and park the link again.
        return match cluster.drive(link, Duration::ZERO, None) {
            Driven::Silent(link) => {
                let watch = cluster.upstream.watch.clone();
                watch.park(Parked { cluster, link, is_slow });
            }
            Driven::Ended => {
                cluster.forget_slow_link();
                cluster.begin().into_iter().for_each(Place::run);
            }
        };
    }
    let mut place = cluster.unpark();
    let driven = cluster.drive(link, Duration::ZERO, Some(&mut place));
    place.after(driven).into_iter().for_each(Place::run);
}

impl Cluster {
    /// Writes and reads until all questions are answered, the link breaks, or nothing comes for `patience`.
    fn drive(
        self: &Arc<Self>,
        mut link: Link,
        patience: Duration,
        mut place: Option<&mut Place>,
    ) -> Driven {
        let mut answers = Vec::new();
        let mut heard_at = Instant::now();
        let mut is_told = false;
        let spin = if self.is_fast(SPIN) { SPIN.min(patience) } else { Duration::ZERO };
        loop {
            let progress = link.progress(&mut answers);
            let given = match answers.is_empty() {
                true => None,
                false => Some(self.take_answers(&link, &mut answers, place.as_deref_mut())),
            };
            if progress.is_ok() && link.unanswered() == 0 {
                self.keep_link(link);
                given.into_iter().for_each(|given| self.give(given));
                return Driven::Ended;
            }
            given.into_iter().for_each(|given| self.give(given));
            match progress {
                Err(why) => {
                    self.broke(link, &why);
                    return Driven::Ended;
                }
                Ok(true) => heard_at = Instant::now(),
                Ok(false) => {}
            }
            let silent = heard_at.elapsed();
            if silent >= patience {
                return Driven::Silent(link);
            }
            if silent < spin {
                thread::yield_now();
                continue;
            }
            if !std::mem::replace(&mut is_told, true) {
                activity::now("calls a cluster", &[&self.name, &link.table()]);
            }
            let waited = link.wait(patience - silent);
            activity::now(SERVING, &[]);
            if let Err(why) = waited {
                self.broke(link, &why);
                return Driven::Ended;
            }
        }
    }

    fn broke(&self, mut link: Link, why: &LinkError) {
        let questions = link.take_unanswered();
        if link.died_idle() {
            // The other idle links to this server are probably dead, too. A fresh link shows whether the server is
            // alive.
            self.forget_links(link.addr);
            let mut core = self.core.lock();
            questions.iter().for_each(|sent| core.sharing.take_back(sent));
            return;
        }
        self.no_answer(link.addr, &questions, why);
    }

    /// Finds the queries for these answers, and learns from the answers who leads. The place ends with the last answer
    /// of the call, so that other workers make calls while this one writes answers.
    fn take_answers(
        self: &Arc<Self>,
        link: &Link,
        answers: &mut Vec<Answered>,
        place: Option<&mut Place>,
    ) -> Given {
        let (now, addr) = (Instant::now(), link.addr);
        let took = now.saturating_duration_since(link.since());
        let mut given: Vec<(Ask, Arc<Body>)> = Vec::new();
        let (mut is_well_again, mut is_leader_new, mut named) = (false, false, None);
        let mut core = self.core.lock();
        for Answered { sent, answer, frame } in answers.drain(..) {
            match answer {
                Answer::Leader { result_at, counted_as } => {
                    if frame.len() > LARGE_BYTES {
                        core.sharing.mark_large(&sent.key);
                    }
                    let before = given.len();
                    let body = Arc::new(Body::new(frame, result_at, counted_as));
                    given.extend(core.sharing.answered(&sent).map(|ask| (ask, body.clone())));
                    if let Some((Ask { table, .. }, _)) = given.get(before) {
                        let queries = (given.len() - before) as u64;
                        self.stats.answered(table, counted_as, queries);
                    }
                    is_leader_new |= core.memory.led(addr);
                    is_well_again |= core.health.answered();
                }
                Answer::Follower { leader } => {
                    core.sharing.unanswered(&sent, addr);
                    core.memory.deposed(addr);
                    named = leader.or(named);
                }
            }
        }
        let mut next = None;
        if link.unanswered() == 0 {
            core.calls.answered(took < SLICE);
            place.into_iter().for_each(|place| place.end(&mut core));
            if given.len() >= MANY_ANSWERS {
                next = self.place(&mut core);
            }
        }
        drop(core);
        if let Some(leader) = named.and_then(|leader| self.address_of(&leader)) {
            self.core.lock().memory.named(addr, leader, now);
        }
        if !given.is_empty() {
            self.answered_in(took);
        }
        self.tell(is_well_again, is_leader_new.then_some(addr));
        Given { asks: given, next }
    }

    /// Sends the answers to all queries that wait for them.
    fn give(&self, given: Given) {
        given.next.into_iter().for_each(|place| self.upstream.work.call(place));
        answer_all(given.asks, &self.name);
    }
}
