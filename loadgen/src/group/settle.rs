//! What consumers say of records, and what they are told about that.

use clap::ValueEnum;
use ringbolt_wire::Offset;
use ringbolt_wire::message::{LeaseRange, SettleItem, Unsettled, Verb};

/// How consumers acknowledge.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AckMode {
    /// Every record by itself, and each acknowledgement is confirmed when it is
    /// durable.
    #[default]
    Each,
    /// Records that follow each other as one range; confirmed.
    Batch,
    /// Everything up to the last record of a turn; confirmed.
    UpTo,
    /// Every record by itself, and nothing is confirmed.
    Nowait,
}

/// What became of records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deed {
    /// They were worked on.
    Ack,
    /// They were, without success.
    Reject,
}

/// Records of one delivery that follow each other, and what became of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Index of their partition.
    pub partition: u32,
    /// How many.
    pub count: u32,
    /// The first.
    pub offset: u64,
    /// How often they were delivered, this time included.
    pub acquired: u32,
    /// How often they had failed when they were delivered.
    pub failed: u32,
    /// Under which of the run's attaches they were delivered.
    pub attach: u64,
    /// What became of them.
    pub deed: Deed,
}

/// Why the consumers reject, for whoever looks at the dead letters.
const REASON: &str = "the load generator was told to fail";

impl Entry {
    /// Offset after the last record.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.count)
    }

    /// Lets this entry swallow `next` if the two are one range.
    #[inline]
    pub fn absorb(&mut self, next: &Entry) -> bool {
        let follows =
            self.end() == next.offset && Entry { offset: self.offset, count: self.count, ..*next } == *self;
        if follows {
            self.count += next.count;
        }
        follows
    }

    /// The same for a part of its records.
    pub fn part(&self, from: u64, to: u64) -> Entry {
        Entry { offset: from, count: (to - from) as u32, ..*self }
    }

    fn range(&self) -> LeaseRange {
        let (base_offset, count) = (Offset(self.offset), self.count);
        LeaseRange { partition: self.partition, base_offset, count, acquired: self.acquired }
    }

    /// As it is told to the broker.
    pub fn item(&self) -> SettleItem {
        let verb = match self.deed {
            Deed::Ack => Verb::Ack,
            Deed::Reject => Verb::Reject { dead_letter: false, reason: REASON.to_owned() },
        };
        SettleItem { range: self.range(), verb }
    }
}

/// The items that acknowledge everything up to the last of these entries in each
/// partition.
pub fn up_to(entries: &[Entry], items: &mut Vec<SettleItem>) {
    for entry in entries {
        let last = entry.part(entry.end() - 1, entry.end()).range();
        match items.iter_mut().find(|item| item.range.partition == entry.partition) {
            Some(item) if item.range.base_offset < last.base_offset => item.range = last,
            Some(_) => {}
            None => items.push(SettleItem { range: last, verb: Verb::AckUpTo }),
        }
    }
}

/// Tells of each entry, in parts if need be, what the broker has answered: 0 for what
/// it says nothing about. False if it speaks of something else.
pub fn answers(entries: &[Entry], unsettled: &[Unsettled], mut each: impl FnMut(&Entry, u16)) -> bool {
    // An answer for all up to a record comes in the order of the partitions.
    let mut told = vec![false; unsettled.len()];
    for entry in entries {
        let mut at = entry.offset;
        while at < entry.end() {
            let end_of = |u: &Unsettled| u.base_offset.0 + u64::from(u.count);
            let concerns = |u: &Unsettled| {
                u.partition == entry.partition && u.base_offset.0 < entry.end() && end_of(u) > at
            };
            let all = unsettled.iter().enumerate().filter(|(_, u)| concerns(u));
            let Some((index, u)) = all.min_by_key(|(_, u)| u.base_offset) else {
                each(&entry.part(at, entry.end()), 0);
                break;
            };
            told[index] = true;
            let (from, to) = (u.base_offset.0.max(at), end_of(u).min(entry.end()));
            if from > at {
                each(&entry.part(at, from), 0);
            }
            each(&entry.part(from, to), u.status);
            at = to;
        }
    }
    told.iter().all(|told| *told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(partition: u32, offset: u64, count: u32) -> Entry {
        Entry { partition, offset, count, acquired: 1, failed: 0, attach: 1, deed: Deed::Ack }
    }

    fn unsettled(partition: u32, offset: u64, count: u32, status: u16) -> Unsettled {
        Unsettled { partition, status, base_offset: Offset(offset), count }
    }

    fn told(entries: &[Entry], unsettled: &[Unsettled]) -> (Vec<(u32, u64, u32, u16)>, bool) {
        let mut all = Vec::new();
        let fits =
            answers(entries, unsettled, |e, status| all.push((e.partition, e.offset, e.count, status)));
        (all, fits)
    }

    #[test]
    fn an_answer_is_told_for_each_entry() {
        let entries = [entry(0, 5, 1), entry(0, 3, 1), entry(1, 10, 10)];
        assert_eq!(told(&entries, &[]), (vec![(0, 5, 1, 0), (0, 3, 1, 0), (1, 10, 10, 0)], true));
        let some = [unsettled(0, 3, 1, 63), unsettled(1, 12, 2, 64), unsettled(1, 14, 1, 63)];
        let parts =
            vec![(0, 5, 1, 0), (0, 3, 1, 63), (1, 10, 2, 0), (1, 12, 2, 64), (1, 14, 1, 63), (1, 15, 5, 0)];
        assert_eq!(told(&entries, &some), (parts, true));
    }

    #[test]
    fn what_is_unsettled_may_span_entries() {
        let entries = [entry(0, 5, 1), entry(0, 6, 1), entry(0, 7, 1)];
        let expected = vec![(0, 5, 1, 63), (0, 6, 1, 63), (0, 7, 1, 0)];
        assert_eq!(told(&entries, &[unsettled(0, 5, 2, 63)]), (expected, true));
    }

    #[test]
    fn an_answer_about_something_else_is_seen() {
        assert!(!told(&[entry(0, 5, 1)], &[unsettled(0, 8, 1, 63)]).1);
        assert!(!told(&[entry(0, 5, 1)], &[unsettled(3, 5, 1, 63)]).1);
    }

    #[test]
    fn neighbours_become_one_and_others_do_not() {
        let mut first = entry(0, 5, 2);
        assert!(first.absorb(&entry(0, 7, 3)) && first.count == 5);
        assert!(!first.absorb(&entry(0, 11, 1)) && !first.absorb(&entry(1, 10, 1)));
        assert!(!first.absorb(&Entry { acquired: 2, ..entry(0, 10, 1) }));
        assert!(!first.absorb(&Entry { deed: Deed::Reject, ..entry(0, 10, 1) }));
    }

    #[test]
    fn up_to_names_the_last_of_each_partition() {
        let mut items = Vec::new();
        up_to(&[entry(0, 5, 2), entry(1, 1, 1), entry(0, 9, 3), entry(0, 2, 1)], &mut items);
        let last: Vec<_> =
            items.iter().map(|item| (item.range.partition, item.range.base_offset.0)).collect();
        assert_eq!(last, [(0, 11), (1, 1)]);
    }
}
