//! The files that are installed beside the binary, against the binary: settings file, unit, manual, completions, documents.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::scratch::Scratch;
use meta_proxy::config;

use crate::run::{Finished, run};
use crate::support::{BINARY, SOON};

const SETTINGS: &str = "packaging/meta-proxy.yaml";
const UNIT: &str = "packaging/meta-proxy.service";

/// A file of this repository.
pub fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn meta_proxy(args: &[&str]) -> Finished {
    let mut command = Command::new(BINARY);
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    run(command, SOON)
}

/// The packaged settings with every setting switched on: `#key: value` loses its sign.
fn all_settings() -> String {
    let switch = |line: &str| match line.trim_start().strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => {
            line.replacen('#', "", 1)
        }
        _ => line.to_owned(),
    };
    read(SETTINGS).lines().map(|line| switch(line) + "\n").collect()
}

/// Its settings by full name, `limits.keepalive_s`.
fn packaged() -> BTreeMap<String, String> {
    let mut section = "";
    let mut settings = BTreeMap::new();
    let text = all_settings();
    for line in text.lines() {
        let (key, value) = match line.trim_start().split_once(':') {
            Some((key, value)) if !key.starts_with('#') => (key, value.trim()),
            _ => continue,
        };
        match (line.starts_with(' '), value) {
            (false, "") => section = key,
            (false, _) => drop(settings.insert(key.to_owned(), value.to_owned())),
            (true, _) => drop(settings.insert(format!("{section}.{key}"), value.to_owned())),
        }
    }
    settings
}

/// The settings table of README: key and default.
fn documented() -> BTreeMap<String, String> {
    let readme = read("README.md");
    let (_, section) = readme.split_once("\n## Settings\n").expect("README has it");
    let (section, _) = section.split_once("\n## ").expect("it is not the last");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`'));
        let (key, default) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
        (key.to_owned(), default.to_owned())
    })
    .collect()
}

// ---- settings

#[test]
fn the_packaged_settings_are_good_as_they_are_and_with_all_switched_on() {
    // The folder of the state file comes with the package.
    let scratch = Scratch::new("settings");
    let folder = scratch.path().to_str().expect("scratch directories have plain names");
    let text = read(SETTINGS);
    assert!(text.contains("/var/lib/meta-proxy/"), "{text}");
    let file =
        scratch.write("settings.yaml", text.replace("/var/lib/meta-proxy/", &format!("{folder}/")));
    let shown = file.to_str().expect("scratch directories have plain names");
    let done = meta_proxy(&["check", shown]).expect_code(0);
    assert_eq!(done.stdout, format!("{shown}: good\n"));
    let checked = config::parse(&all_settings(), true);
    assert!(checked.settings.is_ok(), "{:?}", checked.settings);
    assert_eq!(checked.warnings, []);
}

#[test]
fn settings_are_the_same_in_the_code_in_readme_and_in_the_package() {
    let known = config::parse(&all_settings(), true).known;
    let is_section = |key: &String| known.iter().any(|other| other.starts_with(&format!("{key}.")));
    let known: BTreeSet<_> = known.iter().filter(|key| !is_section(key)).collect();
    let (documented, packaged) = (documented(), packaged());
    assert_eq!(documented.keys().collect::<BTreeSet<_>>(), known, "README, and src/config.rs");
    assert_eq!(packaged.keys().collect::<BTreeSet<_>>(), known, "{SETTINGS}, and src/config.rs");
    for (key, default) in documented.iter().filter(|(_, default)| !default.is_empty()) {
        assert_eq!(packaged[key], *default, "{key}: the default of {SETTINGS}, and that of README");
    }
}

#[test]
fn settings_that_are_off_in_the_package_have_their_defaults() {
    let parsed = |text: &str| format!("{:?}", config::parse(text, true).settings.expect("good"));
    // Those that have no default are on in one and off in the other.
    let mut all = all_settings();
    for line in [
        "listeners: [{listen: 0.0.0.0:34602, host_port_fields: remove}]\n",
        "  digest: user:password\n",
        "  clusters_root: /pegasus-clusters\n",
        "  control_root: /pegasus-control\n",
        "  control_digest: user:password\n",
        "  advertise: proxy1.example.org:9091\n",
        "  tags: [region=local, service=meta_proxy]\n",
    ] {
        assert!(all.contains(line), "{line}");
        all = all.replace(line, "");
    }
    assert_eq!(parsed(&all), parsed(&read(SETTINGS)));
}

// ---- the unit

/// The value of a directive.
fn directive(unit: &str, name: &str) -> String {
    let line = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("{UNIT} has no {name}")).to_owned()
}

#[test]
fn the_unit_goes_with_the_settings() {
    let (unit, settings) = (read(UNIT), packaged());
    let number = |key: &str| settings[key].parse::<u64>().expect(key);
    let descriptors: u64 = directive(&unit, "LimitNOFILE").parse().expect("a number");
    assert!(descriptors >= number("limits.max_connections") + 1024);
    assert_eq!(
        directive(&unit, "ExecStart"),
        "/usr/bin/meta-proxy /etc/meta-proxy/meta-proxy.yaml"
    );
    // A stop that takes as long as it may is not killed: the queries under way have their time after the grace.
    let stop_s: u64 = directive(&unit, "TimeoutStopSec").parse().expect("a number");
    assert!(1_000 * stop_s >= number("stop.grace") + number("query_timeout_ms") + 1_000);
    let state = format!("/var/lib/{}/", directive(&unit, "StateDirectory"));
    assert!(settings["zookeeper.state_file"].starts_with(&state), "{state}");
}

/// The directives that systemd 219 knows, as far as a unit of ours may need them.
const KNOWN_TO_219: [&str; 30] = [
    "Description",
    "Documentation",
    "Wants",
    "After",
    "Type",
    "PermissionsStartOnly",
    "ExecStartPre",
    "ExecStart",
    "ExecReload",
    "Restart",
    "RestartSec",
    "StartLimitInterval",
    "WatchdogSec",
    "TimeoutStopSec",
    "Environment",
    "User",
    "Group",
    "UMask",
    "LimitNOFILE",
    "CapabilityBoundingSet",
    "NoNewPrivileges",
    "ProtectSystem",
    "ProtectHome",
    "PrivateTmp",
    "PrivateDevices",
    "RestrictAddressFamilies",
    "SystemCallArchitectures",
    "WantedBy",
    "RuntimeDirectory",
    "Sockets",
];

#[test]
fn the_unit_for_old_systemd_has_only_what_that_knows_and_runs_the_same() {
    let (new, old) = (read(UNIT), read("packaging/meta-proxy-systemd219.service"));
    let lines = old.lines().filter(|line| !line.starts_with(['#', '[']));
    for (name, value) in lines.filter_map(|line| line.split_once('=')) {
        assert!(KNOWN_TO_219.contains(&name), "{name}");
        assert!(!value.starts_with('@'), "a group of system calls: {name}={value}");
    }
    // `strict` came with 232.
    assert!(!old.contains("ProtectSystem=strict"));
    for same in ["ExecStart", "ExecReload", "TimeoutStopSec", "WatchdogSec", "User", "LimitNOFILE"]
    {
        assert_eq!(directive(&old, same), directive(&new, same), "{same}");
    }
}

#[test]
fn the_clients_port_is_reserved() {
    let sysctl = read("packaging/meta-proxy.sysctl");
    let port = packaged()["listen"].rsplit_once(':').expect("IP:port").1.to_owned();
    assert!(sysctl.contains(&format!("\nnet.ipv4.ip_local_reserved_ports = {port}\n")), "{sysctl}");
}

#[test]
fn every_crate_has_its_licence_text() {
    let scratch = Scratch::new("licences");
    let mut command = Command::new("scripts/licences");
    command.arg(scratch.path()).current_dir(env!("CARGO_MANIFEST_DIR"));
    // It asks cargo, which waits for whoever builds.
    run(command, Duration::from_secs(120)).expect_code(0);
    let files: Vec<_> = fs::read_dir(scratch.path()).expect("a folder").flatten().collect();
    assert!(files.len() > 40, "{}", files.len());
    for file in files {
        let text = fs::read_to_string(file.path()).expect("text");
        assert!(text.lines().count() > 10, "{}: {text}", file.path().display());
    }
}

// ---- the manual and completions

#[test]
fn manual_and_completions_know_every_command_and_option_of_the_route_tool() {
    let help = meta_proxy(&["help", "route"]).expect_code(0).stdout;
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let options: BTreeSet<&str> =
        help.split(|c| !is_part(c)).filter_map(|word| word.strip_prefix("--")).collect();
    let usages = help.lines().filter_map(|line| line.strip_prefix("  meta-proxy route "));
    let commands: BTreeSet<&str> = usages.filter_map(|usage| usage.split(' ').next()).collect();
    assert!(options.len() > 20 && commands.len() > 10, "{options:?} {commands:?}");
    for (file, option_prefix, command_prefix) in [
        ("packaging/meta-proxy-route.1", "Fl -", "Cm "),
        ("packaging/completions/meta-proxy.bash", "--", ""),
        ("packaging/completions/_meta-proxy", "--", ""),
        ("packaging/completions/meta-proxy.fish", "-l ", ""),
    ] {
        let text = read(file);
        for option in &options {
            assert!(text.contains(&format!("{option_prefix}{option}")), "{file}: --{option}");
        }
        for command in &commands {
            assert!(text.contains(&format!("{command_prefix}{command}")), "{file}: {command}");
        }
    }
}

#[test]
fn manual_and_completions_know_every_command_and_option() {
    let help = meta_proxy(&["--help"]).expect_code(0).stdout;
    let of_commands: String = ["run", "check", "query"]
        .map(|command| meta_proxy(&["help", command]).expect_code(0).stdout)
        .concat();
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let all = format!("{help}{of_commands}");
    let words: BTreeSet<&str> = all.split(|c| !is_part(c)).collect();
    let options: Vec<&str> = words
        .iter()
        .filter_map(|word| word.strip_prefix("--"))
        .filter(|word| !word.is_empty())
        .collect();
    let commands: Vec<&str> = help
        .lines()
        .filter_map(|line| line.strip_prefix("  meta-proxy "))
        .filter_map(|usage| usage.split(' ').next())
        .filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))
        .collect();
    assert!(options.len() >= 7 && commands.len() >= 2, "{options:?} {commands:?}");
    for (file, option_prefix) in [
        ("packaging/meta-proxy.1", "-"),
        ("packaging/completions/meta-proxy.bash", "--"),
        ("packaging/completions/_meta-proxy", "--"),
        ("packaging/completions/meta-proxy.fish", "-l "),
    ] {
        let text = read(file);
        let options = options.iter().map(|option| format!("{option_prefix}{option}"));
        for word in options.chain(commands.iter().map(|&command| command.to_owned())) {
            assert!(text.contains(&word), "{file} does not know {word}");
        }
    }
}
