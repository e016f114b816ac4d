//! All producers of a run and its course: opening, warm-up, measuring, waiting
//! for the last answers. Knows no sockets; an engine calls it.

use std::sync::Arc;

use crate::engine::{LONGEST_SLEEP, Troop, Turn};
use crate::ledger::{Entry, LedgerError};
use crate::producer::{Context, LinkError, Phase, Producer, Tally};
use crate::signals::Signals;

/// How long a run is, in ns.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Before anything is measured.
    pub warmup: u64,
    /// What is measured; `None` if the number of messages ends the run.
    pub measured: Option<u64>,
}

/// Between two rounds of bookkeeping, in ns: how old the ledger's news of what
/// was sent may be.
const BOOKKEEPING: u64 = 5_000_000;
/// How long an open loop goes on, in ns, to send what was due before its end.
const CATCH_UP: u64 = 5_000_000_000;
/// Between two looks for producers that wait too long, in ns.
const TIMEOUT_CHECK: u64 = 100_000_000;

/// What is left of a fleet. Ledger and recorder are closed, which is what their
/// other ends wait for.
pub struct Finished {
    /// The counts.
    pub tally: Tally,
    /// The first thing that went wrong for good.
    pub failure: Option<String>,
    /// Why the ledger could not be written.
    pub ledger_error: Option<LedgerError>,
}

/// See the [module](self).
pub struct Fleet {
    /// The producers, by index.
    pub producers: Vec<Producer>,
    /// What they share.
    pub ctx: Context,
    plan: Plan,
    signals: Arc<Signals>,
    measuring: bool,
    measure_at: u64,
    stop_at: u64,
    /// When an open loop stops to catch up.
    catch_up_until: u64,
    /// When the engine called last.
    called_at: u64,
    bookkeeping_at: u64,
    timeouts_at: u64,
}

impl Fleet {
    /// A fleet that has not set out.
    pub fn new(producers: Vec<Producer>, ctx: Context, plan: Plan, signals: Arc<Signals>) -> Fleet {
        Fleet {
            producers,
            ctx,
            plan,
            signals,
            measuring: false,
            measure_at: u64::MAX,
            stop_at: u64::MAX,
            catch_up_until: u64::MAX,
            called_at: u64::MAX,
            bookkeeping_at: 0,
            timeouts_at: 0,
        }
    }

    /// Closes the books.
    pub fn finish(self) -> Finished {
        let Context { tally, failure, ledger_error, .. } = self.ctx;
        Finished { tally, failure, ledger_error }
    }

    /// Notes a pause if the engine's last call was longer ago than it may sleep:
    /// then it was held up itself, and what it sees now may have been there for
    /// that long.
    #[inline]
    fn note_pause(&mut self, now: u64) {
        let from = self.called_at.saturating_add(LONGEST_SLEEP.as_nanos() as u64);
        self.called_at = now;
        if from < now {
            self.ctx.pauses.push(from, now);
        }
    }

    /// Ends what is measured. What an open loop owes until now is still sent: it
    /// would have been, had the broker left room for it.
    fn stop_sending(&mut self, now: u64) {
        if self.signals.is_interrupted() {
            self.ctx.fail(|| "interrupted: the figures are of what was run until then".to_owned());
        }
        self.ctx.due_until = self.ctx.due_until.min(now);
        self.catch_up_until = now + CATCH_UP;
        self.ctx.phase = if self.is_behind() { Phase::CatchingUp } else { Phase::Draining };
        if self.measuring {
            self.ctx.recorder.await_answers(now);
        }
        self.signals.measure_until(now);
    }

    fn is_behind(&self) -> bool {
        self.producers.iter().any(|producer| producer.is_behind(&self.ctx))
    }

    fn begin(&mut self, now: u64) {
        self.ctx.phase = Phase::Sending;
        self.ctx.recorder.cut(now, false);
        self.measure_at = now + self.plan.warmup;
        self.stop_at = self.plan.measured.map_or(u64::MAX, |length| self.measure_at + length);
        self.ctx.due_until = self.stop_at;
        for producer in &mut self.producers {
            producer.begin(&self.ctx, now);
        }
        if self.plan.warmup == 0 {
            self.measure(now);
        }
    }

    fn measure(&mut self, now: u64) {
        self.measuring = true;
        self.ctx.recorder.cut(now, true);
        self.signals.measure_from(now);
    }

    fn is_over(&self) -> bool {
        if self.ctx.ledger_error.is_some() {
            return true;
        }
        let tally = &self.ctx.tally;
        // Cheap first: with batches under way nothing is over.
        if matches!(self.ctx.phase, Phase::Opening | Phase::CatchingUp)
            || tally.acked + tally.refused + tally.unknown < tally.sent
        {
            return false;
        }
        match self.ctx.phase {
            Phase::Draining => self.producers.iter().all(Producer::is_settled),
            _ => self.producers.iter().all(Producer::has_spent),
        }
    }

    fn keep_books(&mut self, now: u64) {
        self.bookkeeping_at = now + BOOKKEEPING;
        for producer in &mut self.producers {
            producer.tell(&mut self.ctx);
        }
        self.ctx.hand_over();
        if now >= self.timeouts_at {
            self.timeouts_at = now + TIMEOUT_CHECK;
            for producer in &mut self.producers {
                producer.check_timeout(&mut self.ctx, now);
            }
        }
    }

    fn end(&mut self, now: u64) {
        self.ctx.recorder.cut(now, false);
        self.signals.measure_until(now);
        // A counted run that ended early has no end of its own.
        let until = self.ctx.due_until.min(now);
        self.ctx.tally.due_not_sent = self.producers.iter().map(|p| p.due_not_sent(&self.ctx, until)).sum();
        for producer in &mut self.producers {
            producer.stop(&mut self.ctx);
        }
        self.ctx.note(Entry::RunEnded);
        self.ctx.hand_over();
    }
}

impl Troop for Fleet {
    fn now(&self) -> u64 {
        self.ctx.clock.now()
    }

    fn len(&self) -> usize {
        self.producers.len()
    }

    fn poll(&mut self, now: u64) -> Turn {
        self.ctx.recorder.tick(now);
        self.note_pause(now);
        let mut turn = Turn::Go;
        match self.ctx.phase {
            Phase::Opening if self.signals.is_interrupted() => self.stop_sending(now),
            Phase::Opening if self.producers.iter().all(Producer::is_ready) => {
                self.begin(now);
                turn = Turn::FillAll;
            }
            Phase::Opening => {}
            Phase::Sending => {
                if !self.measuring && now >= self.measure_at {
                    self.measure(now);
                }
                if now >= self.stop_at || self.signals.is_interrupted() {
                    self.stop_sending(now);
                }
            }
            Phase::CatchingUp => {
                if now >= self.catch_up_until || !self.is_behind() {
                    self.ctx.phase = Phase::Draining;
                }
            }
            Phase::Draining => {}
        }
        if now >= self.bookkeeping_at || self.ctx.phase == Phase::Draining {
            self.keep_books(now);
        }
        if self.is_over() {
            self.end(now);
            return Turn::Done;
        }
        turn
    }

    fn connect_at(&self, index: usize) -> Option<u64> {
        self.producers[index].connect_at()
    }

    fn connected(&mut self, index: usize, now: u64) {
        self.producers[index].connected(&mut self.ctx, now);
    }

    fn disconnected(&mut self, index: usize, now: u64) {
        self.producers[index].disconnected(&mut self.ctx, now);
    }

    #[inline]
    fn received(&mut self, index: usize, bytes: &[u8], now: u64) -> bool {
        self.note_pause(now);
        match self.producers[index].received(&mut self.ctx, bytes, now) {
            Ok(()) => true,
            // A restart, seen while shaking hands.
            Err(LinkError::Session(error)) if error.is_shutting_down() => false,
            Err(error) => {
                self.ctx.fail(|| format!("producer {index}: {error}"));
                false
            }
        }
    }

    #[inline]
    fn fill(&mut self, index: usize, now: u64) -> bool {
        self.producers[index].fill(&mut self.ctx, now);
        true
    }

    #[inline]
    fn take_output(&mut self, index: usize) -> Option<(Vec<u8>, usize)> {
        self.producers[index].take_output()
    }

    #[inline]
    fn recycle(&mut self, index: usize, memory: Vec<u8>) {
        self.producers[index].recycle(&mut self.ctx, memory);
    }

    fn wake_at(&self, index: usize) -> Option<u64> {
        self.producers[index].wake_at(&self.ctx)
    }
}
