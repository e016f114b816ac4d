//! The most recent commits, in the memory that they were written from.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Lsn;

/// Commits by LSN, oldest first, up to a number of bytes.
#[derive(Debug)]
pub struct TailCache {
    commits: VecDeque<(Lsn, Bytes)>,
    bytes: usize,
    budget: usize,
}

impl TailCache {
    /// A cache of at most `budget` bytes.
    pub fn new(budget: usize) -> Self {
        TailCache { commits: VecDeque::new(), bytes: 0, budget }
    }

    /// Adds the newest commit and drops the oldest ones beyond the budget.
    pub fn push(&mut self, lsn: Lsn, commit: Bytes) {
        debug_assert!(self.commits.back().is_none_or(|(last, _)| *last < lsn));
        self.bytes += commit.len();
        self.commits.push_back((lsn, commit));
        while self.bytes > self.budget && self.commits.len() > 1 {
            self.drop_oldest();
        }
    }

    /// Drops the oldest commit, to give memory back. Returns whether there was
    /// one.
    pub fn drop_oldest(&mut self) -> bool {
        let Some((_, commit)) = self.commits.pop_front() else { return false };
        self.bytes -= commit.len();
        true
    }

    /// The `len` bytes at `lsn`, if they are here. They lie in one commit.
    pub fn get(&self, lsn: Lsn, len: usize) -> Option<Bytes> {
        let after = self.commits.partition_point(|(start, _)| *start <= lsn);
        let (start, commit) = self.commits.get(after.checked_sub(1)?)?;
        let from = (lsn.0 - start.0) as usize;
        (from + len <= commit.len()).then(|| commit.slice(from..from + len))
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_the_newest_commits_within_its_budget() {
        let mut cache = TailCache::new(10_000);
        for i in 0..4u64 {
            cache.push(Lsn(i * 4096), Bytes::from(vec![i as u8; 4096]));
        }
        assert_eq!(cache.get(Lsn(0), 1), None);
        assert_eq!(cache.get(Lsn(4096), 1), None);
        assert_eq!(cache.get(Lsn(2 * 4096 + 100), 3996).map(|b| b[0]), Some(2));
        assert_eq!(cache.get(Lsn(2 * 4096 + 100), 3997), None);
        assert_eq!(cache.get(Lsn(4 * 4096), 1), None);
        assert_eq!(cache.bytes(), 8192);
    }
}
