//! The list of further ports for clients. Pure.
//!
//! ```text
//! listeners:
//!   - listen: 0.0.0.0:34602
//!     host_port_fields: remove
//! ```

use std::net::SocketAddr;

use serde::Serialize;

use super::yaml::Node;
use crate::wire::host_port::HostPortFields;

/// More must be a mistake: there are only two kinds.
const MAX_LISTENERS: usize = 16;

/// A further port for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ListenerSettings {
    pub listen: SocketAddr,
    #[serde(serialize_with = "as_name")]
    pub host_port_fields: HostPortFields,
}

fn as_name<S: serde::Serializer>(fields: &HostPortFields, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(fields.name())
}

/// A fault or a warning: the place in the list, for example `[1].listen`, the line or 0, and the text.
pub type Remark = (String, u64, String);

#[derive(Default)]
pub struct Read {
    pub listeners: Vec<ListenerSettings>,
    pub faults: Vec<Remark>,
    pub warnings: Vec<Remark>,
}

/// Reads the value of `listeners`.
pub fn read(node: &Node) -> Read {
    let mut read = Read::default();
    let items = match node {
        Node::Null => return read,
        Node::List(items) if items.len() <= MAX_LISTENERS => items,
        Node::List(items) => {
            let what = format!("want at most {MAX_LISTENERS} listeners, got {}", items.len());
            read.faults.push((String::new(), 0, what));
            return read;
        }
        other => {
            let what = format!("want a list of {{listen, host_port_fields}}, got {other}");
            read.faults.push((String::new(), 0, what));
            return read;
        }
    };
    for (n, item) in items.iter().enumerate() {
        read.item(n, item);
    }
    read
}

impl Read {
    fn item(&mut self, n: usize, item: &Node) {
        let Node::Map(entries) = item else {
            let what = format!("want listen and host_port_fields, got {item}");
            return self.faults.push((format!("[{n}]"), 0, what));
        };
        let (mut listen, mut host_port_fields) = (None, None);
        for (name, value) in entries {
            let text = value.text();
            let (want, is_good) = match name.value.to_ascii_lowercase().as_str() {
                "listen" if listen.is_none() => {
                    listen = text.and_then(|text| text.parse::<SocketAddr>().ok());
                    ("IP:port", listen.is_some())
                }
                "host_port_fields" if host_port_fields.is_none() => {
                    host_port_fields = [HostPortFields::Keep, HostPortFields::Remove]
                        .into_iter()
                        .find(|fields| text.as_deref() == Some(fields.name()));
                    ("keep or remove", host_port_fields.is_some())
                }
                "listen" | "host_port_fields" => ("each key once", false),
                _ => {
                    let place = format!("[{n}].{}", name.value);
                    let what = "unknown key".to_owned();
                    self.warnings.push((place, name.referenced.line(), what));
                    continue;
                }
            };
            if !is_good {
                let what = format!("want {want}, got {value}");
                self.faults.push((format!("[{n}].{}", name.value), name.referenced.line(), what));
            }
        }
        let is_missing = !entries.iter().any(|(name, _)| name.value.eq_ignore_ascii_case("listen"));
        if is_missing {
            let line = entries.first().map_or(0, |(name, _)| name.referenced.line());
            let what = "want IP:port, got nothing".to_owned();
            self.faults.push((format!("[{n}].listen"), line, what));
        }
        if let Some(listen) = listen {
            let host_port_fields = host_port_fields.unwrap_or(HostPortFields::Keep);
            self.listeners.push(ListenerSettings { listen, host_port_fields });
        }
    }
}
