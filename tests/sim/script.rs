//! A client that does as it is told, for histories that are written out.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use ringbolt::limits::MIN_SEGMENT_LEN;
use ringbolt::shard::action::Reply;
use ringbolt_wire::message::{OpenProducer, ProduceAck, ProducerOpened, TopicInfo};
use ringbolt_wire::{Epoch, ErrorCode, PartitionId, ProducerId, Sequence};

use super::disk::DiskHabits;
use super::harness::Simulation;
use super::profile::Profile;
use super::trace::Trace;
use super::workload::{BatchSpec, Body, Client, Cx, Form, Habits, Outgoing, Size};

/// The answers that a script has heard, by request.
type Heard = Rc<RefCell<BTreeMap<u64, Reply>>>;

#[derive(Debug)]
struct Mouth {
    session: u64,
    heard: Heard,
}

impl Client for Mouth {
    fn wake(&mut self, _: &mut Cx<'_>) {}
    fn hear(&mut self, correlation: u64, reply: Reply, _: &mut Cx<'_>) {
        self.heard.borrow_mut().insert(correlation, reply);
    }
    fn lose(&mut self, cx: &mut Cx<'_>) {
        self.session = cx.new_session();
    }
    fn session(&self) -> u64 {
        self.session
    }
    fn is_done(&self) -> bool {
        true
    }
}

/// A broker with one shard, and somebody who talks to it.
#[derive(Debug)]
pub struct Script {
    pub sim: Simulation,
    seat: usize,
    heard: Heard,
    nonces: u64,
}

/// One shard, much memory, a fast disk, and no clients.
pub fn calm_profile() -> Profile {
    let habits = Habits {
        window: 1,
        think_us: 10,
        sizes: vec![Size::Tiny],
        forms: vec![Form::Borrowed],
        topics: 1,
        partitions: 1,
        churn: false,
        groups: 0,
        keys: 0,
        dated: false,
    };
    Profile {
        shards: 1,
        segment_len: MIN_SEGMENT_LEN,
        chunks: 32,
        commits_in_flight: 8,
        commit_delay_us: 0,
        retention_bytes: None,
        retention_us: None,
        tail_cache_bytes: 1 << 20,
        page_cache_bytes: 4 << 20,
        max_delayed: 10_000,
        disk: DiskHabits { write_us: 20, slow_one_in: u64::MAX, read_fails_one_in: 0 },
        habits,
        nameless: 0,
        named: 0,
        rivals: 0,
        consumers: 0,
        vandals: 0,
        group_consumers: 0,
        network_us: 5,
        lives: 1,
        answers: 1,
        loses_one_in: 0,
        fills_one_in: 0,
        jumps_one_in: 0,
        fails_in_ten: 0,
        stops_in_ten: 0,
    }
}

impl Script {
    /// A broker that was just installed.
    pub fn new(profile: Profile) -> Script {
        let mut sim = Simulation::new(1, profile, Trace::default());
        let heard = Heard::default();
        let mouth = Mouth { session: sim.new_session(), heard: heard.clone() };
        let seat = sim.add_client(Box::new(mouth));
        let mut script = Script { sim, seat, heard, nonces: 1 << 40 };
        script.boot();
        script
    }

    /// Starts the broker, and reads everything back.
    pub fn boot(&mut self) {
        self.sim.boot().unwrap_or_else(|error| panic!("no start: {error}"));
        self.sim.audit();
    }

    /// Hands a request in and does not wait.
    pub fn tell(&mut self, body: Body) -> u64 {
        let correlation = self.sim.new_correlation();
        let session = self.sim.session_of(self.seat);
        self.sim.hand_in(Outgoing { session, correlation, shard: 0, body });
        correlation
    }

    /// Hands several requests in before the shard acts on them, and lets it act.
    pub fn act(&mut self) {
        self.sim.act();
    }

    /// What was answered, if it was.
    pub fn answer(&self, correlation: u64) -> Option<Reply> {
        self.heard.borrow_mut().remove(&correlation)
    }

    /// Waits for an answer.
    pub fn wait(&mut self, correlation: u64) -> Reply {
        loop {
            if let Some(reply) = self.answer(correlation) {
                return reply;
            }
            assert!(self.sim.round(), "nothing is left to happen, and {correlation} waits");
        }
    }

    /// Hands a request in and waits for its answer.
    pub fn ask(&mut self, body: Body) -> Reply {
        let correlation = self.tell(body);
        self.act();
        self.wait(correlation)
    }

    /// Lets time pass, µs.
    pub fn pass(&mut self, us: u64) {
        let until = self.sim.clock.now().mono_us + us;
        while self.sim.clock.now().mono_us < until && self.sim.round() {}
    }

    /// Creates a topic of one partition.
    pub fn create(&mut self, name: &str) -> PartitionId {
        loop {
            let body = Body::Create { name: name.into(), partitions: 1, refusal: None };
            match self.ask(body) {
                Reply::TopicCreated(TopicInfo { id, .. }) => return PartitionId::new(id, 0),
                // The first segment is not there yet.
                Reply::Error(error) if error.is_retryable() => self.pass(100),
                other => panic!("{other:?}"),
            }
        }
    }

    /// A batch of one record that nobody has sent before.
    pub fn batch(&mut self, value_len: usize) -> BatchSpec {
        self.nonces += 1;
        BatchSpec { nonce: self.nonces, count: 1, value_len, ..BatchSpec::default() }
    }

    /// A request to append a batch.
    pub fn produce(partition: PartitionId, who: (ProducerId, Epoch), base: u64, spec: BatchSpec) -> Body {
        let batch = spec.build(partition, who.0, who.1, Sequence(base));
        Body::Produce { batch, form: Form::Borrowed, min_copies: 1, refusal: None }
    }

    /// Appends a nameless batch and waits for its acknowledgement.
    pub fn append(&mut self, partition: PartitionId, value_len: usize) -> ProduceAck {
        loop {
            let spec = self.batch(value_len);
            match self.ask(Self::produce(partition, NOBODY, 0, spec)) {
                Reply::Produced(ack) => return ack,
                Reply::Error(error) if error.error_code() == Some(ErrorCode::Overloaded) => self.pass(100),
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn open(&mut self, partition: PartitionId, producer: ProducerId, take_over: bool) -> ProducerOpened {
        loop {
            match self.ask(Body::Open(OpenProducer { partition, producer, take_over })) {
                Reply::ProducerOpened(opened) => return opened,
                Reply::Error(error) if error.is_retryable() => self.pass(100),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Offset after the last durable record, as the broker says.
    pub fn end(&mut self, partition: PartitionId) -> u64 {
        match self.ask(Body::Offsets(partition, ringbolt_wire::message::OffsetSpec::End)) {
            Reply::Offset(offset) => offset.0,
            other => panic!("{other:?}"),
        }
    }
}

/// No producer.
pub const NOBODY: (ProducerId, Epoch) = (ProducerId::NONE, Epoch(0));
