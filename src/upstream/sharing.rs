//! Decides which queries share a question, and when the question is asked. Pure: no lock, clock or socket; time comes
//! in.
//!
//! ```text
//!   join ─▶ QUEUED: in the queue of each host that asks ──next──▶ ASKED: a call has it ──answered──▶ gone
//!              ▲                                                   │   │                  │
//!              └── waiters that came after the question was sent ──┼───┼──────────────────┘
//!                                                                  │   │ slow, or no answer:
//!   LATER: all servers were asked, a pause ◀── no server left ─────┤   ▼ the next server
//!      └──────────────── due ──────────────────────────────────▶ RETRY ──next──▶ ASKED
//! ```
//! Queries with equal argument bytes share one question. One counter numbers joins and sends. The answer to a send goes
//! only to waiters that joined before the send, so **no client gets an answer older than its query**. If a server is
//! slow, the next one is asked, too: a question may be under way on several links, and the first answer counts.
//!
//! [`Sharing::next`] returns many questions for one server, so that one call asks them all. Hosts take turns
//! ([`Turns`]). Questions that were asked before take turns with fresh ones, so a cluster that is silent for some
//! tables still answers the others.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::turns::Turns;

/// The argument bytes of a query.
pub type Key = Arc<[u8]>;

pub trait Waiter {
    /// The host of the client.
    fn host(&self) -> IpAddr;
    fn deadline(&self) -> Instant;
    /// Whether the client is gone.
    fn is_gone(&self) -> bool;
}

/// A question that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub key: Key,
    /// The number of this send, by the counter of [`Sharing`].
    pub number: u64,
}

/// Questions for one server.
#[derive(Debug)]
pub struct Batch {
    /// The server to ask.
    pub server: SocketAddr,
    /// Never empty.
    pub questions: Vec<Sent>,
    /// Number of queries that wait for the answers.
    pub queries: usize,
}

/// A query whose time is over.
#[derive(Debug)]
pub struct Expired<W> {
    pub waiter: W,
    /// When the question was first sent for this query; `None`: never.
    pub asked_at: Option<Instant>,
}

/// Pause after every server was asked, doubled up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// See [`FIRST_PAUSE`]. A leader election takes seconds; asking more often does not shorten it.
const MAX_PAUSE: Duration = Duration::from_millis(200);

/// Look through at most this many questions for one call.
const MAX_LOOKED_THROUGH: usize = 256;

/// Most bytes of arguments in one call, unless one question alone has more.
const MAX_ARGS_BYTES: usize = 64 * 1024;

enum Stand {
    /// The question is in the queues of these hosts.
    Queued(Hosts),
    /// A server did not answer; another one is next.
    Retry,
    /// All servers were asked; the question is due again at this time.
    Later(Instant),
    /// The question is under way on a link.
    Asked,
}

struct Question<W> {
    /// Each with the number of its join; numbers grow.
    waiters: VecDeque<(u64, W)>,
    stand: Stand,
    /// The number of the last send.
    last_sent: u64,
    /// The sends under way, and their servers.
    sends: Vec<(u64, SocketAddr)>,
    /// Servers that were asked in this round.
    tried: Vec<SocketAddr>,
    rounds: u32,
    /// When a send first went out for one of these waiters.
    asked_at: Option<Instant>,
    /// Its deadline in [`Sharing::deadlines`].
    deadline: Instant,
}

impl<W> Question<W> {
    /// Forgets sends that are older than all present waiters: their answers are of no use, and a server that lost such
    /// a request may be asked again. False: no send is left.
    fn keep_useful_sends(&mut self) -> bool {
        let first = self.waiters.front().map_or(u64::MAX, |(joined, _)| *joined);
        self.sends.retain(|(number, _)| *number > first);
        !self.sends.is_empty()
    }
}

/// The hosts whose queues have a question.
#[derive(Default)]
struct Hosts {
    few: Vec<IpAddr>,
    many: HashSet<IpAddr>,
}

impl Hosts {
    const FEW: usize = 8;

    /// Returns true if the host is new.
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
    /// Some keys are answered or under way already, because another host's turn took them.
    queue: Turns<Key>,
    retries: VecDeque<Key>,
    is_turn_of_retries: bool,
    later: BTreeSet<(Instant, Key)>,
    deadlines: BTreeSet<(Instant, Key)>,
    /// Questions with such large answers that each has its own call.
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
    /// Adds a query.
    pub fn join(&mut self, key: Key, waiter: W) {
        self.clock += 1;
        self.waiting += 1;
        let (host, deadline) = (waiter.host(), waiter.deadline());
        if let Some(question) = self.questions.get_mut(&key) {
            question.waiters.push_back((self.clock, waiter));
            if deadline < question.deadline {
                // The query time-out has become shorter meanwhile.
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

    /// Returns queries whose clients are gone, so that the caller drops them without the lock. Their questions were not
    /// asked.
    pub fn take_left(&mut self) -> Vec<W> {
        mem::take(&mut self.left)
    }

    /// Number of waiting queries.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether there is a question to ask now.
    pub fn is_ready(&self) -> bool {
        self.ready > 0
    }

    /// Whether no query waits.
    pub fn is_empty(&self) -> bool {
        self.questions.is_empty()
    }

    /// Returns the questions of the next call: all that can go together to the server that `choose` names for the first
    /// one. `choose` gets the servers that this round has asked, and those that still have the question. If it names no
    /// server, the question waits for the next round, which may ask all servers again.
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
        // These questions were first in turn, and stay first.
        for key in others.into_iter().rev() {
            if let Some(question) = self.questions.get_mut(&key) {
                question.stand = Stand::Retry;
                self.retries.push_front(key);
            }
        }
        batch
    }

    /// The next question to ask: questions asked before take turns with fresh ones.
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

    /// Ends the round of this question: it is due again after a pause.
    fn put_off(&mut self, key: Key, now: Instant) {
        let question = self.questions.get_mut(&key).expect("only a question that waits is put off");
        let pause = MAX_PAUSE.min(FIRST_PAUSE * 2u32.pow(question.rounds.min(8)));
        question.rounds += 1;
        question.tried.clear();
        question.stand = Stand::Later(now + pause);
        self.ready -= 1;
        self.later.insert((now + pause, key));
    }

    /// Makes questions ready whose pause is over.
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

    /// A leader answered this send. Returns the waiters that joined before the send; later ones wait for the next call.
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

    /// After some waiters have left: removes the question, lets it wait for a send under way, or asks it again.
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

    /// No send was made for the present waiters: makes this a fresh question.
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

    /// This send gets no answer: the server failed, or does not lead.
    pub fn unanswered(&mut self, sent: &Sent, server: SocketAddr) {
        if self.end_send(sent) {
            self.ask_another(sent, server);
        }
    }

    /// This send is slow: another server gets the question, too. The slow answer still counts if it comes first.
    pub fn slow(&mut self, sent: &Sent, server: SocketAddr) {
        if self.is_wanted(sent) {
            self.ask_another(sent, server);
        }
    }

    /// Forgets a send. False: no query waited for its answer any more.
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

    /// This send never left, or its link was dead before: the same server may be asked again.
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

    /// Whether a query waits for the answer to this send.
    pub fn is_wanted(&self, sent: &Sent) -> bool {
        self.questions
            .get(&sent.key)
            .is_some_and(|question| question.sends.iter().any(|(number, _)| *number == sent.number))
    }

    /// The answer to this question is large: from now on it has its own call.
    pub fn mark_large(&mut self, key: &Key) {
        /// Tables with thousands of partitions are few. If there are more, forget all and learn them again.
        const MAX_LARGE: usize = 4096;
        if self.large.len() >= MAX_LARGE {
            self.large.clear();
        }
        self.large.insert(key.clone());
    }

    /// Removes and returns the queries whose time is over.
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
            // The first waiter may have a later deadline than this if the query time-out has changed.
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

    /// Removes and returns all queries that `is_taken` selects. Answers to their sends are not wanted any more.
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

    /// One query of each question.
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
        // Old keys in the queues are skipped; remove them before there are too many.
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
