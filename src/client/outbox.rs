//! Answers that a client has not taken yet. They leave in order, many with one vectored write. An answer that many
//! clients share is in memory once, and counts once. Pure over `Write`.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::sync::{Arc, OnceLock};

use super::share::{Hold, HostShare};
use crate::wire::host_port::{self, HostPortFields};
use crate::wire::rdsn;
use crate::wire::reply::QueryHead;
use crate::wire::result::Unexpected;

/// Slices per vectored write: enough to send all replies of a pipelining client at once, far below the kernel's 1,024.
const MAX_SLICES: usize = 64;

/// A MetaServer's answer, shared by all queries that wait for it.
#[derive(Debug)]
pub struct Body {
    frame: Vec<u8>,
    result_at: usize,
    /// Index of its error in `error_code::COUNTED`.
    pub counted_as: usize,
    /// Whether C++ clients can read the answer; set when the first one needs it.
    fit_for_cpp: OnceLock<bool>,
    /// The result without host_port fields; set when the first client needs it. `None`: the result has no such fields,
    /// or they cannot be removed.
    stripped: OnceLock<Option<Vec<u8>>>,
    /// Counts the bytes of the answer, from the first time that a client left some of it unsent.
    hold: OnceLock<Hold>,
}

impl Body {
    /// `frame` is a whole answer frame; its result struct starts at `result_at`.
    pub fn new(frame: Vec<u8>, result_at: usize, counted_as: usize) -> Self {
        Body {
            frame,
            result_at,
            counted_as,
            fit_for_cpp: OnceLock::new(),
            stripped: OnceLock::new(),
            hold: OnceLock::new(),
        }
    }

    /// Counts the bytes of the answer until it is dropped, because a client left some of it unsent.
    fn hold(&self, share: &Arc<HostShare>) {
        self.hold.get_or_init(|| {
            let stripped = self.stripped.get().and_then(Option::as_ref).map_or(0, Vec::capacity);
            Hold::new(share, self.frame.capacity() + stripped)
        });
    }

    /// The result struct as the MetaServer wrote it.
    pub fn result(&self) -> &[u8] {
        &self.frame[self.result_at..]
    }

    /// The result with or without host_port fields. Calls `unfit` once with the reason if the fields cannot be removed;
    /// the result then keeps them.
    pub fn result_with(
        &self,
        host_port_fields: HostPortFields,
        unfit: impl FnOnce(Unexpected),
    ) -> &[u8] {
        let removed = || {
            host_port::remove(self.result()).unwrap_or_else(|why| {
                unfit(why);
                None
            })
        };
        let stripped = match host_port_fields {
            HostPortFields::Keep => None,
            HostPortFields::Remove => self.stripped.get_or_init(removed).as_deref(),
        };
        stripped.unwrap_or(self.result())
    }

    /// Whether C++ clients can read the result. Calls `unfit` once with the reason if not.
    pub fn is_fit_for_cpp(&self, unfit: impl FnOnce(Unexpected)) -> bool {
        *self.fit_for_cpp.get_or_init(|| rdsn::check_result(self.result()).map_err(unfit).is_ok())
    }
}

/// One answer frame.
#[derive(Debug)]
pub enum Reply {
    /// An answer of the proxy itself.
    Own(Vec<u8>),
    /// A MetaServer's answer, behind an envelope for this client.
    Passed {
        head: QueryHead,
        body: Arc<Body>,
        /// Whether the answer keeps the host_port fields.
        host_port_fields: HostPortFields,
    },
}

impl Reply {
    fn parts(&self) -> [&[u8]; 2] {
        match self {
            Reply::Own(bytes) => [bytes, &[]],
            Reply::Passed { head, body, host_port_fields } => {
                [head.bytes(), body.result_with(*host_port_fields, drop)]
            }
        }
    }

    /// Bytes of the frame.
    pub fn frame_bytes(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }

    /// Memory without the parts that other clients share.
    fn own_bytes(&self) -> usize {
        size_of::<Reply>()
            + match self {
                Reply::Own(bytes) => bytes.capacity(),
                Reply::Passed { head: QueryHead::Thft(_), .. } => 0,
                Reply::Passed { head: QueryHead::Rdsn(_), .. } => rdsn::HEADER_LEN,
            }
    }
}

/// Replies on their way to one client.
#[derive(Debug, Default)]
pub struct Outbox {
    replies: VecDeque<Reply>,
    /// Bytes of the first reply that are written.
    written: usize,
    unread: usize,
    /// Memory of the replies without the parts that other clients share.
    own_bytes: usize,
    /// Replies at the end whose bodies are not counted yet.
    uncounted: usize,
}

impl Outbox {
    pub fn push(&mut self, reply: Reply) {
        self.unread += reply.frame_bytes();
        self.own_bytes += reply.own_bytes();
        self.uncounted += 1;
        self.replies.push_back(reply);
    }

    pub fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Bytes not written yet.
    pub fn unread(&self) -> usize {
        self.unread
    }

    /// Memory without the parts that other clients share.
    pub fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    /// Counts the bodies of unsent replies. A body counts once, however many clients share it.
    pub fn count_bodies(&mut self, share: &Arc<HostShare>) {
        let counted = self.replies.len() - self.uncounted;
        for reply in self.replies.iter().skip(counted) {
            if let Reply::Passed { body, .. } = reply {
                body.hold(share);
            }
        }
        self.uncounted = 0;
    }

    pub fn clear(&mut self) {
        *self = Outbox::default();
    }

    /// Writes a reply past an empty outbox, and adds only the part that `out` does not take at once. Mostly `out` takes
    /// all of it.
    pub fn write_through(&mut self, reply: Reply, out: &mut impl Write) -> io::Result<()> {
        debug_assert!(self.replies.is_empty());
        let written = write_once([&reply], 0, out)?;
        if written < reply.frame_bytes() {
            self.push(reply);
            self.advance(written);
        }
        Ok(())
    }

    /// Writes until the outbox is empty or `out` takes no more for now. An empty outbox holds no memory.
    pub fn write_to(&mut self, out: &mut impl Write) -> io::Result<()> {
        while !self.replies.is_empty() {
            match write_once(&self.replies, self.written, out)? {
                0 => return Ok(()),
                n => self.advance(n),
            }
        }
        self.replies = VecDeque::new();
        Ok(())
    }

    fn advance(&mut self, n: usize) {
        self.unread -= n;
        self.written += n;
        while let Some(first) = self.replies.front() {
            let len = first.frame_bytes();
            if self.written < len {
                break;
            }
            self.written -= len;
            self.own_bytes -= first.own_bytes();
            self.replies.pop_front();
        }
        self.uncounted = self.uncounted.min(self.replies.len());
    }
}

/// Writes once, starting after the first `skip` bytes. Returns 0 if `out` takes nothing for now.
fn write_once<'a>(
    replies: impl IntoIterator<Item = &'a Reply>,
    mut skip: usize,
    out: &mut impl Write,
) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); MAX_SLICES];
    let mut used = 0;
    let parts = replies.into_iter().flat_map(Reply::parts);
    for part in parts.filter(|part| !part.is_empty()) {
        if used == MAX_SLICES {
            break;
        }
        let start = skip.min(part.len());
        skip -= start;
        if start < part.len() {
            slices[used] = IoSlice::new(&part[start..]);
            used += 1;
        }
    }
    loop {
        return match out.write_vectored(&slices[..used]) {
            Ok(0) => Err(ErrorKind::WriteZero.into()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            written => written,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::share::Sums;
    use crate::wire::message::RequestId;

    /// Takes `step` bytes, then blocks once, and so on.
    struct Reluctant {
        taken: Vec<u8>,
        step: usize,
        blocks: bool,
    }

    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.blocks = !self.blocks;
            if self.blocks {
                return Err(ErrorKind::WouldBlock.into());
            }
            let n = bytes.len().min(self.step);
            self.taken.extend(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_byte_leaves_once_and_in_order() {
        for step in [1, 7, 68, 69, 1000] {
            let body = Arc::new(Body::new(b"envelope|result".to_vec(), 9, 0));
            let mut outbox = Outbox::default();
            let mut want: Vec<u8> = Vec::new();
            for seq in 0..100 {
                let id = match seq % 2 {
                    0 => RequestId::Thft(seq),
                    _ => RequestId::Rdsn(seq as u64),
                };
                let head = QueryHead::new(id, body.result().len());
                want.extend(head.bytes());
                want.extend(b"result");
                let host_port_fields = HostPortFields::Keep;
                outbox.push(Reply::Passed { head, body: body.clone(), host_port_fields });
                want.extend(b"own");
                outbox.push(Reply::Own(b"own".to_vec()));
            }
            assert_eq!(outbox.unread(), want.len());
            let mut out = Reluctant { taken: Vec::new(), step, blocks: false };
            while outbox.unread() > 0 {
                outbox.write_to(&mut out).unwrap();
            }
            assert_eq!(out.taken, want, "step {step}");
            assert_eq!(outbox.replies.capacity(), 0, "an idle client holds no buffer");
            assert_eq!((outbox.own_bytes(), outbox.uncounted), (0, 0), "step {step}");
        }
    }

    #[test]
    fn bytes_that_are_not_taken_at_once_wait() {
        for (step, blocks) in [(3, true), (3, false), (2, true), (1, false)] {
            let mut out = Reluctant { taken: Vec::new(), step, blocks };
            let mut outbox = Outbox::default();
            outbox.write_through(Reply::Own(b"own".to_vec()), &mut out).unwrap();
            let taken = if blocks { step } else { 0 };
            assert_eq!((out.taken.len(), outbox.unread()), (taken, 3 - taken));
            assert_eq!(outbox.is_empty(), taken == 3);
            while outbox.unread() > 0 {
                outbox.write_to(&mut out).unwrap();
            }
            assert_eq!(out.taken, b"own");
            assert_eq!(outbox.own_bytes(), 0);
        }
    }

    #[test]
    fn a_body_counts_once_and_until_the_last_client_has_it() {
        let all = Arc::new(Sums::default());
        let share = Arc::new(HostShare::new([10, 0, 0, 1].into(), all.clone()));
        let body = Arc::new(Body::new(vec![0; 1_000], 9, 0));
        let mut clients: Vec<Outbox> = (0..3).map(|_| Outbox::default()).collect();
        for outbox in &mut clients {
            for seq in 0..10 {
                let head = QueryHead::new(RequestId::Thft(seq), body.result().len());
                let host_port_fields = HostPortFields::Keep;
                outbox.push(Reply::Passed { head, body: body.clone(), host_port_fields });
            }
            assert!(outbox.own_bytes() < 10 * 200);
        }
        assert_eq!(all.held_bytes(), 0, "what is sent at once is no burden");
        clients.iter_mut().for_each(|outbox| outbox.count_bodies(&share));
        drop(body);
        assert_eq!(all.held_bytes(), 1_000);
        clients[0].clear();
        clients[1].write_to(&mut Vec::new()).unwrap();
        assert_eq!(all.held_bytes(), 1_000);
        drop(clients);
        assert_eq!(all.held_bytes(), 0);
    }

    #[test]
    fn a_peer_that_takes_nothing_and_says_so_is_an_error() {
        let mut outbox = Outbox::default();
        outbox.push(Reply::Own(b"x".to_vec()));
        let mut full: &mut [u8] = &mut [];
        assert_eq!(outbox.write_to(&mut full).unwrap_err().kind(), ErrorKind::WriteZero);
    }
}
