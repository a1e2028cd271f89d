//! Thread `watchdog`: tells the service manager that the proxy works, as long as it does.
//!
//! ```text
//! watchdog ── Note::Beat ─▶ accept ── Job::Beat ─▶ a worker ── heard ─▶ watchdog ── WATCHDOG=1 ─▶ service manager
//! ```
//! A beat goes the way of a query. When the accept loop does not turn, or no worker takes a job, none comes back,
//! and the service manager starts the proxy anew.

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

/// Sends a beat through `accept` and a worker.
#[derive(Clone)]
pub struct Pulse {
    hub: Arc<ClientHub>,
}

impl Pulse {
    /// Through the `accept` of this hub.
    pub fn new(hub: Arc<ClientHub>) -> Self {
        Pulse { hub }
    }

    /// Sends a beat; it is received when it has come through.
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
    /// The service manager hears it at least once in `interval`.
    pub fn start(pulse: Pulse, notifier: Arc<Notifier>, interval: Duration) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let thread = thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || watch(&pulse, &notifier, interval, &stopped))?;
        Ok(Watchdog { stop, thread })
    }

    /// Ends it.
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
                warn!("the accept loop or all workers hang: no beat for {:?}", interval / 2);
                // Waits for the same beat, so that beats do not pile up.
                select! {
                    recv(hears) -> _ => info!("the accept loop and the workers go on"),
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
