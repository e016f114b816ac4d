//! Clients that produce: nameless ones, ones with an identity of their own, and
//! rivals that take an identity from each other.

use std::collections::VecDeque;

use ringbolt::shard::action::Reply;
use ringbolt_wire::message::{ErrorResponse, OpenProducer, ProducerOpened};
use ringbolt_wire::{Epoch, ErrorCode, PartitionId, ProducerId, Sequence};

use super::workload::{BatchSpec, Body, Client, Cx};

/// Identities that rivals fight for.
const RIVAL_IDS: u64 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Produces without an identity: what is unanswered when the connection is
    /// lost stays unknown, or is sent again and may be there twice.
    Nameless,
    /// Lets the broker choose an identity and resumes it: nothing is lost, and
    /// nothing is there twice.
    Named,
    /// Takes over an identity, from whoever has it. What is unanswered when it
    /// loses its place stays unknown.
    Rival,
}

#[derive(Debug)]
pub struct Producer {
    kind: Kind,
    session: u64,
    partition: Option<PartitionId>,
    id: ProducerId,
    epoch: Epoch,
    opened: bool,
    opening: Option<u64>,
    next_sequence: u64,
    /// Not yet known to be durable, oldest first.
    queue: VecDeque<Item>,
    /// A batch was refused: wait for the other answers, then send all again.
    settling: bool,
    /// Requests that repeat another one that is still unanswered.
    echoes: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    spec: BatchSpec,
    sequence: u64,
    /// The request that waits for an answer.
    correlation: Option<u64>,
}

impl Producer {
    pub fn new(kind: Kind, cx: &mut Cx<'_>) -> Producer {
        Producer {
            kind,
            session: cx.new_session(),
            partition: None,
            id: ProducerId::NONE,
            epoch: Epoch(0),
            opened: false,
            opening: None,
            next_sequence: 0,
            queue: VecDeque::new(),
            settling: false,
            echoes: Vec::new(),
        }
    }

    /// Forgets all and begins anew, under another identity and elsewhere.
    fn begin_anew(&mut self, cx: &mut Cx<'_>) {
        cx.wishes.push(super::workload::Wish::Close(self.session));
        *self = Producer::new(self.kind, cx);
        cx.think();
    }

    fn outstanding(&self) -> usize {
        self.queue.iter().filter(|item| item.correlation.is_some()).count()
    }

    fn choose_partition(&mut self, cx: &mut Cx<'_>) -> bool {
        self.partition = self.partition.or_else(|| cx.any_partition());
        if self.kind == Kind::Rival && self.id == ProducerId::NONE {
            self.id = ProducerId(1 + cx.rng.below(RIVAL_IDS));
        }
        self.partition.is_some()
    }

    fn open(&mut self, partition: PartitionId, cx: &mut Cx<'_>) {
        let take_over = self.kind == Kind::Rival;
        let open = OpenProducer { partition, producer: self.id, take_over };
        let shard = cx.shard_of(partition);
        self.opening = Some(cx.send(self.session, shard, Body::Open(open)));
    }

    fn send(&mut self, at: usize, partition: PartitionId, cx: &mut Cx<'_>) {
        let item = self.queue[at];
        let batch = item.spec.build(partition, self.id, self.epoch, Sequence(item.sequence));
        let form = cx.rng.pick(&cx.habits.forms);
        let min_copies = cx.rng.below(2) as u8;
        let body = Body::Produce { batch, form, min_copies, refusal: None };
        let shard = cx.shard_of(partition);
        if self.kind == Kind::Named && cx.rng.one_in(20) {
            // Impatient: the original's write may still be on its way.
            self.queue[at].correlation = Some(cx.send(self.session, shard, body.clone()));
            self.echoes.push(cx.send(self.session, shard, body));
            return;
        }
        self.queue[at].correlation = Some(cx.send(self.session, shard, body));
    }

    fn opened(&mut self, opened: ProducerOpened, cx: &mut Cx<'_>) {
        self.opening = None;
        let next = opened.next_sequence.0;
        let resumes = self.id != ProducerId::NONE && self.kind == Kind::Named;
        if resumes && opened.epoch != self.epoch {
            panic!("producer {} resumes epoch {} and gets {}", self.id, self.epoch, opened.epoch);
        }
        (self.id, self.epoch, self.opened) = (opened.producer, opened.epoch, true);
        let first = self.queue.front().map_or(self.next_sequence, |item| item.sequence);
        if resumes && next < first {
            // The checker has made sure that retention is the reason.
            return self.begin_anew(cx);
        }
        if self.kind == Kind::Named && next > self.next_sequence {
            panic!("producer {} made {} records, and {next} are durable", self.id, self.next_sequence);
        }
        if self.kind == Kind::Rival {
            self.next_sequence = next;
        }
        // What is durable by this answer need not be sent again, but may be.
        let trusts = cx.rng.percent(50);
        while trusts && self.queue.front().is_some_and(|item| item.sequence < next) {
            let item = self.queue.pop_front().expect("the loop saw one");
            assert!(item.sequence + u64::from(item.spec.count) <= next, "half a batch is durable: {item:?}");
        }
        cx.think();
    }

    fn refused(&mut self, at: usize, error: &ErrorResponse, cx: &mut Cx<'_>) {
        let code = error.error_code().expect("a known code");
        self.queue[at].correlation = None;
        match code {
            ErrorCode::UnknownTopic | ErrorCode::UnknownPartition => self.begin_anew(cx),
            ErrorCode::FencedProducer => {
                assert_eq!(self.kind, Kind::Rival, "nobody else has this identity: {error:?}");
                self.begin_anew(cx);
            }
            ErrorCode::OutOfOrderSequence if self.kind == Kind::Rival => self.begin_anew(cx),
            // Retention has forgotten the producer together with its records, all of
            // them; the checker knows whether that can be.
            ErrorCode::OutOfOrderSequence if !self.settling && cx.forgets && error.detail == 0 => {
                self.begin_anew(cx);
            }
            ErrorCode::OutOfOrderSequence => {
                assert!(self.settling, "no batch before this one was refused: {error:?}, {self:?}");
            }
            _ if self.kind == Kind::Nameless => {
                self.queue.remove(at);
                cx.wake_in(1000);
            }
            _ => self.settling = true,
        }
        if self.settling && self.outstanding() == 0 {
            let pause = cx.rng.between(100, 20_000);
            cx.wake_in(pause);
        }
    }
}

impl Client for Producer {
    fn wake(&mut self, cx: &mut Cx<'_>) {
        if !self.choose_partition(cx) {
            return cx.wake_in(5_000);
        }
        let Some(partition) = self.partition else { return };
        if self.kind != Kind::Nameless && !self.opened {
            // Without work there is nothing to open for.
            if self.opening.is_none() && (cx.active || !self.queue.is_empty()) {
                self.open(partition, cx);
            }
            return;
        }
        if self.settling {
            if self.outstanding() > 0 {
                return;
            }
            self.settling = false;
        }
        for at in 0..self.queue.len() {
            if self.queue[at].correlation.is_none() {
                self.send(at, partition, cx);
            }
        }
        let burst = cx.rng.between(1, 4);
        for _ in 0..burst {
            if !cx.active || self.queue.len() as u64 >= cx.habits.window {
                break;
            }
            let spec = cx.new_batch();
            self.queue.push_back(Item { spec, sequence: self.next_sequence, correlation: None });
            if self.kind != Kind::Nameless {
                self.next_sequence += u64::from(spec.count);
            }
            self.send(self.queue.len() - 1, partition, cx);
        }
        if cx.active && (self.queue.len() as u64) < cx.habits.window {
            cx.think();
        }
    }

    fn hear(&mut self, correlation: u64, reply: Reply, cx: &mut Cx<'_>) {
        if self.opening == Some(correlation) {
            match reply {
                Reply::ProducerOpened(opened) => self.opened(opened, cx),
                Reply::Error(error) if error.is_retryable() => {
                    self.opening = None;
                    cx.think();
                }
                Reply::Error(_) => self.begin_anew(cx),
                other => panic!("{other:?} answers an open"),
            }
            return;
        }
        if self.echoes.contains(&correlation) {
            return self.echoes.retain(|echo| *echo != correlation);
        }
        let at = self.queue.iter().position(|item| item.correlation == Some(correlation));
        let at = at.expect("the harness delivers only what is waited for");
        match reply {
            Reply::Produced(_) => {
                self.queue.remove(at);
                cx.think();
            }
            Reply::Error(error) => self.refused(at, &error, cx),
            other => panic!("{other:?} answers a produce"),
        }
    }

    fn lose(&mut self, cx: &mut Cx<'_>) {
        self.session = cx.new_session();
        (self.opened, self.opening, self.settling) = (false, None, false);
        self.echoes.clear();
        self.queue.iter_mut().for_each(|item| item.correlation = None);
        match self.kind {
            Kind::Nameless if cx.rng.percent(50) => self.queue.clear(),
            Kind::Rival => self.queue.clear(),
            _ => {}
        }
        cx.think();
    }

    fn session(&self) -> u64 {
        self.session
    }

    fn is_done(&self) -> bool {
        self.queue.is_empty() && self.opening.is_none() && self.echoes.is_empty()
    }
}
