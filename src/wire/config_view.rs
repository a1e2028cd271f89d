//! Reads `query_cfg_response` field by field: for the address in a follower's answer, and for `meta-proxy query`.
//! Answers to clients never pass through this code.
//!
//! dsn types travel *bare* inside a field of type STRUCT: error_code is a string, gpid and rpc_address an i64,
//! host_port a string, an i16 and an i8. So the reader must know each field; it cannot skip an unknown field of such a
//! type.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use thrift::protocol::{TInputProtocol, TType};

use super::{Input, each_field, reader};

/// The address of a server in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// From an `rpc_address`.
    Ip(SocketAddrV4),
    /// From a `host_port`: `host:port`, not resolved.
    Host(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(addr) => addr.fmt(f),
            Address::Host(name) => name.fmt(f),
        }
    }
}

/// One partition and its replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partition {
    /// Number of the partition in its table.
    pub index: i32,
    /// Grows with each change of the replicas.
    pub ballot: i64,
    /// The replica that takes reads and writes; `None` while there is none.
    pub primary: Option<Address>,
    /// The other replicas.
    pub secondaries: Vec<Address>,
}

/// Where the partitions of a table live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigView {
    /// Name of the error, `ERR_OK` if there is none.
    pub err: String,
    /// Id of the table in its cluster.
    pub app_id: i32,
    /// Number of partitions of the table, even if the query asked for some of them.
    pub partition_count: i32,
    /// The partitions that the query asked for.
    pub partitions: Vec<Partition>,
    /// Whether any partition has host_port fields, see `host_port`.
    pub host_port_fields: bool,
}

/// Reads the result struct `{0: query_cfg_response}`.
pub fn read(result: &[u8]) -> thrift::Result<ConfigView> {
    let mut input = reader(result);
    let mut view = None;
    each_field(&mut input, |input, field| match field {
        (0, TType::Struct) => {
            view = Some(read_response(input)?);
            Ok(())
        }
        (_, kind) => input.skip(kind),
    })?;
    view.ok_or_else(|| thrift::Error::from("no query_cfg_response".to_owned()))
}

fn read_response(input: &mut Input<'_>) -> thrift::Result<ConfigView> {
    let mut view = ConfigView::default();
    each_field(input, |input, field| {
        match field {
            (1, TType::Struct) => view.err = input.read_string()?,
            (2, TType::I32) => view.app_id = input.read_i32()?,
            (3, TType::I32) => view.partition_count = input.read_i32()?,
            (5, TType::List) => {
                let read = read_list(input, read_partition)?;
                view.host_port_fields = read.iter().any(|(_, has_host_ports)| *has_host_ports);
                view.partitions = read.into_iter().map(|(partition, _)| partition).collect();
            }
            (_, kind) => input.skip(kind)?,
        }
        Ok(())
    })?;
    Ok(view)
}

/// A partition, and whether it has host_port fields.
fn read_partition(input: &mut Input<'_>) -> thrift::Result<(Partition, bool)> {
    let mut partition = Partition::default();
    let mut has_host_ports = false;
    let mut named = (None, Vec::new());
    each_field(input, |input, field| {
        has_host_ports |= matches!(field, (9..=11, _));
        match field {
            // gpid: app_id in the low half, partition index in the high half.
            (1, TType::Struct) => partition.index = (input.read_i64()? >> 32) as i32,
            (2, TType::I64) => partition.ballot = input.read_i64()?,
            (4, TType::Struct) => partition.primary = read_rpc_address(input)?,
            (5, TType::List) => {
                let all = read_list(input, read_rpc_address)?;
                partition.secondaries = all.into_iter().flatten().collect();
            }
            (6, TType::List) => drop(read_list(input, read_rpc_address)?),
            (9, TType::Struct) => named.0 = read_host_port(input)?,
            (10, TType::List) => {
                let all = read_list(input, read_host_port)?;
                named.1 = all.into_iter().flatten().collect();
            }
            (11, TType::List) => drop(read_list(input, read_host_port)?),
            (_, kind) => input.skip(kind)?,
        }
        Ok(())
    })?;
    // Every server sends the IP. A server without an IPv4 address has only the name.
    partition.primary = partition.primary.or(named.0);
    if partition.secondaries.is_empty() {
        partition.secondaries = named.1;
    }
    Ok((partition, has_host_ports))
}

/// ip << 32 | port << 16 | type; type 1 is IPv4, 0 is no address.
pub fn read_rpc_address(input: &mut Input<'_>) -> thrift::Result<Option<Address>> {
    let raw = input.read_i64()? as u64;
    let (ip, port) = (Ipv4Addr::from((raw >> 32) as u32), (raw >> 16) as u16);
    let is_address = raw & 0x3 == 1 && !ip.is_unspecified() && port != 0;
    Ok(is_address.then(|| Address::Ip(SocketAddrV4::new(ip, port))))
}

/// An empty host is no address: servers send one after a reload.
fn read_host_port(input: &mut Input<'_>) -> thrift::Result<Option<Address>> {
    let host = input.read_string()?;
    let port = input.read_i16()? as u16;
    let _kind = input.read_i8()?;
    Ok((!host.is_empty() && port != 0).then(|| Address::Host(format!("{host}:{port}"))))
}

fn read_list<'a, T>(
    input: &mut Input<'a>,
    mut item: impl FnMut(&mut Input<'a>) -> thrift::Result<T>,
) -> thrift::Result<Vec<T>> {
    let list = input.read_list_begin()?;
    (0..list.size).map(|_| item(input)).collect()
}
