//! The status page: an [`Overview`] as HTML that an operator reads in five seconds. Pure.
//!
//! One document without other files or hosts. The page is complete without its script, which only fetches it again and
//! again. All text from outside goes through [`Text`].

use std::cmp::Reverse;
use std::collections::HashSet;
use std::fmt;

use super::http_message::Response;
use super::verdict::{
    Cluster, Level, Life, MetaFailure, Overview, Route, Trust, ZooKeeper, counted, span, thousands,
};
use crate::wire::error_code::ERR_OBJECT_NOT_FOUND;

const HTML: &str = include_str!("page.html");
const CSS: &str = include_str!("page.css");
const JS: &str = include_str!("page.js");

/// Most rows of the table of routes: a browser shows them at once, and people can look through them.
const MAX_ROUTES: usize = 200;
/// Most rows of each of the two tables of clusters.
const MAX_CLUSTERS: usize = 100;
/// Most rows of routes that need attention, right under the headline.
const MAX_BROKEN: usize = 20;
/// If there are more healthy clusters, the page folds them until a reader opens or searches them.
const MAX_OPEN: usize = 8;
/// Most MetaServers of a cluster whose failures the page shows.
const MAX_REASONS: usize = 3;

/// Name and MetaServers of each cluster that does not answer.
type Dead<'a> = HashSet<(&'a str, &'a [String])>;

/// The page, with the routes that have `q` in their table, cluster or addresses. `nonce` marks its own script and
/// style, so that injected ones do not run; it must be unguessable.
pub fn response(overview: &Overview, q: &str, nonce: &str) -> Response {
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; \
         connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    );
    Response::html(render(overview, q, nonce), policy)
}

fn render(overview: &Overview, q: &str, nonce: &str) -> String {
    let verdict = overview.verdict();
    let level = match verdict.level {
        Level::Well => "well",
        Level::Warning => "warning",
        Level::Bad => "bad",
    };
    let dead: Dead = overview
        .clusters
        .iter()
        .filter(|cluster| cluster.is_down())
        .map(|cluster| (cluster.name.as_str(), &cluster.metas[..]))
        .collect();
    fill(HTML, |name| match name {
        "title" => {
            let mark = if verdict.level == Level::Well { "" } else { "! " };
            format!("{mark}{} - meta-proxy", Text(&overview.host))
        }
        "icon" => icon(verdict.level),
        "nonce" => nonce.to_owned(),
        "css" => CSS.to_owned(),
        "js" => JS.to_owned(),
        "host" => Text(&overview.host).to_string(),
        "age" => age(overview),
        "level" => level.to_owned(),
        "verdict" => {
            let details: String =
                verdict.details.iter().map(|detail| format!("<li>{}</li>", Text(detail))).collect();
            let list = if details.is_empty() { details } else { format!("<ul>{details}</ul>") };
            format!("{}{list}", Text(&verdict.headline))
        }
        "broken" => broken(&overview.routes, &dead),
        "numbers" => numbers(overview),
        "zookeeper" => overview.zookeeper.as_ref().map_or_else(
            || "<p>Routes come from a file, without ZooKeeper.</p>".to_owned(),
            zookeeper,
        ),
        "clusters" => clusters(&overview.clusters, q),
        "q" => Text(q).to_string(),
        "routes" => routes(&overview.routes, &dead, q),
        other => unreachable!("page.html has {other}"),
    })
}

/// Replaces each `{{name}}` by its value; does not look into the values.
fn fill(template: &str, value: impl Fn(&str) -> String) -> String {
    let mut parts = template.split("{{");
    let mut page = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("}}").expect("page.html closes what it opens");
        page += &value(name);
        page += rest;
    }
    page
}

/// Escapes any text, for HTML text and for attributes in double quotes.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                char => write!(f, "{char}")?,
            }
        }
        Ok(())
    }
}

/// A dot in the colour of the verdict, so that a row of tabs shows which proxy needs attention.
fn icon(level: Level) -> String {
    let colour = match level {
        Level::Well => "2a9d5c",
        Level::Warning => "e0a100",
        Level::Bad => "d3322a",
    };
    format!(
        "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E\
         %3Ccircle cx='8' cy='8' r='7' fill='%23{colour}'/%3E%3C/svg%3E"
    )
}

fn age(overview: &Overview) -> String {
    let life = match overview.life {
        Life::Starting => "starting",
        Life::Serving => "serving",
        Life::Draining => "draining",
        Life::Stopping => "stopping",
    };
    let up = span(overview.up_s);
    format!("version {}, {life}, up {up}", Text(overview.version))
}

fn numbers(overview: &Overview) -> String {
    let clients = &overview.clients;
    let per_s = match clients.queries_per_s {
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => thousands(rate as u64),
    };
    let stale = overview.routes.iter().filter(|route| route.stale).count();
    let stale =
        if stale > 0 { format!(", {} stale", thousands(stale as u64)) } else { String::new() };
    let errors = match clients.errors_per_s {
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => thousands(rate as u64),
    };
    let latency = clients.latency_us.map_or_else(
        || "-".to_owned(),
        |(half, most)| format!("{} / {}", micros(half), micros(most)),
    );
    [
        (per_s, "queries/s".to_owned()),
        (errors, "errors/s".to_owned()),
        (latency, "answer, p50 / p99".to_owned()),
        (thousands(clients.connections), "connections".to_owned()),
        (thousands(clients.pending as u64), "queries under way".to_owned()),
        (bytes(clients.unread_bytes), "unsent".to_owned()),
        (thousands(overview.routes.len() as u64), format!("tables{stale}")),
        (thousands(overview.clusters.len() as u64), "clusters".to_owned()),
    ]
    .into_iter()
    .map(|(number, what)| format!("<div><b>{number}</b><span>{what}</span></div>"))
    .collect()
}

fn bytes(bytes: usize) -> String {
    match bytes {
        0..10_000 => format!("{} B", thousands(bytes as u64)),
        10_000..10_000_000 => format!("{} KB", thousands(bytes as u64 / 1_000)),
        _ => format!("{} MB", thousands(bytes as u64 / 1_000_000)),
    }
}

fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

fn zookeeper(zookeeper: &ZooKeeper) -> String {
    let since = span(zookeeper.since_s);
    let server = zookeeper.server.as_deref().unwrap_or("no server");
    let (class, state) = match zookeeper.state {
        Trust::Confirmed => ("well", format!("connected to {server} for {since}")),
        Trust::Confirming => {
            ("warning", format!("connected to {server}, reading changes, for {since}"))
        }
        Trust::Down => ("bad", format!("unreachable for {since}")),
    };
    let granted = match zookeeper.granted_timeout_ms {
        Some(granted) if granted == zookeeper.asked_timeout_ms => String::new(),
        Some(granted) => format!(", granted {} ms", thousands(granted)),
        None => ", none granted".to_owned(),
    };
    let asked = thousands(zookeeper.asked_timeout_ms);
    let unconfirmed = match zookeeper.unconfirmed {
        0 => "all confirmed".to_owned(),
        n => format!("{} not confirmed", thousands(n as u64)),
    };
    let fault = zookeeper.last_fault.as_ref().map(|fault| format!("; last fault: {}", Text(fault)));
    format!(
        "<p>ZooKeeper <b class=\"{class}\">{}</b>, root {}</p><p>session time-out {asked} ms{granted}; \
         {} tables cached, {unconfirmed}; connection rebuilt {} times{}</p>",
        Text(&state),
        Text(&zookeeper.root),
        thousands(zookeeper.cached as u64),
        thousands(zookeeper.rebuilds),
        fault.unwrap_or_default()
    )
}

/// Clusters that need attention come first, failing ones before those with a warning. Then come the healthy ones,
/// folded if they are many. Each kind is sorted by name. A search unfolds the healthy ones.
fn clusters(clusters: &[Cluster], q: &str) -> String {
    let mut found: Vec<&Cluster> = clusters.iter().filter(|cluster| is_found(cluster, q)).collect();
    found.sort_by_key(|cluster| (!cluster.is_down(), &cluster.name));
    let (ill, healthy): (Vec<&Cluster>, Vec<&Cluster>) =
        found.into_iter().partition(|cluster| !state(cluster).0.is_empty());
    let count = thousands(healthy.len() as u64);
    let folded = match (clusters.is_empty(), healthy.is_empty(), ill.is_empty()) {
        (true, ..) => "<p class=\"more\">None: no route is cached yet.</p>".to_owned(),
        (_, true, true) => "<p class=\"more\">No cluster matches.</p>".to_owned(),
        (_, true, false) => String::new(),
        _ => {
            let open = healthy.len() <= MAX_OPEN || !q.trim().is_empty();
            let open = if open { " open" } else { "" };
            let are = if healthy.len() == 1 { "cluster is" } else { "clusters are" };
            format!(
                "<details id=\"healthy\"{open}><summary>{count} {are} well</summary>{}</details>",
                cluster_table(&healthy)
            )
        }
    };
    let ill = if ill.is_empty() { String::new() } else { cluster_table(&ill) };
    format!("{ill}{folded}")
}

fn is_found(cluster: &Cluster, q: &str) -> bool {
    let wanted = q.trim().to_lowercase();
    let has = |text: &String| text.to_lowercase().contains(&wanted);
    has(&cluster.name) || cluster.metas.iter().any(has)
}

fn cluster_table(clusters: &[&Cluster]) -> String {
    let rows: String =
        clusters.iter().take(MAX_CLUSTERS).map(|cluster| cluster_row(cluster)).collect();
    let more = match clusters.len().saturating_sub(MAX_CLUSTERS) {
        0 => String::new(),
        n => format!("<p class=\"more\">and {} more, see /clusters</p>", thousands(n as u64)),
    };
    format!(
        "<table class=\"clusters\"><thead><tr><th>cluster</th><th>state</th><th class=\"leader\">leader</th>\
         <th class=\"n\">usual answer</th><th class=\"n wide\">tables</th>\
         <th class=\"n wide\">calls</th><th class=\"n wide\">waiting</th>\
         <th class=\"n wide\">answers</th><th class=\"n wide\">errors</th></tr></thead>\
         <tbody>{rows}</tbody></table>{more}"
    )
}

/// The class of a cluster's row, and its state as text; no class: the cluster is healthy.
fn state(cluster: &Cluster) -> (&'static str, String) {
    let failures = counted(cluster.failures.into(), "call");
    match (cluster.failing_s, cluster.mute_s(), cluster.failures) {
        (Some(failing_s), ..) => {
            let state = format!("failing for {}", span(failing_s));
            ("bad", format!("{state}<small>{failures} in a row</small>"))
        }
        (None, Some(mute_s), _) => ("bad", format!("no answer to probes for {}", span(mute_s))),
        (None, None, 1..) => ("warning", format!("{failures} failed")),
        (None, None, 0) if !cluster.fresh_failures().is_empty() => {
            ("warning", "answers, but for:".to_owned())
        }
        (None, None, 0) if cluster.usual_us.is_none() => ("", "no query yet".to_owned()),
        (None, None, 0) => ("", "answers".to_owned()),
    }
}

fn cluster_row(cluster: &Cluster) -> String {
    let (class, state) = state(cluster);
    let reasons: String = cluster
        .fresh_failures()
        .iter()
        .take(MAX_REASONS)
        .map(|MetaFailure { meta, kind, last_s, .. }| {
            format!("<small>{}: {kind}, {} ago</small>", Text(meta), span(*last_s))
        })
        .collect();
    format!(
        "<tr class=\"{class}\"><th scope=\"row\"><a href=\"/?q={}\">{}</a></th>\
         <td class=\"state\">{state}{reasons}</td>\
         <td class=\"leader\">{}<small class=\"wide\">{}</small></td><td class=\"n\">{}</td>\
         <td class=\"n wide\">{}</td><td class=\"n wide\">{}</td><td class=\"n wide\">{}</td>\
         <td class=\"n wide\">{}</td><td class=\"n wide\">{}</td></tr>",
        encoded(&cluster.name),
        Text(&cluster.name),
        Text(cluster.leader.as_deref().unwrap_or("unknown")),
        Text(&others(cluster)),
        cluster.usual_us.map_or_else(|| "-".to_owned(), micros),
        thousands(cluster.tables as u64),
        thousands(cluster.calls as u64),
        thousands(cluster.waiting as u64),
        thousands(cluster.answers_ok + cluster.answers_other),
        thousands(cluster.answers_other + cluster.unanswered),
    )
}

/// A text as a value in a URL.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let encode = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// The MetaServers that do not lead.
fn others(cluster: &Cluster) -> String {
    let is_other = |meta: &&String| cluster.leader.as_ref() != Some(meta);
    let others: Vec<&str> = cluster.metas.iter().filter(is_other).map(String::as_str).collect();
    others.join(", ")
}

/// The rank of a route that needs attention, the worst first.
fn trouble(route: &Route) -> Option<u8> {
    match route {
        Route { cluster: None, .. } => Some(0),
        Route { error: Some(ERR_OBJECT_NOT_FOUND), .. } => Some(1),
        Route { fault: Some(_), .. } => Some(2),
        Route { error: Some(_), .. } => Some(3),
        _ => None,
    }
}

/// The routes with an unusable record, or whose cluster answers with an error.
fn broken(routes: &[Route], dead: &Dead) -> String {
    let mut found: Vec<&Route> = routes.iter().filter(|route| trouble(route).is_some()).collect();
    if found.is_empty() {
        return String::new();
    }
    found.sort_by_key(|route| (trouble(route), Reverse(route.queries)));
    let more = match found.len().saturating_sub(MAX_BROKEN) {
        0 => String::new(),
        n => format!("<p class=\"more\">and {} more, see Routes below</p>", thousands(n as u64)),
    };
    found.truncate(MAX_BROKEN);
    format!("<h2>Routes that need attention</h2>{}{more}", route_table(&found, dead))
}

/// Routes that need attention come first, then the busiest.
fn routes(routes: &[Route], dead: &Dead, q: &str) -> String {
    let wanted = q.trim().to_lowercase();
    let has = |text: &str| text.to_lowercase().contains(&wanted);
    let mut found: Vec<&Route> = routes
        .iter()
        .filter(|route| {
            has(&route.table)
                || route.cluster.as_deref().is_some_and(has)
                || route.metas.iter().any(|meta| has(meta))
        })
        .collect();
    found.sort_by_key(|route| {
        let calm = (!is_dead(route, dead), !route.stale);
        (trouble(route).unwrap_or(u8::MAX), calm, Reverse(route.queries))
    });
    let all = thousands(routes.len() as u64);
    let count = thousands(found.len() as u64);
    let told = match (found.len(), wanted.is_empty()) {
        (0, true) => "No table has been queried yet.".to_owned(),
        (0, false) => format!("None of {all} tables matches."),
        (n, _) if n > MAX_ROUTES => format!(
            "{MAX_ROUTES} of {count} are shown, those that need a look and the busiest first; search for the \
             others, or see /routes"
        ),
        (_, true) => String::new(),
        (_, false) => format!("{count} of {all} tables"),
    };
    let told = if told.is_empty() { told } else { format!("<p class=\"more\">{told}</p>") };
    found.truncate(MAX_ROUTES);
    if found.is_empty() { told } else { format!("{}{told}", route_table(&found, dead)) }
}

fn route_table(routes: &[&Route], dead: &Dead) -> String {
    let rows: String = routes.iter().map(|route| route_row(route, dead)).collect();
    format!(
        "<table><thead><tr><th>table</th><th>cluster</th><th>state</th>\
         <th class=\"n wide\">confirmed</th><th class=\"n wide\">changed</th>\
         <th class=\"n wide\">zxid</th><th class=\"n\">queries</th></tr></thead>\
         <tbody>{rows}</tbody></table>"
    )
}

fn is_dead(route: &Route, dead: &Dead) -> bool {
    route.cluster.as_deref().is_some_and(|cluster| dead.contains(&(cluster, &route.metas[..])))
}

fn route_row(route: &Route, dead: &Dead) -> String {
    let (class, state) = match route {
        Route { cluster: None, .. } => ("bad", "unusable"),
        _ if is_dead(route, dead) => ("bad", "cluster does not answer"),
        Route { error: Some(ERR_OBJECT_NOT_FOUND), .. } => ("bad", "not in its cluster"),
        Route { held: true, .. } => ("warning", "held"),
        Route { fault: Some(_), .. } => ("warning", "last good record"),
        Route { error: Some(error), .. } => ("warning", *error),
        Route { stale: true, .. } => ("warning", "stale"),
        _ => ("", "current"),
    };
    // Most routes come from ZooKeeper, so only other sources have a word.
    let source = if route.source == "zookeeper" { "" } else { route.source };
    let refused = route.error_s.map(|last_s| {
        let queries = counted(route.error_queries, "query");
        format!("{queries} refused, the last {} ago", span(last_s))
    });
    let beside = route.fault.as_deref().or(refused.as_deref()).unwrap_or(source);
    // An unusable record, or a route from a file, has no zxid.
    let zxid = if route.zxid == 0 { "-".to_owned() } else { format!("{:#x}", route.zxid) };
    let ago = |seconds| format!("{} ago", span(seconds));
    format!(
        "<tr class=\"{class}\"><th scope=\"row\">{}</th>\
         <td>{}<small class=\"wide\">{}</small></td>\
         <td><span class=\"state\">{state}</span><small>{}</small></td>\
         <td class=\"n wide\">{}</td><td class=\"n wide\">{}</td><td class=\"n wide\">{zxid}</td>\
         <td class=\"n\">{}</td></tr>",
        Text(&route.table),
        Text(route.cluster.as_deref().unwrap_or("-")),
        Text(&route.metas.join(", ")),
        Text(beside),
        route.confirmed_age_s.map_or_else(|| "never".to_owned(), ago),
        // The time of the write is unknown: show how long this proxy has had the route.
        route.written_s.map_or_else(|| format!("{}, here", ago(route.age_s)), ago),
        thousands(route.queries),
    )
}

#[cfg(test)]
mod tests {
    use super::super::verdict::MetaProbe;
    use super::super::verdict::tests::sample;
    use super::*;

    fn page(overview: &Overview, q: &str) -> String {
        render(overview, q, "abc")
    }

    /// First cells of the rows of a table, in their order.
    fn rows<'a>(page: &'a str, table: &str) -> Vec<&'a str> {
        let from = page.split(&format!("id=\"{table}\"")).nth(1).unwrap();
        let table = from.split("</table>").next().unwrap();
        let cells = table.split("<th scope=\"row\">").skip(1);
        let text = |cell: &'a str| {
            let cell = cell.split("</th>").next().unwrap();
            cell.split_once("\">").map_or(cell, |(_, link)| link.strip_suffix("</a>").unwrap())
        };
        cells.map(text).collect()
    }

    #[test]
    fn a_proxy_in_good_order_says_so() {
        let page = page(&sample(), "");
        for want in [
            "class=\"live well\" role=\"status\">All is well</section>",
            "<title>proxy-07 - meta-proxy</title>",
            "version 0.1.0, serving, up 3 days",
            "<b>412</b><span>queries/s</span>",
            "<b>9,871</b><span>connections</span>",
            "connected to 10.0.0.21:2181 for 3 days",
            "session time-out 6,000 ms;",
            "410 µs",
            "2.3 ms",
            "<script nonce=\"abc\">",
            "<noscript><meta http-equiv=\"refresh\"",
        ] {
            assert!(page.contains(want), "{want} in {page}");
        }
        assert!(!page.contains("{{"), "{page}");
        assert_eq!(rows(&page, "clusters"), ["c3srv-ad", "c4srv-ml"], "by name");
        assert!(
            page.contains("<details id=\"healthy\" open><summary>2 clusters are well"),
            "{page}"
        );
        assert_eq!(rows(&page, "routes"), ["orders", "users", "items"], "the busiest first");
    }

    #[test]
    fn clusters_and_routes_that_need_attention_come_first() {
        let mut overview = sample();
        overview.routes[1].stale = true;
        overview.routes[0].fault = Some("want a JSON object".to_owned());
        overview.routes[2].cluster = None;
        overview.clusters[0].failing_s = Some(40);
        overview.clusters[0].failures = 17;
        overview.clusters[0].leader = None;
        let meta = "10.1.0.2:34601".to_owned();
        overview.clusters[0].meta_failures =
            vec![MetaFailure { meta, kind: "timeout", count: 9, last_s: 3 }];
        overview.zookeeper.as_mut().unwrap().granted_timeout_ms = Some(4_000);
        let page = page(&overview, "");
        assert!(page.contains("<title>! proxy-07"), "{page}");
        assert!(page.contains(
            "class=\"live bad\" role=\"status\">Cluster c3srv-ad does not answer: \
             17 failures in 40 s, 2 tables affected; 10.1.0.2:34601 timeout<ul><li>The record of table items cannot be used; clients get ERR_INVALID_DATA</li>\
             <li>The record of table orders cannot be used: want a JSON object; the last good record \
             serves</li></ul>"
        ));
        assert!(page.contains("6,000 ms, granted 4,000 ms"), "{page}");
        let reason = "failing for 40 s<small>17 calls in a row</small>\
            <small>10.1.0.2:34601: timeout, 3 s ago</small>";
        assert!(page.contains(reason), "{page}");
        let dead = "cluster does not answer</span><small>";
        assert!(page.contains(&format!("{dead}want a JSON object</small>")), "{page}");
        assert_eq!(page.matches(dead).count(), 3, "{page}");
        assert_eq!(rows(&page, "routes"), ["items", "orders", "users"]);
    }

    #[test]
    fn a_dead_cluster_without_queries_is_not_well() {
        let mut overview = sample();
        let probe = |host: usize, said| MetaProbe {
            meta: format!("10.1.0.{host}:34601"),
            said: Some(said),
            since_s: 10 * host as u64,
        };
        let cluster = &mut overview.clusters[0];
        (cluster.usual_us, cluster.leader) = (None, None);
        cluster.probes = vec![probe(1, "refused"), probe(2, "timeout")];
        let text = page(&overview, "");
        let headline = "Cluster c3srv-ad does not answer: no MetaServer has answered a probe for 10 s, 2 tables affected";
        assert!(text.contains(headline), "{text}");
        assert!(text.contains("no answer to probes for 10 s"), "{text}");
        assert_eq!(text.matches("cluster does not answer</span>").count(), 2, "its tables: {text}");
        assert!(text.contains("1 cluster is well"), "{text}");

        // One server that answers is enough: the other is a warning, also before the first query.
        let cluster = &mut overview.clusters[0];
        cluster.probes[1] = probe(2, "follower");
        let meta = "10.1.0.1:34601".to_owned();
        cluster.meta_failures = vec![MetaFailure { meta, kind: "refused", count: 1, last_s: 3 }];
        let text = page(&overview, "");
        assert!(text.contains("class=\"live warning\""), "{text}");
        assert!(text.contains("answers, but for:"), "{text}");

        // Before the first probe the state is not known.
        let cluster = &mut overview.clusters[0];
        cluster.meta_failures.clear();
        cluster.probes.iter_mut().for_each(|probe| probe.said = None);
        let text = page(&overview, "");
        assert!(text.contains("All is well") && text.contains("no query yet"), "{text}");
    }

    #[test]
    fn a_search_looks_at_tables_clusters_and_addresses() {
        let overview = sample();
        for (q, want) in [
            (" ORDERS ", vec!["orders"]),
            ("c3srv", vec!["orders", "users"]),
            ("10.2.0.3", vec!["items"]),
            ("nosuch", vec![]),
        ] {
            let page = page(&overview, q);
            assert_eq!(rows(&page, "routes"), want, "{q}");
            assert!(page.contains(&format!("value=\"{q}\"")), "{q}");
        }
    }

    #[test]
    fn broken_routes_come_right_under_the_headline_and_healthy_clusters_fold() {
        let mut overview = sample();
        let cluster = overview.clusters[0].clone();
        overview.clusters = (0..60)
            .map(|n| Cluster { name: format!("c{:02}", 59 - n), ..cluster.clone() })
            .collect();
        (overview.clusters[7].failing_s, overview.clusters[57].failing_s) = (Some(40), Some(5));
        (overview.clusters[1].failures, overview.clusters[49].failures) = (1, 7);
        overview.routes[1].cluster = None;
        overview.routes[1].fault = Some("want a JSON object".to_owned());
        overview.routes[1].zxid = 0;
        overview.routes[2].error = Some(ERR_OBJECT_NOT_FOUND);
        (overview.routes[2].error_s, overview.routes[2].error_queries) = (Some(3), 5);
        let text = page(&overview, "");
        assert_eq!(rows(&text, "broken"), ["users", "items"]);
        assert!(
            text.contains("not in its cluster</span><small>5 queries refused, the last 3 s ago")
        );
        assert!(!text.contains("0x0<"), "a zxid that is none");
        let at = |id: &str| text.find(&format!("id=\"{id}\"")).unwrap();
        assert!(at("verdict") < at("broken") && at("broken") < at("numbers"));
        assert_eq!(rows(&text, "clusters"), ["c02", "c52", "c10", "c58"], "failing ones, warnings");
        assert!(text.contains("<details id=\"healthy\"><summary>56 clusters are well"), "{text}");
        assert!(text.contains("<a href=\"/?q=c58\">c58</a>"), "{text}");
        let text = page(&overview, "c31");
        assert!(text.contains("<details id=\"healthy\" open><summary>1 cluster is well"), "{text}");
        assert_eq!(rows(&text, "clusters"), ["c31"]);
        assert!(page(&sample(), "").contains("<section id=\"broken\" class=\"live\"></section>"));
    }

    #[test]
    fn very_many_tables_are_few_rows() {
        let mut overview = sample();
        let route = overview.routes[0].clone();
        overview.routes = (0..5_000)
            .map(|n| Route { table: format!("t{n}"), queries: n, stale: n == 7, ..route.clone() })
            .collect();
        overview.clusters = vec![overview.clusters[0].clone(); 300];
        let page = page(&overview, "");
        assert_eq!(rows(&page, "routes").len(), MAX_ROUTES);
        assert_eq!(rows(&page, "routes")[..2], ["t7", "t4999"]);
        assert_eq!(rows(&page, "clusters").len(), MAX_CLUSTERS);
        assert!(page.contains("200 of 5,000 are shown"), "{page}");
        assert!(page.contains("and 200 more, see /clusters"), "{page}");
        assert!(page.len() < 200_000, "{}", page.len());
    }

    #[test]
    fn no_text_becomes_markup() {
        let evil = "</script><script>\"'&{{nonce}}";
        let mut overview = sample();
        overview.host = evil.to_owned();
        overview.upkeep.state_file_fault = Some(evil.to_owned());
        overview.zookeeper.as_mut().unwrap().last_fault = Some(evil.to_owned());
        overview.zookeeper.as_mut().unwrap().server = Some(evil.to_owned());
        overview.zookeeper.as_mut().unwrap().root = evil.to_owned();
        for cluster in &mut overview.clusters {
            cluster.name = evil.to_owned();
            cluster.metas = vec![evil.to_owned()];
            cluster.leader = Some(evil.to_owned());
        }
        for route in &mut overview.routes {
            route.table = evil.to_owned();
            route.cluster = Some(evil.to_owned());
            route.fault = Some(evil.to_owned());
            route.metas = vec![evil.to_owned()];
        }
        let page = page(&overview, evil);
        assert_eq!(page.matches("<script").count(), 1, "{page}");
        assert_eq!(page.matches("</script").count(), 1, "{page}");
        assert!(page.contains("&lt;/script&gt;&lt;script&gt;&quot;&#39;&amp;{{nonce}}"));
    }

    #[test]
    fn clusters_that_fail_come_before_those_with_a_warning() {
        let mut warned = sample().clusters[0].clone();
        (warned.name, warned.failing_s, warned.failures) = ("a".to_owned(), None, 1);
        let failing = |name: &str| {
            let mut cluster = warned.clone();
            (cluster.name, cluster.failing_s) = (name.to_owned(), Some(3));
            cluster
        };
        let html = clusters(&[warned.clone(), failing("c"), failing("b")], "");
        let at = |name: &str| html.find(&format!("q={name}\"")).unwrap();
        assert!(at("b") < at("c") && at("c") < at("a"), "{html}");
    }

    #[test]
    fn only_its_own_script_and_style_may_run() {
        let nonce = "0123456789abcdef";
        let text = String::from_utf8(response(&sample(), "", nonce).to_bytes(false)).unwrap();
        for own in ["script", "style"] {
            assert!(text.contains(&format!("<{own} nonce=\"{nonce}\">")), "{own} in {text}");
        }
        let policy = format!(
            "\r\nContent-Security-Policy: default-src 'none'; script-src 'nonce-{nonce}'; \
             style-src 'nonce-{nonce}';"
        );
        assert!(text.contains(&policy), "{policy} in {text}");
    }
}
