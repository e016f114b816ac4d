//! A disk that does what disks do: writes end in any order, a crash keeps,
//! loses or tears each unfinished one, recycled files hold their old bytes.
//!
//! It also checks what a driver of the real disk relies on: alignment, bounds,
//! bytes that hold still while they are written, and blocks that are written
//! once. It knows nothing of commits.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use ringbolt::limits::BLOCK_LEN;
use ringbolt::log::SegmentSeq;
use ringbolt::log::extent::Extent;
use ringbolt::log::recovery::SegmentReader;
use ringbolt::shard::event::DiskFault;
use ringbolt_wire::crc32c;

use super::pool::SimBuffer;
use super::rng::Rng;

/// What a disk writes whole, in bytes, whatever happens.
const SECTOR_LEN: usize = 512;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// What becomes of an unfinished write at a crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Lost,
    Kept,
    /// Only the sectors from the second one on, so that what remains has no
    /// beginning.
    Beheaded,
    /// Only the first half of its sectors.
    CutShort,
    /// All but its second block.
    Holed,
    /// Only its second block.
    SecondBlock,
}

/// How a disk behaves.
#[derive(Clone, Copy, Debug)]
pub struct DiskHabits {
    /// Usual longest time of a write, µs.
    pub write_us: u64,
    /// One in so many operations takes a hundred times as long.
    pub slow_one_in: u64,
    /// One in so many reads fails; 0 for none.
    pub read_fails_one_in: u64,
}

/// One shard's folder of segments.
#[derive(Debug)]
pub struct Disk {
    segment_len: usize,
    habits: DiskHabits,
    rng: Rng,
    files: BTreeMap<SegmentSeq, Vec<u8>>,
    /// The segments that the shard's folder says must be there.
    extent: Extent,
    /// Blocks written since the broker started, by segment.
    written: BTreeMap<SegmentSeq, BTreeSet<u64>>,
    spares: Vec<Vec<u8>>,
    /// Segments renamed to spares, the last `recycled.len()` of `spares`, whose
    /// rename no later sync of the folder has made sure of.
    recycled: Vec<SegmentSeq>,
    writes: BTreeMap<u64, PendingWrite>,
    reads: BTreeMap<u64, PendingRead>,
    prepares: BTreeSet<SegmentSeq>,
    full: bool,
    fail_next_write: bool,
    /// What is to become of unfinished writes, oldest first, instead of chance.
    fates: VecDeque<Fate>,
}

#[derive(Debug)]
struct PendingWrite {
    segment: SegmentSeq,
    position: usize,
    data: Bytes,
    crc: u32,
}

#[derive(Debug)]
struct PendingRead {
    segment: SegmentSeq,
    position: usize,
    buffer: SimBuffer,
}

impl Disk {
    pub fn new(segment_len: u64, habits: DiskHabits, rng: Rng) -> Disk {
        Disk {
            segment_len: segment_len as usize,
            habits,
            rng,
            files: BTreeMap::new(),
            extent: Extent::EMPTY,
            written: BTreeMap::new(),
            spares: Vec::new(),
            recycled: Vec::new(),
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            prepares: BTreeSet::new(),
            full: false,
            fail_next_write: false,
            fates: VecDeque::new(),
        }
    }

    /// Decides what the next crash does to unfinished writes, oldest first.
    pub fn set_fates(&mut self, fates: &[Fate]) {
        self.fates = fates.iter().copied().collect();
    }

    /// Starts a write; returns how long it will take, in µs.
    pub fn submit_write(&mut self, token: u64, segment: SegmentSeq, position: u64, data: Bytes) -> u64 {
        self.check_place("write", segment, position, data.len());
        let address = data.as_ptr();
        assert_eq!(address.align_offset(BLOCK_LEN), 0, "write from memory that is not aligned");
        let written = self.written.entry(segment).or_default();
        for at in (position..position + data.len() as u64).step_by(BLOCK_LEN) {
            assert!(written.insert(at), "segment {segment}: the block at {at} is written a second time");
        }
        let crc = crc32c(&data);
        let write = PendingWrite { segment, position: position as usize, data, crc };
        assert!(self.writes.insert(token, write).is_none(), "write token {token} is in use");
        self.latency()
    }

    /// Starts a read; returns how long it will take, in µs.
    pub fn submit_read(&mut self, token: u64, segment: SegmentSeq, position: u64, buffer: SimBuffer) -> u64 {
        self.check_place("read", segment, position, buffer.as_ref().len());
        assert_eq!(buffer.as_ref().as_ptr().align_offset(BLOCK_LEN), 0, "read into unaligned memory");
        let read = PendingRead { segment, position: position as usize, buffer };
        assert!(self.reads.insert(token, read).is_none(), "read token {token} is in use");
        self.latency()
    }

    /// Starts to make a segment's file; returns how long it will take, in µs.
    pub fn submit_prepare(&mut self, segment: SegmentSeq) -> u64 {
        assert!(self.prepares.insert(segment), "segment {segment} is being prepared already");
        self.latency() * 20
    }

    fn check_place(&self, what: &str, segment: SegmentSeq, position: u64, len: usize) {
        let aligned = position.is_multiple_of(BLOCK_LEN as u64) && len.is_multiple_of(BLOCK_LEN);
        let fits = position as usize + len <= self.segment_len;
        assert!(aligned && len > 0 && fits, "{what} of {len} bytes at {position} of segment {segment}");
        assert!(self.files.contains_key(&segment), "{what} in segment {segment}, which is not there");
    }

    fn latency(&mut self) -> u64 {
        let usual = self.rng.between(1, self.habits.write_us);
        if self.rng.one_in(self.habits.slow_one_in) { usual * 100 } else { usual }
    }

    /// The write ends: its bytes are on the disk for good, or, if it fails,
    /// in any state. The caller tells the shard.
    pub fn finish_write(&mut self, token: u64) -> Result<(), DiskFault> {
        let write = self.writes.remove(&token).expect("a write that was submitted");
        assert_eq!(crc32c(&write.data), write.crc, "bytes changed while they were written");
        if std::mem::take(&mut self.fail_next_write) {
            self.strike(&write);
            return Err(fault("write", EIO, "Input/output error"));
        }
        self.store(&write, |_| true);
        Ok(())
    }

    /// The read ends with what is on the disk now; sectors that are just being
    /// written may be old or new.
    pub fn finish_read(&mut self, token: u64) -> Result<SimBuffer, DiskFault> {
        let mut read = self.reads.remove(&token).expect("a read that was submitted");
        let fails_one_in = self.habits.read_fails_one_in;
        if fails_one_in > 0 && self.rng.one_in(fails_one_in) {
            return Err(fault("read", EIO, "Input/output error"));
        }
        let file = &self.files[&read.segment];
        let end = read.position + read.buffer.as_ref().len();
        let into = read.buffer.as_mut();
        into.copy_from_slice(&file[read.position..end]);
        for write in self.writes.values().filter(|write| write.segment == read.segment) {
            for (i, sector) in write.data.chunks(SECTOR_LEN).enumerate() {
                let at = write.position + i * SECTOR_LEN;
                if at >= read.position && at < end && self.rng.percent(50) {
                    into[at - read.position..][..SECTOR_LEN].copy_from_slice(sector);
                }
            }
        }
        Ok(read.buffer)
    }

    /// The file is there, or there was no room. A file that has the name
    /// already is taken as it is.
    pub fn finish_prepare(&mut self, segment: SegmentSeq) -> Result<(), DiskFault> {
        assert!(self.prepares.remove(&segment));
        self.written.remove(&segment);
        let may_recycle = !self.spares.is_empty();
        if self.full && !may_recycle && !self.files.contains_key(&segment) {
            return Err(fault("fallocate", ENOSPC, "No space left on device"));
        }
        self.make_file(segment);
        self.extent = self.extent.with(segment);
        // The folder was synced, and with it every rename before.
        self.recycled.clear();
        Ok(())
    }

    fn make_file(&mut self, segment: SegmentSeq) {
        if self.files.contains_key(&segment) {
            return;
        }
        let spare = self.spares.pop();
        self.recycled.truncate(self.spares.len());
        self.files.insert(segment, spare.unwrap_or_else(|| vec![0; self.segment_len]));
    }

    /// Renames a segment's file to a spare one, which need not be there from now
    /// on.
    pub fn recycle(&mut self, segment: SegmentSeq) {
        let busy = self.writes.values().any(|write| write.segment == segment)
            || self.reads.values().any(|read| read.segment == segment);
        assert!(!busy, "segment {segment} is recycled while it is read or written");
        let oldest = self.files.first_key_value().map(|(oldest, _)| *oldest);
        assert_eq!(oldest, Some(segment), "segments are recycled oldest first: a log has no holes");
        self.extent = self.extent.without(segment);
        let file = self.files.remove(&segment).expect("a segment that is there");
        self.spares.push(file);
        self.recycled.push(segment);
    }

    /// The machine goes down: what becomes of everything unfinished is chance.
    pub fn crash(&mut self) {
        for (_, write) in std::mem::take(&mut self.writes) {
            self.strike(&write);
        }
        self.reads.clear();
        // A journaling file system keeps a prefix of the renames.
        let undone =
            if self.recycled.is_empty() { 0 } else { self.rng.below(self.recycled.len() as u64 + 1) };
        for _ in 0..undone {
            let (Some(segment), Some(file)) = (self.recycled.pop(), self.spares.pop()) else { break };
            self.files.insert(segment, file);
            // The last one undone may be the one whose turn it was.
            let first = if self.rng.percent(50) { segment } else { segment.next() };
            self.extent = Extent::new(first, self.extent.next()).expect("the open segment is younger");
        }
        for segment in std::mem::take(&mut self.prepares) {
            if self.rng.percent(50) {
                self.make_file(segment);
                if self.rng.percent(50) {
                    self.extent = self.extent.with(segment);
                }
            }
        }
        self.recycled.clear();
        self.written.clear();
        self.fail_next_write = false;
    }

    /// A broker that has stopped in order leaves nothing unfinished but
    /// preparations, which it does not wait for.
    pub fn stop(&mut self) {
        assert!(self.writes.is_empty(), "a drained shard has writes in flight");
        self.crash();
    }

    fn strike(&mut self, write: &PendingWrite) {
        if let Some(fate) = self.fates.pop_front() {
            let sectors = write.data.len() / SECTOR_LEN;
            return self.store(write, |sector| match fate {
                Fate::Lost => false,
                Fate::Kept => true,
                Fate::Beheaded => sector > 0,
                Fate::CutShort => sector < sectors / 2,
                Fate::Holed => sector * SECTOR_LEN / BLOCK_LEN != 1,
                Fate::SecondBlock => sector * SECTOR_LEN / BLOCK_LEN == 1,
            });
        }
        let mut rng = self.rng.fork();
        match rng.below(10) {
            0..4 => {}
            4..7 => self.store(write, |_| true),
            _ => {
                let percent = rng.pick(&[5, 50, 95]);
                self.store(write, |_| rng.percent(percent));
            }
        }
    }

    fn store(&mut self, write: &PendingWrite, mut keeps: impl FnMut(usize) -> bool) {
        let file = self.files.get_mut(&write.segment).expect("a segment that is written is there");
        for (i, sector) in write.data.chunks(SECTOR_LEN).enumerate() {
            if keeps(i) {
                file[write.position + i * SECTOR_LEN..][..SECTOR_LEN].copy_from_slice(sector);
            }
        }
    }

    /// From now on there is no room for a new file, or there is again.
    pub fn set_full(&mut self, full: bool) {
        self.full = full;
    }

    /// The next write to end will fail.
    pub fn fail_next_write(&mut self) {
        self.fail_next_write = true;
    }

    pub fn has_pending_writes(&self) -> bool {
        !self.writes.is_empty()
    }

    /// What a start does with a segment that was made just before a crash: it
    /// must be there from now on.
    pub fn start(&mut self) -> Extent {
        let found = self.segments();
        if let (Some(&newest), []) = (found.last(), &self.extent.missing(&found)[..]) {
            self.extent = self.extent.with(newest);
        }
        self.extent
    }

    /// The segments that are there, ascending.
    pub fn segments(&self) -> Vec<SegmentSeq> {
        self.files.keys().copied().collect()
    }

    /// What is on the disk, as a file shows it.
    pub fn file(&self, segment: SegmentSeq) -> Option<&[u8]> {
        self.files.get(&segment).map(Vec::as_slice)
    }

    /// A bit rots.
    pub fn flip(&mut self, segment: SegmentSeq, position: usize, bit: u8) {
        self.files.get_mut(&segment).expect("a segment that is there")[position] ^= 1 << bit;
    }

    /// Somebody deletes a file.
    pub fn delete(&mut self, segment: SegmentSeq) {
        self.files.remove(&segment).expect("a segment that is there");
    }
}

fn fault(operation: &'static str, errno: i32, text: &str) -> DiskFault {
    DiskFault { operation, errno, text: text.to_owned() }
}

/// Recovery's view of a disk; counts what it reads.
#[derive(Debug)]
pub struct DiskReader<'a> {
    disk: &'a Disk,
    bytes_read: RefCell<u64>,
}

impl<'a> DiskReader<'a> {
    pub fn new(disk: &'a Disk) -> Self {
        DiskReader { disk, bytes_read: RefCell::new(0) }
    }

    pub fn bytes_read(&self) -> u64 {
        *self.bytes_read.borrow()
    }
}

impl SegmentReader for DiskReader<'_> {
    fn read(&self, segment: SegmentSeq, position: u64, into: &mut [u8]) -> Result<(), DiskFault> {
        self.disk.check_place("read", segment, position, into.len());
        assert_eq!(into.as_ptr().align_offset(BLOCK_LEN), 0, "recovery reads into unaligned memory");
        let from = position as usize;
        into.copy_from_slice(&self.disk.files[&segment][from..from + into.len()]);
        *self.bytes_read.borrow_mut() += into.len() as u64;
        Ok(())
    }
}
