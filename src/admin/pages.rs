//! Which page answers which request.
//!
//! | path | what |
//! |---|---|
//! | `/metrics` | for Prometheus, in the text format that it asks for |
//! | `/healthz` | 200 as long as the process can answer |
//! | `/readyz` | 200, or 503 and why clients should not come here |
//! | `/routes` | JSON: every cached table; `?table=` only this one |
//! | `/clusters` | JSON: every cluster that a cached route names, failing and slow ones first |
//! | `/clients` | JSON: who uses which table, the latest first; `?client=`, `?table=`, `?limit=` |
//! | `/drain`, `/undrain` | POST, from this machine only: take the proxy out of service, and back |

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use log::info;
use serde_json::{Value, json};

use super::exposition;
use super::message::{Method, Request, Response};
use super::{Inside, metrics};
use crate::route::table::Listed;
use crate::upstream::cluster::Cluster;
use crate::wire::error_code::COUNTED;
use crate::zk::status::Trust;

/// Entries of `/clients` without a limit.
const MAX_CLIENTS: usize = 1_000;

/// All pages.
pub struct Pages {
    /// What they show.
    pub inside: Arc<Inside>,
    /// Labels of all metrics.
    pub tags: Vec<(String, String)>,
}

impl Pages {
    /// The answer to a request.
    pub fn answer(&self, request: &Request) -> Response {
        let inside = &*self.inside;
        let changes = matches!(request.path.as_str(), "/drain" | "/undrain");
        match (request.method, changes) {
            (Method::Get, true) => return Response::wrong_method("POST"),
            (Method::Post, false) => return Response::wrong_method("GET, HEAD"),
            (Method::Post, true) if !request.peer.ip().to_canonical().is_loopback() => {
                return Response::text(403, "only from this machine\n");
            }
            _ => {}
        }
        match request.path.as_str() {
            "/metrics" => exposition::response(
                &metrics::open_metrics(&self.inside, &self.tags),
                &request.accept,
            ),
            "/healthz" => Response::text(200, "ok\n"),
            "/readyz" => match (inside.ready)() {
                Ok(()) => Response::text(200, "ready\n"),
                Err(why) => Response::text(503, format!("{why}\n")),
            },
            "/routes" => {
                let wanted = request.query("table");
                let listed = inside.routes.list().into_iter();
                let listed =
                    listed.filter(|route| wanted.is_none_or(|table| *route.table == *table));
                let zookeeper = inside.zookeeper.is_some();
                json_page(
                    &json!({"routes": listed.map(|listed| route(&listed, zookeeper)).collect::<Vec<_>>()}),
                )
            }
            "/clusters" => {
                let mut clusters: Vec<_> = inside.clusters();
                clusters.sort_by_key(|cluster| {
                    let state = cluster.state();
                    Reverse((state.is_failing, state.failures, state.usual))
                });
                json_page(&json!({
                    "zookeeper": zookeeper(inside),
                    "clusters": clusters.iter().map(cluster).collect::<Vec<_>>(),
                }))
            }
            "/clients" => json_page(&clients(inside, request)),
            "/drain" => {
                info!("client={} drain", request.peer);
                (inside.drain)(true);
                Response::text(200, "draining\n")
            }
            "/undrain" => {
                info!("client={} undrain", request.peer);
                (inside.drain)(false);
                Response::text(200, "in service\n")
            }
            _ => Response::not_found(),
        }
    }
}

fn json_page(value: &Value) -> Response {
    Response::json(format!("{value:#}\n"))
}

fn seconds(span: Duration) -> f64 {
    // Milliseconds are as exact as any of these times.
    span.as_millis() as f64 / 1e3
}

/// One table: where it lives, how sure that is, how much it is asked for.
fn route(listed: &Listed, zookeeper: bool) -> Value {
    let route = listed.route.as_ref();
    let source = match listed.confirmed {
        Some(_) if zookeeper => "zookeeper",
        Some(_) => "file",
        None => "state file",
    };
    json!({
        "table": &*listed.table,
        "cluster": route.map(|route| &route.cluster_name),
        "meta_addrs": route.map(|route| &route.cluster.meta_addrs),
        "usable": route.is_some(),
        "zxid": route.map(|route| format!("{:#x}", route.mzxid)),
        "changed_s": seconds(listed.changed),
        "confirmed_s": listed.confirmed.map(seconds),
        "source": source,
        "stale": listed.is_stale,
        "queries": listed.queries,
        "zookeeper_reads": listed.reads,
    })
}

/// One cluster: who leads, who fails, how long answers take.
fn cluster(cluster: &Arc<Cluster>) -> Value {
    let state = cluster.state();
    let answers: serde_json::Map<String, Value> = COUNTED
        .iter()
        .zip(&cluster.stats.answers)
        .filter(|(_, count)| count.get() > 0)
        .map(|(err, count)| ((*err).to_owned(), count.get().into()))
        .collect();
    let failures: Vec<Value> = cluster
        .stats
        .failures()
        .into_iter()
        .map(|(meta, kind, count)| json!({"meta": meta.to_string(), "kind": kind, "count": count}))
        .collect();
    json!({
        "cluster": cluster.name,
        "meta_addrs": cluster.meta_addrs,
        "leader": state.leader.map(|leader| leader.to_string()),
        "failing": state.is_failing,
        "failures_in_a_row": state.failures,
        "calls_under_way": state.calls,
        "idle_links": state.idle_links,
        "usual_answer_us": state.usual.map(|usual| usual.as_micros() as u64),
        "answers": answers,
        "meta_failures": failures,
    })
}

/// How it stands with ZooKeeper; null with a routes file.
fn zookeeper(inside: &Inside) -> Value {
    inside.zookeeper.as_ref().map_or(Value::Null, |status| {
        let view = status.view();
        json!({
            "state": view.trust.name(),
            "connected": view.trust != Trust::Down,
            "since_s": seconds(view.since.elapsed()),
            "server": view.server.map(|server| server.to_string()),
            "session": view.session.map(|session| format!("{:#x}", session.id)),
            "session_timeout_ms": view.session.map(|session| session.timeout.as_millis() as u64),
            "asked_timeout_ms": view.asked_timeout.as_millis() as u64,
            "clients_built": view.built,
            "last_fault": view.fault,
        })
    })
}

fn clients(inside: &Inside, request: &Request) -> Value {
    let (client, table) = (request.query("client"), request.query("table"));
    let limit = request.query("limit").and_then(|limit| limit.parse().ok()).unwrap_or(MAX_CLIENTS);
    let seen = inside.desk.usage.list();
    let total = seen.len();
    let uses: Vec<Value> = seen
        .into_iter()
        .filter(|seen| client.is_none_or(|client| seen.what.client.to_string() == client))
        .filter(|seen| table.is_none_or(|table| *seen.what.table == *table))
        .take(limit)
        .map(|seen| {
            json!({
                "client": seen.what.client.to_string(),
                "table": &*seen.what.table,
                "queries": seen.queries,
                "last_s": seconds(seen.last),
            })
        })
        .collect();
    json!({
        "connections": inside.metrics.connections(),
        "pending_queries": inside.desk.pending(),
        "unread_bytes": inside.desk.unread(),
        "known_uses": total,
        "uses": uses,
    })
}
