//! Routes in ZooKeeper, read whole and changed by compare-and-set, over a session of the tool's own.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Fault;
use super::plan::{Change, Right, State, Znode, state};
use super::record::{self, Place};
use super::view::Row;
use crate::route::record::{BadRecord, Target};
use crate::wire::message::is_table_name;
use crate::zk::codec::{Answer, Code, Op, Stat};
use crate::zk::session::{Failed, Outcome, Session};

/// Stands for every version of a znode.
pub const ANY_VERSION: i32 = -1;

/// Where the routes are.
#[derive(Clone, Debug, Default)]
pub struct Where {
    pub address: Vec<String>,
    pub root: String,
    pub clusters_root: Option<String>,
    pub digest: Option<String>,
    /// The control znode, if there is one.
    pub control_root: Option<String>,
    /// `user:password` that protects it.
    pub control_digest: Option<String>,
    pub session_timeout: Duration,
}

/// The routes.
pub struct Store {
    session: Session,
    pub place: Where,
}

/// All routes at about one moment.
pub struct Routes {
    pub rows: Vec<Row>,
    /// Clusters that have znodes of their own.
    pub clusters: BTreeMap<String, Znode>,
}

/// How far a run of changes came: for each change whether its znode is as planned now.
pub struct Run {
    pub states: Vec<State>,
    /// As they were last read, or as they were written.
    pub znodes: Vec<Option<Znode>>,
    /// zxid of the newest change of the run.
    pub zxid: i64,
    /// Why it stopped before its end.
    pub stopped: Option<String>,
}

impl Run {
    pub fn done(&self) -> usize {
        self.states.iter().filter(|state| matches!(state, State::Done(_))).count()
    }

    pub fn is_done(&self) -> bool {
        self.done() == self.states.len()
    }
}

impl Store {
    /// Each request waits for `limit` at most.
    pub fn open(place: Where, limit: Duration) -> Result<Self, Fault> {
        let digests: Vec<String> =
            place.digest.iter().chain(&place.control_digest).cloned().collect();
        let session = Session::connect(&place.address, place.session_timeout, &digests, limit);
        let session = session.map_err(|e| Fault::failed(format!("ZooKeeper: {e}")))?;
        Ok(Store { session, place })
    }

    /// The session, for requests that are not about routes.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    pub fn znode_of(&self, table: &str) -> String {
        format!("{}/{table}", self.place.root)
    }

    /// Reads that follow are at least as new as the leader's state now.
    pub fn sync(&mut self) -> Result<(), Fault> {
        let path = self.place.root.clone();
        let fault = failed(&path);
        self.session.request(Op::Sync { path }).map(drop).map_err(fault)
    }

    /// All routes, and all clusters that have znodes.
    pub fn routes(&mut self) -> Result<Routes, Fault> {
        self.sync()?;
        let root = self.place.root.clone();
        let clusters = self.clusters()?;
        let tables = self.below(&root)?;
        let tables = tables.ok_or_else(|| Fault::failed(format!("{root}: no such znode")))?;
        let rows = tables.into_iter().map(|(table, znode)| {
            let place = self.place_of(&znode.data, &clusters);
            Row { table, znode, place }
        });
        let rows = rows.collect();
        Ok(Routes { rows, clusters })
    }

    /// Clusters that have znodes of their own.
    pub fn clusters(&mut self) -> Result<BTreeMap<String, Znode>, Fault> {
        let Some(root) = self.place.clusters_root.clone() else { return Ok(BTreeMap::new()) };
        Ok(self.below(&root)?.unwrap_or_default().into_iter().collect())
    }

    /// Where a record says that its table lives.
    pub fn place_of(
        &self,
        data: &[u8],
        clusters: &BTreeMap<String, Znode>,
    ) -> Result<Place, String> {
        let plain = |fault: BadRecord| fault.to_string();
        match record::read(data, self.place.clusters_root.is_some()).map_err(plain)? {
            Target::Here(record) => Ok(Place { cluster: record.cluster, metas: record.meta_addrs }),
            Target::Cluster(name) => {
                let root = self.place.clusters_root.as_deref().unwrap_or_default();
                let znode = clusters.get(&name);
                let znode = znode.ok_or_else(|| format!("{root}/{name}: no such znode"))?;
                let record = crate::route::record::read(&znode.data);
                let record = record.map_err(|fault| format!("{root}/{name}: {fault}"))?;
                Ok(Place { cluster: name, metas: record.meta_addrs })
            }
        }
    }

    /// The names of the children, in order; `None`: no such znode.
    pub fn children(&mut self, path: &str) -> Result<Option<Vec<String>>, Fault> {
        match self.session.request(Op::GetChildren { path: path.to_owned(), watch: false }) {
            Ok(Answer::Children(names, _)) => Ok(Some(names.iter().map(str::to_owned).collect())),
            Ok(other) => Err(Fault::failed(format!("{path}: {other:?}"))),
            Err(Failed::Code(Code::NO_NODE)) => Ok(None),
            Err(why) => Err(failed(path)(why)),
        }
    }

    /// Reads these znodes. `None`: no such znode.
    pub fn read(&mut self, znodes: &[String]) -> Result<Vec<Option<Znode>>, Fault> {
        let get = |path: &String| Op::GetData { path: path.clone(), watch: false };
        let is_bad = |outcome: &Outcome| matches!(outcome, Err(failed) if !matches!(failed, Failed::Code(Code::NO_NODE)));
        let ops = znodes.iter().map(get).collect();
        let outcomes = self.session.pipeline(ops, is_bad, |_| {});
        let mut found = Vec::with_capacity(znodes.len());
        for (znode, outcome) in znodes.iter().zip(outcomes) {
            found.push(match outcome {
                Ok((_, Answer::Data(data, stat))) => Some(Znode { data, stat }),
                Err(Failed::Code(Code::NO_NODE)) => None,
                Ok((_, other)) => return Err(Fault::failed(format!("{znode}: {other:?}"))),
                Err(why) => return Err(failed(znode)(why)),
            });
        }
        match found.len() == znodes.len() {
            true => Ok(found),
            false => Err(Fault::failed("ZooKeeper: the connection ended before all was read")),
        }
    }

    /// Reads one znode. `None`: no such znode.
    pub fn znode(&mut self, path: &str) -> Result<Option<Znode>, Fault> {
        Ok(self.read(&[path.to_owned()])?.into_iter().next().flatten())
    }

    /// Reads all children, in the order of their names. Children that are deleted meanwhile are left out. `None`: no such znode.
    pub fn below(&mut self, parent: &str) -> Result<Option<Vec<(String, Znode)>>, Fault> {
        let Some(names) = self.children(parent)? else { return Ok(None) };
        let znodes: Vec<String> = names.iter().map(|name| format!("{parent}/{name}")).collect();
        let found = self.read(&znodes)?;
        let there = names.into_iter().zip(found).filter_map(|(name, znode)| Some((name, znode?)));
        Ok(Some(there.collect()))
    }

    /// Writes a znode of this version ([`ANY_VERSION`]: of any).
    pub fn set(&mut self, path: &str, data: Vec<u8>, version: i32) -> Result<Stat, Fault> {
        match self.session.request(Op::SetData { path: path.to_owned(), data, version }) {
            Ok(Answer::Stat(stat)) => Ok(stat),
            Ok(other) => Err(Fault::failed(format!("{path}: {other:?}"))),
            Err(e) => Err(Fault::failed(format!("{path}: {e}"))),
        }
    }

    /// Deletes a znode of this version ([`ANY_VERSION`]: of any). A znode that does not exist is no fault.
    pub fn delete(&mut self, path: &str, version: i32) -> Result<(), Fault> {
        match self.session.request(Op::Delete { path: path.to_owned(), version }) {
            Ok(_) | Err(Failed::Code(Code::NO_NODE)) => Ok(()),
            Err(e) => Err(Fault::failed(format!("{path}: {e}"))),
        }
    }

    /// The rights on a znode.
    pub fn acl(&mut self, path: &str) -> Result<Vec<Right>, Fault> {
        match self.session.request(Op::GetAcl { path: path.to_owned() }) {
            Ok(Answer::Acl(acl, _)) => Ok(acl.into_iter().map(Right::from).collect()),
            Ok(other) => Err(Fault::failed(format!("{path}: {other:?}"))),
            Err(why) => Err(failed(path)(why)),
        }
    }

    /// Reads the znodes of these changes, and says how each change stands.
    pub fn states(&mut self, changes: &[Change]) -> Result<Run, Fault> {
        self.sync()?;
        let paths: Vec<String> = changes.iter().map(|change| change.znode.clone()).collect();
        let znodes = self.read(&paths)?;
        let stands = changes.iter().zip(&znodes).map(|(change, now)| state(change, now.as_ref()));
        Ok(Run { states: stands.collect(), znodes, zxid: 0, stopped: None })
    }

    /// Makes the changes that are due, each only if its znode is as it was seen. The first refusal stops it.
    /// In the end it reads the znodes of requests whose answers were lost.
    pub fn write(
        &mut self,
        changes: &[Change],
        run: &mut Run,
        done: impl FnMut(usize),
    ) -> Result<(), Fault> {
        let due: Vec<usize> =
            (0..changes.len()).filter(|index| run.states[*index] == State::Due).collect();
        let ops = due.iter().map(|index| changes[*index].op()).collect();
        let outcomes = self.session.pipeline(ops, Result::is_err, done);
        let mut doubtful = Vec::new();
        for (index, outcome) in due.iter().zip(&outcomes) {
            match outcome {
                Ok((zxid, answer)) => {
                    run.zxid = run.zxid.max(*zxid);
                    let mzxid = match answer {
                        Answer::Stat(stat) => stat.mzxid,
                        _ if changes[*index].is_deletion() => 0,
                        _ => *zxid,
                    };
                    run.states[*index] = State::Done(mzxid);
                }
                Err(failed) => {
                    let znode = &changes[*index].znode;
                    run.stopped.get_or_insert_with(|| format!("{znode}: {failed}"));
                    doubtful.push(*index);
                }
            }
        }
        if outcomes.len() < due.len() && run.stopped.is_none() {
            run.stopped = Some("the connection to ZooKeeper ended".to_owned());
        }
        if doubtful.is_empty() {
            return Ok(());
        }
        self.sync()?;
        let paths: Vec<String> =
            doubtful.iter().map(|index| changes[*index].znode.clone()).collect();
        let znodes = self.read(&paths)?;
        for (index, now) in doubtful.into_iter().zip(znodes) {
            run.states[index] = state(&changes[index], now.as_ref());
            run.znodes[index] = now;
        }
        // The request succeeded after all, or another run of the plan made the change.
        if run.is_done() {
            run.stopped = None;
        }
        Ok(())
    }
}

/// Whether a table of this name can have a route, or why not.
pub fn check_name(table: &str) -> Result<(), Fault> {
    match is_table_name(table) {
        true => Ok(()),
        false => Err(Fault::usage(format!(
            "{table:?}: want a table's name, 1 to 255 of letters, digits and _.:-"
        ))),
    }
}

fn failed(path: &str) -> impl Fn(Failed) -> Fault + use<> {
    let path = path.to_owned();
    move |failed| match failed {
        Failed::Code(code) => Fault::failed(format!("{path}: {code}")),
        unreachable => Fault::failed(unreachable.to_string()),
    }
}
