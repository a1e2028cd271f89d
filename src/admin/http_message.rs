//! Requests and answers of HTTP/1.1, as far as the pages need them. Bytes in, a request out; an answer in, bytes out.
//!
//! A connection has one request, so nothing here reads a body: the owner of the connection discards it.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use httparse::Header;

use super::gzip;

/// Longest head of a request: browsers send some hundred bytes.
pub const MAX_HEAD_BYTES: usize = 8 * 1024;
/// Longest body of a request, which nothing reads.
pub const MAX_BODY_BYTES: u64 = 64 * 1024;
/// Most lines of a head.
const MAX_HEADERS: usize = 64;

/// A POST needs this header, with any value. A page of another site cannot make a browser send it.
pub const DELIBERATE: &str = "X-Meta-Proxy";

/// The method. HEAD is a GET whose answer has no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Show something.
    Get,
    /// Change something.
    Post,
}

/// A request, checked and decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: Method,
    /// Whether the client wants only the head of the answer.
    pub is_head: bool,
    /// The path, for example `/routes`.
    pub path: String,
    /// The pairs after the question mark.
    pub query: Vec<(String, String)>,
    /// The Accept header; empty without one.
    pub accept: String,
    /// Whether the answer may be compressed.
    pub takes_gzip: bool,
    /// The Host header without the port; empty without one.
    pub host: String,
    /// Whether the request has the header [`DELIBERATE`].
    pub is_deliberate: bool,
    /// The client's address.
    pub peer: SocketAddr,
    /// The address at which the request arrived.
    pub at: SocketAddr,
}

impl Request {
    /// Whether the request comes from this host: over loopback, or from the address at which it arrived, as it does
    /// when the pages listen only at one of the host's addresses. No other host can connect from either.
    pub fn is_from_this_host(&self) -> bool {
        let [peer, at] = [self.peer, self.at].map(|addr| addr.ip().to_canonical());
        peer.is_loopback() || peer == at
    }

    /// Whether the Host header is an address, `localhost`, or the name of this host. If another name resolves to an
    /// address of this host (DNS rebinding), a browser takes a foreign page for a page of this server.
    pub fn is_asked_by_own_name(&self, host_name: &str) -> bool {
        let host = self.host.as_str();
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_address = address.unwrap_or(host).parse::<IpAddr>().is_ok();
        let is_own = |name: &str| !name.is_empty() && host.eq_ignore_ascii_case(name);
        let short = host_name.split('.').next().unwrap_or_default();
        host.is_empty() || is_address || is_own("localhost") || is_own(host_name) || is_own(short)
    }

    /// The first value of this name in the query.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Reads the head of a request. `None`: the head is unfinished. An error is the answer to send.
pub fn read_request(
    input: &[u8],
    peer: SocketAddr,
    at: SocketAddr,
) -> Result<Option<Request>, Response> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    match head.parse(input) {
        Ok(status) if status.is_complete() => {}
        Ok(_) if input.len() < MAX_HEAD_BYTES => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            let want = format!("want at most {MAX_HEAD_BYTES} bytes, {MAX_HEADERS} headers\n");
            return Err(Response::text(431, want));
        }
        Err(e) => return Err(Response::text(400, format!("{e}\n"))),
    }
    let method = match head.method {
        Some("GET" | "HEAD") => Method::Get,
        Some("POST") => Method::Post,
        _ => return Err(Response::wrong_method("GET, HEAD, POST")),
    };
    check_body(head.headers)?;
    if method == Method::Post && is_from_elsewhere(head.headers) {
        return Err(Response::text(403, "want a POST from a page of this server\n"));
    }
    let bad_target = || Response::text(400, "want a path, /a?b=c, in UTF-8\n");
    let target = head.path.filter(|target| target.starts_with('/')).ok_or_else(bad_target)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok(Some(Request {
        method,
        is_head: head.method == Some("HEAD"),
        path: decode(path, false).ok_or_else(bad_target)?,
        query: decode_pairs(query).ok_or_else(bad_target)?,
        accept: header(head.headers, "accept").unwrap_or_default().into_owned(),
        takes_gzip: header(head.headers, "accept-encoding")
            .is_some_and(|encodings| gzip::is_accepted(&encodings)),
        host: without_port(&header(head.headers, "host").unwrap_or_default()).to_owned(),
        is_deliberate: header(head.headers, DELIBERATE).is_some_and(|value| !value.is_empty()),
        peer,
        at,
    }))
}

fn header<'a>(headers: &[Header<'a>], name: &str) -> Option<Cow<'a, str>> {
    let found = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    Some(String::from_utf8_lossy(found.value))
}

/// `h` of `h:80`, `[::1]` of `[::1]:80`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn check_body(headers: &[Header<'_>]) -> Result<(), Response> {
    let Some(length) = header(headers, "content-length") else {
        return Ok(());
    };
    match length.parse::<u64>() {
        Ok(0..=MAX_BODY_BYTES) => Ok(()),
        Ok(_) => Err(Response::text(413, format!("want at most {MAX_BODY_BYTES} bytes\n"))),
        Err(_) => Err(Response::text(400, "want a number as Content-Length\n")),
    }
}

/// Whether a browser says that the POST comes from a page of another site.
fn is_from_elsewhere(headers: &[Header<'_>]) -> bool {
    let host = header(headers, "host").unwrap_or_default();
    header(headers, "origin")
        .is_some_and(|origin| origin.split_once("://").is_none_or(|(_, from)| from != host))
}

fn decode_pairs(query: &str) -> Option<Vec<(String, String)>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(key, true)?, decode(value, true)?))
        })
        .collect()
}

/// Decodes percent-encoding; in queries a plus is a space.
fn decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub content_type: &'static str,
    pub body: Vec<u8>,
    /// Limits on what a browser does with the body. By default it may do nothing.
    content_security_policy: Cow<'static, str>,
    headers: Vec<(&'static str, &'static str)>,
}

impl Response {
    pub fn new(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Response {
            status,
            content_type,
            body: body.into(),
            content_security_policy: "default-src 'none'; frame-ancestors 'none'".into(),
            headers: Vec::new(),
        }
    }

    pub fn text(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Response::new(status, "text/plain; charset=utf-8", body)
    }

    pub fn json(body: impl Into<Vec<u8>>) -> Self {
        Response::new(200, "application/json", body)
    }

    /// An HTML page with its own policy.
    pub fn html(body: impl Into<Vec<u8>>, policy: impl Into<Cow<'static, str>>) -> Self {
        let page = Response::new(200, "text/html; charset=utf-8", body);
        Response { content_security_policy: policy.into(), ..page }
    }

    /// An answer to an unknown path; `pages` lists the known ones.
    pub fn not_found(pages: &str) -> Self {
        Response::text(404, format!("no such page; there are:\n{pages}"))
    }

    /// Compresses the body with gzip, if it is long enough.
    pub fn gzipped(mut self) -> Self {
        if self.body.len() >= gzip::MIN_BYTES {
            self.body = gzip::compress(&self.body);
            self = self.with_header("Content-Encoding", "gzip");
        }
        self.with_header("Vary", "Accept-Encoding")
    }

    /// An answer to a method that is not one of `allowed`.
    pub fn wrong_method(allowed: &'static str) -> Self {
        Response::text(405, format!("want {allowed}\n")).with_header("Allow", allowed)
    }

    pub fn with_header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The bytes to send, without the body if `is_head`.
    pub fn to_bytes(&self, is_head: bool) -> Vec<u8> {
        let Response { status, content_type, body, content_security_policy, .. } = self;
        let mut head = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
             Connection: close\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
             Content-Security-Policy: {content_security_policy}\r\n",
            reason(*status),
            body.len()
        );
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        let mut bytes = head.into_bytes();
        if !is_head {
            bytes.extend(body);
        }
        bytes
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> SocketAddr {
        "10.0.0.9:1234".parse().unwrap()
    }

    fn at() -> SocketAddr {
        "10.0.0.1:9091".parse().unwrap()
    }

    #[test]
    fn this_host_is_loopback_or_the_address_asked() {
        let head = b"POST /drain HTTP/1.1\r\n\r\n";
        for (why, peer, at, want) in [
            ("loopback", "127.0.0.1:1", "127.0.0.1:9091", true),
            ("another of loopback", "127.9.9.9:1", "127.0.0.1:9091", true),
            ("IPv6", "[::1]:1", "[::1]:9091", true),
            ("IPv4 at a socket of IPv6", "[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:9091", true),
            ("its own address", "10.0.0.1:1", "10.0.0.1:9091", true),
            ("the same, IPv6", "[fd00::1]:1", "[fd00::1]:9091", true),
            ("the same, mapped", "[::ffff:10.0.0.1]:1", "10.0.0.1:9091", true),
            ("another host", "10.0.0.9:1", "10.0.0.1:9091", false),
            ("the same, IPv6", "[fd00::9]:1", "[fd00::1]:9091", false),
            ("the same, mapped", "[::ffff:10.0.0.9]:1", "[::ffff:10.0.0.1]:9091", false),
        ] {
            let [peer, at] = [peer, at].map(|addr| addr.parse().unwrap());
            let request = read_request(head, peer, at).unwrap().unwrap();
            assert_eq!(request.is_from_this_host(), want, "{why}: {peer} at {at}");
        }
    }

    #[test]
    fn a_foreign_name_for_this_host_is_not_its_own() {
        for (host, want) in [
            ("127.0.0.1:9091", true),
            ("10.0.0.1", true),
            ("[::1]:9091", true),
            ("localhost:9091", true),
            ("Proxy-07.example:9091", true),
            ("proxy-07", true),
            ("", true),
            ("evil.example:9091", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example", false),
        ] {
            let head = format!("POST /drain HTTP/1.1\r\nHost: {host}\r\nx-meta-PROXY: 1\r\n\r\n");
            let request = read_request(head.as_bytes(), peer(), at()).unwrap().unwrap();
            assert_eq!(request.is_asked_by_own_name("proxy-07.example"), want, "{host}");
            assert!(request.is_deliberate);
        }
    }

    #[test]
    fn a_request_is_decoded() {
        let input = b"HEAD /a%20b?q=x%2By+z&empty&=%3D HTTP/1.1\r\nhost: h\r\nACCEPT: text/plain\r\n\r\nrest";
        let request = read_request(input, peer(), at()).unwrap().unwrap();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let want = Request {
            method: Method::Get,
            is_head: true,
            path: "/a b".to_owned(),
            query: vec![pair("q", "x+y z"), pair("empty", ""), pair("", "=")],
            accept: "text/plain".to_owned(),
            takes_gzip: false,
            host: "h".to_owned(),
            is_deliberate: false,
            peer: peer(),
            at: at(),
        };
        assert_eq!(request, want);
        assert_eq!((request.query("q"), request.query("p")), (Some("x+y z"), None));
        for end in 0..input.len() - "\r\n\r\nrest".len() {
            assert_eq!(read_request(&input[..end], peer(), at()), Ok(None), "{end} bytes");
        }
    }

    #[test]
    fn a_bad_request_gets_an_answer_that_says_why() {
        let long = format!("GET / HTTP/1.1\r\nCookie: {}", "c".repeat(MAX_HEAD_BYTES));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        for (why, head, want) in [
            ("no HTTP", "hello\n", 400),
            ("TLS", "\x16\x03\x01\x02", 400),
            ("another version", "GET / HTTP/3.0\r\n\r\n", 400),
            ("no path", "GET http://h/ HTTP/1.1\r\n\r\n", 400),
            ("half an escape", "GET /%4 HTTP/1.1\r\n\r\n", 400),
            ("no hexadecimal digit", "GET /%+4 HTTP/1.1\r\n\r\n", 400),
            ("no UTF-8", "GET /?q=%ff HTTP/1.1\r\n\r\n", 400),
            ("a length that is none", "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            ("another site", "POST / HTTP/1.1\r\nHost: h:1\r\nOrigin: http://evil\r\n\r\n", 403),
            ("no site", "POST / HTTP/1.1\r\nHost: h:1\r\nOrigin: null\r\n\r\n", 403),
            ("a method for files", "PUT / HTTP/1.1\r\n\r\n", 405),
            ("a long body", "POST / HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", 413),
            ("a long head", &long, 431),
            ("a head of many lines", &many, 431),
        ] {
            let refused = read_request(head.as_bytes(), peer(), at()).unwrap_err();
            assert_eq!(refused.status, want, "{why}");
        }
        for good in [
            "POST / HTTP/1.0\r\nContent-Length: 65536\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: h:1\r\nOrigin: http://h:1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h:1\r\nOrigin: http://evil\r\n\r\n",
        ] {
            assert!(read_request(good.as_bytes(), peer(), at()).unwrap().is_some(), "{good}");
        }
    }

    #[test]
    fn an_answer_says_what_it_is() {
        let answer = Response::wrong_method("GET, HEAD");
        let text = |is_head| String::from_utf8(answer.to_bytes(is_head)).unwrap();
        let head = "HTTP/1.1 405 Method Not Allowed\r\nContent-Type: text/plain; charset=utf-8\r\n\
            Content-Length: 15\r\nConnection: close\r\nCache-Control: no-store\r\n\
            X-Content-Type-Options: nosniff\r\n\
            Content-Security-Policy: default-src 'none'; frame-ancestors 'none'\r\n\
            Allow: GET, HEAD\r\n\r\n";
        assert_eq!(text(true), head);
        assert_eq!(text(false), format!("{head}want GET, HEAD\n"));
        let page = Response::html("<p>", "default-src 'self'");
        let text = String::from_utf8(page.to_bytes(false)).unwrap();
        assert!(text.contains("text/html; charset=utf-8\r\n"), "{text}");
        assert!(text.contains("Content-Security-Policy: default-src 'self'\r\n"), "{text}");
    }
}
