//! Metrics as a scraper sees them: read by the official Python client of Prometheus, which scripts/setup installs.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use harness::scratch::Scratch;
use meta_proxy::admin::exposition;

use crate::run::run;
use crate::support::set_up;

/// The series of a scrape, `name{label="value"}` with sorted labels, and their numbers. Panics unless the text is what its
/// content type says.
#[track_caller]
pub fn series(content_type: &str, text: &str) -> BTreeMap<String, f64> {
    let kind = match content_type {
        "application/openmetrics-text; version=1.0.0; charset=utf-8" => "openmetrics",
        "text/plain; version=0.0.4; charset=utf-8" => "classic",
        other => panic!("no content type of metrics: {other}"),
    };
    let scratch = Scratch::new("scrape");
    let file = scratch.path().join("metrics");
    fs::write(&file, text).expect("a file in a new directory");
    let mut command = Command::new(set_up("target/interop-venv/bin/python"));
    command.arg(set_up("tests/interop/python/metrics.py")).arg(kind).arg(file);
    let done = run(command, Duration::from_secs(30)).expect_code(0);
    serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}\n{done}"))
}

/// As the registry writes it, one metric of each kind.
const REGISTRY: &str = r#"# HELP zk_request_count Reads of ZooKeeper.
# TYPE zk_request_count counter
zk_request_count_total{region="x",table="a"} 7
# HELP client_connection_count Clients.
# TYPE client_connection_count gauge
client_connection_count{region="x"} 3
# HELP answers Answers to clients.
# TYPE answers counter
answers_total{err="ERR_OK"} 12
answers_total{err="},\" \\\n"} 1
# HELP latency_seconds Time to an answer.
# TYPE latency_seconds histogram
# UNIT latency_seconds seconds
latency_seconds_sum 0.5
latency_seconds_count 3
latency_seconds_bucket{le="0.001"} 1
latency_seconds_bucket{le="+Inf"} 3
# HELP build What runs.
# TYPE build info
build_info{version="1"} 1
# HELP odd Nobody knows.
# TYPE odd unknown
odd 1.5e-3
# EOF
"#;

#[test]
fn the_official_parsers_read_both_formats_alike() {
    let scrape = |accept| {
        let answer = exposition::response(REGISTRY, accept);
        series(answer.content_type, &String::from_utf8(answer.body).unwrap())
    };
    let open = scrape("application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    assert_eq!(open, scrape("text/plain"));
    assert_eq!(open.len(), 10);
    assert_eq!(open[r#"zk_request_count{region="x",table="a"}"#], 7.0);
    assert_eq!(open[r#"answers_total{err="ERR_OK"}"#], 12.0);
    assert_eq!(open["answers_total{err=\"},\" \\\n\"}"], 1.0);
}
