//! Which queries share a question, and how it goes on. Pure: no lock, clock or socket; time comes in.
//!
//! ```text
//!   join ─▶ QUEUED: in the queue of each host that asks ──next──▶ ASKED: a call has it ──answered──▶ gone
//!              ▲                                                   │   │                  │
//!              └── waiters that came after the question was sent ──┼───┼──────────────────┘
//!                                                                  │   │ no answer yet, or none to be had:
//!   LATER: all servers were asked, a pause ◀── no server left ─────┤   ▼ the next server
//!      └──────────────── due ──────────────────────────────────▶ RETRY ──next──▶ ASKED
//! ```
//! Queries with equal argument bytes share one question. Joins and sends are numbered by one clock: the answer to a send
//! goes to the waiters that joined before it, so **nobody gets an answer older than his query**. A question may be under
//! way on several links at once, when a server is slow and the next one is asked; the first answer counts.
//!
//! [`Sharing::next`] gives many questions for one server, so that one call asks them all. Hosts take turns ([`Turns`]);
//! questions that have been asked before and fresh ones take turns, too: a cluster that is mute for some tables still
//! answers the others.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::turns::Turns;

/// The argument bytes of a query.
pub type Key = Arc<[u8]>;

/// A query that waits.
pub trait Waiter {
    /// The host that asks.
    fn host(&self) -> IpAddr;
    /// When it must have an answer.
    fn deadline(&self) -> Instant;
    /// Nobody waits for its answer any more.
    fn is_gone(&self) -> bool;
}

/// A question on its way: what was asked, and when by the clock of [`Sharing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The question.
    pub key: Key,
    /// The number of this send.
    pub number: u64,
}

/// Questions for one server.
#[derive(Debug)]
pub struct Batch {
    /// The server to ask.
    pub server: SocketAddr,
    /// The questions; never empty.
    pub questions: Vec<Sent>,
    /// The queries that its answers will serve.
    pub queries: usize,
}

/// A query whose time is over.
#[derive(Debug)]
pub struct Expired<W> {
    /// The query.
    pub waiter: W,
    /// When its question was first asked; `None`: not since this query came.
    pub asked_at: Option<Instant>,
}

/// Pause after a round in which every server was asked, doubled up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// See [`FIRST_PAUSE`]. A leader election takes seconds; asking more often does not shorten it.
const MAX_PAUSE: Duration = Duration::from_millis(200);

/// Questions that are looked through for those that fit a call.
const MAX_LOOKED_THROUGH: usize = 256;

/// Bytes of arguments in one call, unless one question alone has more.
const MAX_ARGS_BYTES: usize = 64 * 1024;

enum Stand {
    /// In the queue of these hosts.
    Queued(Hosts),
    /// It was asked without an answer; another server is next.
    Retry,
    /// All servers were asked; it is due again then.
    Later(Instant),
    /// A link has it.
    Asked,
}

struct Question<W> {
    /// With the number of the join, which grows.
    waiters: VecDeque<(u64, W)>,
    stand: Stand,
    /// The number of the last send.
    last_sent: u64,
    /// The sends under way, and to whom.
    sends: Vec<(u64, SocketAddr)>,
    /// Servers that were asked in this round.
    tried: Vec<SocketAddr>,
    rounds: u32,
    /// When the first of these waiters was first asked for.
    asked_at: Option<Instant>,
    /// Where it stands in [`Sharing::deadlines`].
    deadline: Instant,
}

impl<W> Question<W> {
    /// Forgets the sends that were made before anybody joined who waits now: their answers are of no use, and a server that
    /// lost such a request may be asked again. False: none is left.
    fn keep_useful_sends(&mut self) -> bool {
        let first = self.waiters.front().map_or(u64::MAX, |(joined, _)| *joined);
        self.sends.retain(|(number, _)| *number > first);
        !self.sends.is_empty()
    }
}

/// Hosts in whose queue a question stands.
#[derive(Default)]
struct Hosts {
    few: Vec<IpAddr>,
    many: HashSet<IpAddr>,
}

impl Hosts {
    const FEW: usize = 8;

    /// True: it was not there.
    fn insert(&mut self, host: IpAddr) -> bool {
        if self.few.contains(&host) {
            return false;
        }
        if self.few.len() < Self::FEW {
            self.few.push(host);
            return true;
        }
        self.many.insert(host)
    }
}

/// All questions of one cluster.
pub struct Sharing<W> {
    questions: HashMap<Key, Question<W>>,
    /// Some keys in it are answered or under way already, since another host's turn took them.
    queue: Turns<Key>,
    retries: VecDeque<Key>,
    is_turn_of_retries: bool,
    later: BTreeSet<(Instant, Key)>,
    deadlines: BTreeSet<(Instant, Key)>,
    /// Questions whose answers are so large that they are asked alone.
    large: HashSet<Key>,
    clock: u64,
    waiting: usize,
    /// Questions that [`Sharing::next`] may give.
    ready: usize,
    left: Vec<W>,
}

impl<W> Default for Sharing<W> {
    fn default() -> Self {
        Sharing {
            questions: HashMap::new(),
            queue: Turns::default(),
            retries: VecDeque::new(),
            is_turn_of_retries: false,
            later: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            large: HashSet::new(),
            clock: 0,
            waiting: 0,
            ready: 0,
            left: Vec::new(),
        }
    }
}

impl<W: Waiter> Sharing<W> {
    /// A query arrives.
    pub fn join(&mut self, key: Key, waiter: W) {
        self.clock += 1;
        self.waiting += 1;
        let (host, deadline) = (waiter.host(), waiter.deadline());
        if let Some(question) = self.questions.get_mut(&key) {
            question.waiters.push_back((self.clock, waiter));
            if deadline < question.deadline {
                // The time-out was made shorter meanwhile.
                self.deadlines.remove(&(question.deadline, key.clone()));
                self.deadlines.insert((deadline, key.clone()));
                question.deadline = deadline;
            }
            if let Stand::Queued(hosts) = &mut question.stand
                && hosts.insert(host)
            {
                self.queue.push(host, key);
            }
            return;
        }
        let mut hosts = Hosts::default();
        hosts.insert(host);
        self.queue.push(host, key.clone());
        self.ready += 1;
        self.deadlines.insert((deadline, key.clone()));
        let question = Question {
            waiters: VecDeque::from([(self.clock, waiter)]),
            stand: Stand::Queued(hosts),
            last_sent: 0,
            sends: Vec::new(),
            tried: Vec::new(),
            rounds: 0,
            asked_at: None,
            deadline,
        };
        self.questions.insert(key, question);
    }

    /// Queries whose clients have gone, of questions that were not asked for that reason. They are dropped without a lock.
    pub fn take_left(&mut self) -> Vec<W> {
        mem::take(&mut self.left)
    }

    /// Queries that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether there is a question to ask now.
    pub fn is_ready(&self) -> bool {
        self.ready > 0
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.questions.is_empty()
    }

    /// The questions of the next call: as many as may go together to the server that `choose` names for the first.
    /// `choose` is told whom this round has asked, and who has the question still. Where it knows nobody, the question
    /// waits, and the next round asks all again.
    pub fn next(
        &mut self,
        max: usize,
        now: Instant,
        mut choose: impl FnMut(&[SocketAddr], &[(u64, SocketAddr)]) -> Option<SocketAddr>,
    ) -> Option<Batch> {
        let mut batch: Option<Batch> = None;
        let (mut bytes, mut others) = (0, Vec::new());
        for _ in 0..MAX_LOOKED_THROUGH {
            let len = batch.as_ref().map_or(0, |batch| batch.questions.len());
            if len == max || bytes >= MAX_ARGS_BYTES {
                break;
            }
            let Some(key) = self.pop() else {
                break;
            };
            let question = self.questions.get_mut(&key).expect("pop returns what waits");
            let Some(server) = choose(&question.tried, &question.sends) else {
                self.put_off(key, now);
                continue;
            };
            let is_large = self.large.contains(&key);
            let fits = |batch: &Batch| {
                batch.server == server && !is_large && bytes + key.len() <= MAX_ARGS_BYTES
            };
            if !batch.as_ref().is_none_or(fits) {
                others.push(key);
                continue;
            }
            self.clock += 1;
            bytes += key.len();
            question.stand = Stand::Asked;
            question.sends.push((self.clock, server));
            question.last_sent = self.clock;
            question.asked_at.get_or_insert(now);
            self.ready -= 1;
            let sent = Sent { key, number: self.clock };
            let new = || Batch { server, questions: Vec::new(), queries: 0 };
            let batch = batch.get_or_insert_with(new);
            batch.questions.push(sent);
            batch.queries += question.waiters.len();
            if is_large {
                break;
            }
        }
        // They were first in turn and stay so.
        for key in others.into_iter().rev() {
            if let Some(question) = self.questions.get_mut(&key) {
                question.stand = Stand::Retry;
                self.retries.push_front(key);
            }
        }
        batch
    }

    /// The next question that is to be asked, by turns of those asked before and fresh ones.
    fn pop(&mut self) -> Option<Key> {
        loop {
            self.is_turn_of_retries = !self.is_turn_of_retries;
            let key = match self.is_turn_of_retries {
                true => self.retries.pop_front().or_else(|| self.queue.pop()),
                false => self.queue.pop().or_else(|| self.retries.pop_front()),
            }?;
            if let Some(question) = self.questions.get(&key)
                && matches!(question.stand, Stand::Queued(_) | Stand::Retry)
            {
                if !question.waiters.iter().all(|(_, waiter)| waiter.is_gone()) {
                    return Some(key);
                }
                let waiters = self.remove(&key);
                self.left.extend(waiters);
            }
        }
    }

    /// The round of this question is over: it is asked again after a pause.
    fn put_off(&mut self, key: Key, now: Instant) {
        let question = self.questions.get_mut(&key).expect("only a question that waits is put off");
        let pause = MAX_PAUSE.min(FIRST_PAUSE * 2u32.pow(question.rounds.min(8)));
        question.rounds += 1;
        question.tried.clear();
        question.stand = Stand::Later(now + pause);
        self.ready -= 1;
        self.later.insert((now + pause, key));
    }

    /// Questions whose pause is over are ready again.
    pub fn wake(&mut self, now: Instant) {
        while let Some((due, _)) = self.later.first()
            && *due <= now
        {
            let (_, key) = self.later.pop_first().expect("it was looked at");
            if let Some(question) = self.questions.get_mut(&key) {
                question.stand = Stand::Retry;
                self.ready += 1;
                self.retries.push_back(key);
            }
        }
    }

    /// A leader answered this send. Returns those who joined before it; who came later waits for the next call.
    pub fn answered(&mut self, sent: &Sent) -> impl Iterator<Item = W> + use<W> {
        let mut answered = VecDeque::new();
        if let Some(question) = self.questions.get_mut(&sent.key) {
            question.sends.retain(|(number, _)| *number != sent.number);
            let later = question.waiters.partition_point(|(joined, _)| *joined < sent.number);
            let left = question.waiters.split_off(later);
            answered = mem::replace(&mut question.waiters, left);
            self.waiting -= answered.len();
            self.follow(&sent.key);
        }
        answered.into_iter().map(|(_, waiter)| waiter)
    }

    /// After some waiters of a question have their answer: it is gone, waits for a send under way, or is asked anew.
    fn follow(&mut self, key: &Key) {
        let Some(question) = self.questions.get_mut(key) else {
            return;
        };
        let Some((_, first)) = question.waiters.front() else {
            self.remove(key);
            return;
        };
        let deadline = first.deadline();
        if deadline != question.deadline {
            self.deadlines.remove(&(question.deadline, key.clone()));
            self.deadlines.insert((deadline, key.clone()));
            question.deadline = deadline;
        }
        if !question.keep_useful_sends() {
            self.begin_anew(key);
        }
    }

    /// Nobody who waits was asked for: this is a fresh question.
    fn begin_anew(&mut self, key: &Key) {
        let Some(question) = self.questions.get_mut(key) else {
            return;
        };
        if let Stand::Asked | Stand::Later(_) | Stand::Retry = question.stand {
            match question.stand {
                Stand::Later(due) => _ = self.later.remove(&(due, key.clone())),
                Stand::Retry => self.ready -= 1,
                _ => {}
            }
            let mut hosts = Hosts::default();
            for (_, waiter) in &question.waiters {
                if hosts.insert(waiter.host()) {
                    self.queue.push(waiter.host(), key.clone());
                }
            }
            question.stand = Stand::Queued(hosts);
            self.ready += 1;
        }
        question.tried.clear();
        (question.rounds, question.asked_at) = (0, None);
    }

    /// This send will have no answer: the server failed, or does not lead.
    pub fn unanswered(&mut self, sent: &Sent, server: SocketAddr) {
        if self.end_send(sent) {
            self.ask_another(sent, server);
        }
    }

    /// This send has had no answer for long: another server is asked, and the answer counts if it comes.
    pub fn slow(&mut self, sent: &Sent, server: SocketAddr) {
        if self.is_wanted(sent) {
            self.ask_another(sent, server);
        }
    }

    /// Forgets a send. False: nobody waited for its answer any more.
    fn end_send(&mut self, sent: &Sent) -> bool {
        let is_wanted = self.is_wanted(sent);
        if let Some(question) = self.questions.get_mut(&sent.key) {
            question.sends.retain(|(number, _)| *number != sent.number);
        }
        is_wanted
    }

    fn ask_another(&mut self, sent: &Sent, server: SocketAddr) {
        if let Some(question) = self.questions.get_mut(&sent.key) {
            if !question.tried.contains(&server) {
                question.tried.push(server);
            }
            if let Stand::Asked = question.stand {
                question.stand = Stand::Retry;
                self.ready += 1;
                self.retries.push_back(sent.key.clone());
            }
        }
    }

    /// This send never left, or its link had died before: the same server may be asked again.
    pub fn take_back(&mut self, sent: &Sent) {
        if self.end_send(sent)
            && let Some(question) = self.questions.get_mut(&sent.key)
            && let Stand::Asked = question.stand
        {
            question.stand = Stand::Retry;
            self.ready += 1;
            self.retries.push_front(sent.key.clone());
        }
    }

    /// Whether anybody waits for the answer to this send.
    pub fn is_wanted(&self, sent: &Sent) -> bool {
        self.questions
            .get(&sent.key)
            .is_some_and(|question| question.sends.iter().any(|(number, _)| *number == sent.number))
    }

    /// The answer to this question is large: it is asked alone from now on.
    pub fn mark_large(&mut self, key: &Key) {
        /// Tables with thousands of partitions are few; should there be more, they are learned anew.
        const MAX_LARGE: usize = 4096;
        if self.large.len() >= MAX_LARGE {
            self.large.clear();
        }
        self.large.insert(key.clone());
    }

    /// Takes out the queries whose time is over.
    pub fn expire(&mut self, now: Instant) -> Vec<Expired<W>> {
        let mut expired = Vec::new();
        while let Some((deadline, _)) = self.deadlines.first()
            && *deadline <= now
        {
            let (_, key) = self.deadlines.first().expect("it was looked at").clone();
            let question = self.questions.get_mut(&key).expect("a deadline is of a question");
            let (asked_at, last_sent) = (question.asked_at, question.last_sent);
            let before = question.waiters.len();
            let mut left = VecDeque::with_capacity(0);
            for (joined, waiter) in mem::take(&mut question.waiters) {
                if waiter.deadline() <= now {
                    let asked_at = asked_at.filter(|_| joined < last_sent);
                    expired.push(Expired { waiter, asked_at });
                } else {
                    left.push_back((joined, waiter));
                }
            }
            question.waiters = left;
            self.waiting -= before - question.waiters.len();
            // The first deadline is not that of the first waiter if the time-out was changed meanwhile.
            self.deadlines.remove(&(question.deadline, key.clone()));
            match question.waiters.iter().map(|(_, waiter)| waiter.deadline()).min() {
                Some(deadline) => {
                    question.deadline = deadline;
                    self.deadlines.insert((deadline, key.clone()));
                    question.keep_useful_sends();
                    if question.waiters.front().is_some_and(|(joined, _)| *joined > last_sent) {
                        self.begin_anew(&key);
                    }
                }
                None => drop(self.remove(&key)),
            }
        }
        expired
    }

    /// Takes out all queries whose question `is_taken`. Answers to sends for them are not wanted any more.
    pub fn take(&mut self, mut is_taken: impl FnMut(&W) -> bool) -> Vec<W> {
        let keys: Vec<Key> = self
            .questions
            .iter()
            .filter(|(_, question)| question.waiters.front().is_some_and(|(_, w)| is_taken(w)))
            .map(|(key, _)| key.clone())
            .collect();
        let mut taken = Vec::new();
        for key in keys {
            taken.extend(self.remove(&key));
        }
        taken
    }

    /// One query for each question.
    pub fn first_waiters(&self) -> impl Iterator<Item = &W> {
        self.questions.values().filter_map(|question| Some(&question.waiters.front()?.1))
    }

    fn remove(&mut self, key: &Key) -> Vec<W> {
        let Some(question) = self.questions.remove(key) else {
            return Vec::new();
        };
        self.waiting -= question.waiters.len();
        self.deadlines.remove(&(question.deadline, key.clone()));
        match question.stand {
            Stand::Queued(_) | Stand::Retry => self.ready -= 1,
            Stand::Later(due) => _ = self.later.remove(&(due, key.clone())),
            Stand::Asked => {}
        }
        // Keys that are left behind in the queues are passed over, and must not pile up.
        if self.queue.len() + self.retries.len() > 2 * self.questions.len() + 1024 {
            let questions = &self.questions;
            let is_queued = |key: &Key| {
                let question = questions.get(key);
                question.is_some_and(|q| matches!(q.stand, Stand::Queued(_) | Stand::Retry))
            };
            self.queue.retain(is_queued);
            self.retries.retain(is_queued);
        }
        question.waiters.into_iter().map(|(_, waiter)| waiter).collect()
    }
}

#[cfg(all(test, not(loom)))]
#[path = "sharing/tests.rs"]
mod tests;
