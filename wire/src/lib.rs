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
pub use ids::{ConsumerId, Epoch, GroupId, Offset, PartitionId, ProducerId, Sequence, ShardId, TopicId};
pub use message::{MessageError, Request, Response};

/// The protocol version that this crate speaks.
pub const PROTOCOL_VERSION: u8 = 1;

/// The port that a broker listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 7411;

/// CRC32C (Castagnoli) of `bytes`, as iSCSI and ext4 compute it.
///
/// Two crates share the work. `crc-fast` folds with carry-less multiplication
/// beside the CRC instruction, widely where the processor has AVX-512; `crc32c`
/// uses the instruction alone, on three streams. Times of each on an AMD EPYC, with
/// AVX-512 and in a virtual machine that hides it (`cargo bench -p ringbolt-wire
/// --bench crc` repeats the comparison):
///
/// | input | `crc-fast` 1.10.0, wide | `crc32c` 0.6.9, the same | `crc-fast`, not wide | `crc32c`, the same |
/// |---|---|---|---|---|
/// | 36 B | 6.3 ns | 8.4 ns | 6.6 ns | 11.1 ns |
/// | 100 B | 8.7 ns | 11.9 ns | 10.8 ns | 15.2 ns |
/// | 600 B | | | 66 ns | 73 ns |
/// | 800 B | | | 88 ns | 51 ns |
/// | 1.2 KB | 25 ns | 75 ns | 108 ns | 96 ns |
/// | 4 KiB | | | 295 ns | 243 ns |
/// | 256 KiB | 4,528 ns | 9,505 ns | 15,800 ns | 12,000 ns |
///
/// At a million 1 KiB records a second the right choice is worth 2 to 5 % of a core
/// for every side that checks; of the core that takes 256 KiB batches the CRC is a
/// fifth. Both crates are pure Rust; tests hold each against the other.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    if bytes.len() >= THREE_STREAMS && !folds_widely() {
        return crc32c::crc32c(bytes);
    }
    crc_fast::crc32_iscsi(bytes)
}

/// Continues a CRC32C: `crc32c_append(crc32c(a), b) == crc32c(a ++ b)`.
#[inline]
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    if bytes.len() >= THREE_STREAMS && !folds_widely() {
        return crc32c::crc32c_append(crc, bytes);
    }
    // A finished CRC32C is the register inverted.
    let mut digest =
        crc_fast::Digest::new_with_init_state(crc_fast::CrcAlgorithm::Crc32Iscsi, u64::from(!crc));
    digest.update(bytes);
    digest.finalize() as u32
}

/// Bytes from which on the crate `crc32c` works on three streams.
const THREE_STREAMS: usize = 768;

/// Whether `crc-fast` has its widest way here. Elsewhere than on x86 its ways are
/// taken for the better ones; where there is AVX-512 without VPCLMULQDQ, which was
/// not measured, they are not.
#[inline]
fn folds_widely() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("vpclmulqdq");
    #[cfg(not(target_arch = "x86_64"))]
    true
}
