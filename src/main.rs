//! The binary: `cli` has its commands, the page of the crate explains how it works.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    meta_proxy::cli::run(std::env::args_os())
}
