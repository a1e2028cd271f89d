//! The built program: both ends of a measurement against each other.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

const BENCH: &str = env!("CARGO_BIN_EXE_bench");

#[test]
fn the_stand_in_answers_the_load_generator_and_counts() {
    let mut meta = Command::new(BENCH)
        .args(["meta", "--partitions", "3"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it was built");
    let mut told = BufReader::new(meta.stdout.take().expect("piped")).lines();
    let mut tell = meta.stdin.take().expect("piped");
    let listening = told.next().expect("a line").expect("text");
    let addr = listening.strip_prefix("listening on ").expect("the address");

    let load = Command::new(BENCH)
        .args(["load", addr, "--clients", "5", "--depth", "2", "--seconds", "0.1"])
        .output()
        .expect("it was built");
    let text = String::from_utf8_lossy(&load.stdout);
    assert!(load.status.success() && text.contains(" errors=0 "), "{load:?}");
    let count = text
        .split_whitespace()
        .find_map(|pair| pair.strip_prefix("count="))
        .expect("how many were answered");

    tell.write_all(b"\n").expect("it listens");
    let counters = told.next().expect("a line").expect("text");
    assert!(counters.starts_with(&format!("calls={count} ")), "{count}: {counters}");
    assert!(counters.ends_with(" faults=0"), "{counters}");
    drop(tell);
    assert!(meta.wait().expect("our child").success());
}

#[test]
fn odd_arguments_are_told() {
    for args in [&["all", "--only", "nosuch"][..], &["load"], &["all", "--rate", "0"], &["nosuch"]]
    {
        let output = Command::new(BENCH).args(args).output().expect("it was built");
        assert!(!output.status.success(), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}
