//! What is known of a partition as a whole.

use std::ops::Range;

#[derive(Default)]
pub(super) struct Partition {
    /// Offset of the next record to be read.
    pub next: u64,
    /// What retention had removed before it could be read, in rising order.
    pub expired: Vec<Range<u64>>,
    pub holes: u64,
    pub vanished: u64,
    /// The broker does not know it.
    pub missing: bool,
    /// The end was reached. Without that, what is not below `next` was not looked
    /// at.
    pub finished: bool,
}

impl Partition {
    pub fn is_wholly_read(&self) -> bool {
        self.finished && self.expired.is_empty()
    }

    /// How many of these offsets were removed by retention before they could be
    /// read.
    pub fn expired(&self, place: &Range<u64>) -> u64 {
        let from = self.expired.partition_point(|gone| gone.end <= place.start);
        let gone = self.expired[from..].iter().take_while(|gone| gone.start < place.end);
        gone.map(|gone| gone.end.min(place.end) - gone.start.max(place.start)).sum()
    }

    /// How many of these offsets lie where nothing was read.
    pub fn unread(&self, place: &Range<u64>) -> u64 {
        if self.finished { 0 } else { place.end.saturating_sub(place.start.max(self.next)) }
    }
}
