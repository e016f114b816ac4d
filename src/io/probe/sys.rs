//! Reading `/proc` and `/sys`, where any file may be missing: containers hide
//! them, and kernels differ.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The two trees, under a root that tests replace.
#[derive(Clone, Debug)]
pub struct Sys {
    root: PathBuf,
}

impl Default for Sys {
    /// This machine's.
    fn default() -> Self {
        Sys { root: PathBuf::from("/") }
    }
}

impl Sys {
    /// A tree of one's own.
    #[cfg(test)]
    pub(crate) fn at(root: &Path) -> Self {
        Sys { root: root.to_owned() }
    }

    /// Where a path of the tree really is.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text without the space around it; `None` when it cannot be
    /// read.
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let path = self.path(path.as_ref().to_str()?);
        Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
    }

    /// A file that holds one value.
    pub fn value<T: FromStr>(&self, path: impl AsRef<Path>) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    /// A sysctl by its dotted name.
    pub fn sysctl(&self, name: &str) -> Option<String> {
        self.text(format!("/proc/sys/{}", name.replace('.', "/")))
    }

    /// The choice in brackets of a file like `always [madvise] never`.
    pub fn chosen(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = self.text(path)?;
        let (_, rest) = text.split_once('[')?;
        Some(rest.split_once(']')?.0.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::at(dir.path());
        assert_eq!(sys.text("/proc/version"), None);
        assert_eq!(sys.sysctl("vm.swappiness"), None);
        assert_eq!(sys.chosen("/sys/kernel/mm/transparent_hugepage/enabled"), None);
    }

    #[test]
    fn values_choices_and_sysctls_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::at(dir.path());
        std::fs::create_dir_all(sys.path("/proc/sys/vm")).unwrap();
        std::fs::write(sys.path("/proc/sys/vm/swappiness"), "60\n").unwrap();
        std::fs::write(sys.path("/proc/choice"), "none [mq-deadline] bfq\n").unwrap();
        assert_eq!(sys.sysctl("vm.swappiness").as_deref(), Some("60"));
        assert_eq!(sys.value::<u32>("/proc/sys/vm/swappiness"), Some(60));
        assert_eq!(sys.chosen("/proc/choice").as_deref(), Some("mq-deadline"));
        assert_eq!(sys.value::<u32>("/proc/choice"), None);
    }
}
