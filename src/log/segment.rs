//! The first and the last block of a segment: who it is, and, once it is full,
//! where its footer lies.

use ringbolt_wire::crc32c;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{LogId, SegmentSeq};
use crate::limits::BLOCK_LEN;

const HEAD_MAGIC: [u8; 4] = *b"RBSG";
const TRAILER_MAGIC: [u8; 4] = *b"RBST";
const FORMAT: u32 = 1;

/// Position of the first commit of a segment.
pub const FIRST_COMMIT: u64 = BLOCK_LEN as u64;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHead {
    magic: [u8; 4],
    /// CRC32C of the rest.
    crc: U32,
    format: U32,
    reserved: U32,
    log_id: [u8; 16],
    segment: U64,
    segment_len: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawTrailer {
    magic: [u8; 4],
    /// CRC32C of the rest.
    crc: U32,
    format: U32,
    footer_len: U32,
    log_id: [u8; 16],
    segment: U64,
    end: U64,
    first_index: U64,
    next_index: U64,
    last_commit_time_us: U64,
    last_crc: U32,
    footer_crc: U32,
}

const _: () = assert!(size_of::<RawHead>() == 48);
const _: () = assert!(size_of::<RawTrailer>() == 80);
const CRC_START: usize = 8;

/// Why a segment's first block is not what it must be.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentHeadFault {
    /// All zeros, or anything else without the magic: never used under this
    /// name.
    #[error("the segment has no header")]
    Missing,
    /// A header of another format.
    #[error("the segment is of format {0}, this broker reads format {FORMAT}")]
    Format(u32),
    /// The CRC is wrong.
    #[error("the segment's header is damaged")]
    Damaged,
    /// A header of another segment: the file was recycled and not yet used
    /// again, or was put here by somebody.
    #[error("the header is that of segment {segment} of {segment_len} bytes{}", if *.same_log { "" } else { " of another log" })]
    Other {
        /// The segment that it names.
        segment: SegmentSeq,
        /// The length that it names, in bytes.
        segment_len: u64,
        /// Whether it is of the same log.
        same_log: bool,
    },
}

/// Writes a segment's first block to the start of `block` and zeros the rest of
/// it.
///
/// # Panics
/// If `block` is shorter than [`BLOCK_LEN`].
pub fn encode_head(block: &mut [u8], log: &LogId, segment: SegmentSeq, segment_len: u64) {
    let mut raw = RawHead {
        magic: HEAD_MAGIC,
        crc: U32::ZERO,
        format: U32::new(FORMAT),
        reserved: U32::ZERO,
        log_id: log.0,
        segment: U64::new(segment.0),
        segment_len: U64::new(segment_len),
    };
    raw.crc = U32::new(crc32c(&raw.as_bytes()[CRC_START..]));
    put_block(block, raw.as_bytes());
}

fn put_block(block: &mut [u8], content: &[u8]) {
    let block = &mut block[..BLOCK_LEN];
    block[..content.len()].copy_from_slice(content);
    block[content.len()..].fill(0);
}

/// Checks a segment's first block.
pub fn check_head(
    block: &[u8],
    log: &LogId,
    segment: SegmentSeq,
    segment_len: u64,
) -> Result<(), SegmentHeadFault> {
    let (raw, _) = RawHead::ref_from_prefix(block).map_err(|_| SegmentHeadFault::Missing)?;
    if raw.magic != HEAD_MAGIC {
        return Err(SegmentHeadFault::Missing);
    }
    if raw.crc.get() != crc32c(&raw.as_bytes()[CRC_START..]) {
        return Err(SegmentHeadFault::Damaged);
    }
    if raw.format.get() != FORMAT {
        return Err(SegmentHeadFault::Format(raw.format.get()));
    }
    let same_log = raw.log_id == log.0;
    if !same_log || raw.segment.get() != segment.0 || raw.segment_len.get() != segment_len {
        return Err(SegmentHeadFault::Other {
            segment: SegmentSeq(raw.segment.get()),
            segment_len: raw.segment_len.get(),
            same_log,
        });
    }
    Ok(())
}

/// What a full segment says of itself in its last block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trailer {
    /// Position after the last commit; the footer starts there.
    pub end: u64,
    /// Bytes of the footer, before padding to a whole block.
    pub footer_len: u32,
    /// CRC32C of the footer.
    pub footer_crc: u32,
    /// Index of the segment's first commit.
    pub first_index: u64,
    /// Index of the commit after its last.
    pub next_index: u64,
    /// Commit time of its last commit, µs since 1970 UTC.
    pub last_commit_time_us: u64,
    /// CRC of its last commit's header.
    pub last_crc: u32,
}

impl Trailer {
    /// Position of the trailer in a segment of this length.
    pub fn position(segment_len: u64) -> u64 {
        segment_len - BLOCK_LEN as u64
    }

    /// Writes the segment's last block to the start of `block`.
    ///
    /// # Panics
    /// If `block` is shorter than [`BLOCK_LEN`].
    pub fn encode(&self, block: &mut [u8], log: &LogId, segment: SegmentSeq) {
        let mut raw = RawTrailer {
            magic: TRAILER_MAGIC,
            crc: U32::ZERO,
            format: U32::new(FORMAT),
            footer_len: U32::new(self.footer_len),
            log_id: log.0,
            segment: U64::new(segment.0),
            end: U64::new(self.end),
            first_index: U64::new(self.first_index),
            next_index: U64::new(self.next_index),
            last_commit_time_us: U64::new(self.last_commit_time_us),
            last_crc: U32::new(self.last_crc),
            footer_crc: U32::new(self.footer_crc),
        };
        raw.crc = U32::new(crc32c(&raw.as_bytes()[CRC_START..]));
        put_block(block, raw.as_bytes());
    }

    /// The trailer in a segment's last block, if it is there and belongs to
    /// this segment. `None` means that the segment is not sealed.
    pub fn decode(block: &[u8], log: &LogId, segment: SegmentSeq, segment_len: u64) -> Option<Trailer> {
        let (raw, _) = RawTrailer::ref_from_prefix(block).ok()?;
        let valid = raw.magic == TRAILER_MAGIC
            && raw.crc.get() == crc32c(&raw.as_bytes()[CRC_START..])
            && raw.format.get() == FORMAT
            && raw.log_id == log.0
            && raw.segment.get() == segment.0;
        let footer_end = raw.end.get().checked_add(u64::from(raw.footer_len.get()))?;
        let fits = raw.end.get() >= FIRST_COMMIT && footer_end <= Self::position(segment_len);
        (valid && fits).then(|| Trailer {
            end: raw.end.get(),
            footer_len: raw.footer_len.get(),
            footer_crc: raw.footer_crc.get(),
            first_index: raw.first_index.get(),
            next_index: raw.next_index.get(),
            last_commit_time_us: raw.last_commit_time_us.get(),
            last_crc: raw.last_crc.get(),
        })
    }
}
