//! Which file system a path lies on, from the kernel's mount table.

use std::path::{Path, PathBuf};

/// The mount that holds a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Type of file system, as the kernel calls it: `ext4`, `xfs`, `overlay`.
    pub fs: String,
    /// What is mounted: a device, or a name for a file system without one.
    pub source: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Options, comma-separated, each once: of the mount, then of the file system.
    pub options: String,
}

impl Mount {
    /// True when the file system keeps its contents in memory.
    pub fn in_memory(&self) -> bool {
        matches!(self.fs.as_str(), "tmpfs" | "ramfs" | "devtmpfs")
    }

    /// True when the options forbid flushes.
    pub fn without_barriers(&self) -> bool {
        self.options.split(',').any(|option| matches!(option, "nobarrier" | "barrier=0"))
    }
}

/// Finds the mount that `path` (which must exist) lies on; `None` where
/// `/proc` is missing.
pub fn mount_of(path: &Path) -> Option<Mount> {
    let path = path.canonicalize().ok()?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    find(&table, &path)
}

/// Picks the longest mount point that `path` lies under; of equal ones the
/// last, which covers the others.
fn find(table: &str, path: &Path) -> Option<Mount> {
    table
        .lines()
        .filter_map(parse)
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())
}

/// One line of `/proc/self/mountinfo`, proc_pid_mountinfo(5):
/// `36 35 98:0 /root /point options optional... - fs source options`.
fn parse(line: &str) -> Option<Mount> {
    let (mount, fs) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(4);
    let (point, options) = (mount.next()?, mount.next()?);
    let mut fs = fs.split(' ');
    let (kind, source, more) = (fs.next()?, fs.next()?, fs.next().unwrap_or(""));
    let mut options: Vec<_> = options.split(',').collect();
    options.extend(more.split(',').filter(|option| !option.is_empty()));
    let mut seen = Vec::with_capacity(options.len());
    options.retain(|option| {
        !seen.contains(option) && {
            seen.push(*option);
            true
        }
    });
    Some(Mount {
        fs: kind.to_owned(),
        source: unescape(source),
        point: PathBuf::from(unescape(point)),
        options: options.join(","),
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    ["\\040 ", "\\011\t", "\\012\n", "\\134\\"]
        .iter()
        .fold(field.to_owned(), |text, pair| text.replace(&pair[..4], &pair[4..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 22 0:25 / /tmp rw,nosuid - tmpfs tmpfs rw,size=1g
31 22 8:17 / /srv/my\\040data rw,noatime master:2 - xfs /dev/sdb1 rw,usrquota
32 22 8:33 / /tmp rw - ext4 /dev/sdc1 rw
";

    #[test]
    fn the_deepest_mount_wins_and_of_equal_ones_the_last() {
        let fs = |path| find(TABLE, Path::new(path)).unwrap();
        assert_eq!(fs("/home/x").source, "/dev/vda");
        assert_eq!(fs("/srv/my data/broker").fs, "xfs");
        assert_eq!(fs("/srv/my data/broker").options, "rw,noatime,usrquota");
        assert_eq!(fs("/tmp/x").source, "/dev/sdc1");
        assert_eq!(fs("/tmpfile").source, "/dev/vda", "a name is no path prefix");
    }

    #[test]
    fn a_line_in_another_shape_is_passed_over() {
        assert_eq!(find("nonsense\n1 2 3\n", Path::new("/")), None);
    }
}
