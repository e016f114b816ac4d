//! Produce frames, made at the rate of a core's memory rather than of its CRC
//! unit: 1.4 million a second leave about 700 ns for everything that a message
//! costs, and the CRC of 1 KiB alone would take a tenth of that.
//!
//! The CRC of a filler is known, so the batch's CRC is put together from parts:
//! `crc(a ++ b)` follows from `crc(a)`, `crc(b)` and the length of `b`, which is
//! always the same here, so that the step is four table look-ups. The bytes are
//! exactly those of [`ringbolt_wire::BatchBuilder`]; a test holds that.

use ringbolt_wire::frame::{FRAME_HEADER_LEN, encode_head};
use ringbolt_wire::message::PRODUCE_META_LEN;
use ringbolt_wire::{
    BatchBuilder, Epoch, Opcode, PartitionId, ProducerId, Sequence,
    batch::{BATCH_HEADER_LEN, RECORD_HEADER_LEN},
    crc32c, crc32c_append,
};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::payload::{Filler, Stamp, TRAILER_LEN};

/// A batch header's fields that differ from frame to frame, as
/// `docs/protocol.md` lays them out.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct BatchHead {
    base_offset: U64,
    commit_time_us: U64,
    magic: [u8; 4],
    crc: U32,
    length: U32,
    count: U32,
    topic: U32,
    partition: U32,
    producer_id: U64,
    base_sequence: U64,
    producer_epoch: U32,
    version_compression_flags: [u8; 4],
    first_timestamp_us: U64,
    max_timestamp_us: U64,
}

const _: () = assert!(size_of::<BatchHead>() == BATCH_HEADER_LEN);
const CRC_START: usize = ringbolt_wire::BatchHeader::CRC_START;
const TIMESTAMP_AT: usize = RECORD_HEADER_LEN - 8;

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

/// Makes the produce frames of a run.
pub struct FrameMaker {
    filler: Filler,
    shift: CrcShift,
    batch: BatchHead,
    record: [u8; RECORD_HEADER_LEN],
}

impl FrameMaker {
    /// A maker of frames whose values have the length of `filler`'s.
    pub fn new(filler: Filler) -> FrameMaker {
        let mut sample = BatchBuilder::new();
        sample.push(0, None, &vec![0; filler.value_len()], &[]);
        let sample = sample.finish(PartitionId::default(), ProducerId(0), Epoch(0), Sequence(0));
        let (batch, rest) = BatchHead::read_from_prefix(&sample).expect("a batch starts with its header");
        let (record, _) = rest.split_first_chunk().expect("a record follows its batch's header");
        FrameMaker { shift: CrcShift::new(filler.filler_len()), filler, batch, record: *record }
    }

    /// Bytes of a record's value.
    #[inline]
    pub fn value_len(&self) -> usize {
        self.filler.value_len()
    }

    /// Bytes of the record batch with `count` records.
    pub fn batch_len(&self, count: u32) -> usize {
        BATCH_HEADER_LEN + count as usize * (RECORD_HEADER_LEN + self.filler.value_len())
    }

    /// Bytes of the whole frame with `count` records.
    pub fn frame_len(&self, count: u32) -> usize {
        FRAME_HEADER_LEN + PRODUCE_META_LEN + self.batch_len(count)
    }

    /// Appends the head of the produce frame for a batch of `count` records.
    pub fn put_head(&self, out: &mut Vec<u8>, correlation: u64, count: u32) {
        let payload_len = self.batch_len(count) as u32;
        encode_head(out, Opcode::Produce as u8, false, 0, correlation, &[0; PRODUCE_META_LEN], payload_len);
    }

    /// Appends the record batch of `count` records, of which `stamp` is the
    /// first; the others have the sequences that follow.
    pub fn put_batch(&self, out: &mut Vec<u8>, place: Place, stamp: Stamp, timestamp_us: u64, count: u32) {
        assert!(count > 0, "a batch has at least one record");
        let start = out.len();
        out.reserve(self.batch_len(count));
        let mut head = self.batch;
        head.length = U32::new(self.batch_len(count) as u32);
        head.count = U32::new(count);
        head.topic = U32::new(place.partition.topic.0);
        head.partition = U32::new(place.partition.index);
        head.producer_id = U64::new(place.producer.0);
        head.producer_epoch = U32::new(place.epoch.0);
        head.base_sequence = U64::new(stamp.sequence);
        head.first_timestamp_us = U64::new(timestamp_us);
        head.max_timestamp_us = U64::new(timestamp_us);
        out.extend_from_slice(head.as_bytes());
        let mut record = self.record;
        record[TIMESTAMP_AT..].copy_from_slice(&timestamp_us.to_le_bytes());
        // Of the header and, in the same stride, the first record's.
        out.extend_from_slice(&record);
        let mut crc = crc32c(&out[start + CRC_START..]);
        for sequence in stamp.sequence..stamp.sequence + u64::from(count) {
            let (filler, filler_crc) = self.filler.get(sequence);
            let trailer: [u8; TRAILER_LEN] = Stamp { sequence, ..stamp }.trailer(filler_crc);
            if sequence > stamp.sequence {
                out.extend_from_slice(&record);
                crc = crc32c_append(crc, &record);
            }
            out.extend_from_slice(filler);
            out.extend_from_slice(&trailer);
            crc = crc32c_append(self.shift.apply(crc) ^ filler_crc, &trailer);
        }
        let crc_at = start + std::mem::offset_of!(BatchHead, crc);
        out[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// What appending a fixed number of bytes does to a CRC32C, the bytes' own CRC
/// aside: linear over GF(2), so a look-up per byte of the CRC.
struct CrcShift([[u32; 256]; 4]);

impl CrcShift {
    fn new(len: usize) -> CrcShift {
        let bit: [u32; 32] = std::array::from_fn(|i| crc32c::crc32c_combine(1 << i, 0, len));
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
    use super::*;
    use ringbolt_wire::message::Request;
    use ringbolt_wire::{BatchView, FrameHeader, TopicId};

    fn check(value_len: usize, count: u32) {
        let maker = FrameMaker::new(Filler::new(42, value_len));
        let place = Place {
            partition: PartitionId::new(TopicId(3), 4),
            producer: ProducerId(0x0102_0304_0506),
            epoch: Epoch(9),
        };
        let stamp = Stamp { run: 77, producer: 2, partition: 4, sequence: 1 << 33, sent_ns: 5 };
        let mut made = Vec::new();
        maker.put_head(&mut made, 0xfeed, count);
        maker.put_batch(&mut made, place, stamp, 1_700_000_000_000_000, count);
        assert_eq!(made.len(), maker.frame_len(count));

        let mut builder = BatchBuilder::new();
        for i in 0..u64::from(count) {
            let stamp = Stamp { sequence: stamp.sequence + i, ..stamp };
            let (filler, crc) = maker.filler.get(stamp.sequence);
            builder.push(1_700_000_000_000_000, None, &[filler, &stamp.trailer(crc)].concat(), &[]);
        }
        let batch = builder.finish(place.partition, place.producer, place.epoch, Sequence(stamp.sequence));
        let mut wanted = Vec::new();
        Request::Produce { min_copies: 0 }.encode(&mut wanted, 0xfeed, batch.len() as u32);
        wanted.extend_from_slice(&batch);
        assert_eq!(made, wanted);

        let header = FrameHeader::decode(&made, u32::MAX).unwrap().unwrap();
        header.verify(&made).unwrap();
        let view = BatchView::parse(&made[header.head_len()..], u32::MAX).unwrap();
        for (i, (_, record)) in (0..).zip(view.records()) {
            assert_eq!(Stamp::check(record.value).unwrap().sequence, stamp.sequence + i);
        }
    }

    #[test]
    fn frames_are_byte_for_byte_those_of_the_wire_crate() {
        for value_len in [TRAILER_LEN, TRAILER_LEN + 1, 100, 1024, 65_536] {
            for count in [1, 2, 3, 16] {
                check(value_len, count);
            }
        }
    }
}
