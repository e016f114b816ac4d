//! A fleet against a broker made of a few lines that refuses, forgets to answer
//! and hangs up: every message must be there once, in order, and the books must
//! say exactly what happened.

use std::collections::HashMap;
use std::sync::Arc;

use crossbeam::channel::Receiver;
use proptest::prelude::*;
use ringbolt_wire::message::{ErrorResponse, OpenProducer, ProduceAck, ProducerOpened};
use ringbolt_wire::{
    BatchHeader, BatchView, Epoch, ErrorCode, FrameHeader, Offset, Opcode, Request, Response, Sequence,
    TopicId,
};

use super::*;
use crate::engine::{Troop, Turn};
use crate::fleet::{Fleet, Plan};
use crate::frame::FrameMaker;
use crate::judge::{Judge, Verdict};
use crate::ledger::{LedgerSink, RunInfo};
use crate::payload::Filler;
use crate::signals::Signals;
use crate::stats::{Clock, Intervals, Next, Totals, recorder};
use crate::test_broker::greeting;

const RUN: u64 = 99;

/// What the broker does with a produce request.
#[derive(Clone, Copy, Debug)]
enum Mood {
    Store,
    RefuseForNow,
    RefuseForGood,
    /// Stores, and hangs up before the answer is out.
    StoreAndHangUp,
    HangUp,
}

/// What a broker says that stops while it is greeted.
fn farewell() -> Vec<u8> {
    let mut bytes = Vec::new();
    let leaving = ErrorResponse::new(ErrorCode::ShuttingDown, "the broker is shutting down");
    Response::Error(leaving).encode(&mut bytes, Opcode::Goodbye as u8, 0, 0);
    bytes
}

#[derive(Default)]
struct FakeBroker {
    log: HashMap<PartitionId, Vec<Vec<u8>>>,
    ends: HashMap<PartitionId, u64>,
    /// By producer and partition: the next sequence, and where each batch went.
    next: HashMap<(ProducerId, PartitionId), (u64, HashMap<u64, u64>)>,
    producers: u64,
    moods: Vec<Mood>,
    max_batch_len: u32,
}

impl FakeBroker {
    /// Answers to these requests, and whether the connection is kept.
    fn serve(&mut self, mut input: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        while !input.is_empty() {
            let header = FrameHeader::decode(input, u32::MAX).unwrap().unwrap();
            header.verify(input).unwrap();
            let (frame, rest) = input.split_at(header.frame_len());
            input = rest;
            let meta = &frame[32..header.head_len()];
            let request = Request::decode(header.opcode, meta, header.payload_len).unwrap();
            let answer = match request {
                Request::Hello(hello) => {
                    assert!(hello.affinity.is_some());
                    Some(greeting(self.max_batch_len))
                }
                Request::OpenProducer(open) => Some(self.open(open)),
                Request::Produce { .. } => self.produce(&frame[header.head_len()..]),
                other => panic!("{other:?}"),
            };
            let Some(answer) = answer else { return (out, false) };
            answer.encode(&mut out, header.opcode, header.correlation, 0);
        }
        (out, true)
    }

    fn open(&mut self, open: OpenProducer) -> Response {
        let mut producer = open.producer;
        if producer == ProducerId::NONE {
            self.producers += 1;
            producer = ProducerId(self.producers);
        }
        let next = self.next.entry((producer, open.partition)).or_default().0;
        Response::ProducerOpened(ProducerOpened {
            producer,
            epoch: Epoch(1),
            next_sequence: Sequence(next),
            last_offset: Offset::UNKNOWN,
        })
    }

    fn produce(&mut self, batch: &[u8]) -> Option<Response> {
        let view = BatchView::parse(batch, u32::MAX).unwrap();
        let (header, partition) = (view.header(), view.header().partition());
        let (first, count) = (header.base_sequence().0, u64::from(header.count()));
        let mood = self.moods.pop().unwrap_or(Mood::Store);
        match mood {
            Mood::HangUp => return None,
            Mood::RefuseForNow => {
                return Some(Response::Error(ErrorResponse::new(ErrorCode::Overloaded, "")));
            }
            Mood::RefuseForGood => {
                return Some(Response::Error(ErrorResponse::new(ErrorCode::FencedProducer, "")));
            }
            Mood::Store | Mood::StoreAndHangUp => {}
        }
        let (next, places) = self.next.get_mut(&(header.producer_id(), partition)).expect("it was opened");
        if first > *next {
            return Some(Response::Error(ErrorResponse::new(ErrorCode::OutOfOrderSequence, "")));
        }
        let duplicate = first < *next;
        if !duplicate {
            *next = first + count;
            let end = self.ends.entry(partition).or_default();
            places.insert(first, *end);
            let mut bytes = batch.to_vec();
            BatchHeader::set_placement(&mut bytes, Offset(*end), 1);
            *end += count;
            self.log.entry(partition).or_default().push(bytes);
        }
        let ack = ProduceAck { base_offset: Offset(places[&first]), commit_time_us: 1, copies: 1, duplicate };
        (!matches!(mood, Mood::StoreAndHangUp)).then_some(Response::Produced(ack))
    }
}

struct Case {
    fleet: Fleet,
    broker: FakeBroker,
    chunks: Receiver<Vec<Entry>>,
    now: u64,
    up: Vec<bool>,
    signals: Arc<Signals>,
}

impl Case {
    fn new(producers: u32, partitions: u32, in_flight: u32, count: u64, moods: Vec<Mood>) -> Case {
        let plan = Plan { warmup: 0, measured: None };
        Case::with(producers, partitions, in_flight, Some(count), None, plan, moods).0
    }

    /// One producer with a window of one batch of three, and a schedule.
    fn open_loop(rate: f64, measured: u64) -> (Case, Intervals) {
        let plan = Plan { warmup: 0, measured: Some(measured) };
        Case::with(1, 1, 1, None, Some(rate), plan, Vec::new())
    }

    fn with(
        producers: u32,
        partitions: u32,
        in_flight: u32,
        count: Option<u64>,
        rate: Option<f64>,
        plan: Plan,
        moods: Vec<Mood>,
    ) -> (Case, Intervals) {
        let (recorder, intervals) = recorder();
        let (mut ledger, chunks) = LedgerSink::visible();
        ledger.push(Entry::RunStarted(Box::new(RunInfo { run: RUN, ..RunInfo::default() }))).unwrap();
        let ctx = Context {
            parameters: Parameters {
                run: RUN,
                batch: 3,
                in_flight,
                timeout: 5_000_000_000,
                rate,
                producers,
                echo: false,
                wall_us: 1_000,
            },
            maker: FrameMaker::new(Filler::new(1, 50), 3, None),
            clock: Clock::start(),
            recorder,
            ledger,
            tally: Tally::default(),
            phase: Phase::Opening,
            due_until: u64::MAX,
            pauses: Pauses::default(),
            acked_end: vec![0; partitions as usize],
            spares: Vec::new(),
            streams: 0,
            failure: None,
            ledger_error: None,
        };
        let all = |p: u32| (0..partitions).filter(move |i| i % producers == p % partitions.max(1));
        let producers: Vec<Producer> = (0..producers)
            .map(|p| {
                let own: Vec<_> = all(p).map(|i| PartitionId::new(TopicId(1), i)).collect();
                let own = if own.is_empty() { vec![PartitionId::new(TopicId(1), 0)] } else { own };
                Producer::new(p, own, count)
            })
            .collect();
        let up = vec![false; producers.len()];
        let signals = Arc::new(Signals::default());
        let fleet = Fleet::new(producers, ctx, plan, signals.clone());
        let broker = FakeBroker { moods, max_batch_len: 16 << 20, ..FakeBroker::default() };
        (Case { fleet, broker, chunks, now: 1, up, signals }, intervals)
    }

    /// Drives the fleet, in an order that does not matter, until its run is over.
    fn run(&mut self) {
        for _ in 0..100_000 {
            self.now += 200_000;
            if self.fleet.poll(self.now) == Turn::Done {
                return;
            }
            for index in 0..self.up.len() {
                self.step(index);
            }
        }
        panic!("the run does not end");
    }

    fn step(&mut self, index: usize) {
        let now = self.now;
        if !self.up[index] {
            if self.fleet.producers[index].connect_at().is_some_and(|at| at <= now) {
                self.fleet.connected(index, now);
                self.up[index] = true;
            }
            return;
        }
        self.fleet.fill(index, now);
        let Some((memory, len)) = self.fleet.producers[index].take_output() else { return };
        let (answers, kept) = self.broker.serve(&memory[..len]);
        self.fleet.recycle(index, memory);
        // In pieces, as a network would.
        for piece in answers.chunks(37) {
            assert!(self.fleet.received(index, piece, now), "{:?}", self.fleet.ctx.failure);
        }
        if !kept {
            self.up[index] = false;
            self.fleet.disconnected(index, now);
        }
    }

    fn verdict(self) -> (Verdict, Tally, Option<String>) {
        let finished = self.fleet.finish();
        let mut judge = Judge::default();
        while let Ok(chunk) = self.chunks.try_recv() {
            chunk.iter().for_each(|entry| judge.entry(entry));
        }
        for batch in self.broker.log.values().flatten() {
            judge.batch(&BatchView::parse(batch, u32::MAX).unwrap(), |stamp| assert_eq!(stamp.run, RUN));
        }
        judge.partitions().into_iter().for_each(|partition| judge.finished(partition));
        (judge.verdict(), finished.tally, finished.failure)
    }
}

fn mood() -> impl Strategy<Value = Mood> {
    prop_oneof![
        5 => Just(Mood::Store),
        2 => Just(Mood::RefuseForNow),
        1 => Just(Mood::StoreAndHangUp),
        1 => Just(Mood::HangUp),
    ]
}

proptest! {
    #[test]
    fn whatever_is_refused_or_cut_off_is_sent_again_and_stored_once(
        producers in 1u32..4,
        partitions in 1u32..6,
        in_flight in 1u32..9,
        count in 1u64..80,
        moods in prop::collection::vec(mood(), 0..120),
    ) {
        let mut case = Case::new(producers, partitions, in_flight, count, moods);
        case.run();
        let (verdict, tally, failure) = case.verdict();
        prop_assert_eq!(failure, None);
        prop_assert!(verdict.is_good() && verdict.complete, "{:?}", verdict);
        let all = count * u64::from(producers);
        prop_assert_eq!((verdict.sent, verdict.acked, verdict.read), (all, all, all));
        prop_assert_eq!((tally.sent, tally.acked, tally.unknown, tally.refused), (all, all, 0, 0));
    }

    /// A final refusal ends a stream. What it leaves behind is refused or
    /// unknown, and the judge finds that consistent with what is stored.
    #[test]
    fn a_final_refusal_leaves_no_contradiction_behind(
        in_flight in 1u32..9,
        before in prop::collection::vec(mood(), 0..20),
    ) {
        let mut moods = vec![Mood::RefuseForGood];
        moods.extend(before);
        let mut case = Case::new(2, 1, in_flight, 100, moods);
        case.run();
        let (verdict, tally, failure) = case.verdict();
        prop_assert!(failure.is_some());
        prop_assert!(verdict.is_good() && verdict.complete, "{:?}", verdict);
        prop_assert_eq!(verdict.refused, tally.refused);
        prop_assert_eq!(verdict.unknown, tally.unknown);
        prop_assert_eq!(verdict.acked, tally.acked);
        prop_assert_eq!(tally.acked + tally.refused + tally.unknown, tally.sent);
    }
}

#[test]
fn a_broker_that_stops_while_hands_are_shaken_is_waited_for() {
    let mut case = Case::new(1, 1, 4, 100, Vec::new());
    case.fleet.connected(0, case.now);
    assert!(!case.fleet.received(0, &farewell(), case.now), "the connection is of no more use");
    case.fleet.disconnected(0, case.now);
    case.run();
    let (verdict, tally, failure) = case.verdict();
    assert_eq!(failure, None);
    assert_eq!((tally.acked, verdict.acked, verdict.lost), (100, 100, 0));
}

#[test]
fn a_producer_that_gives_up_says_what_it_was_refused_for() {
    let mut case = Case::new(1, 1, 4, 1000, vec![Mood::RefuseForNow; 100_000]);
    case.run();
    let (_, tally, failure) = case.verdict();
    let failure = failure.unwrap();
    assert!(failure.contains("gave up") && failure.contains("Overloaded"), "{failure}");
    assert_eq!((tally.acked, tally.refused + tally.unknown), (0, 12));
}

#[test]
fn what_was_only_ever_refused_is_not_called_unknown_when_its_producer_gives_up() {
    // The first two of four batches are refused; the connection ends before the
    // others are answered, which may have been stored.
    let mut moods = vec![Mood::RefuseForNow; 100_000];
    moods.extend([Mood::HangUp, Mood::RefuseForNow, Mood::RefuseForNow]);
    let mut case = Case::new(1, 1, 4, 1000, moods);
    case.run();
    let (verdict, tally, failure) = case.verdict();
    assert!(failure.unwrap().contains("gave up"));
    assert_eq!((tally.acked, tally.refused, tally.unknown), (0, 6, 6));
    assert_eq!((verdict.acked, verdict.refused, verdict.unknown), (0, 6, 6));
}

#[test]
fn a_broker_that_never_answers_again_leaves_unknowns() {
    let mut case = Case::new(1, 1, 4, 1000, vec![Mood::HangUp; 100_000]);
    case.run();
    let (verdict, tally, failure) = case.verdict();
    assert!(failure.unwrap().contains("gave up"));
    assert_eq!((tally.acked, tally.unknown), (0, 12));
    assert_eq!((verdict.unknown_absent, verdict.unknown_present), (12, 0));
}

const MS: u64 = 1_000_000;

impl Case {
    /// Lets time pass up to `until`; the broker works at the moments that
    /// `works` is true for.
    fn until(&mut self, until: u64, works: impl Fn(u64) -> bool) -> Turn {
        while self.now < until {
            self.now += MS / 5;
            if self.fleet.poll(self.now) == Turn::Done {
                return Turn::Done;
            }
            if works(self.now) {
                self.step(0);
            } else if self.up[0] {
                self.fleet.fill(0, self.now);
            }
        }
        Turn::Go
    }
}

fn totals(intervals: &Intervals) -> Totals {
    let mut totals = Totals::default();
    while let Next::Interval(interval) = intervals.next(std::time::Duration::ZERO) {
        totals.add(&interval);
        intervals.recycle(interval);
    }
    totals
}

#[test]
fn what_was_due_while_the_broker_stood_still_is_in_the_latencies_to_the_end() {
    let (mut case, intervals) = Case::open_loop(300.0, 1000 * MS);
    // Still from the middle of the run until long after its end.
    let done = case.until(4000 * MS, |now| !(500 * MS..2000 * MS).contains(&now));
    assert_eq!(done, Turn::Done);
    let totals = totals(&intervals);
    assert_eq!((totals.latency.len(), case.fleet.ctx.tally.due_not_sent), (300, 0));
    // Half of them waited, on average for 1.25 s.
    let (p50, max) = (totals.latency.value_at_quantile(0.51), totals.latency.max());
    assert!(p50 > 990 * MS && max > 1480 * MS && max < 1520 * MS, "p51 {p50} ns, max {max} ns");
    assert!((140..160).contains(&totals.records), "{} in time", totals.records);
    assert!(case.fleet.ctx.failure.is_none());
}

#[test]
fn what_an_overloaded_broker_left_no_room_for_is_counted() {
    let (mut case, _intervals) = Case::open_loop(3000.0, 1000 * MS);
    // 20 batches a second of the 1000 that are due.
    let done = case.until(10_000 * MS, |now| now % (50 * MS) < MS / 5);
    assert_eq!(done, Turn::Done);
    assert!(case.now < 6200 * MS, "the run ends {} ns after its time", case.now);
    let tally = case.fleet.ctx.tally;
    assert_eq!(tally.sent + tally.due_not_sent, 3000);
    assert!((300..420).contains(&tally.acked), "{tally:?}");
}

#[test]
fn a_generator_that_was_away_is_late_even_where_it_had_no_room() {
    let (mut case, intervals) = Case::open_loop(300.0, 2000 * MS);
    case.until(500 * MS, |_| true);
    // A batch leaves and is answered while nobody looks.
    case.now += 10 * MS;
    case.fleet.fill(0, case.now);
    let (memory, len) = case.fleet.producers[0].take_output().expect("one is due");
    let (answer, _) = case.broker.serve(&memory[..len]);
    case.fleet.fill(0, case.now + 10 * MS);
    case.now += 1000 * MS;
    assert!(case.fleet.received(0, &answer, case.now));
    case.fleet.fill(0, case.now);
    assert_eq!(case.until(4000 * MS, |_| true), Turn::Done);
    let lag = totals(&intervals).lag.max();
    assert!(lag > 980 * MS, "{lag} ns");
}

#[test]
fn silence_while_nothing_is_waited_for_is_no_reason_to_give_up() {
    // A batch every 9 s; a producer gives up after 5 s.
    let (mut case, _intervals) = Case::open_loop(1.0 / 3.0, 20_000 * MS);
    let is_late = |now: u64| now < 1000 * MS || now % (9000 * MS) > 3000 * MS;
    case.until(25_000 * MS, is_late);
    assert_eq!(case.fleet.ctx.failure, None);
    assert_eq!((case.fleet.ctx.tally.acked, case.fleet.ctx.tally.unknown), (9, 0));
}

#[test]
fn an_interrupted_run_ends_in_an_orderly_way() {
    let (mut case, intervals) = Case::open_loop(300.0, 60_000 * MS);
    case.until(1000 * MS, |_| true);
    case.signals.interrupt();
    assert_eq!(case.until(1100 * MS, |_| true), Turn::Done);
    let tally = case.fleet.ctx.tally;
    assert!((290..310).contains(&tally.acked), "{tally:?}");
    assert_eq!((tally.acked, tally.unknown, tally.due_not_sent), (tally.sent, 0, 0));
    assert_eq!(totals(&intervals).records, tally.acked);
    let (verdict, _, failure) = case.verdict();
    assert!(verdict.complete && failure.unwrap().contains("interrupted"));
}

#[test]
fn a_broker_that_takes_less_than_before_ends_the_run_with_both_numbers() {
    let mut case = Case::new(1, 1, 4, 100, Vec::new());
    case.broker.max_batch_len = 200;
    case.run();
    let (_, tally, failure) = case.verdict();
    let failure = failure.unwrap();
    assert!(failure.contains("302 bytes") && failure.contains("at most 200"), "{failure}");
    assert_eq!(tally.acked, 0);
}
