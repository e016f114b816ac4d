//! Whether files are written past the kernel's cache.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::io::datadir::{segment_name, unfinished_name};
use crate::limits::BLOCK_LEN;
use crate::log::SegmentSeq;

/// How segments are opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileMode {
    /// `O_DIRECT`: from the broker's memory to the device.
    Direct,
    /// Through the kernel's cache, each write flushed (`RWF_DSYNC`). Slower,
    /// and the kernel copies everything once more.
    Buffered,
}

impl FileMode {
    /// For open(2).
    pub(super) fn flags(self) -> i32 {
        match self {
            FileMode::Direct => libc::O_DIRECT,
            FileMode::Buffered => 0,
        }
    }
}

/// Why segments cannot be opened as they should.
#[derive(thiserror::Error, Debug)]
pub enum ModeError {
    /// The file system has no direct I/O.
    #[error(
        "the file system of {} refuses O_DIRECT ({source}): use one that has it (ext4, XFS), or permit \
         buffered writes with --allow-buffered, at a cost in speed", path.display()
    )]
    DirectRefused {
        /// The folder that was tried.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else.
    #[error("cannot write to {}: {source}", path.display())]
    Io {
        /// The folder that was tried.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Finds out by a trial write in `folder` whether direct I/O works there; if it
/// does not, and `allow_buffered` is given, settles for buffered writes, with a
/// warning.
pub fn choose_mode(folder: &Path, allow_buffered: bool) -> Result<FileMode, ModeError> {
    settle(try_direct(folder), folder, allow_buffered)
}

/// How the segments in `folder` can be read, found out by opening one.
pub fn readable_mode(folder: &Path, segment: Option<SegmentSeq>) -> FileMode {
    let Some(segment) = segment else { return FileMode::Buffered };
    let mut options = OpenOptions::new();
    match options.read(true).custom_flags(libc::O_DIRECT).open(folder.join(segment_name(segment))) {
        Ok(_) => FileMode::Direct,
        // Another reason to refuse will show again when it is read.
        Err(_) => FileMode::Buffered,
    }
}

fn settle(tried: io::Result<()>, folder: &Path, allow_buffered: bool) -> Result<FileMode, ModeError> {
    let path = folder.to_owned();
    match tried {
        Ok(()) => Ok(FileMode::Direct),
        Err(source) if matches!(source.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            if !allow_buffered {
                return Err(ModeError::DirectRefused { path, source });
            }
            tracing::warn!(
                path = %path.display(),
                "O_DIRECT is refused here: writing through the kernel's cache, which is slower; \
                 every acknowledgement still waits for the flush"
            );
            Ok(FileMode::Buffered)
        }
        Err(source) => Err(ModeError::Io { path, source }),
    }
}

#[repr(align(4096))]
struct Block([u8; BLOCK_LEN]);

fn try_direct(folder: &Path) -> io::Result<()> {
    // The name of an unfinished spare file: should this process die here, the
    // next start removes it.
    let path = folder.join(unfinished_name(u64::MAX));
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT);
    let tried = options.open(&path).and_then(|file| {
        let mut block = Block([0x5a; BLOCK_LEN]);
        match file.write_all_at(&block.0, 0) {
            // It was opened; the segments that are there have their blocks.
            Err(error) if is_full(&error) => return Ok(()),
            other => other?,
        }
        block.0.fill(0);
        file.read_exact_at(&mut block.0, 0)?;
        if block.0.iter().all(|&byte| byte == 0x5a) {
            Ok(())
        } else {
            Err(io::Error::other("what was written was not read back"))
        }
    });
    // A refused open may have made the file.
    match fs::remove_file(&path) {
        Err(error) if tried.is_ok() => Err(error),
        _ => tried,
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::test_mount::on_small_file_system;

    #[test]
    fn a_full_file_system_is_no_reason_to_refuse() {
        on_small_file_system(1 << 20, |path| {
            fs::write(path.join("filler"), vec![1; 2 << 20]).unwrap_err();
            assert_eq!(choose_mode(path, false).unwrap(), FileMode::Direct);
            assert_eq!(fs::read_dir(path).unwrap().count(), 1);
        });
    }

    #[test]
    fn this_file_system_is_tried_for_real_and_left_clean() {
        let dir = tempfile::tempdir_in(".").unwrap();
        assert_eq!(choose_mode(dir.path(), false).unwrap(), FileMode::Direct);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn refused_direct_writes_need_permission_to_go_on_buffered() {
        let refused = || Err(io::Error::from_raw_os_error(libc::EINVAL));
        let error = settle(refused(), Path::new("/x"), false).unwrap_err();
        assert!(error.to_string().contains("--allow-buffered"), "{error}");
        assert_eq!(settle(refused(), Path::new("/x"), true).unwrap(), FileMode::Buffered);
    }

    #[test]
    fn another_error_is_no_reason_to_go_on_buffered() {
        let error = choose_mode(Path::new("/nonexistent"), true).unwrap_err();
        assert!(matches!(error, ModeError::Io { .. }), "{error}");
    }
}
