//! System calls of a process, counted from outside: by perf, which costs it little, else by strace, which stops it at each
//! and so makes threads that wait for each other wait longer, and call more.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use harness::process::Process;
use harness::scratch::Scratch;

/// Those worth telling apart: of sockets, and of threads that wait.
pub const NAMES: [&str; 10] = [
    "epoll_wait",
    "epoll_pwait",
    "read",
    "write",
    "recvfrom",
    "sendto",
    "writev",
    "futex",
    "sched_yield",
    "clock_gettime",
];
/// The name that [`Counter::finish`] gives the sum of all, these or others.
pub const TOTAL: &str = "total";

const PERF_TOTAL: &str = "raw_syscalls:sys_enter";
const PERF_NAMES: &str = "syscalls:sys_enter_";
const ATTACH: Duration = Duration::from_millis(500);
const END_WITHIN: Duration = Duration::from_secs(10);

/// Counts from its making on.
pub struct Counter {
    tool: Process,
    is_perf: bool,
    scratch: Scratch,
}

impl Counter {
    /// Counts calls of the process, which goes on meanwhile.
    pub fn attach(pid: u32) -> Result<Self, String> {
        let scratch = Scratch::new("syscalls");
        let is_perf = Command::new("perf")
            .args(["stat", "-e", PERF_TOTAL, "true"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        let mut command = if is_perf {
            let mut events = vec![PERF_TOTAL.to_owned()];
            events.extend(NAMES.map(|name| format!("{PERF_NAMES}{name}")));
            let mut perf = Command::new("perf");
            perf.args(["stat", "-x", ",", "-e", &events.join(",")]);
            perf
        } else {
            let mut strace = Command::new("strace");
            strace.args(["-c", "-f", "-U", "calls,name"]);
            strace
        };
        command.arg("-o").arg(scratch.path().join(SUMMARY)).args(["-p", &pid.to_string()]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let tool = Process::spawn("counter of system calls", &mut command)
            .map_err(|e| format!("neither perf nor strace can count: {e}"))?;
        thread::sleep(ATTACH);
        Ok(Counter { tool, is_perf, scratch })
    }

    /// How many there were, by name.
    pub fn finish(self) -> Result<BTreeMap<String, f64>, String> {
        self.tool.signal("INT");
        self.tool.wait(END_WITHIN).ok_or("the counter of system calls does not end")?;
        let text = fs::read_to_string(self.scratch.path().join(SUMMARY))
            .map_err(|e| format!("count of system calls: {e}"))?;
        let counts = if self.is_perf { from_perf(&text) } else { from_strace(&text) };
        match counts.contains_key(TOTAL) {
            true => Ok(counts),
            false => Err(format!("no count of system calls in {text:?}")),
        }
    }
}

const SUMMARY: &str = "summary";

/// `127573,,raw_syscalls:sys_enter,...`
fn from_perf(text: &str) -> BTreeMap<String, f64> {
    let count = |line: &str| {
        let mut fields = line.split(',');
        let count = fields.next()?.parse().ok()?;
        let event = fields.nth(1)?;
        let name = match event {
            PERF_TOTAL => TOTAL,
            other => other.strip_prefix(PERF_NAMES)?,
        };
        Some((name.to_owned(), count))
    };
    text.lines().filter_map(count).collect()
}

/// `   1020 futex`; the last line is the sum, and says so.
fn from_strace(text: &str) -> BTreeMap<String, f64> {
    let count = |line: &str| {
        let (count, name) = line.trim().split_once(char::is_whitespace)?;
        Some((name.trim().to_owned(), count.parse().ok()?))
    };
    text.lines().filter_map(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tools_are_understood() {
        let perf = "# started on Mon\n\n127573,,raw_syscalls:sys_enter,200,100.00,,\n\
                    21569,,syscalls:sys_enter_futex,200,100.00,,\n\
                    <not supported>,,syscalls:sys_enter_read,0,100.00,,\n";
        let strace = "    calls syscall\n--------- ----------------\n   127000 recvfrom\n      573 futex\n\
                      --------- ----------------\n   127573 total\n";
        let counts = from_perf(perf);
        assert_eq!((counts[TOTAL], counts["futex"], counts.len()), (127_573.0, 21_569.0, 2));
        let counts = from_strace(strace);
        assert_eq!((counts[TOTAL], counts["futex"], counts.len()), (127_573.0, 573.0, 3));
    }
}
