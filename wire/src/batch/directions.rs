//! What records tell the broker about their delivery to consumer groups: headers
//! with reserved names. Plain reading does not heed them.

use super::{BatchError, RecordView};
use crate::ids::{GroupId, Offset, PartitionId, TopicId};
use crate::message::MessageError;
use crate::reader::{Put, Reader};

/// Flag of a batch of which some records have [`Directions`]: others need not be
/// looked through for them.
pub const FLAG_DIRECTED: u16 = 1;

/// Start of the names of headers that mean something to the broker.
pub const RESERVED_HEADER_PREFIX: &str = "ringbolt.";
/// Header: not to be delivered before this time, `u64`, µs since 1970 UTC.
pub const DELIVER_AT_HEADER: &str = "ringbolt.deliver-at";
/// Header: not to be delivered from this time on, `u64`, µs since 1970 UTC.
pub const EXPIRE_AT_HEADER: &str = "ringbolt.expire-at";
/// Header: for the group of this number alone, `u32`; others skip the record.
pub const ONLY_GROUP_HEADER: &str = "ringbolt.only-group";
/// Header of a dead letter: where it comes from, and why; a [`DeadLetter`].
pub const DEAD_LETTER_HEADER: &str = "ringbolt.dead-letter";

/// When, and to whom, a record is to be delivered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Directions {
    /// Not before this time, µs since 1970 UTC.
    pub deliver_at_us: Option<u64>,
    /// Not from this time on, µs since 1970 UTC.
    pub expire_at_us: Option<u64>,
    /// To no other group.
    pub only_group: Option<GroupId>,
}

impl Directions {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Directions::default()
    }

    /// The directions among a record's headers; `None` if one of them has not the
    /// length of its number, or comes twice.
    pub fn of(record: &RecordView<'_>) -> Option<Directions> {
        let mut directions = Directions::default();
        for (name, value) in record.headers() {
            if !name.starts_with(RESERVED_HEADER_PREFIX) {
                continue;
            }
            let taken = match name {
                DELIVER_AT_HEADER => directions.deliver_at_us.replace(number(value)?).is_some(),
                EXPIRE_AT_HEADER => directions.expire_at_us.replace(number(value)?).is_some(),
                ONLY_GROUP_HEADER => {
                    let group = u32::from_le_bytes(value.try_into().ok()?);
                    directions.only_group.replace(GroupId(group)).is_some()
                }
                _ => false,
            };
            if taken {
                return None;
            }
        }
        Some(directions)
    }

    /// Appends the headers that say this.
    pub fn put_headers(&self, headers: &mut Vec<(String, Vec<u8>)>) {
        let times = [(DELIVER_AT_HEADER, self.deliver_at_us), (EXPIRE_AT_HEADER, self.expire_at_us)];
        for (name, time_us) in times {
            if let Some(time_us) = time_us {
                headers.push((name.to_owned(), time_us.to_le_bytes().to_vec()));
            }
        }
        if let Some(group) = self.only_group {
            headers.push((ONLY_GROUP_HEADER.to_owned(), group.0.to_le_bytes().to_vec()));
        }
    }
}

/// Whether a header of this name makes its batch one of [`FLAG_DIRECTED`].
pub(super) fn is_direction(name: &str) -> bool {
    matches!(name, DELIVER_AT_HEADER | EXPIRE_AT_HEADER | ONLY_GROUP_HEADER)
}

/// Checks the directions of a record, the `index`th of its batch of `count`.
pub(super) fn check(
    record: &RecordView<'_>,
    is_directed: bool,
    index: u32,
    count: u32,
) -> Result<(), BatchError> {
    let is_good = Directions::of(record).is_some_and(|directions| is_directed || directions.is_empty());
    if is_good { Ok(()) } else { Err(BatchError::BadDirections { index, count }) }
}

fn number(value: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(value.try_into().ok()?))
}

/// What the header of a dead letter says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetter {
    /// Partition that the record was produced to.
    pub origin: PartitionId,
    /// Its offset there.
    pub offset: Offset,
    /// The group in which it failed.
    pub group: GroupId,
    /// How often it was delivered.
    pub acquired: u32,
    /// How often it failed.
    pub failed: u32,
    /// When it was first delivered, µs since 1970 UTC; 0 if it never was.
    pub first_delivery_us: u64,
    /// When it came here, µs since 1970 UTC.
    pub moved_us: u64,
    /// Why: what the consumer said at last, or the broker.
    pub reason: String,
}

impl DeadLetter {
    /// The header's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut m = Vec::new();
        m.put_u32(self.origin.topic.0);
        m.put_u32(self.origin.index);
        m.put_u64(self.offset.0);
        m.put_u32(self.group.0);
        m.put_u32(self.acquired);
        m.put_u32(self.failed);
        m.put_u32(0);
        m.put_u64(self.first_delivery_us);
        m.put_u64(self.moved_us);
        m.put_string(&self.reason);
        m
    }

    /// The header's value, read.
    ///
    /// # Errors
    /// As for a message.
    pub fn decode(value: &[u8]) -> Result<DeadLetter, MessageError> {
        let mut r = Reader(value);
        let origin = PartitionId::new(TopicId(r.u32()?), r.u32()?);
        let (offset, group) = (Offset(r.u64()?), GroupId(r.u32()?));
        let (acquired, failed) = (r.u32()?, r.u32()?);
        r.reserved(4)?;
        let (first_delivery_us, moved_us) = (r.u64()?, r.u64()?);
        let reason = r.string()?.to_owned();
        r.finish()?;
        Ok(DeadLetter { origin, offset, group, acquired, failed, first_delivery_us, moved_us, reason })
    }

    /// What the record's header says, if it is a dead letter.
    pub fn of(record: &RecordView<'_>) -> Option<DeadLetter> {
        let (_, value) = record.headers().find(|(name, _)| *name == DEAD_LETTER_HEADER)?;
        DeadLetter::decode(value).ok()
    }
}
