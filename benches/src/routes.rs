//! Which tables there are, and where the proxies learn of them: a ZooKeeper of the bench's own, or a file.

use std::net::SocketAddr;

use harness::scratch::Scratch;
use harness::zookeeper::ZooKeeper;

/// The routes are the children of this znode.
pub const ROOT: &str = "/pegasus-cluster";
/// The table that all clients ask for, if nothing else is said.
pub const TABLE: &str = "bench";
/// The table that moves from one cluster to another.
pub const MOVING: &str = "moving";
/// Tables asked for side by side.
pub const SPREAD: usize = 64;
/// Tables nobody has asked for yet.
pub const COLD: usize = 500;
/// The file's name.
pub const FILE: &str = "routes.json";

/// A table, and the MetaServer that it is asked of.
pub type Entry = (String, SocketAddr);

/// Where the routes stand.
pub enum Routes {
    /// In a real ZooKeeper.
    ZooKeeper(ZooKeeper),
    /// In a file, in a folder of its own.
    File(Scratch),
}

impl Routes {
    /// Starts a ZooKeeper and writes these routes to it.
    pub fn in_zookeeper(tables: &[Entry]) -> Self {
        let zk = ZooKeeper::start();
        for (table, meta) in tables {
            zk.put(&path(table), record(*meta));
        }
        Routes::ZooKeeper(zk)
    }

    /// Writes these routes to a file.
    pub fn in_file(tables: &[Entry]) -> Self {
        let scratch = Scratch::new("routes");
        let line = |(table, meta): &Entry| format!("  \"{table}\": {}", record(*meta));
        let lines: Vec<String> = tables.iter().map(line).collect();
        scratch.write(FILE, format!("{{\n{}\n}}\n", lines.join(",\n")));
        Routes::File(scratch)
    }

    /// The ZooKeeper, or that there is none.
    pub fn zookeeper(&self) -> Result<&ZooKeeper, String> {
        match self {
            Routes::ZooKeeper(zk) => Ok(zk),
            Routes::File(_) => Err("needs --routes zookeeper".to_owned()),
        }
    }
}

/// The znode of a table.
pub fn path(table: &str) -> String {
    format!("{ROOT}/{table}")
}

/// A route to one MetaServer. It stands there twice because the Go meta-proxy wants two.
pub fn record(meta: SocketAddr) -> String {
    format!(r#"{{"cluster_name": "bench", "meta_addrs": "{meta},{meta}"}}"#)
}

/// Names of tables asked for side by side.
pub fn spread() -> Vec<String> {
    (0..SPREAD).map(|number| format!("spread{number:02}")).collect()
}

/// Names of tables nobody has asked for yet.
pub fn cold() -> Vec<String> {
    (0..COLD).map(|number| format!("cold{number:03}")).collect()
}

/// Names of ten tables of many partitions.
pub fn wide() -> Vec<String> {
    (0..10).map(|number| format!("wide{number}")).collect()
}

/// All tables; those of many partitions are at the second MetaServer.
pub fn all(meta: SocketAddr, wide_meta: SocketAddr) -> Vec<Entry> {
    let mut tables = vec![TABLE.to_owned(), MOVING.to_owned()];
    tables.extend(spread());
    tables.extend(cold());
    let wide = wide().into_iter().map(|table| (table, wide_meta));
    tables.into_iter().map(|table| (table, meta)).chain(wide).collect()
}
