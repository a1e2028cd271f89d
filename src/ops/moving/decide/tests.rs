//! A move in a world of two clusters, in which anything may happen at any moment.
//!
//! Clients write to A as long as it takes their writes, and ask for the route when it refuses. A's replica servers hear of
//! the env at their config-syncs, each in its own phase. Partitions ship with a lag, and elect other primaries. Tools look,
//! take a step at once or late, are killed between the two, get signals, and start again; two may run at once.

use proptest::prelude::*;

use super::*;
use crate::wire::admin_move::{Duplication, Replica, Shipping};

const INTERVAL_MS: u64 = 10_000;
const TICK_MS: u64 = 400;
const SERVERS: usize = 3;
const PARTITIONS: usize = 3;

#[derive(Clone, Debug)]
enum Event {
    /// This tool looks, and takes its step at once.
    Run(usize),
    /// It looks, and takes its step when it runs next.
    Late(usize),
    Kill(usize),
    Signal(usize),
    /// ZooKeeper, or a leader, cannot be asked for so many ticks.
    Lost(u64),
    /// Another primary is elected, on another server.
    Elect(usize),
    /// A partition ships nothing for so many ticks.
    Lag(usize, u64),
    Nothing,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        30 => (0..2usize).prop_map(Event::Run),
        30 => Just(Event::Run(0)),
        4 => (0..2usize).prop_map(Event::Late),
        2 => (0..2usize).prop_map(Event::Kill),
        1 => (0..2usize).prop_map(Event::Signal),
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
    shipped: i64,
    lags_until: u64,
}

struct Tool {
    decider: Decider,
    pending: Option<Step>,
}

struct World {
    now_ms: u64,
    tick: u64,
    source: Source,
    env: Option<&'static str>,
    /// The journal says that it was set.
    was_denied: bool,
    /// Each server's knowledge of it.
    in_force: [Option<&'static str>; SERVERS],
    parts: Vec<Part>,
    duplicates: bool,
    reverse: bool,
    at_new: bool,
    version: i32,
    lost_until: u64,
    proxies_until: u64,
    tools: [Option<Tool>; 2],
    journal: Option<bool>,
    keeps_undo: bool,
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
            was_denied: false,
            in_force: [None; SERVERS],
            parts: (0..PARTITIONS).map(part).collect(),
            duplicates: true,
            reverse: false,
            at_new: false,
            version: 7,
            lost_until: 0,
            proxies_until: 0,
            tools: [None, None],
            journal: Some(false),
            keeps_undo,
            is_done: false,
            is_backed_out: false,
            broken: None,
        }
    }

    fn break_with(&mut self, why: String) {
        self.broken.get_or_insert(format!("{} ms: {why}", self.now_ms));
    }

    fn pass(&mut self) {
        self.tick += 1;
        self.now_ms += TICK_MS;
        let period = INTERVAL_MS / TICK_MS;
        for server in 0..SERVERS {
            if (self.tick + server as u64 * 7).is_multiple_of(period) {
                self.in_force[server] = self.env;
            }
        }
        for index in 0..PARTITIONS {
            let part = &mut self.parts[index];
            if self.in_force[part.server].is_none() {
                part.committed += 1;
                if self.at_new {
                    self.break_with(format!("A takes a write of partition {index}, B has clients"));
                }
            }
            let part = &mut self.parts[index];
            // A denied table of B gets none; here it never is.
            if self.tick >= part.lags_until && self.duplicates {
                part.shipped = part.committed.min(part.shipped + 2);
            }
        }
    }

    fn seen(&self) -> Seen {
        let shipping = |part: &Part| Shipping {
            is_duplicating: true,
            unsent: match self.source {
                Source::Pages => part.committed - part.shipped,
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
                prepared: part.committed,
            },
            shipping: self.duplicates.then(|| shipping(part)),
        };
        let duplication = |id| Duplication { id, status: 3, ..Duplication::default() };
        let partitions: Vec<Partition> = self.parts.iter().enumerate().map(partition).collect();
        let reverse = if self.reverse { partitions.clone() } else { Vec::new() };
        let route = match self.at_new {
            true => Route::New,
            false => Route::Old { version: self.version },
        };
        Seen {
            now_ms: self.now_ms,
            end_ms: self.now_ms,
            route,
            old: Side {
                denies: self.env.map(str::to_owned),
                duplication: self.duplicates.then(|| duplication(1)),
            },
            new: Side { denies: None, duplication: self.reverse.then(|| duplication(2)) },
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
            may_be_denied: self.was_denied,
            version: self.version,
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
            None => tool.decider.next(&self.seen()),
        };
        if is_late {
            tool.pending = Some(step);
            self.tools[number] = Some(tool);
            return;
        }
        let ends = self.act(&step, &mut tool.decider);
        self.tools[number] = (!ends).then_some(tool);
    }

    fn act(&mut self, step: &Step, decider: &mut Decider) -> bool {
        match step {
            // The journal is written first, which fails where it is gone.
            Step::AddReverse if self.journal.is_some() => self.reverse = true,
            Step::DenyWrites if self.journal.is_some() => {
                (self.env, self.was_denied) = (Some(DENY_WRITES), true);
                decider.terms.may_be_denied = true;
            }
            Step::DenyAll => self.env = Some(DENY_ALL),
            Step::WriteRoute(version) if *version == self.version && !self.at_new => {
                (self.at_new, self.version) = (true, self.version + 1);
                self.proxies_until = self.tick + 5;
                for index in 0..PARTITIONS {
                    let Part { committed, shipped, server, .. } = self.parts[index].clone();
                    if committed != shipped || self.in_force[server].is_none() {
                        self.break_with(format!(
                            "the route is written, partition {index} has {committed}, B has {shipped}"
                        ));
                    }
                }
                if self.keeps_undo && !self.reverse {
                    self.break_with("B has clients and does not duplicate".to_owned());
                }
            }
            Step::AwaitProxies if self.tick >= self.proxies_until => decider.proxies_serve(),
            Step::RemoveDuplication(_) => {
                if !self.at_new {
                    self.break_with("A->B ends while the route is at A".to_owned());
                }
                self.duplicates = false;
            }
            Step::GoBack(_) => decider.is_back = true,
            Step::PinRoute(version) => {
                self.journal = self.journal.map(|_| true);
                if *version == self.version && !self.at_new {
                    self.version += 1;
                    decider.pinned(self.version);
                }
            }
            Step::Open => {
                if self.at_new {
                    self.break_with("A is opened while B has clients".to_owned());
                }
                self.env = None;
                decider.opened();
            }
            Step::RemoveReverse(_) => {
                self.journal = self.journal.map(|_| true);
                self.reverse = false;
            }
            Step::Done => {
                (self.is_done, self.journal) = (true, None);
                return true;
            }
            Step::BackedOut => {
                (self.is_backed_out, self.journal) = (true, None);
                return true;
            }
            Step::Halt(_) => return true,
            _ => {}
        }
        false
    }

    fn hear(&mut self, event: &Event) {
        match *event {
            Event::Run(number) => self.run(number, false),
            Event::Late(number) => self.run(number, true),
            Event::Kill(number) => self.tools[number] = None,
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
            Event::Nothing => {}
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
                return;
            }
            self.pass();
            self.run(0, false);
        }
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn no_order_of_events_loses_a_write_or_leaves_a_closed_unsaid(
        events in prop::collection::vec(event(), 0..250), keeps_undo in any::<bool>(),
    ) {
        let mut world = World::new(keeps_undo, Source::Pages);
        world.play(&events);
        prop_assert_eq!(world.check(), Ok(()));
    }
}

#[test]
fn one_that_trusts_the_list_of_the_metaserver_loses_writes_and_is_found_out() {
    let lags = |source| {
        let mut world = World::new(false, source);
        let mut events = vec![Event::Lag(1, 80)];
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
fn what_stands_in_the_way_before_the_route_is_written_takes_everything_back() {
    let world = World::new(false, Source::Pages);
    let mut tool = World::new(false, Source::Pages).tool(0).unwrap();
    type Change = fn(&mut Seen);
    let cases: [(&str, Change); 4] = [
        ("the duplication is gone", |seen| seen.old.duplication = None),
        ("it is paused", |seen| seen.old.duplication.as_mut().unwrap().status = 4),
        ("B denies its clients", |seen| seen.new.denies = Some(DENY_ALL.to_owned())),
        ("somebody wrote the route", |seen| seen.route = Route::Old { version: 8 }),
    ];
    for (why, change) in cases {
        let mut seen = world.seen();
        change(&mut seen);
        assert!(matches!(tool.decider.next(&seen), Step::GoBack(_)), "{why}");
    }
    for (why, change) in [
        (
            "the route leads elsewhere",
            (|seen| seen.route = Route::Elsewhere("c9".into())) as fn(&mut Seen),
        ),
        ("another env is there", |seen| seen.old.denies = Some("timeout*all".to_owned())),
    ] {
        let mut seen = world.seen();
        change(&mut seen);
        assert!(matches!(tool.decider.next(&seen), Step::Halt(_)), "{why}");
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
