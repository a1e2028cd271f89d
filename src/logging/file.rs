//! The log file and the rotated files beside it, as lumberjack of the Go meta-proxy keeps them, but in UTC.
//!
//! ```text
//! meta-proxy.log ──full──▶ renamed to meta-proxy-2026-11-23T08-00-00.123.log, a new one is begun
//!                            └── deleted when it is too old, or too many are newer
//! ```
//! The thread opens the new file after the rename, and closes the old one once the new one is open. While either step
//! fails, lines go on into the old file. Only the thread `log` calls this code.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::clock::WallClock;
use super::line::{Utc, is_stamp};
use super::queue::count;
use crate::config::Keep;

/// Pause after a failed rotation.
const ROTATE_AGAIN: Duration = Duration::from_secs(60);
/// Prune at least this often, even without rotation.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);

pub struct Lost {
    /// Number of lines that were not written.
    pub lines: u64,
    pub why: io::Error,
}

/// A log file: lines are only appended.
pub struct LogFile {
    /// The path as given, for reopening.
    path: PathBuf,
    file: File,
    /// The path without symbolic links; `None` for what is no file, such as /dev/null, and is never rotated.
    real: Option<PathBuf>,
    size: u64,
    /// The last write ended within a line.
    torn: bool,
    /// `None` until the settings are known: before, no file is rotated or deleted by limits that may be wrong.
    keep: Option<Keep>,
    rotate_at: Instant,
    /// The time in the name of the last rotated file.
    last_aside: Duration,
    next_prune: Instant,
    clock: WallClock,
}

impl LogFile {
    /// Opens or creates the file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let metadata = file.metadata()?;
        let real = if metadata.is_file() { Some(fs::canonicalize(path)?) } else { None };
        let (size, now) = (metadata.len(), Instant::now());
        let path = path.to_owned();
        Ok(LogFile {
            path,
            file,
            real,
            size,
            torn: false,
            keep: None,
            rotate_at: now,
            last_aside: Duration::ZERO,
            next_prune: now,
            clock: WallClock::new(Utc::now().0, now),
        })
    }

    /// The path, for log lines.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets how much of the log to keep from now on.
    pub fn set_keep(&mut self, keep: Keep) {
        self.keep = Some(keep);
        self.rotate_at = Instant::now();
        self.next_prune = Instant::now();
    }

    /// Closes the file and opens the file that has its name now. An external log rotation needs this after a rename.
    pub fn reopen(&mut self) -> io::Result<()> {
        let new = Self::open(&self.path)?;
        let clock = mem::replace(&mut self.clock, new.clock);
        let (keep, last_aside) = (self.keep, self.last_aside);
        *self = Self { keep, last_aside, clock, ..new };
        Ok(())
    }

    /// Appends whole lines, and rotates the file when it is full. If the rotation fails, the file grows, and `complain`
    /// gets the reason.
    pub fn write(
        &mut self,
        mut lines: &[u8],
        complain: &mut dyn FnMut(String),
    ) -> Result<(), Lost> {
        while !lines.is_empty() {
            let may_rotate = self.real.is_some() && Instant::now() >= self.rotate_at;
            let max = self.keep.filter(|_| may_rotate).map_or(u64::MAX, |keep| keep.max_bytes);
            let fits = fitting(lines, self.size, max);
            if fits == 0 {
                if let Err(e) = self.rotate() {
                    self.rotate_at = Instant::now() + ROTATE_AGAIN;
                    complain(format!("file={} cannot be rotated: {e}", self.path.display()));
                }
                continue;
            }
            let written = write_lines(&mut self.file, &lines[..fits], &mut self.torn);
            lines = &lines[fits..];
            if let Err(lost) = written {
                self.size = self.file.metadata().map_or(self.size, |metadata| metadata.len());
                return Err(Lost { lines: lost.lines + count(lines), ..lost });
            }
            self.size += fits as u64;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let Some(real) = &self.real else {
            return Ok(());
        };
        // Another proxy that writes to the same file may have rotated it already: do not rename its new file.
        let is_ours = match (fs::metadata(real), self.file.metadata()) {
            (Ok(named), Ok(ours)) => (named.dev(), named.ino()) == (ours.dev(), ours.ino()),
            _ => false,
        };
        if is_ours {
            let permissions = self.file.metadata()?.permissions();
            let names = Names::of(real);
            // Names must sort by time, also for two rotations within one millisecond.
            let next = self.last_aside + Duration::from_millis(1);
            let mut now = Utc(Utc::now().0.max(next));
            let aside = loop {
                let aside = real.with_file_name(names.aside(now));
                if !aside.exists() {
                    break aside;
                }
                now.0 += Duration::from_millis(1);
            };
            fs::rename(real, aside)?;
            self.last_aside = now.0;
            self.reopen()?;
            // The new file gets the permissions of the old one. If that fails, logging goes on all the same.
            let _ = self.file.set_permissions(permissions);
        } else {
            self.reopen()?;
        }
        Ok(())
    }

    /// From time to time deletes files that are too old or too many. Deletes by age only while the wall clock can be
    /// trusted.
    pub fn prune(&mut self, complain: &mut dyn FnMut(String)) {
        self.prune_at(Utc::now(), Instant::now(), complain);
    }

    fn prune_at(&mut self, wall: Utc, now: Instant, complain: &mut dyn FnMut(String)) {
        if let Some(seconds) = self.clock.look(wall.0, now) {
            complain(format!(
                "file={}: the clock jumped by {seconds} s: no log is deleted by age for a day",
                self.path.display()
            ));
        }
        let real = self.real.as_ref().filter(|_| now >= self.next_prune);
        let (Some(real), Some(keep)) = (real, self.keep) else {
            return;
        };
        self.next_prune = now + PRUNE_EVERY;
        let max_age = if self.clock.is_trusted(now) { keep.max_age } else { Duration::MAX };
        let keep = Keep { max_age, ..keep };
        let names = Names::of(real);
        let Some(folder) = real.parent() else {
            return;
        };
        let found = fs::read_dir(folder).map(|entries| {
            let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
            entries.filter_map(|entry| name(entry.ok()?)).collect()
        });
        let delete = |name: String| match fs::remove_file(folder.join(&name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(format!("{name}: {e}")),
            _ => Ok(()),
        };
        let done = found
            .map_err(|e| e.to_string())
            .and_then(|found| names.to_delete(found, wall, keep).into_iter().try_for_each(delete));
        if let Err(why) = done {
            complain(format!("file={}: old files cannot be deleted: {why}", self.path.display()));
        }
    }
}

/// Appends whole lines to any writer. First ends a line that the last write left unfinished.
pub fn write_lines(out: &mut impl Write, lines: &[u8], torn: &mut bool) -> Result<(), Lost> {
    let mut at = 0;
    while at < lines.len() {
        let next = if *torn { b"\n" } else { &lines[at..] };
        let failed = match out.write(next) {
            Ok(0) => io::ErrorKind::WriteZero.into(),
            Ok(_) if *torn => {
                *torn = false;
                continue;
            }
            Ok(n) => {
                at += n;
                continue;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => e,
        };
        let is_within = at > 0 && lines[at - 1] != b'\n';
        *torn |= is_within;
        // If only the end of a line is missing, the next write adds it.
        let is_whole = is_within && lines[at] == b'\n';
        return Err(Lost { lines: count(&lines[at..]) - u64::from(is_whole), why: failed });
    }
    Ok(())
}

/// How many bytes of `lines` fit into a file of this size, in whole lines; 0: the file is full. An empty file takes a
/// line of any length.
fn fitting(lines: &[u8], size: u64, max: u64) -> usize {
    let room = usize::try_from(max.saturating_sub(size)).unwrap_or(usize::MAX);
    if lines.len() <= room {
        return lines.len();
    }
    let end_of = |line_end: Option<usize>| line_end.map(|at| at + 1);
    match end_of(lines[..room].iter().rposition(|&byte| byte == b'\n')) {
        Some(fits) => fits,
        None if size > 0 => 0,
        None => end_of(lines.iter().position(|&byte| byte == b'\n')).unwrap_or(lines.len()),
    }
}

/// The names of rotated files.
struct Names {
    /// `meta-proxy` of `meta-proxy.log`.
    stem: String,
    /// `.log`; empty if there is none.
    extension: String,
}

impl Names {
    fn of(path: &Path) -> Self {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let extension = path.extension().map(|extension| format!(".{}", extension.display()));
        Names { stem, extension: extension.unwrap_or_default() }
    }

    fn aside(&self, now: Utc) -> String {
        format!("{}-{}{}", self.stem, now.stamp(), self.extension)
    }

    /// The time at which the file of this name was rotated; `None` if it is no rotated file.
    fn stamp<'a>(&self, name: &'a str) -> Option<&'a str> {
        let rest = name.strip_prefix(&self.stem)?.strip_prefix('-')?;
        rest.strip_suffix(&self.extension).filter(|stamp| is_stamp(stamp))
    }

    /// Which of the files in the folder to delete.
    fn to_delete(&self, mut found: Vec<String>, now: Utc, keep: Keep) -> Vec<String> {
        let oldest = Utc(now.0.saturating_sub(keep.max_age)).stamp();
        found.retain(|name| self.stamp(name).is_some());
        found.sort_unstable_by(|a, b| b.cmp(a));
        let kept = found.iter().take(keep.max_files);
        let kept = kept.take_while(|name| self.stamp(name).is_some_and(|stamp| *stamp >= *oldest));
        let kept = kept.count();
        found.split_off(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::scratch::Scratch;

    const KEEP: Keep =
        Keep { max_bytes: 20, max_age: Duration::from_secs(24 * 3600), max_files: 3 };

    #[test]
    fn whole_lines_fill_a_file_and_a_long_one_has_its_own() {
        for (why, lines, size, max, want) in [
            ("all fit", "a\nb\n", 0, 4, 4),
            ("one fits", "a\nb\n", 0, 3, 2),
            ("none fits any more", "a\nb\n", 3, 4, 0),
            ("it is over full", "a\n", 9, 4, 0),
            ("too long for any file", "long\nb\n", 0, 3, 5),
            ("too long for this file", "long\nb\n", 1, 3, 0),
            ("no limit", "a\nb\n", 9, u64::MAX, 4),
        ] {
            assert_eq!(fitting(lines.as_bytes(), size, max), want, "{why}");
        }
    }

    #[test]
    fn the_oldest_go_by_age_and_by_number_and_nothing_else_does() {
        let names = Names::of(Path::new("/var/log/meta-proxy.log"));
        let day = |n: u64| Utc(Duration::from_secs(n * 24 * 3600));
        assert_eq!(names.aside(day(0)), "meta-proxy-1970-01-01T00-00-00.000.log");
        let others = [
            "meta-proxy.log",
            "meta-proxy-1970-01-01.log",
            "meta-proxy-1970-01-01T00-00-00.000.gz",
            "meta-proxy-1970-01-01T00-00-00.000",
            "meta-proxy-b-1970-01-01T00-00-00.000.log",
            "other-1970-01-01T00-00-00.000.log",
        ];
        let gone = |days: &[u64], now: u64| {
            let mut found: Vec<String> = days.iter().map(|n| names.aside(day(*n))).collect();
            found.extend(others.map(str::to_owned));
            names.to_delete(found, day(now), KEEP)
        };
        assert_eq!(gone(&[], 99), [""; 0]);
        assert_eq!(gone(&[5], 6), [""; 0], "a day old, no older");
        assert_eq!(gone(&[5], 7), [names.aside(day(5))]);
        assert_eq!(gone(&[9, 9, 9], 9), [""; 0]);
        assert_eq!(gone(&[11, 13, 10, 12], 10), [names.aside(day(10))], "three are kept");
        let no_extension = Names::of(Path::new("log"));
        assert_eq!(no_extension.aside(day(0)), "log-1970-01-01T00-00-00.000");
        assert!(no_extension.stamp("log-1970-01-01T00-00-00.000").is_some());
    }

    #[test]
    fn a_clock_step_deletes_nothing_until_it_has_held_for_a_day() {
        let scratch = Scratch::new("clock");
        let day = Duration::from_secs(24 * 3600);
        let (start, wall) = (Instant::now(), Utc::now().0);
        let names = Names::of(Path::new("mp.log"));
        let aside: Vec<String> =
            (1..=3).map(|n| names.aside(Utc(wall - Duration::from_secs(n)))).collect();
        aside.iter().for_each(|name| drop(scratch.write(name, "old")));
        let mut file = LogFile::open(&scratch.path().join("mp.log")).unwrap();
        file.set_keep(KEEP);
        let mut told = Vec::new();
        let mut prune = |at: Duration, step: Duration| {
            file.prune_at(Utc(wall + at + step), start + at, &mut |what| told.push(what));
            aside.iter().filter(|name| scratch.path().join(name).exists()).count()
        };
        let hour = Duration::from_secs(3_600);
        assert_eq!(prune(hour, Duration::ZERO), 3);
        assert_eq!(prune(3 * hour, 400 * day), 3, "all are 400 days old at once");
        assert_eq!(prune(5 * hour, 400 * day), 3, "an hour later, too");
        assert_eq!(prune(4 * hour + day, 400 * day), 0, "the clock was right");
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("the clock jumped by 34560000 s"), "{told:?}");
    }

    /// Takes this many bytes, then fails once, and so on.
    struct Full {
        taken: Vec<u8>,
        room: usize,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                self.room = usize::MAX;
                return Err(io::ErrorKind::StorageFull.into());
            }
            let n = bytes.len().min(self.room);
            self.room -= n;
            self.taken.extend(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_found_no_room_are_counted_and_a_torn_one_spoils_no_other() {
        for (room, lost, want) in [
            (0, 3, "next\n"),
            (1, 3, "a\nnext\n"),
            (2, 2, "a1\nnext\n"),
            (3, 2, "a1\nnext\n"),
            (5, 1, "a1\na2\nnext\n"),
        ] {
            let mut out = Full { taken: Vec::new(), room };
            let mut torn = false;
            let failed = write_lines(&mut out, b"a1\na2\na3\n", &mut torn).unwrap_err();
            assert_eq!(failed.lines, lost, "room for {room}");
            assert!(write_lines(&mut out, b"next\n", &mut torn).is_ok());
            assert_eq!(String::from_utf8(out.taken).unwrap(), want, "room for {room}");
        }
    }
}
