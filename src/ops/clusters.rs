//! Asks clusters who they are and what they have: every address, and the leader whom a follower names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::at_once::ask_each;
use super::view::{Leader, ServerReply, View, Views};
use crate::ops::admin_rpc::{self, BadAnswer};
use crate::upstream::exchange::Exchange;
use crate::upstream::link::ask_once;
use crate::upstream::resolver::Resolver;
use crate::wire::answer::{Answer, LEN_BYTES, frame_len};
use crate::wire::config_view::Address;
use crate::wire::error_code::ERR_FORWARD_TO_OTHERS;
use crate::wire::message;

/// Clusters that are asked at once.
const AT_ONCE: usize = 16;
/// A follower may name another follower as leader. The search ends after this many.
const MAX_FORWARDS: usize = 3;
const SEQ: i32 = 1;
/// A valid name that no table has.
const NO_TABLE: &str = "meta-proxy.route.no-such-table";

/// Asks each set of addresses at once, and waits for `limit` at most.
pub fn look(sets: impl IntoIterator<Item = Vec<String>>, limit: Duration) -> Views {
    let sets: BTreeSet<Vec<String>> = sets.into_iter().collect();
    let sets: Vec<Vec<String>> = sets.into_iter().collect();
    let resolver = Resolver::start();
    let mut views = Views::new();
    for some in sets.chunks(AT_ONCE) {
        let seen = ask_each(some, |metas| look_at(metas, &resolver, limit));
        views.extend(some.iter().cloned().zip(seen.into_iter().map(Option::unwrap_or_default)));
    }
    views
}

/// The answer of one server, read.
enum Heard {
    Leader(Box<Leader>),
    Follower(Option<SocketAddr>),
    Nothing(String),
}

fn look_at(metas: &[String], resolver: &Resolver, limit: Duration) -> View {
    let end = Instant::now() + limit;
    let (told, hears) = mpsc::channel();
    let mut heard: Vec<(String, Heard)> = thread::scope(|scope| {
        for meta in metas {
            let told = told.clone();
            scope.spawn(move || told.send((meta.clone(), ask_name(meta, resolver, end))));
        }
        drop(told);
        hears.iter().collect()
    });
    heard.sort_by(|one, other| one.0.cmp(&other.0));
    let mut forwards: Vec<SocketAddr> = Vec::new();
    let mut view = View::default();
    for (meta, heard) in heard {
        let said = match heard {
            Heard::Leader(leader) => {
                view.leader.get_or_insert(*leader);
                ServerReply::Leader
            }
            Heard::Follower(leader) => {
                forwards.extend(leader);
                ServerReply::Follower
            }
            Heard::Nothing(why) => ServerReply::Nothing(why),
        };
        view.servers.push((meta, said));
    }
    // The leader may be one that the route does not list.
    for _ in 0..MAX_FORWARDS {
        let Some(addr) = forwards.pop().filter(|_| view.leader.is_none()) else { break };
        match ask(addr, end) {
            Heard::Leader(leader) => view.leader = Some(*leader),
            Heard::Follower(leader) => forwards.extend(leader),
            Heard::Nothing(_) => {}
        }
    }
    view
}

fn ask_name(meta: &str, resolver: &Resolver, end: Instant) -> Heard {
    let addrs = resolver.resolve(meta, end);
    let mut heard = Heard::Nothing("the host has no address".to_owned());
    for addr in addrs {
        heard = ask(addr, end);
        if !matches!(heard, Heard::Nothing(_)) {
            break;
        }
    }
    heard
}

fn ask(addr: SocketAddr, end: Instant) -> Heard {
    let info = exchange(addr, &admin_rpc::cluster_info(SEQ), end);
    let info = info.and_then(|frame| admin_rpc::read_cluster_info(&frame, SEQ));
    let mut info = match info {
        Ok(info) => info,
        Err(BadAnswer::Refused(err)) if err == ERR_FORWARD_TO_OTHERS => {
            return Heard::Follower(leader_by(addr, end));
        }
        Err(why) => return Heard::Nothing(plain(why)),
    };
    let apps = exchange(addr, &admin_rpc::list_apps(SEQ), end);
    match apps.and_then(|frame| admin_rpc::read_apps(&frame, SEQ)) {
        Ok(apps) => {
            let apps = apps.into_iter().filter(|app| app.is_available);
            let mut known = |key: &str| info.remove(key).filter(|value| !value.is_empty());
            Heard::Leader(Box::new(Leader {
                addr,
                name: known("cluster_name"),
                zookeeper_root: known("zookeeper_root"),
                apps: apps.map(|app| (app.name.clone(), app)).collect::<BTreeMap<_, _>>(),
            }))
        }
        Err(BadAnswer::Refused(err)) if err == ERR_FORWARD_TO_OTHERS => Heard::Follower(None),
        Err(why) => Heard::Nothing(plain(why)),
    }
}

/// In words.
pub fn plain(why: BadAnswer) -> String {
    match why {
        BadAnswer::Malformed(why) | BadAnswer::Refused(why) => why,
    }
}

/// The leader that a follower names. Only its answer to a QueryConfig names one.
fn leader_by(follower: SocketAddr, end: Instant) -> Option<SocketAddr> {
    match ask_once(follower, &message::query_args(NO_TABLE), end).ok()?.answer {
        Answer::Follower { leader: Some(Address::Ip(leader)) } => Some(leader.into()),
        _ => None,
    }
}

/// The clusters that this leader duplicates a table to.
fn remotes(leader: SocketAddr, table: &str, limit: Duration) -> Result<Vec<String>, String> {
    let end = Instant::now() + limit;
    let frame = exchange(leader, &admin_rpc::query_duplication(SEQ, table), end);
    frame.and_then(|frame| admin_rpc::read_remotes(&frame, SEQ)).map_err(plain)
}

/// Whether this leader duplicates a table to a cluster of one of these names.
pub fn duplicates(leader: &Leader, table: &str, names: &[&str], limit: Duration) -> bool {
    let is_duplicating = leader.apps.get(table).is_some_and(|app| app.is_duplicating);
    let remotes = || remotes(leader.addr, table, limit).unwrap_or_default();
    is_duplicating && remotes().iter().any(|remote| names.contains(&remote.as_str()))
}

/// One request, and the frame of its answer.
pub fn exchange(addr: SocketAddr, request: &[u8], end: Instant) -> Result<Vec<u8>, BadAnswer> {
    let answer = || {
        let mut exchange = Exchange::begin(addr, request, end)?;
        let mut frame = exchange.read(LEN_BYTES)?;
        let len = *frame.first_chunk().expect("as long as was asked for");
        let len = frame_len(len).map_err(|bad| bad.to_string())?;
        frame.extend(exchange.read(len - LEN_BYTES)?);
        Ok(frame)
    };
    answer().map_err(BadAnswer::Malformed)
}
