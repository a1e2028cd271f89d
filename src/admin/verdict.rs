//! Decides what the proxy's state means for an operator: one headline, and further faults. Pure.
//!
//! The page is never green while clients are not served. Each part reports its faults and how bad they are; the worst
//! fault is the headline.

use std::collections::{BTreeMap, BTreeSet};

pub use super::overview::*;
use super::words::{NAMES_IN_A_SENTENCE, some_of};
pub use super::words::{counted, span, thousands};
use crate::wire::error_code::ERR_OBJECT_NOT_FOUND;

#[cfg(test)]
pub(super) mod tests;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub level: Level,
    /// `All is well`, or the worst fault, in one sentence.
    pub headline: String,
    /// Other faults, one sentence each.
    pub details: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Well,
    /// The proxy serves all known tables, but something needs attention.
    Warning,
    /// Some clients get errors.
    Bad,
}

/// The page shows a refusal or a loss for this long after the last one.
const NEWS_S: u64 = 60;
/// The page shows a table that its cluster does not have for this long after the last query.
const MISSING_S: u64 = 3_600;
/// Confirming the routes may take this long; longer is a warning.
const CONFIRMING_S: u64 = 10;

impl Overview {
    /// The headline and the other faults, the worst first.
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
                let sentence = "Draining: clients should use other proxies";
                found.push((Level::Warning, sentence.to_owned()));
            }
            Life::Stopping => found.push((Level::Warning, "Stopping".to_owned())),
        }
        if let Some(hold) = &self.hold {
            let server = self.zookeeper.as_ref().and_then(|zookeeper| zookeeper.server.as_deref());
            found.push((Level::Bad, hold.wrong(server)));
        }
        let failing = self.clusters.iter().filter(|cluster| cluster.is_down());
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
        found.extend(
            self.bad_records(unserved)
                .map(|what| (Level::Bad, what + "; clients get ERR_INVALID_DATA")),
        );
        let last_good = self.bad_records(last_good);
        found
            .extend(last_good.map(|what| (Level::Warning, what + "; the last good record serves")));
        found.extend(self.not_in_their_cluster().map(|what| (Level::Bad, what)));
        found.extend(self.refused_tables().map(|what| (Level::Warning, what)));
        found.extend(self.ambiguous_clusters().into_iter().map(|what| (Level::Warning, what)));
        if let Some(zookeeper) = &self.zookeeper {
            found.extend(zookeeper.wrong(self.hold.is_some()));
            found.extend(zookeeper.overflow().map(|what| (Level::Warning, what)));
            found.extend(zookeeper.unseen().map(|what| (Level::Warning, what)));
        }
        if self.routes.is_empty() {
            match &self.zookeeper {
                Some(ZooKeeper { state: Trust::Down, .. }) => {
                    found.push((Level::Bad, "The proxy has no route to serve".to_owned()));
                }
                // No client has queried a table yet.
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
        let working = self.clusters.iter().filter(|cluster| !cluster.is_down());
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

    /// Tables for which their cluster has just answered another error.
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

    /// Names with several sets of MetaServers, and sets with several names: somebody wrote records by hand, or a move
    /// of MetaServers is half done.
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
    /// MetaServers that have just failed, or that failed when the cluster began to fail, each with its last failure,
    /// the latest first. A cluster without queries keeps its reason.
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

    /// Whether clients get no answer of this cluster: queries failed, or probes show that they would.
    pub fn is_down(&self) -> bool {
        self.failing_s.is_some() || self.mute_s().is_some()
    }

    /// For how long no MetaServer of this cluster has answered a probe or a query.
    pub fn mute_s(&self) -> Option<u64> {
        let is_silent = |probe: &&MetaProbe| {
            probe.said.is_some_and(|said| said != "leader" && said != "follower")
        };
        let silent = self.probes.iter().filter(is_silent);
        let since_s = silent.clone().map(|probe| probe.since_s).min()?;
        let is_mute = silent.count() == self.probes.len() && self.leader.is_none();
        is_mute.then_some(since_s)
    }

    fn wrong(&self) -> String {
        let Cluster { name, failures, tables, .. } = self;
        let since = span(self.failing_s.or(self.mute_s()).unwrap_or_default());
        let failures = match self.failing_s {
            Some(_) => format!("{failures} failures in {since}"),
            None => format!("no MetaServer has answered a probe for {since}"),
        };
        let metas = self.fresh_failures();
        let metas: Vec<String> =
            metas.iter().map(|failure| format!("{} {}", failure.meta, failure.kind)).collect();
        let why = match metas.is_empty() {
            true => String::new(),
            false => format!("; {}", some_of(metas.iter().map(String::as_str))),
        };
        let tables = counted(*tables as u64, "table");
        format!("Cluster {name} does not answer: {failures}, {tables} affected{why}")
    }
}

impl Hold {
    /// `server` is the connected ZooKeeper server.
    fn wrong(&self, server: Option<&str>) -> String {
        let Hold { kind, root, gone, .. } = self;
        let (since, tables) = (span(self.since_s), counted(self.held as u64, "table"));
        let czxid = self.czxid.as_deref().unwrap_or("none");
        let known = self.known_czxid.as_deref().unwrap_or("unknown");
        let why = match kind {
            Kind::RootMissing => format!("the root {root} is missing"),
            Kind::RootForeign => {
                format!("the root {root} was replaced: its czxid is {czxid}, not {known}")
            }
            Kind::RootOlder => {
                format!("ZooKeeper has forgotten changes of {root} that the proxy had seen")
            }
            Kind::TablesGone => format!("too many tables of {root} disappeared within a minute"),
        };
        let server = server.map(|server| format!(" (server {server})")).unwrap_or_default();
        format!(
            "Routes are held for {since}: {why}{server}; {tables} served as before. Restore them, or, if this is \
             intended, accept it on this host: POST /routes/accept?czxid={czxid}&gone={gone} with the header X-Meta-Proxy: yes"
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
                ("Queries", "one address has its limit, a quarter of limits.max_pending")
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
    /// Tables are evicted: the next query for such a table waits for ZooKeeper.
    fn overflow(&self) -> Option<String> {
        let last_s = self.evicted_s.filter(|last_s| *last_s < NEWS_S)?;
        let (capacity, evicted, last) =
            (thousands(self.capacity as u64), thousands(self.evicted), span(last_s));
        Some(format!(
            "The cache is too small: zookeeper.table_watcher_cache_capacity is {capacity}, and \
             {evicted} tables were evicted, the last {last} ago; queries for them wait for ZooKeeper"
        ))
    }

    /// If so, the route tool does not wait for this proxy, and reports success too early.
    fn unseen(&self) -> Option<String> {
        let why = self.control.as_ref().filter(|_| self.is_control_faulty)?;
        Some(format!("The route tool does not see this proxy: {why}"))
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
                "ZooKeeper is unreachable for {since}: the proxy serves cached routes and sees no \
                 changes"
            ),
            Trust::Confirming if !is_held && self.since_s > CONFIRMING_S && unconfirmed > 0 => {
                format!(
                    "{} routes have waited for confirmation for {since}",
                    thousands(unconfirmed as u64)
                )
            }
            Trust::Confirming | Trust::Confirmed => return None,
        };
        Some((Level::Warning, sentence))
    }
}
