//! A client that reads every record of every partition. The checker compares
//! what it reads with what must be there; the auditor sees to it that nothing
//! is left out.

use std::collections::VecDeque;

use ringbolt::shard::action::Reply;
use ringbolt_wire::message::{Fetch, FetchPartition, TopicInfo};
use ringbolt_wire::{BatchHeader, ErrorCode, Offset, PartitionId};

use super::workload::{Body, Client, Cx, GroupBody, whole};

#[derive(Debug)]
pub struct Auditor {
    session: u64,
    begun: bool,
    asked: Option<u64>,
    topics: VecDeque<(TopicInfo, usize)>,
    /// Still to be read: partition, next offset, end.
    partitions: VecDeque<(PartitionId, u64, u64)>,
}

impl Auditor {
    pub fn new(cx: &mut Cx<'_>) -> Auditor {
        Auditor {
            session: cx.new_session(),
            begun: false,
            asked: None,
            topics: VecDeque::new(),
            partitions: VecDeque::new(),
        }
    }

    fn go_on(&mut self, cx: &mut Cx<'_>) {
        if let Some((topic, shard)) = self.topics.front() {
            self.asked = Some(cx.send(self.session, *shard, Body::States(topic.id)));
            return;
        }
        while self.partitions.front().is_some_and(|(_, next, end)| next >= end) {
            self.partitions.pop_front();
        }
        let Some(&(partition, next, _)) = self.partitions.front() else { return };
        let max_bytes = cx.rng.pick(&[1, 300_000, 8 << 20, 8 << 20, 8 << 20, 8 << 20, 8 << 20]);
        let wanted = FetchPartition { partition, offset: Offset(next), max_bytes };
        let fetch = Fetch { max_wait_ms: 0, min_bytes: 0, max_bytes: 8 << 20, partitions: vec![wanted] };
        let shard = cx.shard_of(partition);
        self.asked = Some(cx.send(self.session, shard, Body::Fetch(fetch)));
    }

    fn fetched(&mut self, status: u16, start: u64, payload: &[u8]) {
        let (partition, next, end) = self.partitions.front_mut().expect("it was asked for");
        if status == ErrorCode::CorruptData as u16 {
            // What comes after the damage may be whole.
            *next += 1;
            return;
        }
        if status == ErrorCode::OffsetOutOfRange as u16 && start > *next {
            // Retention goes on meanwhile.
            *next = start;
            return;
        }
        assert_eq!(status, 0, "an audit reads what is there, {partition} from {next} to {end}");
        let mut bytes = payload;
        assert!(!bytes.is_empty(), "nothing at {next}, and the end is {end}");
        while !bytes.is_empty() {
            let header = BatchHeader::decode(bytes).expect("the checker has parsed it");
            *next = header.base_offset().0 + u64::from(header.count());
            bytes = &bytes[header.len()..];
        }
    }
}

impl Client for Auditor {
    fn wake(&mut self, cx: &mut Cx<'_>) {
        if !self.begun {
            self.begun = true;
            self.asked = Some(cx.send(self.session, 0, Body::List { settle: true }));
        }
    }

    fn hear(&mut self, correlation: u64, reply: Reply, cx: &mut Cx<'_>) {
        assert_eq!(self.asked.take(), Some(correlation));
        match reply {
            Reply::Topics(topics) => {
                for topic in topics {
                    self.topics.extend((0..usize::from(cx.shards)).map(|shard| (topic.clone(), shard)));
                }
                if cx.habits.groups > 0 {
                    let list = Body::Group(GroupBody::List { settle: true });
                    self.asked = Some(cx.send(self.session, 0, list));
                    return;
                }
            }
            Reply::Groups(_) => {}
            Reply::PartitionStates(states) => {
                let (topic, _) = self.topics.pop_front().expect("it was asked for");
                self.partitions.extend(
                    states
                        .into_iter()
                        .map(|(index, start, end)| (PartitionId::new(topic.id, index), start.0, end.0)),
                );
            }
            Reply::Fetched { partitions, payload } => {
                self.fetched(partitions[0].status, partitions[0].start_offset.0, &whole(&payload));
            }
            other => panic!("an audit is answered with {other:?}"),
        }
        self.go_on(cx);
    }

    fn lose(&mut self, _: &mut Cx<'_>) {}

    fn session(&self) -> u64 {
        self.session
    }

    fn is_done(&self) -> bool {
        self.begun && self.asked.is_none()
    }
}
