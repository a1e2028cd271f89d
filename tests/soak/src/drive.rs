//! The course of a run: everything starts, all tables are asked for once, then fault upon fault, each made up for before
//! the next.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::aftermath::{self, Holdings};
use crate::arguments::Options;
use crate::crowd::{self, Judged, Reach};
use crate::faults::{Fault, LAST, Scene};
use crate::observer;
use crate::weather::Bounds;
use crate::world::World;
use harness::rng::Rng;

/// Calm before the next fault, in which the bounds of calm are tried.
const REST: Duration = Duration::from_secs(1);
/// In a shorter run there is no time for faults that take long, unless it is for one of them alone.
const LONG_RUN: Duration = Duration::from_secs(300);
/// Time that most faults take: one that would end after the run is not begun.
const FAULT_TAKES: Duration = Duration::from_secs(15);
/// After each fault another client moves one table of this many.
const OBSERVER_STEP: usize = 50;
/// Names that never become tables, to a hundred that may.
const NEVER_PERCENT: usize = 10;

/// Streams of decisions, each thread its own.
const DRIVER_STREAM: u64 = 1;
const WRITER_STREAM: u64 = 1_000;
const ASKER_STREAM: u64 = 2_000;

/// A whole run, told on stdout; or the first thing that was wrong.
pub fn soak(options: &Options) -> Result<(), String> {
    let Options { tables, proxies, time, slack, .. } = options;
    let sessions = options.sessions();
    println!(
        "tables={tables} proxies={proxies} sessions={sessions:?} time={time:?} proxy={}",
        options.proxy.display()
    );
    let Bounds { calm, recovery, answer, cached } = options.bounds();
    println!(
        "bounds: {calm:?} in calm, {recovery:?} after trouble, {answer:?} for an answer, {cached:?} for one of a \
         cached table, of it slack {slack:?}"
    );
    println!("tolerated after a fault: {}", aftermath::tolerance());
    run(options)
}

fn run(options: &Options) -> Result<(), String> {
    let never = (options.tables * NEVER_PERCENT).div_ceil(100);
    let names = (0..options.tables).map(|n| format!("table{n}"));
    let names = names.chain((0..never).map(|n| format!("never{n}"))).collect();
    let mut world = World::start(names, options.tables, options.sessions(), options.bounds(), "");
    world.keep_states();
    world.start_proxies(&options.proxy, options.proxies);
    let world = &world;
    let reach = &Reach::default();
    let judged = thread::scope(|scope| {
        let (answers, inbox) = mpsc::channel();
        let judge = scope.spawn(move || crowd::judge(world, &inbox));
        let over = Over(world);
        let decisions = |stream| Rng::new(options.seed, stream);
        if warm_up(world, decisions(DRIVER_STREAM)) {
            world.tell_judge(answers);
            for server in 0..world.relays.len() {
                scope.spawn(move || crowd::probe(world, server, reach));
            }
            scope.spawn(move || crowd::beat(world));
            for writer in 0..crowd::WRITERS {
                let rng = decisions(WRITER_STREAM + writer as u64);
                scope.spawn(move || crowd::write(world, writer, rng));
            }
            for asker in 0..options.proxies * crowd::ASKERS {
                let rng = decisions(ASKER_STREAM + asker as u64);
                scope.spawn(move || crowd::ask(world, asker % options.proxies, rng));
            }
            fault_upon_fault(world, options, decisions(DRIVER_STREAM + 1));
        }
        drop(over);
        judge.join().unwrap_or_default()
    });
    tell(world, &judged);
    world.end.failure().map_or(Ok(()), Err)
}

/// Ends the other threads when the driver has ended, also by a panic: they would be waited for without end.
struct Over<'a>(&'a World);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.end.set();
        self.0.dismiss_judge();
    }
}

/// Creates all tables and asks every proxy for each. False: that failed.
fn warm_up(world: &World, mut rng: Rng) -> bool {
    let _guard = world.end.guard("driver");
    for table in 0..world.writable() {
        world.write(table, |history| crowd::another_cluster(history, &mut rng));
    }
    aftermath::await_current(world).is_some()
}

fn fault_upon_fault(world: &World, options: &Options, mut rng: Rng) {
    let _guard = world.end.guard("driver");
    let mut took: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    world.hold(REST);
    let before = Holdings::of(world);
    world.say(&format!("all tables are known to all proxies; {before}"));
    let last_begin = world.now() + options.time.saturating_sub(FAULT_TAKES);
    let mut deck: Vec<&Fault> = Vec::new();
    while !world.end.is_over() {
        let is_last = world.now() > last_begin && !took.is_empty();
        if deck.is_empty() {
            deck.clone_from(&options.faults);
            deck.retain(|fault| {
                !fault.is_long || options.time >= LONG_RUN || options.faults.len() == 1
            });
            rng.shuffle(&mut deck);
        }
        let fault = if is_last { &LAST } else { deck.pop().expect("there is one fault at least") };
        took.entry(fault.name)
            .or_default()
            .extend(suffer(world, fault, options, &before, &mut rng));
        if is_last {
            break;
        }
    }
    for (name, took) in took {
        let worst = took.iter().max().copied().unwrap_or_default();
        println!("fault={name} looks={} current_after_max={worst:.3?}", took.len());
    }
}

/// One fault and its aftermath; after each blow and at the end, the time until every route was current.
fn suffer(
    world: &World,
    fault: &Fault,
    options: &Options,
    before: &Holdings,
    rng: &mut Rng,
) -> Vec<Duration> {
    world.set_fault(fault.name);
    let mut scene = Scene { world, rng: &mut *rng, took: Vec::new() };
    (fault.inflict)(&mut scene);
    let mut took = scene.took;
    world.say(&format!("fault={} is over", fault.name));
    let Some(current) = aftermath::await_current(world) else { return took };
    took.push(current);
    let now =
        if options.untidy { Holdings::of(world) } else { aftermath::await_tidy(world, before) };
    world.say(&format!("fault={} every route is current after {current:.3?}; {now}", fault.name));
    let server = rng.below(world.relays.len());
    observer::read_and_write(world, server, OBSERVER_STEP, rng);
    // The next must not hide what this one has done.
    let bounds = world.weather().bounds;
    let calm_at = world.weather().calm_since().unwrap_or(world.now()) + bounds.recovery;
    world.hold(calm_at.saturating_sub(world.now()) + REST);
    took
}

fn tell(world: &World, judged: &Judged) {
    let writes: usize =
        (0..world.writable()).map(|table| world.history(table).versions().len() - 1).sum();
    let Judged { answers, in_trouble, oldest_in_calm, oldest_in_trouble, .. } = judged;
    let Judged { slowest_cached, slowest_other, .. } = judged;
    println!("lags_noticed={}", world.lags_noticed());
    println!(
        "answers={answers} in_trouble={in_trouble} writes={writes} oldest_in_calm={oldest_in_calm:.3?} \
         oldest_in_trouble={oldest_in_trouble:.3?} slowest_cached={slowest_cached:.3?} slowest_other={slowest_other:.3?}"
    );
}
