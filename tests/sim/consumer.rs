//! Clients that read: at the tail, from the beginning, and anywhere.

use std::collections::BTreeMap;

use ringbolt::shard::action::Reply;
use ringbolt_wire::message::{Fetch, FetchPartition, FetchedPartition, OffsetSpec};
use ringbolt_wire::{BatchHeader, ErrorCode, Offset, PartitionId};

use super::workload::{Body, Client, Cx, whole};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Follows what is written, waiting for more.
    Tail,
    /// Reads everything from the first record on, again and again.
    Cold,
    /// Looks up and reads anywhere, in range or not.
    Prober,
}

#[derive(Debug)]
pub struct Consumer {
    kind: Kind,
    session: u64,
    positions: BTreeMap<PartitionId, u64>,
    asked: BTreeMap<u64, Question>,
}

#[derive(Clone, Debug)]
enum Question {
    Offset(PartitionId),
    Fetch(Vec<FetchPartition>),
}

impl Consumer {
    pub fn new(kind: Kind, cx: &mut Cx<'_>) -> Consumer {
        Consumer { kind, session: cx.new_session(), positions: BTreeMap::new(), asked: BTreeMap::new() }
    }

    fn look_up(&mut self, partition: PartitionId, cx: &mut Cx<'_>) {
        let spec = match self.kind {
            Kind::Tail => OffsetSpec::End,
            Kind::Cold => OffsetSpec::Earliest,
            Kind::Prober => match cx.rng.below(3) {
                0 => OffsetSpec::Earliest,
                1 => OffsetSpec::End,
                _ => OffsetSpec::Time(cx.now.wall_us.saturating_sub(cx.rng.below(2_000_000))),
            },
        };
        let shard = cx.shard_of(partition);
        let correlation = cx.send(self.session, shard, Body::Offsets(partition, spec));
        self.asked.insert(correlation, Question::Offset(partition));
    }

    fn fetch(&mut self, cx: &mut Cx<'_>) {
        // All partitions of one fetch are of one shard.
        let known: Vec<PartitionId> = self.positions.keys().copied().collect();
        let any = cx.rng.pick(&known);
        let shard = cx.shard_of(any);
        let wanted = cx.rng.between(1, 4);
        let mut partitions = Vec::new();
        let together: Vec<PartitionId> = known.into_iter().filter(|p| cx.shard_of(*p) == shard).collect();
        for partition in together.into_iter().take(wanted as usize) {
            let mut offset = self.positions[&partition];
            if self.kind == Kind::Prober {
                offset = cx.rng.below(offset + 20);
            }
            let max_bytes = cx.rng.pick(&[1, 5_000, 100_000, 2 << 20]);
            partitions.push(FetchPartition { partition, offset: Offset(offset), max_bytes });
        }
        let waits = self.kind == Kind::Tail;
        let fetch = Fetch {
            max_wait_ms: if waits { cx.rng.below(30) as u32 } else { 0 },
            min_bytes: if waits { cx.rng.pick(&[0, 1, 1_000, 200_000]) } else { 0 },
            max_bytes: cx.rng.pick(&[1, 20_000, 1 << 20, 16 << 20]),
            partitions,
        };
        let asked = Question::Fetch(fetch.partitions.clone());
        let correlation = cx.send(self.session, shard, Body::Fetch(fetch));
        self.asked.insert(correlation, asked);
    }

    fn fetched(&mut self, want: &FetchPartition, got: &FetchedPartition, mut bytes: &[u8], cx: &mut Cx<'_>) {
        match ErrorCode::from_u16(got.status) {
            None => {}
            Some(ErrorCode::OffsetOutOfRange) => {
                self.positions.insert(want.partition, got.start_offset.0);
                return;
            }
            Some(_) => {
                self.positions.remove(&want.partition);
                return;
            }
        }
        let mut next = want.offset.0;
        while !bytes.is_empty() {
            let header = BatchHeader::decode(bytes).expect("the checker has parsed it");
            next = header.base_offset().0 + u64::from(header.count());
            bytes = &bytes[header.len()..];
        }
        if self.kind == Kind::Cold && next == got.end_offset.0 && cx.rng.one_in(3) {
            next = got.start_offset.0;
        }
        if self.kind != Kind::Prober {
            self.positions.insert(want.partition, next);
        }
    }
}

impl Client for Consumer {
    fn wake(&mut self, cx: &mut Cx<'_>) {
        if !cx.active || self.asked.len() >= 2 {
            return;
        }
        let wants_more = self.positions.len() < 4 && cx.rng.percent(30);
        match cx.any_partition() {
            Some(partition) if wants_more || self.positions.is_empty() || self.kind == Kind::Prober => {
                self.look_up(partition, cx);
            }
            _ => {}
        }
        if !self.positions.is_empty() {
            self.fetch(cx);
        }
        // Reading is cheap for the broker, and dear for the checker.
        let pause = cx.rng.between(200, 1_000 + 8 * cx.habits.think_us);
        cx.wake_in(pause);
    }

    fn hear(&mut self, correlation: u64, reply: Reply, cx: &mut Cx<'_>) {
        let question = self.asked.remove(&correlation).expect("it was asked");
        match (question, reply) {
            (Question::Offset(partition), Reply::Offset(offset)) => {
                self.positions.entry(partition).or_insert(offset.0);
            }
            (Question::Offset(partition), Reply::Error(_)) => {
                self.positions.remove(&partition);
            }
            (Question::Fetch(wanted), Reply::Fetched { partitions, payload }) => {
                let payload = whole(&payload);
                let mut at = 0;
                for (want, got) in wanted.iter().zip(&partitions) {
                    let end = at + got.payload_len as usize;
                    self.fetched(want, got, &payload[at..end], cx);
                    at = end;
                }
            }
            (Question::Fetch(wanted), Reply::Error(_)) => {
                self.positions.retain(|partition, _| wanted.iter().all(|want| want.partition != *partition));
            }
            (question, reply) => panic!("{reply:?} answers {question:?}"),
        }
        let pause = cx.rng.between(200, 1_000 + 8 * cx.habits.think_us);
        cx.wake_in(pause);
    }

    fn lose(&mut self, cx: &mut Cx<'_>) {
        self.session = cx.new_session();
        self.asked.clear();
        cx.think();
    }

    fn session(&self) -> u64 {
        self.session
    }

    fn is_done(&self) -> bool {
        self.asked.is_empty()
    }
}
