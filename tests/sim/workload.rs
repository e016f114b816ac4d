//! Simulated clients: what they have in common.
//!
//! A client is woken, hears answers, and loses its connection; it sends requests
//! and never looks at the broker's insides.

use std::sync::OnceLock;

use bytes::Bytes;
use ringbolt::limits::MAX_BATCH_LEN;
use ringbolt::shard::action::Reply;
use ringbolt::time::Now;
use ringbolt_wire::batch::{BATCH_HEADER_LEN, Directions, RECORD_HEADER_LEN};
use ringbolt_wire::message::{
    Attach, ConsumerAt, CreateGroup, Fetch, GroupInfo, GroupStart, OffsetSpec, OpenProducer, Receive, Settle,
    TopicInfo,
};
use ringbolt_wire::{BatchBuilder, Epoch, ErrorCode, GroupId, PartitionId, ProducerId, Sequence, TopicId};

use super::rng::Rng;

/// A request on its way to a shard.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub session: u64,
    pub correlation: u64,
    pub shard: usize,
    pub body: Body,
}

/// What a client asks.
#[derive(Clone, Debug)]
pub enum Body {
    Produce {
        batch: Bytes,
        form: Form,
        min_copies: u8,
        /// The refusal that the batch deserves.
        refusal: Option<ErrorCode>,
    },
    Fetch(Fetch),
    Offsets(PartitionId, OffsetSpec),
    Open(OpenProducer),
    States(TopicId),
    Create {
        name: String,
        partitions: u32,
        refusal: Option<ErrorCode>,
    },
    Delete(String),
    /// With `settle`, when nothing else is under way, the answer decides what
    /// is known of the topics.
    List {
        settle: bool,
    },
    LookUp(String),
    Group(GroupBody),
}

/// What a client asks about groups.
#[derive(Clone, Debug)]
pub enum GroupBody {
    Create(CreateGroup),
    Delete(String),
    /// As for topics.
    List {
        settle: bool,
    },
    LookUp(String),
    States(GroupId),
    Reset {
        group: GroupId,
        to: GroupStart,
        partition: Option<u32>,
    },
    Attach(Attach),
    Detach(ConsumerAt),
    Receive(Receive),
    Settle(Settle),
}

impl Body {
    /// Whether it waits while the shard's log has no room.
    pub fn waits_for_room(&self) -> bool {
        match self {
            Body::Produce { .. } => true,
            Body::Group(body) => {
                !matches!(body, GroupBody::List { .. } | GroupBody::LookUp(_) | GroupBody::States(_))
            }
            _ => false,
        }
    }
}

/// How a batch lies in memory when it reaches the shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    Borrowed,
    Shared,
    Aligned,
}

/// What a client does.
#[derive(Clone, Debug)]
pub enum Wish {
    Send(Outgoing),
    /// Wake me so many µs from now.
    WakeIn(u64),
    /// Close this session; I go on under another.
    Close(u64),
}

/// What a client sees and may use.
#[derive(Debug)]
pub struct Cx<'a> {
    pub now: Now,
    pub rng: &'a mut Rng,
    /// The topics that are certainly there.
    pub topics: &'a [TopicInfo],
    /// The groups that are certainly there.
    pub groups: &'a [GroupInfo],
    pub shards: u16,
    pub habits: &'a Habits,
    /// False when no new work is to be started.
    pub active: bool,
    /// The broker forgets what is old, producers among it.
    pub forgets: bool,
    pub wishes: Vec<Wish>,
    pub numbers: &'a mut Numbers,
}

/// Where new numbers come from.
#[derive(Clone, Copy, Default, Debug)]
pub struct Numbers {
    last_session: u64,
    last_correlation: u64,
    last_nonce: u64,
}

impl Numbers {
    pub fn new_session(&mut self) -> u64 {
        self.last_session += 1;
        self.last_session
    }

    pub fn new_correlation(&mut self) -> u64 {
        self.last_correlation += 1;
        self.last_correlation
    }
}

/// How clients behave in one simulation.
#[derive(Clone, Debug)]
pub struct Habits {
    /// Batches that a producer has unanswered, at most.
    pub window: u64,
    /// Usual longest pause between two doings, µs.
    pub think_us: u64,
    /// Kinds of batches, each as likely.
    pub sizes: Vec<Size>,
    /// Forms of batches, each as likely.
    pub forms: Vec<Form>,
    /// Topics that there should be, and partitions of each.
    pub topics: usize,
    pub partitions: u32,
    /// Whether topics come and go.
    pub churn: bool,
    /// Groups that there should be.
    pub groups: usize,
    /// Keys that records share; 0 if each has its own.
    pub keys: u64,
    /// Whether some records have times of their own.
    pub dated: bool,
}

/// A kind of batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    /// One record of a few bytes.
    Tiny,
    /// Some records of some ten bytes.
    Small,
    /// Up to 64 KiB in a few records.
    Medium,
    /// Up to the limit, often exactly.
    Large,
}

pub trait Client: std::fmt::Debug {
    /// It is time to do something.
    fn wake(&mut self, cx: &mut Cx<'_>);
    /// An answer has come.
    fn hear(&mut self, correlation: u64, reply: Reply, cx: &mut Cx<'_>);
    /// The connection is lost, and with it every answer that has not come.
    fn lose(&mut self, cx: &mut Cx<'_>);
    /// The session that it uses.
    fn session(&self) -> u64;
    /// Whether everything that it began has ended.
    fn is_done(&self) -> bool;
}

impl Cx<'_> {
    pub fn send(&mut self, session: u64, shard: usize, body: Body) -> u64 {
        let correlation = self.numbers.new_correlation();
        self.wishes.push(Wish::Send(Outgoing { session, correlation, shard, body }));
        correlation
    }

    pub fn new_session(&mut self) -> u64 {
        self.numbers.new_session()
    }

    pub fn wake_in(&mut self, us: u64) {
        self.wishes.push(Wish::WakeIn(us));
    }

    pub fn think(&mut self) {
        let us = self.rng.between(1, self.habits.think_us);
        self.wake_in(us);
    }

    pub fn shard_of(&self, partition: PartitionId) -> usize {
        usize::from(ringbolt::shard::placement::shard_of(partition, self.shards).0)
    }

    /// Any partition of any topic.
    pub fn any_partition(&mut self) -> Option<PartitionId> {
        if self.topics.is_empty() {
            return None;
        }
        let topic = &self.topics[self.rng.below(self.topics.len() as u64) as usize];
        Some(PartitionId::new(topic.id, self.rng.below(u64::from(topic.partitions)) as u32))
    }

    pub fn new_batch(&mut self) -> BatchSpec {
        self.numbers.last_nonce += 1;
        let nonce = self.numbers.last_nonce;
        let (count, value_len) = match self.rng.pick(&self.habits.sizes) {
            Size::Tiny => (1, self.rng.below(64)),
            Size::Small => (self.rng.between(1, 40), self.rng.between(8, 90)),
            Size::Medium => (self.rng.between(1, 6), self.rng.between(2_000, 10_000)),
            Size::Large if self.rng.percent(50) => (1, u64::from(MAX_BATCH_LEN)),
            Size::Large => (self.rng.between(1, 3), self.rng.between(40_000, 340_000)),
        };
        let room = MAX_BATCH_LEN as usize - BATCH_HEADER_LEN;
        let per_record = room / count as usize - RECORD_HEADER_LEN - KEY_LEN;
        let value_len = (value_len as usize).min(per_record);
        let mut spec = BatchSpec { nonce, count: count as u32, value_len, ..BatchSpec::default() };
        spec.keys = self.habits.keys;
        if self.habits.dated && value_len < 2_000 && self.rng.one_in(3) {
            let at = |us: u64| Some(self.now.wall_us + us);
            spec.deliver_at_us =
                at(self.rng.pick(&[0, 3_000, 60_000, 1_200_000])).filter(|_| nonce.is_multiple_of(2));
            spec.expire_at_us = at(self.rng.pick(&[1_000, 40_000, 900_000])).filter(|_| nonce % 3 != 1);
        }
        spec
    }
}

/// The pieces of an answer's payload in one, copied only if there are several.
pub fn whole(payload: &[Bytes]) -> Bytes {
    match payload {
        [one] => one.clone(),
        pieces => pieces.concat().into(),
    }
}

/// Bytes of every record's key: its nonce and its number within the batch.
const KEY_LEN: usize = 12;

/// A batch that can be built again, byte for byte.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BatchSpec {
    pub nonce: u64,
    pub count: u32,
    pub value_len: usize,
    /// As in [`Habits`].
    pub keys: u64,
    /// Times of every other record.
    pub deliver_at_us: Option<u64>,
    pub expire_at_us: Option<u64>,
}

impl BatchSpec {
    pub fn build(&self, partition: PartitionId, producer: ProducerId, epoch: Epoch, base: Sequence) -> Bytes {
        let noise = noise();
        let mut builder = BatchBuilder::new();
        for i in 0..self.count {
            let mut key = [0; KEY_LEN];
            key[..8].copy_from_slice(&self.nonce.to_le_bytes());
            key[8..].copy_from_slice(&i.to_le_bytes());
            if let Some(shared) = (self.nonce + u64::from(i)).checked_rem(self.keys) {
                key = [shared as u8; KEY_LEN];
            }
            let mut headers = Vec::new();
            if i % 2 == 0 {
                let (deliver_at_us, expire_at_us) = (self.deliver_at_us, self.expire_at_us);
                Directions { deliver_at_us, expire_at_us, only_group: None }.put_headers(&mut headers);
            }
            let from = (self.nonce as usize).wrapping_mul(7919) % (noise.len() - self.value_len + 1);
            builder.push(self.nonce, Some(&key), &noise[from..from + self.value_len], &headers);
        }
        builder.finish(partition, producer, epoch, base).into()
    }
}

/// Values are cut from this, so that they need no making.
fn noise() -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    NOISE.get_or_init(|| {
        let mut rng = Rng::new(7);
        let words = (0..(MAX_BATCH_LEN as usize + 65_536) / 8).map(|_| rng.next());
        words.flat_map(u64::to_le_bytes).collect()
    })
}
