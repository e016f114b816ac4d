//! `ringbolt dlq`: list, show, redrive, drop dead letters.

mod letters;
mod settle;
mod show;

use std::process::ExitCode;

use ringbolt_client::{Client, TopicId};
use serde_json::json;

use super::connection::{CommandError, CommonArgs, print, print_json, run as run_command, run_short};
use super::topic::table;
use crate::catalog::DEAD_LETTER_SUFFIX;
use letters::dead_letter_topic;
use settle::Decision;

/// Arguments of `ringbolt dlq`.
#[derive(clap::Args)]
pub struct DlqArgs {
    #[command(subcommand)]
    command: DlqCommand,
}

#[derive(clap::Subcommand)]
enum DlqCommand {
    /// List the dead-letter topics, and how many dead letters in each are open: neither redriven nor dropped
    ///
    /// FROM tells the topics with groups that send theirs there. With --json prints
    /// {"topics": [{"dead_letter_topic", "from": [...], "open", "leased"}]}.
    List {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Show the dead letters of a topic: where they are, where they come from, and why
    ///
    /// Nothing is changed by it. STATE is open, or done once it was redriven or dropped; a dash if the
    /// broker does not tell (its disk is full). ORIGIN is partition and offset in the topic, FAILED counts
    /// failures of DELIVERED deliveries. Key and value are what consume prints of the dead-letter topic.
    /// With --json prints an object a line: {"partition", "offset", "state", "origin_topic",
    /// "origin_partition", "origin_offset", "group", "acquired", "failed", "first_delivery", "moved",
    /// "reason", "key", "value"}.
    Show {
        /// The dead-letter topic, with or without its .dlq
        topic: String,
        /// Of this partition of the dead-letter topic only
        #[arg(long, value_name = "INDEX")]
        partition: Option<u32>,
        /// From this offset of the partition on
        #[arg(long, value_name = "OFFSET", requires = "partition")]
        offset: Option<u64>,
        /// So many at most
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
        /// Those only that are neither redriven nor dropped
        #[arg(long)]
        open: bool,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Deliver dead letters once more to the group in which they failed
    ///
    /// What was redriven or dropped before is told so, and not sent again. Prints a line for each: partition,
    /// offset, and what became of it. With --json prints {"letters": [{"partition", "offset", "outcome",
    /// "is_done"}]}. The exit code is 0 if all are done, now or before, else 1. To get at one letter those
    /// before it are held as well, for as long as it takes; behind 50,000 that are open it takes --all.
    Redrive {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Drop dead letters for good: they are acknowledged in the dead-letter topic's group
    ///
    /// Output and exit code are as of redrive.
    Drop {
        #[command(flatten)]
        which: Which,
        /// With --all: yes, all of them
        #[arg(long, requires = "all")]
        yes: bool,
        #[command(flatten)]
        common: CommonArgs,
    },
}

#[derive(clap::Args)]
struct Which {
    /// The dead-letter topic, with or without its .dlq
    topic: String,
    /// All that are open now
    #[arg(long, required_unless_present = "offset", conflicts_with_all = ["offset", "partition"])]
    all: bool,
    /// Partition of the dead-letter topic; once for all offsets, or before each one
    #[arg(long, value_name = "INDEX", requires = "offset")]
    partition: Vec<u32>,
    /// Offset in the partition; may be given several times
    #[arg(long, value_name = "OFFSET", requires = "partition")]
    offset: Vec<u64>,
}

impl Which {
    /// Partitions and offsets; `None` for all.
    fn places(&self) -> Result<Option<Vec<(u32, u64)>>, CommandError> {
        let partitions: Vec<u32> = match self.partition[..] {
            _ if self.all => return Ok(None),
            [only] => vec![only; self.offset.len()],
            _ => self.partition.clone(),
        };
        if partitions.len() != self.offset.len() {
            let text = "give one --partition for all offsets, or one for each --offset";
            return Err(CommandError::Usage(text.to_owned()));
        }
        Ok(Some(partitions.into_iter().zip(self.offset.iter().copied()).collect()))
    }
}

/// Runs the command.
pub fn run(args: DlqArgs) -> ExitCode {
    match args.command {
        DlqCommand::List { common } => run_short(|| async move { list(&common).await }),
        DlqCommand::Show { topic, partition, offset, limit, open, common } => run_short(|| async move {
            let client = common.connect().await?;
            let wanted = show::Wanted { partition, offset, limit, only_open: open };
            show::run(&client, &dead_letter_topic(&topic), &wanted, common.json).await
        }),
        DlqCommand::Redrive { which, common } => run_command(|interrupt| async move {
            let places = which.places()?;
            let client = common.connect().await?;
            let topic = dead_letter_topic(&which.topic);
            settle::run(&client, &topic, places, Decision::Redrive, common.json, interrupt).await
        }),
        DlqCommand::Drop { which, yes, common } => run_command(|interrupt| async move {
            let places = which.places()?;
            if places.is_none() && !yes {
                let text = format!("this drops all dead letters of {} for good: add --yes", which.topic);
                return Err(CommandError::Usage(text));
            }
            let client = common.connect().await?;
            let topic = dead_letter_topic(&which.topic);
            settle::run(&client, &topic, places, Decision::Drop, common.json, interrupt).await
        }),
    }
}

/// A dead-letter topic of the list.
struct Listed {
    name: String,
    /// Topics with groups that send theirs there.
    from: Vec<String>,
    /// Neither redriven nor dropped.
    open: u64,
    leased: u64,
}

async fn all(client: &Client) -> Result<Vec<Listed>, CommandError> {
    let (groups, topics) = (client.admin().groups().await?, client.admin().list_topics().await?);
    let mut listed = Vec::new();
    for group in groups.iter().filter(|group| group.name.ends_with(DEAD_LETTER_SUFFIX)) {
        let description = client.admin().describe_group(&group.name).await?;
        if description.topic != group.name {
            continue;
        }
        let sum = |of: fn(&ringbolt_client::Progress) -> u64| {
            description.partitions.iter().map(|p| of(&p.progress)).sum()
        };
        let sends = |topic: TopicId| groups.iter().any(|g| (g.topic, g.dead_letter) == (topic, group.topic));
        let from = topics.iter().filter(|topic| sends(topic.id)).map(|topic| topic.name.clone()).collect();
        let (open, leased) = (sum(|progress| progress.lag), sum(|progress| progress.leased));
        listed.push(Listed { name: group.name.clone(), from, open, leased });
    }
    Ok(listed)
}

async fn list(common: &CommonArgs) -> Result<ExitCode, CommandError> {
    let client = common.connect().await?;
    let listed = all(&client).await?;
    if common.json {
        let object = |Listed { name, from, open, leased }: &Listed| json!({ "dead_letter_topic": name, "from": from, "open": open, "leased": leased });
        print_json(&json!({ "topics": listed.iter().map(object).collect::<Vec<_>>() }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = table(&["DEAD-LETTER-TOPIC", "FROM", "OPEN", "LEASED"]);
    for Listed { name, from, open, leased } in &listed {
        let from = if from.is_empty() { "-".to_owned() } else { from.join(" ") };
        table.add_row([name, &from, &open.to_string(), &leased.to_string()]);
    }
    print(&format!("{table}\n"))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_pairs_or_offsets_of_one_partition() {
        let which = |partition: &[u32], offset: &[u64]| Which {
            topic: "t".into(),
            all: false,
            partition: partition.to_vec(),
            offset: offset.to_vec(),
        };
        assert_eq!(which(&[1, 2], &[5, 6]).places().unwrap(), Some(vec![(1, 5), (2, 6)]));
        assert_eq!(which(&[1], &[5, 6]).places().unwrap(), Some(vec![(1, 5), (1, 6)]));
        assert!(which(&[1, 2], &[5]).places().is_err());
    }
}
