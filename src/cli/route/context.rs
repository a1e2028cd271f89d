//! What every command needs: where the routes are, and which proxies must serve them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::args::Args;
use crate::config;
use crate::ops::store::{Store, Where};
use crate::ops::{Fault, Outcome};
use crate::wire::address::is_host_port;

const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT_MS: u64 = 5_000;
const WAIT_S: u64 = 30;

/// The proxies that must serve what is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxies {
    /// `--proxies`.
    Named(Vec<String>),
    /// `--proxies none`.
    Nobody,
    /// Nobody said.
    Unknown,
}

impl Proxies {
    /// Their pages.
    pub fn addresses(&self) -> &[String] {
        match self {
            Proxies::Named(proxies) => proxies,
            Proxies::Nobody | Proxies::Unknown => &[],
        }
    }
}

/// The arguments, read as far as all commands have them.
pub struct Context {
    pub place: Where,
    pub proxies: Proxies,
    pub json: bool,
    /// For each cluster, and each request.
    pub limit: Duration,
    /// For the proxies.
    pub wait: Duration,
}

impl Context {
    pub fn new(args: &Args) -> Result<Self, Fault> {
        let place = place(args)?;
        let proxies = match args.value("proxies") {
            Some("none") => Proxies::Nobody,
            Some(list) => Proxies::Named(host_ports("proxies", list)?),
            None => Proxies::Unknown,
        };
        let number =
            |name, default| args.number(name).map(|n| n.unwrap_or(default)).map_err(Fault::usage);
        Ok(Context {
            place,
            proxies,
            json: args.is_set("json"),
            limit: Duration::from_millis(number("timeout-ms", TIMEOUT_MS)?.clamp(100, 600_000)),
            wait: Duration::from_secs(number("wait-s", WAIT_S)?.min(86_400)),
        })
    }

    pub fn open(&self) -> Result<Store, Fault> {
        Store::open(self.place.clone(), self.limit)
    }

    /// Fails before anything is written if nobody said which proxies there are.
    pub fn must_know_proxies(&self) -> Result<(), Fault> {
        match self.proxies {
            Proxies::Unknown => Err(Fault::usage(
                "want --proxies HOST:PORT,... (the pages of all proxies), or none to look at none: else nobody \
                 sees whether they serve what is written",
            )),
            _ => Ok(()),
        }
    }

    /// Prints, unless JSON is wanted.
    pub fn say(&self, text: &str) {
        if !self.json {
            crate::cli::print(text);
        }
    }
}

fn place(args: &Args) -> Result<Where, Fault> {
    let mut place = Where { session_timeout: SESSION_TIMEOUT, ..Where::default() };
    if let Some(file) = args.value("config") {
        let checked = config::read(Path::new(file), true);
        let settings = checked.settings.map_err(|faults| {
            let faults: Vec<String> =
                faults.iter().map(|fault| format!("{file}: {fault}")).collect();
            Fault::usage(faults.join("\n"))
        })?;
        if let Some(zookeeper) = settings.zookeeper {
            place.address = zookeeper.address;
            place.root = zookeeper.root;
            place.clusters_root = zookeeper.clusters_root;
            place.digest = zookeeper.digest;
        }
    }
    if let Some(list) = args.value("zookeeper") {
        place.address = host_ports("zookeeper", list)?;
    }
    let znode = |name: &str| -> Result<Option<String>, Fault> {
        let good = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        match args.value(name) {
            Some(path) if path.strip_prefix('/').is_some_and(|path| path.split('/').all(good)) => {
                Ok(Some(path.to_owned()))
            }
            Some(path) => {
                Err(Fault::usage(format!("--{name}: want a znode path, /a/b, got {path:?}")))
            }
            None => Ok(None),
        }
    };
    if let Some(root) = znode("root")? {
        place.root = root;
    }
    place.clusters_root = znode("clusters-root")?.or(place.clusters_root);
    if let Some(file) = args.value("digest-file") {
        let text = fs::read_to_string(file)
            .map_err(|e| Fault::usage(format!("--digest-file: {file}: {e}")))?;
        let text = text.trim().to_owned();
        if !text.contains(':') {
            return Err(Fault::usage(format!("--digest-file: {file}: want user:password")));
        }
        place.digest = Some(text);
    }
    match place.address.is_empty() || place.root.is_empty() {
        true => {
            Err(Fault::usage("want --config FILE, or --zookeeper HOST:PORT,... and --root ZNODE"))
        }
        false => Ok(place),
    }
}

/// A list of `host:port` with commas.
pub fn host_ports(name: &str, list: &str) -> Result<Vec<String>, Fault> {
    let items: Vec<String> = list.split(',').map(|item| item.trim().to_owned()).collect();
    match items.iter().find(|item| !is_host_port(item)) {
        Some(bad) => {
            Err(Fault::new(Outcome::Usage, format!("--{name}: want host:port, got {bad:?}")))
        }
        None => Ok(items),
    }
}
