//! A whole small cluster for real clients: a MetaServer, and a replica server that holds all partitions of all tables.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use crate::meta_server::MetaServer;
use crate::replica_server::ReplicaServer;
use crate::wire::QueryCfgResponse;

/// The cluster. Dropping it ends both servers.
pub struct Cluster {
    /// Knows the tables.
    pub meta: MetaServer,
    /// Holds the data of all of them.
    pub replica: ReplicaServer,
}

impl Cluster {
    /// Starts on free ports of 127.0.0.1; tables are given by name and number of partitions and get the app_ids 1, 2...
    pub fn start(tables: &[(&str, i32)]) -> Self {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into(), tables).expect("127.0.0.1 has a free port")
    }

    /// Starts the MetaServer on a given address.
    pub fn start_on(meta: SocketAddr, tables: &[(&str, i32)]) -> io::Result<Self> {
        let cluster =
            Cluster { meta: MetaServer::start_on(meta)?, replica: ReplicaServer::start() };
        for (&(table, partitions), app_id) in tables.iter().zip(1..) {
            cluster.put_table(table, app_id, partitions);
        }
        Ok(cluster)
    }

    /// Adds a table, empty.
    pub fn put_table(&self, table: &str, app_id: i32, partitions: i32) {
        self.replica.add_table(app_id, partitions);
        let primary = self.replica.addr();
        self.meta.put_table(table, QueryCfgResponse::table(app_id, partitions, primary));
    }
}
