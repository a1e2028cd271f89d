//! The control znode as the proxy uses it: there it tells that it is there, and hears the operator's word. Pure.
//!
//! ```text
//! a link is up ─┬─▶ read accept, leave a watch ──▶ a word, if it is a new one
//!               └─▶ create members/<session> ─┬─▶ done
//!                                             └─ no parent, and the root is there ─▶ create control root, members, again
//! ```
//! It watches its own znode, and makes it again when somebody deletes it. It makes no parents where the root was not seen: another team's ZooKeeper gets none of our znodes. Its own znode is
//! ephemeral, so it goes with the session. A fault is told and changes nothing else: routes do not depend on it.

use std::mem;

use super::codec::{Acl, Answer, Code, Op};
use crate::route::control::{ACCEPT, MEMBERS, Member, Word, member_name};

/// A request that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The word, and a watch on it.
    Word,
    /// A watch on a word that is not there yet.
    NoWord,
    /// The proxy's own znode; `again` once its parents were made.
    Member { again: bool },
    /// Whether it is there, and a watch on it.
    Own,
    /// The control znode.
    Root,
    /// The znode above the members.
    Members,
}

/// The meaning of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// There is nothing to do.
    Nothing,
    /// The proxy has told that it is there.
    Member,
    /// Ask this next.
    Ask((Asked, Op)),
    /// The operator said this.
    Word(Word),
    /// It cannot be done, for this reason.
    Fault(String),
}

/// The proxy's side of the control znode.
pub struct Control {
    root: String,
    /// A digest protects it.
    has_digest: bool,
    /// `None`: the proxy does not serve yet.
    member: Option<Member>,
    session: i64,
    /// The link shows the root.
    has_root: bool,
    /// The znodes above the members do not exist.
    lacks_parents: bool,
    /// zxid of the last word that was heard.
    heard: i64,
}

impl Control {
    /// Nothing is told and heard yet.
    pub fn new(root: String, has_digest: bool) -> Self {
        Control {
            root,
            has_digest,
            member: None,
            session: 0,
            has_root: false,
            lacks_parents: false,
            heard: 0,
        }
    }

    /// Whether this is the id of this process.
    pub fn is_own(&self, id: &str) -> bool {
        self.member.as_ref().is_some_and(|member| member.id == id)
    }

    /// Where it is, and whether a digest protects it.
    pub fn place(&self) -> (String, bool) {
        (self.root.clone(), self.has_digest)
    }

    /// There is a link of this session. The word may have changed meanwhile.
    pub fn up(&mut self, session: i64) -> Vec<(Asked, Op)> {
        (self.session, self.has_root, self.lacks_parents) = (session, false, false);
        [self.word()].into_iter().chain(self.register(false)).collect()
    }

    /// The proxy serves, and tells this. The answer is what to ask where there is a link.
    pub fn serves(&mut self, member: Member) -> Option<(Asked, Op)> {
        self.member = Some(member);
        self.register(false)
    }

    /// The link shows the root.
    pub fn root_seen(&mut self) -> Option<(Asked, Op)> {
        self.has_root = true;
        mem::take(&mut self.lacks_parents).then(|| self.make_root())
    }

    /// A watch has fired. The answer is what to ask; none: it is not one of ours.
    pub fn fired(&self, path: &str) -> Option<(Asked, Op)> {
        if path == self.path(ACCEPT) {
            return Some(self.word());
        }
        (path == self.own_path()).then(|| self.own())
    }

    fn word(&self) -> (Asked, Op) {
        (Asked::Word, Op::GetData { path: self.path(ACCEPT), watch: true })
    }

    /// Takes an answer.
    pub fn answered(&mut self, asked: Asked, result: Result<Answer, Code>) -> Heard {
        match (asked, result) {
            (Asked::Word, Ok(Answer::Data(data, stat))) => {
                // It may be read again after a cut.
                if stat.mzxid <= self.heard {
                    return Heard::Nothing;
                }
                self.heard = stat.mzxid;
                match Word::from_bytes(&data) {
                    Ok(word) => Heard::Word(word),
                    Err(e) => Heard::Fault(format!("{}: {e}", self.path(ACCEPT))),
                }
            }
            (Asked::Word, Err(Code::NO_NODE)) => {
                Heard::Ask((Asked::NoWord, Op::Exists { path: self.path(ACCEPT), watch: true }))
            }
            // It came meanwhile.
            (Asked::NoWord, Ok(_)) => Heard::Ask(self.word()),
            (Asked::NoWord, Err(Code::NO_NODE)) => Heard::Nothing,
            (Asked::Member { again: false }, Err(Code::NO_NODE)) if self.has_root => {
                Heard::Ask(self.make_root())
            }
            // Somebody deletes what was made: it is made again when the root is read next, some seconds later.
            (Asked::Member { .. } | Asked::Members, Err(Code::NO_NODE)) => {
                self.lacks_parents = true;
                Heard::Nothing
            }
            (Asked::Root, Ok(_) | Err(Code::NODE_EXISTS)) => {
                Heard::Ask((Asked::Members, self.create(self.path(MEMBERS), Vec::new(), false)))
            }
            (Asked::Members, Ok(_) | Err(Code::NODE_EXISTS)) => {
                self.register(true).map_or(Heard::Nothing, Heard::Ask)
            }
            // This session made it over another link.
            (Asked::Member { .. }, Ok(_) | Err(Code::NODE_EXISTS)) => Heard::Ask(self.own()),
            (Asked::Own, Ok(_)) => Heard::Member,
            (Asked::Own, Err(Code::NO_NODE)) => {
                self.register(false).map_or(Heard::Nothing, Heard::Ask)
            }
            (Asked::Root, Err(Code::NO_NODE)) => {
                Heard::Fault(format!("{}: the znode above it does not exist", self.root))
            }
            (asked, Err(code)) => Heard::Fault(format!("{}: {code}", self.path_of(asked))),
            (asked, Ok(other)) => Heard::Fault(format!("{}: {other:?}", self.path_of(asked))),
        }
    }

    fn register(&self, again: bool) -> Option<(Asked, Op)> {
        let data = self.member.as_ref()?.to_bytes();
        let path = self.own_path();
        Some((Asked::Member { again }, self.create(path, data, true)))
    }

    fn own(&self) -> (Asked, Op) {
        (Asked::Own, Op::Exists { path: self.own_path(), watch: true })
    }

    fn make_root(&self) -> (Asked, Op) {
        (Asked::Root, self.create(self.root.clone(), Vec::new(), false))
    }

    fn own_path(&self) -> String {
        format!("{}/{}", self.path(MEMBERS), member_name(self.session))
    }

    fn create(&self, path: String, data: Vec<u8>, is_ephemeral: bool) -> Op {
        Op::Create { path, data, acl: vec![Acl::all(self.has_digest)], is_ephemeral }
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    fn path_of(&self, asked: Asked) -> String {
        match asked {
            Asked::Word | Asked::NoWord => self.path(ACCEPT),
            Asked::Root => self.root.clone(),
            Asked::Members => self.path(MEMBERS),
            Asked::Member { .. } | Asked::Own => self.own_path(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zk::codec::Stat;

    fn control() -> Control {
        Control::new("/c".to_owned(), true)
    }

    #[test]
    fn it_registers_over_each_link_and_makes_the_parents_where_the_root_is() {
        let mut control = control();
        assert_eq!(control.up(7).len(), 1, "it does not serve yet");
        let (asked, op) = control.serves(Member::default()).unwrap();
        let Op::Create { path, acl, is_ephemeral: true, .. } = op else { panic!("{op:?}") };
        assert_eq!((path.as_str(), acl[0].scheme.as_str()), ("/c/members/0x7", "auth"));
        assert_eq!(control.answered(asked, Err(Code::NO_NODE)), Heard::Nothing, "no root yet");
        let mut heard = Heard::Ask(control.root_seen().unwrap());
        for (want, result) in [
            ("/c", Ok(Answer::Done)),
            ("/c/members", Err(Code::NODE_EXISTS)),
            ("/c/members/0x7", Ok(Answer::Done)),
        ] {
            let Heard::Ask((asked, Op::Create { path, .. })) = heard else { panic!("{heard:?}") };
            assert_eq!(path, want);
            heard = control.answered(asked, result);
        }
        let there = || Ok(Answer::Stat(Stat::default()));
        let Heard::Ask((own, Op::Exists { watch: true, .. })) = heard else { panic!("{heard:?}") };
        assert_eq!(control.answered(own, there()), Heard::Member);
        // Somebody deletes it.
        let (own, _) = control.fired("/c/members/0x7").unwrap();
        let again = control.answered(own, Err(Code::NO_NODE));
        assert!(
            matches!(again, Heard::Ask((Asked::Member { .. }, Op::Create { .. }))),
            "{again:?}"
        );
        assert_eq!(control.root_seen(), None);
        let [_, (asked, _)] = control.up(7).try_into().unwrap();
        let there = control.answered(asked, Err(Code::NODE_EXISTS));
        assert!(matches!(there, Heard::Ask((Asked::Own, _))), "it is ours: {there:?}");
        control.root_seen();
        let asked_root = control.answered(asked, Err(Code::NO_NODE));
        assert!(matches!(asked_root, Heard::Ask((Asked::Root, _))), "the root was seen before");
        let gone = control.answered(Asked::Member { again: true }, Err(Code::NO_NODE));
        assert_eq!(gone, Heard::Nothing, "somebody deletes it at once");
        assert!(control.root_seen().is_some());
        let refused = control.answered(asked, Err(Code::NO_AUTH));
        assert!(matches!(&refused, Heard::Fault(why) if why.contains("/c/members/0x7")));
    }

    #[test]
    fn a_word_is_heard_once() {
        let mut control = control();
        let said = |mzxid| {
            let word = Word::default().to_bytes();
            Ok(Answer::Data(word, Stat { mzxid, ..Stat::default() }))
        };
        let asked = control.up(7)[0].0;
        let Heard::Ask((exists, _)) = control.answered(asked, Err(Code::NO_NODE)) else { panic!() };
        assert_eq!(control.answered(exists, Err(Code::NO_NODE)), Heard::Nothing);
        assert_eq!(control.fired("/c/members"), None);
        let (asked, _) = control.fired("/c/accept").unwrap();
        assert_eq!(control.answered(asked, said(5)), Heard::Word(Word::default()));
        let asked = control.up(8)[0].0;
        assert_eq!(control.answered(asked, said(5)), Heard::Nothing, "the link is another one");
        assert_eq!(control.answered(asked, said(6)), Heard::Word(Word::default()));
    }
}
