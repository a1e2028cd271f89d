//! Does the client of the harness tell what the peer does, and only that?

use std::process::Command;
use std::time::Duration;

use harness::client::Client;
use harness::meta_server::{Behaviour, MetaServer};
use harness::wait::eventually;

const SOON: Duration = Duration::from_secs(10);

/// A machine that is suspended or traced stops its processes; a read with a time-out then ends with EINTR.
#[test]
fn a_stop_of_this_process_is_no_end_of_a_connection() {
    let meta = MetaServer::start();
    meta.set(Behaviour::Mute);
    let mut client = Client::connect(meta.addr());
    client.send_query(1, "orders");
    eventually("the query has come", SOON, || meta.calls() == 1);
    let stops = format!(
        "for i in 1 2 3; do kill -STOP {0}; sleep .05; kill -CONT {0}; sleep .05; done",
        std::process::id()
    );
    let mut stopper = Command::new("sh").args(["-c", &stops]).spawn().expect("a shell");
    client.expect_silence(Duration::from_millis(600));
    assert!(stopper.wait().expect("it ends").success());
    meta.set(Behaviour::Leader);
    client.ask("orders");
}
