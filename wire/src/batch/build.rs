//! Making record batches.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::directions::{FLAG_DIRECTED, is_direction};
use super::{
    BATCH_HEADER_LEN, BATCH_MAGIC, BATCH_VERSION, BROKER_HEADERS, BatchHeader, COMPRESSION_NONE, CRC_START,
    MAX_RECORD_HEADERS, NO_KEY, RECORD_HEADER_LEN, RawRecord,
};
use crate::crc32c;
use crate::ids::{Epoch, PartitionId, ProducerId, Sequence};

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
    /// 65,535 bytes. Names that begin with
    /// [`RESERVED_HEADER_PREFIX`](super::RESERVED_HEADER_PREFIX) mean something to
    /// the broker.
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
    flags: u16,
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
        Self::with_buffer(Vec::with_capacity(prefix.len() + BATCH_HEADER_LEN + 256), prefix)
    }

    /// As [`with_prefix`](Self::with_prefix), in the memory of `buffer`, whose
    /// contents are dropped: a buffer that was sent can serve again.
    pub fn with_buffer(mut buffer: Vec<u8>, prefix: &[u8]) -> Self {
        buffer.clear();
        buffer.extend_from_slice(prefix);
        buffer.resize(prefix.len() + BATCH_HEADER_LEN, 0);
        BatchBuilder {
            bytes: buffer,
            prefix_len: prefix.len(),
            count: 0,
            first_timestamp_us: 0,
            max_timestamp_us: 0,
            flags: 0,
        }
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
        assert!(headers.len() <= MAX_RECORD_HEADERS + BROKER_HEADERS, "too many headers");
        let length = encoded_record_len(key, value, headers);
        let raw = RawRecord {
            length: U32::new(u32::try_from(length).expect("a record is far below 4 GiB")),
            key_len: U32::new(key.map_or(NO_KEY, |k| k.len() as u32)),
            value_len: U32::new(value.len() as u32),
            header_count: U16::new(headers.len() as u16),
            reserved: U16::ZERO,
            timestamp_us: U64::new(timestamp_us),
        };
        // Once, not once for each part.
        self.bytes.reserve(length);
        self.bytes.extend_from_slice(raw.as_bytes());
        self.bytes.extend_from_slice(key.unwrap_or_default());
        self.bytes.extend_from_slice(value);
        for (name, value) in headers {
            if is_direction(name) {
                self.flags |= FLAG_DIRECTED;
            }
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
            flags: U16::new(self.flags),
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
