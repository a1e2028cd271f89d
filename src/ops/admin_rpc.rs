//! Requests of administrators to a MetaServer: requests to bytes, answers to values. Pure.
//!
//! ```text
//! request  THFT header v0 | CALL method, seq | args   {1: request}
//! answer   length | frame error | REPLY method_ACK, seq | result {0: response}
//! ```
//! A follower answers each of them with `ERR_FORWARD_TO_OTHERS` and nothing else, and does not name the leader. Fields
//! that are not known here are skipped; servers before 2.6 leave some of the known ones out.
//! Source: incubator-pegasus `idl/meta_admin.thrift`, `idl/duplication.thrift`, `idl/dsn.layer2.thrift`.

use std::collections::BTreeMap;
use std::fmt;

use thrift::protocol::{TInputProtocol, TMessageType, TType};

use crate::wire::answer::{self, LEN_BYTES};
use crate::wire::error_code::ERR_OK;
use crate::wire::message::{self, Gpid};
use crate::wire::{Input, each_field, reader, skip};

/// The identity of a cluster.
pub const CLUSTER_INFO: &str = "RPC_CM_CLUSTER_INFO";
/// Its tables.
pub const LIST_APPS: &str = "RPC_CM_LIST_APPS";
/// Where a table is duplicated to.
pub const QUERY_DUPLICATION: &str = "RPC_CM_QUERY_DUPLICATION";

/// The environment variable of a table that denies its clients.
pub const DENY_ENV: &str = "replica.deny_client_request";

/// `app_status::AS_AVAILABLE`.
const AS_AVAILABLE: i32 = 1;
/// `duplication_status::DS_REMOVED`.
const DS_REMOVED: i32 = 5;
/// Time-out in the header, ms. A MetaServer does not read it.
pub const CLIENT_TIMEOUT_MS: u32 = 5_000;

/// Why an answer cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadAnswer {
    /// It is no answer to this request.
    Malformed(String),
    /// The server refuses, with the name of this error.
    Refused(String),
}

impl fmt::Display for BadAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadAnswer::Malformed(why) => write!(f, "want an answer, got {why}"),
            BadAnswer::Refused(err) => f.write_str(err),
        }
    }
}

impl From<thrift::Error> for BadAnswer {
    fn from(e: thrift::Error) -> Self {
        BadAnswer::Malformed(e.to_string())
    }
}

/// One table as its cluster lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct App {
    pub name: String,
    pub app_id: i32,
    pub partition_count: i32,
    pub max_replica_count: i32,
    /// The table is neither dropped nor being created.
    pub is_available: bool,
    /// A duplication of it was made, of whatever status.
    pub is_duplicating: bool,
    pub is_bulk_loading: bool,
    /// Partitions that it had before a split, if there was one.
    pub init_partition_count: i32,
    pub envs: BTreeMap<String, String>,
}

impl App {
    /// The value of the environment variable that denies clients, if it denies any.
    pub fn denies(&self) -> Option<&str> {
        self.envs.get(DENY_ENV).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// The request for [`CLUSTER_INFO`].
pub fn cluster_info(seq: i32) -> Vec<u8> {
    request(CLUSTER_INFO, seq, &[])
}

/// The request for [`LIST_APPS`] of all tables that are available.
pub fn list_apps(seq: i32) -> Vec<u8> {
    let mut fields = vec![8, 0, 1];
    fields.extend(AS_AVAILABLE.to_be_bytes());
    request(LIST_APPS, seq, &fields)
}

/// The request for [`QUERY_DUPLICATION`].
pub fn query_duplication(seq: i32, table: &str) -> Vec<u8> {
    let mut fields = vec![11, 0, 1];
    fields.extend((table.len() as u32).to_be_bytes());
    fields.extend(table.as_bytes());
    request(QUERY_DUPLICATION, seq, &fields)
}

/// `fields` are those of the request struct, without its end.
pub fn request(method: &str, seq: i32, fields: &[u8]) -> Vec<u8> {
    let args = [&[12, 0, 1][..], fields, &[0, 0]].concat();
    let mut out = Vec::new();
    message::write_call(Gpid::META, method, seq, CLIENT_TIMEOUT_MS, &args, &mut out);
    out
}

/// A cluster's account of itself, by key: `cluster_name`, `zookeeper_root`, `meta_servers` and others.
pub fn read_cluster_info(frame: &[u8], seq: i32) -> Result<BTreeMap<String, String>, BadAnswer> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    read(frame, CLUSTER_INFO, seq, |input, field| match field {
        (2, TType::List) => list(input, |input| input.read_string()).map(|list| keys = list),
        (3, TType::List) => list(input, |input| input.read_string()).map(|list| values = list),
        (_, kind) => skip(input, kind),
    })?;
    Ok(keys.into_iter().zip(values).collect())
}

/// The tables of a cluster.
pub fn read_apps(frame: &[u8], seq: i32) -> Result<Vec<App>, BadAnswer> {
    let mut apps = Vec::new();
    read(frame, LIST_APPS, seq, |input, field| match field {
        (2, TType::List) => list(input, read_app).map(|list| apps = list),
        (_, kind) => skip(input, kind),
    })?;
    Ok(apps)
}

/// The clusters that a table is duplicated to.
pub fn read_remotes(frame: &[u8], seq: i32) -> Result<Vec<String>, BadAnswer> {
    let mut remotes = Vec::new();
    read(frame, QUERY_DUPLICATION, seq, |input, field| match field {
        (4, TType::List) => list(input, read_remote).map(|list| remotes = list),
        (_, kind) => skip(input, kind),
    })?;
    Ok(remotes.into_iter().flatten().collect())
}

fn read_app(input: &mut Input<'_>) -> thrift::Result<App> {
    let mut app = App::default();
    each_field(input, |input, field| {
        match field {
            (1, TType::I32) => app.is_available = input.read_i32()? == AS_AVAILABLE,
            (3, TType::String) => app.name = input.read_string()?,
            (4, TType::I32) => app.app_id = input.read_i32()?,
            (5, TType::I32) => app.partition_count = input.read_i32()?,
            (6, TType::Map) => {
                let map = input.read_map_begin()?;
                for _ in 0..map.size {
                    app.envs.insert(input.read_string()?, input.read_string()?);
                }
            }
            (8, TType::I32) => app.max_replica_count = input.read_i32()?,
            (12, TType::Bool) => app.is_duplicating = input.read_bool()?,
            (13, TType::I32) => app.init_partition_count = input.read_i32()?,
            (14, TType::Bool) => app.is_bulk_loading = input.read_bool()?,
            (_, kind) => skip(input, kind)?,
        }
        Ok(())
    })?;
    Ok(app)
}

/// `None`: the duplication is removed.
fn read_remote(input: &mut Input<'_>) -> thrift::Result<Option<String>> {
    let (mut remote, mut status) = (None, 0);
    each_field(input, |input, field| {
        match field {
            (2, TType::I32) => status = input.read_i32()?,
            (3, TType::String) => remote = Some(input.read_string()?),
            (_, kind) => skip(input, kind)?,
        }
        Ok(())
    })?;
    Ok(remote.filter(|_| status != DS_REMOVED))
}

/// Reads the response struct but for its field 1, the error.
pub fn read(
    frame: &[u8],
    method: &str,
    seq: i32,
    mut field: impl FnMut(&mut Input<'_>, (i16, TType)) -> thrift::Result<()>,
) -> Result<(), BadAnswer> {
    let malformed = |why: String| Err(BadAnswer::Malformed(why));
    if frame.len() < LEN_BYTES {
        return malformed("a frame cut short".to_owned());
    }
    let envelope = answer::read_envelope(frame).map_err(|e| BadAnswer::Malformed(e.to_string()))?;
    if envelope.error != ERR_OK {
        return Err(BadAnswer::Refused(envelope.error.to_owned()));
    }
    if envelope.method.strip_suffix("_ACK") != Some(method) || envelope.seq != seq {
        return malformed(format!("one to {} of seq {}", envelope.method, envelope.seq));
    }
    if envelope.kind != TMessageType::Reply {
        return malformed(format!("message type {:?}", envelope.kind));
    }
    let mut input = reader(envelope.result);
    let mut err = None;
    each_field(&mut input, |input, outer| match outer {
        (0, TType::Struct) => each_field(input, |input, inner| match inner {
            // A dsn::error_code travels bare: a string in a field of type STRUCT.
            (1, TType::Struct) => input.read_string().map(|name| err = Some(name)),
            inner => field(input, inner),
        }),
        (_, kind) => skip(input, kind),
    })?;
    match err {
        Some(err) if err == ERR_OK => Ok(()),
        Some(err) => Err(BadAnswer::Refused(err)),
        None => malformed("a response without its error".to_owned()),
    }
}

pub fn list<'a, T>(
    input: &mut Input<'a>,
    mut item: impl FnMut(&mut Input<'a>) -> thrift::Result<T>,
) -> thrift::Result<Vec<T>> {
    let list = input.read_list_begin()?;
    (0..list.size).map(|_| item(input)).collect()
}
