//! A replica server of a cluster: it takes writes and reads for the partitions whose primary it is, and tells how far
//! they are, over RPC and, on the same port, over HTTP.

use std::sync::Arc;

use super::answers::{self, Replica};
use super::state::{Core, DS_LOG, State, Write};
use crate::listener::{Inbox, Link};
use crate::replica_server::{GET, PUT, got, put, read_get, read_put};
use crate::wire::{self, ERR_OK, Malformed, NEGOTIATION, NEGOTIATION_RESULT, Request};

/// Any that is let in fails, as no key has the value that it asks for.
const CHECK_AND_SET: &str = "RPC_RRDB_RRDB_CHECK_AND_SET";
const PS_PRIMARY: i32 = 3;
const PS_SECONDARY: i32 = 4;

/// The life of a connection to the server with this index.
pub(super) fn serve(core: &Core, index: usize, link: &Arc<Link>) {
    if let Some(path) = link.http_path() {
        if !core.state().is_mute {
            let (status, body) = page(core, index, &path);
            link.answer(|out| {
                out.extend(
                    format!(
                        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    )
                    .bytes(),
                );
            });
        }
        return;
    }
    for request in Inbox::new(link) {
        let Ok(request) = request else { return };
        match execute(core, index, &request) {
            Ok(Some((error, result))) => link.answer(|out| {
                wire::append_response(out, error, &request.method, request.seq, &result);
            }),
            Ok(None) => {}
            Err(_) => return,
        }
    }
}

/// The frame error and the result struct; `None`: it does not answer.
fn execute(
    core: &Core,
    index: usize,
    request: &Request,
) -> Result<Option<(&'static str, Vec<u8>)>, Malformed> {
    let mut state = core.state();
    if state.is_mute {
        return Ok(None);
    }
    let is_write = match request.method.as_str() {
        NEGOTIATION => return Ok(Some((ERR_OK, NEGOTIATION_RESULT.to_vec()))),
        "RPC_QUERY_REPLICA_INFO" => {
            return Ok(Some((ERR_OK, answers::replicas(&replicas(&state, index)))));
        }
        PUT => true,
        CHECK_AND_SET => true,
        GET => false,
        _ => return Ok(Some(("ERR_HANDLER_NOT_FOUND", Vec::new()))),
    };
    let (app_id, partition) = (request.app_id, request.partition);
    if request.method == CHECK_AND_SET && request.thread_hash != app_id * 7919 + partition {
        // A real server aborts, with all its partitions.
        state.is_mute = true;
        return Ok(None);
    }
    let deny = state.denied(index, app_id);
    let (how, what) = deny.split_once('*').unwrap_or_default();
    let is_denied = what == "all" || what == if is_write { "write" } else { "read" };
    let is_silent = how == "timeout";
    let table = state.tables.values_mut().find(|table| table.app_id == app_id);
    let is_duplicated = table.as_ref().is_some_and(|table| table.listed().next().is_some());
    let at = usize::try_from(partition).ok();
    let at = table.zip(at).and_then(|(table, at)| table.partitions.get_mut(at));
    let Some(at) = at else {
        return Ok(Some(("ERR_OBJECT_NOT_FOUND", Vec::new())));
    };
    if is_denied {
        return Ok((!is_silent).then(|| ("ERR_INVALID_STATE", Vec::new())));
    }
    if at.primary != index {
        return Ok(Some(("ERR_INVALID_STATE", Vec::new())));
    }
    if request.method == CHECK_AND_SET {
        if is_duplicated {
            return Ok(Some(("ERR_OPERATION_DISABLED", Vec::new())));
        }
        let decree = at.commit(None, false);
        return Ok(Some((ERR_OK, put(app_id, partition, decree))));
    }
    let result = if is_write {
        let (key, value) = read_put(&request.args)?;
        let decree = at.commit(Some(Write { hash: request.partition_hash, key, value }), false);
        put(app_id, partition, decree)
    } else {
        got(app_id, partition, at.data.get(&read_get(&request.args)?).map(Vec::as_slice))
    };
    Ok(Some((ERR_OK, result)))
}

/// Every server has every partition, as primary or secondary.
fn replicas(state: &State, index: usize) -> Vec<Replica> {
    let mut replicas = Vec::new();
    for table in state.tables.values() {
        for (at, partition) in table.partitions.iter().enumerate() {
            let is_primary = partition.primary == index;
            let committed = partition.committed;
            // A secondary hears of a commit with the next mutation.
            let told = if is_primary { committed } else { (committed - 1).max(0) };
            replicas.push(Replica {
                app_id: table.app_id,
                index: at as i32,
                ballot: partition.ballot,
                status: if is_primary { PS_PRIMARY } else { PS_SECONDARY },
                decrees: [told, committed, told],
            });
        }
    }
    replicas
}

fn page(core: &Core, index: usize, path: &str) -> (&'static str, String) {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let value = query.split_once('=').map_or("", |(_, value)| value);
    let page = match path {
        "/config" => setting(core, value),
        "/replica/duplication" => shipping(&core.state(), index, value),
        "/replica/data_version" => data_version(&core.state(), index, value),
        _ => None,
    };
    page.map_or(("404 Not Found", String::new()), |body| ("200 OK", body))
}

fn setting(core: &Core, name: &str) -> Option<String> {
    let (section, description, value) = match name {
        "config_sync_interval_ms" => (
            "replication",
            "The interval milliseconds of replica server to send replica config-sync requests to meta server",
            core.config_sync.as_millis(),
        ),
        _ => return None,
    };
    Some(
        format!(
            r#"{{"name":"{name}","section":"{section}","type":"FV_UINT32","tags":"flag_tag::FT_MUTABLE","description":"{description}","value":"{value}"}}"#
        ) + "\n",
    )
}

fn shipping(state: &State, index: usize, app_id: &str) -> Option<String> {
    let app_id: i32 = app_id.parse().ok()?;
    let (_, table) = state.table_of(app_id)?;
    let mut duplications = Vec::new();
    for one in &table.duplications {
        let at = table.partitions.iter().zip(&one.progress).enumerate();
        let here = at.filter(|(_, (partition, at))| partition.primary == index && at.is_known);
        let partitions: Vec<String> = here
            .map(|(number, (partition, at))| {
                let is_duplicating = one.status == DS_LOG;
                let not_confirmed = partition.committed - at.reported;
                let not_duplicated = partition.committed - at.shipped;
                let table = &one.remote_table;
                format!(
                    r#""{app_id}.{number}":{{"duplicating":{is_duplicating},"fail_mode":"FAIL_SLOW","not_confirmed_mutations_num":{not_confirmed},"not_duplicated_mutations_num":{not_duplicated},"remote_app_name":"{table}"}}"#
                )
            })
            .collect();
        if !partitions.is_empty() {
            duplications.push(format!(r#""{}":{{{}}}"#, one.id, partitions.join(",")));
        }
    }
    (!duplications.is_empty()).then(|| format!("{{{}}}", duplications.join(",")))
}

fn data_version(state: &State, index: usize, app_id: &str) -> Option<String> {
    let (_, table) = state.table_of(app_id.parse().ok()?)?;
    let here = table.partitions.iter().enumerate().filter(|(_, at)| at.primary == index);
    let here: Vec<String> =
        here.map(|(number, _)| format!(r#""{number}":{{"data_version":"1"}}"#)).collect();
    Some(format!("{{{}}}", here.join(",")))
}
