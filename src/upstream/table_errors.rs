//! Tables for which their cluster last answered an error. A route to the wrong cluster shows up here.
//!
//! Only errors are kept. So as long as no table has an error, a good answer only reads a counter.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::wire::error_code::{COUNTED, ERR_OK};

/// Most tables of one cluster; the table whose last error is oldest makes room. This is the default size of the route
/// cache.
const MAX_TABLES: usize = 1_024;

#[derive(Default)]
pub struct TableErrors {
    /// Number of `tables`, readable without the lock.
    count: AtomicUsize,
    tables: Mutex<HashMap<Box<str>, Entry>>,
}

struct Entry {
    err: &'static str,
    since: Instant,
    last: Instant,
    queries: u64,
}

/// The last answer of a table's cluster, if it was an error. `since` is the time since the first such answer in a row,
/// `last` the time since the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableError {
    pub err: &'static str,
    /// Number of queries with this answer in a row.
    pub queries: u64,
    pub since: Duration,
    pub last: Duration,
}

impl TableErrors {
    /// Counts `queries` about the table that had this answer. `counted_as` is an index into [`COUNTED`].
    pub fn answered(&self, table: &str, counted_as: usize, queries: u64) {
        let err = COUNTED[counted_as];
        if err == ERR_OK && self.count.load(Relaxed) == 0 {
            return;
        }
        let now = Instant::now();
        let mut tables = self.tables.lock();
        match tables.get_mut(table) {
            _ if err == ERR_OK => drop(tables.remove(table)),
            Some(entry) if entry.err == err => {
                (entry.last, entry.queries) = (now, entry.queries + queries);
            }
            _ => {
                if tables.len() >= MAX_TABLES {
                    let oldest = tables.iter().min_by_key(|(_, entry)| entry.last);
                    let oldest = oldest.map(|(table, _)| table.clone());
                    tables.retain(|table, _| Some(table) != oldest.as_ref());
                }
                tables.insert(table.into(), Entry { err, since: now, last: now, queries });
            }
        }
        self.count.store(tables.len(), Relaxed);
    }

    pub fn get(&self, table: &str) -> Option<TableError> {
        if self.count.load(Relaxed) == 0 {
            return None;
        }
        let tables = self.tables.lock();
        let Entry { err, since, last, queries } = tables.get(table)?;
        let (since, last) = (since.elapsed(), last.elapsed());
        Some(TableError { err, queries: *queries, since, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::error_code::{ERR_OBJECT_NOT_FOUND, counted_as};

    #[test]
    fn the_last_answer_counts_and_a_good_one_ends_it() {
        let errors = TableErrors::default();
        let told = |table| errors.get(table).map(|error| (error.err, error.queries));
        let say = |table, err, queries| errors.answered(table, counted_as(err), queries);
        say("a", ERR_OK, 1);
        assert_eq!(told("a"), None);
        say("a", ERR_OBJECT_NOT_FOUND, 2);
        say("a", ERR_OBJECT_NOT_FOUND, 3);
        say("b", "ERR_BUSY_CREATING", 1);
        assert_eq!(told("a"), Some((ERR_OBJECT_NOT_FOUND, 5)));
        say("a", "ERR_BUSY_DROPPING", 1);
        assert_eq!(told("a"), Some(("ERR_BUSY_DROPPING", 1)));
        say("a", ERR_OK, 1);
        assert_eq!((told("a"), told("b")), (None, Some(("ERR_BUSY_CREATING", 1))));
    }

    #[test]
    fn tables_are_bounded() {
        let errors = TableErrors::default();
        for n in 0..=MAX_TABLES {
            errors.answered(&n.to_string(), counted_as(ERR_OBJECT_NOT_FOUND), 1);
        }
        assert_eq!(errors.count.load(Relaxed), MAX_TABLES);
        assert_eq!(errors.get("0"), None);
        assert!(errors.get(&MAX_TABLES.to_string()).is_some());
    }
}
