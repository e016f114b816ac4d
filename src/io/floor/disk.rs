//! Durable writes with nothing around them.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use io_uring::opcode;
use io_uring::types::Fd;

use super::{Conditions, FloorError, Latency, histogram, latency, on_core, record};
use crate::io::echo::{self, BareRing, Mapping, Wait};
use crate::io::probe::{ScratchFile, StorageError};

/// Bytes that the file is filled with at a time.
const FILL_LEN: usize = 1 << 20;

/// A file of zeroes without a name in the directory that is measured; it is
/// gone when this value is, or the process.
pub struct DiskFloor {
    dir: PathBuf,
    scratch: ScratchFile,
    len: u64,
}

/// One way of writing.
struct Pattern {
    /// Length of a write, in bytes.
    block: usize,
    /// Writes under way at a time.
    in_flight: usize,
    /// Flushed with the write (`RWF_DSYNC`), or not at all.
    durable: bool,
}

/// What came of it.
struct Written {
    latency: Latency,
    mb_per_s: f64,
}

impl DiskFloor {
    /// Makes the file, `len` bytes long (a multiple of 1 MiB), and writes it
    /// full of zeroes, as the log's segments are before use: a write to blocks
    /// that never were written has metadata to flush as well.
    ///
    /// # Errors
    ///
    /// [`FloorError::Storage`] where direct writes are not to be had,
    /// [`FloorError::Fill`] where there is no room.
    pub fn create(dir: &Path, len: u64) -> Result<Self, FloorError> {
        assert!(len > 0 && len.is_multiple_of(FILL_LEN as u64), "the file is filled in steps of 1 MiB");
        let scratch = ScratchFile::create(dir)?;
        let failed = |source| FloorError::Fill { dir: dir.to_owned(), bytes: len, source };
        let mut zeroes = Mapping::new(FILL_LEN).map_err(failed)?;
        for step in 0..len / FILL_LEN as u64 {
            let position = step * FILL_LEN as u64;
            scratch.file().write_all_at(zeroes.bytes_mut(), position).map_err(failed)?;
        }
        scratch.file().sync_all().map_err(failed)?;
        Ok(Self { dir: dir.to_owned(), scratch, len })
    }

    /// Time of one durable write of `block` bytes (a multiple of 4096), one at
    /// a time.
    ///
    /// # Errors
    ///
    /// When a write fails, or memory cannot be registered.
    pub fn durable_write(&self, block: usize, conditions: &Conditions) -> Result<Latency, FloorError> {
        Ok(self.measure(&Pattern { block, in_flight: 1, durable: true }, conditions)?.latency)
    }

    /// Time of one write of `block` bytes that is *not* flushed: what a flush
    /// adds is the difference to [`DiskFloor::durable_write`].
    ///
    /// # Errors
    ///
    /// As for [`DiskFloor::durable_write`].
    pub fn plain_write(&self, block: usize, conditions: &Conditions) -> Result<Latency, FloorError> {
        Ok(self.measure(&Pattern { block, in_flight: 1, durable: false }, conditions)?.latency)
    }

    /// Throughput of durable writes of `block` bytes, `in_flight` at a time, in
    /// 10^6 bytes per second.
    ///
    /// # Errors
    ///
    /// As for [`DiskFloor::durable_write`].
    pub fn durable_mb_per_s(
        &self,
        block: usize,
        in_flight: usize,
        conditions: &Conditions,
    ) -> Result<f64, FloorError> {
        Ok(self.measure(&Pattern { block, in_flight, durable: true }, conditions)?.mb_per_s)
    }

    fn measure(&self, pattern: &Pattern, conditions: &Conditions) -> Result<Written, FloorError> {
        on_core(conditions.server_core, || self.write(pattern, conditions))
    }

    /// Writes through the file from front to back, again and again, as a log
    /// does with its segments.
    fn write(&self, pattern: &Pattern, conditions: &Conditions) -> Result<Written, FloorError> {
        let &Pattern { block, in_flight, durable } = pattern;
        assert!(block.is_multiple_of(4096) && (block * in_flight) as u64 <= self.len);
        let failed = |doing| move |source| FloorError::Ring { doing, source };
        let mut memory = Mapping::new(block * in_flight).map_err(failed("mapping memory"))?;
        fill_unpredictably(memory.bytes_mut());
        let mut ring = echo::build(8, 16).map_err(failed("making a ring"))?;
        // SAFETY: the mapping is declared before the ring and so outlives it.
        unsafe { ring.submitter().register_buffers(&[memory.as_iovec()]) }
            .map_err(|source| FloorError::Storage(StorageError::registering(source)))?;
        let mut ring = BareRing::new(&mut ring);

        let fd = Fd(self.scratch.file().as_raw_fd());
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        let mut position = 0;
        let mut push = |ring: &mut BareRing<'_>, place: usize| {
            let write = opcode::WriteFixed::new(fd, memory.at(place * block), block as u32, 0)
                .offset(position)
                .rw_flags(flags)
                .build();
            // SAFETY: the entry names a block of the registered mapping, which
            // is only read from here on, and lives until `wind_down` below.
            unsafe { ring.push(write.user_data(place as u64)) };
            position = (position + block as u64) % (self.len - self.len % block as u64);
        };
        let outcome = self.keep_writing(&mut ring, pattern, conditions, &mut push);
        if let Err(source) = ring.wind_down() {
            std::mem::forget(memory);
            return outcome.and(Err(FloorError::Ring { doing: "ending the writes", source }));
        }
        outcome
    }

    /// Keeps `in_flight` writes under way until the time is up.
    fn keep_writing<'r>(
        &self,
        ring: &mut BareRing<'r>,
        pattern: &Pattern,
        conditions: &Conditions,
        push: &mut impl FnMut(&mut BareRing<'r>, usize),
    ) -> Result<Written, FloorError> {
        let (warm, end) = conditions.phases();
        let mut times = histogram();
        let start = Instant::now();
        let mut begun = vec![start.elapsed(); pattern.in_flight];
        let mut counted_from = None;
        for place in 0..pattern.in_flight {
            push(ring, place);
        }
        loop {
            ring.wait(Wait::Sleep)
                .map_err(|source| FloorError::Ring { doing: "waiting for a write", source })?;
            let now = start.elapsed();
            while let Some(cqe) = ring.next() {
                self.check(cqe.result(), pattern.block)?;
                let place = cqe.user_data() as usize;
                if counted_from.is_some() {
                    record(&mut times, (now - begun[place]).as_nanos() as u64, 1);
                }
                begun[place] = start.elapsed();
                push(ring, place);
            }
            match counted_from {
                None if now >= warm => counted_from = Some(now),
                Some(from) if now >= end => {
                    let latency = latency(&times, conditions)?;
                    let bytes = (times.len() * pattern.block as u64) as f64;
                    return Ok(Written { latency, mb_per_s: bytes / 1e6 / (now - from).as_secs_f64() });
                }
                _ => {}
            }
        }
    }

    /// A write that was cut short is as bad as one that failed.
    fn check(&self, result: i32, len: usize) -> Result<(), FloorError> {
        let source = match usize::try_from(result) {
            Ok(written) if written == len => return Ok(()),
            Ok(written) => io::Error::other(format!("only {written} bytes went through")),
            Err(_) => io::Error::from_raw_os_error(-result),
        };
        Err(FloorError::Write { dir: self.dir.clone(), len, source })
    }
}

/// Fills memory with bytes that neither compress nor repeat: some devices and
/// hypervisors store blocks of zeroes, or equal ones, without writing them.
fn fill_unpredictably(bytes: &mut [u8]) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for word in bytes.chunks_mut(8) {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
}
