//! Calls: round trips to one MetaServer, each for many questions. Made by workers, in a place of the cluster.
//!
//! ```text
//! Place::run ─▶ next_call: questions on a link ─▶ drive: write, read, wait ─┬─ all answered: the link rests, next call
//!      ▲                                             │ each answer as it     ├─ the link broke: other servers are asked
//!      │                                             ▼ comes                 └─ silent for a slice: parked
//!      └──────────────────────────── answers to all who asked                        │
//!                                                                                    ▼
//! resume ◀── job ◀── watch: something came on the link, or its time is over ◀────── watch
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

/// How long a call looks for an answer before it sleeps, where answers usually come sooner than that.
const SPIN: Duration = Duration::from_micros(60);

/// Calls of one cluster in a row, before the worker looks for other work.
const CALLS_IN_A_ROW: usize = 16;

/// Larger answers are asked for alone from then on, so that no small one waits behind them.
const LARGE_BYTES: usize = 64 * 1024;

/// How driving a call ended.
enum Driven {
    /// All is answered, or the link broke.
    Over,
    /// It is silent.
    Silent(Link),
}

impl Place {
    /// Makes the calls that are to be made. Blocks for a slice at most without an answer.
    pub fn run(mut self) {
        let cluster = self.cluster().clone();
        for _ in 0..CALLS_IN_A_ROW {
            let patience = cluster.patience();
            let Some(link) = cluster.next_call(&mut self) else {
                return;
            };
            if let Driven::Silent(link) = cluster.drive(link, patience) {
                self.park(link);
                match cluster.begin() {
                    Some(place) => self = place,
                    None => return,
                }
            }
        }
        cluster.upstream.work.call(self);
    }
}

/// Goes on with a parked call: something came on its link, or the time for its connection is over.
pub fn resume(parked: Parked) {
    let Parked { cluster, link, is_slow } = parked;
    if is_slow {
        // Nothing waits for it alone: it is looked at, and parked again.
        return match cluster.drive(link, Duration::ZERO) {
            Driven::Silent(link) => {
                let watch = cluster.upstream.watch.clone();
                watch.park(Parked { cluster, link, is_slow });
            }
            Driven::Over => {
                cluster.forget_slow_link();
                cluster.begin().into_iter().for_each(Place::run);
            }
        };
    }
    let place = cluster.unpark();
    match cluster.drive(link, Duration::ZERO) {
        Driven::Silent(link) => {
            place.park(link);
            cluster.begin().into_iter().for_each(Place::run);
        }
        Driven::Over => place.run(),
    }
}

impl Cluster {
    /// Writes and reads until all is answered, the link breaks, or nothing came for `patience`.
    fn drive(&self, mut link: Link, patience: Duration) -> Driven {
        let mut answers = Vec::new();
        let mut heard_at = Instant::now();
        let mut is_told = false;
        let spin = if self.is_fast(SPIN) { SPIN.min(patience) } else { Duration::ZERO };
        loop {
            let progress = link.progress(&mut answers);
            if !answers.is_empty() {
                self.give(&link, &mut answers);
            }
            match progress {
                Err(why) => {
                    self.broke(link, &why);
                    return Driven::Over;
                }
                Ok(_) if link.unanswered() == 0 => {
                    self.keep_link(link);
                    return Driven::Over;
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
                return Driven::Over;
            }
        }
    }

    fn broke(&self, mut link: Link, why: &LinkError) {
        let questions = link.take_unanswered();
        if link.died_idle() {
            // Its like died with it; a fresh link tells more.
            self.forget_links(link.addr);
            let mut core = self.core.lock();
            questions.iter().for_each(|sent| core.sharing.take_back(sent));
            return;
        }
        self.no_answer(link.addr, &questions, why);
    }

    /// Gives answers to all who asked.
    fn give(&self, link: &Link, answers: &mut Vec<Answered>) {
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
        if link.unanswered() == 0 {
            core.calls.answered(took < SLICE);
        }
        drop(core);
        if let Some(leader) = named.and_then(|leader| self.address_of(&leader)) {
            self.core.lock().memory.named(leader, now);
        }
        if !given.is_empty() {
            self.answered_in(took);
        }
        self.tell(is_well_again, is_leader_new.then_some(addr));
        answer_all(given, &self.name);
    }
}
