//! RDSN, the protocol of native C++ clients: finds their requests, and writes the header of an answer.
//!
//! ```text
//! 0 "RDSN" | 4 u32 version=0 | 8 u32 header_len=192 | 12 u32 header_crc | 16 u32 body_len | 20 u32 body_crc
//! 24 u64 id | 32 u64 trace_id | 40 char[48] rpc_name | 88 u32 code, u32 hash | 96 i32 app_id, i32 partition
//! 104 u64 context | 112 u64 from_address | 120 i32 timeout_ms | 124 i32 thread_hash | 128 u64 partition_hash
//! 136 char[48] error_name | 184 u32 code, u32 hash | 192 body
//! context: bit 0 is_request, 1 is_forwarded, 6-9 serialize_format (1: Thrift binary), 10 is_forward_supported
//! ```
//! All integers are little-endian. A CRC of 0 means that there is none. An unusual request closes its connection,
//! because a MetaServer aborts on a body that it cannot parse. A client aborts on an answer that it cannot parse, see
//! [`check_result`]. In the header of an answer it reads only the fields that [`answer_head`] writes. Source:
//! incubator-pegasus `src/rpc/rpc_message.h`, `message_header`; `src/rpc/dsn_message_parser.cpp`.

use std::ops::Range;

use super::crc32c::crc32c;
use super::error_code::ERR_OK;
use super::frame::{Cut, Frame, HeaderKind, Malformed};
use super::message::QUERY_CONFIG;
use super::result::{self, Unexpected};

/// The first bytes of each frame.
pub const MAGIC: &[u8; 4] = b"RDSN";
/// Length of a header, in both directions.
pub const HEADER_LEN: usize = 192;

const VERSION_AT: usize = 4;
const HEADER_LEN_AT: usize = 8;
const HEADER_CRC_AT: usize = 12;
const BODY_LEN_AT: usize = 16;
const BODY_CRC_AT: usize = 20;
const ID_AT: usize = 24;
const RPC_NAME: Range<usize> = 40..88;
const CONTEXT_AT: usize = 104;
const ERROR_NAME: Range<usize> = 136..184;

const IS_REQUEST: u64 = 1;
const IS_FORWARDED: u64 = 1 << 1;
const FORMAT_SHIFT: u32 = 6;
const FORMAT_MASK: u64 = 0xf;
const THRIFT_BINARY: u64 = 1;

/// The header of an answer.
pub type Head = [u8; HEADER_LEN];

/// Looks for one request at the start of `bytes`, of at most `max_len` bytes. Reports a fault as soon as its bytes have
/// arrived.
pub fn cut(bytes: &[u8], max_len: usize) -> Result<Cut<'_>, Malformed> {
    let seen = bytes.len().min(MAGIC.len());
    if bytes[..seen] != MAGIC[..seen] {
        return Err(Malformed::Magic);
    }
    match u32_at(bytes, VERSION_AT) {
        Some(0) | None => {}
        Some(got) => return Err(Malformed::Rdsn("version 0", got.to_string())),
    }
    match u32_at(bytes, HEADER_LEN_AT) {
        Some(got) if got as usize != HEADER_LEN => {
            return Err(Malformed::Rdsn("header_len 192", got.to_string()));
        }
        _ => {}
    }
    let Some(body_len) = u32_at(bytes, BODY_LEN_AT) else {
        return Ok(Cut::Incomplete);
    };
    let len = HEADER_LEN as u64 + u64::from(body_len);
    let Some(len) = usize::try_from(len).ok().filter(|len| *len <= max_len) else {
        return Err(Malformed::TooLong { len, max: max_len });
    };
    let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
        return Ok(Cut::Incomplete);
    };
    let kind = read_header(header)?;
    let Some(body) = bytes.get(HEADER_LEN..len) else {
        return Ok(Cut::Incomplete);
    };
    match crc_at(header, BODY_CRC_AT) {
        Some(crc) if crc != crc32c(&[body]) => Err(Malformed::Crc("body")),
        _ => Ok(Cut::Whole(Frame { kind, body, len })),
    }
}

fn read_header(header: &Head) -> Result<HeaderKind<'_>, Malformed> {
    if let Some(crc) = crc_at(header, HEADER_CRC_AT) {
        let (before, behind) = (&header[..HEADER_CRC_AT], &header[BODY_LEN_AT..]);
        if crc != crc32c(&[before, &[0; 4], behind]) {
            return Err(Malformed::Crc("header"));
        }
    }
    let context = u64_at(header, CONTEXT_AT);
    if context & IS_REQUEST == 0 {
        return Err(Malformed::MessageType);
    }
    if context & IS_FORWARDED != 0 {
        return Err(Malformed::Rdsn("a client's request", "one that a server forwards".to_owned()));
    }
    match context >> FORMAT_SHIFT & FORMAT_MASK {
        THRIFT_BINARY => {}
        got => {
            let want = "serialize_format 1 (Thrift binary)";
            let name = if got == 3 { " (Thrift JSON)" } else { "" };
            return Err(Malformed::Rdsn(want, format!("{got}{name}")));
        }
    }
    let method = text(header, RPC_NAME)
        .ok_or_else(|| Malformed::Rdsn("an rpc_name", "bytes that are no UTF-8".to_owned()))?;
    Ok(HeaderKind::Rdsn { id: u64_at(header, ID_AT), method })
}

/// The header of an answer with a body of `body_len` bytes. Every answer with a body has the header error [`ERR_OK`]:
/// on any other, the client asks again each second.
pub fn answer_head(id: u64, error: &str, body_len: usize) -> Head {
    let body_len = u32::try_from(body_len).expect("answers are limited to 64 MiB");
    let mut head = header(id, THRIFT_BINARY << FORMAT_SHIFT, body_len);
    head[ERROR_NAME][..error.len()].copy_from_slice(error.as_bytes());
    head
}

/// Writes a QueryConfig request for `meta-proxy query`. `args` are encoded as in THFT. A follower names the leader
/// inside its response, because the request does not ask for a forward.
pub fn write_query(id: u64, args: &[u8]) -> Vec<u8> {
    let body_len = u32::try_from(args.len()).expect("arguments are limited far below 4 GB");
    let mut frame = header(id, IS_REQUEST | THRIFT_BINARY << FORMAT_SHIFT, body_len).to_vec();
    frame[RPC_NAME][..QUERY_CONFIG.len()].copy_from_slice(QUERY_CONFIG.as_bytes());
    frame.extend(args);
    frame[HEADER_LEN + 2] = 0;
    frame
}

fn header(id: u64, context: u64, body_len: u32) -> Head {
    let mut head = [0; HEADER_LEN];
    head[..MAGIC.len()].copy_from_slice(MAGIC);
    head[HEADER_LEN_AT..][..4].copy_from_slice(&(HEADER_LEN as u32).to_le_bytes());
    head[BODY_LEN_AT..][..4].copy_from_slice(&body_len.to_le_bytes());
    head[ID_AT..][..8].copy_from_slice(&id.to_le_bytes());
    head[CONTEXT_AT..][..8].copy_from_slice(&context.to_le_bytes());
    head
}

/// Length of the body after the header of the answer to `id`; `Err` says what is wrong.
pub fn read_answer_head(head: &Head, id: u64) -> Result<usize, String> {
    if !head.starts_with(MAGIC) || u32_at(head, HEADER_LEN_AT) != Some(HEADER_LEN as u32) {
        return Err("want an RDSN header, got other bytes".to_owned());
    }
    let context = u64_at(head, CONTEXT_AT);
    let format = context >> FORMAT_SHIFT & FORMAT_MASK;
    if context & IS_REQUEST != 0 || format != THRIFT_BINARY {
        return Err(format!("want an answer in Thrift binary, got context {context:#x}"));
    }
    match u64_at(head, ID_AT) {
        got if got != id => return Err(format!("want id {id}, got {got}")),
        _ => {}
    }
    match text(head, ERROR_NAME) {
        Some(ERR_OK) => Ok(u32_at(head, BODY_LEN_AT).expect("the header is whole") as usize),
        Some(error) => Err(format!("want a result, got header error {error:?}")),
        None => Err("want a header error, got bytes that are no UTF-8".to_owned()),
    }
}

/// Whether a C++ client can read this result. The client aborts on a result that it cannot parse, on addresses other
/// than IPv4 and on hosts that do not resolve, and divides by the number of partitions. It skips unknown fields by the
/// same rule as this code.
pub fn check_result(result: &[u8]) -> Result<(), Unexpected> {
    let found = result::walk(result)?;
    if let Some(bad) = found.bad_address {
        return Err(Unexpected(format!(
            "want IPv4 addresses, and hosts that can be looked up, got {bad}"
        )));
    }
    if found.err == ERR_OK.as_bytes() && found.partition_count <= 0 {
        let count = found.partition_count;
        return Err(Unexpected(format!("want at least one partition, got {count}")));
    }
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|field| u32::from_le_bytes(*field))
}

/// Reads a CRC; `None`: the frame has none.
fn crc_at(header: &Head, at: usize) -> Option<u32> {
    u32_at(header, at).filter(|crc| *crc != 0)
}

fn u64_at(header: &Head, at: usize) -> u64 {
    u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"))
}

/// Reads a name that is padded with zeros.
fn text(header: &Head, field: Range<usize>) -> Option<&str> {
    let name = header[field].split(|byte| *byte == 0).next()?;
    str::from_utf8(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::{self, RequestId, query_args, read_call};

    /// A table of one partition with these addresses: primary, secondary, dropped server, and a host.
    fn result_with(addresses: [i64; 3], host: &str) -> Vec<u8> {
        let [primary, secondary, dropped] = addresses.map(i64::to_be_bytes);
        let mut result = [&[12, 0, 0, 12, 0, 1, 0, 0, 0, 6][..], b"ERR_OK"].concat();
        result.extend([8, 0, 3, 0, 0, 0, 1, 15, 0, 5, 12, 0, 0, 0, 1]);
        result.extend([&[12, 0, 4][..], &primary].concat());
        result.extend([&[15, 0, 5, 12, 0, 0, 0, 1][..], &secondary].concat());
        result.extend([&[15, 0, 6, 12, 0, 0, 0, 1][..], &dropped].concat());
        result.extend([&[12, 0, 9, 0, 0, 0, host.len() as u8][..], host.as_bytes()].concat());
        result.extend([0x87, 0x11, 1, 0, 0, 0]);
        result
    }

    #[test]
    fn addresses_on_which_a_client_aborts_do_not_pass() {
        const IPV4: i64 = 10 << 56 | 34_801 << 16 | 1;
        let long = format!("{}.example", "l".repeat(63));
        for host in ["a", "m1.example", "m1.example.", "a_b", "10.0.0.1", "12345678", &long] {
            assert_eq!(check_result(&result_with([IPV4, 0, IPV4 | 4], host)), Ok(()), "{host}");
        }
        for bad in [2, 3, IPV4 | 2, 7, 0xffff] {
            for place in 0..3 {
                let mut addresses = [IPV4; 3];
                addresses[place] = bad;
                assert!(check_result(&result_with(addresses, "a")).is_err(), "{bad} at {place}");
            }
        }
        let longer = format!("l{long}");
        for host in
            ["", ".", "..", ".a", "a..b", "::1", "a:1", "1.2.3.999", "1.2.3", "-", "a b", &longer]
        {
            assert!(check_result(&result_with([IPV4; 3], host)).is_err(), "{host:?}");
        }
    }

    const MAX: usize = 64 * 1024;

    fn whole(bytes: &[u8]) -> Frame<'_> {
        match cut(bytes, MAX) {
            Ok(Cut::Whole(frame)) => frame,
            other => panic!("want a whole frame, got {other:?}"),
        }
    }

    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut frame = write_query(7, &query_args("temp"));
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    }

    #[test]
    fn a_request_is_cut_whole_and_asks_what_thft_asks() {
        let bytes = write_query(7, &query_args("temp"));
        for n in 0..bytes.len() {
            assert_eq!(cut(&bytes[..n], MAX), Ok(Cut::Incomplete), "{n}");
        }
        let more = [&bytes[..], b"RDS"].concat();
        let frame = whole(&more);
        assert_eq!(frame.len, bytes.len());
        let call = read_call(&frame).unwrap();
        assert_eq!((call.method, call.id), (QUERY_CONFIG, RequestId::Rdsn(7)));
        let query = call.query().unwrap();
        assert_eq!((&*query.table, &*query.args), ("temp", &query_args("temp")[..]));
    }

    #[test]
    fn odd_headers_are_reported_as_soon_as_they_arrive() {
        let context = |context: u64| with(CONTEXT_AT, &context.to_le_bytes());
        let long = (MAX - HEADER_LEN + 1) as u32;
        for (why, bytes, enough, want) in [
            ("another protocol", b"RDSM".to_vec(), 4, "magic"),
            ("one wrong byte is enough", b"RT".to_vec(), 2, "magic"),
            ("version 1", with(VERSION_AT, &[1]), 8, "rdsn_header"),
            ("header_len 193", with(HEADER_LEN_AT, &[193]), 12, "rdsn_header"),
            ("2 GB body", with(BODY_LEN_AT, &[255, 255, 255, 127]), 20, "too_long"),
            ("one byte over the limit", with(BODY_LEN_AT, &long.to_le_bytes()), 20, "too_long"),
            ("header CRC", with(HEADER_CRC_AT, &[1]), 192, "crc"),
            ("body CRC", with(BODY_CRC_AT, &[1]), 216, "crc"),
            ("an answer", context(0x40), 192, "message_type"),
            ("a forwarded request", context(0x443), 192, "rdsn_header"),
            ("no format", context(0x401), 192, "rdsn_header"),
            ("Thrift compact", context(0x481), 192, "rdsn_header"),
            ("Thrift JSON", context(0x4c1), 192, "rdsn_header"),
            ("an unknown format", context(0x441 | 8 << 6), 192, "rdsn_header"),
            ("rpc_name", with(RPC_NAME.start, &[0xff]), 192, "rdsn_header"),
        ] {
            assert_eq!(cut(&bytes, MAX).map_err(|e| e.kind()), Err(want), "{why}");
            assert_eq!(cut(&bytes[..enough], MAX).map_err(|e| e.kind()), Err(want), "{why}");
            assert_eq!(cut(&bytes[..enough - 1], MAX), Ok(Cut::Incomplete), "{why}");
        }
        assert!(matches!(cut(&context(0x441 | 1 << 60), MAX), Ok(Cut::Whole(_))), "other bits");
    }

    #[test]
    fn a_name_may_fill_its_field() {
        let bytes = with(RPC_NAME.start, &[b'x'; 48]);
        let HeaderKind::Rdsn { method, .. } = whole(&bytes).kind else { panic!("RDSN") };
        assert_eq!(method, "x".repeat(48));
    }

    #[test]
    fn arguments_are_one_struct_around_the_request() {
        let good = query_args("temp");
        for (why, first, ok) in [
            ("as clients write it", [12, 0, 0], true),
            ("as THFT has it", [12, 0, 1], true),
            ("another field", [12, 0, 2], false),
            ("another type", [11, 0, 0], false),
        ] {
            let body = [&first[..], &good[3..]].concat();
            let kind = HeaderKind::Rdsn { id: 1, method: QUERY_CONFIG };
            let frame = Frame { kind, body: &body, len: 0 };
            let query = message::read_call(&frame).unwrap().query();
            assert_eq!(
                query.map(|query| query.args.to_vec()).ok(),
                ok.then(|| good.clone()),
                "{why}"
            );
            for n in 0..body.len() {
                let frame = Frame { kind, body: &body[..n], len: 0 };
                assert!(message::read_call(&frame).unwrap().query().is_err(), "{why}: {n} bytes");
            }
        }
    }

    #[test]
    fn an_answer_is_read_back() {
        let head = answer_head(7, ERR_OK, 500);
        assert_eq!(read_answer_head(&head, 7), Ok(500));
        assert!(read_answer_head(&head, 8).is_err(), "another id");
        assert!(read_answer_head(&answer_head(7, "ERR_BUSY", 0), 7).is_err(), "a header error");
        let request = write_query(7, &query_args("temp"));
        assert!(read_answer_head(request.first_chunk().unwrap(), 7).is_err(), "a request");
    }
}
