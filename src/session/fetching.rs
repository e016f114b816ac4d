//! Memory of fetches that are in flight: a few bytes can ask for thousands of
//! partitions, and wait for minutes.
//!
//! A session has some of it for itself. Beyond, it draws on what all sessions of
//! its core share, and gets no more when that, or its own bound, is used up.

use std::cell::Cell;
use std::rc::Rc;

use crate::limits::{
    FETCH_PARTITION_COST, MAX_FETCHING_PER_CORE, MAX_FETCHING_PER_SESSION, OWN_FETCHING_PER_SESSION,
};

/// What the sessions of a core have drawn on, in bytes.
#[derive(Clone, Debug, Default)]
pub struct Fetching(Rc<Cell<usize>>);

/// What one session's fetches in flight take, in bytes.
#[derive(Debug)]
pub(super) struct SessionFetching {
    shared: Fetching,
    taken: Rc<Cell<usize>>,
}

/// What one fetch takes, as long as it is in flight.
#[derive(Debug)]
pub struct Charge {
    shared: Fetching,
    taken: Rc<Cell<usize>>,
    len: usize,
}

impl SessionFetching {
    pub fn new(shared: &Fetching) -> SessionFetching {
        SessionFetching { shared: shared.clone(), taken: Rc::default() }
    }

    /// Memory for a fetch of so many partitions; `None` if there is none left.
    pub fn charge(&self, partitions: usize) -> Option<Charge> {
        let len = partitions * FETCH_PARTITION_COST;
        let before = self.taken.get();
        let after = before + len;
        let shared = self.shared.0.get() + beyond_own(after) - beyond_own(before);
        if after > MAX_FETCHING_PER_SESSION
            || (after > OWN_FETCHING_PER_SESSION && shared > MAX_FETCHING_PER_CORE)
        {
            return None;
        }
        self.taken.set(after);
        self.shared.0.set(shared);
        Some(Charge { shared: self.shared.clone(), taken: Rc::clone(&self.taken), len })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let before = self.taken.get();
        let after = before - self.len;
        self.taken.set(after);
        self.shared.0.set(self.shared.0.get() - (beyond_own(before) - beyond_own(after)));
    }
}

/// Bytes that a session which has taken so many has drawn on the shared ones.
fn beyond_own(taken: usize) -> usize {
    taken.saturating_sub(OWN_FETCHING_PER_SESSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST: usize = ringbolt_wire::message::MAX_FETCH_PARTITIONS;

    #[test]
    fn what_is_drawn_is_bounded_for_a_session_and_for_all_and_given_back() {
        let shared = Fetching::default();
        let sessions: Vec<_> = (0..100).map(|_| SessionFetching::new(&shared)).collect();
        let mut charges = Vec::new();
        let mut most = 0;
        for session in &sessions {
            let before = charges.len();
            charges.extend((0..100).map_while(|_| session.charge(LARGEST)));
            most = most.max(charges.len() - before);
        }
        let cost = LARGEST * FETCH_PARTITION_COST;
        assert_eq!(most, MAX_FETCHING_PER_SESSION / cost);
        let own = sessions.len() * OWN_FETCHING_PER_SESSION;
        assert!(charges.len() * cost <= MAX_FETCHING_PER_CORE + own);
        assert!(sessions[99].charge(LARGEST).is_none());
        let small = OWN_FETCHING_PER_SESSION / FETCH_PARTITION_COST;
        let modest: Vec<_> = (0..small).map(|_| sessions[99].charge(1)).collect();
        assert!(modest.iter().all(Option::is_some), "who asks for little has it, whatever others do");
        drop((charges, modest));
        assert_eq!(shared.0.get(), 0);
        assert!(sessions[99].charge(LARGEST).is_some());
    }
}
