//! Kernel version, limits of the process, memory settings.

use crate::doctor::check::{Check, Verdict};
use crate::io::pin::available_cpus;
use crate::io::probe::Sys;
use crate::io::probe::{Resource, effective_capability, limit};
use crate::limits::{
    DEFAULT_MAX_CONNECTIONS, DEFAULT_MEMORY, OPEN_FILES_PER_SHARD, open_files_beside_connections,
};

/// Number of the capability that lifts `RLIMIT_MEMLOCK`.
const CAP_IPC_LOCK: u32 = 14;

pub(super) fn version(sys: &Sys) -> Vec<Check> {
    let release = sys.sysctl("kernel.osrelease");
    let new_enough = release.as_deref().and_then(parse_release).is_some_and(|v| v >= (6, 1));
    let disabled = sys.sysctl("kernel.io_uring_disabled");
    let off = disabled.as_deref().is_some_and(|v| v != "0");
    vec![
        Check::new("kernel", "6.1 or later")
            .found(release, Verdict::advice_unless(new_enough))
            .why("the first with everything that Ringbolt uses of io_uring")
            .how("run a newer kernel; what counts is that the io_uring checks pass"),
        Check::new("kernel.io_uring_disabled", "0")
            // Whether the setting hits this user is seen where a ring is made.
            .found(disabled, Verdict::advice_unless(!off))
            .why("1 keeps io_uring from unprivileged users outside kernel.io_uring_group, 2 from all")
            .how("sysctl -w kernel.io_uring_disabled=0"),
    ]
}

/// Share of the last ten seconds, in percent, in which some thread waited for a
/// core; `None` where the kernel does not account for it.
pub(crate) fn waiting_for_a_core(sys: &Sys) -> Option<f64> {
    let text = sys.text("/proc/pressure/cpu")?;
    let some = text.lines().find(|line| line.starts_with("some "))?;
    some.split_whitespace().find_map(|field| field.strip_prefix("avg10=")?.parse().ok())
}

/// Share of waiting from which other programs are in the way, in percent: what
/// an idle machine shows is below it.
pub(crate) const BUSY_PERCENT: f64 = 10.0;

fn contention(sys: &Sys) -> Check {
    let waiting = waiting_for_a_core(sys);
    let good = waiting.is_some_and(|percent| percent < BUSY_PERCENT);
    Check::new("contention for cores", format!("below {BUSY_PERCENT} % of the time"))
        .found(waiting.map(|percent| format!("{percent} % (last 10 s)")), Verdict::advice_unless(good))
        .why(
            "a thread that is woken for a completion waits until another program's time is up, which \
              takes milliseconds; so does the kernel's own, which flushes",
        )
        .how(
            "keep other programs off the broker's cores and the disk's interrupt core (AllowedCPUs= in their \
             systemd units, cpusets); nice has no effect across sessions while \
             kernel.sched_autogroup_enabled is 1",
        )
}

/// `6.18.44-fc` to (6, 18).
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(super) fn limits() -> Vec<Check> {
    let locked = limit(Resource::LockedMemory);
    let exempt = effective_capability(CAP_IPC_LOCK);
    let found = if exempt { format!("{locked}, lifted by CAP_IPC_LOCK") } else { locked.to_string() };
    let cores = available_cpus().map_or(1, |cpus| cpus.len());
    let needed = DEFAULT_MEMORY * cores as u64;
    let files = limit(Resource::OpenFiles);
    let wanted_files = (DEFAULT_MAX_CONNECTIONS + open_files_beside_connections(cores)) as u64;
    let of_files = format!("--max-connections, and {OPEN_FILES_PER_SHARD} per shard");
    vec![
        Check::new("RLIMIT_MEMLOCK", format!("{needed} or more (--memory once per core)"))
            .found(Some(found), Verdict::advice_unless(exempt || locked.allows(needed)))
            .why("memory registered with io_uring is locked, and counts once for each core that registers it")
            .how(
                "ulimit -l unlimited; LimitMEMLOCK=infinity in a systemd unit; CAP_IPC_LOCK; \
                  without, serve runs on unregistered memory",
            ),
        Check::new("RLIMIT_NOFILE", format!("{wanted_files} or more ({of_files})"))
            .found(Some(files), Verdict::advice_unless(files.allows(wanted_files)))
            .why("each connection is an open file, and so are a shard's latest segments; with less, fewer connect")
            .how("ulimit -n 65536; LimitNOFILE=65536 in a systemd unit"),
    ]
}

pub(super) fn load_and_memory(sys: &Sys) -> Vec<Check> {
    vec![contention(sys), huge_pages(sys), dirty_pages(sys), swapping(sys)]
}

fn huge_pages(sys: &Sys) -> Check {
    let mode = sys.chosen("/sys/kernel/mm/transparent_hugepage/enabled");
    let reserved = sys.sysctl("vm.nr_hugepages").unwrap_or_else(|| "unknown".into());
    let good = mode.as_deref().is_some_and(|mode| mode != "never");
    Check::new("huge pages", "transparent: madvise or always")
        .found(
            mode.map(|mode| format!("transparent: {mode}; vm.nr_hugepages {reserved}")),
            Verdict::advice_unless(good),
        )
        .why(
            "a large direct write costs the kernel an entry for each page of its buffer; reserved \
              pages (vm.nr_hugepages) are not needed",
        )
        .how("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")
}

fn dirty_pages(sys: &Sys) -> Check {
    let ratio = |name: &str| sys.sysctl(&format!("vm.{name}"));
    let (background, most) = (ratio("dirty_background_ratio"), ratio("dirty_ratio"));
    let number = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<u32>().ok());
    let good = number(&background).is_some_and(|v| v <= 10) && number(&most).is_some_and(|v| v <= 20);
    Check::new("vm.dirty_background_ratio / vm.dirty_ratio", "at most 10 / 20")
        .found(
            background.zip(most).map(|(background, most)| format!("{background} / {most}")),
            Verdict::advice_unless(good),
        )
        .why(
            "the log writes around the page cache; what other programs leave in it is written out in \
              bursts that the log's writes wait behind",
        )
        .how("sysctl -w vm.dirty_background_ratio=5 vm.dirty_ratio=10")
}

fn swapping(sys: &Sys) -> Check {
    let swappiness = sys.sysctl("vm.swappiness");
    // One line per area under a heading.
    let areas = sys.text("/proc/swaps").map(|text| text.lines().skip(1).count());
    let low = swappiness.as_deref().and_then(|text| text.parse::<u32>().ok()).is_some_and(|v| v <= 10);
    Check::new("vm.swappiness", "at most 10, or no swap")
        .found(
            swappiness.zip(areas).map(|(value, areas)| match areas {
                0 => format!("{value}, no swap"),
                n => format!("{value}, {n} swap areas"),
            }),
            Verdict::advice_unless(low || areas == Some(0)),
        )
        .why(
            "registered buffers stay in memory, but the rest of the broker can be swapped out, and \
              then a request waits for the disk",
        )
        .how("sysctl -w vm.swappiness=1, or swapoff -a")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert_eq!(parse_release("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(parse_release("5.15.0-1-amd64"), Some((5, 15)));
        assert!(parse_release("6.2-rc1") < parse_release("6.12.0"));
        assert_eq!(parse_release("unknown"), None);
    }

    #[test]
    fn waiting_threads_are_read_from_the_pressure_file() {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::at(dir.path());
        std::fs::create_dir_all(sys.path("/proc/pressure")).unwrap();
        for (percent, ok) in [("0.35", true), ("98.40", false)] {
            let text = format!("some avg10={percent} avg60=1.00 avg300=0.10 total=7\nfull avg10=0.00\n");
            std::fs::write(sys.path("/proc/pressure/cpu"), text).unwrap();
            assert_eq!(waiting_for_a_core(&sys), Some(percent.parse().unwrap()));
            assert_eq!(contention(&sys).ok, ok);
        }
    }

    #[test]
    fn swap_matters_only_when_there_is_some() {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::at(dir.path());
        std::fs::create_dir_all(sys.path("/proc/sys/vm")).unwrap();
        std::fs::write(sys.path("/proc/sys/vm/swappiness"), "60").unwrap();
        std::fs::write(sys.path("/proc/swaps"), "Filename Type Size\n").unwrap();
        assert!(swapping(&sys).ok);
        std::fs::write(sys.path("/proc/swaps"), "Filename Type Size\n/dev/sda2 partition 1\n").unwrap();
        assert!(!swapping(&sys).ok);
        std::fs::write(sys.path("/proc/sys/vm/swappiness"), "1").unwrap();
        assert!(swapping(&sys).ok);
    }
}
