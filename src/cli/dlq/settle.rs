//! Dead letters are redriven or dropped: received through their group, and settled.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::process::ExitCode;
use std::time::Duration;

use ringbolt_client::{Client, Consumer, Delivery, Error, ErrorCode, SettleError, Settling};
use serde_json::json;
use tokio::time::timeout;

use super::letters::Letters;
use crate::cli::connection::{CommandError, Interrupt, print, print_json};
use crate::cli::group::progress::is_nothing_to_come;

/// Most records that are looked through for the ones that are wanted, per shard.
const PREFETCH: u64 = 100_000;
const PREFETCH_BYTES: u64 = 64 << 20;

/// Settles under way.
const MAX_SETTLING: usize = 1000;

/// How long nothing comes before the group is asked whether there is anything, and how
/// often it may say that there is.
const WAIT: Duration = Duration::from_millis(50);
const MAX_WAITS: u32 = 100;

/// Partition and offset.
type Place = (u32, u64);

/// What is done with dead letters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Decision {
    /// Delivered once more where they failed.
    Redrive,
    /// Dropped for good.
    Drop,
}

/// What became of a dead letter.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Outcome {
    Done(Decision),
    DoneBefore,
    NotThere,
    Removed,
    /// Another consumer has it, or it waits for a time.
    NotDelivered,
    Interrupted,
    Failed(String),
}

impl Outcome {
    fn is_done(&self) -> bool {
        matches!(self, Outcome::Done(_) | Outcome::DoneBefore)
    }

    fn text(&self) -> &str {
        match self {
            Outcome::Done(Decision::Redrive) => "redriven",
            Outcome::Done(Decision::Drop) => "dropped",
            Outcome::DoneBefore => "redriven or dropped before",
            Outcome::NotThere => "no such dead letter",
            Outcome::Removed => "removed by retention",
            Outcome::NotDelivered => {
                "not delivered: another consumer has it, it waits, or tens of thousands that are open come before \
                 it; see: ringbolt group explain"
            }
            Outcome::Interrupted => "interrupted: it is still open",
            Outcome::Failed(why) => why,
        }
    }
}

/// Settles these dead letters, or all that are open, and tells what became of each.
///
/// # Errors
/// That the topic has no dead letters; what the broker says.
pub(super) async fn run(
    client: &Client,
    topic: &str,
    places: Option<Vec<Place>>,
    decision: Decision,
    as_json: bool,
    interrupt: Interrupt,
) -> Result<ExitCode, CommandError> {
    let letters = Letters::find(client, topic).await?;
    let mut search =
        Search { decision, wanted: BTreeSet::new(), held: Vec::new(), outcomes: BTreeMap::new() };
    search.look_up(client, &letters, places).await?;
    if !search.wanted.is_empty() {
        let builder = client.consumer(topic, topic).mode(letters.group.config.mode);
        let consumer = builder.prefetch(PREFETCH).prefetch_bytes(PREFETCH_BYTES).open().await?;
        let settled = search.settle(client, &consumer, interrupt).await;
        consumer.close().await;
        settled?;
        // What is left may have been settled by another one meanwhile.
        let left = std::mem::take(&mut search.wanted).into_iter().collect();
        search.look_up(client, &letters, Some(left)).await?;
    }
    let left = std::mem::take(&mut search.wanted);
    search.outcomes.extend(left.into_iter().map(|place| (place, Outcome::NotDelivered)));
    tell(&search.outcomes, as_json)?;
    let all_done = search.outcomes.values().all(Outcome::is_done);
    Ok(if all_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(outcomes: &BTreeMap<Place, Outcome>, as_json: bool) -> Result<(), CommandError> {
    if as_json {
        let object = |(&(partition, offset), outcome): (&Place, &Outcome)| json!({ "partition": partition, "offset": offset, "outcome": outcome.text(), "is_done": outcome.is_done() });
        return print_json(&json!({ "letters": outcomes.iter().map(object).collect::<Vec<_>>() }));
    }
    let line = |(&(partition, offset), outcome): (&Place, &Outcome)| {
        format!("{partition} {offset}: {}\n", outcome.text())
    };
    print(&outcomes.iter().map(line).collect::<String>())
}

/// Which are wanted, and what became of the others.
struct Search {
    decision: Decision,
    wanted: BTreeSet<Place>,
    /// In hand, so that they do not come again. They go back with the consumer.
    held: Vec<Delivery>,
    outcomes: BTreeMap<Place, Outcome>,
}

impl Search {
    /// Finds out which of these are open, or of all.
    async fn look_up(
        &mut self,
        client: &Client,
        letters: &Letters,
        places: Option<Vec<Place>>,
    ) -> Result<(), CommandError> {
        match places {
            None => {
                for partition in 0..letters.topic.topic.partitions {
                    let offsets = letters.offsets(partition).unwrap_or_default();
                    let done = letters.done(client, partition, offsets.clone()).await?;
                    let open = offsets.filter(|&offset| !done.contains(offset));
                    self.wanted.extend(open.map(|offset| (partition, offset)));
                }
            }
            Some(places) => {
                for (partition, offset) in places {
                    let place = (partition, offset);
                    let outcome = match letters.offsets(partition) {
                        Some(offsets) if offset < offsets.start => Outcome::Removed,
                        Some(offsets) if offsets.contains(&offset) => {
                            let done = letters.done(client, partition, offset..offset + 1).await?;
                            if !done.contains(offset) {
                                self.wanted.insert(place);
                                continue;
                            }
                            Outcome::DoneBefore
                        }
                        _ => Outcome::NotThere,
                    };
                    self.outcomes.insert(place, outcome);
                }
            }
        }
        Ok(())
    }

    /// Settles what is wanted as it comes, until all is settled or no more comes.
    async fn settle(
        &mut self,
        client: &Client,
        consumer: &Consumer,
        mut interrupt: Interrupt,
    ) -> Result<(), Error> {
        let (mut settling, mut waits) = (VecDeque::new(), 0);
        while !self.wanted.is_empty() && waits < MAX_WAITS {
            let received = tokio::select! {
                received = timeout(WAIT, consumer.recv()) => received,
                () = interrupt.wait() => {
                    let left = std::mem::take(&mut self.wanted);
                    self.outcomes.extend(left.into_iter().map(|place| (place, Outcome::Interrupted)));
                    break;
                }
            };
            match received {
                Ok(delivery) => {
                    let delivery = delivery?;
                    waits = 0;
                    match self.wanted.remove(&(delivery.partition, delivery.offset)) {
                        true => settling.push_back(self.send(delivery)),
                        false => self.held.push(delivery),
                    }
                }
                Err(_) => {
                    waits += 1;
                    self.answers(&mut settling, 0).await;
                    let group = client.admin().describe_group(&consumer.group().name).await?;
                    let wanted = &self.wanted;
                    let end = |p| wanted.range((p, 0)..=(p, u64::MAX)).next_back().map_or(0, |at| at.1 + 1);
                    if is_nothing_to_come(&group, consumer.id(), self.held.len() as u64, end) {
                        break;
                    }
                }
            }
            self.answers(&mut settling, MAX_SETTLING).await;
        }
        self.answers(&mut settling, 0).await;
        Ok(())
    }

    fn send(&self, delivery: Delivery) -> (Place, Settling) {
        let place = (delivery.partition, delivery.offset);
        let settling = match self.decision {
            Decision::Redrive => delivery.redrive(),
            Decision::Drop => delivery.ack(),
        };
        (place, settling)
    }

    /// Waits for answers until so many are left.
    async fn answers(&mut self, settling: &mut VecDeque<(Place, Settling)>, left: usize) {
        while settling.len() > left
            && let Some((place, answer)) = settling.pop_front()
        {
            let outcome = self.outcome(answer.await);
            self.outcomes.insert(place, outcome);
        }
    }

    fn outcome(&self, answer: Result<(), SettleError>) -> Outcome {
        match answer {
            Ok(()) => Outcome::Done(self.decision),
            Err(SettleError::AlreadyCompleted) => Outcome::DoneBefore,
            Err(SettleError::Refused(refusal)) => Outcome::Failed(match refusal.error_code() {
                Some(ErrorCode::InvalidRequest) => "not a dead letter; it can be dropped".to_owned(),
                Some(ErrorCode::UnknownGroup) => "the group in which it failed is gone".to_owned(),
                Some(ErrorCode::UnknownTopic) => "the topic that it comes from is gone".to_owned(),
                _ => format!("the broker refused: {refusal}"),
            }),
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }
}
