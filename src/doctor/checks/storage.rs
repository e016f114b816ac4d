//! The data directory, its file system and its device.

use std::path::{Path, PathBuf};

use crate::doctor::check::{Check, Verdict};
use crate::io::probe::Device;
use crate::io::probe::Sys;
use crate::io::probe::{Mount, StorageError, StorageSupport, mount_of, probe_storage};

/// Requests that a device's queue should take: the commits in flight of some
/// shards, reads, and segments being zeroed.
const QUEUE_DEPTH: u64 = 64;

/// Where the log will lie.
pub(crate) struct DataDir {
    /// As asked for, or the nearest folder above that exists.
    pub path: PathBuf,
    /// Its mount.
    pub mount: Option<Mount>,
    /// Its device.
    pub device: Option<Device>,
    support: Result<StorageSupport, StorageError>,
}

impl DataDir {
    /// Looks a directory up. One that `serve` has yet to make is judged by the
    /// folder that it will be made in.
    pub fn find(sys: &Sys, wanted: &Path) -> DataDir {
        let absolute = std::path::absolute(wanted).unwrap_or_else(|_| wanted.to_owned());
        let path = absolute.ancestors().find(|path| path.is_dir()).unwrap_or(&absolute).to_owned();
        let device = Device::under(sys, &path);
        DataDir { mount: mount_of(&path), device, support: probe_storage(&path), path }
    }

    /// True when `serve` runs here only with --allow-buffered.
    pub fn lacks_direct_io(&self) -> bool {
        self.support.as_ref().is_err_and(StorageError::leaves_buffered)
    }

    /// True when the file system keeps its contents in memory.
    pub fn in_memory(&self) -> bool {
        self.mount.as_ref().is_some_and(Mount::in_memory)
    }

    /// True when the mount options forbid flushes.
    pub fn without_barriers(&self) -> bool {
        self.mount.as_ref().is_some_and(Mount::without_barriers)
    }
}

pub(super) fn checks(sys: &Sys, data: &DataDir) -> Vec<Check> {
    vec![
        durable_write(data),
        file_system(data),
        mount_options(data),
        write_cache(data),
        scheduler(sys, data),
        queue_depth(sys, data),
        interrupts(sys, data),
    ]
}

fn durable_write(data: &DataDir) -> Check {
    let check = Check::new("direct durable write", "works, aligned to 4096 or less").why(
        "commits are written around the page cache (O_DIRECT) and are on the device when the write \
              completes (RWF_DSYNC)",
    );
    match &data.support {
        Ok(support) => {
            let found = match support.alignment {
                Some(a) => format!("works, aligned to {} (memory {})", a.offset, a.memory),
                None => "works".into(),
            };
            check.found(Some(found), Verdict::Ok).how("a directory on ext4, xfs or btrfs")
        }
        // The check of io_uring has said why.
        Err(StorageError::Ring(_)) => check
            .found(Some("not tried, as there is no usable io_uring"), Verdict::Unknown)
            .how("see io_uring"),
        // As `serve` sees it.
        Err(error) if error.is_full() => check
            .found(Some("opened; no room to try it"), Verdict::Unknown)
            .how("free a block, and look again"),
        Err(error) if error.leaves_buffered() => check
            .found(Some("does not work; serve --allow-buffered does without"), Verdict::Required)
            .how(error.to_string()),
        Err(error) => check.found(Some("does not work"), Verdict::Required).how(error.to_string()),
    }
}

fn file_system(data: &DataDir) -> Check {
    let good = data.mount.as_ref().is_some_and(|mount| matches!(mount.fs.as_str(), "ext4" | "xfs"));
    let found = data.mount.as_ref().map(|mount| format!("{} on {}", mount.fs, mount.source));
    Check::new("file system", "ext4 or xfs")
        .found(found, Verdict::advice_unless(good))
        .why(
            "a segment's blocks are written once before use and then overwritten in place, so a flush has \
              no metadata to write; file systems that copy on write have it every time, and one in memory \
              keeps nothing",
        )
        .how("put the data directory on ext4 or xfs; on btrfs, chattr +C the empty directory first")
}

fn mount_options(data: &DataDir) -> Check {
    let good = !data.without_barriers();
    Check::new("mount options", "without nobarrier or barrier=0")
        .found(data.mount.as_ref().map(|mount| mount.options.clone()), Verdict::advice_unless(good))
        .why(
            "without barriers the file system never flushes the device's cache, and what was \
              acknowledged goes with the power",
        )
        .how("mount -o remount,barrier=1; strike the option from /etc/fstab")
}

fn write_cache(data: &DataDir) -> Check {
    let device = data.device.as_ref();
    let found = device.and_then(|device| {
        let state = match (device.volatile_cache?, device.fua) {
            (false, _) => "write through",
            (true, true) => "write back (volatile), with FUA",
            (true, false) => "write back (volatile), without FUA",
        };
        Some(format!("{state} ({})", device.name))
    });
    Check::new("device write cache", "either; write through or FUA is faster")
        .found(found, Verdict::Ok)
        .why(
            "a volatile cache makes each commit cost a flush; a device whose cache survives the power has \
              nothing to flush",
        )
        .how(
            "a device with power-loss protection. Never write to /sys/block/*/queue/write_cache: that \
              stops the flushes and leaves the cache as volatile as it was",
        )
}

fn scheduler(sys: &Sys, data: &DataDir) -> Check {
    let lowest = data.device.as_ref().map(|device| device.lowest.as_slice()).unwrap_or_default();
    let of = |name: &String| Some((name.clone(), sys.chosen(format!("/sys/block/{name}/queue/scheduler"))?));
    let found: Vec<_> = lowest.iter().filter_map(of).collect();
    let good = found.iter().all(|(_, scheduler)| scheduler != "bfq");
    let text = found.iter().map(|(name, scheduler)| format!("{scheduler} ({name})")).collect::<Vec<_>>();
    Check::new("I/O scheduler", "none or mq-deadline")
        .found((!text.is_empty()).then(|| text.join(", ")), Verdict::advice_unless(good))
        .why("few commits are in flight at a time, so there is nothing to sort; bfq costs throughput")
        .how("echo none > /sys/block/DEVICE/queue/scheduler; a udev rule keeps it")
}

/// A core that user programs keep busy makes the kernel's worker wait that sends
/// the flush: 31 times the time of a durable write, measured.
fn interrupts(sys: &Sys, data: &DataDir) -> Check {
    let cores = data.device.as_ref().map(|device| device.interrupt_cores(sys)).unwrap_or_default();
    let text = cores.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Check::new("disk interrupts", "on cores that no thread keeps busy")
        .found((!cores.is_empty()).then(|| format!("core {text}")), Verdict::Ok)
        .why("there a worker of the kernel's sends the flush once a write is done, unless the device has FUA or \
              no volatile cache; behind a busy thread it waits some milliseconds")
        .how("move what is busy (serve --busy-poll, load generators, other programs) to other cores, or the \
              interrupt: echo MASK > /proc/irq/N/smp_affinity, which managed interrupts refuse")
}

fn queue_depth(sys: &Sys, data: &DataDir) -> Check {
    let lowest = data.device.as_ref().map(|device| device.lowest.as_slice()).unwrap_or_default();
    let depth = |name| sys.value::<u64>(format!("/sys/block/{name}/queue/nr_requests"));
    let least = lowest.iter().filter_map(depth).min();
    Check::at_least("device queue depth (nr_requests)", least, QUEUE_DEPTH)
        .why("commits wait when reads and the zeroing of segments have filled the device's queue")
        .how("echo 256 > /sys/block/DEVICE/queue/nr_requests")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_yet_to_be_made_is_judged_by_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::find(&Sys::default(), &dir.path().join("a/b/c"));
        assert_eq!(data.path, dir.path());
        assert!(!dir.path().join("a").exists());
    }

    fn data(fs: &str, options: &str) -> DataDir {
        DataDir {
            path: "/x".into(),
            mount: Some(Mount {
                fs: fs.into(),
                source: "/dev/sda".into(),
                point: "/".into(),
                options: options.into(),
            }),
            device: None,
            support: Ok(StorageSupport { mount: None, alignment: None }),
        }
    }

    #[test]
    fn mounts_that_lose_acknowledged_data_are_recognised() {
        assert!(data("tmpfs", "rw").in_memory() && !data("ext4", "rw").in_memory());
        assert!(data("ext4", "rw,barrier=0").without_barriers());
        assert!(!mount_options(&data("ext4", "rw,nobarrier")).ok);
        assert!(mount_options(&data("ext4", "rw,barrier=1")).ok);
    }
}
