//! Names of Pegasus errors that the proxy uses.
//!
//! Source: incubator-pegasus `src/utils/error_code.h`. On the wire an error is its name.

/// No error; also the frame error of every answer with a result.
pub const ERR_OK: &str = "ERR_OK";
/// The table does not exist.
pub const ERR_OBJECT_NOT_FOUND: &str = "ERR_OBJECT_NOT_FOUND";
/// The table's record is unusable.
pub const ERR_INVALID_DATA: &str = "ERR_INVALID_DATA";
/// No server can answer now; Java and Node clients wait a second and ask again.
pub const ERR_SERVICE_NOT_ACTIVE: &str = "ERR_SERVICE_NOT_ACTIVE";
/// Frame error: the server does not have this method.
pub const ERR_HANDLER_NOT_FOUND: &str = "ERR_HANDLER_NOT_FOUND";
/// A follower's answer. The proxy never passes it on: Go and Java clients would use its address for all their tables.
pub const ERR_FORWARD_TO_OTHERS: &str = "ERR_FORWARD_TO_OTHERS";

/// Errors in answers to QueryConfig, for counters. The list is short, so that labels stay few; the last entry stands
/// for all other errors.
pub const COUNTED: [&str; 8] = [
    ERR_OK,
    ERR_OBJECT_NOT_FOUND,
    ERR_SERVICE_NOT_ACTIVE,
    ERR_INVALID_DATA,
    "ERR_BUSY_CREATING",
    "ERR_BUSY_DROPPING",
    "ERR_INVALID_PARAMETERS",
    "other",
];

/// Index of an error in [`COUNTED`].
pub fn counted_as(err: &str) -> usize {
    COUNTED.iter().position(|known| *known == err).unwrap_or(COUNTED.len() - 1)
}

/// Why the proxy itself answers. The client gets the error as `query_cfg_response.err` in a frame that is `ERR_OK`,
/// because a frame error hangs Go and Node clients until their deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OwnError {
    /// The table has no route.
    UnknownTable,
    /// The table's znode is unusable and there is no last good one.
    UnusableRoute,
    /// No server could be asked or answered in time, or a limit is reached.
    Unavailable,
}

impl OwnError {
    /// The name that the client reads.
    pub const fn name(self) -> &'static str {
        match self {
            OwnError::UnknownTable => ERR_OBJECT_NOT_FOUND,
            OwnError::UnusableRoute => ERR_INVALID_DATA,
            OwnError::Unavailable => ERR_SERVICE_NOT_ACTIVE,
        }
    }
}
