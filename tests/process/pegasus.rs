//! The stand-in for a Pegasus cluster behaves as real ones were seen to: what is acknowledged is there, a deny comes
//! into force late, duplication ships, and its list says less than it seems to.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use harness::http;
use harness::pegasus::writer::Writer;
use harness::pegasus::{Options, Pegasus};
use harness::wait::eventually;
use harness::wire::{ERR_OK, Request, Response, Version};
use meta_proxy::ops::admin_move::{self, DENY_WRITES, Replica};
use meta_proxy::ops::admin_rpc::{self, DENY_ENV};

use crate::support::{SOON, set_up};

const PARTITIONS: i32 = 4;
const LAG: Duration = Duration::from_millis(400);

/// Two clusters with the same table, which the first ships to the second.
struct Pair {
    a: Pegasus,
    b: Pegasus,
}

impl Pair {
    fn start() -> Self {
        let pair = Pair::apart(Options::default());
        ask(pair.a.leader(), &admin_move::add_duplication(1, "orders", "c4"));
        eventually("all primaries ship", SOON, || pair.shipping().len() == PARTITIONS as usize);
        pair
    }

    fn apart(options: Options) -> Self {
        let (a, b) = (Pegasus::start("c3", options), Pegasus::start("c4", options));
        a.join(&b);
        a.create_table("orders", 1, PARTITIONS as usize);
        b.create_table("orders", 5, PARTITIONS as usize);
        Pair { a, b }
    }

    /// Mutations that the primaries of the first have not sent, by partition, as their pages say.
    fn shipping(&self) -> BTreeMap<i32, i64> {
        let mut all = BTreeMap::new();
        for server in self.a.replicas() {
            let page = http::request(server, "GET", "/replica/duplication?appid=1", "");
            if page.status == 200 {
                let told = admin_move::read_shipping(&page.body, 1).unwrap();
                all.extend(told.into_iter().map(|(index, at)| (index, at.unsent)));
            }
        }
        all
    }

    fn is_drained(&self) -> bool {
        self.shipping().values().all(|unsent| *unsent == 0)
    }

    fn primaries(&self) -> Vec<Replica> {
        let told = |server| {
            let answer = ask(server, &admin_move::replica_info(1));
            admin_move::read_replicas(&answer, 1).unwrap()
        };
        self.a.replicas().into_iter().flat_map(told).filter(|one| one.is_primary).collect()
    }

    /// Sets a key at the cluster's primary; the frame error.
    fn set(&self, cluster: &Pegasus, key: u32) -> String {
        let app_id = if cluster.name() == "c3" { 1 } else { 5 };
        let partition = key as i32 % PARTITIONS;
        let mut args = b"\x0c\0\x01\x0c\0\x01\0\0\0\x06\0\x04".to_vec();
        args.extend(key.to_be_bytes());
        args.extend(b"\x0c\0\x02\0\0\0\x01v\x08\0\x03\0\0\0\0\0\0");
        let request = Request::new(Version::V0, "RPC_RRDB_RRDB_PUT", 1, args);
        let request = Request { app_id, partition, partition_hash: key.into(), ..request };
        let primary = cluster.replicas()[partition as usize % cluster.replicas().len()];
        Response::decode(&ask(primary, &request.encode())).unwrap().error
    }

    fn deny(&self) {
        let set = ask(self.a.leader(), &admin_move::set_env(1, "orders", DENY_ENV, DENY_WRITES));
        assert_eq!(admin_move::read_env_answer(&set, 1), Ok(()));
    }

    fn is_denied(&self) -> bool {
        self.a.denied("orders").iter().all(|deny| deny == DENY_WRITES)
    }
}

/// The answer's frame.
pub fn ask(server: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request).unwrap();
    let mut frame = vec![0; 4];
    stream.read_exact(&mut frame).unwrap();
    let len = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
    frame.resize(len, 0);
    stream.read_exact(&mut frame[4..]).unwrap();
    frame
}

#[test]
fn writes_of_a_go_client_reach_the_other_cluster() {
    let pair = Pair::start();
    let writer = Writer::start(&set_up("target/interop/go-apache"), pair.a.leader(), "orders");
    eventually("it writes", 3 * SOON, || writer.acknowledged() > 200);
    pair.deny();
    eventually("in force on every primary", 2 * SOON, || pair.is_denied());
    let written = writer.stop();
    assert!(written.last.len() >= 100, "{written:?}");
    eventually("drained", SOON, || pair.is_drained());
    for cluster in [&pair.a, &pair.b] {
        assert_eq!(written.missing_in(cluster, "orders"), [] as [String; 0], "{}", cluster.name());
    }
    assert_eq!(pair.b.data("orders"), pair.a.data("orders"));
}

#[test]
fn a_deny_comes_into_force_at_the_next_config_sync() {
    let pair = Pair::start();
    assert_eq!(pair.set(&pair.a, 1), ERR_OK);
    pair.deny();
    eventually("in force on every primary", 2 * SOON, || pair.is_denied());
    for key in 0..8 {
        assert_eq!(pair.set(&pair.a, key), "ERR_INVALID_STATE");
    }
    ask(pair.a.leader(), &admin_move::delete_env(1, "orders", DENY_ENV));
    eventually("taken back", 2 * SOON, || pair.a.denied("orders").iter().all(String::is_empty));
    assert_eq!(pair.set(&pair.a, 1), ERR_OK);
}

#[test]
fn the_list_is_content_while_the_page_tells_of_unsent_mutations() {
    let pair = Pair::start();
    pair.a.hold_shipping("orders", true);
    let before = ask(pair.a.leader(), &admin_rpc::query_duplication(1, "orders"));
    (0..40).for_each(|key| assert_eq!(pair.set(&pair.a, key), ERR_OK));
    assert_eq!(pair.shipping().values().sum::<i64>(), 40);
    let list = ask(pair.a.leader(), &admin_rpc::query_duplication(1, "orders"));
    assert!(admin_move::read_duplications(&list, 1).unwrap()[0].is_shipping_log());
    assert_eq!(list, before, "both decrees stand still");
    assert!(pair.b.data("orders").is_empty());

    pair.a.hold_shipping("orders", false);
    eventually("drained", SOON, || pair.is_drained());
    assert_eq!(pair.b.data("orders"), pair.a.data("orders"));
}

#[test]
fn a_denied_table_takes_no_duplication() {
    let pair = Pair::start();
    ask(pair.b.leader(), &admin_move::set_env(1, "orders", DENY_ENV, DENY_WRITES));
    let denied = || pair.b.denied("orders").iter().all(|deny| deny == DENY_WRITES);
    eventually("in force", 2 * SOON, denied);
    assert_eq!(pair.set(&pair.a, 1), ERR_OK);
    assert!(!pair.is_drained());
    ask(pair.b.leader(), &admin_move::delete_env(1, "orders", DENY_ENV));
    eventually("drained", 2 * SOON, || pair.is_drained());
    assert_eq!(pair.b.data("orders").len(), 1);
}

#[test]
fn a_move_that_waits_for_the_pages_loses_nothing_and_one_that_trusts_the_list_does() {
    for trusts_list in [false, true] {
        let pair = Pair::start();
        (0..PARTITIONS as usize).for_each(|index| pair.a.set_lag("orders", index, LAG));
        pair.deny();
        let mut acknowledged = 0;
        for key in 0.. {
            acknowledged += usize::from(pair.set(&pair.a, key) == ERR_OK);
            if pair.is_denied() {
                break;
            }
        }
        assert!(acknowledged > 0);
        // The list shows equal decrees at any time: who trusts it goes on at once.
        if !trusts_list {
            let before = pair.primaries();
            assert_eq!(before.len(), PARTITIONS as usize);
            assert!(before.iter().all(|one| one.committed == one.prepared));
            eventually("drained", SOON + LAG, || pair.is_drained());
            assert_eq!(before, pair.primaries());
        }
        let is_lost = pair.b.data("orders") != pair.a.data("orders");
        assert_eq!(is_lost, trusts_list, "{acknowledged} writes");
    }
}

#[test]
fn a_fail_over_of_a_primary_or_of_the_leader_loses_nothing() {
    let pair = Pair::start();
    pair.a.hold_shipping("orders", true);
    (0..40).for_each(|key| assert_eq!(pair.set(&pair.a, key), ERR_OK));
    pair.a.fail_over_primary("orders", 2);
    let old = pair.a.leader();
    pair.a.fail_over_meta();
    assert_ne!(pair.a.leader(), old);
    let told = ask(old, &admin_rpc::query_duplication(1, "orders"));
    assert!(admin_move::read_duplications(&told, 1).is_err());
    pair.a.hold_shipping("orders", false);
    let is_whole = || pair.shipping().len() == PARTITIONS as usize && pair.is_drained();
    eventually("the new primary ships too", 2 * SOON, is_whole);
    assert_eq!(pair.b.data("orders"), pair.a.data("orders"));
}
