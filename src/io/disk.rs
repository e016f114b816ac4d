//! One shard's segments on disk: carries out what the shard asks for, on the
//! core's ring, and turns the completions into events.
//!
//! A failed or short write is reported and never tried again: what the kernel
//! could not write it may have dropped. What the bytes mean is not known here.

mod choice;
mod claim;
mod files;
mod flush;
mod mode;
mod reader;
mod spares;
mod stats;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use bytes::Bytes;
use ringbolt_wire::ShardId;
use slab::Slab;

use crate::io::clock;
use crate::io::datadir::ShardDir;
use crate::io::pool::PoolBuffer;
use crate::io::ring::{Class, Completion, Ring, Target, Token};
use crate::limits::BLOCK_LEN;
use crate::log::SegmentSeq;
use crate::shard::action::{ReadToken, WriteToken};
use crate::shard::event::{DiskFault, Event};
use choice::Choice;
use files::{Files, Found};
use flush::{Flushes, PendingWrite};
pub use mode::{FileMode, choose_mode, readable_mode};
pub use reader::FolderReader;
use spares::{Spares, Step};
pub use stats::DiskStats;

/// How long a write waits until its segment's file is opened again, in µs, when
/// there was no descriptor for it.
const REOPEN_US: u64 = 50_000;

/// How a shard's disk is driven.
#[derive(Clone, Copy, Debug)]
pub struct DiskConfig {
    /// Length of a segment in bytes, as the superblock says.
    pub segment_len: u64,
    /// Past the kernel's cache, or through it.
    pub mode: FileMode,
    /// Which writes share flushes.
    pub sharing: Sharing,
    /// Spare files that are kept ready ahead of need. 1 is enough unless
    /// segments fill faster than they are zero-written.
    pub spares_ahead: usize,
    /// Most spare files; what is recycled beyond it is removed. At least
    /// `spares_ahead`.
    pub spares_max: usize,
}

impl DiskConfig {
    /// One spare ahead, at most four; each write is flushed with itself.
    pub fn new(segment_len: u64, mode: FileMode) -> Self {
        DiskConfig { segment_len, mode, sharing: Sharing::Never, spares_ahead: 1, spares_max: 4 }
    }
}

/// Which writes are not flushed with themselves (`RWF_DSYNC`) but share a flush
/// with others; see [`Flushes`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// None.
    Never,
    /// Those that find so many others in flight.
    From(usize),
    /// The same, and the others as well while they are faster so; see [`Choice`].
    Adaptive(usize),
}

/// What an operation in flight is for.
#[derive(Debug)]
enum Op {
    Write { segment: SegmentSeq, write: PendingWrite },
    Read { token: ReadToken, segment: SegmentSeq, len: usize, started_us: u64 },
    Flush { segment: SegmentSeq },
    Open { segment: SegmentSeq },
    Spare(Step),
}

/// A read or write whose file is being opened.
#[derive(Debug)]
enum Waiting {
    Write { token: WriteToken, position: u64, data: Bytes },
    Read { token: ReadToken, position: u64, buffer: PoolBuffer },
}

/// One shard's disk. All operations go to the ring that is passed in, always
/// the same one; the completions of [`Class::Disk`] whose token names this
/// shard come back through [`Disk::complete`].
#[derive(Debug)]
pub struct Disk {
    shard: ShardId,
    config: DiskConfig,
    folder: ManuallyDrop<OwnedFd>,
    files: ManuallyDrop<Files>,
    spares: ManuallyDrop<Spares>,
    /// Writes that are not durable yet.
    writes: usize,
    /// The first write or flush that failed. After it nothing is durable any more:
    /// the kernel may have dropped what it could not write, and tells of it once.
    failed: Option<DiskFault>,
    flushes: Flushes,
    choice: Choice,
    ops: Slab<Op>,
    events: VecDeque<Event<'static, PoolBuffer>>,
    stats: DiskStats,
    /// Segments that are to be written to and for which there was no descriptor,
    /// and when they are tried again (monotonic, µs).
    unopened: Vec<SegmentSeq>,
    reopen_at: Option<u64>,
}

impl Disk {
    /// The disk of a shard whose folder was listed. Starts nothing yet.
    pub fn new(config: DiskConfig, dir: &ShardDir) -> io::Result<Disk> {
        let folder = OwnedFd::from(File::open(&dir.path)?);
        Ok(Disk {
            shard: dir.shard,
            config,
            folder: ManuallyDrop::new(folder),
            files: ManuallyDrop::new(Files::new(&dir.segments)),
            spares: ManuallyDrop::new(Spares::new(&config, dir)),
            writes: 0,
            failed: None,
            flushes: Flushes::default(),
            choice: Choice::default(),
            ops: Slab::new(),
            events: VecDeque::new(),
            stats: DiskStats::default(),
            unopened: Vec::new(),
            reopen_at: None,
        })
    }

    /// The shard that a token of [`Class::Disk`] belongs to.
    #[inline]
    pub fn shard_of(token: Token) -> ShardId {
        ShardId((token.value() >> 32) as u16)
    }

    /// Lets spare files be made ahead of need from now on.
    pub fn start(&mut self, ring: &mut Ring) {
        self.spares.keep_ahead();
        self.step_spares(ring);
    }

    /// Makes spare files as fast as the disk allows until there are `count`,
    /// and returns when they are there. The ring must have nothing else in
    /// flight.
    pub fn preallocate(&mut self, ring: &mut Ring, count: usize) -> Result<(), DiskFault> {
        self.spares.want(count);
        self.step_spares(ring);
        while self.spares.ready() < count {
            if let Some(fault) = self.spares.take_fault() {
                return Err(fault);
            }
            ring.submit_and_wait(None).map_err(|e| fault("io_uring_enter", e.raw_os_error().unwrap_or(0)))?;
            while let Some(completion) = ring.next_completion() {
                assert_eq!(completion.token.class(), Class::Disk, "nothing else is in flight");
                self.complete(ring, completion);
            }
        }
        Ok(())
    }

    /// Writes durably; answered by [`Event::Written`].
    ///
    /// # Panics
    /// If position or length are no multiples of a block, or beyond the end.
    pub fn write(
        &mut self,
        ring: &mut Ring,
        token: WriteToken,
        segment: SegmentSeq,
        position: u64,
        data: Bytes,
    ) {
        self.check_range(position, data.len());
        match self.files.find(segment) {
            Found::Open(fd) => self.push_write(ring, fd, segment, token, position, data),
            Found::Closed => {
                self.files.wait(segment, Waiting::Write { token, position, data });
                self.open(ring, segment);
            }
            Found::Opening => self.files.wait(segment, Waiting::Write { token, position, data }),
            Found::Unknown => {
                let result = Err(fault("open for writing", libc::ENOENT));
                self.events.push_back(Event::Written { token, result });
            }
        }
    }

    /// Reads the whole buffer full; answered by [`Event::Read`].
    ///
    /// # Panics
    /// If position or length are no multiples of a block, or beyond the end.
    pub fn read(
        &mut self,
        ring: &mut Ring,
        token: ReadToken,
        segment: SegmentSeq,
        position: u64,
        buffer: PoolBuffer,
    ) {
        self.check_range(position, buffer.len());
        match self.files.find(segment) {
            Found::Open(fd) => self.push_read(ring, fd, segment, token, position, buffer),
            Found::Closed => {
                self.files.wait(segment, Waiting::Read { token, position, buffer });
                self.open(ring, segment);
            }
            Found::Opening => self.files.wait(segment, Waiting::Read { token, position, buffer }),
            Found::Unknown => {
                let result = Err(fault("open for reading", libc::ENOENT));
                self.events.push_back(Event::Read { token, result });
            }
        }
    }

    /// Makes the segment's file; answered by [`Event::SegmentPrepared`].
    pub fn prepare(&mut self, ring: &mut Ring, segment: SegmentSeq) {
        if matches!(self.files.find(segment), Found::Unknown) {
            self.spares.prepare(segment);
            self.step_spares(ring);
        } else {
            // There from an earlier start, which ended before it was used.
            self.events.push_back(Event::SegmentPrepared { segment, result: Ok(()) });
        }
    }

    /// Makes the segment's file a spare one.
    pub fn recycle(&mut self, ring: &mut Ring, segment: SegmentSeq) {
        assert!(!self.flushes.has(segment), "what is recycled is durable");
        let fd = self.files.remove(segment);
        self.spares.recycle(segment, fd);
        self.step_spares(ring);
    }

    /// Takes a completion of this shard's.
    pub fn complete(&mut self, ring: &mut Ring, completion: Completion) {
        debug_assert_eq!(Self::shard_of(completion.token), self.shard);
        let op = self.ops.remove(completion.token.value() as u32 as usize);
        let result = completion.result;
        match op {
            Op::Write { segment, write } => match whole("write", result, write.len) {
                Ok(()) if write.shares => self.flushes.landed(segment, write),
                result => {
                    self.written(segment, write, result);
                    self.step_spares(ring);
                }
            },
            Op::Flush { segment } => {
                let result = whole("fdatasync", result, 0);
                self.stats.flushes += 1;
                for write in self.flushes.flushed(segment) {
                    self.written(segment, write, result.clone());
                }
                self.step_spares(ring);
            }
            Op::Read { token, segment, len, started_us } => {
                self.files.ended(segment);
                self.stats.read(len, clock::mono_us().saturating_sub(started_us));
                let buffer = completion.held.into_buffer().expect("a read's buffer comes back with it");
                let result = whole("read", result, len).map(|()| buffer);
                self.events.push_back(Event::Read { token, result });
            }
            Op::Open { segment } => self.opened(ring, segment, result),
            Op::Spare(step) => {
                self.spares.complete(step, result);
                self.step_spares(ring);
            }
        }
    }

    /// A write is durable, or has failed.
    fn written(&mut self, segment: SegmentSeq, write: PendingWrite, result: Result<(), DiskFault>) {
        self.files.ended(segment);
        self.writes -= 1;
        let now_us = clock::mono_us();
        let took_us = now_us.saturating_sub(write.started_us);
        self.stats.wrote(write.len, took_us);
        if write.is_sample {
            self.choice.took(write.shares, took_us, now_us);
        }
        if self.failed.is_none() {
            self.failed = result.err();
        }
        let result = self.failed.clone().map_or(Ok(()), Err);
        self.events.push_back(Event::Written { token: write.token, result });
        self.spares.wrote(write.len);
    }

    /// The next event for the shard. To be called until there is none, after
    /// each call of another method.
    #[inline]
    pub fn next_event(&mut self) -> Option<Event<'static, PoolBuffer>> {
        self.events.pop_front()
    }

    /// When [`tick`](Self::tick) is due (monotonic, µs) although no completion
    /// came, if at all.
    #[inline]
    pub fn next_deadline(&self) -> Option<u64> {
        self.reopen_at
    }

    /// Starts the flushes for the writes that have ended, and tries again what
    /// waits for descriptors. To be called after the completions of each turn: so
    /// writes that have ended together share a flush.
    #[inline]
    pub fn tick(&mut self, ring: &mut Ring, now_us: u64) {
        while let Some(segment) = self.flushes.next() {
            let Found::Open(fd) = self.files.find(segment) else {
                unreachable!("a file stays open until its writes are durable")
            };
            let token = self.track(Op::Flush { segment });
            ring.fsync(token, fd, true);
        }
        if self.reopen_at.take_if(|at| *at <= now_us).is_some() {
            for segment in std::mem::take(&mut self.unopened) {
                self.open(ring, segment);
            }
        }
    }

    /// Whether files are written through the kernel's cache.
    pub fn is_buffered(&self) -> bool {
        self.config.mode == FileMode::Buffered
    }

    /// What the disk has done.
    pub fn stats(&self) -> &DiskStats {
        &self.stats
    }

    /// Spare files that are ready.
    pub fn spares_ready(&self) -> usize {
        self.spares.ready()
    }

    /// Operations in flight, those in the background and writes that wait for
    /// their flush included.
    pub fn in_flight(&self) -> usize {
        self.ops.len() + self.flushes.waiting()
    }

    /// Takes note that the ring has ended all operations, and that nobody will
    /// hear of them any more.
    pub fn all_ended(&mut self) {
        self.files.all_ended();
        self.flushes.clear();
        self.writes = 0;
        self.ops.clear();
    }

    fn check_range(&self, position: u64, len: usize) {
        let end = position.checked_add(len as u64).expect("a position in a file");
        assert!(
            position.is_multiple_of(BLOCK_LEN as u64)
                && len.is_multiple_of(BLOCK_LEN)
                && len > 0
                && end <= self.config.segment_len,
            "{len} bytes at {position} of a segment"
        );
    }

    fn track(&mut self, op: Op) -> Token {
        let index = u64::try_from(self.ops.insert(op)).expect("fits in 64 bits");
        Token::new(Class::Disk, u64::from(self.shard.0) << 32 | index)
    }

    fn push_write(
        &mut self,
        ring: &mut Ring,
        fd: RawFd,
        segment: SegmentSeq,
        token: WriteToken,
        position: u64,
        data: Bytes,
    ) {
        if let Err(error) = self.files.claim(segment) {
            let result = Err(fault("lock for writing", error.raw_os_error().unwrap_or(0)));
            return self.events.push_back(Event::Written { token, result });
        }
        self.files.started(segment);
        let started_us = clock::mono_us();
        let (shares, is_sample) = match self.config.sharing {
            // The kernel tells of pages that it could not write once for each open
            // file: two flushes at a time, and one would take the other's error.
            _ if self.is_buffered() => (true, false),
            Sharing::Never => (false, false),
            Sharing::From(few) => (self.writes >= few, false),
            Sharing::Adaptive(few) if self.writes >= few => (true, false),
            Sharing::Adaptive(_) => (self.choice.next_shares(started_us), true),
        };
        let write = PendingWrite { token, len: data.len(), started_us, shares, is_sample };
        self.writes += 1;
        let tracked = self.track(Op::Write { segment, write });
        ring.write(tracked, Target::Fd(fd), position, data, !shares);
    }

    fn push_read(
        &mut self,
        ring: &mut Ring,
        fd: RawFd,
        segment: SegmentSeq,
        token: ReadToken,
        position: u64,
        buffer: PoolBuffer,
    ) {
        self.files.started(segment);
        let op = Op::Read { token, segment, len: buffer.len(), started_us: clock::mono_us() };
        let tracked = self.track(op);
        ring.read(tracked, Target::Fd(fd), position, buffer);
    }

    fn open(&mut self, ring: &mut Ring, segment: SegmentSeq) {
        self.files.opening(segment);
        let name = c_name(crate::io::datadir::segment_name(segment));
        let token = self.track(Op::Open { segment });
        ring.open_at(token, self.folder.as_raw_fd(), name, libc::O_RDWR | self.config.mode.flags());
    }

    fn opened(&mut self, ring: &mut Ring, segment: SegmentSeq, result: i32) {
        if matches!(-result, libc::EMFILE | libc::ENFILE)
            && let Some(idle) = self.files.give_up_idle()
        {
            // Closed at once: the next open finds its descriptor free.
            drop(idle);
            return self.open(ring, segment);
        }
        let waiting = self.files.take_waiting(segment);
        if result < 0 {
            return self.not_opened(segment, waiting, -result);
        }
        if let Some(evicted) = self.files.opened(segment, owned(result)) {
            close(ring, evicted);
        }
        for waiting in waiting {
            match waiting {
                Waiting::Write { token, position, data } => {
                    self.push_write(ring, result, segment, token, position, data);
                }
                Waiting::Read { token, position, buffer } => {
                    self.push_read(ring, result, segment, token, position, buffer);
                }
            }
        }
    }

    /// A read that lacks a descriptor is refused, and may be tried again. A write
    /// waits: nothing of it was written, and a failed one would end the broker.
    fn not_opened(&mut self, segment: SegmentSeq, waiting: Vec<Waiting>, errno: i32) {
        let passes = matches!(errno, libc::EMFILE | libc::ENFILE);
        self.files.open_failed(segment);
        for waiting in waiting {
            match waiting {
                Waiting::Write { .. } if passes => {
                    self.files.opening(segment);
                    self.files.wait(segment, waiting);
                }
                Waiting::Write { token, .. } => {
                    let result = Err(fault("open for writing", errno));
                    self.events.push_back(Event::Written { token, result });
                }
                Waiting::Read { token, .. } => {
                    let result = Err(fault("open for reading", errno));
                    self.events.push_back(Event::Read { token, result });
                }
            }
        }
        if matches!(self.files.find(segment), Found::Opening) {
            let (shard, fault) = (self.shard, fault("open for writing", errno));
            tracing::warn!(%shard, %segment, %fault, "writing waits for a file descriptor");
            self.unopened.push(segment);
            self.reopen_at = Some(clock::mono_us() + REOPEN_US);
        }
    }

    /// Starts whatever the spare files need next, and passes on what came of
    /// it.
    fn step_spares(&mut self, ring: &mut Ring) {
        self.spares.retry(clock::mono_us);
        while let Some(step) = self.spares.next_step() {
            let token = self.track(Op::Spare(step));
            self.spares.push(ring, token, step, self.folder.as_raw_fd());
        }
        while let Some((segment, result)) = self.spares.next_prepared() {
            let result = result.map(|fd| {
                if let Some(evicted) = self.files.add(segment, fd) {
                    close(ring, evicted);
                }
            });
            self.events.push_back(Event::SegmentPrepared { segment, result });
        }
        self.stats.zeroed_bytes = self.spares.zeroed_bytes();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What is written to stays locked until that has ended.
        self.files.unlock_idle();
        if self.ops.is_empty() {
            // SAFETY: dropped once, and not used afterwards.
            unsafe {
                ManuallyDrop::drop(&mut self.files);
                ManuallyDrop::drop(&mut self.spares);
                ManuallyDrop::drop(&mut self.folder);
            }
        }
        // Otherwise the files stay open: an operation that the ring has yet to
        // submit names its file by number, which must not become another's.
    }
}

fn close(ring: &mut Ring, fd: OwnedFd) {
    use std::os::fd::IntoRawFd;
    // Nobody can do anything about a failed close of a file whose every write
    // was flushed.
    ring.close(Token::new(Class::Ignored, 0), Target::Fd(fd.into_raw_fd()));
}

/// The descriptor that an open has answered with.
fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for an operation of
    // ours, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn c_name(name: String) -> CString {
    CString::new(name).expect("names of Ringbolt's files contain no NUL")
}

fn whole(operation: &'static str, result: i32, len: usize) -> Result<(), DiskFault> {
    match usize::try_from(result) {
        Ok(done) if done == len => Ok(()),
        Ok(done) => Err(DiskFault { operation, errno: 0, text: format!("only {done} of {len} bytes") }),
        Err(_) => Err(fault(operation, -result)),
    }
}

fn fault(operation: &'static str, errno: i32) -> DiskFault {
    let text = io::Error::from_raw_os_error(errno).to_string();
    // The standard library appends the number, which a fault has already.
    let text = text.split(" (os error").next().unwrap_or_default().to_owned();
    DiskFault { operation, errno, text }
}
