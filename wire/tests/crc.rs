//! CRC32C: the published values, and the opinion of both implementations that it
//! chooses from.

use proptest::prelude::*;
use ringbolt_wire::{crc32c, crc32c_append};

#[test]
fn published_values_are_met() {
    // RFC 3720, B.4, and the check value of the CRC catalogue.
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(&[]), 0);
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    let rising: Vec<u8> = (0..32).collect();
    assert_eq!(crc32c(&rising), 0x46dd_794e);
}

/// Every length of small input, at every alignment within 16 bytes.
#[test]
fn every_length_and_alignment_agrees_with_both() {
    let bytes: Vec<u8> = (0..2048_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for start in 0..16 {
        for len in 0..1200 {
            let part = &bytes[start..start + len];
            let both = (::crc32c::crc32c(part), crc_fast::crc32_iscsi(part));
            assert_eq!((crc32c(part), crc32c(part)), both, "{len} bytes from {start}");
        }
    }
}

/// Around the lengths at which implementations change their way for large input, and
/// up to the longest batch.
#[test]
fn large_input_agrees_with_both() {
    let bytes: Vec<u8> =
        (0..(1 << 20) + 100_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    for near in [768, 1536, 8192, 24_576, 49_152, 65_536, 262_144, 1 << 20] {
        for len in near - 9..near + 9 {
            let part = &bytes[len % 8..][..len];
            let both = (::crc32c::crc32c(part), crc_fast::crc32_iscsi(part));
            assert_eq!((crc32c(part), crc32c(part)), both, "{len} bytes");
            let (a, b) = part.split_at(len / 3);
            assert_eq!(crc32c_append(crc32c(a), b), both.0, "{len} bytes in two pieces");
        }
    }
}

proptest! {
    #[test]
    fn a_crc_taken_in_pieces_is_the_whole_ones(
        bytes in proptest::collection::vec(any::<u8>(), 0..20_000),
        cut in any::<prop::sample::Index>(),
    ) {
        let whole = crc32c(&bytes);
        prop_assert_eq!(whole, ::crc32c::crc32c(&bytes));
        prop_assert_eq!(whole, crc_fast::crc32_iscsi(&bytes));
        let (a, b) = bytes.split_at(cut.index(bytes.len() + 1));
        prop_assert_eq!(crc32c_append(crc32c(a), b), whole);
        prop_assert_eq!(crc32c_append(0, &bytes), whole);
    }
}
