//! `route verify`: ZooKeeper against every cluster, once, or again and again as metrics.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Ended;
use super::args::Args;
use super::bring::named_clusters;
use super::context::Context;
use super::text::counted;
use crate::admin::exposition;
use crate::admin::family::{Families, label};
use crate::admin::http::Http;
use crate::admin::http_message::{Request, Response};
use crate::client::listener;
use crate::logging::line::Utc;
use crate::ops::control::Control;
use crate::ops::moving::journal::{self, Journal};
use crate::ops::record::Place;
use crate::ops::store::Store;
use crate::ops::verify::{Finding, KINDS, Twice, findings, names, twice};
use crate::ops::view::{Row, Views};
use crate::ops::{Fault, Outcome, clusters};

/// The pages of `--listen`.
const PAGES: &str = "/metrics  for Prometheus\n/healthz  whether the process lives\n";

pub fn verify(args: &Args) -> Ended {
    let context = Context::new(args)?;
    let every = args.value("every").map(|text| span("every", text)).transpose()?;
    let listen = args.value("listen").map(|text| {
        text.parse::<SocketAddr>()
            .map_err(|_| Fault::usage(format!("--listen: want IP:port, got {text:?}")))
    });
    match (every, listen.transpose()?) {
        (None, None) => once(args, &context),
        (Some(every), listen) => again_and_again(args, &context, every, listen),
        (None, Some(_)) => Err(Fault::usage("--listen: want --every SPAN with it")),
    }
}

/// `30s`, `5m`, `1h`: the value of an option.
pub fn span(option: &str, text: &str) -> Result<Duration, Fault> {
    let bad = || Fault::usage(format!("--{option}: want a span as 30s, 5m or 1h, got {text:?}"));
    let (number, seconds) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1),
        Some(b'm') => (&text[..text.len() - 1], 60),
        Some(b'h') => (&text[..text.len() - 1], 3_600),
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    match number.saturating_mul(seconds) {
        n @ 1..=86_400 => Ok(Duration::from_secs(n)),
        _ => Err(bad()),
    }
}

fn once(args: &Args, context: &Context) -> Ended {
    let found = look(args, context)?;
    if context.json {
        let shown: Vec<Value> = found.iter().map(shown).collect();
        crate::cli::print(&format!("{:#}\n", json!({ "findings": shown })));
    } else {
        for finding in &found {
            crate::cli::print(&format!("{finding}\n"));
        }
    }
    let bad = found.iter().filter(|finding| !finding.is_allowed).count();
    context.say(&format!("{}\n", counted(bad, "finding")));
    Ok(if bad == 0 { Outcome::Done } else { Outcome::Differs })
}

fn shown(finding: &Finding) -> Value {
    json!({
        "kind": finding.kind,
        "subject": finding.subject,
        "what": finding.what,
        "allowed": finding.is_allowed,
    })
}

/// Reads ZooKeeper and asks all clusters.
fn look(args: &Args, context: &Context) -> Result<Vec<Finding>, Fault> {
    let mut store = context.open()?;
    let rows = store.routes()?.rows;
    let moves = journal::all(&mut store)?.into_iter().filter_map(|(_, journal)| journal.ok());
    let moves: Vec<Journal> = moves.collect();
    let more = named_clusters(args)?.into_iter().chain(left_behind(&mut store, &rows, &moves)?);
    let more: Vec<(String, Vec<String>)> = more.map(|place| (place.cluster, place.metas)).collect();
    let names = names(&rows, &more);
    let views = clusters::look(names.keys().cloned(), context.limit);
    let told = |twice: Twice| {
        let duplication = duplication(&twice, &views, context.limit);
        (twice, duplication)
    };
    let twice: Vec<_> = twice(&rows, &views, &names).into_iter().map(told).collect();
    let moved = moves.into_iter().map(|journal| (journal.table, journal.from.cluster));
    Ok(findings(&rows, &views, &names, &twice, &moved.collect::<Vec<_>>()))
}

/// Clusters that may deny clients of tables though no route names them any more.
fn left_behind(store: &mut Store, rows: &[Row], moves: &[Journal]) -> Result<Vec<Place>, Fault> {
    let places = moves.iter().flat_map(|journal| [&journal.from, &journal.to]);
    let mut found: Vec<Place> = places.cloned().collect();
    if let Some(control) = Control::of(store) {
        found.extend(control.fenced(store)?);
    }
    let routed = rows.iter().filter_map(|row| Some(row.place.as_ref().ok()?.cluster.as_str()));
    let routed: BTreeSet<&str> = routed.collect();
    found.retain(|place| !routed.contains(place.cluster.as_str()));
    Ok(found)
}

/// `c3->c4`, if one of the two duplicates the table to the other.
fn duplication(twice: &Twice, views: &Views, limit: Duration) -> Option<String> {
    [(&twice.home, &twice.other), (&twice.other, &twice.home)].into_iter().find_map(|(from, to)| {
        let leader = views.get(&from.0)?.leader.as_ref()?;
        // Servers know each other by the names in their settings, which need not be the clusters' own.
        let own = views.get(&to.0)?.leader.as_ref()?.name.as_ref().unwrap_or(&to.1);
        clusters::duplicates(leader, &twice.table, &[own, &to.1], limit)
            .then(|| format!("{}->{}", from.1, to.1))
    })
}

/// The result of the last look, for the metrics page.
#[derive(Default)]
struct Last {
    findings: Vec<Finding>,
    looked_at: Option<Instant>,
    fault: Option<String>,
}

fn again_and_again(
    args: &Args,
    context: &Context,
    every: Duration,
    listen: Option<SocketAddr>,
) -> Ended {
    let last = Arc::new(Mutex::new(Last::default()));
    let served = last.clone();
    let http = listen.map(|addr| {
        let listener = listener::bind(addr)?;
        Http::start(listener, Arc::new(move |request: &Request| page(request, &served.lock())))
    });
    let http = http.transpose().map_err(|e| Fault::failed(format!("--listen: {e}")))?;
    if let Some(http) = &http {
        crate::cli::complain(&format!("metrics at http://{}/metrics", http.addr()));
    }
    loop {
        let start = Instant::now();
        let found = look(args, context);
        let now = Utc::now();
        let mut last = last.lock();
        match found {
            Ok(found) => {
                let bad: Vec<&Finding> =
                    found.iter().filter(|finding| !finding.is_allowed).collect();
                let before = &last.findings;
                for finding in bad.iter().filter(|finding| !before.contains(finding)) {
                    context.say(&format!("{now} {finding}\n"));
                }
                for finding in before.iter().filter(|finding| !found.contains(finding)) {
                    context.say(&format!("{now} no more: {finding}\n"));
                }
                *last = Last { findings: found, looked_at: Some(Instant::now()), fault: None };
            }
            Err(fault) => {
                context.say(&format!("{now} {fault}\n"));
                last.fault = Some(fault.why);
            }
        }
        drop(last);
        thread::sleep(every.saturating_sub(start.elapsed()));
    }
}

fn page(request: &Request, last: &Last) -> Response {
    match request.path.as_str() {
        "/healthz" => Response::text(200, "ok\n"),
        "/metrics" => {
            let mut families = Families::default();
            let counts = |is_allowed: bool| {
                KINDS.map(|kind| {
                    let is_one = |one: &&Finding| one.kind == kind && one.is_allowed == is_allowed;
                    let count = last.findings.iter().filter(is_one).count();
                    (label("kind", kind), count as f64)
                })
            };
            let help = "Routes and clusters that do not go together, as they were last looked at.";
            families.gauges("meta_proxy_route_findings", help, counts(false));
            let help = "Those that are as they should be; ENV: tables that a cluster denies its clients until route finish.";
            families.gauges("meta_proxy_route_allowed_findings", help, counts(true));
            let help = "Whether the last look at ZooKeeper was possible.";
            let is_up = last.fault.is_none() && last.looked_at.is_some();
            families.flag("meta_proxy_route_verify_up", help, is_up);
            if let Some(at) = last.looked_at {
                let help = "Age of the last look that was possible.";
                let age = at.elapsed().as_secs_f64();
                families.gauge("meta_proxy_route_verify_age_seconds", help, age);
            }
            exposition::response(&families.0, &[], &request.accept)
        }
        _ => Response::not_found(PAGES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_a_number_and_a_unit_of_a_day_at_most() {
        for (text, seconds) in [("30s", 30), ("5m", 300), ("24h", 86_400)] {
            assert_eq!(span("every", text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        // The last one is 44 s where numbers wrap round.
        for text in ["", "5", "s", "0s", "25h", "-1s", "5d", "5é", "307445734561825861m"] {
            assert!(span("every", text).is_err(), "{text}");
        }
    }
}
