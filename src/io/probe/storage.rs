//! A directory, as the commit log needs it: direct writes that are durable
//! when they complete.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use io_uring::opcode;
use io_uring::types::Fd;

use super::mounts::{Mount, mount_of};
use crate::io::echo::{self, BareRing, Mapping, Wait};
use crate::io::ring::RingError;

/// What a write of the log is a multiple of, in bytes.
const BLOCK: usize = 4096;

/// What a directory was found to offer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StorageSupport {
    /// Where the directory lies; `None` where `/proc` is missing.
    pub mount: Option<Mount>,
    /// What direct writes must be aligned to; `None` when the kernel does not
    /// say (before Linux 6.1, and on some file systems).
    pub alignment: Option<Alignment>,
}

/// What `O_DIRECT` demands of a file, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Alignment {
    /// Of addresses.
    pub memory: u32,
    /// Of positions and lengths.
    pub offset: u32,
}

/// Why a directory cannot hold a log; the message says what to change.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// It is not there, or no file can be made in it.
    #[error("no file can be made in {}: {source}", dir.display())]
    Create {
        /// The directory.
        dir: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The file system does not write around its cache.
    #[error(
        "{} lies on {fs}, which does not support O_DIRECT as it is mounted (ext4's data=journal, for \
         one, rules it out). Use a directory on ext4, xfs or btrfs, or give serve --allow-buffered, \
         which is slower",
        dir.display()
    )]
    NoDirectIo {
        /// The directory.
        dir: PathBuf,
        /// Type of file system.
        fs: String,
    },
    /// Its blocks are larger than those of the log.
    #[error(
        "direct writes (O_DIRECT) in {} must be aligned to {found} bytes, and the log's are to 4096. Use a \
         device whose logical blocks are 4096 bytes or less, or give serve --allow-buffered, which is slower",
        dir.display()
    )]
    Alignment {
        /// The directory.
        dir: PathBuf,
        /// What is demanded, in bytes.
        found: u32,
    },
    /// The durable write itself failed.
    #[error("a durable 4096-byte write (O_DIRECT, RWF_DSYNC) in {} failed: {source}", dir.display())]
    Write {
        /// The directory.
        dir: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// What was written did not read back.
    #[error("{} does not return what was written to it: the device or file system is broken", dir.display())]
    ReadBack {
        /// The directory.
        dir: PathBuf,
    },
    /// There was no ring to write with.
    #[error(transparent)]
    Ring(#[from] RingError),
}

impl StorageError {
    /// Whether the directory can hold a log all the same, if it is written
    /// through the kernel's cache.
    pub fn leaves_buffered(&self) -> bool {
        matches!(self, StorageError::NoDirectIo { .. } | StorageError::Alignment { .. })
    }

    /// Whether only room was missing for the write that was tried: direct I/O
    /// works, and the segments that are there have their blocks.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, StorageError::Write { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    fn no_direct_io(dir: &Path) -> Self {
        let fs = mount_of(dir).map_or_else(|| "a file system".to_owned(), |mount| mount.fs);
        StorageError::NoDirectIo { dir: dir.to_owned(), fs }
    }

    /// Memory for writes could not be registered.
    pub(in crate::io) fn registering(source: io::Error) -> Self {
        StorageError::Ring(RingError::from_registering("registering memory", source))
    }
}

/// A file of its own in a directory, opened for direct input and output; it
/// has no name once this value exists, so nothing is left behind, whatever
/// happens to the process.
pub struct ScratchFile(File);

impl ScratchFile {
    /// Makes an empty one in `dir`.
    ///
    /// # Errors
    ///
    /// [`StorageError::NoDirectIo`] when only `O_DIRECT` is the problem, else
    /// [`StorageError::Create`].
    pub fn create(dir: &Path) -> Result<Self, StorageError> {
        let source = match Self::open(dir, libc::O_DIRECT) {
            Ok(file) => return Ok(Self(file)),
            Err(source) => source,
        };
        if source.raw_os_error() == Some(libc::EINVAL) && Self::open(dir, 0).is_ok() {
            return Err(StorageError::no_direct_io(dir));
        }
        Err(StorageError::Create { dir: dir.to_owned(), source })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.0
    }

    /// `O_TMPFILE` never gives the file a name; overlayfs before Linux 6.6, NFS
    /// and some others know only files with one, which is then taken away.
    fn open(dir: &Path, flags: i32) -> io::Result<File> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        match options.custom_flags(flags | libc::O_TMPFILE).open(dir) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT)) => {}
            opened => return opened,
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!(".ringbolt-scratch-{}-{number}", std::process::id()));
        let file = options.create_new(true).custom_flags(flags).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }
}

/// Writes a block durably in `dir`, reads it back, and asks what the directory
/// demands: what `serve` finds out at every start, and the doctor before. Takes as long as one durable write to a new file.
///
/// # Errors
///
/// The first thing that does not work.
pub fn probe_storage(dir: &Path) -> Result<StorageSupport, StorageError> {
    let scratch = ScratchFile::create(dir)?;
    let alignment = alignment_of(scratch.file());
    if let Some(Alignment { memory, offset }) = alignment {
        // Zero is how the kernel says that this file takes no direct I/O.
        if offset == 0 {
            return Err(StorageError::no_direct_io(dir));
        }
        let found = offset.max(memory);
        if found as usize > BLOCK {
            return Err(StorageError::Alignment { dir: dir.to_owned(), found });
        }
    }
    // A thread of its own, as the ring belongs to the one that made it.
    let written = std::thread::scope(|scope| {
        scope.spawn(|| write_and_read(&scratch, dir)).join().expect("the probe does not panic")
    });
    written?;
    Ok(StorageSupport { mount: mount_of(dir), alignment })
}

/// One block, the way that commits go but for the registered memory, without
/// which `serve` runs as well.
fn write_and_read(scratch: &ScratchFile, dir: &Path) -> Result<(), StorageError> {
    let mut memory = Mapping::new(2 * BLOCK)
        .map_err(|source| RingError::Failed { step: "mapping two blocks of memory", source })?;
    for (at, byte) in memory.bytes_mut()[..BLOCK].iter_mut().enumerate() {
        *byte = (at * 7 % 251) as u8;
    }
    let mut ring = echo::build(4, 8).map_err(RingError::from_setup)?;
    let mut ring = BareRing::new(&mut ring);

    let fd = Fd(scratch.file().as_raw_fd());
    let write = opcode::Write::new(fd, memory.at(0), BLOCK as u32).rw_flags(libc::RWF_DSYNC);
    let read = opcode::Read::new(fd, memory.at(BLOCK), BLOCK as u32);
    for entry in [write.build(), read.build()] {
        let failed = |source| StorageError::Write { dir: dir.to_owned(), source };
        // SAFETY: both entries name halves of the mapping, which no reference
        // is used on until both operations have completed.
        unsafe { ring.push(entry) };
        let result = loop {
            ring.wait(Wait::Sleep).map_err(failed)?;
            if let Some(cqe) = ring.next() {
                break cqe.result();
            }
        };
        match result {
            n if n == BLOCK as i32 => {}
            // Opened, and refused all the same.
            e if e == -libc::EINVAL || e == -libc::EOPNOTSUPP => return Err(StorageError::no_direct_io(dir)),
            n @ 0.. => return Err(failed(io::Error::other(format!("only {n} of 4096 bytes went through")))),
            e => return Err(failed(io::Error::from_raw_os_error(-e))),
        }
    }
    let (written, read) = memory.bytes_mut().split_at(BLOCK);
    if written == read { Ok(()) } else { Err(StorageError::ReadBack { dir: dir.to_owned() }) }
}

/// What the kernel says about direct I/O on an open file.
fn alignment_of(file: &File) -> Option<Alignment> {
    // SAFETY: struct statx is plain integers, for which all zeroes is a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let no_name = c"".as_ptr();
    // SAFETY: the name is a C string (of no length), and `found` is a place for
    // the one struct that the kernel writes.
    let answer = unsafe {
        libc::statx(file.as_raw_fd(), no_name, libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &mut found)
    };
    (answer == 0 && found.stx_mask & libc::STATX_DIOALIGN != 0)
        .then_some(Alignment { memory: found.stx_dio_mem_align, offset: found.stx_dio_offset_align })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_file_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = ScratchFile::create(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(scratch.file().metadata().unwrap().len(), 0);
    }

    #[test]
    fn a_file_system_without_direct_writes_is_told_from_a_missing_directory() {
        let error = probe_storage(Path::new("/proc/self")).unwrap_err();
        assert!(matches!(error, StorageError::Create { .. }), "{error}");
        let error = probe_storage(Path::new("/no/such/directory")).unwrap_err();
        assert!(matches!(error, StorageError::Create { .. }), "{error}");
    }

    #[test]
    fn a_tests_directory_holds_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let found = probe_storage(dir.path()).unwrap();
        assert!(found.mount.is_some());
        if let Some(alignment) = found.alignment {
            assert!(alignment.offset.is_power_of_two(), "{alignment:?}");
        }
    }
}
