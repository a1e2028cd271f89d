//! `meta-proxy check CONFIG`: says what is wrong with a settings file, and does nothing else.

use std::path::Path;
use std::process::ExitCode;

use crate::config;

/// 0 if the file is good, warnings or not.
pub fn run(path: &Path) -> ExitCode {
    let checked = config::read(path, true);
    let shown = path.display();
    let mut report = String::new();
    for warning in &checked.warnings {
        report += &format!("{shown}: warning: {warning}\n");
    }
    let code = match checked.settings {
        Ok(_) => {
            report += &format!("{shown}: good\n");
            ExitCode::SUCCESS
        }
        Err(faults) => {
            for fault in &faults {
                report += &format!("{shown}: {fault}\n");
            }
            ExitCode::FAILURE
        }
    };
    super::print(&report);
    code
}
