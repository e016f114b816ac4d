//! What becomes of what consumers read: judged, or only counted.

use std::ops::Range;
use std::sync::Arc;

use hdrhistogram::Histogram;
use ringbolt_wire::message::DeliveredRange;
use ringbolt_wire::{BatchView, PartitionId};

use crate::consumer::Reader;
use crate::engine::consume::Sink;
use crate::group::{Entry, Holder, Watcher};
use crate::judge::Judge;
use crate::judge::group::GroupJudge;
use crate::payload::Stamp;
use crate::report::{Fetched, Quantiles};
use crate::signals::Signals;
use crate::stats::{Clock, Recorder, histogram};

/// Takes the time from when messages were to be sent to when they came.
pub struct Reading {
    /// The run's number and clock, if it is this process that sends: only then
    /// do the records' times mean anything.
    live: Option<(u64, Clock)>,
    signals: Arc<Signals>,
    latency: Histogram<u64>,
    records: u64,
    bytes: u64,
}

impl Reading {
    /// Nothing came yet. `live` is the number of this process's own run.
    pub fn new(live: Option<(u64, Clock)>, signals: Arc<Signals>) -> Reading {
        Reading { live, signals, latency: histogram(), records: 0, bytes: 0 }
    }

    /// A message came.
    #[inline]
    fn message(&mut self, stamp: &Stamp, now: u64) {
        if self.live.is_some_and(|(run, _)| run == stamp.run) && self.signals.is_measured(now) {
            self.records += 1;
            self.latency.saturating_record(now.saturating_sub(stamp.sent_ns));
        }
    }

    /// Bytes of record batches came.
    fn bytes(&mut self, bytes: usize, now: u64) {
        if self.signals.is_measured(now) {
            self.bytes += bytes as u64;
        }
    }

    /// The figures.
    pub fn fetched(&self) -> Fetched {
        let seconds = self.signals.measured_seconds();
        let rate = |n: u64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
        Fetched {
            records: self.records,
            mb_per_s: rate(self.bytes) / 1e6,
            records_per_s: rate(self.records),
            latency_us: Quantiles::of(&self.latency),
        }
    }
}

/// Hands every record to the judge, and takes the time until it was read.
pub struct JudgeSink {
    judge: Judge,
    reading: Reading,
}

impl JudgeSink {
    /// A sink for a judge. `live` is the number of this process's own run.
    pub fn new(judge: Judge, live: Option<(u64, Clock)>, signals: Arc<Signals>) -> JudgeSink {
        JudgeSink { judge, reading: Reading::new(live, signals) }
    }

    /// The judge, with all evidence.
    pub fn into_judge(self) -> Judge {
        self.judge
    }

    /// The figures.
    pub fn fetched(&self) -> Fetched {
        self.reading.fetched()
    }
}

impl Reader for JudgeSink {
    fn batch(&mut self, batch: &BatchView<'_>) {
        let JudgeSink { judge, reading } = self;
        let now = reading.live.map_or(0, |(_, clock)| clock.now());
        judge.batch(batch, |stamp| reading.message(&stamp, now));
    }

    fn holds(&mut self, partition: PartitionId, offsets: Range<u64>) {
        self.judge.holds(partition, offsets);
    }

    fn missing(&mut self, partition: PartitionId) {
        self.judge.missing(partition);
    }

    fn unreadable(&mut self, partition: PartitionId, why: String) {
        self.judge.unreadable(partition, why);
    }

    fn finished(&mut self, partition: PartitionId) {
        self.judge.finished(partition);
    }
}

impl Sink for JudgeSink {
    fn fetched(&mut self, _asked: u64, now: u64, bytes: usize) {
        self.reading.bytes(bytes, now);
    }
}

/// Shows a group's judge what its consumers see, and takes the time until messages come.
pub struct GroupSink {
    judge: GroupJudge,
    reading: Reading,
}

impl GroupSink {
    /// A sink for a judge, of the run with this number.
    pub fn new(judge: GroupJudge, run: u64, clock: Clock, signals: Arc<Signals>) -> GroupSink {
        GroupSink { judge, reading: Reading::new(Some((run, clock)), signals) }
    }

    /// The judge, with all evidence, and the figures.
    pub fn finish(self) -> (GroupJudge, Fetched) {
        let fetched = self.reading.fetched();
        (self.judge, fetched)
    }
}

impl Watcher for GroupSink {
    fn delivered(
        &mut self,
        to: &Holder,
        range: &DeliveredRange,
        payload: &[u8],
        now: u64,
    ) -> Result<(), String> {
        let GroupSink { judge, reading } = self;
        reading.bytes(payload.len(), now);
        judge.delivered(to, range, payload, |stamp| reading.message(stamp, now))
    }

    fn settling(&mut self, _: &Holder, entries: &[Entry]) {
        self.judge.settling(entries);
    }

    fn settled(&mut self, _: &Holder, entry: &Entry, status: u16) {
        self.judge.settled(entry, status);
    }

    fn unanswered(&mut self, _: &Holder, entries: &[Entry]) {
        self.judge.unanswered(entries);
    }
}

/// Hands every record of the dead-letter topic to a group's judge.
pub struct DeadLetterSink {
    /// The judge.
    pub judge: GroupJudge,
    /// By partition, what follows what was read.
    pub next: Vec<(PartitionId, u64)>,
    /// Why a partition could not be read.
    pub failure: Option<String>,
}

impl Reader for DeadLetterSink {
    fn batch(&mut self, batch: &BatchView<'_>) {
        let header = batch.header();
        let known = self.next.iter_mut().find(|(partition, _)| *partition == header.partition());
        let Some((_, next)) = known else { return };
        let from = *next;
        for (offset, record) in batch.records().filter(|(offset, _)| offset.0 >= from) {
            self.judge.dead_letter(&record);
            *next = offset.0 + 1;
        }
    }

    fn holds(&mut self, partition: PartitionId, offsets: Range<u64>) {
        self.unreadable(partition, format!("only offsets {offsets:?} are there"));
    }

    fn missing(&mut self, partition: PartitionId) {
        self.unreadable(partition, "the broker knows no such partition".to_owned());
    }

    fn unreadable(&mut self, partition: PartitionId, why: String) {
        self.failure.get_or_insert(format!("dead letters of partition {partition} cannot be read: {why}"));
    }

    fn finished(&mut self, _: PartitionId) {}
}

impl Sink for DeadLetterSink {
    fn fetched(&mut self, _: u64, _: u64, _: usize) {}
}

/// Only counts.
pub struct CountSink {
    recorder: Recorder,
    signals: Arc<Signals>,
    measuring: bool,
    failure: Option<String>,
}

impl CountSink {
    /// A sink that counts into this recorder what the signals call measured.
    pub fn new(recorder: Recorder, signals: Arc<Signals>) -> CountSink {
        CountSink { recorder, signals, measuring: false, failure: None }
    }

    /// Hands the last interval over, and tells what went wrong.
    pub fn finish(mut self, now: u64) -> Option<String> {
        self.recorder.cut(now, false);
        self.failure
    }
}

impl Reader for CountSink {
    fn batch(&mut self, batch: &BatchView<'_>) {
        self.recorder.read(u64::from(batch.header().count()));
    }

    fn holds(&mut self, _: PartitionId, _: Range<u64>) {}

    fn missing(&mut self, _: PartitionId) {}

    fn unreadable(&mut self, partition: PartitionId, why: String) {
        self.failure.get_or_insert(format!("partition {partition} cannot be read: {why}"));
    }

    fn finished(&mut self, _: PartitionId) {}
}

impl Sink for CountSink {
    fn fetched(&mut self, asked: u64, now: u64, bytes: usize) {
        let measured = self.signals.is_measured(now);
        if measured != self.measuring {
            self.measuring = measured;
            self.recorder.cut(now, measured);
        }
        self.recorder.fetched(now.saturating_sub(asked), bytes as u64);
        self.recorder.tick(now);
    }
}

#[cfg(test)]
mod tests {
    use ringbolt_wire::{BatchBuilder, Epoch, ProducerId, Sequence};

    use super::*;
    use crate::payload::Filler;

    #[test]
    fn delivery_counts_from_when_a_message_of_this_run_was_to_be_sent() {
        const RUN: u64 = 7;
        let (clock, signals) = (Clock::start(), Arc::new(Signals::default()));
        signals.measure_from(0);
        let mut sink = JudgeSink::new(Judge::default(), Some((RUN, clock)), signals);
        std::thread::sleep(std::time::Duration::from_millis(30));
        let filler = Filler::new(1, 64);
        let mut batch = BatchBuilder::new();
        let sent = clock.now() - 20_000_000;
        for (run, sent_ns) in [(RUN, sent), (RUN + 1, 0)] {
            let (bytes, crc) = filler.get(0);
            let trailer = Stamp { run, sent_ns, ..Stamp::default() }.trailer(crc);
            batch.push(1, None, &[bytes, &trailer].concat(), &[]);
        }
        let batch = batch.finish(PartitionId::default(), ProducerId(9), Epoch(0), Sequence(0));
        let least = clock.now() - sent;
        sink.batch(&BatchView::parse(&batch, u32::MAX).unwrap());
        let most = clock.now() - sent;
        assert_eq!(sink.fetched().records, 1, "what another run sent has another clock");
        // The histogram keeps three digits.
        let taken = (sink.reading.latency.min(), sink.reading.latency.max());
        assert!(
            taken.0 >= least - least / 500 && taken.1 <= most + most / 500,
            "{taken:?}, {least} to {most}"
        );
    }
}
