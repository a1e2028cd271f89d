//! Waiting for a condition, always with a deadline. No test sleeps and hopes.

use std::time::{Duration, Instant};
use std::{io, thread};

/// The first looks are close together, so that what comes at once costs nothing; later ones leave the processor to
/// those who are waited for.
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Waits until `holds` says yes; panics with `what` if it does not within the given time.
#[track_caller]
pub fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    if poll(within, || holds().then_some(())).is_none() {
        panic!("not within {within:?}: {what}");
    }
}

/// Looks again and again until there is something to see, `None` when the time is over. Looks at least once.
pub fn poll<T>(within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + within;
    let mut pause = FIRST_PAUSE;
    loop {
        // Taken before the look, so that the last look is never older than the deadline.
        let over = Instant::now() >= deadline;
        if let Some(seen) = look() {
            return Some(seen);
        }
        if over {
            return None;
        }
        thread::sleep(pause.min(deadline.saturating_duration_since(Instant::now())));
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Whether a read or write ended because the socket's timeout is over. Linux says `WouldBlock` then.
pub fn is_timeout(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Whether a read or write ended without effect and is to be tried again: its time-out, or this process was
/// stopped and goes on, which ends those that have a time-out (signal(7)).
pub fn is_passing(e: &io::Error) -> bool {
    is_timeout(e) || e.kind() == io::ErrorKind::Interrupted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_late_is_seen_and_what_never_comes_is_named() {
        let mut looks = 0;
        eventually("the third look", Duration::from_secs(5), || {
            looks += 1;
            looks == 3
        });

        let never = std::panic::catch_unwind(|| {
            eventually("rain", Duration::from_millis(5), || false);
        });
        let message = *never.expect_err("it must give up").downcast::<String>().expect("a message");
        assert_eq!(message, "not within 5ms: rain");
    }

    #[test]
    fn no_time_at_all_is_still_one_look() {
        assert_eq!(poll(Duration::ZERO, || Some(1)), Some(1));
    }
}
