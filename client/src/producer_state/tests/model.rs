//! A model of the broker's rules for producers, and a network that loses
//! connections but not always the bytes that were on them.

use std::collections::{HashMap, HashSet, VecDeque};

use proptest::prelude::*;

use super::*;

const STEP_US: u64 = 400_000;

#[derive(Clone, Debug)]
enum Ask {
    Open(OpenProducer),
    Produce(BatchId, Bytes),
}

#[derive(Clone, Debug)]
enum Answer {
    Opened(ProducerOpened),
    Acked(BatchId, ProduceAck),
    Refused(BatchId, ErrorResponse),
}

/// Stands in the log for a record that is retained no more.
const EXPIRED: u64 = u64::MAX;

/// What the broker knows of the one producer.
#[derive(Clone, Copy, Default)]
struct Known {
    epoch: u32,
    promised: u32,
    next: u64,
}

#[derive(Default)]
struct Broker {
    /// Tags of the records; the first `durable` of them survive a crash.
    log: Vec<u64>,
    /// Sequence and epoch of each record, for recovery.
    stamps: Vec<(u64, u32)>,
    durable: usize,
    /// Tags of records that are retained no more.
    expired: HashSet<u64>,
    known: Option<Known>,
    /// Acks that wait for the flush: connection, answer, log end.
    waiting: Vec<(usize, Answer)>,
    refuse_next: Option<ErrorCode>,
}

impl Broker {
    fn handle(&mut self, connection: usize, ask: Ask) -> Option<Answer> {
        match ask {
            Ask::Open(open) => Some(Answer::Opened(self.open(open))),
            Ask::Produce(id, bytes) => match self.produce(id, &bytes) {
                refused @ Answer::Refused(..) => Some(refused),
                acked => {
                    self.waiting.push((connection, acked));
                    None
                }
            },
        }
    }

    fn open(&mut self, open: OpenProducer) -> ProducerOpened {
        let mut epoch = 0;
        if let Some(known) = &mut self.known {
            if open.take_over {
                known.promised = known.promised.max(known.epoch) + 1;
            }
            epoch = known.promised.max(known.epoch);
        }
        let next = match self.known {
            None => 0,
            Some(_) => self.stamps[..self.durable].last().map_or(0, |(sequence, _)| sequence + 1),
        };
        ProducerOpened {
            producer: PRODUCER,
            epoch: Epoch(epoch),
            next_sequence: Sequence(next),
            last_offset: Offset::UNKNOWN,
        }
    }

    fn produce(&mut self, id: BatchId, bytes: &[u8]) -> Answer {
        let (epoch, base, count, tag) = read(bytes);
        if let Some(code) = self.refuse_next.take() {
            return Answer::Refused(id, ErrorResponse::new(code, "told to"));
        }
        let known = self.known.unwrap_or_default();
        let current = known.epoch.max(known.promised);
        if epoch < current {
            let fenced = ErrorResponse::new(ErrorCode::FencedProducer, "").with_detail(current.into());
            return Answer::Refused(id, fenced);
        }
        let end = base + u64::from(count);
        if base != known.next && end > known.next {
            let text = ErrorResponse::new(ErrorCode::OutOfOrderSequence, "").with_detail(known.next);
            return Answer::Refused(id, text);
        }
        let duplicate = base != known.next;
        let offset = if duplicate {
            self.stamps.iter().rposition(|(sequence, _)| *sequence == base)
        } else {
            self.log.extend((0..count).map(|_| tag));
            self.stamps.extend((base..end).map(|sequence| (sequence, epoch)));
            self.known = Some(Known { epoch, promised: epoch.max(known.promised), next: end });
            Some(self.log.len() - count as usize)
        };
        let base_offset = offset.map_or(Offset::UNKNOWN, |offset| Offset(offset as u64));
        Answer::Acked(id, ProduceAck { base_offset, commit_time_us: 1, copies: 1, duplicate })
    }

    fn flush(&mut self) -> Vec<(usize, Answer)> {
        self.durable = self.log.len();
        std::mem::take(&mut self.waiting)
    }

    /// Loses what is not durable, and promises.
    fn crash(&mut self) {
        self.log.truncate(self.durable);
        self.stamps.truncate(self.durable);
        self.waiting.clear();
        let last = self.stamps.last().filter(|_| self.log.last() != Some(&EXPIRED));
        self.known = last.map(|&(sequence, epoch)| Known { epoch, promised: epoch, next: sequence + 1 });
    }

    /// All records have outlived their retention, and with them goes what was
    /// known of their producer.
    fn expire_all(&mut self) {
        self.expired.extend(self.log.iter().copied().filter(|tag| *tag != EXPIRED));
        self.log.fill(EXPIRED);
        self.known = None;
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Push(u32),
    Poll,
    Arrive,
    ArriveLate,
    Flush,
    Answer,
    Drop,
    DropLosingAll,
    Connect,
    Tick,
    RefuseRetryable,
    RefuseFinal,
    Crash,
    Forget,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1u32..4).prop_map(Op::Push),
        10 => Just(Op::Poll),
        10 => Just(Op::Arrive),
        2 => Just(Op::ArriveLate),
        6 => Just(Op::Flush),
        10 => Just(Op::Answer),
        2 => Just(Op::Drop),
        1 => Just(Op::DropLosingAll),
        4 => Just(Op::Connect),
        4 => Just(Op::Tick),
        1 => Just(Op::RefuseRetryable),
        1 => Just(Op::RefuseFinal),
        1 => Just(Op::Crash),
        1 => Just(Op::Forget),
    ]
}

struct World {
    state: ProducerState<u64>,
    broker: Broker,
    now: u64,
    pushed: Vec<u32>,
    verdicts: HashMap<u64, Result<Durable, Failure>>,
    /// The present connection, if it is up.
    connection: Option<usize>,
    connections: usize,
    to_broker: VecDeque<Ask>,
    to_client: VecDeque<Answer>,
    /// Requests of lost connections that may still arrive, per connection.
    late: Vec<VecDeque<Ask>>,
}

impl World {
    fn new(max_in_flight: usize) -> Self {
        let config = ProducerConfig { max_in_flight, ..ProducerConfig::default() };
        World {
            state: ProducerState::new(PARTITION, config, 5),
            broker: Broker::default(),
            now: 0,
            pushed: Vec::new(),
            verdicts: HashMap::new(),
            connection: None,
            connections: 0,
            to_broker: VecDeque::new(),
            to_client: VecDeque::new(),
            late: Vec::new(),
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Push(count) => {
                let tag = self.pushed.len() as u64;
                self.pushed.push(count);
                self.state.push(batch(tag, count), self.now + 10 * STEP_US, tag);
            }
            Op::Poll => self.poll(),
            Op::Arrive => {
                if let (Some(connection), Some(ask)) = (self.connection, self.to_broker.pop_front()) {
                    self.to_client.extend(self.broker.handle(connection, ask));
                }
            }
            Op::ArriveLate => {
                if let Some(ask) = self.late.first_mut().and_then(VecDeque::pop_front) {
                    self.broker.handle(usize::MAX, ask);
                }
                self.late.retain(|asks| !asks.is_empty());
            }
            Op::Flush => {
                let answers = self.broker.flush();
                let here = |(connection, answer)| (Some(connection) == self.connection).then_some(answer);
                self.to_client.extend(answers.into_iter().filter_map(here));
            }
            Op::Answer => self.answer(),
            Op::Drop => self.drop_connection(true),
            Op::DropLosingAll => self.drop_connection(false),
            Op::Connect => self.connect(),
            Op::Tick => self.now += STEP_US,
            Op::RefuseRetryable => self.broker.refuse_next = Some(ErrorCode::Overloaded),
            Op::RefuseFinal => self.broker.refuse_next = Some(ErrorCode::MalformedBatch),
            Op::Crash => {
                self.drop_connection(false);
                self.late.clear();
                self.broker.crash();
            }
            Op::Forget => {
                // Records expire long after their connections are gone.
                if self.broker.durable == self.broker.log.len() {
                    self.late.clear();
                    self.broker.expire_all();
                }
            }
        }
    }

    fn poll(&mut self) {
        while let Some(step) = self.state.poll(self.now, true) {
            match step {
                Step::Open(open) => self.to_broker.push_back(Ask::Open(open)),
                Step::Send { id, batch } => self.to_broker.push_back(Ask::Produce(id, batch)),
                Step::Reconnect => self.drop_connection(true),
                Step::Finished(finished) => {
                    assert_eq!(finished.count, self.pushed[finished.tag as usize]);
                    let before = self.verdicts.insert(finished.tag, finished.verdict);
                    assert!(before.is_none(), "batch {} ended twice", finished.tag);
                }
            }
        }
    }

    fn answer(&mut self) {
        match self.to_client.pop_front() {
            None => {}
            Some(Answer::Opened(opened)) => self.state.on_opened(opened),
            Some(Answer::Acked(id, ack)) => self.state.on_acked(id, ack),
            Some(Answer::Refused(id, refusal)) => self.state.on_refused(id, refusal, self.now),
        }
    }

    fn drop_connection(&mut self, bytes_survive: bool) {
        if self.connection.take().is_none() {
            return;
        }
        let lost = std::mem::take(&mut self.to_broker);
        if bytes_survive && !lost.is_empty() {
            self.late.push(lost);
        }
        self.to_client.clear();
        self.state.on_disconnected();
    }

    fn connect(&mut self) {
        if self.connection.is_none() {
            self.connection = Some(self.connections);
            self.connections += 1;
            self.state.on_connected();
        }
    }

    /// Lets everything come to its end: late bytes arrive, the network heals.
    fn settle(&mut self) {
        for _ in 0..2000 {
            for op in [Op::Connect, Op::Poll, Op::Arrive, Op::ArriveLate, Op::Flush, Op::Answer, Op::Poll] {
                self.apply(op);
            }
            self.now += STEP_US / 10;
            if self.verdicts.len() == self.pushed.len() && self.late.is_empty() {
                self.apply(Op::Flush);
                return;
            }
        }
        panic!("{} of {} batches ended", self.verdicts.len(), self.pushed.len());
    }

    fn judge(&self) {
        let log = &self.broker.log;
        for (tag, &count) in self.pushed.iter().enumerate() {
            let tag = tag as u64;
            let verdict = &self.verdicts[&tag];
            let expired = self.broker.expired.contains(&tag);
            let found = log.iter().filter(|t| **t == tag).count();
            assert!(found == 0 || found == count as usize, "batch {tag} is there {found} / {count} times");
            match verdict {
                Ok(_) if expired => {}
                Ok(durable) => {
                    assert_eq!(found, count as usize, "batch {tag} was acknowledged and is not there");
                    if let Some(offset) = durable.base_offset {
                        assert_eq!(log[offset.0 as usize], tag, "batch {tag} is elsewhere");
                    }
                }
                Err(Failure::Unknown { .. }) => {}
                Err(failure) => assert!(found == 0 && !expired, "batch {tag} was written, told: {failure}"),
            }
        }
        assert!(log.iter().filter(|tag| **tag != EXPIRED).is_sorted(), "order: {log:?}");
    }
}

fn run(ops: &[Op], max_in_flight: usize) -> World {
    let mut world = World::new(max_in_flight);
    for &op in ops {
        world.apply(op);
    }
    world.settle();
    world.judge();
    world
}

#[test]
fn without_faults_everything_is_durable() {
    let mut ops = Vec::new();
    for _ in 0..50 {
        ops.extend([Op::Connect, Op::Push(2), Op::Poll, Op::Arrive, Op::Flush, Op::Answer]);
    }
    let world = run(&ops, 3);
    assert!(world.verdicts.values().all(Result::is_ok));
    assert_eq!(world.broker.log.len(), 100);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(2000)))]

    #[test]
    fn every_batch_ends_once_and_as_it_really_is(
        ops in proptest::collection::vec(op(), 1..200),
        max_in_flight in 1usize..6,
    ) {
        run(&ops, max_in_flight);
    }
}
