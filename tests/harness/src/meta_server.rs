//! A MetaServer for tests: real sockets and real frames, an invented cluster, and faults on demand.
//!
//! It answers what a real one answers, counts and keeps what it was asked, and writes down as *violations* what a real
//! one would not have survived or never answered. Where a real server would abort it merely closes the connection.
//!
//! ```text
//! thread meta      accepts
//! thread meta-N    reads a connection: request ─▶ log, count, violations ─▶ behaviour ─▶ answer
//! thread meta-late                                            Behaviour::Slow └─ queue ─▶ answer, when due
//! ```
//! All answers of a delay wait in one queue, so that the thread of a connection always sits in its read and sees at once
//! when the peer leaves or sends more.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::admin_rpc::{self, App};
use crate::listener::{Inbox, Link, Listener};
use crate::wire::{
    self, CALL, ERR_OK, NEGOTIATION, NEGOTIATION_RESULT, ONEWAY, QUERY_CONFIG, Query,
    QueryCfgResponse, Request,
};

/// A bench that pipelines makes one per request, and nobody reads so many.
const MAX_VIOLATIONS: usize = 1000;

/// Questions of administrators.
const ADMIN: [&str; 3] =
    [admin_rpc::CLUSTER_INFO, admin_rpc::LIST_APPS, admin_rpc::QUERY_DUPLICATION];

/// Makes the result struct for a method, its arguments, and the error that a server which does not lead has to tell;
/// `None`: no server has this method.
type Oracle = dyn Fn(&str, &[u8], &str) -> Option<Vec<u8>> + Send + Sync;

/// How the server answers QueryConfig. The faults, from `Mute` on, are suffered by every other method too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// Answers for the tables it has, `ERR_OBJECT_NOT_FOUND` for others.
    #[default]
    Leader,
    /// `ERR_FORWARD_TO_OTHERS`, for unknown tables too.
    Follower {
        /// Where it sends the client, if it knows; an IPv4 address.
        leader: Option<SocketAddr>,
    },
    /// This error for every table, for example `ERR_SERVICE_NOT_ACTIVE`.
    NotReady(&'static str),
    /// Reads, and never answers; not even later, when the behaviour has changed.
    Mute,
    /// Reads a request, then closes the connection.
    CloseOnRequest,
    /// As `Leader`, then closes the connection.
    CloseAfterAnswer,
    /// As `Leader`, after a delay. A change of behaviour ends the delay: what waits is then treated as if it came now.
    Slow(Duration),
    /// This frame error, and no result.
    FrameError(&'static str),
    /// As `Leader`, with a fault in the frame.
    Lie(Lie),
}

/// Faults of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// The seq of some other request.
    WrongSeq,
    /// The name of some other method.
    WrongName,
    /// A length of 2 GB, before an honest answer.
    HugeLength,
    /// A length of -1, before an honest answer.
    NegativeLength,
    /// A length of 3, less than its own 4 bytes, before an honest answer.
    TinyLength,
    /// A right length, before bytes that mean nothing.
    Garbage,
    /// The first half of an honest answer, then the connection is closed.
    TruncatedFrame,
    /// An honest envelope, and a result that is no Thrift.
    JunkResult,
    /// `ERR_OK`, and no result.
    NoResult,
}

/// The server. Dropping it closes every connection and ends its threads.
pub struct MetaServer {
    listener: Listener,
    core: Arc<Core>,
    late: Option<JoinHandle<()>>,
}

impl MetaServer {
    /// Starts a leader without tables, on a free port of 127.0.0.1.
    pub fn start() -> Self {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into()).expect("127.0.0.1 has a free port")
    }

    /// Starts it on a given address: how a server comes back after it was dropped.
    pub fn start_on(addr: SocketAddr) -> io::Result<Self> {
        let core = Arc::new(Core::default());
        let listener = Listener::start("meta", addr, {
            let core = Arc::clone(&core);
            move |link| core.serve(link)
        })?;
        let late = thread::Builder::new().name("meta-late".to_owned()).spawn({
            let core = Arc::clone(&core);
            move || core.answer_late()
        })?;
        Ok(MetaServer { listener, core, late: Some(late) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    /// Behaves like this from now on, on open connections too.
    pub fn set(&self, behaviour: Behaviour) {
        if let Behaviour::Follower { leader: Some(leader) } = behaviour {
            assert!(leader.is_ipv4(), "an answer has no room for {leader}");
        }
        self.core.state().behaviour = behaviour;
        self.core.late.notify_one();
    }

    /// Answers every method by this from now on, as far as the behaviour lets it.
    pub(crate) fn answer_by(
        &self,
        oracle: impl Fn(&str, &[u8], &str) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) {
        self.core.state().oracle = Some(Box::new(oracle));
    }

    /// Adds or replaces a table.
    pub fn put_table(&self, name: &str, table: QueryCfgResponse) {
        let whole = table.encode().into();
        self.put(name, Answer { whole, table: Some(table) });
    }

    /// Adds or replaces a table whose answer is these bytes, whatever they are and whichever partitions are asked for.
    pub fn put_answer(&self, name: &str, result_struct: Vec<u8>) {
        self.put(name, Answer { whole: result_struct.into(), table: None });
    }

    fn put(&self, name: &str, answer: Answer) {
        self.core.state().answers.insert(name.to_owned(), Arc::new(answer));
    }

    /// Reads queries for this table from now on, and never answers them, whatever it does for others.
    pub fn mute_table(&self, name: &str) {
        self.core.state().muted.insert(name.to_owned());
    }

    /// Forgets a table or an answer.
    pub fn remove_table(&self, name: &str) {
        self.core.state().answers.remove(name);
    }

    /// The cluster's own name; it keeps its state below `/pegasus/NAME`.
    pub fn set_cluster(&self, name: &str) {
        self.core.state().cluster = name.to_owned();
    }

    /// Sets an environment variable of a table.
    pub fn set_env(&self, table: &str, key: &str, value: &str) {
        let mut state = self.core.state();
        let envs = state.envs.entry(table.to_owned()).or_default();
        envs.insert(key.to_owned(), value.to_owned());
    }

    /// A table is duplicated to this cluster.
    pub fn duplicate(&self, table: &str, remote: &str) {
        self.core.state().duplications.entry(table.to_owned()).or_default().push(remote.to_owned());
    }

    /// Every request received so far, of any method, in order; also those that were never answered.
    pub fn requests(&self) -> Vec<Request> {
        self.core.state().requests.clone()
    }

    /// Whether to keep requests for [`Self::requests`], as is done at first. A bench cannot afford the memory.
    pub fn keep_requests(&self, keep: bool) {
        self.core.state().forget_requests = !keep;
    }

    /// QueryConfig requests received so far.
    pub fn calls(&self) -> usize {
        self.core.calls.load(Ordering::SeqCst)
    }

    /// QueryConfig requests received so far for one table.
    pub fn calls_for(&self, table: &str) -> usize {
        self.core.state().calls_for.get(table).copied().unwrap_or(0)
    }

    /// Connections open now. One that its peer has just closed may be counted for another moment.
    pub fn open_connections(&self) -> usize {
        self.listener.open_connections()
    }

    /// The most connections that were ever open at once.
    pub fn max_open_connections(&self) -> usize {
        self.listener.max_open_connections()
    }

    /// Requests that a real MetaServer dies of, hangs up on, or never answers; the first thousand.
    pub fn violations(&self) -> Vec<String> {
        self.core.state().violations.clone()
    }
}

impl Drop for MetaServer {
    fn drop(&mut self) {
        self.core.state().stopping = true;
        self.core.late.notify_one();
        self.listener.stop();
        let late = self.late.take().expect("dropped once");
        if late.join().is_err() && !thread::panicking() {
            panic!("meta-late panicked, see above");
        }
    }
}

/// The answer for a table.
struct Answer {
    /// The result struct for all partitions, ready to send.
    whole: Arc<[u8]>,
    /// To choose partitions from; `None` when the answer is raw bytes.
    table: Option<QueryCfgResponse>,
}

#[derive(Default)]
struct Core {
    calls: AtomicUsize,
    state: Mutex<State>,
    /// Wakes meta-late: first in the queue, other behaviour, stop.
    late: Condvar,
}

#[derive(Default)]
struct State {
    behaviour: Behaviour,
    oracle: Option<Box<Oracle>>,
    answers: HashMap<String, Arc<Answer>>,
    muted: HashSet<String>,
    /// The cluster's own name, which administrators are told.
    cluster: String,
    envs: BTreeMap<String, BTreeMap<String, String>>,
    duplications: BTreeMap<String, Vec<String>>,
    calls_for: HashMap<String, usize>,
    requests: Vec<Request>,
    forget_requests: bool,
    violations: Vec<String>,
    /// In the order in which they came, which is the order in which they are due.
    delayed: VecDeque<Call>,
    stopping: bool,
}

/// A request that awaits its answer.
struct Call {
    link: Arc<Link>,
    method: String,
    seq: i32,
    /// `None` for methods other than QueryConfig.
    query: Option<Query>,
    received: Instant,
    /// The table of a question that is no QueryConfig.
    table: String,
    args: Vec<u8>,
}

/// The reaction to a call, decided under the lock and done without it.
enum Plan {
    Nothing,
    Close,
    Answer { content: Content, fault: Option<Lie>, then_close: bool },
}

/// The content of an answer.
enum Content {
    FrameError(&'static str),
    Whole(Arc<[u8]>),
    Made(Vec<u8>),
    /// These partitions of a table; made without the lock, because it takes a while.
    Chosen(Arc<Answer>),
}

/// The first string in a request's arguments, `{1: {1: string}}`.
fn table_of(args: &[u8]) -> String {
    let len = args.get(6..10).map_or(0, |len| {
        u32::from_be_bytes(len.try_into().expect("four bytes were taken")) as usize
    });
    String::from_utf8_lossy(args.get(10..10 + len).unwrap_or_default()).into_owned()
}

impl Core {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while holding it")
    }

    /// The life of a connection.
    fn serve(&self, link: &Arc<Link>) {
        for arrival in Inbox::new(link) {
            let request = match arrival {
                Ok(request) => request,
                Err(malformed) => return self.state().violation(link, || malformed.to_string()),
            };
            if !self.receive(link, request) {
                return;
            }
        }
    }

    /// `false`: the connection is to be closed.
    fn receive(&self, link: &Arc<Link>, request: Request) -> bool {
        let received = Instant::now();
        let query = (request.method == QUERY_CONFIG).then(|| request.query()).transpose();

        let mut state = self.state();
        if request.app_id > 0 {
            state.violation(link, || format!("app_id {} in the header", request.app_id));
        }
        let proper = [CALL, ONEWAY].contains(&request.message_type);
        if !proper {
            state.violation(link, || format!("message type {}", request.message_type));
        }
        let (method, seq) = (request.method.clone(), request.seq);
        let table = match method.as_str() {
            admin_rpc::QUERY_DUPLICATION => table_of(&request.args),
            _ => String::new(),
        };
        let args = if state.oracle.is_some() { request.args.clone() } else { Vec::new() };
        if !state.forget_requests {
            state.requests.push(request);
        }
        let query = match query {
            Ok(query) if proper => query,
            Ok(_) => return false,
            Err(malformed) => {
                state.violation(link, || format!("QueryConfig {malformed}"));
                return false;
            }
        };
        if let Some(query) = &query {
            self.calls.fetch_add(1, Ordering::SeqCst);
            match state.calls_for.get_mut(&query.table) {
                Some(calls) => *calls += 1,
                None => drop(state.calls_for.insert(query.table.clone(), 1)),
            }
        }

        let call = Call { link: Arc::clone(link), method, seq, query, received, table, args };
        if state.delay_left(&call) > Duration::ZERO {
            state.delayed.push_back(call);
            self.late.notify_one();
            return true;
        }
        let plan = state.plan(&call);
        drop(state);
        call.carry_out(plan)
    }

    /// The life of meta-late.
    fn answer_late(&self) {
        let mut state = self.state();
        while !state.stopping {
            let left = state.delayed.front().map(|call| state.delay_left(call));
            state = match left {
                None => self.late.wait(state).expect("nothing panics while holding it"),
                Some(Duration::ZERO) => {
                    let call = state.delayed.pop_front().expect("the queue has a front");
                    let plan = state.plan(&call);
                    drop(state);
                    if !call.carry_out(plan) {
                        call.link.close();
                    }
                    self.state()
                }
                Some(left) => {
                    let waited = self.late.wait_timeout(state, left);
                    waited.expect("nothing panics while holding it").0
                }
            };
        }
    }
}

impl State {
    fn violation(&mut self, link: &Link, what: impl FnOnce() -> String) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(format!("{}: {}", link.peer(), what()));
        }
    }

    /// Zero unless the server is slow.
    fn delay_left(&self, call: &Call) -> Duration {
        match self.behaviour {
            Behaviour::Slow(delay) => delay.saturating_sub(call.received.elapsed()),
            _ => Duration::ZERO,
        }
    }

    fn plan(&self, call: &Call) -> Plan {
        if call.query.as_ref().is_some_and(|query| self.muted.contains(&query.table)) {
            return Plan::Nothing;
        }
        let content = match &self.behaviour {
            Behaviour::Mute => return Plan::Nothing,
            Behaviour::CloseOnRequest => return Plan::Close,
            Behaviour::FrameError(error) => Content::FrameError(error),
            _ => self.content(call),
        };
        let fault = match self.behaviour {
            Behaviour::Lie(lie) => Some(lie),
            _ => None,
        };
        let then_close =
            self.behaviour == Behaviour::CloseAfterAnswer || fault == Some(Lie::TruncatedFrame);
        Plan::Answer { content, fault, then_close }
    }

    fn content(&self, call: &Call) -> Content {
        match (&call.query, &self.behaviour) {
            (None, _) if call.method == NEGOTIATION => Content::Made(NEGOTIATION_RESULT.to_vec()),
            (None, _) if self.oracle.is_some() => self.ask_oracle(call),
            (None, _) if ADMIN.contains(&call.method.as_str()) => {
                Content::Made(self.admin(call, self.err()))
            }
            (None, _) => Content::FrameError("ERR_HANDLER_NOT_FOUND"),
            (Some(_), Behaviour::Follower { leader }) => {
                Content::Made(QueryCfgResponse::forward(*leader).encode())
            }
            (Some(_), Behaviour::NotReady(err)) => {
                Content::Made(QueryCfgResponse::error(err).encode())
            }
            (Some(_), _) if self.oracle.is_some() => self.ask_oracle(call),
            (Some(query), _) => self.look_up(query),
        }
    }

    /// The error that an administrator is told.
    fn err(&self) -> &'static str {
        match self.behaviour {
            Behaviour::Follower { .. } => "ERR_FORWARD_TO_OTHERS",
            Behaviour::NotReady(err) => err,
            _ => ERR_OK,
        }
    }

    fn ask_oracle(&self, call: &Call) -> Content {
        let made =
            self.oracle.as_ref().and_then(|oracle| oracle(&call.method, &call.args, self.err()));
        made.map_or(Content::FrameError("ERR_HANDLER_NOT_FOUND"), Content::Made)
    }

    /// The answer to an administrator; with an error it says nothing else.
    fn admin(&self, call: &Call, err: &str) -> Vec<u8> {
        let is_ok = err == ERR_OK;
        match call.method.as_str() {
            admin_rpc::CLUSTER_INFO => {
                let root = format!("/pegasus/{}", self.cluster);
                let pairs = [
                    ("zookeeper_root", root.as_str()),
                    ("meta_function_level", "steady"),
                    ("cluster_name", &self.cluster),
                ];
                admin_rpc::cluster_info(err, if is_ok { &pairs } else { &[] })
            }
            admin_rpc::LIST_APPS => {
                let apps = if is_ok { self.apps() } else { Vec::new() };
                admin_rpc::list_apps(err, &apps)
            }
            _ => {
                let apps = self.apps();
                let app = apps.iter().find(|app| is_ok && app.name == call.table);
                let err = if is_ok && app.is_none() { "ERR_APP_NOT_EXIST" } else { err };
                let remotes = self.duplications.get(&call.table).filter(|_| app.is_some());
                let remotes: Vec<_> =
                    remotes.into_iter().flatten().map(|remote| (remote.as_str(), 1, 0)).collect();
                let partitions = app.map_or(0, |app| app.partition_count);
                admin_rpc::query_duplication(err, app, &remotes, &vec![0; partitions as usize])
            }
        }
    }

    fn apps(&self) -> Vec<App> {
        let tables = self.answers.iter().filter_map(|(name, answer)| {
            let table = answer.table.as_ref()?;
            Some(App {
                name: name.clone(),
                app_id: table.app_id,
                partition_count: table.partition_count,
                envs: self.envs.get(name).cloned().unwrap_or_default(),
                create_second: 0,
                duplicating: self.duplications.contains_key(name),
                ..App::default()
            })
        });
        tables.collect()
    }

    fn look_up(&self, query: &Query) -> Content {
        let all = query.indices.as_deref().unwrap_or_default().is_empty();
        match self.answers.get(&query.table) {
            None => Content::Made(QueryCfgResponse::error("ERR_OBJECT_NOT_FOUND").encode()),
            Some(answer) if all || answer.table.is_none() => {
                Content::Whole(Arc::clone(&answer.whole))
            }
            Some(answer) => Content::Chosen(Arc::clone(answer)),
        }
    }
}

impl Call {
    /// `false`: the connection is to be closed.
    fn carry_out(&self, plan: Plan) -> bool {
        match plan {
            Plan::Nothing => true,
            Plan::Close => false,
            Plan::Answer { content, fault, then_close } => {
                self.answer(&content, fault);
                !then_close
            }
        }
    }

    fn answer(&self, content: &Content, fault: Option<Lie>) {
        let made;
        let (error, result) = match content {
            Content::FrameError(error) => (*error, &b""[..]),
            Content::Whole(bytes) => (ERR_OK, &bytes[..]),
            Content::Made(bytes) => (ERR_OK, &bytes[..]),
            Content::Chosen(answer) => {
                made = self.choose(answer);
                (ERR_OK, &made[..])
            }
        };
        self.link.answer(|out| {
            let (name, seq) = (&self.method, self.seq);
            match fault {
                Some(Lie::WrongSeq) => {
                    wire::append_response(out, error, name, seq.wrapping_add(1), result);
                }
                Some(Lie::WrongName) => {
                    wire::append_response(out, error, "RPC_CM_LIST_APPS", seq, result);
                }
                Some(Lie::JunkResult) => wire::append_response(out, error, name, seq, &[0xff; 32]),
                Some(Lie::NoResult) => wire::append_response(out, error, name, seq, b""),
                _ => wire::append_response(out, error, name, seq, result),
            }
            match fault {
                Some(Lie::HugeLength) => out[..4].copy_from_slice(&i32::MAX.to_be_bytes()),
                Some(Lie::NegativeLength) => out[..4].copy_from_slice(&(-1_i32).to_be_bytes()),
                Some(Lie::TinyLength) => out[..4].copy_from_slice(&3_i32.to_be_bytes()),
                Some(Lie::Garbage) => out[4..].fill(0xa5),
                Some(Lie::TruncatedFrame) => out.truncate(out.len() / 2),
                _ => {}
            }
        });
    }

    fn choose(&self, answer: &Answer) -> Vec<u8> {
        let indices = self.query.as_ref().and_then(|query| query.indices.as_deref());
        let table = answer.table.as_ref().expect("raw answers are given whole");
        table.only(indices.unwrap_or_default()).encode()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::eventually;
    use crate::wire::{REPLY, Response, Version};
    use std::io::{Read, Write};
    use std::net::TcpStream;

    const SOON: Duration = Duration::from_millis(100);
    const PATIENCE: Duration = Duration::from_secs(10);

    /// A client that believes nothing.
    struct Client(TcpStream);

    impl Client {
        fn of(server: &MetaServer) -> Self {
            let stream = TcpStream::connect(server.addr()).expect("the server listens");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout that is not zero");
            Client(stream)
        }

        fn write(&mut self, bytes: &[u8]) {
            self.0.write_all(bytes).expect("the server reads");
        }

        fn read_frame(&mut self) -> io::Result<Response> {
            let mut frame = vec![0; 4];
            self.0.read_exact(&mut frame)?;
            let len = Response::frame_len(&frame)
                .map_err(io::Error::other)?
                .expect("four bytes are there");
            frame.resize(len, 0);
            self.0.read_exact(&mut frame[4..])?;
            Response::decode(&frame).map_err(io::Error::other)
        }

        fn ask(&mut self, table: &str) -> io::Result<Response> {
            self.write(&query(table));
            self.read_frame()
        }

        fn err_of(&mut self, table: &str) -> String {
            self.ask(table).expect("an answer").config().expect("a QueryConfig answer").err
        }

        fn read_exact(&mut self, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.0.read_exact(&mut bytes).expect("so many bytes");
            bytes
        }

        /// The bytes that come before the server closes; it must close.
        fn read_to_end(&mut self) -> Vec<u8> {
            let mut bytes = Vec::new();
            self.0.read_to_end(&mut bytes).expect("the end");
            bytes
        }
    }

    fn query(table: &str) -> Vec<u8> {
        Request::query_config(Version::V0, 1, table).encode()
    }

    fn server_with_temp() -> (MetaServer, QueryCfgResponse) {
        let server = MetaServer::start();
        let table = QueryCfgResponse::table(7, 4, "127.0.0.1:34801".parse().expect("an address"));
        server.put_table("temp", table.clone());
        (server, table)
    }

    #[test]
    fn a_leader_answers_for_its_tables_and_remembers_what_it_was_asked() {
        let (server, table) = server_with_temp();
        server.put_answer("raw", b"any bytes".to_vec());
        let mut client = Client::of(&server);

        let answer = client.ask("temp").expect("an answer");
        assert_eq!(
            (answer.seq, answer.name.as_str()),
            (1, "RPC_CM_QUERY_PARTITION_CONFIG_BY_INDEX_ACK")
        );
        assert_eq!(answer.config(), Ok(table.clone()));
        assert_eq!(client.err_of("nosuch"), "ERR_OBJECT_NOT_FOUND");
        assert_eq!(client.ask("raw").expect("an answer").result, b"any bytes");

        let one = Query { table: "temp".to_owned(), indices: Some(vec![2]) };
        client.write(&Request::new(Version::V1, QUERY_CONFIG, 9, one.encode()).encode());
        assert_eq!(client.read_frame().expect("an answer").config(), Ok(table.only(&[2])));

        client.write(&Request::new(Version::V0, "RPC_NO_SUCH_CODE", 5, Vec::new()).encode());
        assert_eq!(client.read_frame().expect("an answer").error, "ERR_HANDLER_NOT_FOUND");
        client.write(&Request::new(Version::V0, NEGOTIATION, 6, Vec::new()).encode());
        assert_eq!(client.read_frame().expect("an answer").result, NEGOTIATION_RESULT);

        server.remove_table("temp");
        assert_eq!(client.err_of("temp"), "ERR_OBJECT_NOT_FOUND");

        assert_eq!(
            (server.calls(), server.calls_for("temp"), server.calls_for("never")),
            (5, 3, 0)
        );
        let requests = server.requests();
        assert_eq!(requests.len(), 7);
        assert_eq!(requests[3].query(), Ok(one));
        assert_eq!(server.violations(), Vec::<String>::new());
    }

    #[test]
    fn behaviour_changes_on_an_open_connection() {
        let (server, _) = server_with_temp();
        let leader = Some("10.0.0.1:34601".parse().expect("an address"));
        let mut client = Client::of(&server);
        for (behaviour, want) in [
            (Behaviour::Follower { leader }, QueryCfgResponse::forward(leader)),
            (Behaviour::Follower { leader: None }, QueryCfgResponse::forward(None)),
            (
                Behaviour::NotReady("ERR_UNDER_RECOVERY"),
                QueryCfgResponse::error("ERR_UNDER_RECOVERY"),
            ),
        ] {
            server.set(behaviour.clone());
            let answer = client.ask("temp").expect("an answer").config();
            assert_eq!(answer, Ok(want), "{behaviour:?}");
        }
        server.set(Behaviour::FrameError("ERR_TIMEOUT"));
        let answer = client.ask("temp").expect("an answer");
        assert_eq!((answer.error.as_str(), answer.result.len()), ("ERR_TIMEOUT", 0));
        server.set(Behaviour::Leader);
        assert_eq!(client.err_of("temp"), ERR_OK);
        assert_eq!(server.max_open_connections(), 1);
    }

    #[test]
    fn lies_are_told_as_described() {
        let (server, table) = server_with_temp();
        let mut honest = Vec::new();
        wire::append_response(&mut honest, ERR_OK, QUERY_CONFIG, 1, &table.encode());
        for (lie, start) in [
            (Lie::HugeLength, &[0x7f, 0xff, 0xff, 0xff, 0][..]),
            (Lie::NegativeLength, &[0xff, 0xff, 0xff, 0xff, 0]),
            (Lie::TinyLength, &[0, 0, 0, 3, 0]),
            (Lie::Garbage, &[honest[0], honest[1], honest[2], honest[3], 0xa5]),
        ] {
            server.set(Behaviour::Lie(lie));
            let mut client = Client::of(&server);
            client.write(&query("temp"));
            let bytes = client.read_exact(honest.len());
            assert!(bytes.starts_with(start), "{lie:?}: {bytes:02x?}");
        }
        server.set(Behaviour::Lie(Lie::TruncatedFrame));
        let mut client = Client::of(&server);
        client.write(&query("temp"));
        assert_eq!(client.read_to_end(), &honest[..honest.len() / 2]);

        for lie in [Lie::WrongSeq, Lie::WrongName, Lie::JunkResult, Lie::NoResult] {
            server.set(Behaviour::Lie(lie));
            let answer = Client::of(&server).ask("temp").expect("a frame");
            assert_eq!(answer.seq != 1, lie == Lie::WrongSeq, "{lie:?}");
            assert_eq!(answer.name == "RPC_CM_LIST_APPS_ACK", lie == Lie::WrongName, "{lie:?}");
            assert_eq!(answer.result.is_empty(), lie == Lie::NoResult, "{lie:?}");
            let bad_result = [Lie::JunkResult, Lie::NoResult].contains(&lie);
            assert_eq!(answer.config().is_err(), bad_result, "{lie:?}");
        }
    }

    #[test]
    fn connections_are_closed_as_described() {
        let (server, _) = server_with_temp();
        for (behaviour, answered) in
            [(Behaviour::CloseOnRequest, false), (Behaviour::CloseAfterAnswer, true)]
        {
            server.set(behaviour.clone());
            let mut client = Client::of(&server);
            client.write(&query("temp"));
            let bytes = client.read_to_end();
            assert_eq!(!bytes.is_empty(), answered, "{behaviour:?}");
        }
        eventually("all connections are forgotten", PATIENCE, || server.open_connections() == 0);
    }

    #[test]
    fn a_delay_lasts_and_ends_with_the_behaviour() {
        let (server, _) = server_with_temp();
        server.set(Behaviour::Slow(SOON));
        let asked = Instant::now();
        assert_eq!(Client::of(&server).err_of("temp"), ERR_OK);
        assert!(asked.elapsed() >= SOON);

        server.set(Behaviour::Slow(Duration::MAX));
        let mut waiting = Client::of(&server);
        waiting.write(&query("temp"));
        eventually("the query is in", PATIENCE, || server.calls() == 2);
        server.set(Behaviour::NotReady("ERR_UNDER_RECOVERY"));
        let answer = waiting.read_frame().expect("an answer").config().expect("a config");
        assert_eq!(answer.err, "ERR_UNDER_RECOVERY");
    }

    #[test]
    fn a_departing_peer_is_noticed_during_a_delay() {
        let (server, _) = server_with_temp();
        server.set(Behaviour::Slow(Duration::MAX));
        let mut leaving = Client::of(&server);
        leaving.write(&query("temp"));
        eventually("the query is in", PATIENCE, || server.calls() == 1);
        drop(leaving);
        eventually("the connection is forgotten", PATIENCE, || server.open_connections() == 0);
    }

    #[test]
    fn a_drop_ends_whatever_is_going_on_and_the_address_can_be_used_again() {
        for behaviour in [Behaviour::Leader, Behaviour::Mute, Behaviour::Slow(Duration::MAX)] {
            let (server, _) = server_with_temp();
            server.set(behaviour);
            let mut busy = Client::of(&server);
            busy.write(&query("nosuch"));
            let _idle = Client::of(&server);
            eventually("the query is in", PATIENCE, || {
                server.calls() == 1 && server.open_connections() == 2
            });
            let addr = server.addr();
            drop(server);
            busy.read_to_end(); // an answer or none
            assert!(TcpStream::connect(addr).is_err(), "nobody listens at {addr}");
            let again = MetaServer::start_on(addr).expect("the address is free");
            assert_eq!(Client::of(&again).err_of("temp"), "ERR_OBJECT_NOT_FOUND");
        }
    }

    #[test]
    fn what_kills_a_real_server_is_a_violation() {
        let whole = query("temp");
        let with = |at: usize, bytes: &[u8]| {
            let mut frame = whole.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            frame
        };
        let args = |args: &[u8]| Request::new(Version::V0, QUERY_CONFIG, 1, args.to_vec()).encode();
        let of_type = |message_type| Request {
            message_type,
            ..Request::query_config(Version::V0, 1, "temp")
        };
        for (why, frame, want, answered) in [
            ("v0 app_id above 0", with(24, &[0, 0, 0, 3]), "app_id 3", true),
            ("header_len", with(8, &[0, 0, 0, 47]), "header_len", false),
            ("version 2", with(4, &[0, 0, 0, 2]), "THFT version", false),
            ("no frame", with(0, b"GET "), "no frame", false),
            ("Thrift version", with(48, &[0x80, 2]), "Thrift version", false),
            ("body_len one too short", with(16, &[0, 0, 0, 73]), "QueryConfig", false),
            ("body_len of 2 GB", with(16, &[0x7f, 0xff, 0xff, 0xff]), "lengths", false),
            ("REPLY", of_type(REPLY).encode(), "message type 2", false),
            ("ONEWAY is none", of_type(ONEWAY).encode(), "", true),
            ("empty args", args(b""), "QueryConfig", false),
            ("missing args", args(b"\0"), "QueryConfig", false),
            ("junk args", args(b"\xff\xff\xff\xff"), "QueryConfig", false),
            ("two in one write", [&whole[..], &whole[..]].concat(), "", true),
            ("junk behind it", [&whole[..], b"junk"].concat(), "no frame", true),
        ] {
            let (server, _) = server_with_temp();
            let mut client = Client::of(&server);
            client.write(&frame);
            if answered {
                assert_eq!(client.read_frame().expect(why).error, ERR_OK, "{why}");
            } else {
                assert_eq!(client.read_to_end(), b"", "{why}");
            }
            match want {
                "" => assert_eq!(server.violations(), [] as [String; 0], "{why}"),
                // The server looks at bytes behind a good request after its answer.
                _ => eventually(why, PATIENCE, || {
                    server.violations().iter().any(|violation| violation.contains(want))
                }),
            }
        }
    }
}
