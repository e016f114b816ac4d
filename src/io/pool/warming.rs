//! Touching the pool's memory for the first time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Pool, SLICE_LEN, Shared};
use crate::io::pin::yield_to_all;
use crate::limits::CHUNK_LEN;

impl Shared {
    /// Takes a chunk that was never touched.
    pub(super) fn claim_cold(&self) -> Option<u32> {
        let all = self.pieces.len();
        // Relaxed: only the number counts; until it is claimed, a chunk's
        // contents are as the kernel made them.
        let claimed = self
            .first_cold
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |cold| (cold < all).then_some(cold + 1));
        // In range: MAX_CHUNKS fits in 32 bits.
        claimed.ok().map(|chunk| chunk as u32)
    }

    /// Chunks that were never touched.
    pub(super) fn cold(&self) -> usize {
        self.pieces.len() - self.first_cold.load(Ordering::Relaxed)
    }

    /// Warms the next chunk and sets it free. False if all are warm.
    fn warm_one(&self) -> bool {
        let Some(chunk) = self.claim_cold() else {
            self.warm.store(self.pieces.len(), Ordering::Release);
            return false;
        };
        // SAFETY: `claim_cold` gives out each chunk once, and nobody else can have it
        // until it is set free below; never touched, it is zero.
        unsafe { self.region.prefault(chunk as usize * CHUNK_LEN, CHUNK_LEN) };
        let freed = self.free.push(chunk);
        assert!(freed.is_ok(), "the queue has a place for each chunk");
        // Two threads may warm at once; the mark never goes back.
        self.warm.fetch_max(chunk as usize + 1, Ordering::Release);
        true
    }

    /// Warms chunks until so many are, or all.
    pub(super) fn warm_up_to(&self, chunks: usize) {
        while self.warm.load(Ordering::Relaxed) < chunks && self.warm_one() {}
    }
}

impl Pool {
    /// Slices that are warm, from the first on. A chunk among them that was
    /// taken before its turn may still be cold, which costs its first user, or
    /// whoever registers it, a moment.
    pub(super) fn warm_slices(&self) -> usize {
        let warm = self.shared.warm.load(Ordering::Acquire);
        if warm == self.chunks() { self.len().div_ceil(SLICE_LEN) } else { warm * CHUNK_LEN / SLICE_LEN }
    }
}

/// Warms the rest on a thread that ends with the pool.
pub(super) fn start(shared: &Arc<Shared>) -> io::Result<()> {
    if shared.warm.load(Ordering::Relaxed) == shared.pieces.len() {
        return Ok(());
    }
    let weak = Arc::downgrade(shared);
    let warm = move || {
        yield_to_all();
        while weak.upgrade().is_some_and(|shared| shared.warm_one()) {}
    };
    std::thread::Builder::new().name("memory".to_owned()).spawn(warm).map(drop)
}
