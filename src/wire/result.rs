//! Walks the result struct of an answer by its schema, to the last byte.
//!
//! ```text
//! result                  0 query_cfg_response
//! query_cfg_response      1 err | 2 app_id | 3 partition_count | 4 is_stateful | 5 list<partition_configuration>
//! partition_configuration 1 pid | 2 ballot | 3 max_replica_count | 4 primary | 5 secondaries | 6 last_drops
//!                         | 7 last_committed_decree | 8 partition_flags
//!                         | 9 hp_primary | 10 hp_secondaries | 11 hp_last_drops (servers from 2.6 on)
//! ```
//! Several types travel *bare* in a field of type STRUCT: error_code as a string, gpid and rpc_address as an i64,
//! host_port as a string, an i16 and an i8. A reader without the schema takes their bytes for fields. So this code
//! reads each known field by its type, and skips only unknown fields as Thrift prescribes. Source: incubator-pegasus
//! `idl/dsn.layer2.thrift`; `host_port::read` and `rpc_address::read` in `src/rpc`.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::Range;

use thrift::protocol::TInputProtocol;

use super::{reader, skip};

const STOP: u8 = 0;

#[derive(Clone, Copy)]
enum Shape {
    Bool,
    I32,
    I64,
    /// partition_count: an i32.
    Count,
    /// error_code: a bare string.
    ErrorCode,
    /// gpid: a bare i64.
    Word,
    /// rpc_address: a bare i64.
    Address,
    HostPort,
    Struct(&'static Schema),
    List(&'static Shape),
}

impl Shape {
    /// The Thrift type.
    fn kind(self) -> u8 {
        match self {
            Shape::Bool => 2,
            Shape::I32 | Shape::Count => 8,
            Shape::I64 => 10,
            Shape::ErrorCode
            | Shape::Word
            | Shape::Address
            | Shape::HostPort
            | Shape::Struct(_) => 12,
            Shape::List(_) => 15,
        }
    }
}

/// A struct whose field ids follow one another.
struct Schema {
    name: &'static str,
    first_id: i16,
    fields: &'static [Shape],
}

static RESULT: Schema =
    Schema { name: "result", first_id: 0, fields: &[Shape::Struct(&QUERY_CFG_RESPONSE)] };

static QUERY_CFG_RESPONSE: Schema = Schema {
    name: "query_cfg_response",
    first_id: 1,
    fields: &[
        Shape::ErrorCode,
        Shape::I32,
        Shape::Count,
        Shape::Bool,
        Shape::List(&Shape::Struct(&PARTITION_CONFIGURATION)),
    ],
};

static PARTITION_CONFIGURATION: Schema = Schema {
    name: "partition_configuration",
    first_id: 1,
    fields: &[
        Shape::Word,
        Shape::I64,
        Shape::I32,
        Shape::Address,
        Shape::List(&Shape::Address),
        Shape::List(&Shape::Address),
        Shape::I64,
        Shape::I32,
        Shape::HostPort,
        Shape::List(&Shape::HostPort),
        Shape::List(&Shape::HostPort),
    ],
};

/// Why bytes are no result struct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unexpected(pub String);

impl fmt::Display for Unexpected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unexpected {}

fn unexpected<T>(what: impl Into<String>) -> Result<T, Unexpected> {
    Err(Unexpected(what.into()))
}

/// The findings of a walk.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found<'a> {
    /// `err`.
    pub err: &'a [u8],
    /// `partition_count`.
    pub partition_count: i32,
    /// The places of fields 9-11, in order. Neighbours are one range.
    pub host_ports: Vec<Range<usize>>,
    /// The first address that makes a C++ client abort: one of an unknown type, or a host that no resolver can know.
    pub bad_address: Option<String>,
    /// The first field outside the schema.
    pub unknown_field: Option<String>,
}

/// Reads a result struct to its last byte. Known fields must have their type and occur once.
pub fn walk(result: &[u8]) -> Result<Found<'_>, Unexpected> {
    let mut walk = Walk { bytes: result, at: 0, found: Found::default() };
    let ids = walk.fields(&RESULT)?;
    match result.len() - walk.at {
        0 if ids == 0 => unexpected("no query_cfg_response"),
        0 => Ok(walk.found),
        left => unexpected(format!("{left} bytes behind the result")),
    }
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    found: Found<'a>,
}

impl<'a> Walk<'a> {
    /// Reads a struct, and returns a bit for each known field that it has.
    fn fields(&mut self, schema: &'static Schema) -> Result<u32, Unexpected> {
        let mut seen = 0;
        loop {
            let start = self.at;
            let kind = self.u8()?;
            if kind == STOP {
                return Ok(seen);
            }
            let id = i16::from_be_bytes(self.array()?);
            let place = id.checked_sub(schema.first_id).and_then(|n| usize::try_from(n).ok());
            let Some((n, shape)) = place.and_then(|n| Some((n, *schema.fields.get(n)?))) else {
                self.unknown(start, schema, id)?;
                continue;
            };
            if kind != shape.kind() {
                let (name, want) = (schema.name, shape.kind());
                return unexpected(format!("{name} field {id}: want type {want}, got {kind}"));
            }
            if seen & (1 << n) != 0 {
                return unexpected(format!("{} field {id} occurs twice", schema.name));
            }
            seen |= 1 << n;
            self.value(shape, schema, id)?;
            if matches!(shape, Shape::HostPort | Shape::List(Shape::HostPort)) {
                match self.found.host_ports.last_mut() {
                    Some(last) if last.end == start => last.end = self.at,
                    _ => self.found.host_ports.push(start..self.at),
                }
            }
        }
    }

    fn value(&mut self, shape: Shape, schema: &Schema, id: i16) -> Result<(), Unexpected> {
        match shape {
            Shape::Bool => self.u8().map(drop),
            Shape::I32 => self.take(4).map(drop),
            Shape::Count => {
                self.found.partition_count = i32::from_be_bytes(self.array()?);
                Ok(())
            }
            Shape::I64 | Shape::Word => self.take(8).map(drop),
            Shape::ErrorCode => {
                self.found.err = self.text()?;
                Ok(())
            }
            Shape::Address => self.rpc_address(),
            Shape::HostPort => self.host_port(),
            Shape::Struct(inner) => self.fields(inner).map(drop),
            Shape::List(item) => {
                let (kind, count) = (self.u8()?, self.len()?);
                if kind != item.kind() {
                    let (name, want) = (schema.name, item.kind());
                    let what = format!("{name} field {id}: want a list of type {want}, got {kind}");
                    return unexpected(what);
                }
                (0..count).try_for_each(|_| self.value(*item, schema, id))
            }
        }
    }

    /// Reads an rpc_address. The two lowest bits are its type: 0 is no address, and 1 an IPv4 address; a C++ client
    /// aborts on others. Source: `rpc_address::read`.
    fn rpc_address(&mut self) -> Result<(), Unexpected> {
        match i64::from_be_bytes(self.array()?) & 3 {
            0 | 1 => {}
            kind => self.bad_address(format!("an rpc_address of type {kind}")),
        }
        Ok(())
    }

    /// Reads a host_port. Type 0 is no address, and 1 a host; a C++ client aborts on others.
    fn host_port(&mut self) -> Result<(), Unexpected> {
        let host = self.text()?;
        self.take(2)?;
        match self.u8()? {
            0 => {}
            1 if is_host(host) => {}
            1 => self.bad_address(format!("host {:?}", String::from_utf8_lossy(host))),
            kind => self.bad_address(format!("a host_port of type {kind}")),
        }
        Ok(())
    }

    fn bad_address(&mut self, what: String) {
        self.found.bad_address.get_or_insert(what);
    }

    /// Skips a field outside the schema, as every Thrift reader does.
    fn unknown(&mut self, start: usize, schema: &Schema, id: i16) -> Result<(), Unexpected> {
        let mut input = reader(&self.bytes[start..]);
        input
            .read_field_begin()
            .and_then(|begin| skip(&mut input, begin.field_type))
            .map_err(|e| Unexpected(format!("{} field {id}: {e}", schema.name)))?;
        self.at = self.bytes.len() - input.transport.len();
        let unknown = &mut self.found.unknown_field;
        unknown.get_or_insert_with(|| format!("{} field {id}", schema.name));
        Ok(())
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Unexpected> {
        let Some(taken) = self.bytes[self.at..].get(..len) else {
            return unexpected(format!("want {len} bytes at {}, got the end", self.at));
        };
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unexpected> {
        Ok(self.take(N)?.try_into().expect("N bytes were taken"))
    }

    fn u8(&mut self) -> Result<u8, Unexpected> {
        Ok(self.array::<1>()?[0])
    }

    /// Reads a length, which is never more than the bytes that are left.
    fn len(&mut self) -> Result<usize, Unexpected> {
        let len = i32::from_be_bytes(self.array()?);
        match usize::try_from(len) {
            Ok(len) if len <= self.bytes.len() - self.at => Ok(len),
            _ => unexpected(format!("a length of {len} at {}", self.at - 4)),
        }
    }

    fn text(&mut self) -> Result<&'a [u8], Unexpected> {
        let len = self.len()?;
        self.take(len)
    }
}

/// Whether `host` can be a host name or an IPv4 address: C++ clients look up no others. Source: RFC 1035.
fn is_host(host: &[u8]) -> bool {
    const MAX_HOST_LEN: usize = 253;
    const MAX_LABEL_LEN: usize = 63;
    let Ok(host) = str::from_utf8(host) else {
        return false;
    };
    if host.contains('.') && host.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return host.parse::<Ipv4Addr>().is_ok();
    }
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let is_label = |label: &str| {
        (1..=MAX_LABEL_LEN).contains(&label.len())
            && label.bytes().all(good)
            && !label.starts_with('-')
    };
    host.len() <= MAX_HOST_LEN && host.strip_suffix('.').unwrap_or(host).split('.').all(is_label)
}
