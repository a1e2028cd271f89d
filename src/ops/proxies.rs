//! Looks at proxies by their pages: whether each serves what was written, and whether any holds routes.

use std::collections::BTreeMap;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::at_once::ask_each;
use super::http;
use super::record::Place;
use crate::upstream::resolver::Resolver;

/// A page of a hundred thousand routes.
const MAX_PAGE_BYTES: usize = 256 * 1024 * 1024;
const PAGE_LIMIT: Duration = Duration::from_secs(3);
/// Between two looks at a proxy that does not serve it yet; grows to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// For more tables than this the whole page is read once.
const FEW: usize = 4;

/// A proxy's routes, as its page shows them.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Page {
    pub hold: Option<Hold>,
    /// The connection to ZooKeeper; none in a proxy of a routes file, or an older one.
    pub zookeeper: Option<ZooKeeper>,
    #[serde(default)]
    pub routes: Vec<Listed>,
}

/// The hold of a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Hold {
    pub kind: String,
    /// The root's czxid in hexadecimal; none: it is missing.
    pub czxid: Option<String>,
    pub gone: usize,
}

impl Hold {
    /// The root's czxid; 0: it is missing.
    pub fn czxid_number(&self) -> i64 {
        let hex = self.czxid.as_deref().and_then(|czxid| czxid.strip_prefix("0x"));
        hex.and_then(|hex| i64::from_str_radix(hex, 16).ok()).unwrap_or(0)
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let czxid = self.czxid.as_deref().unwrap_or("none");
        write!(f, "{}, root czxid {czxid}, {} tables gone", self.kind, self.gone)
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct ZooKeeper {
    pub state: String,
    pub root: String,
    /// czxid of its root in hexadecimal; none: it does not know it, or is older.
    #[serde(default)]
    pub root_czxid: Option<String>,
    /// When that root was created, ms since 1970.
    #[serde(default)]
    pub root_ctime_ms: Option<i64>,
    /// The newest change that it knows to have happened.
    pub seen_zxid: i64,
}

/// One cached table.
#[derive(Clone, Debug, Deserialize)]
pub struct Listed {
    pub table: String,
    pub cluster: Option<String>,
    pub metas: Vec<String>,
    pub zxid: i64,
    pub stale: bool,
    pub held: bool,
}

/// The route that each proxy is to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    pub table: String,
    /// zxid of the change; of a deletion too.
    pub zxid: i64,
    /// `None`: the table has no route any more.
    pub place: Option<Place>,
    /// The change was of the cluster's znode, so the table's own zxid is an older one.
    pub by_cluster: bool,
}

/// The root that was written below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    pub path: String,
    pub czxid: i64,
    pub ctime_ms: i64,
}

/// Whether a page shows what is expected below that root, or why not.
pub fn serves(page: &Page, root: &Root, expected: &Expected) -> Result<(), String> {
    let table = &expected.table;
    let listed = page.routes.iter().find(|listed| listed.table == *table);
    let Some(zookeeper) = &page.zookeeper else {
        return Err(
            "its page does not tell of ZooKeeper: it is older, or has a routes file".to_owned()
        );
    };
    if zookeeper.root != root.path {
        return Err(format!("its root is {}", zookeeper.root));
    }
    let czxid = format!("{:#x}", root.czxid);
    let is_other = zookeeper.root_czxid.as_ref().is_some_and(|own| *own != czxid)
        || zookeeper.root_ctime_ms.is_some_and(|own| own != root.ctime_ms);
    if is_other {
        return Err("it is at another ZooKeeper, or its root was another one".to_owned());
    }
    let Some(listed) = listed else {
        // The proxy does not cache the table. It reads the route when a client asks, from a server that has seen the change.
        return match (zookeeper.state.as_str(), zookeeper.seen_zxid >= expected.zxid) {
            ("down", _) => Err("it has no connection to ZooKeeper".to_owned()),
            (_, true) => Ok(()),
            (_, false) => Err("it does not know yet that something changed".to_owned()),
        };
    };
    let cluster = listed.cluster.as_deref().unwrap_or("none");
    if listed.held {
        return Err(format!("{table}: it holds its route, {cluster}"));
    }
    if listed.stale {
        return Err(format!("{table}: its route may be stale, {cluster}"));
    }
    // The proxy serves a later change of somebody else, so it has seen this one.
    if listed.zxid > expected.zxid && !expected.by_cluster {
        return Ok(());
    }
    let Some(place) = &expected.place else {
        return Err(format!("{table}: it still serves {cluster}"));
    };
    let is_new = listed.zxid == expected.zxid || expected.by_cluster;
    let mut metas = listed.metas.clone();
    metas.sort_unstable();
    match is_new && metas == place.metas && (expected.by_cluster || cluster == place.cluster) {
        true => Ok(()),
        false => Err(format!("{table}: it still serves {cluster} ({})", listed.metas.join(", "))),
    }
}

/// A proxy, and whether it serves what is expected.
pub struct Seen {
    pub proxy: String,
    /// `Err`: why the proxy does not serve all of it, or does not say.
    pub served: Result<(), String>,
    pub took: Duration,
}

/// Asks a proxy's page for its routes.
pub fn page(proxy: &str, resolver: &Resolver, table: Option<&str>) -> Result<Page, String> {
    let query = table.map(|table| format!("?table={table}")).unwrap_or_default();
    let body = get(proxy, resolver, &format!("/routes{query}"))?;
    serde_json::from_slice(&body).map_err(|e| format!("want the page /routes, got {e}"))
}

/// The hold of each proxy. `Err`: the proxy did not answer, and why.
pub fn holds(proxies: &[String]) -> Vec<(String, Result<Option<Hold>, String>)> {
    let resolver = Resolver::start();
    let look = |proxy: &String| {
        let hold = page(proxy, &resolver, Some(".")).map(|page| page.hold);
        (proxy.clone(), hold)
    };
    ask_each(proxies, look).into_iter().flatten().collect()
}

/// The body of an answer that is 200.
fn get(proxy: &str, resolver: &Resolver, path: &str) -> Result<Vec<u8>, String> {
    let end = Instant::now() + PAGE_LIMIT;
    let mut why = "the host has no address".to_owned();
    for addr in resolver.resolve(proxy, end) {
        match http::get(addr, path, MAX_PAGE_BYTES, end).and_then(body) {
            Ok(body) => return Ok(body),
            Err(e) => why = e,
        }
    }
    Err(why)
}

fn body((code, body): (u16, Vec<u8>)) -> Result<Vec<u8>, String> {
    match code {
        200 => Ok(body),
        _ => Err(String::from_utf8_lossy(&body).trim().to_owned()),
    }
}

/// Looks at all proxies until each serves all that is expected, or the time is over.
pub fn wait(proxies: &[String], root: &Root, expected: &[Expected], limit: Duration) -> Vec<Seen> {
    let (start, resolver) = (Instant::now(), Resolver::start());
    let look = |proxy: &String| {
        let served = wait_for(proxy, &resolver, root, expected, start + limit);
        Seen { proxy: proxy.clone(), served, took: start.elapsed() }
    };
    ask_each(proxies, look).into_iter().flatten().collect()
}

fn wait_for(
    proxy: &str,
    resolver: &Resolver,
    root: &Root,
    expected: &[Expected],
    end: Instant,
) -> Result<(), String> {
    let mut left: Vec<&Expected> = expected.iter().collect();
    let mut pause = PAUSES.0;
    loop {
        let why = match missing(proxy, resolver, root, &mut left) {
            None => return Ok(()),
            Some(why) => why,
        };
        if Instant::now() + pause >= end {
            let others = left.len().saturating_sub(1);
            return Err(match others {
                0 => why,
                _ => format!("{why}; and {others} more"),
            });
        }
        thread::sleep(pause);
        pause = PAUSES.1.min(pause * 2);
    }
}

/// Removes from the list what the proxy serves. Returns why it does not serve the rest. `None`: it serves all.
fn missing(
    proxy: &str,
    resolver: &Resolver,
    root: &Root,
    left: &mut Vec<&Expected>,
) -> Option<String> {
    let mut why = None;
    let whole = match left.len() > FEW {
        true => match page(proxy, resolver, None) {
            Ok(page) => Some(split(page)),
            Err(e) => return Some(e),
        },
        false => None,
    };
    left.retain(|expected| {
        let one;
        let page = match &whole {
            Some((rest, by_table)) => {
                let routes = by_table.get(&expected.table).cloned().into_iter().collect();
                one = Ok(Page { routes, ..rest.clone() });
                &one
            }
            None => {
                one = page(proxy, resolver, Some(&expected.table));
                &one
            }
        };
        let served =
            page.as_ref().map_err(Clone::clone).and_then(|page| serves(page, root, expected));
        why = why.take().or(served.clone().err());
        served.is_err()
    });
    why
}

fn split(mut page: Page) -> (Page, BTreeMap<String, Listed>) {
    let routes = std::mem::take(&mut page.routes);
    (page, routes.into_iter().map(|listed| (listed.table.clone(), listed)).collect())
}
