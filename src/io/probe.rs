//! What this machine lets Ringbolt do: io_uring as it is used here, and a
//! directory that can be written durably.
//!
//! Everything is tried for real, on a ring, a loopback connection and a file
//! of its own, because version numbers lie (back-ports, seccomp profiles) and
//! opcode lists do not show flags. It knows nothing of speed: that is
//! [`floor`](crate::io::floor).

mod limits;
mod mounts;
mod ring;
mod storage;

use std::path::Path;

pub use limits::{Limit, Resource, effective_capability, limit};
pub use mounts::{Mount, mount_of};
pub use ring::{Feature, RingError, RingSupport, probe_ring};
pub use storage::{Alignment, ScratchFile, StorageError, StorageSupport, probe_storage};

/// What `serve` found out at start.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// The io_uring features that are there.
    pub ring: RingSupport,
    /// The data directory.
    pub storage: StorageSupport,
}

/// Why this machine or directory cannot run Ringbolt; the message says what to
/// change.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// io_uring is missing, forbidden or too old.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The directory cannot be written in the way that durability needs.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Checks everything that Ringbolt cannot do without.
///
/// Takes a few milliseconds, most of them for one durable 4 KiB write in
/// `data_dir`, which must exist; leaves nothing behind.
///
/// # Errors
///
/// The first thing found missing. [`probe_ring`] and [`probe_storage`] check
/// the two halves separately.
pub fn require(data_dir: &Path) -> Result<Capabilities, ProbeError> {
    let ring = probe_ring()?;
    ring.require()?;
    let storage = probe_storage(data_dir)?;
    Ok(Capabilities { ring, storage })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_runs_these_tests_runs_ringbolt() {
        let dir = tempfile::tempdir().unwrap();
        let found = require(dir.path()).unwrap();
        for feature in Feature::ALL.into_iter().filter(|f| f.required()) {
            assert!(found.ring.has(feature), "{feature:?}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a file was left behind");
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let error = require(&gone).unwrap_err().to_string();
        assert!(error.contains(&gone.display().to_string()), "{error}");
    }
}
