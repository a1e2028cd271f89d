//! Asks several servers at once, each on its own thread. A slow server delays no other.

use std::thread;

/// Returns the answers in the order of `asked`. `None`: the thread panicked. The caller bounds the number of threads.
pub fn ask_each<A: Sync, T: Send>(asked: &[A], ask: impl Fn(&A) -> T + Sync) -> Vec<Option<T>> {
    let ask = &ask;
    thread::scope(|scope| {
        let threads: Vec<_> = asked.iter().map(|one| scope.spawn(move || ask(one))).collect();
        threads.into_iter().map(|thread| thread.join().ok()).collect()
    })
}
