//! House rules: what the code promises about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates that `cargo tree -e normal` may list.
const MAX_CRATES: usize = 60;
/// Lines of code of the proxy, and of the commands with the route tool. More is a reason to look for what can go.
const MAX_LINES: usize = 17_050;
const MAX_TOOL_LINES: usize = 7_800;

/// The layers, lowest first: a folder, or a file that stands lower or higher than the rest of its folder. A file names
/// only files of its own layer and of those before it.
const LAYERS: &[&str] = &[
    "wire/",
    "patience.rs",
    "mutant.rs",
    "activity.rs",
    "age.rs",
    "spread.rs",
    "version.rs",
    "config/",
    "process/life.rs",
    "process/systemd.rs",
    "logging/",
    "metrics.rs",
    "turns.rs",
    "upstream/sharing.rs",
    "route/record.rs",
    "client/",
    "upstream/",
    "route/",
    "work/queue.rs",
    "work/job.rs",
    "client/accept.rs",
    "query/",
    "work/",
    "zk/",
    "ops/",
    "admin/",
    "process/",
    "cli/",
    "lib.rs",
    "main.rs",
];

/// Files that promise to know no socket, thread, clock or log.
const PURE: &[&str] = &[
    "cli/route/args.rs",
    "cli/route/text.rs",
    "ops/checks.rs",
    "ops/import.rs",
    "ops/verify.rs",
    "ops/moving/checks.rs",
    "ops/moving/decide.rs",
    "ops/moving/force.rs",
    "ops/moving/state.rs",
    "ops/plan.rs",
    "ops/record.rs",
    "ops/view.rs",
    "ops/admin_move.rs",
    "ops/admin_rpc.rs",
    "admin/exposition.rs",
    "admin/family.rs",
    "admin/gzip.rs",
    "admin/http_message.rs",
    "admin/overview.rs",
    "admin/status_page.rs",
    "admin/verdict.rs",
    "admin/words.rs",
    "client/close_reason.rs",
    "client/deadlines.rs",
    "client/host.rs",
    "client/hosts.rs",
    "client/inbox.rs",
    "client/note.rs",
    "client/outbox.rs",
    "client/readiness.rs",
    "client/share.rs",
    "config/contradictions.rs",
    "config/spelling.rs",
    "config/tags.rs",
    "config/values.rs",
    "config/yaml.rs",
    "logging/clock.rs",
    "process/reload.rs",
    "route/control.rs",
    "route/evicted.rs",
    "route/hold.rs",
    "route/names.rs",
    "route/record.rs",
    "spread.rs",
    "turns.rs",
    "upstream/health.rs",
    "upstream/leader.rs",
    "upstream/sharing.rs",
    "upstream/slow_start.rs",
    "wire/address.rs",
    "wire/answer.rs",
    "wire/config_view.rs",
    "wire/crc32c.rs",
    "wire/error_code.rs",
    "wire/frame.rs",
    "wire/host_port.rs",
    "wire/invariants.rs",
    "wire/message.rs",
    "wire/mod.rs",
    "wire/protocol.rs",
    "wire/rdsn.rs",
    "wire/reply.rs",
    "wire/result.rs",
    "zk/change.rs",
    "zk/codec.rs",
    "zk/control.rs",
    "zk/dial.rs",
    "zk/ended.rs",
    "zk/flaps.rs",
    "zk/lag.rs",
    "zk/meaning.rs",
    "zk/planner.rs",
    "zk/read.rs",
    "zk/records.rs",
    "zk/root.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The source files, each with its text up to its tests; files of tests are left out.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("tests.rs") {
                let text = fs::read_to_string(&path).unwrap();
                let tests =
                    ["#[cfg(test)]", "#[cfg(all(test, loom))]", "#[cfg(all(test, not(loom)))]"];
                let end = tests.iter().filter_map(|tests| text.find(tests)).min();
                let code = &text[..end.unwrap_or(text.len())];
                // It stands for another package's lock in a model check, see tests/model.
                let code = code.replace("#[cfg(loom)]\nuse crate::locks::{Condvar, Mutex};\n", "");
                found.push((path.strip_prefix(root().join("src")).unwrap().to_owned(), code));
            }
        }
    }
    assert!(found.len() > 25, "{found:?}");
    found
}

#[test]
fn dependencies_are_few() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "-e", "normal", "--prefix", "none", "--locked", "-p", "meta-proxy"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let crates: BTreeSet<&str> = tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    println!("{} crates", crates.len());
    assert!((10..=MAX_CRATES).contains(&crates.len()), "{crates:#?}");
}

/// It attacks an ensemble in trouble. Only tests may use it, to have a client that is not ours.
#[test]
fn no_file_names_the_zookeeper_crate() {
    for (path, code) in sources() {
        assert!(!code.contains("use zookeeper::"), "{}", path.display());
    }
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dev-dependencies]").next().unwrap();
    assert!(!dependencies.contains("zookeeper"), "{dependencies}");
}

/// The files that each file names, by paths below `src`.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let sources = sources();
    let files: BTreeSet<String> =
        sources.iter().map(|(path, _)| path.to_str().unwrap().to_owned()).collect();
    let mut imports = BTreeMap::new();
    for (path, code) in &sources {
        let name = path.to_str().unwrap();
        let code: String = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .flat_map(|line| [line.trim(), " "])
            .collect();
        let folder: Vec<&str> = name.split('/').rev().skip(1).collect();
        let mut named = BTreeSet::new();
        for (prefix, base) in [("crate::", &[][..]), ("super::", &folder[..])] {
            for (at, _) in code.match_indices(prefix) {
                let rest = &code[at + prefix.len()..];
                named.extend(modules(rest).iter().filter_map(|path| {
                    let parts: Vec<&str> = base.iter().copied().chain(path.split("::")).collect();
                    (1..=parts.len()).rev().find_map(|n| {
                        let stem = parts[..n].join("/");
                        [format!("{stem}.rs"), format!("{stem}/mod.rs")]
                            .into_iter()
                            .find(|file| files.contains(file))
                    })
                }));
            }
        }
        named.remove(name);
        imports.insert(name.to_owned(), named);
    }
    imports
}

/// The module paths at the start of what stands behind `crate::`: `a::b::C`, or `a::{b, c}` as `a::b` and `a::c`.
fn modules(text: &str) -> Vec<String> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let end = text.find(|c| !is_path(c)).unwrap_or(text.len());
    let path = text[..end].trim_end_matches("::");
    if !text[end..].starts_with('{') {
        return vec![path.to_owned()];
    }
    let list = text[end + 1..].split('}').next().unwrap();
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    let prefix = if path.is_empty() { String::new() } else { format!("{path}::") };
    names.map(|name| format!("{prefix}{name}")).collect()
}

fn layer(file: &str) -> usize {
    let exact = LAYERS.iter().position(|layer| *layer == file);
    let folder = || LAYERS.iter().position(|layer| layer.ends_with('/') && file.starts_with(layer));
    exact.or_else(folder).unwrap_or_else(|| panic!("no layer for {file}"))
}

#[test]
fn a_lower_layer_never_names_a_higher_one() {
    let mut faults = Vec::new();
    for (file, named) in imports() {
        println!("{file} -> {}", named.iter().cloned().collect::<Vec<_>>().join(" "));
        // A folder's own page lists what is in it.
        for other in named.into_iter().filter(|other| layer(other) > layer(&file)) {
            faults.push(format!("{file} names {other}, which is above it"));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn no_files_form_a_circle() {
    let mut left = imports();
    assert!(left.values().map(BTreeSet::len).sum::<usize>() > 100, "the imports were not read");
    // Take away who names nobody that is left, until nobody can be taken away.
    while let Some(free) = left
        .iter()
        .find(|(_, named)| named.iter().all(|other| !left.contains_key(other)))
        .map(|(file, _)| file.clone())
    {
        left.remove(&free);
    }
    let circle: BTreeMap<_, Vec<_>> = left
        .iter()
        .map(|(file, named)| (file, named.iter().filter(|n| left.contains_key(*n)).collect()))
        .collect();
    assert!(circle.is_empty(), "{circle:#?}");
}

#[test]
fn pure_files_are_pure() {
    let sources = sources();
    for pure in PURE {
        let (_, code) = sources.iter().find(|(path, _)| path == Path::new(pure)).expect(pure);
        for impure in [
            "TcpStream",
            "TcpListener",
            "std::fs",
            "std::thread",
            "Instant::now",
            "log::",
            "Mutex",
            "RwLock",
        ] {
            assert!(!code.contains(impure), "{pure} has {impure}");
        }
    }
}

#[test]
fn nothing_unwraps_and_nothing_is_left_to_do() {
    for (path, code) in sources() {
        for word in
            [".unwrap()", "TODO", "FIXME", "todo!(", "unimplemented!(", "dbg!(", "process::exit"]
        {
            assert!(!code.contains(word), "{} has {word}", path.display());
        }
    }
}

#[test]
fn unsafe_code_is_forbidden() {
    for file in ["lib.rs", "main.rs"] {
        let (_, code) = sources().into_iter().find(|(path, _)| path == Path::new(file)).unwrap();
        assert!(code.contains("#![forbid(unsafe_code)]"), "{file}");
    }
}

/// Words that a sentence does not begin with: its subject comes first. A question may, and a heading.
const NO_SUBJECT: [&str; 19] = [
    "Of",
    "So many",
    "So much",
    "So long",
    "As much",
    "Who",
    "Whom",
    "Whose",
    "The same",
    "What",
    "That of",
    "Else",
    "Not before",
    "From there",
    "Lets go",
    "Goes on",
    "Told of",
    "Has it",
    "This one",
];

/// Phrases that an engineer on call has to guess at, with the plain words in the comments beside them.
const RIDDLES: [&str; 16] = [
    "for ever",         // without a time limit, until it closes
    "as ever",          // as before, unchanged
    "of late",          // recently, in the last 10 s
    "so many",          // at most this many, `count` of them
    "whoever",          // the client, the operator, the thread
    "told of",          // reported, logged
    "serve on",         // the proxy goes on serving
    "serves on",        // the proxy goes on serving
    "out of reach",     // unreachable
    "put aside",        // rotated
    "had to make room", // was evicted
    "how it stands",    // the state
    "by now",           // now, since then
    "once for all",     // once
    "take off",         // start a call
    "os error",         // the text without the number
];

/// Files of these endings below these folders, and their comments or, in documents, their text. Also the README.
fn texts() -> Vec<(PathBuf, Vec<String>)> {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let readme = readme.lines().filter_map(|line| prose(line, false)).collect();
    let mut found = vec![(PathBuf::from("README.md"), readme)];
    let mut folders: Vec<PathBuf> =
        ["src", "tests", "benches", "docs"].map(|folder| root().join(folder)).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let is = |ending: &str| path.extension().is_some_and(|of_file| of_file == ending);
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if is("rs") || is("md") {
                let is_code = is("rs");
                let text = fs::read_to_string(&path).unwrap();
                let lines = text.lines().filter_map(|line| prose(line, is_code)).collect();
                found.push((path.strip_prefix(root()).unwrap().to_owned(), lines));
            }
        }
    }
    found
}

/// The comment of a line, or the line of a document that is no heading.
fn prose(line: &str, is_code: bool) -> Option<String> {
    if !is_code {
        return (!line.starts_with('#'))
            .then(|| line.trim_start_matches(['-', '|', ' ']).to_owned());
    }
    let comment = match line.trim_start().strip_prefix("//") {
        Some(comment) => comment,
        None => line.split_once(" // ")?.1,
    };
    Some(comment.trim_start_matches(['/', '!', ' ']).to_owned())
}

/// The string literals of code outside its tests that are text for people: log lines, messages, texts of the page.
fn messages() -> Vec<(PathBuf, Vec<String>)> {
    let mut found = Vec::new();
    for (path, code) in sources() {
        found.push((Path::new("src").join(path), literals(&code)));
    }
    for page in ["src/admin/page.html", "src/admin/page.js"] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        found.push((PathBuf::from(page), text.lines().map(str::to_owned).collect()));
    }
    found
}

/// The string literals with a space in them. A line that ends with a backslash goes on in the next.
fn literals(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find(['"', '/', '\'']) {
        let (sign, behind) = (&rest[at..=at], &rest[at + 1..]);
        rest = match sign {
            "/" if behind.starts_with('/') => behind.split_once('\n').map_or("", |(_, next)| next),
            "'" if behind.starts_with("\"'") => &behind[2..],
            "\"" => {
                let mut is_escaped = false;
                let end = behind.find(|c| {
                    let ends = c == '"' && !is_escaped;
                    is_escaped = c == '\\' && !is_escaped;
                    ends
                });
                let end = end.unwrap_or(behind.len());
                let text = behind[..end].split("\\\n").map(str::trim_start);
                found.push(text.collect::<String>());
                behind.get(end + 1..).unwrap_or_default()
            }
            _ => behind,
        };
    }
    found.retain(|text| text.contains(' '));
    found
}

/// The first of [`RIDDLES`] in a text, as whole words.
fn riddle(text: &str) -> Option<&'static str> {
    let text = text.to_lowercase();
    let has = |riddle: &&&str| {
        text.match_indices(**riddle).any(|(at, _)| {
            let is_letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
            let behind = text[at + riddle.len()..].chars().next();
            !is_letter(text[..at].chars().next_back()) && !is_letter(behind)
        })
    };
    RIDDLES.iter().find(has).copied()
}

fn has_no_subject(sentence: &str) -> bool {
    let begins = |word: &&str| {
        let rest = sentence.strip_prefix(*word);
        rest.is_some_and(|rest| rest.starts_with(' '))
    };
    NO_SUBJECT.iter().any(begins) && !sentence.ends_with('?')
}

#[test]
fn sentences_begin_with_their_subject() {
    let mut found = Vec::new();
    for (path, lines) in texts().into_iter().chain(messages()) {
        for line in &lines {
            let ends = [". ", ": ", "! "];
            let mut sentences = vec![line.as_str()];
            for end in ends {
                sentences = sentences.into_iter().flat_map(|part| part.split(end)).collect();
            }
            let bad = sentences.into_iter().filter(|sentence| has_no_subject(sentence));
            found.extend(bad.map(|sentence| format!("{}: {sentence}", path.display())));
        }
    }
    assert_eq!(found, [""; 0]);
    assert!(has_no_subject("What it holds.") && !has_no_subject("Whatever it holds."));
}

#[test]
fn nothing_is_said_in_riddles() {
    let is_read = |path: &Path| !path.starts_with("tests") && !path.starts_with("benches");
    let mut found = Vec::new();
    for (path, lines) in texts().into_iter().chain(messages()).filter(|(path, _)| is_read(path)) {
        // The code that removes the number of the system's error from a message names it.
        let lines = lines.iter().filter(|line| *line != "(os error");
        let bad = lines.filter_map(|line| Some((riddle(line)?, line)));
        found.extend(bad.map(|(riddle, line)| format!("{}: {riddle}: {line}", path.display())));
    }
    assert_eq!(found, [""; 0]);
    assert_eq!(riddle("kept for ever, for everybody"), Some("for ever"));
    assert_eq!(riddle("kept for every table"), None);
}

#[test]
fn messages_are_found() {
    let code =
        "a(\"one \\\"two\\\"\"); // \"not this\"\nb('\"', \"three \\\n   four\"); c(\"five\");";
    assert_eq!(literals(code), ["one \\\"two\\\"", "three four"]);
    let all: usize = messages().iter().map(|(_, texts)| texts.len()).sum();
    assert!(all > 1_000, "{all} messages");
}

/// For reviews: `scripts/test house:: -- --nocapture` prints them.
#[test]
fn the_size_of_each_room_is_known() {
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    for (path, code) in sources() {
        let room = path.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        let is_code = |line: &&str| {
            let line = line.trim_start();
            !line.is_empty() && !line.starts_with("//")
        };
        *lines.entry(room).or_default() += code.lines().filter(is_code).count();
    }
    let tool: usize = ["cli", "ops"].iter().filter_map(|room| lines.get(*room)).sum();
    let all: usize = lines.values().sum();
    println!(
        "{lines:#?}\nlines of code: {all}, the tool and the commands: {tool}, the proxy: {}",
        all - tool
    );
    assert!(all - tool <= MAX_LINES && tool <= MAX_TOOL_LINES, "{lines:#?}");
}
