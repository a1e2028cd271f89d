//! The log of the real binary: its file and those put aside, its formats, its levels, and a disk that takes nothing.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use harness::client::Client;
use harness::http::get;
use harness::meta_server::MetaServer;
use harness::process::Process;
use harness::proxy::Proxy;
use harness::scratch::Scratch;
use harness::wait::eventually;
use serde_json::Value;

use crate::support::{BINARY, Routes, SOON, meta_with, record};

const PRIMARY: &str = "10.0.0.1:34801";

/// A proxy that logs to a file of its own, over one cluster with table `orders`.
struct Logged {
    proxy: Process,
    addr: SocketAddr,
    admin: SocketAddr,
    scratch: Scratch,
    _routes: Routes,
    _meta: MetaServer,
}

impl Logged {
    /// `prepare` gets the folder of `mp.log` before the proxy starts.
    #[track_caller]
    fn start(log: &str, prepare: impl FnOnce(&Path)) -> Self {
        let meta = meta_with("orders", PRIMARY);
        let routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
        let scratch = Scratch::new("logs");
        prepare(scratch.path());
        // Where it listens is not always in its log.
        let addr = free_addr();
        let admin = free_addr();
        let config = scratch.write("mp.yaml", config(addr, &admin.to_string(), log));
        let mut command = Command::new(BINARY);
        command.arg("--routes").arg(routes.path()).arg(config).arg(scratch.path().join("mp.log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let proxy = Process::spawn("meta-proxy", &mut command).expect("it can be run");
        eventually("it listens", SOON, || Client::try_connect(addr, SOON).is_ok());
        Logged { proxy, addr, admin, scratch, _routes: routes, _meta: meta }
    }

    /// Asks so many times on one connection.
    #[track_caller]
    fn ask(&self, count: usize) {
        let mut client = Client::connect(self.addr);
        for n in (0..count).step_by(500) {
            let answers = client.ask_all(vec!["orders"; 500.min(count - n)]);
            assert!(answers.iter().all(|answer| answer.is_ok()));
        }
    }

    /// The log file, and before it those put aside, oldest first.
    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.scratch.path()).expect("the folder is there");
        let paths = entries.map(|entry| entry.expect("it can be read").path());
        let mut paths: Vec<PathBuf> =
            paths.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
        paths.sort();
        paths
    }

    fn text(&self) -> String {
        let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        self.files().into_iter().map(read).collect()
    }

    #[track_caller]
    fn stop(&self) {
        assert_eq!(self.proxy.terminate(SOON).code(), Some(0));
    }
}

fn config(listen: SocketAddr, admin: &str, log: &str) -> String {
    format!("listen: {listen}\nadmin: {{listen: {admin}}}\nlog: {log}\n")
}

fn free_addr() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound")
}

#[test]
fn a_full_log_file_is_put_aside_and_the_oldest_goes() {
    let old = "mp-2020-01-01T00-00-00.000.log";
    let logged = Logged::start("{access_sample: 1, max_file_mb: 1, max_files: 2}", |folder| {
        fs::write(folder.join(old), "too old\n").expect("a file");
        fs::write(folder.join("mp-notes.log"), "somebody's\n").expect("a file");
    });
    // A line has more than 100 bytes.
    logged.ask(40_000);
    logged.stop();
    let files = logged.files();
    let names: Vec<&str> = files.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    assert_eq!(names.len(), 4, "two put aside, the log, the notes: {names:?}");
    assert!(!names.contains(&old), "{names:?}");
    assert_eq!(names[2..], ["mp-notes.log", "mp.log"]);
    for file in &files {
        assert!(file.metadata().expect("it is there").len() <= 1 << 20, "{}", file.display());
    }
    let text = logged.text();
    let whole =
        text.lines().filter(|line| line.contains(" access: table=orders cluster=a client="));
    assert_eq!(whole.count(), text.matches("access:").count());
    assert!(text.ends_with(": stopped\n"), "the last line is there");
}

#[test]
fn a_start_deletes_nothing_that_the_settings_keep() {
    let logged = Logged::start("{max_files: 30, max_file_age_days: 36500}", |folder| {
        for n in 10..40 {
            fs::write(folder.join(format!("mp-2020-01-01T00-00-00.0{n}.log")), "").expect("a file");
        }
    });
    logged.ask(1);
    logged.stop();
    assert_eq!(logged.files().len(), 31, "{:?}", logged.files());
}

#[test]
fn no_line_is_lost_while_files_are_put_aside() {
    let logged = Logged::start("{access_sample: 1, max_file_mb: 1}", |_| ());
    logged.ask(25_000);
    logged.stop();
    assert!(logged.files().len() > 2, "{:?}", logged.files());
    assert_eq!(logged.text().matches("err=ERR_OK latency_us=").count(), 25_000);
}

#[test]
fn sighup_reopens_a_file_that_another_program_renamed() {
    let logged = Logged::start("{access_sample: 1}", |_| ());
    let (path, aside) = (logged.scratch.path().join("mp.log"), logged.scratch.path().join("aside"));
    logged.ask(10);
    fs::rename(&path, &aside).expect("it is there");
    logged.proxy.signal("HUP");
    eventually("there is a new file", SOON, || path.exists());
    logged.ask(10);
    logged.stop();
    let lines = |path| {
        let text = fs::read_to_string(path).expect("it can be read");
        text.matches("err=ERR_OK latency_us=").count()
    };
    assert_eq!((lines(&aside), lines(&path)), (10, 10));
}

#[test]
fn json_is_an_object_a_line_with_the_fields_of_the_message() {
    let logged = Logged::start("{format: json, access_sample: 10}", |_| ());
    logged.ask(100);
    logged.stop();
    let text = logged.text();
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    for line in &lines {
        for key in ["time", "level", "thread", "target", "message"] {
            assert!(line[key].is_string(), "{key} in {line}");
        }
    }
    let access: Vec<&Value> = lines.iter().filter(|line| line["target"] == "access").collect();
    assert_eq!(access.len(), 10, "one of ten");
    for (key, want) in [("table", "orders"), ("cluster", "a"), ("err", "ERR_OK")] {
        assert_eq!(access[0][key], want, "{}", access[0]);
    }
    let client = access[0]["client"].as_str().expect("who asked");
    assert!(client.starts_with("127.0.0.1:"), "{client}");
    assert!(lines.iter().any(|line| line["table"] == "orders" && line["to"] == "a"), "{text}");
}

#[test]
fn levels_go_by_target_and_the_environment_counts_more() {
    let meta = meta_with("orders", PRIMARY);
    let routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
    for (level, env, client, route) in [
        ("info", "", false, true),
        ("info,client=debug", "", true, true),
        ("client::connection=debug", "", true, false),
        ("info,client=debug", "info", false, true),
        ("warn", "info,client=debug", true, true),
        ("debug,client=info", "", false, true),
    ] {
        let builder = Proxy::builder(BINARY).routes_file(routes.path());
        let port = free_addr();
        let config = format!("listen: {port}\nlog: {{level: '{level}'}}");
        let proxy = builder.config_extra(&config).env("RUST_LOG", env).launch();
        eventually("it listens", SOON, || Client::try_connect(port, SOON).is_ok());
        assert!(Client::connect(port).ask("orders").is_ok());
        assert_eq!(proxy.terminate().code(), Some(0));
        let log = proxy.log();
        // A client that leaves is only of interest to who looks for it.
        assert_eq!(log.contains(" connection: conn="), client, "{level:?} {env:?}:\n{log}");
        assert_eq!(log.contains("table=orders from=none to=a"), route, "{level:?} {env:?}:\n{log}");
    }
}

#[test]
fn a_log_file_that_takes_nothing_ends_nothing() {
    let logged = Logged::start("{access_sample: 1}", |folder| {
        symlink("/dev/full", folder.join("mp.log")).expect("a link");
    });
    logged.ask(2_000);
    eventually("the page says so", SOON, || {
        get(logged.admin, "/").contains("Log lines are lost: No space left on device")
    });
    let metrics = get(logged.admin, "/metrics");
    let lost =
        metrics.lines().find_map(|line| line.strip_prefix("meta_proxy_log_lines_lost_total "));
    assert!(lost.is_some_and(|lost| lost.parse::<f64>().unwrap() >= 2_000.0), "{metrics}");
    logged.stop();
}

#[test]
fn a_log_without_a_reader_delays_no_query() {
    let meta = meta_with("orders", PRIMARY);
    let routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
    let addr = free_addr();
    let scratch = Scratch::new("logs");
    let config = scratch.write("mp.yaml", config(addr, "none", "{access_sample: 1}"));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = Command::new(BINARY);
    command.arg("--routes").arg(routes.path()).arg(config).stderr(writer);
    let proxy = Process::spawn("meta-proxy", &mut command).expect("it can be run");
    drop(command); // with our writing end
    eventually("it listens", SOON, || Client::try_connect(addr, SOON).is_ok());
    let mut client = Client::connect(addr);
    // More than the pipe and the queue take.
    for _ in 0..120 {
        assert_eq!(client.ask_all(vec!["orders"; 500]).len(), 500);
    }
    // A reader who comes at last learns how much there was to read.
    let is_told = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            use std::io::{BufRead, BufReader};
            let told = |line: String| line.contains("were lost: they came faster than they could");
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                is_told.fetch_or(told(line), Relaxed);
            }
        });
        eventually("the lost lines are told of", SOON, || is_told.load(Relaxed));
        // A client that is connected would be given its minute.
        drop(client);
        assert_eq!(proxy.terminate(SOON).code(), Some(0));
    });
}

#[test]
fn a_log_that_reaches_the_limit_of_its_size_ends_nothing() {
    let meta = meta_with("orders", PRIMARY);
    let routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
    let (addr, admin) = (free_addr(), free_addr());
    let scratch = Scratch::new("logs");
    let config = scratch.write("mp.yaml", config(addr, &admin.to_string(), "{access_sample: 1}"));
    // In blocks of 512 bytes or 1 KiB, as the shell has it: some 100 lines.
    let script =
        scratch.write("limited", format!("#!/bin/sh\nulimit -f 16\nexec {BINARY} \"$@\"\n"));
    let mut command = Command::new("sh");
    command.arg(script).arg("--routes").arg(routes.path()).arg(config);
    command.arg(scratch.path().join("mp.log")).stdin(Stdio::null()).stderr(Stdio::null());
    let proxy = Process::spawn("meta-proxy", &mut command).expect("it can be run");
    eventually("it listens", SOON, || Client::try_connect(addr, SOON).is_ok());
    let mut client = Client::connect(addr);
    assert_eq!(client.ask_all(vec!["orders"; 500]).len(), 500);
    eventually("the page says so", SOON, || {
        get(admin, "/").contains("Log lines are lost: File too large")
    });
    assert_eq!(client.ask_all(vec!["orders"; 500]).len(), 500);
    drop(client);
    assert_eq!(proxy.terminate(SOON).code(), Some(0));
}

#[test]
fn signals_without_a_meaning_are_logged_and_end_nothing() {
    let logged = Logged::start("{}", |_| ());
    for signal in ["USR1", "USR2", "ALRM", "XCPU", "XFSZ"] {
        logged.proxy.signal(signal);
        let told = format!(" serve: SIG{signal}: ");
        eventually("it is told", SOON, || logged.text().contains(&told));
        logged.ask(1);
    }
    logged.stop();
}
