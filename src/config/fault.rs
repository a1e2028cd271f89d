//! Faults of a settings file. Pure.

use std::fmt;

/// A fault of the settings, or something that looks like one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line in the file; 0 for what is not there.
    pub line: u64,
    /// The key, `zookeeper.timeout`; empty for the file itself.
    pub key: String,
    /// The value that was wanted, and the one that was found.
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
