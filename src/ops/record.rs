//! The bytes of a route: written in the form that every reader knows, with what an operator added kept. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use crate::route::record::{self, BadRecord, Target};

/// Where a table lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub cluster: String,
    /// Sorted, each once.
    pub metas: Vec<String>,
}

impl Place {
    /// Checks the addresses as the proxy does.
    pub fn new(cluster: &str, metas: &str) -> Result<Self, BadRecord> {
        let record = record::from_json(&json!({"cluster_name": cluster, "meta_addrs": metas}))?;
        Ok(Place { cluster: record.cluster, metas: record.meta_addrs })
    }

    /// `c3 (10.0.0.1:34601, 10.0.0.2:34601)`
    pub fn shown(&self) -> String {
        format!("{} ({})", self.cluster, self.metas.join(", "))
    }
}

/// Reads a table's record. With `names_clusters` it may name its cluster only.
pub fn read(data: &[u8], names_clusters: bool) -> Result<Target, BadRecord> {
    match names_clusters {
        true => record::read_target(data),
        false => record::read(data).map(Target::Here),
    }
}

/// The record of a table that lives there. Keys of the record before that say something else are kept. A record that
/// named its cluster only goes on to do so.
pub fn write(place: &Place, before: Option<&[u8]>, names_clusters: bool) -> String {
    let mut fields = before.and_then(fields_of).unwrap_or_default();
    let named = before.is_some_and(|data| {
        names_clusters && matches!(record::read_target(data), Ok(Target::Cluster(_)))
    });
    if named {
        let key = if fields.contains_key("cluster") { "cluster" } else { "cluster_name" };
        fields.insert(key.to_owned(), raw(&place.cluster));
    } else {
        write_addrs(&mut fields, place);
    }
    text(&fields)
}

/// The record of a cluster that has a znode of its own, or of a table, with addresses in it.
pub fn write_with_addrs(place: &Place, before: &[u8]) -> String {
    let mut fields = fields_of(before).unwrap_or_default();
    write_addrs(&mut fields, place);
    text(&fields)
}

fn write_addrs(fields: &mut Fields, place: &Place) {
    // A record with both spellings of a key would contradict itself.
    ["cluster", "meta-addrs"].iter().for_each(|key| drop(fields.remove(*key)));
    fields.insert("cluster_name".to_owned(), raw(&place.cluster));
    fields.insert("meta_addrs".to_owned(), raw(&place.metas.join(",")));
}

/// The raw values of the record: a number keeps all its digits.
type Fields = BTreeMap<String, Box<RawValue>>;

fn fields_of(data: &[u8]) -> Option<Fields> {
    serde_json::from_slice(data).ok()
}

/// A record on one line, with every digit of its numbers; none: it is no JSON object.
pub fn compact(data: &[u8]) -> Option<String> {
    fields_of(data).map(|fields| text(&fields))
}

fn raw(text: &str) -> Box<RawValue> {
    to_raw_value(text).expect("a text has a form in JSON")
}

fn text(fields: &Fields) -> String {
    serde_json::to_string(fields).expect("names and values that were JSON")
}

/// Whether both records mean the same. Key order and spaces do not count.
pub fn is_same(one: &[u8], other: &[u8]) -> bool {
    let value = |data| serde_json::from_slice::<Value>(data).ok();
    one == other || value(one).is_some_and(|one| Some(one) == value(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_that_every_reader_knows_is_written_and_other_keys_are_kept() {
        let place = Place::new("c4", "h2:2, h1:1").unwrap();
        for (why, before, names_clusters, want) in [
            ("new", None, false, r#"{"cluster_name":"c4","meta_addrs":"h1:1,h2:2"}"#),
            (
                "an older form, and keys of others",
                Some(
                    r#"{"cluster":"c3","meta-addrs":["h:1"],"owner":"pay","x":{"y":[1, 12345678901234567890.5]}}"#,
                ),
                false,
                r#"{"cluster_name":"c4","meta_addrs":"h1:1,h2:2","owner":"pay","x":{"y":[1, 12345678901234567890.5]}}"#,
            ),
            ("broken", Some("{"), false, r#"{"cluster_name":"c4","meta_addrs":"h1:1,h2:2"}"#),
            ("named", Some(r#"{"cluster":"c3","o":1}"#), true, r#"{"cluster":"c4","o":1}"#),
            ("named", Some(r#"{"cluster_name":"c3"}"#), true, r#"{"cluster_name":"c4"}"#),
            (
                "with addresses, where clusters have znodes",
                Some(r#"{"cluster":"c3","meta_addrs":"h:1"}"#),
                true,
                r#"{"cluster_name":"c4","meta_addrs":"h1:1,h2:2"}"#,
            ),
        ] {
            let written = write(&place, before.map(str::as_bytes), names_clusters);
            assert_eq!(written, want, "{why}");
            assert!(read(written.as_bytes(), names_clusters).is_ok(), "{why}");
        }
        assert!(is_same(br#"{"a":1,"b":2}"#, br#"{ "b": 2, "a": 1 }"#));
        assert!(!is_same(b"{", b"}") && !is_same(b"{}", b"[]"));
    }
}
