//! ZooKeeper's client protocol: requests to bytes, bytes to answers and events. Pure.
//!
//! ```text
//! every frame   | len i32 | ...
//! handshake     | 0 i32 | last zxid i64 | timeout i32 | session i64 | password | read-only bool
//!   answered    | 0 i32 | timeout i32, 0: expired | session i64 | password | read-only bool, not by all
//! request       | xid i32 | operation i32 | arguments
//!   answered    | xid i32 | zxid i64 | error i32 | result, if the error is 0
//! event         | -1 i32 | -1 i64 | 0 i32 | type i32 | state i32 | path
//! ```
//! Integers are big-endian; text and bytes carry an i32 length, lists an i32 count, -1 stands for none. Only operations
//! that 3.4 knows: it closes the connection on any other. Layout: zookeeper `zookeeper-jute/.../zookeeper.jute`;
//! operations and errors: `ZooDefs.OpCode`, `KeeperException.Code`.

use std::fmt;
use std::time::Duration;

use crate::route::names::Names;

/// The longest answer that is taken. A list of a million names has 32 MiB.
pub const MAX_FRAME_BYTES: usize = 64 << 20;
/// Length of a frame's length.
pub const LEN_BYTES: usize = 4;
/// Limit of the bytes of all paths in one SetWatches: a server takes no request of 1 MiB (`jute.maxbuffer`), and other
/// clients keep to this size.
pub const MAX_SET_WATCHES_BYTES: usize = 120 << 10;
/// Passwords of sessions have 16 bytes.
const MAX_PASSWORD_BYTES: usize = 64;

/// Versions of the children and of the ACL, the session that owns the znode, length of the data, number of children.
const UNREAD_STAT_BYTES: usize = 4 + 4 + 8 + 4 + 4;

const XID_EVENT: i32 = -1;
const XID_PING: i32 = -2;
const XID_AUTH: i32 = -4;

/// The identity of a znode, and its age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// zxid of its creation.
    pub czxid: i64,
    /// zxid of the last change of its data.
    pub mzxid: i64,
    /// When it was created, in ms since 1970.
    pub ctime_ms: i64,
    /// When its data last changed.
    pub mtime_ms: i64,
    /// Number of changes of its data.
    pub version: i32,
    /// zxid of the last creation or deletion of a child.
    pub pzxid: i64,
}

/// Rights: permission bits, scheme, id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    /// ZooKeeper's bits: read 1, write 2, create 4, delete 8, admin 16.
    pub permissions: i32,
    /// `world`, `auth`, `digest`, ...
    pub scheme: String,
    /// The holder of the rights, in words of the scheme.
    pub id: String,
}

impl Acl {
    /// All rights: for the creator of the znode if a digest protects it, else for everybody.
    pub fn all(has_digest: bool) -> Self {
        let (scheme, id) = if has_digest { ("auth", "") } else { ("world", "anyone") };
        Acl { permissions: 31, scheme: scheme.to_owned(), id: id.to_owned() }
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Whether a znode is there. A watch is left in either case.
    Exists { path: String, watch: bool },
    /// Its data. A watch is left if it is there and may be read.
    GetData { path: String, watch: bool },
    /// The names of its children.
    GetChildren { path: String, watch: bool },
    /// Watches that another connection had: of znodes that were there, of those that were not, and of children. Changes
    /// since a zxid are told at once.
    SetWatches { since: i64, data: Vec<String>, exist: Vec<String>, child: Vec<String> },
    /// A new znode. An ephemeral one ends with the session.
    Create { path: String, data: Vec<u8>, acl: Vec<Acl>, is_ephemeral: bool },
    /// New data, only if the znode has this version; -1: any.
    SetData { path: String, data: Vec<u8>, version: i32 },
    /// No znode any more, only if it has this version; -1: any.
    Delete { path: String, version: i32 },
    /// The rights.
    GetAcl { path: String },
    /// A read after it is as new as the leader was.
    Sync { path: String },
    /// The end of the session.
    Close,
}

/// The kind of a request, by which its answer is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A [`Stat`].
    Stat,
    /// Data and a [`Stat`].
    Data,
    /// Names and a [`Stat`].
    Children,
    /// A list of [`Acl`] and a [`Stat`].
    Acl,
    /// Nothing but that it is done.
    Done,
}

/// The result of a request that was not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The answer to `Exists` and `SetData`.
    Stat(Stat),
    /// The answer to `GetData`.
    Data(Vec<u8>, Stat),
    /// The answer to `GetChildren`.
    Children(Names, Stat),
    /// The answer to `GetAcl`.
    Acl(Vec<Acl>, Stat),
    /// The answer to the other requests.
    Done,
}

/// Why a request was refused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(pub i32);

impl Code {
    /// The connection ended before the answer came; the request may have been done. Never sent.
    pub const CONNECTION_LOSS: Code = Code(-4);
    /// There is no such znode.
    pub const NO_NODE: Code = Code(-101);
    /// An ACL forbids it.
    pub const NO_AUTH: Code = Code(-102);
    /// It has another version.
    pub const BAD_VERSION: Code = Code(-103);
    /// It is there already.
    pub const NODE_EXISTS: Code = Code(-110);
    /// It has children.
    pub const NOT_EMPTY: Code = Code(-111);
    /// The session has expired.
    pub const SESSION_EXPIRED: Code = Code(-112);
    /// The digest is not believed.
    pub const AUTH_FAILED: Code = Code(-115);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Code::CONNECTION_LOSS => "the connection ended before the answer",
            Code::NO_NODE => "no such znode",
            Code::NO_AUTH => "an ACL forbids it",
            Code::BAD_VERSION => "another version",
            Code::NODE_EXISTS => "the znode exists",
            Code::NOT_EMPTY => "the znode has children",
            Code::SESSION_EXPIRED => "the session has expired",
            Code::AUTH_FAILED => "authentication failed",
            Code(code) => return write!(f, "ZooKeeper's error {code}"),
        };
        f.write_str(name)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({self})", self.0)
    }
}

/// A change of a watched znode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It came.
    Created,
    /// It is gone.
    Deleted,
    /// Its data changed.
    Changed,
    /// Children came or went.
    ChildrenChanged,
}

/// One frame from a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The answer to the request with this xid, by a server that knew of changes up to this zxid: the result's bytes, see
    /// [`read_answer`].
    Reply { xid: i32, zxid: i64, result: Result<&'a [u8], Code> },
    /// The answer to a ping, by a server that knew of changes up to this zxid.
    Pong(i64),
    /// The answer to [`write_auth`].
    Auth(Result<(), Code>),
    /// A watch fired. It is used up.
    Event(Event, String),
    /// It is about the session, which the connection tells better.
    Other,
}

/// The answer to a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// A session whose client is silent for longer expires; 0: this one has.
    pub timeout_ms: i32,
    /// The session.
    pub id: i64,
    /// With it the session can be taken to another connection.
    pub password: Password,
}

impl Granted {
    /// No session yet.
    pub const NONE: Granted = Granted { timeout_ms: 0, id: 0, password: Password::NONE };

    /// The time-out; zero: the session has expired.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.max(0) as u64)
    }
}

/// A password of a session, padded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Password {
    bytes: [u8; MAX_PASSWORD_BYTES],
    len: usize,
}

impl Password {
    const NONE: Password = Password { bytes: [0; MAX_PASSWORD_BYTES], len: 16 };
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A fault of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not ZooKeeper's protocol: {}", self.0)
    }
}

// ---- writing

/// Asks for a session, or for one that was granted before.
pub fn write_handshake(
    out: &mut Vec<u8>,
    last_zxid: i64,
    timeout_ms: i32,
    id: i64,
    key: &Password,
) {
    frame(out, |w| {
        w.int(0);
        w.long(last_zxid);
        w.int(timeout_ms);
        w.long(id);
        w.bytes(&key.bytes[..key.len]);
        w.0.push(0); // a read-only server is of no use
    });
}

/// Proves who we are.
pub fn write_auth(out: &mut Vec<u8>, digest: &str) {
    frame(out, |w| {
        w.int(XID_AUTH);
        w.int(100);
        w.int(0);
        w.text("digest");
        w.text(digest);
    });
}

/// Keeps the session alive.
pub fn write_ping(out: &mut Vec<u8>) {
    frame(out, |w| {
        w.int(XID_PING);
        w.int(11);
    });
}

/// Writes a request; what its answer will be.
pub fn write_request(out: &mut Vec<u8>, xid: i32, op: &Op) -> Kind {
    let mut kind = Kind::Done;
    frame(out, |w| {
        w.int(xid);
        kind = w.op(op);
    });
    kind
}

/// Runs `write`, and puts the length of what it wrote before it.
fn frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Writer<'_>)) {
    let start = out.len();
    out.extend([0; LEN_BYTES]);
    write(&mut Writer(out));
    let len = (out.len() - start - LEN_BYTES) as u32;
    out[start..start + LEN_BYTES].copy_from_slice(&len.to_be_bytes());
}

struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn int(&mut self, value: i32) {
        self.0.extend(value.to_be_bytes());
    }

    fn long(&mut self, value: i64) {
        self.0.extend(value.to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.int(bytes.len() as i32);
        self.0.extend(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn list<T>(&mut self, list: &[T], each: impl Fn(&mut Self, &T)) {
        self.int(list.len() as i32);
        list.iter().for_each(|item| each(self, item));
    }

    fn op(&mut self, op: &Op) -> Kind {
        match op {
            Op::Exists { path, watch } => self.read(3, path, *watch, Kind::Stat),
            Op::GetData { path, watch } => self.read(4, path, *watch, Kind::Data),
            Op::GetChildren { path, watch } => self.read(12, path, *watch, Kind::Children),
            Op::SetWatches { since, data, exist, child } => {
                self.int(101);
                self.long(*since);
                for paths in [data, exist, child] {
                    self.list(paths, |w, path| w.text(path));
                }
                Kind::Done
            }
            Op::Create { path, data, acl, is_ephemeral } => {
                self.int(1);
                self.text(path);
                self.bytes(data);
                self.list(acl, |w, acl| {
                    w.int(acl.permissions);
                    w.text(&acl.scheme);
                    w.text(&acl.id);
                });
                self.int(i32::from(*is_ephemeral));
                Kind::Done
            }
            Op::SetData { path, data, version } => {
                self.int(5);
                self.text(path);
                self.bytes(data);
                self.int(*version);
                Kind::Stat
            }
            Op::Delete { path, version } => {
                self.int(2);
                self.text(path);
                self.int(*version);
                Kind::Done
            }
            Op::GetAcl { path } => {
                self.int(6);
                self.text(path);
                Kind::Acl
            }
            Op::Sync { path } => {
                self.int(9);
                self.text(path);
                Kind::Done
            }
            Op::Close => {
                self.int(-11);
                Kind::Done
            }
        }
    }

    fn read(&mut self, operation: i32, path: &str, watch: bool, kind: Kind) -> Kind {
        self.int(operation);
        self.text(path);
        self.0.push(watch.into());
        kind
    }
}

// ---- reading

/// The length of the frame at the start of `bytes`, its own length not counted; `None`: it has not come yet.
pub fn frame_len(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some(len) = bytes.first_chunk::<LEN_BYTES>() else {
        return Ok(None);
    };
    match usize::try_from(i32::from_be_bytes(*len)) {
        Ok(len) if len <= MAX_FRAME_BYTES => Ok(Some(len)),
        _ => Err(Malformed("the length of a frame")),
    }
}

/// The answer to a handshake.
pub fn read_granted(frame: &[u8]) -> Result<Granted, Malformed> {
    let mut r = Reader(frame);
    r.int()?;
    let (timeout_ms, id) = (r.int()?, r.long()?);
    let bytes = r.bytes()?;
    let mut password = Password { len: bytes.len(), ..Password::NONE };
    match password.bytes.get_mut(..bytes.len()) {
        Some(room) => room.copy_from_slice(bytes),
        None => return Err(Malformed("the length of a password")),
    }
    Ok(Granted { timeout_ms, id, password })
}

/// Any later frame.
pub fn read_frame(frame: &[u8]) -> Result<Frame<'_>, Malformed> {
    let mut r = Reader(frame);
    let (xid, zxid, error) = (r.int()?, r.long()?, r.int()?);
    let code = if error == 0 { Ok(()) } else { Err(Code(error)) };
    Ok(match xid {
        XID_PING => Frame::Pong(zxid),
        XID_AUTH => Frame::Auth(code),
        XID_EVENT => {
            let (kind, _state) = (r.int()?, r.int()?);
            let event = match kind {
                1 => Event::Created,
                2 => Event::Deleted,
                3 => Event::Changed,
                4 => Event::ChildrenChanged,
                _ => return Ok(Frame::Other),
            };
            Frame::Event(event, r.text()?.to_owned())
        }
        xid => Frame::Reply { xid, zxid, result: code.map(|()| r.0) },
    })
}

/// The result of a request for a [`Stat`].
pub fn read_stat(result: &[u8]) -> Result<Stat, Malformed> {
    Reader(result).stat()
}

/// The result of a request of this kind.
pub fn read_answer(kind: Kind, result: &[u8]) -> Result<Answer, Malformed> {
    let mut r = Reader(result);
    Ok(match kind {
        Kind::Stat => Answer::Stat(r.stat()?),
        Kind::Data => Answer::Data(r.bytes()?.to_vec(), r.stat()?),
        Kind::Children => Answer::Children(Names::new(r.list(4, Reader::text)?), r.stat()?),
        Kind::Acl => {
            let acl = r.list(12, |r| {
                let permissions = r.int()?;
                let (scheme, id) = (r.text()?.to_owned(), r.text()?.to_owned());
                Ok(Acl { permissions, scheme, id })
            })?;
            Answer::Acl(acl, r.stat()?)
        }
        Kind::Done => Answer::Done,
    })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed("a frame too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N).map(|bytes| bytes.try_into().expect("N bytes were taken"))
    }

    fn int(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_be_bytes)
    }

    fn long(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_be_bytes)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        match self.int()? {
            -1 => Ok(&[]),
            len => self.take(usize::try_from(len).map_err(|_| Malformed("a negative length"))?),
        }
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        str::from_utf8(self.bytes()?).map_err(|_| Malformed("text that is not UTF-8"))
    }

    /// An item has at least `min_bytes`, so a count that the frame has no room for allocates nothing.
    fn list<T>(
        &mut self,
        min_bytes: usize,
        each: impl Fn(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = match self.int()? {
            -1 => 0,
            count => usize::try_from(count).map_err(|_| Malformed("a negative count"))?,
        };
        if count > self.0.len() / min_bytes {
            return Err(Malformed("a count without its items"));
        }
        (0..count).map(|_| each(self)).collect()
    }

    fn stat(&mut self) -> Result<Stat, Malformed> {
        Ok(Stat {
            czxid: self.long()?,
            mzxid: self.long()?,
            ctime_ms: self.long()?,
            mtime_ms: self.long()?,
            version: self.int()?,
            pzxid: self.take(UNREAD_STAT_BYTES).and_then(|_| self.long())?,
        })
    }
}

#[cfg(test)]
mod tests;
