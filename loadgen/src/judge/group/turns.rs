//! The order of a partition that one consumer has for itself.
//!
//! Who has it is sent record after record. One that comes back takes those behind it
//! along, and delivery goes on with it: so a step back is good, unless something that
//! came back before it is passed over. A consumer that gets the partition begins with
//! the first record that is not completed.

use std::collections::BTreeSet;

use super::part::Part;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Turns {
    /// The consumer that has the partition; 0 for nobody.
    holder: u64,
    /// Offset after the last delivered record.
    next: u64,
    /// Records that are to come again before all later ones.
    back: BTreeSet<u64>,
}

impl Turns {
    pub fn restarted(&mut self) {
        (self.holder, self.next) = (0, 0);
        self.back.clear();
    }

    pub fn came_back(&mut self, offset: u64) {
        // Who reads along in other modes has none of this.
        if self.holder != 0 {
            self.back.insert(offset);
        }
    }

    pub fn completed(&mut self, offset: u64) {
        if !self.back.is_empty() {
            self.back.remove(&offset);
        }
    }
}

impl Part {
    /// A record was delivered in an exclusive group. Returns the record that was to come
    /// before it, if there is one.
    pub fn turn(&mut self, holder: u64, offset: u64) -> Option<u64> {
        let turns = &mut self.turns;
        if turns.holder == holder && turns.next == offset && turns.back.is_empty() {
            turns.next = offset + 1;
            return None;
        }
        let back = turns.back.first().copied().filter(|back| *back < offset);
        let (is_new, next) = (turns.holder != holder, turns.next);
        let passed = match back {
            _ if is_new => self.first_not_passed(self.floor, offset),
            Some(back) => Some(back),
            None => self.first_not_passed(next, offset),
        };
        (self.turns.holder, self.turns.next) = (holder, offset + 1);
        // What lies behind comes again by its turn, and what was passed over is told once.
        self.turns.back.clear();
        passed
    }

    /// The first record before `offset` that must not be passed over.
    fn first_not_passed(&self, from: u64, offset: u64) -> Option<u64> {
        let mut at = from;
        while at < offset {
            match self.acked.end_of(at).or_else(|| self.done.end_of(at)) {
                Some(end) => at = end,
                None if self.may_be_passed(at) => at += 1,
                None => return Some(at),
            }
        }
        None
    }
}
