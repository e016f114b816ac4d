//! Virtual time, and what is due when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ringbolt::time::Now;

/// Time that passes only when the simulation says so. The wall clock may jump,
/// as real ones do.
#[derive(Debug)]
pub struct Clock {
    mono_us: u64,
    wall_offset_us: i64,
}

/// µs since 1970 at which every simulation starts.
const START_WALL_US: i64 = 1_750_000_000_000_000;

impl Clock {
    pub fn new() -> Clock {
        Clock { mono_us: 1, wall_offset_us: START_WALL_US }
    }

    pub fn now(&self) -> Now {
        Now { mono_us: self.mono_us, wall_us: self.mono_us.saturating_add_signed(self.wall_offset_us) }
    }

    pub fn advance_to(&mut self, mono_us: u64) {
        assert!(mono_us >= self.mono_us, "time went back");
        self.mono_us = mono_us;
    }

    /// Somebody sets the wall clock.
    pub fn jump_wall(&mut self, by_us: i64) {
        self.wall_offset_us += by_us;
    }
}

/// What is due, by time; first in, first out where times are equal.
#[derive(Debug)]
pub struct Agenda<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    entries: u64,
}

#[derive(Debug)]
struct Entry<T> {
    at_us: u64,
    number: u64,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl<T> Eq for Entry<T> {}
impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.number).cmp(&(other.at_us, other.number))
    }
}

impl<T> Agenda<T> {
    pub fn new() -> Agenda<T> {
        Agenda { heap: BinaryHeap::new(), entries: 0 }
    }

    pub fn add(&mut self, at_us: u64, what: T) {
        self.entries += 1;
        self.heap.push(Reverse(Entry { at_us, number: self.entries, what }));
    }

    /// When the next entry is due.
    pub fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(entry)| entry.at_us)
    }

    /// The next entry, if it is due at `now_us`.
    pub fn pop_due(&mut self, now_us: u64) -> Option<T> {
        if self.next_at()? > now_us {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry.what)
    }

    /// Forgets everything: the machine went down.
    pub fn clear(&mut self) {
        self.heap.clear();
    }
}
