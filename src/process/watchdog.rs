//! Thread `watchdog`: feeds the service manager's watchdog as long as the proxy works.
//!
//! ```text
//! watchdog ── Note::Beat ─▶ accept ── Job::Beat ─▶ a worker ── heard ─▶ watchdog ── WATCHDOG=1 ─▶ service manager
//! ```
//! A heartbeat takes the way of a query. If the accept loop hangs, or no worker takes a job, no heartbeat comes back,
//! and the service manager restarts the proxy.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, after, bounded, select};
use log::{info, warn};

use crate::activity;
use crate::client::hub::ClientHub;
use crate::client::note::Note;
use crate::process::systemd::Notifier;

/// Sends heartbeats through `accept` and a worker.
#[derive(Clone)]
pub struct Pulse {
    hub: Arc<ClientHub>,
}

impl Pulse {
    pub fn new(hub: Arc<ClientHub>) -> Self {
        Pulse { hub }
    }

    /// Sends a heartbeat. The receiver gets a message when it has come through.
    pub fn beat(&self) -> Receiver<()> {
        let (heard, hears) = bounded(1);
        self.hub.tell(Note::Beat(heard));
        hears
    }
}

/// The running thread.
pub struct Watchdog {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Watchdog {
    /// Starts the thread, which feeds the watchdog at least once per `interval`.
    pub fn start(pulse: Pulse, notifier: Arc<Notifier>, interval: Duration) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let thread = thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || watch(&pulse, &notifier, interval, &stopped))?;
        Ok(Watchdog { stop, thread })
    }

    pub fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

fn watch(pulse: &Pulse, notifier: &Notifier, interval: Duration, stopped: &Receiver<()>) {
    loop {
        activity::go_on("checks that queries are served", &[]);
        let hears = pulse.beat();
        select! {
            recv(hears) -> heard => if heard.is_ok() { notifier.alive() },
            recv(stopped) -> _ => return,
            default(interval / 2) => {
                activity::now("waits for the accept loop and the workers", &[]);
                warn!("the accept loop or all workers hang: no heartbeat for {:?}", interval / 2);
                // Wait for this heartbeat, so that heartbeats do not pile up.
                select! {
                    recv(hears) -> _ => info!("the accept loop and the workers work again"),
                    recv(stopped) -> _ => return,
                }
                continue;
            }
        }
        select! {
            recv(stopped) -> _ => return,
            recv(after(interval / 3)) -> _ => {}
        }
    }
}
