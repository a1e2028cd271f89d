//! The binary: see `cli` for its commands and the crate's page for how it works.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    meta_proxy::cli::run(std::env::args_os())
}
