//! A program run to its end, with a deadline, and what it said.

use std::fmt;
use std::fs::{self, File};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use harness::process::Process;
use harness::scratch::Scratch;

/// How a program ended.
pub struct Finished {
    command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// From its start to its end.
    pub took: Duration,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a program; kills it and panics with all it said if it is not done in time. Standard input is empty.
#[track_caller]
pub fn run(mut command: Command, within: Duration) -> Finished {
    // Files, unlike pipes, take any amount without being read meanwhile.
    let scratch = Scratch::new("run");
    let (out, err) = (scratch.path().join("stdout"), scratch.path().join("stderr"));
    let create = |path| File::create(path).expect("a file in a new directory");
    command.stdin(Stdio::null()).stdout(create(&out)).stderr(create(&err));
    let shown = format!("{command:?}");
    let start = Instant::now();
    let process =
        Process::spawn("program", &mut command).unwrap_or_else(|e| panic!("{shown}: {e}"));
    let status = process.wait(within);
    let took = start.elapsed();
    let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let (stdout, stderr) = (read(out), read(err));
    match status {
        Some(status) => Finished { command: shown, status, took, stdout, stderr },
        None => panic!(
            "not done within {within:?}: {shown}\n---- stdout\n{stdout}---- stderr\n{stderr}----"
        ),
    }
}

impl Finished {
    /// Panics, with all there is to know, unless this is the exit code.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "the exit code\n{self}");
        self
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finished { command, status, took, stdout, stderr } = self;
        write!(
            f,
            "---- command\n{command}\n---- {status}, took {took:?}, stdout\n{stdout}---- stderr\n{stderr}----"
        )
    }
}
