//! The clock of a cluster: config-sync, duplication sync, empty mutations, and the shipping of the log.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::state::{
    Core, DENY, DS_APP, DS_LOG, DS_PREPARE, DS_REMOVED, Duplication, Partition, State, Table, Write,
};

const TICK: Duration = Duration::from_millis(2);

/// The life of the thread.
pub(super) fn run(core: &Core) {
    loop {
        let parcels = {
            let mut state = core.state();
            if state.is_stopping {
                return;
            }
            let state = &mut *state;
            if state.is_mute {
                Vec::new()
            } else {
                let now = Instant::now();
                sync(core, state, now);
                write_when_idle(core, state, now);
                collect(core, state, now)
            }
        };
        for parcel in parcels {
            deliver(core, parcel);
        }
        copy_tables(core);
        thread::sleep(TICK);
    }
}

/// The work that is due at each server.
fn sync(core: &Core, state: &mut State, now: Instant) {
    for (index, server) in state.servers.iter_mut().enumerate() {
        if server.config_sync <= now {
            server.config_sync = now + core.config_sync;
            // As real servers do, it tries again only after the interval.
            if server.misses > 0 {
                server.misses -= 1;
                continue;
            }
            let tables = state.tables.values();
            let denied =
                tables.filter_map(|table| Some((table.app_id, table.envs.get(DENY)?.clone())));
            server.in_force = denied.collect();
        }
        if server.duplication_sync <= now {
            server.duplication_sync = now + core.duplication_sync;
            state.tables.values_mut().for_each(|table| sync_duplications(table, index));
        }
    }
}

/// A primary hears of new and of removed duplications, and tells how far it is, if it has moved.
fn sync_duplications(table: &mut Table, server: usize) {
    for duplication in &mut table.duplications {
        for (partition, progress) in table.partitions.iter().zip(&mut duplication.progress) {
            if partition.primary != server {
                continue;
            }
            match duplication.status {
                DS_REMOVED => progress.is_known = false,
                DS_PREPARE | DS_APP => {}
                _ => {
                    if progress.start.is_none() {
                        progress.start = Some(partition.committed);
                        progress.shipped = partition.committed;
                    }
                    progress.is_known = true;
                    progress.reported = progress.shipped;
                }
            }
        }
    }
    let is_over = |duplication: &Duplication| {
        duplication.status == DS_REMOVED && duplication.progress.iter().all(|at| !at.is_known)
    };
    table.duplications.retain(|duplication| !is_over(duplication));
}

fn write_when_idle(core: &Core, state: &mut State, now: Instant) {
    let partitions = state.tables.values_mut().flat_map(|table| &mut table.partitions);
    for partition in partitions.filter(|partition| now - partition.last_write >= core.idle) {
        partition.commit(None, false);
    }
}

/// Mutations of one partition on their way.
struct Parcel {
    remote: Arc<Core>,
    remote_table: String,
    /// Where they come from.
    table: String,
    duplication: i32,
    index: usize,
    ballot: i64,
    writes: Vec<Write>,
    /// The last decree among them.
    decree: i64,
}

fn collect(core: &Core, state: &State, now: Instant) -> Vec<Parcel> {
    let mut parcels = Vec::new();
    for (name, table) in state.tables.iter().filter(|(_, table)| !table.is_held) {
        for duplication in &table.duplications {
            let Some(remote) =
                state.remotes.get(&duplication.remote).and_then(|weak| weak.upgrade())
            else {
                continue;
            };
            // A primary goes on after a removal until it hears of it.
            if ![DS_LOG, DS_REMOVED].contains(&duplication.status) {
                continue;
            }
            let at = table.partitions.iter().zip(&duplication.progress).enumerate();
            for (index, (partition, progress)) in at.filter(|(_, (_, at))| at.is_known) {
                let last = partition.committed - i64::from(core.is_before_2_6);
                let first = partition.log.partition_point(|one| one.decree <= progress.shipped);
                let due = partition.log[first..].iter();
                let due: Vec<_> = due
                    .take_while(|one| one.decree <= last && one.at + partition.lag <= now)
                    .collect();
                let Some(decree) = due.last().map(|one| one.decree) else {
                    continue;
                };
                parcels.push(Parcel {
                    remote: Arc::clone(&remote),
                    remote_table: duplication.remote_table.clone(),
                    table: name.clone(),
                    duplication: duplication.id,
                    index,
                    ballot: partition.ballot,
                    writes: due.iter().filter_map(|one| one.write.clone()).collect(),
                    decree,
                });
            }
        }
    }
    parcels
}

fn deliver(core: &Core, parcel: Parcel) {
    if !apply(&mut parcel.remote.state(), &parcel) {
        return;
    }
    let mut state = core.state();
    let Some(table) = state.tables.get_mut(&parcel.table) else {
        return;
    };
    if table.partitions[parcel.index].ballot != parcel.ballot {
        return; // a new primary starts from what the MetaServer knows
    }
    let mut duplications = table.duplications.iter_mut();
    if let Some(one) = duplications.find(|one| one.id == parcel.duplication) {
        one.progress[parcel.index].shipped = parcel.decree;
    }
}

/// Whether the other cluster took all of it. Writes that it did take come again.
fn apply(remote: &mut State, parcel: &Parcel) -> bool {
    if remote.is_mute {
        return false;
    }
    for write in &parcel.writes {
        let Some(table) = remote.tables.get(&parcel.remote_table) else {
            return false;
        };
        let index = (write.hash % table.partitions.len() as u64) as usize;
        let denied = remote.denied(table.partitions[index].primary, table.app_id);
        if denied.ends_with("write") || denied.ends_with("all") {
            return false;
        }
        let table = remote.tables.get_mut(&parcel.remote_table).expect("it was there");
        table.partitions[index].commit(Some(write.clone()), true);
    }
    true
}

/// A duplication with checkpoint makes its table at the other cluster. One that is there already stops it for ever.
fn copy_tables(core: &Core) {
    let mut copies = Vec::new();
    {
        let mut state = core.state();
        let state = &mut *state;
        for table in state.tables.values_mut() {
            for duplication in &mut table.duplications {
                let age = duplication.started.elapsed();
                let remote = state.remotes.get(&duplication.remote).and_then(|weak| weak.upgrade());
                match (duplication.status, remote) {
                    (DS_PREPARE, Some(remote)) if age >= core.checkpoint[0] => {
                        let partitions: Vec<Partition> = table.partitions.clone();
                        for (at, partition) in duplication.progress.iter_mut().zip(&partitions) {
                            at.start = Some(partition.committed);
                            (at.shipped, at.reported) = (partition.committed, partition.committed);
                        }
                        let name = duplication.remote_table.clone();
                        copies.push((remote, name, table.envs.clone(), partitions, duplication.id));
                    }
                    (DS_APP, _) if age >= core.checkpoint[1] => duplication.status = DS_LOG,
                    _ => {}
                }
            }
        }
    }
    for (remote, name, envs, partitions, id) in copies {
        {
            let mut state = remote.state();
            if state.tables.contains_key(&name) {
                continue;
            }
            let app_id = 1 + state.tables.values().map(|table| table.app_id).max().unwrap_or(0);
            let servers = state.servers.len();
            let partitions = partitions.into_iter().enumerate().map(|(index, from)| Partition {
                data: from.data,
                ..Partition::new(index % servers)
            });
            let table = Table { envs, ..Table::new(app_id, partitions.collect()) };
            state.tables.insert(name, table);
        }
        let mut state = core.state();
        let mut all = state.tables.values_mut().flat_map(|table| &mut table.duplications);
        if let Some(one) = all.find(|one| one.id == id && one.status == DS_PREPARE) {
            one.status = DS_APP;
        }
    }
}
