//! Asks the two clusters, and does to them what a step says. Nothing is tried again here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::state::{Partition, Side};
use crate::ops::admin_move::{self, Duplication, Replica, Shipping};
use crate::ops::admin_rpc::{self, App, BadAnswer, DENY_ENV};
use crate::ops::at_once::ask_each;
use crate::ops::clusters;
use crate::ops::http;
use crate::ops::record::Place;
use crate::ops::view::View;
use crate::wire::config_view::Address;
use crate::wire::message::Gpid;

const SEQ: i32 = 1;
/// The page of a replica server with all partitions of a table.
const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;
/// Questions to replica servers at once.
const AT_ONCE: usize = 32;
const CONFIG_SYNC_SETTING: &str = "config_sync_interval_ms";

/// One of the two clusters. Its name is the one that it gives itself, by which the other cluster's duplications name it.
pub struct Cluster {
    pub place: Place,
    table: String,
    leader: Option<SocketAddr>,
    limit: Duration,
    /// The config-sync intervals of its replica servers, in ms.
    intervals: BTreeMap<SocketAddr, u64>,
}

impl Cluster {
    /// Nobody is asked yet.
    pub fn new(place: Place, table: &str, limit: Duration) -> Self {
        let table = table.to_owned();
        Cluster { place, table, leader: None, limit, intervals: BTreeMap::new() }
    }

    /// The cluster as its leader shows it.
    pub fn view(&mut self) -> View {
        let metas = self.place.metas.clone();
        let view = clusters::look([metas.clone()], self.limit).remove(&metas).unwrap_or_default();
        self.leader = view.leader.as_ref().map(|leader| leader.addr);
        view
    }

    /// The cluster has these addresses now.
    pub fn follow(&mut self, place: &Place) {
        if self.place != *place {
            self.place = place.clone();
            self.leader = None;
        }
    }

    /// Looks for the leader: one that was cut off may not know yet that another was elected.
    pub fn find_leader(&mut self) -> Result<(), String> {
        let view = self.view();
        let cluster = &self.place.cluster;
        let Some(leader) = view.leader.as_ref() else {
            return Err(format!("{cluster}: no leader answers: {}", view.why_no_leader()));
        };
        match &leader.name {
            Some(name) if name != cluster => {
                self.leader = None;
                Err(format!("{cluster}: it calls itself {name}"))
            }
            _ => Ok(()),
        }
    }

    /// Asks the leader. If it is not the leader any more, or is gone, it is looked for first.
    fn ask<T>(
        &mut self,
        request: &[u8],
        read: impl Fn(&[u8]) -> Result<T, BadAnswer>,
    ) -> Result<T, String> {
        if self.leader.is_none() {
            self.find_leader()?;
        }
        let leader = self.leader.expect("it was found");
        let answer = clusters::exchange(leader, request, Instant::now() + self.limit);
        answer.and_then(|frame| read(&frame)).map_err(|why| {
            self.leader = None;
            let why = clusters::plain(why);
            format!("{}: its leader {leader}: {why}", self.place.cluster)
        })
    }

    /// The table, if the cluster has it.
    pub fn app(&mut self) -> Result<Option<App>, String> {
        let table = self.table.clone();
        let apps =
            self.ask(&admin_move::list_app(SEQ, &table), |frame| admin_rpc::read_apps(frame, SEQ))?;
        Ok(apps.into_iter().find(|app| app.name == table && app.is_available))
    }

    /// The duplications of the table.
    pub fn duplications(&mut self) -> Result<Vec<Duplication>, String> {
        let table = self.table.clone();
        self.ask(&admin_rpc::query_duplication(SEQ, &table), |frame| {
            admin_move::read_duplications(frame, SEQ)
        })
    }

    /// The table there and its duplication to the other cluster, and what to ask its partitions by, if there is such a
    /// table.
    pub fn side(&mut self, other: &str) -> Result<(Side, Option<App>), String> {
        let Some(app) = self.app()? else { return Ok((Side::default(), None)) };
        let duplications = self.duplications()?;
        let duplication = duplications.into_iter().find(|duplication| duplication.remote == other);
        let denies = app.denies().map(str::to_owned);
        Ok((Side { app_id: Some(app.app_id), denies, duplication }, Some(app)))
    }

    pub fn set_env(&mut self, value: &str) -> Result<(), String> {
        let request = admin_move::set_env(SEQ, &self.table, DENY_ENV, value);
        self.ask(&request, |frame| admin_move::read_env_answer(frame, SEQ))
    }

    pub fn delete_env(&mut self) -> Result<(), String> {
        let request = admin_move::delete_env(SEQ, &self.table, DENY_ENV);
        self.ask(&request, |frame| admin_move::read_env_answer(frame, SEQ))
    }

    pub fn add_duplication(&mut self, remote: &str) -> Result<(), String> {
        let request = admin_move::add_duplication(SEQ, &self.table, remote);
        self.ask(&request, |frame| admin_move::read_added(frame, SEQ))
    }

    pub fn remove_duplication(&mut self, id: i32) -> Result<(), String> {
        let request = admin_move::remove_duplication(SEQ, &self.table, id);
        self.ask(&request, |frame| admin_move::read_removed(frame, SEQ))
    }

    /// The replica servers that are alive.
    pub fn servers(&mut self) -> Result<Vec<SocketAddr>, String> {
        let nodes =
            self.ask(&admin_move::list_nodes(SEQ), |frame| admin_move::read_nodes(frame, SEQ))?;
        let cluster = self.place.cluster.clone();
        let addr = |node: Address| match node {
            Address::Ip(addr) => Ok(addr.into()),
            other => Err(format!("{cluster}: want the address of a replica server, got {other}")),
        };
        nodes.into_iter().map(addr).collect()
    }

    /// The longest config-sync interval of the replica servers. Each server is asked once.
    pub fn interval_ms(&mut self) -> Result<u64, String> {
        let mut servers = self.servers()?;
        servers.retain(|server| !self.intervals.contains_key(server));
        let path = format!("/config?name={CONFIG_SYNC_SETTING}");
        let read = |server: SocketAddr| {
            let end = Instant::now() + self.limit;
            let body = body(server, &path, end)?.unwrap_or_default();
            let value =
                admin_move::read_setting(&body).map_err(|why| format!("{server}: {why}"))?;
            value
                .parse::<u64>()
                .map_err(|_| format!("{server}: {CONFIG_SYNC_SETTING}: want ms, got {value:?}"))
        };
        let intervals = all(&servers, read)?;
        self.intervals.extend(servers.into_iter().zip(intervals));
        let longest = self.intervals.values().max().copied();
        longest.ok_or_else(|| format!("{} has no replica server", self.place.cluster))
    }

    /// The server was alive when the intervals were asked.
    pub fn knows(&self, server: SocketAddr) -> bool {
        self.intervals.contains_key(&server)
    }

    /// All partitions by their primaries: first the decrees, then how much of this duplication is unsent.
    pub fn partitions(
        &mut self,
        app: &App,
        duplication: Option<i32>,
    ) -> Result<Vec<Partition>, String> {
        let servers = self.servers()?;
        let replicas = all(&servers, |server| self.replicas(server, app.app_id))?;
        let mut primaries: BTreeMap<i32, (SocketAddr, Replica)> = BTreeMap::new();
        for (server, replicas) in servers.iter().zip(replicas) {
            for replica in replicas.into_iter().filter(|replica| replica.is_primary) {
                let newest = primaries.get(&replica.index).map(|(_, known)| known.ballot);
                // One that was cut off may not know that another was elected.
                if newest.is_none_or(|newest| replica.ballot > newest) {
                    primaries.insert(replica.index, (*server, replica));
                }
            }
        }
        if let Some(index) = (0..app.partition_count).find(|index| !primaries.contains_key(index)) {
            return Err(format!("{}: partition {index} has no primary", self.place.cluster));
        }
        let mut holders: Vec<SocketAddr> = primaries.values().map(|(server, _)| *server).collect();
        holders.sort_unstable();
        holders.dedup();
        let shipping = match duplication {
            None => BTreeMap::new(),
            Some(id) => {
                let pages = all(&holders, |server| self.shipping(server, app.app_id, id))?;
                holders.into_iter().zip(pages).collect::<BTreeMap<_, _>>()
            }
        };
        let partition = |(index, (server, replica)): (i32, (SocketAddr, Replica))| {
            let shipping = shipping.get(&server).and_then(|page| page.get(&index)).cloned();
            Partition { server, replica, shipping, refuses: None }
        };
        Ok(primaries.into_iter().map(partition).collect())
    }

    /// Asks the primaries of these partitions whether they refuse writes.
    pub fn probe(&self, app_id: i32, partitions: &mut [&mut Partition]) -> Result<(), String> {
        let asked: Vec<(SocketAddr, i32)> =
            partitions.iter().map(|one| (one.server, one.replica.index)).collect();
        let ask = |(server, index): (SocketAddr, i32)| {
            let gpid = Gpid { app_id, index };
            let end = Instant::now() + self.limit;
            let answer = clusters::exchange(server, &admin_move::probe(gpid, SEQ), end);
            answer.and_then(|frame| admin_move::read_probe(&frame)).map_err(|why| {
                let why = clusters::plain(why);
                format!(
                    "replica server {server}: a probe of partition {index}: {why} (--no-probe goes by the clock alone)"
                )
            })
        };
        for (partition, refuses) in partitions.iter_mut().zip(all(&asked, ask)?) {
            partition.refuses = Some(refuses);
        }
        Ok(())
    }

    fn replicas(&self, server: SocketAddr, app_id: i32) -> Result<Vec<Replica>, String> {
        let frame =
            clusters::exchange(server, &admin_move::replica_info(SEQ), Instant::now() + self.limit);
        let replicas = frame.and_then(|frame| admin_move::read_replicas(&frame, SEQ));
        let mut replicas =
            replicas.map_err(|why| format!("replica server {server}: {}", clusters::plain(why)))?;
        replicas.retain(|replica| replica.app_id == app_id);
        Ok(replicas)
    }

    fn shipping(
        &self,
        server: SocketAddr,
        app_id: i32,
        id: i32,
    ) -> Result<BTreeMap<i32, Shipping>, String> {
        let path = format!("/replica/duplication?appid={app_id}");
        match body(server, &path, Instant::now() + self.limit)? {
            Some(page) => {
                admin_move::read_shipping(&page, id).map_err(|why| format!("{server}: {why}"))
            }
            None => Ok(BTreeMap::new()),
        }
    }
}

/// `None`: there is no such page.
fn body(server: SocketAddr, path: &str, end: Instant) -> Result<Option<String>, String> {
    let (code, body) = http::get(server, path, MAX_PAGE_BYTES, end)
        .map_err(|why| format!("replica server {server}: {path}: {why}"))?;
    let text = String::from_utf8_lossy(&body).into_owned();
    match code {
        200 => Ok(Some(text)),
        404 => Ok(None),
        _ => Err(format!("replica server {server}: {path}: {code} {}", text.trim())),
    }
}

/// Asks all, many at once. The first that fails is told.
fn all<A: Copy + Sync, T: Send>(
    asked: &[A],
    ask: impl Fn(A) -> Result<T, String> + Sync,
) -> Result<Vec<T>, String> {
    let mut answers = Vec::with_capacity(asked.len());
    for some in asked.chunks(AT_ONCE) {
        for answer in ask_each(some, |one| ask(*one)) {
            answers.push(answer.unwrap_or_else(|| Err("the look at it panicked".to_owned()))?);
        }
    }
    Ok(answers)
}
