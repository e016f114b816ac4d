//! What stands in a message's value: random filler, then a trailer that says
//! who sent it, as which number, and a CRC32C over both.
//!
//! The trailer stands last so that the CRC of the filler, which is the same for
//! many messages, is computed once and continued over the 36 bytes that differ:
//! making a message costs a copy of its filler and the CRC of its trailer.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a trailer, and so the least size of a value.
pub const TRAILER_LEN: usize = size_of::<Trailer>();

/// Fillers in use. More than one, so that a value whose bytes were mixed up
/// with its neighbour's does not pass unseen.
const VARIANTS: usize = 8;
/// Bytes between the starts of two fillers within the random block.
const VARIANT_STEP: usize = 64;

const MAGIC: [u8; 4] = *b"RBLG";

/// The last bytes of a value as they travel, little-endian, without padding.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Trailer {
    magic: [u8; 4],
    producer: U32,
    run: U64,
    sequence: U64,
    sent_ns: U64,
    partition: U32,
    /// CRC32C of the value up to here.
    crc: U32,
}

const _: () = assert!(TRAILER_LEN == 40);
const CRC_AT: usize = std::mem::offset_of!(Trailer, crc);

/// What a message says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stamp {
    /// Random number of the run that made it.
    pub run: u64,
    /// Index of the producer within the run, from 0.
    pub producer: u32,
    /// Partition that it was made for.
    pub partition: u32,
    /// Sequence within its stream.
    pub sequence: u64,
    /// When it was to be sent: nanoseconds on the run's clock.
    pub sent_ns: u64,
}

/// Why a value is not a message of a load generator, or a damaged one.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum PayloadError {
    /// Shorter than a trailer, or without its magic: made by somebody else, or
    /// damaged just there.
    #[error("the value carries no load generator's trailer")]
    NoTrailer,
    /// The checksum does not match.
    #[error("the value's checksum is {found:#010x}, computed {computed:#010x}")]
    Checksum {
        /// As sent.
        found: u32,
        /// As computed.
        computed: u32,
    },
}

/// The random part of a run's values.
pub struct Filler {
    block: Vec<u8>,
    len: usize,
    crcs: [u32; VARIANTS],
}

impl Filler {
    /// Filler for values of `value_len` bytes, at least [`TRAILER_LEN`]; the
    /// same seed gives the same bytes.
    pub fn new(seed: u64, value_len: usize) -> Filler {
        assert!(value_len >= TRAILER_LEN, "a value holds at least its trailer");
        let len = value_len - TRAILER_LEN;
        let mut state = seed;
        let block: Vec<u8> = std::iter::repeat_with(|| splitmix64(&mut state).to_le_bytes())
            .flatten()
            .take(len + (VARIANTS - 1) * VARIANT_STEP)
            .collect();
        let crcs = std::array::from_fn(|v| ringbolt_wire::crc32c(&block[v * VARIANT_STEP..][..len]));
        Filler { block, len, crcs }
    }

    /// Bytes of a value, its trailer included.
    pub fn value_len(&self) -> usize {
        self.len + TRAILER_LEN
    }

    /// Bytes of the filler alone.
    pub fn filler_len(&self) -> usize {
        self.len
    }

    /// One of the fillers, and its CRC32C; any number names one.
    #[inline]
    pub fn get(&self, number: u64) -> (&[u8], u32) {
        let v = number as usize % VARIANTS;
        (&self.block[v * VARIANT_STEP..][..self.len], self.crcs[v])
    }
}

impl Stamp {
    /// The trailer that follows a filler with this CRC.
    #[inline]
    pub fn trailer(&self, filler_crc: u32) -> [u8; TRAILER_LEN] {
        // In words: the CRC reads 8 bytes at a time, and a load that spans
        // narrower stores waits for them.
        let mut words = [
            u64::from(u32::from_le_bytes(MAGIC)) | u64::from(self.producer) << 32,
            self.run,
            self.sequence,
            self.sent_ns,
            u64::from(self.partition),
        ];
        let unsealed = words.map(U64::new);
        let crc = ringbolt_wire::crc32c_append(filler_crc, &unsealed.as_bytes()[..CRC_AT]);
        words[4] |= u64::from(crc) << 32;
        zerocopy::transmute!(words.map(U64::new))
    }

    /// Reads and checks a value.
    #[inline]
    pub fn check(value: &[u8]) -> Result<Stamp, PayloadError> {
        let Ok((_, trailer)) = Trailer::ref_from_suffix(value) else { return Err(PayloadError::NoTrailer) };
        if trailer.magic != MAGIC {
            return Err(PayloadError::NoTrailer);
        }
        let computed = ringbolt_wire::crc32c(&value[..value.len() - TRAILER_LEN + CRC_AT]);
        let found = trailer.crc.get();
        if computed != found {
            return Err(PayloadError::Checksum { found, computed });
        }
        Ok(Stamp {
            run: trailer.run.get(),
            producer: trailer.producer.get(),
            partition: trailer.partition.get(),
            sequence: trailer.sequence.get(),
            sent_ns: trailer.sent_ns.get(),
        })
    }
}

/// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators"
/// (2014).
pub(crate) fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(stamp: Stamp, len: usize) -> Vec<u8> {
        let filler = Filler::new(7, len);
        let (bytes, crc) = filler.get(stamp.sequence);
        [bytes, &stamp.trailer(crc)].concat()
    }

    #[test]
    fn a_value_says_who_sent_it_whatever_its_size() {
        for len in [TRAILER_LEN, TRAILER_LEN + 1, 1024, 70_000] {
            let stamp = Stamp { run: 3, producer: 4, partition: 5, sequence: 11, sent_ns: 99 };
            let value = value(stamp, len);
            assert_eq!(value.len(), len);
            assert_eq!(Stamp::check(&value), Ok(stamp));
        }
    }

    #[test]
    fn any_flipped_bit_is_seen() {
        let good = value(Stamp { sequence: 5, ..Stamp::default() }, 200);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Stamp::check(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_strangers_value_is_not_taken_for_ours() {
        assert_eq!(Stamp::check(b""), Err(PayloadError::NoTrailer));
        assert_eq!(Stamp::check(&[0; 100]), Err(PayloadError::NoTrailer));
    }
}
