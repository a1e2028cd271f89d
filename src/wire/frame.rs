//! Finds THFT requests in the bytes of a client. For RDSN requests see `rdsn`.
//!
//! ```text
//! v0  0 "THFT" | 4 version=0 | 8 header_len=48 | 12 header_crc | 16 body_len | 20 body_crc
//!     24 app_id | 28 partition | 32 timeout_ms | 36 thread_hash | 40 partition_hash u64 | 48 body
//! v1  0 "THFT" | 4 version=1 | 8 meta_len | 12 body_len | 16 meta (bare Thrift struct) | body
//! ```
//! All integers are u32, big-endian, unless noted. The reader reports a bad header at its first bad byte, long before
//! the frame is complete. The proxy neither uses nor passes on the fields of the header: it writes its own header to
//! MetaServers. All clients send CRC 0, and servers ignore it.

use std::fmt;

use thrift::protocol::{TInputProtocol, TType};

/// The first bytes of each request.
pub const MAGIC: &[u8; 4] = b"THFT";
/// Length of a v0 header; servers accept no other.
pub const V0_HEADER_LEN: usize = 48;
/// Length of the fixed part of a v1 header.
const V1_HEADER_LEN: usize = 16;

/// The header of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderKind<'a> {
    /// THFT version 0 (Go, Python, Node).
    ThftV0,
    /// THFT version 1 (Java). Its answers look as those of version 0.
    ThftV1,
    /// RDSN (C++).
    Rdsn {
        /// Chosen by the client.
        id: u64,
        /// Name of the remote procedure.
        method: &'a str,
    },
}

/// One whole request frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: HeaderKind<'a>,
    /// The Thrift message: begin, arguments. RDSN has no begin.
    pub body: &'a [u8],
    /// Bytes of the frame in all.
    pub len: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Cut<'a> {
    /// A good start; more bytes are needed.
    Incomplete,
    /// A whole frame.
    Whole(Frame<'a>),
}

/// Why bytes can never become a request. The connection closes, because later bytes mean nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// The bytes do not start with the magic of the connection's protocol.
    Magic,
    /// A header version that no client has.
    Version(u32),
    /// A v0 header whose own length is not 48.
    HeaderLen(u32),
    /// The frame would be longer than the limit.
    TooLong {
        /// Claimed bytes.
        len: u64,
        /// Allowed bytes.
        max: usize,
    },
    /// A v1 meta struct that does not parse.
    Meta(String),
    /// A message begin that does not parse.
    Message(String),
    /// A REPLY or EXCEPTION instead of a CALL or ONEWAY.
    MessageType,
    /// Arguments of QueryConfig that do not parse; such bytes abort a MetaServer.
    Args(String),
    /// A part of an RDSN header that no client writes like this.
    Rdsn(&'static str, String),
    /// A wrong CRC of this part of an RDSN frame.
    Crc(&'static str),
}

impl Malformed {
    /// A short name for counters.
    pub fn kind(&self) -> &'static str {
        match self {
            Malformed::Magic => "magic",
            Malformed::Version(_) => "version",
            Malformed::HeaderLen(_) => "header_len",
            Malformed::TooLong { .. } => "too_long",
            Malformed::Meta(_) => "meta",
            Malformed::Message(_) => "message",
            Malformed::MessageType => "message_type",
            Malformed::Args(_) => "args",
            Malformed::Rdsn(..) => "rdsn_header",
            Malformed::Crc(_) => "crc",
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Magic => write!(f, "want magic THFT or RDSN, got other bytes"),
            Malformed::Version(got) => write!(f, "want header version 0 or 1, got {got}"),
            Malformed::HeaderLen(got) => write!(f, "want v0 header_len 48, got {got}"),
            Malformed::TooLong { len, max } => {
                write!(f, "want a frame of at most {max} bytes, got {len}")
            }
            Malformed::Meta(why) => write!(f, "want a v1 meta struct, got {why}"),
            Malformed::Message(why) => write!(f, "want a Thrift message begin, got {why}"),
            Malformed::MessageType => write!(f, "want message type CALL or ONEWAY, got an answer"),
            Malformed::Args(why) => write!(f, "want QueryConfig arguments, got {why}"),
            Malformed::Rdsn(want, got) => write!(f, "want RDSN {want}, got {got}"),
            Malformed::Crc(part) => write!(f, "want the CRC-32C of the RDSN {part}, got another"),
        }
    }
}

impl std::error::Error for Malformed {}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes(field.try_into().expect("four bytes")))
}

/// Looks for one frame at the start of `bytes`, of at most `max_len` bytes.
pub fn cut(bytes: &[u8], max_len: usize) -> Result<Cut<'_>, Malformed> {
    let seen = bytes.len().min(MAGIC.len());
    if bytes[..seen] != MAGIC[..seen] {
        return Err(Malformed::Magic);
    }
    match u32_at(bytes, 4) {
        None => Ok(Cut::Incomplete),
        Some(0) => cut_v0(bytes, max_len),
        Some(1) => cut_v1(bytes, max_len),
        Some(version) => Err(Malformed::Version(version)),
    }
}

fn cut_v0(bytes: &[u8], max_len: usize) -> Result<Cut<'_>, Malformed> {
    match u32_at(bytes, 8) {
        Some(len) if len as usize != V0_HEADER_LEN => return Err(Malformed::HeaderLen(len)),
        _ => {}
    }
    let Some(body_len) = u32_at(bytes, 16) else {
        return Ok(Cut::Incomplete);
    };
    let len = checked_len(V0_HEADER_LEN, 0, body_len, max_len)?;
    Ok(whole(bytes, HeaderKind::ThftV0, V0_HEADER_LEN, len))
}

fn cut_v1(bytes: &[u8], max_len: usize) -> Result<Cut<'_>, Malformed> {
    let (Some(meta_len), Some(body_len)) = (u32_at(bytes, 8), u32_at(bytes, 12)) else {
        return Ok(Cut::Incomplete);
    };
    let len = checked_len(V1_HEADER_LEN, meta_len, body_len, max_len)?;
    let body_at = V1_HEADER_LEN + meta_len as usize;
    if let Some(meta) = bytes.get(V1_HEADER_LEN..body_at) {
        check_meta(meta)?;
    }
    Ok(whole(bytes, HeaderKind::ThftV1, body_at, len))
}

fn checked_len(fixed: usize, meta: u32, body: u32, max: usize) -> Result<usize, Malformed> {
    let len = fixed as u64 + u64::from(meta) + u64::from(body);
    match usize::try_from(len) {
        Ok(len) if len <= max => Ok(len),
        _ => Err(Malformed::TooLong { len, max }),
    }
}

fn whole<'a>(bytes: &'a [u8], kind: HeaderKind<'a>, body_at: usize, len: usize) -> Cut<'a> {
    match bytes.get(body_at..len) {
        Some(body) => Cut::Whole(Frame { kind, body, len }),
        None => Cut::Incomplete,
    }
}

/// Checks that the meta struct parses to its last byte. The proxy does not use its fields.
fn check_meta(meta: &[u8]) -> Result<(), Malformed> {
    let mut input = super::reader(meta);
    input.skip(TType::Struct).map_err(|e| Malformed::Meta(e.to_string()))?;
    match input.transport.len() {
        0 => Ok(()),
        left => Err(Malformed::Meta(format!("{left} bytes behind it"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 64 * 1024;

    fn v0(body: &[u8]) -> Vec<u8> {
        let mut bytes = b"THFT\0\0\0\0\0\0\0\x30\0\0\0\0".to_vec();
        bytes.extend((body.len() as u32).to_be_bytes());
        bytes.resize(V0_HEADER_LEN, 0);
        bytes.extend(body);
        bytes
    }

    fn v1(meta: &[u8], body: &[u8]) -> Vec<u8> {
        let mut bytes = b"THFT\0\0\0\x01".to_vec();
        bytes.extend((meta.len() as u32).to_be_bytes());
        bytes.extend((body.len() as u32).to_be_bytes());
        bytes.extend(meta);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn every_prefix_of_a_frame_is_incomplete_and_the_rest_is_left_alone() {
        for (kind, bytes) in [
            (HeaderKind::ThftV0, v0(b"body")),
            (HeaderKind::ThftV1, v1(&[8, 0, 1, 0, 0, 0, 7, 0], b"body")),
        ] {
            for n in 0..bytes.len() {
                assert_eq!(cut(&bytes[..n], MAX), Ok(Cut::Incomplete), "{kind:?} {n}");
            }
            let mut more = bytes.clone();
            more.extend(b"THF");
            let whole = Frame { kind, body: b"body", len: bytes.len() };
            assert_eq!(cut(&more, MAX), Ok(Cut::Whole(whole)));
        }
    }

    #[test]
    fn bad_bytes_are_reported_at_once() {
        let mut long_v0 = v0(b"");
        long_v0[16..20].copy_from_slice(&0x7fff_ffffu32.to_be_bytes());
        let one_over = v0(&vec![0; MAX - V0_HEADER_LEN + 1]);
        let mut long_v1 = v1(&[0], b"");
        long_v1[8..16].copy_from_slice(&[0xff; 8]);
        for (why, bytes, want) in [
            ("another protocol", b"GET / HTTP".to_vec(), "magic"),
            ("one wrong byte is enough", b"THX".to_vec(), "magic"),
            ("a version nobody has", b"THFT\0\0\0\x02".to_vec(), "version"),
            ("v0 header_len", b"THFT\0\0\0\0\0\0\0\x2f".to_vec(), "header_len"),
            ("2 GB body", long_v0[..20].to_vec(), "too_long"),
            ("one byte over the limit", one_over[..20].to_vec(), "too_long"),
            ("lengths whose sum overflows u32", long_v1[..16].to_vec(), "too_long"),
            ("meta without its stop byte", v1(&[8, 0, 1, 0, 0, 0, 7], b""), "meta"),
            ("meta with bytes behind it", v1(&[0, 0], b""), "meta"),
            ("no meta at all", v1(&[], b""), "meta"),
        ] {
            let got = cut(&bytes, MAX).map_err(|e| e.kind());
            assert_eq!(got, Err(want), "{why}");
        }
        assert!(matches!(cut(&v0(&vec![0; MAX - V0_HEADER_LEN]), MAX), Ok(Cut::Whole(_))));
    }
}
