//! `ringbolt dlq`: list, show, redrive, drop dead letters.

mod letters;
mod settle;
mod show;

use std::process::ExitCode;

use ringbolt_client::Client;
use serde_json::json;

use super::connection::{CommandError, CommonArgs, print, print_json, run as run_command, run_short};
use super::topic::table;
use letters::{SUFFIX, dead_letter_topic, origin};
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
    /// With --json prints {"topics": [{"topic", "dead_letter_topic", "open", "leased"}]}.
    List {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Show a topic's dead letters: where they are, where they come from, and why
    ///
    /// Nothing is changed by it. STATE is open, or done once it was redriven or dropped; a dash if the
    /// broker does not tell (its disk is full). ORIGIN is partition and offset in the topic, FAILED counts
    /// failures of DELIVERED deliveries. Key and value are what consume prints of the dead-letter topic.
    /// With --json prints an object a line: {"partition", "offset", "state", "origin_topic",
    /// "origin_partition", "origin_offset", "group", "acquired", "failed", "first_delivery", "moved",
    /// "reason", "key", "value"}.
    Show {
        /// The topic, or its dead-letter topic
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
    /// "is_done"}]}. The exit code is 0 if all are done, now or before, else 1.
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
    /// The topic, or its dead-letter topic
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

/// A dead-letter topic's name, how many in it are open, and how many of those are leased.
async fn counts(client: &Client) -> Result<Vec<(String, u64, u64)>, CommandError> {
    let groups = client.admin().groups().await?;
    let mut counts = Vec::new();
    for group in groups.iter().filter(|group| group.name.ends_with(SUFFIX)) {
        let description = client.admin().describe_group(&group.name).await?;
        if description.topic == group.name {
            let sum = |of: fn(&ringbolt_client::Progress) -> u64| {
                description.partitions.iter().map(|p| of(&p.progress)).sum()
            };
            counts.push((group.name.clone(), sum(|progress| progress.lag), sum(|progress| progress.leased)));
        }
    }
    Ok(counts)
}

async fn list(common: &CommonArgs) -> Result<ExitCode, CommandError> {
    let client = common.connect().await?;
    let counts = counts(&client).await?;
    if common.json {
        let object = |(name, open, leased): &(String, u64, u64)| json!({ "topic": origin(name), "dead_letter_topic": name, "open": open, "leased": leased });
        print_json(&json!({ "topics": counts.iter().map(object).collect::<Vec<_>>() }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = table(&["TOPIC", "DEAD-LETTER-TOPIC", "OPEN", "LEASED"]);
    for (name, open, leased) in &counts {
        table.add_row([origin(name), name, &open.to_string(), &leased.to_string()]);
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
