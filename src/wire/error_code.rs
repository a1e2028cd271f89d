//! Names of Pegasus errors that mean something to the proxy.
//!
//! Source: incubator-pegasus `src/utils/error_code.h`. On the wire an error is its name.

/// All is well; also the frame error of every answer that carries a result.
pub const ERR_OK: &str = "ERR_OK";
/// No such table.
pub const ERR_OBJECT_NOT_FOUND: &str = "ERR_OBJECT_NOT_FOUND";
/// The table's record cannot be used.
pub const ERR_INVALID_DATA: &str = "ERR_INVALID_DATA";
/// Nobody can answer now; Java and Node clients wait a second and ask again.
pub const ERR_SERVICE_NOT_ACTIVE: &str = "ERR_SERVICE_NOT_ACTIVE";
/// Frame error: the method is not served here.
pub const ERR_HANDLER_NOT_FOUND: &str = "ERR_HANDLER_NOT_FOUND";
/// A follower's answer. It never leaves the proxy: Go and Java clients adopt the address in it for
/// all their tables.
pub const ERR_FORWARD_TO_OTHERS: &str = "ERR_FORWARD_TO_OTHERS";

/// Errors that a QueryConfig is answered with, for counting: few, so that labels stay few. Any other is the last.
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

/// Place of an error in [`COUNTED`].
pub fn counted_as(err: &str) -> usize {
    COUNTED.iter().position(|known| *known == err).unwrap_or(COUNTED.len() - 1)
}

/// Why the proxy itself answers instead of a MetaServer. The client reads it as
/// `query_cfg_response.err` in a frame that is `ERR_OK`, because a frame error hangs Go and Node
/// clients until their deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OwnError {
    /// No such table in the routes.
    UnknownTable,
    /// The table's znode is unusable and there is no last good one.
    UnusableRoute,
    /// Nobody could be asked, or nobody answered, in time; or a limit is reached.
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
