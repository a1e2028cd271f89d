//! Those who are busy all the time: writers that change routes, askers that ask for tables, probes that look whether any
//! server can be reached, a metronome that tells whether this process runs, and the judge, who holds every answer against
//! the truth.
//!
//! ```text
//! writer ──▶ histories ──┐
//! probe  ──▶ weather   ──┼─▶ judge, a while later ─▶ the first wrong answer ends the run
//! asker  ──▶ answers   ──┘
//! ```

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::checker::{Asked, Checker, Right};
use crate::history::{History, Time, Value};
use crate::report;
use crate::weather::{Excuse, Ticket, View, Whom};
use crate::world::{CLUSTERS, World};
use harness::rng::Rng;

/// They share the tables.
pub const WRITERS: usize = 2;
/// Clients of each proxy.
pub const ASKERS: usize = 2;
/// Between two writes of a writer.
const WRITE_PAUSE_MS: RangeInclusive<u64> = 10..=60;
/// Between two queries of an asker.
const ASK_PAUSE: Duration = Duration::from_millis(1);
/// Between two looks of a probe.
const PROBE_PAUSE: Duration = Duration::from_millis(50);
/// A server that takes longer to say how it is counts as out of reach.
const PROBE_WITHIN: Duration = Duration::from_millis(600);
/// Between two beats of the metronome.
const BEAT: Duration = Duration::from_millis(10);
/// A beat that comes so late is worth a note.
const STALL: Duration = Duration::from_millis(50);
/// Answers are judged so much later, when probes have told what they know of that time.
const JUDGE_AFTER: Duration = Duration::from_secs(2);

/// Changes routes at random until the run is over.
pub fn write(world: &World, writer: usize, mut rng: Rng) {
    let _guard = world.end.guard("writer");
    let own: Vec<usize> = (writer..world.writable()).step_by(WRITERS).collect();
    while !world.end.wait(rng.ms(WRITE_PAUSE_MS)) {
        let table = *rng.pick(&own);
        world.write(table, |history| next_value(history, &mut rng));
    }
}

/// The next version of a table: mostly another cluster's, sometimes nothing, sometimes junk. A bad one becomes good.
/// Few tables are absent at once: with the tenth that a fault deletes, they are far fewer than the fifth that is held.
fn next_value(history: &History, rng: &mut Rng) -> Value {
    // One decision more than needed, so that the order of decisions does not depend on the history.
    let chance = rng.below(100);
    let cluster = another_cluster(history, rng);
    match (history.last().value, chance) {
        (Value::Cluster(_), 0..4) => Value::Absent,
        (Value::Cluster(_), 4..16) => Value::Junk,
        _ => cluster,
    }
}

/// A cluster that the table was not in lately, so that an answer tells one time from the other.
pub fn another_cluster(history: &History, rng: &mut Rng) -> Value {
    let lately = history.versions().iter().rev().take(CLUSTERS / 2).map(|version| version.value);
    let lately: Vec<Value> = lately.collect();
    let first = rng.below(CLUSTERS);
    let mut turn = (first..first + CLUSTERS).map(|cluster| Value::Cluster(cluster % CLUSTERS));
    turn.find(|value| !lately.contains(value)).expect("half of the clusters were not used lately")
}

/// Asks a proxy for tables at random until the run is over.
pub fn ask(world: &World, proxy: usize, mut rng: Rng) {
    let _guard = world.end.guard("asker");
    let mut client = None;
    while !world.end.wait(ASK_PAUSE) {
        let view = View { proxy, table: rng.below(world.names()) };
        world.ask(view, &mut client);
    }
}

/// Which servers can be reached over the proxies' network; while none can, that is a trouble.
#[derive(Default)]
pub struct Reach {
    unreachable: [AtomicBool; 3],
    /// Held while one of them changes.
    trouble: std::sync::Mutex<Option<Ticket>>,
}

impl Reach {
    fn set(&self, world: &World, server: usize, reachable: bool) {
        let mut trouble = self.trouble.lock().expect("nothing panics while holding it");
        self.unreachable[server].store(!reachable, Ordering::SeqCst);
        let none = self.unreachable.iter().all(|server| server.load(Ordering::SeqCst));
        match (*trouble, none) {
            (None, true) => {
                *trouble = Some(world.begin("no server can be reached", Whom::All, Excuse::Stale));
            }
            (Some(ticket), false) => {
                world.over(ticket);
                world.say("  a server can be reached");
                *trouble = None;
            }
            _ => {}
        }
    }
}

/// Looks whether one server can be reached until the run is over.
pub fn probe(world: &World, server: usize, reach: &Reach) {
    let _guard = world.end.guard("probe");
    let addr = world.relays[server].addr();
    while !world.end.wait(PROBE_PAUSE) {
        world.probes.fetch_add(1, Ordering::SeqCst);
        reach.set(world, server, serves(addr));
    }
}

/// Notes when this process does not run, until the run is over: was an answer late, or the whole machine? It excuses
/// nothing.
pub fn beat(world: &World) {
    let _guard = world.end.guard("metronome");
    let mut due = world.now() + BEAT;
    while !world.end.wait(BEAT) {
        let now = world.now();
        if now > due + STALL {
            world.stalled(due, now);
        }
        due = now + BEAT;
    }
}

/// Whether a server says that it leads or follows.
fn serves(addr: SocketAddr) -> bool {
    let talk = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&addr, PROBE_WITHIN)?;
        stream.set_read_timeout(Some(PROBE_WITHIN))?;
        stream.write_all(b"srvr")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.contains("Mode: "))
    };
    talk().unwrap_or(false)
}

/// Numbers of what was judged.
#[derive(Debug, Default)]
pub struct Judged {
    /// Answers.
    pub answers: u64,
    /// Those among them that were given in trouble.
    pub in_trouble: u64,
    /// The greatest age of an answer in calm.
    pub oldest_in_calm: Duration,
    /// And in trouble.
    pub oldest_in_trouble: Duration,
    /// The slowest answer about a table that was cached for certain.
    pub slowest_cached: Duration,
    /// And about another.
    pub slowest_other: Duration,
}

/// Holds answers against the truth until all who ask have gone. The first that is wrong ends the run.
pub fn judge(world: &World, answers: &Receiver<Asked>) -> Judged {
    let _guard = world.end.guard("judge");
    let mut judged = Judged::default();
    let mut checker = Checker::default();
    let mut waiting: Vec<Asked> = Vec::new();
    let mut open = true;
    while open {
        let next = world.now() + JUDGE_AFTER / 4;
        // Everything that has come, then what was answered long enough ago, in the order of the answers.
        while open && world.now() < next {
            match answers.recv_timeout(next.saturating_sub(world.now())) {
                Ok(asked) => waiting.push(asked),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
        }
        let ripe = if open { world.now().saturating_sub(JUDGE_AFTER) } else { Time::MAX };
        waiting.sort_by_key(|asked| asked.answered);
        let unripe = waiting.split_off(waiting.partition_point(|asked| asked.answered <= ripe));
        for asked in std::mem::replace(&mut waiting, unripe) {
            if !judge_one(world, &mut checker, &asked, &mut judged) {
                return judged;
            }
        }
    }
    judged
}

fn judge_one(world: &World, checker: &mut Checker, asked: &Asked, judged: &mut Judged) -> bool {
    let Asked { view, sent, answered, .. } = *asked;
    let weather = world.weather();
    let history = world.history(view.table);
    let Right { age, cached } = match checker.check(&history, &weather, asked) {
        Ok(right) => right,
        Err(wrong) => {
            world.end.fail(|| report::wrong_answer(world, &wrong, &history, &weather));
            return false;
        }
    };
    let calm = weather.is_calm(view, sent, answered);
    let took = if weather.is_mute(view, sent, answered) { Duration::ZERO } else { answered - sent };
    judged.answers += 1;
    judged.in_trouble += u64::from(!calm);
    let (oldest, slowest) = (
        if calm { &mut judged.oldest_in_calm } else { &mut judged.oldest_in_trouble },
        if cached { &mut judged.slowest_cached } else { &mut judged.slowest_other },
    );
    *oldest = age.max(*oldest);
    *slowest = took.max(*slowest);
    true
}
