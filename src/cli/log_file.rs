//! Which files are refused as a log: `meta-proxy chek my.yml` must not append to my.yml, and `meta-proxy my.yml routes.json`
//! not to routes.json.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config;
use crate::route::{file, state};

/// A larger file is neither a routes file nor a settings file: 20,000 tables of long names need 10 MB.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// A larger file is no settings file.
const MAX_SETTINGS_BYTES: usize = 1024 * 1024;

/// Files that the proxy reads or writes beside its log.
pub struct InUse<'a> {
    pub config: Option<&'a Path>,
    pub routes: Option<&'a Path>,
    pub state_file: Option<&'a Path>,
}

/// Says why this file is not written to, if it is not. A file that is not there yet is a good log, unless the proxy will make
/// it for something else.
pub fn refuse(path: &Path, in_use: &InUse) -> Result<(), String> {
    let is_yaml = |path: &Path| {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        extension == "yml" || extension == "yaml"
    };
    if is_yaml(path) || fs::canonicalize(path).is_ok_and(|path| is_yaml(&path)) {
        return Err("want a log, not a YAML file".to_owned());
    }
    for (other, what) in [
        (in_use.config, "the settings file itself"),
        (in_use.routes, "the routes file itself"),
        (in_use.state_file, "zookeeper.state_file itself"),
    ] {
        if other.is_some_and(|other| is_same(path, other)) {
            return Err(format!("want a log, not {what}"));
        }
    }
    match read_as(path) {
        Some(what) => Err(format!("want a log, and this reads as {what}")),
        None => Ok(()),
    }
}

/// Whether both paths lead to one file, by links too, or will once it is made.
fn is_same(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        (Err(_), Err(_)) => match (to_be_made(a), to_be_made(b)) {
            (Some(a), Some(b)) => a == b,
            _ => false,
        },
        _ => false,
    }
}

fn to_be_made(path: &Path) -> Option<PathBuf> {
    let folder = path.parent()?;
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    Some(fs::canonicalize(folder).ok()?.join(path.file_name()?))
}

/// Tells files that the proxy understands by their content, whatever their name. A device or a pipe is never read.
fn read_as(path: &Path) -> Option<&'static str> {
    let metadata = fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return None;
    }
    let mut text = String::new();
    File::open(path).ok()?.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    if text.len() <= MAX_SETTINGS_BYTES && config::looks_like_settings(&text) {
        Some("settings")
    } else if file::looks_like_routes(&text) {
        Some("routes")
    } else if state::looks_like_state(&text) {
        Some("a state file")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::scratch::Scratch;

    #[test]
    fn settings_are_refused_and_logs_are_not() {
        let scratch = Scratch::new("log-file");
        let settings = "listen: 127.0.0.1:1\nzookeeper: {address: [h:1], root: /r}\n";
        let config = scratch.write("config", settings);
        std::os::unix::fs::symlink(&config, scratch.path().join("link")).unwrap();
        let logrus = "time=\"2021-06-01T00:00:00Z\" level=info msg=\"start: ok\"\n".repeat(3);
        let routes =
            "{\"orders\": {\"cluster_name\": \"c3\", \"meta_addrs\": \"h:1\"}, \"bad\": {}}\n";
        let state = "{\"origin_checksum\":\"1f\",\"version\":1}\n{\"table\":\"orders\"}\n";
        let json = "{\"time\":\"t\",\"level\":\"INFO\",\"message\":\"m\",\"listen\":\"x\"}\n";
        let (routes_file, state_file) =
            (scratch.write("routes", "not good now"), scratch.path().join("state"));
        let in_use = InUse {
            config: Some(&config),
            routes: Some(&routes_file),
            state_file: Some(&state_file),
        };
        let compose = scratch.write("compose.yml", "services: {}\n");
        std::os::unix::fs::symlink(&compose, scratch.path().join("yaml-link")).unwrap();
        fs::hard_link(&routes_file, scratch.path().join("hard-link")).unwrap();
        for (why, name, text, is_good) in [
            ("empty", "a.log", "", true),
            ("ours", "b.log", "2026-11-23T08:00:00.123Z INFO  main serve: listen: x\n", true),
            ("of the Go proxy", "c.log", &logrus, true),
            ("JSON", "d.log", json, true),
            ("JSON, lines", "e.log", &json.repeat(9), true),
            ("settings", "f.log", settings, false),
            ("settings with a fault", "g", "zookeeper:\n  adress: x\n", false),
            ("settings as JSON", "h", "{\"listen\": \"127.0.0.1:1\"}", false),
            ("routes, one with a fault", "r.json", routes, false),
            ("a state file", "s", state, false),
            ("an empty object", "k", "{}\n", true),
            ("by its name", "i.YML", "", false),
            ("by its name", "j.yaml", "", false),
        ] {
            let file = scratch.write(name, text);
            let refused = refuse(&file, &in_use);
            assert_eq!(refused.is_ok(), is_good, "{why}: {refused:?}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text, "{why}");
        }
        for (why, path, is_good) in [
            ("a device", Path::new("/dev/stdout"), true),
            ("the settings", &config, false),
            ("a link to them", &scratch.path().join("link"), false),
            ("a link to YAML", &scratch.path().join("yaml-link"), false),
            ("the routes, which have a fault", &routes_file, false),
            ("a hard link to them", &scratch.path().join("hard-link"), false),
            ("the state file, not there yet", &state_file, false),
            ("the same by another way", &scratch.path().join("./state"), false),
            ("not there yet", &scratch.path().join("new.log"), true),
        ] {
            assert_eq!(refuse(path, &in_use).is_ok(), is_good, "{why}");
        }
    }
}
