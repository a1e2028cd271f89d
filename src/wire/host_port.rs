//! Removes the host_port fields from an answer, for clients that do not know them.
//!
//! Servers from 2.6 on add fields 9-11 to each partition: its hosts by name. An older client skips them as Thrift
//! prescribes, misreads their bare values, and hangs or fails. The other fields have the IP addresses, which are enough
//! for such a client. Nothing else of the answer changes.

use super::result::{self, Found, Unexpected};

/// Whether answers at a port have fields 9-11.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPortFields {
    /// Clients get the fields unchanged.
    Keep,
    /// THFT clients get answers without the fields. C++ clients always get them, because they read no other addresses.
    Remove,
}

impl HostPortFields {
    /// The name in settings and logs.
    pub const fn name(self) -> &'static str {
        match self {
            HostPortFields::Keep => "keep",
            HostPortFields::Remove => "remove",
        }
    }
}

/// The result struct without fields 9-11 of its partitions; `None` if it does not have them.
///
/// Fails if the answer has anything outside the schema: an unknown field may be bare, and what looks like fields 9-11
/// after it may be something else.
pub fn remove(result: &[u8]) -> Result<Option<Vec<u8>>, Unexpected> {
    let Found { host_ports, unknown_field, .. } = result::walk(result)?;
    if let Some(field) = unknown_field {
        return Err(Unexpected(format!("want known fields, got {field}")));
    }
    if host_ports.is_empty() {
        return Ok(None);
    }
    let removed: usize = host_ports.iter().map(|range| range.len()).sum();
    let mut rest = Vec::with_capacity(result.len() - removed);
    let mut from = 0;
    for range in host_ports {
        rest.extend_from_slice(&result[from..range.start]);
        from = range.end;
    }
    rest.extend_from_slice(&result[from..]);
    Ok(Some(rest))
}
