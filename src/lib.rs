//! MetaProxy for Apache Pegasus: one address in front of many clusters.
//!
//! A client takes the proxy for its MetaServer and asks `QueryConfig(table)`. The proxy knows from ZooKeeper
//! which cluster holds the table, asks that cluster's MetaServer, and returns the answer whole. Data goes
//! straight from the client to the replica servers.
//!
//! # One query
//! ```text
//! client ──▶ accept (mio): listener, idle and half-read clients ──work queue──▶ worker-NNN
//! client ◀───────────── answer, written by the worker ◀──────────────────────────┘   │ blocks on MetaServer I/O,
//!                                                                                    ▼ 5 ms at most
//!                route table: RwLock ──hit──▶ cluster: questions, leader, health, links ──▶ MetaServer
//!                   ▲ only writer    └─miss─▶ parked with zk-watch, resumed as a job         ▲
//!                                             meta-watch: silent calls, ticks, probes ───────┘
//! ```
//! 1. `client::accept` sees a readable socket and leaves it in the queue; `client::readiness` says that one worker
//!    reads it, `work::queue` how many workers come to read, and which host's turn it is.
//! 2. A worker (`work::worker`, `client::connection`) reads what is there and cuts frames (`wire`). The
//!    first four bytes of a connection say whether they are THFT or RDSN (`wire::protocol`); both ask the same question.
//! 3. `query::router` finds the table's cluster (`route::table`), or leaves the query with `zk-watch`, or answers by itself.
//! 4. `upstream::cluster` takes the question (`upstream::sharing`: who shares it). A worker with a place makes calls
//!    (`upstream::call`): many questions to one server, with one write on one link (`upstream::link`). `upstream::leader`
//!    decides whom to ask, `upstream::health` when to stop asking. A call that is silent for a slice is parked with
//!    `upstream::watch`, and its questions go on to other servers.
//! 5. The answer goes to all who asked, each in an envelope of its own (`client::ask`, `wire::reply`, `client::sending`).
//!
//! # One ZooKeeper event
//! ```text
//! ZooKeeper ◀──one socket──▶ zk-link ──up, down, answers, watches that fired──▶ zk-watch: planner, meaning, routes
//!                               ▲                                                 │        └──▶ route table, and jobs
//!                               └───────────────── what is read next ◀────────────┘             for who waited
//! ```
//! 1. `zk::connection` keeps one session over all its connections, chosen by `zk::dial`, and speaks the protocol of
//!    `zk::codec`.
//! 2. `zk::watcher` hears what it tells. `zk::planner` says what is read next, `zk::read` in which requests.
//! 3. `zk::meaning` decides what an answer means for the routes, and `zk::records` where a table lives. `zk::routes` carries
//!    that out: nobody else writes routes of ZooKeeper. Whether an absence is believed is `route::hold`'s decision: a root
//!    that is missing or another one, and tables that go by the many, are held until they are back or an operator accepts it.
//!
//! # The route tool
//! ```text
//! meta-proxy route ─▶ cli::route ─▶ ops: plan, rules, journal ──compare-and-set──▶ ZooKeeper ──event──▶ each proxy
//!         ▲                          └─▶ clusters' leaders: names, tables               ▲                  │
//!         └────────── done, when each shows it ◀── pages ◀──────────────────────────────┼──────────────────┘
//!                     control znode: members ◀── `zk::control` of each proxy ───────────┘
//! ```
//! A command of its own, which ends. It shares the protocols (`zk::session`, `wire`) with the proxy, and no thread.
//! `route::control` has what both write below the control znode. The proxy depends on nothing that is there but for the
//! operator's word: accepted holds, and deletions that are meant.
//!
//! # Threads
//! | thread | owner | blocks on | ends when |
//! |---|---|---|---|
//! | `main` | the process | signals | SIGINT, or SIGTERM and all clients have left |
//! | `accept` | `server` | poll, at most until the next deadline | a note says so |
//! | `worker-NNN` | `server` | the work queue; one MetaServer, for 5 ms at most | the queue is empty and stopped |
//! | `meta-watch` | `server` | poll on silent calls and probes, at most until the next tick | an order says so |
//! | `watchdog` | `cli::serve` | a beat through `accept` and a worker | its stop channel closes |
//! | `zk-watch` | `server` | its channels, at most until the planner's next act | its stop channel closes |
//! | `zk-link` | `zk-watch` | poll on its socket and a waker, at most until a deadline | its commands' channel closes |
//! | `routes-file` | `server` | its stop channel, 200 ms | the channel closes |
//! | `state-file` | `server` | its stop channel, 2 s | the channel closes |
//! | `log` | the process | the disk, or who reads stderr | the process ends |
//! | `admin-N` | `server` | poll on its exchanges, 250 ms | a flag says so |
//! | `falcon` | `server` | its stop channel; the agent, 250 ms at a time | the channel closes |
//! | `resolve-NN` | the resolver | getaddrinfo | idle for a minute, or the resolver is dropped |
//!
//! # Locks
//! None is held across I/O that can block, and none while another is taken, but for one: what a client used last, then
//! who uses which table (`client::usage`). Under a connection's outbox there is one system call, a write that does not
//! block. The route table, a cluster's core, the resolver's cache and the log's queue are leaves.
//!
//! # What bounds it
//! Connections, frames, pending queries, unread answers and half frames: settings. Queue: each connection at most once;
//! jobs: the pending queries and the calls under way. A cluster: eight calls, as many slow links, eight idle links to a
//! server. Questions of a call: 64, of 64 KiB. Name look-ups: 32 threads, a quarter for one zone. Waits: [`patience`].
//! Routes: the capacity of the cache. Reads of ZooKeeper at once: 64. Connects to ZooKeeper: five at once, then one a second.
//!
//! # Choices that may surprise
//! - A notice that a connection closed goes to `accept` as a note, not as an epoll event: shutting down a socket
//!   that the peer has reset raises none.
//! - A call says something of its cluster only if it had time: who asks with little of his time left, or leaves early,
//!   must not make a cluster that answers look like one that does not.
//! - A query counts for each KiB of its arguments where pending ones are limited, and half frames count as unsent
//!   answers do: both are memory that a client has others hold. An answer that many clients share counts once.
//! - A client with too much unsent is not read (`client::readiness`, PAUSED), and answers to what was read before are kept
//!   for it. It is closed only when it takes nothing: a Go client that is disconnected cannot redial for a minute.
//! - One host gets a quarter of the pending queries and half of the held bytes (`client::share`): beyond them only its own
//!   queries are refused.
//! - A cluster may have as many queries waiting as are still free (`upstream::cluster`, `join`): one slow cluster gets half of
//!   `limits.max_pending`, two a third each, and there is always room for the others.
//! - A place ends with the last answer of its call, before the answers are written: another worker makes the next call
//!   meanwhile.
//! - An error name that no server has, as `ERR_ok`, is no answer: Java clients hang on names that they do not know.
//! - A stop shuts writing down first and discards input until the client closes (`client::stop`): a close with unread input
//!   resets the connection, and destroys answers on their way.
//! - A leader's `ERR_SERVICE_NOT_ACTIVE` is passed on at once, it is the leader's answer. A *frame* error of a
//!   MetaServer is not: it would hang Go and Node clients, so another server is asked, and in the end the client
//!   reads `ERR_SERVICE_NOT_ACTIVE`.
//! - A C++ client aborts on an answer that it cannot parse. So it gets a MetaServer's answer only after all of it was
//!   read once (`wire::rdsn::check_result`), and an error of ours otherwise. Other clients get it unread.
//! - Ports with `host_port_fields: remove` leave these fields to C++ clients, which read no other addresses.
//! - A worker blocks on a call for 5 ms, not until it ends: then a thread of its own listens (`upstream::watch`). The
//!   alternatives were more threads, most of which wait for dead clusters. This way no number of dead or slow clusters takes
//!   a worker for longer, 64 workers are enough, and an elected leader is found while the old one hangs. A call that is
//!   answered in time, as nearly all are, is plain blocking code in one thread; `/threads` names the silent ones.
//! - Questions are numbered by one clock with the sends that carry them: an answer goes to those that joined before its
//!   send. So a question may be with several servers at once, and nobody gets an answer older than his query.
//! - Workers sleep on the queue's own condition variable: a channel's `recv` spins and yields first, which with dozens of
//!   workers was a quarter of all processor time.
//! - Waking a worker costs several times what reading a client does. So clients wait in the queue, and as few workers are
//!   called to read as it takes. `accept` yields after it has found some, for the same reason.
//! - A worker lingers some microseconds at a client that always asks again at once (`work::linger`); epoll forgets
//!   that client meanwhile, which costs two epoll_ctl for the whole conversation and none per request.
//! - A server of ZooKeeper that knows less than what was seen closes the connection, and so do a full one, one without
//!   a quorum and one that was set up anew. They cannot be told apart at once (`zk::dial`).
//! - After a cut no route is read again whose watch stood: the server tells which changed (`zk::planner`).
//! - Queries that wait for ZooKeeper and routes to be confirmed are read by turns: with the former first, a client
//!   that asks for ever new names would keep the latter stale.
//! - Pages are served by a small server of our own on `httparse` (`admin::http`): those among the crates give a
//!   connection no deadline, and a thread each. They listen on all addresses at the Go proxy's port unless told
//!   otherwise, so that a Prometheus which scrapes that one finds them.
//! - ZooKeeper's protocol is spoken by some hundred lines of our own: the `zookeeper` crate reconnects without a pause
//!   while an ensemble is in trouble, cannot be closed then, and cannot set watches again.
//! - A move waits for the config-sync interval and then probes each primary (`ops::moving::force`). The interval alone proves
//!   nothing: a config-sync that fails is repeated only an interval later. A probe alone proves nothing of other servers,
//!   which may become primaries.
//! - A proxy is a member of the control znode by its session, and tells a process id of its own: while it holds routes it tries
//!   server after server with a new session each, and an operator's accept must find it all the same.
//! - A word below the control znode is never taken back: it names the process, or the change that a deleted route had last, so
//!   that it cannot mean anything later.
//! - The metrics' label of a cluster is `pegasus_cluster`: operators have tags named `cluster`.
//! - The service manager is told by some lines of our own: `sd-notify` does not know abstract sockets.
//! - Idle connections leave at 61 s, not 60: a Go client counts its minute from when it learned that it is connected,
//!   a little after we do.
#![forbid(unsafe_code)]

pub mod client;
pub mod work;

pub mod query;
pub mod upstream;
pub mod wire;

pub mod route;
pub mod zk;

pub mod process;

pub mod admin;
pub mod metrics;
pub mod mutant;

#[cfg(feature = "route")]
pub mod ops;

pub mod activity;
pub mod age;
pub mod cli;
pub mod config;
pub mod logging;
pub mod patience;
pub mod spread;
pub mod turns;
pub mod version;
