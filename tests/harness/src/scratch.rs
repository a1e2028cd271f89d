//! A directory of its own for each server under test: gone with its owner, kept when the test fails, so that what the
//! server left behind can be read.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, process, thread};

/// A temporary directory, removed on drop unless the thread is panicking.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// An empty directory; `role` is part of its name.
    pub fn new(role: &str) -> Self {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let (pid, number) = (process::id(), LAST.fetch_add(1, Ordering::Relaxed));
        let path = env::temp_dir().join(format!("meta-proxy-test-{pid}-{number}-{role}"));
        // One left by a process that had the same id must not be mistaken for ours.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path)
            .unwrap_or_else(|e| panic!("cannot create {}: {e}", path.display()));
        Scratch { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one file, replacing what it held; returns its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, content)
            .unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("kept for a look: {}", self.path.display());
        } else {
            // A directory left behind fails no test.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The end of a log, which is where the reason stands.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_with_its_owner_and_stays_when_the_test_fails() {
        let scratch = Scratch::new("short");
        let file = scratch.write("file", "content");
        assert_eq!(fs::read_to_string(&file).expect("just written"), "content");
        drop(scratch);
        assert!(!file.exists());

        let failed = std::panic::catch_unwind(|| {
            let scratch = Scratch::new("failed");
            let _ = scratch.write("log", "why");
            std::panic::panic_any(scratch.path().to_owned());
        });
        let kept = *failed.expect_err("it panics").downcast::<PathBuf>().expect("a path");
        assert!(kept.join("log").exists());
        fs::remove_dir_all(kept).expect("ours to remove");
    }

    #[test]
    fn a_tail_is_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }
}
