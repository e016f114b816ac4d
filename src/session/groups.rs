//! Requests of consumers, and about consumer groups: to the right shard, and back.

use bytes::Bytes;
use ringbolt_wire::message::{Delivery, ErrorResponse, Request, Response, Settle, SettleItem, Verb};
use ringbolt_wire::{ErrorCode, FrameHeader, Opcode, ShardId};

use super::gather::payload_len;
use super::group_gather::{GroupGather, GroupNext, GroupTask};
use super::input::Taken;
use super::pending::{Pending, number};
use super::{Input, Session, Shards};
use crate::limits::MAX_SETTLING_PER_SESSION;
use crate::shard::action::Reply;
use crate::shard::event::ShardRequest;

/// The number of a request that is not answered.
const UNANSWERED: u64 = u64::MAX;

/// Records of which the answer to a settle request may say something each.
fn answer_records(settle: &Settle) -> u64 {
    let of_item = |item: &SettleItem| match item.verb {
        Verb::AckUpTo => 1,
        _ => u64::from(item.range.count),
    };
    settle.items.iter().map(of_item).sum()
}

impl Session {
    /// Asks about a group: first shard 0, which one it is.
    pub(super) fn ask_group<S: Shards>(
        &mut self,
        header: &FrameHeader,
        name: String,
        task: GroupTask,
        shards: &mut S,
    ) -> Taken {
        let first = ShardId(0);
        let appends = task != GroupTask::Describe;
        let all = self.config.shards();
        if appends && let Some(full) = (0..all).map(ShardId).find(|shard| !shards.accepts(*shard, true)) {
            return Taken::No(Input::Stalled(full));
        }
        self.count(header);
        let gather = Box::new(GroupGather::new(task));
        let number = self.insert(Pending::Group { correlation: header.correlation, gather });
        shards.request(first, number, ShardRequest::LookUpGroup { name });
        Taken::Yes
    }

    /// Hands a consumer's request to its shard.
    pub(super) fn consume<S: Shards>(
        &mut self,
        header: &FrameHeader,
        request: Request,
        shards: &mut S,
    ) -> Taken {
        let at = match &request {
            Request::Attach(attach) => attach.at,
            Request::Detach(at) => *at,
            Request::Receive(receive) => receive.at,
            Request::Settle(settle) => settle.at,
            _ => unreachable!("these are the requests of consumers"),
        };
        let (shard, correlation) = (at.shard, header.correlation);
        let is_answered = !matches!(request, Request::Settle(Settle { confirm: false, .. }));
        if shard.0 >= self.config.shards() {
            self.count(header);
            if is_answered {
                let text = format!("shard {shard}, and there are {}", self.config.shards());
                let error = ErrorResponse::new(ErrorCode::InvalidRequest, text);
                self.refuse(header.opcode, correlation, error);
            }
            return Taken::Yes;
        }
        let (pending, request) = match request {
            Request::Attach(attach) => (Pending::Attach { correlation, shard }, ShardRequest::Attach(attach)),
            Request::Receive(receive) => {
                (Pending::Receive { correlation, shard }, ShardRequest::Receive(receive))
            }
            Request::Detach(at) => {
                (Pending::Single { correlation, opcode: Opcode::Detach }, ShardRequest::Detach(at))
            }
            Request::Settle(settle) => {
                let records = if is_answered { answer_records(&settle) } else { 0 };
                // A few bytes can ask for an answer of 400 KB.
                if self.settling > 0 && self.settling + records > MAX_SETTLING_PER_SESSION {
                    return Taken::No(Input::Backlogged);
                }
                (Pending::Settle { correlation, records }, ShardRequest::Settle(settle))
            }
            _ => unreachable!("the first match has seen it"),
        };
        // What a consumer asks stays in order, and settling waits for room in the log.
        if !shards.accepts(shard, true) {
            return Taken::No(Input::Stalled(shard));
        }
        self.count(header);
        if let Pending::Settle { records, .. } = &pending {
            self.settling += records;
        }
        let number = if is_answered { self.insert(pending) } else { UNANSWERED };
        shards.request(shard, number, request);
        Taken::Yes
    }

    pub(super) fn group_part<S: Shards>(&mut self, slot: usize, reply: Reply, shards: &mut S) {
        let all = self.config.shards();
        let Pending::Group { correlation, gather } = &mut self.pending[slot] else {
            unreachable!("the caller has matched it")
        };
        let (correlation, lists) = (*correlation, gather.lists());
        match gather.answered(reply, all) {
            GroupNext::Wait => {}
            GroupNext::AskAll => {
                let requests: Vec<_> = (0..all).map(|_| gather.request()).collect();
                for (shard, request) in (0..all).zip(requests) {
                    shards.request(ShardId(shard), number(slot, u32::from(shard)), request);
                }
            }
            GroupNext::Done(response) => {
                self.take_pending(slot);
                let opcode = if lists { Opcode::DescribeGroup } else { Opcode::ResetGroup };
                match lists {
                    true => self.list(|session| session.respond(opcode, correlation, response)),
                    false => self.respond(opcode, correlation, response),
                }
            }
        }
    }

    fn respond(&mut self, opcode: Opcode, correlation: u64, response: Response) {
        if let Response::Error(error) = response {
            return self.refuse(opcode as u8, correlation, error);
        }
        self.gathering.append(&self.config.spares, |out| response.encode(out, opcode as u8, correlation, 0));
    }

    /// Records for an attached consumer, or the end of its being attached.
    pub(super) fn attached<S: Shards>(&mut self, slot: usize, reply: Reply, shards: &mut S) {
        let Pending::Attach { correlation, shard } = self.pending[slot] else {
            unreachable!("the caller has matched it")
        };
        match reply {
            Reply::Delivered { delivery, payload } => {
                self.delivered(Opcode::Delivery, correlation, delivery, payload);
                // Its credit says what it can work on, not what lies here unread.
                if self.is_backlogged() {
                    match std::mem::replace(&mut self.pauses, true) {
                        false => self.pause_all(true, shards),
                        // It was on its way, or has attached since.
                        true => shards.pause(shard, number(slot, 0), true),
                    }
                }
            }
            last => {
                self.take_pending(slot);
                let response = match last {
                    Reply::Error(error) => Response::Error(error),
                    Reply::Detached => Response::Detached,
                    other => unreachable!("an attach is answered by {other:?}"),
                };
                self.respond(Opcode::Attach, correlation, response);
            }
        }
    }

    /// So much was sent that its consumers may be sent more again.
    pub fn end_pause<S: Shards>(&mut self, shards: &mut S) {
        self.pauses = false;
        self.pause_all(false, shards);
    }

    fn pause_all<S: Shards>(&mut self, pauses: bool, shards: &mut S) {
        for (slot, pending) in &self.pending {
            if let Pending::Attach { shard, .. } = pending {
                shards.pause(*shard, number(slot, 0), pauses);
            }
        }
    }

    pub(super) fn received(&mut self, slot: usize, reply: Reply) {
        let Pending::Receive { correlation, .. } = self.take_pending(slot) else {
            unreachable!("the caller has matched it")
        };
        match reply {
            Reply::Delivered { delivery, payload } => {
                self.delivered(Opcode::Receive, correlation, delivery, payload);
            }
            Reply::Error(error) => self.refuse(Opcode::Receive as u8, correlation, error),
            other => unreachable!("a receive is answered by {other:?}"),
        }
    }

    fn delivered(
        &mut self,
        opcode: Opcode,
        correlation: u64,
        delivery: Delivery,
        payload: impl IntoIterator<Item = Bytes> + AsRef<[Bytes]>,
    ) {
        let len = payload_len(payload.as_ref());
        let response = Response::Delivered(delivery);
        self.gathering
            .append(&self.config.spares, |out| response.encode(out, opcode as u8, correlation, len as u32));
        self.append_payload(payload);
    }
}
