//! A route as an operator writes it, in a znode or in the routes file. Pure.
//!
//! ```json
//! {"cluster_name": "c3srv-ad", "meta_addrs": "10.0.0.1:34601,10.0.0.2:34601"}
//! {"cluster": "c3srv-ad", "meta-addrs": ["10.0.0.1:34601", "10.0.0.2:34601"]}
//! ```
//! Today's tools read the first form, so write that one; the second comes from an older document. Other keys are
//! ignored. A record is used whole or not at all. If clusters have their own znodes, a table's record may name its
//! cluster only:
//!
//! ```json
//! {"cluster": "c3srv-ad"}
//! ```

use std::fmt;

use serde_json::Value;

use crate::wire::address::is_host_port;
use crate::wire::message::is_table_name;

/// Most addresses of one cluster; a real cluster has three or five.
const MAX_ADDRS: usize = 64;
/// Longest name of a cluster, and of a host (RFC 1035).
const MAX_NAME_LEN: usize = 253;

/// Where a table lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Name of the cluster; its addresses if it has no name.
    pub cluster: String,
    /// MetaServers of the cluster, `host:port`, sorted, each once.
    pub meta_addrs: Vec<String>,
}

/// The content of a table's znode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Where the table lives.
    Here(Record),
    /// The table lives in the cluster of this name, whose own znode has the addresses.
    Cluster(String),
}

/// Why a record is unusable. If there is no last good record, the client gets ERR_INVALID_DATA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// The key at fault; empty if the data is no object.
    pub key: &'static str,
    /// The value that the key needs.
    pub want: &'static str,
    /// The value that the key has.
    pub got: String,
}

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "want {}, got {}", self.want, self.got)
    }
}

impl std::error::Error for BadRecord {}

/// Reads the bytes of a znode.
pub fn read(bytes: &[u8]) -> Result<Record, BadRecord> {
    from_json(&json(bytes)?)
}

/// Reads the bytes of a table's znode, if clusters have their own znodes.
pub fn read_target(bytes: &[u8]) -> Result<Target, BadRecord> {
    let value = json(bytes)?;
    let names_only = value.get("meta_addrs").is_none() && value.get("meta-addrs").is_none();
    match value.get("cluster").or_else(|| value.get("cluster_name")) {
        Some(Value::String(name)) if names_only && is_table_name(name) => {
            Ok(Target::Cluster(name.clone()))
        }
        Some(other) if names_only => {
            let want = "the name of a znode";
            Err(BadRecord { key: "cluster", want, got: shown(other) })
        }
        _ => from_json(&value).map(Target::Here),
    }
}

fn json(bytes: &[u8]) -> Result<Value, BadRecord> {
    let bad = |got: String| BadRecord { key: "", want: "a JSON object", got };
    match bytes {
        [] => Err(bad("no data".to_owned())),
        bytes => serde_json::from_slice(bytes).map_err(|e| bad(e.to_string())),
    }
}

/// Reads one record of a routes file.
pub fn from_json(value: &Value) -> Result<Record, BadRecord> {
    let Value::Object(fields) = value else {
        return Err(BadRecord { key: "", want: "a JSON object", got: shown(value) });
    };
    let first_of = |keys: [&'static str; 2]| {
        keys.into_iter().find_map(|key| fields.get(key).map(|value| (key, value)))
    };
    let Some((key, value)) = first_of(["meta_addrs", "meta-addrs"]) else {
        let got = "neither it nor meta-addrs".to_owned();
        return Err(BadRecord { key: "meta_addrs", want: "addresses", got });
    };
    let meta_addrs = read_addrs(key, value)?;
    let cluster = match first_of(["cluster_name", "cluster"]) {
        Some((key, value)) => read_name(key, value)?,
        None => meta_addrs.join(","),
    };
    Ok(Record { cluster, meta_addrs })
}

fn read_name(key: &'static str, value: &Value) -> Result<String, BadRecord> {
    match value {
        Value::String(name)
            if (1..=MAX_NAME_LEN).contains(&name.len()) && !name.contains(char::is_control) =>
        {
            Ok(name.clone())
        }
        other => Err(BadRecord { key, want: "a printable name", got: shown(other) }),
    }
}

fn read_addrs(key: &'static str, value: &Value) -> Result<Vec<String>, BadRecord> {
    let bad = |want, got: &Value| BadRecord { key, want, got: shown(got) };
    let texts: Vec<&str> = match value {
        Value::String(list) => list.split(',').collect(),
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().ok_or_else(|| bad("strings host:port", item)))
            .collect::<Result<_, _>>()?,
        other => return Err(bad("\"host:port,...\" or [\"host:port\", ...]", other)),
    };
    let mut addrs = Vec::new();
    for text in texts.into_iter().map(str::trim) {
        if !is_host_port(text) {
            return Err(bad("host:port", &Value::from(text)));
        }
        addrs.push(text.to_owned());
    }
    addrs.sort_unstable();
    addrs.dedup();
    match addrs.len() {
        1..=MAX_ADDRS => Ok(addrs),
        n => Err(BadRecord { key, want: "1 to 64 addresses", got: n.to_string() }),
    }
}

/// A value, shortened for a log line.
fn shown(value: &Value) -> String {
    const MAX: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(MAX) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_common_variants_of_them() {
        for (why, text, cluster, addrs) in [
            ("today's", r#"{"cluster_name":"c","meta_addrs":"h2:2,h1:1"}"#, "c", "h1:1 h2:2"),
            ("older", r#"{"cluster":"c","meta-addrs":["1.2.3.4:5"]}"#, "c", "1.2.3.4:5"),
            ("mixed", r#"{"cluster":"c","meta_addrs":["h:1"]}"#, "c", "h:1"),
            ("no name", r#"{"meta_addrs":"h:1,i:2"}"#, "h:1,i:2", "h:1 i:2"),
            ("spaces", r#"{"cluster":"c","meta_addrs":" h:1 , i:2 "}"#, "c", "h:1 i:2"),
            ("twice", r#"{"cluster":"c","meta_addrs":"h:1,h:1"}"#, "c", "h:1"),
            ("more keys", r#"{"cluster":"c","x":{},"meta_addrs":"[::1]:9"}"#, "c", "[::1]:9"),
        ] {
            let record = read(text.as_bytes()).expect(why);
            let meta_addrs = addrs.split(' ').map(str::to_owned).collect();
            assert_eq!(record, Record { cluster: cluster.into(), meta_addrs }, "{why}");
        }
    }

    #[test]
    fn a_record_may_name_its_cluster_only() {
        for (text, want) in [
            (r#"{"cluster":"c3"}"#, Ok(Target::Cluster("c3".into()))),
            (r#"{"cluster_name":"c3","x":1}"#, Ok(Target::Cluster("c3".into()))),
            (
                r#"{"cluster":"c3","meta_addrs":"h:1"}"#,
                read(br#"{"cluster":"c3","meta_addrs":"h:1"}"#).map(Target::Here),
            ),
        ] {
            assert_eq!(read_target(text.as_bytes()), want, "{text}");
        }
        for (text, key) in [
            (r#"{"cluster":"a/b"}"#, "cluster"),
            (r#"{"cluster":7}"#, "cluster"),
            ("{}", "meta_addrs"),
        ] {
            assert_eq!(read_target(text.as_bytes()).unwrap_err().key, key, "{text}");
        }
        assert!(read(br#"{"cluster":"c3"}"#).is_err(), "only where clusters have znodes");
    }

    #[test]
    fn a_bad_record_says_which_key_and_what_was_wanted() {
        let many = format!(r#"{{"meta_addrs":"{}"}}"#, vec!["h:1"; 65].join(","));
        let many = (0..65).fold(many, |text, n| text.replacen("h:1", &format!("h{n}:1"), 1));
        for (why, text, want) in [
            ("empty", "", "want a JSON object, got no data"),
            (
                "not JSON",
                "{",
                "want a JSON object, got EOF while parsing an object at line 1 column 1",
            ),
            ("a list", "[1]", "want a JSON object, got [1]"),
            ("nothing in it", "{}", "meta_addrs: want addresses, got neither it nor meta-addrs"),
            (
                "port forgotten",
                r#"{"meta_addrs":"h:1,m"}"#,
                r#"meta_addrs: want host:port, got "m""#,
            ),
            ("trailing comma", r#"{"meta_addrs":"h:1,"}"#, r#"meta_addrs: want host:port, got """#),
            ("port 0", r#"{"meta_addrs":"h:0"}"#, r#"meta_addrs: want host:port, got "h:0""#),
            (
                "IP of 3 parts",
                r#"{"meta_addrs":"1.2.3:4"}"#,
                r#"meta_addrs: want host:port, got "1.2.3:4""#,
            ),
            ("number", r#"{"meta-addrs":[5]}"#, "meta-addrs: want strings host:port, got 5"),
            ("no addresses", r#"{"meta-addrs":[]}"#, "meta-addrs: want 1 to 64 addresses, got 0"),
            ("65 addresses", &many, "meta_addrs: want 1 to 64 addresses, got 65"),
            (
                "name",
                r#"{"meta_addrs":"h:1","cluster":7}"#,
                "cluster: want a printable name, got 7",
            ),
            (
                "log forgery",
                r#"{"meta_addrs":"h:1","cluster":"a\nb"}"#,
                "cluster: want a printable name, got \"a\\nb\"",
            ),
        ] {
            assert_eq!(read(text.as_bytes()).unwrap_err().to_string(), want, "{why}");
        }
        assert!(read(&[0xff, 0xfe]).is_err(), "not UTF-8");
        let huge = format!(r#"{{"meta_addrs":"{}"}}"#, "x".repeat(1_000_000));
        assert!(read(huge.as_bytes()).unwrap_err().to_string().len() < 200, "1 MB is not logged");
    }
}
