//! Fetches the partitions of one shard, over and over.

use std::time::Duration;

use bytes::Bytes;
use ringbolt_wire::message::{ErrorResponse, Fetch, FetchPartition, FetchedPartition};
use ringbolt_wire::{ErrorCode, Offset, PartitionId, Request, Response};
use tokio::sync::mpsc;

use super::decode::Fetched;
use crate::backoff::Backoff;
use crate::error::Error;
use crate::net::{CallError, Caller};

/// How far one partition was fetched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    pub partition: PartitionId,
    pub next: Offset,
}

pub(super) struct FetchTask {
    pub caller: Caller,
    pub topic: String,
    /// Partitions that are still read.
    pub positions: Vec<Position>,
    pub max_wait: Duration,
    pub min_bytes: u32,
    pub max_bytes: u32,
    pub timeout: Duration,
    pub skip_removed: bool,
    pub backoff: Backoff,
    /// The last answer is no reason to ask again at once.
    pub pause: bool,
}

type Output = mpsc::Sender<Result<Fetched, Error>>;

impl FetchTask {
    /// Runs until every partition has ended in an error, or the reader is gone.
    /// The next fetch is made while the last one's records wait to be taken.
    pub async fn run(mut self, output: Output) {
        let mut waiting = Vec::new();
        while !self.positions.is_empty() {
            let answer = {
                let fetch = self.caller.call(Request::Fetch(self.request()), self.timeout);
                let (answer, taken) = tokio::join!(fetch, hand_over(&output, waiting));
                if taken.is_err() {
                    return;
                }
                answer
            };
            waiting = match answer {
                Ok((Response::Fetched(partitions), payload)) => {
                    self.pause = false;
                    let results = self.sort_out(&partitions, &payload);
                    if self.pause {
                        tokio::time::sleep(self.backoff.next_wait()).await;
                    } else {
                        self.backoff.reset();
                    }
                    results
                }
                Ok((other, _)) => vec![Err(Error::InvalidSetting(format!("{other:?} came for a fetch")))],
                Err(error) => self.on_error(error).await,
            };
            // Fairness: a full answer of one partition must not starve others.
            if !self.positions.is_empty() {
                self.positions.rotate_left(1);
            }
        }
        // Nobody may be left to hear it.
        let _ = hand_over(&output, waiting).await;
    }

    fn request(&self) -> Fetch {
        let partition = |position: &Position| FetchPartition {
            partition: position.partition,
            offset: position.next,
            max_bytes: self.max_bytes,
        };
        Fetch {
            max_wait_ms: u32::try_from(self.max_wait.as_millis()).unwrap_or(u32::MAX),
            min_bytes: self.min_bytes,
            max_bytes: self.max_bytes,
            partitions: self.positions.iter().map(partition).collect(),
        }
    }

    /// Waits before the next attempt, or ends with what the reader is told.
    async fn on_error(&mut self, error: CallError) -> Vec<Result<Fetched, Error>> {
        let (wait, error) = match error {
            CallError::Refused(refusal) if !refusal.is_retryable() => {
                self.positions.clear();
                return vec![Err(Error::Refused(refusal))];
            }
            CallError::Refused(refusal) => {
                let told = Duration::from_millis(u64::from(refusal.retry_after_ms));
                (self.backoff.next_wait().max(told), Error::Refused(refusal))
            }
            CallError::NotSent(error) | CallError::Lost(error) => (self.backoff.next_wait(), error),
        };
        tracing::debug!(%error, ?wait, topic = self.topic, "fetch failed; trying again");
        tokio::time::sleep(wait).await;
        Vec::new()
    }

    /// Checks what came and moves the positions on.
    fn sort_out(&mut self, partitions: &[FetchedPartition], payload: &Bytes) -> Vec<Result<Fetched, Error>> {
        let mut results = Vec::new();
        let mut rest = &payload[..];
        for fetched in partitions {
            let (batches, after) = fetched.split_payload(rest);
            let bytes = payload.slice_ref(&rest[..fetched.payload_len as usize]);
            rest = after;
            let position = self.positions.iter_mut().find(|p| p.partition == fetched.partition);
            // An answer about what was not asked helps nobody.
            let Some(position) = position else { continue };
            let from = position.next;
            let index = fetched.partition.index;
            if fetched.status != 0 {
                results.extend(self.on_status(fetched, from));
                continue;
            }
            let mut next = from;
            let damage = batches
                .map(|batch| batch.map(|batch| next = batch.header().next_offset()))
                .find_map(Result::err);
            match damage {
                Some(damage) => {
                    let text = damage.to_string();
                    self.pause = true;
                    results.push(Err(Error::Damaged { partition: index, offset: from.0, text }));
                }
                None if next > from => {
                    position.next = next;
                    results.push(Ok(Fetched { partition: index, from, batches: bytes }));
                }
                // Nothing yet.
                None => {}
            }
        }
        results
    }

    /// A partition that could not be read: `None` if it will be tried again.
    fn on_status(&mut self, fetched: &FetchedPartition, from: Offset) -> Option<Result<Fetched, Error>> {
        let code = ErrorCode::from_u16(fetched.status);
        if code.is_some_and(ErrorCode::is_retryable) {
            self.pause = true;
            return None;
        }
        let out_of_range = code == Some(ErrorCode::OffsetOutOfRange);
        if out_of_range && self.skip_removed && from < fetched.start_offset {
            let start = fetched.start_offset;
            tracing::warn!(topic = self.topic, partition = fetched.partition.index, %from, %start, "skipping removed records");
            self.positions
                .iter_mut()
                .filter(|p| p.partition == fetched.partition)
                .for_each(|p| p.next = start);
            return None;
        }
        self.positions.retain(|p| p.partition != fetched.partition);
        Some(Err(match out_of_range {
            true => Error::OffsetOutOfRange {
                partition: fetched.partition.index,
                requested: from.0,
                start: fetched.start_offset.0,
                end: fetched.end_offset.0,
            },
            false => Error::Refused(ErrorResponse {
                code: fetched.status,
                retry_after_ms: 0,
                detail: 0,
                text: format!("topic {:?}, partition {}", self.topic, fetched.partition.index),
            }),
        }))
    }
}

/// Gives results to the reader, as it takes them.
async fn hand_over(output: &Output, results: Vec<Result<Fetched, Error>>) -> Result<(), ()> {
    for result in results {
        output.send(result).await.map_err(|_| ())?;
    }
    Ok(())
}
