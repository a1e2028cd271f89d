//! `meta-proxy CONFIG [LOGFILE]`: runs the proxy, and does what signals say.
//!
//! ```text
//! SIGHUP ──▶ settings and log file anew
//! SIGTERM ─▶ life.stop: clients leave ── all have left, or the grace time is over ──▶ server.stop
//! SIGTERM again, SIGINT ────────────────────────────────────────────────────────────────▲
//! ```

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use log::{error, info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::{self, Settings};
use crate::life::Phase;
use crate::logging;
use crate::reload;
use crate::server::{Server, Source};
use crate::systemd::{self, Notifier};
use crate::watchdog::Watchdog;

/// What the arguments said.
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

/// 0 after an ordered stop, 1 if the proxy cannot start or its accept loop fails.
pub fn run(options: &Options) -> ExitCode {
    let given = systemd::given();
    let defaults = config::parse("", false).settings.expect("all but ZooKeeper has defaults");
    if let Err(e) = logging::start(options.log_file.as_deref(), &defaults.log) {
        let file = options.log_file.clone().unwrap_or_default();
        super::complain(&format!("log file {}: {e}", file.display()));
        return ExitCode::FAILURE;
    }
    // Before anything else starts, so that no signal finds nobody listening.
    let mut signals = match Signals::new([SIGTERM, SIGINT, SIGHUP]) {
        Ok(signals) => signals,
        Err(e) => {
            error!("signals: {e}");
            return ExitCode::FAILURE;
        }
    };
    let given = match given {
        Ok(given) => given,
        Err(e) => {
            error!("LISTEN_FDS: {e}");
            return ExitCode::FAILURE;
        }
    };
    let Some((mut settings, source)) = read_settings(options) else {
        return ExitCode::FAILURE;
    };
    info!("meta-proxy {} starts, process {}", env!("CARGO_PKG_VERSION"), std::process::id());
    let all_left = signals.handle();
    let tell_over = move || all_left.close();
    let mut server = match Server::start(&settings, source, given, tell_over) {
        Ok(server) => server,
        Err(e) => {
            e.to_string().lines().for_each(|line| error!("{line}"));
            return ExitCode::FAILURE;
        }
    };
    let notifier = Arc::new(Notifier::from_env());
    let status = format!("listening on {}, {} workers", server.addr(), settings.workers);
    notifier.ready(&status);
    let watchdog = match systemd::watchdog_interval() {
        Some(interval) => match Watchdog::start(server.pulse(), notifier.clone(), interval) {
            Ok(watchdog) => Some(watchdog),
            Err(e) => {
                error!("start watchdog: {e}");
                return ExitCode::FAILURE;
            }
        },
        None => None,
    };
    for signal in signals.forever() {
        let is_stopping = matches!(server.life().phase(), Phase::Stopping { .. });
        match signal {
            SIGHUP if is_stopping => info!("SIGHUP: stopping, the settings stay"),
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
            again => {
                info!("signal {again}: stopping {} at once", server.addr());
                break;
            }
        }
    }
    notifier.stopping("queries under way are answered");
    watchdog.into_iter().for_each(Watchdog::stop);
    let is_good = server.stop();
    info!("stopped");
    match is_good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// SIGHUP: the log file is opened anew, and the settings that can change do.
fn reload(options: &Options, running: &mut Settings, server: &Server) {
    logging::reopen();
    let Some((new, _)) = read_settings(options) else {
        return error!("SIGHUP: all settings stay as they were");
    };
    let changes = reload::take_over(running, new);
    for change in &changes.later {
        warn!("{} changed: counts after a restart", change.key);
    }
    if changes.live.is_empty() {
        return info!("SIGHUP: no setting changed that can");
    }
    server.apply(running);
    let told: Vec<String> = changes.live.iter().map(ToString::to_string).collect();
    info!("SIGHUP: {}", told.join(", "));
}

/// Every fault is logged; `None` if there is one.
fn read_settings(options: &Options) -> Option<(Settings, Source)> {
    let needs_zookeeper = options.routes.is_none();
    let (shown, checked) = match &options.config {
        Some(path) => (path.display().to_string(), config::read(path, needs_zookeeper)),
        None => ("defaults".to_owned(), config::parse("", needs_zookeeper)),
    };
    if let Ok(settings) = &checked.settings {
        logging::apply(&settings.log);
    }
    checked.warnings.iter().for_each(|warning| warn!("{shown}: {warning}"));
    let mut settings = checked
        .settings
        .map_err(|faults| faults.iter().for_each(|fault| error!("{shown}: {fault}")))
        .ok()?;
    if let Some(listen) = options.listen {
        settings.listen = listen;
    }
    let source = match (&options.routes, &settings.zookeeper) {
        (Some(path), _) => Source::File(path.clone()),
        (None, Some(zookeeper)) => Source::ZooKeeper(zookeeper.clone()),
        (None, None) => unreachable!("settings without a routes file need ZooKeeper"),
    };
    Some((settings, source))
}
