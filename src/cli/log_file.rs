//! Which files are refused as a log: `meta-proxy chek my.yml` must not append to my.yml.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::config;

/// A larger file is no settings file.
const MAX_BYTES: u64 = 1024 * 1024;

/// Says why this file is not written to, if it is not. A file that is not there yet is a good log.
pub fn refuse(path: &Path, config: Option<&Path>) -> Result<(), String> {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    if extension == "yml" || extension == "yaml" {
        return Err("want a log, not a YAML file".to_owned());
    }
    let Ok(metadata) = fs::metadata(path) else {
        return Ok(());
    };
    let same = |config: &Path| {
        let config = fs::metadata(config).ok()?;
        Some((config.dev(), config.ino()) == (metadata.dev(), metadata.ino()))
    };
    if config.and_then(same) == Some(true) {
        return Err("want a log, not the settings file itself".to_owned());
    }
    let mut text = String::new();
    let is_small = metadata.is_file() && metadata.len() <= MAX_BYTES;
    let read =
        is_small.then(|| File::open(path).and_then(|mut file| file.read_to_string(&mut text)));
    match read {
        Some(Ok(_)) if config::looks_like_settings(&text) => {
            Err("want a log, and this reads as settings".to_owned())
        }
        _ => Ok(()),
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
        let json = "{\"time\":\"t\",\"level\":\"INFO\",\"message\":\"m\",\"listen\":\"x\"}\n";
        for (why, name, text, is_good) in [
            ("empty", "a.log", "", true),
            ("ours", "b.log", "2026-11-23T08:00:00.123Z INFO  main serve: listen: x\n", true),
            ("of the Go proxy", "c.log", &logrus, true),
            ("JSON", "d.log", json, true),
            ("JSON, lines", "e.log", &json.repeat(9), true),
            ("settings", "f.log", settings, false),
            ("settings with a fault", "g", "zookeeper:\n  adress: x\n", false),
            ("settings as JSON", "h", "{\"listen\": \"127.0.0.1:1\"}", false),
            ("by its name", "i.YML", "", false),
            ("by its name", "j.yaml", "", false),
        ] {
            let file = scratch.write(name, text);
            let refused = refuse(&file, Some(&config));
            assert_eq!(refused.is_ok(), is_good, "{why}: {refused:?}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text, "{why}");
        }
        for (why, path, is_good) in [
            ("a device", Path::new("/dev/stdout"), true),
            ("the settings", &config, false),
            ("a link to them", &scratch.path().join("link"), false),
            ("not there yet", &scratch.path().join("new.log"), true),
        ] {
            assert_eq!(refuse(path, Some(&config)).is_ok(), is_good, "{why}");
        }
    }
}
