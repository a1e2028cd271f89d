//! The documents for operators, against the proxy that they are about.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use harness::http::get;
use harness::proxy::Proxy;
use harness::scratch::Scratch;
use harness::wait::eventually;
use harness::zookeeper::ZooKeeper;
use serde_json::Value;

use crate::package::read;
use crate::run::run;
use crate::support::{BINARY, SOON, meta_with, record, set_up};

const PAGES: [&str; 2] = ["docs/operations.md", "docs/operations.zh.md"];
const RULES: &str = "docs/prometheus-rules.yaml";
const RULES_TESTS: &str = "tests/prometheus-rules.yaml";
const DASHBOARD: &str = "docs/grafana.json";

/// How names of metrics begin.
const BEGINNINGS: [&str; 4] = ["meta_proxy_", "client_", "zk_", "process_"];

/// The names that rows of tables begin with, `| name |` in backticks.
fn first_cells(page: &str) -> Vec<String> {
    let text = read(page);
    let cells = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    cells.map(str::to_owned).collect()
}

fn is_metric(name: &str) -> bool {
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_name && BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// The list of metrics of a page.
fn listed(page: &str) -> BTreeSet<String> {
    first_cells(page).into_iter().filter(|name| is_metric(name)).collect()
}

/// Metrics that queries of Prometheus name; parts of a histogram count for the whole.
fn asked_for(queries: &str) -> BTreeSet<String> {
    let words = queries.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let parts = ["_bucket", "_sum", "_count"];
    let whole = |word: &str| match parts.iter().find_map(|part| word.strip_suffix(part)) {
        Some(whole) if whole.ends_with("_seconds") => whole.to_owned(),
        _ => word.to_owned(),
    };
    words.filter(|word| is_metric(word)).map(whole).collect()
}

/// Metrics of a scrape in the classic text format.
fn scraped(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    types.map(str::to_owned).collect()
}

/// All strings under the key `expr`.
fn expressions(value: &Value, found: &mut String) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        Value::Object(entries) => entries.iter().for_each(|(key, value)| match value {
            Value::String(text) if key == "expr" => *found += &format!("{text}\n"),
            other => expressions(other, found),
        }),
        _ => {}
    }
}

#[test]
fn the_metrics_of_the_documents_are_those_of_the_proxy() {
    let meta = meta_with("orders", "10.0.0.1:34801");
    let zk = ZooKeeper::start();
    zk.create("/pegasus-cluster/orders", record("a", &[meta.addr()]));
    let scratch = Scratch::new("docs");
    let state = scratch.path().join("routes");
    let proxy = Proxy::builder(BINARY)
        .zookeeper([zk.addr()], "/pegasus-cluster")
        .config_extra(&format!(
            "zookeeper: {{address: '{}', root: /pegasus-cluster, state_file: {}}}",
            zk.addr(),
            state.display()
        ))
        .start();
    eventually("orders is served", SOON, || proxy.ask("orders").is_ok());
    let metrics = || scraped(&get(proxy.admin(), "/metrics"));
    eventually("all is there", SOON, || metrics().contains("meta_proxy_state_file_age_seconds"));
    for page in PAGES {
        assert_eq!(listed(page), metrics(), "{page}, and /metrics");
    }
}

#[test]
fn rules_and_dashboard_name_only_metrics_that_there_are() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).expect("JSON");
    let mut queries = String::new();
    expressions(&dashboard, &mut queries);
    assert!(queries.lines().count() > 20, "{queries}");
    let mut listed = listed(PAGES[0]);
    // Those of `route verify --listen`, whose own test looks at them.
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let of_tool = read("docs/route.md");
    let of_tool =
        of_tool.split(|c| !is_part(c)).filter(|word| word.starts_with("meta_proxy_route_"));
    listed.extend(of_tool.map(str::to_owned));
    for (file, queries) in [(DASHBOARD, queries), (RULES, read(RULES))] {
        let unknown: Vec<_> = asked_for(&queries).difference(&listed).cloned().collect();
        assert!(unknown.is_empty(), "{file} asks for {unknown:?}");
    }
}

fn promtool(args: &[&str]) {
    let mut command = Command::new(set_up("target/promtool"));
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    run(command, SOON).expect_code(0);
}

#[test]
fn prometheus_takes_the_rules_and_each_alert_fires_when_it_should() {
    promtool(&["check", "rules", RULES]);
    promtool(&["test", "rules", RULES_TESTS]);
    let tests = read(RULES_TESTS);
    let tested: BTreeSet<&str> =
        tests.lines().filter_map(|line| line.trim().strip_prefix("- alertname: ")).collect();
    let rules = read(RULES);
    assert_eq!(tested, alerts(&rules).into_iter().collect(), "{RULES_TESTS}, and {RULES}");
    assert_eq!(tests.matches("exp_alerts:\n          - exp_labels:").count(), tested.len());
}

#[test]
fn prometheus_takes_the_queries_of_the_dashboard() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).expect("JSON");
    let mut queries = String::new();
    expressions(&dashboard, &mut queries);
    // Values that Grafana puts in the place of its variables.
    let queries = queries.replace("$__rate_interval", "5m");
    let queries = queries.replace("$instance", "a").replace("$cluster", "c");
    assert!(!queries.contains('$'), "{queries}");
    let rules = queries.lines().enumerate().map(|(n, expr)| {
        format!("      - {{record: 'q{n}', expr: {}}}\n", Value::String(expr.to_owned()))
    });
    let rules: String = rules.collect();
    let scratch = Scratch::new("docs");
    let file = scratch.write("rules.yaml", format!("groups:\n  - name: q\n    rules:\n{rules}"));
    promtool(&["check", "rules", file.to_str().expect("scratch directories have plain names")]);
}

/// Grafana's own types, generated from its schema: a key that it does not know is an error, also in the options of panels.
#[test]
fn the_dashboard_is_as_grafanas_schema_wants_it() {
    let check = |text: &str| {
        let scratch = Scratch::new("grafana");
        let mut command = Command::new(set_up("target/interop/go-grafana"));
        command.arg(scratch.write("dashboard.json", text));
        run(command, SOON)
    };
    let dashboard = read(DASHBOARD);
    check(&dashboard).expect_code(0);
    for (why, from, to) in [
        ("another type", "\"schemaVersion\": 37", "\"schemaVersion\": \"37\""),
        ("an unknown key", "\"editable\"", "\"edditable\""),
        ("an unknown option of a panel", "\"graphMode\"", "\"graffMode\""),
    ] {
        assert!(dashboard.contains(from), "{why}");
        check(&dashboard.replacen(from, to, 1)).expect_code(1);
    }
}

#[test]
fn the_dashboard_begins_with_numbers_and_no_panels_overlap() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let place = |panel: &Value| {
        ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().expect("a number"))
    };
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().expect("a number")), "{panel}");
        let [x, y, w, h] = place(panel);
        assert!(x + w <= 24, "{panel}");
        assert_eq!(panel["type"] == "stat", y == 0, "the first row has numbers: {panel}");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(cells.insert(cell), "it lies on another: {panel}");
        }
        for target in panel["targets"].as_array().expect("targets") {
            assert!(target["refId"].is_string() && target["expr"].is_string(), "{panel}");
        }
    }
    let names: Vec<&str> = dashboard["templating"]["list"]
        .as_array()
        .expect("variables")
        .iter()
        .filter_map(|variable| variable["name"].as_str())
        .collect();
    assert_eq!(names, ["datasource", "instance", "cluster"]);
}

fn alerts(rules: &str) -> Vec<&str> {
    rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect()
}

#[test]
fn both_languages_have_the_same_chapters_commands_and_rows() {
    let [english, chinese] = PAGES.map(read);
    let chapters = |page: &str| page.lines().filter(|line| line.starts_with("## ")).count();
    assert_eq!(chapters(&english), chapters(&chinese));
    // Lines between fences, without their comments.
    let code = |page: &str| -> Vec<String> {
        let blocks = page.split("```").skip(1).step_by(2);
        let lines = blocks.flat_map(str::lines).map(|line| {
            let code = line.split("  #").next().unwrap_or_default();
            code.trim_end().to_owned()
        });
        lines.collect()
    };
    assert_eq!(code(&english), code(&chinese));
    let [english, chinese] = PAGES.map(first_cells);
    assert_eq!(english, chinese);
}

#[test]
fn every_alert_is_explained() {
    let rules = read(RULES);
    let alerts = alerts(&rules);
    assert!(alerts.len() > 10, "{alerts:?}");
    for page in PAGES {
        let explained: Vec<_> =
            first_cells(page).into_iter().filter(|cell| cell.starts_with("MetaProxy")).collect();
        assert_eq!(explained, alerts, "{page}, and {RULES}");
    }
}

/// The fields of a page, and of what is in it, are those of its document.
#[test]
fn the_json_pages_have_the_fields_that_are_documented() {
    let (meta, zk) = (meta_with("orders", "10.1.1.1:34801"), ZooKeeper::start());
    zk.create("/r/orders", record("a", &[meta.addr()]));
    let proxy = Proxy::builder(BINARY).zookeeper([zk.addr()], "/r").start();
    eventually("orders is served", SOON, || proxy.ask("orders").is_ok());
    let documented: BTreeSet<String> = read("docs/pages.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" |").next())
        .flat_map(|names| names.split(", "))
        .map(|name| name.trim_matches('`').to_owned())
        .collect();
    let page = |path| -> Value { serde_json::from_str(&get(proxy.admin(), path)).unwrap() };
    let (routes, clusters, clients) = (page("/routes"), page("/clusters"), page("/clients"));
    let (threads, settings) = (page("/threads"), page("/settings"));
    zk.delete_all("/r");
    eventually("the route is held", SOON, || !page("/routes")["hold"].is_null());
    let hold = &page("/routes")["hold"];
    let found: BTreeSet<String> = [
        hold,
        &routes["routes"][0],
        &clusters["zookeeper"],
        &clusters["clusters"][0],
        &clients,
        &threads["threads"][0],
        &settings,
        &settings["settings"][0],
    ]
    .into_iter()
    .flat_map(|object| object.as_object().expect("an object").keys().cloned())
    .collect();
    assert_eq!(found, documented);
}

#[test]
fn links_between_documents_lead_somewhere() {
    for page in [
        "README.md",
        "docs/operations.md",
        "docs/operations.zh.md",
        "docs/runbooks.md",
        "docs/runbooks.zh.md",
        "docs/route.md",
        "docs/pages.md",
        "docs/performance.md",
        "docs/routes.md",
        "docs/changelog.md",
        "docs/versions.md",
        "docs/security.md",
        "docs/contributing.md",
    ] {
        let folder = page.rsplit_once('/').map_or("", |(folder, _)| folder);
        let text = read(page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("https://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file.strip_prefix("../") {
                Some(file) => file.to_owned(),
                None if folder.is_empty() => file.to_owned(),
                None => format!("{folder}/{file}"),
            };
            let slug =
                |line: &str| line.trim_start_matches(['#', ' ']).to_lowercase().replace(' ', "-");
            let found = match heading {
                "" => Path::new(env!("CARGO_MANIFEST_DIR")).join(&target).exists(),
                heading => read(&target).lines().any(|line| slug(line) == heading),
            };
            assert!(found, "{page}: {link}");
        }
    }
}
