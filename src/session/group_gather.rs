//! Requests that concern a consumer group at all shards: first the group itself from
//! shard 0, then what each shard has of it, or does with it.

use ringbolt_wire::message::{
    ConsumerInfo, ErrorResponse, GroupDescription, GroupInfo, GroupPartition, GroupStart, Response,
};

use crate::limits::{MAX_DESCRIBED_CONSUMERS, MAX_DESCRIBED_HOLDS};
use crate::shard::action::Reply;
use crate::shard::event::ShardRequest;

/// What is asked of every shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GroupTask {
    /// How far the group is.
    Describe,
    /// To begin anew.
    Reset {
        /// Where.
        to: GroupStart,
        /// In this partition; `None` for all.
        partition: Option<u32>,
    },
}

/// What has come back.
#[derive(Debug)]
pub struct GroupGather {
    task: GroupTask,
    group: Option<(GroupInfo, String)>,
    partitions: Vec<GroupPartition>,
    consumers: Vec<ConsumerInfo>,
    open: u16,
    failed: Option<ErrorResponse>,
}

/// What to do after a part has come.
#[derive(Debug)]
pub enum GroupNext {
    /// Wait for the others.
    Wait,
    /// Ask every shard.
    AskAll,
    /// This is the answer.
    Done(Response),
}

impl GroupGather {
    /// Waits for the group itself.
    pub fn new(task: GroupTask) -> GroupGather {
        GroupGather {
            task,
            group: None,
            partitions: Vec::new(),
            consumers: Vec::new(),
            open: 1,
            failed: None,
        }
    }

    /// Whether the answer lists.
    pub fn lists(&self) -> bool {
        self.task == GroupTask::Describe
    }

    /// The request for each shard, once the group is known.
    pub fn request<'a, B>(&self) -> ShardRequest<'a, B> {
        let (info, _) = self.group.as_ref().expect("shards are asked when the group is known");
        match self.task {
            GroupTask::Describe => ShardRequest::GroupStates(info.id),
            GroupTask::Reset { to, partition } => ShardRequest::ResetGroup { group: info.id, to, partition },
        }
    }

    /// Takes an answer, on a broker with so many shards.
    pub fn answered(&mut self, reply: Reply, shards: u16) -> GroupNext {
        self.open -= 1;
        match reply {
            Reply::GroupFound(info, topic) => {
                assert!(self.group.is_none(), "a group was looked up once");
                self.group = Some((info, topic));
                self.open = shards;
                return GroupNext::AskAll;
            }
            Reply::GroupStates(partitions, consumers) => {
                self.partitions.extend(partitions);
                self.consumers.extend(consumers);
            }
            Reply::GroupReset => {}
            Reply::Error(error) => self.failed = Some(error),
            other => unreachable!("a group's shards answer with {other:?}"),
        }
        if self.open > 0 { GroupNext::Wait } else { GroupNext::Done(self.finish()) }
    }

    fn finish(&mut self) -> Response {
        if let Some(error) = self.failed.take() {
            return Response::Error(error);
        }
        if !self.lists() {
            return Response::GroupReset;
        }
        let (group, topic) = self.group.take().expect("finished only after the group was found, or failed");
        let mut partitions = std::mem::take(&mut self.partitions);
        partitions.sort_unstable_by_key(|partition| partition.partition);
        partitions.iter_mut().skip(MAX_DESCRIBED_HOLDS).for_each(|partition| partition.holds.clear());
        let mut consumers = std::mem::take(&mut self.consumers);
        consumers.sort_unstable_by_key(|consumer| (consumer.shard.0, consumer.consumer.0));
        consumers.truncate(MAX_DESCRIBED_CONSUMERS);
        Response::GroupDescribed(Box::new(GroupDescription { group, topic, partitions, consumers }))
    }
}
