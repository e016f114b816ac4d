//! A command for each record, as many at once as wanted.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ringbolt_client::{Delivery, Settling};
use tokio::task::{JoinError, JoinSet};

use super::command::{Job, Running};
use super::worker::Worker;
use crate::cli::connection::{CommandError, Interrupt};

/// How long a record waits for which no command could be started.
const NOT_STARTED_DELAY: Duration = Duration::from_secs(1);

/// Runs commands until there is enough. The first interrupt ends that when those that run
/// have ended, the second one kills them.
pub async fn run(
    worker: &Worker,
    command: String,
    mut interrupt: Interrupt,
) -> Result<ExitCode, CommandError> {
    let job = Arc::new(Job { command, group: worker.consumer.group().name.clone() });
    let (mut running, mut begun, mut failed) = (JoinSet::new(), 0, None);
    let (mut goes_on, mut killed) = (true, Vec::new());
    loop {
        goes_on = goes_on && !worker.is_enough(begun);
        if !goes_on && running.is_empty() {
            break;
        }
        let (may_begin, is_idle) = (goes_on && running.len() < worker.max_in_flight, running.is_empty());
        tokio::select! {
            () = interrupt.wait(), if goes_on => goes_on = false,
            Some(ended) = running.join_next(), if !is_idle => killed.extend(left_over(ended)),
            next = worker.next(is_idle), if may_begin => match next {
                Ok(Some(delivery)) => {
                    begun += 1;
                    running.spawn(handle(delivery, job.clone(), interrupt.clone()));
                }
                Ok(None) => goes_on = false,
                Err(error) => (goes_on, failed) = (false, Some(error)),
            },
        }
    }
    // Given back before the end, they would come again at once.
    worker.consumer.close().await;
    drop(killed);
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// What a task leaves.
fn left_over(ended: Result<Option<Delivery>, JoinError>) -> Option<Delivery> {
    // Nobody cancels these tasks, so it has panicked, which goes on here.
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Runs the command for a record and says what became of it. Returns the delivery if
/// nothing was said: the command was killed.
async fn handle(delivery: Delivery, job: Arc<Job>, mut interrupt: Interrupt) -> Option<Delivery> {
    let (partition, offset, failures) = (delivery.partition, delivery.offset, delivery.failed());
    let settling: Settling = match Running::start(&job, &delivery) {
        Err(error) => {
            tracing::warn!(partition, offset, %error, "the command cannot be started");
            delivery.nack(Some(NOT_STARTED_DELAY))
        }
        Ok(mut running) => {
            let ended = tokio::select! {
                ended = running.ended() => ended,
                () = interrupt.wait_for_second() => {
                    running.kill();
                    running.ended().await;
                    return Some(delivery);
                }
            };
            match ended.failure() {
                None => delivery.ack(),
                Some(reason) => {
                    tracing::warn!(partition, offset, failures = failures + 1, %reason, "rejected");
                    delivery.reject(reason)
                }
            }
        }
    };
    tokio::select! {
        settled = settling => if let Err(error) = settled {
            tracing::warn!(partition, offset, %error, "not settled");
        },
        // Without a broker that may take for ever.
        () = interrupt.wait_for_second() => {}
    }
    None
}
