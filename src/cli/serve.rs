//! `meta-proxy CONFIG [LOGFILE]`: runs the proxy until SIGTERM or SIGINT.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use log::{error, info, warn};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::{self, Settings};
use crate::logging;
use crate::server::{Server, Source};

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

/// 0 after an ordered stop, 1 if the proxy cannot start.
pub fn run(options: &Options) -> ExitCode {
    let defaults = config::parse("", false).settings.expect("all but ZooKeeper has defaults");
    if let Err(e) = logging::start(options.log_file.as_deref(), &defaults.log) {
        let file = options.log_file.clone().unwrap_or_default();
        super::complain(&format!("log file {}: {e}", file.display()));
        return ExitCode::FAILURE;
    }
    // Before any thread starts, so that no signal finds nobody listening.
    let mut signals = match Signals::new([SIGTERM, SIGINT]) {
        Ok(signals) => signals,
        Err(e) => {
            error!("signals: {e}");
            return ExitCode::FAILURE;
        }
    };
    let Some((settings, source)) = read_settings(options) else {
        return ExitCode::FAILURE;
    };
    logging::apply(&settings.log);
    info!("meta-proxy {} starts, process {}", env!("CARGO_PKG_VERSION"), std::process::id());
    let server = match Server::start(&settings, source) {
        Ok(server) => server,
        Err(e) => {
            e.to_string().lines().for_each(|line| error!("{line}"));
            return ExitCode::FAILURE;
        }
    };
    if let Some(signal) = signals.forever().next() {
        info!("signal {signal}: stopping {}", server.addr());
    }
    server.stop();
    info!("stopped");
    ExitCode::SUCCESS
}

/// Every fault is logged; `None` if there is one.
fn read_settings(options: &Options) -> Option<(Settings, Source)> {
    let needs_zookeeper = options.routes.is_none();
    let (shown, checked) = match &options.config {
        Some(path) => (path.display().to_string(), config::read(path, needs_zookeeper)),
        None => ("defaults".to_owned(), config::parse("", needs_zookeeper)),
    };
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
