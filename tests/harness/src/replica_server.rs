//! A replica server for tests: keeps keys and values in memory, enough for real clients to set and get.
//!
//! It serves the partitions it was given and no others, as a real one does: a client that was sent to the wrong cluster
//! is told so, instead of finding an empty table.
//!
//! ```text
//! RPC_RRDB_RRDB_PUT  args {1: update_request {1: blob key, 2: blob value, 3: i32 expiry}}
//!                    result {0: update_response {1: i32 error, 2: app_id, 3: partition, 4: i64 decree, 5: server}}
//! RPC_RRDB_RRDB_GET  args {1: blob key}
//!                    result {0: read_response {1: i32 error, 2: blob value, 3: app_id, 4: partition, 6: server}}
//! ```
//! A blob stands bare in a field of type STRUCT. Source: incubator-pegasus `idl/rrdb.thrift`.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::listener::{Inbox, Link, Listener};
use crate::wire::{
    self, ERR_OK, Malformed, NEGOTIATION, NEGOTIATION_RESULT, Reader, Request, Writer,
};

pub(crate) const PUT: &str = "RPC_RRDB_RRDB_PUT";
pub(crate) const GET: &str = "RPC_RRDB_RRDB_GET";

/// RocksDB's error numbers, which is what these answers carry.
const OK: i32 = 0;
const NOT_FOUND: i32 = 1;

/// The server. Dropping it closes every connection, ends its threads and loses the data.
pub struct ReplicaServer {
    listener: Listener,
    store: Arc<Store>,
}

impl ReplicaServer {
    /// Starts without tables, on a free port of 127.0.0.1.
    pub fn start() -> Self {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into()).expect("127.0.0.1 has a free port")
    }

    /// Starts it on a given address.
    pub fn start_on(addr: SocketAddr) -> io::Result<Self> {
        let store = Arc::new(Store::default());
        let listener = Listener::start("replica", addr, {
            let store = Arc::clone(&store);
            move |link| store.serve(link)
        })?;
        Ok(ReplicaServer { listener, store })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    /// Serves the partitions of one more table, which start empty.
    pub fn add_table(&self, app_id: i32, partition_count: i32) {
        let mut partitions = self.store.partitions();
        for index in 0..partition_count {
            partitions.insert((app_id, index), HashMap::new());
        }
    }

    /// How many keys a table holds.
    pub fn keys(&self, app_id: i32) -> usize {
        let partitions = self.store.partitions();
        let of_table = partitions.iter().filter(|((owner, _), _)| *owner == app_id);
        of_table.map(|(_, partition)| partition.len()).sum()
    }
}

/// Key and value as they travel: the key is the hash key's length, the hash key, the sort key.
type Partition = HashMap<Vec<u8>, Vec<u8>>;

#[derive(Default)]
struct Store {
    /// By app_id and index.
    partitions: Mutex<HashMap<(i32, i32), Partition>>,
}

impl Store {
    fn partitions(&self) -> MutexGuard<'_, HashMap<(i32, i32), Partition>> {
        self.partitions.lock().expect("nothing panics while holding it")
    }

    /// The life of a connection. It ends with the first thing that cannot be read.
    fn serve(&self, link: &Arc<Link>) {
        for request in Inbox::new(link) {
            let Ok(request) = request else { return };
            let Ok((error, result)) = self.execute(&request) else {
                return;
            };
            link.answer(|out| {
                wire::append_response(out, error, &request.method, request.seq, &result)
            });
        }
    }

    /// The frame error and the result struct.
    fn execute(&self, request: &Request) -> Result<(&'static str, Vec<u8>), Malformed> {
        if request.method == NEGOTIATION {
            return Ok((ERR_OK, NEGOTIATION_RESULT.to_vec()));
        }
        let mut partitions = self.partitions();
        let Some(partition) = partitions.get_mut(&(request.app_id, request.partition)) else {
            return Ok(("ERR_OBJECT_NOT_FOUND", Vec::new()));
        };
        let (app_id, index) = (request.app_id, request.partition);
        let result = match request.method.as_str() {
            PUT => {
                let (key, value) = read_put(&request.args)?;
                partition.insert(key, value);
                put(app_id, index, 1)
            }
            GET => {
                let key = read_get(&request.args)?;
                got(app_id, index, partition.get(&key).map(Vec::as_slice))
            }
            _ => return Ok(("ERR_HANDLER_NOT_FOUND", Vec::new())),
        };
        Ok((ERR_OK, result))
    }
}

/// The result struct of [`PUT`].
pub(crate) fn put(app_id: i32, partition: i32, decree: i64) -> Vec<u8> {
    let mut result = Writer::default();
    result.field_struct(0);
    result.field_i32(1, OK);
    result.field_i32(2, app_id);
    result.field_i32(3, partition);
    result.field_i64(4, decree);
    result.field_string(5, "stand-in");
    result.stop();
    result.stop();
    result.0
}

/// The result struct of [`GET`].
pub(crate) fn got(app_id: i32, partition: i32, value: Option<&[u8]>) -> Vec<u8> {
    let mut result = Writer::default();
    result.field_struct(0);
    result.field_i32(1, if value.is_some() { OK } else { NOT_FOUND });
    result.field_struct(2);
    result.blob(value.unwrap_or_default());
    result.field_i32(3, app_id);
    result.field_i32(4, partition);
    result.field_string(6, "stand-in");
    result.stop();
    result.stop();
    result.0
}

pub(crate) fn read_put(args: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Malformed> {
    let (mut key, mut value) = (Vec::new(), Vec::new());
    let mut at = Reader::new(args);
    at.each_field(|_, _, at| {
        at.each_field(|id, kind, at| {
            match id {
                1 => key = at.blob()?.to_vec(),
                2 => value = at.blob()?.to_vec(),
                _ => at.skip(kind)?, // the expiry: tests are over before it
            }
            Ok(())
        })
    })?;
    at.end("put")?;
    Ok((key, value))
}

pub(crate) fn read_get(args: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut key = Vec::new();
    let mut at = Reader::new(args);
    at.each_field(|_, _, at| {
        key = at.blob()?.to_vec();
        Ok(())
    })?;
    at.end("get")?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Version;

    fn request(method: &str, partition: i32, args: &[u8]) -> Request {
        let request = Request::new(Version::V0, method, 1, args.to_vec());
        Request { app_id: 7, partition, ..request }
    }

    fn stored(value: &[u8]) -> Vec<u8> {
        let mut blob = Writer::default();
        blob.field_struct(2);
        blob.blob(value);
        blob.0
    }

    #[test]
    fn what_is_put_is_got_from_its_own_partition() {
        let server = ReplicaServer::start();
        server.add_table(7, 2);
        let put =
            b"\x0c\0\x01\x0c\0\x01\0\0\0\x03key\x0c\0\x02\0\0\0\x05value\x08\0\x03\0\0\0\0\0\0";
        let get = b"\x0c\0\x01\0\0\0\x03key\0";
        for (why, request, want_error, want_value) in [
            ("put", request(PUT, 1, put), ERR_OK, None),
            ("get", request(GET, 1, get), ERR_OK, Some(stored(b"value"))),
            ("other partition", request(GET, 0, get), ERR_OK, Some(stored(b""))),
            ("none of ours", request(GET, 2, get), "ERR_OBJECT_NOT_FOUND", None),
            ("unknown method", request("RPC_NO_SUCH_CODE", 1, b""), "ERR_HANDLER_NOT_FOUND", None),
        ] {
            let (error, result) = server.store.execute(&request).expect(why);
            assert_eq!(error, want_error, "{why}");
            let holds = |value: &Vec<u8>| result.windows(value.len()).any(|window| window == value);
            assert!(want_value.iter().all(holds), "{why}: {result:02x?}");
        }
        assert_eq!(server.keys(7), 1);
        assert!(server.store.execute(&request(PUT, 1, b"junk")).is_err());
    }
}
