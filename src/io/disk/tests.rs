//! A shard's disk on a real one: what is asked for is there, durably, or a
//! fault says why not.

mod claims;
mod extent;
mod flushes;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::*;
use crate::buffer::{Buffer, BufferPool};
use crate::io::datadir::{FileName, extent_name, segment_name, spare_name};
use crate::io::pool::{Pool, RegistrationError};
use crate::io::ring::RingConfig;
use crate::io::test_mount::on_small_file_system;
use crate::limits::CHUNK_LEN;
use crate::log::extent::Extent;
use crate::log::recovery::SegmentReader;

const LEN: u64 = 4 << 20;

type DiskEvent = Event<'static, PoolBuffer>;

/// A disk in a folder, with the ring and the pool that it needs.
struct Bench {
    ring: Ring,
    disk: Disk,
    pool: Pool,
    path: PathBuf,
}

fn names(path: &Path) -> BTreeSet<String> {
    fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn list(path: &Path) -> ShardDir {
    let parse = |prefix: &str| {
        let number = |name: String| u64::from_str_radix(name.strip_prefix(prefix)?, 16).ok();
        let mut numbers: Vec<_> = names(path).into_iter().filter_map(number).collect();
        numbers.sort_unstable();
        numbers
    };
    let whole =
        |&number: &u64| fs::metadata(path.join(spare_name(number))).is_ok_and(|file| file.len() == LEN);
    let (spares, others): (Vec<_>, Vec<_>) = parse("spare-").into_iter().partition(whole);
    let segments: Vec<_> = parse("segment-").into_iter().map(SegmentSeq).collect();
    ShardDir {
        shard: ShardId(3),
        path: path.to_owned(),
        extent: extent(path, &segments),
        segments,
        spares,
        unknown: others.into_iter().map(|number| path.join(spare_name(number))).collect(),
    }
}

/// What the folder says must be there; a folder that the test has filled by hand
/// is made to say what is there.
fn extent(path: &Path, segments: &[SegmentSeq]) -> Extent {
    let mut said = fs::read_dir(path).unwrap().filter_map(|entry| {
        match FileName::parse(entry.unwrap().file_name().to_str()?) {
            Some(FileName::Extent(extent)) => Some(extent),
            _ => None,
        }
    });
    said.next().unwrap_or_else(|| {
        let ends = segments.first().zip(segments.last());
        let there = ends.and_then(|(first, last)| Extent::new(*first, last.next()));
        let extent = there.unwrap_or(Extent::EMPTY);
        File::create(path.join(extent_name(extent))).unwrap();
        extent
    })
}

impl Bench {
    fn new(path: &Path, config: DiskConfig) -> Bench {
        let mut ring = Ring::new(RingConfig { entries: 16, completions: 64 }).unwrap();
        let pool = Pool::new(2 * CHUNK_LEN).unwrap();
        // Users without privilege may lock little, for all their processes: what is
        // not registered works as well.
        match ring.register_pool(&pool) {
            Ok(()) | Err(RegistrationError::Memlock { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        let disk = Disk::new(config, &list(path)).unwrap();
        Bench { ring, disk, pool, path: path.to_owned() }
    }

    fn turn(&mut self) {
        self.ring.submit_and_wait(Some(Duration::from_secs(20))).unwrap();
        while let Some(completion) = self.ring.next_completion() {
            assert_eq!(Disk::shard_of(completion.token), ShardId(3));
            self.disk.complete(&mut self.ring, completion);
        }
        self.disk.tick(&mut self.ring, clock::mono_us());
    }

    fn event(&mut self) -> DiskEvent {
        let start = Instant::now();
        loop {
            if let Some(event) = self.disk.next_event() {
                return event;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "no answer");
            self.turn();
        }
    }

    fn settle(&mut self) {
        while self.disk.in_flight() > 0 {
            self.turn();
        }
    }

    fn prepare(&mut self, segment: u64) -> Result<(), DiskFault> {
        self.disk.prepare(&mut self.ring, SegmentSeq(segment));
        match self.event() {
            Event::SegmentPrepared { segment: done, result } => {
                assert_eq!(done, SegmentSeq(segment));
                result
            }
            other => panic!("{other:?}"),
        }
    }

    fn write(&mut self, segment: u64, position: u64, byte: u8, len: usize) -> Result<(), DiskFault> {
        let mut piece = self.pool.take().unwrap();
        drop(piece.split_off(len));
        piece.fill(byte);
        self.disk.write(&mut self.ring, WriteToken(position), SegmentSeq(segment), position, piece.freeze());
        match self.event() {
            Event::Written { token, result } => {
                assert_eq!(token, WriteToken(position));
                result
            }
            other => panic!("{other:?}"),
        }
    }

    fn read(&mut self, segment: u64, position: u64, len: usize) -> Result<PoolBuffer, DiskFault> {
        let mut piece = self.pool.take().unwrap();
        drop(piece.split_off(len));
        self.disk.read(&mut self.ring, ReadToken(9), SegmentSeq(segment), position, piece);
        match self.event() {
            Event::Read { token: ReadToken(9), result } => result,
            other => panic!("{other:?}"),
        }
    }

    /// Names of the files, but for the extent's.
    fn names(&self) -> BTreeSet<String> {
        let names =
            fs::read_dir(&self.path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !matches!(FileName::parse(name), Some(FileName::Extent(_)))).collect()
    }

    fn spares_on_disk(&self) -> usize {
        self.names().iter().filter(|name| name.starts_with("spare-")).count()
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(".").unwrap()
}

fn direct() -> DiskConfig {
    DiskConfig::new(LEN, FileMode::Direct)
}

/// The file system's flags of the file's extents, ored together
/// (`FS_IOC_FIEMAP`), without having it written back for the asking.
fn extent_flags(path: &Path) -> u32 {
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Extent {
        logical: u64,
        physical: u64,
        length: u64,
        reserved: [u64; 2],
        flags: u32,
        reserved_tail: [u32; 3],
    }
    #[repr(C)]
    struct Fiemap {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        count: u32,
        reserved: u32,
        extents: [Extent; 64],
    }
    const FS_IOC_FIEMAP: u64 = 0xc020_660b;
    let mut map = Fiemap {
        start: 0,
        length: u64::MAX,
        flags: 0,
        mapped: 0,
        count: 64,
        reserved: 0,
        extents: [Extent::default(); 64],
    };
    let file = File::open(path).unwrap();
    // SAFETY: the kernel fills at most `count` extents of the struct.
    let asked = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &mut map) };
    assert_eq!(asked, 0, "{}", io::Error::last_os_error());
    assert!(map.mapped > 0 && map.mapped < 64);
    map.extents[..map.mapped as usize].iter().fold(0, |all, extent| all | extent.flags)
}

const UNKNOWN: u32 = 0x2;
const DELALLOC: u32 = 0x4;
const UNWRITTEN: u32 = 0x800;

#[test]
fn a_prepared_segment_has_its_name_its_length_and_written_zeros() {
    let dir = folder();
    let mut bench = Bench::new(dir.path(), direct());
    bench.prepare(0).unwrap();
    assert_eq!(bench.names(), BTreeSet::from([segment_name(SegmentSeq(0))]));
    let path = dir.path().join(segment_name(SegmentSeq(0)));
    // Before anything else touches it: no block is left for a later flush to
    // allocate or convert.
    assert_eq!(extent_flags(&path) & (UNWRITTEN | DELALLOC | UNKNOWN), 0);
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, LEN);
    assert!(bytes.iter().all(|&byte| byte == 0));
    assert!(bench.disk.stats().zeroed_bytes == LEN || bench.disk.stats().zeroed_bytes == 0);
}

#[test]
fn what_is_written_is_read_back_here_and_by_the_next_start() {
    let dir = folder();
    let mut bench = Bench::new(dir.path(), direct());
    bench.prepare(5).unwrap();
    bench.write(5, 0, 0xaa, 4096).unwrap();
    bench.write(5, LEN - 8192, 0xbb, 8192).unwrap();
    assert!(bench.read(5, 0, 8192).unwrap().iter().eq([[0xaa; 4096], [0; 4096]].as_flattened()));
    let stats = bench.disk.stats();
    assert_eq!((stats.writes, stats.written_bytes, stats.reads, stats.read_bytes), (2, 12288, 1, 8192));
    assert!(stats.write_latency_us(0.5) > 0);
    drop(bench);

    // The next start finds it listed, and opens it when it is needed.
    let mut bench = Bench::new(dir.path(), direct());
    assert!(bench.read(5, LEN - 8192, 8192).unwrap().iter().all(|&byte| byte == 0xbb));
    let reader = FolderReader::new(dir.path(), FileMode::Direct);
    let mut piece = bench.pool.take().unwrap();
    reader.read(SegmentSeq(5), LEN - 4096, &mut piece[..4096]).unwrap();
    assert!(piece[..4096].iter().all(|&byte| byte == 0xbb));
    let beyond = reader.read(SegmentSeq(5), LEN - 4096, &mut piece[..8192]).unwrap_err();
    assert_eq!((beyond.operation, beyond.errno), ("read", 0));
    let missing = reader.read(SegmentSeq(6), 0, &mut piece[..4096]).unwrap_err();
    assert_eq!(missing.errno, libc::ENOENT);
}

/// A write through the cache leaves its blocks to be found later, unless it is
/// flushed: which shows whether a write that says durable is.
#[test]
fn a_durable_write_is_flushed_when_it_completes() {
    let dir = folder();
    let mut ring = Ring::new(RingConfig { entries: 4, completions: 8 }).unwrap();
    for durable in [false, true] {
        let path = dir.path().join(format!("{durable}"));
        let file = File::create(&path).unwrap();
        let data = Bytes::from(vec![1; 1 << 16]);
        ring.write(Token::new(Class::Disk, 0), Target::Fd(file.as_raw_fd()), 0, data, durable);
        ring.submit_and_wait(None).unwrap();
        assert_eq!(ring.next_completion().unwrap().result, 1 << 16);
        assert_eq!(extent_flags(&path) & DELALLOC == 0, durable);
    }
}

#[test]
fn a_shards_writes_are_flushed_in_buffered_mode_too() {
    for sharing in [Sharing::Never, Sharing::From(0)] {
        let dir = folder();
        let path = dir.path().join(segment_name(SegmentSeq(0)));
        // A hole: whatever is written needs blocks.
        File::create(&path).unwrap().set_len(LEN).unwrap();
        let config = DiskConfig { sharing, ..DiskConfig::new(LEN, FileMode::Buffered) };
        let mut bench = Bench::new(dir.path(), config);
        bench.write(0, 8192, 7, 4096).unwrap();
        assert_eq!(extent_flags(&path) & DELALLOC, 0, "{sharing:?}");
        assert!(bench.read(0, 8192, 4096).unwrap().iter().all(|&byte| byte == 7));
    }
}

#[test]
fn a_spare_is_made_ahead_as_the_log_grows_and_taken_without_writing_zeros_again() {
    let dir = folder();
    let mut bench = Bench::new(dir.path(), direct());
    bench.prepare(0).unwrap();
    bench.disk.start(&mut bench.ring);
    let zeroed = bench.disk.stats().zeroed_bytes;
    for position in (0..LEN / 2).step_by(64 << 10) {
        bench.write(0, position, 1, 64 << 10).unwrap();
    }
    bench.settle();
    assert_eq!((bench.disk.spares_ready(), bench.spares_on_disk()), (1, 1));
    assert_eq!(bench.disk.stats().zeroed_bytes, 2 * zeroed);
    bench.prepare(1).unwrap();
    bench.settle();
    assert_eq!(bench.disk.stats().zeroed_bytes, 2 * zeroed, "no third file while nothing more is written");
    let path = dir.path().join(segment_name(SegmentSeq(1)));
    assert_eq!(extent_flags(&path) & (UNWRITTEN | DELALLOC | UNKNOWN), 0);
}

#[test]
fn spares_of_an_earlier_start_are_used() {
    let dir = folder();
    let mut bench = Bench::new(dir.path(), direct());
    for count in [1, 3] {
        bench.disk.preallocate(&mut bench.ring, count).unwrap();
        assert_eq!((bench.disk.spares_ready(), bench.spares_on_disk()), (count, count));
    }
    drop(bench);
    let mut bench = Bench::new(dir.path(), direct());
    bench.disk.preallocate(&mut bench.ring, 3).unwrap();
    bench.disk.start(&mut bench.ring);
    for segment in 0..2 {
        bench.prepare(segment).unwrap();
        bench.write(segment, 4096, 1, 4096).unwrap();
    }
    assert_eq!(bench.disk.stats().zeroed_bytes, 0);
    assert_eq!((bench.disk.spares_ready(), bench.spares_on_disk()), (1, 1));
}

#[test]
fn a_recycled_segment_serves_the_next_one() {
    let dir = folder();
    let mut bench = Bench::new(dir.path(), direct());
    bench.prepare(0).unwrap();
    bench.write(0, 4096, 0xcc, 4096).unwrap();
    let zeroed = bench.disk.stats().zeroed_bytes;
    bench.disk.recycle(&mut bench.ring, SegmentSeq(0));
    // Asked for before the recycling has ended.
    bench.prepare(1).unwrap();
    assert_eq!(bench.names(), BTreeSet::from([segment_name(SegmentSeq(1))]));
    assert_eq!(bench.disk.stats().zeroed_bytes, zeroed);
    assert!(bench.read(1, 4096, 4096).unwrap().iter().all(|&byte| byte == 0xcc), "as it was left");
    let fault = bench.read(0, 4096, 4096).unwrap_err();
    assert_eq!(fault.errno, libc::ENOENT);
}

/// A crash between two changes of names must not leave a hole in the log: the
/// older segment is gone before the younger.
#[test]
fn names_change_one_at_a_time_in_the_order_asked_for() {
    let dir = folder();
    let mut bench = Bench::new(dir.path(), DiskConfig { spares_max: 9, ..direct() });
    (0..4).for_each(|segment| bench.prepare(segment).unwrap());
    (0..4).for_each(|segment| bench.disk.recycle(&mut bench.ring, SegmentSeq(segment)));
    let mut left: Vec<_> = list(dir.path()).segments;
    while bench.disk.in_flight() > 0 {
        assert!(bench.disk.in_flight() <= 1, "one at a time");
        bench.turn();
        let now = list(dir.path()).segments;
        assert!(left.ends_with(&now), "{now:?} after {left:?}");
        left = now;
    }
    assert_eq!((left.len(), bench.disk.spares_ready()), (0, 4));
}

#[test]
fn spares_beyond_the_bound_are_removed() {
    let dir = folder();
    let mut bench = Bench::new(dir.path(), DiskConfig { spares_max: 2, ..direct() });
    (0..5).for_each(|segment| bench.prepare(segment).unwrap());
    (0..5).for_each(|segment| bench.disk.recycle(&mut bench.ring, SegmentSeq(segment)));
    bench.settle();
    assert_eq!((bench.disk.spares_ready(), bench.spares_on_disk(), bench.names().len()), (2, 2, 2));
}

#[test]
fn a_segment_that_is_there_already_needs_no_preparing() {
    let dir = folder();
    fs::write(dir.path().join(segment_name(SegmentSeq(7))), vec![1; LEN as usize]).unwrap();
    let mut bench = Bench::new(dir.path(), direct());
    bench.prepare(7).unwrap();
    assert_eq!(bench.names().len(), 1);
}

#[test]
fn without_a_descriptor_left_an_idle_file_gives_up_its_own() {
    let dir = folder();
    fs::write(dir.path().join(segment_name(SegmentSeq(7))), vec![1; LEN as usize]).unwrap();
    let mut bench = Bench::new(dir.path(), direct());
    bench.prepare(8).unwrap();
    let (token, data) = (WriteToken(3), Bytes::from_static(&[]));
    bench.disk.files.opening(SegmentSeq(7));
    bench.disk.files.wait(SegmentSeq(7), Waiting::Write { token, position: 0, data });
    bench.disk.opened(&mut bench.ring, SegmentSeq(7), -libc::EMFILE);
    assert!(matches!(bench.event(), Event::Written { result: Ok(()), .. }));
    assert_eq!(bench.disk.files.find(SegmentSeq(8)), Found::Closed);
    bench.write(8, 0, 1, 4096).unwrap();
}

/// Nothing was written yet, so nothing has failed that could not be repeated.
#[test]
fn a_write_for_whose_file_no_descriptor_is_left_waits_for_one() {
    let dir = folder();
    fs::write(dir.path().join(segment_name(SegmentSeq(7))), vec![0; LEN as usize]).unwrap();
    let mut bench = Bench::new(dir.path(), direct());
    for n in 0..3 {
        bench.disk.files.opening(SegmentSeq(7));
        let data = Bytes::from_static(&[]);
        bench.disk.files.wait(SegmentSeq(7), Waiting::Write { token: WriteToken(n), position: 0, data });
        let refused = [libc::EMFILE, libc::ENFILE, libc::EACCES][n as usize];
        bench.disk.opened(&mut bench.ring, SegmentSeq(7), -refused);
        if refused == libc::EACCES {
            let Some(Event::Written { result: Err(fault), .. }) = bench.disk.next_event() else { panic!() };
            assert_eq!(fault.errno, refused, "that does not pass");
            return;
        }
        let due = bench.disk.next_deadline().expect("it is tried again");
        bench.disk.tick(&mut bench.ring, due - 1);
        assert!(bench.disk.next_event().is_none() && bench.disk.in_flight() == 0, "not before");
        bench.disk.tick(&mut bench.ring, due);
        assert!(matches!(bench.event(), Event::Written { token, result: Ok(()) } if token.0 == n));
        assert_eq!(bench.disk.next_deadline(), None);
        let idle = bench.disk.files.give_up_idle();
        assert!(idle.is_some(), "it was opened");
    }
}

#[test]
fn a_spare_file_of_a_wrong_length_is_in_nobodys_way() {
    let dir = folder();
    fs::write(dir.path().join(spare_name(0)), [1; 100]).unwrap();
    let mut bench = Bench::new(dir.path(), direct());
    bench.prepare(0).unwrap();
    bench.disk.recycle(&mut bench.ring, SegmentSeq(0));
    bench.settle();
    assert_eq!(bench.disk.spares_ready(), 1, "{:?}", bench.names());
    assert_eq!(fs::read(dir.path().join(spare_name(0))).unwrap(), [1; 100]);
}

/// A full disk, for real: refused as such, nothing left lying about, and good
/// again once there is room.
#[test]
fn a_full_disk_is_a_fault_that_passes() {
    on_small_file_system(10 << 20, |path| {
        let mut bench = Bench::new(path, direct());
        bench.disk.start(&mut bench.ring);
        bench.prepare(0).unwrap();
        bench.prepare(1).unwrap();
        bench.settle();
        for _ in 0..3 {
            let fault = bench.prepare(2).unwrap_err();
            assert_eq!((fault.errno, fault.text.as_str()), (libc::ENOSPC, "No space left on device"));
            bench.settle();
            assert_eq!(bench.names().len(), 2, "{:?}", bench.names());
        }
        bench.write(0, 0, 1, 4096).unwrap();
        bench.disk.recycle(&mut bench.ring, SegmentSeq(0));
        bench.prepare(2).unwrap();
        bench.write(2, 0, 1, 4096).unwrap();
    });
}

#[test]
fn preallocating_more_than_there_is_room_for_fails_as_such() {
    on_small_file_system(10 << 20, |path| {
        let mut bench = Bench::new(path, direct());
        let fault = bench.disk.preallocate(&mut bench.ring, 3).unwrap_err();
        assert_eq!(fault.errno, libc::ENOSPC);
        assert_eq!(bench.disk.spares_ready(), 2);
    });
}

#[test]
fn a_failed_write_is_reported_and_not_tried_again() {
    let dir = folder();
    let path = dir.path().join(segment_name(SegmentSeq(0)));
    std::os::unix::fs::symlink("/dev/full", path).unwrap();
    let mut bench = Bench::new(dir.path(), DiskConfig::new(LEN, FileMode::Buffered));
    let fault = bench.write(0, 0, 1, 4096).unwrap_err();
    assert_eq!((fault.operation, fault.errno), ("write", libc::ENOSPC));
    assert_eq!(bench.disk.in_flight(), 0);
}

#[test]
fn a_segment_that_was_cut_short_or_is_gone_is_a_fault() {
    let dir = folder();
    let mut bench = Bench::new(dir.path(), direct());
    bench.prepare(0).unwrap();
    let path = dir.path().join(segment_name(SegmentSeq(0)));
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let fault = bench.read(0, 0, 8192).unwrap_err();
    assert_eq!((fault.errno, fault.text.as_str()), (0, "only 4096 of 8192 bytes"));
    let fault = bench.write(9, 0, 1, 4096).unwrap_err();
    assert_eq!((fault.operation, fault.errno), ("open for writing", libc::ENOENT));
    drop(bench);

    let mut bench = Bench::new(dir.path(), direct());
    fs::remove_file(path).unwrap();
    let fault = bench.read(0, 0, 4096).unwrap_err();
    assert_eq!((fault.operation, fault.errno), ("open for reading", libc::ENOENT));
    assert_eq!(bench.pool.available(), 2, "the buffer is not lost");
}

#[test]
fn a_thousand_segments_do_not_take_a_thousand_descriptors() {
    let dir = folder();
    let len = 16 << 10;
    for segment in 0..150u64 {
        let bytes = vec![segment as u8; len as usize];
        fs::write(dir.path().join(segment_name(SegmentSeq(segment))), bytes).unwrap();
    }
    let mut bench = Bench::new(dir.path(), DiskConfig::new(len, FileMode::Direct));
    let open = || {
        let fds = fs::read_dir("/proc/self/fd").unwrap();
        let here = dir.path().canonicalize().unwrap();
        fds.filter(|fd| {
            fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to.starts_with(&here) && to != here)
        })
        .count()
    };
    for _ in 0..2 {
        for segment in 0..150 {
            let piece = bench.read(segment, 4096, 8192).unwrap();
            assert!(piece.iter().all(|&byte| byte == segment as u8));
        }
        bench.ring.submit().unwrap();
        let open = open();
        assert!((32..=64).contains(&open), "{open} open");
    }
}

/// Dropping in the middle of the work closes nothing that an operation still
/// names by number.
#[test]
fn dropping_a_disk_at_work_harms_no_other_file() {
    let dir = folder();
    let mut bench = Bench::new(dir.path(), direct());
    bench.disk.prepare(&mut bench.ring, SegmentSeq(0));
    while bench.disk.in_flight() < 4 {
        bench.turn();
    }
    // Writes of zeros are queued and not yet submitted.
    let Bench { mut ring, disk, .. } = bench;
    drop(disk);
    let others: Vec<_> = (0..16)
        .map(|n| {
            let path = dir.path().join(format!("other-{n}"));
            fs::write(&path, vec![0xee; 2 << 20]).unwrap();
            (File::options().read(true).write(true).open(&path).unwrap(), path)
        })
        .collect();
    while ring.outstanding() > 0 {
        ring.submit_and_wait(Some(Duration::from_secs(20))).unwrap();
        while ring.next_completion().is_some() {}
    }
    for (_, path) in &others {
        assert!(fs::read(path).unwrap().iter().all(|&byte| byte == 0xee), "{}", path.display());
    }
}

#[test]
#[should_panic(expected = "4096 bytes at 4194304 of a segment")]
fn a_write_beyond_the_end_is_our_bug() {
    let dir = folder();
    let mut bench = Bench::new(dir.path(), direct());
    let _ = bench.write(0, LEN, 1, 4096);
}
