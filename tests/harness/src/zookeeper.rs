//! Real ZooKeeper servers for tests: alone or as an ensemble, each a child process with its own port and data, which can
//! be paused, stopped, killed and started again; and a hand on the znodes and sessions in them.
//!
//! ```text
//! ZooKeeper ─┬─ Process: java, log and data in a Scratch directory
//!            ├─ Session: the test's own hand, kept open between operations, replaced when it broke
//!            └─ four-letter words (srvr, cons, mntr): what the server says of itself
//! Ensemble ─┬── three of them
//!           └── a Relay from each to each: what one sends another can be late
//! ```
//! Where the jars are: `ZOOKEEPER_CLASSPATH`, else where Debian's packages put them. Ticks are short, so that sessions
//! expire in tests as soon as their clients wish (from 0.4 s on), and nothing is synced to disk.

mod session;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Index;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{env, process, thread};

use crate::process::Process;
use crate::relay::Relay;
use crate::scratch::{Scratch, tail};
use crate::wait::poll;
use session::{Fault, NO_NODE, NODE_EXISTS, SESSION_EXPIRED, Session};

/// A Java start takes half a second in calm; on a loaded machine with three at once, much longer.
const START_WITHIN: Duration = Duration::from_secs(60);
/// How long an operation is tried on a server that does not answer. Longer than an election.
const OPERATION_WITHIN: Duration = Duration::from_secs(20);
const STOP_WITHIN: Duration = Duration::from_secs(20);
const WORD_WITHIN: Duration = Duration::from_secs(2);
/// A port found free may be taken before the server binds it.
const START_TRIES: usize = 3;
const LOG_LINES: usize = 40;

const TICK_MS: u32 = 200;
/// Two ticks, the least that ZooKeeper can keep.
const MIN_SESSION_TIMEOUT_MS: u32 = 2 * TICK_MS;
const MAX_SESSION_TIMEOUT_MS: u32 = 60_000;
/// 10 s for a follower to catch up after an election.
const INIT_LIMIT_TICKS: u32 = 50;
/// 4 s of silence, and a paused member is out.
const SYNC_LIMIT_TICKS: u32 = 20;
/// A follower may be faster than the leader that it has elected. One that were refused would connect again, but one whose
/// connection a relay took and lost votes anew, while the leader waits for it for 10 s.
const LEADER_WITHIN: Duration = Duration::from_secs(1);
const CONFIG_FILE: &str = "zoo.cfg";
/// More options of java, a line each.
const JAVA_FILE: &str = "java";
/// Where it keeps snapshots and transactions.
const DATA: &str = "version-2";
const CLASSPATH: &str = "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar";
const MAIN_CLASS: &str = "org.apache.zookeeper.server.quorum.QuorumPeerMain";
/// Small and quick to start: one compiler, one collector, nothing synced, no 64 MB log files.
const JAVA_OPTIONS: [&str; 9] = [
    "-Xmx1g",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",
    "-Dzookeeper.forceSync=no",
    "-Dzookeeper.preAllocSize=1024",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
];

/// One server. Killed on drop. All methods take `&self`: a test may pause the server in one thread and use it in another.
pub struct ZooKeeper {
    addr: SocketAddr,
    process: Mutex<Process>,
    hand: Mutex<Option<Session>>,
    scratch: Scratch,
}

/// A client's connection, as the server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub peer: SocketAddr,
    pub session: i64,
    pub session_timeout: Duration,
    /// Requests that came over this connection, pings and the handshake among them.
    pub received: u64,
}

impl ZooKeeper {
    /// Starts one standalone server; returns when it serves.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts it with more lines in its settings, which count more.
    pub fn start_with(settings: &str) -> Self {
        start_retrying(|| {
            let [port] = free_ports();
            let server = Self::launch_first(port, None, settings, &[])?;
            server.wait_until_serving()?;
            Ok(server)
        })
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    // ---- the process

    /// SIGTERM; returns when the process is gone. Clients see their connections close.
    pub fn stop(&self) {
        self.process().terminate(STOP_WITHIN);
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&self) {
        self.process().kill();
    }

    /// Freezes the server: connections stay open, new ones are taken by the kernel, nothing is answered.
    pub fn pause(&self) {
        self.process().pause();
    }

    /// Ends [`pause`](Self::pause). Sessions whose time ran out meanwhile expire.
    pub fn resume(&self) {
        self.process().resume();
    }

    /// Kills it if it runs, starts it with the same port and data, returns when it serves.
    #[track_caller]
    pub fn restart(&self) {
        self.launch();
        if let Err(why) = self.wait_until_serving() {
            panic!("{why}");
        }
    }

    /// Kills it and takes its data away: when it starts, its tree is empty and its zxids begin again.
    #[track_caller]
    pub fn lose_data(&self) {
        self.kill();
        fs::remove_dir_all(self.scratch.path().join(DATA)).expect("it has data");
    }

    /// Like [`restart`](Self::restart), but does not wait: a member of an ensemble cannot serve before others do.
    #[track_caller]
    pub fn launch(&self) {
        let mut process = self.process();
        process.kill();
        *process = spawn(&self.scratch).unwrap_or_else(|e| panic!("cannot start java: {e}"));
    }

    /// A copy of its data. It must not run.
    pub fn back_up(&self) -> Scratch {
        let backup = Scratch::new("backup");
        copy_files(&self.scratch.path().join(DATA), &backup.path().join(DATA));
        backup
    }

    /// Its data are what they were when the copy was made. It must not run.
    pub fn restore(&self, backup: &Scratch) {
        let data = self.scratch.path().join(DATA);
        fs::remove_dir_all(&data).expect("it is ours");
        copy_files(&backup.path().join(DATA), &data);
    }

    /// Its process id; another one after a restart.
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Processor time that it has used so far.
    pub fn cpu_ms(&self) -> u64 {
        self.process().cpu_ms()
    }

    /// Its log, over all restarts.
    pub fn log(&self) -> String {
        fs::read_to_string(log_path(&self.scratch)).unwrap_or_default()
    }

    // ---- what it says of itself

    /// `standalone`, `leader`, `follower`; `None` while it does not serve.
    pub fn mode(&self) -> Option<String> {
        let answer = self.four_letter_word("srvr").ok()?;
        let mode = answer.lines().find_map(|line| line.strip_prefix("Mode: "))?;
        Some(mode.to_owned())
    }

    /// Whether it leads its ensemble now.
    pub fn is_leader(&self) -> bool {
        self.mode().as_deref() == Some("leader")
    }

    /// The connections of clients that have a session, the test's own left out.
    #[track_caller]
    pub fn connections(&self) -> Vec<Connection> {
        let own = self.hand().as_ref().map(Session::id);
        self.answer("cons")
            .lines()
            .filter_map(parse_connection)
            .filter(|connection| Some(connection.session) != own)
            .collect()
    }

    /// How many watches clients have set on this server. The test's own hand sets none.
    #[track_caller]
    pub fn watch_count(&self) -> u64 {
        self.counter("zk_watch_count")
            .unwrap_or_else(|| panic!("{}: mntr has no zk_watch_count", self.addr))
    }

    /// How many requests read something at or below the top-level znode `root` (`"/pegasus-cluster"`) since the server
    /// started; reads of what does not exist are not among them, [`Connection::received`] counts those.
    #[track_caller]
    pub fn reads_served(&self, root: &str) -> u64 {
        let name = root.trim_start_matches('/');
        self.counter(&format!("zk_cnt_{name}_read_per_namespace")).unwrap_or(0) // appears with the first read
    }

    /// One value of `mntr`.
    #[track_caller]
    pub fn counter(&self, name: &str) -> Option<u64> {
        let answer = self.answer("mntr");
        let value = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('\t'))?;
        value.trim().parse().ok()
    }

    /// Asks by a four-letter word, once: `srvr`, `cons`, `mntr`, `wchp`, `dump`...
    pub fn four_letter_word(&self, word: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.addr, WORD_WITHIN)?;
        stream.set_read_timeout(Some(WORD_WITHIN))?;
        stream.write_all(word.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    // ---- znodes

    /// Creates a znode, and its parents if they are missing. It must not exist. Returns the zxid of the change, which
    /// is the znode's mzxid.
    #[track_caller]
    pub fn create(&self, path: &str, data: impl AsRef<[u8]>) -> i64 {
        let data = data.as_ref();
        self.operate(&format!("create {path}"), |hand, again| {
            match create_with_parents(hand, path, data) {
                // The try before may have done it, and lost its answer: this makes the same of both.
                Err(Fault::Code(NODE_EXISTS)) if again => hand.set(path, data),
                done => done,
            }
        })
    }

    /// Changes a znode, which must exist. Returns the new mzxid.
    #[track_caller]
    pub fn set(&self, path: &str, data: impl AsRef<[u8]>) -> i64 {
        self.operate(&format!("set {path}"), |hand, _| hand.set(path, data.as_ref()))
    }

    /// Changes a znode or creates it, with its parents. Returns the new mzxid.
    #[track_caller]
    pub fn put(&self, path: &str, data: impl AsRef<[u8]>) -> i64 {
        let data = data.as_ref();
        self.operate(&format!("put {path}"), |hand, _| match hand.set(path, data) {
            Err(Fault::Code(NO_NODE)) => create_with_parents(hand, path, data),
            done => done,
        })
    }

    /// Creates many znodes, whose parent must exist, without waiting for one after the other.
    #[track_caller]
    pub fn create_many(&self, paths: &[String], data: impl AsRef<[u8]>) {
        let data = data.as_ref();
        self.operate(&format!("create {} znodes", paths.len()), |hand, again| {
            hand.create_many(paths, data, again)
        });
    }

    /// Changes many znodes, without waiting for one after the other.
    #[track_caller]
    pub fn set_many(&self, paths: &[String], data: impl AsRef<[u8]>) {
        let data = data.as_ref();
        self.operate(&format!("set {} znodes", paths.len()), |hand, _| hand.set_many(paths, data));
    }

    /// Deletes a znode, which must exist and have no children.
    #[track_caller]
    pub fn delete(&self, path: &str) {
        self.operate(&format!("delete {path}"), |hand, again| {
            match hand.delete(path) {
                Err(Fault::Code(NO_NODE)) if again => Ok(()), // done by the try before
                done => done.map(drop),
            }
        });
    }

    /// Deletes a znode and all that is below it, as `deleteall` of zkCli.sh does: the children first, in their order.
    #[track_caller]
    pub fn delete_all(&self, path: &str) {
        for name in self.children(path) {
            self.delete_all(&format!("{path}/{name}"));
        }
        self.delete(path);
    }

    /// Whether the znode is there.
    #[track_caller]
    pub fn exists(&self, path: &str) -> bool {
        self.operate(&format!("exists {path}"), |hand, _| hand.exists(path))
    }

    /// The data of the znode; `None` if it does not exist.
    #[track_caller]
    pub fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.operate(&format!("get {path}"), |hand, _| match hand.get(path) {
            Err(Fault::Code(NO_NODE)) => Ok(None),
            done => done.map(Some),
        })
    }

    /// Names of the children, sorted.
    #[track_caller]
    pub fn children(&self, path: &str) -> Vec<String> {
        let mut names = self.operate(&format!("children of {path}"), |hand, _| hand.children(path));
        names.sort();
        names
    }

    // ---- permissions

    /// Nobody can read the znode any more; the test can still change and delete it.
    #[track_caller]
    pub fn set_acl_denied(&self, path: &str) {
        self.operate(&format!("deny {path}"), |hand, _| hand.set_acl(path, session::UNREADABLE));
    }

    /// Everybody can do everything with the znode, as when it was created.
    #[track_caller]
    pub fn set_acl_open(&self, path: &str) {
        self.operate(&format!("open {path}"), |hand, _| hand.set_acl(path, session::OPEN));
    }

    /// Only who proves `user:password` by digest can touch the znode. The test's own hand proves it from here on, so its
    /// operations go on as before.
    #[track_caller]
    pub fn set_acl_digest(&self, path: &str, user_and_password: &str) {
        self.operate(&format!("digest {path}"), |hand, _| {
            hand.authenticate("digest", user_and_password)?;
            hand.set_acl(path, session::MINE)
        });
    }

    // ---- sessions of others

    /// Ends one session at once, as an expiry does: its connection closes, its watches and ephemeral znodes are gone, and
    /// when its owner comes back it is told that the session has expired.
    ///
    /// The owner must be unable to come back meanwhile: be paused, or be behind a relay that is a black hole. One that
    /// is quick enough to reconnect in that millisecond gets a connection without a session, on which the server
    /// answers nothing and never says why.
    #[track_caller]
    pub fn expire_session(&self, session: i64) {
        self.expire(session, false);
    }

    /// `may_be_gone`: it may have ended by itself meanwhile.
    #[track_caller]
    fn expire(&self, session: i64, may_be_gone: bool) {
        let what = format!("expire session {session:#x}");
        let mut again = may_be_gone;
        // Not over the own hand: it takes the place of the session's owner.
        self.retry(&what, || {
            let done = session::expire(self.addr, session);
            match done {
                Err(Fault::Code(SESSION_EXPIRED)) if again => Ok(()), // done by the try before
                done => {
                    again = true;
                    done
                }
            }
        });
    }

    /// Ends all sessions connected to this server but the test's own, while their `owners` are paused; see
    /// [`expire_session`](Self::expire_session). Returns how many there were.
    #[track_caller]
    pub fn expire_sessions_of(&self, owners: &[&Process]) -> usize {
        owners.iter().for_each(|owner| owner.pause());
        let connections = self.connections();
        for connection in &connections {
            self.expire(connection.session, true);
        }
        owners.iter().for_each(|owner| owner.resume());
        connections.len()
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand(&self) -> MutexGuard<'_, Option<Session>> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs an operation over the kept session, again over a new one if the link broke. `again` tells the operation that
    /// an earlier try may have been done without our knowing.
    #[track_caller]
    fn operate<T>(
        &self,
        what: &str,
        operation: impl Fn(&mut Session, bool) -> Result<T, Fault>,
    ) -> T {
        let mut again = false;
        self.retry(what, || {
            let mut kept = self.hand();
            let mut hand = match kept.take() {
                Some(hand) => hand,
                None => Session::open(self.addr)?,
            };
            let done = operation(&mut hand, again);
            if matches!(done, Err(Fault::Link(_))) {
                again = true;
            } else {
                *kept = Some(hand);
            }
            done
        })
    }

    /// Tries until the link holds, or the time is over.
    #[track_caller]
    fn retry<T>(&self, what: &str, mut attempt: impl FnMut() -> Result<T, Fault>) -> T {
        let mut last = None;
        let done = poll(OPERATION_WITHIN, || match attempt() {
            Err(Fault::Link(e)) => {
                last = Some(e);
                None
            }
            done => Some(done),
        });
        match done {
            Some(Ok(done)) => done,
            Some(Err(fault)) => panic!("ZooKeeper {}: {what}: {fault}", self.addr),
            None => panic!(
                "ZooKeeper {}: {what}: not within {OPERATION_WITHIN:?}, last fault: {last:?}\n{}",
                self.addr,
                self.log_tail()
            ),
        }
    }

    #[track_caller]
    fn answer(&self, word: &str) -> String {
        self.retry(word, || Ok(self.four_letter_word(word)?))
    }

    fn log_tail(&self) -> String {
        let tail = tail(&self.log(), LOG_LINES);
        format!("---- log of ZooKeeper {}, its end\n{tail}\n----", self.addr)
    }

    /// Writes the files and starts the process, without waiting for it. `member` is its number in an ensemble, and the
    /// settings that all members share.
    fn launch_first(
        port: u16,
        member: Option<usize>,
        settings: &str,
        java: &[&str],
    ) -> Result<Self, String> {
        let scratch = Scratch::new("zookeeper");
        scratch.write(JAVA_FILE, java.join("\n"));
        let mut config = config(&scratch, port);
        if let Some(id) = member {
            scratch.write("myid", id.to_string());
        }
        config.push_str(settings);
        scratch.write(CONFIG_FILE, config);
        let process = spawn(&scratch).map_err(|e| format!("cannot start java: {e}"))?;
        Ok(ZooKeeper {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            process: Mutex::new(process),
            hand: Mutex::new(None),
            scratch,
        })
    }

    fn wait_until_serving(&self) -> Result<(), String> {
        let serves = poll(START_WITHIN, || {
            let ended = self.process().ended();
            match ended {
                Some(status) => Some(Err(format!("ended with {status}"))),
                None => self.mode().map(|_| Ok(())),
            }
        });
        serves
            .unwrap_or_else(|| Err(format!("does not serve within {START_WITHIN:?}")))
            .map_err(|why| format!("ZooKeeper {}: {why}\n{}", self.addr, self.log_tail()))
    }
}

impl Drop for ZooKeeper {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}

/// Where the session of a client is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sessions {
    /// The ensemble, as is usual. A server that gives one has learned of all that was written before.
    Global,
    /// The server alone: one that lags answers at once.
    Local,
}

/// Servers that hold the same znodes and elect a leader.
pub struct Ensemble {
    servers: Vec<ZooKeeper>,
    /// The ways of each server to what a leader tells its followers, one to each server.
    to_leaders: Vec<Vec<Relay>>,
}

impl Ensemble {
    /// Starts `count` servers; returns when all serve.
    pub fn start(count: usize, sessions: Sessions) -> Self {
        Self::start_with(count, sessions, "", &[])
    }

    /// Starts servers of which one that has lost the others serves its data to clients that accept a read-only server.
    /// `settings` are more lines of settings.
    pub fn start_read_only(count: usize, sessions: Sessions, settings: &str) -> Self {
        Self::start_with(count, sessions, settings, &["-Dreadonlymode.enabled=true"])
    }

    fn start_with(count: usize, sessions: Sessions, settings: &str, java: &[&str]) -> Self {
        let local = sessions == Sessions::Local;
        // Without a version, which is 0, members would take over the leader's list, and each has a list of its own.
        let shared = format!(
            "initLimit={INIT_LIMIT_TICKS}\nsyncLimit={SYNC_LIMIT_TICKS}\nlocalSessionsEnabled={local}\nversion=1\n{settings}\n"
        );
        start_retrying(|| {
            let ports: Vec<[u16; 3]> = (0..count).map(|_| free_ports()).collect();
            let mut ensemble = Ensemble { servers: Vec::new(), to_leaders: Vec::new() };
            for (index, [client, own_quorum, _]) in ports.iter().enumerate() {
                let local = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                let relay = |quorum| Relay::to_one_that_comes(local(quorum), LEADER_WITHIN);
                let to_leaders: Vec<Relay> =
                    ports.iter().map(|[_, quorum, _]| relay(*quorum)).collect();
                let mut settings = shared.clone();
                for (other, [_, _, election]) in ports.iter().enumerate() {
                    let relay = to_leaders[other].addr().port();
                    let quorum = if other == index { *own_quorum } else { relay };
                    let id = other + 1;
                    let _ = writeln!(settings, "server.{id}=127.0.0.1:{quorum}:{election}");
                }
                let server = ZooKeeper::launch_first(*client, Some(index + 1), &settings, java)?;
                ensemble.servers.push(server);
                ensemble.to_leaders.push(to_leaders);
            }
            for server in &ensemble.servers {
                server.wait_until_serving()?;
            }
            Ok(ensemble)
        })
    }

    /// From now on a follower learns so much later what was written. With more than its leader's patience, 4 s, it is
    /// no follower any more.
    pub fn delay_follower(&self, follower: usize, delay: Duration) {
        self.to_leaders[follower].iter().for_each(|relay| relay.delay_to_client(delay));
    }

    /// All of them, dead ones too.
    pub fn servers(&self) -> &[ZooKeeper] {
        &self.servers
    }

    /// Where clients connect, in the order of [`servers`](Self::servers).
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(ZooKeeper::addr).collect()
    }

    /// The index of the leader; waits while there is none.
    #[track_caller]
    pub fn leader(&self) -> usize {
        match poll(OPERATION_WITHIN, || self.servers.iter().position(ZooKeeper::is_leader)) {
            Some(leader) => leader,
            None => {
                let logs: Vec<String> = self.servers.iter().map(ZooKeeper::log_tail).collect();
                panic!("no leader within {OPERATION_WITHIN:?}\n{}", logs.join("\n"));
            }
        }
    }
}

impl Index<usize> for Ensemble {
    type Output = ZooKeeper;

    fn index(&self, index: usize) -> &ZooKeeper {
        &self.servers[index]
    }
}

/// A port found free may be taken by another before the server binds it; then all is tried again with other ports.
fn start_retrying<T>(start: impl Fn() -> Result<T, String>) -> T {
    let mut tries = 1;
    loop {
        match start() {
            Ok(started) => return started,
            Err(why) if tries < START_TRIES && why.contains("BindException") => tries += 1,
            Err(why) => panic!("{why}"),
        }
    }
}

fn spawn(scratch: &Scratch) -> io::Result<Process> {
    let log = File::options().create(true).append(true).open(log_path(scratch))?;
    let classpath = env::var("ZOOKEEPER_CLASSPATH").unwrap_or_else(|_| CLASSPATH.to_owned());
    let mut java = Command::new("java");
    let more = fs::read_to_string(scratch.path().join(JAVA_FILE))?;
    java.args(JAVA_OPTIONS)
        .args(more.lines())
        .args(["-cp", &classpath, MAIN_CLASS])
        .arg(scratch.path().join(CONFIG_FILE))
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Process::spawn("ZooKeeper", &mut java)
}

fn config(scratch: &Scratch, port: u16) -> String {
    let data = scratch.path().display();
    format!(
        "dataDir={data}\n\
         clientPort={port}\n\
         clientPortAddress=127.0.0.1\n\
         tickTime={TICK_MS}\n\
         minSessionTimeout={MIN_SESSION_TIMEOUT_MS}\n\
         maxSessionTimeout={MAX_SESSION_TIMEOUT_MS}\n\
         maxClientCnxns=0\n\
         admin.enableServer=false\n\
         4lw.commands.whitelist=*\n"
    )
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory of ours");
    for entry in fs::read_dir(from).expect("a server that has run has data") {
        let path = entry.expect("it stays while it is read").path();
        let name = path.file_name().expect("an entry has a name");
        fs::copy(&path, to.join(name)).expect("there is room for a copy");
    }
}

fn log_path(scratch: &Scratch) -> PathBuf {
    scratch.path().join("log")
}

/// Ports that nobody listens on. They are below those which Linux gives to outgoing connections and to port 0, so that
/// they are still free when a stopped server wants its own back.
fn free_ports<const N: usize>() -> [u16; N] {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 22_000;
    static LAST: AtomicU16 = AtomicU16::new(0);
    // Test processes that run side by side start looking at different places.
    let offset = (process::id() % 220) as u16 * 100;
    std::array::from_fn(|_| {
        (0..COUNT)
            .map(|_| FIRST + (offset + LAST.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT)
            .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
            .expect("22,000 ports are not all taken")
    })
}

/// ` /127.0.0.1:36798[1](queued=0,recved=1,sent=1,sid=0x100001424600000,lop=SESS,...,to=6000,...)`; one without a session
/// is somebody asking by four letters.
fn parse_connection(line: &str) -> Option<Connection> {
    let (peer, rest) = line.trim().strip_prefix('/')?.split_once('[')?;
    let values = rest.split_once('(')?.1.trim_end_matches(')');
    let value =
        |key: &str| values.split(',').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    Some(Connection {
        peer: peer.parse().ok()?,
        session: i64::from_str_radix(value("sid")?.strip_prefix("0x")?, 16).ok()?,
        session_timeout: Duration::from_millis(value("to")?.parse().ok()?),
        received: value("recved")?.parse().ok()?,
    })
}

/// Parents first come into being when a child needs them.
fn create_with_parents(hand: &mut Session, path: &str, data: &[u8]) -> Result<i64, Fault> {
    match (hand.create(path, data), path.rfind('/')) {
        (Err(Fault::Code(NO_NODE)), Some(end @ 1..)) => {
            match create_with_parents(hand, &path[..end], b"") {
                // Another test's hand was faster.
                Ok(_) | Err(Fault::Code(NODE_EXISTS)) => hand.create(path, data),
                failed => failed,
            }
        }
        (done, _) => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::eventually;

    #[test]
    fn a_connection_is_read_from_its_line() {
        let line = " /127.0.0.1:36798[1](queued=0,recved=12,sent=1,sid=0x100001424600000,lop=SESS,\
                    est=1795445773925,to=6000,lcxid=0x0,lzxid=0x1,lresp=1320306,llat=13,minlat=0)";
        assert_eq!(
            parse_connection(line),
            Some(Connection {
                peer: SocketAddr::from((Ipv4Addr::LOCALHOST, 36798)),
                session: 0x0100_0014_2460_0000,
                session_timeout: Duration::from_secs(6),
                received: 12,
            })
        );
        let word = " /127.0.0.1:36800[0](queued=0,recved=1,sent=0)";
        assert_eq!(parse_connection(word), None);
    }

    #[test]
    fn ports_are_free_and_below_the_ephemeral_ones() {
        let ports: [u16; 50] = free_ports();
        for port in ports {
            assert!((10_000..32_000).contains(&port), "{port}");
        }
        let mut unique = ports.to_vec();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), ports.len());
    }

    #[test]
    fn an_expired_session_is_gone_for_its_owner_and_the_own_hand_stays() {
        let zk = ZooKeeper::start();
        zk.put("/orders", "");
        let mut owner = Session::open(zk.addr()).expect("the server serves");
        assert!(owner.exists("/orders").expect("the session is new"));
        assert_eq!(zk.connections().len(), 1, "{:?}", zk.connections());

        assert_eq!(zk.expire_sessions_of(&[]), 1);
        eventually("its connection closes", OPERATION_WITHIN, || zk.connections().is_empty());
        assert!(matches!(owner.exists("/orders"), Err(Fault::Link(_))));
        let back = session::expire(zk.addr(), owner.id());
        assert!(matches!(back, Err(Fault::Code(SESSION_EXPIRED))), "{back:?}");
        assert!(zk.exists("/orders"));
    }
}
