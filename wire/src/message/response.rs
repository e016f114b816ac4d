//! Responses: what a broker answers.

use super::consume::{Delivery, Settled};
use super::group::{GroupDescription, GroupInfo};
use super::{
    ErrorResponse, MAX_FETCH_PARTITIONS, MessageError, ProduceAck, ensure, is_valid_topic_name,
    put_partition, read_partition, read_partition_count,
};
use crate::batch::{BATCH_HEADER_LEN, Batches, RECORD_HEADER_LEN};
use crate::frame::{Opcode, RawFrameHeader};
use crate::ids::{Epoch, Offset, PartitionId, ProducerId, Sequence, ShardId, TopicId};
use crate::message::PRODUCE_HEAD_LEN;
use crate::reader::{Put, Reader};

/// Bytes per partition in a fetch answer's meta.
const FETCHED_ITEM_LEN: usize = 40;

/// A response, without the payload of a fetch response or a delivery.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Response {
    /// To [`Request::Hello`](super::Request::Hello).
    Hello(HelloAck),
    /// To [`Request::Ping`](super::Request::Ping).
    Pong,
    /// To [`Request::CreateTopic`](super::Request::CreateTopic).
    TopicCreated(TopicInfo),
    /// To [`Request::DeleteTopic`](super::Request::DeleteTopic).
    TopicDeleted,
    /// To [`Request::ListTopics`](super::Request::ListTopics).
    Topics(Vec<TopicInfo>),
    /// To [`Request::DescribeTopic`](super::Request::DescribeTopic).
    Topic(TopicDescription),
    /// To [`Request::Produce`](super::Request::Produce).
    Produced(ProduceAck),
    /// To [`Request::Fetch`](super::Request::Fetch); the batches are the frame's payload.
    Fetched(Vec<FetchedPartition>),
    /// To [`Request::Offsets`](super::Request::Offsets).
    Offset(Offset),
    /// To [`Request::OpenProducer`](super::Request::OpenProducer).
    ProducerOpened(ProducerOpened),
    /// To [`Request::Stats`](super::Request::Stats): name and value, sorted by name.
    Stats(Vec<(String, u64)>),
    /// To [`Request::CreateGroup`](super::Request::CreateGroup).
    Group(GroupInfo),
    /// To [`Request::DeleteGroup`](super::Request::DeleteGroup).
    GroupDeleted,
    /// To [`Request::ListGroups`](super::Request::ListGroups), by name.
    Groups(Vec<GroupInfo>),
    /// To [`Request::DescribeGroup`](super::Request::DescribeGroup).
    GroupDescribed(Box<GroupDescription>),
    /// To [`Request::ResetGroup`](super::Request::ResetGroup).
    GroupReset,
    /// To [`Request::Detach`](super::Request::Detach), and the last answer to
    /// [`Request::Attach`](super::Request::Attach).
    Detached,
    /// To [`Request::Receive`](super::Request::Receive), and with
    /// [`Opcode::Delivery`] to an [`Request::Attach`](super::Request::Attach), as
    /// often as there are records; the batches are the frame's payload.
    Delivered(Delivery),
    /// To [`Request::Settle`](super::Request::Settle).
    Settled(Settled),
    /// A refusal, to any request; with [`Opcode::Goodbye`] the last frame of
    /// the connection.
    Error(ErrorResponse),
}

/// Answer to [`Hello`](super::Hello).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HelloAck {
    /// The version that both will use.
    pub version: u8,
    /// Copies of a record that an acknowledgement can stand for, at least 1: 1
    /// is this broker's disk.
    pub copies: u8,
    /// Shards of the broker, at least 1.
    pub shards: u16,
    /// Feature bits that both have.
    pub features: u64,
    /// Longest frame in bytes that the broker accepts on this connection: room
    /// for a produce request of the longest batch, or more.
    pub max_frame_len: u32,
    /// Longest record batch in bytes that the broker accepts; it has room for a
    /// record.
    pub max_batch_len: u32,
    /// Most unanswered requests that the broker accepts on this connection, at
    /// least 1.
    pub max_in_flight: u32,
    /// The broker's boot count: it rises at every start.
    pub boot: u64,
    /// The data directory's identity.
    pub broker_id: [u8; 16],
}

/// A topic, as listed. Whoever decodes one has a valid name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicInfo {
    /// Number of the topic.
    pub id: TopicId,
    /// Number of its partitions, 1 to [`MAX_PARTITIONS`](super::MAX_PARTITIONS).
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
    /// Offset after the last durable record, at least `start_offset`.
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

/// What a fetch brought from one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchedPartition {
    /// Which partition.
    pub partition: PartitionId,
    /// 0, or why nothing was read: the number of an
    /// [`ErrorCode`](crate::ErrorCode).
    pub status: u16,
    /// Bytes of the frame's payload that belong to this partition: whole
    /// record batches. Partitions follow each other in the order of the list.
    /// 0 unless `status` is 0.
    pub payload_len: u32,
    /// Offset of the first batch in the payload, repeated here because here a
    /// CRC covers it; [`Offset::UNKNOWN`] without payload.
    pub base_offset: Offset,
    /// First offset that is still there.
    pub start_offset: Offset,
    /// Offset after the last durable record, at least `start_offset`.
    pub end_offset: Offset,
}

/// Answer to [`OpenProducer`](super::OpenProducer).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerOpened {
    /// The identity to produce under; not [`ProducerId::NONE`].
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

impl Response {
    /// Appends the response frame to `out`, up to its payload, of which
    /// `payload_len` bytes are to follow (0 but for fetch and deliveries). `opcode` is the
    /// number in the request (known or not), or that of [`Opcode::Goodbye`].
    ///
    /// # Panics
    /// If an error has code 0, or meta is longer than
    /// [`MAX_META_LEN`](crate::frame::MAX_META_LEN), which takes more topics or
    /// partitions than a broker may hold, or the description of a group on a topic
    /// of 100,000 partitions with three holds each: who makes one bounds them.
    pub fn encode(&self, out: &mut Vec<u8>, opcode: u8, correlation: u64, payload_len: u32) {
        let status = match self {
            Response::Error(error) => {
                assert!(error.code != 0, "an error with the status of success");
                error.code
            }
            _ => 0,
        };
        RawFrameHeader::new(opcode, true, status, correlation, payload_len)
            .encode_with(out, |out| self.put_meta(out));
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
            Response::Pong
            | Response::TopicDeleted
            | Response::GroupDeleted
            | Response::GroupReset
            | Response::Detached => {}
            Response::Group(group) => group.put(m),
            Response::Groups(groups) => {
                m.put_u32(groups.len() as u32);
                groups.iter().for_each(|g| g.put(m));
            }
            Response::GroupDescribed(description) => description.put(m),
            Response::Delivered(delivery) => delivery.put(m),
            Response::Settled(settled) => settled.put(m),
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
            Response::Produced(ack) => ack.put(m),
            Response::Fetched(partitions) => {
                m.put_u32(partitions.len() as u32);
                m.put_u32(0);
                partitions.iter().for_each(|p| p.put(m));
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

    /// Decodes the meta of a response frame with this opcode and status. An
    /// error is understood whatever its opcode.
    #[inline]
    pub fn decode(opcode: u8, status: u16, meta: &[u8], payload_len: u32) -> Result<Response, MessageError> {
        if payload_len > 0 && (status != 0 || !has_payload(opcode)) {
            return Err(MessageError::UnexpectedPayload);
        }
        if status == 0 && opcode == Opcode::Produce as u8 {
            return Ok(Response::Produced(ProduceAck::read(meta)?));
        }
        Self::decode_other(opcode, status, meta, payload_len)
    }

    fn decode_other(
        opcode: u8,
        status: u16,
        meta: &[u8],
        payload_len: u32,
    ) -> Result<Response, MessageError> {
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
            let known = Opcode::from_u8(opcode).ok_or(MessageError::UnknownOpcode(opcode))?;
            Self::read_success(known, &mut r, payload_len)?
        };
        r.finish()?;
        Ok(response)
    }

    fn read_success(opcode: Opcode, r: &mut Reader<'_>, payload_len: u32) -> Result<Response, MessageError> {
        Ok(match opcode {
            Opcode::Hello => Response::Hello(HelloAck::read(r)?),
            Opcode::Ping => Response::Pong,
            Opcode::CreateTopic => Response::TopicCreated(TopicInfo::read(r)?),
            Opcode::DeleteTopic => Response::TopicDeleted,
            Opcode::ListTopics => {
                let count = r.count(TopicInfo::MIN_LEN)?;
                Response::Topics((0..count).map(|_| TopicInfo::read(r)).collect::<Result<_, _>>()?)
            }
            Opcode::DescribeTopic => Response::Topic(TopicDescription::read(r)?),
            Opcode::Produce => Response::Produced(ProduceAck::read(r.rest())?),
            Opcode::Fetch => Response::Fetched(read_fetched(r, payload_len)?),
            Opcode::Offsets => Response::Offset(Offset(r.u64()?)),
            Opcode::OpenProducer => Response::ProducerOpened(ProducerOpened::read(r)?),
            Opcode::Stats => {
                let count = r.count(8 + 2)?;
                let stats = (0..count).map(|_| {
                    let value = r.u64()?;
                    Ok((r.string()?.to_owned(), value))
                });
                Response::Stats(stats.collect::<Result<_, MessageError>>()?)
            }
            Opcode::CreateGroup => Response::Group(GroupInfo::read(r)?),
            Opcode::DeleteGroup => Response::GroupDeleted,
            Opcode::ListGroups => {
                let count = r.count(GroupInfo::MIN_LEN)?;
                Response::Groups((0..count).map(|_| GroupInfo::read(r)).collect::<Result<_, _>>()?)
            }
            Opcode::DescribeGroup => Response::GroupDescribed(Box::new(GroupDescription::read(r)?)),
            Opcode::ResetGroup => Response::GroupReset,
            Opcode::Attach | Opcode::Detach => Response::Detached,
            Opcode::Receive | Opcode::Delivery => Response::Delivered(Delivery::read(r, payload_len)?),
            Opcode::Settle => Response::Settled(Settled::read(r)?),
            // A goodbye always says why.
            Opcode::Goodbye => return Err(MessageError::OutOfRange { field: "status", value: 0 }),
        })
    }
}

/// Whether answers with this operation number may have a payload.
fn has_payload(opcode: u8) -> bool {
    [Opcode::Fetch, Opcode::Receive, Opcode::Delivery].iter().any(|known| *known as u8 == opcode)
}

impl HelloAck {
    fn read(r: &mut Reader<'_>) -> Result<HelloAck, MessageError> {
        let (version, copies, shards) = (r.u8()?, r.u8()?, r.u16()?);
        ensure(copies > 0, "copies", 0)?;
        ensure(shards > 0, "shards", 0)?;
        let (max_frame_len, max_batch_len, max_in_flight) = (r.u32()?, r.u32()?, r.u32()?);
        // A client computes with these; none of it may underflow or wait for ever.
        let batch_fits = max_batch_len as usize >= BATCH_HEADER_LEN + RECORD_HEADER_LEN;
        ensure(batch_fits, "max_batch_len", u64::from(max_batch_len))?;
        let room = max_frame_len.saturating_sub(PRODUCE_HEAD_LEN as u32);
        ensure(room >= max_batch_len, "max_frame_len", u64::from(max_frame_len))?;
        ensure(max_in_flight > 0, "max_in_flight", 0)?;
        let (features, boot, broker_id) = (r.u64()?, r.u64()?, r.array()?);
        Ok(HelloAck {
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
}

impl ProducerOpened {
    fn read(r: &mut Reader<'_>) -> Result<ProducerOpened, MessageError> {
        let (producer, next_sequence) = (ProducerId(r.u64()?), Sequence(r.u64()?));
        ensure(producer != ProducerId::NONE, "producer_id", 0)?;
        let (last_offset, epoch) = (Offset(r.u64()?), Epoch(r.u32()?));
        r.reserved(4)?;
        Ok(ProducerOpened { producer, epoch, next_sequence, last_offset })
    }
}

impl TopicDescription {
    fn read(r: &mut Reader<'_>) -> Result<TopicDescription, MessageError> {
        let topic = TopicInfo::read(r)?;
        let count = r.count(4 + 8 + 8)?;
        ensure(count as u64 == u64::from(topic.partitions), "count", count as u64)?;
        let partitions = (0..count)
            .map(|_| {
                let shard = ShardId(r.small_u16("shard")?);
                let (start_offset, end_offset) = read_offset_range(r)?;
                Ok(PartitionInfo { shard, start_offset, end_offset })
            })
            .collect::<Result<_, MessageError>>()?;
        Ok(TopicDescription { topic, partitions })
    }
}

impl FetchedPartition {
    fn put(&self, m: &mut Vec<u8>) {
        put_partition(m, self.partition);
        m.put_u32(u32::from(self.status));
        m.put_u32(self.payload_len);
        m.put_u64(self.start_offset.0);
        m.put_u64(self.end_offset.0);
        m.put_u64(self.base_offset.0);
    }

    fn read(r: &mut Reader<'_>) -> Result<FetchedPartition, MessageError> {
        let (partition, status, payload_len) = (read_partition(r)?, r.small_u16("status")?, r.u32()?);
        ensure(status == 0 || payload_len == 0, "payload_len", u64::from(payload_len))?;
        let (start_offset, end_offset) = read_offset_range(r)?;
        let base_offset = Offset(r.u64()?);
        ensure((base_offset == Offset::UNKNOWN) == (payload_len == 0), "base_offset", base_offset.0)?;
        Ok(FetchedPartition { partition, status, payload_len, base_offset, start_offset, end_offset })
    }

    /// The batches of this partition, which are the first `payload_len` bytes
    /// of `payload`, checked as [`Batches`] does; and the payload of the
    /// partitions after this one.
    ///
    /// # Panics
    /// If `payload` is shorter than `payload_len`, which decoding the answer
    /// has checked against the frame's.
    pub fn split_payload<'a>(&self, payload: &'a [u8]) -> (Batches<'a>, &'a [u8]) {
        let (own, rest) = payload.split_at(self.payload_len as usize);
        (Batches::new(own, self.base_offset), rest)
    }
}

fn read_offset_range(r: &mut Reader<'_>) -> Result<(Offset, Offset), MessageError> {
    let (start, end) = (Offset(r.u64()?), Offset(r.u64()?));
    ensure(start <= end, "end_offset", end.0)?;
    Ok((start, end))
}

fn read_fetched(r: &mut Reader<'_>, payload_len: u32) -> Result<Vec<FetchedPartition>, MessageError> {
    let count = r.u32()? as usize;
    r.reserved(4)?;
    let whole = count <= MAX_FETCH_PARTITIONS && count * FETCHED_ITEM_LEN == r.left();
    ensure(whole, "count", count as u64)?;
    let fetched = (0..count).map(|_| FetchedPartition::read(r)).collect::<Result<Vec<_>, _>>()?;
    let sum: u64 = fetched.iter().map(|p| u64::from(p.payload_len)).sum();
    ensure(sum == u64::from(payload_len), "payload_len", sum)?;
    Ok(fetched)
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
        let (id, partitions, name) = (TopicId(r.u32()?), read_partition_count(r)?, r.string()?);
        ensure(is_valid_topic_name(name), "name", name.len() as u64)?;
        Ok(TopicInfo { id, partitions, name: name.to_owned() })
    }
}
