//! Each target is an invariant and the frames to start from.

use harness::rdsn;
use harness::wire::{Partition, Query, QueryCfgResponse, Request};
use meta_proxy::wire::frame::Cut;
use meta_proxy::wire::message::{self, QUERY_CONFIG, is_table_name};
use meta_proxy::wire::protocol::Protocol;
use meta_proxy::wire::{host_port, invariants};

use crate::corpus::{self, Corpus};

/// One target. `check` panics when its invariant does not hold, and names what became of the bytes.
pub struct Target {
    pub name: &'static str,
    pub corpus: fn() -> Corpus,
    pub check: fn(&[u8]) -> &'static str,
}

/// All of them.
pub const ALL: [Target; 5] = [
    Target { name: "request", corpus: corpus::requests, check: invariants::request },
    Target { name: "result", corpus: corpus::results, check: invariants::result },
    Target { name: "answer", corpus: corpus::answers, check: invariants::upstream_answer },
    Target { name: "request, by two", corpus: corpus::requests, check: request_by_two },
    Target { name: "result, by two", corpus: corpus::results, check: result_by_two },
];

/// A request that the proxy lets pass is read alike by the harness's own codec. A MetaServer dies of less than it refuses.
fn request_by_two(bytes: &[u8]) -> &'static str {
    let Ok(Some(protocol)) = Protocol::of(bytes) else {
        return "another protocol";
    };
    let Ok(Cut::Whole(frame)) = protocol.cut(bytes, 64 * 1024) else {
        return "no frame";
    };
    let whole = &bytes[..frame.len];
    let Ok(call) = message::read_call(&frame) else {
        return "no call";
    };
    let (method, query) = match protocol {
        Protocol::Thft => {
            // It takes no oddities in the message begin, of which nothing goes upstream.
            let Ok(other) = Request::decode(whole) else {
                return "read by one";
            };
            let query = other.query();
            (other.method, query)
        }
        Protocol::Rdsn => {
            let other = rdsn::Frame::decode(whole).expect("both read it");
            if other.body_crc != 0 {
                assert_eq!(other.body_crc, rdsn::crc32c(&other.body));
            }
            let mut args = other.body.clone();
            // RDSN numbers the request 0, THFT 1.
            args.iter_mut().skip(2).take(1).for_each(|id| *id = 1);
            (other.rpc_name, Query::decode(&args))
        }
    };
    assert_eq!(call.method, method);
    match call.query() {
        Ok(accepted) if method == QUERY_CONFIG => {
            let other = query.expect("what passes can be read");
            assert_eq!(*accepted.table, *other.table);
            let shown = Query::decode(&accepted.args).expect("what goes upstream can be read");
            assert_eq!(shown, other);
            if is_table_name(&accepted.table) { "query" } else { "query of no table" }
        }
        Ok(_) => "another method",
        Err(_) => "no query",
    }
}

/// Without host_port fields an answer says the same otherwise, as the harness's own codec reads it.
fn result_by_two(bytes: &[u8]) -> &'static str {
    let (Ok(Some(rest)), Ok(mut want)) =
        (host_port::remove(bytes), QueryCfgResponse::decode(bytes))
    else {
        return "not read by both";
    };
    for partition in &mut want.partitions {
        let Partition { hp_primary, hp_secondaries, hp_last_drops, .. } = partition;
        (*hp_primary, *hp_secondaries, *hp_last_drops) = (None, None, None);
    }
    assert_eq!(QueryCfgResponse::decode(&rest), Ok(want));
    "removed"
}
