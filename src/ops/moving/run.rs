//! Carries a move out: looks, takes the next step, and looks again, until it is done, backed out, or stuck.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::checks::seconds;
use super::decide::{Decider, Step};
use super::journal::{Journal, Keeper, Phase};
use super::look::Cluster;
use super::state::{Route, Seen, Side};
use crate::logging::line::Utc;
use crate::ops::plan::Znode;
use crate::ops::proxies::{self, Expected};
use crate::ops::store::Store;
use crate::ops::{Fault, Outcome, apply};
use crate::wire::admin_move::{DENY_ALL, DENY_WRITES};
use crate::zk::codec::{Answer, Op, Stat};

/// Between two looks while B catches up.
const DRAIN_PAUSE: Duration = Duration::from_millis(50);
/// Between two looks at what takes its time.
const PAUSE: Duration = Duration::from_millis(500);
/// After a look or a step that failed; doubles.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Failing for so long with nothing to go back to, it ends and says what stands.
const GIVE_UP: Duration = Duration::from_secs(600);

/// The account of a run.
pub enum Told<'a> {
    /// A step is taken.
    Step(&'a str),
    /// How it stands while something is waited for.
    Wait { step: &'a Step, seen: &'a Seen, refused_ms: u64 },
    /// Something could not be asked or done; it is tried again.
    Again(&'a str),
}

/// A move that runs.
pub struct Run<'a> {
    pub store: &'a mut Store,
    pub keeper: Keeper,
    pub journal: Journal,
    pub old: Cluster,
    pub new: Cluster,
    pub decider: Decider,
    /// The pages of the proxies that must serve the route.
    pub proxies: Vec<String>,
    /// For the proxies.
    pub wait: Duration,
    /// A signal came.
    pub signal: Arc<AtomicBool>,
    pub start: Instant,
    /// The route as it was last read.
    pub znode: Option<Znode>,
    pub is_asked_back: bool,
}

/// The outcome of a step.
enum Acted {
    /// Look again, after this pause.
    Look(Duration),
    Ended(Outcome, String),
}

impl Run<'_> {
    /// How it ended, in words too.
    pub fn run(&mut self, tell: &mut dyn FnMut(Told<'_>)) -> Result<(Outcome, String), Fault> {
        let (mut pause, mut failing): (Duration, Option<Instant>) = (RETRY_PAUSES.0, None);
        let mut reason = self.is_asked_back.then(|| "as it was asked".to_owned());
        loop {
            if self.signal.load(Ordering::Relaxed) && !self.decider.is_back {
                tell(Told::Step(
                    "a signal came: everything goes back, if the route is not written yet; once more leaves at once",
                ));
                self.decider.is_back = true;
                reason.get_or_insert_with(|| "a signal came".to_owned());
            }
            let acted = self.look().and_then(|seen| {
                let step = self.decider.next(&seen);
                if let Step::GoBack(why) = &step {
                    reason.get_or_insert_with(|| why.clone());
                }
                self.act(&step, &seen, tell)
            });
            match acted {
                Ok(Acted::Look(wait)) => {
                    (pause, failing) = (RETRY_PAUSES.0, None);
                    self.sleep(wait);
                }
                Ok(Acted::Ended(Outcome::Failed, told)) => {
                    let reason = reason.unwrap_or_default();
                    return match self.is_asked_back {
                        true => Ok((Outcome::Done, told)),
                        false => Err(Fault::failed(format!("{reason}; {told}"))),
                    };
                }
                Ok(Acted::Ended(outcome, told)) => return Ok((outcome, told)),
                Err(why) => {
                    tell(Told::Again(&why));
                    let since = *failing.get_or_insert_with(Instant::now);
                    let is_over = self.decider.is_past_limit(self.now_ms())
                        || since.elapsed().as_millis() as u64 > self.decider.terms.max_refused_ms;
                    if is_over && !self.decider.is_back {
                        tell(Told::Step(
                            "the limit is over: everything goes back, if the route is not written yet",
                        ));
                        self.decider.is_back = true;
                        reason.get_or_insert_with(|| why.clone());
                    }
                    if since.elapsed() > GIVE_UP {
                        return Err(Fault::new(Outcome::Partly, self.stuck(&why)));
                    }
                    self.sleep(pause);
                    pause = RETRY_PAUSES.1.min(pause * 2);
                }
            }
        }
    }

    fn stuck(&self, why: &str) -> String {
        let way_on = self.journal.way_on();
        let old = &self.journal.from.cluster;
        format!("{why}; {old} may go on denying clients of the table; {way_on}")
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Ends early when a signal comes that was not heard yet.
    fn sleep(&self, wait: Duration) {
        let end = Instant::now() + wait;
        while Instant::now() < end && (self.decider.is_back || !self.signal.load(Ordering::Relaxed))
        {
            thread::sleep(DRAIN_PAUSE.min(end.saturating_duration_since(Instant::now())));
        }
    }

    /// The route first: a write of it names the version that is seen here, so it fails if anything came in between.
    fn look(&mut self) -> Result<Seen, String> {
        let route = self.route()?;
        let (old, old_app) = self.old.side(&self.new.name)?;
        if self.decider.is_back && route != Route::New {
            return self.look_back(route, old);
        }
        let (new, new_app) = self.new.side(&self.old.name)?;
        let now_ms = self.now_ms();
        let id = |duplication: &Option<crate::wire::admin_move::Duplication>| {
            duplication.as_ref().map(|duplication| duplication.id)
        };
        let reverse = match self.decider.terms.keeps_undo && route != Route::New {
            true => self.new.partitions(&new_app, id(&new.duplication))?,
            false => Vec::new(),
        };
        let partitions = self.old.partitions(&old_app, id(&old.duplication))?;
        Ok(Seen { now_ms, end_ms: self.now_ms(), route, old, new, partitions, reverse })
    }

    /// To go back, nothing of A but its env matters. B may be lost, so it is asked only for what is to end there.
    fn look_back(&mut self, route: Route, old: Side) -> Result<Seen, String> {
        let new = match old.denies.is_none() && self.decider.terms.made_undo {
            true => self.new.side(&self.old.name)?.0,
            false => Side::default(),
        };
        let (now_ms, none) = (self.now_ms(), Vec::new());
        Ok(Seen {
            now_ms,
            end_ms: now_ms,
            route,
            old,
            new,
            partitions: none.clone(),
            reverse: none,
        })
    }

    fn route(&mut self) -> Result<Route, String> {
        self.store.sync().map_err(|fault| fault.why)?;
        let path = self.store.znode_of(&self.journal.table);
        let clusters = self.store.clusters().map_err(|fault| fault.why)?;
        self.znode = self.store.znode(&path).map_err(|fault| fault.why)?;
        let Some(znode) = &self.znode else { return Ok(Route::Elsewhere("no znode".to_owned())) };
        let version = znode.stat.version;
        Ok(match self.store.place_of(&znode.data, &clusters) {
            Ok(place) if place == self.journal.from => Route::Old { version },
            Ok(place) if place == self.journal.to => Route::New,
            Ok(place) => Route::Elsewhere(place.shown()),
            Err(why) => Route::Elsewhere(why),
        })
    }

    fn act(
        &mut self,
        step: &Step,
        seen: &Seen,
        tell: &mut dyn FnMut(Told<'_>),
    ) -> Result<Acted, String> {
        let (old, new) = (self.journal.from.cluster.clone(), self.journal.to.cluster.clone());
        let refused_ms = self.decider.refused_ms(self.now_ms());
        let mut wait = |pause| {
            tell(Told::Wait { step, seen, refused_ms });
            Ok(Acted::Look(pause))
        };
        let at_once = Ok(Acted::Look(Duration::ZERO));
        match step {
            Step::AwaitReverse => wait(PAUSE),
            Step::AwaitForce(left_ms) | Step::AwaitStill(left_ms) => {
                wait(PAUSE.min(Duration::from_millis(*left_ms)))
            }
            Step::AwaitDrained => wait(DRAIN_PAUSE),
            Step::AddReverse => {
                // It fails where the journal is gone: another run took the move back.
                self.keeper.put(self.store, &self.journal).map_err(|fault| fault.why)?;
                tell(Told::Step(&format!("1 {new} duplicates to {old}")));
                self.new.add_duplication(&self.old.name)?;
                at_once
            }
            Step::DenyWrites => {
                self.journal.denied_at_s.get_or_insert_with(|| Utc::now().0.as_secs());
                self.keeper.put(self.store, &self.journal).map_err(|fault| fault.why)?;
                self.decider.terms.may_be_denied = true;
                tell(Told::Step(&format!("2 {old} refuses writes of the table from now on")));
                self.old.set_env(DENY_WRITES)?;
                at_once
            }
            Step::WriteRoute(version) => {
                let told = format!(
                    "5 {new} has all: the route goes there, after {} without writes",
                    seconds(refused_ms)
                );
                tell(Told::Step(&told));
                let data = self.journal.after.0.clone();
                self.write(data, *version)?;
                at_once
            }
            Step::AwaitProxies => self.await_proxies(tell),
            Step::DenyAll => {
                tell(Told::Step(&format!("6 {old} refuses reads of the table, too")));
                self.old.set_env(DENY_ALL)?;
                at_once
            }
            Step::RemoveDuplication(id) => {
                tell(Told::Step(&format!("8 the duplication from {old} to {new} ends")));
                self.old.remove_duplication(*id)?;
                at_once
            }
            Step::Done => {
                self.journal.phase = Phase::Moved;
                self.keeper.put(self.store, &self.journal).map_err(|fault| fault.why)?;
                Ok(Acted::Ended(Outcome::Done, format!("{new} has the table")))
            }
            Step::GoBack(why) => {
                tell(Told::Step(&format!("{why}: everything goes back")));
                self.decider.is_back = true;
                at_once
            }
            Step::PinRoute(version) => {
                self.note_back()?;
                let data = self.znode.as_ref().map(|znode| znode.data.clone()).unwrap_or_default();
                let stat = self.write(data, *version)?;
                self.decider.pinned(stat.version);
                at_once
            }
            Step::Open => {
                tell(Told::Step(&format!("{old} takes writes again")));
                self.old.delete_env()?;
                self.decider.opened();
                at_once
            }
            Step::RemoveReverse(id) => {
                self.note_back()?;
                tell(Told::Step(&format!("the duplication from {new} to {old} ends")));
                self.new.remove_duplication(*id)?;
                at_once
            }
            Step::BackedOut => {
                self.keeper.delete(self.store).map_err(|fault| fault.why)?;
                let interval = seconds(self.decider.terms.force_ms());
                let writes = match self.journal.denied_at_s {
                    Some(_) => format!("; writes stay refused up to {interval} more"),
                    None => String::new(),
                };
                let told = format!("everything is back, the table is in {old}{writes}");
                Ok(Acted::Ended(Outcome::Failed, told))
            }
            Step::Halt(why) => {
                let told = match &seen.old.denies {
                    Some(value) => {
                        format!("{why}; {old} goes on denying clients of the table: {value}")
                    }
                    None => why.clone(),
                };
                Ok(Acted::Ended(Outcome::Partly, told))
            }
        }
    }

    fn await_proxies(&mut self, tell: &mut dyn FnMut(Told<'_>)) -> Result<Acted, String> {
        let zxid = self.znode.as_ref().map_or(0, |znode| znode.stat.mzxid);
        let table = self.journal.table.clone();
        let place = Some(self.journal.to.clone());
        let expected = [Expected { table, zxid, place, by_cluster: false }];
        let root = apply::root(self.store).map_err(|fault| fault.why)?;
        let seen = proxies::wait(&self.proxies, &root, &expected, self.wait);
        for one in &seen {
            match &one.served {
                Ok(()) => tell(Told::Step(&format!("{}: serves it", one.proxy))),
                Err(why) => tell(Told::Step(&format!("{}: DOES NOT SERVE IT: {why}", one.proxy))),
            }
        }
        let behind: Vec<&str> = seen
            .iter()
            .filter(|seen| seen.served.is_err())
            .map(|seen| seen.proxy.as_str())
            .collect();
        if behind.is_empty() {
            self.decider.proxies_serve();
            return Ok(Acted::Look(Duration::ZERO));
        }
        let told = format!("the route is written, and not served by {}", behind.join(", "));
        Ok(Acted::Ended(Outcome::Partly, self.stuck(&told)))
    }

    fn note_back(&mut self) -> Result<(), String> {
        if self.journal.phase != Phase::Back {
            let journal = Journal { phase: Phase::Back, ..self.journal.clone() };
            self.keeper.put(self.store, &journal).map_err(|fault| fault.why)?;
            self.journal = journal;
        }
        Ok(())
    }

    fn write(&mut self, data: Vec<u8>, version: i32) -> Result<Stat, String> {
        let path = self.store.znode_of(&self.journal.table);
        let op = Op::SetData { path: path.clone(), data, version };
        match self.store.session().request(op) {
            Ok(Answer::Stat(stat)) => Ok(stat),
            Ok(other) => Err(format!("{path}: {other:?}")),
            Err(why) => Err(format!("{path}: {why}")),
        }
    }
}
