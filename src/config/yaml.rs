//! Turns a YAML text into a flat list of `key -> (line, value)`. Pure.
//!
//! ```text
//! limits:                   limits              line 1  keys and values
//!   max_pending: 7    ─▶    limits.max_pending  line 2  "7"
//! workers: 8                workers             line 3  "8"
//! ```
//! A duplicate key is listed twice, so that the fault can name both lines.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, MessageFormatter, Spanned, UserMessageFormatter};

/// One key of the file, `limits.max_pending`.
#[derive(Clone, Debug)]
pub struct Entry {
    pub key: String,
    pub line: u64,
    pub value: Node,
}

/// A value of the file. Scalars are text: the reader of each key decides what is a number.
#[derive(Clone, Debug)]
pub enum Node {
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(Spanned<String>, Node)>),
}

/// Every key of the text, the keys of a section after the section itself; or the line and the text of a fault.
pub fn read(text: &str) -> Result<Vec<Entry>, (u64, String)> {
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::PassThrough };
    let root = serde_saphyr::from_str_with_options::<Option<Node>>(text, options).map_err(|e| {
        let e = e.without_snippet();
        let line = e.location().map_or(0, |at| at.line());
        (line, UserMessageFormatter.format_message(e).into_owned())
    })?;
    let mut entries = Vec::new();
    match root {
        None => {}
        Some(Node::Map(map)) => flatten("", &map, &mut entries),
        Some(other) => return Err((1, format!("want keys and values, got {other}"))),
    }
    Ok(entries)
}

fn flatten(section: &str, map: &[(Spanned<String>, Node)], entries: &mut Vec<Entry>) {
    for (name, value) in map {
        let key = match section {
            "" => name.value.clone(),
            section => format!("{section}.{}", name.value),
        };
        let line = name.referenced.line();
        entries.push(Entry { key: key.clone(), line, value: value.clone() });
        if let Node::Map(map) = value {
            flatten(&key, map, entries);
        }
    }
}

impl Node {
    pub fn text(&self) -> Option<String> {
        match self {
            Node::Scalar(text) => Some(text.trim().to_owned()),
            _ => None,
        }
    }

    /// A list of scalars, or one text with commas.
    pub fn list(&self) -> Option<Vec<String>> {
        match self {
            Node::List(items) => items.iter().map(Node::text).collect(),
            Node::Scalar(text) => {
                Some(text.split(',').map(|part| part.trim().to_owned()).collect())
            }
            Node::Null | Node::Map(_) => None,
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Null => write!(f, "nothing"),
            Node::Scalar(text) => write!(f, "{text:?}"),
            Node::List(items) => {
                let items: Vec<String> = items.iter().map(Node::to_string).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Node::Map(_) => write!(f, "keys and values"),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a setting")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}
