//! Answers from shards: to the right request, as frames.

use bytes::Bytes;
use ringbolt_wire::message::{ErrorResponse, FetchedPartition, Response};
use ringbolt_wire::{Opcode, ShardId};

use super::gather::{FetchNext, TopicNext, payload_len};
use super::pending::{Pending, number, split};
use super::{Session, Shards, add};
use crate::shard::action::Reply;
use crate::shard::event::ShardRequest;

impl Session {
    /// Takes a shard's answer to the request that went out under `number`.
    ///
    /// # Panics
    /// If no request is in flight under it: a shard answers once.
    #[inline]
    pub fn reply<S: Shards>(&mut self, number: u64, reply: Reply, shards: &mut S) {
        let (slot, part) = split(number);
        match &mut self.pending[slot] {
            Pending::Single { correlation, opcode } => {
                let (correlation, opcode) = (*correlation, *opcode);
                self.take_pending(slot);
                match reply {
                    Reply::Produced(ack) => {
                        self.gathering.append(&self.config.spares, |out| ack.encode(out, correlation))
                    }
                    other => self.single(opcode, correlation, other),
                }
            }
            Pending::Settle { correlation, records } => {
                let (correlation, records) = (*correlation, *records);
                self.settling -= records;
                self.take_pending(slot);
                self.single(Opcode::Settle, correlation, reply);
            }
            Pending::Fetch { correlation, .. } => {
                let correlation = *correlation;
                self.take_pending(slot);
                match reply {
                    Reply::Fetched { partitions, payload } => {
                        self.fetched(correlation, partitions, payload);
                    }
                    Reply::Error(error) => self.refuse(Opcode::Fetch as u8, correlation, error),
                    other => unreachable!("a fetch is answered by {other:?}"),
                }
            }
            Pending::FetchParts { .. } => self.fetch_part(slot, part, reply, shards),
            Pending::Topic { .. } => self.topic_part(slot, reply, shards),
            Pending::Group { .. } => self.group_part(slot, reply, shards),
            Pending::Attach { .. } => self.attached(slot, reply, shards),
            Pending::Receive { .. } => self.received(slot, reply),
        }
    }

    /// Takes the broker's counters, sorted by name, that the request under
    /// `number` asked for.
    pub fn stats(&mut self, number: u64, stats: Vec<(String, u64)>) {
        let (slot, _) = split(number);
        let Pending::Single { correlation, opcode: Opcode::Stats } = self.take_pending(slot) else {
            panic!("counters that no request asked for")
        };
        let response = Response::Stats(stats);
        self.list(|session| {
            session.gathering.append(&session.config.spares, |out| {
                response.encode(out, Opcode::Stats as u8, correlation, 0)
            });
        });
    }

    /// Gathers an answer that lists.
    pub(super) fn list(&mut self, answer: impl FnOnce(&mut Self)) {
        let before = self.gathering.len();
        answer(self);
        let len = self.gathering.len() - before;
        self.listing.made(len, &self.config.listings);
    }

    fn single(&mut self, opcode: Opcode, correlation: u64, reply: Reply) {
        match opcode {
            Opcode::ListTopics | Opcode::ListGroups => {
                self.list(|session| session.answered(opcode, correlation, reply))
            }
            _ => self.answered(opcode, correlation, reply),
        }
    }

    fn answered(&mut self, opcode: Opcode, correlation: u64, reply: Reply) {
        let response = match reply {
            Reply::Produced(ack) => Response::Produced(ack),
            Reply::Offset(offset) => Response::Offset(offset),
            Reply::ProducerOpened(opened) => Response::ProducerOpened(opened),
            Reply::TopicCreated(topic) => Response::TopicCreated(topic),
            Reply::TopicDeleted => Response::TopicDeleted,
            Reply::Topics(topics) => Response::Topics(topics),
            Reply::Group(info) => Response::Group(info),
            Reply::GroupDeleted => Response::GroupDeleted,
            Reply::Groups(groups) => Response::Groups(groups),
            Reply::Detached => Response::Detached,
            Reply::Settled(settled) => Response::Settled(settled.into_inner()),
            Reply::Error(error) => return self.refuse(opcode as u8, correlation, error),
            Reply::Fetched { .. }
            | Reply::PartitionStates(_)
            | Reply::Topic(_)
            | Reply::GroupFound(..)
            | Reply::GroupStates(..)
            | Reply::GroupReset
            | Reply::Delivered { .. } => unreachable!("{opcode:?} is answered by {reply:?}"),
        };
        self.gathering.append(&self.config.spares, |out| response.encode(out, opcode as u8, correlation, 0));
    }

    fn fetched(
        &mut self,
        correlation: u64,
        partitions: Vec<FetchedPartition>,
        payload: impl IntoIterator<Item = Bytes> + AsRef<[Bytes]>,
    ) {
        let len = payload_len(payload.as_ref());
        let response = Response::Fetched(partitions);
        self.gathering.append(&self.config.spares, |out| {
            response.encode(out, Opcode::Fetch as u8, correlation, len as u32)
        });
        self.append_payload(payload);
    }

    pub(super) fn append_payload(&mut self, payload: impl IntoIterator<Item = Bytes>) {
        for piece in payload {
            let copied = self.gathering.append_shared(&self.config.spares, piece);
            add(&self.config.counters.copied_bytes, copied);
        }
    }

    fn fetch_part<S: Shards>(&mut self, slot: usize, part: u32, reply: Reply, shards: &mut S) {
        let Pending::FetchParts { correlation, gather, .. } = &mut self.pending[slot] else {
            unreachable!("the caller has matched it")
        };
        let correlation = *correlation;
        match gather.answered(part, reply) {
            FetchNext::Wait => {}
            FetchNext::Hurry(parts) => {
                parts.into_iter().for_each(|(part, shard)| shards.fetch_now(shard, number(slot, part)));
            }
            FetchNext::Done(partitions, payload) => {
                self.take_pending(slot);
                self.fetched(correlation, partitions, payload);
            }
        }
    }

    fn topic_part<S: Shards>(&mut self, slot: usize, reply: Reply, shards: &mut S) {
        let Pending::Topic { correlation, gather } = &mut self.pending[slot] else {
            unreachable!("the caller has matched it")
        };
        let correlation = *correlation;
        match gather.answered(reply) {
            TopicNext::Wait => {}
            TopicNext::AskAll(topic) => {
                for shard in 0..self.config.shards() {
                    let request = ShardRequest::PartitionStates(topic);
                    shards.request(ShardId(shard), number(slot, u32::from(shard)), request);
                }
            }
            TopicNext::Done(result) => {
                self.take_pending(slot);
                self.list(|session| session.described(correlation, result));
            }
        }
    }

    fn described(
        &mut self,
        correlation: u64,
        result: Result<ringbolt_wire::message::TopicDescription, ErrorResponse>,
    ) {
        match result {
            Ok(description) => {
                let response = Response::Topic(description);
                let opcode = Opcode::DescribeTopic as u8;
                self.gathering
                    .append(&self.config.spares, |out| response.encode(out, opcode, correlation, 0));
            }
            Err(error) => self.refuse(Opcode::DescribeTopic as u8, correlation, error),
        }
    }
}
