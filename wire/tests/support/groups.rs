//! Arbitrary messages of consumer groups, all within the ranges that the protocol
//! allows.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use ringbolt_wire::batch::{DeadLetter, Directions};
use ringbolt_wire::message::{
    Attach, Backoff, ConsumerAt, ConsumerInfo, CreateGroup, Credit, DeliveredRange, Delivery, GroupConfig,
    GroupDescription, GroupInfo, GroupMode, GroupPartition, GroupStart, Hold, LeaseRange, MAX_CREDIT_BYTES,
    MAX_CREDIT_RECORDS, MAX_LEASE_MS, MAX_OPEN_RECORDS, MAX_RETRY_DELAY_MS, Progress, Receive, ResetGroup,
    Settle, SettleItem, Settled, Unsettled, Verb,
};
use ringbolt_wire::{ConsumerId, GroupId, Offset, Opcode, Request, Response, ShardId, TopicId};

use super::{partition, topic_name};

/// Any request that has to do with groups.
pub fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        create_group().prop_map(Request::CreateGroup),
        ".{0,300}".prop_map(|name| Request::DeleteGroup { name }),
        Just(Request::ListGroups),
        ".{0,300}".prop_map(|name| Request::DescribeGroup { name }),
        reset_group().prop_map(Request::ResetGroup),
        attach().prop_map(Request::Attach),
        consumer_at().prop_map(Request::Detach),
        receive().prop_map(Request::Receive),
        settle().prop_map(Request::Settle),
    ]
}

/// Any response that has to do with groups, with its opcode and the length of its
/// payload.
pub fn response() -> impl Strategy<Value = (Response, u8, u32)> {
    let of = |opcode: Opcode| move |response| (response, opcode as u8, 0);
    let delivered = (delivery(), prop_oneof![Just(Opcode::Receive), Just(Opcode::Delivery)]).prop_map(
        |(delivery, op)| {
            let payload_len = delivery.ranges.iter().map(|range| range.payload_len).sum();
            (Response::Delivered(delivery), op as u8, payload_len)
        },
    );
    prop_oneof![
        group_info().prop_map(Response::Group).prop_map(of(Opcode::CreateGroup)),
        Just(Response::GroupDeleted).prop_map(of(Opcode::DeleteGroup)),
        vec(group_info(), 0..20).prop_map(Response::Groups).prop_map(of(Opcode::ListGroups)),
        description()
            .prop_map(Box::new)
            .prop_map(Response::GroupDescribed)
            .prop_map(of(Opcode::DescribeGroup)),
        Just(Response::GroupReset).prop_map(of(Opcode::ResetGroup)),
        Just(Response::Detached).prop_map(of(Opcode::Attach)),
        Just(Response::Detached).prop_map(of(Opcode::Detach)),
        delivered,
        settled().prop_map(Response::Settled).prop_map(of(Opcode::Settle)),
    ]
}

fn backoff() -> impl Strategy<Value = Backoff> {
    let ms = || 0..=MAX_RETRY_DELAY_MS;
    prop_oneof![
        Just(Backoff::None),
        ms().prop_map(Backoff::Fixed),
        (ms(), ms()).prop_map(|(a, b)| Backoff::Exponential { first_ms: a.min(b), max_ms: a.max(b) }),
    ]
}

fn config() -> impl Strategy<Value = GroupConfig> {
    let mode = prop_oneof![Just(GroupMode::Shared), Just(GroupMode::KeyOrdered), Just(GroupMode::Exclusive)];
    (mode, 1..=MAX_LEASE_MS, any::<(u32, bool, bool)>(), backoff(), 1..=MAX_OPEN_RECORDS).prop_map(
        |(mode, lease_ms, (max_failures, timeout_is_failure, dead_letter_expired), backoff, max_open)| {
            GroupConfig {
                mode,
                lease_ms,
                max_failures,
                timeout_is_failure,
                dead_letter_expired,
                backoff,
                max_open,
            }
        },
    )
}

fn start() -> impl Strategy<Value = GroupStart> {
    prop_oneof![
        Just(GroupStart::Earliest),
        Just(GroupStart::End),
        any::<u64>().prop_map(|offset| GroupStart::Offset(Offset(offset))),
        any::<u64>().prop_map(GroupStart::Time),
    ]
}

fn create_group() -> impl Strategy<Value = CreateGroup> {
    (".{0,300}", ".{0,300}", start(), any::<bool>(), config(), option::of(".{1,300}")).prop_map(
        |(name, topic, start, or_find, config, dead_letter_topic)| CreateGroup {
            name,
            topic,
            start,
            or_find,
            config,
            dead_letter_topic,
        },
    )
}

fn reset_group() -> impl Strategy<Value = ResetGroup> {
    (".{0,300}", start(), option::of(0..u32::MAX)).prop_map(|(name, to, partition)| ResetGroup {
        name,
        to,
        partition,
    })
}

fn group_info() -> impl Strategy<Value = GroupInfo> {
    (any::<(u32, u32, u32)>(), config(), topic_name()).prop_map(|((id, topic, dead_letter), config, name)| {
        GroupInfo { id: GroupId(id), topic: TopicId(topic), dead_letter: TopicId(dead_letter), config, name }
    })
}

fn progress() -> impl Strategy<Value = Progress> {
    any::<[u64; 15]>().prop_map(|n| Progress {
        end_offset: n[0],
        floor: n[1],
        next_offset: n[2],
        lag: n[3],
        leased: n[4],
        ready: n[5],
        delayed: n[6],
        behind_key: n[7],
        condemned: n[8],
        failed_total: n[9],
        dead_lettered_total: n[10],
        expired_total: n[11],
        oldest_age_us: n[12],
        consumers: n[13],
        holder: n[14],
    })
}

fn hold() -> impl Strategy<Value = Hold> {
    let pair = any::<(u64, u64)>;
    prop_oneof![
        Just(Hold::NothingNew),
        Just(Hold::NoConsumer),
        Just(Hold::NoCredit),
        pair().prop_map(|(count, ms)| Hold::Leased { count, ms }),
        pair().prop_map(|(offset, count)| Hold::Key { offset, count }),
        any::<u64>().prop_map(|open| Hold::AtBound { open }),
        pair().prop_map(|(count, ms)| Hold::Delayed { count, ms }),
        any::<u64>().prop_map(|consumer| Hold::Exclusive { consumer }),
        any::<u64>().prop_map(|count| Hold::DeadLetter { count }),
        Just(Hold::Reading),
        any::<u64>().prop_map(|offset| Hold::DelayedBound { offset }),
        any::<u64>().prop_map(|offset| Hold::Damaged { offset }),
        any::<u64>().prop_map(|open| Hold::MemoryBound { open }),
        Just(Hold::DiskFull),
        Just(Hold::NotReading),
    ]
}

fn description() -> impl Strategy<Value = GroupDescription> {
    let partition = (any::<(u32, u16)>(), progress(), vec(hold(), 0..4)).prop_map(
        |((partition, shard), progress, holds)| GroupPartition {
            partition,
            shard: ShardId(shard),
            progress,
            holds,
        },
    );
    let consumer = any::<(u64, u16, bool, u64, u64, u64)>().prop_map(
        |(consumer, shard, attached, credit_records, credit_bytes, leased)| ConsumerInfo {
            consumer: ConsumerId(consumer),
            shard: ShardId(shard),
            attached,
            credit_records,
            credit_bytes,
            leased,
        },
    );
    (group_info(), topic_name(), vec(partition, 0..5), vec(consumer, 0..5)).prop_map(
        |(group, topic, partitions, consumers)| GroupDescription { group, topic, partitions, consumers },
    )
}

fn consumer_at() -> impl Strategy<Value = ConsumerAt> {
    (any::<(u16, u32)>(), 1..=u64::MAX).prop_map(|((shard, group), consumer)| ConsumerAt {
        shard: ShardId(shard),
        group: GroupId(group),
        consumer: ConsumerId(consumer),
    })
}

fn credit(least: u64) -> impl Strategy<Value = Credit> {
    (least..=MAX_CREDIT_RECORDS, least..=MAX_CREDIT_BYTES)
        .prop_map(|(records, bytes)| Credit { records, bytes })
}

fn lease_range(least_acquired: u32) -> impl Strategy<Value = LeaseRange> {
    let base = prop_oneof![0..1000_u64, 0..=u64::MAX - u64::from(u32::MAX)];
    (any::<u32>(), base, 1..=u32::MAX, least_acquired..=u32::MAX).prop_map(
        |(partition, base, count, acquired)| LeaseRange {
            partition,
            base_offset: Offset(base),
            count,
            acquired,
        },
    )
}

fn attach() -> impl Strategy<Value = Attach> {
    (consumer_at(), credit(0), 0..=MAX_LEASE_MS, vec(lease_range(0), 0..20))
        .prop_map(|(at, credit, lease_ms, held)| Attach { at, credit, lease_ms, held })
}

fn receive() -> impl Strategy<Value = Receive> {
    (consumer_at(), credit(1), 0..=MAX_LEASE_MS, any::<u32>())
        .prop_map(|(at, credit, lease_ms, max_wait_ms)| Receive { at, credit, lease_ms, max_wait_ms })
}

fn verb() -> impl Strategy<Value = Verb> {
    prop_oneof![
        Just(Verb::Ack),
        Just(Verb::AckUpTo),
        (0..=MAX_RETRY_DELAY_MS).prop_map(|delay_ms| Verb::Nack { delay_ms }),
        (any::<bool>(), ".{0,60}").prop_map(|(dead_letter, reason)| Verb::Reject { dead_letter, reason }),
        (0..=MAX_LEASE_MS).prop_map(|lease_ms| Verb::Extend { lease_ms }),
        Just(Verb::Release),
        Just(Verb::Redrive),
    ]
}

fn settle() -> impl Strategy<Value = Settle> {
    let item = (lease_range(0), verb()).prop_map(|(range, verb)| SettleItem { range, verb });
    (consumer_at(), credit(0), any::<bool>(), vec(item, 0..10))
        .prop_map(|(at, credit, confirm, items)| Settle { at, credit, confirm, items })
}

fn settled() -> impl Strategy<Value = Settled> {
    let unsettled = (lease_range(0), 1..=u16::MAX).prop_map(|(range, status)| Unsettled {
        partition: range.partition,
        status,
        base_offset: range.base_offset,
        count: range.count,
    });
    vec(unsettled, 0..20).prop_map(|unsettled| Settled { unsettled })
}

fn delivery() -> impl Strategy<Value = Delivery> {
    let range = (lease_range(1), any::<(u32, u64)>(), 1..1_000_000_u32).prop_map(
        |(lease, (failed, first_delivery_us), payload_len)| DeliveredRange {
            lease,
            failed,
            first_delivery_us,
            payload_len,
        },
    );
    let some = (1..=MAX_LEASE_MS, vec(range, 1..20));
    prop_oneof![1 => Just((0, vec![])), 9 => some]
        .prop_map(|(lease_ms, ranges)| Delivery { lease_ms, ranges })
}

/// Any directions, none included.
pub fn directions() -> impl Strategy<Value = Directions> {
    (option::of(any::<u64>()), option::of(any::<u64>()), option::of(any::<u32>())).prop_map(
        |(deliver_at_us, expire_at_us, only_group)| Directions {
            deliver_at_us,
            expire_at_us,
            only_group: only_group.map(GroupId),
        },
    )
}

/// Any dead letter's header.
pub fn dead_letter() -> impl Strategy<Value = DeadLetter> {
    (partition(), any::<(u64, u32, u32, u32, u64, u64)>(), ".{0,60}").prop_map(
        |(origin, (offset, group, acquired, failed, first_delivery_us, moved_us), reason)| DeadLetter {
            origin,
            offset: Offset(offset),
            group: GroupId(group),
            acquired,
            failed,
            first_delivery_us,
            moved_us,
            reason,
        },
    )
}
