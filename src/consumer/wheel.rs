//! What is due at a time, by the million: a timing wheel.
//!
//! Far entries lie in buckets, the coarser the farther (Varghese and Lauck, 1987:
//! hierarchical timing wheels). When a bucket's time has come its entries go to
//! finer ones, and from the finest to a heap that has them in order. So an entry
//! is moved a few times in its life, none is looked at in vain, and there are at
//! most some hundred buckets however many entries there are.
//!
//! Buckets are named by their time, not by their distance from a hand: a clock
//! that is set back makes everything later, one that is set forward makes it due.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Width of the finest buckets as a power of two, µs: a second.
const FINEST: u32 = 20;
/// Each level's buckets are so much wider than those of the one before, as a
/// power of two.
const STEP: u32 = 6;
/// Coarsest level: buckets of half a year.
const COARSEST: u32 = 4;

/// Something that is due.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Entry {
    /// When, µs.
    pub due_us: u64,
    /// Which record.
    pub offset: u64,
    /// Whose.
    pub owner: u32,
}

/// Bytes that an entry takes, with room for growth: vectors double.
pub const ENTRY_COST: usize = 2 * size_of::<Entry>();

const _: () = assert!(ENTRY_COST <= 64);

/// Entries by time.
#[derive(Default, Debug)]
pub struct Wheel {
    /// By start and level.
    far: BTreeMap<(u64, u32), Vec<Entry>>,
    near: BinaryHeap<Reverse<Entry>>,
    len: usize,
    /// Entries whose owner is gone, as far as is known: they are of no more use.
    lost: usize,
}

impl Wheel {
    /// Entries in it, without those that are [lost](Self::lose).
    pub fn len(&self) -> usize {
        self.len.saturating_sub(self.lost)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many more there is room for, where there may be `most`: lost ones go first, of
    /// whose owners `keep` says no.
    pub fn room(&mut self, most: usize, keep: impl Fn(u32) -> bool) -> usize {
        if self.len >= most && self.lost > 0 {
            self.retain(|entry| keep(entry.owner));
        }
        most.saturating_sub(self.len)
    }

    /// The owner of so many entries is gone. They stay until most of all are such: to look
    /// for them takes as long as there are entries.
    pub fn lose(&mut self, count: usize, keep: impl Fn(u32) -> bool) {
        self.lost = (self.lost + count).min(self.len);
        if self.lost > self.len / 2 {
            self.retain(|entry| keep(entry.owner));
        }
    }

    /// Adds an entry.
    pub fn add(&mut self, entry: Entry, now_us: u64) {
        self.len += 1;
        self.place(entry, now_us);
    }

    /// Takes out an entry that is due, while `moves` are left: a million may be due in the same
    /// second. Lost ones, of whose owners `keep` says no, go as they come.
    pub fn pop_due(&mut self, now_us: u64, moves: &mut usize, keep: impl Fn(u32) -> bool) -> Option<Entry> {
        while *moves > 0
            && let Some(mut first) = self.far.first_entry().filter(|first| first.key().0 <= now_us)
        {
            let level = first.key().1;
            let rest = first.get().len().saturating_sub(*moves);
            let entries = first.get_mut().split_off(rest);
            *moves -= entries.len();
            if rest == 0 {
                first.remove();
            }
            for entry in entries {
                match level {
                    0 => self.near.push(Reverse(entry)),
                    _ => self.place(entry, now_us),
                }
            }
        }
        while let Some(&Reverse(entry)) = self.near.peek().filter(|first| first.0.due_us <= now_us) {
            self.near.pop();
            self.len -= 1;
            if keep(entry.owner) {
                return Some(entry);
            }
            self.lost = self.lost.saturating_sub(1);
        }
        None
    }

    /// When there is something to do at the earliest, µs: an entry is due then, or
    /// a bucket is to be looked through.
    pub fn next_us(&self) -> Option<u64> {
        let near = self.near.peek().map(|first| first.0.due_us);
        let far = self.far.first_key_value().map(|((start, _), _)| *start);
        near.into_iter().chain(far).min()
    }

    /// When the first entry of an owner is due, µs; none is due before, if more than `looks`
    /// entries would have to be looked at to know.
    pub fn first_of(&self, owner: u32, looks: usize) -> Option<u64> {
        let first = |entries: &mut dyn Iterator<Item = &Entry>| {
            entries.filter(|entry| entry.owner == owner).map(|entry| entry.due_us).min()
        };
        let mut looked = self.near.len();
        if looked > looks {
            return self.next_us();
        }
        let mut best = first(&mut self.near.iter().map(|Reverse(entry)| entry));
        for ((start, _), entries) in &self.far {
            if best.is_some_and(|best| best <= *start) {
                break;
            }
            looked += entries.len();
            if looked > looks {
                return Some(*start);
            }
            best = best.into_iter().chain(first(&mut entries.iter())).min();
        }
        best
    }

    /// Removes the entries of which `keep` says no; none is lost afterwards.
    pub fn retain(&mut self, mut keep: impl FnMut(&Entry) -> bool) {
        self.near.retain(|entry| keep(&entry.0));
        self.far.retain(|_, entries| {
            entries.retain(&mut keep);
            !entries.is_empty()
        });
        self.len = self.near.len() + self.far.values().map(Vec::len).sum::<usize>();
        self.lost = 0;
    }

    fn place(&mut self, entry: Entry, now_us: u64) {
        let distance = entry.due_us.saturating_sub(now_us);
        if distance < 1 << FINEST {
            return self.near.push(Reverse(entry));
        }
        // The widest bucket that the entry is not within already.
        let level = ((distance.ilog2() - FINEST) / STEP).min(COARSEST);
        let width = FINEST + level * STEP;
        let start = entry.due_us >> width << width;
        self.far.entry((start, level)).or_default().push(entry);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: u64 = 3_600_000_000;

    fn entry(due_us: u64, offset: u64) -> Entry {
        Entry { due_us, offset, owner: (offset % 3) as u32 }
    }

    proptest! {
        /// However far, and however the clock is set in between.
        #[test]
        fn everything_comes_out_when_it_is_due_and_not_before(
            dues in prop::collection::vec(prop_oneof![0..5_000_000u64, 0..HOUR, 0..9000 * HOUR], 1..80),
            steps in prop::collection::vec(prop_oneof![-2_000_000i64..4_000_000, 0i64..1_000_000_000_000], 0..40),
        ) {
            let (mut wheel, mut now) = (Wheel::default(), HOUR);
            let mut waiting: Vec<Entry> = Vec::new();
            for (i, due) in dues.iter().enumerate() {
                wheel.add(entry(*due, i as u64), now);
                waiting.push(entry(*due, i as u64));
            }
            for step in steps.into_iter().chain([i64::MAX / 2]) {
                now = now.saturating_add_signed(step);
                while wheel.next_us().is_some_and(|next| next <= now) {
                    let mut moves = 3;
                    while let Some(out) = wheel.pop_due(now, &mut moves, |_| true) {
                        prop_assert!(out.due_us <= now);
                        let at = waiting.iter().position(|entry| *entry == out);
                        waiting.swap_remove(at.expect("it comes out once"));
                    }
                }
                prop_assert!(waiting.iter().all(|entry| entry.due_us > now), "due, and not out");
                prop_assert_eq!(wheel.len(), waiting.len());
                let first = waiting.iter().map(|entry| entry.due_us).min();
                prop_assert_eq!(wheel.next_us().is_some(), first.is_some());
                prop_assert!(wheel.next_us().zip(first).is_none_or(|(next, first)| next <= first));
                for owner in 0..3 {
                    let own = waiting.iter().filter(|entry| entry.owner == owner);
                    let first = own.map(|entry| entry.due_us).min();
                    prop_assert_eq!(wheel.first_of(owner, 1_000), first);
                    let known = wheel.first_of(owner, 3);
                    prop_assert!(known.is_none_or(|known| first.is_none_or(|first| known <= first)));
                    prop_assert!(known.is_some() || first.is_none());
                }
            }
        }

        #[test]
        fn whose_entries_are_not_kept_are_gone(dues in prop::collection::vec(0..9000 * HOUR, 0..50)) {
            let mut wheel = Wheel::default();
            dues.iter().enumerate().for_each(|(i, due)| wheel.add(entry(*due, i as u64), 0));
            wheel.retain(|entry| entry.owner != 1);
            let left = (0..dues.len()).filter(|i| i % 3 != 1).count();
            prop_assert_eq!(wheel.len(), left);
            let mut moves = 1_000;
            let out = std::iter::from_fn(|| wheel.pop_due(u64::MAX, &mut moves, |_| true)).count();
            prop_assert_eq!(out, left);
        }
    }

    #[test]
    fn a_million_entries_over_a_month_lie_in_few_buckets_and_little_memory() {
        let mut wheel = Wheel::default();
        let month = 30 * 24 * HOUR;
        (0..1_000_000).for_each(|i| wheel.add(entry(month / 1_000_000 * i, i), 0));
        assert!(wheel.far.len() < 300, "{} buckets", wheel.far.len());
        let vectors: usize = wheel.far.values().map(Vec::capacity).sum();
        let bytes = (vectors + wheel.near.capacity()) * size_of::<Entry>();
        assert!(bytes <= 1_000_000 * ENTRY_COST, "{bytes} bytes");
    }

    #[test]
    fn lost_entries_do_not_come_out_and_do_not_count() {
        let (mut wheel, keep) = (Wheel::default(), |owner| owner != 1);
        (0..9).for_each(|offset| wheel.add(entry(offset * HOUR, offset), 0));
        wheel.lose(3, keep);
        let (mut left, mut moves) = (6, 1_000);
        while let Some(out) = wheel.pop_due(9 * HOUR, &mut moves, keep) {
            left -= 1;
            assert!(keep(out.owner));
            assert_eq!((wheel.len(), wheel.is_empty()), (left, left == 0));
        }
        assert_eq!(left, 0);
        // So many that they go at once.
        (0..9).for_each(|offset| wheel.add(entry(offset * HOUR, offset), 0));
        wheel.lose(6, |owner| owner == 1);
        assert_eq!((wheel.len(), wheel.room(4, keep), wheel.room(3, keep)), (3, 1, 0));
    }
}
