//! Records for one consumer, being put together: whole batches as they lie in the
//! log, and cuts of those of which not all records are for it.

use bytes::Bytes;
use ringbolt_wire::message::{DeliveredRange, LeaseRange};
use ringbolt_wire::{BatchHeader, Offset};
use smallvec::SmallVec;
use zerocopy::IntoBytes;

use super::part::Delivered;

/// Some bytes of a piece of memory.
#[derive(Clone, Debug)]
pub struct Span {
    /// The piece.
    pub source: Bytes,
    /// Where they begin in it.
    pub start: usize,
    /// Where they end.
    pub end: usize,
}

impl Span {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.source[self.start..self.end]
    }

    /// Some of them.
    fn part(&self, (from, to): (usize, usize)) -> Span {
        Span { source: self.source.clone(), start: self.start + from, end: self.start + to }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Parcel {
    /// What the records are.
    pub ranges: Vec<DeliveredRange>,
    /// How many there are.
    pub records: u64,
    /// Bytes of the payload.
    pub len: usize,
    payload: SmallVec<[Bytes; 4]>,
    /// What comes behind `payload`; it may become longer.
    open: Option<Span>,
}

/// Records of one batch that follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Number of the first in its batch.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// Where their bytes begin and end in the batch.
    pub bytes: (usize, usize),
    /// Timestamp of the first, and the highest.
    pub timestamps: (u64, u64),
    /// How often they were delivered.
    pub about: Delivered,
}

impl Parcel {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Adds a whole batch.
    pub fn push_whole(&mut self, partition: u32, header: &BatchHeader, batch: &Span, about: &Delivered) {
        self.push(batch.clone());
        self.add(partition, header.base_offset(), header.count(), header.len(), about);
    }

    /// Adds some records of a batch.
    pub fn push_cut(&mut self, partition: u32, header: &BatchHeader, batch: &Span, cut: &Cut) {
        if cut.count == header.count() {
            return self.push_whole(partition, header, batch, &cut.about);
        }
        let records = batch.part(cut.bytes);
        let header = header.cut(cut.first, cut.count, cut.timestamps, records.as_slice());
        let source = Bytes::copy_from_slice(header.as_bytes());
        self.push(Span { start: 0, end: source.len(), source });
        self.push(records);
        self.add(partition, header.base_offset(), cut.count, header.len(), &cut.about);
    }

    /// What is neighbours in one piece of memory stays together.
    fn push(&mut self, span: Span) {
        self.len += span.end - span.start;
        match &mut self.open {
            Some(open)
                if open.end == span.start
                    && open.source.as_ptr() == span.source.as_ptr()
                    && open.source.len() == span.source.len() =>
            {
                open.end = span.end;
            }
            _ => {
                self.close();
                self.open = Some(span);
            }
        }
    }

    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            self.payload.push(open.source.slice(open.start..open.end));
        }
    }

    /// What the records are, and their batches in pieces.
    pub fn finish(mut self) -> (Vec<DeliveredRange>, SmallVec<[Bytes; 4]>) {
        self.close();
        (self.ranges, self.payload)
    }

    fn add(&mut self, partition: u32, base_offset: Offset, count: u32, len: usize, about: &Delivered) {
        self.records += u64::from(count);
        match self.ranges.last_mut() {
            Some(last)
                if last.lease.partition == partition
                    && last.lease.end() == base_offset
                    && last.lease.acquired == about.acquired
                    && last.failed == about.failed
                    && last.first_delivery_us == about.first_delivery_us =>
            {
                last.lease.count += count;
                last.payload_len += len as u32;
            }
            _ => {
                let lease = LeaseRange { partition, base_offset, count, acquired: about.acquired };
                let Delivered { failed, first_delivery_us, .. } = *about;
                self.ranges.push(DeliveredRange {
                    lease,
                    failed,
                    first_delivery_us,
                    payload_len: len as u32,
                });
            }
        }
    }
}

/// The batches in pieces of memory that follow each other: each in one piece. One that
/// lies across two is copied.
///
/// # Panics
/// If they are not whole batches, which reading them has checked.
pub fn batches_of(pieces: &[Bytes]) -> Vec<Span> {
    let mut batches = Vec::new();
    let mut rest = pieces.iter().cloned();
    let (mut source, mut at) = (rest.next().unwrap_or_default(), 0);
    loop {
        if at == source.len() {
            let Some(next) = rest.next() else { return batches };
            (source, at) = (next, 0);
            continue;
        }
        // As many pieces as it takes, in one: the batch begins where this one does.
        let header = BatchHeader::decode(&source[at..]);
        let len = header.map(BatchHeader::len).unwrap_or(usize::MAX);
        if len <= source.len() - at {
            batches.push(Span { source: source.clone(), start: at, end: at + len });
            at += len;
            continue;
        }
        let next = rest.next().expect("batches were read whole");
        source = [&source[at..], &next[..]].concat().into();
        at = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringbolt_wire::message::DeliveredRange;
    use ringbolt_wire::{BatchBuilder, Epoch, PartitionId, ProducerId, Sequence, TopicId};

    use super::*;

    fn batch(base: u64, records: u32) -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        (0..records).for_each(|i| builder.push(u64::from(i) + base, None, &[i as u8; 20], &[]));
        let mut bytes =
            builder.finish(PartitionId::new(TopicId(1), 3), ProducerId(1), Epoch(0), Sequence(base));
        BatchHeader::set_placement(&mut bytes, Offset(base), 5);
        bytes
    }

    const FIRST: Delivered = Delivered { acquired: 1, failed: 0, first_delivery_us: 0 };
    const AGAIN: Delivered = Delivered { acquired: 2, failed: 1, first_delivery_us: 7 };

    proptest! {
        /// However memory is cut, and whichever records are taken.
        #[test]
        fn what_is_put_in_comes_out_as_batches_of_exactly_those_records(
            counts in prop::collection::vec(1u32..6, 1..8),
            cuts in prop::collection::vec(1usize..300, 0..6),
            taken in prop::collection::vec((any::<bool>(), any::<bool>()), 48),
        ) {
            let (mut all, mut base) = (Vec::new(), 0);
            for count in &counts {
                all.extend(batch(base, *count));
                base += u64::from(*count);
            }
            let (mut pieces, mut rest) = (Vec::new(), Bytes::from(all));
            for cut in cuts {
                pieces.push(rest.split_to(cut.min(rest.len())));
            }
            pieces.push(rest);
            let spans = batches_of(&pieces);
            prop_assert_eq!(spans.len(), counts.len());
            let (mut parcel, mut expected) = (Parcel::default(), Vec::new());
            for span in &spans {
                let header = *BatchHeader::decode(span.as_slice()).unwrap();
                for i in 0..header.count() {
                    let offset = header.base_offset().0 + u64::from(i);
                    let (take, again) = taken[offset as usize];
                    if !take {
                        continue;
                    }
                    let about = if again { AGAIN } else { FIRST };
                    let len = (header.len() - 80) / header.count() as usize;
                    let bytes = (80 + len * i as usize, 80 + len * (i as usize + 1));
                    let cut = Cut { first: i, count: 1, bytes, timestamps: (offset, offset), about };
                    parcel.push_cut(3, &header, span, &cut);
                    expected.push((offset, about));
                }
            }
            prop_assert_eq!(parcel.records, expected.len() as u64);
            let len = parcel.len;
            let (ranges, payload) = parcel.finish();
            let payload: Vec<u8> = payload.concat();
            prop_assert_eq!(payload.len(), len);
            let (mut got, mut rest) = (Vec::new(), &payload[..]);
            for range in &ranges {
                let DeliveredRange { failed, first_delivery_us, .. } = *range;
                let about = Delivered { acquired: range.lease.acquired, failed, first_delivery_us };
                let (batches, after) = range.split_payload(rest).expect("whole batches");
                let records = batches.iter().flat_map(|batch| batch.records().collect::<Vec<_>>());
                got.extend(records.map(|(offset, _)| (offset.0, about)));
                rest = after;
            }
            prop_assert_eq!(got, expected);
        }
    }
}
