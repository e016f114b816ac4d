//! The receive buffers that all multishot receives of a core share.

use std::io;
use std::ptr::NonNull;

use crate::io::pool::PoolBuffer;
use crate::io::recv_buffers::RecvBuffers;
use crate::io::ring::Ring;
use crate::limits::CHUNK_LEN;

/// Number of their group on its ring.
pub const GROUP: u16 = 0;

/// Bytes of one buffer: a burst of 64 requests of 1 KiB in one receive.
/// Shorter ones cost a receive more for large messages.
pub const BUFFER_LEN: usize = 64 << 10;

/// Makes buffers of `chunks` and registers them with `ring`, which keeps the
/// memory as long as the kernel may write to it. The list of free ones takes the
/// place of the first.
pub fn register(ring: &mut Ring, mut chunks: Vec<PoolBuffer>) -> io::Result<RecvBuffers> {
    assert!(!chunks.is_empty(), "receive buffers need a chunk of memory");
    let pieces = chunks.iter_mut().flat_map(|chunk| chunk[..CHUNK_LEN].chunks_exact_mut(BUFFER_LEN));
    let mut pieces = pieces.map(|piece| NonNull::from(piece).cast());
    let list = pieces.next().expect("there is a chunk");
    let buffers: Vec<_> = pieces.collect();
    assert!(RecvBuffers::list_len(buffers.len()) <= BUFFER_LEN, "the list fits one buffer");
    ring.keep(Box::new(chunks));
    // SAFETY: list and buffers are pieces of the pool's memory, which is aligned
    // to pages and initialised; the ring keeps them until it is gone, and nobody
    // else has them.
    unsafe { RecvBuffers::register(ring.submitter(), GROUP, list, buffers, BUFFER_LEN) }
}
