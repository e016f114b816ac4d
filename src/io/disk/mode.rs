//! Whether files are written past the kernel's cache.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::io::datadir::segment_name;
use crate::io::probe::{StorageError, probe_storage};
use crate::log::SegmentSeq;

/// How segments are opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileMode {
    /// `O_DIRECT`: from the broker's memory to the device.
    Direct,
    /// Through the kernel's cache, each write followed by an fdatasync(2) before it
    /// is answered. Slower, and the kernel copies everything once
    /// more.
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

/// Finds out by a trial write in `folder` whether direct I/O works there; if it
/// does not, and `allow_buffered` is given, settles for buffered writes.
pub fn choose_mode(folder: &Path, allow_buffered: bool) -> Result<FileMode, StorageError> {
    match probe_storage(folder) {
        Ok(_) => Ok(FileMode::Direct),
        Err(error) if error.is_full() => Ok(FileMode::Direct),
        Err(error) if error.leaves_buffered() && allow_buffered => Ok(FileMode::Buffered),
        Err(error) => Err(error),
    }
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

#[cfg(test)]
mod tests {
    use std::fs;

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
    fn another_error_is_no_reason_to_go_on_buffered() {
        let error = choose_mode(Path::new("/nonexistent"), true).unwrap_err();
        assert!(matches!(error, StorageError::Create { .. }), "{error}");
    }
}
