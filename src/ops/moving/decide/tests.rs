//! A move in a world of two clusters, in which anything may happen at any moment.
//!
//! Clients write to A as long as it takes their writes, and ask for the route when it refuses. A's replica servers hear of
//! the env at their config-syncs, each in its own phase. Partitions ship with a lag, and elect other primaries. Tools look,
//! take a step at once or late, are killed between the two, get signals, and start again; two may run at once.

use proptest::prelude::*;

use super::*;
use crate::ops::admin_move::{Duplication, Replica, Shipping};

const INTERVAL_MS: u64 = 10_000;
const TICK_MS: u64 = 400;
/// A request is carried out within this many ticks, or never.
const LATE_TICKS: u64 = 12;
const SERVERS: usize = 3;
const PARTITIONS: usize = 3;

#[derive(Clone, Debug)]
enum Event {
    /// This tool looks, and takes its step at once.
    Run(usize),
    /// It looks, and takes its step when it runs next.
    Late(usize),
    /// It looks, and gets no answer to its request, which is carried out some ticks later.
    Lose(usize, u64),
    Kill(usize),
    /// It is killed while its request is under way, which is carried out some ticks later.
    KillUnderWay(usize, u64),
    Signal(usize),
    /// Somebody removes A->B, and makes it anew.
    Remake,
    /// Somebody deletes the env.
    Open,
    /// A server's next config-sync fails. The clock alone does not notice that.
    MissSync(usize),
    /// ZooKeeper, or a leader, does not answer for some ticks.
    Lost(u64),
    /// Another primary is elected, on another server.
    Elect(usize),
    /// A partition ships nothing for some ticks.
    Lag(usize, u64),
    Nothing,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        30 => (0..2usize).prop_map(Event::Run),
        30 => Just(Event::Run(0)),
        4 => (0..2usize).prop_map(Event::Late),
        3 => ((0..2usize), 1..LATE_TICKS).prop_map(|(tool, ticks)| Event::Lose(tool, ticks)),
        2 => (0..2usize).prop_map(Event::Kill),
        2 => ((0..2usize), 1..LATE_TICKS).prop_map(|(tool, ticks)| Event::KillUnderWay(tool, ticks)),
        1 => Just(Event::Remake),
        1 => Just(Event::Open),
        1 => (0..SERVERS).prop_map(Event::MissSync),
        3 => (0..2usize).prop_map(Event::Signal),
        1 => (1..40u64).prop_map(Event::Lost),
        2 => (0..PARTITIONS).prop_map(Event::Elect),
        3 => ((0..PARTITIONS), 1..60u64).prop_map(|(partition, ticks)| Event::Lag(partition, ticks)),
        10 => Just(Event::Nothing),
    ]
}

/// How a tool learns what is unsent.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    Pages,
    /// The MetaServer's list, which shows as committed what it shows as confirmed.
    List,
}

#[derive(Clone, Debug, Default)]
struct Part {
    server: usize,
    ballot: i64,
    committed: i64,
    /// A write is committed a tick after it was prepared.
    prepared: i64,
    shipped: i64,
    /// Mutations that are forgotten, as the duplication was made anew.
    skipped: i64,
    lags_until: u64,
}

const IDS: Ids = Ids { old_app: 1, new_app: 50, duplication: 1 };
const VERSION: i32 = 7;

struct Tool {
    decider: Decider,
    pending: Option<Step>,
}

struct World {
    now_ms: u64,
    tick: u64,
    source: Source,
    env: Option<&'static str>,
    /// The answer to a request was lost.
    unanswered: bool,
    /// Each server's knowledge of it.
    in_force: [Option<&'static str>; SERVERS],
    parts: Vec<Part>,
    /// A tick ago. A look reads the decrees first, and the rest a tick later.
    before: Vec<Part>,
    duplicates: bool,
    duplication: i32,
    reverse: bool,
    /// Requests of tools that were killed, and when they are carried out.
    under_way: Vec<(u64, Step)>,
    /// The env was deleted by hand, and may be in force at no primary any more.
    was_opened: bool,
    at_new: bool,
    version: i32,
    lost_until: u64,
    proxies_until: u64,
    tools: [Option<Tool>; 2],
    journal: Option<bool>,
    /// Servers whose next config-sync fails.
    misses: [bool; SERVERS],
    has_missed: bool,
    /// Clients write nothing.
    is_quiet: bool,
    keeps_undo: bool,
    proof: Proof,
    is_done: bool,
    is_backed_out: bool,
    /// A fault that must not happen.
    broken: Option<String>,
}

impl World {
    fn new(keeps_undo: bool, source: Source) -> Self {
        let part = |server| Part { server, ballot: 1, ..Part::default() };
        World {
            now_ms: 0,
            tick: 0,
            source,
            env: None,
            unanswered: false,
            in_force: [None; SERVERS],
            parts: (0..PARTITIONS).map(part).collect(),
            before: (0..PARTITIONS).map(part).collect(),
            duplicates: true,
            duplication: 1,
            reverse: false,
            under_way: Vec::new(),
            was_opened: false,
            at_new: false,
            version: VERSION,
            lost_until: 0,
            proxies_until: 0,
            tools: [None, None],
            journal: Some(false),
            keeps_undo,
            misses: [false; SERVERS],
            has_missed: false,
            is_quiet: false,
            proof: Proof::default(),
            is_done: false,
            is_backed_out: false,
            broken: None,
        }
    }

    /// A server that becomes a primary has heard of the env by the time that the route is written.
    fn hears_in_time(&self) -> bool {
        self.proof != Proof::Probe && !self.has_missed
    }

    fn break_with(&mut self, why: String) {
        self.broken.get_or_insert(format!("{} ms: {why}", self.now_ms));
    }

    fn pass(&mut self) {
        self.tick += 1;
        self.now_ms += TICK_MS;
        self.before = self.parts.clone();
        let under_way = std::mem::take(&mut self.under_way);
        let (due, later): (Vec<_>, _) =
            under_way.into_iter().partition(|(tick, _)| *tick <= self.tick);
        self.under_way = later;
        for (_, step) in due {
            self.carry_out(&step);
        }
        for index in 0..PARTITIONS {
            let part = &mut self.parts[index];
            part.committed = part.prepared;
            // Clients pause now and then.
            let writes = !self.is_quiet && !(self.tick + index as u64).is_multiple_of(3);
            if writes && self.in_force[part.server].is_none() {
                part.prepared += 1;
                // A probe asks primaries. A server that has not heard of the env may become one. Its writes are shipped.
                if self.at_new && !self.was_opened && self.hears_in_time() {
                    self.break_with(format!("A takes a write of partition {index}, B has clients"));
                }
            }
            let part = &mut self.parts[index];
            // A denied table of B gets none; here it never is.
            if self.tick >= part.lags_until && self.duplicates {
                part.shipped = part.committed.min(part.shipped + 2);
            }
        }
        let period = INTERVAL_MS / TICK_MS;
        for server in 0..SERVERS {
            if (self.tick + server as u64 * 7).is_multiple_of(period) {
                match std::mem::take(&mut self.misses[server]) {
                    true => {}
                    false => self.in_force[server] = self.env,
                }
            }
        }
    }

    fn seen(&self) -> Seen {
        let shipping = |index: usize| Shipping {
            is_duplicating: true,
            unsent: match self.source {
                Source::Pages => self.parts[index].committed - self.parts[index].shipped,
                Source::List => 0,
            },
        };
        let partition = |(index, part): (usize, &Part)| Partition {
            server: ([127, 0, 0, 1], part.server as u16 + 1).into(),
            replica: Replica {
                app_id: 1,
                index: index as i32,
                ballot: part.ballot,
                is_primary: true,
                committed: part.committed,
                prepared: part.prepared,
            },
            shipping: self.duplicates.then(|| shipping(index)),
            refuses: (self.proof != Proof::Clock).then(|| self.in_force[part.server].is_some()),
        };
        let duplication = |id| Duplication { id, status: 3, ..Duplication::default() };
        let partitions: Vec<Partition> = self.before.iter().enumerate().map(partition).collect();
        let reverse = if self.reverse { partitions.clone() } else { Vec::new() };
        let route = match self.at_new {
            true => Route::New,
            false => Route::Old { version: self.version },
        };
        Seen {
            now_ms: self.now_ms.saturating_sub(TICK_MS),
            end_ms: self.now_ms,
            route,
            old: Side {
                app_id: Some(IDS.old_app),
                denies: self.env.map(str::to_owned),
                duplication: self.duplicates.then(|| duplication(self.duplication)),
            },
            new: Side {
                app_id: Some(IDS.new_app),
                denies: None,
                duplication: self.reverse.then(|| duplication(2)),
            },
            partitions,
            reverse,
        }
    }

    /// `None`: there is nothing to do for it any more.
    fn tool(&mut self, number: usize) -> Option<Tool> {
        if let Some(tool) = self.tools[number].take() {
            return Some(tool);
        }
        let is_back = self.journal?;
        let terms = Terms {
            interval_ms: INTERVAL_MS,
            max_refused_ms: least_max_refused_ms(INTERVAL_MS, true),
            keeps_undo: self.keeps_undo,
            made_undo: self.keeps_undo,
            proof: self.proof,
            may_come_late: self.unanswered,
            late_ms: LATE_TICKS * TICK_MS,
            version: VERSION,
            ids: IDS,
        };
        Some(Tool { decider: Decider::new(terms, is_back), pending: None })
    }

    fn run(&mut self, number: usize, is_late: bool) {
        if self.tick < self.lost_until {
            return;
        }
        let Some(mut tool) = self.tool(number) else { return };
        let step = match tool.pending.take() {
            Some(step) => step,
            None => {
                tool.decider.is_back |= self.journal != Some(false);
                tool.decider.terms.may_come_late |= self.unanswered;
                tool.decider.next(&self.seen())
            }
        };
        if is_late {
            tool.pending = Some(step);
            self.tools[number] = Some(tool);
            return;
        }
        let ends = self.act(&step, &mut tool.decider);
        self.tools[number] = (!ends).then_some(tool);
    }

    /// Whether it ends.
    fn act(&mut self, step: &Step, decider: &mut Decider) -> bool {
        match step {
            Step::AwaitProxies if self.tick >= self.proxies_until => decider.proxies_serve(),
            Step::GoBack(_) => decider.is_back = true,
            Step::Done => {
                (self.is_done, self.journal) = (true, None);
                return true;
            }
            Step::BackedOut => {
                (self.is_backed_out, self.journal) = (true, None);
                return true;
            }
            Step::Halt(_) => return true,
            _ if !self.is_sent(step) => {}
            _ => {
                let version = self.version;
                self.carry_out(step);
                if self.version > version && matches!(step, Step::PinRoute(_)) {
                    decider.pinned(self.version, self.now_ms);
                }
            }
        }
        false
    }

    /// Writes the journal where the step does so first. It fails if it changed since the tool looked.
    fn is_sent(&mut self, step: &Step) -> bool {
        match step {
            Step::AddReverse | Step::DenyWrites => self.journal == Some(false),
            Step::WriteRoute(_) => self.env.is_some(),
            Step::PinRoute(_) | Step::RemoveReverse(_) => {
                self.journal = self.journal.map(|_| true);
                true
            }
            _ => true,
        }
    }

    /// A request arrives.
    fn carry_out(&mut self, step: &Step) {
        match step {
            Step::AddReverse => self.reverse = true,
            Step::DenyWrites => self.env = Some(DENY_WRITES),
            Step::DenyAll => self.env = Some(DENY_ALL),
            Step::WriteRoute(version) if *version == self.version && !self.at_new => {
                (self.at_new, self.version) = (true, self.version + 1);
                self.proxies_until = self.tick + 5;
                for index in 0..PARTITIONS {
                    let Part { prepared, shipped, skipped, server, .. } = self.parts[index].clone();
                    // A hand may delete the env while the write of the route is under way.
                    let is_open = self.hears_in_time() && self.in_force[server].is_none();
                    let is_bad = (prepared != shipped || is_open) && !self.was_opened;
                    if is_bad || skipped > 0 {
                        self.break_with(format!(
                            "the route is written, partition {index} has {prepared}, B has {shipped} but for {skipped}"
                        ));
                    }
                }
                if self.keeps_undo && !self.reverse {
                    self.break_with("B has clients and does not duplicate".to_owned());
                }
            }
            Step::RemoveDuplication(_) => {
                if !self.at_new {
                    self.break_with("A->B ends while the route is at A".to_owned());
                }
                let unsent = self.parts.iter().any(|part| part.prepared > part.shipped);
                if unsent && !self.was_opened {
                    self.break_with("A->B ends before all is shipped".to_owned());
                }
                self.duplicates = false;
            }
            Step::PinRoute(version) if *version == self.version && !self.at_new => {
                self.version += 1;
            }
            Step::Open => {
                if self.at_new {
                    self.break_with("A is opened while B has clients".to_owned());
                }
                self.env = None;
            }
            Step::RemoveReverse(_) => self.reverse = false,
            _ => {}
        }
    }

    fn hear(&mut self, event: &Event) {
        match *event {
            Event::Run(number) => self.run(number, false),
            Event::Late(number) => self.run(number, true),
            Event::Lose(number, ticks) => {
                self.run(number, true);
                if let Some(step) = self.tools[number].as_mut().and_then(|tool| tool.pending.take())
                    && is_request(&step)
                    && self.is_sent(&step)
                {
                    self.under_way.push((self.tick + ticks, step));
                    self.unanswered = true;
                }
            }
            Event::Kill(number) => self.tools[number] = None,
            Event::KillUnderWay(number, ticks) => {
                if let Some(step) = self.tools[number].take().and_then(|tool| tool.pending)
                    && is_request(&step)
                    && self.is_sent(&step)
                {
                    self.under_way.push((self.tick + ticks, step));
                    self.unanswered = true;
                }
            }
            Event::Remake => {
                self.duplication += 1;
                for part in &mut self.parts {
                    part.skipped += part.committed - part.shipped;
                    part.shipped = part.committed;
                }
            }
            Event::Open if self.journal.is_some() => {
                // No tool stands still from before it to after it.
                self.tools.iter_mut().flatten().for_each(|tool| tool.pending = None);
                (self.env, self.was_opened) = (None, true);
            }
            Event::Signal(number) => {
                if let Some(tool) = &mut self.tools[number] {
                    tool.decider.is_back = true;
                }
            }
            Event::Lost(ticks) => self.lost_until = self.tick + ticks,
            Event::Elect(index) => {
                let part = &mut self.parts[index];
                (part.server, part.ballot) = ((part.server + 1) % SERVERS, part.ballot + 1);
            }
            Event::Lag(index, ticks) => self.parts[index].lags_until = self.tick + ticks,
            Event::MissSync(server) if self.proof != Proof::Clock => {
                self.misses[server] = true;
                self.has_missed = true;
            }
            Event::Open | Event::MissSync(_) | Event::Nothing => {}
        }
    }

    /// Whatever happened, and then one tool that is left alone: how it ends.
    fn play(&mut self, events: &[Event]) {
        for event in events {
            self.pass();
            self.hear(event);
        }
        self.tools = [None, None];
        for _ in 0..4 * INTERVAL_MS / TICK_MS + 200 {
            if self.journal.is_none() {
                break;
            }
            self.pass();
            self.run(0, false);
        }
        (0..=LATE_TICKS).for_each(|_| self.pass());
    }

    fn check(&self) -> Result<(), String> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        if self.journal.is_some() {
            return Err(format!("it does not end: {:?}, route at B: {}", self.env, self.at_new));
        }
        match (self.at_new, self.env) {
            (true, Some(DENY_ALL)) if !self.duplicates => Ok(()),
            (false, None) if self.reverse => Err("the duplication back is left behind".to_owned()),
            (false, None) => Ok(()),
            other => Err(format!("it ends with {other:?}")),
        }
    }
}

fn is_request(step: &Step) -> bool {
    !matches!(step, Step::Done | Step::BackedOut | Step::GoBack(_) | Step::Halt(_))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn no_order_of_events_loses_a_write_or_leaves_a_closed_unsaid(
        events in prop::collection::vec(event(), 0..250), keeps_undo in any::<bool>(),
        proof in prop_oneof![Just(Proof::ClockAndProbe), Just(Proof::Probe), Just(Proof::Clock)],
    ) {
        let mut world = World { proof, ..World::new(keeps_undo, Source::Pages) };
        world.play(&events);
        prop_assert_eq!(world.check(), Ok(()));
    }
}

#[test]
fn one_that_trusts_the_list_of_the_metaserver_loses_writes_and_is_found_out() {
    let lags = |source| {
        let mut world = World::new(false, source);
        let mut events = vec![Event::Lag(1, 85)];
        events.extend(vec![Event::Run(0); 200]);
        world.play(&events);
        (world.check(), world.is_done)
    };
    let (found, _) = lags(Source::List);
    assert!(found.is_err_and(|why| why.contains("the route is written")));
    assert_eq!(lags(Source::Pages), (Ok(()), false), "the lag is longer than the limit");
}

#[test]
fn a_move_that_nothing_disturbs_takes_its_steps_in_order() {
    let mut world = World::new(true, Source::Pages);
    let mut steps: Vec<String> = Vec::new();
    let mut tool = world.tool(0).unwrap();
    while !world.is_done {
        world.pass();
        let step = tool.decider.next(&world.seen());
        let name = format!("{step:?}");
        let name = name.split('(').next().unwrap().to_owned();
        if steps.last() != Some(&name) {
            steps.push(name);
        }
        world.act(&step, &mut tool.decider);
        assert!(world.tick < 1_000, "{steps:?}");
    }
    let want = [
        "AddReverse",
        "DenyWrites",
        "AwaitForce",
        "WriteRoute",
        "AwaitProxies",
        "DenyAll",
        "AwaitStill",
        "RemoveDuplication",
        "Done",
    ];
    assert_eq!(steps, want);
    assert_eq!(world.check(), Ok(()));
}

#[test]
fn one_that_probes_does_not_wait_for_the_interval() {
    let mut world = World { proof: Proof::Probe, ..World::new(false, Source::Pages) };
    let (mut tool, mut looks) = (world.tool(0).unwrap(), 0);
    while !world.at_new {
        world.pass();
        let step = tool.decider.next(&world.seen());
        looks += u32::from(world.in_force.iter().all(Option::is_some));
        world.act(&step, &mut tool.decider);
        assert!(world.tick < 1_000);
    }
    assert_eq!(world.broken, None);
    assert!((3..6).contains(&looks), "looks since the last server heard of the env: {looks}");
}

#[test]
fn a_config_sync_that_fails_is_noticed_by_a_probe_and_not_by_the_clock() {
    let moves = |proof| {
        let mut world = World { proof, ..World::new(false, Source::Pages) };
        (world.misses, world.is_quiet) = ([true, false, false], true);
        world.play(&vec![Event::Run(0); 200]);
        (world.check(), world.is_done)
    };
    assert_eq!(moves(Proof::ClockAndProbe), (Ok(()), true));
    let (clock, _) = moves(Proof::Clock);
    assert!(clock.as_ref().is_err_and(|why| why.contains("the route is written")), "{clock:?}");
}

#[test]
fn what_stands_in_the_way_before_the_route_is_written_takes_everything_back() {
    type Change = fn(&mut Seen);
    let cases: [(&str, Change); 11] = [
        ("the duplication is gone", |seen| seen.old.duplication = None),
        ("it is paused", |seen| seen.old.duplication.as_mut().unwrap().status = 4),
        ("it leaves out what it cannot ship", |seen| {
            seen.old.duplication.as_mut().unwrap().skips = true;
        }),
        ("it was made anew", |seen| seen.old.duplication.as_mut().unwrap().id = 2),
        ("A's table was dropped", |seen| seen.old = Side::default()),
        ("A's table was made anew", |seen| seen.old.app_id = Some(9)),
        ("B's table was dropped", |seen| seen.new = Side::default()),
        ("B's table was made anew", |seen| seen.new.app_id = Some(9)),
        ("B denies its clients", |seen| seen.new.denies = Some(DENY_ALL.to_owned())),
        ("somebody wrote the route", |seen| seen.route = Route::Old { version: 8 }),
        ("another env is there", |seen| seen.old.denies = Some("timeout*all".to_owned())),
    ];
    let world = World::new(false, Source::Pages);
    for (why, change) in cases {
        let mut seen = world.seen();
        change(&mut seen);
        let step = World::new(false, Source::Pages).tool(0).unwrap().decider.next(&seen);
        assert!(matches!(step, Step::GoBack(_)), "{why}: {step:?}");
    }
    let mut seen = world.seen();
    seen.route = Route::Elsewhere("c9".into());
    let step = World::new(false, Source::Pages).tool(0).unwrap().decider.next(&seen);
    assert!(matches!(step, Step::Halt(_)), "{step:?}");
}

#[test]
fn an_env_that_somebody_deletes_is_not_set_again_and_again() {
    let mut world = World::new(false, Source::Pages);
    let mut tool = world.tool(0).unwrap();
    assert_eq!(tool.decider.next(&world.seen()), Step::DenyWrites);
    world.act(&Step::DenyWrites, &mut tool.decider);
    assert!(matches!(tool.decider.next(&world.seen()), Step::AwaitForce(_)));
    world.env = None;
    assert!(matches!(tool.decider.next(&world.seen()), Step::GoBack(_)));
}

#[test]
fn a_duplication_back_that_never_runs_is_given_up() {
    let mut world = World::new(true, Source::Pages);
    let mut tool = world.tool(0).unwrap();
    world.reverse = true;
    let mut seen = world.seen();
    seen.reverse[0].shipping = None;
    assert_eq!(tool.decider.next(&seen), Step::AwaitReverse);
    seen.now_ms += tool.decider.terms.max_refused_ms + 1;
    assert!(matches!(tool.decider.next(&seen), Step::GoBack(_)));
}

#[test]
fn a_request_that_comes_late_is_waited_for_before_all_is_back() {
    let mut world = World::new(false, Source::Pages);
    let mut tool = world.tool(0).unwrap();
    tool.decider.is_back = true;
    tool.decider.terms.may_come_late = true;
    for want in ["PinRoute", "AwaitLate"] {
        let step = tool.decider.next(&world.seen());
        assert!(format!("{step:?}").starts_with(want), "{step:?}");
        world.act(&step, &mut tool.decider);
    }
    world.env = Some(DENY_WRITES);
    assert_eq!(tool.decider.next(&world.seen()), Step::Open, "it came");
}

#[test]
fn after_the_route_only_a_table_that_b_serves_ends_well() {
    type Change = fn(&mut Seen);
    type Want = fn(&Step) -> bool;
    let cases: [(&str, Change, Want); 4] = [
        ("A's table was dropped", |seen| seen.old = Side::default(), |step| *step == Step::Done),
        (
            "A denies by another value",
            |seen| seen.old.denies = Some("timeout*all".into()),
            |step| *step == Step::DenyAll,
        ),
        (
            "B's table was dropped",
            |seen| seen.new = Side::default(),
            |step| matches!(step, Step::Halt(_)),
        ),
        (
            "B denies its clients",
            |seen| seen.new.denies = Some(DENY_ALL.into()),
            |step| matches!(step, Step::Halt(_)),
        ),
    ];
    for (why, change, want) in cases {
        let mut world = World::new(false, Source::Pages);
        (world.at_new, world.env, world.in_force) = (true, Some(DENY_ALL), [Some(DENY_ALL); 3]);
        let mut tool = world.tool(0).unwrap();
        tool.decider.proxies_serve();
        let mut step = Step::AwaitDrained;
        for _ in 0..100 {
            world.pass();
            let mut seen = world.seen();
            change(&mut seen);
            step = tool.decider.next(&seen);
        }
        assert!(want(&step), "{why}: {step:?}");
    }
}

#[test]
fn a_route_at_b_while_a_takes_writes_closes_a_at_once() {
    let mut world = World::new(false, Source::Pages);
    world.at_new = true;
    let mut tool = world.tool(0).unwrap();
    assert_eq!(tool.decider.next(&world.seen()), Step::DenyAll);
    tool.decider.is_back = true;
    assert_eq!(tool.decider.next(&world.seen()), Step::DenyAll, "there is no way back any more");
}
