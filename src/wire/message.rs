//! Reads the content of a request: the method, its seq, and for QueryConfig the table.
//!
//! ```text
//! THFT  i32 80 01 00 01 (CALL; ONEWAY is 04) | i32 n + method | i32 seq
//!       | args {1: query_cfg_request {1: string app_name, 2: list<i32> partition_indices}}
//! RDSN  args {0: query_cfg_request}; the method and an id stand in the header
//! ```
//! The proxy checks the arguments to their last byte, because a MetaServer aborts on a QueryConfig with empty, missing,
//! truncated or junk arguments. It then passes them on unchanged, including unknown fields. Source: incubator-pegasus
//! `idl/dsn.layer2.thrift`, `query_cfg_request`.

use std::borrow::Cow;

use thrift::protocol::{TInputProtocol, TMessageType, TType};

use super::frame::{Frame, HeaderKind, Malformed, V0_HEADER_LEN};
use super::{Input, bad, each_field, message_begin, reader, skip, text};

/// The only method that the proxy routes.
pub const QUERY_CONFIG: &str = "RPC_CM_QUERY_PARTITION_CONFIG_BY_INDEX";
/// The first request of clients that may have to authenticate.
pub const NEGOTIATION: &str = "RPC_NEGOTIATION";

/// The value by which a client finds the request of an answer, by protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestId {
    /// The seq of a THFT message.
    Thft(i32),
    /// The id of an RDSN header.
    Rdsn(u64),
}

/// A request whose arguments are not read yet.
#[derive(Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// Name of the remote procedure.
    pub method: &'a str,
    /// Chosen by the client; the answer has the same.
    pub id: RequestId,
    args: &'a [u8],
}

/// A QueryConfig with checked arguments.
#[derive(Debug, PartialEq, Eq)]
pub struct Query<'a> {
    pub table: Box<str>,
    /// The arguments, encoded as in THFT.
    pub args: Cow<'a, [u8]>,
}

/// Reads the message begin of a frame.
pub fn read_call<'a>(frame: &Frame<'a>) -> Result<Call<'a>, Malformed> {
    if let HeaderKind::Rdsn { id, method } = frame.kind {
        return Ok(Call { method, id: RequestId::Rdsn(id), args: frame.body });
    }
    let mut input = reader(frame.body);
    let (method, kind, seq) =
        message_begin(&mut input).map_err(|e| Malformed::Message(e.to_string()))?;
    match kind {
        TMessageType::Call | TMessageType::OneWay => {
            Ok(Call { method, id: RequestId::Thft(seq), args: input.transport })
        }
        TMessageType::Reply | TMessageType::Exception => Err(Malformed::MessageType),
    }
}

impl<'a> Call<'a> {
    /// Checks the arguments of QueryConfig. Returns the same bytes for both protocols, so that they can share a
    /// question.
    pub fn query(&self) -> Result<Query<'a>, Malformed> {
        let args = match self.id {
            RequestId::Thft(_) => Cow::Borrowed(self.args),
            RequestId::Rdsn(_) => Cow::Owned(thft_args(self.args)?),
        };
        Ok(Query { table: read_table(&args)?.into(), args })
    }
}

/// Converts RDSN arguments to THFT: query_cfg_request gets field id 1. RDSN gives it id 0; a MetaServer also accepts 1
/// there.
fn thft_args(args: &[u8]) -> Result<Vec<u8>, Malformed> {
    const STRUCT: u8 = 12;
    let [STRUCT, 0, 0 | 1, rest @ ..] = args else {
        return Err(Malformed::Args("no query_cfg_request at their start".to_owned()));
    };
    Ok([&[STRUCT, 0, 1], rest].concat())
}

/// Checks the arguments of QueryConfig whole and returns the table's name.
///
/// This is stricter than a Thrift reader: known fields must have their type and occur once. The generated reader of a
/// MetaServer takes the last of two names, and reads a list of any element type as i32; the proxy would then route by
/// one table and ask about another.
pub fn read_table(args: &[u8]) -> Result<&str, Malformed> {
    let mut input = reader(args);
    read_args(&mut input)
        .and_then(|table| match input.transport.len() {
            0 => Ok(table),
            left => Err(bad(format!("{left} bytes behind them"))),
        })
        .map_err(|e| Malformed::Args(e.to_string()))
}

fn read_args<'a>(input: &mut Input<'a>) -> thrift::Result<&'a str> {
    let mut table = None;
    each_field(input, |input, field| match field {
        (1, TType::Struct) if table.is_none() => {
            table = Some(read_request(input)?);
            Ok(())
        }
        (1, _) => Err(bad("argument 1 that is no single struct")),
        (_, kind) => skip(input, kind),
    })?;
    table.ok_or_else(|| bad("no query_cfg_request"))
}

fn read_request<'a>(input: &mut Input<'a>) -> thrift::Result<&'a str> {
    let mut table = None;
    let mut indices_seen = false;
    each_field(input, |input, field| match field {
        (1, TType::String) if table.is_none() => {
            table = Some(text(input)?);
            Ok(())
        }
        (1, _) => Err(bad("app_name that is no single string")),
        (2, TType::List) if !indices_seen => {
            indices_seen = true;
            let list = input.read_list_begin()?;
            if list.element_type != TType::I32 {
                return Err(bad("partition_indices that are not i32"));
            }
            (0..list.size).try_for_each(|_| input.read_i32().map(drop))
        }
        (2, _) => Err(bad("partition_indices that are no single list")),
        (_, kind) => skip(input, kind),
    })?;
    table.ok_or_else(|| bad("no app_name"))
}

/// Whether a table of this name can exist: 1-255 of `[A-Za-z0-9_.:-]`, and not `.` or `..`. Other names are unknown,
/// and never become part of a ZooKeeper path.
pub fn is_table_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'-');
    (1..=255).contains(&name.len()) && name.bytes().all(good) && name != "." && name != ".."
}

/// Writes a QueryConfig request, without a timeout (a MetaServer ignores it). `args` must have passed [`read_table`].
pub fn write_query(seq: i32, args: &[u8], out: &mut Vec<u8>) {
    write_call(Gpid::META, QUERY_CONFIG, seq, 0, args, out);
}

/// A partition of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpid {
    pub app_id: i32,
    pub index: i32,
}

impl Gpid {
    /// Requests to a MetaServer need this one: the server aborts on any other.
    pub const META: Gpid = Gpid { app_id: 0, index: 0 };

    /// A replica server needs this hash, which chooses the thread for the partition, and aborts on any other. Source:
    /// incubator-pegasus `src/common/gpid.h`, `gpid::thread_hash`.
    fn thread_hash(self) -> i32 {
        self.app_id.wrapping_mul(7919).wrapping_add(self.index)
    }
}

/// Writes a request with the proxy's own header.
pub fn write_call(
    gpid: Gpid,
    method: &str,
    seq: i32,
    timeout_ms: u32,
    args: &[u8],
    out: &mut Vec<u8>,
) {
    let body_len = 4 + 4 + method.len() + 4 + args.len();
    let body_len = u32::try_from(body_len).expect("request frames are limited far below 4 GB");
    out.extend(b"THFT\0\0\0\0");
    out.extend((V0_HEADER_LEN as u32).to_be_bytes());
    out.extend([0; 4]);
    out.extend(body_len.to_be_bytes());
    // Like clients, write CRC 0.
    out.extend([0; 4]);
    out.extend(gpid.app_id.to_be_bytes());
    out.extend(gpid.index.to_be_bytes());
    out.extend(timeout_ms.to_be_bytes());
    out.extend(gpid.thread_hash().to_be_bytes());
    // A key hash that belongs to the partition for any number of partitions.
    out.extend(i64::from(gpid.index).to_be_bytes());
    out.extend([0x80, 0x01, 0x00, 0x01]);
    out.extend((method.len() as u32).to_be_bytes());
    out.extend(method.as_bytes());
    out.extend(seq.to_be_bytes());
    out.extend(args);
}

/// Arguments of QueryConfig for a table, all partitions.
pub fn query_args(table: &str) -> Vec<u8> {
    let mut args = vec![0x0c, 0, 1, 0x0b, 0, 1];
    args.extend((table.len() as u32).to_be_bytes());
    args.extend(table.as_bytes());
    args.extend([0x0f, 0, 2, 0x08, 0, 0, 0, 0, 0, 0]);
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_checked_whole() {
        let good = query_args("temp");
        assert_eq!(read_table(&good).unwrap(), "temp");
        for n in 0..good.len() {
            assert!(read_table(&good[..n]).is_err(), "truncated at {n}");
        }

        let request = |fields: &[u8]| [&[0x0c, 0, 1][..], fields, &[0, 0]].concat();
        let name = [0x0b, 0, 1, 0, 0, 0, 1, b't'];
        let i32s = [0x0f, 0, 2, 0x08, 0, 0, 0, 1, 0, 0, 0, 9];
        let future = [0x0d, 0, 9, 0x0b, 0x0c, 0, 0, 0, 1, 0, 0, 0, 1, b'k', 0];
        let uuid = [&[0x10, 0, 9][..], &[0x0b, 0, 1, 0, 0, 0, 1, b'u'], &[0; 8]].concat();
        let list = [0x0f, 0, 9, 0x10, 0, 0, 0, 1];
        let map = [0x0d, 0, 9, 0x10, 0x0b, 0, 0, 0, 1];
        for (why, args, good) in [
            ("as clients send it", request(&[&name[..], &i32s].concat()), true),
            ("Node sends no indices", request(&name), true),
            ("fields of the future", request(&[&name[..], &future].concat()), true),
            ("empty", vec![], false),
            ("no request", vec![0], false),
            ("no name", request(&i32s), false),
            ("name twice", request(&[name, name].concat()), false),
            ("name of another type", request(&[8, 0, 1, 0, 0, 0, 1]), false),
            ("name not UTF-8", request(&[0x0b, 0, 1, 0, 0, 0, 1, 0xff]), false),
            ("name longer than all", request(&[0x0b, 0, 1, 0x7f, 0, 0, 0, b't']), false),
            ("negative name length", request(&[0x0b, 0, 1, 0xff, 0, 0, 0, b't']), false),
            (
                "indices of i64",
                request(&[&name[..], &[0x0f, 0, 2, 0x0a, 0, 0, 0, 0]].concat()),
                false,
            ),
            (
                "2 billion indices",
                request(&[&name[..], &[0x0f, 0, 2, 8, 0x7f, 0, 0, 0]].concat()),
                false,
            ),
            (
                "-1 indices",
                request(&[&name[..], &[0x0f, 0, 2, 8, 255, 255, 255, 255]].concat()),
                false,
            ),
            ("request twice", [&request(&name)[..9 + 3], &request(&name)].concat(), false),
            ("bytes behind", [&request(&name)[..], &[0]].concat(), false),
            ("unknown type", request(&[&name[..], &[0x55, 0, 9]].concat()), false),
            ("a type servers skip otherwise", request(&[&name[..], &uuid].concat()), false),
            ("the same in a list", request(&[&name[..], &list, &uuid[3..]].concat()), false),
            ("the same in a map", request(&[&name[..], &map, &uuid[3..]].concat()), false),
            ("nested without end", [0x0c, 0, 9].repeat(1000), false),
        ] {
            assert_eq!(read_table(&args).is_ok(), good, "{why}");
        }
    }

    fn read_call(body: &[u8]) -> Result<Call<'_>, Malformed> {
        super::read_call(&Frame { kind: HeaderKind::ThftV0, body, len: 0 })
    }

    #[test]
    fn only_calls_are_calls() {
        let body =
            |kind: u8| [&[0x80, 1, 0, kind, 0, 0, 0, 1, b'm', 0, 0, 0, 7][..], b"args"].concat();
        let call = Call { method: "m", id: RequestId::Thft(7), args: b"args" };
        assert_eq!(read_call(&body(1)), Ok(call));
        assert!(read_call(&body(4)).is_ok(), "ONEWAY is answered as CALL");
        for kind in [0, 2, 3, 5] {
            assert!(read_call(&body(kind)).is_err(), "type {kind}");
        }
        let mut old = body(1);
        old[1] = 2;
        assert!(read_call(&old).is_err(), "Thrift version");
        assert!(read_call(&body(1)[..8]).is_err(), "truncated name");
    }

    #[test]
    fn table_names() {
        let long = "t".repeat(255);
        for name in ["a", "A-b_c.d:9", "...", long.as_str()] {
            assert!(is_table_name(name), "{name}");
        }
        let longer = "t".repeat(256);
        for name in ["", ".", "..", "a/b", "/", "a b", "é", "a\0", longer.as_str()] {
            assert!(!is_table_name(name), "{name}");
        }
    }
}
