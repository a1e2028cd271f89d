//! Questions to servers when a table moves to another cluster: its environment variables, its duplications, and the
//! decrees of its partitions. Pure. The envelope is that of [`admin_rpc`](super::admin_rpc).
//!
//! ```text
//! to the MetaServers' leader   UPDATE_APP_ENV  ADD, QUERY, MODIFY_DUPLICATION  LIST_NODES  LIST_APPS of one table
//! to a replica server          QUERY_REPLICA_INFO, CHECK_AND_SET (a probe); by HTTP: /replica/duplication, /config
//! ```
//! The decrees that a duplication lists are not read here on purpose: a server reports both only when it has shipped
//! something, so they are equal while mutations wait.
//! Source: incubator-pegasus `idl/duplication.thrift`, `idl/meta_admin.thrift`, `src/replica/replica_http_service.cpp`.

use std::collections::BTreeMap;

use serde_json::Value;
use thrift::protocol::{TInputProtocol, TType};

use super::admin_rpc::{
    BadAnswer, CLIENT_TIMEOUT_MS, LIST_APPS, QUERY_DUPLICATION, list, read, request,
};
use crate::wire::answer::{self, LEN_BYTES};
use crate::wire::config_view::{Address, read_rpc_address};
use crate::wire::error_code::ERR_OK;
use crate::wire::message::{self, Gpid};
use crate::wire::{Input, each_field, skip};

pub const UPDATE_APP_ENV: &str = "RPC_CM_UPDATE_APP_ENV";
pub const ADD_DUPLICATION: &str = "RPC_CM_ADD_DUPLICATION";
pub const MODIFY_DUPLICATION: &str = "RPC_CM_MODIFY_DUPLICATION";
pub const LIST_NODES: &str = "RPC_CM_LIST_NODES";
/// Asked of a replica server.
pub const QUERY_REPLICA_INFO: &str = "RPC_QUERY_REPLICA_INFO";

/// Asked of a partition's primary.
pub const CHECK_AND_SET: &str = "RPC_RRDB_RRDB_CHECK_AND_SET";
/// No table has a value there, so the probe writes nothing.
const PROBE_KEY: &str = "meta-proxy.probe";
const CT_VALUE_EXIST: i32 = 3;

/// Refuses clients' writes, in a way that makes them look for the table again.
pub const DENY_WRITES: &str = "reconfig*write";
/// Refuses clients' reads too.
pub const DENY_ALL: &str = "reconfig*all";

/// A replica server's answer to a client that it denies, or whose partition has its primary elsewhere.
const ERR_INVALID_STATE: &str = "ERR_INVALID_STATE";
const ERR_OPERATION_DISABLED: &str = "ERR_OPERATION_DISABLED";

/// A MetaServer's answer to a duplication that is there already.
pub const ERR_DUP_EXIST: &str = "ERR_DUP_EXIST";

const AS_AVAILABLE: i32 = 1;
const PMT_MATCH_EXACT: i32 = 2;
const ENV_SET: i32 = 1;
const ENV_DEL: i32 = 2;
const NS_ALIVE: i32 = 1;
const DS_LOG: i32 = 3;
const DS_REMOVED: i32 = 5;
const FAIL_SLOW: i32 = 0;
const PS_PRIMARY: i32 = 3;

/// A duplication of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Duplication {
    pub id: i32,
    pub status: i32,
    /// Name of the cluster that it goes to.
    pub remote: String,
    /// Name of the table there. Empty: servers before 2.6 do not send it, and it is the same name.
    pub remote_table: String,
    /// Mutations that cannot be shipped are left out, and count as shipped.
    pub skips: bool,
    /// Whether the answer has decrees, as servers from 2.6 on give them.
    pub has_decrees: bool,
}

impl Duplication {
    /// It ships the log as it is written.
    pub fn is_shipping_log(&self) -> bool {
        self.status == DS_LOG
    }

    /// Why B may not get all, though nothing is unsent.
    pub fn why_it_may_lose(&self) -> Option<String> {
        match (self.is_shipping_log(), self.skips) {
            (false, _) => Some(format!("want it in DS_LOG, got {}", self.status_name())),
            (true, true) => Some(
                "want its fail mode FAIL_SLOW, got FAIL_SKIP: it leaves out what it cannot ship"
                    .to_owned(),
            ),
            (true, false) => None,
        }
    }

    fn status_name(&self) -> &'static str {
        match self.status {
            0 => "DS_INIT",
            1 => "DS_PREPARE",
            2 => "DS_APP",
            3 => "DS_LOG",
            4 => "DS_PAUSE",
            5 => "DS_REMOVED",
            _ => "a status that is not known",
        }
    }
}

/// A replica as its server tells of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replica {
    pub app_id: i32,
    pub index: i32,
    pub ballot: i64,
    pub is_primary: bool,
    pub committed: i64,
    pub prepared: i64,
}

/// How far a primary has shipped its log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shipping {
    pub is_duplicating: bool,
    /// Mutations that the other cluster does not have yet.
    pub unsent: i64,
}

/// The request for [`LIST_APPS`] of one table. Servers before 2.5 list all.
pub fn list_app(seq: i32, table: &str) -> Vec<u8> {
    let mut fields = Fields::default();
    fields.i32(1, AS_AVAILABLE);
    fields.text(2, table);
    fields.i32(3, PMT_MATCH_EXACT);
    request(LIST_APPS, seq, &fields.0)
}

/// The request that sets an environment variable of a table. Others stay.
pub fn set_env(seq: i32, table: &str, key: &str, value: &str) -> Vec<u8> {
    let mut fields = Fields::default();
    fields.text(1, table);
    fields.i32(2, ENV_SET);
    fields.texts(3, &[key]);
    fields.texts(4, &[value]);
    request(UPDATE_APP_ENV, seq, &fields.0)
}

/// The request that deletes an environment variable of a table. One that is not there is no error.
pub fn delete_env(seq: i32, table: &str, key: &str) -> Vec<u8> {
    let mut fields = Fields::default();
    fields.text(1, table);
    fields.i32(2, ENV_DEL);
    fields.texts(3, &[key]);
    request(UPDATE_APP_ENV, seq, &fields.0)
}

/// The request for a duplication that starts with what is written from now on.
pub fn add_duplication(seq: i32, table: &str, remote: &str) -> Vec<u8> {
    let mut fields = Fields::default();
    fields.text(1, table);
    fields.text(2, remote);
    fields.bool(3, false);
    request(ADD_DUPLICATION, seq, &fields.0)
}

/// The request that ends a duplication. Mutations that were not sent are forgotten.
pub fn remove_duplication(seq: i32, table: &str, id: i32) -> Vec<u8> {
    let mut fields = Fields::default();
    fields.text(1, table);
    fields.i32(2, id);
    fields.i32(3, DS_REMOVED);
    request(MODIFY_DUPLICATION, seq, &fields.0)
}

/// The request for [`LIST_NODES`] that are alive.
pub fn list_nodes(seq: i32) -> Vec<u8> {
    let mut fields = Fields::default();
    fields.i32(1, NS_ALIVE);
    request(LIST_NODES, seq, &fields.0)
}

/// The request for [`QUERY_REPLICA_INFO`].
pub fn replica_info(seq: i32) -> Vec<u8> {
    request(QUERY_REPLICA_INFO, seq, &[])
}

/// A write that asks the primary of a partition whether it refuses writes. It sets a value only where one is, at a key that
/// no table has. While the table is duplicated, it is not even tried.
/// Source: incubator-pegasus `idl/rrdb.thrift`, `check_and_set_request`.
pub fn probe(gpid: Gpid, seq: i32) -> Vec<u8> {
    let mut fields = Fields::default();
    fields.blob(1, PROBE_KEY);
    fields.blob(2, "");
    fields.i32(3, CT_VALUE_EXIST);
    fields.blob(4, "");
    fields.bool(5, false);
    fields.blob(6, "");
    fields.blob(7, "");
    fields.i32(8, 0);
    fields.bool(9, false);
    let args = [&[12, 0, 1][..], &fields.0, &[0, 0]].concat();
    let mut out = Vec::new();
    message::write_call(gpid, CHECK_AND_SET, seq, CLIENT_TIMEOUT_MS, &args, &mut out);
    out
}

/// Reads the answer to [`probe`]: whether writes are refused. A server that is not the primary refuses them, too.
pub fn read_probe(frame: &[u8]) -> Result<bool, BadAnswer> {
    let malformed = |why: String| BadAnswer::Malformed(why);
    if frame.len() < LEN_BYTES {
        return Err(malformed("a frame cut short".to_owned()));
    }
    let envelope = answer::read_envelope(frame).map_err(|e| malformed(e.to_string()))?;
    match envelope.error {
        ERR_INVALID_STATE => Ok(true),
        // The primary would have taken a write. A duplicated table answers `ERR_OPERATION_DISABLED` to this kind.
        ERR_OK | ERR_OPERATION_DISABLED => Ok(false),
        other => Err(BadAnswer::Refused(other.to_owned())),
    }
}

/// Reads the answer to [`set_env`] and [`delete_env`].
pub fn read_env_answer(frame: &[u8], seq: i32) -> Result<(), BadAnswer> {
    read_with_hint(frame, UPDATE_APP_ENV, seq, 2)
}

/// Reads the answer to [`add_duplication`]. A duplication that exists already is a success.
pub fn read_added(frame: &[u8], seq: i32) -> Result<(), BadAnswer> {
    match read_with_hint(frame, ADD_DUPLICATION, seq, 4) {
        Err(BadAnswer::Refused(err)) if err == ERR_DUP_EXIST => Ok(()),
        other => other,
    }
}

/// Reads the answer to [`remove_duplication`].
pub fn read_removed(frame: &[u8], seq: i32) -> Result<(), BadAnswer> {
    read(frame, MODIFY_DUPLICATION, seq, |input, (_, kind)| skip(input, kind))
}

/// Reads an answer whose field `hint_id` says in words why it is refused.
fn read_with_hint(frame: &[u8], method: &str, seq: i32, hint_id: i16) -> Result<(), BadAnswer> {
    let mut hint = String::new();
    let done = read(frame, method, seq, |input, field| match field {
        (id, TType::String) if id == hint_id => input.read_string().map(|text| hint = text),
        (_, kind) => skip(input, kind),
    });
    done.map_err(|why| match why {
        BadAnswer::Refused(err) if !hint.is_empty() => BadAnswer::Refused(format!("{err}: {hint}")),
        other => other,
    })
}

/// The duplications of a table that are not removed.
pub fn read_duplications(frame: &[u8], seq: i32) -> Result<Vec<Duplication>, BadAnswer> {
    let mut found = Vec::new();
    read(frame, QUERY_DUPLICATION, seq, |input, field| match field {
        (4, TType::List) => list(input, read_duplication).map(|list| found = list),
        (_, kind) => skip(input, kind),
    })?;
    found.retain(|duplication: &Duplication| duplication.status != DS_REMOVED);
    Ok(found)
}

fn read_duplication(input: &mut Input<'_>) -> thrift::Result<Duplication> {
    let mut found = Duplication::default();
    each_field(input, |input, field| {
        match field {
            (1, TType::I32) => found.id = input.read_i32()?,
            (2, TType::I32) => found.status = input.read_i32()?,
            (3, TType::String) => found.remote = input.read_string()?,
            (7, TType::I32) => found.skips = input.read_i32()? != FAIL_SLOW,
            (8, TType::String) => found.remote_table = input.read_string()?,
            (11, kind) => {
                found.has_decrees = true;
                skip(input, kind)?;
            }
            (_, kind) => skip(input, kind)?,
        }
        Ok(())
    })?;
    Ok(found)
}

/// The replica servers.
pub fn read_nodes(frame: &[u8], seq: i32) -> Result<Vec<Address>, BadAnswer> {
    let mut nodes = Vec::new();
    read(frame, LIST_NODES, seq, |input, field| match field {
        (2, TType::List) => list(input, read_node).map(|list| nodes = list),
        (_, kind) => skip(input, kind),
    })?;
    Ok(nodes.into_iter().flatten().collect())
}

fn read_node(input: &mut Input<'_>) -> thrift::Result<Option<Address>> {
    let mut node = None;
    each_field(input, |input, field| {
        match field {
            (2, TType::Struct) => node = read_rpc_address(input)?,
            // A host_port travels bare.
            (3, TType::Struct) => {
                input.read_string()?;
                input.read_i16()?;
                input.read_i8()?;
            }
            (_, kind) => skip(input, kind)?,
        }
        Ok(())
    })?;
    Ok(node)
}

/// The replicas of a replica server.
pub fn read_replicas(frame: &[u8], seq: i32) -> Result<Vec<Replica>, BadAnswer> {
    let mut replicas = Vec::new();
    read(frame, QUERY_REPLICA_INFO, seq, |input, field| match field {
        (2, TType::List) => list(input, read_replica).map(|list| replicas = list),
        (_, kind) => skip(input, kind),
    })?;
    Ok(replicas)
}

fn read_replica(input: &mut Input<'_>) -> thrift::Result<Replica> {
    let mut replica = Replica::default();
    each_field(input, |input, field| {
        match field {
            // A gpid travels bare: app_id in the low half, partition index in the high one.
            (1, TType::Struct) => {
                let gpid = input.read_i64()?;
                (replica.app_id, replica.index) = (gpid as i32, (gpid >> 32) as i32);
            }
            (2, TType::I64) => replica.ballot = input.read_i64()?,
            (3, TType::I32) => replica.is_primary = input.read_i32()? == PS_PRIMARY,
            (4, TType::I64) => replica.committed = input.read_i64()?,
            (5, TType::I64) => replica.prepared = input.read_i64()?,
            (_, kind) => skip(input, kind)?,
        }
        Ok(())
    })?;
    Ok(replica)
}

/// The body of `/replica/duplication?appid=N`: how far each partition with its primary there is, of one duplication.
pub fn read_shipping(body: &str, id: i32) -> Result<BTreeMap<i32, Shipping>, String> {
    let page: Value = serde_json::from_str(body).map_err(|e| format!("want JSON, got {e}"))?;
    let Some(partitions) = page.get(id.to_string()).and_then(Value::as_object) else {
        return Ok(BTreeMap::new());
    };
    let read = |(gpid, page): (&String, &Value)| {
        let index = gpid.split('.').nth(1).and_then(|index| index.parse().ok());
        let is_duplicating = page.get("duplicating").and_then(Value::as_bool);
        let unsent = page.get("not_duplicated_mutations_num").and_then(Value::as_i64);
        match (index, is_duplicating, unsent) {
            (Some(index), Some(is_duplicating), Some(unsent)) => {
                Ok((index, Shipping { is_duplicating, unsent }))
            }
            _ => Err(format!("want a partition's duplication, got {gpid}: {page}")),
        }
    };
    partitions.iter().map(read).collect()
}

/// The body of `/config?name=N`.
pub fn read_setting(body: &str) -> Result<String, String> {
    let page: Value =
        serde_json::from_str(body.trim()).map_err(|e| format!("want JSON, got {e}"))?;
    let value = page.get("value").and_then(Value::as_str);
    value.map(str::to_owned).ok_or_else(|| format!("want a value, got {body}"))
}

/// Fields of a request struct.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn begin(&mut self, kind: u8, id: u8) {
        self.0.extend([kind, 0, id]);
    }

    fn bytes(&mut self, text: &str) {
        self.0.extend((text.len() as u32).to_be_bytes());
        self.0.extend(text.as_bytes());
    }

    fn bool(&mut self, id: u8, value: bool) {
        self.begin(2, id);
        self.0.push(value.into());
    }

    fn i32(&mut self, id: u8, value: i32) {
        self.begin(8, id);
        self.0.extend(value.to_be_bytes());
    }

    fn text(&mut self, id: u8, text: &str) {
        self.begin(11, id);
        self.bytes(text);
    }

    /// A blob travels bare in a field of type STRUCT.
    fn blob(&mut self, id: u8, text: &str) {
        self.begin(12, id);
        self.bytes(text);
    }

    fn texts(&mut self, id: u8, texts: &[&str]) {
        self.begin(15, id);
        self.0.push(11);
        self.0.extend((texts.len() as u32).to_be_bytes());
        texts.iter().for_each(|text| self.bytes(text));
    }
}
