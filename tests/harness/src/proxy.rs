//! The real meta-proxy under test: the built binary as a child process with its own config file, its log in memory, and
//! a view of it from outside. When a test fails, command, config and log are printed, so that a failure in CI is
//! understood from its output alone.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::client::{Answer, Client};
use crate::process::Process;
use crate::scratch::{Scratch, tail};

const START_WITHIN: Duration = Duration::from_secs(10);
/// Longer than any grace time of a stop.
const STOP_WITHIN: Duration = Duration::from_secs(30);
const LISTENING: &str = "listening on ";
const LISTENING_ALSO: &str = "listening also on ";
const LOG_LINES: usize = 100;

/// The proxy to start, and its settings.
pub struct Builder {
    binary: PathBuf,
    zookeeper: Option<String>,
    routes_file: Option<PathBuf>,
    config_extra: String,
    env: Vec<(OsString, OsString)>,
    wrapper: Vec<OsString>,
}

impl Builder {
    /// Routes come from ZooKeeper. Any `host:port` will do as an address.
    pub fn zookeeper(mut self, addrs: impl IntoIterator<Item = impl ToString>, root: &str) -> Self {
        let addrs: Vec<String> =
            addrs.into_iter().map(|addr| format!("{:?}", addr.to_string())).collect();
        self.zookeeper = Some(format!(
            "{{address: [{}], root: {root}, timeout: 6000, table_watcher_cache_capacity: 1024}}",
            addrs.join(", ")
        ));
        self
    }

    /// Routes come from a file: `--routes FILE`.
    pub fn routes_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.routes_file = Some(path.into());
        self
    }

    /// More YAML. A top-level key in it takes the place of the same key that would be written else.
    pub fn config_extra(mut self, yaml: &str) -> Self {
        self.config_extra.push_str(yaml.trim_end());
        self.config_extra.push('\n');
        self
    }

    /// Sets a variable in the environment of the proxy.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Runs it by way of a program with these arguments, which becomes the proxy in the end.
    pub fn wrapper(mut self, words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.wrapper = words.into_iter().map(Into::into).collect();
        self
    }

    /// Starts it; returns when it listens.
    #[track_caller]
    pub fn start(self) -> Proxy {
        let mut proxy = self.launch();
        // From here on a panic drops `proxy`, which tells its story.
        let listening = proxy.log.wait(START_WITHIN, listening_addr, || proxy.process.ended());
        match listening {
            Ok(addr) => proxy.addr = Some(addr),
            Err(why) => panic!("the proxy does not listen: {why}"),
        }
        proxy
    }

    /// Starts it and waits for nothing: for tests of a start that fails.
    #[track_caller]
    pub fn launch(self) -> Proxy {
        let scratch = Scratch::new("proxy");
        let config = self.config();
        let base_config = config.strip_suffix(&self.config_extra).unwrap_or_default().to_owned();
        let config_path = scratch.write("meta-proxy.yaml", &config);

        let (reader, writer) = io::pipe().expect("a pipe for the log");
        let binary = self.binary.clone().into_os_string();
        let mut words = self.wrapper.iter().chain([&binary]);
        let mut command = Command::new(words.next().expect("the binary at least"));
        command.args(words);
        if let Some(routes) = &self.routes_file {
            command.arg("--routes").arg(routes);
        }
        command
            .arg(config_path)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(writer.try_clone().expect("a descriptor for the log"))
            .stderr(writer);
        let command_line = format!("{command:?}");
        let process = Process::spawn("meta-proxy", &mut command)
            .unwrap_or_else(|e| panic!("cannot run {command_line}: {e}"));
        drop(command); // with our writing end of the pipe, so that it ends with the process

        let log = Arc::new(Log::default());
        let collector = thread::Builder::new()
            .name("proxy-log".to_owned())
            .spawn({
                let log = Arc::clone(&log);
                move || log.collect(reader)
            })
            .expect("a thread for the log");
        Proxy {
            addr: None,
            process,
            log,
            collector: Some(collector),
            command_line,
            config,
            base_config,
            scratch,
        }
    }

    fn config(&self) -> String {
        let defaults = [
            ("listen", Some("127.0.0.1:0")),
            ("zookeeper", self.zookeeper.as_deref()),
            ("metric", Some("{type: prometheus, tags: [region=test]}")),
            ("admin", Some("{listen: 127.0.0.1:0}")),
            // Probes are calls, which many tests count.
            ("probe_interval_s", Some("0")),
        ];
        let mut config = String::new();
        for (key, value) in defaults {
            let replaced =
                || self.config_extra.lines().any(|line| line.starts_with(&format!("{key}:")));
            if let Some(value) = value
                && !replaced()
            {
                let _ = writeln!(config, "{key}: {value}");
            }
        }
        config + &self.config_extra
    }
}

/// A running proxy. Killed on drop.
pub struct Proxy {
    addr: Option<SocketAddr>,
    process: Process,
    log: Arc<Log>,
    collector: Option<JoinHandle<()>>,
    command_line: String,
    config: String,
    /// The config without extra YAML.
    base_config: String,
    scratch: Scratch,
}

impl Proxy {
    /// `binary` is `env!("CARGO_BIN_EXE_meta-proxy")` in the tests of that package.
    pub fn builder(binary: impl AsRef<Path>) -> Builder {
        Builder {
            binary: binary.as_ref().to_owned(),
            zookeeper: None,
            routes_file: None,
            config_extra: String::new(),
            env: Vec::new(),
            wrapper: Vec::new(),
        }
    }

    /// Where clients connect.
    #[track_caller]
    pub fn addr(&self) -> SocketAddr {
        self.addr.expect("it was started, not only launched")
    }

    /// Where clients connect, too: the place in the list of `listeners`.
    #[track_caller]
    pub fn further_addr(&self, n: usize) -> SocketAddr {
        let log = self.log();
        let places = log.split(LISTENING_ALSO).skip(1).filter_map(|rest| rest.split(',').next());
        let addrs: Vec<SocketAddr> = places.filter_map(|addr| addr.parse().ok()).collect();
        *addrs.get(n).unwrap_or_else(|| panic!("no further port {n} in {addrs:?}"))
    }

    /// Where its pages for operators are.
    #[track_caller]
    pub fn admin(&self) -> SocketAddr {
        let log = self.log();
        let at = log.lines().find_map(|line| line.split_once("pages for operators at http://"));
        let addr = at.and_then(|(_, url)| url.trim_end_matches('/').parse().ok());
        addr.unwrap_or_else(|| panic!("no pages for operators in the log:\n{log}"))
    }

    /// A new connection to it.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(self.addr())
    }

    /// One query over a connection of its own.
    #[track_caller]
    pub fn ask(&self, table: &str) -> Answer {
        self.client().ask(table)
    }

    /// Writes its settings file anew, with other extra YAML in the place of the first. It has to be told.
    #[track_caller]
    pub fn rewrite_config(&self, extra: &str) {
        let config = format!("{}{extra}\n", self.base_config);
        self.scratch.write("meta-proxy.yaml", config);
    }

    /// All it wrote so far.
    pub fn log(&self) -> String {
        self.log.lines().text.join("\n")
    }

    /// Waits for a line that contains `needle`; returns the first. Lines from before the call count.
    #[track_caller]
    pub fn wait_for_log(&self, needle: &str, within: Duration) -> String {
        let found = |line: &str| line.contains(needle).then(|| line.to_owned());
        match self.log.wait(within, found, || self.process.ended()) {
            Ok(line) => line,
            Err(why) => panic!("no {needle:?} in the log of the proxy: {why}"),
        }
    }

    /// The process: signals, memory, threads, descriptors, processor time.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// See [`Process::pause`].
    pub fn pause(&self) {
        self.process.pause();
    }

    /// See [`Process::resume`].
    pub fn resume(&self) {
        self.process.resume();
    }

    /// See [`Process::rss_bytes`].
    #[track_caller]
    pub fn rss_bytes(&self) -> u64 {
        self.process.rss_bytes()
    }

    /// See [`Process::threads`].
    #[track_caller]
    pub fn threads(&self) -> Vec<String> {
        self.process.threads()
    }

    /// See [`Process::open_fds`].
    #[track_caller]
    pub fn open_fds(&self) -> usize {
        self.process.open_fds()
    }

    /// See [`Process::cpu_ms`].
    #[track_caller]
    pub fn cpu_ms(&self) -> u64 {
        self.process.cpu_ms()
    }

    /// SIGTERM, as systemd stops it; waits for the end.
    #[track_caller]
    pub fn terminate(&self) -> ExitStatus {
        self.process.terminate(STOP_WITHIN)
    }

    /// SIGKILL; returns when it is gone.
    pub fn kill(&self) {
        self.process.kill();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.process.kill();
        if let Some(collector) = self.collector.take() {
            // The pipe has ended with the process. A panic in there was printed when it happened.
            let _ = collector.join();
        }
        if thread::panicking() {
            eprintln!(
                "---- command\n{}\n---- config\n{}---- log of the proxy, its end\n{}\n---- {:?}",
                self.command_line,
                self.config,
                tail(&self.log(), LOG_LINES),
                self.process.ended(),
            );
        }
    }
}

/// Lines as they come, from both output streams.
#[derive(Default)]
struct Log {
    lines: Mutex<Lines>,
    more: Condvar,
}

#[derive(Default)]
struct Lines {
    text: Vec<String>,
    /// The writer is gone: there will be no more.
    complete: bool,
}

impl Log {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(&self, reader: io::PipeReader) {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while let Ok(1..) = reader.read_until(b'\n', &mut line) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            self.lines().text.push(text);
            self.more.notify_all();
            line.clear();
        }
        self.lines().complete = true;
        self.more.notify_all();
    }

    /// Waits until `find` finds something in a line; the error says why it will not, or has not.
    fn wait<T>(
        &self,
        within: Duration,
        find: impl Fn(&str) -> Option<T>,
        ended: impl Fn() -> Option<ExitStatus>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + within;
        let mut looked_at = 0;
        let mut lines = self.lines();
        loop {
            if let Some(found) = lines.text[looked_at..].iter().find_map(|line| find(line)) {
                return Ok(found);
            }
            looked_at = lines.text.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.complete {
                return Err(format!("it has ended, {:?}", ended()));
            }
            if left.is_zero() {
                return Err(format!("not within {within:?}"));
            }
            (lines, _) =
                self.more.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The address for clients in a line like `INFO accept: listening on 127.0.0.1:34601, 256 workers`; the admin pages have
/// one like it.
fn listening_addr(line: &str) -> Option<SocketAddr> {
    let (before, after) = line.split_once(LISTENING)?;
    if before.contains("admin") {
        return None;
    }
    let addr = after.split([' ', ',']).next()?;
    addr.trim_end_matches('.').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `sh` stands in for the proxy: it takes the config for a script, and complains of the lines that are YAML.
    fn script(text: &str) -> Builder {
        Proxy::builder("sh").config_extra(text)
    }

    #[test]
    fn the_address_is_read_from_the_log_and_the_end_is_seen() {
        let proxy = script(
            "echo 'INFO admin: listening on 127.0.0.1:9091'\n\
             echo 'INFO accept: listening on 127.0.0.1:34601, 256 workers' >&2\n\
             echo $COLOUR\n\
             trap 'exit 3' TERM\n\
             while :; do sleep 0.01; done",
        )
        .env("COLOUR", "teal")
        .start();
        assert_eq!(proxy.addr(), SocketAddr::from(([127, 0, 0, 1], 34601)));
        assert_eq!(proxy.wait_for_log("teal", START_WITHIN), "teal");
        assert!(proxy.log().contains("listen:"), "{}", proxy.log());
        assert_eq!(proxy.terminate().code(), Some(3));
    }

    #[test]
    fn a_start_that_fails_says_so_before_the_time_is_over() {
        let proxy = script("echo 'no such root'; exit 7").launch();
        proxy.wait_for_log("no such root", START_WITHIN);
        let status = proxy.process().wait(START_WITHIN);
        assert_eq!(status.and_then(|status| status.code()), Some(7));
        let why = proxy.log.wait(START_WITHIN, listening_addr, || proxy.process.ended());
        assert!(matches!(&why, Err(why) if why.starts_with("it has ended")), "{why:?}");
    }

    #[test]
    fn the_config_is_the_one_of_the_contract_and_extra_keys_take_the_place_of_ours() {
        let builder = Proxy::builder("meta-proxy")
            .zookeeper(["127.0.0.1:1", "zk2:2"], "/root")
            .config_extra("metric: {type: falcon}\nadmin:\n  listen: 127.0.0.1:0");
        assert_eq!(
            builder.config(),
            "listen: 127.0.0.1:0\n\
             zookeeper: {address: [\"127.0.0.1:1\", \"zk2:2\"], root: /root, timeout: 6000, \
             table_watcher_cache_capacity: 1024}\nprobe_interval_s: 0\n\
             metric: {type: falcon}\n\
             admin:\n  listen: 127.0.0.1:0\n"
        );
    }
}
