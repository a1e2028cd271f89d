//! Facts of the system about this process, under the names of every Prometheus client library: dashboards of the Go
//! meta-proxy use them. Read from /proc; a fact that cannot be read is left out.

use std::fs;

use rustix::time::{ClockId, clock_gettime};

use super::family::Families;

const FDS: &str = "/proc/self/fd";

/// `start_s` is the start of the process in seconds since 1970.
pub fn gather(out: &mut Families, start_s: f64) {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu_s = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    out.counter_of("process_cpu_seconds", "CPU time that the process has used", cpu_s);
    if let Some(open) = open_fds() {
        out.gauge("process_open_fds", "Open file descriptors", open as f64);
    }
    let limit = rlimit::Resource::NOFILE.get_soft().ok().filter(|limit| *limit < u64::MAX);
    if let Some(limit) = limit {
        out.gauge("process_max_fds", "Most file descriptors that can be open", limit as f64);
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (key, unit, name, help) in [
        ("VmRSS:", 1024.0, "process_resident_memory_bytes", "Memory that is in RAM"),
        ("VmSize:", 1024.0, "process_virtual_memory_bytes", "Address space in use"),
        ("Threads:", 1.0, "process_threads", "Threads"),
    ] {
        if let Some(value) = field(&status, key) {
            out.gauge(name, help, value * unit);
        }
    }
    let help = "When the process started, in seconds since 1970";
    out.gauge("process_start_time_seconds", help, start_s);
}

/// Since Linux 6.2 the size of the folder is the number. Before, its entries must be counted, including the descriptor
/// that lists them.
fn open_fds() -> Option<usize> {
    match fs::metadata(FDS).ok()?.len() {
        0 => Some(fs::read_dir(FDS).ok()?.count().saturating_sub(1)),
        n => Some(n as usize),
    }
}

/// The number after a key of /proc/self/status.
fn field(status: &str, key: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::family::Value;

    #[test]
    fn all_are_there_and_sensible() {
        let mut out = Families::default();
        gather(&mut out, 7.0);
        let value = |name: &str| {
            let family = out.0.iter().find(|family| family.name == name).expect(name);
            match family.samples[0].value {
                Value::Number(number) => number,
                Value::Histogram(_) => panic!("{name} is a number"),
            }
        };
        assert!(value("process_cpu_seconds") > 0.0);
        assert!(
            value("process_open_fds") >= 3.0
                && value("process_max_fds") > value("process_open_fds")
        );
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
        assert!(value("process_threads") >= 1.0);
        assert_eq!(value("process_start_time_seconds"), 7.0);
        assert_eq!(field("VmRSS:\t  12 kB\n", "VmRSS:"), Some(12.0));
    }
}
