//! Requests: what a client may ask.

use super::consume::{Attach, ConsumerAt, Receive, Settle};
use super::group::{CreateGroup, ResetGroup};
use super::produce::{put_produce, read_produce};
use super::{
    MAX_CLIENT_NAME_LEN, MAX_FETCH_PARTITIONS, MessageError, ensure, flag, put_partition, read_partition,
    read_partition_count,
};
use crate::frame::{Opcode, RawFrameHeader};
use crate::ids::{Offset, PartitionId, ProducerId};
use crate::reader::{Put, Reader};

/// Bytes per partition in a fetch request's meta.
const FETCH_ITEM_LEN: usize = 24;

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
        /// Number of partitions, 1 to [`MAX_PARTITIONS`](super::MAX_PARTITIONS).
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
    /// Creates a consumer group, or finds it.
    CreateGroup(CreateGroup),
    /// Deletes a consumer group.
    DeleteGroup {
        /// Its name.
        name: String,
    },
    /// Lists the consumer groups.
    ListGroups,
    /// Describes a consumer group.
    DescribeGroup {
        /// Its name.
        name: String,
    },
    /// Sets a consumer group back, or forward.
    ResetGroup(ResetGroup),
    /// Attaches a consumer.
    Attach(Attach),
    /// Detaches a consumer: its `Attach` is answered, and what it holds is given
    /// back.
    Detach(ConsumerAt),
    /// Asks for records once.
    Receive(Receive),
    /// Says what became of records, and gives credit.
    Settle(Settle),
}

/// First message on a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Lowest protocol version that the client speaks.
    pub min_version: u8,
    /// Highest protocol version that the client speaks, at least
    /// `min_version`.
    pub max_version: u8,
    /// Feature bits that the client would use; none are defined yet.
    pub features: u64,
    /// Partition that the connection will mostly use, so that the broker can
    /// serve it from the core that owns it.
    pub affinity: Option<PartitionId>,
    /// Who connects, for logs and counters; at most [`MAX_CLIENT_NAME_LEN`]
    /// bytes.
    pub client_name: String,
}

/// Where to read in one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchPartition {
    /// Which partition.
    pub partition: PartitionId,
    /// First offset wanted. The answer may start with a batch that begins
    /// before it.
    pub offset: Offset,
    /// Most bytes from this partition, but for the answer's first batch.
    pub max_bytes: u32,
}

/// Reads from one or more partitions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fetch {
    /// Longest wait for `min_bytes`, in milliseconds.
    pub max_wait_ms: u32,
    /// Answer once this many bytes are there; 0 answers at once.
    pub min_bytes: u32,
    /// Most bytes over all partitions; the answer's first batch is returned
    /// even if larger.
    pub max_bytes: u32,
    /// The partitions, 1 to [`MAX_FETCH_PARTITIONS`], each at most once.
    pub partitions: Vec<FetchPartition>,
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

/// Opens or resumes a producer on a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenProducer {
    /// Where it will produce.
    pub partition: PartitionId,
    /// Who it is; [`ProducerId::NONE`] lets the broker choose a new identity.
    pub producer: ProducerId,
    /// Take over: answer with a new epoch, so that older incarnations are
    /// fenced, across a restart of the broker once a batch of this one is
    /// durable.
    pub take_over: bool,
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
            Request::CreateGroup(_) => Opcode::CreateGroup,
            Request::DeleteGroup { .. } => Opcode::DeleteGroup,
            Request::ListGroups => Opcode::ListGroups,
            Request::DescribeGroup { .. } => Opcode::DescribeGroup,
            Request::ResetGroup(_) => Opcode::ResetGroup,
            Request::Attach(_) => Opcode::Attach,
            Request::Detach(_) => Opcode::Detach,
            Request::Receive(_) => Opcode::Receive,
            Request::Settle(_) => Opcode::Settle,
        }
    }

    /// Appends the frame of this request to `out`, up to its payload, of which
    /// `payload_len` bytes are to follow (0 but for produce; there,
    /// [`produce_head`](super::produce_head) is the faster way).
    ///
    /// Fields are written as they are; the broker refuses those out of range.
    ///
    /// # Panics
    /// If meta is longer than [`MAX_META_LEN`](crate::frame::MAX_META_LEN),
    /// which takes a fetch of 170 times as many partitions as one may name, or a
    /// settle of 16 times as many bytes of reasons as one may give.
    pub fn encode(&self, out: &mut Vec<u8>, correlation: u64, payload_len: u32) {
        RawFrameHeader::new(self.opcode() as u8, false, 0, correlation, payload_len)
            .encode_with(out, |out| self.put_meta(out));
    }

    fn put_meta(&self, m: &mut Vec<u8>) {
        match self {
            Request::Hello(hello) => hello.put(m),
            Request::Ping | Request::ListTopics | Request::Stats | Request::ListGroups => {}
            Request::CreateTopic { name, partitions } => {
                m.put_u32(*partitions);
                m.put_string(name);
            }
            Request::DeleteTopic { name }
            | Request::DescribeTopic { name }
            | Request::DeleteGroup { name }
            | Request::DescribeGroup { name } => m.put_string(name),
            Request::Produce { min_copies } => put_produce(m, *min_copies),
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
            Request::CreateGroup(create) => create.put(m),
            Request::ResetGroup(reset) => reset.put(m),
            Request::Attach(attach) => attach.put(m),
            Request::Detach(at) => at.put(m),
            Request::Receive(receive) => receive.put(m),
            Request::Settle(settle) => settle.put(m),
        }
    }

    /// Decodes the meta of a request frame with this opcode. `payload_len` is
    /// the header's: whether there is a payload must agree with the operation.
    #[inline]
    pub fn decode(opcode: u8, meta: &[u8], payload_len: u32) -> Result<Request, MessageError> {
        if opcode == Opcode::Produce as u8 && payload_len > 0 {
            return Ok(Request::Produce { min_copies: read_produce(meta)? });
        }
        Self::decode_other(opcode, meta, payload_len)
    }

    fn decode_other(opcode: u8, meta: &[u8], payload_len: u32) -> Result<Request, MessageError> {
        let known = match Opcode::from_u8(opcode) {
            // These are the broker's to say.
            None | Some(Opcode::Goodbye | Opcode::Delivery) => {
                return Err(MessageError::UnknownOpcode(opcode));
            }
            Some(known) => known,
        };
        if payload_len > 0 || known == Opcode::Produce {
            return Err(MessageError::UnexpectedPayload);
        }
        let mut r = Reader(meta);
        let request = Self::read_meta(known, &mut r)?;
        r.finish()?;
        Ok(request)
    }

    fn read_meta(opcode: Opcode, r: &mut Reader<'_>) -> Result<Request, MessageError> {
        Ok(match opcode {
            Opcode::Hello => Request::Hello(Hello::read(r)?),
            Opcode::Ping => Request::Ping,
            Opcode::CreateTopic => {
                let partitions = read_partition_count(r)?;
                Request::CreateTopic { name: r.string()?.to_owned(), partitions }
            }
            Opcode::DeleteTopic => Request::DeleteTopic { name: r.string()?.to_owned() },
            Opcode::ListTopics => Request::ListTopics,
            Opcode::DescribeTopic => Request::DescribeTopic { name: r.string()?.to_owned() },
            Opcode::Fetch => Request::Fetch(Fetch::read(r)?),
            Opcode::Offsets => {
                let partition = read_partition(r)?;
                let (kind, time) = (r.u64()?, r.u64()?);
                let spec = match kind {
                    0 => OffsetSpec::Earliest,
                    1 => OffsetSpec::End,
                    2 => OffsetSpec::Time(time),
                    value => return Err(MessageError::OutOfRange { field: "kind", value }),
                };
                ensure(kind == 2 || time == 0, "time_us", time)?;
                Request::Offsets { partition, spec }
            }
            Opcode::OpenProducer => {
                let (partition, producer) = (read_partition(r)?, ProducerId(r.u64()?));
                let take_over = flag("take_over", r.u8()?)?;
                r.reserved(7)?;
                Request::OpenProducer(OpenProducer { partition, producer, take_over })
            }
            Opcode::Stats => Request::Stats,
            Opcode::CreateGroup => Request::CreateGroup(CreateGroup::read(r)?),
            Opcode::DeleteGroup => Request::DeleteGroup { name: r.string()?.to_owned() },
            Opcode::ListGroups => Request::ListGroups,
            Opcode::DescribeGroup => Request::DescribeGroup { name: r.string()?.to_owned() },
            Opcode::ResetGroup => Request::ResetGroup(ResetGroup::read(r)?),
            Opcode::Attach => Request::Attach(Attach::read(r)?),
            Opcode::Detach => Request::Detach(ConsumerAt::read(r)?),
            Opcode::Receive => Request::Receive(Receive::read(r)?),
            Opcode::Settle => Request::Settle(Settle::read(r)?),
            Opcode::Produce | Opcode::Goodbye | Opcode::Delivery => {
                return Err(MessageError::UnknownOpcode(opcode as u8));
            }
        })
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
        ensure(min_version <= max_version, "max_version", u64::from(max_version))?;
        let has_affinity = flag("has_affinity", r.u8()?)?;
        r.reserved(1)?;
        let features = r.u64()?;
        let affinity = read_partition(r)?;
        ensure(has_affinity || affinity == PartitionId::default(), "has_affinity", 0)?;
        let client_name = r.string()?;
        ensure(client_name.len() <= MAX_CLIENT_NAME_LEN, "client_name", client_name.len() as u64)?;
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
        ensure((1..=MAX_FETCH_PARTITIONS).contains(&count), "count", count as u64)?;
        let partitions = (0..count)
            .map(|_| {
                let (partition, offset, max_bytes) = (read_partition(r)?, Offset(r.u64()?), r.u32()?);
                r.reserved(4)?;
                Ok(FetchPartition { partition, offset, max_bytes })
            })
            .collect::<Result<Vec<_>, MessageError>>()?;
        match first_repeated(&partitions) {
            Some(p) => Err(MessageError::OutOfRange { field: "partition", value: u64::from(p.index) }),
            None => Ok(Fetch { max_wait_ms, min_bytes, max_bytes, partitions }),
        }
    }
}

/// A partition that is named twice, if there is one.
fn first_repeated(partitions: &[FetchPartition]) -> Option<PartitionId> {
    if partitions.len() < 2 {
        return None;
    }
    let mut sorted: Vec<PartitionId> = partitions.iter().map(|p| p.partition).collect();
    sorted.sort_unstable();
    sorted.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}
