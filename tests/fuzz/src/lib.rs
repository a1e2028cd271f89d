//! Looks for bytes that the codecs of the proxy take wrong.
//!
//! ```text
//! tests/golden ─▶ corpus ─▶ mutate (seed) ─▶ target: an invariant of the codecs ─▶ counts by outcome, or the bytes
//! ```
//! A plain program on the stable compiler. One seed always makes the same bytes in the same order.
#![forbid(unsafe_code)]

pub mod corpus;
pub mod mutate;
pub mod targets;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use harness::rng::Rng;

use crate::corpus::Corpus;
use crate::targets::Target;

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    Frames(u64),
    Time(Duration),
}

/// How often each outcome was seen, by target.
pub type Counts = BTreeMap<(&'static str, &'static str), u64>;

/// Bytes of which an invariant does not hold.
#[derive(Debug)]
pub struct Found {
    pub target: &'static str,
    pub frame: u64,
    pub bytes: Vec<u8>,
}

/// Gives mutated frames to the targets in turn. A panic of one ends the run.
pub fn run(targets: &[Target], seed: u64, until: Until) -> Result<Counts, Found> {
    let corpora: Vec<Corpus> = targets.iter().map(|target| (target.corpus)()).collect();
    let mut rng = Rng::new(seed, 0);
    let mut counts = Counts::new();
    let start = Instant::now();
    let mut bytes = Vec::new();
    for frame in 0.. {
        let is_over = match until {
            Until::Frames(frames) => frame >= frames,
            // The clock is not free.
            Until::Time(time) => frame % 256 == 0 && start.elapsed() >= time,
        };
        if is_over {
            break;
        }
        let at = (frame % targets.len() as u64) as usize;
        let target = &targets[at];
        mutate::next(&corpora[at], &mut rng, &mut bytes);
        match catch_unwind(AssertUnwindSafe(|| (target.check)(&bytes))) {
            Ok(outcome) => *counts.entry((target.name, outcome)).or_default() += 1,
            Err(_) => return Err(Found { target: target.name, frame, bytes }),
        }
    }
    Ok(counts)
}
