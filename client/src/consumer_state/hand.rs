//! The records in hand at one shard: delivered, and not settled. Knows when their
//! leases run out by this side's clock, which sees a delivery after the broker.

use std::collections::BTreeMap;
use std::ops::Bound;

use ringbolt_wire::Offset;
use ringbolt_wire::message::LeaseRange;

/// Records and their bytes of payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Amount {
    pub records: u64,
    pub bytes: u64,
}

impl Amount {
    pub fn add(&mut self, other: Amount) {
        self.records += other.records;
        self.bytes += other.bytes;
    }

    pub fn remove(&mut self, other: Amount) {
        assert!(self.records >= other.records && self.bytes >= other.bytes, "more taken than there is");
        self.records -= other.records;
        self.bytes -= other.bytes;
    }
}

/// One record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Held {
    pub acquired: u32,
    /// Of payload.
    pub bytes: u64,
    /// The lease's time as it was given.
    pub lease_us: u64,
    /// When the lease runs out.
    pub until_us: u64,
}

impl Held {
    /// A third of the time that was given has passed, as things stand.
    fn due_us(&self) -> u64 {
        self.until_us.saturating_sub(self.lease_us / 3 * 2)
    }

    fn amount(&self) -> Amount {
        Amount { records: 1, bytes: self.bytes }
    }
}

/// Partition and offset.
type Place = (u32, u64);

#[derive(Debug)]
pub(super) struct Hand {
    records: BTreeMap<Place, Held>,
    amount: Amount,
    /// No lease runs out before this.
    first_until_us: u64,
    /// No lease is to be extended before this.
    first_due_us: u64,
}

impl Default for Hand {
    fn default() -> Self {
        Hand {
            records: BTreeMap::new(),
            amount: Amount::default(),
            first_until_us: u64::MAX,
            first_due_us: u64::MAX,
        }
    }
}

impl Hand {
    pub fn amount(&self) -> Amount {
        self.amount
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// When a lease may run out, or `u64::MAX`.
    pub fn first_until_us(&self) -> u64 {
        self.first_until_us
    }

    /// When a lease may have to be extended, or `u64::MAX`.
    pub fn first_due_us(&self) -> u64 {
        self.first_due_us
    }

    /// Takes a record in; returns an earlier lease of it.
    pub fn insert(&mut self, partition: u32, offset: u64, held: Held) -> Option<Held> {
        self.first_until_us = self.first_until_us.min(held.until_us);
        self.first_due_us = self.first_due_us.min(held.due_us());
        self.amount.add(held.amount());
        let earlier = self.records.insert((partition, offset), held);
        if let Some(earlier) = &earlier {
            self.amount.remove(earlier.amount());
        }
        earlier
    }

    /// Takes a record out, if it is there under this lease.
    pub fn take(&mut self, partition: u32, offset: u64, acquired: u32) -> Option<Amount> {
        let place = (partition, offset);
        if self.records.get(&place)?.acquired != acquired {
            return None;
        }
        let held = self.records.remove(&place)?;
        self.amount.remove(held.amount());
        self.note_empty();
        Some(held.amount())
    }

    /// Takes those of a range out that are there under its lease.
    pub fn take_range(&mut self, range: LeaseRange) -> Vec<(LeaseRange, Amount)> {
        let places = (range.partition, range.base_offset.0)..(range.partition, range.end().0);
        self.take_where(places, |held| held.acquired == range.acquired)
    }

    /// Takes the records of a partition out that come after this one.
    pub fn take_after(&mut self, partition: u32, offset: u64) -> Vec<(LeaseRange, Amount)> {
        let from = Bound::Excluded((partition, offset));
        self.take_where((from, Bound::Included((partition, u64::MAX))), |_| true)
    }

    /// Takes everything out.
    pub fn take_all(&mut self) -> Vec<(LeaseRange, Amount)> {
        self.take_where(.., |_| true)
    }

    /// Takes those out whose lease has run out.
    pub fn take_expired(&mut self, now_us: u64) -> Vec<(LeaseRange, Amount)> {
        let taken = self.take_where(.., |held| held.until_us <= now_us);
        self.find_first();
        taken
    }

    fn take_where(
        &mut self,
        places: impl std::ops::RangeBounds<Place>,
        wanted: impl Fn(&Held) -> bool,
    ) -> Vec<(LeaseRange, Amount)> {
        let mut taken: Vec<(LeaseRange, Amount)> = Vec::new();
        for ((partition, offset), held) in self.records.extract_if(places, |_, held| wanted(held)) {
            self.amount.remove(held.amount());
            match taken.last_mut() {
                Some((range, amount)) if continues(range, partition, offset, held.acquired) => {
                    range.count += 1;
                    amount.add(held.amount());
                }
                _ => taken.push((one(partition, offset, held.acquired), held.amount())),
            }
        }
        self.note_empty();
        taken
    }

    /// Everything, as ranges in order.
    pub fn ranges(&self) -> Vec<LeaseRange> {
        gathered(self.records.iter().map(|(&place, held)| (place, held.acquired)))
    }

    /// This record's lease runs out so many µs from now, 0 for as long as was given.
    pub fn extended(&mut self, partition: u32, offset: u64, acquired: u32, for_us: u64, now_us: u64) {
        let Some(held) = self.records.get_mut(&(partition, offset)) else { return };
        if held.acquired == acquired {
            let for_us = if for_us == 0 { held.lease_us } else { for_us };
            held.until_us = now_us.saturating_add(for_us);
            self.first_until_us = self.first_until_us.min(held.until_us);
            self.first_due_us = self.first_due_us.min(held.due_us());
        }
    }

    /// Begins a round of extensions if a lease is due: the ranges to extend, which
    /// count as extended from here on. With `all`, due or not.
    pub fn extend_due(&mut self, now_us: u64, all: bool) -> Vec<LeaseRange> {
        let is_due = all || self.records.values().any(|held| held.due_us() <= now_us);
        if !is_due {
            self.find_first();
            return Vec::new();
        }
        // Who is due, and who comes along so that there is one round and not many.
        let mut extended = Vec::new();
        for (&place, held) in &mut self.records {
            let until_us = now_us.saturating_add(held.lease_us);
            if held.until_us < until_us || all {
                held.until_us = until_us;
                extended.push((place, held.acquired));
            }
        }
        self.find_first();
        gathered(extended.into_iter())
    }

    fn find_first(&mut self) {
        self.first_until_us = self.records.values().map(|held| held.until_us).min().unwrap_or(u64::MAX);
        self.first_due_us = self.records.values().map(Held::due_us).min().unwrap_or(u64::MAX);
    }

    fn note_empty(&mut self) {
        if self.records.is_empty() {
            (self.first_until_us, self.first_due_us) = (u64::MAX, u64::MAX);
            assert_eq!(self.amount, Amount::default(), "what is not there counts");
        }
    }
}

fn one(partition: u32, offset: u64, acquired: u32) -> LeaseRange {
    LeaseRange { partition, base_offset: Offset(offset), count: 1, acquired }
}

fn continues(range: &LeaseRange, partition: u32, offset: u64, acquired: u32) -> bool {
    range.partition == partition && range.acquired == acquired && range.end().0 == offset
}

fn gathered(records: impl Iterator<Item = (Place, u32)>) -> Vec<LeaseRange> {
    let mut ranges: Vec<LeaseRange> = Vec::new();
    for ((partition, offset), acquired) in records {
        match ranges.last_mut() {
            Some(range) if continues(range, partition, offset, acquired) => range.count += 1,
            _ => ranges.push(one(partition, offset, acquired)),
        }
    }
    ranges
}
