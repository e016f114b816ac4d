//! One consumer of a group, for the command line: how it is asked for, and when there is
//! nothing more to do.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::ValueEnum;
use ringbolt_client::{Client, Consumer, Delivery, Error, GroupMode};
use tokio::time::timeout;

use crate::cli::connection::CommandError;
use crate::cli::group::parse_mode;
use crate::cli::group::progress::is_nothing_to_come;

/// Most records in hand unless --max-in-flight says otherwise; commands run one by one.
const IN_FLIGHT: u32 = 1000;

/// Waits for a record before the group is asked whether there is one.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// Arguments of `ringbolt consume` that concern a consumer group.
#[derive(clap::Args)]
pub struct WorkerArgs {
    /// Consume as one of this consumer group; it is created, from the first record on, if there is none of
    /// that name (group create has more to choose from)
    #[arg(long, value_name = "GROUP", conflicts_with_all = ["from", "partition"])]
    group: Option<String>,
    /// Mode of the group: shared, key-ordered or exclusive. One that is there must have it. Default: its
    /// own, or shared
    #[arg(long, value_name = "MODE", requires = "group", value_parser = parse_mode)]
    mode: Option<GroupMode>,
    /// Who acknowledges: this command once a record is printed (auto), or lines of standard input (manual).
    /// Default: auto
    #[arg(long, value_name = "WHO", requires = "group")]
    ack: Option<Ack>,
    /// Run this command with sh for each record; its exit code acknowledges or rejects
    #[arg(long, value_name = "COMMAND", requires = "group", conflicts_with_all = ["ack", "verbose", "json"])]
    exec: Option<String>,
    /// Most records in hand, or commands at once. Default: 1 with --exec, else 1000. Each shard of the
    /// broker may send one at least
    #[arg(long, value_name = "N", requires = "group", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_in_flight: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Ack {
    Auto,
    Manual,
}

/// How records are handled.
#[derive(Clone)]
pub enum Handling {
    /// Printed, then acknowledged.
    Auto,
    /// Printed, and settled as the input says.
    Manual,
    /// By this command.
    Exec(String),
}

impl WorkerArgs {
    /// How records are handled; `None` if not through a group.
    pub fn handling(&self) -> Option<Handling> {
        self.group.as_ref()?;
        Some(match (&self.exec, self.ack) {
            (Some(command), _) => Handling::Exec(command.clone()),
            (None, Some(Ack::Manual)) => Handling::Manual,
            (None, _) => Handling::Auto,
        })
    }

    /// Joins the group.
    ///
    /// # Errors
    /// Those of [`ConsumerBuilder::open`](ringbolt_client::ConsumerBuilder::open).
    pub async fn open(
        &self,
        client: &Client,
        topic: &str,
        count: Option<u64>,
        follow: bool,
    ) -> Result<Worker, CommandError> {
        let group = self.group.clone().unwrap_or_default();
        let mode = match self.mode {
            Some(mode) => mode,
            None => mode_of(client, &group).await?,
        };
        let max_in_flight = self.max_in_flight.unwrap_or(if self.exec.is_some() { 1 } else { IN_FLIGHT });
        let consumer =
            client.consumer(topic, &group).mode(mode).prefetch(max_in_flight.into()).open().await?;
        let ends = match follow {
            true => BTreeMap::new(),
            false => {
                let description = client.admin().describe_group(&group).await?;
                description.partitions.iter().map(|p| (p.partition, p.progress.end_offset)).collect()
            }
        };
        let max_in_flight = max_in_flight as usize;
        Ok(Worker { consumer, max_in_flight, count, client: client.clone(), follow, ends })
    }
}

/// The mode of this group, or that of one which is created.
async fn mode_of(client: &Client, group: &str) -> Result<GroupMode, Error> {
    let groups = client.admin().groups().await?;
    let found = groups.iter().find(|other| other.name == group);
    Ok(found.map_or(GroupMode::Shared, |group| group.config.mode))
}

/// A consumer, and when it has done enough.
pub struct Worker {
    /// The consumer.
    pub consumer: Consumer,
    /// Most records that are worked on at once.
    pub max_in_flight: usize,
    /// End after so many records.
    pub count: Option<u64>,
    client: Client,
    follow: bool,
    /// By partition: what is there when it begins.
    ends: BTreeMap<u32, u64>,
}

impl Worker {
    /// Whether `handled` records are as many as were wanted.
    pub fn is_enough(&self, handled: u64) -> bool {
        self.count.is_some_and(|count| handled >= count)
    }

    /// The next record; `None` if there is nothing more to deliver now and this is not to
    /// follow. Only an `idle` consumer, which has nothing in hand, finds that out: what it
    /// settles may make room for more. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Those of [`Consumer::recv`] and [`Admin::describe_group`](ringbolt_client::Admin).
    pub async fn next(&self, idle: bool) -> Result<Option<Delivery>, Error> {
        if self.follow || !idle {
            return self.consumer.recv().await.map(Some);
        }
        let mut wait = FIRST_WAIT;
        loop {
            if let Ok(received) = timeout(wait, self.consumer.recv()).await {
                return received.map(Some);
            }
            wait = (wait * 2).min(LONGEST_WAIT);
            let description = self.client.admin().describe_group(&self.consumer.group().name).await?;
            let end = |partition| self.ends.get(&partition).copied().unwrap_or(0);
            if is_nothing_to_come(&description, self.consumer.id(), 0, end) {
                return Ok(None);
            }
        }
    }
}
