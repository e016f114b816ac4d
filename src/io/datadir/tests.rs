//! A data directory is whole or not there, has one user, and says what is wrong
//! with it.

use std::collections::BTreeMap;
use std::process::Command;

use super::*;
use crate::io::test_mount::{make_read_only, on_small_file_system};
use crate::limits::{BLOCK_LEN, MIN_SEGMENT_LEN};
use crate::log::superblock::SuperblockError;

const LAYOUT: Layout = Layout { shards: 2, segment_len: MIN_SEGMENT_LEN };

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(".").unwrap()
}

/// A file of a segment's length that takes no space.
fn put(path: &Path, len: u64) {
    File::create(path).unwrap().set_len(len).unwrap();
}

/// Every file below `path` with its contents.
fn contents(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
            all.insert(path, Vec::new());
        } else {
            all.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    all
}

#[test]
fn a_directory_is_made_with_its_parents_and_keeps_its_identity() {
    let dir = folder();
    let path = dir.path().join("a/b/data");
    let first = DataDir::open(&path, LAYOUT).unwrap();
    let before = *first.superblock();
    assert_eq!((before.shards, before.segment_len, before.boot_count), (2, MIN_SEGMENT_LEN, 1));
    assert_eq!(first.shards().len(), 2);
    drop(first);
    // Another layout asked for later changes nothing.
    let second = DataDir::open(&path, Layout { shards: 9, segment_len: 2 * MIN_SEGMENT_LEN }).unwrap();
    assert_eq!(*second.superblock(), before.next_boot());
    drop(second);
    let looked = DataDir::open_read_only(&path).unwrap();
    assert_eq!(looked.superblock().boot_count, 2, "looking is no start");
    assert_ne!(
        DataDir::open(&dir.path().join("other"), LAYOUT).unwrap().superblock().broker_id,
        before.broker_id
    );
}

#[test]
fn a_second_broker_is_refused_and_told_who_is_there() {
    let dir = folder();
    let served = DataDir::open(dir.path(), LAYOUT).unwrap();
    for refused in [DataDir::open(dir.path(), LAYOUT), DataDir::open_read_only(dir.path())] {
        let error = refused.unwrap_err();
        let pid = std::process::id();
        assert!(matches!(error, DataDirError::Locked { holder: Some(p), .. } if p == pid), "{error}");
        assert!(error.to_string().contains(&format!("process {pid}")), "{error}");
    }
    assert_eq!(served.superblock().boot_count, 1);
    drop(served);
    assert_eq!(
        DataDir::open(dir.path(), LAYOUT).unwrap().superblock().boot_count,
        2,
        "refusals count as no start"
    );
}

#[test]
fn many_may_look_but_not_while_one_serves() {
    let dir = folder();
    drop(DataDir::open(dir.path(), LAYOUT).unwrap());
    // As after a kill: the name of a process that is gone.
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    fs::write(dir.path().join("lock"), gone.id().to_string()).unwrap();
    let one = DataDir::open_read_only(dir.path()).unwrap();
    let _other = DataDir::open_read_only(dir.path()).unwrap();
    let error = DataDir::open(dir.path(), LAYOUT).unwrap_err();
    assert!(matches!(error, DataDirError::Locked { holder: None, .. }), "{error}");
    drop((one, _other));
    DataDir::open(dir.path(), LAYOUT).unwrap();
}

#[test]
fn looking_changes_nothing() {
    let dir = folder();
    drop(DataDir::open(dir.path(), LAYOUT).unwrap());
    put(&dir.path().join("shard-000/spare-0000000000000000.tmp"), 100);
    let before = contents(dir.path());
    drop(DataDir::open_read_only(dir.path()).unwrap());
    assert!(contents(dir.path()) == before);
}

/// Whatever a crash leaves of a creation, the next start completes it.
#[test]
fn an_interrupted_creation_is_completed() {
    let whole = folder();
    drop(DataDir::open(whole.path(), LAYOUT).unwrap());
    let superblock = fs::read(whole.path().join("superblock")).unwrap();
    for stage in 0..8 {
        let dir = folder();
        let path = dir.path();
        let extent = |shard| path.join(shard).join(extent_name(Extent::EMPTY));
        let steps: [&dyn Fn(); 7] = [
            &|| fs::write(path.join("lock"), "").unwrap(),
            &|| fs::create_dir(path.join("shard-000")).unwrap(),
            &|| fs::write(extent("shard-000"), "").unwrap(),
            &|| fs::create_dir(path.join("shard-001")).unwrap(),
            &|| fs::write(extent("shard-001"), "").unwrap(),
            &|| fs::write(path.join("superblock.tmp"), &superblock[..100]).unwrap(),
            &|| fs::write(path.join("superblock.tmp"), &superblock).unwrap(),
        ];
        steps[..stage].iter().for_each(|step| step());
        let data = DataDir::open(path, LAYOUT).unwrap_or_else(|e| panic!("stage {stage}: {e}"));
        assert_eq!((data.shards().len(), data.superblock().boot_count), (2, 1));
    }
}

#[test]
fn a_folder_of_something_else_is_refused_and_left_alone() {
    let dir = folder();
    fs::write(dir.path().join("thesis.txt"), "mine").unwrap();
    let error = DataDir::open(dir.path(), LAYOUT).unwrap_err();
    assert!(
        matches!(&error, DataDirError::NotEmpty { found, .. } if found.ends_with("thesis.txt")),
        "{error}"
    );
    fs::remove_file(dir.path().join("lock")).unwrap();
    assert_eq!(contents(dir.path()).len(), 1);
    let error = DataDir::open_read_only(dir.path()).unwrap_err();
    assert!(matches!(error, DataDirError::NotADataDir { .. }), "{error}");
    let error = DataDir::open(&dir.path().join("thesis.txt"), LAYOUT).unwrap_err();
    assert!(matches!(error, DataDirError::NotAFolder { .. }), "{error}");
    let error = DataDir::open_read_only(&dir.path().join("nowhere")).unwrap_err();
    assert!(matches!(error, DataDirError::Missing { .. }), "{error}");
    assert!(!dir.path().join("nowhere").exists());
}

#[test]
fn data_whose_superblock_is_gone_is_not_taken_for_new() {
    let dir = folder();
    drop(DataDir::open(dir.path(), LAYOUT).unwrap());
    let segment = dir.path().join("shard-001").join(segment_name(SegmentSeq(0)));
    put(&segment, MIN_SEGMENT_LEN);
    fs::remove_file(dir.path().join("superblock")).unwrap();
    let error = DataDir::open(dir.path(), LAYOUT).unwrap_err();
    assert!(matches!(&error, DataDirError::SuperblockMissing { found, .. } if *found == segment), "{error}");
    assert!(!dir.path().join("superblock").exists());
}

#[test]
fn files_are_listed_in_order_and_strangers_are_reported() {
    let dir = folder();
    drop(DataDir::open(dir.path(), LAYOUT).unwrap());
    let shard = dir.path().join("shard-001");
    for number in [300, 2, 17] {
        put(&shard.join(segment_name(SegmentSeq(number))), MIN_SEGMENT_LEN);
        put(&shard.join(spare_name(number + 1)), MIN_SEGMENT_LEN);
    }
    let unfinished = shard.join("spare-0000000000000009.tmp");
    put(&unfinished, 5);
    put(&shard.join("notes"), 5);
    put(&shard.join(spare_name(77)), 5);
    let data = DataDir::open(dir.path(), LAYOUT).unwrap();
    let listed = &data.shards()[1];
    assert_eq!(listed.segments, [2, 17, 300].map(SegmentSeq));
    assert_eq!(listed.extent, Extent::EMPTY);
    assert_eq!(listed.spares, [3, 18, 301]);
    assert_eq!(listed.unknown, [shard.join("notes"), shard.join(spare_name(77))]);
    assert!(data.shards()[0].segments.is_empty());
    assert!(!unfinished.exists(), "what a crash left half made is removed");
    assert!(shard.join("notes").exists());
}

#[test]
fn a_truncated_segment_is_named_with_both_lengths() {
    let dir = folder();
    drop(DataDir::open(dir.path(), LAYOUT).unwrap());
    put(&dir.path().join("shard-000").join(segment_name(SegmentSeq(1))), MIN_SEGMENT_LEN - 4096);
    let text = DataDir::open(dir.path(), LAYOUT).unwrap_err().to_string();
    for part in ["shard-000/segment-0000000000000001", "4190208", "4194304"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_missing_shard_is_named() {
    let dir = folder();
    drop(DataDir::open(dir.path(), LAYOUT).unwrap());
    fs::remove_dir_all(dir.path().join("shard-001")).unwrap();
    let error = DataDir::open(dir.path(), LAYOUT).unwrap_err();
    assert!(matches!(&error, DataDirError::ShardMissing { path } if path.ends_with("shard-001")), "{error}");
}

/// A folder's extent.
fn extent(first: u64, next: u64) -> Extent {
    Extent::new(SegmentSeq(first), SegmentSeq(next)).unwrap()
}

#[test]
fn a_new_shard_has_no_segments_and_says_so() {
    let dir = folder();
    drop(DataDir::open(dir.path(), LAYOUT).unwrap());
    for shard in ["shard-000", "shard-001"] {
        let inside: Vec<_> = contents(&dir.path().join(shard)).into_keys().collect();
        assert_eq!(inside, [dir.path().join(shard).join(extent_name(Extent::EMPTY))]);
    }
}

/// It may be written to from now on, so it must be there from now on.
#[test]
fn a_segment_that_was_made_just_before_a_crash_is_taken_into_the_extent() {
    let dir = folder();
    drop(DataDir::open(dir.path(), LAYOUT).unwrap());
    let shard = dir.path().join("shard-001");
    put(&shard.join(segment_name(SegmentSeq(0))), MIN_SEGMENT_LEN);
    assert_eq!(DataDir::open_read_only(dir.path()).unwrap().shards()[1].extent, Extent::EMPTY);
    assert_eq!(DataDir::open(dir.path(), LAYOUT).unwrap().shards()[1].extent, extent(0, 1));
    assert!(shard.join(extent_name(extent(0, 1))).exists());
    assert_eq!(DataDir::open(dir.path(), LAYOUT).unwrap().shards()[1].extent, extent(0, 1));
    // But not where others are missing: that is to be looked at first.
    put(&shard.join(segment_name(SegmentSeq(2))), MIN_SEGMENT_LEN);
    let before = contents(&shard);
    assert_eq!(DataDir::open(dir.path(), LAYOUT).unwrap().shards()[1].extent, extent(0, 1));
    assert!(contents(&shard) == before);
}

/// A shard's folder may be a file system of its own, and not mounted.
#[test]
fn a_shard_that_has_lost_everything_is_not_taken_for_new() {
    let dir = folder();
    drop(DataDir::open(dir.path(), LAYOUT).unwrap());
    let shard = dir.path().join("shard-001");
    fs::remove_dir_all(&shard).unwrap();
    fs::create_dir(&shard).unwrap();
    for refused in [DataDir::open(dir.path(), LAYOUT), DataDir::open_read_only(dir.path())] {
        let error = refused.unwrap_err();
        assert!(matches!(&error, DataDirError::ExtentMissing { path } if *path == shard), "{error}");
    }
    assert!(contents(&shard).is_empty());
}

#[test]
fn two_opinions_of_what_must_be_there_are_refused() {
    let dir = folder();
    drop(DataDir::open(dir.path(), LAYOUT).unwrap());
    let other = dir.path().join("shard-000").join(extent_name(extent(3, 9)));
    fs::write(&other, "").unwrap();
    let error = DataDir::open(dir.path(), LAYOUT).unwrap_err();
    assert!(matches!(error, DataDirError::ExtentTwice { .. }), "{error}");
    assert!(error.to_string().contains(other.to_str().unwrap()), "{error}");
}

#[test]
fn data_whose_superblock_is_gone_and_whose_segments_are_is_not_taken_for_new() {
    let dir = folder();
    drop(DataDir::open(dir.path(), LAYOUT).unwrap());
    let shard = dir.path().join("shard-000");
    fs::rename(shard.join(extent_name(Extent::EMPTY)), shard.join(extent_name(extent(0, 2)))).unwrap();
    fs::remove_file(dir.path().join("superblock")).unwrap();
    let error = DataDir::open(dir.path(), LAYOUT).unwrap_err();
    assert!(matches!(&error, DataDirError::SuperblockMissing { .. }), "{error}");
}

#[test]
fn a_torn_superblock_heals_and_a_ruined_one_is_refused() {
    let dir = folder();
    let file = dir.path().join("superblock");
    (0..3).for_each(|_| drop(DataDir::open(dir.path(), LAYOUT).unwrap()));
    // The fourth start's write, torn: boot 4 goes where boot 2 was.
    let mut torn = fs::read(&file).unwrap();
    torn[60..BLOCK_LEN].fill(0xff);
    fs::write(&file, &torn).unwrap();
    assert_eq!(DataDir::open(dir.path(), LAYOUT).unwrap().superblock().boot_count, 4);

    let mut ruined = fs::read(&file).unwrap();
    ruined[40] ^= 1;
    ruined[BLOCK_LEN + 40] ^= 1;
    fs::write(&file, &ruined).unwrap();
    let error = DataDir::open(dir.path(), LAYOUT).unwrap_err();
    assert!(error.to_string().contains("superblock: neither of its two copies is whole"), "{error}");
    assert!(fs::read(&file).unwrap() == ruined, "nothing made worse");

    fs::write(&file, &ruined[..100]).unwrap();
    let error = DataDir::open(dir.path(), LAYOUT).unwrap_err();
    let length =
        matches!(error, DataDirError::Superblock { source: SuperblockError::Length { found: 100 }, .. });
    assert!(length, "{error}");
}

#[test]
fn a_layout_out_of_range_is_refused_before_anything_is_made() {
    let dir = folder();
    for layout in [Layout { shards: 0, ..LAYOUT }, Layout { segment_len: 4096, ..LAYOUT }] {
        let error = DataDir::open(&dir.path().join("new"), layout).unwrap_err();
        assert!(matches!(error, DataDirError::Layout { .. }), "{error}");
    }
    drop(DataDir::open(&dir.path().join("new"), LAYOUT).unwrap());
}

#[test]
fn a_read_only_file_system_can_be_looked_at_but_not_served() {
    on_small_file_system(1 << 20, |path| {
        drop(DataDir::open(path, LAYOUT).unwrap());
        make_read_only(path);
        let error = DataDir::open(path, LAYOUT).unwrap_err();
        assert!(matches!(error, DataDirError::ReadOnly { .. }), "{error}");
        assert_eq!(DataDir::open_read_only(path).unwrap().superblock().boot_count, 1);
    });
}

#[test]
fn a_directory_on_a_full_file_system_opens() {
    on_small_file_system(1 << 20, |path| {
        let data = path.join("data");
        let boots = DataDir::open(&data, LAYOUT).unwrap().superblock().boot_count;
        fs::write(path.join("filler"), vec![1; 2 << 20]).unwrap_err();
        assert_eq!(DataDir::open(&data, LAYOUT).unwrap().superblock().boot_count, boots + 1);
    });
}

#[test]
fn denied_permission_says_what_to_do() {
    let error = failed("open", Path::new("/data/lock"))(std::io::Error::from_raw_os_error(libc::EACCES));
    assert!(error.to_string().contains("must belong to the user"), "{error}");
}
