//! Tells the binary from which commit it is built: of the repository around it, or as META_PROXY_COMMIT says where
//! there is none, as in a source archive.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=META_PROXY_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    // The log of HEAD grows with each commit and each checkout.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"]).map(PathBuf::from);
    if let Some(log) = log.filter(|log| log.exists()) {
        println!("cargo::rerun-if-changed={}", log.display());
    }
    let given = env::var("META_PROXY_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(|| git(&["rev-parse", "--short=12", "HEAD"]));
    println!("cargo::rustc-env=META_PROXY_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    let profile = env::var("PROFILE").unwrap_or_default();
    let target = env::var("TARGET").unwrap_or_default();
    println!("cargo::rustc-env=META_PROXY_BUILD={profile} {target}");
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
