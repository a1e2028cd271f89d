//! A request for a page, as curl would send it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A page.
#[derive(Debug)]
pub struct Page {
    /// 200 and the like.
    pub status: u16,
    /// The type of the body.
    pub content_type: String,
    /// The body.
    pub body: String,
}

/// Asks for a page. `method` is `GET` or `POST`, which has the header that it wants; `accept` may be empty.
#[track_caller]
pub fn request(addr: SocketAddr, method: &str, path: &str, accept: &str) -> Page {
    let own = if method == "POST" { "X-Meta-Proxy: yes\r\n" } else { "" };
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nAccept: {accept}\r\n{own}\r\n");
    let answer = exchange(addr, &head);
    let answer = answer.unwrap_or_else(|e| panic!("{method} {path}: {e}"));
    let page = parse(&answer);
    page.unwrap_or_else(|| panic!("{method} {path}: want an HTTP answer, got {answer:?}"))
}

/// Asks for a page that is there.
#[track_caller]
pub fn get(addr: SocketAddr, path: &str) -> String {
    let page = request(addr, "GET", path, "");
    assert_eq!(page.status, 200, "{path}: {}", page.body);
    page.body
}

fn exchange(addr: SocketAddr, request: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&addr, ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn parse(answer: &str) -> Option<Page> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
    let header = |name: &str| {
        head.lines().filter_map(|line| line.split_once(": ")).find(|(key, _)| *key == name)
    };
    let content_type = header("Content-Type")?.1.to_owned();
    let len: usize = header("Content-Length")?.1.parse().ok()?;
    (len == body.len()).then(|| Page { status, content_type, body: body.to_owned() })
}
