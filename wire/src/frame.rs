//! Frames: a 32-byte header, `meta`, `payload`.
//!
//! The CRC covers header and meta. The payload, where there is one, is record
//! batches, and each of those carries its own CRC. Of the two fields that a
//! batch's CRC leaves to the broker, a fetch answer's meta repeats the offset.
//!
//! This module knows lengths and checksums, and nothing of what meta says.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

use crate::crc32c;

/// First four bytes of every frame: `RBLT`.
pub const FRAME_MAGIC: [u8; 4] = *b"RBLT";

/// Length of a frame header in bytes.
pub const FRAME_HEADER_LEN: usize = size_of::<RawFrameHeader>();

/// Version of the frame layout, in every frame's header. It stays the same
/// whatever message version a hello negotiates, since the hello itself needs a
/// frame.
pub const FRAME_VERSION: u8 = 1;

/// Most bytes of meta in a request: the longest, a fetch of
/// [`MAX_FETCH_PARTITIONS`](crate::message::MAX_FETCH_PARTITIONS), has 98,320.
/// Meta must be gathered in one piece before its CRC can be checked, so a
/// stranger does not get to fill a whole frame with it.
pub const MAX_REQUEST_META_LEN: u32 = 128 << 10;

/// Most bytes of meta in a response: 16 MiB is a topic of
/// [`MAX_PARTITIONS`](crate::message::MAX_PARTITIONS) described, or a list of
/// 60,000 topics of the longest names, with room to spare.
pub const MAX_META_LEN: u32 = 16 << 20;

/// The header as it travels, little-endian, without padding.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawFrameHeader {
    magic: [u8; 4],
    /// CRC32C from `version` to the end of meta.
    crc: U32,
    version: u8,
    opcode: u8,
    flags: U16,
    status: U16,
    reserved: U16,
    meta_len: U32,
    payload_len: U32,
    correlation: U64,
}

const _: () = assert!(FRAME_HEADER_LEN == 32);
const _: () = assert!(std::mem::offset_of!(RawFrameHeader, correlation) == 24);
/// The CRC covers the frame from here.
pub(crate) const CRC_START: usize = std::mem::offset_of!(RawFrameHeader, version);

const FLAG_RESPONSE: u16 = 1;

macro_rules! opcodes {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        /// What a frame asks for, or answers.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Opcode { $($(#[$doc])* $name = $value,)* }

        impl Opcode {
            /// Every opcode, in order of its number.
            pub const ALL: &'static [Opcode] = &[$(Opcode::$name,)*];

            /// The operation's name, as it stands in the protocol document.
            pub fn name(self) -> &'static str {
                match self { $(Opcode::$name => stringify!($name),)* }
            }

            /// The opcode with this number, if there is one.
            pub fn from_u8(value: u8) -> Option<Opcode> {
                match value {
                    $($value => Some(Opcode::$name),)*
                    _ => None,
                }
            }
        }
    };
}

opcodes! {
    /// Opens a connection: versions, features, limits.
    Hello = 1;
    /// Does nothing; answered in turn.
    Ping = 2;
    /// The broker's last word on a connection that it is about to close:
    /// a response with correlation 0 that no request asked for.
    Goodbye = 3;
    /// Creates a topic.
    CreateTopic = 16;
    /// Deletes a topic and its records.
    DeleteTopic = 17;
    /// Lists the topics.
    ListTopics = 18;
    /// Describes a topic and its partitions.
    DescribeTopic = 19;
    /// Appends one record batch.
    Produce = 32;
    /// Reads record batches from one or more partitions.
    Fetch = 33;
    /// Looks up an offset: earliest, end, or by time.
    Offsets = 34;
    /// Opens or resumes a producer on a partition.
    OpenProducer = 35;
    /// The broker's counters.
    Stats = 48;
    /// Creates a consumer group, or finds it.
    CreateGroup = 64;
    /// Deletes a consumer group.
    DeleteGroup = 65;
    /// Lists the consumer groups.
    ListGroups = 66;
    /// Describes a consumer group: how far it is, and why it gets nothing.
    DescribeGroup = 67;
    /// Sets a consumer group back, or forward.
    ResetGroup = 68;
    /// Attaches a consumer to a group: from here on it is sent records, as far
    /// as its credit goes.
    Attach = 72;
    /// Detaches a consumer: what it holds is given back.
    Detach = 73;
    /// Asks for records once, and waits for them.
    Receive = 74;
    /// Says what became of delivered records, and gives credit.
    Settle = 75;
    /// Records for an attached consumer: a response with the correlation of its
    /// `Attach`, of which there are many.
    Delivery = 76;
}

/// A frame's header, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Raw operation number; [`Opcode::from_u8`] tells whether it is known.
    pub opcode: u8,
    /// Whether this frame answers one.
    pub is_response: bool,
    /// 0 in a request; in a response 0 or the number of an
    /// [`ErrorCode`](crate::ErrorCode).
    pub status: u16,
    /// Bytes of meta that follow the header.
    pub meta_len: u32,
    /// Bytes of payload that follow meta.
    pub payload_len: u32,
    /// Chosen by the requester, repeated in the answer.
    pub correlation: u64,
    crc: u32,
}

/// Why bytes are not a frame. The connection cannot go on after any of these.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// The first four bytes are not `RBLT`.
    #[error("not a frame: it starts with {0:02x?} instead of \"RBLT\"")]
    BadMagic([u8; 4]),
    /// The header's version is not [`FRAME_VERSION`].
    #[error("frame version {0}, expected {FRAME_VERSION}")]
    BadVersion(u8),
    /// A reserved bit or field is not zero, or a request has a status.
    #[error("reserved bits are set in the frame header")]
    ReservedBits,
    /// The frame exceeds the connection's limit, or its meta the limit of its
    /// kind; both in bytes.
    #[error("frame or meta of {len} bytes, the limit is {limit}")]
    TooLarge {
        /// The whole frame, or its meta.
        len: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The CRC over header and meta does not match.
    #[error("frame CRC is {found:#010x}, computed {computed:#010x}")]
    CrcMismatch {
        /// As sent.
        found: u32,
        /// As computed here.
        computed: u32,
    },
}

impl FrameError {
    /// The code that the peer is told.
    pub fn code(&self) -> crate::ErrorCode {
        match self {
            FrameError::BadMagic(_) | FrameError::ReservedBits => crate::ErrorCode::MalformedFrame,
            FrameError::BadVersion(_) => crate::ErrorCode::UnsupportedVersion,
            FrameError::TooLarge { .. } => crate::ErrorCode::FrameTooLarge,
            FrameError::CrcMismatch { .. } => crate::ErrorCode::FrameCrcMismatch,
        }
    }
}

impl FrameHeader {
    /// Decodes the header at the start of `bytes`, which may be longer.
    /// `None` while fewer than [`FRAME_HEADER_LEN`] bytes are there, unless
    /// the ones that are cannot start a frame.
    ///
    /// Lengths are checked against `max_len` (bytes of the whole frame) here,
    /// before anything is sized by them; the CRC can be checked only once meta
    /// is there, by [`FrameHeader::verify`].
    #[inline]
    pub fn decode(bytes: &[u8], max_len: u32) -> Result<Option<FrameHeader>, FrameError> {
        let Ok((raw, _)) = RawFrameHeader::ref_from_prefix(bytes) else {
            return Self::check_partial_magic(bytes).map(|()| None);
        };
        if raw.magic != FRAME_MAGIC {
            return Err(FrameError::BadMagic(raw.magic));
        }
        if raw.version != FRAME_VERSION {
            return Err(FrameError::BadVersion(raw.version));
        }
        let (flags, status) = (raw.flags.get(), raw.status.get());
        let is_response = flags & FLAG_RESPONSE != 0;
        if raw.reserved.get() != 0 || flags & !FLAG_RESPONSE != 0 || (!is_response && status != 0) {
            return Err(FrameError::ReservedBits);
        }
        let header = FrameHeader {
            opcode: raw.opcode,
            is_response,
            status,
            meta_len: raw.meta_len.get(),
            payload_len: raw.payload_len.get(),
            correlation: raw.correlation.get(),
            crc: raw.crc.get(),
        };
        let len = FRAME_HEADER_LEN as u64 + u64::from(header.meta_len) + u64::from(header.payload_len);
        if len > u64::from(max_len) {
            return Err(FrameError::TooLarge { len, limit: u64::from(max_len) });
        }
        let max_meta_len = if is_response { MAX_META_LEN } else { MAX_REQUEST_META_LEN };
        if header.meta_len > max_meta_len {
            return Err(FrameError::TooLarge {
                len: u64::from(header.meta_len),
                limit: u64::from(max_meta_len),
            });
        }
        Ok(Some(header))
    }

    fn check_partial_magic(bytes: &[u8]) -> Result<(), FrameError> {
        let n = bytes.len().min(FRAME_MAGIC.len());
        if bytes[..n] == FRAME_MAGIC[..n] {
            return Ok(());
        }
        let mut found = [0; 4];
        found[..n].copy_from_slice(&bytes[..n]);
        Err(FrameError::BadMagic(found))
    }

    /// Bytes of header and meta: how far the frame's CRC reaches.
    #[inline]
    pub fn head_len(&self) -> usize {
        FRAME_HEADER_LEN + self.meta_len as usize
    }

    /// Bytes of the whole frame.
    #[inline]
    pub fn frame_len(&self) -> usize {
        self.head_len() + self.payload_len as usize
    }

    /// Checks the CRC. `frame` starts with this frame's header and holds at
    /// least [`head_len`](Self::head_len) bytes.
    ///
    /// # Panics
    /// If `frame` is shorter than that.
    #[inline]
    pub fn verify(&self, frame: &[u8]) -> Result<(), FrameError> {
        let computed = crc32c(&frame[CRC_START..self.head_len()]);
        if computed == self.crc { Ok(()) } else { Err(FrameError::CrcMismatch { found: self.crc, computed }) }
    }
}

/// Writes header and meta of a frame to the end of `out`; the caller sends
/// `payload_len` bytes of payload after them.
///
/// # Panics
/// If `meta` is longer than [`MAX_META_LEN`]; whoever builds a message bounds
/// its lists long before.
pub fn encode_head(
    out: &mut Vec<u8>,
    opcode: u8,
    is_response: bool,
    status: u16,
    correlation: u64,
    meta: &[u8],
    payload_len: u32,
) {
    let header = RawFrameHeader::new(opcode, is_response, status, correlation, payload_len);
    out.reserve(FRAME_HEADER_LEN + meta.len());
    header.encode_with(out, |out| out.extend_from_slice(meta));
}

impl RawFrameHeader {
    /// A header whose `meta_len` and `crc` are still to be filled in.
    pub fn new(opcode: u8, is_response: bool, status: u16, correlation: u64, payload_len: u32) -> Self {
        transmute!(header_words(opcode, is_response, status, correlation, 0, payload_len).map(U64::new))
    }

    /// Appends this header and the meta that `put_meta` appends, so that meta
    /// needs no buffer of its own and the CRC is taken in one pass.
    ///
    /// # Panics
    /// If meta is longer than [`MAX_META_LEN`].
    pub fn encode_with(mut self, out: &mut Vec<u8>, put_meta: impl FnOnce(&mut Vec<u8>)) {
        let start = out.len();
        out.extend_from_slice(self.as_bytes());
        put_meta(out);
        let frame = &mut out[start..];
        let meta_len = frame.len() - FRAME_HEADER_LEN;
        assert!(meta_len <= MAX_META_LEN as usize, "meta of {meta_len} bytes");
        self.meta_len = U32::new(meta_len as u32);
        frame[..FRAME_HEADER_LEN].copy_from_slice(self.as_bytes());
        self.crc = U32::new(crc32c(&frame[CRC_START..]));
        frame[..FRAME_HEADER_LEN].copy_from_slice(self.as_bytes());
    }
}

/// A frame's header as words, without its CRC.
#[inline]
pub(crate) fn header_words(
    opcode: u8,
    is_response: bool,
    status: u16,
    correlation: u64,
    meta_len: u32,
    payload_len: u32,
) -> [u64; FRAME_HEADER_LEN / 8] {
    let kind = u64::from(FRAME_VERSION)
        | u64::from(opcode) << 8
        | (if is_response { u64::from(FLAG_RESPONSE) << 16 } else { 0 })
        | u64::from(status) << 32;
    let lengths = u64::from(meta_len) | u64::from(payload_len) << 32;
    [u64::from(u32::from_le_bytes(FRAME_MAGIC)), kind, lengths, correlation]
}

/// Fills the CRC into a frame's header and meta, given as words.
///
/// The two frames of which there are a million a second are put together this
/// way: the CRC reads 8 bytes at a time, and a load that spans narrower stores
/// waits for all of them. For an acknowledgement: 18 ns field by field, 10 ns in
/// words.
#[inline]
pub(crate) fn seal_words<const N: usize>(words: [u64; N]) -> [U64; N] {
    const { assert!(CRC_START == 8 && std::mem::offset_of!(RawFrameHeader, crc) == 4) };
    let crc = crc32c(words.map(U64::new)[1..].as_bytes());
    // A second copy, made from registers: the first one is in memory for the CRC.
    let mut sealed = words;
    sealed[0] |= u64::from(crc) << 32;
    sealed.map(U64::new)
}
