//! One disposable connection to ZooKeeper. The only file that names the `zookeeper` crate.
//!
//! The crate (0.8.0) gives calls no deadline, loses watches without a word when it reconnects or its session
//! expires, may die for good when a busy connection is cut, and can block in `Drop`. So nothing here is ever
//! repaired: only the threads `zk-read-N` of a client call the crate, they alone hold it, and the last of them
//! to end closes it, blocked for as long as that takes. Who gives a client up drops its [`Client`] and builds
//! another. Watches and states are only passed on, as events with the generation of their client.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use zookeeper::{WatchedEvent, WatchedEventType, ZkError, ZkState, ZooKeeper};

/// Reads at once. Reconnecting proxies do this at the same moment, so it is a share of what ZooKeeper bears,
/// and enough to fill the time of a round trip.
pub const MAX_READS: usize = 16;

/// Something to read, and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// Whether the root is there, and how new: the heartbeat.
    Root,
    /// The names of all tables.
    Names,
    /// The record of a table.
    Table(Box<str>),
    /// The record of a cluster.
    Cluster(Box<str>),
}

/// What a read found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// The root is there; zxid of the last creation or deletion below it.
    Root {
        /// The zxid.
        pzxid: i64,
    },
    /// The root is not there.
    NoRoot {
        /// zxid of the last creation or deletion below the nearest znode above it, no older than its own.
        pzxid: i64,
    },
    /// The children of the root.
    Names(Vec<String>),
    /// Bytes of the znode of a table or cluster, and zxid of their last change.
    Record {
        /// The bytes.
        data: Vec<u8>,
        /// The zxid.
        mzxid: i64,
    },
}

/// Why a read found nothing.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadError {
    /// There is no such znode.
    NoNode,
    /// An ACL forbids it.
    NoAuth,
    /// The connection failed, or nobody knows: the client is to be given up.
    Lost(String),
}

/// What a client tells.
#[derive(Debug)]
pub enum Told {
    /// The znode behind this path, or its children, changed: its watch is used up.
    Changed(String),
    /// It can no longer be trusted to tell of changes.
    Doubt(String),
    /// A read ended.
    Read(What, Result<Found, ReadError>),
}

/// What a client tells, and which client.
#[derive(Debug)]
pub struct ClientEvent {
    /// As given to [`Client::connect`].
    pub generation: u64,
    /// What it tells.
    pub told: Told,
}

/// Counts clients that are not closed yet, given up or not.
pub type Alive = Arc<AtomicUsize>;

/// How to connect.
#[derive(Clone)]
pub struct ConnectOptions {
    /// The znode above the tables.
    pub root: String,
    /// The znode above the clusters, if they have znodes of their own.
    pub clusters_root: Option<String>,
    /// The session time-out to ask for.
    pub timeout: Duration,
    /// `user:password`, if the tables are protected.
    pub digest: Option<String>,
}

/// A server, as it said of itself before we connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where it is.
    pub addr: SocketAddr,
    /// The newest change it knew of; 0: it does not say.
    pub zxid: i64,
}

/// The right to have something read. Dropping it gives the client up.
pub struct Client {
    /// The server.
    pub server: Server,
    reads: Sender<What>,
}

impl Client {
    /// Starts to connect to one server. Whether that went well only a first read can tell.
    pub fn connect(
        server: Server,
        options: &ConnectOptions,
        generation: u64,
        events: &Sender<ClientEvent>,
        alive: &Alive,
    ) -> io::Result<Self> {
        let teller = Teller { generation, events: events.clone() };
        let zookeeper = Arc::new(Guarded::connect(server.addr, options, &teller, alive)?);
        // Never more reads than threads are under way, so sending does not block.
        let (reads, inbox) = bounded(MAX_READS);
        for index in 0..MAX_READS {
            let reader = Reader {
                zookeeper: zookeeper.clone(),
                options: options.clone(),
                inbox: inbox.clone(),
                teller: teller.clone(),
            };
            thread::Builder::new().name(format!("zk-read-{index}")).spawn(move || reader.run())?;
        }
        Ok(Client { server, reads })
    }

    /// Reads `what` and leaves a watch on it. The result comes as an event, or never. False: all threads are
    /// busy.
    pub fn read(&self, what: What) -> bool {
        self.reads.try_send(what).is_ok()
    }
}

#[derive(Clone)]
struct Teller {
    generation: u64,
    events: Sender<ClientEvent>,
}

impl Teller {
    fn tell(&self, told: Told) {
        // Fails when the proxy stops.
        let _ = self.events.send(ClientEvent { generation: self.generation, told });
    }
}

/// How often a client that was given up is told to close.
const CLOSE_EVERY: Duration = Duration::from_millis(200);

/// The crate's client, and its place in the count of those alive.
struct Guarded {
    zookeeper: ZooKeeper,
    authenticated: OnceLock<Result<(), ZkError>>,
    /// Set when the crate's threads have ended.
    ended: Arc<AtomicBool>,
    alive: Alive,
}

impl Guarded {
    fn connect(
        addr: SocketAddr,
        options: &ConnectOptions,
        teller: &Teller,
        alive: &Alive,
    ) -> io::Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let watcher = Watcher { teller: teller.clone(), ended: ended.clone() };
        let listener = teller.clone();
        // The crate unwraps the result of its first connect(2).
        let zookeeper = catch_unwind(AssertUnwindSafe(|| {
            ZooKeeper::connect(&addr.to_string(), options.timeout, move |event| watcher.on(&event))
        }))
        .map_err(|_| io::Error::other("the client panicked"))?
        .map_err(|e| io::Error::other(format!("{e:?}")))?;
        zookeeper.add_listener(move |state| {
            if state != ZkState::Connected {
                listener.tell(Told::Doubt(format!("the connection is {state:?}")));
            }
        });
        alive.fetch_add(1, SeqCst);
        Ok(Guarded { zookeeper, authenticated: OnceLock::new(), ended, alive: alive.clone() })
    }

    /// Proves who we are, once. Blocks for as long as ZooKeeper likes.
    fn authenticate(&self, options: &ConnectOptions) -> Result<(), ZkError> {
        let Some(digest) = &options.digest else {
            return Ok(());
        };
        *self
            .authenticated
            .get_or_init(|| self.zookeeper.add_auth("digest", digest.clone().into_bytes()))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Blocks while the server is mute. A goodbye that was under way while the crate reconnected is lost, and the
        // crate, reconnected, would live on with its threads and its session, out of anybody's reach.
        while !self.ended.load(SeqCst) {
            let _ = self.zookeeper.close();
            thread::sleep(CLOSE_EVERY);
        }
        self.alive.fetch_sub(1, SeqCst);
    }
}

/// Passes watches on, and tells when the crate has thrown it away: then its thread is dead.
struct Watcher {
    teller: Teller,
    ended: Arc<AtomicBool>,
}

impl Watcher {
    fn on(&self, event: &WatchedEvent) {
        match (event.event_type, &event.path) {
            (WatchedEventType::None, _) | (_, None) => {
                let why = format!("the session is {:?}", event.keeper_state);
                self.teller.tell(Told::Doubt(why));
            }
            (_, Some(path)) => self.teller.tell(Told::Changed(path.clone())),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        self.teller.tell(Told::Doubt("its watcher ended".to_owned()));
    }
}

struct Reader {
    zookeeper: Arc<Guarded>,
    options: ConnectOptions,
    inbox: Receiver<What>,
    teller: Teller,
}

impl Reader {
    fn run(self) {
        for what in &self.inbox {
            let found = self.read(&what);
            self.teller.tell(Told::Read(what, found));
        }
    }

    fn read(&self, what: &What) -> Result<Found, ReadError> {
        self.zookeeper
            .authenticate(&self.options)
            .map_err(|e| ReadError::Lost(format!("digest authentication: {e:?}")))?;
        let zookeeper = &self.zookeeper.zookeeper;
        let ConnectOptions { root, clusters_root, .. } = &self.options;
        let record = |path: String| {
            let (data, stat) = zookeeper.get_data(&path, true)?;
            Ok(Found::Record { data, mzxid: stat.mzxid })
        };
        let read = match what {
            // With a watch, so that a root that is missing is noticed when it comes.
            What::Root => match zookeeper.exists(root, true) {
                Ok(Some(stat)) => Ok(Found::Root { pzxid: stat.pzxid }),
                Ok(None) => self.nearest_above(root),
                Err(e) => Err(e),
            },
            What::Names => zookeeper.get_children(root, true).map(Found::Names),
            What::Table(table) => record(format!("{root}/{table}")),
            What::Cluster(name) => match clusters_root {
                Some(clusters_root) => {
                    let znode = format!("{clusters_root}/{name}");
                    match record(znode.clone()) {
                        // With a watch all the same, so that it is noticed when it comes, unless it just has.
                        Err(ZkError::NoNode) => match zookeeper.exists(&znode, true) {
                            Ok(Some(_)) => record(znode),
                            Ok(None) => Err(ZkError::NoNode),
                            Err(e) => Err(e),
                        },
                        read => read,
                    }
                }
                None => Err(ZkError::NoNode),
            },
        };
        read.map_err(|e| match e {
            ZkError::NoNode => ReadError::NoNode,
            ZkError::NoAuth => ReadError::NoAuth,
            e => ReadError::Lost(format!("a read failed: {e:?}")),
        })
    }

    /// Looks for what is above a znode that is missing.
    fn nearest_above(&self, mut path: &str) -> Result<Found, ZkError> {
        while let Some((above, _)) = path.rsplit_once('/') {
            let is_top = above.is_empty();
            path = if is_top { "/" } else { above };
            match self.zookeeper.zookeeper.exists(path, false)? {
                Some(stat) => return Ok(Found::NoRoot { pzxid: stat.pzxid }),
                None if is_top => break,
                None => {}
            }
        }
        Err(ZkError::NoNode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::unbounded;
    use std::net::TcpListener;

    #[test]
    fn a_server_that_is_mute_to_a_digest_holds_up_no_dial() {
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server { addr: mute.local_addr().unwrap(), zxid: 0 };
        let options = ConnectOptions {
            root: "/r".to_owned(),
            clusters_root: None,
            timeout: Duration::from_secs(6),
            digest: Some("user:secret".to_owned()),
        };
        let (done, dialed) = bounded(1);
        thread::spawn(move || {
            let (events, alive) = (unbounded().0, Alive::default());
            let _ = done.send(Client::connect(server, &options, 1, &events, &alive));
        });
        let client = dialed.recv_timeout(Duration::from_secs(5));
        assert!(client.is_ok_and(|client| client.is_ok()));
    }
}
