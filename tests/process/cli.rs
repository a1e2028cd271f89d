//! The commands of the binary: what they print, where, and their exit codes.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use harness::client::{Client, NoAnswer};
use harness::meta_server::{Behaviour, MetaServer};
use harness::process::Process;
use harness::rdsn::Frame;
use harness::scratch::Scratch;
use harness::wait::eventually;
use harness::wire::QueryCfgResponse;
use serde_json::{Value, json};

use crate::run::{Finished, run};
use crate::support::{BINARY, QUERY_TIMEOUT, Routes, SOON, addr, golden, meta_with, record};

const PRIMARY: &str = "10.0.0.1:34801";

/// The example that comes with the Go meta-proxy, to the letter.
const GO: &str = "\
zookeeper:
  address: [127.0.0.1:22181,127.0.0.2:22181]
  root: /pegasus-cluster
  timeout: 1000 # ms
  table_watcher_cache_capacity: 1024

metric:
  type: falcon
  tags: [region=local_tst,service=meta_proxy]
";

/// Good settings, with a ZooKeeper that nobody runs.
const GOOD: &str = "\
listen: 127.0.0.1:0
zookeeper: {address: ['127.0.0.1:1'], root: /pegasus-cluster}
";

fn meta_proxy<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Finished {
    let mut command = Command::new(BINARY);
    command.args(args);
    run(command, SOON)
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("scratch directories have plain names")
}

// ---- check

/// Runs `check` on a file with this content. In the lines that it prints, `F` stands for the file.
#[track_caller]
fn check(content: impl AsRef<[u8]>, code: i32) -> Vec<String> {
    let scratch = Scratch::new("check");
    let file = scratch.write("meta-proxy.yaml", content);
    let done = meta_proxy(["check", path_text(&file)]).expect_code(code);
    assert_eq!(done.stderr, "", "all is told on standard output");
    lines(&done.stdout, &file)
}

fn lines(text: &str, file: &Path) -> Vec<String> {
    text.lines().map(|line| line.replace(path_text(file), "F")).collect()
}

#[test]
fn check_finds_the_go_proxys_example_good_as_it_is() {
    assert_eq!(check(GO, 0), ["F: good"]);
}

#[test]
fn check_tells_all_faults_at_once() {
    let content = "\
listen: here
zookeeper:
  address: [zk1]
  root: tables
  timeout: 0
  extra: 1
worker: 9
limits:
  max_frame_bytes: many
";
    assert_eq!(
        check(content, 1),
        [
            "F: warning: line 6: zookeeper.extra: unknown key",
            "F: warning: line 7: worker: unknown key; did you mean workers?",
            r#"F: line 1: listen: want IP:port, got "here""#,
            r#"F: line 3: zookeeper.address: want a list of host:port, got ["zk1"]"#,
            r#"F: line 4: zookeeper.root: want a znode path, /a/b, got "tables""#,
            r#"F: line 5: zookeeper.timeout: want 100..=600000, got "0""#,
            r#"F: line 9: limits.max_frame_bytes: want 512..=1048576, got "many""#,
        ]
    );
}

#[test]
fn check_warns_of_unknown_keys_and_calls_the_file_good() {
    assert_eq!(
        check(format!("{GOOD}lisen: 127.0.0.1:1\n"), 0),
        ["F: warning: line 3: lisen: unknown key; did you mean listen?", "F: good"]
    );
}

#[test]
fn check_is_strict_reads_standard_input_and_prints_json() {
    let odd = format!("{GOOD}lisen: 127.0.0.1:1\n");
    let scratch = Scratch::new("check");
    let file = scratch.write("odd.yaml", &odd);
    let shown = path_text(&file);
    meta_proxy(["check", shown]).expect_code(0);
    let strict = meta_proxy(["check", "--strict", shown]).expect_code(1);
    assert!(!strict.stdout.contains("good"), "{strict}");

    let from_pipe = |text: &str, code| {
        let mut command = Command::new("sh");
        command.args(["-c", "printf %s \"$1\" | \"$0\" check -", BINARY, text]);
        run(command, SOON).expect_code(code).stdout
    };
    assert_eq!(from_pipe(GOOD, 0), "-: good\n");
    assert!(from_pipe("workers: 0\n", 1).starts_with("-: line 1: workers: want 4..=1024"));

    let done = meta_proxy(["check", "--json", shown]).expect_code(0);
    let told: Value = serde_json::from_str(&done.stdout).expect("JSON");
    let what = "unknown key; did you mean listen?";
    let want = json!({
        "file": shown, "good": true, "faults": [],
        "warnings": [{"line": 3, "key": "lisen", "what": what}],
        "routes": null, "routes_faults": [],
    });
    assert_eq!(told, want);
}

#[test]
fn check_reads_a_routes_file_too() {
    let scratch = Scratch::new("check");
    let good = scratch.write("good.json", r#"{"t": {"meta_addrs": "h:1"}}"#);
    let bad = scratch.write("bad.json", r#"{"t": {"meta_addrs": "h"}}"#);
    let config = scratch.write("no-zookeeper.yaml", "listen: 127.0.0.1:1\n");
    let [good, bad, config] = [&good, &bad, &config].map(|file| path_text(file));
    let done = meta_proxy(["check", "--routes", good, config]).expect_code(0);
    assert_eq!(done.stdout, format!("{config}: good\n{good}: good\n"));
    let done = meta_proxy(["check", "--routes", bad]).expect_code(1);
    assert_eq!(
        done.stdout,
        format!("{bad}: line 1: \"t\": meta_addrs: want host:port, got \"h\"\n")
    );
}

#[test]
fn check_warns_of_a_state_file_in_a_folder_that_is_missing() {
    let state = "zookeeper: {address: [h:1], root: /r, state_file: /no/such/folder/routes}\n";
    let want = "F: warning: line 1: zookeeper.state_file: want a file in a folder that is there, \
        got /no/such/folder";
    assert_eq!(check(state, 0), [want, "F: good"]);
}

#[test]
fn check_never_shows_a_secret() {
    let content = "zookeeper: {address: [h:1], root: /r, digest: hunter2}\n";
    assert_eq!(
        check(content, 1),
        ["F: line 1: zookeeper.digest: want user:password, got something else"]
    );
}

#[test]
fn check_tells_of_files_that_are_no_settings() {
    for (why, content, want) in [
        ("empty", &b""[..], "F: zookeeper.address: want a list of host:port, got nothing"),
        ("a list", b"- 1\n", r#"F: line 1: want keys and values, got ["1"]"#),
        ("no YAML", b"listen: 127.0.0.1:1\na: [1\n", "F: line "),
        ("no text", b"\xff\xfe\n", "F: stream did not contain valid UTF-8"),
    ] {
        let told = check(content, 1);
        assert!(told[0].starts_with(want), "{why}: {told:?}");
    }
    let scratch = Scratch::new("check");
    let missing = scratch.path().join("missing.yaml");
    for (path, want) in [
        (missing.as_path(), "F: No such file or directory (os error 2)\n"),
        (scratch.path(), "F: Is a directory (os error 21)\n"),
    ] {
        let done = meta_proxy(["check", path_text(path)]).expect_code(1);
        assert_eq!(done.stdout.replace(path_text(path), "F"), want);
    }
}

#[test]
fn check_does_nothing_else() {
    // Neither is the port of a running proxy in its way, nor does it look for ZooKeeper.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let zookeeper = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr_of = |listener: &TcpListener| listener.local_addr().expect("it is bound");
    let content = format!(
        "listen: {}\nzookeeper: {{address: ['{}'], root: /r}}\n",
        addr_of(&taken),
        addr_of(&zookeeper)
    );
    assert_eq!(check(content, 0), ["F: good"]);
    zookeeper.set_nonblocking(true).expect("a socket");
    let nobody = zookeeper.accept().expect_err("nobody may have come");
    assert_eq!(nobody.kind(), io::ErrorKind::WouldBlock);
}

// ---- query

/// A table with a partition like most, one with replicas to spare, and one without a primary.
fn three_kinds() -> QueryCfgResponse {
    let mut table = QueryCfgResponse::table(7, 3, addr(PRIMARY));
    table.partitions[1].secondaries = vec![addr("10.0.0.2:34801"), addr("10.0.0.3:34801")];
    table.partitions[2].primary = None;
    table.partitions[2].ballot = 12;
    table
}

fn query(table: &str, via: SocketAddr, more: &[&str]) -> Finished {
    let via = via.to_string();
    let mut args = vec!["query", table, "--via", &via];
    args.extend(more);
    meta_proxy(args)
}

#[test]
fn query_prints_the_answer_of_a_proxy_or_a_meta_server() {
    let meta = MetaServer::start();
    meta.put_table("orders", three_kinds());
    let routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
    let proxy = routes.proxy();
    let want = [
        "orders: ERR_OK, app id 7, 3 partitions",
        "     0  ballot 3      primary 10.0.0.1:34801        secondaries none",
        "     1  ballot 3      primary 10.0.0.1:34801        secondaries 10.0.0.2:34801 10.0.0.3:34801",
        "     2  ballot 12     primary none                  secondaries none",
    ];
    for (via, more) in [
        (proxy.addr(), &[][..]),
        (meta.addr(), &[]),
        (proxy.addr(), &["--protocol", "thft"]),
        (proxy.addr(), &["--protocol", "rdsn"]),
    ] {
        let done = query("orders", via, more).expect_code(0);
        let told: Vec<&str> = done.stdout.lines().map(str::trim_end).collect();
        assert_eq!(told, want);
        assert_eq!(done.stderr, "");
    }
}

#[test]
fn query_prints_json() {
    let meta = MetaServer::start();
    meta.put_table("orders", three_kinds());
    let routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
    let proxy = routes.proxy();
    let done = query("orders", proxy.addr(), &["--json"]).expect_code(0);
    let told: Value = serde_json::from_str(&done.stdout).expect("JSON");
    let want = json!({
        "table": "orders",
        "err": "ERR_OK",
        "app_id": 7,
        "partition_count": 3,
        "host_port_fields": false,
        "partitions": [
            {"index": 0, "ballot": 3, "primary": PRIMARY, "secondaries": []},
            {"index": 1, "ballot": 3, "primary": PRIMARY,
             "secondaries": ["10.0.0.2:34801", "10.0.0.3:34801"]},
            {"index": 2, "ballot": 12, "primary": null, "secondaries": []},
        ],
    });
    assert_eq!(told, want);

    let done = query("nosuch", proxy.addr(), &["--json"]).expect_code(1);
    let told: Value = serde_json::from_str(&done.stdout).expect("JSON");
    assert_eq!((&told["table"], &told["err"]), (&json!("nosuch"), &json!("ERR_OBJECT_NOT_FOUND")));
}

#[test]
fn query_fails_with_the_error_of_the_answer() {
    let meta = meta_with("orders", PRIMARY);
    let routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
    let proxy = routes.proxy();
    let done = query("nosuch", proxy.addr(), &[]).expect_code(1);
    assert_eq!(done.stdout, "nosuch: ERR_OBJECT_NOT_FOUND, app id 0, 0 partitions\n");

    // Only a MetaServer says this, the proxy never does.
    meta.set(Behaviour::Follower { leader: Some(addr("10.0.0.9:34601")) });
    let done = query("orders", meta.addr(), &[]).expect_code(1);
    assert!(done.stdout.starts_with("orders: ERR_FORWARD_TO_OTHERS (10.0.0.9:34601),"), "{done}");
}

#[test]
fn query_as_a_cpp_client_tells_what_such_a_client_would_meet() {
    let meta = meta_with("orders", PRIMARY);
    let routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
    let proxy = routes.proxy();
    let within = |ms, table, via| query(table, via, &["--protocol", "rdsn", "--timeout-ms", ms]);
    let rdsn = |table, via| within("10000", table, via);
    let done = rdsn("nosuch", proxy.addr()).expect_code(1);
    assert_eq!(done.stdout, "nosuch: ERR_OBJECT_NOT_FOUND, app id 0, 0 partitions\n");

    // A server that answers each connection with the same bytes.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let via = listener.local_addr().unwrap();
    let forward = Frame::decode(&golden("probe-follower-noforward.response.bin")).unwrap();
    let ok = Frame { id: 1, ..forward };
    let body = QueryCfgResponse::table(1, 4, addr(PRIMARY)).encode();
    let cases = [
        (ok.encode(), "orders: ERR_FORWARD_TO_OTHERS (127.0.0.1:26601), app id 0"),
        (Frame { id: 2, ..ok.clone() }.encode(), "want id 1, got 2"),
        (Frame { context: 0, ..ok.clone() }.encode(), "got context 0x0"),
        (
            Frame { error_name: "ERR_BUSY".into(), ..ok.clone() }.encode(),
            "want a result, got header error \"ERR_BUSY\"",
        ),
        (
            Frame { body: body[..body.len() - 1].to_vec(), ..ok.clone() }.encode(),
            "a C++ client aborts on the answer",
        ),
        (ok.encode()[..300].to_vec(), "closed before the answer"),
        (b"HTTP/1.1 400 Bad Request".repeat(20), "want an RDSN header, got other bytes"),
    ];
    thread::scope(|scope| {
        let answers: Vec<Vec<u8>> = cases.iter().map(|(bytes, _)| bytes.clone()).collect();
        scope.spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                stream.read_exact(&mut [0; 192]).unwrap();
                stream.write_all(&answer).unwrap();
                // The client may have read enough, and be gone.
                let _ = stream.shutdown(Shutdown::Write);
                // Or what is still unread would have the answer reset.
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        for (_, want) in &cases {
            let done = rdsn("orders", via).expect_code(1);
            assert!(done.stdout.contains(want) || done.stderr.contains(want), "{want}: {done}");
        }
    });

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let done = within("300", "orders", silent.local_addr().unwrap()).expect_code(1);
    assert!(done.stderr.ends_with(": no answer in time\n"), "{done}");
    drop(silent);
    let done = rdsn("orders", addr("127.0.0.1:1")).expect_code(1);
    assert!(done.stderr.starts_with("meta-proxy: 127.0.0.1:1: Connection refused"), "{done}");
}

#[test]
fn query_says_why_there_is_no_answer() {
    let mute = MetaServer::start();
    mute.set(Behaviour::Mute);
    let liar = MetaServer::start();
    liar.set(Behaviour::CloseOnRequest);
    let silent = mute.addr().to_string();
    let rude = liar.addr().to_string();
    for (why, via, want) in [
        ("nobody listens", "127.0.0.1:1", "127.0.0.1:1: Connection refused"),
        ("no port", "localhost", "localhost: want host:port"),
        ("no such port", "127.0.0.1:99999", "127.0.0.1:99999: want host:port"),
        ("it never answers", &silent, &silent),
        ("it hangs up", &rude, &rude),
    ] {
        let done = meta_proxy(["query", "orders", "--via", via, "--timeout-ms", "300"]);
        // Less than the 5 s without the option: the option counts.
        assert!(done.took < Duration::from_secs(4), "{why}: {done}");
        let done = done.expect_code(1);
        assert_eq!(done.stdout, "", "{why}");
        assert!(done.stderr.starts_with("meta-proxy: "), "{why}: {done}");
        assert!(done.stderr.contains(want), "{why}: {done}");
    }
}

/// A pipe that nobody reads any more, as `| head` leaves it behind.
fn closed_pipe() -> io::PipeWriter {
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    writer
}

#[test]
fn who_closes_standard_output_has_read_enough() {
    let meta = meta_with("orders", PRIMARY);
    let via = meta.addr().to_string();
    for args in [&["query", "orders", "--via", &via][..], &["--help"], &["--version"]] {
        let scratch = Scratch::new("closed");
        let log = scratch.path().join("stderr");
        let mut command = Command::new(BINARY);
        command.args(args).stdout(closed_pipe());
        command.stderr(fs::File::create(&log).expect("a file in a new directory"));
        let process = Process::spawn("meta-proxy", &mut command).expect("it can be run");
        let status = process.wait(SOON).expect("it ends");
        assert_eq!(status.code(), Some(0), "{args:?}");
        assert_eq!(fs::read_to_string(log).expect("the file is there"), "", "{args:?}");
    }
}

// ---- arguments

#[test]
fn version_and_help() {
    for option in ["--version", "-V"] {
        let version = meta_proxy([option]).expect_code(0).stdout;
        let begins = concat!("meta-proxy ", env!("CARGO_PKG_VERSION"), " (commit ");
        let rest = version.strip_prefix(begins).expect(&version);
        let (commit, build) = rest.split_once(", ").expect(&version);
        assert!(commit.len() == 12 && commit.chars().all(|c| c.is_ascii_hexdigit()), "{version}");
        assert!(build.contains("linux") && build.ends_with(")\n"), "{version}");
    }
    for (args, parts) in [
        (&["--help"][..], &["CONFIG [LOGFILE]", "--routes", "check", "query", "Exit codes:"][..]),
        (&["-h"], &["CONFIG [LOGFILE]"]),
        (&["help"], &["CONFIG [LOGFILE]"]),
        (&["help", "run"], &["--listen", "RUST_LOG", "Exit codes:"]),
        (&["x.yaml", "--help"], &["CONFIG [LOGFILE]"]),
        (&["help", "check"], &["--strict", "--json", "--routes", "Exit codes:"]),
        (&["check", "--help"], &["--strict"]),
        (&["help", "query"], &["--via", "--timeout-ms", "Exit codes:"]),
        (&["query", "-h"], &["--via"]),
    ] {
        let help = meta_proxy(args).expect_code(0).stdout;
        for part in parts {
            assert!(help.contains(part), "{args:?}: {part} in {help}");
        }
    }
}

/// The files of a folder and their content.
fn content(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("it").path());
    let mut files: Vec<_> =
        entries.map(|path| (path.clone(), fs::read(path).expect("a file"))).collect();
    files.sort();
    files
}

#[test]
fn a_typing_error_never_costs_a_file_of_settings_or_routes() {
    let scratch = Scratch::new("typo");
    for name in ["my.yml", "my.yaml", "my.conf"] {
        scratch.write(name, GOOD);
    }
    let at = |name: &str| path_text(&scratch.path().join(name)).to_owned();
    let state_file = format!("cluster, state_file: {}}}", at("state"));
    scratch.write("my.yml", GOOD.replace("cluster}", &state_file));
    scratch.write("routes.json", r#"{"orders": {"cluster_name": "c3", "meta_addrs": "h:1"}}"#);
    let before = content(scratch.path());
    for (args, want, code) in [
        (["chek", &at("my.yml")], "no such command: chek; did you mean check?", 2),
        (["chekc", &at("my.conf")], "no such command: chekc; did you mean check?", 2),
        (["nothing.yml", &at("my.conf")], "nothing.yml: No such file or directory", 1),
        ([&at("my.conf"), &at("my.conf")], "want a log, not the settings file itself", 2),
        ([&at("my.conf"), &at("my.yml")], "want a log, not a YAML file", 2),
        ([&at("my.yml"), &at("my.conf")], "want a log, and this reads as settings", 2),
        ([&at("my.yml"), &at("new.yaml")], "want a log, not a YAML file", 2),
        ([&at("my.yml"), &at("routes.json")], "want a log, and this reads as routes", 2),
        ([&at("my.yml"), &at("state")], "want a log, not zookeeper.state_file itself", 2),
    ] {
        let done = meta_proxy(args).expect_code(code);
        assert!(done.stderr.starts_with("meta-proxy: ") && done.stderr.contains(want), "{done}");
        assert_eq!(content(scratch.path()), before, "{args:?}");
    }
    let routes = at("routes.json");
    let done = meta_proxy(["--routes", &routes, &at("my.yml"), &routes]).expect_code(2);
    assert!(done.stderr.contains("want a log, not the routes file itself"), "{done}");
    assert_eq!(content(scratch.path()), before);
}

#[test]
fn start_errors_reach_the_terminal_and_the_log() {
    let scratch = Scratch::new("start");
    let config = scratch.write("bad.yaml", format!("{GOOD}workers: 0\n"));
    let log = scratch.path().join("log");
    let done = meta_proxy([path_text(&config), path_text(&log)]).expect_code(1);
    let want = r#"line 3: workers: want 4..=1024, got "0""#;
    assert!(done.stderr.starts_with("meta-proxy: ") && done.stderr.contains(want), "{done}");
    assert!(fs::read_to_string(log).expect("a log").contains(want));
}

#[test]
fn arguments_that_mean_nothing() {
    for (why, args) in [
        ("none at all", &[][..]),
        ("three words", &["a", "b", "c"]),
        ("no such option", &["--nonsense"]),
        ("check what?", &["check"]),
        ("check two files", &["check", "a", "b"]),
        ("query what?", &["query"]),
        ("query whom?", &["query", "t"]),
        ("no value", &["query", "t", "--via"]),
        ("query without a table", &["query", "--via", "h:1"]),
        ("no number", &["query", "t", "--via", "h:1", "--timeout-ms", "soon"]),
        ("no protocol", &["query", "t", "--via", "h:1", "--protocol", "http"]),
        ("no address", &["--routes", "f", "--listen", "here"]),
        ("--via is for query", &["meta-proxy.yaml", "--via", "h:1"]),
    ] {
        let done = meta_proxy(args).expect_code(2);
        assert_eq!(done.stdout, "", "{why}");
        assert!(done.stderr.starts_with("meta-proxy: "), "{why}: {done}");
        assert!(done.stderr.contains("Usage:"), "{why}: {done}");
    }
}

#[test]
fn options_of_another_command_mean_nothing() {
    for args in [
        &["check", "meta-proxy.yaml", "--via", "h:1"][..],
        &["check", "meta-proxy.yaml", "--listen", "127.0.0.1:0"],
        &["query", "t", "--via", "127.0.0.1:1", "--strict"],
        &["query", "t", "--via", "127.0.0.1:1", "--routes", "f"],
        &["query", "t", "--via", "127.0.0.1:1", "--listen", "127.0.0.1:0"],
        &["--routes", "missing", "--json"],
        &["--routes", "missing", "--timeout-ms", "7"],
    ] {
        let done = meta_proxy(args).expect_code(2);
        assert!(done.stderr.contains("Usage:"), "{done}");
    }
}

// ---- start

/// The errors in a log, without their times.
fn errors(log: &str) -> Vec<&str> {
    log.lines().filter_map(|line| Some(line.split_once(" ERROR main serve: ")?.1)).collect()
}

#[test]
fn bad_settings_are_all_logged_and_it_does_not_start() {
    let scratch = Scratch::new("start");
    let file =
        scratch.write("bad.yaml", "listen: here\nworkers: 0\nextra: 1\nzookeeper: {root: /r}\n");
    let shown = path_text(&file);
    let done = meta_proxy([shown]).expect_code(1);
    assert_eq!(done.stdout, "");
    assert_eq!(
        errors(&done.stderr),
        [
            format!(r#"{shown}: line 1: listen: want IP:port, got "here""#),
            format!(r#"{shown}: line 2: workers: want 4..=1024, got "0""#),
            format!("{shown}: zookeeper.address: want a list of host:port, got nothing"),
        ]
    );
    assert!(done.stderr.contains(&format!("WARN  main serve: {shown}: line 3: extra:")), "{done}");
}

#[test]
fn bad_routes_are_all_logged_and_it_does_not_start() {
    let scratch = Scratch::new("start");
    let content =
        r#"{"a/b": {"meta_addrs": "h:1"}, "ok": {"meta_addrs": "h:1"}, "t": {"meta_addrs": "h"}}"#;
    let file = scratch.write("routes.json", content);
    let shown = path_text(&file);
    let done = meta_proxy(["--routes", shown, "--listen", "127.0.0.1:0"]).expect_code(1);
    assert_eq!(
        errors(&done.stderr),
        [
            format!(r#"{shown}: line 1: "a/b": want a name of 1-255 of [A-Za-z0-9_.:-]"#),
            format!(r#"{shown}: line 1: "t": meta_addrs: want host:port, got "h""#),
        ]
    );
    let missing = scratch.path().join("missing.json");
    let done = meta_proxy(["--routes", path_text(&missing), "--listen", "127.0.0.1:0"]);
    let done = done.expect_code(1);
    let want = format!("{}: No such file or directory (os error 2)", path_text(&missing));
    assert_eq!(errors(&done.stderr), [want]);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("it is bound").to_string();
    let scratch = Scratch::new("start");
    let file = scratch.write("good.yaml", GOOD);
    let done = meta_proxy([path_text(&file), "--listen", &addr]).expect_code(1);
    let errors = errors(&done.stderr);
    assert_eq!(errors.len(), 1, "{done}");
    assert!(errors[0].contains("Address already in use"), "{done}");
    assert!(errors[0].contains(&addr), "which address? {done}");
}

/// Started by hand, because where the log goes is what is tested.
struct Logged {
    _scratch: Scratch,
    log: PathBuf,
    out: PathBuf,
    config: PathBuf,
}

impl Logged {
    fn new() -> Self {
        let scratch = Scratch::new("logged");
        let config = scratch.write("good.yaml", GOOD);
        let (log, out) = (scratch.path().join("log"), scratch.path().join("out"));
        Logged { _scratch: scratch, log, out, config }
    }

    #[track_caller]
    fn start(&self) -> Process {
        let out = fs::File::create(&self.out).expect("a file in a new directory");
        let mut command = Command::new(BINARY);
        command.arg(&self.config).arg(&self.log);
        command.stdout(out.try_clone().expect("a descriptor")).stderr(out);
        Process::spawn("meta-proxy", &mut command).expect("it can be run")
    }

    fn count(&self, needle: &str) -> usize {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter(|line| line.contains(needle)).count()
    }
}

#[test]
fn the_log_goes_to_the_file_of_the_second_argument() {
    let logged = Logged::new();
    // Also without a ZooKeeper: it starts, and comes to know its routes later.
    for starts in 1..=2 {
        let proxy = logged.start();
        let listens = || logged.count("listening on 127.0.0.1:") == starts;
        eventually("it listens", SOON, listens);
        assert_eq!(proxy.terminate(SOON).code(), Some(0));
        assert_eq!(logged.count(": stopped"), starts, "it adds to the file");
    }
    assert_eq!(fs::read_to_string(&logged.out).expect("the file is there"), "");

    let nowhere = logged.log.join("log");
    let done = meta_proxy([path_text(&logged.config), path_text(&nowhere)]).expect_code(1);
    let want = format!("meta-proxy: log file {}: Not a directory", nowhere.display());
    assert!(done.stderr.starts_with(&want), "{done}");
}

#[test]
fn a_log_that_nobody_reads_any_more_ends_nothing() {
    let meta = meta_with("orders", PRIMARY);
    let mut routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
    let (reader, writer) = io::pipe().expect("a pipe");
    let mut command = Command::new(BINARY);
    command.args(["--listen", "127.0.0.1:0", "--routes"]).arg(routes.path());
    command.stdout(writer.try_clone().expect("a descriptor")).stderr(writer);
    let proxy = Process::spawn("meta-proxy", &mut command).expect("it can be run");
    drop(command); // with our writing end
    // As `| grep -m 1 listening` would; the thread ends with the proxy at the latest.
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
        let addr = lines.find_map(|line| {
            let (_, rest) = line.split_once("listening on ")?;
            rest.split_once(',')?.0.parse::<SocketAddr>().ok()
        });
        drop(lines);
        let _ = tell.send(addr);
    });
    let listening = told.recv_timeout(SOON).expect("a line about listening, or the end");
    let proxy_addr = listening.expect("it tells where it listens");

    // The change is logged by the thread that has to make it; nobody reads that.
    meta.put_table("users", QueryCfgResponse::table(2, 1, addr(PRIMARY)));
    routes.put("users", record("a", &[meta.addr()]));
    let mut client = Client::connect(proxy_addr);
    eventually("it follows its routes", SOON, || client.ask("users").config().err == "ERR_OK");
    drop(client); // which would be waited for
    assert_eq!(proxy.terminate(SOON).code(), Some(0));
}

// ---- stop

#[test]
fn a_stop_answers_what_is_under_way() {
    for (signal, stop) in [("TERM", "{min_age: 0}"), ("INT", "{min_age: 600000, grace: 600000}")] {
        let meta = meta_with("orders", PRIMARY);
        meta.set(Behaviour::Slow(Duration::from_secs(60)));
        let routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
        // Long, so that only the MetaServer decides when it answers.
        let proxy = routes.proxy_with(&format!("query_timeout_ms: 20000\nstop: {stop}"));
        let mut idle = proxy.client();
        let mut client = proxy.client();
        client.send_query(7, "orders");
        eventually("the query is under way", SOON, || meta.calls() > 0);

        proxy.process().signal(signal);
        eventually("nobody new can connect", SOON, || {
            Client::try_connect(proxy.addr(), SOON).is_err()
        });
        assert_eq!(proxy.process().ended(), None, "SIG{signal}: a query is under way");
        meta.set(Behaviour::Leader);
        let answer = client.read_answer();
        assert_eq!(answer.config().partitions[0].primary, Some(addr(PRIMARY)), "SIG{signal}");
        let status = proxy.process().wait(SOON).expect("nothing is left to do");
        assert_eq!(status.code(), Some(0), "SIG{signal}");
        for connection in [&mut client, &mut idle] {
            assert_eq!(connection.try_read_answer(SOON).err(), Some(NoAnswer::Closed));
        }
        proxy.wait_for_log("stopped", SOON);
    }
}

#[test]
fn a_stop_waits_no_longer_than_a_query_may_take() {
    let meta = meta_with("orders", PRIMARY);
    meta.set(Behaviour::Mute);
    let routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
    let proxy = routes.proxy();
    let mut client = proxy.client();
    client.send_query(7, "orders");
    eventually("the query is under way", SOON, || meta.calls() > 0);
    proxy.process().signal("INT");
    let answer = client.read_answer();
    assert_eq!((answer.seq, answer.err.as_deref()), (7, Some("ERR_SERVICE_NOT_ACTIVE")));
    let status = proxy.process().wait(QUERY_TIMEOUT + SOON).expect("the grace has an end");
    assert_eq!(status.code(), Some(0));
}
