//! Tags for all metrics: checks that their receivers accept the names. Pure.

/// Labels that metrics already have. None is called `cluster` or the like, which are good names for tags.
const OWN_LABELS: &[&str] = &[
    "table",
    "pegasus_cluster",
    "err",
    "le",
    "why",
    "method",
    "meta",
    "kind",
    "limit",
    "version",
    "commit",
    "build",
];

/// The receiver of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Prometheus fetches the metrics.
    Prometheus,
    /// The proxy also pushes the metrics to an open-falcon agent.
    Falcon,
}

/// The name and the value of each tag, or its fault.
pub fn read(list: &[String], kind: MetricKind) -> Vec<Result<(String, String), String>> {
    let mut names: Vec<&str> = Vec::new();
    let mut read = Vec::new();
    for tag in list {
        let (name, value) = tag.split_once('=').unwrap_or(("", ""));
        let wrong = match tag.contains('=') {
            false => Some("name=value"),
            true => wrong_name(name, &names, kind),
        };
        match wrong {
            Some(want) => read.push(Err(format!("want {want}, got {tag:?}"))),
            None => {
                names.push(name);
                read.push(Ok((name.to_owned(), value.to_owned())));
            }
        }
    }
    read
}

/// The kind of name that is needed, if this one is bad;
fn wrong_name(name: &str, before: &[&str], kind: MetricKind) -> Option<&'static str> {
    if before.iter().any(|other| is_same_label(other, name)) {
        return Some("each name once");
    }
    if !is_tag_name(name, kind) {
        return Some(match kind {
            MetricKind::Prometheus => "a label name, [A-Za-z_][A-Za-z0-9_]*, without __ before it",
            MetricKind::Falcon => "a tag name, without spaces and commas, not `name`",
        });
    }
    let is_own = OWN_LABELS.iter().any(|own| is_same_label(own, name));
    is_own.then_some("another name than the proxy's own labels")
}

/// Whether the receivers of the metrics accept a tag of this name.
fn is_tag_name(name: &str, kind: MetricKind) -> bool {
    match kind {
        MetricKind::Prometheus => {
            let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            let goes_on = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            starts && goes_on && !name.starts_with("__")
        }
        MetricKind::Falcon => {
            // The first tag of every metric is its name.
            !matches!(name, "" | "name") && !name.contains(|c: char| c == ',' || c.is_whitespace())
        }
    }
}

/// The label of a tag. Falcon allows signs in a name that Prometheus does not.
pub fn label_name(tag: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = tag.chars().map(allowed).collect();
    // A label cannot start with a digit, and names that start with __ are reserved.
    match name.starts_with(|c: char| c.is_ascii_digit()) || name.starts_with("__") {
        true => format!("tag_{name}"),
        false => name,
    }
}

fn is_same_label(tag: &str, other: &str) -> bool {
    label_name(tag) == label_name(other)
}
