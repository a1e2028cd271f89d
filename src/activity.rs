//! The current work of each thread, for `/threads`. The proxy uses plain threads, so this shows what the proxy does.
//!
//! ```text
//! worker-007 ─▶ activity::now("calls a cluster", "c3 orders") ─▶ its own slot ◀── list() ── /threads
//! ```
//! A slot belongs to one thread, so its lock is free unless `/threads` reads it. The slot ends with the thread. A
//! thread that never records its work is listed without it.

use std::cell::OnceCell;
use std::fs;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The work of a worker that makes no call: it serves clients, or waits for them.
pub const SERVING: &str = "serves clients";

struct Doing {
    what: &'static str,
    /// The cluster, table or server of the work; may be empty.
    subject: String,
    since: Instant,
}

struct Slot {
    thread_id: i32,
    doing: Mutex<Doing>,
}

static SLOTS: Mutex<Vec<Weak<Slot>>> = Mutex::new(Vec::new());

thread_local! {
    static OWN: OnceCell<Arc<Slot>> = const { OnceCell::new() };
}

/// Records what this thread does from now on, and for which names, which are joined by spaces.
pub fn now(what: &'static str, subject: &[&str]) {
    let set = |slot: &Arc<Slot>| {
        let mut doing = slot.doing.lock();
        doing.what = what;
        doing.since = Instant::now();
        // This mostly needs no new allocation.
        doing.subject.clear();
        for (at, part) in subject.iter().enumerate() {
            doing.subject.extend((at > 0).then_some(' '));
            doing.subject.push_str(part);
        }
    };
    // A thread that is ending has no slot any more, and needs none.
    let _ = OWN.try_with(|own| set(own.get_or_init(register)));
}

/// Records the work like [`now`], unless it is recorded already: `since` then stays.
pub fn go_on(what: &'static str, subject: &[&str]) {
    let is_same = |own: &OnceCell<Arc<Slot>>| {
        own.get().is_some_and(|slot| {
            let doing = slot.doing.lock();
            doing.what == what && doing.subject == subject.join(" ")
        })
    };
    if !OWN.try_with(is_same).unwrap_or(true) {
        now(what, subject);
    }
}

fn register() -> Arc<Slot> {
    let doing = Doing { what: "", subject: String::new(), since: Instant::now() };
    let thread_id = rustix::thread::gettid().as_raw_nonzero().get();
    let slot = Arc::new(Slot { thread_id, doing: Mutex::new(doing) });
    let mut slots = SLOTS.lock();
    slots.retain(|slot| slot.strong_count() > 0);
    slots.push(Arc::downgrade(&slot));
    slot
}

/// A thread as the page shows it.
#[derive(Debug, PartialEq)]
pub struct Thread {
    pub name: String,
    /// The id in gdb, top and perf.
    pub thread_id: i32,
    /// `running`, `waiting`, or `disk`: the thread waits for a disk or a page.
    pub state: &'static str,
    pub cpu: Duration,
    pub doing: Option<&'static str>,
    pub subject: String,
    /// For how long the thread has done this.
    pub since: Option<Duration>,
}

/// All threads of the process, by name.
pub fn list() -> Vec<Thread> {
    let slots: Vec<Arc<Slot>> = SLOTS.lock().iter().filter_map(Weak::upgrade).collect();
    let entries = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut threads: Vec<Thread> = ids
        .filter_map(|thread_id| {
            let stat = fs::read_to_string(format!("/proc/self/task/{thread_id}/stat")).ok()?;
            let (name, state, ticks) = read_stat(&stat)?;
            let slot = slots.iter().find(|slot| slot.thread_id == thread_id);
            let doing = slot.map(|slot| slot.doing.lock());
            Some(Thread {
                name: name.to_owned(),
                thread_id,
                state: match state {
                    "R" => "running",
                    "D" => "disk",
                    _ => "waiting",
                },
                cpu: Duration::from_millis(1_000 * ticks / rustix::param::clock_ticks_per_second()),
                doing: doing.as_ref().map(|doing| doing.what),
                subject: doing.as_ref().map(|doing| doing.subject.clone()).unwrap_or_default(),
                since: doing.as_ref().map(|doing| doing.since.elapsed()),
            })
        })
        .collect();
    threads.sort_by(|a, b| (&a.name, a.thread_id).cmp(&(&b.name, b.thread_id)));
    threads
}

/// Name, state and CPU time in ticks: `17 (worker-007) S 1 ...`, where the name may have spaces and parentheses.
fn read_stat(stat: &str) -> Option<(&str, &str, u64)> {
    let (head, rest) = stat.rsplit_once(") ")?;
    let name = head.split_once('(')?.1;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // proc(5): the state is the third field, user and system time are the fourteenth and fifteenth.
    let time: u64 = fields.get(11..13)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some((name, fields.first()?, time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn a_thread_is_listed_with_what_it_does_until_it_ends() {
        let (tell, told) = mpsc::channel::<()>();
        let (started, starts) = mpsc::channel();
        let worker = thread::Builder::new().name("worker-(x) 7".to_owned());
        let worker = worker
            .spawn(move || {
                now("serves", &[]);
                now("calls a cluster", &["c3", "orders"]);
                started.send(()).unwrap();
                let _ = told.recv();
            })
            .unwrap();
        starts.recv().unwrap();
        let find = || list().into_iter().find(|thread| thread.name == "worker-(x) 7");
        let found = find().expect("it is listed");
        assert_eq!((found.doing, found.subject.as_str()), (Some("calls a cluster"), "c3 orders"));
        assert!(found.since.is_some() && found.thread_id > 0);
        drop(tell);
        worker.join().unwrap();
        let held = SLOTS.lock().iter().filter_map(Weak::upgrade).count();
        assert!(!SLOTS.lock().is_empty() && held <= list().len());
    }

    #[test]
    fn a_stat_line_is_read_whatever_the_name() {
        let line = "17 (a) b) S 1 1 1 0 -1 4194304 1 0 0 0 250 50 0 0 20 0 1 0 1 1 1";
        assert_eq!(read_stat(line), Some(("a) b", "S", 300)));
        assert_eq!(read_stat("17 (a"), None);
    }
}
