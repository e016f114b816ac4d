//! Records as an application sees them.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ringbolt_wire::batch::{
    DEAD_LETTER_HEADER, DELIVER_AT_HEADER, DeadLetter, EXPIRE_AT_HEADER, MAX_RECORD_HEADERS,
    ONLY_GROUP_HEADER, encoded_record_len,
};
use ringbolt_wire::{BatchHeader, GroupId, Offset, PartitionId, RecordView, TopicId};

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

    /// The same, not to be delivered to consumer groups before this time. Plain
    /// readers see it at once.
    ///
    /// It is the header `ringbolt.deliver-at`, in place of an earlier one.
    pub fn deliver_at(self, time: SystemTime) -> Self {
        self.with_time(DELIVER_AT_HEADER, time)
    }

    /// As [`deliver_at`](Self::deliver_at), so long from now: from this call, not
    /// from when it is produced.
    pub fn delay(self, delay: Duration) -> Self {
        self.deliver_at(from_now(delay))
    }

    /// The same, not to be delivered to consumer groups from this time on: they skip
    /// it, or take it for a dead letter if they are set so. Plain readers see it.
    ///
    /// It is the header `ringbolt.expire-at`, in place of an earlier one.
    pub fn expire_at(self, time: SystemTime) -> Self {
        self.with_time(EXPIRE_AT_HEADER, time)
    }

    /// As [`expire_at`](Self::expire_at), so long from now: from this call, not from
    /// when it is produced.
    pub fn ttl(self, time_to_live: Duration) -> Self {
        self.expire_at(from_now(time_to_live))
    }

    fn with_time(self, name: &str, time: SystemTime) -> Self {
        self.with_only(name, to_us(time).to_le_bytes().to_vec())
    }

    /// The same with this header once, whatever it had under that name.
    pub(crate) fn with_only(mut self, name: &str, value: Vec<u8>) -> Self {
        self.headers.retain(|(other, _)| other != name);
        self.with_header(name, value)
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
            false => self.check_directions(),
        }
    }

    /// The broker refuses the whole batch for one header that it cannot read.
    fn check_directions(&self) -> Result<(), ProduceError> {
        for (name, len) in [(DELIVER_AT_HEADER, 8), (EXPIRE_AT_HEADER, 8), (ONLY_GROUP_HEADER, 4)] {
            let mut given = self.headers.iter().filter(|(other, _)| other == name);
            let is_good = given.next().is_none_or(|(_, value)| value.len() == len) && given.next().is_none();
            if !is_good {
                return Err(ProduceError::InvalidHeaders(
                    "ringbolt.deliver-at, ringbolt.expire-at (8 bytes each) and ringbolt.only-group (4 bytes) \
                     may be there once",
                ));
            }
        }
        Ok(())
    }
}

fn from_now(time: Duration) -> SystemTime {
    let now = SystemTime::now();
    // What the platform cannot express is for ever as well.
    now.checked_add(time).unwrap_or_else(|| UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX) * 2))
}

/// Where a durable record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Receipt {
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
    /// Name and value of each header, in order; those that begin with `ringbolt.`
    /// are the broker's, and told by methods as well.
    pub headers: Vec<(String, Bytes)>,
}

impl ConsumedRecord {
    /// A record of a batch that `bytes` hold; it shares them.
    pub(crate) fn from_batch(
        topic: &Arc<str>,
        partition: u32,
        batch: &BatchHeader,
        (offset, record): (Offset, RecordView<'_>),
        bytes: &Bytes,
    ) -> Self {
        ConsumedRecord {
            topic: topic.clone(),
            partition,
            offset: offset.0,
            commit_time: from_us(batch.commit_time_us()),
            timestamp: from_us(record.timestamp_us),
            key: record.key.map(|key| bytes.slice_ref(key)),
            value: bytes.slice_ref(record.value),
            headers: record.headers().map(|(n, v)| (n.to_owned(), bytes.slice_ref(v))).collect(),
        }
    }

    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value)
    }

    /// The time before which groups did not deliver it, see [`Record::deliver_at`].
    pub fn deliver_at(&self) -> Option<SystemTime> {
        self.time(DELIVER_AT_HEADER)
    }

    /// The time from which on groups do not deliver it, see [`Record::expire_at`].
    pub fn expire_at(&self) -> Option<SystemTime> {
        self.time(EXPIRE_AT_HEADER)
    }

    /// What it was made of, if [`Consumer::process_with`](crate::Consumer::process_with)
    /// produced it.
    pub fn source(&self) -> Option<Source> {
        Source::decode(self.header(SOURCE_HEADER)?)
    }

    /// Where it comes from and why, if it is a record of a dead-letter topic.
    pub fn dead_letter(&self) -> Option<DeadLetter> {
        DeadLetter::decode(self.header(DEAD_LETTER_HEADER)?).ok()
    }

    fn time(&self, name: &str) -> Option<SystemTime> {
        let value = self.header(name)?.as_ref().try_into().ok()?;
        Some(from_us(u64::from_le_bytes(value)))
    }
}

/// Header of a record that [`Consumer::process_with`](crate::Consumer::process_with)
/// produced: the input that it was made of. 20 bytes, little-endian: group, topic and
/// partition (`u32` each), offset (`u64`).
pub const SOURCE_HEADER: &str = "ringbolt-source";

/// What a record was made of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Source {
    /// The group that processed it.
    pub group: GroupId,
    /// Where the input is.
    pub partition: PartitionId,
    /// Its offset there.
    pub offset: u64,
}

impl Source {
    /// The header's value.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let numbers = [self.group.0, self.partition.topic.0, self.partition.index];
        let mut value: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        value.extend(self.offset.to_le_bytes());
        value
    }

    /// The header's value, read; `None` if it is none.
    pub(crate) fn decode(value: &[u8]) -> Option<Source> {
        let (&group, rest) = value.split_first_chunk()?;
        let (&topic, rest) = rest.split_first_chunk()?;
        let (&index, rest) = rest.split_first_chunk()?;
        let topic = TopicId(u32::from_le_bytes(topic));
        Some(Source {
            group: GroupId(u32::from_le_bytes(group)),
            partition: PartitionId::new(topic, u32::from_le_bytes(index)),
            offset: u64::from_le_bytes(rest.try_into().ok()?),
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_on_a_time_counts_and_is_the_only_one() {
        let at = |s| UNIX_EPOCH + Duration::from_secs(s);
        let record =
            Record::new("v").deliver_at(at(5)).ttl(Duration::from_secs(1)).expire_at(at(9)).deliver_at(at(6));
        let headers: Vec<_> =
            record.headers().iter().map(|(name, value)| (name.as_str(), &value[..])).collect();
        let us = |s: u64| (s * 1_000_000).to_le_bytes();
        assert_eq!(headers, [(EXPIRE_AT_HEADER, &us(9)[..]), (DELIVER_AT_HEADER, &us(6)[..])]);
        assert_eq!(record.check_headers(), Ok(()));
    }

    #[test]
    fn delays_count_from_now_and_for_ever_is_far_away() {
        let before = SystemTime::now();
        let record = Record::new("v").delay(Duration::from_secs(60)).ttl(Duration::MAX);
        let time = |name| {
            let (_, value) = record.headers().iter().find(|(other, _)| other == name).unwrap();
            from_us(u64::from_le_bytes(value[..].try_into().unwrap()))
        };
        let (least, most) = (before + Duration::from_secs(59), SystemTime::now() + Duration::from_secs(61));
        assert!((least..most).contains(&time(DELIVER_AT_HEADER)));
        assert!(time(EXPIRE_AT_HEADER) > before + Duration::from_secs(100 * 365 * 86_400));
    }

    #[test]
    fn directions_that_the_broker_cannot_read_are_refused_before_they_spoil_a_batch() {
        let refused = |record: Record| matches!(record.check_headers(), Err(ProduceError::InvalidHeaders(_)));
        assert!(refused(Record::new("v").with_header(DELIVER_AT_HEADER, "tomorrow!")));
        assert!(refused(Record::new("v").with_header(ONLY_GROUP_HEADER, [0; 8])));
        assert!(refused(Record::new("v").delay(Duration::ZERO).with_header(DELIVER_AT_HEADER, [0; 8])));
        assert!(!refused(Record::new("v").with_header(ONLY_GROUP_HEADER, [0; 4])));
    }
}
