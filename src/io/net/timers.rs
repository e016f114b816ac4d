//! Deadlines of connections. An entry is not taken back when its reason is
//! gone: whoever it wakes looks whether it still stands.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What may be due.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Timer {
    /// The listener may try again, or only a turn of the loop is wanted.
    Accept,
    /// The hello should have come.
    Handshake,
    /// The peer should have read something.
    SendStall,
    /// The peer should have closed its side.
    Linger,
    /// The next large batch should have come.
    DirectIdle,
}

/// Deadlines in order.
#[derive(Debug, Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(u64, u64, Timer)>>,
}

impl Timers {
    /// Adds one: when (monotonic, µs), for which session, what.
    pub fn push(&mut self, due_us: u64, key: u64, timer: Timer) {
        self.heap.push(Reverse((due_us, key, timer)));
    }

    /// The next that is due.
    #[inline]
    pub fn pop_due(&mut self, now_us: u64) -> Option<(u64, Timer)> {
        let Reverse((due, key, timer)) = *self.heap.peek()?;
        if due > now_us {
            return None;
        }
        self.heap.pop();
        Some((key, timer))
    }

    /// When the next is due.
    #[inline]
    pub fn next(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((due, _, _))| *due)
    }
}
