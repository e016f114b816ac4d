//! What all producers of a run share: its parameters, its books, its phase.

use std::collections::VecDeque;

use ringbolt_wire::Offset;

use crate::frame::FrameMaker;
use crate::ledger::{Entry, LedgerError, LedgerSink, NO_OFFSET};
use crate::send_buffer::SendBuffer;
use crate::stats::{Clock, Recorder};

/// What a run does just now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Connections and producers are being opened.
    Opening,
    /// New messages are sent.
    Sending,
    /// The time is up; an open loop still sends what was due before.
    CatchingUp,
    /// No new ones; the last answers are waited for.
    Draining,
}

/// Fixed for the run.
pub struct Parameters {
    /// Random number of the run.
    pub run: u64,
    /// Records per batch.
    pub batch: u32,
    /// Batches in flight per producer.
    pub in_flight: u32,
    /// Nanoseconds without any progress after which a producer gives up.
    pub timeout: u64,
    /// Records per second over all producers; `None` for a closed loop.
    pub rate: Option<f64>,
    /// Number of producers.
    pub producers: u32,
    /// The peer echoes, and is no broker.
    pub echo: bool,
    /// µs since 1970 UTC when the run's clock read 0.
    pub wall_us: u64,
}

/// Counts over the whole run, warm-up included; records unless said otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Sent for the first time.
    pub sent: u64,
    /// Acknowledged.
    pub acked: u64,
    /// Refused, for good or until their producer gave up: not carried out.
    pub refused: u64,
    /// Given up when an attempt had got no answer.
    pub unknown: u64,
    /// Batches sent again.
    pub retries: u64,
    /// Connections made again.
    pub reconnects: u64,
    /// Due in an open loop, and never sent: there was no room in time.
    pub due_not_sent: u64,
}

/// The latest times, in ns, in which the generator did not look at its sockets
/// though it should have: held up by the system, or by too much to do.
#[derive(Default)]
pub struct Pauses(VecDeque<(u64, u64)>);

/// How many pauses are remembered: those of a second, if each is just long enough
/// to be one.
const PAUSES: usize = 256;

impl Pauses {
    /// Notes a pause, which is later than those before.
    pub fn push(&mut self, from: u64, until: u64) {
        if self.0.len() == PAUSES {
            self.0.pop_front();
        }
        self.0.push_back((from, until));
    }

    /// How much of the time since `due` was pause.
    #[inline]
    pub fn since(&self, due: u64) -> u64 {
        let overlapping = self.0.iter().rev().take_while(|&&(_, until)| until > due);
        overlapping.map(|&(from, until)| until - from.max(due)).sum()
    }
}

/// What producers write into.
pub struct Context {
    /// The run's parameters.
    pub parameters: Parameters,
    /// Makes the frames.
    pub maker: FrameMaker,
    /// The run's clock.
    pub clock: Clock,
    /// Latency and throughput.
    pub recorder: Recorder,
    /// The ledger, or none.
    pub ledger: LedgerSink,
    /// The counts.
    pub tally: Tally,
    /// What the run does.
    pub phase: Phase,
    /// An open loop sends what is due before this, and nothing else; ns.
    pub due_until: u64,
    /// When the generator itself did not look at its sockets.
    pub pauses: Pauses,
    /// By partition: offset after the last acknowledged record.
    pub acked_end: Vec<u64>,
    /// Memory that was sent from, the latest last: what was sent a moment ago is
    /// still in the processor's cache.
    pub spares: Vec<SendBuffer>,
    /// Streams opened so far.
    pub streams: u32,
    /// The first thing that went wrong for good, in words.
    pub failure: Option<String>,
    /// The ledger's writer is gone: nothing more may be sent.
    pub ledger_error: Option<LedgerError>,
}

impl Context {
    /// Notes an entry. A ledger that cannot be written ends the run.
    #[inline]
    pub fn note(&mut self, entry: Entry) {
        if let Err(error) = self.ledger.push(entry) {
            self.ledger_error.get_or_insert(error);
        }
    }

    /// Hands what was noted to the ledger's writer.
    pub fn hand_over(&mut self) {
        if let Err(error) = self.ledger.hand_over() {
            self.ledger_error.get_or_insert(error);
        }
    }

    /// Remembers why the run fails, unless it knows already.
    pub fn fail(&mut self, why: impl FnOnce() -> String) {
        self.failure.get_or_insert_with(why);
    }

    /// Notes that a partition's records up to here are acknowledged.
    #[inline]
    pub fn acked_up_to(&mut self, partition: u32, base: Offset, count: u32) -> u64 {
        if base == Offset::UNKNOWN {
            return NO_OFFSET;
        }
        let end = &mut self.acked_end[partition as usize];
        *end = (*end).max(base.0.saturating_add(u64::from(count)));
        base.0
    }
}
