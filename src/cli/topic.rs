//! `ringbolt topic`: create, list, describe, delete.

use std::process::ExitCode;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use ringbolt_client::{TopicDescription, TopicInfo};
use ringbolt_wire::message::MAX_PARTITIONS;
use serde_json::json;

use super::connection::{CommandError, CommonArgs, print, print_json, run_short};

/// Arguments of `ringbolt topic`.
#[derive(clap::Args)]
pub struct TopicArgs {
    #[command(subcommand)]
    command: TopicCommand,
}

#[derive(clap::Subcommand)]
enum TopicCommand {
    /// Create a topic
    ///
    /// With --json prints {"id", "name", "partitions"}.
    Create {
        /// 1 to 249 of A-Z a-z 0-9 . _ -
        name: String,
        /// Number of partitions; it cannot be changed later
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_PARTITIONS)))]
        partitions: u32,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// List the topics
    ///
    /// With --json prints {"topics": [{"id", "name", "partitions"}]}.
    List {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Describe a topic and its partitions
    ///
    /// With --json prints {"id", "name", "partitions": [{"partition", "shard", "start_offset",
    /// "end_offset", "records"}], "records"}. start_offset is the first offset that is still there,
    /// end_offset the one after the last durable record.
    Describe {
        /// Its name
        name: String,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Delete a topic and its records
    ///
    /// With --json prints {"deleted": NAME}.
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        common: CommonArgs,
    },
}

/// Runs the command.
pub fn run(args: TopicArgs) -> ExitCode {
    run_short(|| async {
        match args.command {
            TopicCommand::Create { name, partitions, common } => create(&name, partitions, &common).await,
            TopicCommand::List { common } => list(&common).await,
            TopicCommand::Describe { name, common } => describe(&name, &common).await,
            TopicCommand::Delete { name, common } => delete(&name, &common).await,
        }?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn create(name: &str, partitions: u32, common: &CommonArgs) -> Result<(), CommandError> {
    let topic = common.connect().await?.admin().create_topic(name, partitions).await?;
    match common.json {
        true => print_json(&topic_json(&topic)),
        false => print(&format!("created {} with {}\n", topic.name, count(topic.partitions))),
    }
}

fn count(partitions: u32) -> String {
    format!("{partitions} partition{}", if partitions == 1 { "" } else { "s" })
}

async fn list(common: &CommonArgs) -> Result<(), CommandError> {
    let topics = common.connect().await?.admin().list_topics().await?;
    if common.json {
        return print_json(&json!({ "topics": topics.iter().map(topic_json).collect::<Vec<_>>() }));
    }
    let mut table = table(&["TOPIC", "PARTITIONS", "ID"]);
    for topic in &topics {
        table.add_row([&topic.name, &topic.partitions.to_string(), &topic.id.to_string()]);
    }
    print(&format!("{table}\n"))
}

async fn describe(name: &str, common: &CommonArgs) -> Result<(), CommandError> {
    let topic = common.connect().await?.admin().describe_topic(name).await?;
    match common.json {
        true => print_json(&description_json(&topic)),
        false => print(&description_text(&topic)),
    }
}

async fn delete(name: &str, common: &CommonArgs) -> Result<(), CommandError> {
    common.connect().await?.admin().delete_topic(name).await?;
    match common.json {
        true => print_json(&json!({ "deleted": name })),
        false => print(&format!("deleted {name}\n")),
    }
}

/// A table that is also easy to take apart with `awk`.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header);
    table
}

fn topic_json(topic: &TopicInfo) -> serde_json::Value {
    json!({ "id": topic.id.0, "name": topic.name, "partitions": topic.partitions })
}

fn records(topic: &TopicDescription) -> u64 {
    topic.partitions.iter().map(|p| p.end_offset.0 - p.start_offset.0).sum()
}

fn description_json(topic: &TopicDescription) -> serde_json::Value {
    let partition = |(index, p): (usize, &ringbolt_client::PartitionInfo)| {
        json!({
            "partition": index,
            "shard": p.shard.0,
            "start_offset": p.start_offset.0,
            "end_offset": p.end_offset.0,
            "records": p.end_offset.0 - p.start_offset.0,
        })
    };
    json!({
        "id": topic.topic.id.0,
        "name": topic.topic.name,
        "partitions": topic.partitions.iter().enumerate().map(partition).collect::<Vec<_>>(),
        "records": records(topic),
    })
}

fn description_text(topic: &TopicDescription) -> String {
    let mut table = table(&["PARTITION", "SHARD", "START", "END", "RECORDS"]);
    for (index, p) in topic.partitions.iter().enumerate() {
        let records = p.end_offset.0 - p.start_offset.0;
        let row = [index as u64, u64::from(p.shard.0), p.start_offset.0, p.end_offset.0, records];
        table.add_row(row.map(|number| number.to_string()));
    }
    let (name, id, count) = (&topic.topic.name, topic.topic.id, count(topic.topic.partitions));
    format!("{name}: number {id}, {count}, {} records\n{table}\n", records(topic))
}

#[cfg(test)]
mod tests {
    use ringbolt_client::{Offset, PartitionInfo, ShardId, TopicId};

    use super::*;

    fn topic() -> TopicDescription {
        let partition = |shard, start, end| PartitionInfo {
            shard: ShardId(shard),
            start_offset: Offset(start),
            end_offset: Offset(end),
        };
        TopicDescription {
            topic: TopicInfo { id: TopicId(4), partitions: 2, name: "orders".into() },
            partitions: vec![partition(1, 5, 12), partition(0, 0, 0)],
        }
    }

    #[test]
    fn the_keys_of_a_description_are_those_of_the_help() {
        let expected = json!({
            "id": 4,
            "name": "orders",
            "partitions": [
                { "partition": 0, "shard": 1, "start_offset": 5, "end_offset": 12, "records": 7 },
                { "partition": 1, "shard": 0, "start_offset": 0, "end_offset": 0, "records": 0 },
            ],
            "records": 7,
        });
        assert_eq!(description_json(&topic()), expected);
    }

    #[test]
    fn a_description_for_people_has_a_line_for_each_partition() {
        let text = description_text(&topic());
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[2], ["0", "1", "5", "12", "7"]);
        assert_eq!(words[3], ["1", "0", "0", "0", "0"]);
    }
}
