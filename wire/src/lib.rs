//! Ringbolt's wire format: frames, messages and record batches, as bytes and
//! as types.
//!
//! This crate does no I/O, has no clock and no randomness, and allocates only
//! what a caller's values need: no length read from the wire ever sizes an
//! allocation before it was checked against the bytes that are there.
//!
//! `docs/protocol.md` is the specification; this crate and that file are kept
//! equal by golden-frame tests.

pub mod batch;
pub mod code;
pub mod frame;
pub mod ids;
pub mod message;
mod reader;

pub use batch::{BatchBuilder, BatchError, BatchHeader, BatchView, Record, RecordView};
pub use code::{ErrorCode, Outcome};
pub use frame::{FrameError, FrameHeader, Opcode};
pub use ids::{Epoch, Offset, PartitionId, ProducerId, Sequence, ShardId, TopicId};
pub use message::{MessageError, Request, Response};

/// The protocol version that this crate speaks.
pub const PROTOCOL_VERSION: u8 = 1;

/// The port that a broker listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 7411;

/// CRC32C (Castagnoli) of `bytes`, as iSCSI and ext4 compute it.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Continues a CRC32C: `crc32c_append(crc32c(a), b) == crc32c(a ++ b)`.
#[inline]
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}
