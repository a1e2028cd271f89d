//! The start of most tests: the binary, routes in a file or in ZooKeeper, clusters that answer.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::http::get;
use harness::meta_server::MetaServer;
use harness::proxy::Proxy;
use harness::scratch::Scratch;
use harness::wire::QueryCfgResponse;

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_meta-proxy");

/// In which a query must be answered, whatever happens behind the proxy: its `query_timeout_ms`.
pub const QUERY_TIMEOUT: Duration = Duration::from_millis(1_500);

/// A deadline for what takes long only when it fails.
pub const SOON: Duration = Duration::from_secs(10);

/// A record as today's tools write it.
pub fn record(cluster: &str, metas: &[SocketAddr]) -> String {
    let metas: Vec<String> = metas.iter().map(SocketAddr::to_string).collect();
    format!(r#"{{"cluster_name": "{cluster}", "meta_addrs": "{}"}}"#, metas.join(","))
}

/// A MetaServer that has one table whose primary tells it from others.
pub fn meta_with(table: &str, primary: &str) -> MetaServer {
    let meta = MetaServer::start();
    meta.put_table(table, QueryCfgResponse::table(1, 4, addr(primary)));
    meta
}

/// An address from its text.
pub fn addr(text: &str) -> SocketAddr {
    text.parse().expect("tests write good addresses")
}

/// A routes file.
pub struct Routes {
    scratch: Scratch,
    tables: BTreeMap<String, String>,
}

impl Routes {
    /// With these tables and records.
    pub fn new<'a>(tables: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        let tables = tables.into_iter().map(|(name, record)| (name.to_owned(), record)).collect();
        let routes = Routes { scratch: Scratch::new("routes"), tables };
        routes.write();
        routes
    }

    /// Adds a table or moves it.
    pub fn put(&mut self, table: &str, record: String) {
        self.tables.insert(table.to_owned(), record);
        self.write();
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.scratch.path().join("routes.json")
    }

    fn write(&self) {
        let lines: Vec<String> =
            self.tables.iter().map(|(name, record)| format!("  {name:?}: {record}")).collect();
        // In one step, as an operator's tool should.
        let new = self.scratch.path().join("routes.json.new");
        fs::write(&new, format!("{{\n{}\n}}\n", lines.join(",\n"))).expect("routes file");
        fs::rename(new, self.path()).expect("routes file");
    }

    /// A proxy on these routes.
    pub fn proxy(&self) -> Proxy {
        Proxy::builder(BINARY).routes_file(self.path()).start()
    }

    /// A proxy on these routes, with more settings.
    pub fn proxy_with(&self, yaml: &str) -> Proxy {
        Proxy::builder(BINARY).routes_file(self.path()).config_extra(yaml).start()
    }
}

/// The value in `/metrics` of a series whose `why` is this.
#[track_caller]
pub fn count_of(proxy: &Proxy, name: &str, why: &str) -> f64 {
    let metrics = get(proxy.admin(), "/metrics");
    let why = format!("why=\"{why}\"");
    let line = metrics.lines().find(|line| line.starts_with(name) && line.contains(&why));
    let number = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no {name} with {why} in\n{metrics}"))
}

/// A golden frame.
pub fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A file of the repository, most of which scripts/setup makes.
pub fn set_up(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    assert!(
        path.exists(),
        "{} is missing: run scripts/setup, which builds and installs the real clients",
        path.display()
    );
    path
}
