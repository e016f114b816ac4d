//! Produce frames, made at the rate of a core's memory rather than of its CRC
//! unit: 1.4 million a second leave about 700 ns for everything that a message
//! costs, and the CRC of 1 KiB alone would take a tenth of that.
//!
//! The CRC of a filler is known, so the batch's CRC is put together from parts:
//! `crc(a ++ b)` follows from `crc(a)`, `crc(b)` and the length of `b`, which is
//! always the same here, so that the step is four table look-ups. The bytes are
//! exactly those of [`ringbolt_wire::BatchBuilder`]; a test holds that.

use std::num::NonZeroU32;

use crc_fast::{CrcAlgorithm, checksum_combine};
use ringbolt_wire::message::PRODUCE_HEAD_LEN;
use ringbolt_wire::{
    BatchBuilder, Epoch, PartitionId, ProducerId, Sequence,
    batch::{BATCH_HEADER_LEN, RECORD_HEADER_LEN},
    crc32c, crc32c_append,
};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use crate::payload::{Filler, Stamp, TRAILER_LEN, splitmix64};
use crate::send_buffer::SendBuffer;

/// The words of a batch header, as `docs/protocol.md` lays them out: all but
/// those of the CRC (from which on it counts) are what they are here, or set for
/// each batch. Words, because the CRC reads 8 bytes at a time, and a load that
/// spans narrower stores waits for them.
const HEADER_WORDS: usize = BATCH_HEADER_LEN / 8;
const RECORD_WORDS: usize = RECORD_HEADER_LEN / 8;
const CRC_START: usize = ringbolt_wire::BatchHeader::CRC_START;
/// The word whose upper half is the CRC.
const CRC_WORD: usize = 2;

const _: () = assert!(BATCH_HEADER_LEN.is_multiple_of(8) && RECORD_HEADER_LEN.is_multiple_of(8));
const _: () = assert!(CRC_START == (CRC_WORD + 1) * 8);

fn word(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Where a batch belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// To which partition.
    pub partition: PartitionId,
    /// From whom, as the broker knows it.
    pub producer: ProducerId,
    /// The producer's incarnation.
    pub epoch: Epoch,
}

/// Bytes of a key.
pub const KEY_LEN: usize = 8;

/// The keys of a run's messages: numbers below a bound, for each message one that
/// follows from who sends it and its sequence, so that it is the same when the message
/// is sent again.
#[derive(Clone, Copy, Debug)]
pub struct KeySpace(NonZeroU32);

impl KeySpace {
    /// So many keys.
    pub fn new(keys: NonZeroU32) -> KeySpace {
        KeySpace(keys)
    }

    #[inline]
    fn key(self, stamp: &Stamp) -> [u8; KEY_LEN] {
        let mut seed = u64::from(stamp.producer) << 40 ^ stamp.sequence;
        (splitmix64(&mut seed) % u64::from(self.0.get())).to_le_bytes()
    }
}

/// Bytes of a record batch with `count` values of `value_len` bytes, with keys or
/// without.
pub fn batch_len(value_len: usize, keyed: bool, count: u32) -> usize {
    let key_len = if keyed { KEY_LEN } else { 0 };
    BATCH_HEADER_LEN + count as usize * (RECORD_HEADER_LEN + key_len + value_len)
}

/// Makes the produce frames of a run.
pub struct FrameMaker {
    filler: Filler,
    shift: CrcShift,
    /// Headers of a batch of one record, and of the record.
    batch: [u64; HEADER_WORDS],
    record: [u64; RECORD_WORDS],
    /// Records of a usual frame.
    records: u32,
    keys: Option<KeySpace>,
}

impl FrameMaker {
    /// A maker of frames whose values have the length of `filler`'s, and which
    /// have `records` records more often than not, with keys if there are some.
    pub fn new(filler: Filler, records: u32, keys: Option<KeySpace>) -> FrameMaker {
        let mut sample = BatchBuilder::new();
        let key = keys.map(|_| &[0; KEY_LEN][..]);
        sample.push(0, key, &vec![0; filler.value_len()], &[]);
        let sample = sample.finish(PartitionId::default(), ProducerId(0), Epoch(0), Sequence(0));
        let (batch, rest) =
            sample.split_first_chunk::<BATCH_HEADER_LEN>().expect("a batch starts with its header");
        let (record, _) =
            rest.split_first_chunk::<RECORD_HEADER_LEN>().expect("a record follows its batch's header");
        let shift = CrcShift::new(filler.filler_len());
        FrameMaker { shift, filler, batch: words(batch), record: words(record), records, keys }
    }

    /// Bytes of a record's value.
    #[inline]
    pub fn value_len(&self) -> usize {
        self.filler.value_len()
    }

    /// Bytes of the record batch with `count` records.
    pub fn batch_len(&self, count: u32) -> usize {
        batch_len(self.filler.value_len(), self.keys.is_some(), count)
    }

    /// Bytes of the whole frame with `count` records.
    pub fn frame_len(&self, count: u32) -> usize {
        PRODUCE_HEAD_LEN + self.batch_len(count)
    }

    /// Appends other bytes than a produce frame.
    pub fn put_other(&self, out: &mut SendBuffer, bytes: &[u8]) {
        out.set_laid_out(out.laid_out().min(out.len() / self.frame_len(self.records)));
        out.put(bytes);
    }

    /// Appends a produce frame: its head, and the batch of `count` records, of
    /// which `stamp` is the first; the others have the sequences that follow.
    pub fn put(
        &self,
        out: &mut SendBuffer,
        head: &[u8; PRODUCE_HEAD_LEN],
        place: Place,
        stamp: Stamp,
        timestamp_us: u64,
        count: u32,
    ) {
        assert!(count > 0, "a batch has at least one record");
        let usual = self.frame_len(self.records);
        let slot = out.len() / usual;
        let is_usual = count == self.records && out.len().is_multiple_of(usual);
        let is_there = is_usual && slot < out.laid_out();
        if is_usual && slot == out.laid_out() {
            out.set_laid_out(slot + 1);
        } else if !is_there {
            out.set_laid_out(out.laid_out().min(slot));
        }
        out.put(head);
        let start = out.len();
        let mut crc = self.put_batch_head(out, place, stamp, timestamp_us, count);
        for (i, sequence) in (0..u64::from(count)).map(|i| (i, stamp.sequence + i)) {
            if i > 0 {
                let record = self.record(timestamp_us).map(U64::new);
                out.put(record.as_bytes());
                crc = crc32c_append(crc, record.as_bytes());
            }
            if let Some(keys) = self.keys {
                let key = keys.key(&Stamp { sequence, ..stamp });
                out.put(&key);
                crc = crc32c_append(crc, &key);
            }
            // By place, not by sequence, so that it may lie there already.
            let (filler, filler_crc) = self.filler.get(slot as u64 + i);
            if is_there {
                out.skip(filler.len());
            } else {
                out.put(filler);
            }
            let trailer: [u8; TRAILER_LEN] = Stamp { sequence, ..stamp }.trailer(filler_crc);
            out.put(&trailer);
            crc = crc32c_append(self.shift.apply(crc) ^ filler_crc, &trailer);
        }
        out.patch(start + CRC_START - 4, crc.to_le_bytes());
    }

    /// The batch's header, yet without CRC, and the first record's; returns the
    /// CRC of what it covers of them.
    #[inline]
    fn put_batch_head(
        &self,
        out: &mut SendBuffer,
        place: Place,
        stamp: Stamp,
        timestamp_us: u64,
        count: u32,
    ) -> u32 {
        let Place { partition, producer, epoch } = place;
        let [offset, commit_time, magic, _, _, _, _, version, _, _] = self.batch;
        let [length, key, _] = self.record(timestamp_us);
        let both = [
            offset,
            commit_time,
            magic,
            word(self.batch_len(count) as u32, count),
            word(partition.topic.0, partition.index),
            producer.0,
            stamp.sequence,
            version | u64::from(epoch.0),
            timestamp_us,
            timestamp_us,
            length,
            key,
            timestamp_us,
        ]
        .map(U64::new);
        out.put(both.as_bytes());
        crc32c(&both.as_bytes()[CRC_START..])
    }

    #[inline]
    fn record(&self, timestamp_us: u64) -> [u64; RECORD_WORDS] {
        let [length, key, _] = self.record;
        [length, key, timestamp_us]
    }
}

/// Little-endian bytes as words.
fn words<const N: usize, const W: usize>(bytes: &[u8; N]) -> [u64; W] {
    const { assert!(N == W * 8) };
    std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|j| bytes[i * 8 + j])))
}

/// What appending a fixed number of bytes does to a CRC32C, the bytes' own CRC
/// aside: linear over GF(2), so a look-up per byte of the CRC.
struct CrcShift([[u32; 256]; 4]);

impl CrcShift {
    fn new(len: usize) -> CrcShift {
        let shifted = |crc: u64| checksum_combine(CrcAlgorithm::Crc32Iscsi, crc, 0, len as u64) as u32;
        let bit: [u32; 32] = std::array::from_fn(|i| shifted(1 << i));
        CrcShift(std::array::from_fn(|byte| {
            std::array::from_fn(|value| {
                (0..8).filter(|i| value >> i & 1 == 1).fold(0, |sum, i| sum ^ bit[byte * 8 + i])
            })
        }))
    }

    #[inline]
    fn apply(&self, crc: u32) -> u32 {
        let [a, b, c, d] = crc.to_le_bytes().map(usize::from);
        self.0[0][a] ^ self.0[1][b] ^ self.0[2][c] ^ self.0[3][d]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringbolt_wire::message::{Request, produce_head};
    use ringbolt_wire::{BatchView, FrameHeader, TopicId};

    use super::*;

    const PLACE: Place = Place {
        partition: PartitionId { topic: TopicId(3), index: 4 },
        producer: ProducerId(0x0102_0304_0506),
        epoch: Epoch(9),
    };

    fn keys() -> Option<KeySpace> {
        NonZeroU32::new(5).map(KeySpace::new)
    }

    fn made(maker: &FrameMaker, out: &mut SendBuffer, correlation: u64, stamp: Stamp, count: u32) {
        let head = produce_head(correlation, 0, maker.batch_len(count) as u32);
        maker.put(out, &head, PLACE, stamp, 1_700_000_000_000_000, count);
    }

    /// What the wire crate makes of the same, in a usual frame's `slot`.
    fn wanted(maker: &FrameMaker, slot: u64, correlation: u64, stamp: Stamp, count: u32) -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        for i in 0..u64::from(count) {
            let (filler, crc) = maker.filler.get(slot + i);
            let stamp = Stamp { sequence: stamp.sequence + i, ..stamp };
            let key = maker.keys.map(|keys| keys.key(&stamp));
            let key = key.as_ref().map(|key| &key[..]);
            builder.push(1_700_000_000_000_000, key, &[filler, &stamp.trailer(crc)].concat(), &[]);
        }
        let batch = builder.finish(PLACE.partition, PLACE.producer, PLACE.epoch, Sequence(stamp.sequence));
        let mut frame = Vec::new();
        Request::Produce { min_copies: 0 }.encode(&mut frame, correlation, batch.len() as u32);
        frame.extend_from_slice(&batch);
        frame
    }

    #[test]
    fn frames_are_byte_for_byte_those_of_the_wire_crate() {
        for value_len in [TRAILER_LEN, TRAILER_LEN + 1, 100, 1024, 65_536] {
            for (count, keys) in [1, 2, 3, 16].into_iter().flat_map(|count| [(count, None), (count, keys())])
            {
                let maker = FrameMaker::new(Filler::new(42, value_len), count, keys);
                let stamp = Stamp { run: 77, producer: 2, partition: 4, sequence: 1 << 33, sent_ns: 5 };
                let mut out = SendBuffer::default();
                made(&maker, &mut out, 0xfeed, stamp, count);
                assert_eq!(out.len(), maker.frame_len(count));
                assert_eq!(out.as_slice(), wanted(&maker, 0, 0xfeed, stamp, count));

                let header = FrameHeader::decode(out.as_slice(), u32::MAX).unwrap().unwrap();
                header.verify(out.as_slice()).unwrap();
                let view = BatchView::parse(&out.as_slice()[header.head_len()..], u32::MAX).unwrap();
                for (i, (_, record)) in (0..).zip(view.records()) {
                    assert_eq!(Stamp::check(record.value).unwrap().sequence, stamp.sequence + i);
                }
            }
        }
    }

    proptest! {
        /// Whatever lies in a buffer from before, what is sent is the same as
        /// from a fresh one.
        #[test]
        fn memory_that_was_used_makes_no_difference(
            rounds in prop::collection::vec(prop::collection::vec(0u32..4, 1..8), 1..12),
            keyed in any::<bool>(),
        ) {
            let keys = keys().filter(|_| keyed);
            let maker = FrameMaker::new(Filler::new(1, 70), 2, keys);
            let usual = maker.frame_len(2) as u64;
            let mut out = SendBuffer::default();
            let mut sequence = 0;
            for round in rounds {
                let mut all = Vec::new();
                for count in round {
                    let stamp = Stamp { sequence, run: 5, ..Stamp::default() };
                    sequence += u64::from(count);
                    match count {
                        0 => {
                            maker.put_other(&mut out, b"something else");
                            all.extend_from_slice(b"something else");
                        }
                        count => {
                            made(&maker, &mut out, sequence, stamp, count);
                            let slot = all.len() as u64 / usual;
                            all.extend_from_slice(&wanted(&maker, slot, sequence, stamp, count));
                        }
                    }
                }
                prop_assert_eq!(out.as_slice(), &all[..]);
                let laid_out = out.laid_out();
                let (memory, len) = out.take();
                prop_assert_eq!(&memory[..len], &all[..]);
                out = SendBuffer::again(memory, laid_out);
            }
        }
    }
}
