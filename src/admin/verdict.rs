//! How the proxy is doing, as plain values: what the status page shows and the JSON pages print. Pure.
//!
//! Whoever fills it only reads what the proxy knows; what that means for an operator is decided here, in
//! [`Overview::verdict`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::metrics::LATENCY_BOUNDS_US;
pub use crate::metrics::{Refusal, Shed};
pub use crate::route::hold::Kind;
use crate::wire::error_code::ERR_OBJECT_NOT_FOUND;
pub use crate::zk::status::Trust;

/// Everything at one moment.
#[derive(Clone, Debug)]
pub struct Overview {
    /// Name of the host.
    pub host: String,
    /// Version of the proxy.
    pub version: &'static str,
    /// Time since the proxy started.
    pub up_s: u64,
    /// Where the process is in its life.
    pub life: Life,
    /// How it stands with ZooKeeper; nothing with a routes file.
    pub zookeeper: Option<ZooKeeper>,
    /// What is held, if anything is.
    pub hold: Option<Hold>,
    /// The clusters that routes name.
    pub clusters: Vec<Cluster>,
    /// The cached routes.
    pub routes: Vec<Route>,
    /// What clients do.
    pub clients: Clients,
    /// What was refused since the start.
    pub refused: Vec<Refused>,
    /// How it stands with what no query waits for.
    pub upkeep: Upkeep,
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It is not ready for clients yet.
    Starting,
    /// It serves.
    Serving,
    /// It serves, and clients should go elsewhere.
    Draining,
    /// It only finishes what is under way.
    Stopping,
}

/// Routes that are held: they serve on although ZooKeeper does not have them any more.
#[derive(Clone, Debug, Serialize)]
pub struct Hold {
    /// Why.
    pub kind: Kind,
    /// Since when, in seconds.
    pub since_s: u64,
    /// The znode above the tables.
    pub root: String,
    /// czxid of the root as it is now; none if it is missing.
    pub czxid: Option<String>,
    /// When that root was created, ms since 1970.
    pub ctime_ms: Option<i64>,
    /// czxid of the root whose routes are held.
    pub known_czxid: Option<String>,
    /// Tables that are held.
    pub held: usize,
    /// Tables that an accept takes away.
    pub gone: usize,
}

/// How it stands with ZooKeeper.
#[derive(Clone, Debug, Serialize)]
pub struct ZooKeeper {
    /// The znode above the tables.
    pub root: String,
    /// It does not exist.
    #[serde(skip)]
    pub is_rootless: bool,
    /// Whether changes are noticed.
    pub state: Trust,
    /// Since when it is so, in seconds.
    pub since_s: u64,
    /// The server, while there is a connection.
    pub server: Option<String>,
    /// The session, as ZooKeeper's tools show it.
    pub session: Option<String>,
    /// The session time-out asked for.
    pub asked_timeout_ms: u64,
    /// The one that the server grants.
    pub granted_timeout_ms: Option<u64>,
    /// Connections built anew since the first.
    pub rebuilds: u64,
    /// Why the last connection was given up, or not made.
    pub last_fault: Option<String>,
    /// Tables cached.
    pub cached: usize,
    /// Those of them that were not read again since the connection was lost.
    pub unconfirmed: usize,
    /// Tables that can be cached.
    pub capacity: usize,
    /// Tables that had to make room for others, since the start.
    pub evicted: u64,
    /// Time since the last one had to.
    pub evicted_s: Option<u64>,
}

/// One cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Its MetaServers.
    pub metas: Vec<String>,
    /// Tables whose routes name it.
    pub tables: usize,
    /// Who of them leads, if that is known.
    pub leader: Option<String>,
    /// Connections to MetaServers that wait for use.
    pub links: usize,
    /// Calls under way.
    pub calls: usize,
    /// Queries that wait for calls.
    pub waiting: usize,
    /// It fails for so long, in seconds, and queries are refused except for probes.
    pub failing_s: Option<u64>,
    /// Calls that failed since the last answer.
    pub failures: u32,
    /// Failures since the start.
    pub meta_failures: Vec<MetaFailure>,
    /// How long answers take of late.
    pub usual_us: Option<u64>,
    /// Answers ERR_OK since the start.
    pub answers_ok: u64,
    /// All others.
    pub answers_other: u64,
    /// Queries that the proxy answered ERR_SERVICE_NOT_ACTIVE because no MetaServer answered.
    pub unanswered: u64,
}

/// How often a MetaServer failed in one way.
#[derive(Clone, Debug, Serialize)]
pub struct MetaFailure {
    /// The MetaServer.
    pub meta: String,
    /// `refused`, `timeout`, ...
    pub kind: &'static str,
    /// Since the start.
    pub count: u64,
    /// Time since the last.
    pub last_s: u64,
}

/// One cached table.
#[derive(Clone, Debug, Serialize)]
pub struct Route {
    /// The table.
    pub table: String,
    /// Its cluster; none if no record of it could ever be used.
    pub cluster: Option<String>,
    /// Why the record that is there now cannot be used; a cluster that is there nevertheless is the last good one's.
    pub fault: Option<String>,
    /// The MetaServers of its cluster.
    pub metas: Vec<String>,
    /// zxid of the change that wrote its record.
    pub zxid: i64,
    /// Time since it changed.
    pub age_s: u64,
    /// Time since it was found to be current, if it was.
    pub confirmed_age_s: Option<u64>,
    /// `zookeeper`, `state file`, `file`.
    pub source: &'static str,
    /// Whether it may have changed unseen.
    pub stale: bool,
    /// Whether it serves on although its record or the root is gone.
    pub held: bool,
    /// Queries for it since it is cached.
    pub queries: u64,
    /// Reads of ZooKeeper for it since it is cached.
    pub reads: u64,
    /// What its cluster last answered, if that was an error.
    pub error: Option<&'static str>,
    /// Time since the last such answer.
    pub error_s: Option<u64>,
    /// Queries that were answered so, one after the other.
    pub error_queries: u64,
}

/// What clients do.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Connections.
    pub connections: u64,
    /// Queries under way.
    pub pending: usize,
    /// Answers that clients have not read yet.
    pub unread_bytes: usize,
    /// Queries since the start.
    pub queries: u64,
    /// Queries per second of late, see [`Rate`].
    pub queries_per_s: f64,
    /// Answers other than ERR_OK per second of late.
    pub errors_per_s: f64,
    /// Within which half of the answers of late came, and 99 % of them.
    pub latency_us: Option<(u64, u64)>,
}

/// What clients were refused.
#[derive(Clone, Debug)]
pub struct Refused {
    /// What, and why.
    pub what: Refusable,
    /// Since the start.
    pub count: u64,
    /// Time since the last.
    pub last_s: u64,
}

/// What can be refused, and why.
#[derive(Clone, Copy, Debug)]
pub enum Refusable {
    /// A connection.
    Connection(Refusal),
    /// A query.
    Query(Shed),
}

/// What no query waits for, and an operator misses later.
#[derive(Clone, Debug, Default)]
pub struct Upkeep {
    /// Why the settings file was not taken at the last SIGHUP, and how long ago that was, in seconds.
    pub rejected_settings: Option<(String, u64)>,
    /// Settings that have changed and wait for a restart.
    pub waiting_settings: Vec<String>,
    /// Why the state file cannot be written.
    pub state_file_fault: Option<String>,
    /// Whether the falcon agent did not take the last push.
    pub falcon_fails: bool,
    /// Log lines that were lost.
    pub lost_lines: Option<LostLines>,
}

/// Log lines that were lost.
#[derive(Clone, Debug)]
pub struct LostLines {
    /// Since the start.
    pub lines: u64,
    /// Why the last were.
    pub why: String,
    /// Time since then.
    pub last_s: u64,
}

/// What it all means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How bad it is.
    pub level: Level,
    /// All is well, or the worst of what is wrong, in one sentence.
    pub headline: String,
    /// What else is wrong, a sentence each.
    pub details: Vec<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing to do.
    Well,
    /// All that is known is served, but something should be seen to.
    Warning,
    /// Some clients do not get what they ask for.
    Bad,
}

/// Clusters or tables that a sentence names.
const NAMES_IN_A_SENTENCE: usize = 3;
/// What was refused or lost for the last time so long ago is no news any more.
const NEWS_S: u64 = 60;
/// A table that its cluster does not have is told of for this long after the last query.
const MISSING_S: u64 = 3_600;
/// Confirming the routes takes so long at times; longer is a reason to look.
const CONFIRMING_S: u64 = 10;

impl Overview {
    /// What is wrong, the worst first.
    pub fn verdict(&self) -> Verdict {
        let mut found = self.wrongs();
        found.sort_by_key(|(level, _)| std::cmp::Reverse(*level));
        let mut found = found.into_iter();
        let (level, headline) =
            found.next().unwrap_or_else(|| (Level::Well, "All is well".to_owned()));
        Verdict { level, headline, details: found.map(|(_, sentence)| sentence).collect() }
    }

    fn wrongs(&self) -> Vec<(Level, String)> {
        let mut found = Vec::new();
        match self.life {
            Life::Serving => {}
            Life::Starting => found.push((Level::Warning, "Starting, not ready yet".to_owned())),
            Life::Draining => {
                let sentence = "Draining: clients are asked to go elsewhere";
                found.push((Level::Warning, sentence.to_owned()));
            }
            Life::Stopping => found.push((Level::Warning, "Stopping".to_owned())),
        }
        if let Some(hold) = &self.hold {
            let server = self.zookeeper.as_ref().and_then(|zookeeper| zookeeper.server.as_deref());
            found.push((Level::Bad, hold.wrong(server)));
        }
        let failing = self.clusters.iter().filter(|cluster| cluster.failing_s.is_some());
        let failing: Vec<&Cluster> = failing.collect();
        match failing[..] {
            [] => {}
            [cluster] => found.push((Level::Bad, cluster.wrong())),
            _ => {
                let named = |cluster: &&Cluster| {
                    format!("{} ({})", cluster.name, counted(cluster.tables as u64, "table"))
                };
                let names: Vec<String> = failing.iter().map(named).collect();
                let names = some_of(names.iter().map(String::as_str));
                let sentence = format!("{} clusters do not answer: {names}", failing.len());
                found.push((Level::Bad, sentence));
            }
        }
        found.extend(self.mute_metas().map(|what| (Level::Warning, what)));
        let unserved = |route: &&Route| route.cluster.is_none();
        let last_good = |route: &&Route| route.cluster.is_some() && route.fault.is_some();
        found.extend(self.bad_records(unserved).map(|what| (Level::Bad, what)));
        let last_good = self.bad_records(last_good);
        found.extend(last_good.map(|what| (Level::Warning, what + "; the last good one serves")));
        found.extend(self.not_in_their_cluster().map(|what| (Level::Bad, what)));
        found.extend(self.refused_tables().map(|what| (Level::Warning, what)));
        found.extend(self.ambiguous_clusters().into_iter().map(|what| (Level::Warning, what)));
        if let Some(zookeeper) = &self.zookeeper {
            found.extend(zookeeper.wrong(self.hold.is_some()));
            found.extend(zookeeper.overflow().map(|what| (Level::Warning, what)));
        }
        if self.routes.is_empty() {
            match &self.zookeeper {
                Some(ZooKeeper { state: Trust::Down, .. }) => {
                    found.push((Level::Bad, "There is no route at all to serve".to_owned()));
                }
                // Nobody has asked for a table yet.
                Some(_) => {}
                None => found.push((Level::Bad, "The routes file has no table".to_owned())),
            }
        }
        let refused = self.refused.iter().filter(|refused| refused.last_s < NEWS_S);
        found.extend(refused.map(|refused| (Level::Bad, refused.wrong())));
        found.extend(self.upkeep.wrongs().into_iter().map(|what| (Level::Warning, what)));
        found
    }

    /// MetaServers that fail while others of their cluster answer.
    fn mute_metas(&self) -> Option<String> {
        let working = self.clusters.iter().filter(|cluster| cluster.failing_s.is_none());
        let failing: Vec<(&Cluster, &MetaFailure)> = working
            .flat_map(|cluster| cluster.fresh_failures().into_iter().map(move |of| (cluster, of)))
            .collect();
        match failing[..] {
            [] => None,
            [(Cluster { name, .. }, failure)] => {
                let MetaFailure { meta, kind, last_s, .. } = failure;
                let last = span(*last_s);
                Some(format!(
                    "MetaServer {meta} of {name} gave no usable answer: {kind}, {last} ago"
                ))
            }
            _ => {
                let names = some_of(failing.iter().map(|(_, failure)| failure.meta.as_str()));
                Some(format!("{} MetaServers gave no usable answer: {names}", failing.len()))
            }
        }
    }

    /// Tables that the cluster of their route does not have: the route is wrong, or the table is gone.
    fn not_in_their_cluster(&self) -> Option<String> {
        let is_missing = |route: &&Route| {
            route.error == Some(ERR_OBJECT_NOT_FOUND)
                && route.error_s.is_some_and(|last_s| last_s < MISSING_S)
        };
        let missing: Vec<&Route> = self.routes.iter().filter(is_missing).collect();
        let named = |route: &&Route| {
            let cluster = route.cluster.as_deref().unwrap_or_default();
            format!("{} ({cluster})", route.table)
        };
        match missing[..] {
            [] => None,
            [Route { table, cluster, error_queries, error_s, .. }] => {
                let cluster = cluster.as_deref().unwrap_or_default();
                let (queries, last) =
                    (counted(*error_queries, "query"), span(error_s.unwrap_or(0)));
                Some(format!(
                    "Cluster {cluster} does not have table {table}: {queries} answered \
                     {ERR_OBJECT_NOT_FOUND}, the last {last} ago; is its route right?"
                ))
            }
            _ => {
                let names: Vec<String> = missing.iter().map(named).collect();
                let names = some_of(names.iter().map(String::as_str));
                Some(format!(
                    "{} tables are not in the cluster of their route: {names}",
                    thousands(missing.len() as u64)
                ))
            }
        }
    }

    /// Tables to which their cluster answered another error just now.
    fn refused_tables(&self) -> Option<String> {
        let is_refused = |route: &&Route| {
            let is_news = route.error_s.is_some_and(|last_s| last_s < NEWS_S);
            route.error.is_some_and(|error| error != ERR_OBJECT_NOT_FOUND) && is_news
        };
        let refused: Vec<&Route> = self.routes.iter().filter(is_refused).collect();
        let named =
            |route: &&Route| format!("{} ({})", route.table, route.error.unwrap_or_default());
        let names: Vec<String> = refused.iter().map(named).collect();
        let names = some_of(names.iter().map(String::as_str));
        match refused.len() {
            0 => None,
            1 => Some(format!("The cluster of a table answers with an error: {names}")),
            n => Some(format!("The clusters of {n} tables answer with errors: {names}")),
        }
    }

    /// A name that stands for several sets of MetaServers, and a set that has several names: records were written by hand,
    /// or a move of MetaServers is half done.
    fn ambiguous_clusters(&self) -> Vec<String> {
        let mut by_name: BTreeMap<&str, BTreeSet<&[String]>> = BTreeMap::new();
        let mut by_metas: BTreeMap<&[String], BTreeSet<&str>> = BTreeMap::new();
        for route in &self.routes {
            if let Some(name) = route.cluster.as_deref() {
                by_name.entry(name).or_default().insert(&route.metas);
                by_metas.entry(&route.metas).or_default().insert(name);
            }
        }
        let sets = by_name.iter().filter(|(_, sets)| sets.len() > 1).map(|(name, sets)| {
            let shown: Vec<String> = sets.iter().map(|metas| metas.join(" ")).collect();
            let shown = some_of(shown.iter().map(String::as_str));
            format!("Cluster {name} has {} different sets of MetaServers: {shown}", sets.len())
        });
        let names = by_metas.values().filter(|names| names.len() > 1).map(|names| {
            let shown = some_of(names.iter().copied().collect::<Vec<_>>().into_iter());
            format!("One set of MetaServers has {} names: {shown}", names.len())
        });
        let (sets, names): (Vec<String>, Vec<String>) = (sets.collect(), names.collect());
        let limited = |mut told: Vec<String>| {
            let more = told.len().saturating_sub(NAMES_IN_A_SENTENCE);
            told.truncate(NAMES_IN_A_SENTENCE);
            told.extend((more > 0).then(|| format!("{more} more clusters are named ambiguously")));
            told
        };
        limited(sets.into_iter().chain(names).collect())
    }

    fn bad_records(&self, is_bad: impl Fn(&&Route) -> bool) -> Option<String> {
        let bad: Vec<&Route> = self.routes.iter().filter(is_bad).collect();
        match bad[..] {
            [] => None,
            [Route { table, fault, .. }] => {
                let fault = fault.as_ref().map(|fault| format!(": {fault}")).unwrap_or_default();
                Some(format!("The record of table {table} cannot be used{fault}"))
            }
            _ => {
                let names = some_of(bad.iter().map(|route| route.table.as_str()));
                Some(format!("The records of {} tables cannot be used: {names}", bad.len()))
            }
        }
    }
}

impl Cluster {
    /// Its MetaServers that failed just now, or when it began to fail as a whole, each with its last failure, the latest
    /// first. A cluster that nobody asks for keeps its reason.
    pub fn fresh_failures(&self) -> Vec<&MetaFailure> {
        let news_s = NEWS_S + self.failing_s.unwrap_or(0);
        let leads = |failure: &MetaFailure| self.leader.as_ref() == Some(&failure.meta);
        let fresh = |failure: &&MetaFailure| failure.last_s < news_s && !leads(failure);
        let mut found: Vec<&MetaFailure> = self.meta_failures.iter().filter(fresh).collect();
        found.sort_by(|a, b| (&a.meta, a.last_s).cmp(&(&b.meta, b.last_s)));
        found.dedup_by(|later, kept| later.meta == kept.meta);
        found.sort_by_key(|failure| failure.last_s);
        found
    }

    fn wrong(&self) -> String {
        let Cluster { name, failures, tables, .. } = self;
        let since = span(self.failing_s.unwrap_or_default());
        let metas = self.fresh_failures();
        let metas: Vec<String> =
            metas.iter().map(|failure| format!("{} {}", failure.meta, failure.kind)).collect();
        let why = match metas.is_empty() {
            true => String::new(),
            false => format!("; {}", some_of(metas.iter().map(String::as_str))),
        };
        let tables = counted(*tables as u64, "table");
        format!(
            "Cluster {name} does not answer: {failures} failures in {since}, {tables} affected{why}"
        )
    }
}

impl Hold {
    /// `server` is the one that is connected now.
    fn wrong(&self, server: Option<&str>) -> String {
        let Hold { kind, root, gone, .. } = self;
        let (since, tables) = (span(self.since_s), counted(self.held as u64, "table"));
        let czxid = self.czxid.as_deref().unwrap_or("none");
        let known = self.known_czxid.as_deref().unwrap_or("unknown");
        let why = match kind {
            Kind::RootMissing => format!("the root {root} is missing"),
            Kind::RootForeign => {
                format!("the root {root} is another one, created at {czxid} and not at {known}")
            }
            Kind::RootOlder => {
                format!("ZooKeeper has forgotten changes of {root} that were seen before")
            }
            Kind::TablesGone => format!("too many tables of {root} went within a minute"),
        };
        let server = server.map(|server| format!(" (server {server})")).unwrap_or_default();
        format!(
            "Routes are held for {since}: {why}{server}; {tables} served as before. Bring them back, or, if that is \
             meant to be, on this host: POST /routes/accept?czxid={czxid}&gone={gone}"
        )
    }
}

impl Refused {
    fn wrong(&self) -> String {
        let (who, why) = match self.what {
            Refusable::Connection(Refusal::MaxConnections) => {
                ("Clients", "limits.max_connections is reached")
            }
            Refusable::Connection(Refusal::MaxPerAddress) => {
                ("Clients", "limits.max_connections_per_address is reached")
            }
            Refusable::Connection(Refusal::System) => {
                ("Clients", "the system has no descriptors or memory for them")
            }
            Refusable::Query(Shed::ClientPending) => {
                ("Queries", "limits.max_pending_per_client is reached")
            }
            Refusable::Query(Shed::AddressPending) => {
                ("Queries", "one address has a quarter of limits.max_pending")
            }
            Refusable::Query(Shed::Pending) => ("Queries", "limits.max_pending is reached"),
            Refusable::Query(Shed::Unread) => (
                "Queries",
                "clients do not take their answers, limits.max_unread_total_bytes is reached",
            ),
            Refusable::Query(Shed::FailingCluster) => ("Queries", "their cluster does not answer"),
        };
        let (count, last) = (thousands(self.count), span(self.last_s));
        format!("{who} are refused: {why}, {count} times, the last {last} ago")
    }
}

impl Upkeep {
    fn wrongs(&self) -> Vec<String> {
        let mut found = Vec::new();
        if let Some((why, since_s)) = &self.rejected_settings {
            let since = span(*since_s);
            found.push(format!("SIGHUP changed nothing, {since} ago: {why}"));
        }
        if !self.waiting_settings.is_empty() {
            let names = some_of(self.waiting_settings.iter().map(String::as_str));
            found.push(format!("Changed settings that wait for a restart: {names}"));
        }
        if let Some(why) = &self.state_file_fault {
            found.push(format!("The state file cannot be written: {why}"));
        }
        if self.falcon_fails {
            found.push("The falcon agent takes no metrics".to_owned());
        }
        if let Some(LostLines { lines, why, last_s }) = &self.lost_lines
            && *last_s < NEWS_S
        {
            let (lines, last) = (thousands(*lines), span(*last_s));
            found.push(format!("Log lines are lost: {why}; {lines} lines, the last {last} ago"));
        }
        found
    }
}

impl ZooKeeper {
    /// Tables are evicted: each is read again, before the answer, when it is asked for next.
    fn overflow(&self) -> Option<String> {
        let last_s = self.evicted_s.filter(|last_s| *last_s < NEWS_S)?;
        let (capacity, evicted, last) =
            (thousands(self.capacity as u64), thousands(self.evicted), span(last_s));
        Some(format!(
            "The cache is too small: zookeeper.table_watcher_cache_capacity is {capacity}, and \
             {evicted} tables were evicted, the last {last} ago; queries for them wait for ZooKeeper"
        ))
    }

    fn wrong(&self, is_held: bool) -> Option<(Level, String)> {
        let (since, unconfirmed) = (span(self.since_s), self.unconfirmed);
        if self.is_rootless && !is_held {
            let root = &self.root;
            let sentence = format!("ZooKeeper has no root {root}: no table can be served");
            return Some((Level::Bad, sentence));
        }
        let sentence = match self.state {
            Trust::Down => format!(
                "ZooKeeper is out of reach for {since}: cached routes serve on, their changes are \
                 not seen"
            ),
            Trust::Confirming if !is_held && self.since_s > CONFIRMING_S && unconfirmed > 0 => {
                format!("{} routes wait to be confirmed for {since}", thousands(unconfirmed as u64))
            }
            Trust::Confirming | Trust::Confirmed => return None,
        };
        Some((Level::Warning, sentence))
    }
}

/// `a, b, c and 4 more`.
fn some_of<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(NAMES_IN_A_SENTENCE);
    let shown: Vec<&str> = names.take(NAMES_IN_A_SENTENCE).collect();
    match more {
        0 => shown.join(", "),
        _ => format!("{} and {more} more", shown.join(", ")),
    }
}

/// `1 table`, `1,200 tables`.
pub fn counted(number: u64, what: &str) -> String {
    let number = thousands(number);
    match (&*number, what.strip_suffix('y')) {
        ("1", _) => format!("1 {what}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {what}s"),
    }
}

/// A time for people: one number, one unit.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A number for people: `12,345`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Over this time [`Rate`] takes the mean.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// Not more often is a total kept.
const RATE_STEP: Duration = Duration::from_secs(1);

/// Events per second of late, from totals told now and then: whenever somebody looks.
pub struct Rate {
    /// Totals of the window, and one from before it. The oldest first.
    totals: VecDeque<(Instant, u64)>,
}

impl Rate {
    /// Nothing has happened by now.
    pub fn new(now: Instant) -> Self {
        Rate { totals: [(now, 0)].into() }
    }

    /// So many by now; that is so many per second.
    pub fn tell(&mut self, now: Instant, total: u64) -> f64 {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= RATE_WINDOW;
        while self.totals.get(1).is_some_and(|(at, _)| is_old(*at)) {
            self.totals.pop_front();
        }
        let (since, before) = self.totals.front().copied().unwrap_or((now, total));
        if self.totals.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= RATE_STEP)
        {
            self.totals.push_back((now, total));
        }
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        if seconds > 0.0 { total.saturating_sub(before) as f64 / seconds } else { 0.0 }
    }
}

/// Answers by bucket of [`LATENCY_BOUNDS_US`], of the last seconds.
pub struct RecentLatency {
    /// As the totals of [`Rate`].
    totals: VecDeque<(Instant, Buckets)>,
}

type Buckets = [u64; LATENCY_BOUNDS_US.len() + 1];

impl RecentLatency {
    /// Nothing has happened by now.
    pub fn new(now: Instant) -> Self {
        RecentLatency { totals: [(now, [0; LATENCY_BOUNDS_US.len() + 1])].into() }
    }

    /// Records the totals, and returns the upper bounds of the median and of the 99th percentile since the window
    /// began, us; a time above the last bound counts as that.
    pub fn tell(&mut self, now: Instant, totals: Buckets) -> Option<(u64, u64)> {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= RATE_WINDOW;
        while self.totals.get(1).is_some_and(|(at, _)| is_old(*at)) {
            self.totals.pop_front();
        }
        let before = self.totals.front().map_or(totals, |(_, before)| *before);
        if self.totals.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= RATE_STEP)
        {
            self.totals.push_back((now, totals));
        }
        let fresh = totals.iter().zip(&before).map(|(now, before)| now.saturating_sub(*before));
        let fresh: Vec<u64> = fresh.collect();
        let all: u64 = fresh.iter().sum();
        let bound = |percent: u64| {
            let rank = (all * percent).div_ceil(100);
            let mut below = 0;
            let bucket = fresh.iter().position(|n| {
                below += n;
                below >= rank
            });
            let last = LATENCY_BOUNDS_US.len() - 1;
            LATENCY_BOUNDS_US[bucket.unwrap_or(last).min(last)]
        };
        (all > 0).then(|| (bound(50), bound(99)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A proxy in good order: two clusters, three tables.
    pub fn sample() -> Overview {
        let cluster = |name: &str, net: u8, usual_us| Cluster {
            name: name.to_owned(),
            metas: (1..=3).map(|host| format!("10.{net}.0.{host}:34601")).collect(),
            tables: 2,
            leader: Some(format!("10.{net}.0.2:34601")),
            links: 2,
            calls: 1,
            waiting: 4,
            failing_s: None,
            failures: 0,
            meta_failures: Vec::new(),
            usual_us: Some(usual_us),
            answers_ok: 1_234_567,
            answers_other: 12,
            unanswered: 0,
        };
        let route = |table: &str, cluster: &Cluster, queries| Route {
            table: table.to_owned(),
            cluster: Some(cluster.name.clone()),
            fault: None,
            metas: cluster.metas.clone(),
            zxid: 0x5_0000_1234,
            age_s: 86_400 * 12,
            confirmed_age_s: Some(14),
            source: "zookeeper",
            stale: false,
            held: false,
            queries,
            reads: 3,
            error: None,
            error_s: None,
            error_queries: 0,
        };
        let (ad, ml) = (cluster("c3srv-ad", 1, 410), cluster("c4srv-ml", 2, 2_300));
        Overview {
            host: "proxy-07".to_owned(),
            version: "0.1.0",
            up_s: 3 * 86_400,
            life: Life::Serving,
            hold: None,
            zookeeper: Some(ZooKeeper {
                root: "/pegasus-cluster".to_owned(),
                is_rootless: false,
                state: Trust::Confirmed,
                since_s: 86_400 * 3,
                server: Some("10.0.0.21:2181".to_owned()),
                session: None,
                asked_timeout_ms: 6_000,
                granted_timeout_ms: Some(6_000),
                rebuilds: 0,
                last_fault: None,
                cached: 3,
                unconfirmed: 0,
                capacity: 1_024,
                evicted: 0,
                evicted_s: None,
            }),
            routes: vec![
                route("orders", &ad, 900_123),
                route("users", &ad, 12),
                route("items", &ml, 7),
            ],
            clusters: vec![ad, ml],
            clients: Clients {
                connections: 9_871,
                pending: 3,
                unread_bytes: 0,
                queries: 1_234_579,
                queries_per_s: 412.34,
                errors_per_s: 0.0,
                latency_us: Some((200, 2_000)),
            },
            refused: Vec::new(),
            upkeep: Upkeep::default(),
        }
    }

    #[test]
    fn what_is_wrong_is_said_the_worst_first() {
        let verdict = |change: &dyn Fn(&mut Overview)| {
            let mut overview = sample();
            change(&mut overview);
            overview.verdict()
        };
        let one = |level, headline: &str| Verdict {
            level,
            headline: headline.to_owned(),
            details: Vec::new(),
        };
        assert_eq!(verdict(&|_| ()), one(Level::Well, "All is well"));
        assert_eq!(
            verdict(&|overview| overview.life = Life::Draining),
            one(Level::Warning, "Draining: clients are asked to go elsewhere")
        );
        assert_eq!(
            verdict(&|overview| overview.routes[1].cluster = None),
            one(Level::Bad, "The record of table users cannot be used")
        );
        assert_eq!(
            verdict(&|overview| overview.routes[1].fault = Some("want a JSON object".to_owned())),
            one(
                Level::Warning,
                "The record of table users cannot be used: want a JSON object; the last good one \
                 serves"
            )
        );
        let confirming = |since_s| {
            move |overview: &mut Overview| {
                let zookeeper = overview.zookeeper.as_mut().unwrap();
                (zookeeper.state, zookeeper.since_s, zookeeper.unconfirmed) =
                    (Trust::Confirming, since_s, 1_200);
            }
        };
        assert_eq!(verdict(&confirming(CONFIRMING_S)), one(Level::Well, "All is well"));
        assert_eq!(
            verdict(&confirming(CONFIRMING_S + 1)),
            one(Level::Warning, "1,200 routes wait to be confirmed for 11 s")
        );
        assert_eq!(
            verdict(&|overview| overview.routes.clear()),
            one(Level::Well, "All is well"),
            "a proxy that nobody has asked yet"
        );

        let many = verdict(&|overview| {
            let zookeeper = overview.zookeeper.as_mut().unwrap();
            (zookeeper.state, zookeeper.since_s) = (Trust::Down, 200);
            let what = Refusable::Connection(Refusal::MaxPerAddress);
            overview.refused = vec![Refused { what, count: 1_234, last_s: 3 }];
            overview.upkeep.waiting_settings = vec!["workers".to_owned(), "listen".to_owned()];
            let failing =
                Cluster { failing_s: Some(40), failures: 17, ..overview.clusters[0].clone() };
            overview.clusters = vec![failing; 5];
        });
        assert_eq!(many.level, Level::Bad);
        assert_eq!(
            many.headline,
            "5 clusters do not answer: c3srv-ad (2 tables), c3srv-ad (2 tables), c3srv-ad \
             (2 tables) and 2 more"
        );
        assert_eq!(
            many.details,
            [
                "Clients are refused: limits.max_connections_per_address is reached, 1,234 times, \
                 the last 3 s ago",
                "ZooKeeper is out of reach for 3 min: cached routes serve on, their changes are \
                 not seen",
                "Changed settings that wait for a restart: workers, listen",
            ]
        );
    }

    #[test]
    fn what_was_refused_or_lost_is_news_for_a_while() {
        let query = |what, last_s| Refused { what: Refusable::Query(what), count: 2, last_s };
        let lost = |last_s| LostLines { lines: 7, why: "No space left".to_owned(), last_s };
        for (last_s, refused, lines) in [
            (
                NEWS_S - 1,
                "Queries are refused: limits.max_pending is reached, 2 times, the last 59 s ago",
                "Log lines are lost: No space left; 7 lines, the last 59 s ago",
            ),
            (NEWS_S, "All is well", "All is well"),
        ] {
            let mut overview = sample();
            overview.refused = vec![query(Shed::Pending, last_s)];
            assert_eq!(overview.verdict().headline, refused);
            overview.refused.clear();
            overview.upkeep.lost_lines = Some(lost(last_s));
            assert_eq!(overview.verdict().headline, lines);
        }
        let mut overview = sample();
        overview.upkeep = Upkeep {
            rejected_settings: Some(("mp.yaml: line 1: workers: want 4".to_owned(), 130)),
            state_file_fault: Some("Permission denied".to_owned()),
            falcon_fails: true,
            ..Upkeep::default()
        };
        let verdict = overview.verdict();
        assert_eq!(
            (verdict.level, verdict.headline.as_str()),
            (Level::Warning, "SIGHUP changed nothing, 2 min ago: mp.yaml: line 1: workers: want 4")
        );
        assert_eq!(
            verdict.details,
            [
                "The state file cannot be written: Permission denied",
                "The falcon agent takes no metrics"
            ]
        );
    }

    #[test]
    fn a_cluster_is_said_to_fail_with_its_reason_and_a_server_beside_it() {
        let failure = |host: u8, kind, last_s| MetaFailure {
            meta: format!("10.1.0.{host}:34601"),
            kind,
            count: 9,
            last_s,
        };
        let mut overview = sample();
        overview.clusters[0].meta_failures = vec![
            failure(1, "refused", 90),
            failure(1, "timeout", 12),
            failure(2, "timeout", 1),
            failure(3, "timeout", 8),
            failure(3, "closed", 5),
        ];
        assert_eq!(
            overview.verdict().headline,
            "2 MetaServers gave no usable answer: 10.1.0.3:34601, 10.1.0.1:34601",
            "the second leads now"
        );
        overview.clusters[0].leader = None;
        overview.clusters[0].failing_s = Some(40);
        overview.clusters[0].failures = 17;
        overview.clusters[0].meta_failures[0].last_s = NEWS_S + 40;
        let verdict = overview.verdict();
        assert_eq!(
            verdict.headline,
            "Cluster c3srv-ad does not answer: 17 failures in 40 s, 2 tables affected; \
             10.1.0.2:34601 timeout, 10.1.0.3:34601 closed, 10.1.0.1:34601 timeout"
        );
        assert_eq!(verdict.details, [""; 0]);
        let mut overview = sample();
        overview.clusters[1].meta_failures = vec![failure(3, "refused", 12)];
        assert_eq!(
            overview.verdict().headline,
            "MetaServer 10.1.0.3:34601 of c4srv-ml gave no usable answer: refused, 12 s ago"
        );
        overview.clusters[1].meta_failures[0].last_s = NEWS_S;
        assert_eq!(overview.verdict().level, Level::Well);
    }

    #[test]
    fn a_table_that_its_cluster_does_not_have_is_never_green() {
        let mut overview = sample();
        let refuse = |route: &mut Route, error, last_s| {
            (route.error, route.error_s, route.error_queries) = (Some(error), Some(last_s), 5);
        };
        refuse(&mut overview.routes[0], ERR_OBJECT_NOT_FOUND, 3);
        let verdict = overview.verdict();
        assert_eq!(verdict.level, Level::Bad);
        assert_eq!(
            verdict.headline,
            "Cluster c3srv-ad does not have table orders: 5 queries answered ERR_OBJECT_NOT_FOUND, \
             the last 3 s ago; is its route right?"
        );
        refuse(&mut overview.routes[2], ERR_OBJECT_NOT_FOUND, MISSING_S - 1);
        assert_eq!(
            overview.verdict().headline,
            "2 tables are not in the cluster of their route: orders (c3srv-ad), items (c4srv-ml)"
        );
        refuse(&mut overview.routes[0], "ERR_BUSY_CREATING", NEWS_S - 1);
        refuse(&mut overview.routes[2], ERR_OBJECT_NOT_FOUND, MISSING_S);
        let verdict = overview.verdict();
        assert_eq!(
            (verdict.level, verdict.headline.as_str()),
            (
                Level::Warning,
                "The cluster of a table answers with an error: orders (ERR_BUSY_CREATING)"
            )
        );
        refuse(&mut overview.routes[0], "ERR_BUSY_CREATING", NEWS_S);
        assert_eq!(overview.verdict().level, Level::Well);
    }

    #[test]
    fn a_cache_that_overflows_is_told_while_it_does() {
        let mut overview = sample();
        let zookeeper = overview.zookeeper.as_mut().unwrap();
        (zookeeper.evicted, zookeeper.evicted_s) = (4_096, Some(NEWS_S - 1));
        let verdict = overview.verdict();
        assert_eq!(
            (verdict.level, verdict.headline.as_str()),
            (
                Level::Warning,
                "The cache is too small: zookeeper.table_watcher_cache_capacity is 1,024, and \
                 4,096 tables were evicted, the last 59 s ago; queries for them wait for ZooKeeper"
            )
        );
        overview.zookeeper.as_mut().unwrap().evicted_s = Some(NEWS_S);
        assert_eq!(overview.verdict().level, Level::Well);
    }

    #[test]
    fn a_name_for_two_sets_and_a_set_with_two_names_are_told() {
        let mut overview = sample();
        overview.routes[1].metas = vec!["10.9.0.1:34601".to_owned()];
        overview.routes[2].metas = overview.routes[0].metas.clone();
        let verdict = overview.verdict();
        assert_eq!(verdict.level, Level::Warning);
        assert_eq!(
            verdict.headline,
            "Cluster c3srv-ad has 2 different sets of MetaServers: \
             10.1.0.1:34601 10.1.0.2:34601 10.1.0.3:34601, 10.9.0.1:34601"
        );
        assert_eq!(verdict.details, ["One set of MetaServers has 2 names: c3srv-ad, c4srv-ml"]);
    }

    #[test]
    fn numbers_are_written_for_people() {
        for (seconds, want) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7_199, "119 min"),
            (7_200, "2 h"),
            (172_800, "2 days"),
        ] {
            assert_eq!(span(seconds), want);
        }
        for (number, want) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), want);
        }
    }

    #[test]
    fn latency_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut latency = RecentLatency::new(start);
        let mut totals = [0; LATENCY_BOUNDS_US.len() + 1];
        assert_eq!(latency.tell(at(1), totals), None);
        (totals[1], totals[7]) = (98, 2);
        assert_eq!(latency.tell(at(2), totals), Some((100, 10_000)));
        totals[15] += 1;
        let last = LATENCY_BOUNDS_US[14];
        assert_eq!(latency.tell(at(20), totals), Some((last, last)), "slower than the last bound");
        assert_eq!(latency.tell(at(40), totals), None, "nobody asked of late");
    }

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut rate = Rate::new(start);
        assert_eq!(rate.tell(start, 0), 0.0);
        assert_eq!(rate.tell(at(2_000), 100), 50.0);
        assert_eq!(rate.tell(at(12_000), 100), 0.0, "the first seconds are forgotten");
        for ms in 12_000..100_000 {
            rate.tell(at(ms), 100);
        }
        assert!(rate.totals.len() <= 12, "{}", rate.totals.len());
        assert_eq!(rate.tell(at(1_000_000), 100), 0.0);
        assert_eq!(rate.tell(at(1_010_000), 200), 10.0);
    }
}
