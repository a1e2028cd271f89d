//! `meta-proxy check CONFIG`: says what is wrong with a settings file, and does nothing else.

use std::path::Path;
use std::process::ExitCode;

use crate::config;

/// 0 if the file is good, warnings or not.
pub fn run(path: &Path) -> ExitCode {
    let checked = config::read(path, true);
    let shown = path.display();
    let mut report = String::new();
    let missing = checked.settings.as_ref().map(config::missing_folders).unwrap_or_default();
    for warning in checked.warnings.iter().chain(&missing) {
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
