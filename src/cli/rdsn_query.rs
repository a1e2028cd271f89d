//! One QueryConfig as a C++ client asks it, over a connection of its own. It blocks, until a deadline.

use std::net::SocketAddr;
use std::time::Instant;

use crate::upstream::exchange::Exchange;
use crate::wire::answer::MAX_ANSWER_LEN;
use crate::wire::rdsn::{self, HEADER_LEN};

/// The result struct of the answer. `args` as THFT has them.
pub fn ask(addr: SocketAddr, args: &[u8], end: Instant) -> Result<Vec<u8>, String> {
    const ID: u64 = 1;
    let mut exchange = Exchange::begin(addr, &rdsn::write_query(ID, args), end)?;
    let head = exchange.read(HEADER_LEN)?;
    let head = head.first_chunk().expect("as long as was asked for");
    match rdsn::read_answer_head(head, ID)? {
        len if len <= MAX_ANSWER_LEN => exchange.read(len),
        len => Err(format!("want an answer of at most {MAX_ANSWER_LEN} bytes, got {len}")),
    }
}
