//! The test's own hand on ZooKeeper: one session over one blocking socket, a handful of requests, every wait bounded.
//! Written out here instead of taken from a client crate because it can do what none offers (see [`expire`]), and
//! because a crate that the proxy also stands on would share its faults with the tests of the proxy.
//!
//! ```text
//! every frame   | i32 len | ...
//! first asked   | i32 0 | i64 last zxid | i32 timeout_ms | i64 session | password | bool read_only
//!   answered    | i32 0 | i32 timeout_ms, 0: expired | i64 session | password | ...
//! then asked    | i32 xid | i32 operation | arguments
//!   answered    | i32 xid | i64 zxid | i32 code, 0: done | result
//! ```
//! Integers are big-endian; text and bytes carry an i32 length, -1 for none. Layout: zookeeper
//! `zookeeper-jute/src/main/resources/zookeeper.jute`, operations and codes: `ZooDefs.OpCode`, `KeeperException.Code`.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Codes of answers which an operation may have a use for.
pub(super) const NO_NODE: i32 = -101;
pub(super) const NODE_EXISTS: i32 = -110;
pub(super) const SESSION_EXPIRED: i32 = -112;

/// The rights on a znode, as `(permissions, scheme, id)`; the bits are ZooKeeper's.
pub(super) type Acl = (i32, &'static str, &'static str);
pub(super) const OPEN: Acl = (0b11111, "world", "anyone");
/// All but reading, so that the test itself can still change and delete the znode.
pub(super) const UNREADABLE: Acl = (0b11110, "world", "anyone");
/// All, for those who proved the same identity as the session that sets it.
pub(super) const MINE: Acl = (0b11111, "auth", "");

mod operation {
    pub const CREATE: i32 = 1;
    pub const DELETE: i32 = 2;
    pub const EXISTS: i32 = 3;
    pub const GET_DATA: i32 = 4;
    pub const SET_DATA: i32 = 5;
    pub const SET_ACL: i32 = 7;
    pub const GET_CHILDREN: i32 = 8;
    pub const AUTH: i32 = 100;
    pub const CLOSE: i32 = -11;
}

/// Any version of the znode.
const ANY_VERSION: i32 = -1;
/// The xid that the server wants with `AUTH`.
const AUTH_XID: i32 = -4;
/// Sessions of this hand are not kept alive between operations; one that expired is replaced.
const SESSION_TIMEOUT_MS: i32 = 60_000;
/// How long one answer may take before the link is given up.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Above the 1 MiB that ZooKeeper allows for a znode.
const MAX_FRAME: usize = 8 << 20;
const PASSWORD_BYTES: usize = 16;

/// Why an operation was not done.
#[derive(Debug)]
pub(super) enum Fault {
    /// The link broke or was too slow. The operation may have been done all the same.
    Link(io::Error),
    /// The server said no, with this code.
    Code(i32),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Link(e) => write!(f, "{e}"),
            Fault::Code(code) => {
                let name = match *code {
                    NO_NODE => "no such znode",
                    -102 => "no permission",
                    NODE_EXISTS => "the znode exists",
                    -111 => "the znode has children",
                    SESSION_EXPIRED => "session expired",
                    -115 => "authentication failed",
                    _ => "see KeeperException.Code",
                };
                write!(f, "code {code} ({name})")
            }
        }
    }
}

impl From<io::Error> for Fault {
    fn from(e: io::Error) -> Self {
        Fault::Link(e)
    }
}

/// An open session. Dropping it closes the link only; the server expires the session later.
pub(super) struct Session {
    stream: TcpStream,
    id: i64,
    last_xid: i32,
}

impl Session {
    pub(super) fn open(addr: SocketAddr) -> Result<Self, Fault> {
        let mut stream = dial(addr)?;
        stream.write_all(&frame(&handshake(0, [0; PASSWORD_BYTES])))?;
        let id = read_handshake(&mut stream)?;
        Ok(Session { stream, id, last_xid: 0 })
    }

    pub(super) fn id(&self) -> i64 {
        self.id
    }

    /// Proves an identity to the server, e.g. `"digest"`, `"user:password"`.
    pub(super) fn authenticate(&mut self, scheme: &str, proof: &str) -> Result<(), Fault> {
        let args = Args::default().int(0).text(scheme).text(proof);
        self.call(AUTH_XID, operation::AUTH, args)?;
        Ok(())
    }

    /// Returns the zxid of the change, as do the others that change something.
    pub(super) fn create(&mut self, path: &str, data: &[u8]) -> Result<i64, Fault> {
        let args = Args::default().text(path).bytes(data).acl(OPEN).int(0);
        Ok(self.ask(operation::CREATE, args)?.0)
    }

    pub(super) fn set(&mut self, path: &str, data: &[u8]) -> Result<i64, Fault> {
        let args = Args::default().text(path).bytes(data).int(ANY_VERSION);
        Ok(self.ask(operation::SET_DATA, args)?.0)
    }

    pub(super) fn delete(&mut self, path: &str) -> Result<i64, Fault> {
        let args = Args::default().text(path).int(ANY_VERSION);
        Ok(self.ask(operation::DELETE, args)?.0)
    }

    pub(super) fn set_acl(&mut self, path: &str, acl: Acl) -> Result<i64, Fault> {
        let args = Args::default().text(path).acl(acl).int(ANY_VERSION);
        Ok(self.ask(operation::SET_ACL, args)?.0)
    }

    pub(super) fn exists(&mut self, path: &str) -> Result<bool, Fault> {
        let args = Args::default().text(path).no_watch();
        match self.ask(operation::EXISTS, args) {
            Ok(_) => Ok(true),
            Err(Fault::Code(NO_NODE)) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    pub(super) fn get(&mut self, path: &str) -> Result<Vec<u8>, Fault> {
        let args = Args::default().text(path).no_watch();
        let (_, result) = self.ask(operation::GET_DATA, args)?;
        Ok(Reply(&result).bytes()?.to_vec())
    }

    pub(super) fn children(&mut self, path: &str) -> Result<Vec<String>, Fault> {
        let args = Args::default().text(path).no_watch();
        let (_, result) = self.ask(operation::GET_CHILDREN, args)?;
        let mut result = Reply(&result);
        let count = result.int()?;
        (0..count).map(|_| Ok(String::from_utf8_lossy(result.bytes()?).into_owned())).collect()
    }

    /// `again`: those that are there are as good as created.
    pub(super) fn create_many(
        &mut self,
        paths: &[String],
        data: &[u8],
        again: bool,
    ) -> Result<(), Fault> {
        let args = |path: &str| Args::default().text(path).bytes(data).acl(OPEN).int(0);
        self.ask_many(operation::CREATE, paths, args, again)
    }

    pub(super) fn set_many(&mut self, paths: &[String], data: &[u8]) -> Result<(), Fault> {
        let args = |path: &str| Args::default().text(path).bytes(data).int(ANY_VERSION);
        self.ask_many(operation::SET_DATA, paths, args, false)
    }

    /// As many at a time as a server takes without making who asks wait.
    fn ask_many(
        &mut self,
        operation: i32,
        paths: &[String],
        args: impl Fn(&str) -> Args,
        again: bool,
    ) -> Result<(), Fault> {
        for some in paths.chunks(200) {
            let first = self.last_xid + 1;
            let mut frames = Vec::new();
            for path in some {
                self.last_xid += 1;
                frames.extend(frame(&request(self.last_xid, operation, args(path))));
            }
            self.stream.write_all(&frames)?;
            for xid in first..=self.last_xid {
                match read_reply(&mut self.stream, xid) {
                    Err(Fault::Code(NODE_EXISTS)) if again => {}
                    done => drop(done?),
                }
            }
        }
        Ok(())
    }

    fn ask(&mut self, operation: i32, args: Args) -> Result<(i64, Vec<u8>), Fault> {
        self.last_xid += 1;
        self.call(self.last_xid, operation, args)
    }

    fn call(&mut self, xid: i32, operation: i32, args: Args) -> Result<(i64, Vec<u8>), Fault> {
        self.stream.write_all(&frame(&request(xid, operation, args)))?;
        read_reply(&mut self.stream, xid)
    }
}

/// Ends a session that belongs to another client, in the way an expiry does: when that client comes back it is told that
/// its session has expired. Whoever knows id and password of a session can take it over and close it, and the password
/// is computed from the id with a constant (zookeeper `ZooKeeperServer.generatePasswd`).
pub(super) fn expire(addr: SocketAddr, session: i64) -> Result<(), Fault> {
    let mut stream = dial(addr)?;
    // Both in one write: taking over cuts the owner's link, and it would take its session back before we close it.
    let mut frames = frame(&handshake(session, password(session)));
    frames.extend(frame(&request(1, operation::CLOSE, Args::default())));
    stream.write_all(&frames)?;
    read_handshake(&mut stream)?;
    read_reply(&mut stream, 1)?;
    Ok(())
}

/// `java.util.Random` seeded with the session id, as the server does it.
fn password(session: i64) -> [u8; PASSWORD_BYTES] {
    const SUPER_SECRET: i64 = 0xB341_5C00;
    const MULTIPLIER: u64 = 0x5_DEEC_E66D;
    const MASK: u64 = (1 << 48) - 1;
    let mut state = ((session ^ SUPER_SECRET) as u64 ^ MULTIPLIER) & MASK;
    let mut password = [0; PASSWORD_BYTES];
    for word in password.chunks_exact_mut(4) {
        state = (state.wrapping_mul(MULTIPLIER).wrapping_add(0xB)) & MASK;
        word.copy_from_slice(&((state >> 16) as u32).to_le_bytes());
    }
    password
}

fn dial(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, ANSWER_WITHIN)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    Ok(stream)
}

fn handshake(session: i64, password: [u8; PASSWORD_BYTES]) -> Vec<u8> {
    let args = Args::default().int(0).long(0).int(SESSION_TIMEOUT_MS);
    args.long(session).bytes(&password).byte(0).0
}

fn request(xid: i32, operation: i32, args: Args) -> Vec<u8> {
    let mut request = Args::default().int(xid).int(operation).0;
    request.extend(args.0);
    request
}

fn frame(body: &[u8]) -> Vec<u8> {
    Args::default().bytes(body).0
}

/// The id of the session that the server gave.
fn read_handshake(stream: &mut TcpStream) -> Result<i64, Fault> {
    let answer = read_frame(stream)?;
    let mut answer = Reply(&answer);
    let (_version, timeout_ms) = (answer.int()?, answer.int()?);
    match (timeout_ms, answer.long()?) {
        (1.., session) => Ok(session),
        _ => Err(Fault::Code(SESSION_EXPIRED)),
    }
}

fn read_reply(stream: &mut TcpStream, want_xid: i32) -> Result<(i64, Vec<u8>), Fault> {
    let answer = read_frame(stream)?;
    let mut rest = Reply(&answer);
    let (xid, zxid, code) = (rest.int()?, rest.long()?, rest.int()?);
    match code {
        _ if xid != want_xid => Err(io::Error::other(format!(
            "answer to another request: want xid {want_xid}, got {xid}"
        )))?,
        0 => Ok((zxid, rest.0.to_vec())),
        code => Err(Fault::Code(code)),
    }
}

fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let len = u32::from_be_bytes(len) as usize;
    if len > MAX_FRAME {
        return Err(io::Error::other(format!("a frame of {len} bytes")));
    }
    let mut frame = vec![0; len];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}

/// Arguments, written one behind the other.
#[derive(Default)]
struct Args(Vec<u8>);

impl Args {
    fn byte(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn int(mut self, value: i32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn long(mut self, value: i64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn bytes(self, value: &[u8]) -> Self {
        let len = i32::try_from(value.len()).expect("tests write no gigabytes");
        let mut args = self.int(len);
        args.0.extend(value);
        args
    }

    fn text(self, value: &str) -> Self {
        self.bytes(value.as_bytes())
    }

    fn acl(self, (permissions, scheme, id): Acl) -> Self {
        self.int(1).int(permissions).text(scheme).text(id)
    }

    fn no_watch(self) -> Self {
        self.byte(0)
    }
}

/// The part of an answer that is not read yet.
struct Reply<'a>(&'a [u8]);

impl<'a> Reply<'a> {
    fn take(&mut self, len: usize) -> io::Result<&'a [u8]> {
        match self.0.split_at_checked(len) {
            Some((taken, rest)) => {
                self.0 = rest;
                Ok(taken)
            }
            None => Err(io::Error::other(format!(
                "answer too short: want {len} more bytes, got {}",
                self.0.len()
            ))),
        }
    }

    fn int(&mut self) -> io::Result<i32> {
        let bytes = self.take(4)?.try_into().expect("four bytes were taken");
        Ok(i32::from_be_bytes(bytes))
    }

    fn long(&mut self) -> io::Result<i64> {
        let bytes = self.take(8)?.try_into().expect("eight bytes were taken");
        Ok(i64::from_be_bytes(bytes))
    }

    fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let len = self.int()?;
        self.take(usize::try_from(len).unwrap_or(0)) // -1: none at all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_the_one_a_server_gave() {
        // Seen from ZooKeeper 3.8.0.
        let given = 0x92a4_1ea5_b76f_14f5_c0c6_c60c_5868_d555_u128.to_be_bytes();
        assert_eq!(password(0x0100_0014_2460_0000), given);
    }
}
