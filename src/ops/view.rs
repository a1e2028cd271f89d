//! Routes as ZooKeeper has them, and clusters as their leaders show them. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::ops::admin_rpc::App;

use super::plan::Znode;
use super::record::Place;

/// One table's znode, and where it says that the table lives.
#[derive(Clone, Debug)]
pub struct Row {
    pub table: String,
    pub znode: Znode,
    /// `Err`: its record, or its cluster's, cannot be used.
    pub place: Result<Place, String>,
}

/// The answer of one address of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerReply {
    Leader,
    Follower,
    /// No usable answer, and why.
    Nothing(String),
}

/// A cluster's leader, and what it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    pub addr: SocketAddr,
    /// The name that the cluster gives itself, where its servers are new enough to say it.
    pub name: Option<String>,
    /// The root of its state in its own ZooKeeper. Two clusters of one name have different roots.
    pub zookeeper_root: Option<String>,
    /// Tables that are available.
    pub apps: BTreeMap<String, App>,
}

/// A cluster as it was seen by way of a set of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Each address that was asked.
    pub servers: Vec<(String, ServerReply)>,
    /// `None`: no leader answered.
    pub leader: Option<Leader>,
}

impl View {
    /// Says for each address why it is not the leader.
    pub fn why_no_leader(&self) -> String {
        let told = self.servers.iter().map(|(addr, said)| match said {
            ServerReply::Leader => format!("{addr}: leader"),
            ServerReply::Follower => format!("{addr}: follower"),
            ServerReply::Nothing(why) => format!("{addr}: {why}"),
        });
        told.collect::<Vec<_>>().join("; ")
    }
}

/// Clusters by their addresses, which are sorted.
pub type Views = BTreeMap<Vec<String>, View>;

/// Whether both leaders lead the same cluster: same name, same root of its state.
pub fn is_same_cluster(one: &Leader, other: &Leader) -> bool {
    one.name.is_some()
        && one.name == other.name
        && one.zookeeper_root.is_some()
        && one.zookeeper_root == other.zookeeper_root
}
