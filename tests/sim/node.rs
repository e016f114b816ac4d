//! One shard with its disk and its memory, as a driver sees them.

use ringbolt::buffer::{Buffer, Carver};
use ringbolt::limits::BLOCK_LEN;
use ringbolt::shard::Shard;
use ringbolt::shard::event::{Event, Payload, ReplyTo, ShardRequest};
use ringbolt::time::Now;

use super::disk::Disk;
use super::pool::{SimBuffer, SimPool};
use super::workload::{Body, Form, GroupBody, Outgoing};

#[derive(Debug)]
pub struct Node {
    pub shard: Option<Box<ShardOf>>,
    pub disk: Disk,
    pub pool: SimPool,
    /// Memory into which batches are received.
    pub carver: Carver<SimBuffer>,
    /// The shard has said that it stops for good.
    pub stopped: bool,
    /// A write has failed: nothing may be answered any more.
    pub failed: bool,
    /// A segment could not be made, and the shard has not gone on since.
    pub disk_full: bool,
}

/// A shard over simulated memory; wrapped so that it can be shown.
pub struct ShardOf(pub Shard<SimPool>);

impl std::fmt::Debug for ShardOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shard")
    }
}

impl Node {
    pub fn new(disk: Disk, pool: SimPool) -> Node {
        Node {
            shard: None,
            disk,
            pool,
            carver: Carver::default(),
            stopped: false,
            failed: false,
            disk_full: false,
        }
    }

    /// The shard, which is running.
    pub fn shard(&mut self) -> &mut Shard<SimPool> {
        &mut self.shard.as_mut().expect("the broker runs").0
    }

    pub fn handle(&mut self, event: Event<'_, SimBuffer>, now: Now) {
        self.shard().handle(event, now);
    }

    /// Hands a request in.
    pub fn request(&mut self, outgoing: &Outgoing, now: Now) {
        let from = ReplyTo { core: 0, session: outgoing.session, correlation: outgoing.correlation };
        let request = match &outgoing.body {
            Body::Produce { batch, form, min_copies, .. } => {
                let payload = self.payload(batch, *form);
                ShardRequest::Produce { payload, min_copies: *min_copies }
            }
            Body::Fetch(fetch) => ShardRequest::Fetch(fetch.clone()),
            Body::Offsets(partition, spec) => ShardRequest::Offsets { partition: *partition, spec: *spec },
            Body::Open(open) => ShardRequest::OpenProducer(*open),
            Body::States(topic) => ShardRequest::PartitionStates(*topic),
            Body::Create { name, partitions, .. } => {
                ShardRequest::CreateTopic { name: name.clone(), partitions: *partitions }
            }
            Body::Delete(name) => ShardRequest::DeleteTopic { name: name.clone() },
            Body::List { .. } => ShardRequest::ListTopics,
            Body::LookUp(name) => ShardRequest::LookUpTopic { name: name.clone() },
            Body::Group(body) => group_request(body.clone()),
        };
        self.handle(Event::Request { from, request }, now);
    }

    fn payload<'a>(&mut self, batch: &'a bytes::Bytes, form: Form) -> Payload<'a, SimBuffer> {
        match form {
            Form::Borrowed => Payload::Borrowed(batch),
            Form::Shared => Payload::Shared(batch.clone()),
            Form::Aligned => {
                let len = (BLOCK_LEN + batch.len()).next_multiple_of(BLOCK_LEN);
                let Some(mut buffer) = self.carver.carve(&mut self.pool, len) else {
                    return Payload::Borrowed(batch);
                };
                assert_eq!(buffer.as_ref().len(), len);
                buffer.as_mut()[BLOCK_LEN..BLOCK_LEN + batch.len()].copy_from_slice(batch);
                Payload::Aligned { buffer, len: batch.len() }
            }
        }
    }

    /// Everything in memory is gone.
    pub fn lose_memory(&mut self) {
        self.shard = None;
        self.carver = Carver::default();
        (self.stopped, self.failed, self.disk_full) = (false, false, false);
    }
}

fn group_request(body: GroupBody) -> ShardRequest<'static, SimBuffer> {
    match body {
        GroupBody::Create(create) => ShardRequest::CreateGroup(create),
        GroupBody::Delete(name) => ShardRequest::DeleteGroup { name },
        GroupBody::List { .. } => ShardRequest::ListGroups,
        GroupBody::LookUp(name) => ShardRequest::LookUpGroup { name },
        GroupBody::States(group) => ShardRequest::GroupStates(group),
        GroupBody::Reset { group, to, partition } => ShardRequest::ResetGroup { group, to, partition },
        GroupBody::Attach(attach) => ShardRequest::Attach(attach),
        GroupBody::Detach(at) => ShardRequest::Detach(at),
        GroupBody::Receive(receive) => ShardRequest::Receive(receive),
        GroupBody::Settle(settle) => ShardRequest::Settle(settle),
    }
}

const _: fn() = || {
    fn is_buffer<B: Buffer>() {}
    is_buffer::<SimBuffer>();
};
