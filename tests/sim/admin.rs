//! Clients that create, delete and list topics, and one whose every request is
//! wrong.

use bytes::Bytes;
use ringbolt::limits::MAX_BATCH_LEN;
use ringbolt::shard::action::Reply;
use ringbolt_wire::{BatchBuilder, Epoch, ErrorCode, PartitionId, ProducerId, Sequence, TopicId};

use super::workload::{Body, Client, Cx, Form};

/// Sees to it that there are topics. It is the only one, so that no two
/// requests for one name are under way at a time.
#[derive(Debug)]
pub struct Admin {
    session: u64,
    asked: Option<u64>,
    names: u64,
}

impl Admin {
    pub fn new(cx: &mut Cx<'_>) -> Admin {
        Admin { session: cx.new_session(), asked: None, names: 0 }
    }

    fn choose(&mut self, cx: &mut Cx<'_>) -> (usize, Body) {
        if cx.topics.len() < cx.habits.topics {
            self.names += 1;
            let name = format!("topic-{:06}", self.names);
            return (0, Body::Create { name, partitions: cx.habits.partitions, refusal: None });
        }
        let any = cx.topics[cx.rng.below(cx.topics.len() as u64) as usize].clone();
        let shard = cx.rng.below(u64::from(cx.shards)) as usize;
        match cx.rng.below(10) {
            0 if cx.habits.churn => (0, Body::Delete(any.name)),
            0..3 => (0, Body::List { settle: false }),
            3 => (0, Body::Delete("there-is-no-such-topic".into())),
            4 => {
                let refusal = Some(ErrorCode::TopicExists);
                (0, Body::Create { name: any.name, partitions: 1, refusal })
            }
            5 => {
                let refusal = Some(ErrorCode::InvalidTopicName);
                (0, Body::Create { name: "a/b".into(), partitions: 1, refusal })
            }
            6 => (0, Body::LookUp(any.name)),
            7 => (shard, Body::States(TopicId(u32::MAX))),
            _ => (shard, Body::States(any.id)),
        }
    }
}

impl Client for Admin {
    fn wake(&mut self, cx: &mut Cx<'_>) {
        if !cx.active || self.asked.is_some() {
            return;
        }
        let (shard, body) = self.choose(cx);
        self.asked = Some(cx.send(self.session, shard, body));
    }

    fn hear(&mut self, correlation: u64, _: Reply, cx: &mut Cx<'_>) {
        assert_eq!(self.asked.take(), Some(correlation));
        let pause = cx.rng.between(1, 10 * cx.habits.think_us);
        cx.wake_in(if cx.topics.len() < cx.habits.topics { 1 } else { pause });
    }

    fn lose(&mut self, cx: &mut Cx<'_>) {
        self.session = cx.new_session();
        self.asked = None;
        // A name whose fate is unknown is never used again.
        cx.think();
    }

    fn session(&self) -> u64 {
        self.session
    }

    fn is_done(&self) -> bool {
        self.asked.is_none()
    }
}

/// Sends what must be refused, and expects nothing else.
#[derive(Debug)]
pub struct Vandal {
    session: u64,
    asked: Vec<u64>,
}

impl Vandal {
    pub fn new(cx: &mut Cx<'_>) -> Vandal {
        Vandal { session: cx.new_session(), asked: Vec::new() }
    }

    fn batch(partition: PartitionId, value_len: usize) -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        builder.push(1, None, &vec![0x55; value_len], &[]);
        builder.finish(partition, ProducerId::NONE, Epoch(0), Sequence(0))
    }

    fn choose(cx: &mut Cx<'_>) -> Option<(PartitionId, Vec<u8>, u8, ErrorCode)> {
        let partition = cx.any_partition()?;
        let good = Self::batch(partition, 500);
        Some(match cx.rng.below(7) {
            0 => {
                let mut batch = good;
                let at = cx.rng.between(80, batch.len() as u64 - 1) as usize;
                batch[at] ^= 1 << cx.rng.below(8);
                (partition, batch, 0, ErrorCode::BatchCrcMismatch)
            }
            1 => (partition, good[..300].to_vec(), 0, ErrorCode::MalformedBatch),
            2 => {
                let batch = Self::batch(partition, MAX_BATCH_LEN as usize);
                (partition, batch, 0, ErrorCode::BatchTooLarge)
            }
            3 => {
                let nowhere = PartitionId::new(TopicId(u32::MAX - 1), 0);
                (nowhere, Self::batch(nowhere, 10), 0, ErrorCode::UnknownTopic)
            }
            4 => {
                let beyond = PartitionId::new(partition.topic, 99_999);
                (beyond, Self::batch(beyond, 10), 0, ErrorCode::UnknownPartition)
            }
            5 => (partition, good, 2, ErrorCode::DurabilityUnavailable),
            _ => {
                let catalog = PartitionId::new(TopicId(0), 0);
                (catalog, Self::batch(catalog, 10), 0, ErrorCode::UnknownTopic)
            }
        })
    }
}

impl Client for Vandal {
    fn wake(&mut self, cx: &mut Cx<'_>) {
        if !cx.active || self.asked.len() >= 3 {
            return;
        }
        if let Some((partition, batch, min_copies, refusal)) = Self::choose(cx) {
            let shard = cx.shard_of(partition);
            let form = if batch.len() > MAX_BATCH_LEN as usize {
                Form::Borrowed
            } else {
                cx.rng.pick(&cx.habits.forms)
            };
            let body = Body::Produce { batch: Bytes::from(batch), form, min_copies, refusal: Some(refusal) };
            self.asked.push(cx.send(self.session, shard, body));
        }
        cx.think();
    }

    fn hear(&mut self, correlation: u64, _: Reply, cx: &mut Cx<'_>) {
        self.asked.retain(|asked| *asked != correlation);
        cx.think();
    }

    fn lose(&mut self, cx: &mut Cx<'_>) {
        self.session = cx.new_session();
        self.asked.clear();
        cx.think();
    }

    fn session(&self) -> u64 {
        self.session
    }

    fn is_done(&self) -> bool {
        self.asked.is_empty()
    }
}
