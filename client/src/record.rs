//! Records as an application sees them.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ringbolt_wire::batch::{MAX_RECORD_HEADERS, encoded_record_len};

use crate::error::ProduceError;

/// A record to be produced.
///
/// ```
/// use ringbolt_client::Record;
/// let record = Record::new("hello").with_key("greeting").with_header("lang", "en");
/// assert_eq!(record.value(), b"hello");
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    key: Option<Bytes>,
    value: Bytes,
    headers: Vec<(String, Vec<u8>)>,
    timestamp: Option<SystemTime>,
}

impl Record {
    /// A record with this value, no key and no headers.
    pub fn new(value: impl Into<Bytes>) -> Self {
        Record { value: value.into(), ..Record::default() }
    }

    /// The same with a key. Records with equal keys go to the same partition,
    /// see [`partition_for_key`](crate::partition_for_key).
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The same with one more header; at most 1,024, each name at most 65,535
    /// bytes.
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The same with a timestamp; without one, the record gets the time at
    /// which the producer takes it.
    pub fn with_timestamp(mut self, timestamp: SystemTime) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// The key.
    pub fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    /// The value.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// Name and value of each header, in order.
    pub fn headers(&self) -> &[(String, Vec<u8>)] {
        &self.headers
    }

    /// µs since 1970 UTC: as set, else now.
    pub(crate) fn timestamp_us(&self) -> u64 {
        to_us(self.timestamp.unwrap_or_else(SystemTime::now))
    }

    /// Bytes within a batch.
    pub(crate) fn encoded_len(&self) -> usize {
        encoded_record_len(self.key(), &self.value, &self.headers)
    }

    pub(crate) fn check_headers(&self) -> Result<(), ProduceError> {
        if self.headers.len() > MAX_RECORD_HEADERS {
            return Err(ProduceError::InvalidHeaders("a record has at most 1,024 headers"));
        }
        match self.headers.iter().any(|(name, _)| name.len() > usize::from(u16::MAX)) {
            true => Err(ProduceError::InvalidHeaders("a header's name has at most 65,535 bytes")),
            false => Ok(()),
        }
    }
}

/// Where a durable record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivery {
    /// Index of the partition.
    pub partition: u32,
    /// Its offset; `None` when only the fact of its durability could be found
    /// out, after a lost connection.
    pub offset: Option<u64>,
    /// When the broker took it; `None` if that was found out by a retry.
    pub commit_time: Option<SystemTime>,
    /// On how many disks it is, at least 1.
    pub copies: u8,
}

/// A record that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsumedRecord {
    /// Name of the topic.
    pub topic: Arc<str>,
    /// Index of the partition.
    pub partition: u32,
    /// Its offset.
    pub offset: u64,
    /// When the broker took it.
    pub commit_time: SystemTime,
    /// What its producer gave as its time.
    pub timestamp: SystemTime,
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Bytes,
    /// Name and value of each header, in order.
    pub headers: Vec<(String, Bytes)>,
}

/// µs since 1970 UTC; 0 for times before.
pub(crate) fn to_us(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

pub(crate) fn from_us(us: u64) -> SystemTime {
    // Broken clocks make times beyond what the platform can express.
    UNIX_EPOCH.checked_add(Duration::from_micros(us)).unwrap_or(UNIX_EPOCH)
}
