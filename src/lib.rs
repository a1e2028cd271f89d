//! MetaProxy for Apache Pegasus: one address in front of many clusters.
//!
//! A client uses the proxy as its MetaServer and asks `QueryConfig(table)`. The proxy knows from ZooKeeper which
//! cluster has the table, asks that cluster's MetaServer, and returns the answer unchanged. Data goes directly between
//! the client and the replica servers.
//!
//! # One query
//! ```text
//! client ──▶ accept (mio): listener, connections not being read ──queue───────▶ worker-NNN
//! client ◀───────────── answer, written by the worker ◀──────────────────────────┘   │ blocks on MetaServer I/O,
//!                                                                                    ▼ 5 ms at most
//!                route table: RwLock ──hit──▶ cluster: questions, leader, health, links ──▶ MetaServer
//!                   ▲ only writer    └─miss─▶ waits in zk-watch, comes back as a job         ▲
//!                                             meta-watch: silent calls, ticks, probes ───────┘
//! ```
//! 1. `client::accept` sees a readable socket and puts its connection in the queue. `client::readiness` makes sure that
//!    one worker reads it; `work::queue` decides how many workers read, and which host's turn it is.
//! 2. A worker (`work::worker`, `client::connection`) reads the socket and cuts frames (`wire`). The first four bytes
//!    of a connection decide between THFT and RDSN (`wire::protocol`); both ask the same question.
//! 3. `query::router` finds the table's cluster (`route::table`), or leaves the query with `zk-watch`, or answers
//!    itself.
//! 4. `upstream::cluster` takes the question; `upstream::sharing` decides which queries share it. A worker with a place
//!    makes calls (`upstream::call`): many questions to one server, with one write on one link (`upstream::link`).
//!    `upstream::leader` decides which server to ask, `upstream::health` when to stop asking. If a call is silent for a
//!    slice, the worker parks it with `upstream::watch`, and other servers get its questions.
//! 5. The answer goes to all queries that wait for it, each with its own envelope (`client::ask`, `wire::reply`,
//!    `client::sending`).
//!
//! # One ZooKeeper event
//! ```text
//! ZooKeeper ◀──one socket──▶ zk-link ──up, down, answers, watches that fired──▶ zk-watch: planner, meaning, routes
//!                               ▲                                                 │        └──▶ route table, and jobs
//!                               └───────────────── the next reads ◀───────────────┘             for queries that waited
//! ```
//! 1. `zk::connection` keeps one session over all its connections, whose servers `zk::dial` chooses, and speaks the
//!    protocol of `zk::codec`.
//! 2. `zk::watcher` handles its events. `zk::planner` decides what to read next, `zk::read` by which requests.
//! 3. `zk::meaning` decides what an answer means for the routes, and `zk::records` where a table lives. `zk::routes`
//!    carries that out: it is the only writer of routes from ZooKeeper. `route::hold` decides whether an absence is a
//!    deletion: it holds the routes when the root is missing or replaced, or many tables disappear, until they are back
//!    or an operator accepts the loss.
//!
//! # The route tool
//! ```text
//! meta-proxy route ─▶ cli::route ─▶ ops: plan, rules, journal ──compare-and-set──▶ ZooKeeper ──event──▶ each proxy
//!         ▲                          └─▶ clusters' leaders: names, tables               ▲                  │
//!         └────────── done, when each shows it ◀── pages ◀──────────────────────────────┼──────────────────┘
//!                     control znode: members ◀── `zk::control` of each proxy ───────────┘
//! ```
//! The tool is a separate command. It shares the protocols (`zk::session`, `wire`) with the proxy, and no thread.
//! `route::control` defines what both write below the control znode. The proxy follows only an operator's orders there:
//! accepted holds and announced deletions.
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
//! No thread holds a lock across I/O that can block, and none takes a second lock, with one exception: the last table
//! of a client, then the list of uses (`client::usage`). One system call runs under the lock of a connection's outbox, a
//! write that does not block. The route table, a cluster's core, the resolver's cache and the log's queue are leaves.
//!
//! # What bounds it
//! Settings bound connections, frames, pending queries, unsent answers and unfinished frames. The work queue has each
//! connection at most once; pending queries and calls under way bound its jobs. A cluster has eight calls, as many slow
//! links, and eight idle links to a server. A call has at most 64 questions, of 64 KiB. Name look-ups have 32 threads, a
//! quarter for one zone. [`patience`] bounds waits, the capacity of the cache bounds routes. ZooKeeper gets 64 reads at
//! once; the proxy makes five connects to it at once, then one a second.
//!
//! # Choices that may surprise
//! - A close goes to `accept` as a note, not as an epoll event: shutting down a socket that the peer has reset raises
//!   no event.
//! - A failed query counts against its cluster only if the MetaServers had enough time. Clients that ask with little
//!   time left, or leave early, must not make a healthy cluster look dead.
//! - A query counts once for each KiB of its arguments in limits on pending queries, and unfinished frames count like
//!   unsent answers: a client makes the proxy hold both in memory. An answer that many clients share counts once.
//! - The proxy does not read a client with too many unsent answers (`client::readiness`, PAUSED), and keeps the answers
//!   to earlier queries. It closes the client only when it takes nothing: a Go client that is disconnected cannot
//!   reconnect for a minute.
//! - One host gets a quarter of the pending queries and half of the held bytes (`client::share`): beyond these limits
//!   the proxy refuses only this host's queries.
//! - As many queries may wait for a cluster as are still free (`upstream::cluster`, `join`): one slow cluster gets half
//!   of `limits.max_pending`, two get a third each, and the others always have room.
//! - A place ends with the last answer of its call, before the worker writes the answers: another worker makes the next
//!   call meanwhile.
//! - An answer with an unknown error name, such as `ERR_ok`, is no answer: Java clients hang on unknown names.
//! - A stop shuts writing down first and discards input until the client closes (`client::stop`): a close with unread
//!   input resets the connection, and destroys answers on their way.
//! - The proxy passes on a leader's `ERR_SERVICE_NOT_ACTIVE` at once, because it is the leader's answer. It does not
//!   pass on a *frame* error of a MetaServer, which would hang Go and Node clients: it asks another server, and in the
//!   end answers `ERR_SERVICE_NOT_ACTIVE` itself.
//! - A C++ client aborts on an answer that it cannot parse. So the proxy reads all of a MetaServer's answer
//!   (`wire::rdsn::check_result`) before it sends it to a C++ client, and sends its own error if that fails. Other
//!   clients get the answer unread.
//! - Ports with `host_port_fields: remove` still send these fields to C++ clients, which read no other addresses.
//! - A worker waits for a call for 5 ms, then the thread `meta-watch` waits (`upstream::watch`). The alternative was
//!   more threads, most of which would wait for dead clusters. With `meta-watch`, no number of dead or slow clusters
//!   blocks a worker for longer, 64 workers are enough, and the proxy finds an elected leader while the old one hangs.
//!   A call that is answered in time, as nearly all are, is plain blocking code in one thread; `/threads` names the
//!   silent calls.
//! - One counter numbers queries and the sends that carry their questions: an answer goes to queries that joined before
//!   its send. So several servers may have a question at once, and no client gets an answer older than its query.
//! - Workers sleep on the queue's own condition variable: a channel's `recv` spins and yields first, which took a
//!   quarter of all processor time with dozens of workers.
//! - Waking a worker costs several times as much as reading a client. So clients wait in the queue, and the queue wakes
//!   as few workers as it needs. For the same reason `accept` yields after it has found readable clients.
//! - A worker lingers some microseconds at a client that always sends its next query at once (`work::linger`). `accept`
//!   gets no events of that client meanwhile, which costs two epoll_ctl for the whole conversation and none per
//!   request.
//! - A ZooKeeper server that lags closes the connection without an answer. So do a full server, one without a quorum,
//!   and one that was set up anew. The proxy cannot tell them apart at once (`zk::dial`).
//! - After a cut the proxy does not read routes again whose watch was set: the server reports which ones changed
//!   (`zk::planner`).
//! - Reads for waiting queries and reads that confirm routes take turns: if queries came first, a client that asks for
//!   ever new names would keep the routes stale.
//! - The pages have their own small server on `httparse` (`admin::http`): existing crates give a connection no
//!   deadline, and a thread each. By default the pages listen on all addresses at the port of the Go proxy, so that a
//!   Prometheus that scrapes the Go proxy finds them.
//! - The proxy has its own ZooKeeper client of some hundred lines: the `zookeeper` crate reconnects without a pause
//!   while an ensemble is in trouble, cannot be closed then, and cannot set watches again.
//! - A move waits for the config-sync interval and then probes each primary (`ops::moving::force`). The interval alone proves
//!   nothing: a config-sync that fails is repeated only an interval later. A probe alone proves nothing of other servers,
//!   which may become primaries.
//! - A proxy registers below the control znode by its session, and with its own process id. While it holds routes it
//!   tries server after server, each with a new session, and an operator's accept must find it all the same.
//! - The proxy never takes back an order below the control znode: the order names one process, or the last change of a
//!   deleted route, so it cannot mean anything later.
//! - The label of a cluster in the metrics is `pegasus_cluster`, because operators have tags named `cluster`.
//! - The proxy has its own code for the service manager: `sd-notify` does not know abstract sockets.
//! - A stop closes idle connections at 61 s, not 60: a Go client counts its minute from the moment it learned that it
//!   is connected, a little after the proxy.
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
