//! Every setting as plain data: for the pages, for changes at SIGHUP, and for defaults. Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// Whether a change of a setting takes effect at SIGHUP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// At once; limits apply to clients that connect later.
    Live,
    NeedsRestart,
}

#[derive(Clone, Default, PartialEq)]
pub struct Values(BTreeMap<String, Setting>);

#[derive(Clone)]
pub struct Setting {
    pub value: Value,
    /// Line in the file; 0 for a default.
    pub line: u64,
    pub is_secret: bool,
    pub reload: Reload,
}

/// The line in the file makes no difference.
impl PartialEq for Setting {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Setting {
    /// The value for logs and pages.
    pub fn shown(&self) -> Value {
        match self.is_secret && !self.value.is_null() {
            true => Value::String("***".to_owned()),
            false => self.value.clone(),
        }
    }
}

/// A changed setting.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    pub key: String,
    pub old: String,
    pub new: String,
    pub reload: Reload,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.key, self.old, self.new)
    }
}

impl Values {
    pub(super) fn set(&mut self, key: &str, setting: Setting) {
        self.0.insert(key.to_owned(), setting);
    }

    /// Line of a key in the file; 0 if the key is not in the file.
    pub fn line(&self, key: &str) -> u64 {
        self.0.get(key).map_or(0, |setting| setting.line)
    }

    /// All settings by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Setting)> {
        self.0.iter().map(|(key, setting)| (key.as_str(), setting))
    }

    fn shown(&self, key: &str) -> String {
        match self.0.get(key).map(Setting::shown) {
            None | Some(Value::Null) => "nothing".to_owned(),
            Some(Value::String(secret)) if secret == "***" => secret,
            Some(value) => value.to_string(),
        }
    }

    /// The changes, by key.
    pub fn changes(&self, new: &Values) -> Vec<Change> {
        let mut keys: Vec<&String> = self.0.keys().chain(new.0.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.retain(|key| self.0.get(*key) != new.0.get(*key));
        let change = |key: &String| Change {
            key: key.clone(),
            old: self.shown(key),
            new: new.shown(key),
            reload: new.0.get(key).map_or(Reload::NeedsRestart, |setting| setting.reload),
        };
        keys.into_iter().map(change).collect()
    }

    /// Copies the value of one key from `new`.
    pub fn take(&mut self, key: &str, new: &Values) {
        match new.0.get(key) {
            Some(setting) => self.0.insert(key.to_owned(), setting.clone()),
            None => self.0.remove(key),
        };
    }

    /// Replaces the value of the file, because an argument overrides it.
    pub fn override_with(&mut self, key: &str, value: impl Serialize) {
        if let Some(setting) = self.0.get_mut(key) {
            setting.value = serde_json::to_value(value).unwrap_or_default();
        }
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|key| (key, self.shown(key)))).finish()
    }
}
