//! `meta-proxy CONFIG [LOGFILE]`: runs the proxy, and does what signals say.
//!
//! ```text
//! SIGHUP ──▶ settings read again, log file reopened
//! SIGTERM ─▶ life.stop: clients leave ── all have left, or the grace time is over ──▶ server.stop
//! SIGTERM again, SIGINT ─▶ server.end_clients: nobody is read, answers are waited for ─────▲
//! ... once more ─────────▶ server.end_clients: nobody is waited for ───────────────────────┘
//! SIGUSR1, SIGUSR2, SIGALRM, SIGXCPU, SIGXFSZ ─▶ a line in the log; without a handler each would kill
//! ```

use std::collections::HashMap;
use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lexopt::Parser;
use lexopt::prelude::*;
use log::{error, info, warn};
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

use super::log_file::{self, InUse};
use crate::activity;
use crate::config::{self, Checked, Fault, Settings};
use crate::logging;
use crate::process::life::Phase;
use crate::process::reload;
use crate::process::server::{Server, Source, Wait};
use crate::process::systemd::{self, Given, Notifier};
use crate::process::watchdog::Watchdog;
use crate::version;

pub const HELP: &str = "\
meta-proxy: run the proxy

Usage:
  meta-proxy [--listen IP:PORT] CONFIG [LOGFILE]
  meta-proxy [--listen IP:PORT] --routes FILE [CONFIG [LOGFILE]]

  CONFIG             the settings, see README, Settings; check them with `meta-proxy check CONFIG`
  LOGFILE            where the log goes instead of stderr; it is never a file of settings or routes
  --routes FILE      routes from this file instead of ZooKeeper; it is read again when it changes
  --listen IP:PORT   where clients connect, instead of `listen` and `listeners` in CONFIG

RUST_LOG chooses levels, as in RUST_LOG=info,zk=debug, whatever the settings say.
SIGHUP reads CONFIG again and reopens LOGFILE; SIGTERM lets clients leave; SIGINT stops at once.

Exit codes: 0 after an ordered stop, 1 it cannot start or its accept loop fails, 2 arguments that mean nothing.
";

/// The arguments of the command.
pub struct Options {
    /// The settings file; without it all settings have their defaults.
    pub config: Option<PathBuf>,
    /// Where the log goes instead of stderr.
    pub log_file: Option<PathBuf>,
    /// Routes from this file instead of ZooKeeper.
    pub routes: Option<PathBuf>,
    /// Overrides the settings.
    pub listen: Option<SocketAddr>,
}

/// `None`: help is wanted.
pub fn parse(parser: &mut Parser) -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options { config: None, log_file: None, routes: None, listen: None };
    while let Some(arg) = parser.next()? {
        match arg {
            Value(word) if options.config.is_none() => {
                super::refuse_mistyped(&word)?;
                options.config = Some(word.into());
            }
            Value(word) if options.log_file.is_none() => options.log_file = Some(word.into()),
            Long("routes") => options.routes = Some(parser.value()?.into()),
            Long("listen") => options.listen = Some(parser.value()?.parse()?),
            Long("help") | Short('h') => return Ok(None),
            _ => return Err(arg.unexpected()),
        }
    }
    if options.config.is_none() && options.routes.is_none() {
        return Err("want a settings file, or --routes FILE".into());
    }
    Ok(Some(options))
}

/// 0 after an ordered stop, 1 if the proxy cannot start or its accept loop fails, 2 if LOGFILE is another file of the proxy.
pub fn run(options: &Options) -> ExitCode {
    let given = systemd::given();
    // Before anything else starts, so that no signal finds nobody listening.
    let taken = [SIGTERM, SIGINT, SIGHUP].iter().chain(&UNUSED);
    let signals = match Signals::new(taken) {
        Ok(signals) => signals,
        Err(e) => {
            super::complain(&format!("signals: {e}"));
            return ExitCode::FAILURE;
        }
    };
    // Nothing is written anywhere before it is known that CONFIG is there and that LOGFILE holds nothing but a log.
    if let Some(config) = &options.config
        && let Err(e) = File::open(config)
    {
        super::complain(&format!("{}: {e}", config.display()));
        return ExitCode::FAILURE;
    }
    let checked = read_config(options);
    if let Some(file) = &options.log_file {
        let shown = file.display();
        let zookeeper = checked.settings.as_ref().ok().and_then(|good| good.zookeeper.as_ref());
        let in_use = InUse {
            config: options.config.as_deref(),
            routes: options.routes.as_deref(),
            state_file: zookeeper.and_then(|zookeeper| zookeeper.state_file.as_deref()),
        };
        if let Err(why) = log_file::refuse(file, &in_use) {
            super::complain(&format!("log file {shown}: {why}; nothing was written to it"));
            return ExitCode::from(2);
        }
        if let Err(e) = logging::start(Some(file)) {
            super::complain(&format!("log file {shown}: {e}"));
            return ExitCode::FAILURE;
        }
    } else if let Err(e) = logging::start(None) {
        super::complain(&format!("log: {e}"));
        return ExitCode::FAILURE;
    }
    match serve(options, checked, given, signals) {
        Ok(()) => ExitCode::SUCCESS,
        Err(faults) => {
            faults.iter().for_each(|fault| error!("{fault}"));
            // An operator who starts the proxy by hand looks at the terminal, not into the log.
            if options.log_file.is_some() {
                faults.iter().for_each(|fault| super::complain(fault));
            }
            ExitCode::FAILURE
        }
    }
}

fn serve(
    options: &Options,
    checked: Checked,
    given: io::Result<Given>,
    mut signals: Signals,
) -> Result<(), Vec<String>> {
    let fault = |what: &'static str| move |e: io::Error| vec![format!("{what}: {e}")];
    let given = given.map_err(fault("LISTEN_FDS"))?;
    let (mut settings, source) = read_settings(options, checked)?;
    let (version, commit) = (version::VERSION, version::COMMIT);
    info!("meta-proxy {version} commit {commit} starts, process {}", std::process::id());
    let all_left = signals.handle();
    let on_drained = move || all_left.close();
    let mut server = Server::start(&settings, source, given, on_drained)
        .map_err(|e| e.to_string().lines().map(str::to_owned).collect::<Vec<_>>())?;
    let notifier = Arc::new(Notifier::from_env());
    let status = format!("listening on {}, {} workers", server.addr(), settings.workers);
    notifier.ready(&status);
    let watchdog = systemd::watchdog_interval()
        .map(|interval| Watchdog::start(server.pulse(), notifier.clone(), interval))
        .transpose()
        .map_err(fault("start watchdog"))?;
    let mut unused = UnusedSignals::default();
    let mut is_ending = false;
    activity::now("waits for signals", &[]);
    for signal in signals.forever() {
        let is_stopping = matches!(server.life().phase(), Phase::Stopping { .. });
        match signal {
            SIGHUP if is_stopping => info!("SIGHUP ignored: the proxy is stopping"),
            SIGHUP => {
                notifier.reloading();
                reload(options, &mut settings, &server);
                notifier.ready(&status);
            }
            SIGTERM if !is_stopping => {
                info!("SIGTERM: stopping {}, clients leave", server.addr());
                notifier.stopping("clients leave");
                server.leave();
            }
            signal if UNUSED.contains(&signal) => unused.tell_of(signal),
            again if !is_ending => {
                is_ending = true;
                info!("signal {again}: stopping {} at once", server.addr());
                notifier.stopping("queries under way are answered");
                server.leave();
                server.end_clients(Wait::ForAnswers);
            }
            again => {
                info!("signal {again} once more: nobody is waited for");
                server.end_clients(Wait::ForNobody);
            }
        }
    }
    notifier.stopping("queries under way are answered");
    watchdog.into_iter().for_each(Watchdog::stop);
    let is_good = server.stop();
    info!("stopped");
    // Why it failed is in the log.
    if is_good { Ok(()) } else { Err(Vec::new()) }
}

/// Signals that mean nothing to the proxy, and would kill it. SIGXFSZ comes with each write to a log that has reached
/// `ulimit -f`; the write fails then as on a full disk.
const UNUSED: [c_int; 5] = [SIGUSR1, SIGUSR2, SIGALRM, SIGXCPU, SIGXFSZ];

/// A line about such a signal may be what brings it again.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// When each signal was last logged.
#[derive(Default)]
struct UnusedSignals(HashMap<c_int, Instant>);

impl UnusedSignals {
    fn tell_of(&mut self, signal: c_int) {
        let now = Instant::now();
        let told = self.0.get(&signal);
        if told.is_some_and(|told| now.duration_since(*told) < TELL_AGAIN) {
            return;
        }
        self.0.insert(signal, now);
        let name = signal_name(signal).unwrap_or("a signal");
        let what = match signal {
            SIGXFSZ => "a file has reached the limit of its size, `ulimit -f`; the proxy goes on",
            SIGXCPU => "the limit of CPU time is reached, `ulimit -t`; its hard limit kills",
            _ => "it means nothing to the proxy, which goes on",
        };
        warn!("{name}: {what}");
    }
}

/// SIGHUP: the log file is reopened, and the settings that can change do.
fn reload(options: &Options, running: &mut Settings, server: &Server) {
    logging::reopen();
    let new = match read_settings(options, read_config(options)) {
        Ok((new, _)) => new,
        Err(faults) => {
            faults.iter().for_each(|fault| error!("{fault}"));
            faults.into_iter().next().into_iter().for_each(|first| server.reject_settings(first));
            return error!("SIGHUP: all settings stay as they were");
        }
    };
    let mut changes = reload::take_over(running, new);
    server.accept_settings(changes.later.iter().map(|change| change.key.clone()).collect());
    for change in &changes.later {
        warn!("{} changed; takes effect after a restart", change.key);
    }
    if let Some(levels) = logging::levels_of_env()
        && let Some(at) = changes.live.iter().position(|change| change.key == "log.level")
    {
        warn!("{} changed; RUST_LOG={levels:?} takes precedence", changes.live.remove(at).key);
    }
    if changes.live.is_empty() {
        return info!("SIGHUP: no reloadable setting changed");
    }
    server.apply(running);
    let told: Vec<String> = changes.live.iter().map(ToString::to_string).collect();
    info!("SIGHUP: {}", told.join(", "));
}

fn read_config(options: &Options) -> Checked {
    let needs_zookeeper = options.routes.is_none();
    match &options.config {
        Some(path) => config::read(path, needs_zookeeper),
        None => config::parse("", needs_zookeeper),
    }
}

/// The settings, or every fault. Settings that only look wrong are logged.
fn read_settings(options: &Options, checked: Checked) -> Result<(Settings, Source), Vec<String>> {
    let shown = match &options.config {
        Some(path) => path.display().to_string(),
        None => "defaults".to_owned(),
    };
    if let Ok(settings) = &checked.settings {
        logging::apply(&settings.log);
    }
    checked.warnings.iter().for_each(|warning| warn!("{shown}: {warning}"));
    let told =
        |faults: Vec<Fault>| faults.iter().map(|fault| format!("{shown}: {fault}")).collect();
    let mut settings = checked.settings.map_err(|faults| -> Vec<String> { told(faults) })?;
    for missing in config::missing_folders(&settings) {
        warn!("{shown}: {missing}");
    }
    if let Some(listen) = options.listen {
        settings.listen = listen;
        settings.values.override_with("listen", listen);
        // A second process for a trial must not take clients from the first.
        settings.listeners.clear();
        settings.values.override_with("listeners", &settings.listeners);
    }
    let source = match (&options.routes, &settings.zookeeper) {
        (Some(path), _) => Source::File(path.clone()),
        (None, Some(zookeeper)) => Source::ZooKeeper(zookeeper.clone()),
        (None, None) => unreachable!("settings without a routes file need ZooKeeper"),
    };
    Ok((settings, source))
}
