//! The record batch: one layout on the wire, in the log and in fetch answers.
//!
//! The producer makes the batch and its CRC. The broker fills in only
//! `base_offset` and `commit_time_us`, which lie before the CRC; nothing else
//! is ever rewritten, so a record's bytes can travel from the producer's socket
//! to the consumer's without being touched.
//!
//! Here is the header; [`BatchView`] reads batches and [`BatchBuilder`] makes
//! them. Neither knows whether a sequence or an offset is the expected one.

mod build;
mod directions;
mod view;

pub use build::{BatchBuilder, Record, encoded_record_len};
pub use directions::{
    DEAD_LETTER_HEADER, DELIVER_AT_HEADER, DeadLetter, Directions, EXPIRE_AT_HEADER, FLAG_DIRECTED,
    ONLY_GROUP_HEADER, RESERVED_HEADER_PREFIX,
};
pub use view::{BatchView, Batches, RecordView};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ErrorCode;
use crate::ids::{Epoch, Offset, PartitionId, ProducerId, Sequence, TopicId};

/// First four bytes after the broker's fields: `RBB1`.
pub const BATCH_MAGIC: [u8; 4] = *b"RBB1";

/// Length of a batch header in bytes.
pub const BATCH_HEADER_LEN: usize = size_of::<BatchHeader>();

/// Length of a record's fixed part in bytes.
pub const RECORD_HEADER_LEN: usize = size_of::<RawRecord>();

/// Most headers that one record may have when it is produced.
pub const MAX_RECORD_HEADERS: usize = 1024;

/// Headers that the broker may add: a dead letter says where it comes from.
const BROKER_HEADERS: usize = 1;

/// `compression` of a batch whose records follow as they are.
pub const COMPRESSION_NONE: u8 = 0;

const BATCH_VERSION: u8 = 1;
const NO_KEY: u32 = u32::MAX;
const CRC_START: usize = std::mem::offset_of!(BatchHeader, length);

/// The head of a record batch as it travels and as it lies on disk,
/// little-endian, without padding.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct BatchHeader {
    base_offset: U64,
    commit_time_us: U64,
    magic: [u8; 4],
    /// CRC32C from `length` to the end of the batch.
    crc: U32,
    length: U32,
    count: U32,
    topic: U32,
    partition: U32,
    producer_id: U64,
    base_sequence: U64,
    producer_epoch: U32,
    version: u8,
    compression: u8,
    flags: U16,
    first_timestamp_us: U64,
    max_timestamp_us: U64,
}

const _: () = assert!(BATCH_HEADER_LEN == 80);
const _: () = assert!(std::mem::offset_of!(BatchHeader, crc) == 20);
const _: () = assert!(CRC_START == 24);

/// Fixed part of a record as it travels.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawRecord {
    /// Bytes of the whole record, this header included.
    length: U32,
    /// Bytes of the key, `u32::MAX` for none.
    key_len: U32,
    value_len: U32,
    header_count: U16,
    reserved: U16,
    timestamp_us: U64,
}

const _: () = assert!(RECORD_HEADER_LEN == 24);

/// Why bytes are not an acceptable record batch.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum BatchError {
    /// Fewer bytes than a batch header, or than the header's `length`.
    #[error("record batch of {len} bytes is cut off at {have}")]
    Truncated {
        /// Bytes that the batch says it has.
        len: usize,
        /// Bytes that are there.
        have: usize,
    },
    /// `length` is beyond the limit; both in bytes.
    #[error("record batch of {len} bytes, the limit is {limit}")]
    TooLarge {
        /// As claimed.
        len: u32,
        /// As allowed.
        limit: u32,
    },
    /// The magic, the version or a reserved field is not as specified.
    #[error("not a record batch of version {BATCH_VERSION}")]
    BadHeader,
    /// Compression that this crate does not know.
    #[error("unknown compression {0}")]
    UnknownCompression(u8),
    /// The CRC does not match.
    #[error("record batch CRC is {found:#010x}, computed {computed:#010x}")]
    CrcMismatch {
        /// As stored.
        found: u32,
        /// As computed.
        computed: u32,
    },
    /// The last record's sequence or offset would not be a number of 64 bits.
    #[error("the batch's {count} records overflow its sequence or offset")]
    NumberOverflow {
        /// As the header claims.
        count: u32,
    },
    /// The header's timestamps are not those of the records.
    #[error("the batch's first or highest timestamp is not that of its records")]
    BadTimestamps,
    /// Bytes follow where the batch was to be alone.
    #[error("{0} bytes follow the record batch")]
    TrailingBytes(usize),
    /// A batch does not continue the one before it.
    #[error("a batch starts at offset {found}, expected {expected}")]
    Gap {
        /// Where the batch before it ends.
        expected: Offset,
        /// As its header says.
        found: Offset,
    },
    /// A record's header with a reserved name is not what it should be, or the
    /// batch does not say that there is one.
    #[error(
        "record {index} of the batch's {count}: a header that begins with \"ringbolt.\" is not as specified"
    )]
    BadDirections {
        /// Index of the record.
        index: u32,
        /// As the header claims.
        count: u32,
    },
    /// The records do not add up to the header's count and length.
    #[error("record {index} of the batch does not fit its lengths, or the batch its count of {count}")]
    BadRecords {
        /// Index of the record at which the contradiction was seen.
        index: u32,
        /// As the header claims.
        count: u32,
    },
}

impl BatchError {
    /// The code that a producer is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            BatchError::Truncated { .. }
            | BatchError::BadHeader
            | BatchError::NumberOverflow { .. }
            | BatchError::BadTimestamps
            | BatchError::TrailingBytes(_)
            | BatchError::Gap { .. }
            | BatchError::BadDirections { .. }
            | BatchError::BadRecords { .. } => ErrorCode::MalformedBatch,
            BatchError::TooLarge { .. } => ErrorCode::BatchTooLarge,
            BatchError::UnknownCompression(_) => ErrorCode::UnsupportedCompression,
            BatchError::CrcMismatch { .. } => ErrorCode::BatchCrcMismatch,
        }
    }
}

impl BatchHeader {
    /// The header at the start of `bytes`, checked for magic, version and
    /// plausible numbers, but not against the bytes that follow it. Sequence
    /// and offset of every record, and of the one after the last, are within
    /// 64 bits.
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<&BatchHeader, BatchError> {
        let Ok((header, _)) = BatchHeader::ref_from_prefix(bytes) else {
            return Err(BatchError::Truncated { len: BATCH_HEADER_LEN, have: bytes.len() });
        };
        if header.magic != BATCH_MAGIC
            || header.version != BATCH_VERSION
            || header.flags.get() & !FLAG_DIRECTED != 0
        {
            return Err(BatchError::BadHeader);
        }
        if header.len() < BATCH_HEADER_LEN + RECORD_HEADER_LEN || header.count.get() == 0 {
            return Err(BatchError::BadRecords { index: 0, count: header.count.get() });
        }
        let count = u64::from(header.count.get());
        if header.base_sequence.get().checked_add(count).is_none()
            || header.base_offset.get().checked_add(count).is_none()
        {
            return Err(BatchError::NumberOverflow { count: header.count.get() });
        }
        Ok(header)
    }

    /// Bytes of the whole batch.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // a batch is never empty
    pub fn len(&self) -> usize {
        self.length.get() as usize
    }

    /// Records in the batch, at least 1.
    #[inline]
    pub fn count(&self) -> u32 {
        self.count.get()
    }

    /// Offset of the first record; meaningful once the broker has set it.
    #[inline]
    pub fn base_offset(&self) -> Offset {
        Offset(self.base_offset.get())
    }

    /// Offset of the record after the last one; meaningful once the broker has
    /// set the base. Saturates should [`set_placement`](Self::set_placement)
    /// have been called with an offset that leaves no room.
    #[inline]
    pub fn next_offset(&self) -> Offset {
        Offset(self.base_offset.get().saturating_add(u64::from(self.count.get())))
    }

    /// When the broker took the batch into a commit, µs since 1970 UTC. Never
    /// falls within a partition.
    #[inline]
    pub fn commit_time_us(&self) -> u64 {
        self.commit_time_us.get()
    }

    /// Where the batch belongs.
    #[inline]
    pub fn partition(&self) -> PartitionId {
        PartitionId::new(TopicId(self.topic.get()), self.partition.get())
    }

    /// Who made it; [`ProducerId::NONE`] for no de-duplication.
    #[inline]
    pub fn producer_id(&self) -> ProducerId {
        ProducerId(self.producer_id.get())
    }

    /// The producer's incarnation.
    #[inline]
    pub fn producer_epoch(&self) -> Epoch {
        Epoch(self.producer_epoch.get())
    }

    /// Sequence of the first record; the others follow densely.
    #[inline]
    pub fn base_sequence(&self) -> Sequence {
        Sequence(self.base_sequence.get())
    }

    /// Sequence of the record after the last one.
    #[inline]
    pub fn next_sequence(&self) -> Sequence {
        // Checked by `decode`, and only `decode` makes a header that one can see.
        Sequence(self.base_sequence.get().saturating_add(u64::from(self.count.get())))
    }

    /// Timestamp of the first record, µs since 1970 UTC, as its producer says.
    pub fn first_timestamp_us(&self) -> u64 {
        self.first_timestamp_us.get()
    }

    /// Highest timestamp of a record, µs since 1970 UTC.
    pub fn max_timestamp_us(&self) -> u64 {
        self.max_timestamp_us.get()
    }

    /// Whether some of the records have [`Directions`].
    #[inline]
    pub fn is_directed(&self) -> bool {
        self.flags.get() & FLAG_DIRECTED != 0
    }

    /// The header of a batch of `count` of this one's records, from number `first`
    /// on, whose bytes are `records`: with a CRC of its own.
    ///
    /// # Panics
    /// If `first + count` is beyond this batch's count, `count` is 0, or `records`
    /// are more bytes than this batch's.
    pub fn cut(
        &self,
        first: u32,
        count: u32,
        (first_timestamp_us, max_timestamp_us): (u64, u64),
        records: &[u8],
    ) -> BatchHeader {
        let end = first.checked_add(count);
        assert!(count > 0 && end.is_some_and(|end| end <= self.count()), "a cut is within its batch");
        assert!(BATCH_HEADER_LEN + records.len() <= self.len(), "a cut is no longer than its batch");
        let mut header = BatchHeader {
            base_offset: U64::new(self.base_offset.get() + u64::from(first)),
            base_sequence: U64::new(self.base_sequence.get() + u64::from(first)),
            length: U32::new((BATCH_HEADER_LEN + records.len()) as u32),
            count: U32::new(count),
            first_timestamp_us: U64::new(first_timestamp_us),
            max_timestamp_us: U64::new(max_timestamp_us),
            ..*self
        };
        let crc = crate::crc32c(&header.as_bytes()[CRC_START..]);
        header.crc = U32::new(crate::crc32c_append(crc, records));
        header
    }

    /// The stored CRC32C.
    pub fn crc(&self) -> u32 {
        self.crc.get()
    }

    /// First byte of the batch that the CRC covers.
    pub const CRC_START: usize = CRC_START;

    /// This header with what the broker sets.
    #[inline]
    pub fn placed(&self, base_offset: Offset, commit_time_us: u64) -> BatchHeader {
        let (base_offset, commit_time_us) = (base_offset.0.into(), commit_time_us.into());
        BatchHeader { base_offset, commit_time_us, ..*self }
    }

    /// Sets what the broker sets, in the batch at the start of `batch`.
    ///
    /// # Panics
    /// If `batch` is shorter than a header.
    #[inline]
    pub fn set_placement(batch: &mut [u8], base_offset: Offset, commit_time_us: u64) {
        batch[..8].copy_from_slice(&base_offset.0.to_le_bytes());
        batch[8..16].copy_from_slice(&commit_time_us.to_le_bytes());
    }
}
