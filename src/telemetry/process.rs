//! What the process takes of the machine, as Linux tells it under `/proc/self`.
//!
//! Read by text, so that no system call needs `unsafe`. Where a file is missing or unreadable its figures are 0: a
//! scrape must not fail because of them.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Clock ticks a second in `/proc/self/stat`: fixed at 100 in Linux's interface to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// A reading.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Processor time in user and system mode.
    pub cpu_seconds: f64,
    pub cpu_user_seconds: f64,
    pub cpu_system_seconds: f64,
    pub resident_bytes: u64,
    /// The most memory that was ever resident.
    pub resident_peak_bytes: u64,
    pub virtual_bytes: u64,
    pub open_fds: u64,
    /// How many may be open; `u64::MAX` without a limit.
    pub max_fds: u64,
    /// Since the Unix epoch, in the wall clock's present opinion.
    pub start_time_seconds: f64,
}

/// Ends the process at once with this status. `std::process::exit` first runs what libraries left for the end, and
/// RocksDB's part of that aborts or hangs when another thread is in RocksDB then. A program that takes this one's
/// place ends its threads before anything else happens; where there is none, the ordinary way is left.
pub fn exit_now(status: i32) -> ! {
    // What cannot be printed any more was not promised.
    let _ = std::io::stdout().flush();
    let _ = Command::new("/bin/sh").args(["-c", &format!("exit {status}")]).env_clear().exec();
    std::process::exit(status)
}

/// Reads the figures now; a few small files, tens of microseconds.
#[must_use]
pub fn usage() -> Usage {
    let mut usage = Usage::default();
    read_status(&read("/proc/self/status"), &mut usage);
    read_stat(&read("/proc/self/stat"), &read("/proc/stat"), &mut usage);
    usage.open_fds = fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64);
    usage.max_fds = max_fds(&read("/proc/self/limits"));
    usage
}

/// Bytes of memory the machine has, or 0 when it does not say.
#[must_use]
pub fn machine_memory_bytes() -> u64 {
    kilobytes(&read("/proc/meminfo"), "MemTotal:")
}

/// Bytes of memory that this process may take: what the machine has, or what its cgroup or one above is given, if
/// that is less. 0 when nothing says.
#[must_use]
pub fn memory_limit_bytes() -> u64 {
    let within = cgroup_files(&read("/proc/self/cgroup"))
        .into_iter()
        .filter_map(|file| read(&file).trim().parse().ok());
    let machine = Some(machine_memory_bytes()).filter(|bytes| *bytes > 0);
    within.chain(machine).filter(|bytes| *bytes > 0).min().unwrap_or(0)
}

/// The files that say how much memory the cgroups of `/proc/self/cgroup` are given. In a container its own group is
/// where the root is.
fn cgroup_files(groups: &str) -> Vec<String> {
    const ROOT: &str = "/sys/fs/cgroup";
    let mut files = vec![format!("{ROOT}/memory.max"), format!("{ROOT}/memory/memory.limit_in_bytes")];
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, name) = match controllers {
            "" => (ROOT.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (format!("{ROOT}/memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        while !path.is_empty() {
            files.push(format!("{root}{path}/{name}"));
            path = path.rsplit_once('/').map_or("", |(above, _)| above);
        }
    }
    files
}

/// Lets the allocator give back to the system what was freed more than a second ago. It does so when a thread ends,
/// and otherwise only when somebody asks it for memory often enough, which an idle node does not.
pub fn give_memory_back() {
    // A process that cannot have another thread has other worries.
    let _ = std::thread::Builder::new().name("give-back".to_owned()).spawn(|| {
        drop(std::hint::black_box(Box::new(0_u64)));
    });
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn read_status(status: &str, usage: &mut Usage) {
    usage.resident_bytes = kilobytes(status, "VmRSS:");
    usage.resident_peak_bytes = kilobytes(status, "VmHWM:");
    usage.virtual_bytes = kilobytes(status, "VmSize:");
}

/// The figure of a line such as `VmRSS:     5120 kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let figure: u64 = line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
    figure.saturating_mul(1024)
}

fn read_stat(stat: &str, machine: &str, usage: &mut Usage) {
    // The second field is the program's name in parentheses and may hold blanks: fields are counted after it.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3).and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0);
    // Numbered as in proc(5): 14 user time, 15 system time, 22 start after boot.
    usage.cpu_user_seconds = ticks(14) / TICKS_PER_SECOND;
    usage.cpu_system_seconds = ticks(15) / TICKS_PER_SECOND;
    usage.cpu_seconds = usage.cpu_user_seconds + usage.cpu_system_seconds;
    let booted = machine.lines().find_map(|line| line.strip_prefix("btime "));
    let booted: f64 = booted.and_then(|word| word.trim().parse().ok()).unwrap_or(0.0);
    usage.start_time_seconds = booted + ticks(22) / TICKS_PER_SECOND;
}

fn max_fds(limits: &str) -> u64 {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap_or_default();
    match line.split_whitespace().next() {
        Some("unlimited") => u64::MAX,
        Some(figure) => figure.parse().unwrap_or(0),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let usage = usage();
        assert!(usage.resident_bytes > 1 << 20);
        assert!(usage.virtual_bytes >= usage.resident_bytes);
        assert!(usage.resident_peak_bytes >= 1 << 20);
        assert!(usage.open_fds >= 3);
        assert!(usage.max_fds >= usage.open_fds);
        assert!(usage.start_time_seconds > 1_600_000_000.0);
        assert!(machine_memory_bytes() > usage.resident_bytes);
    }

    #[test]
    fn a_program_name_with_blanks_and_parentheses_shifts_no_field() {
        let stat = "7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 150 50 0 0 20 0 9 0 4200 1 1";
        let mut usage = Usage::default();
        read_stat(stat, "cpu 1 2\nbtime 1000\n", &mut usage);
        assert_eq!((usage.cpu_user_seconds, usage.cpu_system_seconds), (1.5, 0.5));
        assert_eq!(usage.start_time_seconds, 1042.0);
    }

    #[test]
    fn a_cgroup_is_looked_for_up_to_the_root() {
        let files = cgroup_files("0::/a.slice/b.service\n");
        assert_eq!(
            files[2..],
            ["/sys/fs/cgroup/a.slice/b.service/memory.max", "/sys/fs/cgroup/a.slice/memory.max"]
        );
        let files = cgroup_files("4:cpu,cpuacct:/x\n3:memory:/docker/7\n0::/\n");
        assert_eq!(
            files[2..],
            [
                "/sys/fs/cgroup/memory/docker/7/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/docker/memory.limit_in_bytes"
            ]
        );
        let limit = memory_limit_bytes();
        assert!(limit > 0 && limit <= machine_memory_bytes());
    }

    #[test]
    fn what_cannot_be_read_is_zero() {
        let mut usage = Usage::default();
        read_stat("", "", &mut usage);
        read_status("VmRSS: many kB", &mut usage);
        assert_eq!(usage, Usage::default());
        assert_eq!(max_fds(""), 0);
    }
}
