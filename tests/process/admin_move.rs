//! The requests that move a table, byte for byte as a real server and a real administrator have it.

use meta_proxy::ops::admin_move::{self, Duplication, Replica, Shipping};
use meta_proxy::ops::admin_rpc::{self, BadAnswer, DENY_ENV};
use meta_proxy::wire::message::Gpid;

use crate::support::golden;

fn request(name: &str) -> Vec<u8> {
    golden(&format!("admin-{name}.request.bin"))
}

fn response(name: &str) -> Vec<u8> {
    golden(&format!("admin-{name}.response.bin"))
}

fn body(name: &str) -> String {
    let text = String::from_utf8(golden(&format!("admin-{name}.txt"))).unwrap();
    let start = text.find("\n{").unwrap();
    text[start + 1..].to_owned()
}

#[test]
fn requests_are_those_of_an_administrator() {
    for (name, bytes) in [
        ("23-env-set-deny", admin_move::set_env(1, "gone", DENY_ENV, "timeout*write")),
        ("25-env-set-deny-overwrite", admin_move::set_env(1, "gone", DENY_ENV, "reconfig*all")),
        ("28-env-del", admin_move::delete_env(1, "gone", DENY_ENV)),
        ("53-modify-dup-remove", admin_move::remove_duplication(1, "inc", 1_795_569_691)),
        ("55-add-dup-incremental", admin_move::add_duplication(1, "inc", "B")),
        ("57-add-dup-reverse-B-to-A", admin_move::add_duplication(1, "temp", "A")),
        ("24-list-apps-pattern-with-env", admin_move::list_app(1, "gone")),
        ("61-query-replica-info", admin_move::replica_info(1)),
        ("15-query-dup-DS_LOG", admin_rpc::query_duplication(1, "temp")),
    ] {
        assert_eq!(bytes, request(name), "{name}");
    }
    // A wrong hash of the thread aborts a replica server.
    let probe = admin_move::probe(Gpid { app_id: 4, index: 3 }, 1);
    assert_eq!(probe, golden("go-check-and-set.request.bin"), "as the Go client writes it");
}

#[test]
fn a_probe_is_answered_by_errors() {
    let answer = |err: &str| {
        let mut frame = Vec::new();
        harness::wire::append_response(&mut frame, err, admin_move::CHECK_AND_SET, 1, &[0]);
        admin_move::read_probe(&frame)
    };
    assert_eq!(answer("ERR_INVALID_STATE"), Ok(true));
    assert_eq!(answer("ERR_OPERATION_DISABLED"), Ok(false));
    assert_eq!(answer("ERR_OK"), Ok(false), "it was let in");
    let denied = Err(BadAnswer::Refused("ERR_ACL_DENY".to_owned()));
    assert_eq!(answer("ERR_ACL_DENY"), denied);
    for n in 0..12 {
        assert!(admin_move::read_probe(&vec![0; n]).is_err(), "{n} bytes");
    }
}

#[test]
fn answers_of_real_servers_are_understood() {
    let refused = |err: &str| Err(BadAnswer::Refused(err.to_owned()));
    let env = |name| admin_move::read_env_answer(&response(name), 1);
    assert_eq!(env("23-env-set-deny"), Ok(()));
    assert_eq!(env("28-env-del"), Ok(()));
    assert_eq!(env("29-env-del-absent"), Ok(()));
    assert_eq!(env("34-env-set-follower"), refused("ERR_FORWARD_TO_OTHERS"));
    assert!(matches!(env("26-env-set-bad-value"), Err(BadAnswer::Refused(why))
            if why.starts_with("ERR_INVALID_PARAMETERS: Invalid deny client args")));
    let added = |name| admin_move::read_added(&response(name), 1);
    assert_eq!(added("55-add-dup-incremental"), Ok(()));
    assert_eq!(added("56-add-dup-incremental-exists"), Ok(()), "it is there");
    assert_eq!(added("22-add-dup-follower"), refused("ERR_FORWARD_TO_OTHERS"));
    let removed = |name| admin_move::read_removed(&response(name), 1);
    assert_eq!(removed("53-modify-dup-remove"), Ok(()));
    assert_eq!(removed("47-modify-dup-unknown-id"), refused("ERR_OBJECT_NOT_FOUND"));

    let duplications = |name| admin_move::read_duplications(&response(name), 1).unwrap();
    let want = Duplication {
        skips: false,
        id: 1_795_569_210,
        status: 3,
        remote: "B".into(),
        remote_table: "temp".into(),
        has_decrees: true,
    };
    assert_eq!(duplications("15-query-dup-DS_LOG"), [want]);
    assert_eq!(duplications("54-query-dup-after-remove"), []);

    let nodes = admin_move::read_nodes(&response("06-list-nodes-all"), 1).unwrap();
    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    assert_eq!(nodes, ["127.0.0.1:29201", "127.0.0.1:29202", "127.0.0.1:29203"]);

    let replicas = admin_move::read_replicas(&response("61-query-replica-info"), 1).unwrap();
    let want =
        Replica { app_id: 4, index: 3, ballot: 5, is_primary: false, committed: 11, prepared: 12 };
    assert_eq!(replicas[0], want);
    assert_eq!(replicas.len(), 16);
    assert!(!replicas.iter().any(|replica| replica.is_primary), "secondaries and inactive ones");
}

#[test]
fn pages_of_real_replica_servers_are_understood() {
    let page = body("63-http-replica-duplication");
    let shipping = admin_move::read_shipping(&page, 1_795_572_153).unwrap();
    let of = |unsent| Shipping { is_duplicating: true, unsent };
    assert_eq!(shipping, [(0, of(1)), (3, of(2))].into());
    assert_eq!(admin_move::read_shipping(&page, 7).unwrap(), [].into(), "another duplication");
    let setting = admin_move::read_setting(&body("64-http-config"));
    assert_eq!(setting.as_deref(), Ok("30000"));
    assert!(admin_move::read_shipping("no duplication assigned", 7).is_err());
}
