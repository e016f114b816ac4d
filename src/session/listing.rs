//! The budget of a core's sessions for answers that list: topics, partitions,
//! counters. One may have megabytes, so they are made one after the other where
//! there would be too many at once; who has to wait waits in turn.

use std::cell::Cell;

use crate::limits::MAX_LISTING_LEN;

/// What the sessions of a core share.
#[derive(Debug)]
pub struct Listings {
    /// Bytes beyond which none is begun.
    max: usize,
    /// Bytes of those that are made, or wait to be read.
    reserved: Cell<usize>,
    /// Sessions that wait.
    waiting: Cell<usize>,
    /// The one that asks was first among those that waited.
    is_turn: Cell<bool>,
}

impl Listings {
    /// Room for at least one, and for as many as have `max` bytes in all.
    pub fn new(max: usize) -> Listings {
        Listings { max, reserved: Cell::new(0), waiting: Cell::new(0), is_turn: Cell::new(false) }
    }

    /// Whether one may be begun.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.reserved.get() <= self.max
    }

    /// Says how many sessions wait, and whether the first of them now goes on.
    pub fn queue(&self, waiting: usize, is_turn: bool) {
        self.waiting.set(waiting);
        self.is_turn.set(is_turn);
    }

    fn reserve(&self) -> bool {
        let may = self.has_room() && (self.is_turn.get() || self.waiting.get() == 0);
        if may {
            self.reserved.set(self.reserved.get() + MAX_LISTING_LEN);
        }
        may
    }

    fn release(&self, bytes: usize) {
        self.reserved
            .set(self.reserved.get().checked_sub(bytes).expect("less is released than was reserved"));
    }
}

/// How far a session is with an answer that lists: it has one at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Listing {
    /// None was asked for.
    #[default]
    Idle,
    /// It is being made, and may become as long as any.
    Making,
    /// It has this length and waits for a send.
    Gathered(usize),
    /// It is being sent.
    Sending(usize),
}

impl Listing {
    /// Begins one if there is room.
    pub fn begin(&mut self, shared: &Listings) -> bool {
        let begins = *self == Listing::Idle && shared.reserve();
        if begins {
            *self = Listing::Making;
        }
        begins
    }

    /// The answer has this many bytes.
    pub fn made(&mut self, len: usize, shared: &Listings) {
        assert_eq!(*self, Listing::Making, "an answer that nobody asked for");
        let len = len.min(MAX_LISTING_LEN);
        shared.release(MAX_LISTING_LEN - len);
        *self = Listing::Gathered(len);
    }

    /// A send takes all that was gathered.
    #[inline]
    pub fn taken(&mut self) {
        if let Listing::Gathered(len) = *self {
            *self = Listing::Sending(len);
        }
    }

    /// The send has ended.
    #[inline]
    pub fn sent(&mut self, shared: &Listings) {
        if let Listing::Sending(len) = *self {
            shared.release(len);
            *self = Listing::Idle;
        }
    }

    /// The session is gone, and whatever it asked for with it.
    pub fn end(&mut self, shared: &Listings) {
        match std::mem::take(self) {
            Listing::Idle => {}
            Listing::Making => shared.release(MAX_LISTING_LEN),
            Listing::Gathered(len) | Listing::Sending(len) => shared.release(len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1 << 20;

    #[test]
    fn memory_for_answers_that_list_is_bounded_until_they_are_sent() {
        let shared = Listings::new(MAX);
        let (mut one, mut other) = (Listing::default(), Listing::default());
        assert!(one.begin(&shared));
        assert!(!one.begin(&shared), "one at a time");
        assert!(!other.begin(&shared), "the first may become as long as any");
        one.made(MAX, &shared);
        assert!(other.begin(&shared), "what is made counts with its length");
        other.made(1, &shared);
        let mut third = Listing::default();
        assert!(!third.begin(&shared));
        // A send that had begun before does not take it along.
        one.sent(&shared);
        assert!(!third.begin(&shared));
        one.taken();
        one.sent(&shared);
        assert!(third.begin(&shared));
        third.end(&shared);
        other.end(&shared);
        assert_eq!(shared.reserved.get(), 0, "who is gone holds nothing");
    }

    #[test]
    fn who_comes_anew_waits_behind_those_who_wait() {
        let shared = Listings::new(MAX);
        let (mut first, mut new) = (Listing::default(), Listing::default());
        shared.queue(1, false);
        assert!(!new.begin(&shared));
        shared.queue(0, true);
        assert!(first.begin(&shared));
        first.made(10, &shared);
        shared.queue(0, false);
        assert!(new.begin(&shared));
    }
}
