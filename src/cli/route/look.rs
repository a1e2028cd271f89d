//! `route ls`, `get` and `export`: what is there.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::args::Args;
use super::context::Context;
use super::perform::served_by;
use super::{Ended, text};
use crate::ops::record;
use crate::ops::store::check_name;
use crate::ops::view::Row;
use crate::ops::{Fault, Outcome};

/// All routes, or those that are asked for.
pub fn ls(args: &Args) -> Ended {
    let context = Context::new(args)?;
    let mut rows = context.open()?.routes()?.rows;
    let cluster = args.value("cluster");
    let like = args.value("like");
    rows.retain(|row| {
        let named = row.place.as_ref().map(|place| place.cluster.as_str()).ok();
        cluster.is_none_or(|cluster| named == Some(cluster))
            && like.is_none_or(|pattern| text::is_like(&row.table, pattern))
            && (row.place.is_err() || !args.is_set("broken"))
    });
    if context.json {
        let rows: Vec<Value> = rows.iter().map(text::row).collect();
        crate::cli::print(&format!("{:#}\n", json!({ "routes": rows })));
        return Ok(Outcome::Done);
    }
    let line = |row: &Row| {
        let (cluster, metas) = text::place(row);
        let stat = &row.znode.stat;
        vec![row.table.clone(), cluster, metas, stat.version.to_string(), text::time(stat.mtime_ms)]
    };
    let lines: Vec<Vec<String>> = rows.iter().map(line).collect();
    let head = ["TABLE", "CLUSTER", "METAS", "VERSION", "CHANGED"];
    crate::cli::print(&text::table(&head, &lines));
    Ok(Outcome::Done)
}

/// One route, whole.
pub fn get(args: &Args) -> Ended {
    let context = Context::new(args)?;
    let table = args.operand.as_deref().unwrap_or_default();
    check_name(table)?;
    let mut store = context.open()?;
    store.sync()?;
    let znode = store.znode_of(table);
    let found = store.znode(&znode)?;
    let found = found.ok_or_else(|| Fault::failed(format!("{znode}: no such znode")))?;
    let acl = store.acl(&znode)?;
    let clusters = store.clusters()?;
    let place = store.place_of(&found.data, &clusters);
    let row = Row { table: table.to_owned(), znode: found, place };
    let proxies = &context.proxies(&mut store)?;
    let served = served_by(proxies, table);
    let acl: Vec<String> = acl.iter().map(ToString::to_string).collect();
    let record = String::from_utf8_lossy(&row.znode.data).into_owned();
    if context.json {
        let mut told = text::row(&row);
        told["record"] = record.into();
        told["acl"] = acl.into();
        told["proxies"] =
            served.iter().map(|(proxy, said)| json!({"proxy": proxy, "serves": said})).collect();
        crate::cli::print(&format!("{told:#}\n"));
        return Ok(Outcome::Done);
    }
    let (cluster, metas) = text::place(&row);
    let stat = &row.znode.stat;
    let mut lines = vec![
        vec!["znode".to_owned(), znode],
        vec!["record".to_owned(), record],
        vec!["cluster".to_owned(), cluster],
        vec!["metas".to_owned(), metas],
        vec!["version".to_owned(), stat.version.to_string()],
        vec!["mzxid".to_owned(), format!("{:#x}", stat.mzxid)],
        vec!["changed".to_owned(), text::time(stat.mtime_ms)],
        vec!["acl".to_owned(), acl.join(" ")],
    ];
    lines.extend(served.into_iter().map(|(proxy, said)| vec![proxy, said]));
    let rest = text::table(&["table", table], &lines);
    crate::cli::print(&rest);
    Ok(Outcome::Done)
}

/// Prints all routes as a routes file. A route whose record is no JSON object is reported and left out.
pub fn export(args: &Args) -> Ended {
    let context = Context::new(args)?;
    let rows = context.open()?.routes()?.rows;
    let mut records = BTreeMap::new();
    let mut outcome = Outcome::Done;
    for row in rows {
        match record::compact(&row.znode.data) {
            Some(record) => {
                records.insert(row.table, record);
            }
            None => {
                crate::cli::complain(&format!(
                    "{}: left out: its record is no JSON object",
                    row.table
                ));
                outcome = Outcome::Differs;
            }
        }
    }
    // A line a table, for people and `diff`.
    let lines: Vec<String> =
        records.iter().map(|(table, record)| format!("  {}: {record}", json!(table))).collect();
    match crate::cli::print(&format!("{{\n{}\n}}\n", lines.join(",\n"))) {
        true => Ok(outcome),
        false => Err(Fault::failed("the routes are not all printed")),
    }
}
