//! What is known of each record in the log: enough to tell it from others, and what
//! it says of its delivery to groups.

use std::collections::BTreeMap;

use ringbolt::log::SegmentSeq;
use ringbolt_wire::batch::{
    DEAD_LETTER_HEADER, DeadLetter, Directions, EXPIRE_AT_HEADER, ONLY_GROUP_HEADER, RECORD_HEADER_LEN,
};
use ringbolt_wire::{RecordView, crc32c};

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordFact {
    /// CRC32C of all that stays as it is when a record moves.
    pub body: u32,
    /// Stands for its key.
    pub key: Option<u64>,
    pub directions: Directions,
    /// What its header says, if it is a dead letter.
    pub letter: Option<DeadLetter>,
    /// Bytes that it takes in a batch.
    pub len: usize,
    /// Where it lies; not compared.
    pub segment: SegmentSeq,
}

impl RecordFact {
    pub fn of(record: &RecordView<'_>, segment: SegmentSeq) -> RecordFact {
        let mut bytes = record.timestamp_us.to_le_bytes().to_vec();
        bytes.extend_from_slice(record.key.unwrap_or(b"no key"));
        bytes.extend_from_slice(&crc32c(record.value).to_le_bytes());
        let mut len = RECORD_HEADER_LEN + record.key.map_or(0, <[u8]>::len) + record.value.len();
        for (name, value) in record.headers() {
            len += 6 + name.len() + value.len();
            if ![DEAD_LETTER_HEADER, ONLY_GROUP_HEADER, EXPIRE_AT_HEADER].contains(&name) {
                bytes.extend_from_slice(name.as_bytes());
                bytes.extend_from_slice(value);
            }
        }
        let key = record.key.map(|key| u64::from(crc32c(key)) << 32 | key.len() as u64);
        let directions = Directions::of(record).expect("the broker stores good directions");
        let letter = DeadLetter::of(record);
        RecordFact { body: crc32c(&bytes), key, directions, letter, len, segment }
    }

    /// Whether it is the same record, wherever it lies.
    pub fn is(&self, other: &RecordFact) -> bool {
        RecordFact { segment: self.segment, ..other.clone() } == *self
    }

    /// Whether the broker has made it: a record that moved.
    pub fn has_moved(&self) -> bool {
        self.letter.is_some() || self.directions.only_group.is_some()
    }
}

/// The records of one partition, by offset from 0 on.
#[derive(Clone, Default, Debug)]
pub struct RecordFacts {
    pub all: Vec<RecordFact>,
    /// Offsets of the records of each key, ascending.
    pub by_key: BTreeMap<u64, Vec<u64>>,
}

impl RecordFacts {
    pub fn push(&mut self, fact: RecordFact) {
        if let Some(key) = fact.key {
            self.by_key.entry(key).or_default().push(self.all.len() as u64);
        }
        self.all.push(fact);
    }

    /// Forgets those from `end` on.
    pub fn truncate(&mut self, end: u64) {
        self.all.truncate(end as usize);
        for offsets in self.by_key.values_mut() {
            offsets.truncate(offsets.partition_point(|offset| *offset < end));
        }
    }
}
