//! Batches on their way to a shard of another core: copied out of the receive
//! buffer in which they came.

use bytes::Bytes;

use crate::buffer::{BufferPool, Carver};
use crate::io::pool::{Pool, PoolBuffer};
use crate::limits::{BLOCK_LEN, CHUNK_LEN, MAX_BATCH_LEN};
use crate::shard::event::Payload;

/// A batch that is at least this long goes through the pool, whose memory is
/// bounded; shorter ones are bounded by the mailbox, which holds so many
/// messages at the most.
const POOL_COPY_MIN: usize = 4096;

const _: () = assert!(BLOCK_LEN + (MAX_BATCH_LEN as usize).next_multiple_of(BLOCK_LEN) <= CHUNK_LEN);

/// A chunk of the pool for the next batch, whatever its length.
#[derive(Debug, Default)]
struct Reserve(Option<PoolBuffer>);

impl BufferPool for Reserve {
    type Buffer = PoolBuffer;

    fn take(&mut self) -> Option<PoolBuffer> {
        self.0.take()
    }

    fn available(&self) -> usize {
        usize::from(self.0.is_some())
    }
}

/// Memory for copies.
#[derive(Debug, Default)]
pub(super) struct Copies {
    carver: Carver<PoolBuffer>,
    reserve: Reserve,
    /// Bytes that were copied.
    pub bytes: u64,
}

impl Copies {
    /// Whether there is room for one more copy. If so it is kept, so that no
    /// other core takes it in between.
    pub(super) fn has_room(&mut self, pool: &mut Pool) -> bool {
        if self.reserve.0.is_none() {
            self.reserve.0 = pool.take();
        }
        self.reserve.0.is_some()
    }

    /// Copies a batch.
    ///
    /// # Panics
    /// If it was not asked for room before.
    pub(super) fn copy(&mut self, batch: &[u8]) -> Payload<'static, PoolBuffer> {
        self.bytes += batch.len() as u64;
        let len = batch.len();
        if len < POOL_COPY_MIN {
            return Payload::Shared(Bytes::copy_from_slice(batch));
        }
        let piece = self.carver.carve(&mut self.reserve, BLOCK_LEN + len.next_multiple_of(BLOCK_LEN));
        // A session asks whether a shard accepts a batch before it hands one in.
        let mut buffer = piece.expect("room was kept for one batch, and a chunk holds the longest");
        buffer[BLOCK_LEN..BLOCK_LEN + len].copy_from_slice(batch);
        buffer[BLOCK_LEN + len..].fill(0);
        Payload::Aligned { buffer, len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory of the process for it would not be bounded by `--memory`.
    #[test]
    fn a_copy_for_which_there_was_room_lies_in_the_pool_whoever_takes_the_rest_meanwhile() {
        let mut pool = Pool::new(4 * CHUNK_LEN).unwrap();
        let mut copies = Copies::default();
        let batch = vec![7; MAX_BATCH_LEN as usize];
        let mut payloads = Vec::new();
        for _ in 0..4 {
            assert!(copies.has_room(&mut pool));
            let others: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
            payloads.push(copies.copy(&batch));
            drop(others);
        }
        for payload in &payloads {
            let Payload::Aligned { buffer, len } = payload else { panic!("not in the pool: {payload:?}") };
            assert_eq!(buffer[BLOCK_LEN..BLOCK_LEN + len], batch);
        }
        assert!(!copies.has_room(&mut pool), "all of the pool is in use");
        payloads.remove(0);
        assert!(copies.has_room(&mut pool));
    }
}
