//! Conditions of a move. Pure: what was seen comes in, a line for each check comes out.

use std::fmt;

use super::state::Partition;
use crate::ops::admin_move::Duplication;
use crate::ops::admin_rpc::App;
use crate::ops::record::Place;
use crate::ops::view::{Leader, View, is_same_cluster};

/// Mutations of a partition that may be unsent when a move begins: servers that keep up have some dozens.
const MAX_UNSENT: i64 = 1_000;

/// `config_sync_interval_ms` as servers have it by themselves.
const USUAL_INTERVAL_MS: u64 = 30_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Ok,
    /// The operator should know.
    Warn,
    /// Nothing is begun.
    Stop,
}

/// A check and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub level: Level,
    pub told: String,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok  ",
            Level::Warn => "WARN",
            Level::Stop => "STOP",
        };
        write!(f, "{level} {}", self.told)
    }
}

/// One of the two clusters as it was seen.
pub struct Seen<'a> {
    pub place: &'a Place,
    pub view: &'a View,
    /// Checks of the table.
    pub duplications: Result<Vec<Duplication>, String>,
    pub partitions: Result<Vec<Partition>, String>,
    pub interval_ms: Result<u64, String>,
    /// Whether the primaries answer probes; `None`: they were not asked.
    pub probe: Option<Result<(), String>>,
}

impl Seen<'_> {
    fn leader(&self) -> Option<&Leader> {
        self.view.leader.as_ref()
    }

    fn app(&self, table: &str) -> Option<&App> {
        self.leader()?.apps.get(table)
    }

    fn name(&self) -> &str {
        self.leader().and_then(|leader| leader.name.as_deref()).unwrap_or(&self.place.cluster)
    }

    fn to(&self, other: &Seen<'_>) -> Option<&Duplication> {
        let name = other.name();
        self.duplications.as_ref().ok()?.iter().find(|duplication| duplication.remote == name)
    }
}

/// How the operator wants it.
pub struct Wish {
    pub keeps_undo: bool,
    /// Writes are refused for so long at most.
    pub max_refused_ms: Option<u64>,
    /// The shortest limit that the servers can keep.
    pub least_ms: u64,
}

/// All checks. A check is left out if an earlier one failed to read what it needs.
pub fn checks(table: &str, old: &Seen<'_>, new: &Seen<'_>, wish: &Wish) -> Vec<Check> {
    let mut list = List(Vec::new());
    for side in [old, new] {
        leader(&mut list, table, side);
    }
    let (Some(old_app), Some(new_app)) = (old.app(table), new.app(table)) else { return list.0 };
    let is_same =
        old.leader().zip(new.leader()).is_some_and(|(old, new)| is_same_cluster(old, new));
    list.stop_if(is_same, "the two are different clusters", || {
        format!("both are {}: want two clusters", old.name())
    });
    let counts = (old_app.partition_count, new_app.partition_count);
    list.stop_if(counts.0 != counts.1, &format!("{} partitions in both", counts.0), || {
        format!(
            "{} partitions in {}, {} in {}",
            counts.0, old.place.cluster, counts.1, new.place.cluster
        )
    });
    for (side, app) in [(old, old_app), (new, new_app)] {
        let cluster = &side.place.cluster;
        list.stop_if(app.is_bulk_loading, &format!("{cluster}: no bulk load"), || {
            format!("{cluster}: the table is bulk loading")
        });
        // During a split some partitions have no primary. A finished split may leave this number behind.
        if app.init_partition_count > 0 && app.init_partition_count != app.partition_count {
            list.warn(format!(
                "{cluster}: the table had {} partitions once: no split may be under way",
                app.init_partition_count
            ));
        }
        let denies = app.denies();
        list.stop_if(denies.is_some(), &format!("{cluster}: clients are not denied"), || {
            let value = denies.unwrap_or_default();
            format!("{cluster}: the table denies its clients: {value}. One that a duplication made has the envs of its source")
        });
        match &side.partitions {
            Ok(_) => list.ok(format!("{cluster}: every partition has a primary")),
            Err(why) => list.stop(why.clone()),
        }
    }
    match &old.probe {
        Some(Ok(())) => list.ok(format!("{}: every primary answers a probe", old.place.cluster)),
        Some(Err(why)) => list.stop(why.clone()),
        None => {}
    }
    duplication(&mut list, table, old, new);
    let name = |side: &Seen<'_>| side.place.cluster.clone();
    match (new.to(old), wish.keeps_undo) {
        (Some(back), true) => match back.why_it_may_lose() {
            None => list.ok(format!("{} already duplicates to {}", name(new), name(old))),
            Some(why) => list.stop(format!("{} -> {}: {why}", name(new), name(old))),
        },
        (Some(_), false) => list.warn(format!(
            "{} duplicates to {}, too: clients that write to both lose writes",
            name(new),
            name(old)
        )),
        (None, true) => list.ok(format!("{} will duplicate to {}", name(new), name(old))),
        (None, false) => list.warn(format!(
            "there is no way back without loss of what {} takes: --keep-undo has one",
            name(new)
        )),
    }
    interval(&mut list, old, wish);
    let twin = old.leader().and_then(|leader| {
        leader.apps.values().find(|app| app.app_id == new_app.app_id && app.name != table)
    });
    if let Some(twin) = twin {
        list.warn(format!(
            "{} has app id {} in {}, as {} has in {}: C++ clients may reach the wrong table for a moment",
            table, new_app.app_id, name(new), twin.name, name(old)
        ));
    }
    let replicas = (old_app.max_replica_count, new_app.max_replica_count);
    if replicas.0 != replicas.1 {
        list.warn(format!(
            "{} replicas in {}, {} in {}",
            replicas.0,
            name(old),
            replicas.1,
            name(new)
        ));
    }
    list.warn(
        "while a table duplicates, its servers refuse incr, check_and_set and check_and_mutate"
            .to_owned(),
    );
    list.0
}

fn leader(list: &mut List, table: &str, side: &Seen<'_>) {
    let cluster = &side.place.cluster;
    let Some(leader) = side.leader() else {
        return list.stop(format!("{cluster}: no leader answers: {}", side.view.why_no_leader()));
    };
    list.ok(format!("{cluster}: its leader answers at {}", leader.addr));
    match &leader.name {
        Some(name) if name == cluster => list.ok(format!("{cluster}: it calls itself so")),
        Some(name) => list.stop(format!("{cluster}: it calls itself {name}")),
        None => {
            list.warn(format!("{cluster}: its servers are too old to say their cluster's name"))
        }
    }
    let has = leader.apps.contains_key(table);
    list.stop_if(!has, &format!("{cluster}: the table is available"), || {
        format!("{cluster}: the table is not there, or not available")
    });
}

fn duplication(list: &mut List, table: &str, old: &Seen<'_>, new: &Seen<'_>) {
    let way = format!("{} -> {}", old.place.cluster, new.place.cluster);
    if let Err(why) = &old.duplications {
        return list.stop(format!("{way}: the duplications are not known: {why}"));
    }
    let Some(duplication) = old.to(new) else {
        return list.stop(format!("{way}: the table is not duplicated there"));
    };
    match duplication.why_it_may_lose() {
        None => list.ok(format!("{way}: duplication in DS_LOG")),
        Some(why) => list.stop(format!("{way}: {why}")),
    }
    let remote = &duplication.remote_table;
    let is_other = !remote.is_empty() && remote != table;
    list.stop_if(is_other, &format!("{way}: to the table of this name"), || {
        format!("{way}: it goes to the table {remote}")
    });
    if !duplication.has_decrees {
        list.warn(format!(
            "{}: servers before 2.6 ship the last write of a partition when another follows, up to 120 s later",
            old.place.cluster
        ));
    }
    let others = old.duplications.iter().flatten().filter(|one| one.id != duplication.id);
    let others: Vec<&str> = others.map(|other| other.remote.as_str()).collect();
    if !others.is_empty() {
        list.warn(format!(
            "{}: it duplicates to {}, too, which gets nothing any more after the move",
            old.place.cluster,
            others.join(", ")
        ));
    }
    let Ok(partitions) = &old.partitions else { return };
    let idle = partitions.iter().find(|partition| !partition.is_duplicating());
    list.stop_if(idle.is_some(), &format!("{way}: every partition duplicates"), || {
        let index = idle.map_or(0, |partition| partition.replica.index);
        format!("{way}: partition {index} does not duplicate")
    });
    let most = partitions.iter().filter_map(Partition::unsent).max().unwrap_or(0);
    list.stop_if(
        most > MAX_UNSENT,
        &format!("{way}: at most {most} mutations of a partition are unsent"),
        || format!("{way}: {most} mutations of a partition are unsent, want {MAX_UNSENT} at most"),
    );
}

fn interval(list: &mut List, old: &Seen<'_>, wish: &Wish) {
    let cluster = &old.place.cluster;
    match &old.interval_ms {
        Ok(ms) => {
            list.ok(format!(
                "{cluster}: its replica servers hear of changes within {}",
                seconds(*ms)
            ));
            if *ms < USUAL_INTERVAL_MS {
                list.warn(format!(
                    "{cluster}: they say so, but a value that /updateConfig set may not be in force"
                ));
            }
        }
        Err(why) => {
            return list.stop(format!("{cluster}: the config-sync interval is not known: {why}"));
        }
    }
    let least = wish.least_ms;
    let limit = wish.max_refused_ms;
    list.stop_if(
        limit.is_some_and(|limit| limit < least),
        &format!("writes are refused for {} at most", seconds(limit.unwrap_or(least))),
        || format!("--max-refused: want {} at least, which these servers need", seconds(least)),
    );
}

/// `1.5 s`
pub fn seconds(ms: u64) -> String {
    match ms.is_multiple_of(1_000) {
        true => format!("{} s", ms / 1_000),
        false => format!("{:.1} s", ms as f64 / 1_000.0),
    }
}

struct List(Vec<Check>);

impl List {
    fn add(&mut self, level: Level, told: String) {
        self.0.push(Check { level, told });
    }

    fn ok(&mut self, told: String) {
        self.add(Level::Ok, told);
    }

    fn warn(&mut self, told: String) {
        self.add(Level::Warn, told);
    }

    fn stop(&mut self, told: String) {
        self.add(Level::Stop, told);
    }

    fn stop_if(&mut self, is_bad: bool, good: &str, bad: impl FnOnce() -> String) {
        match is_bad {
            true => self.stop(bad()),
            false => self.ok(good.to_owned()),
        }
    }
}
