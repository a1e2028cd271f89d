//! Writes answers to a client. The thread that has an answer writes as much as the kernel takes; `accept` writes the
//! rest.
//!
//! ```text
//! answers ─▶ outbox ─▶ write ─┬─ all taken
//!                             └─ some unsent ─▶ counted, watched ─▶ the socket is writable ─▶ write ...
//! unsent > max_unread_bytes, or any while clients hold too much: not read    half of it is taken: read again
//! ```
//! The proxy keeps the answers to all queries that it has read. It slows a client down by not reading it, and closes it
//! only when it takes nothing.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::MutexGuard;

use super::close_reason::CloseReason;
use super::connection::Connection;
use super::note::Note;
use super::outbox::{Outbox, Reply};

impl Connection {
    /// Writes replies to queries of this weight, as far as the client takes them; the rest waits for `accept`.
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
        // Uncount the queries before the client can read the replies and send more. Do so under the lock, because a
        // thread that sees no query under way looks into the outbox next.
        self.answered(weight);
        let result = self.write(&mut outbox, only);
        self.settle(outbox, result);
        self.close_if_done();
    }

    /// Writes unsent answers: the socket takes bytes again.
    pub fn flush(self: &Arc<Self>) {
        if !self.unsent.is_none() {
            let mut outbox = self.outbox.lock();
            let result = self.write(&mut outbox, None);
            self.settle(outbox, result);
            self.close_if_done();
        }
    }

    /// Writes the outbox, or `only`, which is the only reply and mostly leaves whole.
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
            if !self.unsent.record_write(before, outbox.unread(), || self.hub.now_ms()) {
                return result;
            }
        }
    }

    /// After a write: closes the connection on an error, counts unsent bytes, pauses or unpauses the client.
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

    /// Pauses the client if it has too many unsent answers. True: it is paused. Only the worker that has the connection
    /// may call this.
    pub(super) fn pause_if_overfull(&self) -> bool {
        if self.unsent.is_none() {
            return false;
        }
        // Pause under the lock, so that a later send sees that the client is paused.
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

    /// Whether the proxy keeps no more answers for this client: all clients together hold twice the limit, and this one
    /// holds more than its part.
    pub fn is_flooded(&self) -> bool {
        self.share.is_flooded(&self.limits)
            && !self.unsent.is_none()
            && self.outbox.lock().unread() > self.limits.max_unread_bytes
    }
}
