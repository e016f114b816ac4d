//! Records are printed, and acknowledged when the output is flushed.

use std::process::ExitCode;

use ringbolt_client::Delivery;

use super::print::Printer;
use super::worker::Worker;
use crate::cli::connection::{CommandError, Interrupt};

/// Prints and acknowledges until there is enough, or nobody reads. What was printed and
/// not flushed goes back with the rest.
pub async fn run(
    worker: &Worker,
    mut printer: Printer,
    mut interrupt: Interrupt,
) -> Result<ExitCode, CommandError> {
    let mut code = ExitCode::SUCCESS;
    while !worker.is_enough(printer.printed) && !interrupt.is_set() {
        let first = tokio::select! {
            next = worker.next(true) => next?,
            () = interrupt.wait() => None,
        };
        let Some(first) = first else { break };
        let mut printed = Vec::new();
        if !print(worker, &mut printer, first, &mut printed)? {
            // Given back before the end, they would come again at once.
            worker.consumer.close().await;
            break;
        }
        tokio::select! {
            all_done = ack(printed) => if !all_done {
                code = ExitCode::FAILURE;
            },
            // Closing the consumer waits for what was sent.
            () = interrupt.wait() => {}
        }
    }
    Ok(code)
}

/// Prints this record and what else is there, and flushes. False if nobody reads them.
fn print(
    worker: &Worker,
    printer: &mut Printer,
    first: Delivery,
    printed: &mut Vec<Delivery>,
) -> Result<bool, CommandError> {
    let mut next = Some(first);
    while let Some(delivery) = next {
        let still_read = printer.print_delivery(&delivery)?;
        printed.push(delivery);
        if !still_read {
            return Ok(false);
        }
        let is_full = printed.len() >= worker.max_in_flight || worker.is_enough(printer.printed);
        next = if is_full { None } else { worker.consumer.try_recv()? };
    }
    printer.flush()
}

/// False if one of them is delivered again.
async fn ack(printed: Vec<Delivery>) -> bool {
    let sent: Vec<_> = printed.into_iter().map(|d| (d.partition, d.offset, d.ack())).collect();
    let mut all_done = true;
    for (partition, offset, settling) in sent {
        if let Err(error) = settling.await {
            eprintln!("ack {partition} {offset}: {error}");
            all_done = false;
        }
    }
    all_done
}
