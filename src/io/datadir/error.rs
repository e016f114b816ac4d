//! What can be wrong with a data directory.

use std::io;
use std::path::{Path, PathBuf};

use super::Layout;
use crate::limits::{MAX_SEGMENT_LEN, MAX_SHARDS, MIN_SEGMENT_LEN, PAGE_LEN};
use crate::log::superblock::{SlotFault, SuperblockError};

/// Why a data directory cannot be opened. Nothing in it was made worse.
#[derive(thiserror::Error, Debug)]
pub enum DataDirError {
    /// A new directory cannot be divided like this.
    #[error(
        "{fault}: a data directory has 1 to {MAX_SHARDS} shards, and segments of {MIN_SEGMENT_LEN} to \
         {MAX_SEGMENT_LEN} bytes, a multiple of {PAGE_LEN}; asked for were {} and {}",
        layout.shards, layout.segment_len
    )]
    Layout {
        /// As asked for.
        layout: Layout,
        /// What is wrong with it.
        fault: SlotFault,
    },
    /// There is none.
    #[error("{} does not exist", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It is a file.
    #[error("{} is not a folder", path.display())]
    NotAFolder {
        /// Where the folder should be.
        path: PathBuf,
    },
    /// A folder of something else.
    #[error("{} is not a Ringbolt data directory: it has no superblock", path.display())]
    NotADataDir {
        /// The folder.
        path: PathBuf,
    },
    /// A folder of something else, where a new directory was to be made.
    #[error(
        "{} is not a Ringbolt data directory and not empty (there is {}): give an empty or a new folder",
        path.display(), found.display()
    )]
    NotEmpty {
        /// The folder.
        path: PathBuf,
        /// What is in it.
        found: PathBuf,
    },
    /// There is data, and nothing that says whose.
    #[error(
        "{} holds data ({}) but its superblock is missing: restore the file `superblock`; a new one \
         would orphan the data", path.display(), found.display()
    )]
    SuperblockMissing {
        /// The folder.
        path: PathBuf,
        /// What is in it.
        found: PathBuf,
    },
    /// The superblock cannot be used.
    #[error("{}: {source}", path.display())]
    Superblock {
        /// The superblock's file.
        path: PathBuf,
        /// What is wrong with it.
        source: SuperblockError,
    },
    /// A shard's folder is gone.
    #[error("{} is missing: the superblock says that this shard exists", path.display())]
    ShardMissing {
        /// Where it should be.
        path: PathBuf,
    },
    /// A shard's folder has lost the file that is in it from the start.
    #[error(
        "{} has no file `extent-...`, which says what segments it must have: files of this shard are \
         missing; restore the folder", path.display()
    )]
    ExtentMissing {
        /// The shard's folder.
        path: PathBuf,
    },
    /// Two such files: only copying could do that.
    #[error(
        "{} says otherwise than {} which segments the folder must have: remove the one that does not belong \
         to what is there", first.display(), second.display()
    )]
    ExtentTwice {
        /// One.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// A segment was cut short, or is something else.
    #[error("{} is {found} bytes long instead of {wanted}: it was truncated or replaced", path.display())]
    SegmentLength {
        /// The segment's file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// What it must be.
        wanted: u64,
    },
    /// Another process uses it.
    #[error("{} is in use by {}", path.display(), show_holder(*.holder))]
    Locked {
        /// The lock's file.
        path: PathBuf,
        /// Process id of the broker that serves from it; `None` if somebody
        /// only looks at it.
        holder: Option<u32>,
    },
    /// The file system cannot be written to.
    #[error("cannot {operation} {}: the file system is mounted read-only", path.display())]
    ReadOnly {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
    },
    /// This user may not.
    #[error(
        "cannot {operation} {}: permission denied; the folder and all in it must belong to the user that \
         the broker runs as", path.display()
    )]
    Permission {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
    },
    /// The kernel said something else.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn show_holder(holder: Option<u32>) -> String {
    match holder {
        Some(pid) => format!("a running broker, process {pid}"),
        None => "another process that looks at it".to_owned(),
    }
}

/// Makes the error of a failed system call.
pub(super) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem => DataDirError::ReadOnly { operation, path },
        io::ErrorKind::PermissionDenied => DataDirError::Permission { operation, path },
        _ => DataDirError::Io { operation, path, source },
    }
}
