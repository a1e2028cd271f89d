//! A cluster whose MetaServers do all that may go wrong with an answer, in an order that a seed decides.
//!
//! ```text
//! thread wild-N: reads what came at once ─▶ shuffles it ─▶ for each request, by chance: answer whole, in pieces, late,
//!                twice, to nobody's seq, as a follower that names a leader, as junk, never, or close
//! ```
//! Each answer says when its request was read, on a clock that counts the requests of the whole cluster. So who asked
//! after the clock showed 7 must not read an answer of 6.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread;

use crate::listener::{Inbox, Link, Listener};
use crate::rng::Rng;
use crate::wire::{self, ERR_OK, QUERY_CONFIG, QueryCfgResponse, Request};

/// Nobody listens there.
const REFUSES: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// The cluster. Dropping it closes every connection and ends its threads.
pub struct WildCluster {
    servers: Vec<Listener>,
    core: Arc<Core>,
}

struct Core {
    seed: u64,
    /// Connections so far; each has decisions of its own.
    links: AtomicU64,
    /// Requests read so far.
    clock: AtomicI32,
    is_calm: AtomicBool,
    primary: SocketAddr,
}

/// The reaction to one request.
enum Act {
    Whole,
    Pieces,
    Late,
    Twice,
    ForeignSeq,
    Forward,
    Junk,
    Never,
    Close,
}

impl WildCluster {
    /// Starts `count` servers, each of which says that it leads, most of the time.
    pub fn start(count: usize, seed: u64, primary: SocketAddr) -> io::Result<Self> {
        let core = Arc::new(Core {
            seed,
            links: AtomicU64::default(),
            clock: AtomicI32::new(1),
            is_calm: AtomicBool::default(),
            primary,
        });
        let start = |_| {
            let core = Arc::clone(&core);
            Listener::start("wild", (Ipv4Addr::LOCALHOST, 0).into(), move |link| core.serve(link))
        };
        let servers = (0..count).map(start).collect::<io::Result<_>>()?;
        Ok(WildCluster { servers, core })
    }

    /// Where its MetaServers should be: one more than there are.
    pub fn metas(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(Listener::addr).chain([REFUSES]).collect()
    }

    /// The time. An answer to who asks now shows this, or more.
    pub fn clock(&self) -> i32 {
        self.core.clock.load(Ordering::SeqCst)
    }

    /// From now on all goes well.
    pub fn calm_down(&self) {
        self.core.is_calm.store(true, Ordering::SeqCst);
    }

    /// The honest answer for `table` to a request that was read at `clock`.
    pub fn answer(&self, table: &str, clock: i32) -> QueryCfgResponse {
        self.core.honest(table, clock)
    }
}

impl Core {
    /// As many partitions as the name has letters, so that answers to others can be told.
    fn honest(&self, table: &str, clock: i32) -> QueryCfgResponse {
        QueryCfgResponse::table(clock, table.len() as i32, self.primary).with_host_ports()
    }

    fn serve(&self, link: &Arc<Link>) {
        let mut rng = Rng::new(self.seed, self.links.fetch_add(1, Ordering::SeqCst));
        let mut inbox = Inbox::new(link);
        while let Some(Ok(first)) = inbox.next() {
            let mut requests = vec![first];
            while inbox.has_frame() {
                match inbox.next() {
                    Some(Ok(request)) => requests.push(request),
                    _ => return,
                }
            }
            let mut read: Vec<_> = requests
                .into_iter()
                .map(|request| (request, self.clock.fetch_add(1, Ordering::SeqCst)))
                .collect();
            rng.shuffle(&mut read);
            for (request, clock) in read {
                let act = match self.is_calm.load(Ordering::SeqCst) {
                    true => Act::Whole,
                    false => Act::decide(&mut rng),
                };
                if let Act::Close = act {
                    return;
                }
                self.act(link, &act, &request, clock, &mut rng);
            }
        }
    }

    fn act(&self, link: &Link, act: &Act, request: &Request, clock: i32, rng: &mut Rng) {
        let Ok(query) = request.query() else {
            return;
        };
        let mut seq = request.seq;
        let result = match act {
            Act::Never => return,
            Act::Forward => {
                let leader = rng.percent(50).then_some(REFUSES);
                QueryCfgResponse::forward(leader).encode()
            }
            Act::Junk => vec![0xff; 40],
            _ => self.honest(&query.table, clock).encode(),
        };
        match act {
            Act::Late => thread::sleep(rng.ms(1..=400)),
            // One that is not under way here: to mix up two that are is a lie that nobody can tell.
            Act::ForeignSeq => seq = seq.wrapping_add(*rng.pick(&[-1_000, 1_000])),
            _ => {}
        }
        let mut frame = Vec::new();
        wire::append_response(&mut frame, ERR_OK, QUERY_CONFIG, seq, &result);
        if let Act::Pieces = act {
            let (start, end) = frame.split_at(rng.below(frame.len()));
            link.answer(|out| out.extend(start));
            thread::sleep(rng.ms(0..=20));
            return link.answer(|out| out.extend(end));
        }
        let times = if let Act::Twice = act { 2 } else { 1 };
        link.answer(|out| out.extend(frame.repeat(times)));
    }
}

impl Act {
    fn decide(rng: &mut Rng) -> Self {
        match rng.below(100) {
            0..56 => Act::Whole,
            56..68 => Act::Pieces,
            68..76 => Act::Late,
            76..84 => Act::Twice,
            84..87 => Act::ForeignSeq,
            87..91 => Act::Forward,
            91..93 => Act::Junk,
            93..96 => Act::Never,
            _ => Act::Close,
        }
    }
}
