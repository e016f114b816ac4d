//! The block device under a directory, as `/sys` describes it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::sys::Sys;

/// How deep stacks of mapped devices are followed: LVM on LUKS on RAID is 3.
const MAX_DEPTH: usize = 8;

/// A block device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// Name under `/sys/block`: of the whole device when the directory lies on
    /// a partition.
    pub name: String,
    /// Names of the devices below a mapped one (LVM, LUKS, RAID), lowest level
    /// only; the device itself when it is not mapped.
    pub lowest: Vec<String>,
    /// True when the device says that its cache loses its contents with the
    /// power; `None` when it does not say.
    pub volatile_cache: Option<bool>,
    /// True when it makes a single write durable at once (FUA).
    pub fua: bool,
    /// True when a hypervisor makes it up.
    pub emulated: bool,
}

impl Device {
    /// Finds the device with this number; `None` for file systems without one
    /// device (tmpfs, overlayfs, btrfs, NFS) and where `/sys` is missing.
    pub fn find(sys: &Sys, major: u32, minor: u32) -> Option<Device> {
        let link = sys.path(&format!("/sys/dev/block/{major}:{minor}"));
        let mut path = link.canonicalize().ok()?;
        // A partition's folder lies in its device's, which has the queue.
        if !path.join("queue").is_dir() {
            path = path.parent()?.to_owned();
        }
        if !path.join("queue").is_dir() {
            return None;
        }
        let name = name_of(&path)?;
        let cache = sys.text(format!("/sys/block/{name}/queue/write_cache"));
        let mut lowest = Vec::new();
        collect_lowest(&path, MAX_DEPTH, &mut lowest);
        // The first core's flags speak for all.
        let hypervisor = sys.text("/proc/cpuinfo").is_some_and(|text| {
            let flags = text.lines().find(|line| line.starts_with("flags"));
            flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"))
        });
        let emulated = hypervisor || path.to_string_lossy().contains("virtio");
        let volatile_cache = cache.map(|cache| cache == "write back");
        let fua = sys.value::<u8>(format!("/sys/block/{name}/queue/fua")) == Some(1);
        Some(Device { name, lowest, volatile_cache, fua, emulated })
    }

    /// The device that `path` lies on, as [`find`](Self::find).
    pub fn under(sys: &Sys, path: &Path) -> Option<Device> {
        let number = std::fs::metadata(path).ok()?.dev();
        Device::find(sys, libc::major(number), libc::minor(number))
    }

    /// False when a durable write is one request to the device; true when the
    /// kernel has to send a flush after it.
    pub fn needs_flushes(&self) -> bool {
        self.volatile_cache != Some(false) && !self.fua
    }
}

impl Device {
    /// The cores that take its interrupts, ascending; empty when that cannot be
    /// told, as for disks behind a controller.
    pub fn interrupt_cores(&self, sys: &Sys) -> Vec<usize> {
        let table = sys.text("/proc/interrupts").unwrap_or_default();
        let parents = self
            .lowest
            .iter()
            .filter_map(|name| name_of(&sys.path(&format!("/sys/block/{name}/device")).canonicalize().ok()?));
        let queues: Vec<_> =
            parents.flat_map(|parent| [format!("{parent}-req."), format!("{parent}q")]).collect();
        let mut cores: Vec<usize> = table
            .lines()
            .filter(|line| {
                let action = line.split_whitespace().last().unwrap_or_default();
                queues
                    .iter()
                    .any(|queue| action.strip_prefix(queue).is_some_and(|n| n.parse::<u32>().is_ok()))
            })
            .filter_map(|line| line.split(':').next()?.trim().parse::<u32>().ok())
            .filter_map(|irq| sys.value(format!("/proc/irq/{irq}/effective_affinity_list")))
            .collect();
        cores.sort_unstable();
        cores.dedup();
        cores
    }
}

fn name_of(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

fn collect_lowest(path: &Path, depth: usize, found: &mut Vec<String>) {
    let below: Vec<PathBuf> = std::fs::read_dir(path.join("slaves"))
        .map(|entries| entries.flatten().filter_map(|entry| entry.path().canonicalize().ok()).collect())
        .unwrap_or_default();
    if below.is_empty() || depth == 0 {
        let whole = if path.join("queue").is_dir() { Some(path) } else { path.parent() };
        let name = whole.and_then(name_of).filter(|name| !found.contains(name));
        found.extend(name);
        return;
    }
    for device in below {
        collect_lowest(&device, depth - 1, found);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A tree with sda, its partition sda2, and dm-0 on top of that.
    fn tree(root: &Path) -> Sys {
        let devices = root.join("sys/devices");
        for folder in ["sda/queue", "sda/sda2", "dm-0/queue", "dm-0/slaves"] {
            std::fs::create_dir_all(devices.join(folder)).unwrap();
        }
        symlink(devices.join("sda/sda2"), devices.join("dm-0/slaves/sda2")).unwrap();
        for folder in ["sys/dev/block", "sys/block"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        for (link, target) in [
            ("sys/dev/block/8:2", "sda/sda2"),
            ("sys/dev/block/253:0", "dm-0"),
            ("sys/block/sda", "sda"),
            ("sys/block/dm-0", "dm-0"),
        ] {
            symlink(devices.join(target), root.join(link)).unwrap();
        }
        std::fs::write(devices.join("sda/queue/write_cache"), "write back\n").unwrap();
        std::fs::write(devices.join("dm-0/queue/write_cache"), "write through\n").unwrap();
        Sys::at(root)
    }

    #[test]
    fn a_partition_leads_to_its_device() {
        let dir = tempfile::tempdir().unwrap();
        let found = Device::find(&tree(dir.path()), 8, 2).unwrap();
        assert_eq!((found.name.as_str(), found.volatile_cache), ("sda", Some(true)));
        assert_eq!(found.lowest, ["sda"]);
        assert!(found.needs_flushes());
    }

    #[test]
    fn a_device_with_fua_or_without_a_volatile_cache_needs_no_flushes() {
        let dir = tempfile::tempdir().unwrap();
        let sys = tree(dir.path());
        assert!(!Device::find(&sys, 253, 0).unwrap().needs_flushes(), "write through");
        let fua = |text: &str| {
            std::fs::write(sys.path("/sys/devices/sda/queue/fua"), text).unwrap();
            Device::find(&sys, 8, 2).unwrap()
        };
        assert!(fua("0\n").needs_flushes());
        assert!(!fua("1\n").needs_flushes());
    }

    #[test]
    fn a_mapped_device_leads_to_what_lies_below() {
        let dir = tempfile::tempdir().unwrap();
        let found = Device::find(&tree(dir.path()), 253, 0).unwrap();
        assert_eq!((found.name.as_str(), found.volatile_cache), ("dm-0", Some(false)));
        assert_eq!(found.lowest, ["sda"]);
    }

    #[test]
    fn the_cores_of_a_disks_queues_are_found_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let sys = tree(dir.path());
        std::fs::create_dir_all(sys.path("/sys/devices/virtio1")).unwrap();
        symlink(sys.path("/sys/devices/virtio1"), sys.path("/sys/devices/sda/device")).unwrap();
        let found = Device::find(&sys, 8, 2).unwrap();
        assert!(found.interrupt_cores(&sys).is_empty(), "nothing to be read");
        let table = "  CPU0 CPU1\n 35: 0 1 PCI-MSIX 0-edge virtio1-config\n 36: 0 9 PCI-MSIX 1-edge virtio1-req.0\n\
                     37: 9 0 PCI-MSIX 2-edge virtio1-req.1\n 46: 3 0 PCI-MSIX 1-edge virtio11-req.0\n";
        std::fs::create_dir_all(sys.path("/proc")).unwrap();
        std::fs::write(sys.path("/proc/interrupts"), table).unwrap();
        for (irq, core) in [(35, 5), (36, 1), (37, 0), (46, 7)] {
            let folder = sys.path(&format!("/proc/irq/{irq}"));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("effective_affinity_list"), format!("{core}\n")).unwrap();
        }
        assert_eq!(found.interrupt_cores(&sys), [0, 1]);
    }

    #[test]
    fn no_device_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Device::find(&tree(dir.path()), 0, 25), None);
    }
}
