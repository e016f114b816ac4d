//! Vectors for answers that are not in use, shared by the sessions of a core: a
//! session has one only while bytes are in it, so one that is idle again costs nothing.

use std::cell::RefCell;

use crate::limits::{MAX_SPARE_LEN, MAX_SPARES};

/// See the module.
#[derive(Debug, Default)]
pub struct Spares {
    free: RefCell<Vec<Vec<u8>>>,
}

impl Spares {
    /// An empty vector, if possible one that has been in use.
    #[inline]
    pub fn take(&self) -> Vec<u8> {
        self.free.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes back a vector. One that has grown long is let go, and so are more
    /// than a turn of the loop needs.
    #[inline]
    pub fn give(&self, mut vector: Vec<u8>) {
        let mut free = self.free.borrow_mut();
        if free.len() < MAX_SPARES && (1..=MAX_SPARE_LEN).contains(&vector.capacity()) {
            vector.clear();
            free.push(vector);
        }
    }
}
