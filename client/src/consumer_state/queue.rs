//! What is to be settled, in order, and how that becomes requests: as many as go
//! into one, neighbours with the same verb as one range.

use std::collections::{BTreeMap, VecDeque};

use ringbolt_wire::message::{LeaseRange, MAX_SETTLE_ITEMS, MAX_SETTLE_RECORDS, SettleItem, Unsettled, Verb};

use super::hand::Amount;

/// Bytes of items in one request: with whatever reasons, its meta stays far below
/// the 128 KiB that a request's may have.
const MAX_ITEM_BYTES: usize = 48 << 10;

/// Of an item without its reason.
const ITEM_BYTES: usize = 28;

/// Entries looked at for one request.
const MAX_ENTRIES: usize = 16 << 10;

/// Something to be said of one record, or of a range of them that nobody waits for.
#[derive(Debug)]
pub(super) struct Entry<T> {
    pub range: LeaseRange,
    pub verb: Verb,
    /// Who waits for the answer.
    pub tag: Option<T>,
    /// Whether an answer is wanted, waited for or not.
    pub confirm: bool,
    /// What counts as in hand until this is sent.
    pub amount: Amount,
    /// An attempt has no answer: it was carried out or not.
    pub retried: bool,
}

#[derive(Debug)]
pub(super) struct Queue<T> {
    entries: VecDeque<Entry<T>>,
    amount: Amount,
    /// Whether what is said of one record may overtake what is said of another.
    keep_order: bool,
}

impl<T> Queue<T> {
    pub fn new(keep_order: bool) -> Self {
        Queue { entries: VecDeque::new(), amount: Amount::default(), keep_order }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What waits and counts as in hand.
    pub fn amount(&self) -> Amount {
        self.amount
    }

    pub fn push(&mut self, mut entry: Entry<T>) {
        self.amount.add(entry.amount);
        // More than one request may speak of goes in pieces.
        while u64::from(entry.range.count) > MAX_SETTLE_RECORDS {
            let range = LeaseRange { count: MAX_SETTLE_RECORDS as u32, ..entry.range };
            let verb = entry.verb.clone();
            let Entry { confirm, retried, .. } = entry;
            self.entries.push_back(Entry {
                range,
                verb,
                tag: None,
                confirm,
                amount: Amount::default(),
                retried,
            });
            entry.range.base_offset = range.end();
            entry.range.count -= range.count;
        }
        self.entries.push_back(entry);
    }

    /// Puts entries back that were sent, before all others.
    pub fn put_back(&mut self, entries: Vec<Entry<T>>) {
        for entry in entries.into_iter().rev() {
            self.amount.add(entry.amount);
            self.entries.push_front(entry);
        }
    }

    pub fn take_all(&mut self) -> Vec<Entry<T>> {
        self.amount = Amount::default();
        std::mem::take(&mut self.entries).into()
    }

    /// The next request's items, and the entries that they stand for. No record is in
    /// two of them, so that an answer about a record is about one entry.
    pub fn next(&mut self) -> (Vec<SettleItem>, Vec<Entry<T>>) {
        let mut waiting: Vec<Entry<T>> = self.entries.drain(..self.entries.len().min(MAX_ENTRIES)).collect();
        if !self.keep_order {
            waiting.sort_by_key(|entry| (entry.range.partition, entry.range.base_offset));
        }
        let (mut items, mut chosen, mut later) = (Vec::<SettleItem>::new(), Vec::new(), VecDeque::new());
        let (mut taken, mut bytes, mut records) = (Taken::default(), 0, 0);
        for entry in waiting {
            if taken.overlaps(&entry.range) {
                // What comes later of the same record waits behind it.
                taken.add(&entry.range);
                later.push_back(entry);
                continue;
            }
            let joins =
                items.last().is_some_and(|item| item.verb == entry.verb && joins(&item.range, &entry.range));
            let cost =
                ITEM_BYTES + if let Verb::Reject { reason, .. } = &entry.verb { reason.len() } else { 0 };
            let count = u64::from(entry.range.count);
            let is_full = !joins && (items.len() == MAX_SETTLE_ITEMS || bytes + cost > MAX_ITEM_BYTES);
            if is_full || records + count > MAX_SETTLE_RECORDS {
                taken.add(&entry.range);
                later.push_back(entry);
                continue;
            }
            taken.add(&entry.range);
            records += count;
            self.amount.remove(entry.amount);
            match items.last_mut() {
                Some(last) if joins => last.range.count += entry.range.count,
                _ => {
                    bytes += cost;
                    items.push(SettleItem { range: entry.range, verb: entry.verb.clone() });
                }
            }
            chosen.push(entry);
        }
        later.append(&mut self.entries);
        self.entries = later;
        (items, chosen)
    }
}

fn joins(before: &LeaseRange, after: &LeaseRange) -> bool {
    before.partition == after.partition
        && before.acquired == after.acquired
        && before.end() == after.base_offset
        && before.count.checked_add(after.count).is_some()
}

/// Records by partition and first offset, up to the offset after the last.
#[derive(Default)]
struct Taken(BTreeMap<(u32, u64), u64>);

impl Taken {
    fn add(&mut self, range: &LeaseRange) {
        let (mut from, mut to) = (range.base_offset.0, range.end().0);
        while let Some((start, end)) = self.overlapped(range.partition, from, to) {
            self.0.remove(&(range.partition, start));
            (from, to) = (from.min(start), to.max(end));
        }
        self.0.insert((range.partition, from), to);
    }

    fn overlaps(&self, range: &LeaseRange) -> bool {
        self.overlapped(range.partition, range.base_offset.0, range.end().0).is_some()
    }

    /// The last of those that have records from here to there.
    fn overlapped(&self, partition: u32, from: u64, to: u64) -> Option<(u64, u64)> {
        let (&(_, start), &end) = self.0.range((partition, 0)..(partition, to)).next_back()?;
        (end > from).then_some((start, end))
    }
}

/// The part of `range` that was not settled, if there is one, and why.
pub(super) fn unsettled_part(range: &LeaseRange, sorted: &[Unsettled]) -> Vec<(LeaseRange, u16)> {
    let end = |u: &Unsettled| (u.partition, u.base_offset.0.saturating_add(u64::from(u.count)));
    let first = sorted.partition_point(|u| end(u) <= (range.partition, range.base_offset.0));
    let mut parts = Vec::new();
    for u in &sorted[first..] {
        if u.partition != range.partition || u.base_offset >= range.end() {
            break;
        }
        let base_offset = u.base_offset.max(range.base_offset);
        let end = end(u).1.min(range.end().0);
        // At most the range's own count.
        let count = (end - base_offset.0) as u32;
        parts.push((LeaseRange { base_offset, count, ..*range }, u.status));
    }
    parts
}
