//! Asks several others at once, each on a thread of its own, so that a slow one costs its own time only.

use std::thread;

/// The answers in the order of `asked`; `None`: its thread panicked. The caller says how many are asked at once.
pub fn ask_each<A: Sync, T: Send>(asked: &[A], ask: impl Fn(&A) -> T + Sync) -> Vec<Option<T>> {
    let ask = &ask;
    thread::scope(|scope| {
        let threads: Vec<_> = asked.iter().map(|one| scope.spawn(move || ask(one))).collect();
        threads.into_iter().map(|thread| thread.join().ok()).collect()
    })
}
