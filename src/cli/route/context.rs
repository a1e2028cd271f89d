//! The options that every command has: where the routes are, and which proxies must serve them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::args::Args;
use crate::config;
use crate::ops::control::Control;
use crate::ops::store::{Store, Where};
use crate::ops::{Fault, Outcome, moving};
use crate::route::control::Member;
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
    /// Those that have a znode below the control znode.
    Members,
    /// Neither option nor setting says.
    Unknown,
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
            None if place.control_root.is_some() => Proxies::Members,
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

    /// Opens a session, and first reports plans and moves that did not end.
    pub fn open(&self) -> Result<Store, Fault> {
        let mut store = Store::open(self.place.clone(), self.limit)?;
        if let Some(control) = Control::of(&store) {
            for entry in control.entries(&mut store)?.iter().filter(|entry| entry.is_open()) {
                crate::cli::complain(&format!(
                    "WARN: {} of {} was begun at {} and did not end. If it does not run any more: go on by \
                     meta-proxy route switch --plan {} --apply, or back by meta-proxy route undo {} --apply",
                    entry.kind, entry.by, entry.made, entry.id, entry.id
                ));
            }
        }
        match moving::journal::all(&mut store) {
            Ok(journals) => journals.iter().for_each(|(_, journal)| {
                crate::cli::complain(&match journal {
                    Ok(journal) => format!("WARN: {}; {}", journal.stands(), journal.way_on()),
                    Err(fault) => format!("WARN: a move that nobody can read: {fault}"),
                });
            }),
            // A command that does not need the moves goes on.
            Err(fault) => crate::cli::complain(&format!("WARN: moves are not known: {fault}")),
        }
        Ok(store)
    }

    /// Fails before anything is written if nobody said which proxies there are.
    pub fn must_know_proxies(&self) -> Result<(), Fault> {
        match self.proxies {
            Proxies::Unknown => Err(Fault::usage(
                "want --control-root ZNODE, where the proxies have zookeeper.control_root, or --proxies \
                 HOST:PORT,... (the pages of all of them), or --proxies none: else nobody sees whether they serve \
                 what is written",
            )),
            _ => Ok(()),
        }
    }

    /// Fails before anything is written if no proxy is where all of them should be.
    pub fn must_find(&self, proxies: &[String]) -> Result<(), Fault> {
        match (&self.proxies, proxies) {
            (Proxies::Members, []) => Err(Fault::failed(
                "no proxy has told below the control znode that it is there, so nobody sees whether they serve what is \
                 written; --proxies HOST:PORT,... names them, --proxies none looks at none",
            )),
            _ => Ok(()),
        }
    }

    /// The pages of the proxies that are registered now.
    pub fn proxies(&self, store: &mut Store) -> Result<Vec<String>, Fault> {
        match (&self.proxies, Control::of(store)) {
            (Proxies::Named(proxies), _) => Ok(proxies.clone()),
            (Proxies::Members, Some(control)) => {
                let members = control.members(store)?.into_iter();
                let pages = |member: Member| {
                    member.pages.unwrap_or_else(|| format!("{} without pages", member.listen))
                };
                let mut pages: Vec<String> = members.map(pages).collect();
                // A process that is replaced in place has the pages of the one before it.
                pages.sort_unstable();
                pages.dedup();
                Ok(pages)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Reports that there is nothing to do, as text or as JSON.
    pub fn nothing_to_do(&self, why: &str) -> Outcome {
        self.ends_well(0, why)
    }

    /// Reports success, as text or as JSON.
    pub fn ends_well(&self, changes: usize, why: &str) -> Outcome {
        self.say(&format!("{why}\n"));
        if self.json {
            let told = json!({ "changes": changes, "why": why, "exit_code": Outcome::Done as u8 });
            crate::cli::print(&format!("{told:#}\n"));
        }
        Outcome::Done
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
            place.control_root = zookeeper.control_root;
            place.control_digest = zookeeper.control_digest;
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
    place.control_root = znode("control-root")?.or(place.control_root);
    place.digest = digest(args, "digest-file")?.or(place.digest);
    place.control_digest = digest(args, "control-digest-file")?.or(place.control_digest);
    match place.address.is_empty() || place.root.is_empty() {
        true => {
            Err(Fault::usage("want --config FILE, or --zookeeper HOST:PORT,... and --root ZNODE"))
        }
        false => Ok(place),
    }
}

/// `user:password` in a file, where `ps` does not show it.
fn digest(args: &Args, option: &str) -> Result<Option<String>, Fault> {
    let Some(file) = args.value(option) else { return Ok(None) };
    let text =
        fs::read_to_string(file).map_err(|e| Fault::usage(format!("--{option}: {file}: {e}")))?;
    let text = text.trim().to_owned();
    match text.contains(':') {
        true => Ok(Some(text)),
        false => Err(Fault::usage(format!("--{option}: {file}: want user:password"))),
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
