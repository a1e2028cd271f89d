//! A short look for bytes that the codecs take wrong, and whether such bytes would be found.

use std::time::Duration;

use fuzz::targets::{self, Target};
use fuzz::{Counts, Until, corpus, run};
use meta_proxy::wire::frame::Cut;
use meta_proxy::wire::rdsn;

/// Changed by hand now and then, to look elsewhere.
const SEED: u64 = 12;

#[test]
fn twenty_seconds_of_mutated_frames_find_nothing() {
    let counts = run(&targets::ALL, SEED, Until::Time(Duration::from_secs(20)))
        .unwrap_or_else(|found| panic!("seed {SEED}: {found:02x?}"));
    println!("{counts:#?}");
    // All that can become of bytes was seen, or nothing was looked into.
    let outcomes = |target: &str| -> Vec<&str> {
        counts.keys().filter(|(name, _)| *name == target).map(|(_, outcome)| *outcome).collect()
    };
    for (target, want) in [
        (
            "answer",
            &[
                "follower",
                "frame",
                "frame_error",
                "incomplete",
                "leader",
                "len",
                "method",
                "result",
            ][..],
        ),
        (
            "request",
            &[
                "another method",
                "args",
                "crc",
                "header_len",
                "incomplete",
                "magic",
                "message",
                "message_type",
                "meta",
                "query",
                "rdsn_header",
                "too_long",
                "version",
            ][..],
        ),
        (
            "result",
            &[
                "nothing to remove",
                "nothing to remove, unfit",
                "removed",
                "removed, unfit",
                "unexpected",
                "unknown field",
            ],
        ),
        (
            "request, by two",
            &[
                "another method",
                "another protocol",
                "no call",
                "no frame",
                "no query",
                "query",
                "query of no table",
                "read by one",
            ],
        ),
        ("result, by two", &["not read by both", "removed"]),
    ] {
        assert_eq!(outcomes(target), want, "{target}");
    }
}

/// A codec with a fault: it takes a request of which one byte in its header is odd for a good one.
fn faulty(bytes: &[u8]) -> &'static str {
    if let Ok(Cut::Whole(_)) = rdsn::cut(bytes, 64 * 1024) {
        assert_eq!(bytes[131], 0, "partition_hash");
    }
    "read"
}

#[test]
fn a_fault_is_found_and_its_seed_finds_it_again() {
    let target = || [Target { name: "faulty", corpus: corpus::requests, check: faulty }];
    let find = || run(&target(), SEED, Until::Frames(2_000_000)).expect_err("it is found");
    let (first, again) = (find(), find());
    assert_eq!((first.target, first.frame, &first.bytes), ("faulty", again.frame, &again.bytes));
    assert_eq!(first.bytes[..4], *b"RDSN");
}

#[test]
fn the_same_seed_makes_the_same_frames() {
    let counts = |seed| -> Counts { run(&targets::ALL, seed, Until::Frames(20_000)).unwrap() };
    assert_eq!(counts(1), counts(1));
    assert_ne!(counts(1), counts(2));
}
