//! Order within a key: of the records of one key that are not completed, only the
//! oldest may be delivered.
//!
//! Keys are known by a hash of 64 bits: two keys that share one would be in order
//! with each other, which nobody notices.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;

use rustc_hash::FxHashMap;

use crate::hash::Keyed;

/// See the module.
#[derive(Default, Debug)]
pub struct Keys {
    /// For each key, the records that were looked at and are not completed, oldest first;
    /// before them the one that was completed last, until that is durable.
    by_key: FxHashMap<u64, Queue>,
    /// The key of each of them.
    of_record: FxHashMap<u64, u64>,
}

/// Records of a key, oldest first; most keys have one.
#[derive(Debug)]
// 16 bytes for each key, of which there may be millions, in place of 32.
#[expect(clippy::box_collection)]
enum Queue {
    One(u64),
    Many(Box<VecDeque<u64>>),
}

impl Queue {
    fn len(&self) -> usize {
        match self {
            Queue::One(_) => 1,
            Queue::Many(queue) => queue.len(),
        }
    }

    fn front(&self) -> Option<u64> {
        match self {
            Queue::One(offset) => Some(*offset),
            Queue::Many(queue) => queue.front().copied(),
        }
    }

    fn push(&mut self, offset: u64) {
        match self {
            Queue::One(first) => *self = Queue::Many(Box::new(VecDeque::from([*first, offset]))),
            Queue::Many(queue) => queue.push_back(offset),
        }
    }

    /// Takes a record out. False if it was the last one.
    fn remove(&mut self, offset: u64) -> bool {
        let Queue::Many(queue) = self else { return false };
        if queue.front() == Some(&offset) {
            queue.pop_front();
        } else {
            queue.retain(|waiting| *waiting != offset);
        }
        if let [last] = *queue.make_contiguous() {
            *self = Queue::One(last);
        }
        true
    }
}

impl Keys {
    /// Records that wait for an earlier one.
    pub fn behind(&self) -> usize {
        self.of_record.len() - self.by_key.len()
    }

    /// Takes note of a record, later than all before. Returns whether it is the first of
    /// its key.
    pub fn add(&mut self, offset: u64, key: u64) -> bool {
        if self.of_record.insert(offset, key).is_some() {
            return self.is_first(offset);
        }
        match self.by_key.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(Queue::One(offset));
                true
            }
            Entry::Occupied(mut entry) => {
                entry.get_mut().push(offset);
                false
            }
        }
    }

    fn is_first(&self, offset: u64) -> bool {
        let queue = self.of_record.get(&offset).and_then(|key| self.by_key.get(key));
        queue.and_then(Queue::front) == Some(offset)
    }

    /// A record is completed. True if it was the first of its key: it holds up the
    /// others, those that were not looked at as well, until it is [released](Self::release).
    pub fn complete(&mut self, offset: u64) -> bool {
        let is_first = self.is_first(offset);
        if !is_first {
            self.release(offset);
        }
        is_first
    }

    /// It is durable that a record is completed. Returns the one that may be delivered
    /// thereby.
    pub fn release(&mut self, offset: u64) -> Option<u64> {
        let key = self.of_record.remove(&offset)?;
        let queue = self.by_key.get_mut(&key)?;
        let was_first = queue.front() == Some(offset);
        if !queue.remove(offset) {
            self.by_key.remove(&key);
            return None;
        }
        queue.front().filter(|_| was_first)
    }

    /// Every record before `start` is completed. Returns those that may be delivered
    /// thereby.
    pub fn complete_before(&mut self, start: u64) -> Vec<u64> {
        let mut gone: Vec<u64> = self.of_record.keys().copied().filter(|offset| *offset < start).collect();
        // So each is the first of its key when its turn comes.
        gone.sort_unstable();
        gone.into_iter().filter_map(|offset| self.release(offset)).filter(|freed| *freed >= start).collect()
    }

    /// The record behind which most wait, and how many do.
    pub fn longest(&self) -> Option<(u64, usize)> {
        let queues = self.by_key.values().filter(|queue| queue.len() > 1);
        let longest = queues.max_by_key(|queue| queue.len())?;
        longest.front().map(|first| (first, longest.len() - 1))
    }

    /// The hash by which a key is known.
    pub fn hash(key: &[u8]) -> u64 {
        Keyed.hash_one(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_records_of_a_key_come_one_after_the_other_and_other_keys_are_not_held_up() {
        let mut keys = Keys::default();
        assert!(keys.add(1, 7) && !keys.add(2, 7) && keys.add(3, 8) && !keys.add(4, 7));
        assert_eq!((keys.behind(), keys.longest()), (2, Some((1, 2))));
        assert!(keys.complete(3) && keys.release(3).is_none());
        assert!(keys.complete(1));
        assert_eq!(keys.release(1), Some(2));
        assert!(!keys.complete(4), "2 has it still");
        assert!(keys.complete(2) && !keys.add(6, 7), "that is not durable");
        assert_eq!(keys.release(2), Some(6));
        assert!(keys.complete(6) && keys.release(6).is_none() && keys.release(6).is_none());
        assert_eq!((keys.behind(), keys.by_key.len()), (0, 0));
        assert!(keys.add(5, 7));
    }

    #[test]
    fn what_is_gone_from_the_front_frees_what_is_behind() {
        let mut keys = Keys::default();
        (0..6).for_each(|offset| {
            keys.add(offset, offset % 2);
        });
        let mut freed = keys.complete_before(3);
        freed.sort_unstable();
        assert_eq!(freed, [3, 4]);
    }
}
