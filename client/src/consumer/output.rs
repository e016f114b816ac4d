//! What is made of one input partition, as a pure state: under which identity and
//! sequence it is produced, and which inputs it covers. Knows no connection.
//!
//! Every output names the input that it was made of, in a header. So the last output in
//! the log tells how far the inputs are covered, whatever happened to the process that
//! produced it; and the sequence, which the broker keeps dense, lets no second output
//! take the place after it.

use bytes::Bytes;
use ringbolt_wire::batch::encoded_record_len;
use ringbolt_wire::message::ProducerOpened;
use ringbolt_wire::{BatchBuilder, BatchView, Epoch, GroupId, Offset, PartitionId, ProducerId, Sequence};

use crate::record::{Record, SOURCE_HEADER, Source};

/// What was made of the input at this offset.
#[derive(Debug)]
pub(super) struct Output {
    pub input: u64,
    pub record: Record,
}

/// Where the output of one input partition stands.
#[derive(Debug)]
pub(super) struct OutputState {
    group: GroupId,
    input: PartitionId,
    /// Where it is produced to.
    pub to: PartitionId,
    pub producer: ProducerId,
    /// `None` before it was ever opened here.
    epoch: Option<Epoch>,
    next_sequence: Sequence,
    /// All inputs up to this offset are covered: they have an output, or none is to be.
    covered: Option<u64>,
    /// The numbers above are known to be the log's.
    pub is_open: bool,
}

impl OutputState {
    pub fn new(group: GroupId, input: PartitionId, to: PartitionId) -> Self {
        OutputState {
            group,
            input,
            to,
            producer: identity(group, input),
            epoch: None,
            next_sequence: Sequence(0),
            covered: None,
            is_open: false,
        }
    }

    /// Whether the input at this offset needs no output any more.
    pub fn covers(&self, input: u64) -> bool {
        self.covered.is_some_and(|covered| input <= covered)
    }

    /// The producer was opened by a take-over: what is below its next sequence is
    /// durable, and nothing else will be. `last` is the header of its last record.
    /// False if it does not tell how far the inputs are covered.
    pub fn on_opened(&mut self, opened: &ProducerOpened, last: Option<&[u8]>) -> bool {
        let source = last.and_then(Source::decode);
        let source = source.filter(|source| source.group == self.group && source.partition == self.input);
        let found = source.map(|source| source.offset);
        // What was known here before is known also when the record has left the log.
        let is_known = self.covered.is_some() && opened.next_sequence == self.next_sequence;
        if found.is_none() && opened.next_sequence.0 > 0 && !is_known {
            return false;
        }
        self.covered = self.covered.max(found);
        // Above every epoch that was used here, so that what is still on its way is
        // refused also by a broker that has forgotten them.
        let least = self.epoch.map_or(0, |own| own.0.saturating_add(1));
        self.epoch = Some(Epoch(opened.epoch.0.max(least)));
        self.next_sequence = opened.next_sequence;
        self.is_open = true;
        true
    }

    /// A batch of the first of these outputs, and how many they are.
    ///
    /// # Panics
    /// If there is none.
    pub fn batch(&self, outputs: &[Output], max_bytes: usize, max_records: u32) -> (Bytes, usize) {
        assert!(!outputs.is_empty() && self.is_open, "there is nothing to produce, or no sequence for it");
        let epoch = self.epoch.unwrap_or_default();
        let mut builder = BatchBuilder::new();
        for Output { input, record } in outputs {
            let source = Source { group: self.group, partition: self.input, offset: *input };
            let record = record.clone().with_only(SOURCE_HEADER, source.encode());
            let len = encoded_record_len(record.key(), record.value(), record.headers());
            let is_full = builder.count() >= max_records || builder.len() + len > max_bytes;
            if is_full && !builder.is_empty() {
                break;
            }
            builder.push(record.timestamp_us(), record.key(), record.value(), record.headers());
        }
        let count = builder.count() as usize;
        (Bytes::from(builder.finish(self.to, self.producer, epoch, self.next_sequence)), count)
    }

    /// The batch of these outputs was appended.
    pub fn on_appended(&mut self, outputs: &[Output]) {
        self.next_sequence.0 += outputs.len() as u64;
        self.covered = self.covered.max(outputs.last().map(|output| output.input));
    }
}

/// The header of the record at `offset`, in the batch that holds it.
pub(super) fn source_at(batch: &[u8], offset: Offset) -> Option<Vec<u8>> {
    let view = BatchView::parse(batch, u32::MAX).ok()?;
    let (_, record) = view.records().find(|(at, _)| *at == offset)?;
    let (_, value) = record.headers().find(|(name, _)| *name == SOURCE_HEADER)?;
    Some(value.to_vec())
}

/// The producer of what a group makes of a partition. Whoever has the partition
/// computes the same one; of two groups, or two partitions, they differ.
fn identity(group: GroupId, input: PartitionId) -> ProducerId {
    // Any constant will do, as long as it stays: "Ringbolt" in ASCII.
    let start = 0x5269_6e67_626f_6c74;
    let group_and_topic = u64::from(group.0) << 32 | u64::from(input.topic.0);
    ProducerId(mix(mix(start ^ group_and_topic) ^ u64::from(input.index)).max(1))
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): one to one, so what differs
/// goes on differing.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use ringbolt_wire::TopicId;

    use super::*;

    const INPUT: PartitionId = PartitionId::new(TopicId(1), 3);
    const TO: PartitionId = PartitionId::new(TopicId(2), 0);

    fn opened(epoch: u32, next: u64) -> ProducerOpened {
        ProducerOpened {
            producer: ProducerId(1),
            epoch: Epoch(epoch),
            next_sequence: Sequence(next),
            last_offset: Offset(9),
        }
    }

    fn outputs(inputs: &[u64]) -> Vec<Output> {
        inputs.iter().map(|&input| Output { input, record: Record::new(input.to_string()) }).collect()
    }

    fn source(offset: u64) -> Vec<u8> {
        Source { group: GroupId(7), partition: INPUT, offset }.encode()
    }

    #[test]
    fn the_last_output_tells_which_inputs_are_covered() {
        let mut state = OutputState::new(GroupId(7), INPUT, TO);
        assert!(state.on_opened(&opened(0, 0), None), "a new one");
        assert!(!state.covers(0));
        let made = outputs(&[4, 9, 11]);
        let (batch, count) = state.batch(&made, usize::MAX, 2);
        let header = *BatchView::parse(&batch, u32::MAX).unwrap().header();
        assert_eq!((count, header.base_sequence(), header.producer_id()), (2, Sequence(0), state.producer));
        assert_eq!(source_at(&batch, Offset(1)), Some(source(9)));
        state.on_appended(&made[..2]);
        assert!(state.covers(9) && !state.covers(10));

        let mut next = OutputState::new(GroupId(7), INPUT, TO);
        assert_eq!(next.producer, state.producer);
        assert!(next.on_opened(&opened(1, 2), Some(&source(9))));
        assert!(next.covers(9) && !next.covers(10));
        let (batch, _) = next.batch(&made[2..], usize::MAX, 2);
        let header = *BatchView::parse(&batch, u32::MAX).unwrap().header();
        assert_eq!((header.base_sequence(), header.producer_epoch()), (Sequence(2), Epoch(1)));
    }

    #[test]
    fn a_log_that_does_not_tell_is_not_guessed_at() {
        let mut state = OutputState::new(GroupId(7), INPUT, TO);
        assert!(!state.on_opened(&opened(1, 5), None), "the record is gone");
        let other = Source { group: GroupId(8), partition: INPUT, offset: 1 };
        assert!(!state.on_opened(&opened(1, 5), Some(&other.encode())), "somebody else's");
        assert!(!state.is_open);
    }

    #[test]
    fn what_was_sent_before_is_fenced_also_where_it_was_forgotten() {
        let mut state = OutputState::new(GroupId(7), INPUT, TO);
        state.on_opened(&opened(4, 0), None);
        state.on_appended(&outputs(&[1]));
        state.on_opened(&opened(1, 1), Some(&source(1)));
        let (batch, _) = state.batch(&outputs(&[2]), usize::MAX, 2);
        assert_eq!(BatchView::parse(&batch, u32::MAX).unwrap().header().producer_epoch(), Epoch(5));
    }

    #[test]
    fn a_batch_keeps_its_limits_and_replaces_an_earlier_source() {
        let mut state = OutputState::new(GroupId(7), INPUT, TO);
        state.on_opened(&opened(0, 0), None);
        let mut made = outputs(&[1, 2, 3]);
        made[0].record = Record::new(vec![0; 500]).with_header(SOURCE_HEADER, "another group's");
        let (batch, count) = state.batch(&made, 300, 10);
        assert_eq!((count, source_at(&batch, Offset(0))), (1, Some(source(1))), "a large one goes alone");
        let (batch, count) = state.batch(&made[1..], 300, 10);
        assert!(batch.len() <= 300 && count == 2);
    }

    #[test]
    fn groups_and_partitions_have_producers_of_their_own() {
        let mut seen = std::collections::HashSet::new();
        for group in 0..50 {
            for index in 0..50 {
                assert!(seen.insert(identity(GroupId(group), PartitionId::new(TopicId(1), index))));
            }
        }
        // It must not change: the log remembers it.
        assert_eq!(identity(GroupId(7), INPUT), ProducerId(IDENTITY_OF_7_1_3));
    }

    const IDENTITY_OF_7_1_3: u64 = 10_747_055_088_418_409_635;
}
