//! The answers of a cluster's MetaServers.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::answers::{self, Args, Listed};
use super::state::{
    Core, DENY, DS_LOG, DS_PAUSE, DS_PREPARE, DS_REMOVED, Duplication, Progress, State, Table,
};
use crate::admin_rpc::{self, App};
use crate::wire::{ERR_OK, Partition, QUERY_CONFIG, Query, QueryCfgResponse};

const SET: i32 = 1;
const DENY_VALUES: [&str; 6] = [
    "timeout*all",
    "timeout*write",
    "timeout*read",
    "reconfig*all",
    "reconfig*write",
    "reconfig*read",
];
const PMT_MATCH_EXACT: i32 = 2;

/// The result struct, `None` for a method that the server does not have. With an error it says nothing else.
pub(super) fn answer(core: &Core, method: &str, args: &[u8], err: &str) -> Option<Vec<u8>> {
    let raw = args;
    let mut state = core.state();
    if method == QUERY_CONFIG {
        return Some(query_config(&state, &Query::decode(args).ok()?).encode());
    }
    let is_ok = err == ERR_OK;
    let args = Args::read(args).ok()?;
    let (table, now) = (args.text(1).to_owned(), state.tables.get(args.text(1)));
    Some(match method {
        admin_rpc::CLUSTER_INFO => {
            let root = format!("/pegasus/{}", core.name);
            let metas: Vec<String> = state.metas.iter().map(ToString::to_string).collect();
            let pairs = [
                ("meta_servers", metas.join(",")),
                ("primary_meta_server", metas[state.leader].clone()),
                ("zookeeper_root", root),
                ("meta_function_level", "steady".to_owned()),
                ("cluster_name", core.name.clone()),
            ];
            let pairs: Vec<_> = pairs.iter().map(|(key, value)| (*key, value.as_str())).collect();
            admin_rpc::cluster_info(err, if is_ok { &pairs } else { &[] })
        }
        admin_rpc::LIST_APPS => {
            let wants =
                |name: &str| args.number(3) != Some(PMT_MATCH_EXACT) || name == args.text(2);
            let wanted = state.tables.iter().filter(|(name, _)| is_ok && wants(name));
            let apps: Vec<App> = wanted.map(|(name, table)| app(name, table)).collect();
            admin_rpc::list_apps(err, &apps)
        }
        "RPC_CM_LIST_NODES" => {
            let all: Vec<_> = state.servers.iter().map(|server| server.addr).collect();
            answers::nodes(err, if is_ok { &all } else { &[] })
        }
        "RPC_CM_UPDATE_APP_ENV" if !is_ok => answers::env(err, ""),
        "RPC_CM_UPDATE_APP_ENV" if state.env_queue.is_some() => {
            // As in server_state.cpp: a deletion of nothing is answered at once, the rest waits for ZooKeeper.
            let has = |key: &String| now.is_some_and(|table| table.envs.contains_key(key));
            match args.number(2) != Some(SET) && !args.texts(3).iter().any(has) {
                true => answers::env(ERR_OK, "no key needs to be deleted"),
                false => {
                    state.env_queue.get_or_insert_default().push(raw.to_vec());
                    answers::env("ERR_TIMEOUT", "")
                }
            }
        }
        "RPC_CM_UPDATE_APP_ENV" => match update_env(&mut state, &table, &args) {
            Ok(hint) => answers::env(ERR_OK, &hint),
            Err((err, hint)) => answers::env(err, &hint),
        },
        admin_rpc::QUERY_DUPLICATION => match now {
            Some(now) if is_ok => {
                let all: Vec<_> = now.listed().collect();
                answers::queried(ERR_OK, now.app_id, &all, core.is_before_2_6)
            }
            _ => {
                let err = if is_ok { "ERR_APP_NOT_EXIST" } else { err };
                answers::queried(err, 0, &[], core.is_before_2_6)
            }
        },
        "RPC_CM_LIST_DUPLICATION" if core.is_before_2_6 => return None,
        "RPC_CM_LIST_DUPLICATION" => {
            let wants = |name: &str| args.number(2) != Some(PMT_MATCH_EXACT) || name == table;
            let wanted = state.tables.iter().filter(|(name, _)| is_ok && wants(name));
            let listed = wanted.map(|(name, table)| Listed {
                name,
                app_id: table.app_id,
                partition_count: table.partitions.len() as i32,
                duplications: table.listed().collect(),
            });
            answers::listed(err, &listed.collect::<Vec<_>>())
        }
        "RPC_CM_ADD_DUPLICATION" if !is_ok => answers::added(err, None, ""),
        "RPC_CM_ADD_DUPLICATION" => add_duplication(core, &mut state, &table, &args),
        "RPC_CM_MODIFY_DUPLICATION" if !is_ok => answers::modified(err, 0),
        "RPC_CM_MODIFY_DUPLICATION" => modify_duplication(&mut state, &table, &args),
        _ => return None,
    })
}

/// Carries out a change of envs that waited.
pub(super) fn apply_env(state: &mut State, raw: &[u8]) {
    let args = Args::read(raw).expect("it was read before");
    let table = args.text(1).to_owned();
    // Nobody waits for the answer.
    let _ = update_env(state, &table, &args);
}

fn query_config(state: &State, query: &Query) -> QueryCfgResponse {
    let Some(table) = state.tables.get(&query.table) else {
        return QueryCfgResponse::error("ERR_OBJECT_NOT_FOUND");
    };
    let servers = &state.servers;
    let count = table.partitions.len() as i32;
    let mut config = QueryCfgResponse::table(table.app_id, count, servers[0].addr);
    for (told, partition) in config.partitions.iter_mut().zip(&table.partitions) {
        let others =
            (1..servers.len().min(3)).map(|step| (partition.primary + step) % servers.len());
        *told = Partition {
            ballot: partition.ballot,
            primary: Some(servers[partition.primary].addr),
            secondaries: others.map(|other| servers[other].addr).collect(),
            last_committed_decree: partition.committed,
            ..told.clone()
        };
    }
    match query.indices.as_deref() {
        None | Some([]) => config,
        Some(indices) => config.only(indices),
    }
}

fn app(name: &str, table: &Table) -> App {
    let partition_count = table.partitions.len() as i32;
    App {
        name: name.to_owned(),
        app_id: table.app_id,
        partition_count,
        envs: table.envs.clone(),
        duplicating: table.listed().next().is_some(),
        is_splitting: table.is_splitting,
        is_bulk_loading: table.is_bulk_loading,
        ..App::default()
    }
}

/// The hint, or the error and the hint.
fn update_env(
    state: &mut State,
    table: &str,
    args: &Args,
) -> Result<String, (&'static str, String)> {
    let Some(table) = state.tables.get_mut(table) else {
        return Err(("ERR_APP_NOT_EXIST", "app cannot be found".to_owned()));
    };
    let (keys, values) = (args.texts(3), args.texts(4));
    if args.number(2) == Some(SET) {
        for (key, value) in keys.iter().zip(values) {
            if key != DENY && key != "default_ttl" {
                let hint = format!("app_env '{key}' is not supported");
                return Err(("ERR_INVALID_PARAMETERS", hint));
            }
            if key == DENY && !DENY_VALUES.contains(&value.as_str()) {
                let hint = "Invalid deny client args, valid include: timeout*all, timeout*write, \
                            timeout*read; reconfig*all, reconfig*write, reconfig*read";
                return Err(("ERR_INVALID_PARAMETERS", hint.to_owned()));
            }
        }
        table.envs.extend(keys.iter().cloned().zip(values.iter().cloned()));
        return Ok(String::new());
    }
    let deleted = keys.iter().filter(|key| table.envs.remove(*key).is_some());
    let deleted: Vec<String> = deleted.map(|key| format!("\n    {key}")).collect();
    match deleted.is_empty() {
        true => Ok("no key needs to be deleted".to_owned()),
        false => Ok(format!("deleted keys:{}", deleted.concat())),
    }
}

fn add_duplication(core: &Core, state: &mut State, name: &str, args: &Args) -> Vec<u8> {
    const REFUSED: &str = "ERR_INVALID_PARAMETERS";
    let remote = args.text(2);
    if remote == core.name {
        let hint = "illegal operation: adding duplication to itself";
        return answers::added(REFUSED, None, hint);
    }
    if !state.remotes.contains_key(remote) {
        let hint = format!(
            "get_duplication_cluster_id({remote}) failed, error: ERR_OBJECT_NOT_FOUND: \
             failed to get cluster id for  << {remote}"
        );
        return answers::added(REFUSED, None, &hint);
    }
    let id = 1 + state.last_duplication_id;
    let Some(table) = state.tables.get_mut(name) else {
        return answers::added("ERR_APP_NOT_EXIST", None, "");
    };
    let is_checkpoint = args.number(3) != Some(0);
    let app_id = table.app_id;
    let mut there = table.duplications.iter_mut().filter(|one| one.status != DS_REMOVED);
    if let Some(one) = there.find(|one| one.remote == remote) {
        if is_checkpoint && one.status != DS_PREPARE {
            let hint = format!("start dup[{name}({})] failed: err = {REFUSED}", one.id);
            return answers::added(REFUSED, None, &hint);
        }
        if !is_checkpoint && one.status == DS_PAUSE {
            one.status = DS_LOG;
        }
        return answers::added("ERR_DUP_EXIST", Some((app_id, one.id, &one.remote_table)), "");
    }
    let remote_table = if args.text(4).is_empty() { name } else { args.text(4) }.to_owned();
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    table.duplications.push(Duplication {
        id,
        status: if is_checkpoint { DS_PREPARE } else { DS_LOG },
        remote: remote.to_owned(),
        remote_table: remote_table.clone(),
        create_ms: since_1970.as_millis() as i64,
        started: Instant::now(),
        progress: vec![Progress::default(); table.partitions.len()],
    });
    state.last_duplication_id = id;
    answers::added(ERR_OK, Some((app_id, id, &remote_table)), "")
}

fn modify_duplication(state: &mut State, table: &str, args: &Args) -> Vec<u8> {
    let Some(table) = state.tables.get_mut(table) else {
        return answers::modified("ERR_APP_NOT_EXIST", 0);
    };
    let mut there = table.duplications.iter_mut().filter(|one| one.status != DS_REMOVED);
    let Some(one) = there.find(|one| Some(one.id) == args.number(2)) else {
        return answers::modified("ERR_OBJECT_NOT_FOUND", 0);
    };
    match (one.status, args.number(3)) {
        (_, None) => {}
        (_, Some(DS_REMOVED)) => one.status = DS_REMOVED,
        (DS_LOG | DS_PAUSE, Some(wanted @ (DS_LOG | DS_PAUSE))) => one.status = wanted,
        _ => return answers::modified("ERR_INVALID_PARAMETERS", 0),
    }
    answers::modified(ERR_OK, table.app_id)
}
