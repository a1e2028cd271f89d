//! The keys of a file. Each setting takes its key, checks it and records its value. Keys that no setting took are
//! reported at the end.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::fault::Fault;
use super::listeners::{self, ListenerSettings};
use super::spelling::did_you_mean;
use super::tags::{self, MetricKind};
use super::values::{Reload, Setting, Values};
use super::yaml::{Entry, Node};
use crate::wire::address::is_host_port;

/// A file that is being read. A bad value is a fault and counts as the default, so that all faults are reported
/// together.
pub struct Keys {
    entries: Vec<Entry>,
    /// Whether a setting has taken the entry with the same index.
    taken: Vec<bool>,
    pub faults: Vec<Fault>,
    pub warnings: Vec<Fault>,
    pub values: Values,
    /// Keys of all settings, whether or not the file has them.
    pub known: Vec<String>,
}

impl Keys {
    pub fn new(entries: Vec<Entry>) -> Self {
        Keys {
            taken: vec![false; entries.len()],
            entries,
            faults: Vec::new(),
            warnings: Vec::new(),
            values: Values::default(),
            known: Vec::new(),
        }
    }

    /// Whether the file has this key or section.
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key.eq_ignore_ascii_case(key))
    }

    /// Whether the file sets this key to a value.
    pub fn is_set(&self, key: &str) -> bool {
        self.values.line(key) > 0
    }

    pub fn fault(&mut self, key: &str, what: String) {
        let line = self.values.line(key);
        self.faults.push(Fault { line, key: key.to_owned(), what });
    }

    pub fn warn(&mut self, key: &str, what: String) {
        let line = self.values.line(key);
        self.warnings.push(Fault { line, key: key.to_owned(), what });
    }

    fn take(&mut self, key: &str) -> Option<(u64, Node)> {
        self.known.push(key.to_owned());
        let at = self.entries.iter().position(|entry| entry.key.eq_ignore_ascii_case(key))?;
        self.taken[at] = true;
        Some((self.entries[at].line, self.entries[at].value.clone()))
    }

    fn record(&mut self, key: &str, line: u64, value: impl Serialize, reload: Reload) {
        let value = serde_json::to_value(value).unwrap_or_default();
        self.values.set(key, Setting { value, line, is_secret: false, reload });
    }

    /// Reads a key by `read`. Returns the default if the key is missing or has a fault.
    fn read<T: Serialize>(
        &mut self,
        key: &str,
        want: &str,
        default: Option<T>,
        reload: Reload,
        read: impl FnOnce(&Node) -> Option<T>,
    ) -> Option<T> {
        let taken = self.take(key);
        let line = taken.as_ref().map_or(0, |(line, _)| *line);
        let value = taken.as_ref().and_then(|(_, node)| read(node));
        if value.is_none() && (taken.is_some() || default.is_none()) {
            let found = taken.map_or("nothing".to_owned(), |(_, node)| node.to_string());
            let what = format!("want {want}, got {found}");
            self.faults.push(Fault { line, key: key.to_owned(), what });
        }
        let value = value.or(default);
        self.record(key, line, &value, reload);
        value
    }

    /// Reads a key that may be missing.
    fn read_optional<T: Serialize>(
        &mut self,
        key: &str,
        want: &str,
        reload: Reload,
        read: impl FnOnce(&Node) -> Option<T>,
    ) -> Option<T> {
        self.read(key, want, Some(None), reload, |node| read(node).map(Some)).flatten()
    }

    pub fn number<T>(
        &mut self,
        key: &str,
        range: RangeInclusive<T>,
        default: T,
        reload: Reload,
    ) -> T
    where
        T: FromStr + PartialOrd + fmt::Display + Serialize + Copy,
    {
        let want = format!("{}..={}", range.start(), range.end());
        let read = |node: &Node| node.text()?.parse().ok().filter(|n| range.contains(n));
        self.read(key, &want, Some(default), reload, read).unwrap_or(default)
    }

    pub fn ms(
        &mut self,
        key: &str,
        range: RangeInclusive<u64>,
        default: u64,
        reload: Reload,
    ) -> Duration {
        Duration::from_millis(self.number(key, range, default, reload))
    }

    pub fn seconds(
        &mut self,
        key: &str,
        range: RangeInclusive<u64>,
        default: u64,
        reload: Reload,
    ) -> Duration {
        Duration::from_secs(self.number(key, range, default, reload))
    }

    pub fn address(&mut self, key: &str, default: &str, reload: Reload) -> SocketAddr {
        let default = default.parse().expect("defaults are good");
        let read = |node: &Node| node.text()?.parse().ok();
        self.read(key, "IP:port", Some(default), reload, read).unwrap_or(default)
    }

    pub fn address_or_none(
        &mut self,
        key: &str,
        default: &str,
        reload: Reload,
    ) -> Option<SocketAddr> {
        let default = default.parse().expect("defaults are good");
        let read = |node: &Node| match node.text()?.as_str() {
            "none" => Some(None),
            text => text.parse().ok().map(Some),
        };
        self.read(key, "IP:port or none", Some(Some(default)), reload, read).flatten()
    }

    /// A list of `host:port`. If it is not required, it may be missing, and is then empty.
    pub fn host_ports(&mut self, key: &str, required: bool, reload: Reload) -> Vec<String> {
        let read = |node: &Node| {
            let list = node.list()?;
            (!list.is_empty() && list.iter().all(|text| is_host_port(text))).then_some(list)
        };
        let default = (!required).then(Vec::new);
        self.read(key, "a list of host:port", default, reload, read).unwrap_or_default()
    }

    pub fn host_port(&mut self, key: &str, reload: Reload) -> Option<String> {
        let read = |node: &Node| node.text().filter(|text| is_host_port(text));
        self.read_optional(key, "host:port", reload, read)
    }

    pub fn znode_path(&mut self, key: &str, required: bool, reload: Reload) -> String {
        let default = (!required).then(String::new);
        self.read(key, "a znode path, /a/b", default, reload, znode_path).unwrap_or_default()
    }

    /// A znode beside `root`, because each child of the root is a table.
    pub fn znode_path_beside(&mut self, key: &str, root: &str, reload: Reload) -> Option<String> {
        let is_beside = |path: &String| {
            let below = path.strip_prefix(root).filter(|_| !root.is_empty());
            below.is_none_or(|below| !below.is_empty() && !below.starts_with('/'))
        };
        let read = |node: &Node| znode_path(node).filter(is_beside);
        self.read_optional(key, "a znode path, /a/b, neither the root nor below it", reload, read)
    }

    pub fn flag(&mut self, key: &str, default: bool, reload: Reload) -> bool {
        let read = |node: &Node| node.text()?.parse().ok();
        self.read(key, "true or false", Some(default), reload, read).unwrap_or(default)
    }

    pub fn file(&mut self, key: &str, reload: Reload) -> Option<PathBuf> {
        let read = |node: &Node| Some(PathBuf::from(node.text()?));
        let path = self.read_optional(key, "a path", reload, read);
        path.filter(|path| !path.as_os_str().is_empty())
    }

    /// A secret, which is never shown.
    pub fn digest(&mut self, key: &str, reload: Reload) -> Option<String> {
        let taken = self.take(key);
        let line = taken.as_ref().map_or(0, |(line, _)| *line);
        let good = |text: &String| text.split_once(':').is_some_and(|(user, _)| !user.is_empty());
        let digest = taken.as_ref().and_then(|(_, node)| node.text()).filter(good);
        let value = digest.clone().map_or(Value::Null, Value::String);
        self.values.set(key, Setting { value, line, is_secret: true, reload });
        if taken.is_some() && digest.is_none() {
            self.fault(key, "want user:password, got something else".to_owned());
        }
        digest
    }

    /// The index of the value among the names; 0 if the key is missing.
    pub fn one_of(&mut self, key: &str, names: &[&'static str], reload: Reload) -> usize {
        let read = |node: &Node| {
            let text = node.text()?;
            names.iter().copied().find(|name| *name == text)
        };
        let name = self.read(key, &names.join(" or "), names.first().copied(), reload, read);
        names.iter().position(|known| Some(*known) == name).unwrap_or(0)
    }

    pub fn log_filter(&mut self, key: &str, default: &str, reload: Reload) -> String {
        let read =
            |node: &Node| node.list().map(|parts| parts.join(",")).filter(|text| is_filter(text));
        let want = "a level, or a list of target=level";
        self.read(key, want, Some(default.to_owned()), reload, read).unwrap_or_default()
    }

    pub fn tags(&mut self, key: &str, kind: MetricKind, reload: Reload) -> Vec<(String, String)> {
        let read = |node: &Node| if let Node::Null = node { Some(Vec::new()) } else { node.list() };
        let want = "a list of name=value";
        let list = self.read(key, want, Some(Vec::new()), reload, read).unwrap_or_default();
        let mut tags = Vec::new();
        for read in tags::read(&list, kind) {
            match read {
                Ok(tag) => tags.push(tag),
                Err(what) => self.fault(key, what),
            }
        }
        tags
    }

    pub fn listeners(&mut self, key: &str, reload: Reload) -> Vec<ListenerSettings> {
        let (line, node) = self.take(key).unwrap_or((0, Node::Null));
        let read = listeners::read(&node);
        self.record(key, line, &read.listeners, reload);
        let tell = |(within, at, what): listeners::Remark| Fault {
            line: if at > 0 { at } else { line },
            key: format!("{key}{within}"),
            what,
        };
        self.faults.extend(read.faults.into_iter().map(tell));
        self.warnings.extend(read.warnings.into_iter().map(tell));
        read.listeners
    }

    /// Reports duplicate keys, unknown keys, and sections that have a plain value.
    pub fn report_rest(&mut self) {
        let is_section = |key: &str, known: &String| {
            known.len() > key.len()
                && known.is_char_boundary(key.len())
                && known[..key.len()].eq_ignore_ascii_case(key)
                && known[key.len()..].starts_with('.')
        };
        let mut settled: Vec<String> = Vec::new();
        for (at, entry) in self.entries.iter().enumerate() {
            let Entry { key, line, value } = entry;
            let fault = |what: String| Fault { line: *line, key: key.clone(), what };
            let same = |other: &&Entry| other.key.eq_ignore_ascii_case(key);
            if settled.iter().any(|section| key.starts_with(section)) {
                continue;
            }
            let is_known_section = self.known.iter().any(|known| is_section(key, known));
            if let Some(first) = self.entries[..at].iter().find(same) {
                self.faults.push(fault(format!("duplicate key, see line {}", first.line)));
            } else if is_known_section && matches!(value, Node::Map(_) | Node::Null) {
                continue;
            } else if is_known_section && !self.taken[at] {
                self.faults.push(fault(format!("want keys and values, got {value}")));
            } else if !self.taken[at] {
                let known = self.known.iter().map(String::as_str);
                let meant = did_you_mean(key, known);
                let meant = meant.map(|meant| format!("; did you mean {meant}?"));
                let meant = meant.unwrap_or_default();
                self.warnings.push(fault(format!("unknown key{meant}")));
            }
            settled.push(format!("{key}."));
        }
        for told in [&mut self.faults, &mut self.warnings] {
            told.sort_by_key(|fault| (fault.line == 0, fault.line));
        }
    }
}

/// An absolute path without empty or relative parts.
fn znode_path(node: &Node) -> Option<String> {
    let path = node.text()?;
    let good = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    let parts = path.strip_prefix('/')?;
    parts.split('/').all(good).then_some(path)
}

/// Whether `text` is `info`, `zk=debug` or a list of these.
pub fn is_filter(text: &str) -> bool {
    text.split(',').all(|part| {
        let level = part.split_once('=').map_or(part, |(_, level)| level);
        level.trim().parse::<log::LevelFilter>().is_ok()
    })
}
