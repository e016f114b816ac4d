//! The record batch: one layout on the wire, in the log and in fetch answers.
//!
//! The producer makes the batch and its CRC. The broker fills in only
//! `base_offset` and `commit_time_us`, which lie before the CRC; nothing else
//! is ever rewritten, so a record's bytes can travel from the producer's socket
//! to the consumer's without being touched.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ids::{Epoch, Offset, PartitionId, ProducerId, Sequence, TopicId};
use crate::{ErrorCode, crc32c};

/// First four bytes after the broker's fields: `RBB1`.
pub const BATCH_MAGIC: [u8; 4] = *b"RBB1";

/// Length of a batch header in bytes.
pub const BATCH_HEADER_LEN: usize = size_of::<BatchHeader>();

/// Length of a record's fixed part in bytes.
pub const RECORD_HEADER_LEN: usize = size_of::<RawRecord>();

/// Most headers that one record may have.
pub const MAX_RECORD_HEADERS: usize = 1024;

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
            BatchError::Truncated { .. } | BatchError::BadHeader | BatchError::BadRecords { .. } => {
                ErrorCode::MalformedBatch
            }
            BatchError::TooLarge { .. } => ErrorCode::BatchTooLarge,
            BatchError::UnknownCompression(_) => ErrorCode::UnsupportedCompression,
            BatchError::CrcMismatch { .. } => ErrorCode::BatchCrcMismatch,
        }
    }
}

impl BatchHeader {
    /// The header at the start of `bytes`, checked for magic, version and
    /// plausible lengths, but not against the bytes that follow it.
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<&BatchHeader, BatchError> {
        let Ok((header, _)) = BatchHeader::ref_from_prefix(bytes) else {
            return Err(BatchError::Truncated { len: BATCH_HEADER_LEN, have: bytes.len() });
        };
        if header.magic != BATCH_MAGIC || header.version != BATCH_VERSION || header.flags.get() != 0 {
            return Err(BatchError::BadHeader);
        }
        if header.len() < BATCH_HEADER_LEN + RECORD_HEADER_LEN || header.count.get() == 0 {
            return Err(BatchError::BadRecords { index: 0, count: header.count.get() });
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

    /// Timestamp of the first record, µs since 1970 UTC, as its producer says.
    pub fn first_timestamp_us(&self) -> u64 {
        self.first_timestamp_us.get()
    }

    /// Highest timestamp of a record, µs since 1970 UTC.
    pub fn max_timestamp_us(&self) -> u64 {
        self.max_timestamp_us.get()
    }

    /// The stored CRC32C.
    pub fn crc(&self) -> u32 {
        self.crc.get()
    }

    /// First byte of the batch that the CRC covers.
    pub const CRC_START: usize = CRC_START;

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

/// A record batch within borrowed bytes.
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    bytes: &'a [u8],
    header: &'a BatchHeader,
}

impl<'a> BatchView<'a> {
    /// The batch at the start of `bytes`, with its CRC verified and every
    /// record's lengths checked. `bytes` may be longer than the batch.
    #[inline]
    pub fn parse(bytes: &'a [u8], max_len: u32) -> Result<BatchView<'a>, BatchError> {
        let view = Self::parse_unchecked_records(bytes, max_len)?;
        view.check_records()?;
        Ok(view)
    }

    /// As [`parse`](Self::parse), but trusting that the records fit their
    /// lengths: for a batch that passed `parse` before it was stored.
    #[inline]
    pub fn parse_unchecked_records(bytes: &'a [u8], max_len: u32) -> Result<BatchView<'a>, BatchError> {
        let header = BatchHeader::decode(bytes)?;
        let len = header.len();
        if header.length.get() > max_len {
            return Err(BatchError::TooLarge { len: header.length.get(), limit: max_len });
        }
        if bytes.len() < len {
            return Err(BatchError::Truncated { len, have: bytes.len() });
        }
        if header.compression != COMPRESSION_NONE {
            return Err(BatchError::UnknownCompression(header.compression));
        }
        let bytes = &bytes[..len];
        let computed = crc32c(&bytes[CRC_START..]);
        if computed != header.crc.get() {
            return Err(BatchError::CrcMismatch { found: header.crc.get(), computed });
        }
        Ok(BatchView { bytes, header })
    }

    fn check_records(&self) -> Result<(), BatchError> {
        let count = self.header.count();
        let mut rest = &self.bytes[BATCH_HEADER_LEN..];
        for index in 0..count {
            let (_, tail) = RecordView::split(rest).ok_or(BatchError::BadRecords { index, count })?;
            rest = tail;
        }
        if rest.is_empty() { Ok(()) } else { Err(BatchError::BadRecords { index: count, count }) }
    }

    /// The batch's header.
    #[inline]
    pub fn header(&self) -> &'a BatchHeader {
        self.header
    }

    /// The whole batch.
    #[inline]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The records with their offsets. Ends early should the records not fit
    /// their lengths, which [`parse`](Self::parse) rules out.
    pub fn records(&self) -> impl Iterator<Item = (Offset, RecordView<'a>)> + use<'a> {
        let base = self.header.base_offset().0;
        let mut rest = &self.bytes[BATCH_HEADER_LEN..];
        (0..u64::from(self.header.count())).map_while(move |i| {
            let (record, tail) = RecordView::split(rest)?;
            rest = tail;
            Some((Offset(base.wrapping_add(i)), record))
        })
    }
}

/// A record within borrowed bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordView<'a> {
    /// µs since 1970 UTC, as the producer says.
    pub timestamp_us: u64,
    /// The key, if it has one.
    pub key: Option<&'a [u8]>,
    /// The value; may be empty.
    pub value: &'a [u8],
    headers: &'a [u8],
    header_count: u16,
}

impl<'a> RecordView<'a> {
    /// The record at the start of `bytes` and what follows it, or `None` if
    /// its lengths do not fit each other or `bytes`.
    #[inline]
    fn split(bytes: &'a [u8]) -> Option<(RecordView<'a>, &'a [u8])> {
        let (raw, rest) = RawRecord::ref_from_prefix(bytes).ok()?;
        let body_len = (raw.length.get() as usize).checked_sub(RECORD_HEADER_LEN)?;
        if raw.reserved.get() != 0 || body_len > rest.len() {
            return None;
        }
        let (body, tail) = rest.split_at(body_len);
        let key_len = if raw.key_len.get() == NO_KEY { 0 } else { raw.key_len.get() as usize };
        let (key, body) = body.split_at_checked(key_len)?;
        let (value, headers) = body.split_at_checked(raw.value_len.get() as usize)?;
        let header_count = raw.header_count.get();
        if header_count == 0 {
            if !headers.is_empty() {
                return None;
            }
        } else {
            check_headers(headers, header_count)?;
        }
        let key = (raw.key_len.get() != NO_KEY).then_some(key);
        Some((RecordView { timestamp_us: raw.timestamp_us.get(), key, value, headers, header_count }, tail))
    }

    /// The record's headers, in the order in which they were added.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let mut rest = self.headers;
        (0..self.header_count).map_while(move |_| {
            let (name, value, tail) = split_header(rest)?;
            rest = tail;
            Some((name, value))
        })
    }

    /// An owned copy.
    pub fn to_record(&self) -> Record {
        Record {
            timestamp_us: self.timestamp_us,
            key: self.key.map(<[u8]>::to_vec),
            value: self.value.to_vec(),
            headers: self.headers().map(|(n, v)| (n.to_owned(), v.to_vec())).collect(),
        }
    }
}

fn check_headers(mut bytes: &[u8], count: u16) -> Option<()> {
    if usize::from(count) > MAX_RECORD_HEADERS {
        return None;
    }
    for _ in 0..count {
        (_, _, bytes) = split_header(bytes)?;
    }
    bytes.is_empty().then_some(())
}

/// A header is `u16` name length, `u32` value length, name (UTF-8), value.
fn split_header(bytes: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let (lens, rest) = bytes.split_at_checked(6)?;
    let name_len = u16::from_le_bytes([lens[0], lens[1]]) as usize;
    let value_len = u32::from_le_bytes([lens[2], lens[3], lens[4], lens[5]]) as usize;
    let (name, rest) = rest.split_at_checked(name_len)?;
    let (value, rest) = rest.split_at_checked(value_len)?;
    Some((std::str::from_utf8(name).ok()?, value, rest))
}

/// A record that owns its bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// µs since 1970 UTC.
    pub timestamp_us: u64,
    /// Optional key.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Vec<u8>,
    /// Named values, in order; at most [`MAX_RECORD_HEADERS`], a name at most
    /// 65,535 bytes.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Record {
    /// Bytes that this record takes within a batch.
    pub fn encoded_len(&self) -> usize {
        encoded_record_len(self.key.as_deref(), &self.value, &self.headers)
    }
}

/// Bytes that a record of these parts takes within a batch.
pub fn encoded_record_len(key: Option<&[u8]>, value: &[u8], headers: &[(String, Vec<u8>)]) -> usize {
    let headers: usize = headers.iter().map(|(n, v)| 6 + n.len() + v.len()).sum();
    RECORD_HEADER_LEN + key.map_or(0, <[u8]>::len) + value.len() + headers
}

/// Builds one record batch.
///
/// Records are appended first; who sends it, and with which sequence, is said
/// at [`finish`](Self::finish), when it is known.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    bytes: Vec<u8>,
    prefix_len: usize,
    count: u32,
    first_timestamp_us: u64,
    max_timestamp_us: u64,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchBuilder {
    /// A batch without records yet.
    pub fn new() -> Self {
        Self::with_prefix(&[])
    }

    /// As [`new`](Self::new), with `prefix` standing before the batch in the
    /// bytes that [`finish`](Self::finish) returns: room for a frame's head, so
    /// that frame and batch leave in one piece.
    pub fn with_prefix(prefix: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(prefix.len() + BATCH_HEADER_LEN + 256);
        bytes.extend_from_slice(prefix);
        bytes.resize(prefix.len() + BATCH_HEADER_LEN, 0);
        BatchBuilder { bytes, prefix_len: prefix.len(), count: 0, first_timestamp_us: 0, max_timestamp_us: 0 }
    }

    /// Appends a record.
    ///
    /// # Panics
    /// If a part is longer than the limits given at [`Record`]; callers bound
    /// records by the broker's batch limit long before.
    pub fn push(
        &mut self,
        timestamp_us: u64,
        key: Option<&[u8]>,
        value: &[u8],
        headers: &[(String, Vec<u8>)],
    ) {
        assert!(headers.len() <= MAX_RECORD_HEADERS, "too many headers");
        let length = encoded_record_len(key, value, headers);
        let raw = RawRecord {
            length: U32::new(u32::try_from(length).expect("a record is far below 4 GiB")),
            key_len: U32::new(key.map_or(NO_KEY, |k| k.len() as u32)),
            value_len: U32::new(value.len() as u32),
            header_count: U16::new(headers.len() as u16),
            reserved: U16::ZERO,
            timestamp_us: U64::new(timestamp_us),
        };
        self.bytes.extend_from_slice(raw.as_bytes());
        self.bytes.extend_from_slice(key.unwrap_or_default());
        self.bytes.extend_from_slice(value);
        for (name, value) in headers {
            let name_len = u16::try_from(name.len()).expect("a header name has at most 65,535 bytes");
            self.bytes.extend_from_slice(&name_len.to_le_bytes());
            self.bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
            self.bytes.extend_from_slice(name.as_bytes());
            self.bytes.extend_from_slice(value);
        }
        if self.count == 0 {
            self.first_timestamp_us = timestamp_us;
        }
        self.max_timestamp_us = self.max_timestamp_us.max(timestamp_us);
        self.count += 1;
    }

    /// Records so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether there is no record yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes so far, the prefix and the batch header included.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Completes header and CRC. The bytes are the prefix and then the batch.
    ///
    /// # Panics
    /// If there is no record.
    pub fn finish(
        mut self,
        partition: PartitionId,
        producer: ProducerId,
        epoch: Epoch,
        base: Sequence,
    ) -> Vec<u8> {
        assert!(self.count > 0, "a batch has at least one record");
        let start = self.prefix_len;
        let length = self.bytes.len() - start;
        let mut header = BatchHeader {
            base_offset: U64::ZERO,
            commit_time_us: U64::ZERO,
            magic: BATCH_MAGIC,
            crc: U32::ZERO,
            length: U32::new(u32::try_from(length).expect("a batch is far below 4 GiB")),
            count: U32::new(self.count),
            topic: U32::new(partition.topic.0),
            partition: U32::new(partition.index),
            producer_id: U64::new(producer.0),
            base_sequence: U64::new(base.0),
            producer_epoch: U32::new(epoch.0),
            version: BATCH_VERSION,
            compression: COMPRESSION_NONE,
            flags: U16::ZERO,
            first_timestamp_us: U64::new(self.first_timestamp_us),
            max_timestamp_us: U64::new(self.max_timestamp_us),
        };
        let batch = &mut self.bytes[start..];
        batch[..BATCH_HEADER_LEN].copy_from_slice(header.as_bytes());
        header.crc = U32::new(crc32c(&batch[CRC_START..]));
        batch[..BATCH_HEADER_LEN].copy_from_slice(header.as_bytes());
        self.bytes
    }
}
