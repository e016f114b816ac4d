//! Examples of consumer groups: creating, finding, describing, setting back.

use ringbolt_wire::frame::FRAME_HEADER_LEN;
use ringbolt_wire::message::{
    ConsumerInfo, CreateGroup, GroupConfig, GroupDescription, GroupInfo, GroupPartition, GroupStart, Hold,
    Progress, ResetGroup,
};
use ringbolt_wire::{GroupId, Offset, Opcode, Request, Response, ShardId, TopicId};

use super::consumers::CONSUMER;
use super::examples::{Example, request, response};

const START: &str = "start_kind u64, start u64";
const CONFIG: &str = "mode u8, backoff u8, timeout_is_failure u8, dead_letter_expired u8, lease_ms u32, \
    max_failures u32, max_open u32, backoff_first_ms u32, backoff_max_ms u32";

fn group_fields() -> String {
    format!("group u32, topic u32, dead_letter u32, {CONFIG}, name_len u16, name")
}

fn billing() -> GroupInfo {
    GroupInfo {
        id: GroupId(3),
        topic: TopicId(7),
        dead_letter: TopicId(8),
        config: GroupConfig::default(),
        name: "billing".into(),
    }
}

/// The group of the dead letters of `orders`.
fn dead_letters() -> GroupInfo {
    GroupInfo {
        id: GroupId(4),
        topic: TopicId(8),
        dead_letter: TopicId(0),
        config: GroupConfig { max_failures: 0, ..GroupConfig::default() },
        name: "orders.dlq".into(),
    }
}

pub fn examples() -> Vec<Example> {
    let mut all = making_examples();
    all.extend(describing_examples());
    all
}

fn making_examples() -> Vec<Example> {
    let create = CreateGroup {
        name: "billing".into(),
        topic: "orders".into(),
        start: GroupStart::Earliest,
        or_find: true,
        config: GroupConfig::default(),
        dead_letter_topic: Some("failed.dlq".into()),
    };
    let reset = ResetGroup { name: "billing".into(), to: GroupStart::Offset(Offset(40)), partition: Some(1) };
    let name = || "billing".to_owned();
    vec![
        request(
            "create group request",
            14,
            Request::CreateGroup(create),
            &format!(
                "{START}, {CONFIG}, or_find u8, reserved r3, topic_len u16, topic a6, name_len u16, name a7, \
                 dead_letter_topic_len u16, dead_letter_topic a10"
            ),
        ),
        response(
            "create group response",
            14,
            Opcode::CreateGroup,
            Response::Group(billing()),
            &format!("{} a7", group_fields()),
        ),
        request("delete group request", 15, Request::DeleteGroup { name: name() }, "name_len u16, name a7"),
        response("delete group response", 15, Opcode::DeleteGroup, Response::GroupDeleted, ""),
        request(
            "reset group request",
            18,
            Request::ResetGroup(reset),
            &format!("{START}, partition u32, name_len u16, name a7"),
        ),
        response("reset group response", 18, Opcode::ResetGroup, Response::GroupReset, ""),
    ]
}

/// Partition 0 has no records; of the last two of partition 1 one is leased, and
/// one waits for another attempt.
fn description() -> GroupDescription {
    let idle = GroupPartition {
        partition: 0,
        shard: ShardId(0),
        progress: Progress::default(),
        holds: vec![Hold::NothingNew, Hold::NoConsumer],
    };
    let busy = GroupPartition {
        partition: 1,
        shard: ShardId(1),
        progress: Progress {
            end_offset: 102,
            floor: 100,
            next_offset: 102,
            lag: 2,
            leased: 1,
            ready: 0,
            delayed: 1,
            behind_key: 0,
            condemned: 0,
            failed_total: 1,
            dead_lettered_total: 0,
            expired_total: 0,
            oldest_age_us: 4_500_000,
            consumers: 1,
            holder: 0,
        },
        holds: vec![Hold::Leased { count: 1, ms: 29_500 }, Hold::Delayed { count: 1, ms: 70 }],
    };
    let consumer = ConsumerInfo {
        consumer: CONSUMER.consumer,
        shard: CONSUMER.shard,
        attached: true,
        credit_records: 999,
        credit_bytes: 1_048_442,
        leased: 1,
    };
    GroupDescription {
        group: billing(),
        topic: "orders".into(),
        partitions: vec![idle, busy],
        consumers: vec![consumer],
    }
}

/// The meta of a description in which there is but this hold.
pub fn description_with(hold: Hold) -> Vec<u8> {
    let mut described = description();
    described.partitions.remove(0);
    described.partitions[0].holds = vec![hold];
    let mut frame = Vec::new();
    Response::GroupDescribed(Box::new(described)).encode(&mut frame, Opcode::DescribeGroup as u8, 1, 0);
    frame.split_off(FRAME_HEADER_LEN)
}

fn describing_examples() -> Vec<Example> {
    let group = group_fields();
    let partition = "= partition, partition u32, shard u16, holds u16, end_offset u64, floor u64, \
        next_offset u64, lag u64, leased u64, ready u64, delayed u64, behind_key u64, condemned u64, \
        failed_total u64, dead_lettered_total u64, expired_total u64, oldest_age_us u64, consumers u64, \
        holder u64";
    let hold = "= hold, hold u64, a u64, b u64";
    let consumer = "= consumer, consumer u64, shard u16, attached u8, reserved r5, credit_records u64, \
        credit_bytes u64, leased u64";
    vec![
        request("list groups request", 16, Request::ListGroups, ""),
        response(
            "list groups response",
            16,
            Opcode::ListGroups,
            Response::Groups(vec![billing(), dead_letters()]),
            &format!("count u32, = group, {group} a7, = group, {group} a10"),
        ),
        request(
            "describe group request",
            17,
            Request::DescribeGroup { name: "billing".into() },
            "name_len u16, name a7",
        ),
        response(
            "describe group response",
            17,
            Opcode::DescribeGroup,
            Response::GroupDescribed(Box::new(description())),
            &format!(
                "{group} a7, topic_len u16, topic a6, partitions u32, {partition}, {hold}, {hold}, \
                 {partition}, {hold}, {hold}, consumers u32, {consumer}"
            ),
        ),
    ]
}
