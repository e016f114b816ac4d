//! Records are printed, and settled by lines of standard input.

use std::collections::{BTreeMap, VecDeque};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use ringbolt_client::{Delivery, SettleError, Settling};

use super::print::Printer;
use super::worker::Worker;
use crate::cli::connection::{CommandError, Interrupt};
use crate::cli::input::read_input;
use crate::cli::lines::{Line, LineSplitter};

/// Longest line that is taken, in bytes: a reason may have 1,024.
const MAX_LINE_LEN: usize = 4096;

/// What a line says of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Said {
    Ack,
    Nack(Option<Duration>),
    Reject(String),
    DeadLetter(String),
    Extend(Duration),
    Release,
}

/// A line: its verb, and of which record it speaks.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Order {
    said: Said,
    partition: u32,
    offset: u64,
}

impl Order {
    /// What was asked, as it is answered.
    fn name(&self) -> String {
        let verb = match self.said {
            Said::Ack => "ack",
            Said::Nack(_) => "nack",
            Said::Reject(_) => "reject",
            Said::DeadLetter(_) => "dead-letter",
            Said::Extend(_) => "extend",
            Said::Release => "release",
        };
        format!("{verb} {} {}", self.partition, self.offset)
    }

    fn done(&self) -> &'static str {
        match self.said {
            Said::Ack | Said::Reject(_) | Said::DeadLetter(_) => "durable",
            Said::Nack(_) | Said::Extend(_) | Said::Release => "done",
        }
    }
}

fn parse(line: &str) -> Result<Order, String> {
    let mut words = line.trim().splitn(4, char::is_whitespace).map(str::trim);
    let verb = words.next().unwrap_or_default();
    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
    let (partition, offset) = (number().and_then(|number| u32::try_from(number).ok()), number());
    let rest = words.next().unwrap_or_default();
    let time = || match rest {
        "" => Ok(None),
        time => humantime::parse_duration(time).map(Some).map_err(|error| format!("{time:?}: {error}")),
    };
    let said = match verb {
        "ack" if rest.is_empty() => Said::Ack,
        "release" if rest.is_empty() => Said::Release,
        "nack" => Said::Nack(time()?),
        "extend" => Said::Extend(time()?.unwrap_or_default()),
        "reject" => Said::Reject(rest.to_owned()),
        "dead-letter" => Said::DeadLetter(rest.to_owned()),
        "ack" | "release" => return Err(format!("nothing may follow the offset of {verb}")),
        _ => return Err("expected ack, nack, reject, dead-letter, extend or release".to_owned()),
    };
    match (partition, offset) {
        (Some(partition), Some(offset)) => Ok(Order { said, partition, offset }),
        _ => Err(format!("expected {verb} PARTITION OFFSET")),
    }
}

/// An order that was sent.
struct Sent {
    order: Order,
    settling: Settling,
}

/// Records that were printed, and what was said of them.
#[derive(Default)]
struct Hand {
    printed: BTreeMap<(u32, u64), Delivery>,
    /// In the order of the input.
    sent: VecDeque<Sent>,
    lines: u64,
}

impl Hand {
    fn is_empty(&self) -> bool {
        self.printed.is_empty() && self.sent.is_empty()
    }

    fn on_line(&mut self, line: &Line) {
        self.lines += 1;
        let parsed = match line {
            Line::Whole(bytes) if bytes.trim_ascii().is_empty() => return,
            Line::Whole(bytes) => parse(&String::from_utf8_lossy(bytes)),
            Line::TooLong(len) => Err(format!("{len} bytes, at most {MAX_LINE_LEN} are taken")),
        };
        match parsed {
            Ok(order) => self.carry_out(order),
            Err(error) => eprintln!("line {}: {error}", self.lines),
        }
    }

    fn carry_out(&mut self, order: Order) {
        let place = (order.partition, order.offset);
        let settling = match &order.said {
            Said::Extend(time) => self.printed.get(&place).map(|delivery| delivery.extend(*time)),
            said => self.printed.remove(&place).map(|delivery| match said {
                Said::Nack(delay) => delivery.nack(*delay),
                Said::Reject(reason) => delivery.reject(reason),
                Said::DeadLetter(reason) => delivery.dead_letter(reason),
                Said::Release => delivery.release(),
                Said::Ack | Said::Extend(_) => delivery.ack(),
            }),
        };
        match settling {
            Some(settling) => self.sent.push_back(Sent { order, settling }),
            None => eprintln!("{}: not in hand: it was not printed, or settled before", order.name()),
        }
    }

    /// The next answer; none comes if nothing was asked. Dropping the future loses
    /// nothing.
    async fn answer(&mut self) -> Result<(), SettleError> {
        match self.sent.front_mut() {
            Some(sent) => (&mut sent.settling).await,
            None => std::future::pending().await,
        }
    }

    /// The first order has come to this.
    fn tell(&mut self, answer: Result<(), SettleError>) {
        let Some(sent) = self.sent.pop_front() else { return };
        match answer {
            Ok(()) => eprintln!("{}: {}", sent.order.name(), sent.order.done()),
            Err(error) => eprintln!("{}: {error}", sent.order.name()),
        }
    }
}

/// Prints and settles until there is enough and all of it is settled, or the input ends,
/// or nobody reads the output. What is open then goes back.
pub async fn run(
    worker: &Worker,
    mut printer: Printer,
    mut interrupt: Interrupt,
) -> Result<ExitCode, CommandError> {
    let mut hand = Hand::default();
    let mut input = read_input();
    let mut splitter = LineSplitter::new(MAX_LINE_LEN);
    let mut failed = None;
    while !worker.is_enough(printer.printed) || !hand.is_empty() {
        let (is_idle, wants) = (hand.is_empty(), !worker.is_enough(printer.printed));
        tokio::select! {
            next = worker.next(is_idle), if wants => match next? {
                None => break,
                Some(delivery) => if !print(worker, &mut printer, &mut hand, delivery)? {
                    break;
                },
            },
            piece = input.recv() => match piece {
                Some(Ok(piece)) => feed(&mut splitter, piece, &mut hand),
                Some(Err(error)) => {
                    failed = Some(error);
                    break;
                }
                None => {
                    // Only here is a line without its newline known to be whole.
                    splitter.finish().iter().for_each(|line| hand.on_line(line));
                    break;
                }
            },
            answer = hand.answer() => hand.tell(answer),
            () = interrupt.wait() => break,
        }
    }
    // What was printed goes back with it. Given back before, it would come again at once.
    worker.consumer.close().await;
    while !hand.sent.is_empty() {
        let answer = hand.answer().await;
        hand.tell(answer);
    }
    match failed {
        Some(error) => Err(CommandError::io("reading standard input")(error)),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn feed(splitter: &mut LineSplitter, piece: Bytes, hand: &mut Hand) {
    let mut lines = Vec::new();
    splitter.feed(piece, &mut lines);
    lines.iter().for_each(|line| hand.on_line(line));
}

/// Prints this record, and what else is there. False if nobody reads them.
fn print(
    worker: &Worker,
    printer: &mut Printer,
    hand: &mut Hand,
    first: Delivery,
) -> Result<bool, CommandError> {
    let mut next = Some(first);
    while let Some(delivery) = next {
        if !printer.print_delivery(&delivery)? {
            return Ok(false);
        }
        // An earlier lease of the record is over.
        hand.printed.insert((delivery.partition, delivery.offset), delivery);
        next = if worker.is_enough(printer.printed) { None } else { worker.consumer.try_recv()? };
    }
    printer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_verb_a_record_and_what_the_verb_takes() {
        let order = |said| Ok(Order { said, partition: 3, offset: 41 });
        for (line, said) in [
            ("ack 3 41", Said::Ack),
            (" ack 3 41\r", Said::Ack),
            ("release 3 41", Said::Release),
            ("nack 3 41", Said::Nack(None)),
            ("nack 3 41 1m 30s", Said::Nack(Some(Duration::from_secs(90)))),
            ("reject 3 41", Said::Reject(String::new())),
            ("reject 3 41 no such customer", Said::Reject("no such customer".into())),
            ("dead-letter 3 41 never", Said::DeadLetter("never".into())),
            ("extend 3 41", Said::Extend(Duration::ZERO)),
            ("extend 3 41 10s", Said::Extend(Duration::from_secs(10))),
        ] {
            assert_eq!(parse(line), order(said), "{line}");
        }
        for line in ["", "ack", "ack 3", "ack 3 x", "ack 3 41 5s", "nack 3 41 soon", "drop 3 41", "ack -1 2"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
