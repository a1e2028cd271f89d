//! The test side's own reading and writing of Pegasus frames: what the stand-in servers and the scripted clients
//! speak. It shares no line with the proxy, so that a fault in one of them is not hidden by the same fault in the other;
//! frames of real clients and of a real MetaServer (`tests/golden`) hold it to the truth.
//!
//! ```text
//! request  v0 | "THFT" | 0 | 48 | crc | body_len | crc | app_id | partition | timeout | hash | hash | body
//!          v1 | "THFT" | 1 | meta_len | body_len | meta (bare Thrift struct) | body
//!        body | 80 01 00 01 | method | seq | args struct
//! response    | total_len | frame error | 80 01 00 02 | method_ACK | seq | result struct, if ERR_OK
//! ```
//! Pure: no socket, no clock. Layout: incubator-pegasus `src/rpc/thrift_message_parser.cpp` and `idl/dsn.layer2.thrift`.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

/// The one method a MetaServer is asked by clients of data.
pub const QUERY_CONFIG: &str = "RPC_CM_QUERY_PARTITION_CONFIG_BY_INDEX";
/// Asked by clients which were told to use Kerberos.
pub const NEGOTIATION: &str = "RPC_NEGOTIATION";
/// The frame error, and the error code, of success.
pub const ERR_OK: &str = "ERR_OK";

/// Message type of Thrift, the last byte of a strict message begin: a request.
pub const CALL: u8 = 1;
/// Message type: an answer.
pub const REPLY: u8 = 2;
/// Message type: an answer of Thrift's own making, which Pegasus never sends.
pub const EXCEPTION: u8 = 3;
/// Message type: a request that wants no answer; a MetaServer answers it all the same.
pub const ONEWAY: u8 = 4;

/// The answer of a real server to `RPC_NEGOTIATION` with authentication off (SASL_AUTH_DISABLE), stray last byte and all.
pub const NEGOTIATION_RESULT: &[u8] = b"\x0c\0\0\x08\0\x01\0\0\0\x09\x0c\0\x02\0\0\0\0\0\0";

/// Far above any request of a client, so that a length beyond it is a fault and not a big value.
pub const MAX_BODY: usize = 64 << 20;

const MAGIC: &[u8; 4] = b"THFT";
const V0_HEADER: usize = 48;
const V1_HEADER: usize = 16;
const STRICT: u32 = 0x8001_0000;
/// Fields from here on are in no idl known today.
const FIRST_FUTURE_FIELD: i16 = 50;

pub(crate) mod kind {
    pub const STOP: u8 = 0;
    pub const BOOL: u8 = 2;
    pub const I32: u8 = 8;
    pub const I64: u8 = 10;
    pub const STRING: u8 = 11;
    pub const STRUCT: u8 = 12;
    pub const MAP: u8 = 13;
    pub const LIST: u8 = 15;
}

/// Bytes that are not what they should be: what was read, what was due, what came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

fn malformed<T>(what: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(what.into()))
}

// ---------------------------------------------------------------- requests

/// Which of the two THFT headers a request wears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// Fixed 48 bytes; Go, Python, Node.
    V0,
    /// A Thrift struct; Java.
    V1,
}

/// A request frame, taken apart. Public fields: a test that wants an odd frame changes one and encodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which header it wears.
    pub version: Version,
    /// The table's, when a replica server is asked; 0 or less when a MetaServer is.
    pub app_id: i32,
    /// The partition's index, likewise.
    pub partition: i32,
    /// As the client says; nobody believes it.
    pub timeout_ms: i32,
    /// Only v0 carries it.
    pub thread_hash: i32,
    /// The hash of the key, when a replica server is asked.
    pub partition_hash: u64,
    /// Only v1 carries it.
    pub is_backup: bool,
    /// For example [`QUERY_CONFIG`].
    pub method: String,
    /// [`CALL`], if nothing is odd.
    pub message_type: u8,
    /// The answer carries it again.
    pub seq: i32,
    /// The args struct, as it stood in the frame.
    pub args: Vec<u8>,
}

impl Request {
    /// A call with nothing odd about it.
    pub fn new(version: Version, method: &str, seq: i32, args: Vec<u8>) -> Self {
        Request {
            version,
            app_id: 0,
            partition: 0,
            timeout_ms: 5000,
            thread_hash: 0,
            partition_hash: 0,
            is_backup: false,
            method: method.to_owned(),
            message_type: CALL,
            seq,
            args,
        }
    }

    /// QueryConfig for a whole table, as Go, Java and Python ask it.
    pub fn query_config(version: Version, seq: i32, table: &str) -> Self {
        let query = Query { table: table.to_owned(), indices: Some(Vec::new()) };
        Self::new(version, QUERY_CONFIG, seq, query.encode())
    }

    /// The QueryConfig arguments. Only meaningful if `method` is [`QUERY_CONFIG`].
    pub fn query(&self) -> Result<Query, Malformed> {
        Query::decode(&self.args)
    }

    /// The whole frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Writer::default();
        body.u32(STRICT | u32::from(self.message_type));
        body.string(&self.method);
        body.i32(self.seq);
        body.bytes(&self.args);

        let mut frame = Writer::default();
        frame.bytes(MAGIC);
        match self.version {
            Version::V0 => {
                frame.u32(0);
                frame.u32(V0_HEADER as u32);
                frame.u32(0); // header_crc, never checked
                frame.u32(body.0.len() as u32);
                frame.u32(0); // body_crc, never checked
                frame.i32(self.app_id);
                frame.i32(self.partition);
                frame.i32(self.timeout_ms);
                frame.i32(self.thread_hash);
                frame.i64(self.partition_hash as i64);
            }
            Version::V1 => {
                let mut meta = Writer::default();
                meta.field_i32(1, self.app_id);
                meta.field_i32(2, self.partition);
                meta.field_i32(3, self.timeout_ms);
                meta.field_i64(4, self.partition_hash as i64);
                meta.field_bool(5, self.is_backup);
                meta.stop();
                frame.u32(1);
                frame.u32(meta.0.len() as u32);
                frame.u32(body.0.len() as u32);
                frame.bytes(&meta.0);
            }
        }
        frame.bytes(&body.0);
        frame.0
    }

    /// How long the frame at the start of `bytes` is; `None` while too little of it is there to tell.
    pub fn frame_len(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let magic = &bytes[..bytes.len().min(MAGIC.len())];
        if *magic != MAGIC[..magic.len()] {
            return malformed(format!("no frame: want \"THFT\", got {magic:02x?}"));
        }
        if bytes.len() < V1_HEADER {
            return Ok(None);
        }
        let word = |at: usize| -> Option<u32> {
            let word = bytes.get(at..at + 4)?;
            Some(u32::from_be_bytes(word.try_into().expect("four bytes were taken")))
        };
        let (head, body) = match (word(4), word(8), word(12), word(16)) {
            (Some(0), Some(48), _, Some(body)) => (V0_HEADER, body as usize),
            (Some(0), Some(48), _, None) => return Ok(None),
            (Some(0), header_len, ..) => {
                return malformed(format!("v0 header_len: want 48, got {header_len:?}"));
            }
            (Some(1), Some(meta), Some(body), _) => (V1_HEADER + meta as usize, body as usize),
            (version, ..) => {
                return malformed(format!("THFT version: want 0 or 1, got {version:?}"));
            }
        };
        if head > MAX_BODY || body > MAX_BODY {
            return malformed(format!("lengths: {head} of header, {body} of body"));
        }
        Ok(Some(head + body))
    }

    /// Takes apart one frame, neither cut short nor followed by anything.
    pub fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        match Self::frame_len(frame)? {
            Some(len) if len == frame.len() => {}
            want => return malformed(format!("frame length: want {want:?}, got {}", frame.len())),
        }
        let mut request = Request::new(Version::V0, "", 0, Vec::new());
        request.timeout_ms = 0;
        let mut at = Reader::new(frame);
        at.take(4)?;
        if at.u32()? == 0 {
            at.take(16)?; // header_len and body_len are known, the two crc are never checked
            request.app_id = at.i32()?;
            request.partition = at.i32()?;
            request.timeout_ms = at.i32()?;
            request.thread_hash = at.i32()?;
            request.partition_hash = at.i64()? as u64;
        } else {
            request.version = Version::V1;
            let meta_len = at.u32()? as usize;
            at.u32()?;
            let mut meta = Reader::new(at.take(meta_len)?);
            meta.each_field(|id, kind, meta| {
                match (id, kind) {
                    (1, kind::I32) => request.app_id = meta.i32()?,
                    (2, kind::I32) => request.partition = meta.i32()?,
                    (3, kind::I32) => request.timeout_ms = meta.i32()?,
                    (4, kind::I64) => request.partition_hash = meta.i64()? as u64,
                    (5, kind::BOOL) => request.is_backup = meta.u8()? != 0,
                    _ => meta.skip(kind)?,
                }
                Ok(())
            })?;
            meta.end("v1 header")?;
        }
        (request.message_type, request.method, request.seq) = at.message_begin()?;
        request.args = at.rest().to_vec();
        Ok(request)
    }
}

/// The arguments of QueryConfig: `args {1: query_cfg_request {1: app_name, 2: partition_indices}}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// `app_name`.
    pub table: String,
    /// `None`: the field is left out, as Node does. Empty: all partitions.
    pub indices: Option<Vec<i32>>,
}

impl Query {
    /// The args struct.
    pub fn encode(&self) -> Vec<u8> {
        let mut args = Writer::default();
        args.field_struct(1);
        args.field(kind::STRING, 1);
        args.string(&self.table);
        if let Some(indices) = &self.indices {
            args.field(kind::LIST, 2);
            args.list(kind::I32, indices, |args, index| args.i32(*index));
        }
        args.stop();
        args.stop();
        args.0
    }

    /// Strict: a MetaServer dies of less.
    pub fn decode(args: &[u8]) -> Result<Self, Malformed> {
        let mut query = None;
        let mut at = Reader::new(args);
        at.each_field(|id, kind, at| match (id, kind) {
            (1, kind::STRUCT) => {
                query = Some(Self::decode_struct(at)?);
                Ok(())
            }
            _ => at.skip(kind),
        })?;
        at.end("args")?;
        match query {
            Some(query) => Ok(query),
            None => malformed("args: no query_cfg_request in them"),
        }
    }

    fn decode_struct(at: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (mut table, mut indices) = (None, None);
        at.each_field(|id, kind, at| {
            match (id, kind) {
                (1, kind::STRING) => table = Some(at.string()?),
                (2, kind::LIST) => indices = Some(at.list(kind::I32, Reader::i32)?),
                _ => at.skip(kind)?,
            }
            Ok(())
        })?;
        match table {
            Some(table) => Ok(Query { table, indices }),
            None => malformed("query_cfg_request: no app_name"),
        }
    }
}

// --------------------------------------------------------------- responses

/// A response frame, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The frame error; anything but `ERR_OK` means that there is no result.
    pub error: String,
    /// The method asked, and `_ACK`.
    pub name: String,
    /// The seq of the request.
    pub seq: i32,
    /// The result struct, as it stood in the frame.
    pub result: Vec<u8>,
}

impl Response {
    /// How long the frame at the start of `bytes` is; `None` while the length itself is not there.
    pub fn frame_len(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let Some(len) = bytes.get(..4) else {
            return Ok(None);
        };
        let len = i32::from_be_bytes(len.try_into().expect("four bytes were taken"));
        match usize::try_from(len) {
            Ok(len) if (4..=MAX_BODY).contains(&len) => Ok(Some(len)),
            _ => malformed(format!("response length: want 4..={MAX_BODY}, got {len}")),
        }
    }

    /// Takes apart one frame, neither cut short nor followed by anything.
    pub fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        match Self::frame_len(frame)? {
            Some(len) if len == frame.len() => {}
            want => return malformed(format!("frame length: want {want:?}, got {}", frame.len())),
        }
        let mut at = Reader::new(frame);
        at.u32()?;
        let error = at.string()?;
        let (message_type, name, seq) = at.message_begin()?;
        if message_type != REPLY {
            return malformed(format!("message type: want {REPLY} (REPLY), got {message_type}"));
        }
        Ok(Response { error, name, seq, result: at.rest().to_vec() })
    }

    /// The whole frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut frame = Writer::default();
        frame.response(&self.error, &self.name, "", self.seq, &self.result);
        frame.0
    }

    /// The QueryConfig answer in it.
    pub fn config(&self) -> Result<QueryCfgResponse, Malformed> {
        match self.error.as_str() {
            ERR_OK => QueryCfgResponse::decode(&self.result),
            error => malformed(format!("no result: frame error {error}")),
        }
    }
}

/// Appends the answer to a call of `method`: how a server answers without building a [`Response`] each time.
pub fn append_response(frame: &mut Vec<u8>, error: &str, method: &str, seq: i32, result: &[u8]) {
    let mut out = Writer(std::mem::take(frame));
    out.response(error, method, "_ACK", seq, result);
    *frame = out.0;
}

/// `query_cfg_response`: what a MetaServer knows of a table. Fields as in `idl/dsn.layer2.thrift`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryCfgResponse {
    pub err: String,
    pub app_id: i32,
    pub partition_count: i32,
    pub is_stateful: bool,
    pub partitions: Vec<Partition>,
    /// Also write fields that are in no idl known today.
    pub future: bool,
}

/// `partition_configuration`: who serves one partition. Fields as in `idl/dsn.layer2.thrift`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    pub app_id: i32,
    pub index: i32,
    pub ballot: i64,
    pub max_replica_count: i32,
    pub primary: Option<SocketAddr>,
    pub secondaries: Vec<SocketAddr>,
    pub last_drops: Vec<SocketAddr>,
    pub last_committed_decree: i64,
    pub flags: i32,
    /// The last three are written by newer servers only.
    pub hp_primary: Option<HostPort>,
    pub hp_secondaries: Option<Vec<HostPort>>,
    pub hp_last_drops: Option<Vec<HostPort>>,
    /// Also write fields that are in no idl known today.
    pub future: bool,
}

/// `host_port`. The empty one is what a server writes that has reloaded its tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
    /// 0 invalid, 1 a host and port.
    pub kind: u8,
}

impl From<SocketAddr> for HostPort {
    fn from(addr: SocketAddr) -> Self {
        HostPort { host: addr.ip().to_string(), port: addr.port(), kind: 1 }
    }
}

impl QueryCfgResponse {
    /// A healthy table with all its partitions on one replica server.
    pub fn table(app_id: i32, partition_count: i32, primary: SocketAddr) -> Self {
        let partition = |index| Partition {
            app_id,
            index,
            ballot: 3,
            max_replica_count: 3,
            primary: Some(primary),
            ..Partition::empty()
        };
        QueryCfgResponse {
            err: ERR_OK.to_owned(),
            app_id,
            partition_count,
            is_stateful: true,
            partitions: (0..partition_count).map(partition).collect(),
            future: false,
        }
    }

    /// Nothing but an error, as a MetaServer tells of an unknown table.
    pub fn error(err: &str) -> Self {
        QueryCfgResponse {
            err: err.to_owned(),
            app_id: 0,
            partition_count: 0,
            is_stateful: false,
            partitions: Vec::new(),
            future: false,
        }
    }

    /// A follower's answer; the leader, if it knows one, is the primary of a partition made up for it.
    pub fn forward(leader: Option<SocketAddr>) -> Self {
        let hint = |leader| Partition { primary: Some(leader), ..Partition::empty() };
        QueryCfgResponse {
            partitions: leader.map(hint).into_iter().collect(),
            ..Self::error("ERR_FORWARD_TO_OTHERS")
        }
    }

    /// Adds the fields of newer servers: host names beside the addresses.
    pub fn with_host_ports(mut self) -> Self {
        let all = |addrs: &[SocketAddr]| Some(addrs.iter().copied().map(HostPort::from).collect());
        for partition in &mut self.partitions {
            partition.hp_primary = Some(partition.primary.map(HostPort::from).unwrap_or_default());
            partition.hp_secondaries = all(&partition.secondaries);
            partition.hp_last_drops = all(&partition.last_drops);
        }
        self
    }

    /// Adds fields which no client of today knows.
    pub fn from_the_future(mut self) -> Self {
        self.future = true;
        for partition in &mut self.partitions {
            partition.future = true;
        }
        self
    }

    /// The answer to a query for some partitions: as a real server has it, indices that do not exist are ignored, and
    /// if none is left all partitions are given.
    pub fn only(&self, indices: &[i32]) -> Self {
        let of = |index: &i32| self.partitions.iter().find(|partition| partition.index == *index);
        let chosen: Vec<_> = indices.iter().filter_map(of).cloned().collect();
        let partitions = if chosen.is_empty() { self.partitions.clone() } else { chosen };
        QueryCfgResponse { err: self.err.clone(), partitions, ..*self }
    }

    /// The result struct, `{0: query_cfg_response}`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.field_struct(0);
        out.field_struct(1); // a lie of the idl: error_code travels bare
        out.string(&self.err);
        out.field_i32(2, self.app_id);
        out.field_i32(3, self.partition_count);
        out.field_bool(4, self.is_stateful);
        out.field(kind::LIST, 5);
        out.list(kind::STRUCT, &self.partitions, Partition::encode);
        out.future(self.future);
        out.stop();
        out.stop();
        out.0
    }

    /// Reads a result struct. Unknown fields are stepped over, from [`FIRST_FUTURE_FIELD`] on only: below it a type
    /// may be one of those that travel bare, and stepping over one without knowing it goes off the rails.
    pub fn decode(result: &[u8]) -> Result<Self, Malformed> {
        let mut response = None;
        let mut at = Reader::new(result);
        at.each_field(|id, kind, at| match (id, kind) {
            (0, kind::STRUCT) => {
                response = Some(Self::decode_struct(at)?);
                Ok(())
            }
            _ => malformed(format!("result: field {id} of type {kind}")),
        })?;
        at.end("result")?;
        match response {
            Some(response) => Ok(response),
            None => malformed("result: no query_cfg_response in it"),
        }
    }

    fn decode_struct(at: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut response = Self::error("");
        at.each_field(|id, kind, at| {
            match (id, kind) {
                (1, kind::STRUCT) => response.err = at.string()?,
                (2, kind::I32) => response.app_id = at.i32()?,
                (3, kind::I32) => response.partition_count = at.i32()?,
                (4, kind::BOOL) => response.is_stateful = at.u8()? != 0,
                (5, kind::LIST) => {
                    response.partitions = at.list(kind::STRUCT, Partition::decode)?
                }
                _ => response.future = at.future("query_cfg_response", id, kind)?,
            }
            Ok(())
        })?;
        Ok(response)
    }
}

impl Partition {
    fn empty() -> Self {
        Partition {
            app_id: 0,
            index: 0,
            ballot: 0,
            max_replica_count: 0,
            primary: None,
            secondaries: Vec::new(),
            last_drops: Vec::new(),
            last_committed_decree: 0,
            flags: 0,
            hp_primary: None,
            hp_secondaries: None,
            hp_last_drops: None,
            future: false,
        }
    }

    fn encode(out: &mut Writer, partition: &Self) {
        out.field_struct(1);
        out.i64(i64::from(partition.index) << 32 | i64::from(partition.app_id as u32));
        out.field_i64(2, partition.ballot);
        out.field_i32(3, partition.max_replica_count);
        out.field_struct(4);
        out.rpc_address(partition.primary);
        for (id, addrs) in [(5, &partition.secondaries), (6, &partition.last_drops)] {
            out.field(kind::LIST, id);
            out.list(kind::STRUCT, addrs, |out, addr| out.rpc_address(Some(*addr)));
        }
        out.field_i64(7, partition.last_committed_decree);
        out.field_i32(8, partition.flags);
        if let Some(primary) = &partition.hp_primary {
            out.field_struct(9);
            HostPort::encode(out, primary);
        }
        for (id, hosts) in [(10, &partition.hp_secondaries), (11, &partition.hp_last_drops)] {
            if let Some(hosts) = hosts {
                out.field(kind::LIST, id);
                out.list(kind::STRUCT, hosts, HostPort::encode);
            }
        }
        out.future(partition.future);
        out.stop();
    }

    fn decode(at: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut partition = Self::empty();
        at.each_field(|id, kind, at| {
            match (id, kind) {
                (1, kind::STRUCT) => {
                    let gpid = at.i64()?;
                    (partition.app_id, partition.index) = (gpid as i32, (gpid >> 32) as i32);
                }
                (2, kind::I64) => partition.ballot = at.i64()?,
                (3, kind::I32) => partition.max_replica_count = at.i32()?,
                (4, kind::STRUCT) => partition.primary = at.rpc_address()?,
                (5, kind::LIST) => partition.secondaries = at.rpc_addresses()?,
                (6, kind::LIST) => partition.last_drops = at.rpc_addresses()?,
                (7, kind::I64) => partition.last_committed_decree = at.i64()?,
                (8, kind::I32) => partition.flags = at.i32()?,
                (9, kind::STRUCT) => partition.hp_primary = Some(HostPort::decode(at)?),
                (10, kind::LIST) => {
                    partition.hp_secondaries = Some(at.list(kind::STRUCT, HostPort::decode)?);
                }
                (11, kind::LIST) => {
                    partition.hp_last_drops = Some(at.list(kind::STRUCT, HostPort::decode)?);
                }
                _ => partition.future = at.future("partition_configuration", id, kind)?,
            }
            Ok(())
        })?;
        Ok(partition)
    }
}

impl HostPort {
    fn encode(out: &mut Writer, host_port: &Self) {
        out.string(&host_port.host);
        out.bytes(&host_port.port.to_be_bytes());
        out.bytes(&[host_port.kind]);
    }

    fn decode(at: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(HostPort { host: at.string()?, port: at.i16()? as u16, kind: at.u8()? })
    }
}

// ------------------------------------------------------------------ Thrift

/// Thrift's binary protocol, written.
#[derive(Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    fn i32(&mut self, value: i32) {
        self.bytes(&value.to_be_bytes());
    }

    fn i64(&mut self, value: i64) {
        self.bytes(&value.to_be_bytes());
    }

    /// A string, or bytes: Thrift writes both alike, and a blob of Pegasus too.
    pub(crate) fn blob(&mut self, value: &[u8]) {
        self.u32(value.len() as u32);
        self.bytes(value);
    }

    fn string(&mut self, value: &str) {
        self.blob(value.as_bytes());
    }

    fn field(&mut self, kind: u8, id: i16) {
        self.bytes(&[kind]);
        self.bytes(&id.to_be_bytes());
    }

    fn field_bool(&mut self, id: i16, value: bool) {
        self.field(kind::BOOL, id);
        self.bytes(&[u8::from(value)]);
    }

    pub(crate) fn field_i32(&mut self, id: i16, value: i32) {
        self.field(kind::I32, id);
        self.i32(value);
    }

    pub(crate) fn field_i64(&mut self, id: i16, value: i64) {
        self.field(kind::I64, id);
        self.i64(value);
    }

    /// Opens a field of type STRUCT, also one whose value travels bare.
    pub(crate) fn field_struct(&mut self, id: i16) {
        self.field(kind::STRUCT, id);
    }

    pub(crate) fn field_string(&mut self, id: i16, value: &str) {
        self.field(kind::STRING, id);
        self.string(value);
    }

    pub(crate) fn stop(&mut self) {
        self.bytes(&[kind::STOP]);
    }

    fn list<T>(&mut self, kind: u8, items: &[T], write: impl Fn(&mut Self, &T)) {
        self.bytes(&[kind]);
        self.u32(items.len() as u32);
        for item in items {
            write(self, item);
        }
    }

    /// ip, port and type in one i64, which has room for IPv4 only; 0 for none.
    fn rpc_address(&mut self, addr: Option<SocketAddr>) {
        self.i64(match addr {
            None => 0,
            Some(SocketAddr::V4(v4)) => {
                i64::from(v4.ip().to_bits()) << 32 | i64::from(v4.port()) << 16 | 1
            }
            Some(v6) => panic!("an rpc_address has no room for {v6}"),
        });
    }

    /// One field of each plain type, so that a reader which cannot step over one shows it.
    fn future(&mut self, wanted: bool) {
        if !wanted {
            return;
        }
        self.field_i64(FIRST_FUTURE_FIELD, i64::MIN);
        self.field_string(FIRST_FUTURE_FIELD + 1, "from the future");
        self.field(kind::LIST, FIRST_FUTURE_FIELD + 2);
        self.list(kind::I32, &[7, 8, 9], |out, item| out.i32(*item));
        self.field(kind::STRUCT, FIRST_FUTURE_FIELD + 3);
        self.field_bool(1, true);
        self.stop();
        self.field(kind::MAP, FIRST_FUTURE_FIELD + 4);
        self.bytes(&[kind::STRING, kind::I64]);
        self.u32(1);
        self.string("key");
        self.i64(1);
    }

    fn response(&mut self, error: &str, name: &str, suffix: &str, seq: i32, result: &[u8]) {
        let start = self.0.len();
        self.u32(0); // the length, filled in below
        self.string(error);
        self.u32(STRICT | u32::from(REPLY));
        self.u32((name.len() + suffix.len()) as u32);
        self.bytes(name.as_bytes());
        self.bytes(suffix.as_bytes());
        self.i32(seq);
        if error == ERR_OK {
            self.bytes(result);
        }
        let len = (self.0.len() - start) as u32;
        self.0[start..start + 4].copy_from_slice(&len.to_be_bytes());
    }
}

/// Thrift's binary protocol, read; never beyond the bytes it was given.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: u8,
}

impl<'a> Reader<'a> {
    /// Deeper than any idl here; it only keeps hostile nesting off the stack.
    const MAX_DEPTH: u8 = 16;

    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0, depth: 0 }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let left = &self.bytes[self.at..];
        match left.get(..len) {
            Some(taken) => {
                self.at += len;
                Ok(taken)
            }
            None => malformed(format!("want {len} bytes at {}, {} left", self.at, left.len())),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        Ok(self.take(N)?.try_into().expect("N bytes were taken"))
    }

    fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// Nothing may be left.
    pub(crate) fn end(&self, what: &str) -> Result<(), Malformed> {
        match self.rest().len() {
            0 => Ok(()),
            left => malformed(format!("{what}: {left} bytes after its end")),
        }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn i16(&mut self) -> Result<i16, Malformed> {
        self.array().map(i16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_be_bytes)
    }

    pub(crate) fn blob(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    pub(crate) fn string(&mut self) -> Result<String, Malformed> {
        Ok(String::from_utf8_lossy(self.blob()?).into_owned())
    }

    /// Message type, method and seq.
    fn message_begin(&mut self) -> Result<(u8, String, i32), Malformed> {
        let first = self.u32()?;
        if first & 0xffff_ff00 != STRICT {
            return malformed(format!("Thrift version: want 800100xx, got {first:08x}"));
        }
        Ok((first as u8, self.string()?, self.i32()?))
    }

    /// Calls `read` with the id and type of each field up to the stop; it must step over the value.
    pub(crate) fn each_field(
        &mut self,
        mut read: impl FnMut(i16, u8, &mut Self) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        loop {
            let kind = self.u8()?;
            if kind == kind::STOP {
                return Ok(());
            }
            let id = self.i16()?;
            read(id, kind, self)?;
        }
    }

    pub(crate) fn list<T>(
        &mut self,
        want: u8,
        read: impl Fn(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let got = self.u8()?;
        let len = self.u32()?;
        if got != want {
            return malformed(format!("list of type {got}, want {want}"));
        }
        (0..len).map(|_| read(self)).collect()
    }

    fn rpc_address(&mut self) -> Result<Option<SocketAddr>, Malformed> {
        let word = self.i64()? as u64;
        match word & 0xffff {
            0 => Ok(None),
            1 => {
                let ip = Ipv4Addr::from_bits((word >> 32) as u32);
                Ok(Some(SocketAddrV4::new(ip, (word >> 16) as u16).into()))
            }
            kind => malformed(format!("rpc_address of type {kind}, want 1 (IPv4)")),
        }
    }

    fn rpc_addresses(&mut self) -> Result<Vec<SocketAddr>, Malformed> {
        Ok(self.list(kind::STRUCT, Self::rpc_address)?.into_iter().flatten().collect())
    }

    /// Steps over a field from the future; any other unknown one is a fault of the test or of the server.
    fn future(&mut self, of: &str, id: i16, kind: u8) -> Result<bool, Malformed> {
        if id < FIRST_FUTURE_FIELD {
            return malformed(format!("{of}: field {id} of type {kind}"));
        }
        self.skip(kind)?;
        Ok(true)
    }

    /// Steps over a value of a plain type. Not for the types which travel bare.
    pub(crate) fn skip(&mut self, kind: u8) -> Result<(), Malformed> {
        if self.depth == Self::MAX_DEPTH {
            return malformed("nested too deep");
        }
        self.depth += 1;
        match kind {
            kind::BOOL | 3 => drop(self.take(1)?),
            6 => drop(self.take(2)?),
            kind::I32 => drop(self.take(4)?),
            kind::I64 | 4 => drop(self.take(8)?),
            kind::STRING => drop(self.blob()?),
            kind::STRUCT => self.each_field(|_, kind, at| at.skip(kind))?,
            kind::MAP => {
                let (key, value) = (self.u8()?, self.u8()?);
                for _ in 0..self.u32()? {
                    self.skip(key)?;
                    self.skip(value)?;
                }
            }
            kind::LIST | 14 => {
                let item = self.u8()?;
                for _ in 0..self.u32()? {
                    self.skip(item)?;
                }
            }
            _ => return malformed(format!("no such type: {kind}")),
        }
        self.depth -= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    fn golden_dir() -> PathBuf {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../golden"))
    }

    fn golden(name: &str) -> Vec<u8> {
        fs::read(golden_dir().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn golden_names(suffix: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(golden_dir())
            .expect("tests/golden is part of the sources")
            .map(|entry| entry.expect("a directory that does not change").file_name())
            .map(|name| name.into_string().expect("golden names are ASCII"))
            .filter(|name| name.ends_with(suffix))
            .collect();
        names.sort();
        names
    }

    fn local(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn host(port: u16) -> HostPort {
        HostPort { host: "localhost".to_owned(), port, kind: 1 }
    }

    #[test]
    fn requests_are_byte_for_byte_those_of_real_clients() {
        let go =
            |timeout_ms| Request { timeout_ms, ..Request::query_config(Version::V0, 1, "temp") };
        let java = Request {
            app_id: -1,
            partition: -2,
            timeout_ms: 5000,
            ..Request::query_config(Version::V1, 0, "temp")
        };
        let index = Query { table: "temp".to_owned(), indices: Some(vec![3]) };
        let one_index = Request::new(Version::V0, QUERY_CONFIG, 3, index.encode());
        for (file, request) in [
            ("01-go-apache-master-db756dc-existing", go(703)),
            ("02-go-apache-master-db756dc-existing-hostport", go(701)),
            ("16-java-2.6.0-SNAPSHOT-db756dc-existing", java),
            ("21-pypegasus3-0.0.1.1-existing", go(0)),
            ("real-one-index-v0", one_index),
        ] {
            let bytes = golden(&format!("{file}.request.bin"));
            assert_eq!(request.encode(), bytes, "{file}");
            assert_eq!(Request::decode(&bytes), Ok(request), "{file}");
        }
    }

    #[test]
    fn responses_are_byte_for_byte_those_of_servers() {
        let vector_01 = QueryCfgResponse::table(1, 4, local(34713));
        let mut vector_02 = vector_01.clone().with_host_ports();
        for partition in &mut vector_02.partitions {
            partition.hp_primary = Some(host(34713));
        }

        let mut follower = QueryCfgResponse::forward(Some(local(35601)));
        follower.partitions[0].hp_primary = Some(host(35601));

        let mut one_index = QueryCfgResponse::table(2, 8, local(35803)).only(&[3]);
        let partition = &mut one_index.partitions[0];
        partition.secondaries = vec![local(35801), local(35802)];
        partition.hp_primary = Some(host(35803));
        partition.hp_secondaries = Some(vec![host(35801), host(35802)]);
        partition.hp_last_drops = Some(Vec::new());

        for (file, seq, config) in [
            ("01-go-apache-master-db756dc-existing", 1, vector_01),
            ("02-go-apache-master-db756dc-existing-hostport", 1, vector_02),
            (
                "03-go-apache-master-db756dc-unknown",
                1,
                QueryCfgResponse::error("ERR_OBJECT_NOT_FOUND"),
            ),
            (
                "04-go-apache-master-db756dc-follower-hint",
                1,
                QueryCfgResponse::forward(Some(local(34711))),
            ),
            ("05-go-apache-master-db756dc-follower-nohint", 1, QueryCfgResponse::forward(None)),
            ("real-follower-v0", 5, follower),
            ("real-one-index-v0", 3, one_index),
        ] {
            let bytes = golden(&format!("{file}.response.bin"));
            let mut frame = Vec::new();
            append_response(&mut frame, ERR_OK, QUERY_CONFIG, seq, &config.encode());
            assert_eq!(frame, bytes, "{file}");
            let response = Response::decode(&bytes).expect(file);
            assert_eq!(response.config(), Ok(config), "{file}");
        }
    }

    #[test]
    fn a_frame_error_has_no_result_and_negotiation_has_the_real_one() {
        for (file, error, method, seq, result) in [
            (
                "real-unknown-method-v0",
                "ERR_HANDLER_NOT_FOUND",
                "RPC_NO_SUCH_CODE",
                7,
                &b"left out"[..],
            ),
            ("real-negotiation-v0", ERR_OK, NEGOTIATION, 8, NEGOTIATION_RESULT),
        ] {
            let mut frame = Vec::new();
            append_response(&mut frame, error, method, seq, result);
            assert_eq!(frame, golden(&format!("{file}.response.bin")), "{file}");
        }
    }

    #[test]
    fn every_golden_request_survives_decoding_and_encoding() {
        let mut seen = 0;
        for name in golden_names(".request.bin") {
            let bytes = golden(&name);
            if !bytes.starts_with(MAGIC) {
                continue; // RDSN is not spoken here
            }
            let request = Request::decode(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(request.encode(), bytes, "{name}");
            if request.method == QUERY_CONFIG {
                let query = request.query().unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(query.encode(), request.args, "{name}");
                seen += 1;
            }
        }
        assert!(seen > 20, "only {seen} QueryConfig requests among the golden vectors");
    }

    #[test]
    fn every_golden_response_survives_decoding_and_encoding() {
        let mut seen = 0;
        for name in golden_names(".response.bin") {
            let bytes = golden(&name);
            if bytes.starts_with(b"RDSN") {
                continue;
            }
            let response = Response::decode(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(response.encode(), bytes, "{name}");
            if response.name == format!("{QUERY_CONFIG}_ACK") {
                let config = response.config().unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(config.encode(), response.result, "{name}");
                seen += 1;
            }
        }
        assert!(seen > 20, "only {seen} QueryConfig responses among the golden vectors");
    }

    #[test]
    fn fields_from_the_future_are_written_and_stepped_over() {
        let today = QueryCfgResponse::table(7, 2, local(1)).with_host_ports();
        let future = today.clone().from_the_future();
        assert!(future.encode().len() > today.encode().len());
        assert_eq!(QueryCfgResponse::decode(&future.encode()), Ok(future));
    }

    #[test]
    fn indices_choose_partitions_as_a_real_server_does() {
        let table = QueryCfgResponse::table(1, 4, local(1));
        for (why, indices, want) in [
            ("some", &[3, 1][..], &[3, 1][..]),
            ("none asked for: all", &[], &[0, 1, 2, 3]),
            ("one does not exist: ignored", &[2, 9, -1], &[2]),
            ("none exists: all", &[9], &[0, 1, 2, 3]),
        ] {
            let chosen = table.only(indices);
            let got: Vec<i32> = chosen.partitions.iter().map(|partition| partition.index).collect();
            assert_eq!(got, want, "{why}: {indices:?}");
            assert_eq!(chosen.partition_count, 4, "{why}: {indices:?}");
        }
    }

    #[test]
    fn half_a_request_is_no_fault_and_a_bad_one_is() {
        let whole = Request::query_config(Version::V0, 1, "temp").encode();
        for len in 0..20 {
            assert_eq!(Request::frame_len(&whole[..len]), Ok(None), "{len} bytes");
        }
        assert_eq!(Request::frame_len(&whole[..20]), Ok(Some(whole.len())));

        let with = |at: usize, bytes: &[u8]| {
            let mut frame = whole.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            frame
        };
        for (why, frame) in [
            ("magic", with(0, b"HTTP")),
            ("version 2", with(4, &[0, 0, 0, 2])),
            ("header_len 47", with(8, &[0, 0, 0, 47])),
            ("body_len one too short", with(16, &[0, 0, 0, 73])),
            ("body_len of 2 GB", with(16, &[0x7f, 0xff, 0xff, 0xff])),
            ("Thrift version", with(48, &[0x80, 2])),
            ("method name longer than the frame", with(52, &[0, 0, 0, 99])),
        ] {
            assert!(Request::decode(&frame).is_err(), "{why}");
        }
        for (why, args) in [
            ("empty", &b""[..]),
            ("missing", b"\0"),
            ("no app_name", b"\x0c\0\x01\0\0"),
            ("truncated", b"\x0c\0\x01\x0b\0\x01\0\0\0\x04te"),
            ("junk", b"\xff\xff\xff\xff\xff"),
            ("bytes after the end", b"\x0c\0\x01\x0b\0\x01\0\0\0\x01t\0\0\0"),
        ] {
            assert!(Query::decode(args).is_err(), "{why}");
        }
    }
}
