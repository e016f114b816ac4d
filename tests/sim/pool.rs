//! Memory for the simulated broker: chunks that come back, with what their last
//! user left in them, once every piece is dropped.

use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use ringbolt::buffer::{Buffer, BufferPool};
use ringbolt::limits::{BLOCK_LEN, CHUNK_LEN};

/// A handle on a pool of a fixed number of chunks.
#[derive(Clone, Debug)]
pub struct SimPool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    chunks: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: Vec<BytesMut>,
    made: usize,
    taken: usize,
    most_taken: usize,
}

/// The pieces of one chunk that came home while others are still out.
#[derive(Debug)]
struct Home {
    pool: Arc<Shared>,
    pieces: Mutex<Vec<BytesMut>>,
}

/// A piece of a chunk.
#[derive(Debug)]
pub struct SimBuffer {
    bytes: BytesMut,
    home: Arc<Home>,
}

impl SimPool {
    pub fn new(chunks: usize) -> SimPool {
        let state = State { free: Vec::new(), made: 0, taken: 0, most_taken: 0 };
        SimPool { shared: Arc::new(Shared { chunks, state: Mutex::new(state) }) }
    }

    /// Chunks of which a piece is still held by somebody.
    pub fn taken(&self) -> usize {
        self.shared.state.lock().unwrap().taken
    }

    /// The most that were taken at one time.
    pub fn most_taken(&self) -> usize {
        self.shared.state.lock().unwrap().most_taken
    }
}

impl BufferPool for SimPool {
    type Buffer = SimBuffer;

    fn take(&mut self) -> Option<SimBuffer> {
        let mut state = self.shared.state.lock().unwrap();
        if state.taken == self.shared.chunks {
            return None;
        }
        let bytes = match state.free.pop() {
            Some(bytes) => bytes,
            None => {
                state.made += 1;
                new_chunk()
            }
        };
        state.taken += 1;
        state.most_taken = state.most_taken.max(state.taken);
        let home = Home { pool: self.shared.clone(), pieces: Mutex::new(Vec::new()) };
        Some(SimBuffer { bytes, home: Arc::new(home) })
    }

    fn available(&self) -> usize {
        self.shared.chunks - self.taken()
    }
}

/// A chunk at a multiple of a block, full of what nobody may rely on.
fn new_chunk() -> BytesMut {
    let mut bytes = BytesMut::zeroed(CHUNK_LEN + BLOCK_LEN);
    bytes.fill(0xA5);
    let start = bytes.as_ptr().align_offset(BLOCK_LEN);
    let mut chunk = bytes.split_off(start);
    chunk.truncate(CHUNK_LEN);
    chunk
}

impl AsRef<[u8]> for SimBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsMut<[u8]> for SimBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Buffer for SimBuffer {
    fn split_off(&mut self, at: usize) -> SimBuffer {
        assert!(at.is_multiple_of(BLOCK_LEN) && at <= self.bytes.len(), "split at {at}");
        SimBuffer { bytes: self.bytes.split_off(at), home: self.home.clone() }
    }
}

impl Drop for SimBuffer {
    fn drop(&mut self) {
        let mut pieces = self.home.pieces.lock().unwrap();
        pieces.push(std::mem::take(&mut self.bytes));
        let home_len: usize = pieces.iter().map(BytesMut::len).sum();
        if home_len < CHUNK_LEN {
            return;
        }
        pieces.retain(|piece| !piece.is_empty());
        pieces.sort_by_key(|piece| piece.as_ptr());
        let chunk = pieces.drain(..).reduce(|mut whole, piece| {
            whole.unsplit(piece);
            whole
        });
        let chunk = chunk.expect("a chunk has at least one piece that is not empty");
        assert!(chunk.len() == CHUNK_LEN && chunk.as_ptr().align_offset(BLOCK_LEN) == 0);
        let mut state = self.home.pool.state.lock().unwrap();
        state.taken -= 1;
        state.free.push(chunk);
    }
}

#[test]
fn a_chunk_comes_back_when_its_last_piece_is_dropped() {
    let mut pool = SimPool::new(1);
    let mut first = pool.take().unwrap();
    let address = first.as_ref().as_ptr();
    let mut second = first.split_off(BLOCK_LEN);
    let third = second.split_off(2 * BLOCK_LEN);
    assert!(pool.take().is_none());
    drop(second);
    drop(first);
    assert_eq!(pool.available(), 0);
    drop(third);
    assert_eq!(pool.available(), 1);
    assert_eq!(pool.take().unwrap().as_ref().as_ptr(), address, "the same memory again");
}
