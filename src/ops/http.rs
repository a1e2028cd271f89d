//! A page of a server that speaks HTTP/1.

use std::net::SocketAddr;
use std::time::Instant;

use crate::upstream::exchange::Exchange;

/// Sends a GET and returns code and body of the answer, until `end` at the latest.
pub fn get(
    addr: SocketAddr,
    path: &str,
    max_bytes: usize,
    end: Instant,
) -> Result<(u16, Vec<u8>), String> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n");
    let mut exchange = Exchange::begin(addr, request.as_bytes(), end)?;
    // A server that keeps the connection says how long the answer is.
    let answer = exchange.read_until(max_bytes, |answer| {
        head(answer).is_some_and(|(_, length, start)| {
            length.is_some_and(|length| answer.len() >= start.saturating_add(length))
        })
    })?;
    let (code, length, start) =
        head(&answer).ok_or("want an answer of HTTP, got something else")?;
    let body = &answer[start..];
    match length {
        Some(length) if body.len() < length => Err("closed before the answer".to_owned()),
        Some(length) => Ok((code, body[..length].to_vec())),
        None => Ok((code, body.to_vec())),
    }
}

/// The code, the length that is given, and where the body starts.
fn head(answer: &[u8]) -> Option<(u16, Option<usize>, usize)> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let code = head.split(' ').nth(1)?.parse().ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    Some((code, length, end + 4))
}
