//! Changes to what is durable of groups, as they lie in the log: values of records
//! in the shard's partition [`GROUPS_PARTITION`].
//!
//! ```text
//!   row | tail | row | tail | ...
//! ```
//!
//! A row has one layout (48 bytes); its tail, if it has one, is ranges or a text.
//! A checkpoint is, for each group and partition, a row that says where it stands
//! and the rows that would lead from there to all of it; then one row which says
//! from which offset of the log on all this can be read.

use std::sync::Arc;

use ringbolt_wire::{GroupId, PartitionId, TopicId};
use rustc_hash::FxHashMap;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::acks::{AckState, Attempts, How, Totals};

/// The partition of every shard that holds changes to its groups. Not a topic that
/// anybody can name.
pub const GROUPS_PARTITION: PartitionId = PartitionId::new(TopicId(0), 1);

/// A group in a partition of its topic.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GroupKey {
    /// The group.
    pub group: GroupId,
    /// Index of the partition.
    pub partition: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Default)]
#[repr(C)]
struct RawRow {
    kind: u8,
    how: u8,
    /// Bytes of a text, or 0.
    text_len: U16,
    group: U32,
    partition: U32,
    /// Number of ranges, or a count.
    count: U32,
    a: U64,
    b: U64,
    c: U64,
    d: U64,
}

const ROW_LEN: usize = size_of::<RawRow>();
const _: () = assert!(ROW_LEN == 48);

/// A range in a tail: records to leave out since the last one, records in it.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawRange {
    skip: U32,
    len: U32,
}

const RANGE_LEN: usize = size_of::<RawRange>();
const MAX_RANGES_PER_ROW: usize = 4096;

/// Bytes of a row and its tail, at most.
pub const MAX_CHANGE_LEN: usize = ROW_LEN + MAX_RANGES_PER_ROW * RANGE_LEN;
const _: () = assert!(ringbolt_wire::message::MAX_REASON_LEN <= MAX_RANGES_PER_ROW * RANGE_LEN);

const KIND_COMPLETED: u8 = 1;
const KIND_CAME_BACK: u8 = 2;
const KIND_STARTS: u8 = 3;
const KIND_STANDS: u8 = 4;
const KIND_RESTORED: u8 = 5;
const KIND_CHECKPOINT: u8 = 6;

/// Bytes whose CRC is right but that are no changes of this format.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
#[error("not changes to consumer groups of this format")]
pub struct ChangeFormatError;

/// What is durable of the groups of a shard.
#[derive(Clone, Default, Debug)]
pub struct GroupsState {
    /// By group and partition.
    pub acks: FxHashMap<GroupKey, AckState>,
    /// Offset in the partition of the changes from which on they say everything;
    /// `None` while no checkpoint is complete, and all are needed.
    pub checkpoint: Option<u64>,
    /// The last reason that was read: records that were rejected together have one.
    reason: Option<Arc<str>>,
}

fn row(kind: u8, key: GroupKey) -> RawRow {
    let (group, partition) = (U32::new(key.group.0), U32::new(key.partition));
    RawRow { kind, group, partition, ..RawRow::default() }
}

/// Appends: these ranges, in order and not touching, were completed, and records
/// before `delivered_end` were delivered.
pub fn put_completed(
    out: &mut Vec<u8>,
    key: GroupKey,
    how: How,
    delivered_end: u64,
    ranges: impl IntoIterator<Item = (u64, u64)>,
) {
    let mut open: Option<(usize, u64)> = None;
    for (start, end) in ranges {
        assert!(start < end, "a range of completed records {start}..{end}");
        let mut at = start;
        while at < end {
            let len = (end - at).min(u64::from(u32::MAX));
            let (row_at, skip) = match open {
                Some((row_at, last))
                    if at - last <= u64::from(u32::MAX)
                        && out.len() - row_at < ROW_LEN + MAX_RANGES_PER_ROW * RANGE_LEN =>
                {
                    (row_at, at - last)
                }
                _ => {
                    let mut row = row(KIND_COMPLETED, key);
                    (row.how, row.a, row.b) = (how as u8, U64::new(at), U64::new(delivered_end));
                    let row_at = out.len();
                    out.extend_from_slice(row.as_bytes());
                    (row_at, 0)
                }
            };
            let range = RawRange { skip: U32::new(skip as u32), len: U32::new(len as u32) };
            out.extend_from_slice(range.as_bytes());
            let count = row_at + std::mem::offset_of!(RawRow, count);
            let ranges = (out.len() - row_at - ROW_LEN) / RANGE_LEN;
            out[count..count + 4].copy_from_slice(&(ranges as u32).to_le_bytes());
            at += len;
            open = Some((row_at, at));
        }
    }
}

/// Appends: a record came back.
pub fn put_came_back(out: &mut Vec<u8>, key: GroupKey, offset: u64, attempts: &Attempts) {
    put_attempts(out, KIND_CAME_BACK, key, offset, attempts);
}

fn put_attempts(out: &mut Vec<u8>, kind: u8, key: GroupKey, offset: u64, attempts: &Attempts) {
    let mut row = row(kind, key);
    let text = attempts.condemned.as_deref();
    row.how = u8::from(text.is_some());
    row.text_len = U16::new(text.map_or(0, str::len) as u16);
    row.count = U32::new(attempts.acquired);
    row.a = U64::new(offset);
    row.b = U64::new(attempts.first_delivery_us);
    row.c = U64::new(attempts.not_before_us);
    row.d = U64::new(u64::from(attempts.failed));
    out.extend_from_slice(row.as_bytes());
    out.extend_from_slice(text.unwrap_or_default().as_bytes());
}

/// Appends: the group starts here in the partition, whatever there was before.
pub fn put_starts(out: &mut Vec<u8>, key: GroupKey, floor: u64) {
    let mut row = row(KIND_STARTS, key);
    row.a = U64::new(floor);
    out.extend_from_slice(row.as_bytes());
}

/// Appends all that is known of a group in a partition.
pub fn put_all(out: &mut Vec<u8>, key: GroupKey, state: &AckState) {
    let mut row = row(KIND_STANDS, key);
    let Totals { failed, dead_lettered, expired } = state.totals;
    (row.a, row.b) = (U64::new(state.floor()), U64::new(failed));
    (row.c, row.d) = (U64::new(dead_lettered), U64::new(expired));
    out.extend_from_slice(row.as_bytes());
    let delivered_end = state.delivered_end();
    // As "for another group", they are not counted again.
    put_completed(out, key, How::Skipped, delivered_end, state.completed().iter());
    if state.completed().is_empty() && delivered_end > state.floor() {
        let mut row = self::row(KIND_COMPLETED, key);
        (row.how, row.a, row.b) = (How::Skipped as u8, U64::new(delivered_end), U64::new(delivered_end));
        out.extend_from_slice(row.as_bytes());
    }
    for (offset, attempts) in state.all_attempts() {
        put_attempts(out, KIND_RESTORED, key, offset, attempts);
    }
}

/// Appends: from `offset` of the changes on, they say everything.
pub fn put_checkpoint(out: &mut Vec<u8>, offset: u64) {
    let mut row = RawRow { kind: KIND_CHECKPOINT, ..RawRow::default() };
    row.a = U64::new(offset);
    out.extend_from_slice(row.as_bytes());
}

/// Cuts changes into pieces of at most `max_len` bytes, or one change.
pub fn pieces(mut bytes: &[u8], max_len: usize) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let mut len = 0;
        while len < bytes.len() {
            let (row, _) = RawRow::ref_from_prefix(&bytes[len..]).expect("changes are whole rows");
            let ranges = if row.kind == KIND_COMPLETED { row.count.get() as usize * RANGE_LEN } else { 0 };
            let row_len = ROW_LEN + ranges + usize::from(row.text_len.get());
            if len > 0 && len + row_len > max_len {
                break;
            }
            len += row_len;
        }
        let (piece, rest) = bytes.split_at(len);
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

impl GroupsState {
    /// Carries out the changes in a record's value.
    pub fn apply(&mut self, mut bytes: &[u8]) -> Result<(), ChangeFormatError> {
        while !bytes.is_empty() {
            let (row, rest) = RawRow::ref_from_prefix(bytes).map_err(|_| ChangeFormatError)?;
            bytes = self.apply_row(row, rest)?;
        }
        Ok(())
    }

    fn apply_row<'a>(&mut self, row: &RawRow, rest: &'a [u8]) -> Result<&'a [u8], ChangeFormatError> {
        let key = GroupKey { group: GroupId(row.group.get()), partition: row.partition.get() };
        let (a, b, c, d) = (row.a.get(), row.b.get(), row.c.get(), row.d.get());
        match row.kind {
            KIND_COMPLETED => {
                let how = How::from_u8(row.how).ok_or(ChangeFormatError)?;
                let len = row.count.get() as usize * RANGE_LEN;
                let (ranges, rest) = rest.split_at_checked(len).ok_or(ChangeFormatError)?;
                let state = self.acks.entry(key).or_default();
                let mut at = a;
                for range in ranges.chunks_exact(RANGE_LEN) {
                    let range = RawRange::ref_from_bytes(range).map_err(|_| ChangeFormatError)?;
                    let start = at.checked_add(u64::from(range.skip.get())).ok_or(ChangeFormatError)?;
                    at = start.checked_add(u64::from(range.len.get())).ok_or(ChangeFormatError)?;
                    state.complete(start, at, how);
                }
                state.delivered_up_to(b);
                return Ok(rest);
            }
            KIND_CAME_BACK | KIND_RESTORED => {
                let (text, rest) =
                    rest.split_at_checked(usize::from(row.text_len.get())).ok_or(ChangeFormatError)?;
                let text = std::str::from_utf8(text).map_err(|_| ChangeFormatError)?;
                let condemned = (row.how == 1).then(|| self.shared(text));
                let attempts = Attempts {
                    acquired: row.count.get(),
                    failed: u32::try_from(d).map_err(|_| ChangeFormatError)?,
                    first_delivery_us: b,
                    not_before_us: c,
                    condemned,
                };
                let state = self.acks.entry(key).or_default();
                match row.kind {
                    KIND_CAME_BACK => state.came_back(a, attempts),
                    _ => state.restore_attempts(a, attempts),
                }
                return Ok(rest);
            }
            KIND_STARTS => {
                let totals = self.acks.get(&key).map(|state| state.totals).unwrap_or_default();
                let mut state = AckState::new(a);
                state.totals = totals;
                self.acks.insert(key, state);
            }
            KIND_STANDS => {
                let state = self.acks.entry(key).or_insert_with(|| AckState::new(a));
                // The rest may be in later commits, which a crash has undone: what is known
                // from before is true as well.
                state.complete(0, a, How::Skipped);
                state.delivered_up_to(a);
                state.totals = Totals { failed: b, dead_lettered: c, expired: d };
            }
            KIND_CHECKPOINT => self.checkpoint = Some(a),
            _ => return Err(ChangeFormatError),
        }
        Ok(rest)
    }

    fn shared(&mut self, text: &str) -> Arc<str> {
        match &self.reason {
            Some(reason) if **reason == *text => reason.clone(),
            _ => self.reason.insert(text.into()).clone(),
        }
    }

    /// Forgets groups of which `keep` says no.
    pub fn retain(&mut self, mut keep: impl FnMut(GroupKey) -> bool) {
        self.acks.retain(|key, _| keep(*key));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: GroupKey = GroupKey { group: GroupId(3), partition: 1 };
    const OTHER: GroupKey = GroupKey { group: GroupId(4), partition: 1 };

    #[derive(Clone, Debug)]
    enum Step {
        Complete(u64, u64, How),
        Back(u64, Attempts),
        Start(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let how =
            prop_oneof![Just(How::Acked), Just(How::DeadLettered), Just(How::Expired), Just(How::Skipped)];
        let attempts = (any::<(u32, u64, u64)>(), 0u32..9, prop::option::of(".{0,20}")).prop_map(
            |((acquired, first_delivery_us, not_before_us), failed, text)| Attempts {
                acquired,
                failed,
                first_delivery_us,
                not_before_us,
                condemned: text.map(Into::into),
            },
        );
        let offset = prop_oneof![0..300u64, (1u64 << 33)..(1u64 << 33) + 5];
        prop_oneof![
            8 => (offset.clone(), prop_oneof![1..20u64, Just(1 << 33)], how)
                .prop_map(|(start, len, how)| Step::Complete(start, start + len, how)),
            4 => (offset, attempts).prop_map(|(offset, attempts)| Step::Back(offset, attempts)),
            1 => (0..100u64).prop_map(Step::Start),
        ]
    }

    #[test]
    fn one_reason_of_many_records_is_read_into_one_place() {
        let (mut log, mut read) = (Vec::new(), GroupsState::default());
        let reasons = ["no", "no", "yes", "no"];
        for (offset, reason) in (0..).zip(reasons) {
            let attempts = Attempts { condemned: Some(reason.into()), ..Attempts::default() };
            put_came_back(&mut log, KEY, offset, &attempts);
        }
        read.apply(&log).unwrap();
        let of = |offset| read.acks[&KEY].attempts(offset).unwrap().condemned.clone().unwrap();
        assert_eq!([of(0), of(1), of(2), of(3)].map(|reason| reason.to_string()), reasons);
        assert!(Arc::ptr_eq(&of(0), &of(1)));
    }

    proptest! {
        /// Carried out and read back, change by change or from a checkpoint.
        #[test]
        fn what_is_read_back_is_what_was_left(steps in prop::collection::vec(step(), 0..60), cut in 0usize..60) {
            let mut live = AckState::new(0);
            let (mut log, mut read) = (Vec::new(), GroupsState::default());
            put_starts(&mut log, KEY, 0);
            for (i, step) in steps.into_iter().enumerate() {
                if i == cut {
                    // A checkpoint is read over what was there before.
                    read.apply(&log).unwrap();
                    log.clear();
                    put_all(&mut log, KEY, &live);
                    put_checkpoint(&mut log, 5);
                }
                match step {
                    Step::Complete(start, end, how) => {
                        put_completed(&mut log, KEY, how, end, [(start, end)]);
                        live.complete(start, end, how);
                        live.delivered_up_to(end);
                    }
                    Step::Back(offset, attempts) => {
                        put_came_back(&mut log, KEY, offset, &attempts);
                        live.came_back(offset, attempts);
                    }
                    Step::Start(floor) => {
                        put_starts(&mut log, KEY, floor);
                        let totals = live.totals;
                        live = AckState::new(floor);
                        live.totals = totals;
                    }
                }
            }
            put_starts(&mut log, OTHER, 9);
            read.apply(&log).unwrap();
            prop_assert_eq!(&read.acks[&KEY], &live);
            prop_assert_eq!(read.acks.len(), 2);
        }

        #[test]
        fn ranges_come_back_as_they_were(
            ranges in prop::collection::vec((1u64..6_000_000_000, 1u64..6_000_000_000), 1..20),
        ) {
            let (mut at, mut expected) = (0, Vec::new());
            for (skip, len) in ranges {
                expected.push((at + skip, at + skip + len));
                at += skip + len;
            }
            let mut bytes = Vec::new();
            put_completed(&mut bytes, KEY, How::Acked, at, expected.iter().copied());
            let mut state = GroupsState::default();
            state.apply(&bytes).unwrap();
            prop_assert!(state.acks[&KEY].completed().iter().eq(expected.iter().copied()));
            let cut = pieces(&bytes, 100);
            prop_assert!(cut.iter().all(|piece| GroupsState::default().apply(piece).is_ok()));
            prop_assert_eq!(cut.concat(), bytes);
        }

        #[test]
        fn other_bytes_are_refused_or_read_and_never_panic(bytes in prop::collection::vec(0u8..7, 0..300)) {
            let _ = GroupsState::default().apply(&bytes);
        }
    }

    /// A power cut in the middle of a checkpoint of many ranges, the first of whose pieces
    /// is in the log.
    #[test]
    fn a_checkpoint_that_is_there_in_part_takes_nothing_away() {
        let mut live = AckState::new(0);
        let mut log = Vec::new();
        put_starts(&mut log, KEY, 0);
        for start in (1..100_000).step_by(2) {
            put_completed(&mut log, KEY, How::Acked, start + 1, [(start, start + 1)]);
            live.complete(start, start + 1, How::Acked);
            live.delivered_up_to(start + 1);
        }
        let attempts = Attempts { acquired: 3, failed: 2, ..Attempts::default() };
        put_came_back(&mut log, KEY, 99_998, &attempts);
        live.came_back(99_998, attempts);
        let mut checkpoint = Vec::new();
        put_all(&mut checkpoint, KEY, &live);
        let pieces = pieces(&checkpoint, 64 << 10);
        assert!(pieces.len() > 3, "{} pieces", pieces.len());
        for there in 1..=pieces.len() {
            let mut read = GroupsState::default();
            read.apply(&log).unwrap();
            pieces[..there].iter().for_each(|piece| read.apply(piece).unwrap());
            assert_eq!(read.acks[&KEY], live, "{there} pieces");
        }
    }
}
