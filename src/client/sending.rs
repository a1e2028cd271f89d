//! Answers to a client: written by whoever has an answer, as far as the kernel takes it; the rest by `accept`.
//!
//! ```text
//! answers ─▶ outbox ─▶ write ─┬─ all taken
//!                             └─ some unsent ─▶ counted, watched ─▶ the socket is writable ─▶ write ...
//! unsent > max_unread_bytes, or any while clients hold too much: not read    half of it is taken: read again
//! ```
//! Answers to what was already read are always kept: a client is stopped by not reading it, and closed only when it
//! takes nothing.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::MutexGuard;

use super::close_reason::CloseReason;
use super::connection::Connection;
use super::note::Note;
use super::outbox::{Outbox, Reply};

impl Connection {
    /// Writes replies, answers to queries of this weight, as far as the client takes them; the rest waits for
    /// `accept`.
    pub fn send(self: &Arc<Self>, replies: impl IntoIterator<Item = Reply>, weight: u32) {
        let mut replies = replies.into_iter();
        let mut outbox = self.outbox.lock();
        let only = match (replies.next(), replies.next()) {
            (Some(only), None) if outbox.is_empty() => Some(only),
            (first, second) => {
                let all = first.into_iter().chain(second).chain(replies);
                all.for_each(|reply| outbox.push(reply));
                None
            }
        };
        // Before the client can read them and ask again, and with the lock, for who sees that nothing is under way
        // looks into the outbox next.
        self.answered(weight);
        let result = self.write(&mut outbox, only);
        self.settle(outbox, result);
        self.close_if_done();
    }

    /// The socket takes bytes again.
    pub fn flush(self: &Arc<Self>) {
        if !self.unsent.is_none() {
            let mut outbox = self.outbox.lock();
            let result = self.write(&mut outbox, None);
            self.settle(outbox, result);
            self.close_if_done();
        }
    }

    /// Writes what waits, or `only`, which is the only reply and in most cases is taken whole.
    fn write(&self, outbox: &mut Outbox, mut only: Option<Reply>) -> io::Result<()> {
        loop {
            let before = outbox.unread() + only.as_ref().map_or(0, Reply::frame_bytes);
            let result = match (self.is_closed(), only.take()) {
                (true, _) => Ok(()),
                (false, Some(reply)) => outbox.write_through(reply, &mut &self.stream),
                (false, None) => outbox.write_to(&mut &self.stream),
            };
            if result.is_err() || self.is_closed() {
                outbox.clear();
            }
            if !self.unsent.note(before, outbox.unread(), || self.hub.now_ms()) {
                return result;
            }
        }
    }

    /// Acts on the outcome of a write.
    fn settle(self: &Arc<Self>, mut outbox: MutexGuard<'_, Outbox>, result: io::Result<()>) {
        let unread = outbox.unread();
        outbox.count_bodies(&self.share);
        self.share.set_held(&self.outbox_bytes, outbox.own_bytes());
        let is_readable =
            self.readiness.is_paused() && self.has_taken_enough(unread) && self.readiness.unpause();
        drop(outbox);
        if unread > 0 {
            self.hub.check_held(self.limits.max_unread_total_bytes);
            self.watch(self.unsent.since_ms(), self.limits.unread_timeout);
        }
        if let Err(e) = result {
            self.close(CloseReason::Io(e));
        }
        if is_readable {
            self.forgive_half_frame();
            self.set_noticed(Instant::now());
            self.hub.tell(Note::Readable(self.key()));
        }
    }

    /// Whether the client is not read from now on because of what is unsent. For the worker whose turn it is.
    pub(super) fn pause_if_overfull(&self) -> bool {
        if self.unsent.is_none() {
            return false;
        }
        // Under the lock, so that what is sent after it sees that the client is paused.
        let outbox = self.outbox.lock();
        let is_overfull = outbox.unread() > self.limits.max_unread_bytes
            || outbox.unread() > 0 && self.share.is_full(&self.limits);
        if is_overfull {
            self.readiness.pause();
        }
        is_overfull
    }

    fn has_taken_enough(&self, unread: usize) -> bool {
        unread == 0
            || unread <= self.limits.max_unread_bytes / 2 && !self.share.is_full(&self.limits)
    }

    /// Whether not even answers are kept for it any more: all clients together hold twice what they may, and this one
    /// more than its part.
    pub fn is_flooded(&self) -> bool {
        self.share.is_flooded(&self.limits)
            && !self.unsent.is_none()
            && self.outbox.lock().unread() > self.limits.max_unread_bytes
    }
}
