//! Which page answers which request.
//!
//! | path | what |
//! |---|---|
//! | `/` | the status page; `?q=` searches its routes |
//! | `/metrics` | for Prometheus, in the text format that it asks for |
//! | `/healthz` | 200 as long as the process can answer |
//! | `/readyz` | 200, or 503 and why clients should not use this proxy |
//! | `/routes` | JSON: every cached table; `?table=` only this one |
//! | `/clusters` | JSON: every cluster that a cached route names, failing ones first |
//! | `/clients` | JSON: which client uses which table, the latest first; `?client=`, `?table=`, `?limit=` |
//! | `/routes/accept` | POST, from this machine only: accept a hold; `?czxid=` and `?gone=` as the page shows them |
//! | `/threads` | JSON: every thread, what it does, since when, and for which cluster or table |
//! | `/settings` | JSON: the settings in use, defaults marked, secrets hidden |
//! | `/log` | the levels of the log; POST `?level=` changes them until the next SIGHUP |
//! | `/drain`, `/undrain` | POST, from this machine only: take the proxy out of service, and back |
//!
//! A POST changes something. It must come from this machine and have a header that browsers do not send by themselves.
//! Its URL must have an address or a name of this host.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use log::info;
use serde_json::{Value, json};

use super::http_message::{DELIBERATE, Method, Request, Response};
use super::snapshot::Inside;
use super::verdict::Overview;
use super::{exposition, falcon, metrics, status_page};
use crate::activity;
use crate::config::{self, Reload};
use crate::logging;
use crate::route::hold::Refusal;
use crate::version;

/// Most entries of `/clients` if the request has no limit.
const MAX_CLIENTS: usize = 1_000;

/// The list of pages, for a request for an unknown page.
const LIST: &str = "\
/           status page; ?q= searches
/metrics    for Prometheus
/healthz    200 while the process can answer
/readyz     200 while clients should use this proxy
/routes     JSON: cached tables; ?table=
/clusters   JSON: clusters, and ZooKeeper
/clients    JSON: which client uses which table; ?client= ?table= ?limit=
/threads    JSON: what each thread does
/settings   JSON: the settings in use
/log        levels of the log; POST ?level=info,zk=debug
/routes/accept  POST: accept held routes; ?czxid= ?gone=
/drain      POST: out of service
/undrain    POST: back
";

pub struct Pages {
    /// The state that the pages show.
    pub inside: Arc<Inside>,
    /// Labels of all metrics.
    pub labels: Vec<(String, String)>,
}

impl Pages {
    /// The answer to a request.
    pub fn answer(&self, request: &Request) -> Response {
        let response = self.page(request);
        if request.takes_gzip { response.gzipped() } else { response }
    }

    fn page(&self, request: &Request) -> Response {
        let inside = &*self.inside;
        let changes = matches!(request.path.as_str(), "/drain" | "/undrain" | "/routes/accept");
        match (request.method, changes) {
            (Method::Get, true) => return Response::wrong_method("POST"),
            (Method::Post, false) if request.path != "/log" => {
                return Response::wrong_method("GET, HEAD");
            }
            (Method::Post, _) => {
                if let Err(why) = may_change(request) {
                    return Response::text(403, format!("{why}\n"));
                }
            }
            _ => {}
        }
        match request.path.as_str() {
            "/metrics" => {
                exposition::response(&metrics::gather(inside), &self.labels, &request.accept)
            }
            "/healthz" => Response::text(200, "ok\n"),
            "/readyz" => match inside.is_ready() {
                Ok(()) => Response::text(200, "ready\n"),
                Err(why) => Response::text(503, format!("{why}\n")),
            },
            "/" => {
                let q = request.query("q").unwrap_or_default();
                status_page::response(&inside.overview(), q, &nonce())
            }
            "/routes" => {
                let wanted = request.query("table");
                let Overview { zookeeper, mut routes, .. } = inside.overview();
                routes.retain(|route| wanted.is_none_or(|table| route.table == table));
                let hold = inside.hold();
                json_page(&json!({ "hold": hold, "zookeeper": zookeeper, "routes": routes }))
            }
            "/routes/accept" => accept(inside, request),
            "/clusters" => {
                let Overview { zookeeper, clusters, .. } = inside.overview();
                json_page(&json!({ "zookeeper": zookeeper, "clusters": clusters }))
            }
            "/clients" => json_page(&clients(inside, request)),
            "/threads" => json_page(&json!({ "threads": threads() })),
            "/settings" => json_page(&settings(inside)),
            "/log" => log_levels(request),
            "/drain" => {
                info!("client={} drains the proxy", request.peer);
                inside.life.drain();
                in_service(inside)
            }
            "/undrain" => {
                info!("client={} ends the drain", request.peer);
                inside.life.undrain();
                in_service(inside)
            }
            _ => Response::not_found(LIST),
        }
    }
}

/// Accepts a hold, if it is still the one that the operator was shown.
fn accept(inside: &Inside, request: &Request) -> Response {
    let czxid = request.query("czxid").and_then(read_czxid);
    let gone = request.query("gone").and_then(|gone| gone.parse().ok());
    let (Some(czxid), Some(gone)) = (czxid, gone) else {
        let want = "want /routes/accept?czxid=C&gone=N as the status page and /routes show it\n";
        return Response::text(400, want);
    };
    info!("client={} accepts the hold czxid={czxid:#x} gone={gone}", request.peer);
    match inside.accept(czxid, gone) {
        _ if inside.accepts.is_none() => Response::text(409, "refused: no routes are held\n"),
        None => Response::text(503, "no decision within 2 s: try again\n"),
        Some(Ok(_)) => Response::text(200, "accepted\n"),
        Some(Err(Refusal::NotHeld)) => Response::text(409, "refused: no routes are held\n"),
        Some(Err(Refusal::Changed(shown))) => {
            let czxid =
                shown.root.map_or_else(|| "none".to_owned(), |root| format!("{:#x}", root.czxid));
            let gone = shown.gone;
            let now =
                format!("refused: the hold has changed to czxid={czxid} gone={gone}, look again\n");
            Response::text(409, now)
        }
    }
}

/// `0x100000002`, or `none` for a missing root, which is 0.
fn read_czxid(text: &str) -> Option<i64> {
    match text {
        "none" => Some(0),
        text => i64::from_str_radix(text.strip_prefix("0x")?, 16).ok().filter(|czxid| *czxid > 0),
    }
}

/// Whether a POST may change something, or why not.
fn may_change(request: &Request) -> Result<(), String> {
    if !request.is_from_this_host() {
        return Err("only from this machine".to_owned());
    }
    if !request.is_deliberate {
        return Err(format!("want the header {DELIBERATE}: yes, which no browser sends by itself"));
    }
    match request.is_asked_by_own_name(&falcon::host_name()) {
        true => Ok(()),
        false => Err("want a URL with an address or the name of this host".to_owned()),
    }
}

fn threads() -> Vec<Value> {
    let thread = |thread: activity::Thread| {
        json!({
            "name": thread.name,
            "thread_id": thread.thread_id,
            "state": thread.state,
            "cpu_s": seconds(thread.cpu),
            "doing": thread.doing,
            "subject": Some(thread.subject).filter(|subject| !subject.is_empty()),
            "since_s": thread.since.map(seconds),
        })
    };
    activity::list().into_iter().map(thread).collect()
}

fn settings(inside: &Inside) -> Value {
    let file = inside.settings.lock();
    let settings: Vec<Value> = file
        .running
        .iter()
        .map(|(key, setting)| {
            json!({
                "key": key,
                "value": setting.shown(),
                "is_default": setting.line == 0,
                "needs_restart": setting.reload == Reload::NeedsRestart,
            })
        })
        .collect();
    json!({
        "version": version::VERSION,
        "commit": version::COMMIT,
        "build": version::BUILD,
        "settings": settings,
        "waiting": file.waiting,
        "rejected": file.rejected.as_ref().map(|(why, _)| why),
    })
}

fn log_levels(request: &Request) -> Response {
    match (request.method, request.query("level")) {
        (Method::Get, _) => {}
        (Method::Post, Some(levels)) if config::is_filter(levels) => {
            info!("client={} sets the log levels {levels:?} until the next SIGHUP", request.peer);
            logging::set_levels(levels);
        }
        (Method::Post, _) => {
            return Response::text(400, "want /log?level=info or a list, info,zk=debug\n");
        }
    }
    Response::text(200, format!("{}\n", logging::levels()))
}

/// Answers whether the proxy is in service: a proxy that stops neither drains nor comes back.
fn in_service(inside: &Inside) -> Response {
    Response::text(200, format!("{}\n", inside.life.is_ready().err().unwrap_or("in service")))
}

/// A nonce that nobody can guess, because the hash has random keys from the system.
fn nonce() -> String {
    let random = || RandomState::new().hash_one(0);
    format!("{:016x}{:016x}", random(), random())
}

fn json_page(value: &Value) -> Response {
    Response::json(format!("{value:#}\n"))
}

fn seconds(span: Duration) -> f64 {
    // None of these times is more exact than a millisecond.
    span.as_millis() as f64 / 1e3
}

fn clients(inside: &Inside, request: &Request) -> Value {
    let (client, table) = (request.query("client"), request.query("table"));
    let limit = request.query("limit").and_then(|limit| limit.parse().ok()).unwrap_or(MAX_CLIENTS);
    let seen = inside.hub.usage.list();
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
        "pending_queries": inside.hub.sums().pending(),
        "unread_bytes": inside.hub.sums().held_bytes(),
        "known_uses": total,
        "uses": uses,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pages_have_the_same_nonce() {
        let (one, other) = (nonce(), nonce());
        assert!(one.len() == 32 && one != other, "{one} {other}");
    }
}
