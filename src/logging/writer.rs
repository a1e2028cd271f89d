//! Thread `log`: the only thread that waits for the disk, or for the reader of stderr.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use log::{Level, Record};

use super::Logger;
use super::file::{LogFile, Lost, write_lines};
use super::queue::Orders;
use crate::activity;

pub const THREAD: &str = "log";
/// After a failed write, try again after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often to look for old files while no line is logged.
const IDLE: Duration = Duration::from_secs(3600);

/// Where lines go.
pub enum Out {
    /// Stderr, whose reader may be slow or gone.
    Stderr {
        /// The last write ended within a line.
        torn: bool,
    },
    File(LogFile),
}

struct Writer {
    logger: Arc<Logger>,
    out: Out,
    /// Number of lost lines that the log has not reported yet, and why they were lost.
    lost: u64,
    why: String,
}

/// Opens the file or stream that the thread writes to. Opening the file must succeed at the start: an operator should
/// notice a missing log before anything happens.
pub fn open(file: Option<&Path>) -> io::Result<Out> {
    match file {
        Some(path) => LogFile::open(path).map(Out::File),
        None => Ok(Out::Stderr { torn: false }),
    }
}

/// Starts the thread. The thread ends with the process, after a flush.
pub fn start(logger: Arc<Logger>, out: Out) -> io::Result<()> {
    let writer = Writer { logger, out, lost: 0, why: String::new() };
    thread::Builder::new().name(THREAD.to_owned()).spawn(move || writer.run())?;
    Ok(())
}

impl Writer {
    fn run(mut self) {
        let shown = match &self.out {
            Out::Stderr { .. } => "stderr".to_owned(),
            Out::File(file) => file.path().display().to_string(),
        };
        loop {
            activity::go_on("waits for lines", &[]);
            let batch = self.logger.queue.take(if self.lost > 0 { LOOK_AGAIN } else { IDLE });
            activity::now("writes lines", &[&shown]);
            let written = self.write(&batch.text);
            let is_written = written.is_ok();
            if let Err(lost) = written {
                self.lost(lost.lines, lost.why.to_string());
            }
            if batch.dropped > 0 {
                self.lost(batch.dropped, "they came faster than they could be written".to_owned());
            }
            if is_written && self.lost > 0 {
                self.tell_of_lost();
            }
            self.obey(&batch.orders);
            self.prune();
            self.logger.queue.done(batch.number);
        }
    }

    fn write(&mut self, lines: &[u8]) -> Result<(), Lost> {
        match &mut self.out {
            Out::Stderr { torn } => write_lines(&mut io::stderr(), lines, torn),
            Out::File(file) => file.write(lines, &mut |fault| self.logger.say(Level::Warn, &fault)),
        }
    }

    fn lost(&mut self, lines: u64, why: String) {
        self.logger.lost(lines, &why);
        self.lost += lines;
        self.why = why;
    }

    /// Reports lost lines in the log itself, as soon as a write works, whatever the filter.
    fn tell_of_lost(&mut self) {
        let (lost, why) = (self.lost, &self.why);
        let args = format_args!("{lost} lines before this one were lost: {why}");
        let record = Record::builder().args(args).level(Level::Warn).target(module_path!()).build();
        let line = self.logger.line(&record);
        if self.write(line.as_bytes()).is_ok() {
            self.lost = 0;
        }
    }

    fn obey(&mut self, orders: &Orders) {
        let Out::File(file) = &mut self.out else {
            return;
        };
        if let Some(keep) = orders.keep {
            file.set_keep(keep);
        }
        if orders.reopen {
            let shown = file.path().display().to_string();
            match file.reopen() {
                Ok(()) => self.logger.say(Level::Info, &format!("file={shown} reopened")),
                Err(e) => self.logger.say(
                    Level::Error,
                    &format!("file={shown} cannot be reopened, the log stays in the old file: {e}"),
                ),
            }
        }
    }

    fn prune(&mut self) {
        if let Out::File(file) = &mut self.out {
            file.prune(&mut |fault| self.logger.say(Level::Warn, &fault));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Keep;
    use crate::config::{self, LogSettings};
    use harness::scratch::Scratch;
    use log::Log;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A separate log in its own folder.
    struct Own {
        folder: Scratch,
        logger: Arc<Logger>,
    }

    impl Own {
        /// Logs to the file of this name, with this many bytes per file.
        fn start(name: &str, max_file_bytes: u64, prepare: impl FnOnce(&Path)) -> Self {
            let folder = Scratch::new("log");
            prepare(folder.path());
            let own = Own::without_settings(folder, name);
            own.apply(Keep { max_bytes: max_file_bytes, max_files: 4, ..defaults() });
            own
        }

        /// The state before the settings are read.
        fn without_settings(folder: Scratch, name: &str) -> Self {
            let out = open(Some(&folder.path().join(name))).unwrap();
            let logger = Arc::new(Logger::new());
            start(logger.clone(), out).unwrap();
            Own { folder, logger }
        }

        fn apply(&self, keep: Keep) {
            let defaults = config::parse("", false).settings.unwrap().log;
            self.logger.apply(&LogSettings { keep, ..defaults });
            self.logger.flush();
        }

        fn log(&self, numbers: std::ops::Range<u32>) {
            numbers.for_each(|n| self.logger.say(Level::Info, &format!("line {n:03}")));
            self.logger.flush();
        }

        fn reopen(&self) {
            self.logger.queue.order(|orders| orders.reopen = true);
            self.logger.flush();
        }

        fn files(&self) -> Vec<String> {
            let entries = fs::read_dir(self.folder.path()).unwrap();
            let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
            let mut names: Vec<String> = entries.map(|entry| name(entry.unwrap())).collect();
            names.sort();
            names
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.folder.path().join(name)).unwrap()
        }
    }

    fn defaults() -> Keep {
        config::parse("", false).settings.unwrap().log.keep
    }

    fn numbers(text: &str) -> Vec<u32> {
        let number = |line: &str| line.rsplit_once(": line ").map(|(_, n)| n.parse().unwrap());
        text.lines().filter_map(number).collect()
    }

    #[test]
    fn a_full_file_is_rotated_and_the_newest_are_kept_without_a_gap() {
        let own = Own::start("mp.log", 500, |_| ());
        own.log(0..200);
        let files = own.files();
        assert_eq!(files.len(), 5, "{files:?}");
        assert!(files[..4].iter().all(|name| name.starts_with("mp-20")), "{files:?}");
        assert!(files.iter().all(|name| own.read(name).len() <= 500), "{files:?}");
        let kept: Vec<u32> = files.iter().flat_map(|name| numbers(&own.read(name))).collect();
        let first = kept[0];
        assert!(first > 0 && kept == Vec::from_iter(first..200), "{kept:?}");
    }

    #[test]
    fn no_file_is_rotated_or_deleted_before_the_settings_are_known() {
        let folder = Scratch::new("log");
        let old = |n: usize| format!("mp-2020-01-01T00-00-00.{n:03}.log");
        for n in 0..30 {
            fs::write(folder.path().join(old(n)), "").unwrap();
        }
        let size = defaults().max_bytes + 1;
        fs::File::create(folder.path().join("mp.log")).unwrap().set_len(size).unwrap();
        let own = Own::without_settings(folder, "mp.log");
        own.log(0..1);
        own.reopen();
        own.log(1..2);
        assert_eq!(own.files().len(), 31, "{:?}", own.files());
        // Half a century: as old as anything of this kind can be.
        let max_age = 50 * 365 * Duration::from_secs(24 * 3600);
        own.apply(Keep { max_bytes: size + 10_000, max_age, max_files: 25 });
        own.log(2..3);
        assert_eq!(own.files().len(), 26, "{:?}", own.files());
        assert!(!own.files().contains(&old(4)) && own.files().contains(&old(5)));
    }

    #[test]
    fn a_file_renamed_by_another_program_is_reopened_without_losing_a_line() {
        let own = Own::start("mp.log", 1 << 20, |_| ());
        let (path, old) = (own.folder.path().join("mp.log"), own.folder.path().join("old"));
        own.log(0..10);
        fs::rename(&path, &old).unwrap();
        own.log(10..20);
        // The name now belongs to something that cannot be opened.
        fs::create_dir(&path).unwrap();
        own.reopen();
        own.log(20..30);
        own.log(30..31);
        assert!(
            own.read("old").contains("cannot be reopened, the log stays in the old file: Is a dir")
        );
        fs::remove_dir(&path).unwrap();
        own.reopen();
        own.log(31..40);
        own.log(40..50);
        assert!(own.read("mp.log").contains("reopened"), "{}", own.read("mp.log"));
        let text = own.read("old") + &own.read("mp.log");
        assert_eq!(numbers(&text), Vec::from_iter(0..50));
    }

    #[test]
    fn the_file_behind_a_link_is_rotated_in_its_own_folder() {
        let own = Own::start("link", 500, |folder| {
            fs::create_dir(folder.join("data")).unwrap();
            symlink("data/mp.log", folder.join("link")).unwrap();
        });
        own.log(0..50);
        assert_eq!(own.files(), ["data", "link"]);
        assert!(own.folder.path().join("link").is_symlink());
        assert_eq!(fs::read_dir(own.folder.path().join("data")).unwrap().count(), 5);
    }

    #[test]
    fn a_file_that_cannot_be_rotated_grows_and_the_log_says_so() {
        let own = Own::start("mp.log", 500, |_| ());
        own.log(0..1);
        // A file that was renamed is not the log's to rotate; here there is no folder for a new file.
        let moved = own.folder.path().with_extension("moved");
        fs::rename(own.folder.path(), &moved).unwrap();
        own.log(1..50);
        own.log(50..51);
        let text = fs::read_to_string(moved.join("mp.log")).unwrap();
        fs::rename(&moved, own.folder.path()).unwrap();
        assert_eq!(numbers(&text), Vec::from_iter(0..51));
        assert_eq!(text.matches("cannot be rotated: No such file").count(), 1, "{text}");
    }

    #[test]
    fn lines_for_a_full_disk_are_counted_and_reported_later() {
        let own = Own::start("mp.log", 500, |folder| {
            symlink("/dev/full", folder.join("mp.log")).unwrap()
        });
        own.log(0..7);
        fs::remove_file(own.folder.path().join("mp.log")).unwrap();
        own.reopen();
        own.log(7..9);
        let text = own.read("mp.log");
        assert!(
            text.contains("7 lines before this one were lost: No space left on device"),
            "{text}"
        );
        assert_eq!(numbers(&text), [7, 8]);
    }
}
