//! Whose turn it is to read from disk: so many at a time that what they need fits in
//! memory.

use smallvec::SmallVec;

use super::{Cold, Fetches, unlist};
use crate::buffer::BufferPool;
use crate::log::pages::PageId;
use crate::shard::Shard;

impl Fetches {
    /// A job that `was` so reads from disk no longer: the next one may.
    pub(super) fn leave_cold(&mut self, id: usize, was: Cold) {
        match was {
            Cold::No => return,
            Cold::Queued => self.cold.retain(|job| *job != id),
            Cold::Reading => self.reading -= 1,
        }
        self.by_page.retain(|_, jobs| {
            jobs.retain(|job| *job != id);
            !jobs.is_empty()
        });
        if let Some(&next) = self.cold.front() {
            self.make_ready(next);
        }
    }

    /// A job that reads from disk waits for its turn once more. Returns the pages that
    /// were pinned for it.
    fn requeue(&mut self, id: usize) -> SmallVec<[PageId; 8]> {
        let job = &mut self.jobs[id];
        job.cold = Cold::Queued;
        let needs = std::mem::take(&mut job.needs);
        self.reading -= 1;
        self.cold.push_back(id);
        for page in &needs {
            unlist(&mut self.by_page, page, id);
        }
        needs
    }

    /// Whether it is the turn of this job (`None`: of a new one) to read from
    /// disk.
    pub(in crate::shard) fn may_read(&self, id: Option<usize>, max_readers: usize) -> bool {
        if id.is_some_and(|id| self.jobs[id].cold == Cold::Reading) {
            return true;
        }
        let is_first = self.cold.is_empty() || self.cold.front().copied() == id;
        is_first && self.reading < max_readers
    }

    /// A job's turn to read from disk has come, or it must wait for it.
    pub(super) fn set_cold(&mut self, id: usize, may_read: bool) {
        let job = &mut self.jobs[id];
        match (job.cold, may_read) {
            (Cold::Reading, _) | (Cold::Queued, false) => {}
            (Cold::No, false) => {
                job.cold = Cold::Queued;
                self.cold.push_back(id);
            }
            (was, true) => {
                job.cold = Cold::Reading;
                self.reading += 1;
                if was == Cold::Queued {
                    self.cold.retain(|queued| *queued != id);
                }
                // There may be room for the next one as well.
                if let Some(&next) = self.cold.front() {
                    self.make_ready(next);
                }
            }
        }
    }
}

impl<P: BufferPool> Shard<P> {
    /// Those who read from disk hold the memory for it, and none has all that it needs: the
    /// one with the least lets go of that, and waits for its turn again. False if there
    /// are no two.
    pub(in crate::shard) fn give_way(&mut self) -> bool {
        if self.fetches.reading < 2 {
            return false;
        }
        let reading = self.fetches.jobs.iter().filter(|(_, job)| job.cold == Cold::Reading);
        let Some((id, _)) = reading.min_by_key(|(_, job)| job.needs.len()) else { return false };
        self.fetches.requeue(id).into_iter().for_each(|page| self.reader.pages.unpin(page));
        true
    }
}
