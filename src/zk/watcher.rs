//! Thread `zk-watch`: the only writer of the routes when they come from ZooKeeper.
//!
//! ```text
//! misses ──┐                    ┌─▶ planner ─▶ reads, watches to set again ─▶ zk-link
//! events ──┼─ select! ─ handle ─┤
//! orders ──┤                    └─▶ routes: put, remove, names ─▶ Retry / Refuse jobs for who waited
//! time  ───┘
//! ```
//! It never touches a socket, so nothing that ZooKeeper does can hold it up, and it holds queries that wait
//! for a table as values, until the table is read or their time is over.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select, unbounded};
use log::{error, info, warn};

use super::codec::{Answer, Code, Event as Fired, Op, Stat};
use super::connection::{Command, Connection, Event, Granting, Options};
use super::control::{Asked, Control, Heard};
use super::lag::{Doubt, LAG_LIMIT, Lag};
use super::meaning::Meaning;
use super::planner::{Action, Planner};
use super::read::{Found, Paths, Progress, Read, ReadResult, What};
use super::routes::Routes;
use super::status::{Membership, Status};
use crate::activity;
use crate::client::ask::Ask;
use crate::config::ZooKeeperSettings;
use crate::patience::TICK;
use crate::route::control::{Accepted, Member, Word};
use crate::route::hold::{Refusal, Shown};
use crate::route::table::RouteWriter;
use crate::upstream::cluster::Upstream;
use crate::upstream::registry::Clusters;
use crate::wire::error_code::OwnError;
use crate::work::job::Job;
use crate::work::job::Jobs;

/// How often it is told that there is still no connection.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long a table counts as unknown after ZooKeeper said so, while the names of all tables are not known.
const ABSENT_FOR: Duration = Duration::from_secs(1);
/// Tables remembered as absent at most.
const MAX_ABSENT: usize = 10_000;

/// An operator accepts a hold as it was shown to him.
pub struct Accept {
    /// The root's czxid, 0 for a missing one.
    pub czxid: i64,
    /// Cached tables that are gone.
    pub gone: usize,
    /// Where the outcome goes.
    pub answer: Sender<Result<Shown, Refusal>>,
}

/// An order to the thread.
enum Order {
    Apply(ZooKeeperSettings),
    Accept(Accept),
    Serves(Member),
}

/// The way to tell an operator's word.
#[derive(Clone)]
pub struct Accepts(Sender<Order>);

impl Accepts {
    /// Tells it.
    pub fn send(&self, accept: Accept) {
        // Fails when the thread stops; then nobody answers.
        let _ = self.0.send(Order::Accept(accept));
    }
}

/// The running thread.
pub struct ZkWatch {
    stop: Sender<()>,
    thread: JoinHandle<()>,
    all_confirmed: Receiver<()>,
    orders: Sender<Order>,
    status: Status,
}

impl ZkWatch {
    /// Starts it. `missed` are queries for tables that are not cached; they come back as `jobs`.
    pub fn start(
        settings: ZooKeeperSettings,
        writer: RouteWriter,
        clusters: Clusters,
        upstream: Arc<Upstream>,
        missed: Receiver<Ask>,
        jobs: Arc<Jobs>,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let (confirmed, all_confirmed) = bounded(1);
        let (orders, ordered) = unbounded();
        let status = Status::new(&settings.root, settings.timeout);
        let routes = Routes::new(paths(&settings), settings.hold, writer, clusters);
        let seed = RandomState::new().hash_one(std::process::id());
        let resolve = Box::new(move |name: &str| upstream.resolver.known(name));
        let newest = routes.history.newest;
        let (connection, told) = Connection::start(options(&settings), resolve, newest, seed)?;
        let mut watch = Watch::new(routes, jobs, confirmed, status.clone(), seed);
        watch.preloads = settings.preload;
        watch.move_control(&settings);
        (watch.connection, watch.address) = (Some(connection), settings.address);
        let thread = thread::Builder::new().name("zk-watch".to_owned()).spawn(move || {
            watch.run_on(|watch| watch.run(&missed, &told, &ordered, &stopped));
            // First, for the connection waits until its events are news.
            drop(told);
            drop(watch);
        })?;
        Ok(ZkWatch { stop, thread, all_confirmed, orders, status })
    }

    /// The state of the connection to ZooKeeper.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Takes other settings. The proxy goes on serving the cached routes meanwhile.
    pub fn apply(&self, settings: ZooKeeperSettings) {
        // Fails when it stops.
        let _ = self.orders.send(Order::Apply(settings));
    }

    /// The proxy serves, and tells this below the control znode, if there is one.
    pub fn serves(&self, member: Member) {
        // Fails when it stops.
        let _ = self.orders.send(Order::Serves(member));
    }

    /// Where accepts of holds go.
    pub fn accepts(&self) -> Accepts {
        Accepts(self.orders.clone())
    }

    /// Waits until ZooKeeper has confirmed all routes that were there at start; false: not within `limit`.
    pub fn wait_until_confirmed(&self, limit: Duration) -> bool {
        self.all_confirmed.recv_timeout(limit).is_ok()
    }

    /// Ends the thread.
    pub fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

fn options(settings: &ZooKeeperSettings) -> Options {
    Options {
        address: settings.address.clone(),
        timeout: settings.timeout,
        digests: settings.digest.iter().chain(&settings.control_digest).cloned().collect(),
        root: Some(settings.root.clone()),
    }
}

fn paths(settings: &ZooKeeperSettings) -> Paths {
    Paths { root: settings.root.clone(), clusters_root: settings.clusters_root.clone() }
}

/// The read that an answer belongs to.
enum Pending {
    Read(Read),
    /// Watches that are set again.
    Watches(Vec<What>),
    /// The watch on the names, while the list itself is not read yet.
    NamesWatch,
    /// Below the control znode.
    Control(Asked),
}

struct Watch {
    routes: Routes,
    /// The servers in the settings.
    address: Vec<String>,
    jobs: Arc<Jobs>,
    planner: Planner,
    /// `None` in tests.
    connection: Option<Connection>,
    /// `None`: there is no control znode.
    control: Option<Control>,
    /// The proxy's own entry there, once it serves.
    member: Option<Member>,
    /// The number of the link that there is, and its server.
    link: Option<(u64, SocketAddr)>,
    /// Requests that are under way, by ticket.
    pending: HashMap<u64, Pending>,
    last_ticket: u64,
    /// Watches are set again since this zxid.
    since: i64,
    /// The last connection ended before all were set again.
    keeps_since: bool,
    /// The server tells when the names change.
    are_names_watched: bool,
    lag: Lag,
    /// Bounded by `limits.max_pending`, as all queries are.
    waiting: HashMap<Box<str>, Vec<Ask>>,
    absent: HashMap<Box<str>, Instant>,
    /// When it was last told that there is no connection.
    told_at: Option<Instant>,
    /// All tables are to be cached, those that there are when a connection comes.
    preloads: bool,
    /// The current connection has yet to do so.
    preload_is_due: bool,
    /// Told when all routes that were cached at start are confirmed.
    confirmed: Sender<()>,
    status: Status,
}

impl Watch {
    /// With no connection yet.
    fn new(routes: Routes, jobs: Arc<Jobs>, done: Sender<()>, status: Status, seed: u64) -> Self {
        let mut planner = Planner::new(Instant::now(), seed, routes.records.paths.parent_bytes());
        planner.distrust(routes.cached.by_use());
        Watch {
            routes,
            address: Vec::new(),
            jobs,
            planner,
            connection: None,
            control: None,
            member: None,
            link: None,
            pending: HashMap::new(),
            last_ticket: 0,
            since: 0,
            keeps_since: false,
            are_names_watched: false,
            lag: Lag::default(),
            waiting: HashMap::new(),
            absent: HashMap::new(),
            told_at: None,
            preloads: false,
            preload_is_due: false,
            confirmed: done,
            status,
        }
    }

    /// Runs it until it returns, and again after a panic, which is a bug: without this thread the proxy would serve old
    /// routes without end.
    fn run_on(&mut self, mut run: impl FnMut(&mut Self)) {
        while catch_unwind(AssertUnwindSafe(|| run(self))).is_err() {
            self.start_over();
        }
    }

    /// Gives up all that was going on. The proxy goes on serving what is cached, and reads it again over a new connection.
    fn start_over(&mut self) {
        error!("zk-watch panicked, and starts over");
        self.give_up("zk-watch panicked".to_owned());
        self.status.down("zk-watch panicked");
        self.planner.distrust(self.routes.cached.by_use());
        self.routes.decide(|meaning| meaning.records.forget());
        self.refuse_all();
    }

    fn run(
        &mut self,
        missed: &Receiver<Ask>,
        told: &Receiver<Event>,
        ordered: &Receiver<Order>,
        stopped: &Receiver<()>,
    ) {
        let mut next_expiry = Instant::now();
        loop {
            let now = Instant::now();
            while let Some(action) = self.planner.next_action(now) {
                self.act(action);
            }
            if next_expiry <= now {
                self.expire(now);
                next_expiry = now + TICK;
            }
            let expiry = (!self.waiting.is_empty()).then_some(next_expiry);
            let wake_at = self.planner.wake_at().into_iter().chain(expiry).min();
            let timer = wake_at.map_or_else(never, crossbeam_channel::at);
            self.say_what_it_waits_for();
            select! {
                recv(told) -> event => match event {
                    Ok(event) => self.hear(event),
                    Err(_) => return,
                },
                recv(missed) -> ask => match ask {
                    Ok(ask) => self.miss(ask),
                    Err(_) => return,
                },
                recv(ordered) -> order => order.into_iter().for_each(|order| self.obey(order)),
                recv(timer) -> _ => {}
                recv(stopped) -> _ => return,
            }
        }
    }

    fn say_what_it_waits_for(&self) {
        let Some((_, server)) = self.link else {
            return activity::go_on("waits for a connection to ZooKeeper", &[]);
        };
        let waits = match self.pending.is_empty() {
            true => "waits for changes of routes",
            false => "waits for answers of ZooKeeper",
        };
        activity::go_on(waits, &[&server.to_string()]);
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Apply(settings) => self.apply(&settings),
            Order::Accept(accept) => {
                // Nobody listens when the request has been given up.
                let _ = accept.answer.send(self.accept(accept.czxid, accept.gone));
            }
            Order::Serves(member) => {
                self.member = Some(member.clone());
                let told = self.control.as_mut().and_then(|control| control.serves(member));
                self.control(told);
            }
        }
    }

    fn accept(&mut self, czxid: i64, gone: usize) -> Result<Shown, Refusal> {
        let (accepted, _) = self.routes.decide(|meaning| meaning.accept(czxid, gone));
        if let Ok(shown) = &accepted {
            self.confirm_all(Instant::now());
            if shown.kind.is_of_root() {
                self.take_as_it_is();
            }
        }
        accepted
    }

    /// The operator says something by way of the control znode.
    fn heard(&mut self, word: Word) {
        let is_own = |id: &str| self.control.as_ref().is_some_and(|control| control.is_own(id));
        let accepts: Vec<Accepted> =
            word.accepts.iter().filter(|accepted| is_own(&accepted.member)).cloned().collect();
        for accepted in accepts {
            let (czxid, gone) = (accepted.czxid, accepted.gone);
            if let Err(refusal) = self.accept(czxid, gone) {
                warn!("control: accept of czxid={czxid:#x} gone={gone} is refused: {refusal:?}");
            }
        }
        self.routes.decide(|meaning| meaning.word = word);
    }

    fn control(&mut self, next: impl IntoIterator<Item = (Asked, Op)>) {
        for (asked, op) in next {
            self.ask(Pending::Control(asked), op);
        }
    }

    /// ZooKeeper counts as it is now, whatever was seen before.
    fn take_as_it_is(&mut self) {
        self.planner.distrust(self.routes.cached.by_use());
        self.tell(Command::StartOver);
    }

    /// All that is cached is read again.
    fn confirm_all(&mut self, now: Instant) {
        self.planner.confirm_again(self.routes.cached.by_use(), now);
        self.preload_is_due = self.preloads;
        self.read(self.routes.named_clusters());
    }

    fn read(&mut self, what: Vec<What>) {
        what.into_iter().for_each(|what| self.planner.changed(what));
    }

    /// The answer for a table that is absent.
    fn why_absent(&self) -> OwnError {
        match self.routes.hold.is_holding() {
            true => OwnError::Unavailable,
            false => OwnError::UnknownTable,
        }
    }

    /// Without the right root nobody can tell of the tables that queries wait for.
    fn refuse_if_blind(&mut self) {
        if self.routes.hold.is_blind() {
            self.status.unconfirmed();
            self.refuse_all();
        }
    }

    /// Nobody can tell when what queries wait for is read.
    fn refuse_all(&mut self) {
        let asks: Vec<Ask> = self.waiting.drain().flat_map(|(_, asks)| asks).collect();
        self.planner.keep_misses(|_| false);
        if !asks.is_empty() {
            self.jobs.send(Job::Refuse(asks, OwnError::Unavailable));
        }
    }

    fn apply(&mut self, settings: &ZooKeeperSettings) {
        self.status.asks(&settings.root, settings.timeout);
        self.preloads = settings.preload;
        let address = mem::replace(&mut self.address, settings.address.clone());
        let paths = paths(settings);
        // Other tables, and it is the operator who says so.
        let is_another = self.routes.records.paths.root != paths.root
            || !address.iter().any(|server| self.address.contains(server));
        let has_moved = self.move_control(settings) || self.routes.records.paths != paths;
        let shown = self.routes.hold.view().shown;
        if let Some(shown) = shown.filter(|_| !settings.hold && !is_another) {
            // Absences that are held now are believed, too.
            let _ = self.accept(shown.czxid(), shown.gone);
        }
        self.routes.set_capacity(settings.cache_capacity);
        self.routes.decide(|meaning| meaning.hold.set_on(settings.hold));
        self.tell(Command::Configure(options(settings)));
        if !is_another && !has_moved {
            return;
        }
        // Answers that are under way come from servers and znodes that do not count any more.
        self.down("the settings name other servers or znodes");
        if self.routes.records.paths != paths {
            self.planner.set_parent_bytes(paths.parent_bytes());
            self.routes.decide(|meaning| {
                meaning.records.paths = paths;
                meaning.records.forget();
            });
        }
        if is_another {
            self.routes.decide(Meaning::believe_another);
        }
        self.take_as_it_is();
    }

    /// Whether the control znode is another one now.
    fn move_control(&mut self, settings: &ZooKeeperSettings) -> bool {
        let now = settings.control();
        let before = self.control.as_ref().map(Control::place);
        if before == now {
            return false;
        }
        self.status.is(if now.is_some() { Membership::Due } else { Membership::Off });
        self.control = now.map(|(root, has_digest)| Control::new(root, has_digest));
        if let (Some(control), Some(member)) = (&mut self.control, &self.member) {
            // It is told over the next link.
            control.serves(member.clone());
        }
        true
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Read(what) => {
                self.routes.decide(|meaning| meaning.asked(&what));
                let (read, op) = Read::begin(what, &self.routes.records.paths);
                self.ask(Pending::Read(read), op);
            }
            Action::SetWatches(set) => {
                let (op, _) = self.routes.decide(|meaning| meaning.set_watches(self.since, &set));
                self.ask(Pending::Watches(set), op);
            }
            Action::StartSweep => {
                self.routes.decide(Meaning::forget_unnamed);
                self.planner.sweep(self.routes.cached.by_use());
                self.read(self.routes.named_clusters());
            }
            Action::AllConfirmed(took) => {
                let cached = self.routes.cached.len();
                if cached > 0 {
                    info!("zookeeper: all {cached} cached routes are confirmed, took={took:?}");
                }
                self.lag.ended();
                self.routes.decide(|meaning| meaning.history.is_anew = false);
                self.status.confirmed();
                let _ = self.confirmed.try_send(());
            }
        }
    }

    fn tell(&self, command: Command) {
        if let Some(connection) = &self.connection {
            connection.tell(command);
        }
    }

    fn ask(&mut self, pending: Pending, op: Op) {
        if let Some((link, _)) = self.link {
            self.last_ticket += 1;
            self.pending.insert(self.last_ticket, pending);
            self.tell(Command::Ask { link, ticket: self.last_ticket, op });
        }
    }

    /// The server is not to be believed.
    fn give_up(&mut self, why: String) {
        if let Some((link, _)) = self.link {
            self.tell(Command::GiveUp { link, why: why.clone() });
        }
        self.down(&why);
    }

    fn hear(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Up { link, server, session, since } => {
                self.up(link, server, session, since, now)
            }
            Event::Down(why) => self.down(&why),
            Event::Fired { event, path, at } => self.fired(event, &path, at),
            Event::Pong { zxid } => self.status.saw(zxid),
            Event::Reply { ticket, zxid, result } => {
                self.status.saw(zxid);
                if let Some(pending) = self.pending.remove(&ticket) {
                    self.routes.decide(|meaning| meaning.history.knows(zxid));
                    self.answered(pending, result, now);
                }
            }
            Event::Looked { server, zxid, root } => self.looked(server, zxid, root),
        }
    }

    fn up(&mut self, link: u64, server: SocketAddr, session: Granting, since: i64, now: Instant) {
        let cached = self.routes.cached.len();
        info!(
            "zookeeper: connected to {server}, session={:#x} session_timeout={:?}, {cached} cached routes to confirm",
            session.id, session.timeout
        );
        // Watches that the connection before had not set again yet are due since it came, unless what was seen then does
        // not count any more.
        if !mem::take(&mut self.keeps_since) || since < self.since {
            self.since = since;
        }
        self.status.connected(server, session);
        self.told_at = None;
        self.preload_is_due = self.preloads;
        self.link = Some((link, server));
        self.routes.decide(|meaning| meaning.connected(server, now));
        // Before anything else, so that it is heard before what it is about.
        let asked = self.control.as_mut().map(|control| control.up(session.id));
        self.control(asked.unwrap_or_default());
        let mut others = self.routes.named_clusters();
        self.are_names_watched = self.routes.cached.names().0;
        if self.are_names_watched {
            others.push(What::Names);
        }
        self.planner.up(self.routes.cached.by_use(), others, now);
    }

    fn down(&mut self, why: &str) {
        let cached = self.routes.cached.len();
        if self.link.take().is_some() {
            warn!(
                "zookeeper: connection lost, the proxy goes on serving {cached} cached routes, maybe stale: {why}"
            );
            // The first try that fails is told at once.
            self.told_at = None;
            self.routes.log.disconnected();
            self.routes.decide(Meaning::disconnected);
            self.absent.clear();
            self.pending.clear();
            self.keeps_since |= self.planner.is_resetting();
            self.planner.down();
        } else if self.told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            // An outage of hours is tried every second and told now and then.
            self.told_at = Some(Instant::now());
            warn!("zookeeper: no connection, {cached} cached routes serve: {why}");
        }
        self.status.down(why);
    }

    fn fired(&mut self, event: Fired, path: &str, at: Instant) {
        match self.routes.records.paths.what_is(path) {
            Some(What::Root) if event == Fired::ChildrenChanged => self.names_changed(),
            // The event is of a table that was evicted, or of a cluster that no table names any more.
            Some(what @ (What::Table(_) | What::Cluster(_)))
                if !self.routes.is_used(&what) && !self.planner.reads(&what) => {}
            Some(what) => {
                self.routes.log.changed(&what, at);
                self.planner.changed(what);
            }
            None => match self.control.as_ref().and_then(|control| control.fired(path)) {
                Some(ask) => self.control(Some(ask)),
                None => warn!("zookeeper: an event came for {path}, which is not watched"),
            },
        }
    }

    /// Until the list is read again, each unknown name costs a read.
    fn names_changed(&mut self) {
        self.are_names_watched = false;
        self.absent.clear();
        self.routes.decide(Meaning::names_changed);
        self.planner.changed(What::Root);
    }

    fn answered(&mut self, pending: Pending, result: Result<Answer, Code>, now: Instant) {
        match (pending, result) {
            (Pending::Control(asked), result) => {
                match self.control.as_mut().map(|control| control.answered(asked, result)) {
                    Some(Heard::Ask(ask)) => self.control(Some(ask)),
                    Some(Heard::Word(word)) => self.heard(word),
                    Some(Heard::Member) => self.status.is(Membership::Member),
                    Some(Heard::Fault(why)) => {
                        warn!("control: {why}");
                        self.status.is(Membership::Fault(why));
                    }
                    Some(Heard::Nothing) | None => {}
                }
            }
            (Pending::Read(read), result) => {
                match read.answered(result, &self.routes.records.paths) {
                    Progress::Ask(read, op) => self.ask(Pending::Read(read), op),
                    Progress::Done(what, found) => self.take(what, found, now),
                    Progress::Failed(code) => self.give_up(format!("a read failed: {code}")),
                }
            }
            (Pending::Watches(set), Ok(_)) => {
                for what in self.planner.watches_set(set) {
                    let ((), news) = self.routes.decide(|meaning| meaning.rearmed(&what));
                    news.known.iter().for_each(|table| self.planner.confirmed(table, now));
                    self.retry(news.known);
                    self.read(news.read);
                }
            }
            (Pending::NamesWatch, Ok(_)) => {}
            (Pending::Watches(_) | Pending::NamesWatch, Err(code)) => {
                self.give_up(format!("watches cannot be set again: {code}"));
            }
        }
    }

    fn retry(&mut self, tables: Vec<Box<str>>) {
        for table in tables {
            if let Some(asks) = self.waiting.remove(&table) {
                self.planner.served(&table);
                self.jobs.send(Job::Retry(asks));
            }
        }
    }

    fn miss(&mut self, ask: Ask) {
        let now = Instant::now();
        if self.routes.cached.has(&ask.table) {
            self.jobs.send(Job::Retry(vec![ask]));
        } else if !self.routes.cached.names().1
            && self.absent.get(&ask.table).is_some_and(|until| now < *until)
        {
            self.jobs.send(Job::Refuse(vec![ask], self.why_absent()));
        } else {
            let waiting = self.waiting.entry(ask.table.clone()).or_default();
            // Misses of one table share one read.
            if waiting.is_empty() {
                self.planner.miss(&ask.table);
            }
            waiting.push(ask);
        }
    }

    /// Those whose time is over are told so; a table that nobody waits for then is not read.
    fn expire(&mut self, now: Instant) {
        let mut expired = Vec::new();
        self.waiting.retain(|_, asks| {
            expired.extend(asks.extract_if(.., |ask| ask.deadline <= now || ask.is_gone()));
            !asks.is_empty()
        });
        if !expired.is_empty() {
            self.planner.keep_misses(|table| self.waiting.contains_key(table));
            self.jobs.send(Job::Refuse(expired, OwnError::Unavailable));
        }
    }

    /// No server lets us in that knows what was seen before. One was asked for its root as by a newcomer.
    fn looked(&mut self, server: SocketAddr, zxid: i64, root: Result<Stat, Code>) {
        let root = match root {
            Ok(stat) => Some(stat),
            Err(Code::NO_NODE) => None,
            Err(code) => return warn!("zookeeper: {server} does not show its root: {code}"),
        };
        warn!(
            "zookeeper: no server knows what was seen before, for {LAG_LIMIT:?}; {server} has zxid={zxid:#x}: it was \
             restored or set up anew"
        );
        if self.routes.decide(|meaning| meaning.looked(server, zxid, root, Instant::now())).0 {
            self.take_as_it_is();
        }
        self.refuse_if_blind();
    }

    fn take(&mut self, what: What, found: ReadResult, now: Instant) {
        let is_wanted = self.planner.wants(&what);
        let (names, pzxid) = match &found {
            Ok(Found::Names(names)) => (Some(names.len()), None),
            Ok(Found::Root(stat)) => (None, Some(stat.pzxid)),
            _ => (None, None),
        };
        let take = |meaning: &mut Meaning| meaning.take(&what, found, is_wanted, now);
        let (verdict, news) = self.routes.decide(take);
        let verdict = match verdict {
            Ok(verdict) => verdict,
            Err(Doubt { why, lags }) => {
                self.give_up(why);
                if self.routes.hold.is_blind() {
                    self.tell(Command::ForgetSince(self.routes.history.newest));
                }
                self.refuse_if_blind();
                return if lags {
                    self.lags(now)
                };
            }
        };
        let (is_root, is_names) = (what == What::Root, what == What::Names);
        if self.planner.done(what, verdict, now) {
            news.known.iter().for_each(|table| self.planner.confirmed(table, now));
        } else if is_names {
            self.routes.decide(Meaning::names_are_old);
        }
        self.retry(news.known);
        self.refuse_if_blind();
        for table in news.gone {
            if let Some(asks) = self.waiting.remove(&table) {
                self.planner.served(&table);
                let why = self.why_absent();
                self.jobs.send(Job::Refuse(asks, why));
            }
            if self.absent.len() >= MAX_ABSENT {
                self.absent.clear();
            }
            self.absent.insert(table, now + ABSENT_FOR);
        }
        if is_names {
            self.planner.names_read(names.unwrap_or(0), now);
            self.are_names_watched = names.is_some();
        }
        self.read(news.read);
        if is_root {
            let cached = self.routes.cached.clone();
            self.routes.log.tell_of_flaps(now, &cached);
            self.watch_names(pzxid);
            let member = self.control.as_mut().and_then(Control::root_seen);
            self.control(member);
        }
        if (is_root || is_names)
            && self.routes.cached.names().1
            && mem::take(&mut self.preload_is_due)
        {
            self.planner.preload(self.routes.cached.names_not_cached());
        }
        if news.confirm_all {
            self.confirm_all(now);
        }
    }

    /// The list of names is read later, and their watch has fired: it is set again, so that what was found to be absent
    /// is not told for longer than it is true.
    fn watch_names(&mut self, pzxid: Option<i64>) {
        if let Some(since) = pzxid
            && !self.are_names_watched
            && self.routes.cached.names().0
        {
            self.are_names_watched = true;
            let child = vec![self.routes.records.paths.root.clone()];
            let op = Op::SetWatches { since, data: Vec::new(), exist: Vec::new(), child };
            self.ask(Pending::NamesWatch, op);
        }
    }

    /// No server is in reach but ones that lag.
    fn lags(&mut self, now: Instant) {
        if self.lag.seen(now) {
            warn!(
                "zookeeper: no server knows what was seen before, for {LAG_LIMIT:?}: it was restored or set up anew"
            );
            if self.routes.decide(|meaning| meaning.all_lag(now)).0 {
                self.planner.distrust(self.routes.cached.by_use());
            }
            self.refuse_if_blind();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::table::{Cached, RouteTable};
    use crate::zk::planner::Verdict;
    use crate::zk::status::Trust;

    fn settings(root: &str, address: &str) -> ZooKeeperSettings {
        let text = format!("zookeeper: {{root: {root}, address: ['{address}']}}");
        crate::config::parse(&text, true).settings.unwrap().zookeeper.unwrap()
    }

    /// With these tables cached, from `/r` of `h:1`.
    fn watch(tables: &[String]) -> Watch {
        let (_, writer) = RouteTable::new(tables.len().max(1));
        tables.iter().for_each(|table| writer.put(table, Cached::Unusable));
        let clusters = Clusters::new(Upstream::unrouted());
        let settings = settings("/r", "h:1");
        let routes = Routes::new(paths(&settings), true, writer, clusters);
        let status = Status::new("/r", settings.timeout);
        let jobs = Arc::new(Jobs::default());
        let mut watch = Watch::new(routes, jobs, bounded(1).0, status, 7);
        watch.address = settings.address;
        watch
    }

    fn up(watch: &mut Watch, link: u64, since: i64) {
        let session = Granting { id: 1, timeout: Duration::from_secs(6) };
        watch.up(link, "127.0.0.1:1".parse().unwrap(), session, since, Instant::now());
    }

    /// Has what is cached set its watches again; returns how long the first request for that is.
    fn watches_bytes(watch: &mut Watch) -> usize {
        watch.planner.distrust(Vec::new()); // they have been read
        up(watch, 1, 9);
        let now = Instant::now();
        assert_eq!(watch.planner.next_action(now), Some(Action::Read(What::Root)));
        watch.planner.done(What::Root, Verdict::Settled, now);
        let Some(Action::SetWatches(set)) = watch.planner.next_action(now) else {
            panic!("there are watches to set again");
        };
        set.iter().map(|what| 4 + watch.routes.records.paths.of(what).len()).sum()
    }

    #[test]
    fn watches_below_a_longer_root_are_set_again_in_as_small_requests() {
        let tables: Vec<String> = (0..9_000).map(|n| format!("t{n}")).collect();
        let mut watch = watch(&tables);
        let before = watches_bytes(&mut watch);
        watch.apply(&settings(&format!("/{}", "r".repeat(200)), "h:1"));
        let after = watches_bytes(&mut watch);
        assert!(after <= 128 * 1024, "{before} -> {after}");
    }

    #[test]
    fn answers_of_servers_that_the_settings_do_not_name_any_more_say_nothing() {
        for (root, address) in [("/s", "h:1"), ("/r", "h:2")] {
            let mut watch = watch(&["t".to_owned()]);
            up(&mut watch, 1, 9);
            let (read, _) = Read::begin(What::Root, &watch.routes.records.paths);
            watch.pending.insert(7, Pending::Read(read));
            watch.apply(&settings(root, address));
            let result = Ok(Answer::Stat(Stat { czxid: 5, ..Stat::default() }));
            watch.hear(Event::Reply { ticket: 7, zxid: 8, result });
            assert_eq!(watch.routes.history.newest, 0, "{root} {address}");
            assert!(!watch.routes.hold.is_blind());
            up(&mut watch, 2, 0);
            let found = Ok(Found::Root(Stat { czxid: 3, ..Stat::default() }));
            watch.take(What::Root, found, Instant::now());
            assert!(
                watch.routes.hold.view().shown.is_none(),
                "{root} {address}: another root is no surprise"
            );
        }
    }

    #[test]
    fn watches_are_set_again_since_nothing_when_what_was_seen_does_not_count() {
        let mut watch = watch(&["t".to_owned()]);
        watch.planner.distrust(Vec::new());
        up(&mut watch, 1, 9);
        watch.keeps_since = true;
        up(&mut watch, 2, 12);
        assert_eq!(watch.since, 9, "what fired while they were set is told again");
        watch.keeps_since = true;
        up(&mut watch, 3, 0);
        assert_eq!(watch.since, 0);
    }

    #[test]
    fn after_a_panic_it_starts_over_and_all_that_is_cached_is_stale() {
        let upstream = Upstream::unrouted();
        let (table, writer) = RouteTable::new(10);
        writer.put("orders", Cached::Unusable);
        writer.trust();
        writer.confirm("orders");
        let clusters = Clusters::new(upstream.clone());
        let paths = Paths { root: "/r".to_owned(), clusters_root: None };
        let routes = Routes::new(paths, true, writer, clusters);
        let status = Status::new("/r", Duration::from_secs(6));
        let (confirmed, jobs) = (bounded(1).0, Arc::new(Jobs::default()));
        let mut watch = Watch::new(routes, jobs, confirmed, status.clone(), 7);
        let mut runs = 0;
        watch.run_on(|watch| {
            runs += 1;
            let now = Instant::now();
            let up = |watch: &mut Watch| {
                let session = Granting { id: 1, timeout: Duration::from_secs(6) };
                watch.up(runs, "127.0.0.1:1".parse().unwrap(), session, 0, now);
                assert_eq!(watch.planner.next_action(now), Some(Action::Read(What::Root)));
                watch.planner.done(What::Root, Verdict::Settled, now);
            };
            if runs == 1 {
                watch.planner.distrust(Vec::new()); // they have been read
                up(watch);
                let set = vec![What::Table("orders".into())];
                assert_eq!(watch.planner.next_action(now), Some(Action::SetWatches(set)));
                watch.routes.decide(|meaning| meaning.rearmed(&What::Table("orders".into())));
                watch.status.confirmed();
                assert!(!table.list()[0].is_stale);
                panic!("a fault of ours");
            }
            assert!(table.list()[0].is_stale);
            let view = status.view();
            let want = (Trust::Down, Some("zk-watch panicked"));
            assert_eq!((view.trust, view.fault.as_deref()), want);
            up(watch);
            let read = Action::Read(What::Table("orders".into()));
            assert_eq!(
                watch.planner.next_action(now),
                Some(read),
                "its watch is not to be relied on"
            );
        });
        assert_eq!(runs, 2);
    }
}
