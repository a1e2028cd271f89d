//! The aftermath of a fault: how long until every route is current again, and whether the proxies hold as much as
//! before.

use std::fmt;
use std::time::Duration;

use harness::wait::poll;

use crate::checker::{Asked, may_be_told};
use crate::weather::View;
use crate::world::World;

/// Far beyond what is allowed: the judge says no before.
const CURRENT_WITHIN: Duration = Duration::from_secs(60);
/// Time for the rest of connections that were given up to close: a server that was frozen says goodbye late.
const TIDY_WITHIN: Duration = Duration::from_secs(20);
/// More than before, for each proxy.
const MORE_THREADS: usize = 2;
/// More than before, for each proxy; those to MetaServers, which come and go with the load, are not counted.
const MORE_FDS: usize = 4;
/// More than before, for each proxy.
const MORE_RSS: u64 = 8 << 20;

/// Asks for all tables until each was told as it is at that time. How long that took, from now or, if there still was
/// trouble, from its end; `None` if the run ends before.
pub fn await_current(world: &World) -> Option<Duration> {
    let begin = world.now();
    let mut pending: Vec<View> = (0..world.proxy_count())
        .flat_map(|proxy| (0..world.names()).map(move |table| View { proxy, table }))
        .collect();
    let mut clients: Vec<_> = (0..world.proxy_count()).map(|_| None).collect();
    let current = poll(CURRENT_WITHIN, || {
        pending.retain(|view| {
            let Asked { sent, answered, told, .. } = world.ask(*view, &mut clients[view.proxy]);
            let (weather, history) = (world.weather(), world.history(view.table));
            let mut now = history.current_in(sent, answered);
            !now.any(|version| may_be_told(&history, &weather, *view, version, &told))
        });
        (pending.is_empty() || world.end.is_over()).then(|| world.now())
    });
    match current {
        _ if world.end.is_over() => None,
        Some(current) => {
            let calm_since = world.weather().calm_since().unwrap_or(current);
            Some(current.saturating_sub(calm_since.max(begin)))
        }
        None => {
            let names: Vec<_> =
                pending.iter().map(|view| (view.proxy, world.name(view.table))).collect();
            world.end.fail(|| {
                format!("not current within {CURRENT_WITHIN:?}: (proxy, table) {names:?}")
            });
            None
        }
    }
}

/// Threads, descriptors and memory of all proxies.
#[derive(Clone, Copy, Debug)]
pub struct Holdings {
    threads: usize,
    /// But for those to MetaServers.
    fds: usize,
    rss: u64,
}

impl Holdings {
    /// Now.
    pub fn of(world: &World) -> Self {
        let upstream: usize = world.clusters.iter().map(|meta| meta.open_connections()).sum();
        let proxies = world.proxies();
        let proxies = || proxies.iter();
        Holdings {
            threads: proxies().map(|proxy| proxy.threads().len()).sum(),
            fds: proxies().map(|proxy| proxy.open_fds()).sum::<usize>().saturating_sub(upstream),
            rss: proxies().map(|proxy| proxy.rss_bytes()).sum(),
        }
    }

    fn is_about(&self, before: &Holdings, proxies: usize) -> bool {
        self.threads <= before.threads + MORE_THREADS * proxies
            && self.fds <= before.fds + MORE_FDS * proxies
            && self.rss <= before.rss + MORE_RSS * proxies as u64
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Holdings { threads, fds, rss } = self;
        write!(f, "threads={threads} fds={fds} rss_mib={:.1}", *rss as f64 / f64::from(1 << 20))
    }
}

/// How much more is tolerated, for people.
pub fn tolerance() -> String {
    let mib = MORE_RSS >> 20;
    format!(
        "+{MORE_THREADS} threads, +{MORE_FDS} fds, +{mib} MiB for each proxy, within {TIDY_WITHIN:?}"
    )
}

/// Waits until the proxies hold about as much as before; fails the run if they do not.
pub fn await_tidy(world: &World, before: &Holdings) -> Holdings {
    let proxies = world.proxy_count();
    let tidy = || {
        let now = Holdings::of(world);
        (now.is_about(before, proxies) || world.end.is_over()).then_some(now)
    };
    poll(TIDY_WITHIN, tidy).unwrap_or_else(|| {
        let now = Holdings::of(world);
        let names: Vec<String> = world.proxies().iter().map(|proxy| summary(proxy.threads())).collect();
        world.end.fail(|| {
            let (names, tolerance) = (names.join("\n"), tolerance());
            format!("the proxies hold more than before: {now}; before: {before}; tolerated: {tolerance}\n{names}")
        });
        now
    })
}

/// Names with their counts.
fn summary(threads: Vec<String>) -> String {
    let runs = threads.chunk_by(|a, b| {
        a.trim_end_matches(char::is_numeric) == b.trim_end_matches(char::is_numeric)
    });
    let counted: Vec<String> = runs.map(|run| format!("{}x{}", run[0], run.len())).collect();
    counted.join(" ")
}
