//! Some threads of a process stopped while its others run: what a deadlock or a call that hangs looks like from outside.
//! SIGSTOP is no such thing, it stops all of them.
//!
//! ```text
//! thread that traces ── seize, interrupt ─▶ thread of the process: stops
//!                    └─ ends ─▶ the kernel lets it go on
//! ```

use std::fs;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::process::Process;

/// Threads that are stopped until this is dropped.
pub struct Frozen {
    thaw: Option<Sender<()>>,
    tracer: Option<JoinHandle<()>>,
}

impl Frozen {
    /// Stops all threads of the process whose names start so; returns when they stand.
    #[track_caller]
    pub fn threads(process: &Process, prefix: &str) -> Self {
        let named = |pid: &Pid| {
            let comm = format!("/proc/{}/task/{pid}/comm", process.pid());
            fs::read_to_string(comm).is_ok_and(|name| name.starts_with(prefix))
        };
        let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).expect("it runs");
        let id = |task: fs::DirEntry| task.file_name().to_str()?.parse().ok().map(Pid::from_raw);
        let ids: Vec<Pid> = tasks.filter_map(|task| id(task.ok()?)).filter(named).collect();
        assert!(!ids.is_empty(), "no thread {prefix}...");

        let (thaw, thawed) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        // Only the thread that traces may stop them, and they go on when it ends.
        let trace = move || {
            let stopped: nix::Result<()> = ids.iter().try_for_each(|id| {
                ptrace::seize(*id, Options::empty())?;
                ptrace::interrupt(*id)?;
                waitpid(*id, Some(WaitPidFlag::__WALL)).map(drop)
            });
            let _ = tell.send(stopped);
            let _ = thawed.recv();
        };
        let tracer = thread::Builder::new().name("freeze".to_owned()).spawn(trace);
        let frozen = Frozen { thaw: Some(thaw), tracer: Some(tracer.expect("a thread")) };
        let stopped = told.recv().expect("it tells before it waits");
        stopped.unwrap_or_else(|e| panic!("cannot stop threads {prefix}...: {e}"));
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.thaw.take());
        if let Some(tracer) = self.tracer.take() {
            let _ = tracer.join();
        }
    }
}
