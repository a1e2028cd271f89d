//! Which build this is.

pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit of the build, 12 digits; `unknown` outside a repository.
pub const COMMIT: &str = env!("META_PROXY_COMMIT");
/// Profile and target: `release x86_64-unknown-linux-gnu`.
pub const BUILD: &str = env!("META_PROXY_BUILD");

/// The text that `--version` prints.
pub fn line() -> String {
    format!("meta-proxy {VERSION} (commit {COMMIT}, {BUILD})\n")
}
