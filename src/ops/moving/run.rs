//! Carries a move out: looks, takes the next step, and looks again, until it is done, backed out, or stuck.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::checks::seconds;
use super::decide::{Decider, Step, decrees, denies_writes, most_empty};
use super::force::Proof;
use super::journal::{Drained, Journal, Keeper, Phase};
use super::look::Cluster;
use super::state::{Partition, Route, Seen, Side};
use crate::logging::line::Utc;
use crate::ops::admin_move::{DENY_ALL, DENY_WRITES};
use crate::ops::plan::Znode;
use crate::ops::proxies::{self, Expected};
use crate::ops::record::Place;
use crate::ops::store::Store;
use crate::ops::{Fault, Outcome, apply};
use crate::zk::codec::Stat;

/// Between two looks while B catches up.
const DRAIN_PAUSE: Duration = Duration::from_millis(50);
/// Between two probes.
const PROBE_PAUSE: Duration = Duration::from_millis(200);
/// Between two looks at what takes its time.
const PAUSE: Duration = Duration::from_millis(500);
/// After a look or a step that failed; doubles.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Failing for so long with nothing to go back to, it ends and says what stands.
const GIVE_UP: Duration = Duration::from_secs(600);

/// The account of a run.
pub enum Report<'a> {
    /// A step is taken.
    Step(&'a str),
    /// The state while the run waits.
    Wait { step: &'a Step, seen: &'a Seen, refused_ms: u64 },
    /// Something could not be asked or done; it is tried again.
    Again(&'a str),
}

/// A move that runs.
pub struct Run<'a> {
    pub store: &'a mut Store,
    pub keeper: Keeper,
    pub journal: Journal,
    /// `None`: it is gone.
    pub journal_version: Option<i32>,
    pub old: Cluster,
    pub new: Cluster,
    pub decider: Decider,
    /// The pages of the proxies that must serve the route: those that there are, and that there were.
    pub proxies: &'a dyn Fn(&mut Store) -> Result<Vec<String>, Fault>,
    /// For the proxies.
    pub wait: Duration,
    /// A signal came.
    pub signal: Arc<AtomicBool>,
    pub start: Instant,
    /// The operator was warned of the route.
    pub is_warned: bool,
    /// A was seen to deny nobody.
    pub is_open: bool,
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
    pub fn run(&mut self, tell: &mut dyn FnMut(Report<'_>)) -> Result<(Outcome, String), Fault> {
        let (mut pause, mut failing): (Duration, Option<Instant>) = (RETRY_PAUSES.0, None);
        let mut reason = self.is_asked_back.then(|| "as it was asked".to_owned());
        loop {
            if self.signal.load(Ordering::Relaxed) && !self.decider.is_back {
                tell(Report::Step(
                    "a signal came: everything goes back, if the route is not written yet; a second Ctrl-C leaves at once",
                ));
                self.decider.is_back = true;
                reason.get_or_insert_with(|| "a signal came".to_owned());
            }
            let acted = self.look().and_then(|seen| {
                if let Some(over) = self.over(&seen) {
                    return Ok(over);
                }
                self.note_new(&seen.route)?;
                self.warn(&seen, tell);
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
                    tell(Report::Again(&why));
                    let since = *failing.get_or_insert_with(Instant::now);
                    let is_over = self.decider.is_past_limit(self.now_ms())
                        || since.elapsed().as_millis() as u64 > self.decider.terms.max_refused_ms;
                    if is_over && !self.decider.is_back {
                        tell(Report::Step(
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

    /// Says once what the operator must know of the route.
    fn warn(&mut self, seen: &Seen, tell: &mut dyn FnMut(Report<'_>)) {
        let (old, new) = (&self.old.place.cluster, &self.new.place.cluster);
        let told = match (&seen.route, self.znode.as_ref()) {
            _ if self.is_warned => return,
            (Route::New, Some(znode)) => {
                let is_own = self.journal.drained.is_some()
                    && znode.data == self.journal.after.0
                    && znode.stat.version == self.journal.version + 1;
                match (is_own, self.decider.is_back) {
                    (true, false) => return,
                    (true, true) => format!(
                        "the route leads to {new}: the move goes on to its end, and the way back is a move to {old}"
                    ),
                    (false, _) => format!(
                        "WARN: somebody else wrote the route to {new}, maybe before {new} had all that {old} took; the \
                         move goes on to its end"
                    ),
                }
            }
            (Route::Old { version }, _)
                if self.decider.is_back
                    && self.journal.phase == Phase::Moving
                    && *version != self.journal.version =>
            {
                format!(
                    "WARN: somebody wrote the route since the move began. If it led to {new} meanwhile, {old} lacks what \
                     clients wrote there"
                )
            }
            _ => return,
        };
        tell(Report::Step(&told));
        self.is_warned = true;
    }

    /// Another run, or somebody, ended the move.
    fn over(&self, seen: &Seen) -> Option<Acted> {
        let (old, new) = (&self.old.place.cluster, &self.new.place.cluster);
        match (self.journal_version, &seen.route) {
            (Some(_), _) if self.journal.phase == Phase::Moved => {
                Some(Acted::Ended(Outcome::Done, format!("{new} has the table")))
            }
            (None, Route::New) => {
                let denies = seen.old.denies.as_deref().unwrap_or("nothing");
                let told = format!(
                    "{}: the journal is gone, and another run or somebody ended the move. {new} has the table, {old} \
                     denies {denies}; meta-proxy route finish {} --from {old} ends that",
                    self.keeper.place(),
                    self.journal.table
                );
                Some(Acted::Ended(Outcome::Partly, told))
            }
            _ => None,
        }
    }

    fn stuck(&self, why: &str) -> String {
        let old = &self.old.place.cluster;
        let denies = match self.is_open {
            true => format!("{old} takes clients of the table"),
            false => format!("{old} may go on denying clients of the table"),
        };
        format!("{why}; {denies}; {}", self.journal.ways())
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
        let place = self.read_route()?;
        self.read_journal()?;
        let route = self.route(place);
        let (old, old_app) = self.old.side(&self.new.place.cluster)?;
        self.is_open = old.denies.is_none();
        if self.decider.is_back && !matches!(route, Route::New | Route::WasNew) {
            return self.look_back(route, old);
        }
        let (new, new_app) = self.new.side(&self.old.place.cluster)?;
        let (now_ms, ids) = (self.now_ms(), self.journal.ids);
        let wants_reverse = self.decider.terms.keeps_undo && route != Route::New;
        let reverse = match new_app.filter(|app| wants_reverse && app.app_id == ids.new_app) {
            Some(app) => self.new.partitions(&app, id(&new))?,
            None => Vec::new(),
        };
        let mut partitions = Vec::new();
        if let Some(app) = old_app.filter(|app| app.app_id == ids.old_app) {
            partitions = self.old.partitions(&app, id(&old))?;
            if denies_writes(&old) {
                let primaries = &self.decider.primaries;
                let unsure = partitions.iter_mut().filter(|one| primaries.needs_probe(one, now_ms));
                self.old.probe(app.app_id, &mut unsure.collect::<Vec<_>>())?;
            }
        }
        let is_new = |partition: &Partition| !self.old.knows(partition.server);
        if partitions.iter().any(is_new) {
            self.decider.terms.interval_ms = self.old.interval_ms()?;
        }
        Ok(Seen { now_ms, end_ms: self.now_ms(), route, old, new, partitions, reverse })
    }

    /// To go back, nothing of A but its env matters. B may be lost, so it is asked only for what is to end there.
    fn look_back(&mut self, route: Route, old: Side) -> Result<Seen, String> {
        let new = match self.decider.terms.made_undo && !denies_writes(&old) {
            true => self.new.side(&self.old.place.cluster)?.0,
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

    /// `Ok(Err)`: it leads nowhere, and why.
    fn read_route(&mut self) -> Result<Result<Place, String>, String> {
        let plain = |fault: Fault| fault.why;
        self.store.sync().map_err(plain)?;
        let path = self.store.znode_of(&self.journal.table);
        let clusters = self.store.clusters().map_err(plain)?;
        self.znode = self.store.znode(&path).map_err(plain)?;
        Ok(match &self.znode {
            Some(znode) => self.store.place_of(&znode.data, &clusters),
            None => Err("no znode".to_owned()),
        })
    }

    /// Where the route leads, by the name of the cluster: its addresses may change meanwhile.
    fn route(&mut self, place: Result<Place, String>) -> Route {
        let version = self.znode.as_ref().map_or(0, |znode| znode.stat.version);
        let place = match place {
            Ok(place) => place,
            Err(why) => return Route::Elsewhere(why),
        };
        if place.cluster == self.old.place.cluster {
            self.old.follow(&place);
            match self.may_have_been_new(version) {
                true => Route::WasNew,
                false => Route::Old { version },
            }
        } else if place.cluster == self.new.place.cluster {
            self.new.follow(&place);
            Route::New
        } else {
            Route::Elsewhere(place.shown())
        }
    }

    /// The write of the route was sent, and somebody wrote the route since. One write alone is that of somebody, before ours.
    fn may_have_been_new(&self, version: i32) -> bool {
        let Journal { was_new, phase, version: before, .. } = self.journal;
        was_new
            || (phase == Phase::Moving && self.journal.drained.is_some() && version >= before + 2)
    }

    /// Another run may have changed the journal.
    fn read_journal(&mut self) -> Result<(), String> {
        let found = self.keeper.read(self.store).map_err(|fault| fault.why)?;
        // One that nobody can read any more says as little as one that is gone.
        let found = found.and_then(Result::ok);
        self.journal_version = found.as_ref().map(|(_, version)| *version);
        match found {
            Some((journal, _)) if journal.id != self.journal.id => {
                Err(format!("another move is under way: {}", journal.shown()))
            }
            Some((journal, _)) => {
                self.journal = journal;
                self.decider.is_back |= self.journal.phase == Phase::Back;
                self.decider.terms.may_come_late = self.journal.late_s().is_some();
                Ok(())
            }
            // Without it nobody would be told that A refuses writes.
            None => {
                self.decider.is_back = true;
                Ok(())
            }
        }
    }

    /// The route leads to B, so there is no way back any more.
    fn note_new(&mut self, route: &Route) -> Result<(), String> {
        match *route == Route::New && !self.journal.was_new && self.journal_version.is_some() {
            true => self.put(Journal { was_new: true, ..self.journal.clone() }),
            false => Ok(()),
        }
    }

    /// Notes that a request is sent now, and returns when one was whose answer was lost.
    fn sends(&mut self) -> Result<Option<u64>, String> {
        let before = self.journal.unanswered_at_s;
        self.put(Journal { unanswered_at_s: Some(now_s()), ..self.journal.clone() })?;
        Ok(before)
    }

    fn is_answered(&mut self, before: Option<u64>) -> Result<(), String> {
        self.put(Journal { unanswered_at_s: before, ..self.journal.clone() })
    }

    /// Fails if the journal is gone or changed since the last look: another run is at work.
    fn put(&mut self, journal: Journal) -> Result<(), String> {
        let gone = || format!("{}: the journal is gone", self.keeper.place());
        let version = self.journal_version.ok_or_else(gone)?;
        let version = self.keeper.put(self.store, &journal, version).map_err(|fault| fault.why)?;
        (self.journal, self.journal_version) = (journal, Some(version));
        Ok(())
    }

    fn act(
        &mut self,
        step: &Step,
        seen: &Seen,
        tell: &mut dyn FnMut(Report<'_>),
    ) -> Result<Acted, String> {
        let (old, new) = (self.journal.from.cluster.clone(), self.journal.to.cluster.clone());
        let refused_ms = self.decider.refused_ms(self.now_ms());
        let mut wait = |pause| {
            tell(Report::Wait { step, seen, refused_ms });
            Ok(Acted::Look(pause))
        };
        let at_once = Ok(Acted::Look(Duration::ZERO));
        match step {
            Step::AwaitReverse => wait(PAUSE),
            Step::AwaitForce(0) | Step::AwaitStill(0) => wait(PROBE_PAUSE),
            Step::AwaitForce(_) if self.decider.terms.proof == Proof::Probe => wait(PROBE_PAUSE),
            Step::AwaitForce(left_ms) | Step::AwaitStill(left_ms) | Step::AwaitLate(left_ms) => {
                wait(PAUSE.min(Duration::from_millis(*left_ms)))
            }
            Step::AwaitDrained => wait(DRAIN_PAUSE),
            Step::AddReverse => {
                let before = self.sends()?;
                tell(Report::Step(&format!("1 {new} duplicates to {old}")));
                self.new.add_duplication(&old)?;
                self.is_answered(before)?;
                at_once
            }
            Step::DenyWrites => {
                self.journal.denied_at_s.get_or_insert_with(now_s);
                let before = self.sends()?;
                tell(Report::Step(&format!("2 {old} refuses writes of the table from now on")));
                self.old.set_env(DENY_WRITES)?;
                self.is_answered(before)?;
                at_once
            }
            Step::WriteRoute(version) => {
                // A look takes a while. Nobody may have opened A meanwhile.
                let (now, _) = self.old.side(&new)?;
                if now != seen.old {
                    return Err(format!("{old} changed while it was looked at"));
                }
                let told = format!(
                    "5 {new} has all: the route goes there, after {} without writes",
                    seconds(refused_ms)
                );
                tell(Report::Step(&told));
                let drained = Some(Drained { at_s: now_s(), decrees: decrees(&seen.partitions) });
                self.put(Journal { drained, ..self.journal.clone() })?;
                let data = self.journal.after.0.clone();
                self.write(data, *version)?;
                at_once
            }
            Step::AwaitProxies => self.await_proxies(tell),
            Step::DenyAll => {
                tell(Report::Step(&format!("6 {old} refuses reads of the table, too")));
                let before = self.sends()?;
                self.old.set_env(DENY_ALL)?;
                self.is_answered(before)?;
                at_once
            }
            Step::RemoveDuplication(id) => {
                tell(Report::Step(&format!("8 the duplication from {old} to {new} ends")));
                self.old.remove_duplication(*id)?;
                at_once
            }
            Step::Done => self.done(seen),
            Step::GoBack(why) => {
                tell(Report::Step(&format!("{why}: everything goes back")));
                self.decider.is_back = true;
                at_once
            }
            Step::PinRoute(version) => {
                self.note_back()?;
                let data = self.znode.as_ref().map(|znode| znode.data.clone()).unwrap_or_default();
                let stat = self.write(data, *version)?;
                self.decider.pinned(stat.version, self.now_ms());
                at_once
            }
            Step::Open => {
                self.old.delete_env()?;
                tell(Report::Step(&format!("{old} takes writes again")));
                at_once
            }
            Step::RemoveReverse(id) => {
                self.note_back()?;
                tell(Report::Step(&format!("the duplication from {new} to {old} ends")));
                self.new.remove_duplication(*id)?;
                at_once
            }
            Step::BackedOut => self.backed_out(seen),
            Step::Halt(why) => {
                let denies = match &seen.old.denies {
                    Some(value) => {
                        format!("; {old} goes on denying clients of the table: {value}")
                    }
                    None => String::new(),
                };
                let table = &self.journal.table;
                let way = match &seen.route {
                    Route::WasNew | Route::Elsewhere(_) if self.journal.was_new => format!(
                        "; to go on: meta-proxy route set {table} --cluster {new} --metas {} --moving-accepted \
                         --split-brain-accepted, then meta-proxy route move {table} --to {new} --apply; to leave it: \
                         meta-proxy route finish {table} --forget",
                        self.new.place.metas.join(",")
                    ),
                    Route::Elsewhere(_) => format!(
                        "; to take it back: meta-proxy route set {table} --cluster {old} --metas {} --moving-accepted \
                         --target-accepted, then meta-proxy route move {table} --back --apply; to leave it: meta-proxy route \
                         finish {table} --forget",
                        self.old.place.metas.join(",")
                    ),
                    _ => format!("; {}", self.journal.way_on()),
                };
                Ok(Acted::Ended(Outcome::Partly, format!("{why}{denies}{way}")))
            }
        }
    }

    fn done(&mut self, seen: &Seen) -> Result<Acted, String> {
        let (old, new) = (&self.old.place.cluster, &self.new.place.cluster);
        let done = if seen.old.app_id != Some(self.journal.ids.old_app) {
            let told = format!(
                "{new} has the table; {old} does not have it any more. If it has another name there now, or is recalled, it \
                 denies its clients"
            );
            (Outcome::Done, told)
        } else if let Some(late) = self.late_writes(seen) {
            let told = format!(
                "{new} has the table, but {old} took writes after the route was written: {late}. They were shipped to {new}, \
                 maybe over newer ones"
            );
            (Outcome::Partly, told)
        } else {
            (Outcome::Done, format!("{new} has the table"))
        };
        self.put(Journal { phase: Phase::Moved, ..self.journal.clone() })?;
        Ok(Acted::Ended(done.0, done.1))
    }

    /// Mutations of A since B had all, if they are more than the empty ones that servers write by themselves.
    fn late_writes(&self, seen: &Seen) -> Option<String> {
        let drained = self.journal.drained.as_ref()?;
        let age_ms = now_s().saturating_sub(drained.at_s) * 1_000;
        let allowed = most_empty(self.decider.terms.interval_ms, age_ms);
        decrees(&seen.partitions).iter().find_map(|(index, decree)| {
            let by = decree - drained.decrees.get(index)?;
            (by > allowed).then(|| format!("partition {index} has {by} mutations more"))
        })
    }

    fn backed_out(&mut self, seen: &Seen) -> Result<Acted, String> {
        if let Some(late_s) = self.journal.late_s().filter(|_| self.journal_version.is_some()) {
            let told = format!(
                "everything is back, but the answer to a request was lost. It may still be carried out, and {} would deny its \
                 clients then. Look again in {late_s} s by meta-proxy route move {} --back --apply; until then every route \
                 command tells of it",
                self.old.place.cluster, self.journal.table
            );
            return Ok(Acted::Ended(Outcome::Partly, told));
        }
        if let Some(version) = self.journal_version {
            self.keeper.delete(self.store, version).map_err(|fault| fault.why)?;
        }
        let (old, table) = (&self.old.place.cluster, &self.journal.table);
        if seen.old.app_id.is_none() {
            let told = format!(
                "{old} does not have the table any more. If it has another name now, it may still deny its clients there; \
                 the route of {table} leads to {old}"
            );
            return Ok(Acted::Ended(Outcome::Partly, told));
        }
        if let Some(value) = &seen.old.denies {
            let told = format!(
                "all of this move is back, the table is in {old}; somebody else has {old} deny its clients: {value}"
            );
            return Ok(Acted::Ended(Outcome::Partly, told));
        }
        let writes = match self.journal.denied_at_s.is_some() {
            true => {
                let interval = seconds(self.decider.terms.force_ms());
                format!("; writes stay refused up to {interval} more")
            }
            false => String::new(),
        };
        let told = format!("everything is back, the table is in {old}{writes}");
        Ok(Acted::Ended(Outcome::Failed, told))
    }

    fn await_proxies(&mut self, tell: &mut dyn FnMut(Report<'_>)) -> Result<Acted, String> {
        let zxid = self.znode.as_ref().map_or(0, |znode| znode.stat.mzxid);
        let table = self.journal.table.clone();
        let place = Some(self.new.place.clone());
        let expected = [Expected { table, zxid, place, by_cluster: false }];
        let root = apply::root(self.store).map_err(|fault| fault.why)?;
        let proxies = (self.proxies)(self.store).map_err(|fault| fault.why)?;
        let seen = proxies::wait(&proxies, &root, &expected, self.wait);
        // One that started meanwhile may have read what was there before.
        let now = (self.proxies)(self.store).map_err(|fault| fault.why)?;
        if now.iter().any(|proxy| !proxies.contains(proxy)) {
            return Ok(Acted::Look(Duration::ZERO));
        }
        for one in &seen {
            match &one.served {
                Ok(()) => tell(Report::Step(&format!("{}: serves it", one.proxy))),
                Err(why) => tell(Report::Step(&format!("{}: DOES NOT SERVE IT: {why}", one.proxy))),
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
        let told = format!(
            "the route is written, and not served by {}. If one is gone for good, name the others by --proxies",
            behind.join(", ")
        );
        Ok(Acted::Ended(Outcome::Partly, self.stuck(&told)))
    }

    /// A run that goes forward sees it at its next look. Without a journal none goes forward.
    fn note_back(&mut self) -> Result<(), String> {
        match (self.journal_version, self.journal.phase) {
            (None, _) | (_, Phase::Back) => Ok(()),
            _ => self.put(Journal { phase: Phase::Back, ..self.journal.clone() }),
        }
    }

    fn write(&mut self, data: Vec<u8>, version: i32) -> Result<Stat, String> {
        let path = self.store.znode_of(&self.journal.table);
        self.store.set(&path, data, version).map_err(|fault| fault.why)
    }
}

/// s since 1970.
fn now_s() -> u64 {
    Utc::now().0.as_secs()
}

fn id(side: &Side) -> Option<i32> {
    side.duplication.as_ref().map(|duplication| duplication.id)
}
