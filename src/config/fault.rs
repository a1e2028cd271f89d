//! Faults of a settings file. Pure.

use std::fmt;

/// A fault or a warning about the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line in the file; 0 if the key is not in the file.
    pub line: u64,
    /// The key, for example `zookeeper.timeout`; empty for the file itself.
    pub key: String,
    /// The value that the key needs, and the value that it has.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        self.what.fmt(f)
    }
}
