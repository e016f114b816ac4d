//! Processors: how many, how fast they wake, what they share.

use crate::doctor::Cores;
use crate::doctor::check::{Check, Verdict};
use crate::io::pin::available_cpus;
use crate::io::probe::Sys;

pub(super) fn checks(sys: &Sys, cores: &Cores) -> Vec<Check> {
    vec![available(), siblings(sys, cores), governor(sys), idling(sys), clock(sys)]
}

fn available() -> Check {
    let allowed = available_cpus().unwrap_or_default().len();
    // Unlike the affinity mask, this accounts for a container's quota.
    let usable = std::thread::available_parallelism().map_or(allowed, usize::from);
    let found = if usable < allowed {
        format!("{allowed}, with a quota of about {usable}")
    } else {
        allowed.to_string()
    };
    Check::new("cores", "2 or more, without a quota")
        .found((allowed > 0).then_some(found), Verdict::advice_unless(allowed >= 2 && usable >= allowed))
        .why(
            "each shard's core has a thread of its own; a quota (cpu.max) stops all threads for the rest \
              of its period once it is used up, so some acks wait for tens of milliseconds",
        )
        .how("give the container whole cores (a cpuset) instead of a share of their time")
}

fn siblings(sys: &Sys, cores: &Cores) -> Check {
    let active = sys.text("/sys/devices/system/cpu/smt/active");
    let shared = cores.server.zip(cores.client).is_some_and(|(server, client)| {
        let path = format!("/sys/devices/system/cpu/cpu{server}/topology/thread_siblings_list");
        server == client || sys.text(path).is_some_and(|list| in_list(&list, client))
    });
    let found = active.map(|active| match (active.as_str(), shared) {
        ("1", true) => "on; broker and client share one",
        ("1", false) => "on",
        (_, true) => "off; broker and client share a core",
        (_, false) => "off",
    });
    Check::new("simultaneous multithreading", "off, or one broker thread per physical core")
        .found(found, Verdict::advice_unless(!shared))
        .why("two threads on one physical core slow each other down")
        .how(
            "choose cores (serve --cores, doctor --server-core and --client-core) that do not stand \
              together in /sys/devices/system/cpu/cpu*/topology/thread_siblings_list",
        )
}

/// Whether a list of cores like `0-3,8` names one.
fn in_list(list: &str, core: usize) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let bounds = first.parse::<usize>().ok().zip(last.parse::<usize>().ok());
        bounds.is_some_and(|(first, last)| (first..=last).contains(&core))
    })
}

fn governor(sys: &Sys) -> Check {
    let found = match sys.text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") {
        // A machine that shows its processors, but no way to set their pace.
        None if sys.path("/sys/devices/system/cpu/cpu0").is_dir() => {
            Some("none: the pace is not ours".into())
        }
        found => found,
    };
    let slow = found.as_deref().is_some_and(|name| matches!(name, "powersave" | "ondemand" | "conservative"));
    Check::new("CPU governor", "performance")
        .found(found, Verdict::advice_unless(!slow))
        .why("a broker that waits for the disk looks idle, so its cores are slowed down")
        .how("cpupower frequency-set -g performance")
}

/// How a core that sleeps is woken. In a virtual machine that can take longer
/// than the flush that is waited for.
fn idling(sys: &Sys) -> Check {
    let driver = sys.text("/sys/devices/system/cpu/cpuidle/current_driver");
    let poll: Option<u64> = sys.value("/sys/module/haltpoll/parameters/guest_halt_poll_ns");
    let halts = driver.as_deref() == Some("haltpoll") && poll == Some(0);
    let found = driver.map(|driver| match poll {
        Some(ns) if driver == "haltpoll" => format!("haltpoll, polls for {ns} ns before it halts"),
        _ => driver,
    });
    Check::new("idle cores", "haltpoll of 200000 ns in a virtual machine; shallow states elsewhere")
        .found(found, Verdict::advice_unless(!halts))
        .why(
            "a core that was halted is woken by the hypervisor, which takes tens of microseconds at \
              each end of a round trip",
        )
        .how(
            "echo 200000 > /sys/module/haltpoll/parameters/guest_halt_poll_ns; on hardware, limit idle \
              states (cpupower idle-set -D 10); or serve --busy-poll",
        )
}

fn clock(sys: &Sys) -> Check {
    let found = sys.text("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let slow = found
        .as_deref()
        .is_some_and(|name| matches!(name, "hpet" | "acpi_pm" | "jiffies" | "refined-jiffies"));
    Check::new("clock source", "tsc, or the hypervisor's own")
        .found(found, Verdict::advice_unless(!slow))
        .why("every turn of a core's loop reads the clock; these cost a system call or a device access")
        .how("look in the kernel's log for why it distrusts the tsc; clocksource=tsc on its command line")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read_with_their_ranges() {
        assert!(in_list("0-3,8", 2) && in_list("0-3,8", 8) && in_list("1", 1));
        assert!(!in_list("0-3,8", 7) && !in_list("", 0));
    }

    #[test]
    fn a_guest_that_halts_at_once_is_advised_to_poll() {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::at(dir.path());
        let driver = sys.path("/sys/devices/system/cpu/cpuidle/current_driver");
        let poll = sys.path("/sys/module/haltpoll/parameters/guest_halt_poll_ns");
        for path in [&driver, &poll] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        std::fs::write(&driver, "haltpoll\n").unwrap();
        for (ns, ok) in [("0\n", false), ("200000\n", true)] {
            std::fs::write(&poll, ns).unwrap();
            assert_eq!(idling(&sys).ok, ok);
        }
    }
}
