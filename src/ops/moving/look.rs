//! Asks the two clusters, and does to them what a step says. Nothing is tried again here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::state::{Partition, Side};
use crate::ops::at_once::ask_each;
use crate::ops::clusters;
use crate::ops::http;
use crate::ops::record::Place;
use crate::ops::view::View;
use crate::wire::admin_move::{self, Duplication, Replica, Shipping};
use crate::wire::admin_rpc::{self, App, BadAnswer, DENY_ENV};
use crate::wire::config_view::Address;

const SEQ: i32 = 1;
/// The page of a replica server with all partitions of a table.
const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;
/// Replica servers that are asked at once.
const AT_ONCE: usize = 32;
const CONFIG_SYNC_SETTING: &str = "config_sync_interval_ms";

/// One of the two clusters.
pub struct Cluster {
    pub place: Place,
    /// The name that it gives itself, by which the other cluster's duplications name it.
    pub name: String,
    table: String,
    leader: Option<SocketAddr>,
    limit: Duration,
}

impl Cluster {
    /// Nobody is asked yet.
    pub fn new(place: Place, table: &str, limit: Duration) -> Self {
        let name = place.cluster.clone();
        Cluster { place, name, table: table.to_owned(), leader: None, limit }
    }

    /// The cluster as its leader shows it.
    pub fn view(&mut self) -> View {
        let metas = self.place.metas.clone();
        let view = clusters::look([metas.clone()], self.limit).remove(&metas).unwrap_or_default();
        self.leader = view.leader.as_ref().map(|leader| leader.addr);
        if let Some(name) = view.leader.as_ref().and_then(|leader| leader.name.clone()) {
            self.name = name;
        }
        view
    }

    /// Asks the leader. If it is not the leader any more, or is gone, it is looked for first.
    fn ask<T>(
        &mut self,
        request: &[u8],
        read: impl Fn(&[u8]) -> Result<T, BadAnswer>,
    ) -> Result<T, String> {
        let leader = match self.leader {
            Some(leader) => leader,
            None => {
                let view = self.view();
                let why = || {
                    format!("{}: no leader answers: {}", self.place.cluster, view.why_no_leader())
                };
                self.leader.ok_or_else(why)?
            }
        };
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

    /// The facts that a move needs of it, and the table's id and number of partitions.
    pub fn side(&mut self, other: &str) -> Result<(Side, App), String> {
        let app =
            self.app()?.ok_or_else(|| format!("{} does not have the table", self.place.cluster))?;
        let duplications = self.duplications()?;
        let duplication = duplications.into_iter().find(|duplication| duplication.remote == other);
        Ok((Side { denies: app.denies().map(str::to_owned), duplication }, app))
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

    /// The longest config-sync interval of the replica servers.
    pub fn interval_ms(&mut self) -> Result<u64, String> {
        let servers = self.servers()?;
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
        intervals
            .into_iter()
            .max()
            .ok_or_else(|| format!("{} has no replica server", self.place.cluster))
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
            Partition { server, replica, shipping }
        };
        Ok(primaries.into_iter().map(partition).collect())
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

/// Asks all servers, many at once. The first that fails is told.
fn all<T: Send>(
    servers: &[SocketAddr],
    ask: impl Fn(SocketAddr) -> Result<T, String> + Sync,
) -> Result<Vec<T>, String> {
    let mut answers = Vec::with_capacity(servers.len());
    for some in servers.chunks(AT_ONCE) {
        for answer in ask_each(some, |server| ask(*server)) {
            answers.push(answer.unwrap_or_else(|| Err("the look at it panicked".to_owned()))?);
        }
    }
    Ok(answers)
}
