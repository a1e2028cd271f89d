//! Bytes from a client: the bytes of one read go in, whole frames come out, the start of an unfinished frame stays.
//!
//! ```text
//! one read ─▶ feed ─┬─ whole frames ─▶ given to the caller, in order
//!                   └─ the start of one ─▶ kept until the next read; its deadline counts from its first byte
//! ```
//! The first four bytes of a connection choose its protocol. Pure: no socket, no clock.

use crate::wire::frame::{Cut, Frame, Malformed};
use crate::wire::protocol::Protocol;

/// The protocol of a client, and the bytes of its unfinished frame.
#[derive(Debug, Default)]
pub struct Inbox {
    protocol: Option<Protocol>,
    half: Vec<u8>,
}

/// Whether a frame is unfinished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// No bytes are left over.
    None,
    /// An unfinished frame began in these bytes.
    New,
    /// A frame that began earlier is still unfinished.
    Same,
}

impl Inbox {
    /// Gives each frame that `bytes` complete to `on_frame`. A frame may have `max_frame_bytes` at most. After an error
    /// the rest of the client's bytes means nothing.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        max_frame_bytes: usize,
        mut on_frame: impl FnMut(Frame<'_>) -> Result<(), Malformed>,
    ) -> Result<Half, Malformed> {
        let had_half = !self.half.is_empty();
        if had_half {
            self.half.extend_from_slice(bytes);
        }
        let all = if had_half { &self.half[..] } else { bytes };
        if self.protocol.is_none() {
            self.protocol = Protocol::of(all)?;
        }
        let mut used = 0;
        while let Some(protocol) = self.protocol
            && used < all.len()
            && let Cut::Whole(frame) = protocol.cut(&all[used..], max_frame_bytes)?
        {
            used += frame.len;
            on_frame(frame)?;
        }
        let is_same = had_half && used == 0;
        if !is_same {
            // The vector has no spare capacity, so that an idle client holds no spare memory.
            self.half = all[used..].to_vec();
        }
        Ok(match (self.half.is_empty(), is_same) {
            (true, _) => Half::None,
            (false, true) => Half::Same,
            (false, false) => Half::New,
        })
    }

    /// Memory of the unfinished frame.
    pub fn held_bytes(&self) -> usize {
        self.half.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame;

    const MAX: usize = 64 * 1024;

    fn frame_with(body: &[u8]) -> Vec<u8> {
        let mut bytes = b"THFT\0\0\0\0\0\0\0\x30\0\0\0\0".to_vec();
        bytes.extend((body.len() as u32).to_be_bytes());
        bytes.resize(frame::V0_HEADER_LEN, 0);
        bytes.extend(body);
        bytes
    }

    /// Feeds `bytes` in pieces of `step`; returns the bodies that came out, and what is left.
    fn feed_all(bytes: &[u8], step: usize) -> (Vec<Vec<u8>>, Half) {
        let (mut inbox, mut bodies, mut half) = (Inbox::default(), Vec::new(), Half::None);
        for piece in bytes.chunks(step) {
            let on_frame = |frame: Frame<'_>| {
                bodies.push(frame.body.to_vec());
                Ok(())
            };
            half = inbox.feed(piece, MAX, on_frame).unwrap();
        }
        assert_eq!(inbox.held_bytes() == 0, half == Half::None);
        (bodies, half)
    }

    #[test]
    fn frames_come_out_whole_and_in_order_however_their_bytes_arrive() {
        let bodies: Vec<Vec<u8>> = (0..50).map(|n| vec![n; 37 * usize::from(n)]).collect();
        let bytes: Vec<u8> = bodies.iter().flat_map(|body| frame_with(body)).collect();
        for step in [1, 2, 47, 48, 49, 1_000, 8_192, bytes.len()] {
            assert_eq!(feed_all(&bytes, step), (bodies.clone(), Half::None), "step {step}");
            let (some, half) = feed_all(&bytes[..bytes.len() - 1], step);
            assert_eq!((some.len(), half != Half::None), (49, true), "step {step}");
        }
    }

    #[test]
    fn a_half_frame_is_new_once() {
        let bytes = [frame_with(b"first"), frame_with(b"second")].concat();
        let mut inbox = Inbox::default();
        let mut feed = |from: usize, to: usize| inbox.feed(&bytes[from..to], MAX, |_| Ok(()));
        for (why, from, to, want) in [
            ("its first byte", 0, 1, Half::New),
            ("another byte moves nothing", 1, 30, Half::Same),
            ("the next begins where it ends", 30, 60, Half::New),
            ("and goes on", 60, 100, Half::Same),
            ("to its end", 100, bytes.len(), Half::None),
        ] {
            assert_eq!(feed(from, to), Ok(want), "{why}");
        }
    }

    #[test]
    fn frames_before_bad_bytes_are_given_and_none_after() {
        let bytes = [&frame_with(b"good")[..], b"bad", &frame_with(b"good")].concat();
        let mut count = 0;
        let fed = Inbox::default().feed(&bytes, MAX, |_| {
            count += 1;
            Ok(())
        });
        assert_eq!((fed, count), (Err(Malformed::Magic), 1));
    }
}
