//! A child process under test: signals, a wait with a deadline, a look into /proc, and the promise that it does not
//! outlive the test, whatever becomes of the test.
//!
//! ```text
//! test process ── spawns ──▶ the child
//!      └───────── spawns ──▶ sh, the leash: its stdin is a pipe that only the test process holds;
//!                            when the pipe closes without a word the test process is dead, and sh kills the child
//! ```
//! Drop alone is not enough: a test run ended by a signal drops nothing, and neither does a static.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io};

use crate::wait::poll;

/// How long a killed or stopped process may take to be so. Long: it only bounds a hang of the machine.
const SIGNAL_WITHIN: Duration = Duration::from_secs(10);
/// The unit of the times in /proc/PID/stat (USER_HZ), which is 100 Hz on every Linux.
const TICK_MS: u64 = 10;

/// A running child. All methods take `&self`, so that a test may pause a server in one thread and ask it in another.
pub struct Process {
    name: String,
    pid: u32,
    child: Mutex<Child>,
    leash: Child,
}

impl Process {
    /// Starts it. `name` is for messages.
    pub fn spawn(name: &str, command: &mut Command) -> io::Result<Self> {
        let mut child = command.spawn()?;
        let pid = child.id();
        let leash = match leash(pid) {
            Ok(leash) => leash,
            Err(e) => {
                // Without a leash it must not stay. Neither call can fail: it is our child, and not waited for yet.
                let _ = child.kill();
                let _ = child.wait();
                return Err(e);
            }
        };
        Ok(Process { name: name.to_owned(), pid, child: Mutex::new(child), leash })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, `None` while it runs.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child().try_wait().unwrap_or_else(|e| panic!("{}: cannot wait for it: {e}", self.name))
    }

    /// Waits for its end, `None` if it still runs when the time is over.
    pub fn wait(&self, within: Duration) -> Option<ExitStatus> {
        poll(within, || self.ended())
    }

    /// Freezes it (SIGSTOP); returns when no thread of it runs. Its kernel sockets go on accepting.
    pub fn pause(&self) {
        self.signal("STOP");
        let frozen = || self.ended().is_some() || self.states().iter().all(|state| *state == 'T');
        if poll(SIGNAL_WITHIN, || frozen().then_some(())).is_none() {
            panic!("{}: does not stop, states {:?}", self.name, self.states());
        }
    }

    /// Lets it go on after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Any other signal, by name without SIG: `"HUP"`.
    #[track_caller]
    pub fn signal(&self, signal: &str) {
        // The lock is held so that nobody reaps the child meanwhile: its id stays its own.
        let child = self.child();
        let kill = Command::new("kill")
            .args([&format!("-{signal}"), &child.id().to_string()])
            .stderr(Stdio::null())
            .status();
        if let Err(e) = kill {
            panic!("{}: cannot run kill: {e}", self.name);
        }
        // A status other than 0 means that it ended by itself; whoever cares looks at `ended`.
    }

    /// SIGTERM; waits for the end and panics if it does not come. A paused one is resumed to hear it.
    #[track_caller]
    pub fn terminate(&self, within: Duration) -> ExitStatus {
        self.signal("TERM");
        self.signal("CONT");
        match self.wait(within) {
            Some(status) => status,
            None => panic!("{}: still running {within:?} after SIGTERM", self.name),
        }
    }

    /// SIGKILL; returns when it is gone.
    pub fn kill(&self) {
        // Fails only if it has ended by itself.
        let _ = self.child().kill();
        if self.wait(SIGNAL_WITHIN).is_none() {
            eprintln!("{}: process {} does not die", self.name, self.pid);
        }
    }

    /// Resident memory now.
    #[track_caller]
    pub fn rss_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// The most resident memory that it ever had.
    #[track_caller]
    pub fn peak_rss_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    #[track_caller]
    fn status_bytes(&self, key: &str) -> u64 {
        let status = self.read_proc("status");
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB"))
            .and_then(|number| number.parse::<u64>().ok());
        match kilobytes {
            Some(kilobytes) => kilobytes * 1024,
            None => panic!("{}: no {key} in {status:?}", self.name),
        }
    }

    /// Names of its threads, sorted; the kernel keeps 15 bytes of each.
    #[track_caller]
    pub fn threads(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .list_proc("task")
            .iter()
            // One that ends between the two looks has no name any more.
            .filter_map(|task| fs::read_to_string(task.join("comm")).ok())
            .map(|name| name.trim_end().to_owned())
            .collect();
        names.sort();
        names
    }

    /// How many descriptors it holds open.
    #[track_caller]
    pub fn open_fds(&self) -> usize {
        self.list_proc("fd").len()
    }

    /// Processor time used so far, user and system, all threads. In steps of 10 ms.
    #[track_caller]
    pub fn cpu_ms(&self) -> u64 {
        self.stat_number(14) * TICK_MS + self.stat_number(15) * TICK_MS
    }

    /// Pages that it had to be given so far, without those from a disk.
    #[track_caller]
    pub fn page_faults(&self) -> u64 {
        self.stat_number(10)
    }

    /// A field of /proc/PID/stat, counted from 1.
    #[track_caller]
    fn stat_number(&self, at: usize) -> u64 {
        let stat = self.read_proc("stat");
        let fields = stat_fields(&stat);
        // `fields` starts with the third.
        let number = fields.get(at - 3).and_then(|field| field.parse().ok());
        number.unwrap_or_else(|| panic!("{}: no field {at} in {stat:?}", self.name))
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        // A test that panicked in here must still get its child killed.
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn proc_path(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.pid))
    }

    #[track_caller]
    fn read_proc(&self, file: &str) -> String {
        fs::read_to_string(self.proc_path(file))
            .unwrap_or_else(|e| panic!("{}: /proc: {file}: {e}", self.name))
    }

    #[track_caller]
    fn list_proc(&self, directory: &str) -> Vec<PathBuf> {
        fs::read_dir(self.proc_path(directory))
            .unwrap_or_else(|e| panic!("{}: /proc: {directory}: {e}", self.name))
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect()
    }

    /// One letter per thread: R, S, T...
    fn states(&self) -> Vec<char> {
        self.list_proc("task")
            .iter()
            .filter_map(|task| fs::read_to_string(task.join("stat")).ok())
            .filter_map(|stat| stat_fields(&stat).first()?.chars().next())
            .collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        // One word lets the leash go without killing: the id may soon belong to another.
        if let Some(mut stdin) = self.leash.stdin.take() {
            let _ = stdin.write_all(b"done\n");
        }
        let _ = self.leash.wait();
    }
}

fn leash(pid: u32) -> io::Result<Child> {
    Command::new("sh")
        // Ctrl-C reaches the whole process group; the leash must be the last to go.
        .args(["-c", r#"trap "" INT TERM HUP; read word; [ "$word" ] || kill -9 "$0""#])
        .arg(pid.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// The fields of a stat line from the third on. The second is the name, in parentheses, and may hold anything.
fn stat_fields(stat: &str) -> Vec<&str> {
    match stat.rsplit_once(')') {
        Some((_, fields)) => fields.split_whitespace().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::eventually;

    fn sleeper() -> Process {
        Process::spawn("sleeper", Command::new("sleep").arg("60")).expect("sleep can be run")
    }

    fn exists(pid: u32) -> bool {
        PathBuf::from(format!("/proc/{pid}")).exists()
    }

    #[test]
    fn pauses_resumes_ends() {
        let process = sleeper();
        eventually("it has become sleep", Duration::from_secs(5), || {
            process.threads() == ["sleep"]
        });
        let rss_bytes = process.rss_bytes();
        assert!(rss_bytes > 0 && process.peak_rss_bytes() >= rss_bytes);
        assert!(process.open_fds() >= 3); // more if the test itself was given more
        assert!(process.cpu_ms() < 1000);

        process.pause();
        assert_eq!(process.states(), ['T']);
        process.resume();
        eventually("it goes on", Duration::from_secs(5), || process.states() == ['S']);

        process.pause();
        let status = process.terminate(Duration::from_secs(5));
        assert!(!status.success(), "{status:?}");
        assert_eq!(process.ended(), Some(status));
        process.kill(); // twice is no fault
    }

    #[test]
    fn does_not_outlive_its_owner() {
        let process = sleeper();
        let pid = process.pid();
        assert!(exists(pid));
        drop(process);
        assert!(!exists(pid));
    }

    #[test]
    fn the_leash_kills_when_the_test_process_is_gone() {
        let mut process = sleeper();
        drop(process.leash.stdin.take()); // as the kernel does for a dead process
        assert!(process.wait(Duration::from_secs(5)).is_some());
    }
}
