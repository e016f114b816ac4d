//! Deadlines of connections. An entry is not taken back when its reason is
//! gone: whoever it wakes looks whether it still stands.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What may be due.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Timer {
    /// Only a turn of the loop is wanted.
    Turn,
    /// The hello should have come.
    Handshake,
    /// The peer should have read something.
    SendStall,
    /// The peer should have closed its side.
    Linger,
    /// The next large batch should have come.
    DirectIdle,
    /// More of a frame that was begun should have come.
    Frame,
}

/// Deadlines of connections are late by up to this time, in µs, so that those
/// of thousands which came within a second take few wake-ups. One by one the
/// hellos of 10,000 cost 0.2 s of processor time ten seconds after they came.
const TOGETHER_US: u64 = 10_000;

/// Those of a crowd that lingers are to be closed, which costs more. With 10 ms a
/// producer's acknowledgements beside it took 0.8 to 1.4 ms every 10 ms.
const CLOSE_TOGETHER_US: u64 = 1_000;

/// Deadlines in order.
#[derive(Debug, Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(u64, u64, Timer)>>,
}

impl Timers {
    /// Adds one: when (monotonic, µs), for which session, what. Those of
    /// connections are due up to 10 ms later, or 1 ms, together.
    pub fn push(&mut self, due_us: u64, key: u64, timer: Timer) {
        let due_us = match timer {
            Timer::Turn => due_us,
            Timer::Linger => due_us.next_multiple_of(CLOSE_TOGETHER_US),
            Timer::Handshake | Timer::SendStall | Timer::DirectIdle | Timer::Frame => {
                due_us.next_multiple_of(TOGETHER_US)
            }
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadlines_of_many_connections_take_few_wake_ups_and_are_never_early() {
        let mut timers = Timers::default();
        let due = |key: u64| 5_000_003 + key * 100;
        (0..10_000).for_each(|key| timers.push(due(key), key, Timer::Handshake));
        let (mut wakes, mut fired) = (0, 0);
        while let Some(now) = timers.next() {
            wakes += 1;
            while let Some((key, timer)) = timers.pop_due(now) {
                assert_eq!(timer, Timer::Handshake);
                assert!(due(key) <= now && now < due(key) + TOGETHER_US);
                fired += 1;
            }
        }
        assert_eq!((wakes, fired), (100, 10_000));
    }

    #[test]
    fn those_who_linger_are_closed_a_few_at_a_time() {
        let mut timers = Timers::default();
        (0..1_000).for_each(|key| timers.push(5_000_003 + key * 100, key, Timer::Linger));
        let mut fired = 0;
        while let Some(now) = timers.next() {
            let together = std::iter::from_fn(|| timers.pop_due(now)).count();
            assert!(together <= 10, "{together} at once");
            fired += together;
        }
        assert_eq!(fired, 1_000);
    }

    #[test]
    fn a_turn_of_the_loop_comes_when_it_was_wanted() {
        let mut timers = Timers::default();
        timers.push(1_003, 0, Timer::Turn);
        assert_eq!(timers.next(), Some(1_003));
        assert_eq!(timers.pop_due(1_002), None);
        assert_eq!(timers.pop_due(1_003), Some((0, Timer::Turn)));
    }
}
