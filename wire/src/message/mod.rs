//! Requests and responses: what stands in a frame's meta.
//!
//! Every message is decoded whole or refused; bytes left over, reserved bytes
//! that are set and numbers out of range are errors, so that the layout has one
//! reading and one writing: what decodes encodes to the same bytes. New fields
//! come with a new version.
//!
//! What a number refers to (whether there is such a topic, what a limit of this
//! broker is) is not known here.

mod consume;
mod error;
mod group;
mod produce;
mod request;
mod response;

pub use consume::{
    Attach, ConsumerAt, Credit, DeliveredRange, Delivery, LeaseRange, MAX_CREDIT_BYTES, MAX_CREDIT_RECORDS,
    MAX_HELD_RANGES, MAX_REASON_LEN, MAX_SETTLE_ITEMS, MAX_SETTLE_RECORDS, Receive, Settle, SettleItem,
    Settled, Unsettled, Verb,
};
pub use error::{ErrorResponse, MessageError};
pub use group::{
    Backoff, ConsumerInfo, CreateGroup, GroupConfig, GroupDescription, GroupInfo, GroupMode, GroupPartition,
    GroupStart, Hold, MAX_LEASE_MS, MAX_OPEN_RECORDS, MAX_RETRY_DELAY_MS, Progress, ResetGroup,
};
pub use produce::{
    PRODUCE_ACK_FRAME_LEN, PRODUCE_ACK_LEN, PRODUCE_HEAD_LEN, PRODUCE_META_LEN, ProduceAck, produce_head,
};
pub use request::{Fetch, FetchPartition, Hello, OffsetSpec, OpenProducer, Request};
pub use response::{
    FetchedPartition, HelloAck, PartitionInfo, ProducerOpened, Response, TopicDescription, TopicInfo,
};

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::ids::{PartitionId, TopicId};
use crate::reader::{Put, Reader};

/// Most characters (= bytes) of a topic name.
pub const MAX_TOPIC_NAME_LEN: usize = 249;
/// Most bytes of a client's name in its hello.
pub const MAX_CLIENT_NAME_LEN: usize = 255;
/// Most partitions of one topic.
pub const MAX_PARTITIONS: u32 = 100_000;
/// Most partitions that one fetch may name.
pub const MAX_FETCH_PARTITIONS: usize = 4096;

fn put_partition(out: &mut Vec<u8>, partition: PartitionId) {
    out.put_u32(partition.topic.0);
    out.put_u32(partition.index);
}

fn read_partition(r: &mut Reader<'_>) -> Result<PartitionId, MessageError> {
    Ok(PartitionId::new(TopicId(r.u32()?), r.u32()?))
}

/// A topic's number of partitions.
fn read_partition_count(r: &mut Reader<'_>) -> Result<u32, MessageError> {
    let partitions = r.u32()?;
    ensure((1..=MAX_PARTITIONS).contains(&partitions), "partitions", u64::from(partitions))?;
    Ok(partitions)
}

/// Refuses `value` of `field` unless `is_valid`.
#[inline]
fn ensure(is_valid: bool, field: &'static str, value: u64) -> Result<(), MessageError> {
    if is_valid { Ok(()) } else { Err(MessageError::OutOfRange { field, value }) }
}

/// Refuses reserved bytes that are set.
#[inline]
pub(crate) fn check_reserved(bytes: &[u8]) -> Result<(), MessageError> {
    match bytes.iter().find(|&&b| b != 0) {
        Some(&b) => Err(MessageError::OutOfRange { field: "reserved", value: u64::from(b) }),
        None => Ok(()),
    }
}

fn flag(field: &'static str, value: u8) -> Result<bool, MessageError> {
    ensure(value <= 1, field, u64::from(value))?;
    Ok(value == 1)
}

/// All of `meta` as a message of fixed layout.
#[inline]
fn read_fixed<T: FromBytes + KnownLayout + Immutable + Unaligned>(meta: &[u8]) -> Result<&T, MessageError> {
    T::ref_from_bytes(meta).map_err(|_| match meta.len().checked_sub(size_of::<T>()) {
        Some(more) => MessageError::TrailingBytes(more),
        None => MessageError::Truncated { wanted: size_of::<T>(), left: meta.len() },
    })
}

/// Whether `name` can be a topic's name: 1 to [`MAX_TOPIC_NAME_LEN`] of
/// `A-Z a-z 0-9 . _ -`, and not `.` or `..`.
pub fn is_valid_topic_name(name: &str) -> bool {
    (1..=MAX_TOPIC_NAME_LEN).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}
