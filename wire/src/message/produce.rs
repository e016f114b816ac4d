//! The two messages of which there are a million a second: head and answer of a
//! produce request, in layouts that need no buffer and no loop.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

use super::{MessageError, check_reserved, ensure, flag, read_fixed};
use crate::crc32c;
use crate::frame::{CRC_START, FRAME_HEADER_LEN, Opcode, header_words, seal_words};
use crate::ids::Offset;

/// Bytes of a produce request's meta.
pub const PRODUCE_META_LEN: usize = size_of::<RawProduce>();
/// Bytes of a produce request before its record batch: frame header and meta.
pub const PRODUCE_HEAD_LEN: usize = FRAME_HEADER_LEN + PRODUCE_META_LEN;
/// Bytes of a produce answer's meta.
pub const PRODUCE_ACK_LEN: usize = size_of::<RawProduceAck>();

/// Bytes of the whole frame that acknowledges a batch.
pub const PRODUCE_ACK_FRAME_LEN: usize = FRAME_HEADER_LEN + PRODUCE_ACK_LEN;

const _: () = assert!(PRODUCE_HEAD_LEN == 40 && PRODUCE_ACK_LEN == 24);

/// Answer to a produce request: the batch is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProduceAck {
    /// Offset of the batch's first record; [`Offset::UNKNOWN`] for a duplicate
    /// so old that only the fact of its durability is remembered.
    pub base_offset: Offset,
    /// When the broker took the batch into a commit, µs since 1970 UTC; 0 for
    /// a duplicate.
    pub commit_time_us: u64,
    /// On how many disks it is, at least 1; 1 is `local`.
    pub copies: u8,
    /// The batch had been durable before; this request added nothing.
    pub duplicate: bool,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawProduce {
    min_copies: u8,
    reserved: [u8; 7],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawProduceAck {
    base_offset: U64,
    commit_time_us: U64,
    copies: u8,
    duplicate: u8,
    reserved: [u8; 6],
}

/// Header and meta of a produce request: the bytes to send before the record
/// batch of `batch_len` bytes. The same as
/// [`Request::Produce`](super::Request::Produce) encodes to, without a buffer.
#[inline]
pub fn produce_head(correlation: u64, min_copies: u8, batch_len: u32) -> [u8; PRODUCE_HEAD_LEN] {
    let meta_len = PRODUCE_META_LEN as u32;
    let [a, b, c, d] = header_words(Opcode::Produce as u8, false, 0, correlation, meta_len, batch_len);
    transmute!(seal_words([a, b, c, d, u64::from(min_copies)]))
}

pub(super) fn put_produce(out: &mut Vec<u8>, min_copies: u8) {
    out.extend_from_slice(RawProduce { min_copies, reserved: [0; 7] }.as_bytes());
}

/// The `min_copies` of a produce request.
#[inline]
pub(super) fn read_produce(meta: &[u8]) -> Result<u8, MessageError> {
    let raw: &RawProduce = read_fixed(meta)?;
    check_reserved(&raw.reserved)?;
    Ok(raw.min_copies)
}

impl ProduceAck {
    #[inline]
    fn to_words(self) -> [u64; PRODUCE_ACK_LEN / 8] {
        let last = u64::from(self.copies) | u64::from(self.duplicate) << 8;
        [self.base_offset.0, self.commit_time_us, last]
    }

    pub(super) fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.to_words().map(U64::new).as_bytes());
    }

    #[inline]
    pub(super) fn read(meta: &[u8]) -> Result<ProduceAck, MessageError> {
        let raw: &RawProduceAck = read_fixed(meta)?;
        ensure(raw.copies > 0, "copies", 0)?;
        check_reserved(&raw.reserved)?;
        Ok(ProduceAck {
            base_offset: Offset(raw.base_offset.get()),
            commit_time_us: raw.commit_time_us.get(),
            copies: raw.copies,
            duplicate: flag("duplicate", raw.duplicate)?,
        })
    }

    /// Appends the response frame of this acknowledgement to `out`. Allocates
    /// nothing of its own: this is the frame that a broker sends most.
    #[inline]
    pub fn encode(self, out: &mut Vec<u8>, correlation: u64) {
        let meta_len = PRODUCE_ACK_LEN as u32;
        let [a, b, c, d] = header_words(Opcode::Produce as u8, true, 0, correlation, meta_len, 0);
        let [e, f, g] = self.to_words();
        out.extend_from_slice(seal_words([a, b, c, d, e, f, g]).as_bytes());
    }

    /// The acknowledgement at the start of `bytes`, with its correlation: what
    /// [`encode`](Self::encode) wrote, read without a step in between. `None` for
    /// whatever else stands there, an incomplete or damaged frame included; the
    /// general way ([`FrameHeader`](crate::FrameHeader) and
    /// [`Response::decode`](super::Response::decode)) then says what it is.
    #[inline]
    pub fn from_frame(bytes: &[u8]) -> Option<(u64, ProduceAck)> {
        let (frame, _) = bytes.split_first_chunk::<PRODUCE_ACK_FRAME_LEN>()?;
        let words: [U64; PRODUCE_ACK_FRAME_LEN / 8] = transmute!(*frame);
        let [a, b, c, correlation, e, f, g] = words.map(U64::get);
        let meta_len = PRODUCE_ACK_LEN as u32;
        let wanted = header_words(Opcode::Produce as u8, true, 0, correlation, meta_len, 0);
        let (copies, duplicate) = (g as u8, (g >> 8) as u8);
        let is_ack = u64::from(a as u32) == wanted[0]
            && [b, c] == wanted[1..3]
            && copies > 0
            && duplicate <= 1
            && g >> 16 == 0
            && crc32c(&frame[CRC_START..]) == (a >> 32) as u32;
        let ack = ProduceAck { base_offset: Offset(e), commit_time_us: f, copies, duplicate: duplicate == 1 };
        is_ack.then_some((correlation, ack))
    }
}
