//! Gathers all metrics at each request.
//!
//! Three names are the Go meta-proxy's: `client_connection_count`, `client_query_config_count{table}`,
//! `zk_request_count{table}`. The others start with `meta_proxy_`. A table is a label only while it is cached, a cluster
//! while a route names it, so labels are bounded by the capacity of the cache.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::family::{Families, Family, Histogram, Labels, label};
use super::process_stats;
use super::snapshot::{self, Inside, Named};
use crate::logging;
use crate::metrics::{By, Closed, LATENCY_BOUNDS_US, Latency, Reason};
use crate::route::hold::Kind;
use crate::route::table::Listed;
use crate::upstream::stats::Stats;
use crate::version;
use crate::wire::error_code::{COUNTED, ERR_OK};
use crate::zk::status::{Membership, Trust};

/// All metrics now.
pub fn gather(inside: &Inside) -> Vec<Family> {
    let mut out = Families::default();
    clients(&mut out, inside);
    let listed = inside.routes.list();
    answers(&mut out, inside, &listed);
    routes(&mut out, inside, &listed);
    zookeeper(&mut out, inside);
    process(&mut out, inside);
    out.0
}

fn by_reason<R: Reason>(name: &'static str, counts: &By<R>) -> Vec<(Labels, u64)> {
    counts.all().map(|(why, n)| (label(name, why.label()), n.get())).collect()
}

fn clients(out: &mut Families, inside: &Inside) {
    let metrics = &inside.metrics;
    let open = metrics.connections() as f64;
    out.gauge("client_connection_count", "Client connections open", open);
    out.counter(
        "meta_proxy_connections_accepted",
        "Client connections accepted",
        metrics.accepted.get(),
    );
    out.counters(
        "meta_proxy_connections_refused",
        "Client connections not accepted",
        by_reason("why", &metrics.refused),
    );
    out.counters(
        "meta_proxy_connections_closed",
        "Client connections closed",
        by_reason("why", &metrics.closed),
    );
    out.counter(
        "meta_proxy_malformed",
        "Connections closed for bytes that are not a valid request",
        metrics.closed.at(Closed::Malformed).get(),
    );
    out.counters(
        "meta_proxy_other_requests",
        "Requests other than QueryConfig",
        by_reason("method", &metrics.other_methods),
    );
    out.counters(
        "meta_proxy_requests_refused",
        "Queries answered ERR_SERVICE_NOT_ACTIVE without asking a cluster",
        by_reason("why", &metrics.shed),
    );
    let pending = inside.hub.sums().pending() as f64;
    out.gauge("meta_proxy_pending_queries", "Queries under way", pending);
    let unread = inside.hub.sums().held_bytes() as f64;
    out.gauge("meta_proxy_unread_bytes", "Unsent answers and unfinished requests", unread);
    out.gauge("meta_proxy_queued_jobs", "Jobs that wait for a worker", inside.jobs.jobs() as f64);
}

fn answers(out: &mut Families, inside: &Inside, routes: &[Listed]) {
    let metrics = &inside.metrics;
    let (buckets, sum) = metrics.latency.get();
    let bounds = LATENCY_BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
    let latency = Histogram { sum: sum.as_secs_f64(), buckets: bounds.zip(buckets).collect() };
    let help = "From a query's arrival to its answer";
    out.histograms("meta_proxy_answer_latency_seconds", help, [(Labels::new(), latency)]);

    out.counters(
        "meta_proxy_unfit_answers",
        "Answers of MetaServers with something unexpected in them",
        by_reason("why", &metrics.unfit),
    );
    let own = metrics.own_errors.all().map(|(error, n)| {
        (vec![("pegasus_cluster", String::new()), ("err", error.label().to_owned())], n.get())
    });
    // Clusters of one name share a count.
    let clusters = snapshot::clusters(routes);
    let mut by_name: BTreeMap<&str, (&Stats, bool)> = BTreeMap::new();
    for Named { cluster, state, .. } in &clusters {
        let (_, is_failing) = by_name.entry(&cluster.name).or_insert((&cluster.stats, false));
        *is_failing |= state.failing.is_some();
    }
    let of = |cluster: &&str| ("pegasus_cluster", (*cluster).to_owned());
    let given = by_name.iter().flat_map(|(name, (stats, _))| {
        let counts = COUNTED.iter().zip(&stats.answers).filter(|(_, n)| n.get() > 0);
        counts.map(move |(err, n)| (vec![of(name), ("err", (*err).to_owned())], n.get()))
    });
    let help = "Answers by cluster and error; those of the proxy itself have no cluster";
    out.counters("meta_proxy_answers", help, own.into_iter().chain(given));
    out.counter("meta_proxy_flights_led", "Calls to clusters", metrics.calls.get());
    let joined = metrics.flights_joined.get();
    out.counter("meta_proxy_flights_joined", "Queries that shared the call of another", joined);

    let failures = by_name.iter().flat_map(|(name, (stats, _))| {
        stats.failures().into_iter().map(move |(meta, kind, failures)| {
            let meta = meta.to_string();
            (vec![of(name), ("meta", meta), ("kind", kind.to_owned())], failures.count)
        })
    });
    let help = "MetaServers that gave no usable answer";
    out.counters("meta_proxy_upstream_failures", help, failures);
    let probes = clusters.iter().flat_map(|named| {
        named.state.servers.iter().filter_map(|server| {
            let labels = vec![of(&named.cluster.name.as_str()), ("meta", server.addr.to_string())];
            Some((labels, f64::from(u8::from(server.probed?.is_answer()))))
        })
    });
    let help = "1 while a MetaServer answers probes";
    out.gauges("meta_proxy_meta_answers_probes", help, probes);
    let unanswered =
        by_name.iter().map(|(name, (stats, _))| (vec![of(name)], stats.unanswered.get()));
    let help = "Queries answered ERR_SERVICE_NOT_ACTIVE because no MetaServer of the cluster did";
    out.counters("meta_proxy_cluster_unanswered", help, unanswered);
    let latency = by_name.iter().take(MAX_LATENCY_CLUSTERS);
    let latency = latency.map(|(name, (stats, _))| (vec![of(name)], coarse(&stats.latency)));
    let help = "Time that a MetaServer of the cluster takes to answer a call";
    out.histograms("meta_proxy_call_latency_seconds", help, latency);
    let failing = by_name
        .iter()
        .map(|(name, (_, is_failing))| (vec![of(name)], f64::from(u8::from(*is_failing))));
    let help = "1 while a cluster fails and is only probed";
    out.gauges("meta_proxy_cluster_failing", help, failing);
    let failing = clusters.iter().filter(|named| named.state.failing.is_some()).count();
    out.gauge(
        "meta_proxy_clusters_failing",
        "Failing clusters, which the proxy only probes",
        failing as f64,
    );
    out.gauge("meta_proxy_clusters", "Clusters that cached routes name", clusters.len() as f64)
}

/// Most clusters with their own latency, the first by name: each has some ten series.
const MAX_LATENCY_CLUSTERS: usize = 256;
/// Upper bounds for the calls of one cluster, us: some of [`LATENCY_BOUNDS_US`].
const CALL_BOUNDS_US: [u64; 8] = [500, 1_000, 5_000, 20_000, 50_000, 200_000, 500_000, 1_000_000];

fn coarse(latency: &Latency) -> Histogram {
    let (buckets, sum) = latency.get();
    let infinite = [(f64::INFINITY, 0)];
    let bounds = CALL_BOUNDS_US.iter().map(|us| (*us as f64 / 1e6, 0)).chain(infinite);
    let mut histogram = Histogram { sum: sum.as_secs_f64(), buckets: bounds.collect() };
    for (at, n) in buckets.into_iter().enumerate() {
        let bound = LATENCY_BOUNDS_US.get(at).copied().unwrap_or(u64::MAX);
        let place = CALL_BOUNDS_US.partition_point(|coarse| *coarse < bound);
        histogram.buckets[place].1 += n;
    }
    histogram
}

fn routes(out: &mut Families, inside: &Inside, listed: &[Listed]) {
    let by_table = |n: fn(&Listed) -> u64| {
        let shown = if inside.has_table_series { listed } else { &[] };
        shown.iter().map(move |listed| (label("table", &*listed.table), n(listed)))
    };
    let help = "Queries by table, of tables that are cached";
    out.go_counters("client_query_config_count", help, by_table(|listed| listed.queries));
    let help = "Reads of ZooKeeper by table, of tables that are cached";
    out.go_counters("zk_request_count", help, by_table(|listed| listed.reads));
    out.counter(
        "meta_proxy_misses",
        "Queries that waited for ZooKeeper",
        inside.metrics.misses.get(),
    );
    out.gauge("meta_proxy_routes_cached", "Tables that are cached", listed.len() as f64);
    let help = "Tables evicted from the full cache";
    out.counter("meta_proxy_routes_evicted", help, inside.routes.evicted.get());
    // Right after a connect the proxy does not know the server's zxid yet; at the start only the state file has one.
    let seen = inside.zookeeper.as_ref().map_or(0, |status| status.view().seen_zxid);
    let newest = listed.iter().filter_map(|listed| Some(listed.route.as_ref()?.mzxid)).max();
    let help =
        "zxid of the newest ZooKeeper change that this proxy has seen: shows which proxy lags";
    out.gauge("meta_proxy_newest_zxid", help, seen.max(newest.unwrap_or(0)) as f64);
    let is_unseen = inside
        .zookeeper
        .as_ref()
        .is_some_and(|status| matches!(status.view().membership, Membership::Fault(_)));
    let help = "1 while the proxy cannot register below the control znode";
    out.flag("meta_proxy_control_fault", help, is_unseen);
    let unusable = listed.iter().filter(|listed| listed.fault.is_some()).count();
    let help = "Tables whose record is unusable; the proxy serves the last good one, if it has one";
    out.gauge("meta_proxy_routes_unusable", help, unusable as f64);
    let unserved = listed.iter().filter(|listed| listed.route.is_none()).count();
    let help = "Tables whose record is unusable and that have no good one";
    out.gauge("meta_proxy_routes_unserved", help, unserved as f64);
    let error = |listed: &Listed| {
        let route = listed.route.as_ref()?;
        Some(route.cluster.stats.table_errors.get(&listed.table)?.err)
    };
    let errors: Vec<&str> = listed.iter().filter_map(error).collect();
    let refused = COUNTED.iter().filter(|err| **err != ERR_OK).map(|err| {
        let tables = errors.iter().filter(|other| *other == err).count();
        (label("err", *err), tables as f64)
    });
    let help = "Tables to which their cluster last answered with this error";
    out.gauges("meta_proxy_tables_refused", help, refused);
    if inside.zookeeper.is_some() {
        let hold = inside.hold();
        let held = Kind::ALL.map(|kind| {
            let of_kind = hold.as_ref().filter(|hold| hold.kind == kind);
            (label("kind", kind.label()), of_kind.map_or(0.0, |hold| hold.held as f64))
        });
        let help = "Tables that the proxy still serves although ZooKeeper has lost them";
        out.gauges("meta_proxy_routes_held", help, held);
    }
    let stale = || listed.iter().filter(|listed| listed.is_stale);
    let help = "Cached tables that may have changed unseen";
    out.gauge("meta_proxy_routes_unconfirmed", help, stale().count() as f64);
    let oldest = stale().map(|listed| listed.confirmed.unwrap_or_else(|| inside.age(listed))).max();
    let help = "Time since the oldest unconfirmed route was confirmed";
    let oldest = oldest.unwrap_or_default().as_secs_f64();
    out.gauge("meta_proxy_oldest_unconfirmed_route_seconds", help, oldest)
}

fn zookeeper(out: &mut Families, inside: &Inside) {
    if let Some(status) = &inside.zookeeper {
        let view = status.view();
        let is_up = f64::from(u8::from(view.trust != Trust::Down));
        out.gauge("meta_proxy_zookeeper_connected", "1 while changes of routes are seen", is_up);
        let help = "Connections to ZooKeeper that the proxy has made";
        out.counter("meta_proxy_zookeeper_clients_built", help, view.built);
        let timeout = view.session.map_or(0.0, |session| session.timeout.as_secs_f64());
        let help = "Session time-out that ZooKeeper granted; 0 without a session";
        out.gauge("meta_proxy_zookeeper_session_timeout_seconds", help, timeout);
    }
    if let Some(file) = &inside.state_file {
        let view = file.view();
        if let Some(written) = view.written {
            let help = "Time since the proxy wrote the state file; it does when routes change";
            let age = written.get().as_secs_f64();
            out.gauge("meta_proxy_state_file_age_seconds", help, age);
        }
        let help = "1 while the proxy cannot write the current routes to the state file";
        let fails = f64::from(u8::from(view.fault.is_some()));
        out.gauge("meta_proxy_state_file_failing", help, fails);
    }
}

fn process(out: &mut Families, inside: &Inside) {
    let failures = inside.metrics.falcon_failures.get();
    out.counter("meta_proxy_falcon_failures", "Failed pushes to the falcon agent", failures);
    let settings = inside.settings.lock();
    let is_rejected = f64::from(u8::from(settings.rejected.is_some()));
    let waiting = settings.waiting.len() as f64;
    let limits: Vec<_> = settings.limits.clone();
    drop(settings);
    let help = "1 after a SIGHUP that changed nothing because the settings file has a fault";
    out.gauge("meta_proxy_settings_rejected", help, is_rejected);
    let help = "Changed settings that wait for a restart";
    out.gauge("meta_proxy_settings_waiting", help, waiting);
    let lost = logging::lost().map_or(0, |lost| lost.lines);
    out.counter("meta_proxy_log_lines_lost", "Log lines that the proxy could not write", lost);
    let is_ready = f64::from(u8::from(inside.is_ready().is_ok()));
    out.gauge("meta_proxy_ready", "1 while /readyz answers 200", is_ready);
    let start = inside.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    out.gauge("meta_proxy_start_time_seconds", "When the proxy started", start.as_secs_f64());
    let limits = limits.into_iter().map(|(name, value)| (label("limit", name), value as f64));
    let help = "Limits in use, as far as the system has descriptors for connections";
    out.gauges("meta_proxy_limit", help, limits);
    let build = vec![
        ("version", version::VERSION.to_owned()),
        ("commit", version::COMMIT.to_owned()),
        ("build", version::BUILD.to_owned()),
    ];
    out.gauges("meta_proxy_build_info", "The running build", [(build, 1.0)]);
    process_stats::gather(out, start.as_secs_f64());
}
