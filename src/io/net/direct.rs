//! Large batches, received straight into memory that is written to disk.
//!
//! A produce frame's head is 40 bytes. Received so that it ends at a multiple
//! of 4 KiB, it leaves the batch where the log's writer wants it, and nothing
//! has to be copied:
//!
//! ```text
//!   0                        4056         4096                      end
//!   +------------------------+------------+-----------------+-------+
//!   | room for the commit's  | frame head | record batch    | zeros |
//!   | header                 |            |                 |       |
//!   +------------------------+------------+-----------------+-------+
//! ```
//!
//! For that, the frame's size must be known before it comes. It is predicted to
//! be that of the last one, and no more than that is received at once, so that
//! nothing of a following frame gets behind the batch. Once the head is there
//! the rest is received exactly.

use ringbolt_wire::frame::FRAME_HEADER_LEN;
use ringbolt_wire::message::PRODUCE_HEAD_LEN;
use ringbolt_wire::{FrameHeader, Opcode};

use super::connection::{Connection, Life, Receive, Stashed};
use super::{Host, Net, Op, Timer, buffer_of, count_copied};
use crate::buffer::Buffer;
use crate::io::pool::PoolBuffer;
use crate::io::ring::Held;
use crate::limits::{BLOCK_LEN, MAX_FRAME_LEN};
use crate::session::{DirectFrame, Input};

/// Where a frame starts in its buffer.
const START: usize = BLOCK_LEN - PRODUCE_HEAD_LEN;

/// Mispredictions in a row after which the size is not predicted any more: the
/// head is received alone. A batch that is as long as the one before makes up
/// for one.
const MAX_MISSES: u8 = 3;

/// How long memory is kept ready for a batch that does not come.
const IDLE_US: u64 = 500_000;

/// Where a connection stands with direct receives.
#[derive(Debug, Default)]
pub(super) struct Direct {
    state: State,
    misses: u8,
    /// Bytes of the last batch.
    last_len: usize,
    /// When the receive was posted. Of a batch that is on its way, the kernel
    /// says nothing until it is whole.
    posted_us: u64,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Off,
    /// The frame that has begun is to be received directly, once the shared
    /// receive has ended.
    Wanted,
    /// Received into memory for a batch of `predicted` bytes; of the frame,
    /// `filled` bytes are there.
    Ahead { predicted: usize, filled: usize },
    /// The frame's batch has `len` bytes; of the frame, `filled` are there.
    Filling { len: usize, filled: usize },
    /// There is no memory: the frame comes through shared buffers after all.
    Shared,
    /// A whole frame waits for its shard.
    Held(DirectFrame<PoolBuffer>),
}

impl Direct {
    /// Whether bytes may come into shared buffers.
    #[inline]
    pub fn allows_shared(&self) -> bool {
        matches!(self.state, State::Off | State::Shared)
    }

    pub fn is_wanted(&self) -> bool {
        matches!(self.state, State::Wanted)
    }

    /// A large frame has begun to come.
    pub fn want(&mut self) {
        if matches!(self.state, State::Off) {
            self.state = State::Wanted;
        }
    }

    /// No large frame is on its way.
    #[inline]
    pub fn rest(&mut self) {
        if matches!(self.state, State::Shared | State::Wanted) {
            self.state = State::Off;
        }
    }

    pub fn take_held(&mut self) -> Option<DirectFrame<PoolBuffer>> {
        match std::mem::take(&mut self.state) {
            State::Held(frame) => Some(frame),
            other => {
                self.state = other;
                None
            }
        }
    }
}

/// Bytes of the memory for a batch of `len` bytes.
fn buffer_len(len: usize) -> usize {
    BLOCK_LEN + len.next_multiple_of(BLOCK_LEN)
}

impl Net {
    /// The shared receive has ended within a large frame: goes on with its rest
    /// in memory of its own, if there is any.
    pub(super) fn begin_direct<H: Host>(&mut self, slot: u32, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        let Input::Large { frame_len } = connection.session.input() else {
            unreachable!("a direct receive is wanted only while a large frame is on its way")
        };
        let len = frame_len - PRODUCE_HEAD_LEN;
        let Some(mut buffer) = self.carve(len) else {
            self.slots[slot as usize].get().direct.state = State::Shared;
            self.regulate(slot, host);
            return;
        };
        let connection = self.slots[slot as usize].get();
        let filled = connection.session.move_stash(&mut buffer[START..]);
        let before = std::mem::take(&mut connection.stashed);
        self.stashed.replace(before, Stashed::default());
        self.fill(slot, buffer, len, filled, host);
    }

    /// Takes what a direct receive brought.
    pub(super) fn received_direct<H: Host>(&mut self, key: u64, result: i32, held: Held, host: &mut H) {
        let slot = self.find(key).expect("a slot is not freed before its last completion");
        self.mark(slot);
        let connection = self.slots[slot as usize].get();
        connection.receive = Receive::Off;
        let buffer = buffer_of(held);
        let state = std::mem::take(&mut connection.direct.state);
        self.direct_held -= buffer.len();
        if connection.life != Life::Open {
            return;
        }
        let count = match result {
            count @ 1.. => count as usize,
            0 => {
                connection.ended = true;
                return;
            }
            e if e == -libc::ECANCELED || e == -libc::EINTR || e == -libc::EAGAIN => 0,
            e => return self.lost(slot, -e, host),
        };
        if connection.session.is_closing() {
            return;
        }
        if count > 0 {
            self.counters.receives += 1;
            self.counters.received_bytes += count as u64;
        }
        match state {
            State::Filling { len, filled } if filled + count == PRODUCE_HEAD_LEN + len => {
                self.whole(slot, buffer, len, host);
            }
            State::Filling { len, filled } => self.fill(slot, buffer, len, filled + count, host),
            // Cancelled because nothing came for long.
            State::Ahead { filled: 0, .. } if count == 0 => {}
            State::Ahead { predicted, filled } => {
                self.look_at_head(slot, buffer, predicted, filled + count, host);
            }
            other => unreachable!("a direct receive ended in {other:?}"),
        }
    }

    /// Gives a whole frame to its session.
    pub(super) fn take_direct<H: Host>(&mut self, slot: u32, frame: DirectFrame<PoolBuffer>, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        let key = connection.key;
        let len = frame.payload_len;
        let taken = connection.session.receive_direct(frame, &mut host.shards_for(key));
        match taken {
            Ok(input) => {
                if input == Input::Open {
                    self.counters.direct_batches += 1;
                    self.receive_ahead(slot, len, host);
                }
                self.after_input(slot, input, host);
            }
            Err(frame) => {
                let input = connection.session.input();
                self.direct_held += frame.buffer.len();
                connection.direct.state = State::Held(frame);
                self.after_input(slot, input, host);
            }
        }
    }

    /// Lets go of a frame that waits for its shard.
    pub(super) fn drop_held(&mut self, slot: u32) {
        let connection = self.slots[slot as usize].get();
        if let Some(frame) = connection.direct.take_held() {
            self.direct_held -= frame.buffer.len();
        }
    }

    /// Looks whether memory is kept ready for a connection that sends nothing.
    pub(super) fn check_direct<H: Host>(&mut self, slot: u32, now: u64, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        connection.direct_timer = false;
        let (State::Ahead { filled: 0, .. }, Receive::Direct(op)) =
            (&connection.direct.state, connection.receive)
        else {
            return;
        };
        if connection.direct.posted_us + IDLE_US <= now {
            host.ring().cancel(op);
        } else {
            connection.direct_timer = true;
            let due = connection.direct.posted_us + IDLE_US;
            self.timers.push(due, connection.key, Timer::DirectIdle);
        }
    }

    /// Since when the rest of a batch is waited for.
    pub(super) fn half_since(connection: &Connection) -> Option<u64> {
        let is_half = matches!(connection.direct.state, State::Filling { .. });
        (is_half && !connection.session.is_closing()).then_some(connection.direct.posted_us)
    }

    /// Whether a frame was begun that is received directly.
    pub(super) fn is_half_direct(connection: &Connection) -> bool {
        match connection.direct.state {
            State::Ahead { filled, .. } => filled > 0,
            State::Filling { .. } => true,
            _ => false,
        }
    }

    /// Memory for a batch of `len` bytes, within the bound for such memory.
    fn carve(&mut self, len: usize) -> Option<PoolBuffer> {
        let bytes = buffer_len(len);
        if self.direct_held + bytes > self.config.max_direct {
            return None;
        }
        self.carver.carve(&mut self.pool, bytes)
    }

    /// Receives the next frame: into memory for a batch as long as the last
    /// one, or only its head if that has not come true lately.
    fn receive_ahead<H: Host>(&mut self, slot: u32, len: usize, host: &mut H) {
        let direct = &mut self.slots[slot as usize].get().direct;
        if std::mem::replace(&mut direct.last_len, len) == len {
            direct.misses = direct.misses.saturating_sub(1);
        }
        let predicted = if direct.misses < MAX_MISSES { len } else { 0 };
        if let Some(buffer) = self.carve(predicted) {
            self.post_ahead(slot, buffer, predicted, 0, host);
        }
    }

    fn post_ahead<H: Host>(
        &mut self,
        slot: u32,
        buffer: PoolBuffer,
        predicted: usize,
        filled: usize,
        host: &mut H,
    ) {
        let now = host.now().mono_us;
        let connection = self.slots[slot as usize].get();
        let key = connection.key;
        connection.direct.state = State::Ahead { predicted, filled };
        if filled > 0 {
            self.watch_frame(slot, host);
        }
        self.post(slot, buffer, START + filled..BLOCK_LEN + predicted, 0, host);
        let connection = self.slots[slot as usize].get();
        if !connection.direct_timer {
            connection.direct_timer = true;
            self.timers.push(now + IDLE_US, key, Timer::DirectIdle);
        }
    }

    fn fill<H: Host>(&mut self, slot: u32, buffer: PoolBuffer, len: usize, filled: usize, host: &mut H) {
        self.slots[slot as usize].get().direct.state = State::Filling { len, filled };
        self.watch_frame(slot, host);
        self.post(slot, buffer, START + filled..BLOCK_LEN + len, libc::MSG_WAITALL, host);
    }

    fn post<H: Host>(
        &mut self,
        slot: u32,
        buffer: PoolBuffer,
        range: std::ops::Range<usize>,
        flags: i32,
        host: &mut H,
    ) {
        self.direct_held += buffer.len();
        let now = host.now().mono_us;
        let connection = self.slots[slot as usize].get();
        connection.direct.posted_us = now;
        let (target, token) = (connection.target(), Op::Direct.token(connection.key));
        let op = host.ring().recv(token, target, buffer, range, flags);
        connection.receive = Receive::Direct(op);
    }

    /// The frame is there: its memory ends in zeros.
    fn whole<H: Host>(&mut self, slot: u32, mut buffer: PoolBuffer, len: usize, host: &mut H) {
        buffer[BLOCK_LEN + len..].fill(0);
        self.take_direct(slot, DirectFrame { buffer, payload_len: len }, host);
    }

    /// Compares what came with what was predicted.
    fn look_at_head<H: Host>(
        &mut self,
        slot: u32,
        mut buffer: PoolBuffer,
        predicted: usize,
        filled: usize,
        host: &mut H,
    ) {
        let bytes = &buffer[START..START + filled];
        let header = match FrameHeader::decode(bytes, MAX_FRAME_LEN) {
            Ok(None) if filled < FRAME_HEADER_LEN => {
                self.post_ahead(slot, buffer, predicted, filled, host);
                return;
            }
            Ok(Some(header)) if is_large_produce(&header, self.session_config.direct_threshold) => header,
            // The session says what is wrong, or takes what is small.
            _ => return self.missed(slot, &buffer, filled, host),
        };
        let len = header.payload_len as usize;
        if len == predicted && filled == PRODUCE_HEAD_LEN + len {
            self.whole(slot, buffer, len, host);
        } else if buffer_len(len) <= buffer.len() && filled <= PRODUCE_HEAD_LEN + len {
            // Only bytes of this frame have come, and it fits.
            drop(buffer.split_off(buffer_len(len)));
            if filled == PRODUCE_HEAD_LEN + len {
                self.whole(slot, buffer, len, host);
            } else {
                self.fill(slot, buffer, len, filled, host);
            }
        } else if filled <= PRODUCE_HEAD_LEN + len
            && let Some(mut larger) = self.carve(len)
        {
            larger[START..START + filled].copy_from_slice(&buffer[START..START + filled]);
            self.miss(slot, filled.saturating_sub(PRODUCE_HEAD_LEN));
            self.fill(slot, larger, len, filled, host);
        } else {
            self.missed(slot, &buffer, filled, host);
        }
    }

    /// Another length came than predicted, and `copied` bytes of payload had to
    /// be copied for it. A head alone predicts nothing.
    fn miss(&mut self, slot: u32, copied: usize) {
        if copied > 0 {
            self.counters.direct_misses += 1;
            let direct = &mut self.slots[slot as usize].get().direct;
            direct.misses = (direct.misses + 1).min(MAX_MISSES + 1);
            count_copied(&self.session_config, copied);
        }
    }

    /// Another frame came than predicted: what is there goes the way of all
    /// other bytes.
    fn missed<H: Host>(&mut self, slot: u32, buffer: &PoolBuffer, filled: usize, host: &mut H) {
        self.miss(slot, filled.saturating_sub(PRODUCE_HEAD_LEN));
        let connection = self.slots[slot as usize].get();
        let key = connection.key;
        let bytes = &buffer[START..START + filled];
        let input = connection.session.receive(bytes, &mut host.shards_for(key));
        self.after_input(slot, input, host);
    }
}

fn is_large_produce(header: &FrameHeader, threshold: usize) -> bool {
    header.opcode == Opcode::Produce as u8
        && !header.is_response
        && header.head_len() == PRODUCE_HEAD_LEN
        && header.payload_len as usize >= threshold
}
