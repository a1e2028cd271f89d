//! `meta-proxy check CONFIG`: says what is wrong with a settings file, and does nothing else.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::Parser;
use lexopt::prelude::*;
use serde_json::json;

use crate::config::{self, Fault};
use crate::route::file;

pub const HELP: &str = "\
meta-proxy check: say what is wrong with a settings file, and do nothing else

Usage:
  meta-proxy check [--strict] [--json] [--routes FILE] CONFIG
  meta-proxy check [--strict] [--json] --routes FILE

  CONFIG          the settings file; - reads it from standard input
  --routes FILE   check this routes file, too; the settings then need no ZooKeeper
  --strict        a warning counts as a fault
  --json          print JSON: file, good, faults, warnings; each with line, key, what

Exit codes: 0 it is good, 1 it has faults (or warnings, with --strict), 2 arguments that mean nothing.
";

/// The arguments of the command.
pub struct Options {
    /// `-`: standard input.
    config: Option<PathBuf>,
    routes: Option<PathBuf>,
    is_strict: bool,
    json: bool,
}

/// `None`: help is wanted.
pub fn parse(parser: &mut Parser) -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options { config: None, routes: None, is_strict: false, json: false };
    while let Some(arg) = parser.next()? {
        match arg {
            Value(word) if options.config.is_none() => options.config = Some(word.into()),
            Long("routes") => options.routes = Some(parser.value()?.into()),
            Long("strict") => options.is_strict = true,
            Long("json") => options.json = true,
            Long("help") | Short('h') => return Ok(None),
            _ => return Err(arg.unexpected()),
        }
    }
    if options.config.is_none() && options.routes.is_none() {
        return Err("want a settings file".into());
    }
    Ok(Some(options))
}

/// 0 if the files are good, with warnings only if they are not counted.
pub fn run(options: &Options) -> ExitCode {
    let needs_zookeeper = options.routes.is_none();
    let (mut faults, mut warnings) = (Vec::new(), Vec::new());
    if let Some(path) = &options.config {
        let checked = match path.as_os_str() == "-" {
            true => config::read_from(io::stdin(), needs_zookeeper),
            false => config::read(path, needs_zookeeper),
        };
        warnings = checked.warnings;
        match checked.settings {
            Ok(settings) => warnings.extend(config::missing_folders(&settings)),
            Err(found) => faults = found,
        }
    }
    let bad_routes = options.routes.as_ref().and_then(|path| file::read(path).err());
    let bad_routes = bad_routes.unwrap_or_default();
    let is_bad = !faults.is_empty() || !bad_routes.is_empty();
    let is_good = !is_bad && (warnings.is_empty() || !options.is_strict);
    let config = options.config.as_ref().map(|path| path.display().to_string());
    let routes = options.routes.as_ref().map(|path| path.display().to_string());
    super::print(&match options.json {
        true => {
            let list = |faults: &[Fault]| -> Vec<_> {
                let entry = |fault: &Fault| {
                    let line = Some(fault.line).filter(|line| *line > 0);
                    json!({"line": line, "key": fault.key, "what": fault.what})
                };
                faults.iter().map(entry).collect()
            };
            let told = json!({
                "file": config,
                "good": is_good,
                "faults": list(&faults),
                "warnings": list(&warnings),
                "routes": routes,
                "routes_faults": bad_routes,
            });
            format!("{told:#}\n")
        }
        false => {
            let shown = config.as_deref().unwrap_or_default();
            let warnings = warnings.iter().map(|warning| format!("{shown}: warning: {warning}\n"));
            let faults = faults.iter().map(|fault| format!("{shown}: {fault}\n"));
            let bad_routes = bad_routes.iter().map(|fault| format!("{fault}\n"));
            let mut told: String = warnings.chain(faults).chain(bad_routes).collect();
            if is_good {
                let good = config.iter().chain(&routes);
                told.extend(good.map(|file| format!("{file}: good\n")));
            }
            told
        }
    });
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
