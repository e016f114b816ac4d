//! Reading segments before the broker serves, when nothing else is to be done
//! meanwhile.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::claim::{PATIENCE, wait_for_writes};
use super::{FileMode, fault};
use crate::io::datadir::segment_name;
use crate::log::SegmentSeq;
use crate::log::recovery::SegmentReader;
use crate::shard::event::DiskFault;

/// Reads the segments in a shard's folder.
#[derive(Debug)]
pub struct FolderReader {
    folder: PathBuf,
    mode: FileMode,
    /// The segment read last.
    open: RefCell<Option<(SegmentSeq, File)>>,
}

impl FolderReader {
    /// A reader of the segments in `folder`.
    pub fn new(folder: &Path, mode: FileMode) -> FolderReader {
        FolderReader { folder: folder.to_owned(), mode, open: RefCell::new(None) }
    }

    fn open(&self, segment: SegmentSeq) -> Result<File, DiskFault> {
        let path = self.folder.join(segment_name(segment));
        let mut options = OpenOptions::new();
        let options = options.read(true).custom_flags(self.mode.flags());
        let file = options.open(&path).map_err(|e| failed("open for reading", &e))?;
        // What is read would not be what is there in the end.
        wait_for_writes(&file, &path, PATIENCE)
            .map_err(|e| failed("wait for the writes of the broker before", &e))?;
        if self.mode == FileMode::Buffered {
            forget_cached(&file).map_err(|e| failed("read anew", &e))?;
        }
        Ok(file)
    }
}

impl SegmentReader for FolderReader {
    fn read(&self, segment: SegmentSeq, position: u64, into: &mut [u8]) -> Result<(), DiskFault> {
        let mut open = self.open.borrow_mut();
        let file = match open.take() {
            Some((current, file)) if current == segment => file,
            _ => self.open(segment)?,
        };
        let read = file.read_exact_at(into, position).map_err(|e| failed("read", &e));
        *open = Some((segment, file));
        read
    }
}

/// Lets the next reads come from the device: of pages that the kernel could not
/// write it keeps what was to be written, and says so only once, perhaps to a
/// broker before.
fn forget_cached(file: &File) -> io::Result<()> {
    file.sync_data()?;
    // SAFETY: no memory; the descriptor is open as long as `file` is.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn failed(operation: &'static str, error: &io::Error) -> DiskFault {
    match error.raw_os_error() {
        Some(errno) => fault(operation, errno),
        None => DiskFault { operation, errno: 0, text: error.to_string() },
    }
}
