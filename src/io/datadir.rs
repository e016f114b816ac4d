//! The data directory: made whole or not at all, locked, and listed.
//!
//! ```text
//! <data>/lock            whoever serves holds it; its process id is inside
//! <data>/superblock      see `log::superblock`
//! <data>/shard-000/segment-0000000000000000 ...
//! <data>/shard-000/extent-<first>-<next>          empty; its name says which segments there
//!                                                 must be, see `log::extent`
//! <data>/shard-000/spare-0000000000000000 ...     files without records, for segments to come
//! <data>/shard-000/spare-0000000000000000.tmp     such a file that is not yet whole
//! ```
//!
//! Knows nothing of what segments contain.

mod error;
mod lock;
mod names;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ringbolt_wire::ShardId;

use crate::io::clock;
use crate::log::SegmentSeq;
use crate::log::extent::Extent;
use crate::log::superblock::Superblock;
pub use error::DataDirError;
use error::failed;
use lock::DirLock;
pub(in crate::io) use names::unfinished_name;
pub use names::{FileName, extent_name, segment_name, shard_name, spare_name};

const SUPERBLOCK: &str = "superblock";
const SUPERBLOCK_TMP: &str = "superblock.tmp";
const LOCK: &str = "lock";

/// How a directory is divided when it is made; one that is there stays as it
/// is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Number of shards, from 1 to [`MAX_SHARDS`](crate::limits::MAX_SHARDS).
    pub shards: u16,
    /// Bytes of a segment: a multiple of [`PAGE_LEN`](crate::limits::PAGE_LEN)
    /// between [`MIN_SEGMENT_LEN`](crate::limits::MIN_SEGMENT_LEN) and
    /// [`MAX_SEGMENT_LEN`](crate::limits::MAX_SEGMENT_LEN).
    pub segment_len: u64,
}

/// What lies in a shard's folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardDir {
    /// Which shard.
    pub shard: ShardId,
    /// Its folder.
    pub path: PathBuf,
    /// The segments that it must have.
    pub extent: Extent,
    /// Its segments, ascending; all of full length.
    pub segments: Vec<SegmentSeq>,
    /// Its spare files by number, ascending; all of full length.
    pub spares: Vec<u64>,
    /// Files that are none of Ringbolt's, or spare files of a wrong length:
    /// left alone.
    pub unknown: Vec<PathBuf>,
}

impl ShardDir {
    /// A number that no spare file has, and no other entry that is named like
    /// one: a new spare file would never get its name.
    pub fn next_spare(&self) -> u64 {
        let named_like_one = self.unknown.iter().filter_map(|path| {
            match path.file_name().and_then(|name| name.to_str()).and_then(FileName::parse) {
                Some(FileName::Spare(number)) => Some(number),
                _ => None,
            }
        });
        let taken = self.spares.iter().copied().chain(named_like_one);
        // The last number of all is never reached.
        taken.filter_map(|number| number.checked_add(1)).max().unwrap_or(0)
    }
}

/// An open data directory. Its lock is given up when this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    superblock: Superblock,
    shards: Vec<ShardDir>,
    // Kept for its drop.
    _lock: Option<DirLock>,
}

impl DataDir {
    /// Opens the directory for serving: makes it if it is not there or empty,
    /// locks it, counts the start durably, and removes files that a crash left
    /// half made.
    pub fn open(path: &Path, layout: Layout) -> Result<DataDir, DataDirError> {
        make_folder(path)?;
        let lock = DirLock::exclusive(&path.join(LOCK))?;
        if !exists(&path.join(SUPERBLOCK))? {
            create(path, layout)?;
        }
        let superblock = read_superblock(path)?.next_boot();
        let mut shards = list_shards(path, &superblock)?;
        write_superblock(path, &superblock)?;
        for shard in &mut shards {
            settle_names(shard)?;
            remove_unfinished(&shard.path)?;
            for unknown in &shard.unknown {
                tracing::warn!(path = %unknown.display(), "left alone: not one of Ringbolt's files, or of a wrong length");
            }
        }
        Ok(DataDir { path: path.to_owned(), superblock, shards, _lock: Some(lock) })
    }

    /// Whether [`open`](Self::open) would make the directory.
    pub fn is_new(path: &Path) -> Result<bool, DataDirError> {
        Ok(!exists(&path.join(SUPERBLOCK))?)
    }

    /// Opens the directory for looking only: nothing in it is changed. Refused
    /// while a broker serves from it.
    pub fn open_read_only(path: &Path) -> Result<DataDir, DataDirError> {
        if !exists(path)? {
            return Err(DataDirError::Missing { path: path.to_owned() });
        }
        let lock = DirLock::shared(&path.join(LOCK))?;
        if !exists(&path.join(SUPERBLOCK))? {
            return Err(DataDirError::NotADataDir { path: path.to_owned() });
        }
        let superblock = read_superblock(path)?;
        let shards = list_shards(path, &superblock)?;
        Ok(DataDir { path: path.to_owned(), superblock, shards, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its superblock; for serving, with this start counted.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Its shards, in order.
    pub fn shards(&self) -> &[ShardDir] {
        &self.shards
    }
}

fn exists(path: &Path) -> Result<bool, DataDirError> {
    path.try_exists().map_err(failed("look up", path))
}

/// Makes the folder and the ones above it, durably.
fn make_folder(path: &Path) -> Result<(), DataDirError> {
    if exists(path)? {
        return if path.is_dir() { Ok(()) } else { Err(DataDirError::NotAFolder { path: path.to_owned() }) };
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        make_folder(parent)?;
    }
    fs::create_dir(path).map_err(failed("create", path))?;
    sync_folder(parent.unwrap_or(Path::new(".")))
}

fn sync_folder(path: &Path) -> Result<(), DataDirError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(failed("sync", path))
}

/// Makes the shards' folders, and at last, in one rename, the superblock:
/// before it, this can be done again; after it, the directory is whole.
fn create(path: &Path, layout: Layout) -> Result<(), DataDirError> {
    let broker_id = uuid::Uuid::new_v4().into_bytes();
    let created_us = clock::now().wall_us;
    let first = Superblock::new(broker_id, layout.shards, layout.segment_len, created_us)
        .map_err(|fault| DataDirError::Layout { layout, fault })?;
    refuse_foreign(path)?;
    for shard in 0..layout.shards {
        let folder = path.join(shard_name(ShardId(shard)));
        if !exists(&folder)? {
            fs::create_dir(&folder).map_err(failed("create", &folder))?;
        }
        let extent = folder.join(extent_name(Extent::EMPTY));
        File::create(&extent).map_err(failed("create", &extent))?;
        sync_folder(&folder)?;
    }
    let mut contents = first.encode().to_vec();
    contents.resize(crate::log::superblock::SUPERBLOCK_LEN, 0);
    let (tmp, superblock) = (path.join(SUPERBLOCK_TMP), path.join(SUPERBLOCK));
    fs::write(&tmp, contents).map_err(failed("write", &tmp))?;
    File::open(&tmp).and_then(|file| file.sync_all()).map_err(failed("sync", &tmp))?;
    fs::rename(&tmp, &superblock).map_err(failed("rename", &tmp))?;
    sync_folder(path)
}

/// A directory without superblock may hold only what an interrupted
/// [`create`] left: no file of anybody else's, and no segment, which would mean
/// that the superblock was lost and not that it was never there.
fn refuse_foreign(path: &Path) -> Result<(), DataDirError> {
    for entry in fs::read_dir(path).map_err(failed("list", path))? {
        let entry = entry.map_err(failed("list", path))?;
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        if [LOCK, SUPERBLOCK_TMP].contains(&name) {
            continue;
        }
        if FileName::parse(name) != Some(FileName::Shard) {
            return Err(DataDirError::NotEmpty { path: path.to_owned(), found: entry.path() });
        }
        for inside in fs::read_dir(entry.path()).map_err(failed("list", &entry.path()))? {
            let found = inside.map_err(failed("list", &entry.path()))?.path();
            if !found.ends_with(extent_name(Extent::EMPTY)) {
                return Err(DataDirError::SuperblockMissing { path: path.to_owned(), found });
            }
        }
    }
    Ok(())
}

fn read_superblock(path: &Path) -> Result<Superblock, DataDirError> {
    let file = path.join(SUPERBLOCK);
    let contents = fs::read(&file).map_err(failed("read", &file))?;
    Superblock::decode(&contents).map_err(|source| DataDirError::Superblock { path: file, source })
}

fn write_superblock(path: &Path, superblock: &Superblock) -> Result<(), DataDirError> {
    let path = path.join(SUPERBLOCK);
    let file = OpenOptions::new().write(true).open(&path).map_err(failed("open", &path))?;
    file.write_all_at(&superblock.encode()[..], superblock.position()).map_err(failed("write", &path))?;
    file.sync_all().map_err(failed("sync", &path))
}

fn list_shards(path: &Path, superblock: &Superblock) -> Result<Vec<ShardDir>, DataDirError> {
    (0..superblock.shards).map(|shard| list_shard(path, ShardId(shard), superblock.segment_len)).collect()
}

fn list_shard(path: &Path, shard: ShardId, segment_len: u64) -> Result<ShardDir, DataDirError> {
    let path = path.join(shard_name(shard));
    if !exists(&path)? {
        return Err(DataDirError::ShardMissing { path });
    }
    let (segments, spares, unknown) = (Vec::new(), Vec::new(), Vec::new());
    let mut dir = ShardDir { shard, path, extent: Extent::EMPTY, segments, spares, unknown };
    let mut extent_path = None;
    for entry in fs::read_dir(&dir.path).map_err(failed("list", &dir.path))? {
        let entry = entry.map_err(failed("list", &dir.path))?;
        let file = entry.path();
        let name = entry.file_name().to_str().and_then(FileName::parse);
        // Follows a symbolic link: segments may lie on several disks.
        let found = fs::metadata(&file).map_err(failed("look up", &file))?;
        let whole = found.is_file() && found.len() == segment_len;
        match name {
            Some(FileName::Segment(segment)) if whole => dir.segments.push(segment),
            Some(FileName::Segment(_)) => {
                let wanted = segment_len;
                return Err(DataDirError::SegmentLength { path: file, found: found.len(), wanted });
            }
            Some(FileName::Extent(extent)) => {
                dir.extent = extent;
                if let Some(first) = extent_path.replace(file.clone()) {
                    return Err(DataDirError::ExtentTwice { first, second: file });
                }
            }
            Some(FileName::Spare(number)) if whole => dir.spares.push(number),
            Some(FileName::Unfinished) => {}
            _ => dir.unknown.push(file),
        }
    }
    if extent_path.is_none() {
        return Err(DataDirError::ExtentMissing { path: dir.path });
    }
    dir.segments.sort_unstable();
    dir.spares.sort_unstable();
    dir.unknown.sort_unstable();
    Ok(dir)
}

/// Makes sure of the names that were listed, as the crash before may have come
/// just after they were given; and takes a segment that was given its name then
/// into the extent, for it may be written to from now on.
fn settle_names(shard: &mut ShardDir) -> Result<(), DataDirError> {
    sync_folder(&shard.path)?;
    // What is missing is refused soon, and then looks as it did.
    let is_whole = shard.extent.missing(&shard.segments).is_empty();
    let Some(&newest) = shard.segments.last().filter(|_| is_whole) else { return Ok(()) };
    let extent = shard.extent.with(newest);
    if extent == shard.extent {
        return Ok(());
    }
    let (from, to) = (shard.path.join(extent_name(shard.extent)), shard.path.join(extent_name(extent)));
    fs::rename(&from, to).map_err(failed("rename", &from))?;
    shard.extent = extent;
    sync_folder(&shard.path)
}

fn remove_unfinished(folder: &Path) -> Result<(), DataDirError> {
    for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
        let entry = entry.map_err(failed("list", folder))?;
        let name = entry.file_name();
        if name.to_str().and_then(FileName::parse) == Some(FileName::Unfinished) {
            fs::remove_file(entry.path()).map_err(failed("remove", &entry.path()))?;
        }
    }
    Ok(())
}
