//! Requests that concern several shards: what has come back, and what the
//! answer is once all of it is there.
//!
//! Knows nothing of connections or frames.

use bytes::Bytes;
use ringbolt_wire::message::{
    ErrorResponse, Fetch, FetchedPartition, PartitionInfo, TopicDescription, TopicInfo,
};
use ringbolt_wire::{ErrorCode, Offset, PartitionId, ShardId, TopicId};
use smallvec::SmallVec;

use crate::shard::action::Reply;
use crate::shard::placement::shard_of;

/// Payload of an answer, in pieces.
pub type Payload = SmallVec<[Bytes; 4]>;

/// A fetch over partitions of several shards.
#[derive(Debug)]
pub struct FetchGather {
    parts: Vec<FetchPart>,
    /// For each partition in the order of the request: in which part, at which
    /// place.
    order: Vec<(u16, u16)>,
    max_bytes: u32,
    open: usize,
    /// Whether the parts that still wait were told to answer.
    hurried: bool,
}

#[derive(Debug)]
struct FetchPart {
    shard: ShardId,
    /// Partitions asked for.
    partitions: SmallVec<[PartitionId; 4]>,
    fetched: Option<(Vec<FetchedPartition>, Payload)>,
}

/// What to do after a part has come.
#[derive(Debug)]
pub enum FetchNext {
    /// Wait for the others.
    Wait,
    /// Tell these parts (number and shard) to answer with what they have, and
    /// wait for them.
    Hurry(SmallVec<[(u32, ShardId); 4]>),
    /// All are there: this is the answer.
    Done(Vec<FetchedPartition>, Payload),
}

impl FetchPart {
    fn refused(&self, status: u16) -> Vec<FetchedPartition> {
        let refused = |&partition| FetchedPartition {
            partition,
            status,
            payload_len: 0,
            base_offset: Offset::UNKNOWN,
            start_offset: Offset(0),
            end_offset: Offset(0),
        };
        self.partitions.iter().map(refused).collect()
    }
}

impl FetchGather {
    /// Splits `fetch` by shard: the gather, and a fetch for each shard in the
    /// order of the parts. At least two shards are concerned.
    pub fn split(fetch: &Fetch, shards: u16) -> (FetchGather, Vec<(ShardId, Fetch)>) {
        let mut place = vec![u16::MAX; usize::from(shards)];
        let mut requests: Vec<(ShardId, Fetch)> = Vec::new();
        let mut order = Vec::with_capacity(fetch.partitions.len());
        for wanted in &fetch.partitions {
            let shard = shard_of(wanted.partition, shards);
            let slot = &mut place[usize::from(shard.0)];
            if *slot == u16::MAX {
                *slot = requests.len() as u16;
                requests.push((shard, Fetch { partitions: Vec::new(), ..*fetch }));
            }
            let partitions = &mut requests[usize::from(*slot)].1.partitions;
            order.push((*slot, partitions.len() as u16));
            partitions.push(*wanted);
        }
        let parts: Vec<_> = requests
            .iter()
            .map(|(shard, part)| FetchPart {
                shard: *shard,
                partitions: part.partitions.iter().map(|p| p.partition).collect(),
                fetched: None,
            })
            .collect();
        let gather = FetchGather {
            open: parts.len(),
            parts,
            order,
            max_bytes: fetch.max_bytes,
            hurried: fetch.max_wait_ms == 0,
        };
        (gather, requests)
    }

    /// Takes the answer of part `number`. The first one to come ends the wait
    /// of all: it has data, or its time is up.
    pub fn answered(&mut self, number: u32, reply: Reply) -> FetchNext {
        let part = &mut self.parts[number as usize];
        assert!(part.fetched.is_none(), "a part of a fetch was answered twice");
        part.fetched = Some(match reply {
            Reply::Fetched { partitions, payload } => {
                assert_eq!(partitions.len(), part.partitions.len(), "a fetch answers for every partition");
                (partitions, payload)
            }
            // The other shards' records are good: only these carry the refusal.
            Reply::Error(error) => (part.refused(error.code), Payload::new()),
            other => unreachable!("a fetch is answered by {other:?}"),
        });
        self.advance()
    }

    /// Parts that are still waited for.
    pub fn waiting(&self) -> impl Iterator<Item = (u32, ShardId)> {
        self.parts
            .iter()
            .enumerate()
            .filter(|(_, p)| p.fetched.is_none())
            .map(|(number, p)| (number as u32, p.shard))
    }

    fn advance(&mut self) -> FetchNext {
        self.open -= 1;
        if self.open == 0 {
            let (partitions, payload) = self.merge();
            return FetchNext::Done(partitions, payload);
        }
        if std::mem::replace(&mut self.hurried, true) {
            return FetchNext::Wait;
        }
        FetchNext::Hurry(self.waiting().collect())
    }

    /// The parts in the order of the request, as many of them as `max_bytes`
    /// allows: a partition whose records do not fit any more is answered
    /// without, and asked for again.
    fn merge(&mut self) -> (Vec<FetchedPartition>, Payload) {
        let mut parts: Vec<_> = self
            .parts
            .iter_mut()
            .map(|p| p.fetched.take().expect("merged when every part is there"))
            .collect();
        let mut merged = Vec::with_capacity(self.order.len());
        let mut payload = Payload::new();
        let mut total = 0u64;
        for &(part, index) in &self.order {
            let (partitions, pieces) = &mut parts[usize::from(part)];
            let mut fetched = partitions[usize::from(index)];
            let len = fetched.payload_len;
            let own = take_front(pieces, len as usize);
            if total > 0 && total + u64::from(len) > u64::from(self.max_bytes) {
                fetched.payload_len = 0;
                fetched.base_offset = Offset::UNKNOWN;
            } else {
                total += u64::from(len);
                payload.extend(own);
            }
            merged.push(fetched);
        }
        (merged, payload)
    }
}

/// Cuts the first `len` bytes off `pieces`.
fn take_front(pieces: &mut Payload, mut len: usize) -> Payload {
    let mut front = Payload::new();
    while len > 0 {
        let piece = pieces.first_mut().expect("payload is as long as its partitions say");
        if piece.len() <= len {
            len -= piece.len();
            front.push(pieces.remove(0));
        } else {
            front.push(piece.split_to(len));
            len = 0;
        }
    }
    front
}

/// A topic's description: the topic from shard 0, then the state of its
/// partitions from all shards.
#[derive(Debug)]
pub struct TopicGather {
    topic: Option<TopicInfo>,
    partitions: Vec<PartitionInfo>,
    found: usize,
    open: usize,
    shards: u16,
    failed: Option<ErrorResponse>,
}

/// What to do after a part of a description has come.
#[derive(Debug)]
pub enum TopicNext {
    /// Wait for the others.
    Wait,
    /// Ask every shard for its partitions of this topic; the parts have the
    /// shards' numbers.
    AskAll(TopicId),
    /// All are there: this is the answer.
    Done(Result<TopicDescription, ErrorResponse>),
}

impl TopicGather {
    /// Waits for the topic itself.
    pub fn new(shards: u16) -> TopicGather {
        TopicGather { topic: None, partitions: Vec::new(), found: 0, open: 1, shards, failed: None }
    }

    /// Takes an answer.
    pub fn answered(&mut self, reply: Reply) -> TopicNext {
        self.open -= 1;
        match reply {
            Reply::Topic(topic) => {
                assert!(self.topic.is_none(), "a topic was looked up once");
                let id = topic.id;
                self.partitions = self.unknown_partitions(&topic);
                self.topic = Some(topic);
                self.open = usize::from(self.shards);
                return TopicNext::AskAll(id);
            }
            Reply::PartitionStates(states) => {
                for (index, start_offset, end_offset) in states {
                    let info = &mut self.partitions[index as usize];
                    info.start_offset = start_offset;
                    info.end_offset = end_offset;
                    self.found += 1;
                }
            }
            Reply::Error(error) => self.failed = Some(error),
            other => unreachable!("a description is answered by {other:?}"),
        }
        if self.open > 0 { TopicNext::Wait } else { TopicNext::Done(self.finish()) }
    }

    fn unknown_partitions(&self, topic: &TopicInfo) -> Vec<PartitionInfo> {
        let unknown = |index| PartitionInfo {
            shard: shard_of(PartitionId::new(topic.id, index), self.shards),
            start_offset: Offset(0),
            end_offset: Offset(0),
        };
        (0..topic.partitions).map(unknown).collect()
    }

    fn finish(&mut self) -> Result<TopicDescription, ErrorResponse> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let topic = self.topic.take().expect("finished only after the topic was found, or failed");
        if self.found != topic.partitions as usize {
            // Deleted between the look-up and the shards' answers.
            return Err(ErrorResponse::new(ErrorCode::UnknownTopic, topic.name));
        }
        Ok(TopicDescription { topic, partitions: std::mem::take(&mut self.partitions) })
    }
}

/// Bytes in a payload.
pub fn payload_len(payload: &[Bytes]) -> usize {
    payload.iter().map(Bytes::len).sum()
}
