//! Who may still write to a segment, when its broker is gone.

use super::*;
use crate::io::disk::claim::{claim, wait_for_writes};

/// As the next start finds it, should this process be killed now.
fn is_locked(dir: &Path, segment: u64) -> bool {
    File::open(dir.join(segment_name(SegmentSeq(segment)))).unwrap().try_lock_shared().is_err()
}

/// A disk with a segment that was written to.
fn written(dir: &Path) -> Bench {
    let mut bench = Bench::new(dir, direct());
    bench.prepare(0).unwrap();
    bench.write(0, 0, 1, 4096).unwrap();
    bench
}

/// A broker is killed while a device is slow. What it had in flight must not land
/// over what the next one has put there and acknowledged.
#[test]
fn a_segment_that_is_written_to_stays_locked_until_its_writes_have_ended() {
    let dir = folder();
    let mut bench = written(dir.path());
    assert!(is_locked(dir.path(), 0));
    let piece = bench.pool.take().unwrap();
    bench.disk.write(&mut bench.ring, WriteToken(4096), SegmentSeq(0), 4096, piece.freeze());
    let Bench { mut ring, disk, .. } = bench;
    drop(disk);
    assert!(is_locked(dir.path(), 0), "a write is in flight");
    assert!(ring.quiesce());
    // Nobody has told the disk, which has left its files open.
    let mut next = Bench::new(dir.path(), direct());
    let refused = next.write(0, 8192, 1, 4096).unwrap_err();
    assert_eq!((refused.operation, refused.errno), ("lock for writing", libc::EWOULDBLOCK));
}

#[test]
fn a_segment_is_unlocked_by_a_disk_that_is_told_that_all_has_ended() {
    let dir = folder();
    let mut bench = written(dir.path());
    let piece = bench.pool.take().unwrap();
    bench.disk.write(&mut bench.ring, WriteToken(4096), SegmentSeq(0), 4096, piece.freeze());
    assert!(bench.ring.quiesce());
    bench.disk.all_ended();
    drop(bench);
    assert!(!is_locked(dir.path(), 0));
}

#[test]
fn an_idle_segment_is_unlocked_at_the_end_though_a_spare_file_is_being_made() {
    let dir = folder();
    let mut bench = written(dir.path());
    bench.disk.prepare(&mut bench.ring, SegmentSeq(1));
    assert!(bench.disk.in_flight() > 0);
    drop(bench);
    assert!(!is_locked(dir.path(), 0));
}

/// Its descriptor was given up meanwhile, for others that were read.
#[test]
fn an_idle_segment_can_be_written_to_again() {
    let dir = folder();
    for segment in 0..150u64 {
        fs::write(dir.path().join(segment_name(SegmentSeq(segment))), [0; 16 << 10]).unwrap();
    }
    let mut bench = Bench::new(dir.path(), DiskConfig::new(16 << 10, FileMode::Direct));
    bench.write(0, 4096, 7, 4096).unwrap();
    for segment in 1..150 {
        bench.read(segment, 4096, 8192).unwrap();
    }
    assert!(!is_locked(dir.path(), 0));
    bench.write(0, 8192, 8, 4096).unwrap();
    assert!(is_locked(dir.path(), 0));
}

#[test]
fn what_is_read_at_a_start_is_what_writes_still_on_their_way_have_left() {
    let dir = folder();
    let path = dir.path().join(segment_name(SegmentSeq(0)));
    fs::write(&path, vec![0; LEN as usize]).unwrap();
    let writer = File::options().write(true).open(&path).unwrap();
    claim(&writer).unwrap();
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        std::os::unix::fs::FileExt::write_all_at(&writer, &[7; 4096], 0).unwrap();
        drop(writer);
    });
    let reader = FolderReader::new(dir.path(), FileMode::Buffered);
    let mut block = [0; 4096];
    reader.read(SegmentSeq(0), 0, &mut block).unwrap();
    assert_eq!(block, [7; 4096]);
    assert!(!is_locked(dir.path(), 0) && File::open(&path).unwrap().try_lock().is_ok());
    late.join().unwrap();
}

#[test]
fn writes_that_never_end_are_waited_for_only_so_long() {
    let dir = folder();
    let path = dir.path().join("segment");
    let writer = File::create(&path).unwrap();
    claim(&writer).unwrap();
    let patience = Duration::from_millis(50);
    let error = wait_for_writes(&File::open(&path).unwrap(), &path, patience).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}
