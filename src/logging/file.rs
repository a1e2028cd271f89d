//! Thread `log`: the only writer of the log, so that a disk that stalls holds nobody up but the log.
//!
//! ```text
//! every thread ─▶ queue of lines, bounded ─▶ log: stderr, or a file that is put aside when it is full
//!                   └─ full: dropped, counted, told of when there is room
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::line::Utc;
use crate::config::LogSettings;

/// Lines that wait for the disk at most.
const MAX_QUEUED: usize = 8_192;
/// How long the end of the process waits for the last lines.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

enum Message {
    Line(Vec<u8>),
    Reopen,
    Keep(Keep),
    Flush(Sender<()>),
}

/// How much of a log file is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Of the file, before it is put aside.
    pub max_bytes: u64,
    /// Of files that were put aside.
    pub max_age: Duration,
    /// Files that were put aside.
    pub max_files: usize,
}

impl From<&LogSettings> for Keep {
    fn from(settings: &LogSettings) -> Self {
        Keep {
            max_bytes: settings.max_file_bytes,
            max_age: settings.max_file_age,
            max_files: settings.max_files,
        }
    }
}

/// The way to the thread.
#[derive(Clone)]
pub struct Writer {
    queue: Sender<Message>,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    /// Starts the thread. `None`: stderr.
    pub fn start(path: Option<&Path>, keep: Keep) -> io::Result<Self> {
        let sink = match path {
            Some(path) => Sink::File(LogFile::open(path.to_owned(), keep)?),
            None => Sink::Stderr,
        };
        let (queue, inbox) = bounded(MAX_QUEUED);
        let dropped = Arc::new(AtomicU64::new(0));
        let count = dropped.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || run(sink, &inbox, &count))?;
        Ok(Writer { queue, dropped })
    }

    /// Opens the file anew: somebody has put it aside.
    pub fn reopen(&self) {
        // With a full queue the disk is stuck, and waiting for it would be, too.
        let _ = self.queue.try_send(Message::Reopen);
    }

    /// From now on so much is kept.
    pub fn keep(&self, keep: Keep) {
        let _ = self.queue.try_send(Message::Keep(keep));
    }

    /// Waits until all that was logged is written, for a while.
    pub fn flush(&self) {
        let (done, wait) = bounded(1);
        if self.queue.send_timeout(Message::Flush(done), FLUSH_LIMIT).is_ok() {
            let _ = wait.recv_timeout(FLUSH_LIMIT);
        }
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Message::Line(bytes.to_vec())).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Sink {
    Stderr,
    File(LogFile),
}

fn run(mut sink: Sink, inbox: &Receiver<Message>, dropped: &AtomicU64) {
    for message in inbox {
        match (message, &mut sink) {
            (Message::Line(bytes), sink) => {
                write(sink, &bytes);
                let lost = dropped.swap(0, Relaxed);
                if lost > 0 {
                    write(
                        sink,
                        own_line(&format!("{lost} lines were dropped, the log is too slow"))
                            .as_bytes(),
                    );
                }
            }
            (Message::Reopen, Sink::File(file)) => file.reopen(),
            (Message::Keep(keep), Sink::File(file)) => file.keep = keep,
            (Message::Reopen | Message::Keep(_), Sink::Stderr) => {}
            // Who waits has given up if nobody listens.
            (Message::Flush(done), _) => drop(done.send(())),
        }
    }
}

fn write(sink: &mut Sink, bytes: &[u8]) {
    match sink {
        // A stderr that is closed has no reader either.
        Sink::Stderr => drop(io::stderr().write_all(bytes)),
        Sink::File(file) => file.write(bytes),
    }
}

fn own_line(what: &str) -> String {
    format!("{} WARN  log file: {what}\n", Utc::now())
}

struct LogFile {
    path: PathBuf,
    file: File,
    len: u64,
    keep: Keep,
    /// Lines that could not be written since one could.
    lost: u64,
}

impl LogFile {
    fn open(path: PathBuf, keep: Keep) -> io::Result<Self> {
        let (file, len) = open(&path)?;
        let log = LogFile { path, file, len, keep, lost: 0 };
        log.prune();
        Ok(log)
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.len > 0 && self.len + bytes.len() as u64 > self.keep.max_bytes {
            self.put_aside();
        }
        if self.lost > 0 {
            let line = own_line(&format!("{} lines before this could not be written", self.lost));
            if self.file.write_all(line.as_bytes()).is_ok() {
                self.lost = 0;
            }
        }
        match self.file.write_all(bytes) {
            Ok(()) => self.len += bytes.len() as u64,
            Err(_) => self.lost += 1,
        }
    }

    /// The old file serves on if there can be no new one.
    fn reopen(&mut self) {
        match open(&self.path) {
            Ok((file, len)) => (self.file, self.len) = (file, len),
            Err(e) => {
                let line = own_line(&format!("{} cannot be opened anew: {e}", self.path.display()));
                self.write(line.as_bytes());
            }
        }
    }

    fn put_aside(&mut self) {
        let backup = self.path.with_file_name(backup_name(&self.path, Utc::now()));
        let renamed = fs::rename(&self.path, backup);
        // Whether it worked or not, the next try is a whole file away.
        self.len = 0;
        self.reopen();
        if renamed.is_ok() {
            self.prune();
        }
    }

    fn prune(&self) {
        let Some(folder) = self.path.parent() else {
            return;
        };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let names = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        for name in outdated(&self.path, names, Utc::now(), self.keep) {
            let _ = fs::remove_file(folder.join(name)); // it is tried again next time
        }
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let len = file.metadata()?.len();
    Ok((file, len))
}

/// `meta-proxy-2026-11-24T08-00-00.123.log`, as the Go meta-proxy names them, in UTC.
fn backup_name(path: &Path, now: Utc) -> String {
    let (start, end) = around_time(path);
    format!("{start}{}{end}", now.to_string().trim_end_matches('Z').replace(':', "-"))
}

fn around_time(path: &Path) -> (String, String) {
    let part =
        |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let end = match path.extension() {
        Some(extension) => format!(".{}", part(Some(extension))),
        None => String::new(),
    };
    (format!("{}-", part(path.file_stem())), end)
}

/// Which of the files beside the log are backups of it, and too many or too old.
fn outdated(path: &Path, names: Vec<String>, now: Utc, keep: Keep) -> Vec<String> {
    let (start, end) = around_time(path);
    let pattern = Utc(Duration::ZERO).to_string();
    let is_time = |time: &str| {
        time.len() == pattern.len() - 1
            && time.bytes().zip(pattern.bytes()).all(|(byte, like)| match like {
                b'0'..=b'9' => byte.is_ascii_digit(),
                b':' => byte == b'-',
                like => byte == like,
            })
    };
    let mut backups: Vec<String> = names
        .into_iter()
        .filter(|name| {
            let time = name.strip_prefix(&start).and_then(|rest| rest.strip_suffix(&end));
            time.is_some_and(is_time)
        })
        .collect();
    // Their times sort as text does.
    backups.sort_unstable_by(|a, b| b.cmp(a));
    let oldest = backup_name(path, Utc(now.0.saturating_sub(keep.max_age)));
    let mut index = 0;
    backups.retain(|name| {
        index += 1;
        index > keep.max_files || *name < oldest
    });
    backups
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Keep = Keep { max_bytes: 100, max_age: Duration::from_secs(86_400), max_files: 2 };

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("meta-proxy-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn too_many_and_too_old_ones_go() {
        let path = Path::new("/var/log/mp.log");
        let now = Utc(Duration::from_secs(86_400 * 10));
        let names = [
            "mp-1970-01-10T23-59-59.000.log",
            "mp-1970-01-10T12-00-00.000.log",
            "mp-1970-01-10T11-00-00.000.log",
            "mp-1970-01-09T00-00-00.000.log",
            "mp.log",
            "mp-1970-01-01.log",
            "mp-notes.log",
            "other-1970-01-01T00-00-00.000.log",
        ];
        let outdated = |keep| outdated(path, names.map(String::from).to_vec(), now, keep);
        assert_eq!(outdated(KEEP), names[2..4]);
        assert_eq!(outdated(Keep { max_files: 9, ..KEEP }), names[3..4]);
        let bare = backup_name(Path::new("log"), now);
        assert_eq!(bare, "log-1970-01-11T00-00-00.000");
    }

    #[test]
    fn a_full_file_is_put_aside_and_no_line_is_lost() {
        let folder = Folder::new("aside");
        let mut log =
            LogFile::open(folder.0.join("mp.log"), Keep { max_files: 100, ..KEEP }).unwrap();
        for n in 0..20 {
            log.write(format!("line {n:03} {}\n", "x".repeat(40)).as_bytes());
            // Two files of one millisecond would have one name.
            thread::sleep(Duration::from_millis(2));
        }
        let names = folder.names();
        assert_eq!(names.len(), 10, "{names:?}");
        let all: String =
            names.iter().map(|name| fs::read_to_string(folder.0.join(name)).unwrap()).collect();
        assert_eq!(all.lines().count(), 20);
        assert!((0..20).all(|n| all.contains(&format!("line {n:03}"))));
    }

    #[test]
    fn who_has_put_the_file_aside_gets_a_new_one() {
        let folder = Folder::new("reopen");
        let path = folder.0.join("mp.log");
        let writer = Writer::start(Some(&path), KEEP).unwrap();
        let say = |what: &str| writer.clone().write_all(what.as_bytes()).unwrap();
        say("one\n");
        writer.flush();
        fs::rename(&path, folder.0.join("old")).unwrap();
        say("two\n");
        writer.reopen();
        say("three\n");
        writer.flush();
        assert_eq!(fs::read_to_string(folder.0.join("old")).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told_of_later() {
        let folder = Folder::new("full");
        let path = folder.0.join("mp.log");
        let mut log = LogFile::open(path.clone(), KEEP).unwrap();
        log.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        log.write(b"lost\n");
        log.write(b"lost\n");
        log.reopen();
        log.write(b"kept\n");
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains("2 lines before this could not be written"), "{text}");
        assert!(text.ends_with("kept\n"));
    }
}
