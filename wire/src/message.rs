//! Requests and responses: what stands in a frame's meta.
//!
//! Every message is decoded whole or refused; bytes left over are an error, so
//! that the layout has one reading. New fields come with a new version.

use crate::code::ErrorCode;
use crate::frame::{Opcode, encode_head};
use crate::ids::{Epoch, Offset, PartitionId, ProducerId, Sequence, ShardId, TopicId};
use crate::reader::{Put, Reader};

/// Most characters (= bytes) of a topic name.
pub const MAX_TOPIC_NAME_LEN: usize = 249;
/// Most partitions of one topic.
pub const MAX_PARTITIONS: u32 = 100_000;
/// Most partitions that one fetch may name.
pub const MAX_FETCH_PARTITIONS: usize = 4096;
/// Bytes of a produce request's meta.
pub const PRODUCE_META_LEN: usize = 8;
/// Bytes of a produce answer's meta.
pub const PRODUCE_ACK_LEN: usize = 24;
/// Bytes per partition in a fetch request's meta.
const FETCH_ITEM_LEN: usize = 24;
/// Bytes per partition in a fetch answer's meta.
const FETCHED_ITEM_LEN: usize = 40;

/// Why a frame's meta is not the message that its opcode announces.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum MessageError {
    /// Fewer bytes than the fields need.
    #[error("message ends early: {wanted} more bytes wanted, {left} left")]
    Truncated {
        /// Bytes that the next field needs.
        wanted: usize,
        /// Bytes that are left.
        left: usize,
    },
    /// Bytes after the last field.
    #[error("{0} bytes follow the message")]
    TrailingBytes(usize),
    /// A string is not UTF-8.
    #[error("a string is not UTF-8")]
    NotUtf8,
    /// A field has a value outside its range.
    #[error("{field} is {value}, which is out of range")]
    OutOfRange {
        /// The field's name in the protocol document.
        field: &'static str,
        /// As sent.
        value: u64,
    },
    /// The operation number is not known.
    #[error("unknown operation {0}")]
    UnknownOpcode(u8),
    /// A payload where the operation has none, or none where it needs one.
    #[error("the payload does not belong to this operation")]
    UnexpectedPayload,
}

impl MessageError {
    /// The code that the peer is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            MessageError::UnknownOpcode(_) => ErrorCode::UnknownOpcode,
            _ => ErrorCode::InvalidRequest,
        }
    }
}

/// First message on a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Lowest protocol version that the client speaks.
    pub min_version: u8,
    /// Highest protocol version that the client speaks.
    pub max_version: u8,
    /// Feature bits that the client would use; none are defined yet.
    pub features: u64,
    /// Partition that the connection will mostly use, so that the broker can
    /// serve it from the core that owns it.
    pub affinity: Option<PartitionId>,
    /// Who connects, for logs and counters; at most 255 bytes.
    pub client_name: String,
}

/// Answer to [`Hello`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HelloAck {
    /// The version that both will use.
    pub version: u8,
    /// Copies of a record that an acknowledgement can stand for: 1 is this
    /// broker's disk.
    pub copies: u8,
    /// Shards of the broker.
    pub shards: u16,
    /// Feature bits that both have.
    pub features: u64,
    /// Longest frame in bytes that the broker accepts on this connection.
    pub max_frame_len: u32,
    /// Longest record batch in bytes that the broker accepts.
    pub max_batch_len: u32,
    /// Most unanswered requests that the broker accepts on this connection.
    pub max_in_flight: u32,
    /// The broker's boot count: it rises at every start.
    pub boot: u64,
    /// The data directory's identity.
    pub broker_id: [u8; 16],
}

/// A topic, as listed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicInfo {
    /// Number of the topic.
    pub id: TopicId,
    /// Number of its partitions, at least 1.
    pub partitions: u32,
    /// Its name.
    pub name: String,
}

/// A partition, as described.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionInfo {
    /// The shard whose log holds it.
    pub shard: ShardId,
    /// First offset that is still there.
    pub start_offset: Offset,
    /// Offset after the last durable record.
    pub end_offset: Offset,
}

/// A topic, as described.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicDescription {
    /// Name, number, number of partitions.
    pub topic: TopicInfo,
    /// Its partitions by index.
    pub partitions: Vec<PartitionInfo>,
}

/// Where to read in one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchPartition {
    /// Which partition.
    pub partition: PartitionId,
    /// First offset wanted. The answer may start with a batch that begins
    /// before it.
    pub offset: Offset,
    /// Most bytes from this partition; one batch is returned even if larger.
    pub max_bytes: u32,
}

/// Reads from one or more partitions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fetch {
    /// Longest wait for `min_bytes`, in milliseconds.
    pub max_wait_ms: u32,
    /// Answer once this many bytes are there; 0 answers at once.
    pub min_bytes: u32,
    /// Most bytes over all partitions; one batch is returned even if larger.
    pub max_bytes: u32,
    /// The partitions, at most [`MAX_FETCH_PARTITIONS`], each at most once.
    pub partitions: Vec<FetchPartition>,
}

/// What a fetch brought from one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchedPartition {
    /// Which partition.
    pub partition: PartitionId,
    /// 0, or why nothing was read: the number of an [`ErrorCode`].
    pub status: u16,
    /// Bytes of the frame's payload that belong to this partition: whole
    /// record batches. Partitions follow each other in the order of the list.
    pub payload_len: u32,
    /// First offset that is still there.
    pub start_offset: Offset,
    /// Offset after the last durable record.
    pub end_offset: Offset,
}

/// An offset asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OffsetSpec {
    /// The first retained record.
    Earliest,
    /// The offset after the last durable record.
    End,
    /// The first record whose commit time is at or after this, µs since 1970
    /// UTC; the end if there is none.
    Time(u64),
}

/// Answer to a produce request: the batch is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProduceAck {
    /// Offset of the batch's first record; [`Offset::UNKNOWN`] for a duplicate
    /// so old that only the fact of its durability is remembered.
    pub base_offset: Offset,
    /// When the broker took the batch into a commit, µs since 1970 UTC; 0 for
    /// a duplicate.
    pub commit_time_us: u64,
    /// On how many disks it is: 1 is `local`.
    pub copies: u8,
    /// The batch had been durable before; this request added nothing.
    pub duplicate: bool,
}

/// Opens or resumes a producer on a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenProducer {
    /// Where it will produce.
    pub partition: PartitionId,
    /// Who it is; [`ProducerId::NONE`] lets the broker choose a new identity.
    pub producer: ProducerId,
    /// Take over: answer with a new epoch, so that an older incarnation is
    /// fenced once this one's first batch is durable.
    pub take_over: bool,
}

/// Answer to [`OpenProducer`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerOpened {
    /// The identity to produce under.
    pub producer: ProducerId,
    /// The epoch to produce under.
    pub epoch: Epoch,
    /// Sequence to continue with: one after the last durable one, 0 if there
    /// is none.
    pub next_sequence: Sequence,
    /// Offset of the last durable record of this producer, or
    /// [`Offset::UNKNOWN`].
    pub last_offset: Offset,
}

/// A refusal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ErrorResponse {
    /// Number of an [`ErrorCode`]; a newer broker may send one that is not
    /// known here.
    pub code: u16,
    /// Wait this long before a retry, in milliseconds; 0 says nothing.
    pub retry_after_ms: u32,
    /// A number that belongs to the code: the expected sequence for
    /// `OutOfOrderSequence`, the current epoch for `FencedProducer`, the limit
    /// for limits; else 0.
    pub detail: u64,
    /// For a person.
    pub text: String,
}

impl ErrorResponse {
    /// A refusal with this code and text.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        ErrorResponse { code: code as u16, retry_after_ms: 0, detail: 0, text: text.into() }
    }

    /// The same with its number.
    pub fn with_detail(mut self, detail: u64) -> Self {
        self.detail = detail;
        self
    }

    /// The code, if it is known here.
    pub fn error_code(&self) -> Option<ErrorCode> {
        ErrorCode::from_u16(self.code)
    }

    /// Whether the same request may succeed later. Unknown codes say no.
    pub fn is_retryable(&self) -> bool {
        self.error_code().is_some_and(ErrorCode::is_retryable)
    }
}

impl std::fmt::Display for ErrorResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.error_code() {
            Some(code) if self.text.is_empty() => code.fmt(f),
            Some(code) => write!(f, "{code}: {}", self.text),
            None => write!(f, "error {}: {}", self.code, self.text),
        }
    }
}

/// A request, without the payload of a produce request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Opens the connection.
    Hello(Hello),
    /// Asks for a sign of life.
    Ping,
    /// Creates a topic.
    CreateTopic {
        /// Its name.
        name: String,
        /// Number of partitions, 1 to [`MAX_PARTITIONS`].
        partitions: u32,
    },
    /// Deletes a topic.
    DeleteTopic {
        /// Its name.
        name: String,
    },
    /// Lists the topics.
    ListTopics,
    /// Describes a topic.
    DescribeTopic {
        /// Its name.
        name: String,
    },
    /// Appends the record batch in the frame's payload to the partition that
    /// the batch names.
    Produce {
        /// Refuse unless the acknowledgement can stand for at least this many
        /// copies; 0 and 1 are `local`.
        min_copies: u8,
    },
    /// Reads record batches.
    Fetch(Fetch),
    /// Looks up an offset.
    Offsets {
        /// In which partition.
        partition: PartitionId,
        /// Which offset.
        spec: OffsetSpec,
    },
    /// Opens or resumes a producer.
    OpenProducer(OpenProducer),
    /// Asks for the broker's counters.
    Stats,
}

/// A response, without the payload of a fetch response.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Response {
    /// To [`Request::Hello`].
    Hello(HelloAck),
    /// To [`Request::Ping`].
    Pong,
    /// To [`Request::CreateTopic`].
    TopicCreated(TopicInfo),
    /// To [`Request::DeleteTopic`].
    TopicDeleted,
    /// To [`Request::ListTopics`].
    Topics(Vec<TopicInfo>),
    /// To [`Request::DescribeTopic`].
    Topic(TopicDescription),
    /// To [`Request::Produce`].
    Produced(ProduceAck),
    /// To [`Request::Fetch`]; the batches are the frame's payload.
    Fetched(Vec<FetchedPartition>),
    /// To [`Request::Offsets`].
    Offset(Offset),
    /// To [`Request::OpenProducer`].
    ProducerOpened(ProducerOpened),
    /// To [`Request::Stats`]: name and value, sorted by name.
    Stats(Vec<(String, u64)>),
    /// A refusal, to any request; with [`Opcode::Goodbye`] the last frame of
    /// the connection.
    Error(ErrorResponse),
}

fn put_partition(out: &mut Vec<u8>, partition: PartitionId) {
    out.put_u32(partition.topic.0);
    out.put_u32(partition.index);
}

fn read_partition(r: &mut Reader<'_>) -> Result<PartitionId, MessageError> {
    Ok(PartitionId::new(TopicId(r.u32()?), r.u32()?))
}

fn zero(field: &'static str, value: u64) -> Result<(), MessageError> {
    if value == 0 { Ok(()) } else { Err(MessageError::OutOfRange { field, value }) }
}

fn flag(field: &'static str, value: u8) -> Result<bool, MessageError> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(MessageError::OutOfRange { field, value: u64::from(other) }),
    }
}

impl Request {
    /// The operation.
    pub fn opcode(&self) -> Opcode {
        match self {
            Request::Hello(_) => Opcode::Hello,
            Request::Ping => Opcode::Ping,
            Request::CreateTopic { .. } => Opcode::CreateTopic,
            Request::DeleteTopic { .. } => Opcode::DeleteTopic,
            Request::ListTopics => Opcode::ListTopics,
            Request::DescribeTopic { .. } => Opcode::DescribeTopic,
            Request::Produce { .. } => Opcode::Produce,
            Request::Fetch(_) => Opcode::Fetch,
            Request::Offsets { .. } => Opcode::Offsets,
            Request::OpenProducer(_) => Opcode::OpenProducer,
            Request::Stats => Opcode::Stats,
        }
    }

    /// Appends the frame of this request to `out`, up to its payload, of which
    /// `payload_len` bytes are to follow (0 but for produce).
    pub fn encode(&self, out: &mut Vec<u8>, correlation: u64, payload_len: u32) {
        let mut meta = Vec::new();
        self.put_meta(&mut meta);
        encode_head(out, self.opcode() as u8, false, 0, correlation, &meta, payload_len);
    }

    fn put_meta(&self, m: &mut Vec<u8>) {
        match self {
            Request::Hello(hello) => hello.put(m),
            Request::Ping | Request::ListTopics | Request::Stats => {}
            Request::CreateTopic { name, partitions } => {
                m.put_u32(*partitions);
                m.put_string(name);
            }
            Request::DeleteTopic { name } | Request::DescribeTopic { name } => m.put_string(name),
            Request::Produce { min_copies } => {
                m.put_u8(*min_copies);
                m.extend_from_slice(&[0; PRODUCE_META_LEN - 1]);
            }
            Request::Fetch(fetch) => fetch.put(m),
            Request::Offsets { partition, spec } => {
                let (kind, time) = match spec {
                    OffsetSpec::Earliest => (0, 0),
                    OffsetSpec::End => (1, 0),
                    OffsetSpec::Time(t) => (2, *t),
                };
                put_partition(m, *partition);
                m.put_u64(kind);
                m.put_u64(time);
            }
            Request::OpenProducer(open) => {
                put_partition(m, open.partition);
                m.put_u64(open.producer.0);
                m.put_u64(u64::from(open.take_over));
            }
        }
    }

    /// Decodes the meta of a request frame with this opcode.
    pub fn decode(opcode: u8, meta: &[u8], payload_len: u32) -> Result<Request, MessageError> {
        let known = Opcode::from_u8(opcode).ok_or(MessageError::UnknownOpcode(opcode))?;
        if (payload_len > 0) != (known == Opcode::Produce) {
            return Err(MessageError::UnexpectedPayload);
        }
        let mut r = Reader(meta);
        let request = match known {
            Opcode::Hello => Request::Hello(Hello::read(&mut r)?),
            Opcode::Ping => Request::Ping,
            Opcode::CreateTopic => {
                let partitions = r.u32()?;
                Request::CreateTopic { name: r.string()?.to_owned(), partitions }
            }
            Opcode::DeleteTopic => Request::DeleteTopic { name: r.string()?.to_owned() },
            Opcode::ListTopics => Request::ListTopics,
            Opcode::DescribeTopic => Request::DescribeTopic { name: r.string()?.to_owned() },
            Opcode::Produce => {
                let min_copies = r.u8()?;
                let reserved = r.bytes(PRODUCE_META_LEN - 1)?;
                zero("reserved", reserved.iter().map(|&b| u64::from(b)).sum())?;
                Request::Produce { min_copies }
            }
            Opcode::Fetch => Request::Fetch(Fetch::read(&mut r)?),
            Opcode::Offsets => {
                let partition = read_partition(&mut r)?;
                let (kind, time) = (r.u64()?, r.u64()?);
                let spec = match kind {
                    0 => OffsetSpec::Earliest,
                    1 => OffsetSpec::End,
                    2 => OffsetSpec::Time(time),
                    value => return Err(MessageError::OutOfRange { field: "kind", value }),
                };
                Request::Offsets { partition, spec }
            }
            Opcode::OpenProducer => {
                let (partition, producer) = (read_partition(&mut r)?, ProducerId(r.u64()?));
                let take_over = flag("take_over", r.u8()?)?;
                zero("reserved", r.bytes(7)?.iter().map(|&b| u64::from(b)).sum())?;
                Request::OpenProducer(OpenProducer { partition, producer, take_over })
            }
            Opcode::Stats => Request::Stats,
            Opcode::Goodbye => return Err(MessageError::UnknownOpcode(opcode)),
        };
        r.finish()?;
        Ok(request)
    }
}

impl Hello {
    fn put(&self, m: &mut Vec<u8>) {
        m.put_u8(self.min_version);
        m.put_u8(self.max_version);
        m.put_u8(u8::from(self.affinity.is_some()));
        m.put_u8(0);
        m.put_u64(self.features);
        put_partition(m, self.affinity.unwrap_or_default());
        m.put_string(&self.client_name);
    }

    fn read(r: &mut Reader<'_>) -> Result<Hello, MessageError> {
        let (min_version, max_version) = (r.u8()?, r.u8()?);
        let has_affinity = flag("has_affinity", r.u8()?)?;
        zero("reserved", u64::from(r.u8()?))?;
        let features = r.u64()?;
        let affinity = read_partition(r)?;
        let client_name = r.string()?;
        if client_name.len() > 255 {
            return Err(MessageError::OutOfRange { field: "client_name", value: client_name.len() as u64 });
        }
        Ok(Hello {
            min_version,
            max_version,
            features,
            affinity: has_affinity.then_some(affinity),
            client_name: client_name.to_owned(),
        })
    }
}

impl Fetch {
    fn put(&self, m: &mut Vec<u8>) {
        m.put_u32(self.max_wait_ms);
        m.put_u32(self.min_bytes);
        m.put_u32(self.max_bytes);
        m.put_u32(self.partitions.len() as u32);
        for p in &self.partitions {
            put_partition(m, p.partition);
            m.put_u64(p.offset.0);
            m.put_u32(p.max_bytes);
            m.put_u32(0);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Fetch, MessageError> {
        let (max_wait_ms, min_bytes, max_bytes) = (r.u32()?, r.u32()?, r.u32()?);
        let count = r.count(FETCH_ITEM_LEN)?;
        if count == 0 || count > MAX_FETCH_PARTITIONS {
            return Err(MessageError::OutOfRange { field: "count", value: count as u64 });
        }
        let partitions = (0..count)
            .map(|_| {
                let (partition, offset, max_bytes) = (read_partition(r)?, Offset(r.u64()?), r.u32()?);
                zero("reserved", u64::from(r.u32()?))?;
                Ok(FetchPartition { partition, offset, max_bytes })
            })
            .collect::<Result<_, MessageError>>()?;
        Ok(Fetch { max_wait_ms, min_bytes, max_bytes, partitions })
    }
}

impl TopicInfo {
    /// Shortest encoding, with a name of one character.
    const MIN_LEN: usize = 4 + 4 + 2 + 1;

    fn put(&self, m: &mut Vec<u8>) {
        m.put_u32(self.id.0);
        m.put_u32(self.partitions);
        m.put_string(&self.name);
    }

    fn read(r: &mut Reader<'_>) -> Result<TopicInfo, MessageError> {
        Ok(TopicInfo { id: TopicId(r.u32()?), partitions: r.u32()?, name: r.string()?.to_owned() })
    }
}

impl ProduceAck {
    #[inline]
    fn to_bytes(self) -> [u8; PRODUCE_ACK_LEN] {
        let mut m = [0; PRODUCE_ACK_LEN];
        m[..8].copy_from_slice(&self.base_offset.0.to_le_bytes());
        m[8..16].copy_from_slice(&self.commit_time_us.to_le_bytes());
        m[16] = self.copies;
        m[17] = u8::from(self.duplicate);
        m
    }

    fn read(r: &mut Reader<'_>) -> Result<ProduceAck, MessageError> {
        let (base_offset, commit_time_us) = (Offset(r.u64()?), r.u64()?);
        let (copies, duplicate) = (r.u8()?, flag("duplicate", r.u8()?)?);
        zero("reserved", r.bytes(6)?.iter().map(|&b| u64::from(b)).sum())?;
        Ok(ProduceAck { base_offset, commit_time_us, copies, duplicate })
    }

    /// Appends the response frame of this acknowledgement to `out`. Allocates
    /// nothing of its own: this is the frame that a broker sends most.
    #[inline]
    pub fn encode(self, out: &mut Vec<u8>, correlation: u64) {
        encode_head(out, Opcode::Produce as u8, true, 0, correlation, &self.to_bytes(), 0);
    }
}

impl Response {
    /// Appends the response frame to `out`, up to its payload, of which
    /// `payload_len` bytes are to follow (0 but for fetch). `opcode` is the
    /// number in the request (known or not), or that of [`Opcode::Goodbye`].
    pub fn encode(&self, out: &mut Vec<u8>, opcode: u8, correlation: u64, payload_len: u32) {
        let mut meta = Vec::new();
        self.put_meta(&mut meta);
        let status = match self {
            Response::Error(error) => error.code,
            _ => 0,
        };
        encode_head(out, opcode, true, status, correlation, &meta, payload_len);
    }

    fn put_meta(&self, m: &mut Vec<u8>) {
        match self {
            Response::Hello(ack) => {
                m.put_u8(ack.version);
                m.put_u8(ack.copies);
                m.put_u16(ack.shards);
                m.put_u32(ack.max_frame_len);
                m.put_u32(ack.max_batch_len);
                m.put_u32(ack.max_in_flight);
                m.put_u64(ack.features);
                m.put_u64(ack.boot);
                m.extend_from_slice(&ack.broker_id);
            }
            Response::Pong | Response::TopicDeleted => {}
            Response::TopicCreated(topic) => topic.put(m),
            Response::Topics(topics) => {
                m.put_u32(topics.len() as u32);
                topics.iter().for_each(|t| t.put(m));
            }
            Response::Topic(description) => {
                description.topic.put(m);
                m.put_u32(description.partitions.len() as u32);
                for p in &description.partitions {
                    m.put_u32(u32::from(p.shard.0));
                    m.put_u64(p.start_offset.0);
                    m.put_u64(p.end_offset.0);
                }
            }
            Response::Produced(ack) => m.extend_from_slice(&ack.to_bytes()),
            Response::Fetched(partitions) => {
                m.put_u32(partitions.len() as u32);
                m.put_u32(0);
                for p in partitions {
                    put_partition(m, p.partition);
                    m.put_u32(u32::from(p.status));
                    m.put_u32(p.payload_len);
                    m.put_u64(p.start_offset.0);
                    m.put_u64(p.end_offset.0);
                    m.put_u64(0);
                }
            }
            Response::Offset(offset) => m.put_u64(offset.0),
            Response::ProducerOpened(p) => {
                m.put_u64(p.producer.0);
                m.put_u64(p.next_sequence.0);
                m.put_u64(p.last_offset.0);
                m.put_u32(p.epoch.0);
                m.put_u32(0);
            }
            Response::Stats(stats) => {
                m.put_u32(stats.len() as u32);
                for (name, value) in stats {
                    m.put_u64(*value);
                    m.put_string(name);
                }
            }
            Response::Error(error) => {
                m.put_u32(error.retry_after_ms);
                m.put_u64(error.detail);
                m.put_string(&error.text);
            }
        }
    }

    /// Decodes the meta of a response frame with this opcode and status.
    pub fn decode(opcode: u8, status: u16, meta: &[u8], payload_len: u32) -> Result<Response, MessageError> {
        let known = Opcode::from_u8(opcode).ok_or(MessageError::UnknownOpcode(opcode))?;
        if payload_len > 0 && (known != Opcode::Fetch || status != 0) {
            return Err(MessageError::UnexpectedPayload);
        }
        let mut r = Reader(meta);
        let response = if status != 0 {
            let (retry_after_ms, detail) = (r.u32()?, r.u64()?);
            Response::Error(ErrorResponse {
                code: status,
                retry_after_ms,
                detail,
                text: r.string()?.to_owned(),
            })
        } else {
            Self::read_success(known, &mut r, payload_len)?
        };
        r.finish()?;
        Ok(response)
    }

    fn read_success(opcode: Opcode, r: &mut Reader<'_>, payload_len: u32) -> Result<Response, MessageError> {
        Ok(match opcode {
            Opcode::Hello => {
                let (version, copies, shards) = (r.u8()?, r.u8()?, r.u16()?);
                let (max_frame_len, max_batch_len, max_in_flight) = (r.u32()?, r.u32()?, r.u32()?);
                let (features, boot) = (r.u64()?, r.u64()?);
                let mut broker_id = [0; 16];
                broker_id.copy_from_slice(r.bytes(16)?);
                Response::Hello(HelloAck {
                    version,
                    copies,
                    shards,
                    features,
                    max_frame_len,
                    max_batch_len,
                    max_in_flight,
                    boot,
                    broker_id,
                })
            }
            Opcode::Ping => Response::Pong,
            Opcode::CreateTopic => Response::TopicCreated(TopicInfo::read(r)?),
            Opcode::DeleteTopic => Response::TopicDeleted,
            Opcode::ListTopics => {
                let count = r.count(TopicInfo::MIN_LEN)?;
                Response::Topics((0..count).map(|_| TopicInfo::read(r)).collect::<Result<_, _>>()?)
            }
            Opcode::DescribeTopic => Response::Topic(TopicDescription::read(r)?),
            Opcode::Produce => Response::Produced(ProduceAck::read(r)?),
            Opcode::Fetch => Response::Fetched(read_fetched(r, payload_len)?),
            Opcode::Offsets => Response::Offset(Offset(r.u64()?)),
            Opcode::OpenProducer => {
                let (producer, next_sequence) = (ProducerId(r.u64()?), Sequence(r.u64()?));
                let (last_offset, epoch) = (Offset(r.u64()?), Epoch(r.u32()?));
                zero("reserved", u64::from(r.u32()?))?;
                Response::ProducerOpened(ProducerOpened { producer, epoch, next_sequence, last_offset })
            }
            Opcode::Stats => {
                let count = r.count(8 + 2)?;
                let stats = (0..count).map(|_| {
                    let value = r.u64()?;
                    Ok((r.string()?.to_owned(), value))
                });
                Response::Stats(stats.collect::<Result<_, MessageError>>()?)
            }
            // A goodbye always says why.
            Opcode::Goodbye => return Err(MessageError::OutOfRange { field: "status", value: 0 }),
        })
    }
}

impl TopicDescription {
    fn read(r: &mut Reader<'_>) -> Result<TopicDescription, MessageError> {
        let topic = TopicInfo::read(r)?;
        let count = r.count(4 + 8 + 8)?;
        if count as u64 != u64::from(topic.partitions) {
            return Err(MessageError::OutOfRange { field: "count", value: count as u64 });
        }
        let partitions = (0..count)
            .map(|_| {
                let shard = r.u32()?;
                let shard = u16::try_from(shard)
                    .map_err(|_| MessageError::OutOfRange { field: "shard", value: u64::from(shard) })?;
                Ok(PartitionInfo {
                    shard: ShardId(shard),
                    start_offset: Offset(r.u64()?),
                    end_offset: Offset(r.u64()?),
                })
            })
            .collect::<Result<_, MessageError>>()?;
        Ok(TopicDescription { topic, partitions })
    }
}

fn read_fetched(r: &mut Reader<'_>, payload_len: u32) -> Result<Vec<FetchedPartition>, MessageError> {
    let mut left = u64::from(payload_len);
    let count = r.u32()? as usize;
    zero("reserved", u64::from(r.u32()?))?;
    if count > MAX_FETCH_PARTITIONS || count * FETCHED_ITEM_LEN != r.0.len() {
        return Err(MessageError::OutOfRange { field: "count", value: count as u64 });
    }
    let mut fetched = Vec::with_capacity(count);
    for _ in 0..count {
        let (partition, status, payload_len) = (read_partition(r)?, r.u32()?, r.u32()?);
        let status = u16::try_from(status)
            .map_err(|_| MessageError::OutOfRange { field: "status", value: u64::from(status) })?;
        let (start_offset, end_offset) = (Offset(r.u64()?), Offset(r.u64()?));
        zero("reserved", r.u64()?)?;
        left = left
            .checked_sub(u64::from(payload_len))
            .ok_or(MessageError::OutOfRange { field: "payload_len", value: u64::from(payload_len) })?;
        fetched.push(FetchedPartition { partition, status, payload_len, start_offset, end_offset });
    }
    if left != 0 {
        return Err(MessageError::OutOfRange { field: "payload_len", value: left });
    }
    Ok(fetched)
}

/// Whether `name` can be a topic's name: 1 to [`MAX_TOPIC_NAME_LEN`] of
/// `A-Z a-z 0-9 . _ -`, and not `.` or `..`.
pub fn is_valid_topic_name(name: &str) -> bool {
    (1..=MAX_TOPIC_NAME_LEN).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}
