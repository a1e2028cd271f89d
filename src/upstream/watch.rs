//! Thread `meta-watch`: waits for bytes on parked links, ticks for clusters in which queries wait, probes MetaServers.
//!
//! ```text
//! worker ── park ──▶ inbox + waker ─▶ mio ─┬─ bytes came on a parked link ─▶ job: resume
//! worker ── busy ──▶                       ├─ a parked link is silent for long ─▶ its questions go to another server,
//! routes ── new ───▶                       │                                      and the link stays parked
//!                                          ├─ tick: expired, moved and due questions, places (`Cluster::tick`)
//!                                          └─ probes (`upstream::probe`): due, answered, over
//! ```
//! The thread blocks only in poll. It reads only answers to probes; workers read answers to queries. The calls of the
//! clusters bound the number of parked links, the MetaServers of the routed clusters bound the number of probes. If no
//! query waits, the thread sleeps until the next probe.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use log::error;
use mio::{Events, Poll, Token, Waker};
use slab::Slab;

use super::cluster::{Cluster, Parked, Ticked, Watch};
use super::link::CONNECT_TIMEOUT;
use super::probe::{FIRST_PROBE, Probes};
use crate::activity;
use crate::patience::TICK;

const WAKER: Token = Token(usize::MAX);

/// How often to close links that are idle for long.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// A link that woke a worker wakes none again for this time, even if a server sends byte by byte.
const WAKE_PAUSE: Duration = Duration::from_millis(2);

enum Order {
    Park(Parked, Instant),
    Busy(Arc<Cluster>),
    Add(u64, Weak<Cluster>),
    Stop,
}

/// Sends orders to the thread.
pub struct MetaWatch {
    orders: Sender<Order>,
    inbox: Receiver<Order>,
    waker: Arc<OnceLock<Waker>>,
}

impl Default for MetaWatch {
    fn default() -> Self {
        Self::new()
    }
}

impl MetaWatch {
    /// Before the start, orders wait in the channel. It is unbounded, but there is at most one order per call and
    /// cluster.
    pub fn new() -> Self {
        let (orders, inbox) = unbounded();
        MetaWatch { orders, inbox, waker: Arc::default() }
    }

    fn tell(&self, order: Order) {
        // The send fails only when the thread has ended; then no query waits.
        if self.orders.send(order).is_ok()
            && let Some(waker) = self.waker.get()
        {
            let _ = waker.wake();
        }
    }

    /// Starts the thread. `probe_interval` is the time between two probes of a MetaServer; zero: probe only clusters in
    /// trouble.
    pub fn start(&self, probe_interval: Duration) -> io::Result<Watching> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        // A second thread would take the orders of the first.
        self.waker.set(waker).map_err(|_| io::Error::other("meta-watch is already running"))?;
        let watcher = Watcher {
            probes: Probes::new(poll.registry().try_clone()?, probe_interval),
            poll,
            inbox: self.inbox.clone(),
            parked: Slab::new(),
            paused: Vec::new(),
            busy: HashMap::new(),
            clusters: Vec::new(),
            tick_at: Instant::now(),
            tidy_at: Instant::now(),
        };
        let thread =
            thread::Builder::new().name("meta-watch".to_owned()).spawn(move || watcher.run())?;
        Ok(Watching { orders: self.orders.clone(), waker: self.waker.clone(), thread })
    }
}

impl Watch for MetaWatch {
    fn park(&self, parked: Parked) {
        self.tell(Order::Park(parked, Instant::now()));
    }

    fn busy(&self, cluster: &Arc<Cluster>) {
        self.tell(Order::Busy(cluster.clone()));
    }

    fn add(&self, cluster: &Arc<Cluster>) {
        self.tell(Order::Add(cluster.id, Arc::downgrade(cluster)));
    }
}

/// The running thread.
pub struct Watching {
    orders: Sender<Order>,
    waker: Arc<OnceLock<Waker>>,
    thread: JoinHandle<()>,
}

impl Watching {
    /// Ends the thread; queries that still wait get no answer.
    pub fn stop(self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(waker) = self.waker.get() {
            let _ = waker.wake();
        }
        let _ = self.thread.join();
    }
}

struct Watcher {
    poll: Poll,
    inbox: Receiver<Order>,
    parked: Slab<Parked>,
    /// Links that woke a worker just now, and when each pause ends.
    paused: Vec<(Parked, Instant)>,
    /// Clusters in which queries wait, by id.
    busy: HashMap<u64, Arc<Cluster>>,
    /// Clusters to probe.
    clusters: Vec<Weak<Cluster>>,
    probes: Probes,
    tick_at: Instant,
    tidy_at: Instant,
}

impl Watcher {
    fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            // Without this thread no query would ever expire, so a panic ends one turn only. The panic hook has logged
            // it.
            match catch_unwind(AssertUnwindSafe(|| self.turn(&mut events))) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return,
                Err(_) => thread::sleep(TICK),
            }
        }
    }

    fn turn(&mut self, events: &mut Events) -> ControlFlow<()> {
        if let Err(e) = self.poll.poll(events, self.timeout())
            && e.kind() != ErrorKind::Interrupted
        {
            error!("meta-watch cannot poll sockets and checks them at each tick instead: {e}");
            thread::sleep(TICK);
        }
        for event in &*events {
            match event.token() {
                WAKER => {}
                Token(probe) if probe >= FIRST_PROBE => self.probes.ready(probe),
                Token(slot) => self.wake(slot),
            }
        }
        self.take_orders()?;
        let now = Instant::now();
        if now >= self.tick_at {
            self.tick(now);
        }
        if now >= self.tidy_at {
            self.tidy_at = now + TIDY_EVERY;
            self.clusters.retain(|cluster| cluster.strong_count() > 0);
            let clusters = self.clusters.iter().filter_map(Weak::upgrade);
            clusters.for_each(|cluster| cluster.close_idle_links(now));
        }
        self.probes.run(now);
        ControlFlow::Continue(())
    }

    fn timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let ticks = !self.busy.is_empty() || !self.parked.is_empty() || !self.paused.is_empty();
        let tick = ticks.then_some(self.tick_at);
        let tidy = (!self.clusters.is_empty()).then_some(self.tidy_at);
        let next = [tick, tidy, self.probes.next()].into_iter().flatten().min()?;
        // Poll counts in milliseconds and rounds down. Without one more, the loop would spin through the last.
        let left = next.saturating_duration_since(now);
        Some(if left.is_zero() { left } else { left + Duration::from_millis(1) })
    }

    fn take_orders(&mut self) -> ControlFlow<()> {
        while let Ok(order) = self.inbox.try_recv() {
            match order {
                Order::Park(parked, at) => self.park(parked, at),
                Order::Busy(cluster) => _ = self.busy.insert(cluster.id, cluster),
                Order::Add(id, cluster) => {
                    self.clusters.push(cluster.clone());
                    self.probes.add(id, cluster, Instant::now());
                }
                Order::Stop => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }

    fn park(&mut self, parked: Parked, at: Instant) {
        match parked.link.has_received() {
            // The link woke a worker for a part of an answer.
            true => self.paused.push((parked, at + WAKE_PAUSE)),
            false => self.listen(parked),
        }
    }

    fn listen(&mut self, mut parked: Parked) {
        let entry = self.parked.vacant_entry();
        match parked.link.register(self.poll.registry(), Token(entry.key())) {
            Ok(()) => _ = entry.insert(parked),
            // A worker reads the link and finds out what is wrong.
            Err(_) => parked.cluster.upstream.work.clone().resume(parked),
        }
    }

    /// Lets a worker continue this call.
    fn wake(&mut self, slot: usize) {
        if let Some(parked) = self.remove_parked(slot) {
            parked.cluster.upstream.work.clone().resume(parked);
        }
    }

    fn remove_parked(&mut self, slot: usize) -> Option<Parked> {
        let mut parked = self.parked.try_remove(slot)?;
        // Deregistering fails only for a link that is not registered.
        let _ = parked.link.deregister(self.poll.registry());
        Some(parked)
    }

    fn tick(&mut self, now: Instant) {
        self.tick_at = now + TICK;
        let due: Vec<Parked> =
            self.paused.extract_if(.., |(_, at)| *at <= now).map(|(parked, _)| parked).collect();
        due.into_iter().for_each(|parked| self.listen(parked));
        self.check_parked(now);
        self.tell_activity();
        let mut doubted = Vec::new();
        self.busy.retain(|_, cluster| {
            let Ticked { is_busy, is_doubted } = cluster.tick(now);
            if is_doubted {
                doubted.push(cluster.clone());
            }
            is_busy
        });
        doubted.iter().for_each(|cluster| self.probes.probe_now(cluster, now));
    }

    /// Shows in `/threads` which call has been silent for longest.
    fn tell_activity(&self) {
        let oldest = self.parked.iter().map(|(_, parked)| parked);
        match oldest.min_by_key(|parked| parked.link.since()) {
            Some(parked) => {
                let (name, table) = (&parked.cluster.name, parked.link.table());
                activity::go_on("waits for a silent MetaServer", &[name, &table]);
            }
            None => activity::go_on("probes MetaServers", &[]),
        }
    }

    /// Sets aside calls that are silent for long, and drops links whose answers no query wants.
    fn check_parked(&mut self, now: Instant) {
        let slots: Vec<usize> = self.parked.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            let parked = &mut self.parked[slot];
            let silent = now.saturating_duration_since(parked.link.since());
            if !parked.link.is_connected() {
                // The time to connect is over, or the connect ended without an event: a worker looks.
                if silent >= CONNECT_TIMEOUT {
                    self.wake(slot);
                }
                continue;
            }
            let is_wanted = parked.cluster.is_wanted(&parked.link);
            let is_late = silent >= parked.cluster.upstream.query_timeout.slow_after();
            let is_kept = match (is_wanted, parked.is_slow) {
                (false, false) => {
                    parked.cluster.core.lock().calls.unpark();
                    false
                }
                (false, true) => {
                    parked.cluster.forget_slow_link();
                    false
                }
                (true, false) if is_late => {
                    parked.is_slow = true;
                    parked.cluster.set_aside(&mut parked.link)
                }
                (true, _) => true,
            };
            if !is_kept {
                self.remove_parked(slot);
            }
        }
    }
}
