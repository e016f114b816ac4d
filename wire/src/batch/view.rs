//! Reading record batches in borrowed bytes.

use zerocopy::FromBytes;

use super::directions;
use super::{
    BATCH_HEADER_LEN, BROKER_HEADERS, BatchError, BatchHeader, COMPRESSION_NONE, CRC_START,
    MAX_RECORD_HEADERS, NO_KEY, RECORD_HEADER_LEN, RawRecord,
};
use crate::crc32c;
use crate::ids::Offset;

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
        view.check_records(MAX_RECORD_HEADERS + BROKER_HEADERS)?;
        Ok(view)
    }

    /// As [`parse`](Self::parse), for bytes that must hold the batch and nothing
    /// more, without headers that are the broker's to add, as the payload of a produce
    /// request must.
    #[inline]
    pub fn parse_exact(bytes: &'a [u8], max_len: u32) -> Result<BatchView<'a>, BatchError> {
        let view = Self::parse_unchecked_records(bytes, max_len)?;
        view.check_records(MAX_RECORD_HEADERS)?;
        match bytes.len() - view.bytes.len() {
            0 => Ok(view),
            more => Err(BatchError::TrailingBytes(more)),
        }
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
        let bytes = &bytes[..len];
        let computed = crc32c(&bytes[CRC_START..]);
        if computed != header.crc.get() {
            return Err(BatchError::CrcMismatch { found: header.crc.get(), computed });
        }
        // After the CRC: a damaged byte is to be told as damage, which a retry
        // mends, and not as a compression that nobody chose.
        if header.compression != COMPRESSION_NONE {
            return Err(BatchError::UnknownCompression(header.compression));
        }
        Ok(BatchView { bytes, header })
    }

    /// The batch at the start of `bytes`, whose CRC was verified when it was read.
    #[inline]
    pub fn parse_stored(bytes: &'a [u8], max_len: u32) -> Result<BatchView<'a>, BatchError> {
        let header = BatchHeader::decode(bytes)?;
        let len = header.len();
        if header.length.get() > max_len {
            return Err(BatchError::TooLarge { len: header.length.get(), limit: max_len });
        }
        let bytes = bytes.get(..len).ok_or(BatchError::Truncated { len, have: bytes.len() })?;
        Ok(BatchView { bytes, header })
    }

    fn check_records(&self, max_headers: usize) -> Result<(), BatchError> {
        let count = self.header.count();
        let mut rest = &self.bytes[BATCH_HEADER_LEN..];
        let (mut first, mut max) = (0, 0);
        // Each turn consumes a record's header at least, so a count that lies
        // costs no more turns than there are bytes for.
        for index in 0..count {
            let (record, tail) = RecordView::split(rest).ok_or(BatchError::BadRecords { index, count })?;
            if index == 0 {
                first = record.timestamp_us;
            }
            if record.header_count > 0 {
                if usize::from(record.header_count) > max_headers {
                    return Err(BatchError::BadRecords { index, count });
                }
                directions::check(&record, self.header.is_directed(), index, count)?;
            }
            max = max.max(record.timestamp_us);
            rest = tail;
        }
        if !rest.is_empty() {
            return Err(BatchError::BadRecords { index: count, count });
        }
        if first != self.header.first_timestamp_us() || max != self.header.max_timestamp_us() {
            return Err(BatchError::BadTimestamps);
        }
        Ok(())
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

    /// The records with the bytes that each of them takes in the batch. Ends early
    /// as [`records`](Self::records) does.
    pub fn records_with_bytes(&self) -> impl Iterator<Item = (RecordView<'a>, &'a [u8])> + use<'a> {
        let mut rest = &self.bytes[BATCH_HEADER_LEN..];
        (0..self.header.count()).map_while(move |_| {
            let (record, tail) = RecordView::split(rest)?;
            let bytes = &rest[..rest.len() - tail.len()];
            rest = tail;
            Some((record, bytes))
        })
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

/// The batches of one partition that stand one after the other, as in a fetch
/// answer: each with its CRC verified, its records checked, and starting at the
/// offset where the one before it ends. After an error there is nothing more.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    rest: &'a [u8],
    expected: Offset,
}

impl<'a> Batches<'a> {
    /// The batches in `bytes`, of which the first is to start at `base`.
    pub fn new(bytes: &'a [u8], base: Offset) -> Self {
        Batches { rest: bytes, expected: base }
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<BatchView<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.rest);
        let batch = match BatchView::parse(rest, u32::MAX) {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error)),
        };
        let found = batch.header.base_offset();
        if found != self.expected {
            return Some(Err(BatchError::Gap { expected: self.expected, found }));
        }
        self.expected = batch.header.next_offset();
        self.rest = &rest[batch.bytes.len()..];
        Some(Ok(batch))
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
}

fn check_headers(mut bytes: &[u8], count: u16) -> Option<()> {
    if usize::from(count) > MAX_RECORD_HEADERS + BROKER_HEADERS {
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
