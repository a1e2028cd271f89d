//! House rules: what the code promises about itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates that `cargo tree -e normal` may list.
const MAX_CRATES: usize = 85;

/// Files that promise to know no socket, thread, clock or log.
const PURE: &[&str] = &[
    "admin/exposition.rs",
    "admin/message.rs",
    "admin/overview.rs",
    "admin/page.rs",
    "wire/answer.rs",
    "wire/config_view.rs",
    "wire/error_code.rs",
    "wire/frame.rs",
    "wire/message.rs",
    "wire/mod.rs",
    "wire/reply.rs",
    "client/outbox.rs",
    "client/readiness.rs",
    "reload.rs",
    "route/record.rs",
    "upstream/flight.rs",
    "upstream/health.rs",
    "upstream/leader.rs",
    "zk/lag.rs",
    "zk/planner.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The source files, each with its text up to its tests.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap();
                let code = code.split("#[cfg(all(test, loom))]").next().unwrap().to_owned();
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

#[test]
fn one_file_names_the_zookeeper_crate() {
    for (path, code) in sources() {
        let names = code.contains("zookeeper::") && code.contains("use zookeeper::");
        assert_eq!(names, path == Path::new("zk/client.rs"), "{}", path.display());
    }
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
