//! Consuming through a group: attaching, delivery, and what became of records.

use super::group::{MAX_LEASE_MS, MAX_RETRY_DELAY_MS};
use super::{MessageError, ensure, flag};
use crate::batch::BatchView;
use crate::ids::{ConsumerId, GroupId, Offset, ShardId};
use crate::reader::{Put, Reader};

/// Most credit in records that a consumer may have, at one shard.
pub const MAX_CREDIT_RECORDS: u64 = 1_000_000;
/// Most credit in bytes that a consumer may have, at one shard.
pub const MAX_CREDIT_BYTES: u64 = 64 << 20;
/// Most ranges of records that an `Attach` may hold on to.
pub const MAX_HELD_RANGES: usize = 4096;
/// Most items of a `Settle`.
pub const MAX_SETTLE_ITEMS: usize = 1024;

/// Most records that the items of one settle request speak of, together.
pub const MAX_SETTLE_RECORDS: u64 = 16_384;
/// Most bytes of the reason of a reject.
pub const MAX_REASON_LEN: usize = 1024;

/// Which consumer, of which group, at which shard.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConsumerAt {
    /// The shard: a consumer deals with each shard that has partitions of its
    /// topic.
    pub shard: ShardId,
    /// The group.
    pub group: GroupId,
    /// Who; not 0.
    pub consumer: ConsumerId,
}

impl ConsumerAt {
    pub(super) fn put(&self, m: &mut Vec<u8>) {
        m.put_u32(u32::from(self.shard.0));
        m.put_u32(self.group.0);
        m.put_u64(self.consumer.0);
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<ConsumerAt, MessageError> {
        let (shard, group) = (ShardId(r.small_u16("shard")?), GroupId(r.u32()?));
        let consumer = ConsumerId(r.u64()?);
        ensure(consumer.0 != 0, "consumer", 0)?;
        Ok(ConsumerAt { shard, group, consumer })
    }
}

/// How much a consumer may be sent. A delivery takes its records and the bytes of
/// its payload off; it happens as long as both are above 0, so its last bytes may
/// go beyond, by less than one record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Credit {
    /// Records, at most [`MAX_CREDIT_RECORDS`].
    pub records: u64,
    /// Bytes, at most [`MAX_CREDIT_BYTES`].
    pub bytes: u64,
}

impl Credit {
    fn put(&self, m: &mut Vec<u8>) {
        m.put_u64(self.records);
        m.put_u64(self.bytes);
    }

    fn read(r: &mut Reader<'_>) -> Result<Credit, MessageError> {
        let (records, bytes) = (r.u64()?, r.u64()?);
        ensure(records <= MAX_CREDIT_RECORDS, "credit_records", records)?;
        ensure(bytes <= MAX_CREDIT_BYTES, "credit_bytes", bytes)?;
        Ok(Credit { records, bytes })
    }
}

/// Records that follow each other in a partition and were delivered equally often.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LeaseRange {
    /// Index of the partition in the group's topic.
    pub partition: u32,
    /// The first.
    pub base_offset: Offset,
    /// How many, at least 1.
    pub count: u32,
    /// How often they were delivered, this time included: tells this lease from
    /// earlier ones of the same consumer.
    pub acquired: u32,
}

impl LeaseRange {
    const LEN: usize = 20;

    fn put(&self, m: &mut Vec<u8>) {
        m.put_u32(self.partition);
        m.put_u64(self.base_offset.0);
        m.put_u32(self.count);
        m.put_u32(self.acquired);
    }

    fn read(r: &mut Reader<'_>) -> Result<LeaseRange, MessageError> {
        let range = LeaseRange {
            partition: r.u32()?,
            base_offset: Offset(r.u64()?),
            count: r.u32()?,
            acquired: r.u32()?,
        };
        ensure_range(range.base_offset, range.count)?;
        Ok(range)
    }

    /// Offset after the last record.
    pub fn end(&self) -> Offset {
        Offset(self.base_offset.0 + u64::from(self.count))
    }
}

/// Refuses a range without records, and one whose end is not a number of 64 bits.
fn ensure_range(base_offset: Offset, count: u32) -> Result<(), MessageError> {
    ensure(count > 0, "count", 0)?;
    let fits = base_offset.0.checked_add(u64::from(count)).is_some();
    ensure(fits, "base_offset", base_offset.0)
}

/// Attaches a consumer. Records are sent in [`Delivery`] frames with the
/// correlation of this request; its answer comes when that is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attach {
    /// Who, and to what.
    pub at: ConsumerAt,
    /// Its credit, in place of what it had.
    pub credit: Credit,
    /// Its leases' time in milliseconds, at most [`MAX_LEASE_MS`]; 0 for the
    /// group's.
    pub lease_ms: u32,
    /// What it still has in hand. Whatever else was leased to it is given back:
    /// it was lost on the way, or by a consumer that began anew.
    pub held: Vec<LeaseRange>,
}

impl Attach {
    pub(super) fn put(&self, m: &mut Vec<u8>) {
        self.at.put(m);
        self.credit.put(m);
        m.put_u32(self.lease_ms);
        m.put_u32(self.held.len() as u32);
        self.held.iter().for_each(|held| held.put(m));
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Attach, MessageError> {
        let (at, credit, lease_ms) = (ConsumerAt::read(r)?, Credit::read(r)?, read_lease(r)?);
        let count = r.count(LeaseRange::LEN)?;
        ensure(count <= MAX_HELD_RANGES, "held", count as u64)?;
        let held = (0..count).map(|_| LeaseRange::read(r)).collect::<Result<_, _>>()?;
        Ok(Attach { at, credit, lease_ms, held })
    }
}

fn read_lease(r: &mut Reader<'_>) -> Result<u32, MessageError> {
    let lease_ms = r.u32()?;
    ensure(lease_ms <= MAX_LEASE_MS, "lease_ms", u64::from(lease_ms))?;
    Ok(lease_ms)
}

/// Asks for records once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Receive {
    /// Who, and of what.
    pub at: ConsumerAt,
    /// How much may come; both above 0.
    pub credit: Credit,
    /// Its leases' time in milliseconds, at most [`MAX_LEASE_MS`]; 0 for the
    /// group's.
    pub lease_ms: u32,
    /// Longest wait in milliseconds; the answer is empty when it is over.
    pub max_wait_ms: u32,
}

impl Receive {
    pub(super) fn put(&self, m: &mut Vec<u8>) {
        self.at.put(m);
        self.credit.put(m);
        m.put_u32(self.lease_ms);
        m.put_u32(self.max_wait_ms);
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Receive, MessageError> {
        let (at, credit, lease_ms) = (ConsumerAt::read(r)?, Credit::read(r)?, read_lease(r)?);
        ensure(credit.records > 0, "credit_records", 0)?;
        ensure(credit.bytes > 0, "credit_bytes", 0)?;
        Ok(Receive { at, credit, lease_ms, max_wait_ms: r.u32()? })
    }
}

/// What became of records.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Verb {
    /// They were handled: never again.
    Ack,
    /// The same for every record up to and with the range's last one that is
    /// leased to this consumer, however often it was delivered.
    AckUpTo,
    /// Not now: deliver again after so many ms, at most [`MAX_RETRY_DELAY_MS`].
    /// No failure.
    Nack {
        /// The delay.
        delay_ms: u32,
    },
    /// They failed.
    Reject {
        /// To the dead-letter topic at once, however often it may be tried.
        dead_letter: bool,
        /// Why, for whoever looks there; at most [`MAX_REASON_LEN`] bytes.
        reason: String,
    },
    /// The work takes longer: the lease runs out so many ms from now, at most
    /// [`MAX_LEASE_MS`]; 0 for the time that it was given.
    Extend {
        /// From now.
        lease_ms: u32,
    },
    /// Back as it came, for another consumer; no failure, no delay.
    Release,
    /// Of dead letters: once more to the partition that they came from, for the
    /// group that they failed in; and acknowledged here, in one commit.
    Redrive,
}

/// One item of a settle request.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SettleItem {
    /// Which records.
    pub range: LeaseRange,
    /// What became of them.
    pub verb: Verb,
}

impl SettleItem {
    const MIN_LEN: usize = LeaseRange::LEN + 8;

    fn put(&self, m: &mut Vec<u8>) {
        self.range.put(m);
        let (kind, dead_letter, ms, reason) = match &self.verb {
            Verb::Ack => (0, false, 0, ""),
            Verb::AckUpTo => (1, false, 0, ""),
            Verb::Nack { delay_ms } => (2, false, *delay_ms, ""),
            Verb::Reject { dead_letter, reason } => (3, *dead_letter, 0, reason.as_str()),
            Verb::Extend { lease_ms } => (4, false, *lease_ms, ""),
            Verb::Release => (5, false, 0, ""),
            Verb::Redrive => (6, false, 0, ""),
        };
        m.put_u8(kind);
        m.put_u8(u8::from(dead_letter));
        m.put_u32(ms);
        m.put_string(reason);
    }

    fn read(r: &mut Reader<'_>) -> Result<SettleItem, MessageError> {
        let range = LeaseRange::read(r)?;
        let (kind, dead_letter, ms) = (r.u8()?, flag("dead_letter", r.u8()?)?, r.u32()?);
        let reason = r.string()?;
        let is_reject = kind == 3;
        ensure(reason.len() <= MAX_REASON_LEN, "reason", reason.len() as u64)?;
        ensure(is_reject || reason.is_empty(), "reason", reason.len() as u64)?;
        ensure(is_reject || !dead_letter, "dead_letter", 1)?;
        let verb = match kind {
            0 => Verb::Ack,
            1 => Verb::AckUpTo,
            2 => Verb::Nack { delay_ms: ms },
            3 => Verb::Reject { dead_letter, reason: reason.to_owned() },
            4 => Verb::Extend { lease_ms: ms },
            5 => Verb::Release,
            6 => Verb::Redrive,
            value => return Err(MessageError::OutOfRange { field: "verb", value: u64::from(value) }),
        };
        let max_ms = match verb {
            Verb::Nack { .. } => MAX_RETRY_DELAY_MS,
            Verb::Extend { .. } => MAX_LEASE_MS,
            _ => 0,
        };
        ensure(ms <= max_ms, "ms", u64::from(ms))?;
        Ok(SettleItem { range, verb })
    }
}

/// Says what became of delivered records, and gives credit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settle {
    /// Whose, and where.
    pub at: ConsumerAt,
    /// Credit for an attached consumer on top of what it has.
    pub credit: Credit,
    /// Whether there is an answer: it comes when what it says is durable. Without
    /// one, nothing tells whether anything came to be, and this request is not
    /// in flight.
    pub confirm: bool,
    /// At most [`MAX_SETTLE_ITEMS`].
    pub items: Vec<SettleItem>,
}

impl Settle {
    pub(super) fn put(&self, m: &mut Vec<u8>) {
        self.at.put(m);
        self.credit.put(m);
        m.put_u32(u32::from(self.confirm));
        m.put_u32(self.items.len() as u32);
        self.items.iter().for_each(|item| item.put(m));
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Settle, MessageError> {
        let (at, credit) = (ConsumerAt::read(r)?, Credit::read(r)?);
        let confirm = flag("confirm", r.u8()?)?;
        r.reserved(3)?;
        let count = r.count(SettleItem::MIN_LEN)?;
        ensure(count <= MAX_SETTLE_ITEMS, "items", count as u64)?;
        let items = (0..count).map(|_| SettleItem::read(r)).collect::<Result<_, _>>()?;
        Ok(Settle { at, credit, confirm, items })
    }
}

/// Records that a settle request did not settle.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Unsettled {
    /// Index of the partition in the group's topic.
    pub partition: u32,
    /// The number of an [`ErrorCode`](crate::ErrorCode); not 0.
    pub status: u16,
    /// The first of them.
    pub base_offset: Offset,
    /// How many, at least 1.
    pub count: u32,
}

impl Unsettled {
    const LEN: usize = 20;
}

/// Answer to [`Settle`]: everything in it is durable, but for these.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settled {
    /// What was not settled, and why, in the order of the items.
    pub unsettled: Vec<Unsettled>,
}

impl Settled {
    pub(super) fn put(&self, m: &mut Vec<u8>) {
        m.put_u32(self.unsettled.len() as u32);
        for u in &self.unsettled {
            m.put_u32(u.partition);
            m.put_u64(u.base_offset.0);
            m.put_u32(u.count);
            m.put_u32(u32::from(u.status));
        }
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Settled, MessageError> {
        let count = r.count(Unsettled::LEN)?;
        let unsettled = (0..count).map(|_| {
            let (partition, base_offset, count) = (r.u32()?, Offset(r.u64()?), r.u32()?);
            let status = r.small_u16("status")?;
            ensure_range(base_offset, count)?;
            ensure(status > 0, "status", 0)?;
            Ok(Unsettled { partition, status, base_offset, count })
        });
        Ok(Settled { unsettled: unsettled.collect::<Result<_, MessageError>>()? })
    }
}

/// Delivered records of one partition that follow each other and have been
/// delivered, and have failed, equally often.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DeliveredRange {
    /// Which records, and how often they were delivered, this time included. After
    /// a restart of the broker, deliveries that nobody has settled may be missing.
    pub lease: LeaseRange,
    /// How often they failed.
    pub failed: u32,
    /// When they were first delivered, µs since 1970 UTC; 0 if this is the first
    /// time.
    pub first_delivery_us: u64,
    /// Bytes of the payload that belong to this range: whole record batches, which
    /// hold exactly its records. A batch that was delivered in part was cut by the
    /// broker, and has a CRC of its own.
    pub payload_len: u32,
}

/// Records for a consumer; the batches are the frame's payload.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Delivery {
    /// For how long they are leased, in milliseconds; 0 if there are none.
    pub lease_ms: u32,
    /// They follow each other in the payload.
    pub ranges: Vec<DeliveredRange>,
}

impl Delivery {
    const RANGE_LEN: usize = LeaseRange::LEN + 4 + 8 + 4;

    /// Bytes of the meta of a delivery of so many ranges.
    pub const fn meta_len(ranges: usize) -> usize {
        4 + 4 + ranges * Self::RANGE_LEN
    }

    pub(super) fn put(&self, m: &mut Vec<u8>) {
        m.put_u32(self.lease_ms);
        m.put_u32(self.ranges.len() as u32);
        for range in &self.ranges {
            range.lease.put(m);
            m.put_u32(range.failed);
            m.put_u64(range.first_delivery_us);
            m.put_u32(range.payload_len);
        }
    }

    pub(super) fn read(r: &mut Reader<'_>, payload_len: u32) -> Result<Delivery, MessageError> {
        let lease_ms = r.u32()?;
        let count = r.count(Self::RANGE_LEN)?;
        ensure((lease_ms > 0) == (count > 0), "lease_ms", u64::from(lease_ms))?;
        let ranges = (0..count).map(|_| {
            let lease = LeaseRange::read(r)?;
            let (failed, first_delivery_us, payload_len) = (r.u32()?, r.u64()?, r.u32()?);
            ensure(lease.acquired > 0, "acquired", 0)?;
            ensure(payload_len > 0, "payload_len", 0)?;
            Ok(DeliveredRange { lease, failed, first_delivery_us, payload_len })
        });
        let ranges = ranges.collect::<Result<Vec<_>, MessageError>>()?;
        let sum: u64 = ranges.iter().map(|range| u64::from(range.payload_len)).sum();
        ensure(sum == u64::from(payload_len), "payload_len", sum)?;
        Ok(Delivery { lease_ms, ranges })
    }
}

impl DeliveredRange {
    /// The batches of this range, which are the first `payload_len` bytes of
    /// `payload`, and the payload of the ranges after this one. `None` if they are
    /// not whole, not of the range's partition, or do not hold exactly its records.
    ///
    /// # Panics
    /// If `payload` is shorter than `payload_len`, which decoding the delivery has
    /// checked against the frame's.
    pub fn split_payload<'a>(&self, payload: &'a [u8]) -> Option<(Vec<BatchView<'a>>, &'a [u8])> {
        let (mut own, rest) = payload.split_at(self.payload_len as usize);
        let (mut batches, mut next) = (Vec::new(), self.lease.base_offset);
        while !own.is_empty() {
            let batch = BatchView::parse(own, u32::MAX).ok()?;
            let is_next = batch.header().base_offset() == next;
            if !is_next || batch.header().partition().index != self.lease.partition {
                return None;
            }
            next = batch.header().next_offset();
            own = &own[batch.as_bytes().len()..];
            batches.push(batch);
        }
        (next == self.lease.end()).then_some((batches, rest))
    }
}
