//! Arguments taken apart and answers put together, as `idl/duplication.thrift` and `idl/meta_admin.thrift` have them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::state::Duplication;
use crate::admin_rpc::{begin, end, list};
use crate::wire::kind::{BOOL, I32, LIST, MAP, STRING, STRUCT};
use crate::wire::{Malformed, Reader, Writer};

/// The fields of a request struct by id.
#[derive(Default)]
pub(super) struct Args {
    texts: BTreeMap<i16, Vec<String>>,
    numbers: BTreeMap<i16, i32>,
}

impl Args {
    /// Takes apart `{1: {...}}`.
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut args = Args::default();
        let mut at = Reader::new(bytes);
        at.each_field(|_, _, at| {
            at.each_field(|id, kind, at| {
                match kind {
                    STRING => _ = args.texts.insert(id, vec![at.string()?]),
                    LIST => _ = args.texts.insert(id, at.list(STRING, Reader::string)?),
                    I32 => _ = args.numbers.insert(id, at.i32()?),
                    BOOL => _ = args.numbers.insert(id, at.u8()?.into()),
                    _ => at.skip(kind)?,
                }
                Ok(())
            })
        })?;
        at.end("args")?;
        Ok(args)
    }

    /// A text, empty if it is not there.
    pub fn text(&self, id: i16) -> &str {
        self.texts(id).first().map_or("", String::as_str)
    }

    pub fn texts(&self, id: i16) -> &[String] {
        self.texts.get(&id).map_or(&[], Vec::as_slice)
    }

    pub fn number(&self, id: i16) -> Option<i32> {
        self.numbers.get(&id).copied()
    }
}

pub(super) fn nodes(err: &str, servers: &[SocketAddr]) -> Vec<u8> {
    let mut w = begin(err);
    list(&mut w, 2, STRUCT, servers.len());
    for addr in servers {
        let SocketAddr::V4(addr) = addr else { unreachable!("the servers are on 127.0.0.1") };
        w.field_i32(1, 1); // NS_ALIVE
        w.field_struct(2);
        w.0.extend(addr.ip().octets());
        w.0.extend(addr.port().to_be_bytes());
        w.0.extend([0, 1]);
        w.field_struct(3);
        w.blob(b"localhost");
        w.0.extend(addr.port().to_be_bytes());
        w.0.push(1);
        w.stop();
    }
    end(w)
}

/// The answer to UPDATE_APP_ENV.
pub(super) fn env(err: &str, hint: &str) -> Vec<u8> {
    let mut w = begin(err);
    w.field_string(2, hint);
    end(w)
}

/// The answer to ADD_DUPLICATION; `made` is the app_id, the duplication's id and the table there.
pub(super) fn added(err: &str, made: Option<(i32, i32, &str)>, hint: &str) -> Vec<u8> {
    let mut w = begin(err);
    w.field_i32(2, made.map_or(0, |made| made.0));
    w.field_i32(3, made.map_or(0, |made| made.1));
    if !hint.is_empty() {
        w.field_string(4, hint);
    }
    if let Some((_, _, table)) = made {
        w.field_string(5, table);
        w.field_i32(6, 3);
    }
    end(w)
}

/// The answer to MODIFY_DUPLICATION.
pub(super) fn modified(err: &str, app_id: i32) -> Vec<u8> {
    let mut w = begin(err);
    w.field_i32(2, app_id);
    end(w)
}

/// The answer to QUERY_DUPLICATION.
pub(super) fn queried(
    err: &str,
    app_id: i32,
    all: &[&Duplication],
    is_before_2_6: bool,
) -> Vec<u8> {
    let mut w = begin(err);
    w.field_i32(3, app_id);
    list(&mut w, 4, STRUCT, all.len());
    all.iter().for_each(|one| entry(&mut w, one, is_before_2_6));
    end(w)
}

/// A table in the answer to LIST_DUPLICATION.
pub(super) struct Listed<'a> {
    pub name: &'a str,
    pub app_id: i32,
    pub partition_count: i32,
    pub duplications: Vec<&'a Duplication>,
}

pub(super) fn listed(err: &str, tables: &[Listed<'_>]) -> Vec<u8> {
    let mut w = begin(err);
    w.field_string(2, "");
    map(&mut w, 3, STRING, tables.len());
    for table in tables {
        w.blob(table.name.as_bytes());
        w.field_i32(1, table.app_id);
        map(&mut w, 2, I32, table.duplications.len());
        for one in &table.duplications {
            w.0.extend(one.id.to_be_bytes());
            entry(&mut w, one, false);
        }
        w.field_string(3, table.name);
        w.field_i32(4, table.partition_count);
        w.stop();
    }
    end(w)
}

/// A `duplication_entry`. Both decrees are what the primary reported last.
fn entry(w: &mut Writer, one: &Duplication, is_before_2_6: bool) {
    w.field_i32(1, one.id);
    w.field_i32(2, one.status);
    w.field_string(3, &one.remote);
    w.field_i64(4, one.create_ms);
    w.field_i32(7, 0); // FAIL_SLOW
    if !is_before_2_6 {
        w.field_string(8, &one.remote_table);
        w.field_i32(9, 3);
        map(w, 11, I32, one.progress.len());
        for (index, progress) in one.progress.iter().enumerate() {
            w.0.extend((index as u32).to_be_bytes());
            w.field_i64(1, progress.reported);
            w.field_i64(2, progress.reported);
            w.stop();
        }
    }
    w.stop();
}

/// A replica of a replica server.
pub(super) struct Replica {
    pub app_id: i32,
    pub index: i32,
    pub ballot: i64,
    pub status: i32,
    pub decrees: [i64; 3],
}

/// The answer to QUERY_REPLICA_INFO.
pub(super) fn replicas(replicas: &[Replica]) -> Vec<u8> {
    let mut w = begin("ERR_OK");
    list(&mut w, 2, STRUCT, replicas.len());
    for replica in replicas {
        w.field_struct(1);
        w.0.extend(replica.index.to_be_bytes());
        w.0.extend(replica.app_id.to_be_bytes());
        w.field_i64(2, replica.ballot);
        w.field_i32(3, replica.status);
        for (id, decree) in (4..).zip(replica.decrees) {
            w.field_i64(id, decree);
        }
        w.field_string(7, "pegasus");
        w.field_string(8, "default");
        w.field_i32(9, 0);
        w.stop();
    }
    end(w)
}

fn map(w: &mut Writer, id: u8, key: u8, len: usize) {
    w.0.extend([MAP, 0, id, key, STRUCT]);
    w.0.extend((len as u32).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::state::{DS_LOG, Progress};
    use super::*;
    use crate::wire::append_response;
    use std::fs;
    use std::time::Instant;

    fn golden(name: &str) -> Vec<u8> {
        let path = format!("{}/../golden/admin-{name}.response.bin", env!("CARGO_MANIFEST_DIR"));
        fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn frame(method: &str, result: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        append_response(&mut frame, "ERR_OK", method, 1, result);
        frame
    }

    #[test]
    fn answers_are_byte_for_byte_those_of_real_servers() {
        let temp = Duplication {
            id: 1_795_569_210,
            status: DS_LOG,
            remote: "B".to_owned(),
            remote_table: "temp".to_owned(),
            create_ms: 1_795_569_210_156,
            started: Instant::now(),
            progress: [24, 24, 26, 26]
                .map(|reported| Progress { reported, ..Progress::default() })
                .into(),
        };
        let servers = [29201, 29202, 29203].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let inc = Some((3, 1_795_569_737, "inc"));
        let env_of = |err, hint| ("RPC_CM_UPDATE_APP_ENV", env(err, hint));
        let add = |err, made, hint| ("RPC_CM_ADD_DUPLICATION", added(err, made, hint));
        let query = |err, id, all: &[&Duplication]| {
            ("RPC_CM_QUERY_DUPLICATION", queried(err, id, all, false))
        };
        let modify = |err, id| ("RPC_CM_MODIFY_DUPLICATION", modified(err, id));
        let forward = "ERR_FORWARD_TO_OTHERS";
        for (name, (method, result)) in [
            ("06-list-nodes-all", ("RPC_CM_LIST_NODES", nodes("ERR_OK", &servers))),
            ("09-query-dup-none", query("ERR_OK", 1, &[])),
            ("10-query-dup-no-table", query("ERR_APP_NOT_EXIST", 0, &[])),
            ("15-query-dup-DS_LOG", query("ERR_OK", 1, &[&temp])),
            ("19-query-dup-follower", query(forward, 0, &[])),
            ("22-add-dup-follower", add(forward, None, "")),
            ("23-env-set-deny", env_of("ERR_OK", "")),
            ("34-env-set-follower", env_of(forward, "")),
            ("47-modify-dup-unknown-id", modify("ERR_OBJECT_NOT_FOUND", 0)),
            ("53-modify-dup-remove", modify("ERR_OK", 3)),
            ("55-add-dup-incremental", add("ERR_OK", inc, "")),
            ("56-add-dup-incremental-exists", add("ERR_DUP_EXIST", inc, "")),
        ] {
            assert_eq!(frame(method, &result), golden(name), "{name}");
        }
    }

    #[test]
    fn a_replica_is_told_as_by_a_real_server() {
        let first = Replica { app_id: 4, index: 3, ballot: 5, status: 4, decrees: [11, 12, 10] };
        let ours = replicas(&[first]);
        let real = golden("61-query-replica-info");
        // Both end in two stops.
        let one = &ours[replicas(&[]).len() - 2..ours.len() - 2];
        assert!(real.windows(one.len()).any(|window| window == one), "{one:02x?}");
    }
}
