//! `ringbolt group`: create, list, describe, reset, delete, explain.

mod args;
mod explain;
pub(super) mod progress;
mod text;

use std::process::ExitCode;

use ringbolt_client::{CreateGroup, ResetGroup};
use serde_json::json;

use super::connection::{CommandError, CommonArgs, print, print_json, run_short};
pub(super) use args::parse_mode;
use args::{ConfigArgs, parse_start};
use ringbolt_client::GroupStart;

/// Arguments of `ringbolt group`.
#[derive(clap::Args)]
pub struct GroupArgs {
    #[command(subcommand)]
    command: GroupCommand,
}

#[derive(clap::Subcommand)]
enum GroupCommand {
    /// Create a consumer group on a topic
    ///
    /// With --max-failures above 0, --dead-letter-expired or --dead-letter-topic a dead-letter topic comes
    /// with it, but on a topic that holds dead letters itself. With --json prints
    /// {"id", "name", "topic", "dead_letter", "mode", "lease_ms", "max_failures", "timeout_is_failure",
    /// "dead_letter_expired", "backoff", "max_open"}; topic and dead_letter are numbers, 0 for none.
    Create {
        /// 1 to 249 of A-Z a-z 0-9 . _ -
        name: String,
        /// The topic that it consumes
        #[arg(long, value_name = "TOPIC")]
        topic: String,
        /// Where it begins: earliest, end, an offset, or a time: RFC 3339 (2025-01-31T12:00:00Z) or
        /// seconds since 1970 after an @ (@1738324800)
        #[arg(long, value_name = "WHERE", default_value = "earliest", value_parser = parse_start)]
        from: GroupStart,
        #[command(flatten)]
        config: Box<ConfigArgs>,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// List the consumer groups
    ///
    /// With --json prints {"groups": [...]}, each as create does.
    List {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Describe a group: how far it is, and its consumers
    ///
    /// LAG counts records that are not completed. CONSUMERS says how many get records of the
    /// partition, or of an exclusive group which one. With --json prints what create does, and
    /// {"topic_name", "partitions": [{"partition", "shard", "end_offset", "floor", "next_offset", "lag",
    /// "leased", "ready", "delayed", "behind_key", "condemned", "failed_total", "dead_lettered_total",
    /// "expired_total", "oldest_age_us", "consumers", "holder", "holds"}], "consumers": [{"consumer",
    /// "shard", "attached", "credit_records", "credit_bytes", "leased"}]}.
    Describe {
        /// Its name
        name: String,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Set a group back, or forward: all it knows of deliveries is forgotten, and leases end
    ///
    /// With --json prints {"reset": NAME}.
    Reset {
        /// Its name
        name: String,
        /// Where it goes on, as --from of create
        #[arg(long, value_name = "WHERE", value_parser = parse_start)]
        to: GroupStart,
        /// In this partition only
        #[arg(long, value_name = "INDEX")]
        partition: Option<u32>,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Delete a group; its dead-letter topic stays
    ///
    /// With --json prints {"deleted": NAME}.
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Say why a group's consumers are sent nothing
    ///
    /// With --json prints {"group", "partitions": [{"partition", "sentences": [...]}], "consumers": [...]},
    /// the last of them sentences about consumers without credit.
    Explain {
        /// Its name
        name: String,
        #[command(flatten)]
        common: CommonArgs,
    },
}

/// Runs the command.
pub fn run(args: GroupArgs) -> ExitCode {
    run_short(|| async {
        match args.command {
            GroupCommand::Create { name, topic, from, config, common } => {
                let (start, or_find) = (from, false);
                let (dead_letter_topic, config) = (config.dead_letter_topic.clone(), config.config());
                let create = CreateGroup { name, topic, start, or_find, config, dead_letter_topic };
                self::create(create, &common).await
            }
            GroupCommand::List { common } => list(&common).await,
            GroupCommand::Describe { name, common } => describe(&name, &common).await,
            GroupCommand::Reset { name, to, partition, common } => {
                reset(ResetGroup { name, to, partition }, &common).await
            }
            GroupCommand::Delete { name, common } => delete(&name, &common).await,
            GroupCommand::Explain { name, common } => explain(&name, &common).await,
        }?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn create(create: CreateGroup, common: &CommonArgs) -> Result<(), CommandError> {
    let topic = create.topic.clone();
    let group = common.connect().await?.admin().create_group(create).await?;
    match common.json {
        true => print_json(&text::group_json(&group)),
        false => print(&format!("created {} on {topic}\n", group.name)),
    }
}

async fn list(common: &CommonArgs) -> Result<(), CommandError> {
    let groups = common.connect().await?.admin().groups().await?;
    match common.json {
        true => print_json(&json!({ "groups": groups.iter().map(text::group_json).collect::<Vec<_>>() })),
        false => print(&text::list(&groups)),
    }
}

async fn describe(name: &str, common: &CommonArgs) -> Result<(), CommandError> {
    let description = common.connect().await?.admin().describe_group(name).await?;
    match common.json {
        true => print_json(&text::description_json(&description)),
        false => print(&text::description(&description)),
    }
}

async fn reset(reset: ResetGroup, common: &CommonArgs) -> Result<(), CommandError> {
    let name = reset.name.clone();
    common.connect().await?.admin().reset_group(reset).await?;
    match common.json {
        true => print_json(&json!({ "reset": name })),
        false => print(&format!("reset {name}\n")),
    }
}

async fn delete(name: &str, common: &CommonArgs) -> Result<(), CommandError> {
    common.connect().await?.admin().delete_group(name).await?;
    match common.json {
        true => print_json(&json!({ "deleted": name })),
        false => print(&format!("deleted {name}\n")),
    }
}

async fn explain(name: &str, common: &CommonArgs) -> Result<(), CommandError> {
    let description = common.connect().await?.admin().describe_group(name).await?;
    match common.json {
        true => print_json(&explain::json(&description)),
        false => print(&explain::text(&description)),
    }
}
