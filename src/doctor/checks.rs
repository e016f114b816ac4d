//! The checks, by subject. Each looks at one thing and judges it alone; none of
//! them measures.

mod cpu;
mod kernel;
mod network;
mod storage;
mod uring;

pub(super) use kernel::{BUSY_PERCENT, waiting_for_a_core};
pub(super) use storage::DataDir;

use super::Cores;
use super::check::Check;
use crate::io::probe::Sys;

/// Everything, in the order in which it is reported.
pub(super) fn all(sys: &Sys, data: &DataDir, cores: &Cores) -> Vec<Check> {
    let mut checks = kernel::version(sys);
    checks.extend(uring::checks());
    checks.extend(storage::checks(sys, data));
    checks.extend(kernel::limits());
    checks.extend(kernel::load_and_memory(sys));
    checks.extend(network::checks(sys));
    checks.extend(cpu::checks(sys, cores));
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Verdict;

    /// As in a container that shows neither `/proc` nor `/sys`.
    #[test]
    fn without_proc_and_sys_nothing_is_held_against_the_machine() {
        let empty = tempfile::tempdir().unwrap();
        let sys = Sys::at(empty.path());
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::find(&sys, dir.path());
        let cores = Cores { server: Some(0), client: Some(0) };
        for check in all(&sys, &data, &cores) {
            let own = ["cores", "RLIMIT_MEMLOCK", "RLIMIT_NOFILE"].contains(&check.name.as_str());
            assert!(own || check.ok, "{check:?}");
            assert_ne!(check.verdict, Verdict::Required, "{check:?}");
        }
    }

    #[test]
    fn every_check_says_why_and_how() {
        let sys = Sys::default();
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::find(&sys, dir.path());
        let checks = all(&sys, &data, &Cores { server: Some(0), client: Some(1) });
        assert!(checks.len() > 25, "only {} checks", checks.len());
        let mut names: Vec<_> = checks.iter().map(|check| &check.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), checks.len(), "names are unique");
        for check in &checks {
            let texts = [&check.name, &check.found, &check.wanted, &check.why, &check.how];
            assert!(texts.iter().all(|text| !text.is_empty()), "{check:?}");
        }
    }
}
