//! The transcripts of docs/route.md: each command is run, in order, and must print what stands there.
//!
//! A block that is played begins with "```console played". Its commands start with `$`; a line `# exit code N` ends the output
//! of one that does not end with 0. `<!-- then: EVENT -->` between blocks changes the world. Addresses are those of the world
//! under the names of the document; what differs from run to run (times, ids, zxids, durations) is not compared.
//! `META_PROXY_WRITE_DOCS=1` writes the outputs into the document.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use harness::meta_server::{Behaviour, MetaServer};
use harness::proxy::Proxy;
use harness::wait::eventually;

use crate::route_tool::{Cluster, ROOT, World};
use crate::run::run;
use crate::support::{BINARY, SOON};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/route.md");

/// The world of the document, and its names.
struct Stage {
    world: World,
    spare: MetaServer,
    /// Names of the document and what they are here.
    names: Vec<(String, String)>,
}

impl Stage {
    fn new() -> Self {
        let tables = ["items", "orders", "users"];
        let mut world = World::without_proxies(&[]);
        // The names of the document sort as the addresses do.
        world.c3 =
            Cluster::start_at("c3", ["127.0.0.31:0", "127.0.0.32:0"], "10.0.0.3:34801", &tables);
        world.c4 =
            Cluster::start_at("c4", ["127.0.0.41:0", "127.0.0.42:0"], "10.0.0.4:34801", &tables);
        for table in tables {
            world.zk.create(&format!("{ROOT}/{table}"), world.c3.record());
        }
        let control = ", control_root: /pegasus-control";
        world.proxies = (0..3).map(|_| world.proxy(control)).collect();
        world.proxies.sort_by_key(|proxy| proxy.admin().to_string());
        for table in tables {
            world.all_serve(table, "c3");
        }
        let spare = MetaServer::start_on("127.0.0.33:0".parse().unwrap()).unwrap();
        spare.set(Behaviour::Follower { leader: Some(world.c3.leader.addr()) });
        let zk = world.zk.addr().to_string();
        let settings = format!(
            "zookeeper: {{address: ['{zk}'], root: {ROOT}, control_root: /pegasus-control}}\n"
        );
        world.scratch.write("meta-proxy.yaml", settings);
        let mut names = vec![
            ("zk1:2181", zk),
            ("m1:34601", world.c3.leader.addr().to_string()),
            ("m2:34601", world.c3.follower.addr().to_string()),
            ("m3:34601", spare.addr().to_string()),
            ("m7:34601", world.c4.leader.addr().to_string()),
            ("m8:34601", world.c4.follower.addr().to_string()),
        ];
        let pages: Vec<String> = ["h1:9091", "h2:9091", "h3:9091"].map(str::to_owned).into();
        names.extend(
            pages
                .iter()
                .map(String::as_str)
                .zip(world.proxies.iter().map(|proxy| proxy.admin().to_string())),
        );
        let names = names.into_iter().map(|(name, addr)| (name.to_owned(), addr)).collect();
        let members = || {
            world.zk.exists("/pegasus-control/members")
                && world.zk.children("/pegasus-control/members").len() == 3
        };
        eventually("all are members", SOON, members);
        Stage { world, spare, names }
    }

    /// An event between blocks.
    fn happens(&self, event: &str) {
        let World { zk, c3, c4, proxies, .. } = &self.world;
        match event {
            "c3 is lost" => {
                c3.die();
                self.spare.set(Behaviour::Mute);
            }
            "c3 is back" => {
                c3.revive();
                self.spare.set(Behaviour::Follower { leader: Some(c3.leader.addr()) });
            }
            "c4 has a table that nobody routes, c3 has lost one" => {
                c4.put("carts", 4);
                c3.leader.remove_table("users");
                for table in ["items", "orders"] {
                    c4.leader.remove_table(table);
                }
            }
            "the root is deleted" => {
                zk.delete_all(ROOT);
                let holds = |proxy: &Proxy| {
                    harness::http::get(proxy.admin(), "/routes").contains("root_missing")
                };
                eventually("all hold", SOON, || proxies.iter().all(holds));
            }
            other => panic!("{other}: no such event"),
        }
    }

    /// Runs a line of the document, and returns what it prints under the document's names.
    fn run(&self, line: &str) -> String {
        let mut here = line.to_owned();
        self.names.iter().for_each(|(name, addr)| here = here.replace(name, addr));
        let script = here.replace("meta-proxy route", &format!("{BINARY} route"));
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir(self.world.scratch.path());
        command.env("USER", "ann").env_remove("LOGNAME");
        let done = run(command, 6 * SOON);
        let mut told = format!("{}{}", done.stdout, done.stderr);
        match done.status.code() {
            Some(0) => {}
            code => told += &format!("# exit code {}\n", code.unwrap_or(-1)),
        }
        self.names.iter().for_each(|(name, addr)| told = told.replace(addr.as_str(), name));
        align(&told.replace(&host(), "ops1"))
    }
}

fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

/// Columns of a table as wide as what is in them now.
fn align(text: &str) -> String {
    let is_table = |line: &str| line.contains("  ") && !line.starts_with(['-', '+', ' ']);
    let mut out = String::new();
    let mut rows: Vec<Vec<&str>> = Vec::new();
    let flush = |rows: &mut Vec<Vec<&str>>, out: &mut String| {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.len()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in rows.iter() {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            *out += cells.collect::<Vec<_>>().join("  ").trim_end();
            out.push('\n');
        }
        rows.clear();
    };
    for line in text.lines() {
        if is_table(line) {
            rows.push(line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect());
        } else {
            flush(&mut rows, &mut out);
            out += line;
            out.push('\n');
        }
    }
    flush(&mut rows, &mut out);
    out
}

/// Without what differs from run to run.
fn comparable(text: &str) -> String {
    let mut words = Vec::new();
    for line in text.lines() {
        let mut line: Vec<String> = line.split_whitespace().map(word).collect();
        for at in 1..line.len() {
            if line[at] == "ms" {
                line[at - 1] = "N".to_owned();
            }
        }
        words.push(line.join(" "));
    }
    words.join("\n")
}

fn word(word: &str) -> String {
    let bare = word.trim_end_matches(['.', ',', ';', ')']);
    let end = &word[bare.len()..];
    let is_stamp = |text: &str| text.len() >= 20 && text.starts_with("20") && text.contains('T');
    let kept = match bare.strip_prefix("route-") {
        Some(file) if is_stamp(file) => "FILE",
        None if is_stamp(bare) && bare.ends_with('Z') => "TIME",
        None if is_stamp(bare) => "PLAN",
        None if bare.starts_with("0x") => "ZXID",
        _ => bare,
    };
    format!("{kept}{end}")
}

#[test]
fn the_transcripts_of_the_document_are_true() {
    let document = fs::read_to_string(DOCUMENT).unwrap();
    let stage = Stage::new();
    let (mut played, mut differences) = (String::new(), Vec::new());
    let mut lines = document.lines().peekable();
    let mut commands = 0;
    while let Some(line) = lines.next() {
        played += line;
        played.push('\n');
        if let Some(event) = line.strip_prefix("<!-- then: ") {
            stage.happens(event.strip_suffix(" -->").unwrap());
        }
        if line != "```console played" {
            continue;
        }
        while let Some(command) = lines.next_if(|line| *line != "```") {
            let command = command.strip_prefix("$ ").expect("a played block begins with a command");
            let mut wanted = String::new();
            while let Some(line) = lines.next_if(|line| *line != "```" && !line.starts_with("$ ")) {
                wanted += line;
                wanted.push('\n');
            }
            let told = stage.run(command);
            commands += 1;
            if comparable(&told) != comparable(&wanted) {
                differences.push(format!("$ {command}\n--- document\n{wanted}--- run\n{told}"));
            }
            played += &format!("$ {command}\n{told}");
        }
    }
    if std::env::var_os("META_PROXY_WRITE_DOCS").is_some() {
        fs::write(Path::new(DOCUMENT), played).unwrap();
    }
    assert!(commands > 10, "{commands} commands are played");
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

#[test]
fn words_that_differ_from_run_to_run_are_not_compared() {
    let words: BTreeMap<&str, &str> = [
        ("2026-11-25T12:00:00.123Z", "TIME"),
        ("2026-11-25T12-00-00.123-switch-77", "PLAN"),
        ("0x1f,", "ZXID,"),
        ("route-2026-11-25T12-00-00.123-undo-77.json", "FILE"),
        ("12", "12"),
        ("orders", "orders"),
    ]
    .into();
    for (given, want) in words {
        assert_eq!(word(given), want);
    }
    assert_eq!(comparable("after 12 ms"), comparable("after 7  ms"));
    assert_eq!(align("A  BB\nlong  c\nplain\n"), "A     BB\nlong  c\nplain\n");
}
