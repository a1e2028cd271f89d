//! Metrics as Prometheus reads them: from the OpenMetrics text of the registry to what a scraper wants. Pure.
//!
//! ```text
//!                        OpenMetrics 1.0.0                    classic text 0.0.4
//! counter                TYPE a counter, a_total 1            TYPE a_total counter, a_total 1
//! counter of the Go proxy TYPE a unknown, a 1                 TYPE a counter, a 1
//! info                   TYPE a info, a_info{..} 1            TYPE a_info gauge, a_info{..} 1
//! unknown                TYPE a unknown, a 1                  TYPE a untyped, a 1
//! ```
//! The registry writes every counter as the first line says, and OpenMetrics allows no other. But dashboards and
//! alerts of the Go meta-proxy name its counters without `_total`, which it says in both formats.

use std::borrow::Cow;

use super::http_message::Response;

/// Counters of the Go meta-proxy, which keep their names.
const GO_COUNTERS: &[&str] = &["zk_request_count", "client_query_config_count"];

/// How to write metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// What Prometheus asks for first.
    OpenMetrics,
    /// What everything reads.
    Classic,
}

impl Format {
    /// What a scraper with this Accept header likes best, the classic text when in doubt.
    pub fn of_accept(accept: &str) -> Self {
        let open = quality(accept, "application/openmetrics-text");
        let classic = quality(accept, "text/plain");
        if open > 0.0 && open >= classic { Format::OpenMetrics } else { Format::Classic }
    }

    /// As a header says it.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The answer to a scraper with this Accept header, from the registry's text.
pub fn response(registry: &str, accept: &str) -> Response {
    let format = Format::of_accept(accept);
    Response::new(200, format.content_type(), write(registry, format))
}

/// How much a media type is liked, 0 where it is not named.
fn quality(accept: &str, media_type: &str) -> f32 {
    let of_part = |part: &str| {
        let mut fields = part.split(';').map(str::trim);
        fields.next().filter(|name| name.eq_ignore_ascii_case(media_type))?;
        let q = fields.find_map(|field| field.strip_prefix("q="));
        q.map_or(Some(1.0), |q| q.parse().ok())
    };
    accept.split(',').filter_map(of_part).fold(0.0, f32::max)
}

/// The registry's text in a format.
pub fn write(registry: &str, format: Format) -> String {
    let is_open = format == Format::OpenMetrics;
    let mut text = String::with_capacity(registry.len());
    let mut help = "";
    let mut family = Family { name: "", kind: "" };
    for line in registry.lines() {
        if let Some(found) = line.strip_prefix("# HELP ") {
            // It comes before the type, which decides its name.
            help = found.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|head| head.split_once(' '))
        {
            family = Family { name, kind };
            let (name, kind) = family.shown(format);
            text += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        } else if line.starts_with('#') {
            // The unit, the end.
            if is_open {
                text += line;
                text.push('\n');
            }
        } else {
            let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap_or(line.len()));
            text += family.sample_name(name);
            text += rest;
            text.push('\n');
        }
    }
    text
}

/// What the lines of one metric have in common, as the registry says it.
#[derive(Clone, Copy)]
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
}

impl<'a> Family<'a> {
    fn is_of_go(self) -> bool {
        self.kind == "counter" && GO_COUNTERS.contains(&self.name)
    }

    fn shown(self, format: Format) -> (Cow<'a, str>, &'a str) {
        let Family { name, kind } = self;
        match (format, kind) {
            (Format::OpenMetrics, _) if self.is_of_go() => (name.into(), "unknown"),
            (Format::OpenMetrics, _) => (name.into(), kind),
            (Format::Classic, "counter") if self.is_of_go() => (name.into(), kind),
            (Format::Classic, "counter") => (format!("{name}_total").into(), kind),
            (Format::Classic, "info") => (format!("{name}_info").into(), "gauge"),
            (Format::Classic, "unknown") => (name.into(), "untyped"),
            (Format::Classic, _) => (name.into(), kind),
        }
    }

    fn sample_name(self, name: &str) -> &str {
        if self.is_of_go() { name.strip_suffix("_total").unwrap_or(name) } else { name }
    }
}

/// One number of the registry.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<'a> {
    /// Name of its metric, without what `name` adds.
    pub family: &'a str,
    /// `counter`, `gauge`, `histogram`, `info`, `unknown`.
    pub kind: &'a str,
    /// Its own name: of a histogram `..._bucket`, `..._sum`, `..._count`, of a counter `..._total`.
    pub name: &'a str,
    /// Its labels, unescaped.
    pub labels: Vec<(&'a str, String)>,
    /// The number.
    pub value: f64,
}

/// All numbers of the registry's text, in its order.
pub fn samples(registry: &str) -> impl Iterator<Item = Sample<'_>> {
    let mut family = Family { name: "", kind: "" };
    registry.lines().filter_map(move |line| {
        if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|head| head.split_once(' '))
        {
            family = Family { name, kind };
        }
        if line.starts_with('#') {
            return None;
        }
        let (name, rest) = line.split_at(line.find(['{', ' '])?);
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => read_labels(rest)?,
            None => (Vec::new(), rest),
        };
        let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Sample { family: family.name, kind: family.kind, name, labels, value })
    })
}

type Labels<'a> = Vec<(&'a str, String)>;

/// Labels from behind `{` on, and what stands behind their `}`.
fn read_labels(mut rest: &str) -> Option<(Labels<'_>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.strip_prefix(',').unwrap_or(rest);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let (value, behind) = read_quoted(quoted)?;
        labels.push((name, value));
        rest = behind;
    }
}

/// A value from behind its quote on, and what stands behind the quote that ends it.
fn read_quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    loop {
        match chars.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => value.push(match chars.next()?.1 {
                'n' => '\n',
                escaped => escaped,
            }),
            (_, char) => value.push(char),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the registry writes it: one metric of each kind.
    const REGISTRY: &str = "\
# HELP zk_request_count Reads of ZooKeeper.
# TYPE zk_request_count counter
zk_request_count_total{region=\"x\",table=\"a_total 1\"} 7
# HELP client_connection_count Clients.
# TYPE client_connection_count gauge
client_connection_count{region=\"x\"} 3
# HELP answers Answers to clients.
# TYPE answers counter
answers_total{err=\"ERR_OK\"} 12
answers_total{err=\"}, # \\\"\\\\\\n\"} 1
# HELP latency_seconds Time to an answer.
# TYPE latency_seconds histogram
# UNIT latency_seconds seconds
latency_seconds_sum 0.5
latency_seconds_count 3
latency_seconds_bucket{le=\"0.001\"} 1
latency_seconds_bucket{le=\"+Inf\"} 3
# HELP build What runs.
# TYPE build info
build_info{version=\"1\"} 1
# HELP odd Nobody knows.
# TYPE odd unknown
odd 1.5e-3
# EOF
";

    const OPEN: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

    #[test]
    fn the_go_proxys_counters_keep_their_names_in_openmetrics() {
        let want = REGISTRY
            .replace("# TYPE zk_request_count counter", "# TYPE zk_request_count unknown")
            .replace("zk_request_count_total{", "zk_request_count{");
        assert_eq!(write(REGISTRY, Format::OpenMetrics), want);
    }

    #[test]
    fn classic_text_names_the_head_as_the_samples() {
        let want = REGISTRY
            .replace("zk_request_count_total{", "zk_request_count{")
            .replace("# HELP answers ", "# HELP answers_total ")
            .replace("# TYPE answers ", "# TYPE answers_total ")
            .replace("# UNIT latency_seconds seconds\n", "")
            .replace("# HELP build ", "# HELP build_info ")
            .replace("# TYPE build info", "# TYPE build_info gauge")
            .replace("# TYPE odd unknown", "# TYPE odd untyped")
            .replace("# EOF\n", "");
        assert_eq!(write(REGISTRY, Format::Classic), want);
    }

    #[test]
    fn a_scraper_gets_what_it_likes_best() {
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
            assert_eq!(response(REGISTRY, accept).content_type, want, "{why}");
        }
    }

    #[test]
    fn samples_are_all_numbers_with_their_labels() {
        let found: Vec<_> = samples(REGISTRY).collect();
        assert_eq!(found.len(), 10);
        let label = |name, value: &str| (name, value.to_owned());
        let first = Sample {
            family: "zk_request_count",
            kind: "counter",
            name: "zk_request_count_total",
            labels: vec![label("region", "x"), label("table", "a_total 1")],
            value: 7.0,
        };
        assert_eq!(found[0], first);
        assert_eq!(found[3].labels, [label("err", "}, # \"\\\n")]);
        assert_eq!(found[4].labels, []);
        assert_eq!((found[7].labels[0].1.as_str(), found[7].value), ("+Inf", 3.0));
        assert_eq!(found[9].value, 0.0015);
        for broken in ["a", "a{", "a{b", "a{b=\"", "a{b=\"c\"", "a{b=\"c\\", "a{} x", "a ", ""] {
            assert_eq!(samples(broken).count(), 0, "{broken:?}");
        }
    }
}
