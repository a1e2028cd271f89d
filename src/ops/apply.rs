//! Carries out a plan: reads the znodes, writes what is due, and computes what every proxy must serve.

use std::collections::BTreeMap;

use super::plan::{Plan, State, Znode, conflict};
use super::proxies::{Expected, Root};
use super::record;
use super::store::{Routes, Run, Store};
use super::{Fault, Outcome};
use crate::route::record::Target;
use crate::zk::codec::{Answer, Op, Stat};

/// Conflicts that are shown in full.
const SHOWN_CONFLICTS: usize = 10;

/// Says how the plan stands. A conflict is a fault, and nothing is written.
pub fn look(store: &mut Store, plan: &Plan) -> Result<Run, Fault> {
    plan.check().map_err(Fault::failed)?;
    if plan.root != store.place.root || plan.clusters_root != store.place.clusters_root {
        let (wanted, got) = (&plan.root, &store.place.root);
        return Err(Fault::usage(format!("the plan is for the root {wanted}, this is {got}")));
    }
    let run = store.states(&plan.changes)?;
    match conflicts(plan, &run) {
        Some(conflicts) if run.done() > 0 => Err(Fault::new(Outcome::Partly, conflicts)),
        Some(conflicts) => Err(Fault::new(Outcome::Differs, conflicts)),
        None => Ok(run),
    }
}

fn conflicts(plan: &Plan, run: &Run) -> Option<String> {
    let states = plan.changes.iter().zip(&run.states).zip(&run.znodes);
    let shown: Vec<String> = states
        .filter(|((_, state), _)| **state == State::Conflict)
        .map(|((change, _), now)| conflict(change, now.as_ref()))
        .collect();
    let more = shown.len().saturating_sub(SHOWN_CONFLICTS);
    let more = if more > 0 { format!("\nand {more} more") } else { String::new() };
    let text = shown[..shown.len().min(SHOWN_CONFLICTS)].join("\n");
    (!shown.is_empty()).then(|| {
        format!(
            "changed since the plan was made, {} of {}:\n{text}{more}",
            shown.len(),
            run.states.len()
        )
    })
}

/// Writes the changes that are due. `run` has what was done, also after an `Err`.
pub fn write(
    store: &mut Store,
    plan: &Plan,
    run: &mut Run,
    done: impl FnMut(usize),
) -> Result<(), Fault> {
    let written = store.write(&plan.changes, run, done);
    let (count, all) = (run.done(), run.states.len());
    let outcome = |none| if count > 0 { Outcome::Partly } else { none };
    if let Err(fault) = written {
        let why = run.stopped.clone().unwrap_or(fault.why);
        let unknown = "what the last requests did is not known";
        // A request whose answer was lost may have succeeded.
        let why = format!("{why}; at least {count} of {all} are done, {unknown}");
        return Err(Fault::new(Outcome::Partly, why));
    }
    if let Some(conflicts) = conflicts(plan, run) {
        let why = format!("{count} of {all} are done, then it stopped; {conflicts}");
        return Err(Fault::new(outcome(Outcome::Differs), why));
    }
    match run.stopped.take().filter(|_| !run.is_done()) {
        None => Ok(()),
        Some(why) => {
            let why = format!("{count} of {all} are done, then it stopped: {why}");
            Err(Fault::new(outcome(Outcome::Failed), why))
        }
    }
}

/// The routes that each proxy serves when the plan is done.
pub fn expected(store: &mut Store, plan: &Plan, run: &Run) -> Result<Vec<Expected>, Fault> {
    let clusters = store.clusters()?;
    let deletes = plan.changes.iter().any(|change| change.is_deletion());
    // zxid of the newest creation or deletion of a table.
    let root_zxid = if deletes { root_stat(store)?.pzxid } else { 0 };
    let mut expected = Vec::new();
    let mut by_cluster: BTreeMap<&str, i64> = BTreeMap::new();
    for (change, state) in plan.changes.iter().zip(&run.states) {
        let State::Done(mzxid) = *state else { continue };
        if !plan.is_table(change) {
            by_cluster.insert(change.name(), mzxid);
            continue;
        }
        let place = match &change.after {
            // Proxies go on with the last good record, so nothing is expected of them.
            Some(after) => match store.place_of(&after.data.0, &clusters) {
                Ok(place) => Some(place),
                Err(_) => continue,
            },
            None => None,
        };
        let zxid = if change.is_deletion() { run.zxid.max(root_zxid) } else { mzxid };
        let table = change.name().to_owned();
        expected.push(Expected { table, zxid, place, by_cluster: false });
    }
    if !by_cluster.is_empty() {
        let Routes { rows, .. } = store.routes()?;
        for row in rows {
            let target = record::read(&row.znode.data, true);
            if let (Ok(Target::Cluster(name)), Ok(place)) = (target, row.place)
                && let Some(zxid) = by_cluster.get(name.as_str())
            {
                let place = Some(place);
                expected.push(Expected { table: row.table, zxid: *zxid, place, by_cluster: true });
            }
        }
    }
    Ok(expected)
}

/// The znodes of a plan as they are now.
pub fn znodes(store: &mut Store, plan: &Plan) -> Result<Vec<Option<Znode>>, Fault> {
    store.sync()?;
    let paths: Vec<String> = plan.changes.iter().map(|change| change.znode.clone()).collect();
    store.read(&paths)
}

/// The root, which tells proxies of another ZooKeeper from those of this one.
pub fn root(store: &mut Store) -> Result<Root, Fault> {
    let stat = root_stat(store)?;
    Ok(Root { path: store.place.root.clone(), czxid: stat.czxid, ctime_ms: stat.ctime_ms })
}

fn root_stat(store: &mut Store) -> Result<Stat, Fault> {
    let path = store.place.root.clone();
    match store.session().request(Op::Exists { path: path.clone(), watch: false }) {
        Ok(Answer::Stat(stat)) => Ok(stat),
        Ok(other) => Err(Fault::failed(format!("{path}: {other:?}"))),
        Err(e) => Err(Fault::failed(format!("{path}: {e}"))),
    }
}
