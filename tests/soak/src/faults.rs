//! Faults of ZooKeeper, the network and the proxies, one at a time.
//!
//! ```text
//! blow ─▶ some tables are moved ─▶ until every route is current ─▶ hold ─▶ blow ...
//! ```
//! A blow says from when to when it excuses old answers: one that only touches some servers excuses them for its moment,
//! as the others can be reached all the while. When a fault returns, it is over and everything works again.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;
use std::time::Duration;

use harness::http::{get, request};
use harness::proxy::Proxy;
use harness::relay::connect;
use harness::wait::{is_passing, poll};
use harness::zookeeper::ZooKeeper;
use serde_json::Value;

use crate::aftermath;
use crate::crowd::another_cluster;
use crate::history::Value as Written;
use crate::observer;
use crate::weather::{Excuse, Whom};
use crate::world::{CLUSTERS_ROOT, MAX_CLIENT_CONNECTIONS, RELAYS_FROM, ROOT, World};
use harness::rng::Rng;

/// A fault: its name on the command line, and how it is done.
pub struct Fault {
    pub name: &'static str,
    /// It takes the better part of a minute, so that it is not for short runs.
    pub is_long: bool,
    pub inflict: fn(&mut Scene<'_>),
}

/// Which takes seconds.
const fn short(name: &'static str, inflict: fn(&mut Scene<'_>)) -> Fault {
    Fault { name, is_long: false, inflict }
}

/// Where it happens.
pub struct Scene<'a> {
    pub world: &'a World,
    pub rng: &'a mut Rng,
    /// After each blow, how long until every route was current.
    pub took: Vec<Duration>,
}

impl Scene<'_> {
    /// Does something that disturbs the connections of all proxies until it is done, and waits until all is current.
    fn blow(&mut self, what: &str, act: impl FnOnce(&World)) {
        self.world.disturb(what, act);
        self.settle();
    }

    /// Moves some tables, and waits until all are told as they are: only a change shows that changes are known.
    fn settle(&mut self) {
        for table in 0..self.world.writable() {
            if self.rng.percent(MOVED_PERCENT) {
                self.world.write(table, |history| another_cluster(history, self.rng));
            }
        }
        if let Some(took) = aftermath::await_current(self.world) {
            self.world.say(&format!("  every route is current after {took:.3?}"));
            self.took.push(took);
        }
    }

    fn hold_ms(&mut self, range: RangeInclusive<u64>) {
        self.world.hold(self.rng.ms(range));
    }
}

/// All that may happen in between.
pub const FAULTS: &[Fault] = &[
    short("kill-follower", kill_follower),
    short("kill-leader", kill_leader),
    short("pause-server", pause_server),
    short("rolling-restart", rolling_restart),
    short("quorum-loss", quorum_loss),
    short("cut-links", cut_links),
    short("black-hole", black_hole),
    short("black-hole-one", black_hole_one),
    short("refuse", refuse),
    short("slow-links", slow_links),
    short("very-slow-links", very_slow_links),
    short("cut-in-a-burst", cut_in_a_burst),
    short("forgotten-links", forgotten_links),
    short("closed-at-once", closed_at_once),
    short("full-servers", full_servers),
    short("read-only-minority", read_only_minority),
    short("low-bandwidth", low_bandwidth),
    short("late-answers", late_answers),
    short("expire-sessions", expire_sessions),
    short("pause-proxy", pause_proxy),
    short("restart-proxy", restart_proxy),
    short("kill-proxy", kill_proxy),
    short("lagging-follower", lagging_follower),
    short("hide-names", hide_names),
    short("hide-tables", hide_tables),
    Fault { name: "move-hidden-tables", is_long: true, inflict: move_hidden_tables },
    short("junk", junk),
    short("another-client", another_client),
    short("recreate", recreate),
    short("clusters-gone", clusters_gone),
    Fault { name: "wiped-data", is_long: true, inflict: wiped_data },
    Fault { name: "another-ensemble", is_long: true, inflict: another_ensemble },
];

/// The fault at the end of each run.
pub const LAST: Fault = short("root-gone", root_gone);

/// More than it takes to start a proxy, and less than a leader waits for a follower.
const LAG: Duration = Duration::from_secs(3);
/// A follower that lags is late by what its leader takes, too.
const LAG_MORE: Duration = Duration::from_millis(100);
/// How long it may take until a proxy shows what it holds: servers that lag are looked at after 30 s, and one without the
/// right root is kept for up to 30 s.
const HELD_WITHIN: Duration = Duration::from_secs(100);
/// Tables that go before a hold begins are believed to be gone for less than this.
const BELIEVED_FOR: Duration = Duration::from_secs(3);
/// The way of a read, so that links are cut before its answer.
const BURST_DELAY: Duration = Duration::from_millis(50);
/// A server that is full closes a connection as soon as it sees it.
const CLOSED_WITHIN: Duration = Duration::from_millis(200);
/// An election must have failed before, on a loaded machine.
const READ_ONLY_WITHIN: Duration = Duration::from_secs(30);
const STOPPED_WITHIN: Duration = Duration::from_secs(10);
/// A proxy looks every 2 s whether its state file is old.
const KEPT_WITHIN: Duration = Duration::from_secs(10);
/// A table with a record of its own, not one that names a cluster.
const MARK: usize = 0;
/// How often a table is deleted and created.
const RECREATIONS: usize = 4;
/// Tables moved after each blow.
const MOVED_PERCENT: usize = 20;
/// Past the time-out of a proxy's session, 6 s.
const PAST_SESSION_MS: RangeInclusive<u64> = 7_000..=9_000;
/// While names cannot be listed, what ZooKeeper said of an unknown table counts for 1 s.
const ABSENT_FOR: Duration = Duration::from_secs(1);
/// The proxy looks every second whether names can be listed again.
const NAMES_AGAIN: Duration = Duration::from_secs(1);
/// The longest round of the proxy's sweep, but for the time that its reads take.
const SWEEP_ROUND: Duration = Duration::from_secs(36);
/// Between two reads of the sweep, and some more, as other reads go first.
const SWEEP_STEP: Duration = Duration::from_millis(60);

fn kill_follower(scene: &mut Scene<'_>) {
    let world = scene.world;
    let follower = world.follower(scene.rng);
    world.write_through(world.another(follower, scene.rng));
    scene.blow(&format!("kill -9 of follower {follower}"), |_| world.server(follower).kill());
    scene.hold_ms(1_000..=3_000);
    world.server(follower).restart();
}

fn kill_leader(scene: &mut Scene<'_>) {
    let world = scene.world;
    let leader = world.ensemble.leader();
    world.write_through(world.another(leader, scene.rng));
    scene.blow(&format!("kill -9 of leader {leader}"), |world| {
        world.server(leader).kill();
        world.ensemble.leader();
    });
    scene.hold_ms(1_000..=3_000);
    world.server(leader).restart();
}

fn pause_server(scene: &mut Scene<'_>) {
    let world = scene.world;
    let server = world.servers_shuffled(scene.rng)[0];
    world.write_through(world.another(server, scene.rng));
    let led = if world.ensemble.leader() == server { ", the leader" } else { "" };
    scene.blow(&format!("SIGSTOP of server {server}{led}"), |world| {
        world.server(server).pause();
        // That a leader is silent is noticed after a while.
        world.ensemble.leader();
    });
    scene.hold_ms(PAST_SESSION_MS);
    scene.blow(&format!("SIGCONT of server {server}"), |world| world.server(server).resume());
}

fn rolling_restart(scene: &mut Scene<'_>) {
    let world = scene.world;
    for server in world.servers_shuffled(scene.rng) {
        world.write_through(world.another(server, scene.rng));
        scene.blow(&format!("restart of server {server}"), |world| {
            world.server(server).stop();
            world.server(server).restart();
            world.ensemble.leader();
        });
    }
}

fn quorum_loss(scene: &mut Scene<'_>) {
    let world = scene.world;
    let servers = world.servers_shuffled(scene.rng);
    let (left, lost) = servers.split_first().expect("there are three");
    world.write_through(*left);
    let hold = scene.rng.ms(1_000..=4_000);
    scene.blow(&format!("kill -9 of servers {lost:?}"), |world| {
        lost.iter().for_each(|server| world.server(*server).kill());
        world.hold(hold);
        world.say(&format!("  servers {lost:?} are started"));
        // Neither can serve before the other runs.
        lost.iter().for_each(|server| world.server(*server).launch());
        world.ensemble.leader();
    });
}

fn cut(world: &World) {
    world.relays.iter().for_each(|relay| relay.cut());
}

fn cut_links(scene: &mut Scene<'_>) {
    for _ in 0..scene.rng.below(4) {
        scene.world.disturb("all links are cut", cut);
        scene.hold_ms(0..=1_500);
    }
    scene.blow("all links are cut", cut);
}

fn black_hole(scene: &mut Scene<'_>) {
    let hold = scene.rng.ms(1_000..=9_000);
    scene.blow("all links are black holes", |world| {
        world.relays.iter().for_each(|relay| relay.black_hole());
        world.hold(hold);
        world.relays.iter().for_each(|relay| relay.pass());
    });
}

/// Many tables move, and the links are cut while the proxies read what their watches have told: when watches are set again
/// a server says nothing of those that had fired. Nothing else is written until all is current, because the next change of
/// a table would show what was missed.
fn cut_in_a_burst(scene: &mut Scene<'_>) {
    let world = scene.world;
    let gate = world.shut_gate();
    for _ in 0..3 {
        scene.world.disturb("many tables move, and all links are cut", |world| {
            world.relays.iter().for_each(|relay| relay.delay_to_server(BURST_DELAY));
            for table in (0..world.writable()).step_by(3) {
                world.write_past_gate(table, |history| another_cluster(history, scene.rng));
            }
            cut(world);
            world.relays.iter().for_each(|relay| relay.pass());
        });
        if let Some(took) = aftermath::await_current(world) {
            world.say(&format!("  every route is current after {took:.3?}"));
            scene.took.push(took);
        }
    }
    drop(gate);
    scene.settle();
}

/// The links die without a word, and new ones are as good as ever.
fn forgotten_links(scene: &mut Scene<'_>) {
    scene.blow("all links are forgotten", |world| {
        world.relays.iter().for_each(|relay| relay.forget_links());
    });
}

/// A balancer does so that has no server.
fn closed_at_once(scene: &mut Scene<'_>) {
    let hold = scene.rng.ms(2_000..=6_000);
    scene.blow("all links are cut, new ones closed at once", |world| {
        world.relays.iter().for_each(|relay| relay.close_at_once());
        cut(world);
        hold_and_count_connects(world, hold);
        world.relays.iter().for_each(|relay| relay.pass());
    });
}

/// All servers have as many connections from the proxies' address as they take, `maxClientCnxns`, and close each new one.
fn full_servers(scene: &mut Scene<'_>) {
    let hold = scene.rng.ms(2_000..=6_000);
    scene.blow("all links are cut, and all servers are full", |world| {
        world.relays.iter().for_each(|relay| relay.refuse());
        let servers = world.ensemble.addrs();
        let taken: Vec<_> = servers.into_iter().map(|server| fill(world, server)).collect();
        world.say("  they are full");
        world.relays.iter().for_each(|relay| relay.pass());
        hold_and_count_connects(world, hold);
        drop(taken);
    });
}

/// Connects to a server until it closes a new connection at once.
fn fill(world: &World, server: SocketAddr) -> Vec<TcpStream> {
    let connect = || connect(Some(RELAYS_FROM), server).ok();
    let mut taken: Vec<_> = (0..MAX_CLIENT_CONNECTIONS).filter_map(|_| connect()).collect();
    for _ in 0..MAX_CLIENT_CONNECTIONS {
        let Some(mut more) = connect() else { continue };
        // Without a request nothing comes of a connection that is taken.
        let _ = more.set_read_timeout(Some(CLOSED_WITHIN));
        match more.read(&mut [0]) {
            Err(e) if is_passing(&e) => taken.push(more),
            _ => return taken,
        }
    }
    world.end.fail(|| format!("{server} takes more than {} connections", taken.len()));
    taken
}

/// Two servers are gone, and the third serves what it has, to clients that take that. The proxies do not.
fn read_only_minority(scene: &mut Scene<'_>) {
    let world = scene.world;
    let servers = world.servers_shuffled(scene.rng);
    let (left, lost) = servers.split_first().expect("there are three");
    world.write_through(*left);
    let hold = scene.rng.ms(2_000..=4_000);
    scene.blow(&format!("kill -9 of servers {lost:?}"), |world| {
        lost.iter().for_each(|server| world.server(*server).kill());
        let is_read_only = || world.server(*left).mode().as_deref() == Some("read-only");
        if poll(READ_ONLY_WITHIN, || is_read_only().then_some(())).is_none() {
            world.end.fail(|| format!("server {left} is not read-only, {READ_ONLY_WITHIN:?} on"));
        }
        world.say(&format!("  server {left} is read-only"));
        hold_and_count_connects(world, hold);
        lost.iter().for_each(|server| world.server(*server).launch());
        world.ensemble.leader();
    });
}

/// Lets time pass, and fails the run if the proxies connect more often than is promised.
fn hold_and_count_connects(world: &World, hold: Duration) {
    // Those of the proxies alone.
    let connections = || {
        let taken: u64 = world.relays.iter().map(|relay| relay.connections()).sum();
        taken.saturating_sub(world.probes.load(Ordering::SeqCst))
    };
    let (start, before) = (world.now(), connections());
    world.hold(hold);
    let (span, count) = ((world.now() - start).as_secs(), connections() - before);
    let allowed = (7 + span) * world.proxy_count() as u64;
    if count > allowed {
        let why = || format!("{count} connects in {span} s, at most {allowed} are allowed");
        world.end.fail(why);
    }
}

/// A proxy is stopped and started while routes change: what it has shown is in its state file.
fn restart_proxy(scene: &mut Scene<'_>) {
    let world = scene.world;
    let proxy = scene.rng.below(world.proxy_count());
    let stale = world.begin("SIGINT of a proxy", Whom::Proxy(proxy), Excuse::Stale);
    stop_and_start(world, proxy);
    world.over(stale);
    scene.settle();
}

fn stop_and_start(world: &World, proxy: usize) {
    world.restart_proxy(proxy, "it is started again", |proxy| {
        proxy.process().signal("INT");
        if proxy.process().wait(STOPPED_WITHIN).is_none() {
            world.end.fail(|| format!("a proxy does not stop within {STOPPED_WITHIN:?}"));
        }
    });
}

/// A proxy is killed and started. Its state file has all that there is, and every second time ZooKeeper is out of its reach:
/// then it serves what the file says.
fn kill_proxy(scene: &mut Scene<'_>) {
    let world = scene.world;
    let proxy = scene.rng.below(world.proxy_count());
    let is_alone = scene.rng.percent(50);
    let hold = scene.rng.ms(1_000..=3_000);
    let gate = world.shut_gate();
    world.write_past_gate(MARK, |history| another_cluster(history, scene.rng));
    if aftermath::await_current(world).is_none() {
        return;
    }
    let mark = world.history(MARK).last().mzxid.expect("a write tells its zxid");
    let is_kept = || world.state_of(proxy).contains(&format!("\"mzxid\":{mark}"));
    if poll(KEPT_WITHIN, || (is_kept() || world.end.is_over()).then_some(())).is_none() {
        world.end.fail(|| format!("proxy {proxy}: its state file is old, {KEPT_WITHIN:?} on"));
    }
    let stale = world.begin("kill -9 of a proxy", Whom::All, Excuse::Stale);
    if is_alone {
        world.say("  ZooKeeper is out of reach");
        world.relays.iter().for_each(|relay| relay.refuse());
    }
    world.restart_proxy(proxy, "it is started again", Proxy::kill);
    if is_alone {
        world.hold(hold);
        world.relays.iter().for_each(|relay| relay.pass());
    }
    world.over(stale);
    drop(gate);
    scene.settle();
}

/// Slow, but ZooKeeper answers all the while.
fn low_bandwidth(scene: &mut Scene<'_>) {
    let hold = scene.rng.ms(3_000..=6_000);
    scene.blow("links carry 40 KB/s, and are cut", |world| {
        world.relays.iter().for_each(|relay| relay.bandwidth_to_client(40_000));
        cut(world);
        world.hold(hold);
        world.relays.iter().for_each(|relay| relay.pass());
    });
}

/// Late, but within the patience of a proxy.
fn late_answers(scene: &mut Scene<'_>) {
    let hold = scene.rng.ms(3_000..=6_000);
    scene.blow("answers are late by 1.2 s, and links are cut", |world| {
        world.relays.iter().for_each(|relay| relay.delay_to_client(Duration::from_millis(1_200)));
        cut(world);
        world.hold(hold);
        world.relays.iter().for_each(|relay| relay.pass());
        world.hold(Duration::from_millis(1_200));
    });
}

/// Only one server is lost to the proxies, one that serves some of them if there is such a one.
fn black_hole_one(scene: &mut Scene<'_>) {
    let world = scene.world;
    let servers = world.servers_shuffled(scene.rng);
    let in_use = |server: &&usize| world.relays[**server].open_links() > 0;
    let server = *servers.iter().find(in_use).unwrap_or(&servers[0]);
    let relay = &world.relays[server];
    scene.blow(&format!("links to server {server} are black holes"), |_| relay.black_hole());
    scene.hold_ms(PAST_SESSION_MS);
    scene.blow(&format!("links to server {server} pass again"), |_| relay.pass());
}

fn refuse(scene: &mut Scene<'_>) {
    let hold = scene.rng.ms(1_000..=6_000);
    scene.blow("all links are cut, new ones refused", |world| {
        world.relays.iter().for_each(|relay| relay.refuse());
        world.hold(hold);
        world.relays.iter().for_each(|relay| relay.pass());
    });
}

/// Slow, but ZooKeeper is in use all the while: a change is known after the way of its watch, and there and back.
fn slow_links(scene: &mut Scene<'_>) {
    let world = scene.world;
    let delay = scene.rng.ms(20..=60);
    let ticket =
        world.begin(&format!("links are slow, {delay:?}"), Whom::All, Excuse::Late(6 * delay));
    world.relays.iter().for_each(|relay| relay.delay(delay));
    scene.hold_ms(3_000..=6_000);
    world.relays.iter().for_each(|relay| relay.pass());
    world.over(ticket);
}

fn very_slow_links(scene: &mut Scene<'_>) {
    let delay = scene.rng.ms(300..=2_500);
    let hold = scene.rng.ms(4_000..=8_000);
    scene.blow(&format!("links are very slow, {delay:?}"), |world| {
        world.relays.iter().for_each(|relay| relay.delay(delay));
        world.hold(hold);
        world.relays.iter().for_each(|relay| relay.pass());
        // Bytes that were under way arrive late all the same.
        world.hold(2 * delay);
    });
}

fn expire_sessions(scene: &mut Scene<'_>) {
    let mute = scene.world.begin("the proxies are frozen for a moment", Whom::All, Excuse::Mute);
    scene.blow("all sessions expire", |world| {
        let proxies = world.proxies();
        let owners: Vec<_> = proxies.iter().map(|proxy| proxy.process()).collect();
        let servers = world.ensemble.servers().iter();
        let expired: usize = servers.map(|server| server.expire_sessions_of(&owners)).sum();
        world.over(mute);
        world.say(&format!("  {expired} sessions have expired"));
    });
}

fn pause_proxy(scene: &mut Scene<'_>) {
    let world = scene.world;
    let proxy = scene.rng.below(world.proxy_count());
    let stale = world.begin("SIGSTOP of a proxy", Whom::Proxy(proxy), Excuse::Stale);
    let mute = world.begin("which answers nobody", Whom::Proxy(proxy), Excuse::Mute);
    world.proxy(proxy).pause();
    scene.hold_ms(PAST_SESSION_MS);
    world.proxy(proxy).resume();
    world.over(mute);
    world.over(stale);
    scene.settle();
}

/// A follower learns of changes late, while it serves all the same. Many tables move, all proxies show that, and then the
/// follower is the only server in reach. A proxy that is started again has no session there, and reads all tables: with
/// local sessions the follower would answer at once, with what it knows. The others have a session to keep. Last, all links
/// are cut, and the follower is one of three.
fn lagging_follower(scene: &mut Scene<'_>) {
    let world = scene.world;
    let follower = world.follower(scene.rng);
    let others = || (0..world.relays.len()).filter(|server| *server != follower);
    let restarted = scene.rng.below(world.proxy_count());
    world.write_through(world.another(follower, scene.rng));
    // A client of the follower would know nothing that the follower does not know.
    scene.blow("the proxies leave a follower", |world| world.relays[follower].refuse());
    let gate = world.shut_gate();
    let late = Excuse::Late(LAG + LAG_MORE);
    let ticket = world.begin(&format!("follower {follower} lags {LAG:?}"), Whom::All, late);
    world.ensemble.delay_follower(follower, LAG);
    // Bytes that are under way to it already are not late.
    world.hold(LAG_MORE);
    for table in (0..world.writable()).step_by(2) {
        world.write_past_gate(table, |history| another_cluster(history, scene.rng));
    }
    // All that is shown here must never be shown otherwise again.
    if aftermath::await_current(world).is_none() {
        return;
    }
    world.disturb("it is the only one in reach, and a proxy is started again", |world| {
        others().for_each(|server| world.relays[server].refuse());
        world.relays[follower].pass();
        stop_and_start(world, restarted);
        world.hold(LAG);
        others().for_each(|server| world.relays[server].pass());
    });
    drop(gate);
    scene.hold_ms(500..=2_000);
    world.disturb("all links are cut", cut);
    scene.hold_ms(1_000..=2_000);
    world.ensemble.delay_follower(follower, Duration::ZERO);
    // Bytes that were under way arrive late all the same.
    world.hold(LAG);
    world.over(ticket);
    scene.settle();
}

fn hide_names(scene: &mut Scene<'_>) {
    let world = scene.world;
    let late = ABSENT_FOR + NAMES_AGAIN;
    let ticket = world.begin("an ACL hides the names of all tables", Whom::All, Excuse::Late(late));
    world.server(0).set_acl_denied(ROOT);
    scene.hold_ms(2_000..=5_000);
    world.server(0).set_acl_open(ROOT);
    world.over(ticket);
}

/// A twentieth of the tables cannot be read for a while. Nothing is wrong with ZooKeeper, and their routes stay.
fn hide_tables(scene: &mut Scene<'_>) {
    let hold = scene.rng.ms(1_000..=4_000);
    with_tables_hidden(scene, Excuse::Late(Duration::ZERO), |world, _| world.hold(hold));
    scene.settle();
}

/// Hides tables that move meanwhile: ZooKeeper tells nobody of a change that he may not read, and forgets his watch. So
/// only the slow sweep through all tables finds them.
fn move_hidden_tables(scene: &mut Scene<'_>) {
    let sweep = SWEEP_ROUND + SWEEP_STEP * scene.world.names() as u32;
    let mut rng = Rng::new(scene.rng.below(usize::MAX) as u64, 0);
    with_tables_hidden(scene, Excuse::Late(sweep), |world, tables| {
        for table in tables {
            world.write_past_gate(*table, |history| another_cluster(history, &mut rng));
        }
    });
    scene.settle();
}

/// Nothing else is written meanwhile.
fn with_tables_hidden(scene: &mut Scene<'_>, excuse: Excuse, act: impl FnOnce(&World, &[usize])) {
    let world = scene.world;
    let mut tables: Vec<usize> = (0..world.writable()).collect();
    scene.rng.shuffle(&mut tables);
    tables.truncate(world.writable().div_ceil(20));
    let gate = world.shut_gate();
    // A table that is not there cannot be hidden, and one that was never read would be unusable.
    for table in &tables {
        world.write_past_gate(*table, |history| another_cluster(history, scene.rng));
    }
    if aftermath::await_current(world).is_some() {
        let what = format!("an ACL hides {} tables", tables.len());
        let ticket = world.begin(&what, Whom::Tables(tables.clone()), excuse);
        tables.iter().for_each(|table| world.server(0).set_acl_denied(&world.znode(*table)));
        act(world, &tables);
        tables.iter().for_each(|table| world.server(0).set_acl_open(&world.znode(*table)));
        world.over(ticket);
    }
    drop(gate);
}

/// A fifth of the tables get junk at once, and good records again: nothing is wrong with ZooKeeper.
fn junk(scene: &mut Scene<'_>) {
    let world = scene.world;
    let first = scene.rng.below(5);
    let tables = || (first..world.writable()).step_by(5);
    world.say("  junk in a fifth of the tables");
    for table in tables() {
        world.write(table, |_| Written::Junk);
    }
    scene.hold_ms(500..=2_000);
    for table in tables() {
        world.write(table, |history| another_cluster(history, scene.rng));
    }
}

/// Nothing is wrong: another client moves a tenth of the tables.
fn another_client(scene: &mut Scene<'_>) {
    scene.world.say("  another client moves a tenth of the tables");
    let server = scene.rng.below(scene.world.relays.len());
    observer::read_and_write(scene.world, server, 10, scene.rng);
    scene.settle();
}

/// A tenth of the tables are gone for a moment, over and over, while links are cut: what a read finds is old at once.
fn recreate(scene: &mut Scene<'_>) {
    let world = scene.world;
    let first = scene.rng.below(10);
    for round in 0..RECREATIONS {
        world.say("  a tenth of the tables are deleted and created at once");
        for table in (first..world.writable()).step_by(10) {
            world.write(table, |_| Written::Absent);
            world.write(table, |history| another_cluster(history, scene.rng));
        }
        // The first time nothing is wrong with ZooKeeper.
        if round > 0 {
            world.disturb("all links are cut", cut);
        }
    }
    scene.settle();
}

/// The clusters that every second table names are deleted and come back. The last good addresses serve meanwhile.
fn clusters_gone(scene: &mut Scene<'_>) {
    let world = scene.world;
    let gate = world.shut_gate();
    if aftermath::await_current(world).is_none() {
        return;
    }
    world.say("  all clusters are deleted");
    world.server(0).delete_all(CLUSTERS_ROOT);
    scene.hold_ms(1_000..=3_000);
    for table in 0..world.writable() {
        world.write_past_gate(table, |history| another_cluster(history, scene.rng));
    }
    drop(gate);
    scene.settle();
}

/// All tables and the root are deleted, as by `deleteall`.
fn root_gone(scene: &mut Scene<'_>) {
    replaced(scene, "all tables and the root are deleted", |world| {
        // The first tables go one by one, and return with the hold.
        let gone = world.begin("the first of them are believed", Whom::All, Excuse::Gone);
        world.server(0).delete_all(ROOT);
        world.hold(BELIEVED_FOR);
        world.over(gone);
    });
}

/// All servers come back with empty disks.
fn wiped_data(scene: &mut Scene<'_>) {
    replaced(scene, "all servers lose their data", |world| {
        world.ensemble.servers().iter().for_each(ZooKeeper::lose_data);
        world.ensemble.servers().iter().for_each(ZooKeeper::launch);
        world.ensemble.leader();
    });
}

/// Does something after which ZooKeeper has no root, and shows that all that was known is served on. Then the root and all
/// tables are created, elsewhere, and accepted.
fn replaced(scene: &mut Scene<'_>, what: &str, act: impl FnOnce(&World)) {
    let world = scene.world;
    let gate = world.shut_gate();
    if !all_exist(scene) {
        return;
    }
    let stale = world.begin(what, Whom::All, Excuse::Stale);
    act(world);
    await_hold(world, "root_missing");
    scene.hold_ms(500..=2_500);
    world.say("  the root and all tables are created");
    world.server(0).create(ROOT, "");
    for table in 0..world.writable() {
        world.write_past_gate(table, |history| another_cluster(history, scene.rng));
    }
    await_hold(world, "root_foreign");
    scene.hold_ms(500..=1_000);
    for proxy in world.proxies() {
        accept(world, &proxy);
    }
    world.over(stale);
    drop(gate);
    scene.settle();
}

/// All addresses lead to another team's ZooKeeper, which has a root of the same name, and then back.
fn another_ensemble(scene: &mut Scene<'_>) {
    let world = scene.world;
    let other = ZooKeeper::start();
    other.create(&format!("{ROOT}/theirs"), "");
    let gate = world.shut_gate();
    if !all_exist(scene) {
        return;
    }
    world.disturb("all addresses lead to another ensemble", |world| {
        show(world, |_| other.addr());
        await_hold(world, "root_foreign");
        world.hold(BELIEVED_FOR);
        show(world, |server| world.server(server).addr());
        await_hold(world, "");
    });
    drop(gate);
    scene.settle();
}

/// Leads the proxies' connections to these servers.
fn show(world: &World, server: impl Fn(usize) -> SocketAddr) {
    for (number, relay) in world.relays.iter().enumerate() {
        relay.set_target(server(number));
        relay.cut();
    }
}

/// Creates all tables that are absent, for one that was deleted shortly before a hold returns with it; false: the run is over.
fn all_exist(scene: &mut Scene<'_>) -> bool {
    let world = scene.world;
    for table in 0..world.writable() {
        if world.history(table).last().value == Written::Absent {
            world.write_past_gate(table, |history| another_cluster(history, scene.rng));
        }
    }
    aftermath::await_current(world).is_some()
}

/// The hold of a proxy, as it is shown.
fn hold_of(proxy: &Proxy) -> Value {
    let page = get(proxy.admin(), "/routes");
    serde_json::from_str::<Value>(&page).unwrap_or_default()["hold"].clone()
}

/// Waits until each proxy holds its routes for this reason; an empty one: until none holds any.
fn await_hold(world: &World, kind: &str) {
    for (number, proxy) in world.proxies().iter().enumerate() {
        let is_held = || {
            let found = hold_of(proxy)["kind"].as_str().unwrap_or_default() == kind;
            (found || world.end.is_over()).then_some(())
        };
        if poll(HELD_WITHIN, is_held).is_none() {
            let shown = hold_of(proxy);
            world.end.fail(|| format!("proxy {number}: want a hold, {kind:?}, got {shown}"));
        }
    }
}

/// Accepts as an operator does, again if it has changed since he looked.
fn accept(world: &World, proxy: &Proxy) {
    let accepted = || {
        let hold = hold_of(proxy);
        let czxid = hold["czxid"].as_str().unwrap_or("none");
        let path = format!("/routes/accept?czxid={czxid}&gone={}", hold["gone"]);
        let is_accepted = request(proxy.admin(), "POST", &path, "").status == 200;
        (is_accepted || world.end.is_over()).then_some(())
    };
    if poll(HELD_WITHIN, accepted).is_none() {
        let shown = hold_of(proxy);
        world.end.fail(|| format!("want the hold accepted, got {shown}"));
    }
}
