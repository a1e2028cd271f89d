//! Metrics as a scraper sees them: read by the official Python client of Prometheus, which scripts/setup installs.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use harness::scratch::Scratch;
use meta_proxy::admin::exposition;
use meta_proxy::admin::family::{Families, Family, Histogram, label};

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

/// One metric of each kind.
fn families() -> Vec<Family> {
    let mut out = Families::default();
    out.go_counters("zk_request_count", "Reads of ZooKeeper.", [(label("table", "a"), 7)]);
    out.gauge("client_connection_count", "Clients.", 3.0);
    let answers = [(label("err", "ERR_OK"), 12), (label("err", "},\" \\\n"), 1)];
    out.counters("answers", "Answers to clients.", answers);
    let latency = Histogram { sum: 0.5, buckets: vec![(0.001, 1), (f64::INFINITY, 2)] };
    out.histograms("latency_seconds", "Time to an answer.", [(Vec::new(), latency)]);
    out.gauge("odd", "A small number.", 1.5e-3);
    out.0
}

#[test]
fn the_official_parsers_read_both_formats_alike() {
    let tags = [("region".to_owned(), "x".to_owned())];
    let scrape = |accept| {
        let answer = exposition::response(&families(), &tags, accept);
        series(answer.content_type, &String::from_utf8(answer.body).unwrap())
    };
    let open = scrape("application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    assert_eq!(open, scrape("text/plain"));
    assert_eq!(open.len(), 9);
    assert_eq!(open[r#"zk_request_count{region="x",table="a"}"#], 7.0);
    assert_eq!(open[r#"answers_total{err="ERR_OK",region="x"}"#], 12.0);
    assert_eq!(open["answers_total{err=\"},\" \\\n\",region=\"x\"}"], 1.0);
    assert_eq!(open[r#"latency_seconds_count{region="x"}"#], 3.0);
    assert_eq!(open[r#"odd{region="x"}"#], 0.0015);
}
