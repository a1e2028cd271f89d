//! Metrics as text, in the two formats that Prometheus reads. Pure.
//!
//! ```text
//!                        OpenMetrics 1.0.0                    classic text 0.0.4
//! counter                TYPE a counter, a_total 1            TYPE a_total counter, a_total 1
//! counter of the Go proxy TYPE a unknown, a 1                 TYPE a counter, a 1
//! gauge, histogram       the same in both
//! ```
//! OpenMetrics requires `_total` at the end of every counter's name. But dashboards and alerts of the Go meta-proxy use
//! its names without it, so these counters have type unknown there.

use std::fmt::Write;

use super::family::{Family, Kind, Value};
use super::http_message::Response;

/// How to write metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The format that Prometheus asks for first.
    OpenMetrics,
    /// The format that every scraper reads.
    Classic,
}

impl Format {
    /// The format that a scraper with this Accept header prefers; the classic text if it prefers none.
    pub fn of_accept(accept: &str) -> Self {
        let open = quality(accept, "application/openmetrics-text");
        let classic = quality(accept, "text/plain");
        if open > 0.0 && open >= classic { Format::OpenMetrics } else { Format::Classic }
    }

    /// The value of the Content-Type header.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The answer to a scraper with this Accept header. Each sample gets the tags as labels.
pub fn response(families: &[Family], tags: &[(String, String)], accept: &str) -> Response {
    let format = Format::of_accept(accept);
    Response::new(200, format.content_type(), write(families, tags, format))
}

/// The weight of a media type in an Accept header; 0 if the header does not name it.
fn quality(accept: &str, media_type: &str) -> f32 {
    let of_part = |part: &str| {
        let mut fields = part.split(';').map(str::trim);
        fields.next().filter(|name| name.eq_ignore_ascii_case(media_type))?;
        let q = fields.find_map(|field| field.strip_prefix("q="));
        q.map_or(Some(1.0), |q| q.parse().ok())
    };
    accept.split(',').filter_map(of_part).fold(0.0, f32::max)
}

/// The families as text.
pub fn write(families: &[Family], tags: &[(String, String)], format: Format) -> String {
    let mut page = Page { text: String::new(), tags: labels_text(tags) };
    for family in families {
        let Family { name, help, kind, samples } = family;
        let total = match kind {
            Kind::Counter => "_total",
            Kind::GoCounter | Kind::Gauge | Kind::Histogram => "",
        };
        let (head, kind) = match (kind, format) {
            (Kind::Counter, Format::OpenMetrics) => ("", "counter"),
            (Kind::Counter, Format::Classic) => (total, "counter"),
            (Kind::GoCounter, Format::OpenMetrics) => ("", "unknown"),
            (Kind::GoCounter, Format::Classic) => ("", "counter"),
            (Kind::Gauge, _) => ("", "gauge"),
            (Kind::Histogram, _) => ("", "histogram"),
        };
        page.line(format_args!("# HELP {name}{head} {help}"));
        page.line(format_args!("# TYPE {name}{head} {kind}"));
        for sample in samples {
            let labels = labels_text(&sample.labels);
            match &sample.value {
                Value::Number(number) => page.sample(name, total, &labels, "", *number),
                Value::Histogram(histogram) => {
                    let mut count = 0;
                    for &(bound, n) in &histogram.buckets {
                        count += n;
                        let le = match bound.is_finite() {
                            true => format!("le=\"{bound}\""),
                            false => "le=\"+Inf\"".to_owned(),
                        };
                        page.sample(name, "_bucket", &labels, &le, count as f64);
                    }
                    page.sample(name, "_sum", &labels, "", histogram.sum);
                    page.sample(name, "_count", &labels, "", count as f64);
                }
            }
        }
    }
    if format == Format::OpenMetrics {
        page.line(format_args!("# EOF"));
    }
    page.text
}

struct Page {
    text: String,
    tags: String,
}

impl Page {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        self.text.write_fmt(line).expect("a String takes all that is written");
        self.text.push('\n');
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: &str, le: &str, number: f64) {
        let tags = std::mem::take(&mut self.tags);
        self.text += name;
        self.text += suffix;
        let parts = [&tags, labels, le].into_iter().filter(|part| !part.is_empty());
        for (n, part) in parts.clone().enumerate() {
            self.text.push(if n == 0 { '{' } else { ',' });
            self.text += part;
        }
        let end = if parts.count() > 0 { "}" } else { "" };
        self.line(format_args!("{end} {number}"));
        self.tags = tags;
    }
}

/// `a="b",c="d"`.
fn labels_text(labels: &[(impl AsRef<str>, String)]) -> String {
    let mut text = String::new();
    for (name, value) in labels {
        if !text.is_empty() {
            text.push(',');
        }
        text += name.as_ref();
        text += "=\"";
        for char in value.chars() {
            match char {
                '"' => text += "\\\"",
                '\\' => text += "\\\\",
                '\n' => text += "\\n",
                char => text.push(char),
            }
        }
        text.push('"');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::family::{Families, Histogram, label};
    use super::*;

    const OPEN: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

    /// One metric of each kind.
    fn families() -> Vec<Family> {
        let mut out = Families::default();
        out.go_counters("zk_request_count", "Reads.", [(label("table", "a_total 1"), 7)]);
        out.gauge("client_connection_count", "Clients.", 3.0);
        let odd = [(label("err", "ERR_OK"), 12), (label("err", "}, # \"\\\n"), 1)];
        out.counters("answers", "Answers.", odd);
        let buckets = vec![(0.001, 1), (f64::INFINITY, 2)];
        let latency = Histogram { sum: 0.5, buckets };
        out.histograms("latency_seconds", "Time.", [(label("c", "x"), latency)]);
        out.0
    }

    #[test]
    fn openmetrics_says_total_but_for_counters_of_the_go_proxy() {
        let want = r#"# HELP zk_request_count Reads.
# TYPE zk_request_count unknown
zk_request_count{table="a_total 1"} 7
# HELP client_connection_count Clients.
# TYPE client_connection_count gauge
client_connection_count 3
# HELP answers Answers.
# TYPE answers counter
answers_total{err="ERR_OK"} 12
answers_total{err="}, # \"\\\n"} 1
# HELP latency_seconds Time.
# TYPE latency_seconds histogram
latency_seconds_bucket{c="x",le="0.001"} 1
latency_seconds_bucket{c="x",le="+Inf"} 3
latency_seconds_sum{c="x"} 0.5
latency_seconds_count{c="x"} 3
# EOF
"#;
        assert_eq!(write(&families(), &[], Format::OpenMetrics), want);
    }

    #[test]
    fn classic_text_names_the_head_as_the_samples_and_every_sample_has_the_tags() {
        let tags = [("region".to_owned(), "x".to_owned())];
        let want = r#"# HELP zk_request_count Reads.
# TYPE zk_request_count counter
zk_request_count{region="x",table="a_total 1"} 7
# HELP client_connection_count Clients.
# TYPE client_connection_count gauge
client_connection_count{region="x"} 3
# HELP answers_total Answers.
# TYPE answers_total counter
answers_total{region="x",err="ERR_OK"} 12
answers_total{region="x",err="}, # \"\\\n"} 1
# HELP latency_seconds Time.
# TYPE latency_seconds histogram
latency_seconds_bucket{region="x",c="x",le="0.001"} 1
latency_seconds_bucket{region="x",c="x",le="+Inf"} 3
latency_seconds_sum{region="x",c="x"} 0.5
latency_seconds_count{region="x",c="x"} 3
"#;
        assert_eq!(write(&families(), &tags, Format::Classic), want);
    }

    #[test]
    fn a_scraper_gets_the_format_that_it_prefers() {
        for (why, accept, want) in [
            ("a person", "text/html,application/xml;q=0.9,*/*;q=0.8", CLASSIC),
            ("nobody says", "", CLASSIC),
            (
                "Prometheus 2",
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                 version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OPEN,
            ),
            (
                "Prometheus 3",
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                 application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;\
                 escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                OPEN,
            ),
            (
                "scrape_protocols begins with the text",
                "text/plain;version=0.0.4;q=0.5,application/openmetrics-text;version=1.0.0;q=0.4",
                CLASSIC,
            ),
            ("a refusal", "application/openmetrics-text;q=0", CLASSIC),
            ("no number", "application/openmetrics-text;q=x", CLASSIC),
            ("in capitals, with spaces", "TEXT/plain;q=0.1, Application/OpenMetrics-Text", OPEN),
        ] {
            assert_eq!(response(&families(), &[], accept).content_type, want, "{why}");
        }
    }
}
