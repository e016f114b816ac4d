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

pub use batch::{BatchBuilder, BatchError, BatchHeader, BatchView, Batches, Record, RecordView};
pub use code::{ErrorCode, Outcome};
pub use frame::{FrameError, FrameHeader, Opcode};
pub use ids::{Epoch, Offset, PartitionId, ProducerId, Sequence, ShardId, TopicId};
pub use message::{MessageError, Request, Response};

/// The protocol version that this crate speaks.
pub const PROTOCOL_VERSION: u8 = 1;

/// The port that a broker listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 7411;

/// CRC32C (Castagnoli) of `bytes`, as iSCSI and ext4 compute it.
///
/// Computed by the crate `crc-fast`, which folds with carry-less
/// multiplication beside the CRC instruction; the crate `crc32c`, which uses
/// the instruction alone, was the other candidate. Best of nine interleaved
/// runs on an AMD EPYC with AVX-512 (`cargo bench -p ringbolt-wire --bench crc`
/// repeats the comparison):
///
/// | input | `crc32c` 0.6.9 | `crc-fast` 1.10.0 | ratio |
/// |---|---|---|---|
/// | 36 B | 8.4 ns | 6.3 ns | 0.75 |
/// | 100 B | 11.9 ns | 8.7 ns | 0.73 |
/// | 1.2 KB | 75 ns | 25 ns | 0.33 |
/// | 256 KiB | 9,505 ns | 4,528 ns | 0.48 |
///
/// At a million 1 KiB records a second the difference is 5 % of a core for
/// every side that checks. `crc-fast` is kept by the people who need it in the
/// AWS SDK, is pure Rust without a build script, and brings `digest` and `spin`
/// with it; `crc32c` stays as the tests' second opinion.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// Continues a CRC32C: `crc32c_append(crc32c(a), b) == crc32c(a ++ b)`.
#[inline]
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    // A finished CRC32C is the register inverted.
    let mut digest =
        crc_fast::Digest::new_with_init_state(crc_fast::CrcAlgorithm::Crc32Iscsi, u64::from(!crc));
    digest.update(bytes);
    digest.finalize() as u32
}
