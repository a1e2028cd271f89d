//! Takes the host_port fields out of an answer, for clients which do not know them.
//!
//! Servers from 2.6 on add fields 9-11 to each partition: its hosts by name. A client which was generated before skips
//! them as Thrift says, goes off the rails in their bare values, and hangs or fails. The other fields say by IP address
//! all that such a client needs. Nothing else of the answer changes.

use super::result::{self, Found, Unexpected};

/// Whether answers at one port have fields 9-11.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPortFields {
    /// Clients get them as they came.
    Keep,
    /// THFT clients get answers without them. C++ clients always get them, for they read no other addresses.
    Remove,
}

impl HostPortFields {
    /// As settings and logs write it.
    pub const fn name(self) -> &'static str {
        match self {
            HostPortFields::Keep => "keep",
            HostPortFields::Remove => "remove",
        }
    }
}

/// The result struct without fields 9-11 of its partitions; `None` if it has none.
///
/// An answer with anything that the schema does not have is refused: a field of tomorrow may be bare, and then what
/// looks like fields 9-11 behind it may be something else.
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
