//! Blocks and entries as bytes.
//!
//! A block is a header {magic, length, CRC32C of length and body} and a body of
//! whole entries. An entry is a tag and LEB128 numbers; sequences and offsets
//! are differences to what the stream's last entry of the same kind led to
//! expect, so that a steady stream costs 4 to 5 bytes an entry.

use ringbolt_wire::{Epoch, PartitionId, ProducerId, TopicId, crc32c, crc32c_append};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Entry, NO_OFFSET, RunInfo, StreamInfo};
use crate::varint::{get, get_delta, put, put_delta};

/// Bytes of a block's header.
pub(super) const BLOCK_HEADER_LEN: usize = size_of::<BlockHeader>();
/// Most bytes of a block's body; a block is closed well before.
pub(super) const MAX_BODY_LEN: usize = 1 << 20;
/// First bytes of every block.
pub(super) const MAGIC: [u8; 8] = *b"RBLEDGR1";

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct BlockHeader {
    magic: [u8; 8],
    length: U32,
    crc: U32,
}

const _: () = assert!(BLOCK_HEADER_LEN == 16);

/// Why bytes are not a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BadBlock {
    /// The bytes end before the block does.
    Short,
    /// Not what was written.
    Damaged(&'static str),
}

fn crc(length: U32, body: &[u8]) -> u32 {
    crc32c_append(crc32c(length.as_bytes()), body)
}

/// The header that goes before `body`.
pub(super) fn seal(body: &[u8]) -> [u8; BLOCK_HEADER_LEN] {
    assert!(body.len() <= MAX_BODY_LEN, "a block is closed before it is full");
    let length = U32::new(body.len() as u32);
    zerocopy::transmute!(BlockHeader { magic: MAGIC, length, crc: U32::new(crc(length, body)) })
}

/// The body of the block at the start of `bytes`.
pub(super) fn open(bytes: &[u8]) -> Result<&[u8], BadBlock> {
    let Ok((header, rest)) = BlockHeader::ref_from_prefix(bytes) else { return Err(BadBlock::Short) };
    if header.magic != MAGIC {
        return Err(BadBlock::Damaged("no block starts here"));
    }
    let len = header.length.get() as usize;
    if len > MAX_BODY_LEN {
        return Err(BadBlock::Damaged("the block's length is out of range"));
    }
    let body = rest.get(..len).ok_or(BadBlock::Short)?;
    if crc(header.length, body) != header.crc.get() {
        return Err(BadBlock::Damaged("the block's CRC does not match"));
    }
    Ok(body)
}

/// What the next entry of a stream is expected to say.
#[derive(Clone, Copy, Default)]
struct Cursor {
    sent: u64,
    acked: u64,
    offset: u64,
}

/// The state that both writer and reader carry from entry to entry.
#[derive(Default)]
pub(super) struct Codec {
    streams: Vec<Cursor>,
}

const RUN_STARTED: u8 = 1;
const STREAM_OPENED: u8 = 2;
const SENT: u8 = 3;
const ACKED: u8 = 4;
const ACKED_NO_OFFSET: u8 = 5;
const REFUSED: u8 = 6;
const UNKNOWN: u8 = 7;
const RUN_ENDED: u8 = 8;

impl Codec {
    /// Appends `entry`.
    ///
    /// # Panics
    /// If it names a stream that was not opened.
    pub fn encode(&mut self, out: &mut Vec<u8>, entry: &Entry) {
        match entry {
            Entry::RunStarted(info) => {
                self.streams.clear();
                let json = serde_json::to_vec(info).expect("strings and numbers are always JSON");
                out.push(RUN_STARTED);
                put(out, json.len() as u64);
                out.extend_from_slice(&json);
            }
            Entry::StreamOpened(s) => {
                out.push(STREAM_OPENED);
                let epoch = u64::from(s.epoch.0);
                let (topic, partition) = (u64::from(s.partition.topic.0), u64::from(s.partition.index));
                for v in [u64::from(s.index), topic, partition, s.producer.0, epoch, s.first_sequence] {
                    put(out, v);
                }
                self.opened(s);
            }
            Entry::Sent { stream, first, count } => {
                let cursor = &mut self.streams[*stream as usize];
                out.push(SENT);
                put(out, u64::from(*stream));
                put_delta(out, *first, cursor.sent);
                put(out, *count);
                cursor.sent = first.wrapping_add(*count);
            }
            Entry::Acked { stream, first, count, offset } => {
                let cursor = &mut self.streams[*stream as usize];
                out.push(if *offset == NO_OFFSET { ACKED_NO_OFFSET } else { ACKED });
                put(out, u64::from(*stream));
                put_delta(out, *first, cursor.acked);
                put(out, *count);
                cursor.acked = first.wrapping_add(*count);
                if *offset != NO_OFFSET {
                    put_delta(out, *offset, cursor.offset);
                    cursor.offset = offset.wrapping_add(*count);
                }
            }
            Entry::Refused { stream, first, count, code } => {
                out.push(REFUSED);
                for v in [u64::from(*stream), *first, *count, u64::from(*code)] {
                    put(out, v);
                }
            }
            Entry::Unknown { stream, first, count } => {
                out.push(UNKNOWN);
                for v in [u64::from(*stream), *first, *count] {
                    put(out, v);
                }
            }
            Entry::RunEnded => out.push(RUN_ENDED),
        }
    }

    fn opened(&mut self, stream: &StreamInfo) {
        let first = stream.first_sequence;
        self.streams.push(Cursor { sent: first, acked: first, offset: 0 });
    }

    /// Takes the entry at the start of `bytes` off; `None` if there is none
    /// that makes sense.
    pub fn decode(&mut self, bytes: &mut &[u8]) -> Option<Entry> {
        let (&tag, rest) = bytes.split_first()?;
        *bytes = rest;
        Some(match tag {
            RUN_STARTED => {
                let len = usize::try_from(get(bytes)?).ok()?;
                let (json, rest) = bytes.split_at_checked(len)?;
                *bytes = rest;
                self.streams.clear();
                Entry::RunStarted(Box::new(serde_json::from_slice::<RunInfo>(json).ok()?))
            }
            STREAM_OPENED => {
                let (index, topic) = (get_u32(bytes)?, TopicId(get_u32(bytes)?));
                let partition = PartitionId::new(topic, get_u32(bytes)?);
                let (producer, epoch) = (ProducerId(get(bytes)?), Epoch(get_u32(bytes)?));
                let info = StreamInfo { index, partition, producer, epoch, first_sequence: get(bytes)? };
                self.opened(&info);
                Entry::StreamOpened(info)
            }
            SENT => {
                let (stream, cursor) = self.stream(bytes)?;
                let (first, count) = (get_delta(bytes, cursor.sent)?, get(bytes)?);
                cursor.sent = first.wrapping_add(count);
                Entry::Sent { stream, first, count }
            }
            ACKED | ACKED_NO_OFFSET => {
                let (stream, cursor) = self.stream(bytes)?;
                let (first, count) = (get_delta(bytes, cursor.acked)?, get(bytes)?);
                cursor.acked = first.wrapping_add(count);
                let mut offset = NO_OFFSET;
                if tag == ACKED {
                    offset = get_delta(bytes, cursor.offset)?;
                    cursor.offset = offset.wrapping_add(count);
                }
                Entry::Acked { stream, first, count, offset }
            }
            REFUSED => {
                let (stream, _) = self.stream(bytes)?;
                let (first, count, code) = (get(bytes)?, get(bytes)?, u16::try_from(get(bytes)?).ok()?);
                Entry::Refused { stream, first, count, code }
            }
            UNKNOWN => {
                let (stream, _) = self.stream(bytes)?;
                Entry::Unknown { stream, first: get(bytes)?, count: get(bytes)? }
            }
            RUN_ENDED => Entry::RunEnded,
            _ => return None,
        })
    }

    fn stream(&mut self, bytes: &mut &[u8]) -> Option<(u32, &mut Cursor)> {
        let stream = get_u32(bytes)?;
        Some((stream, self.streams.get_mut(stream as usize)?))
    }
}

fn get_u32(bytes: &mut &[u8]) -> Option<u32> {
    u32::try_from(get(bytes)?).ok()
}
