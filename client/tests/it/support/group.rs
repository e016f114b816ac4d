//! Groups in memory: leases, credit, and what becomes of records; with a note of what
//! was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringbolt_wire::message::{
    Attach, ConsumerAt, CreateGroup, Credit, DeliveredRange, Delivery, ErrorResponse, GroupConfig,
    GroupDescription, GroupInfo, GroupMode, GroupPartition, LeaseRange, Progress, Settle, SettleItem,
    Settled, Unsettled, Verb,
};
use ringbolt_wire::{
    BatchBuilder, BatchHeader, BatchView, ConsumerId, Epoch, ErrorCode, FrameHeader, GroupId, Offset, Opcode,
    PartitionId, ProducerId, Request, Response, Sequence, ShardId, TopicId,
};

use super::{Partition, Peer, State, TOPIC};

pub struct Group {
    pub info: GroupInfo,
    pub partitions: Vec<GroupLog>,
    consumers: BTreeMap<(u16, ConsumerId), Attached>,
    /// Partitions of an exclusive group that somebody has.
    owners: BTreeMap<u32, ConsumerId>,
    /// Settles as they came, whatever became of them.
    pub settles: Vec<Settle>,
    pub attaches: Vec<Attach>,
    /// Partition and offset of each record, whenever it was completed by an ack.
    pub acked: Vec<(u32, u64)>,
    /// Dead letters, and why.
    pub dead: Vec<(u32, u64, String)>,
    /// Most records leased to one consumer at one shard at once.
    pub most_leased: usize,
    pub delivered: u64,
}

#[derive(Default)]
pub struct GroupLog {
    next: u64,
    pub completed: BTreeSet<u64>,
    pub open: BTreeMap<u64, Open>,
}

#[derive(Clone, Default)]
pub struct Open {
    pub acquired: u32,
    pub failed: u32,
    pub first_us: u64,
    pub lease: Option<Lease>,
    not_before: Option<Instant>,
}

#[derive(Clone, Copy)]
pub struct Lease {
    pub consumer: ConsumerId,
    until: Instant,
    given_ms: u32,
}

struct Attached {
    peer: Peer,
    correlation: u64,
    records: i64,
    bytes: i64,
    lease_ms: u32,
}

impl Attached {
    fn send(&self, response: &Response, opcode: Opcode, payload: &[u8]) {
        let mut frame = Vec::new();
        response.encode(&mut frame, opcode as u8, self.correlation, payload.len() as u32);
        frame.extend_from_slice(payload);
        let _ = self.peer.out.send(frame);
    }

    fn end(&self, code: ErrorCode) {
        self.send(&Response::Error(ErrorResponse::new(code, "")), Opcode::Attach, &[]);
    }
}

pub fn acknowledges(request: &Request) -> bool {
    matches!(request, Request::Settle(settle) if settle.items.iter().any(|item| item.verb == Verb::Ack))
}

fn refuse(code: ErrorCode) -> Response {
    Response::Error(ErrorResponse::new(code, ""))
}

impl State {
    /// The answer to a request that concerns groups, if there is one now.
    pub fn answer_of_groups(
        &mut self,
        header: &FrameHeader,
        request: Request,
        peer: &Peer,
    ) -> Option<Response> {
        let shard_of: Vec<u16> = self.partitions.iter().map(|p| p.shard).collect();
        let ends: Vec<u64> = self.partitions.iter().map(|p| p.end).collect();
        let response = match request {
            Request::CreateGroup(create) => self.create_group(create),
            Request::DeleteGroup { name } => match self.groups.remove(&name) {
                Some(group) => {
                    group.consumers.values().for_each(|attached| attached.end(ErrorCode::UnknownGroup));
                    Response::GroupDeleted
                }
                None => refuse(ErrorCode::UnknownGroup),
            },
            Request::ListGroups => Response::Groups(self.groups.values().map(|g| g.info.clone()).collect()),
            Request::DescribeGroup { name } => match self.groups.get(&name) {
                Some(group) => Response::GroupDescribed(Box::new(group.describe(&shard_of))),
                None => refuse(ErrorCode::UnknownGroup),
            },
            Request::ResetGroup(reset) => match self.groups.get_mut(&reset.name) {
                Some(group) => {
                    group.partitions.iter_mut().for_each(|log| *log = GroupLog::default());
                    Response::GroupReset
                }
                None => refuse(ErrorCode::UnknownGroup),
            },
            Request::Attach(attach) => match self.group_mut(attach.at) {
                Some(group) => {
                    group.attach(attach, header.correlation, peer);
                    self.pump();
                    return None;
                }
                None => refuse(ErrorCode::UnknownGroup),
            },
            Request::Detach(at) => match self.group_mut(at).map(|group| group.leave(at)) {
                Some(true) => Response::Detached,
                Some(false) => refuse(ErrorCode::UnknownConsumer),
                None => refuse(ErrorCode::UnknownGroup),
            },
            Request::Settle(settle) => {
                let confirm = settle.confirm;
                let response = match self.group_mut(settle.at) {
                    Some(group) => group.settle(settle, &ends),
                    None => refuse(ErrorCode::UnknownGroup),
                };
                self.pump();
                return confirm.then_some(response);
            }
            other => panic!("the peer does not know {other:?}"),
        };
        Some(response)
    }

    fn group_mut(&mut self, at: ConsumerAt) -> Option<&mut Group> {
        self.groups.values_mut().find(|group| group.info.id == at.group)
    }

    fn create_group(&mut self, create: CreateGroup) -> Response {
        if create.topic != "t" {
            return refuse(ErrorCode::UnknownTopic);
        }
        if let Some(found) = self.groups.get(&create.name) {
            if !create.or_find || found.info.config.mode != create.config.mode {
                return refuse(ErrorCode::GroupExists);
            }
        } else {
            let id = GroupId(self.groups.len() as u32 + 1);
            let partitions = self.partitions.len();
            self.groups.insert(create.name.clone(), Group::new(id, &create, partitions));
        }
        Response::Group(self.groups[&create.name].info.clone())
    }

    /// Ends leases that ran out, and sends what may be sent.
    pub fn pump(&mut self) {
        for group in self.groups.values_mut() {
            group.expire();
            let keys: Vec<_> = group.consumers.keys().copied().collect();
            for (shard, consumer) in keys {
                for (index, partition) in (0u32..).zip(&self.partitions) {
                    if partition.shard == shard {
                        group.deliver(shard, consumer, index, partition, &mut self.damage_deliveries);
                    }
                }
            }
        }
    }
}

impl Group {
    fn new(id: GroupId, create: &CreateGroup, partitions: usize) -> Self {
        let CreateGroup { name, config, .. } = create.clone();
        Group {
            info: GroupInfo { id, topic: TOPIC, dead_letter: TopicId(0), config, name },
            partitions: (0..partitions).map(|_| GroupLog::default()).collect(),
            consumers: BTreeMap::new(),
            owners: BTreeMap::new(),
            settles: Vec::new(),
            attaches: Vec::new(),
            acked: Vec::new(),
            dead: Vec::new(),
            most_leased: 0,
            delivered: 0,
        }
    }

    pub fn config(&mut self) -> &mut GroupConfig {
        &mut self.info.config
    }

    pub fn is_attached(&self) -> bool {
        !self.consumers.is_empty()
    }

    /// Records that are leased, whoever has them.
    pub fn leased(&self) -> usize {
        self.partitions.iter().flat_map(|log| log.open.values()).filter(|open| open.lease.is_some()).count()
    }

    /// Ends all leases, as a restart does.
    pub fn lose_leases(&mut self) {
        self.owners.clear();
        self.partitions.iter_mut().flat_map(|log| log.open.values_mut()).for_each(|open| open.lease = None);
    }

    pub fn detach_all(&mut self) {
        self.consumers.clear();
    }

    /// A connection was lost: leases stay.
    pub fn detach(&mut self, peer: &Peer) {
        self.consumers.retain(|_, attached| attached.peer.id != peer.id);
    }

    fn describe(&self, shard_of: &[u16]) -> GroupDescription {
        let partitions = (0u32..).zip(&self.partitions).map(|(partition, log)| {
            let leased = log.open.values().filter(|open| open.lease.is_some()).count() as u64;
            let progress = Progress { next_offset: log.next, leased, ..Progress::default() };
            let shard = ShardId(shard_of[partition as usize]);
            GroupPartition { partition, shard, progress, holds: Vec::new() }
        });
        GroupDescription {
            group: self.info.clone(),
            topic: "t".into(),
            partitions: partitions.collect(),
            consumers: Vec::new(),
        }
    }

    fn attach(&mut self, attach: Attach, correlation: u64, peer: &Peer) {
        let (shard, consumer) = (attach.at.shard.0, attach.at.consumer);
        let is_held = |partition: u32, offset: u64, acquired: u32| {
            attach.held.iter().any(|held| {
                held.partition == partition
                    && held.acquired == acquired
                    && (held.base_offset.0..held.end().0).contains(&offset)
            })
        };
        for (partition, log) in (0u32..).zip(&mut self.partitions) {
            if partition % 2 != u32::from(shard) {
                continue;
            }
            for (&offset, open) in &mut log.open {
                let own = open.lease.is_some_and(|lease| lease.consumer == consumer);
                if own && !is_held(partition, offset, open.acquired) {
                    open.lease = None;
                }
            }
        }
        let attached = Attached {
            peer: peer.clone(),
            correlation,
            records: attach.credit.records as i64,
            bytes: attach.credit.bytes as i64,
            lease_ms: if attach.lease_ms > 0 { attach.lease_ms } else { self.info.config.lease_ms },
        };
        if let Some(replaced) = self.consumers.insert((shard, consumer), attached) {
            replaced.end(ErrorCode::ConsumerReplaced);
        }
        self.attaches.push(attach);
    }

    fn leave(&mut self, at: ConsumerAt) -> bool {
        let Some(attached) = self.consumers.remove(&(at.shard.0, at.consumer)) else { return false };
        for (partition, log) in (0u32..).zip(&mut self.partitions) {
            if partition % 2 == u32::from(at.shard.0) {
                let own = |open: &&mut Open| open.lease.is_some_and(|lease| lease.consumer == at.consumer);
                log.open.values_mut().filter(own).for_each(|open| open.lease = None);
            }
        }
        attached.send(&Response::Detached, Opcode::Attach, &[]);
        true
    }

    fn expire(&mut self) {
        let now = Instant::now();
        for partition in 0..self.partitions.len() {
            let open = &self.partitions[partition].open;
            let ran_out = open.iter().filter(|(_, open)| open.lease.is_some_and(|lease| lease.until <= now));
            for offset in ran_out.map(|(&offset, _)| offset).collect::<Vec<_>>() {
                self.give_back(partition as u32, offset, true, Duration::ZERO);
            }
        }
    }

    /// Ends a record's lease; in an exclusive group those of its successors as well.
    fn give_back(&mut self, partition: u32, offset: u64, failed: bool, delay: Duration) {
        let exclusive = self.info.config.mode == GroupMode::Exclusive;
        let log = &mut self.partitions[partition as usize];
        let Some(open) = log.open.get_mut(&offset) else { return };
        open.lease = None;
        open.failed += u32::from(failed);
        open.not_before = Some(Instant::now() + delay);
        if exclusive {
            log.open.range_mut(offset + 1..).for_each(|(_, open)| open.lease = None);
        }
    }

    fn settle(&mut self, settle: Settle, ends: &[u64]) -> Response {
        self.settles.push(settle.clone());
        if settle.credit != Credit::default() {
            let Some(attached) = self.consumers.get_mut(&(settle.at.shard.0, settle.at.consumer)) else {
                return refuse(ErrorCode::UnknownConsumer);
            };
            attached.records += settle.credit.records as i64;
            attached.bytes += settle.credit.bytes as i64;
        }
        let mut unsettled = Vec::new();
        for SettleItem { range, verb } in &settle.items {
            for offset in range.base_offset.0..range.end().0 {
                if let Err(code) = self.settle_one(settle.at.consumer, range, offset, verb, ends) {
                    let (base_offset, status) = (Offset(offset), code as u16);
                    unsettled.push(Unsettled { partition: range.partition, status, base_offset, count: 1 });
                }
            }
        }
        Response::Settled(Settled { unsettled })
    }

    fn settle_one(
        &mut self,
        consumer: ConsumerId,
        range: &LeaseRange,
        offset: u64,
        verb: &Verb,
        ends: &[u64],
    ) -> Result<(), ErrorCode> {
        let partition = range.partition;
        let max_failures = self.info.config.max_failures;
        let log = &mut self.partitions[partition as usize];
        if offset >= ends[partition as usize] {
            return Err(ErrorCode::OffsetOutOfRange);
        }
        if log.completed.contains(&offset) {
            return Err(ErrorCode::AlreadyCompleted);
        }
        let open = log.open.get_mut(&offset).ok_or(ErrorCode::NotDelivered)?;
        let lease = open.lease.filter(|lease| lease.consumer == consumer && open.acquired == range.acquired);
        let lease = lease.ok_or(ErrorCode::LeaseLost)?;
        match verb {
            Verb::Ack | Verb::AckUpTo => {
                log.open.remove(&offset);
                log.completed.insert(offset);
                self.acked.push((partition, offset));
            }
            Verb::Reject { dead_letter, reason } if *dead_letter || open.failed + 1 == max_failures => {
                log.open.remove(&offset);
                log.completed.insert(offset);
                self.dead.push((partition, offset, reason.clone()));
            }
            Verb::Reject { .. } => self.give_back(partition, offset, true, Duration::ZERO),
            Verb::Nack { delay_ms } => {
                self.give_back(partition, offset, false, Duration::from_millis(u64::from(*delay_ms)));
            }
            Verb::Release => self.give_back(partition, offset, false, Duration::ZERO),
            Verb::Extend { lease_ms } => {
                let ms = if *lease_ms > 0 { *lease_ms } else { lease.given_ms };
                let until = Instant::now() + Duration::from_millis(u64::from(ms));
                open.lease = Some(Lease { until, ..lease });
            }
            Verb::Redrive => return Err(ErrorCode::InvalidRequest),
        }
        Ok(())
    }

    fn deliver(
        &mut self,
        shard: u16,
        consumer: ConsumerId,
        index: u32,
        partition: &Partition,
        damage: &mut u32,
    ) {
        if self.info.config.mode == GroupMode::Exclusive {
            let has_leases = |owner: ConsumerId| {
                let open = self.partitions[index as usize].open.values();
                open.filter_map(|open| open.lease).any(|lease| lease.consumer == owner)
            };
            let owner = self.owners.get(&index).copied();
            let is_free =
                owner.is_none_or(|owner| !self.consumers.contains_key(&(shard, owner)) && !has_leases(owner));
            if is_free {
                self.owners.insert(index, consumer);
            } else if owner != Some(consumer) {
                return;
            }
        }
        while let Some((range, mut payload)) = self.next_range(shard, consumer, index, partition) {
            let attached = self.consumers.get_mut(&(shard, consumer)).unwrap();
            attached.records -= i64::from(range.lease.count);
            attached.bytes -= payload.len() as i64;
            if *damage > 0 {
                *damage -= 1;
                *payload.last_mut().unwrap() ^= 1;
            }
            let delivery = Delivery { lease_ms: attached.lease_ms, ranges: vec![range] };
            attached.send(&Response::Delivered(delivery), Opcode::Delivery, &payload);
            self.delivered += u64::from(range.lease.count);
            let own = |open: &&Open| open.lease.is_some_and(|lease| lease.consumer == consumer);
            let logs = (0u16..).zip(&self.partitions).filter(|(index, _)| index % 2 == shard);
            let leased = logs.map(|(_, log)| log.open.values().filter(own).count()).sum();
            self.most_leased = self.most_leased.max(leased);
        }
    }

    /// Leases what comes next to this consumer, as far as its credit goes.
    fn next_range(
        &mut self,
        shard: u16,
        consumer: ConsumerId,
        index: u32,
        partition: &Partition,
    ) -> Option<(DeliveredRange, Vec<u8>)> {
        let attached = &self.consumers[&(shard, consumer)];
        if attached.records <= 0 || attached.bytes <= 0 {
            return None;
        }
        let exclusive = self.info.config.mode == GroupMode::Exclusive;
        let (now, given_ms) = (Instant::now(), attached.lease_ms);
        let lease = Lease { consumer, until: now + Duration::from_millis(u64::from(given_ms)), given_ms };
        let log = &mut self.partitions[index as usize];
        let ready = |open: &Open| open.lease.is_none() && open.not_before.is_none_or(|at| at <= now);
        let first = match exclusive {
            false => log.open.iter().find(|(_, open)| ready(open)).map_or(log.next, |(&offset, _)| offset),
            true => match log.open.iter().find(|(_, open)| open.lease.is_none()) {
                Some((_, open)) if !ready(open) => return None,
                found => found.map_or(log.next, |(&offset, _)| offset),
            },
        };
        let (mut offset, mut payload_len) = (first, 0);
        let mut taken: Vec<Open> = Vec::new();
        while offset < partition.end
            && (taken.len() as i64) < attached.records
            && payload_len < attached.bytes
        {
            let open = log.open.get(&offset).cloned().unwrap_or_default();
            let fits = taken.first().is_none_or(|f| {
                (f.acquired, f.failed, f.first_us) == (open.acquired, open.failed, open.first_us)
            });
            if !ready(&open) || log.completed.contains(&offset) || !fits {
                break;
            }
            payload_len += partition.record_len(offset);
            taken.push(open);
            offset += 1;
        }
        let before = taken.first()?.clone();
        let time_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        for offset in first..offset {
            let open = log.open.entry(offset).or_default();
            open.acquired += 1;
            open.first_us = if open.first_us == 0 { time_us } else { open.first_us };
            open.lease = Some(lease);
        }
        log.next = log.next.max(offset);
        let payload = partition.cut(index, first, offset);
        let range = DeliveredRange {
            lease: LeaseRange {
                partition: index,
                base_offset: Offset(first),
                count: (offset - first) as u32,
                acquired: before.acquired + 1,
            },
            failed: before.failed,
            first_delivery_us: before.first_us,
            payload_len: payload.len() as u32,
        };
        Some((range, payload))
    }
}

impl Partition {
    fn batch_of(&self, offset: u64) -> BatchView<'_> {
        let (_, batch) = self.batches.range(..=offset).next_back().unwrap();
        BatchView::parse_exact(batch, u32::MAX).unwrap()
    }

    /// About.
    fn record_len(&self, offset: u64) -> i64 {
        let view = self.batch_of(offset);
        let (_, record) = view.records().find(|(at, _)| at.0 == offset).unwrap();
        record.value.len() as i64
    }

    /// These records as a batch of their own.
    fn cut(&self, index: u32, from: u64, to: u64) -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        for offset in from..to {
            let view = self.batch_of(offset);
            let (_, record) = view.records().find(|(at, _)| at.0 == offset).unwrap();
            let headers: Vec<_> = record.headers().map(|(n, v)| (n.to_owned(), v.to_vec())).collect();
            builder.push(record.timestamp_us, record.key, record.value, &headers);
        }
        let id = PartitionId::new(TOPIC, index);
        let mut batch = builder.finish(id, ProducerId::NONE, Epoch(0), Sequence(0));
        BatchHeader::set_placement(&mut batch, Offset(from), 1_000_000 + from);
        batch
    }
}
