//! The protocol of a connection. The first four bytes choose it for the whole connection.

use super::frame::{self, Cut, Malformed};
use super::rdsn;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Go, Java, Python, Node.
    Thft,
    /// C++.
    Rdsn,
}

impl Protocol {
    /// The protocol of a connection that starts with these bytes; `None`: too few bytes.
    pub fn of(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let starts_as =
            |magic: &[u8; 4]| bytes[..bytes.len().min(4)] == magic[..bytes.len().min(4)];
        match (starts_as(frame::MAGIC), starts_as(rdsn::MAGIC)) {
            (false, false) => Err(Malformed::Magic),
            _ if bytes.len() < 4 => Ok(None),
            (true, _) => Ok(Some(Protocol::Thft)),
            (false, true) => Ok(Some(Protocol::Rdsn)),
        }
    }

    /// Looks for one request at the start of `bytes`, of at most `max_len` bytes.
    pub fn cut(self, bytes: &[u8], max_len: usize) -> Result<Cut<'_>, Malformed> {
        match self {
            Protocol::Thft => frame::cut(bytes, max_len),
            Protocol::Rdsn => rdsn::cut(bytes, max_len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bytes_choose() {
        for (bytes, want) in [
            (&b""[..], Ok(None)),
            (b"T", Ok(None)),
            (b"RDS", Ok(None)),
            (b"THFT", Ok(Some(Protocol::Thft))),
            (b"RDSN\0", Ok(Some(Protocol::Rdsn))),
            (b"RDFT", Err(Malformed::Magic)),
            (b"G", Err(Malformed::Magic)),
        ] {
            assert_eq!(Protocol::of(bytes), want, "{bytes:?}");
        }
    }
}
