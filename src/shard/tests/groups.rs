//! Consumer groups: who gets which record, when, and what becomes of it.

mod bad_input;
mod dead_letters;
mod delivery;
mod explain;
mod held;
mod memory;
mod recovery;
mod resets;
mod stories;
mod timing;
mod turns;

use ringbolt_wire::batch::Directions;
use ringbolt_wire::message::{
    Attach, Backoff, ConsumerAt, CreateGroup, Credit, GroupConfig, GroupInfo, GroupMode, GroupPartition,
    GroupStart, LeaseRange, Receive, Settle, SettleItem, Settled, Verb,
};
use ringbolt_wire::{BatchView, ConsumerId, GroupId, Record};

use super::*;

const ALICE: ConsumerId = ConsumerId(0xa);
const BOB: ConsumerId = ConsumerId(0xb);
/// No record.
const NONE: [u64; 0] = [];

/// A record as it was delivered.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Got {
    partition: u32,
    offset: u64,
    acquired: u32,
    failed: u32,
    value: Vec<u8>,
}

impl Got {
    fn lease(&self) -> LeaseRange {
        let (partition, base_offset) = (self.partition, Offset(self.offset));
        LeaseRange { partition, base_offset, count: 1, acquired: self.acquired }
    }
}

/// A configuration without backoff, so that time plays no part unless a test wants it.
fn calm(mode: GroupMode) -> GroupConfig {
    GroupConfig { mode, backoff: Backoff::None, ..GroupConfig::default() }
}

impl Rig {
    fn group(&mut self, name: &str, config: GroupConfig, start: GroupStart) -> GroupInfo {
        let topic = "t".to_owned();
        let create = CreateGroup {
            name: name.to_owned(),
            topic,
            start,
            or_find: false,
            config,
            dead_letter_topic: None,
        };
        self.request(ShardRequest::CreateGroup(create));
        match self.replies.pop() {
            Some((_, Reply::Group(info))) => info,
            other => panic!("no group: {other:?}"),
        }
    }

    /// A group in this mode, from the first record on.
    fn calm_group(&mut self, mode: GroupMode) -> GroupId {
        self.group("g", calm(mode), GroupStart::Earliest).id
    }

    fn append(&mut self, records: &[Record]) {
        let mut batch = BatchBuilder::new();
        records.iter().for_each(|r| batch.push(r.timestamp_us, r.key.as_deref(), &r.value, &r.headers));
        let batch = batch.finish(PARTITION, ProducerId::NONE, Epoch(0), Sequence(0));
        let request =
            self.request(ShardRequest::Produce { payload: Payload::Borrowed(&batch), min_copies: 0 });
        self.replies.retain(|(to, _)| *to != request);
    }

    /// Appends records of one byte, each in a batch of its own.
    fn values(&mut self, values: &[u8]) {
        for value in values {
            self.append(&[Record { value: vec![*value], ..Record::default() }]);
        }
    }

    fn keyed(&mut self, records: &[(&str, u8)]) {
        let record =
            |(key, value): &(&str, u8)| Record { key: Some(key.as_bytes().to_vec()), ..plain(*value) };
        self.append(&records.iter().map(record).collect::<Vec<_>>());
    }

    fn attach_with(&mut self, id: GroupId, consumer: ConsumerId, records: u64, held: Vec<LeaseRange>) -> u64 {
        let credit = Credit { records, bytes: 1 << 20 };
        let attach = Attach { at: at(id, consumer), credit, lease_ms: 0, held };
        self.request(ShardRequest::Attach(attach))
    }

    fn attach(&mut self, id: GroupId, consumer: ConsumerId, records: u64) -> u64 {
        self.attach_with(id, consumer, records, Vec::new())
    }

    fn receive(&mut self, id: GroupId, consumer: ConsumerId, records: u64, max_wait_ms: u32) -> u64 {
        let credit = Credit { records, bytes: 1 << 20 };
        self.request(ShardRequest::Receive(Receive {
            at: at(id, consumer),
            credit,
            lease_ms: 0,
            max_wait_ms,
        }))
    }

    fn settle_all(
        &mut self,
        id: GroupId,
        consumer: ConsumerId,
        items: Vec<SettleItem>,
        credit: Credit,
    ) -> u64 {
        let settle = Settle { at: at(id, consumer), credit, confirm: true, items };
        self.request(ShardRequest::Settle(settle))
    }

    fn settle(&mut self, id: GroupId, consumer: ConsumerId, range: LeaseRange, verb: Verb) -> u64 {
        self.settle_all(id, consumer, vec![SettleItem { range, verb }], Credit::default())
    }

    /// Settles, and says what was not.
    fn settled(
        &mut self,
        id: GroupId,
        consumer: ConsumerId,
        range: LeaseRange,
        verb: Verb,
    ) -> Vec<(u64, ErrorCode)> {
        let request = self.settle(id, consumer, range, verb);
        let settled = self.take_settled(request).expect("it is answered");
        let codes = settled.unsettled.iter().flat_map(|u| {
            let code = ErrorCode::from_u16(u.status).unwrap();
            (u.base_offset.0..u.base_offset.0 + u64::from(u.count)).map(move |offset| (offset, code))
        });
        codes.collect()
    }

    fn ack(&mut self, id: GroupId, consumer: ConsumerId, got: &Got) {
        assert_eq!(self.settled(id, consumer, got.lease(), Verb::Ack), []);
    }

    fn take_settled(&mut self, request: u64) -> Option<Settled> {
        let at = self.replies.iter().position(|(to, _)| *to == request)?;
        match self.replies.remove(at).1 {
            Reply::Settled(settled) => Some(settled.into_inner()),
            other => panic!("not settled: {other:?}"),
        }
    }

    /// What an attached consumer, or one that asked once, was sent since the last time.
    fn got(&mut self, request: u64) -> Vec<Got> {
        let (own, others) = std::mem::take(&mut self.replies).into_iter().partition(|(to, _)| *to == request);
        self.replies = others;
        let own: Vec<(u64, Reply)> = own;
        own.into_iter().flat_map(|(_, reply)| records_of(reply)).collect()
    }

    fn offsets_got(&mut self, request: u64) -> Vec<u64> {
        self.got(request).iter().map(|got| got.offset).collect()
    }

    fn state(&mut self, id: GroupId) -> GroupPartition {
        let request = self.request(ShardRequest::GroupStates(id));
        let at = self.replies.iter().position(|(to, _)| *to == request).expect("it is answered");
        match self.replies.remove(at).1 {
            Reply::GroupStates(mut partitions, _) => partitions.remove(0),
            other => panic!("no states: {other:?}"),
        }
    }

    /// Hands a request in, and gives the shard no turn.
    fn hand_in(&mut self, request: ShardRequest<'_, Vector>) -> u64 {
        self.correlation += 1;
        let from = ReplyTo { core: 0, session: 1, correlation: self.correlation };
        self.shard.handle(Event::Request { from, request }, self.now);
        self.correlation
    }

    /// A dead letter of a group that nothing may fail in.
    fn dead_letter(&mut self) -> (GroupId, GroupId) {
        let config = GroupConfig { max_failures: 1, ..calm(GroupMode::Shared) };
        let id = self.group("g", config, GroupStart::Earliest).id;
        let alice = self.attach(id, ALICE, 100);
        let got = self.got(alice);
        self.settled(id, ALICE, got[0].lease(), reject());
        self.request(ShardRequest::LookUpGroup { name: "t.dlq".into() });
        match self.replies.pop() {
            Some((_, Reply::GroupFound(info, _))) => (id, info.id),
            other => panic!("no group of dead letters: {other:?}"),
        }
    }

    /// Appends records until there is no room for a small one.
    fn fill_up(&mut self) {
        self.disk_full = true;
        self.use_up();
    }

    fn use_up(&mut self) {
        for len in [200 << 10, 1] {
            while !self.is_refused(len) {}
        }
    }

    fn is_refused(&mut self, len: usize) -> bool {
        let mut batch = BatchBuilder::new();
        batch.push(0, None, &vec![7; len], &[]);
        let batch = batch.finish(PARTITION, ProducerId::NONE, Epoch(0), Sequence(0));
        self.request(ShardRequest::Produce { payload: Payload::Borrowed(&batch), min_copies: 0 });
        matches!(self.replies.pop(), Some((_, Reply::Error(_))))
    }

    /// The broker is killed, and starts again.
    fn restart(self, term: u64) -> Rig {
        let mut rig = Rig::start(self.disk, term).expect("a good log");
        rig.correlation = self.correlation;
        rig
    }
}

fn at(group: GroupId, consumer: ConsumerId) -> ConsumerAt {
    ConsumerAt { shard: ShardId(0), group, consumer }
}

fn plain(value: u8) -> Record {
    Record { value: vec![value], ..Record::default() }
}

fn directed(value: u8, directions: Directions) -> Record {
    let mut record = plain(value);
    directions.put_headers(&mut record.headers);
    record
}

fn range(base: u64, count: u32, acquired: u32) -> LeaseRange {
    LeaseRange { partition: 0, base_offset: Offset(base), count, acquired }
}

fn reject() -> Verb {
    Verb::Reject { dead_letter: false, reason: "no".into() }
}

fn records_of(reply: Reply) -> Vec<Got> {
    let Reply::Delivered { delivery, payload } = reply else { panic!("not delivered: {reply:?}") };
    let (payload, mut got) = (payload.concat(), Vec::new());
    let mut rest = &payload[..];
    for range in &delivery.ranges {
        let (batches, after) = range.split_payload(rest).expect("whole batches of those records");
        rest = after;
        for (offset, record) in batches.iter().flat_map(BatchView::records) {
            got.push(Got {
                partition: range.lease.partition,
                offset: offset.0,
                acquired: range.lease.acquired,
                failed: range.failed,
                value: record.value.to_vec(),
            });
        }
    }
    got
}
