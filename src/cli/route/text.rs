//! Values as people read them. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use crate::logging::line::Utc;
use crate::ops::plan::{Change, Plan};
use crate::ops::view::Row;

/// Changes of a plan that are shown in full.
const SHOWN: usize = 40;

/// Columns that are as wide as their longest value.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut text = line(head.to_vec());
    for row in rows {
        text += &line(row.iter().map(String::as_str).collect());
    }
    text
}

/// ms since 1970 as RFC 3339, in UTC.
pub fn time(unix_ms: i64) -> String {
    Utc(Duration::from_millis(unix_ms.max(0) as u64)).to_string()
}

/// The cluster and the addresses of a route, or why there are none.
pub fn place(row: &Row) -> (String, String) {
    match &row.place {
        Ok(place) => (place.cluster.clone(), place.metas.join(",")),
        Err(why) => ("BROKEN".to_owned(), why.clone()),
    }
}

pub fn row(row: &Row) -> Value {
    let place = row.place.as_ref().ok();
    json!({
        "table": row.table,
        "cluster": place.map(|place| &place.cluster),
        "metas": place.map(|place| &place.metas),
        "fault": row.place.as_ref().err(),
        "version": row.znode.stat.version,
        "mzxid": format!("{:#x}", row.znode.stat.mzxid),
        "changed": time(row.znode.stat.mtime_ms),
    })
}

/// A plan as differences of what is in the znodes.
pub fn plan(plan: &Plan) -> String {
    let mut text = String::new();
    for change in plan.changes.iter().take(SHOWN) {
        text += &diff(change);
    }
    let more = plan.changes.len().saturating_sub(SHOWN);
    if more > 0 {
        text += &format!("and {more} more\n");
    }
    text
}

/// One change as the lines that go and come.
pub fn diff(change: &Change) -> String {
    let mut text = match &change.before {
        Some(before) => format!("{} (version {})\n", change.znode, before.version),
        None => format!("{} (not there)\n", change.znode),
    };
    if let Some(before) = &change.before {
        text += &format!("- {}\n", String::from_utf8_lossy(&before.data.0));
    }
    if let Some(after) = &change.after {
        text += &format!("+ {}\n", String::from_utf8_lossy(&after.data.0));
    }
    text
}

/// `1 table`, `2 tables`
pub fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Whether a name matches a pattern of letters, `*` and `?`.
pub fn is_like(name: &str, pattern: &str) -> bool {
    let (name, pattern): (Vec<char>, Vec<char>) =
        (name.chars().collect(), pattern.chars().collect());
    let (mut at, mut in_pattern, mut star) = (0, 0, None);
    while at < name.len() {
        match pattern.get(in_pattern) {
            Some('*') => {
                star = Some((in_pattern, at));
                in_pattern += 1;
            }
            Some(c) if *c == '?' || *c == name[at] => (at, in_pattern) = (at + 1, in_pattern + 1),
            _ => match star {
                // The last star takes one more.
                Some((of, from)) => {
                    star = Some((of, from + 1));
                    (at, in_pattern) = (from + 1, of + 1);
                }
                None => return false,
            },
        }
    }
    pattern[in_pattern..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (name, pattern, want) in [
            ("orders", "ord*", true),
            ("orders", "orders", true),
            ("orders", "order", false),
            ("orders", "*der*", true),
            ("orders", "o?ders", true),
            ("orders", "*x*", false),
            ("aXbXc", "a*X*c", true),
            ("", "*", true),
            ("a", "", false),
        ] {
            assert_eq!(is_like(name, pattern), want, "{name} {pattern}");
        }
    }
}
