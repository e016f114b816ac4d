//! The superblock of a data directory: whose it is, how it is divided, and how
//! often it was opened.
//!
//! A file of two blocks, written in turn: a write that is torn by a power cut
//! leaves the other one, which is the state before it.

use ringbolt_wire::{ShardId, crc32c};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::LogId;
use crate::limits::{BLOCK_LEN, MAX_SEGMENT_LEN, MAX_SHARDS, MIN_SEGMENT_LEN, PAGE_LEN};

/// Version of the data directory's format that this broker writes and reads.
pub const FORMAT: u32 = 2;

/// Length of the file in bytes.
pub const SUPERBLOCK_LEN: usize = 2 * BLOCK_LEN;

const MAGIC: [u8; 4] = *b"RBSB";

/// One block as it lies on disk, little-endian, without padding. In every
/// version the first 12 bytes mean the same, and the CRC covers the whole block
/// behind it.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSuperblock {
    magic: [u8; 4],
    /// CRC32C of the rest of the block.
    crc: U32,
    format: U32,
    shards: U16,
    reserved: U16,
    broker_id: [u8; 16],
    sequence: U64,
    boot_count: U64,
    segment_len: U64,
    created_us: U64,
    padding: [u8; BLOCK_LEN - 64],
}

const _: () = assert!(size_of::<RawSuperblock>() == BLOCK_LEN);
const CRC_START: usize = std::mem::offset_of!(RawSuperblock, format);
const _: () = assert!(CRC_START == 8);

/// What a superblock says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Identity of the broker, unique among all data directories.
    pub broker_id: [u8; 16],
    /// Number of shards, from 1; fixed when the directory is made.
    pub shards: u16,
    /// Length of every segment in bytes; fixed as well.
    pub segment_len: u64,
    /// How often the directory was opened for serving.
    pub boot_count: u64,
    /// Rises with each write of the superblock; its lowest bit says into which
    /// of the two blocks.
    pub sequence: u64,
    /// When the directory was made, µs since 1970 UTC.
    pub created_us: u64,
}

/// Why a superblock cannot be used.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum SuperblockError {
    /// Written by another version of Ringbolt.
    #[error(
        "the data has format {found}, this version of Ringbolt reads format {FORMAT}: use the version that \
         wrote it, or give a new folder"
    )]
    Format {
        /// As stored.
        found: u32,
    },
    /// Not two blocks long.
    #[error("it is {found} bytes long instead of {SUPERBLOCK_LEN}")]
    Length {
        /// Length of the file in bytes.
        found: usize,
    },
    /// Neither block is whole.
    #[error("neither of its two copies is whole (at byte 0: {first}; at byte {BLOCK_LEN}: {second})")]
    Damaged {
        /// What is wrong with the first.
        first: SlotFault,
        /// What is wrong with the second.
        second: SlotFault,
    },
    /// Both blocks are whole and speak of two directories.
    #[error("its two copies are of different brokers")]
    Mixed,
}

/// Why one of the two blocks is not used.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotFault {
    /// Nothing was ever written there.
    #[error("empty")]
    Empty,
    /// Something else than a superblock.
    #[error("no superblock")]
    Magic,
    /// A bit is wrong, or the write was torn.
    #[error("CRC {computed:#010x} instead of {found:#010x}")]
    Crc {
        /// As stored.
        found: u32,
        /// As computed.
        computed: u32,
    },
    /// The CRC is right and a value cannot be.
    #[error("{0} out of range")]
    Range(&'static str),
}

impl Superblock {
    /// The first superblock of a new directory. Refuses values out of the range
    /// that [`crate::limits`] gives for them.
    pub fn new(
        broker_id: [u8; 16],
        shards: u16,
        segment_len: u64,
        created_us: u64,
    ) -> Result<Superblock, SlotFault> {
        let new = Superblock { broker_id, shards, segment_len, boot_count: 0, sequence: 0, created_us };
        new.range_fault().map_or(Ok(new), Err)
    }

    /// The superblock after one more start.
    pub fn next_boot(&self) -> Superblock {
        Superblock { boot_count: self.boot_count + 1, sequence: self.sequence + 1, ..*self }
    }

    /// Identity of one shard's log: the broker's, with the shard's number mixed
    /// into its last two bytes.
    pub fn log_id(&self, shard: ShardId) -> LogId {
        let mut id = self.broker_id;
        let [high, low] = shard.0.to_be_bytes();
        id[14] ^= high;
        id[15] ^= low;
        LogId(id)
    }

    /// Where in the file this superblock goes, in bytes.
    pub fn position(&self) -> u64 {
        self.sequence % 2 * BLOCK_LEN as u64
    }

    /// The block to be written at [`Superblock::position`].
    pub fn encode(&self) -> Box<[u8; BLOCK_LEN]> {
        let mut raw = RawSuperblock::new_zeroed();
        raw.magic = MAGIC;
        raw.format = U32::new(FORMAT);
        raw.shards = U16::new(self.shards);
        raw.broker_id = self.broker_id;
        raw.sequence = U64::new(self.sequence);
        raw.boot_count = U64::new(self.boot_count);
        raw.segment_len = U64::new(self.segment_len);
        raw.created_us = U64::new(self.created_us);
        raw.crc = U32::new(crc32c(&raw.as_bytes()[CRC_START..]));
        let mut block = Box::new([0; BLOCK_LEN]);
        block.copy_from_slice(raw.as_bytes());
        block
    }

    /// The newest superblock in a file's contents.
    pub fn decode(file: &[u8]) -> Result<Superblock, SuperblockError> {
        if file.len() != SUPERBLOCK_LEN {
            return Err(SuperblockError::Length { found: file.len() });
        }
        let (first, second) = file.split_at(BLOCK_LEN);
        match (decode_slot(first)?, decode_slot(second)?) {
            (Ok(a), Ok(b)) => {
                let same = |s: &Superblock| (s.broker_id, s.shards, s.segment_len, s.created_us);
                if same(&a) != same(&b) {
                    return Err(SuperblockError::Mixed);
                }
                Ok(if a.sequence > b.sequence { a } else { b })
            }
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
            (Err(first), Err(second)) => Err(SuperblockError::Damaged { first, second }),
        }
    }

    fn range_fault(&self) -> Option<SlotFault> {
        let segment = MIN_SEGMENT_LEN..=MAX_SEGMENT_LEN;
        if self.shards == 0 || self.shards > MAX_SHARDS {
            Some(SlotFault::Range("number of shards"))
        } else if !segment.contains(&self.segment_len) || !self.segment_len.is_multiple_of(PAGE_LEN as u64) {
            Some(SlotFault::Range("length of a segment"))
        } else {
            None
        }
    }
}

/// The outer error is one that the other block cannot heal.
fn decode_slot(block: &[u8]) -> Result<Result<Superblock, SlotFault>, SuperblockError> {
    let raw = RawSuperblock::ref_from_bytes(block).expect("half of SUPERBLOCK_LEN is a block");
    if block.iter().all(|&byte| byte == 0) {
        return Ok(Err(SlotFault::Empty));
    }
    if raw.magic != MAGIC {
        return Ok(Err(SlotFault::Magic));
    }
    let (found, computed) = (raw.crc.get(), crc32c(&block[CRC_START..]));
    if found != computed {
        return Ok(Err(SlotFault::Crc { found, computed }));
    }
    if raw.format.get() != FORMAT {
        return Err(SuperblockError::Format { found: raw.format.get() });
    }
    let superblock = Superblock {
        broker_id: raw.broker_id,
        shards: raw.shards.get(),
        segment_len: raw.segment_len.get(),
        boot_count: raw.boot_count.get(),
        sequence: raw.sequence.get(),
        created_us: raw.created_us.get(),
    };
    Ok(superblock.range_fault().map_or(Ok(superblock), Err))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn first() -> Superblock {
        Superblock::new([7; 16], 3, MIN_SEGMENT_LEN, 1_700_000_000_000_000).unwrap()
    }

    fn file_of(slots: [Option<&Superblock>; 2]) -> Vec<u8> {
        let mut file = vec![0; SUPERBLOCK_LEN];
        for (place, slot) in slots.into_iter().enumerate() {
            if let Some(slot) = slot {
                assert_eq!(slot.position() as usize, place * BLOCK_LEN);
                file[place * BLOCK_LEN..][..BLOCK_LEN].copy_from_slice(&slot.encode()[..]);
            }
        }
        file
    }

    #[test]
    fn writes_go_to_the_two_blocks_in_turn_and_the_newest_counts() {
        let zero = first();
        let one = zero.next_boot();
        let two = one.next_boot();
        assert_eq!((zero.position(), one.position(), two.position()), (0, BLOCK_LEN as u64, 0));
        assert_eq!(two.boot_count, 2);
        assert_eq!(Superblock::decode(&file_of([Some(&zero), None])), Ok(zero));
        assert_eq!(Superblock::decode(&file_of([Some(&zero), Some(&one)])), Ok(one));
        assert_eq!(Superblock::decode(&file_of([Some(&two), Some(&one)])), Ok(two));
    }

    proptest! {
        /// A power cut leaves any mixture of old and new sectors in one block.
        #[test]
        fn a_torn_write_leaves_the_state_before_it(boots in 1u64..20, sectors in prop::collection::vec(any::<bool>(), 8)) {
            let mut before = first();
            let mut file = file_of([Some(&before), None]);
            for _ in 0..boots {
                let next = before.next_boot();
                let at = next.position() as usize;
                let new = next.encode();
                let mut torn = file.clone();
                for (sector, &written) in sectors.iter().enumerate() {
                    let range = sector * 512..(sector + 1) * 512;
                    if written {
                        torn[at..][range.clone()].copy_from_slice(&new[range]);
                    }
                }
                let all = torn[at..at + BLOCK_LEN] == new[..];
                prop_assert_eq!(Superblock::decode(&torn), Ok(if all { next } else { before }));
                file[at..at + BLOCK_LEN].copy_from_slice(&new[..]);
                before = next;
            }
        }

        #[test]
        fn a_flipped_bit_is_never_believed(byte in 0..BLOCK_LEN, bit in 0..8) {
            let zero = first();
            let mut file = file_of([Some(&zero), None]);
            file[byte] ^= 1u8 << bit;
            let damaged = matches!(Superblock::decode(&file), Err(SuperblockError::Damaged { second: SlotFault::Empty, .. }));
            prop_assert!(damaged);
            // The other copy heals it.
            let one = zero.next_boot();
            let mut file = file_of([Some(&zero), Some(&one)]);
            file[byte] ^= 1u8 << bit;
            prop_assert_eq!(Superblock::decode(&file), Ok(one));
        }

        #[test]
        fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), place in 0..SUPERBLOCK_LEN - 200) {
            let mut file = vec![0; SUPERBLOCK_LEN];
            file[place..place + bytes.len()].copy_from_slice(&bytes);
            prop_assert!(Superblock::decode(&file).is_err());
        }
    }

    #[test]
    fn another_format_is_named_even_beside_a_good_copy() {
        let mut file = file_of([Some(&first()), Some(&first().next_boot())]);
        file[8] = 9;
        let crc = crc32c(&file[CRC_START..BLOCK_LEN]);
        file[4..8].copy_from_slice(&crc.to_le_bytes());
        let error = Superblock::decode(&file).unwrap_err();
        assert_eq!(error, SuperblockError::Format { found: 9 });
        assert_eq!(
            error.to_string(),
            "the data has format 9, this version of Ringbolt reads format 2: use the version that wrote it, or give a new folder"
        );
    }

    #[test]
    fn a_file_of_another_length_and_copies_of_two_brokers_are_refused() {
        let file = file_of([Some(&first()), None]);
        assert_eq!(Superblock::decode(&file[..5000]), Err(SuperblockError::Length { found: 5000 }));
        let other = Superblock::new([8; 16], 3, MIN_SEGMENT_LEN, 0).unwrap().next_boot();
        assert_eq!(Superblock::decode(&file_of([Some(&first()), Some(&other)])), Err(SuperblockError::Mixed));
    }

    #[test]
    fn values_out_of_range_are_refused_though_the_crc_is_right() {
        for wrong in [
            Superblock { shards: 0, ..first() },
            Superblock { shards: MAX_SHARDS + 1, ..first() },
            Superblock { segment_len: MIN_SEGMENT_LEN + 1, ..first() },
            Superblock { segment_len: 2 * MAX_SEGMENT_LEN, ..first() },
        ] {
            let error = Superblock::decode(&file_of([Some(&wrong), None])).unwrap_err();
            let range = matches!(error, SuperblockError::Damaged { first: SlotFault::Range(_), .. });
            assert!(range, "{error}");
        }
    }

    #[test]
    fn each_shard_has_a_log_of_its_own() {
        let mut ids: Vec<_> = (0..MAX_SHARDS).map(|shard| first().log_id(ShardId(shard)).0).collect();
        assert_eq!(ids[0], first().broker_id);
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), usize::from(MAX_SHARDS));
    }
}
