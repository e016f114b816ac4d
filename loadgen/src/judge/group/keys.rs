//! The order of records that have a key: a record may come when the one of its key that
//! came before it is completed.

use ringbolt_wire::RecordView;
use rustc_hash::FxHashMap;

use super::part::Part;

/// The latest record of each key that was delivered; memory is that of the keys.
#[derive(Default)]
pub(super) struct Keys {
    last: FxHashMap<(u32, u64), u64>,
}

/// What is wrong with a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OutOfTurn {
    /// A later record of the key was delivered before.
    After(u64),
    /// This one of the key was delivered before, and is not completed as far as is
    /// known: good if it went to the dead letters.
    Before(u64),
}

impl Keys {
    /// The broker was started again: what it delivered without hearing of it comes again.
    pub fn restarted(&mut self) {
        self.last.clear();
    }

    /// A record with a key was delivered.
    pub fn delivered(&mut self, part: &Part, partition: u32, key: u64, offset: u64) -> Option<OutOfTurn> {
        let last = self.last.entry((partition, key)).or_insert(offset);
        let before = std::mem::replace(last, offset.max(*last));
        match before {
            _ if before > offset => Some(OutOfTurn::After(before)),
            _ if before < offset && !part.may_be_passed(before) => Some(OutOfTurn::Before(before)),
            _ => None,
        }
    }
}

/// A key as a number; two that share one by chance would look like one.
#[inline]
pub(super) fn key_of(record: &RecordView<'_>) -> Option<u64> {
    use std::hash::Hasher;
    let key = record.key?;
    if let Ok(bytes) = <[u8; 8]>::try_from(key) {
        return Some(u64::from_le_bytes(bytes));
    }
    let mut hasher = rustc_hash::FxHasher::default();
    hasher.write(key);
    Some(hasher.finish())
}
