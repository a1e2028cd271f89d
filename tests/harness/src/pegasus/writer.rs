//! A real Go client that writes numbered keys, and what was acknowledged to it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Pegasus;

/// The running program. Dropping it kills it.
pub struct Writer {
    child: Child,
    acknowledged: Arc<AtomicUsize>,
    reader: Option<JoinHandle<Written>>,
}

/// A writer's account in the end.
#[derive(Debug, Default)]
pub struct Written {
    /// The number acknowledged last by hash key.
    pub last: BTreeMap<String, u64>,
    /// How many writes failed, by kind of error.
    pub errors: BTreeMap<String, u64>,
    /// The longest time without an acknowledged write.
    pub longest_gap: Duration,
}

impl Writer {
    /// Starts the program (`target/interop/go-apache`), which writes to a table until it is stopped.
    #[track_caller]
    pub fn start(program: &Path, meta: SocketAddr, table: &str) -> Self {
        let mut command = Command::new(program);
        command.args(["-write", &meta.to_string(), table]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        let lines = BufReader::new(child.stdout.take().expect("it is a pipe")).lines();
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let reader = thread::spawn({
            let acknowledged = Arc::clone(&acknowledged);
            move || {
                let mut written = Written::default();
                for line in lines.map_while(Result::ok) {
                    acknowledged.fetch_add(usize::from(written.take(&line)), Ordering::SeqCst);
                }
                written
            }
        });
        Writer { child, acknowledged, reader: Some(reader) }
    }

    /// Writes acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Ends the program, which waits for the writes under way.
    #[track_caller]
    pub fn stop(mut self) -> Written {
        drop(self.child.stdin.take());
        let reader = self.reader.take().expect("it is stopped once");
        reader.join().expect("the reader reads to the end")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Written {
    /// Whether the line tells of an acknowledged write.
    fn take(&mut self, line: &str) -> bool {
        let words: Vec<&str> = line.split(' ').collect();
        let number = words.last().and_then(|word| word.parse().ok()).unwrap_or(0);
        match words[..] {
            ["ack", key, _] => {
                self.last.insert(key.to_owned(), number);
                return true;
            }
            ["gap_ms", _] => self.longest_gap = Duration::from_millis(number),
            ["error", .., _] => {
                let kind = words[1..words.len() - 1].join(" ");
                self.errors.insert(kind, number);
            }
            _ => panic!("a writer says {line:?}"),
        }
        false
    }

    /// The keys whose acknowledged value a cluster does not have, nor a later one.
    pub fn missing_in(&self, cluster: &Pegasus, table: &str) -> Vec<String> {
        let data = cluster.data(table);
        let has = |key: &str, number: u64| {
            let whole = [&(key.len() as u16).to_be_bytes(), key.as_bytes(), b"s"].concat();
            let value = data.get(&whole).and_then(|value| std::str::from_utf8(value).ok());
            value.and_then(|value| value.parse::<u64>().ok()).is_some_and(|got| got >= number)
        };
        let missing = self.last.iter().filter(|(key, number)| !has(key, **number));
        missing.map(|(key, number)| format!("{key}={number}")).collect()
    }
}
