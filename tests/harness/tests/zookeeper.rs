//! Do the ZooKeeper servers of the harness do what their methods say?

use std::time::Duration;

use harness::wait::eventually;
use harness::zookeeper::{Ensemble, Sessions, ZooKeeper};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn znodes_come_change_and_go_and_outlive_a_restart() {
    let zk = ZooKeeper::start();
    assert_eq!(zk.mode().as_deref(), Some("standalone"));

    let first = zk.put("/root/deep/orders", "one");
    assert_eq!(zk.get("/root/deep/orders").as_deref(), Some(&b"one"[..]));
    let second = zk.put("/root/deep/orders", "two");
    assert!(second > first, "{second} {first}");
    let third = zk.set("/root/deep/orders", b"three");
    assert!(third > second, "{third} {second}");
    zk.create("/root/deep/users", "");
    assert_eq!(zk.children("/root/deep"), ["orders", "users"]);
    zk.delete("/root/deep/users");
    assert!(!zk.exists("/root/deep/users"));
    assert_eq!(zk.get("/root/deep/users"), None);
    assert!(zk.reads_served("/root") > 0);

    for (how, down) in [("stop", ZooKeeper::stop as fn(&_)), ("kill", ZooKeeper::kill)] {
        down(&zk);
        assert_eq!(zk.mode(), None, "{how}");
        zk.restart();
        assert_eq!(zk.get("/root/deep/orders").as_deref(), Some(&b"three"[..]), "{how}");
        zk.put("/root/deep/orders", "three");
    }

    zk.pause();
    assert_eq!(zk.mode(), None);
    zk.resume();
    eventually("it serves again", SOON, || zk.mode().is_some());
    assert!(zk.exists("/root/deep/orders"));
}

/// The crate that the proxy uses is the stranger here: sessions, watches and permissions are looked at through its eyes.
mod strangers {
    use super::*;
    use zookeeper::{ZkError, ZooKeeper as Stranger};

    const SESSION: Duration = Duration::from_secs(6);

    #[test]
    fn are_seen_and_kept_out() {
        let zk = ZooKeeper::start();
        zk.put("/root/orders", "one");
        let connect = zk.addr().to_string();
        let stranger = Stranger::connect(&connect, SESSION, |_| {}).expect("the server serves");
        let read = || stranger.get_data("/root/orders", true).map(|(data, _)| data);

        assert_eq!(read(), Ok(b"one".to_vec()));
        assert_eq!(zk.watch_count(), 1);
        let reads = zk.reads_served("/root");
        assert_eq!(read(), Ok(b"one".to_vec()));
        assert_eq!(zk.reads_served("/root"), reads + 1);

        zk.set_acl_denied("/root/orders");
        assert_eq!(read(), Err(ZkError::NoAuth));
        zk.put("/root/orders", "two");
        zk.set_acl_open("/root/orders");
        assert_eq!(read(), Ok(b"two".to_vec()));
        zk.set_acl_digest("/root/orders", "user:secret");
        assert_eq!(read(), Err(ZkError::NoAuth));
        zk.put("/root/orders", "three");
        stranger
            .add_auth("digest", b"user:secret".to_vec())
            .expect("any pair of user and password is taken");
        assert_eq!(read(), Ok(b"three".to_vec()));

        let connections = zk.connections();
        let [connection] = &connections[..] else {
            panic!("want the stranger alone, got {connections:?}");
        };
        assert_eq!(connection.session_timeout, SESSION);
        assert!(connection.received >= 6, "{connection:?}");
    }
}

#[test]
fn an_ensemble_goes_on_without_its_leader() {
    let ensemble = Ensemble::start(3, Sessions::Global);
    ensemble[0].put("/root/orders", "one");
    let leader = ensemble.leader();
    let others: Vec<usize> = (0..3).filter(|server| *server != leader).collect();

    ensemble[leader].kill();
    assert_ne!(ensemble.leader(), leader);
    ensemble[others[0]].put("/root/orders", "two");

    ensemble[leader].restart();
    assert_eq!(ensemble[leader].mode().as_deref(), Some("follower"));
    eventually("the old leader has caught up", SOON, || {
        ensemble[leader].get("/root/orders").as_deref() == Some(b"two")
    });

    let paused = ensemble.leader();
    ensemble[paused].pause();
    eventually("another leads", SOON, || {
        (0..3).any(|server| server != paused && ensemble[server].is_leader())
    });
    ensemble[paused].resume();
    eventually("all serve again", SOON, || ensemble.servers().iter().all(|zk| zk.mode().is_some()));
}
