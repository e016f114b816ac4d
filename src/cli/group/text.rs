//! Groups as text and as JSON.

use std::time::Duration;

use ringbolt_client::{ConsumerInfo, GroupDescription, GroupInfo, GroupPartition};
use serde_json::{Value, json};

use super::args::backoff_text;
use super::explain::sentence;
use crate::cli::topic::table;

pub(super) fn group_json(group: &GroupInfo) -> Value {
    let config = &group.config;
    json!({
        "id": group.id.0,
        "name": group.name,
        "topic": group.topic.0,
        "dead_letter": group.dead_letter.0,
        "mode": config.mode.to_string(),
        "lease_ms": config.lease_ms,
        "max_failures": config.max_failures,
        "timeout_is_failure": config.timeout_is_failure,
        "dead_letter_expired": config.dead_letter_expired,
        "backoff": backoff_text(&config.backoff),
        "max_open": config.max_open,
    })
}

pub(super) fn list(groups: &[GroupInfo]) -> String {
    let mut table = table(&["GROUP", "MODE", "TOPIC-ID", "ID"]);
    for group in groups {
        let mode = group.config.mode.to_string();
        table.add_row([&group.name, &mode, &group.topic.to_string(), &group.id.to_string()]);
    }
    format!("{table}\n")
}

pub(super) fn description(description: &GroupDescription) -> String {
    let mut partitions = table(&[
        "PARTITION",
        "SHARD",
        "END",
        "FLOOR",
        "LAG",
        "LEASED",
        "READY",
        "DELAYED",
        "BEHIND-KEY",
        "CONDEMNED",
        "FAILED",
        "DEAD",
        "EXPIRED",
        "OLDEST",
        "CONSUMERS",
    ]);
    for p in &description.partitions {
        let of = &p.progress;
        let numbers = [
            u64::from(p.partition),
            u64::from(p.shard.0),
            of.end_offset,
            of.floor,
            of.lag,
            of.leased,
            of.ready,
            of.delayed,
            of.behind_key,
            of.condemned,
            of.failed_total,
            of.dead_lettered_total,
            of.expired_total,
        ];
        let age = humantime::format_duration(Duration::from_secs(of.oldest_age_us / 1_000_000)).to_string();
        let consumers = match of.holder {
            0 => of.consumers.to_string(),
            holder => format!("{holder:016x}"),
        };
        let numbers = numbers.map(|number| number.to_string());
        partitions.add_row(numbers.into_iter().chain([age.replace(' ', ""), consumers]));
    }
    let mut consumers = table(&["CONSUMER", "SHARD", "ATTACHED", "CREDIT", "BYTES", "LEASED"]);
    for c in &description.consumers {
        consumers.add_row([
            format!("{:016x}", c.consumer.0),
            c.shard.to_string(),
            if c.attached { "yes" } else { "no" }.to_owned(),
            c.credit_records.to_string(),
            c.credit_bytes.to_string(),
            c.leased.to_string(),
        ]);
    }
    let lag: u64 = description.partitions.iter().map(|p| p.progress.lag).sum();
    let group = &description.group;
    let head = format!(
        "{}: number {}, {} on {}, lag {lag}",
        group.name, group.id, group.config.mode, description.topic
    );
    match description.consumers.is_empty() {
        true => format!("{head}, no consumers\n{partitions}\n"),
        false => format!("{head}\n{partitions}\n{consumers}\n"),
    }
}

pub(super) fn description_json(description: &GroupDescription) -> Value {
    let mut whole = group_json(&description.group);
    let name = &description.group.name;
    whole["topic_name"] = json!(description.topic);
    whole["partitions"] = description.partitions.iter().map(|p| partition_json(p, name)).collect();
    whole["consumers"] = description.consumers.iter().map(consumer_json).collect();
    whole
}

fn partition_json(p: &GroupPartition, group: &str) -> Value {
    let of = &p.progress;
    json!({
        "partition": p.partition,
        "shard": p.shard.0,
        "end_offset": of.end_offset,
        "floor": of.floor,
        "next_offset": of.next_offset,
        "lag": of.lag,
        "leased": of.leased,
        "ready": of.ready,
        "delayed": of.delayed,
        "behind_key": of.behind_key,
        "condemned": of.condemned,
        "failed_total": of.failed_total,
        "dead_lettered_total": of.dead_lettered_total,
        "expired_total": of.expired_total,
        "oldest_age_us": of.oldest_age_us,
        "consumers": of.consumers,
        "holder": (of.holder != 0).then(|| format!("{:016x}", of.holder)),
        "holds": p.holds.iter().map(|hold| sentence(hold, group)).collect::<Vec<_>>(),
    })
}

fn consumer_json(c: &ConsumerInfo) -> Value {
    json!({
        "consumer": format!("{:016x}", c.consumer.0),
        "shard": c.shard.0,
        "attached": c.attached,
        "credit_records": c.credit_records,
        "credit_bytes": c.credit_bytes,
        "leased": c.leased,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use ringbolt_client::{ConsumerId, GroupConfig, GroupId, Hold, Progress, ShardId, TopicId};

    use super::*;

    pub fn description() -> GroupDescription {
        let partition = |partition, hold| GroupPartition {
            partition,
            shard: ShardId(0),
            progress: Progress { end_offset: 10, floor: 4, lag: 6, leased: 3, ..Progress::default() },
            holds: vec![hold],
        };
        let (id, topic, dead_letter) = (GroupId(3), TopicId(1), TopicId(2));
        GroupDescription {
            group: GroupInfo {
                id,
                topic,
                dead_letter,
                config: GroupConfig::default(),
                name: "billing".into(),
            },
            topic: "orders".into(),
            partitions: vec![
                partition(0, Hold::NothingNew),
                partition(1, Hold::Leased { count: 3, ms: 1500 }),
                partition(2, Hold::NothingNew),
            ],
            consumers: vec![ConsumerInfo {
                consumer: ConsumerId(0xabc),
                shard: ShardId(0),
                attached: true,
                credit_records: 9,
                credit_bytes: 1 << 20,
                leased: 3,
            }],
        }
    }

    #[test]
    fn a_description_has_a_line_for_each_partition_and_consumer() {
        let text = super::description(&description());
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0].join(" "), "billing: number 3, shared on orders, lag 18");
        assert_eq!(words[3][..6], ["1", "0", "10", "4", "6", "3"]);
        assert_eq!(words[6], ["0000000000000abc", "0", "yes", "9", "1048576", "3"]);
    }

    #[test]
    fn the_keys_of_a_description_are_those_of_the_help() {
        let json = description_json(&description());
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        let mut expected = vec![
            "id",
            "name",
            "topic",
            "dead_letter",
            "mode",
            "lease_ms",
            "max_failures",
            "timeout_is_failure",
            "dead_letter_expired",
            "backoff",
            "max_open",
            "topic_name",
            "partitions",
            "consumers",
        ];
        expected.sort_unstable();
        assert_eq!(keys, expected);
        assert_eq!(json["partitions"][1]["lag"], 6);
        assert_eq!(json["consumers"][0]["consumer"], "0000000000000abc");
    }
}
