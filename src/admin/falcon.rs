//! Thread `falcon`: pushes the metrics to an open-falcon agent on this host, every step.
//!
//! The Go meta-proxy pushes through github.com/niean/goperfcounter, and dashboards use its names: `name=` is the first
//! tag, the metric says which number of that name this is, and open-falcon treats everything as a GAUGE:
//!
//! | a | becomes |
//! |---|---|
//! | counter | `rate`, a second in the last step; `sum`, since the start |
//! | gauge | `value`; of the Go proxy's `client_connection_count`, to it a counter, `count` |
//! | histogram | as a counter, and where there is something new `mean`, `75th`, `95th`, `99th` of the last step |
//!
//! The thread does not repeat a failed push: the next push has newer numbers.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use log::{info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
use socket2::{Domain, Socket, Type};

use super::family::{Family, Histogram, Kind, Value};
use crate::activity;

/// Most numbers in one request, which then has some hundred KB.
const NUMBERS_PER_REQUEST: usize = 2_000;
/// Time for one request and its answer. The agent is on this host.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// While it waits for the agent, the thread checks this often whether it must stop.
const SLICE: Duration = Duration::from_millis(250);
/// Read at most this much of an answer.
const MAX_ANSWER_BYTES: usize = 4 * 1024;
/// Gauges that the Go proxy reports as counters, which it increments and decrements.
const GO_GAUGES: &[&str] = &["client_connection_count"];

#[derive(Clone, Debug)]
pub struct FalconOptions {
    pub agent: SocketAddr,
    /// Time between two pushes, whole seconds.
    pub step: Duration,
    /// The name of this host.
    pub endpoint: String,
    /// Names and values that all numbers get.
    pub tags: Vec<(String, String)>,
}

/// The name of this host, from the kernel.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The running thread.
pub struct Falcon {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Falcon {
    /// Pushes what `gather` returns; calls `pushed` after each push with its success.
    pub fn start(
        options: FalconOptions,
        gather: impl Fn() -> Vec<Family> + Send + 'static,
        pushed: impl Fn(bool) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let thread = thread::Builder::new()
            .name("falcon".to_owned())
            .spawn(move || run(&options, &gather, &pushed, &stopped))?;
        Ok(Falcon { stop, thread })
    }

    /// Ends the thread within a slice, without a last push.
    pub fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

fn run(
    options: &FalconOptions,
    gather: &dyn Fn() -> Vec<Family>,
    pushed: &dyn Fn(bool),
    stopped: &Receiver<()>,
) {
    let FalconOptions { agent, step, endpoint, tags } = options;
    let mut steps = Steps::new(Instant::now());
    let mut failures = 0_u64;
    loop {
        // Like goperfcounter: with a step of a minute, push at full minutes.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let step_ms = step.as_millis().max(1);
        let left_ms = (step_ms - now.as_millis() % step_ms) as u64;
        activity::now("waits for the next push", &[&agent.to_string()]);
        let wait = stopped.recv_timeout(Duration::from_millis(left_ms));
        if wait != Err(RecvTimeoutError::Timeout) {
            return;
        }
        activity::now("pushes numbers", &[&agent.to_string()]);
        let numbers = steps.numbers(&gather(), tags, Instant::now());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let push = numbers.chunks(NUMBERS_PER_REQUEST).try_for_each(|numbers| {
            let body = body(numbers, endpoint, now.as_secs(), step.as_secs());
            Request { deadline: Instant::now() + REQUEST_TIMEOUT, stopped }.post(*agent, &body)
        });
        match push {
            Ok(()) => {
                pushed(true);
                if failures > 0 {
                    info!("agent={agent} accepts metrics again after {failures} failures");
                }
                failures = 0;
            }
            Err(_) if is_over(stopped) => return,
            Err(e) => {
                pushed(false);
                failures += 1;
                // A line per minute would be too many over days.
                if failures.is_power_of_two() {
                    warn!("agent={agent} rejects metrics, failure {failures} in a row: {e}");
                }
            }
        }
    }
}

fn is_over(stopped: &Receiver<()>) -> bool {
    stopped.try_recv() == Err(TryRecvError::Disconnected)
}

/// One number for open-falcon.
#[derive(Debug, PartialEq)]
struct Number {
    metric: &'static str,
    tags: String,
    value: f64,
}

/// The changes between two pushes.
struct Steps {
    /// Counters at the last push, by tags.
    counters: HashMap<String, f64>,
    histograms: HashMap<String, Histogram>,
    at: Instant,
}

impl Steps {
    fn new(at: Instant) -> Self {
        Steps { counters: HashMap::new(), histograms: HashMap::new(), at }
    }

    fn numbers(
        &mut self,
        families: &[Family],
        own_tags: &[(String, String)],
        now: Instant,
    ) -> Vec<Number> {
        let step_s = now.saturating_duration_since(self.at).as_secs_f64().max(0.001);
        let mut next = Steps::new(now);
        let mut numbers = Vec::new();
        let samples = families.iter().flat_map(|family| {
            family.samples.iter().map(move |sample| (family.name, family.kind, sample))
        });
        for (name, kind, sample) in samples {
            let mut tags = format!("name={name}");
            own_tags.iter().for_each(|(name, value)| add_tag(&mut tags, name, value));
            sample.labels.iter().for_each(|(name, value)| add_tag(&mut tags, name, value));
            let mut say = |metric, value: f64| {
                if value.is_finite() {
                    numbers.push(Number { metric, tags: tags.clone(), value });
                }
            };
            match (&sample.value, kind) {
                (Value::Histogram(histogram), _) => {
                    let before = self.histograms.get(&tags).cloned().unwrap_or_default();
                    Fresh::of(histogram, &before).tell(step_s, histogram.count(), say);
                    next.histograms.insert(tags, histogram.clone());
                }
                (&Value::Number(value), Kind::Counter | Kind::GoCounter) => {
                    let before = self.counters.get(&tags).copied().unwrap_or_default();
                    say("rate", (value - before).max(0.0) / step_s);
                    say("sum", value);
                    next.counters.insert(tags, value);
                }
                (&Value::Number(value), _) if GO_GAUGES.contains(&name) => say("count", value),
                (&Value::Number(value), _) => say("value", value),
            }
        }
        *self = next;
        numbers
    }
}

/// The new counts of a histogram.
struct Fresh {
    count: f64,
    sum: f64,
    /// Upper bound, and the number of values up to it.
    buckets: Vec<(f64, f64)>,
}

impl Fresh {
    fn of(now: &Histogram, before: &Histogram) -> Self {
        let mut count = 0.0;
        let buckets = now.buckets.iter().enumerate().map(|(at, &(bound, n))| {
            let known = before.buckets.get(at).map_or(0, |(_, n)| *n);
            count += n.saturating_sub(known) as f64;
            (bound, count)
        });
        let buckets = buckets.collect();
        Fresh { count, sum: (now.sum - before.sum).max(0.0), buckets }
    }

    fn tell(&self, step_s: f64, all: u64, mut say: impl FnMut(&'static str, f64)) {
        say("rate", self.count / step_s);
        say("sum", all as f64);
        if self.count > 0.0 {
            say("mean", self.sum / self.count);
            for (metric, part) in [("75th", 0.75), ("95th", 0.95), ("99th", 0.99)] {
                say(metric, self.quantile(part));
            }
        }
    }

    /// Like histogram_quantile of Prometheus: linear within a bucket, at most the last finite bound.
    fn quantile(&self, part: f64) -> f64 {
        let rank = part * self.count;
        let (mut lower, mut below) = (0.0, 0.0);
        for &(bound, count) in &self.buckets {
            if count >= rank && bound.is_finite() && count > below {
                return lower + (bound - lower) * (rank - below) / (count - below);
            }
            if bound.is_finite() {
                (lower, below) = (bound, count);
            }
        }
        lower
    }
}

/// Adds `,name=value`. Replaces characters that separate tags.
fn add_tag(tags: &mut String, name: &str, value: &str) {
    let divides = |c: char| c == ',' || c == '=' || c.is_whitespace() || c.is_control();
    tags.extend([",", name, "=", &value.replace(divides, "_")]);
}

/// One number in the form of the agent's API.
#[derive(Serialize)]
struct Item<'a> {
    endpoint: &'a str,
    metric: &'a str,
    value: f64,
    step: u64,
    #[serde(rename = "counterType")]
    counter_type: &'a str,
    tags: &'a str,
    timestamp: u64,
}

fn body(numbers: &[Number], endpoint: &str, timestamp: u64, step: u64) -> Vec<u8> {
    let items: Vec<Item<'_>> = numbers
        .iter()
        .map(|Number { metric, tags, value }| Item {
            endpoint,
            metric,
            value: *value,
            step,
            counter_type: "GAUGE",
            tags,
            timestamp,
        })
        .collect();
    serde_json::to_vec(&items).expect("numbers and texts are JSON")
}

/// One POST. Each wait in it ends at the deadline, or when the thread must stop.
struct Request<'a> {
    deadline: Instant,
    stopped: &'a Receiver<()>,
}

impl Request<'_> {
    fn post(&self, agent: SocketAddr, body: &[u8]) -> io::Result<()> {
        let mut stream = self.connect(agent)?;
        let head = format!(
            "POST /v1/push HTTP/1.1\r\nHost: {agent}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        self.send(&mut stream, head.as_bytes())?;
        self.send(&mut stream, body)?;
        match self.status(&mut stream)? {
            200 => Ok(()),
            status => Err(io::Error::other(format!("the agent answered {status}"))),
        }
    }

    fn connect(&self, agent: SocketAddr) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(agent), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&agent.into()) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(e) => return Err(e),
        }
        let stream = TcpStream::from(socket);
        self.wait(&stream, PollFlags::OUT)?;
        stream.take_error()?.map_or(Ok(stream), Err)
    }

    fn send(&self, stream: &mut TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.wait(stream, PollFlags::OUT)?;
            match stream.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if is_passing(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn status(&self, stream: &mut TcpStream) -> io::Result<u16> {
        let mut answer = [0; MAX_ANSWER_BYTES];
        let mut len = 0;
        loop {
            self.wait(stream, PollFlags::IN)?;
            match stream.read(&mut answer[len..]) {
                Ok(0) => return Err(io::Error::other("the agent closed without an answer")),
                Ok(n) => len += n,
                Err(e) if is_passing(&e) => {}
                Err(e) => return Err(e),
            }
            let mut head = httparse::Response::new(&mut []);
            match head.parse(&answer[..len]) {
                // There is no room for headers, and they do not matter.
                Ok(_) | Err(httparse::Error::TooManyHeaders) => {
                    if let Some(status) = head.code {
                        return Ok(status);
                    }
                }
                Err(e) => return Err(io::Error::other(e)),
            }
        }
    }

    fn wait(&self, stream: &TcpStream, flags: PollFlags) -> io::Result<()> {
        loop {
            if is_over(self.stopped) {
                return Err(io::Error::other("the proxy stops"));
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            let slice = Timespec::try_from(left.min(SLICE)).expect("a slice is short");
            match poll(&mut [PollFd::new(stream, flags)], Some(&slice)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn is_passing(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::super::family::{Families, label};
    use super::*;
    use crossbeam_channel::unbounded;
    use serde_json::{Value, json};
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    /// Longer than any push may take.
    const SOON: Duration = Duration::from_secs(20);

    fn gathered(queries: u64, answers: [u64; 3]) -> Vec<Family> {
        let [fast, slow, all] = answers;
        let buckets = vec![(0.1, fast), (0.3, slow - fast), (f64::INFINITY, all - slow)];
        let took = Histogram { sum: all as f64 / 4.0, buckets };
        let mut out = Families::default();
        let help = "";
        out.go_counters("client_query_config_count", help, [(label("table", "a"), queries)]);
        out.gauge("client_connection_count", help, 3.0);
        let routes = [(Vec::new(), f64::NAN), (label("state", "a, b=c"), 5.0)];
        out.gauges("routes", help, routes);
        out.histograms("took_seconds", help, [(Vec::new(), took)]);
        out.0
    }

    #[test]
    fn numbers_are_named_as_goperfcounter_names_them() {
        let start = Instant::now();
        let mut steps = Steps::new(start);
        let own = [("region".to_owned(), "x".to_owned())];
        let queries = "name=client_query_config_count,region=x,table=a";
        let (clients, routes) =
            ("name=client_connection_count,region=x", "name=routes,region=x,state=a__b_c");
        let took = "name=took_seconds,region=x";
        let mut told = |families: &[Family], at_s| {
            let numbers = steps.numbers(families, &own, start + Duration::from_secs(at_s));
            let told = |n: Number| (n.metric, n.tags, (n.value * 1e6).round() / 1e6);
            numbers.into_iter().map(told).collect::<Vec<_>>()
        };
        let want = |numbers: &[(&'static str, &str, f64)]| {
            let own = |&(metric, tags, value): &(&'static str, &str, f64)| {
                (metric, tags.to_owned(), value)
            };
            numbers.iter().map(own).collect::<Vec<_>>()
        };
        let first = told(&gathered(600, [0, 0, 0]), 60);
        let same = [("count", clients, 3.0), ("value", routes, 5.0)];
        let mut numbers = vec![("rate", queries, 10.0), ("sum", queries, 600.0)];
        numbers.extend(same);
        numbers.extend([("rate", took, 0.0), ("sum", took, 0.0)]);
        assert_eq!(first, want(&numbers));

        let second = told(&gathered(660, [80, 98, 100]), 120);
        let mut numbers = vec![("rate", queries, 1.0), ("sum", queries, 660.0)];
        numbers.extend(same);
        numbers.extend([
            ("rate", took, 1.666667),
            ("sum", took, 100.0),
            ("mean", took, 0.25),
            ("75th", took, 0.09375),
            ("95th", took, 0.266667),
            ("99th", took, 0.3),
        ]);
        assert_eq!(second, want(&numbers));

        let restarted = told(&gathered(60, [80, 98, 100]), 180);
        assert_eq!(restarted[0], ("rate", queries.to_owned(), 0.0), "never less than nothing");
    }

    /// An open-falcon agent. Sends head and items of each request to the test; replies by `answers` in turn, then
    /// always with success.
    fn agent(answers: &'static [&str]) -> (SocketAddr, Receiver<(String, Vec<Value>)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (tell, told) = unbounded();
        let mut answers = answers.iter();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    assert!(stream.read_line(&mut head).unwrap() > 0, "{head}");
                }
                let length = head.split("Content-Length: ").nth(1).unwrap();
                let mut body = vec![0; length.split("\r\n").next().unwrap().parse().unwrap()];
                stream.read_exact(&mut body).unwrap();
                let answer = answers.next().copied().unwrap_or("200 OK");
                if answer == "silence" {
                    let _ = tell.send((head, Vec::new()));
                    let _ = stream.read(&mut [0]);
                    return;
                }
                write!(stream.get_mut(), "HTTP/1.1 {answer}\r\nA: b\r\n\r\nsuccess").unwrap();
                let _ = tell.send((head, serde_json::from_slice(&body).unwrap()));
            }
        });
        (addr, told)
    }

    /// Pushes to the agent every second; the channel gets the failures.
    fn start(agent: SocketAddr, families: Vec<Family>) -> (Falcon, Receiver<()>) {
        let step = Duration::from_secs(1);
        let (endpoint, tags) = ("host-7".to_owned(), Vec::new());
        let options = FalconOptions { agent, step, endpoint, tags };
        let (tell, failed) = unbounded();
        let pushed = move |is_good: bool| {
            if !is_good {
                tell.send(()).unwrap();
            }
        };
        (Falcon::start(options, move || families.clone(), pushed).unwrap(), failed)
    }

    #[test]
    fn an_agent_gets_all_numbers_in_pieces() {
        let (addr, told) = agent(&[]);
        let mut out = Families::default();
        let gauges = (0..4_500).map(|n| (label("n", n.to_string()), f64::from(n)));
        out.gauges("g", "", gauges);
        let (falcon, failed) = start(addr, out.0);
        let pieces: Vec<_> = (0..3).map(|_| told.recv_timeout(SOON).unwrap()).collect();
        falcon.stop();
        let sizes: Vec<usize> = pieces.iter().map(|(_, items)| items.len()).collect();
        assert_eq!(sizes, [2_000, 2_000, 500]);
        let (head, items) = &pieces[2];
        assert!(head.starts_with("POST /v1/push HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("\r\nContent-Type: application/json\r\n"), "{head}");
        let mut last = items[499].clone();
        let timestamp = last["timestamp"].take().as_u64().unwrap();
        assert!(timestamp > 1_700_000_000, "seconds: {timestamp}");
        let want = json!({
            "endpoint": "host-7", "metric": "value", "value": 4499.0, "step": 1,
            "counterType": "GAUGE", "tags": "name=g,n=4499", "timestamp": null,
        });
        assert_eq!(last, want);
        assert!(failed.is_empty());
    }

    #[test]
    fn a_push_that_fails_is_counted_and_the_next_one_comes() {
        let (addr, told) = agent(&["400 Bad Request", "no HTTP"]);
        let (falcon, failed) = start(addr, gathered(1, [1, 1, 1]));
        for _ in 0..3 {
            told.recv_timeout(SOON).unwrap();
        }
        falcon.stop();
        assert_eq!(failed.len(), 2);
    }

    #[test]
    fn an_agent_that_is_not_there_or_silent_does_no_harm() {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (falcon, failed) = start(nobody, gathered(1, [1, 1, 1]));
        failed.recv_timeout(SOON).unwrap();
        falcon.stop();

        let (addr, told) = agent(&["silence"]);
        let (falcon, failed) = start(addr, gathered(1, [1, 1, 1]));
        told.recv_timeout(SOON).unwrap();
        let start = Instant::now();
        falcon.stop();
        assert!(start.elapsed() < REQUEST_TIMEOUT, "it waits for an answer and is stopped");
        assert!(failed.is_empty(), "the agent is not to blame");
    }
}
