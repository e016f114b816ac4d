//! Judges every answer at the moment when it leaves the shard.
//!
//! It knows what was asked, what the log models say is durable, and which
//! topics there are; it does not know how the shard comes to its answers.

use std::collections::BTreeMap;

use ringbolt::catalog::CATALOG_PARTITION;
use ringbolt::consumer::GROUPS_PARTITION;
use ringbolt::log::SegmentSeq;
use ringbolt::shard::action::Reply;
use ringbolt::shard::event::ReplyTo;
use ringbolt::shard::placement::shard_of;
use ringbolt::time::Now;
use ringbolt_wire::message::{
    ErrorResponse, OffsetSpec, OpenProducer, ProduceAck, ProducerOpened, TopicInfo,
};
use ringbolt_wire::{ErrorCode, Offset, PartitionId, ProducerId, ShardId, TopicId};

use super::check_fetch::{FetchAsked, FetchContext, check_fetched};
use super::group_check::{GroupAsked, GroupTally, Groups};
use super::log_model::{LogModel, PartitionFacts, Print};
use super::records::RecordFact;
use super::topics::{Fate, Topics};
use super::workload::whole;

/// A request that waits for its answer.
#[derive(Clone, Debug)]
pub struct Open {
    pub shard: usize,
    pub asked_at_us: u64,
    pub asked: Asked,
    /// The session is gone: nobody hears the answer, but it must still be true.
    pub unheard: bool,
}

impl Open {
    /// Whether it need not be answered: somebody who is gone wanted to read.
    pub fn may_be_dropped(&self) -> bool {
        match &self.asked {
            Asked::Group(GroupAsked::Attach { .. }) => true,
            Asked::Fetch(_) | Asked::Offsets { .. } | Asked::Group(GroupAsked::Receive { .. }) => {
                self.unheard
            }
            _ => false,
        }
    }
}

/// What was asked, with what was known then.
#[derive(Clone, Debug)]
pub enum Asked {
    Produce { print: Print, refusal: Option<ErrorCode>, alive: bool, gone: bool },
    Fetch(FetchAsked),
    Offsets { partition: PartitionId, spec: OffsetSpec, end: u64, alive: bool },
    Open { open: OpenProducer, durable_next: u64, durable_epoch: u32, alive: bool },
    States { topic: TopicId, ends: BTreeMap<u32, u64>, alive: bool },
    Create { name: String, refusal: Option<ErrorCode> },
    Delete { name: String },
    List { settle: bool },
    LookUp { name: String },
    Group(GroupAsked),
}

/// What the run has shown, for a report and for tests of the simulation itself.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    pub acked: u64,
    pub duplicates: u64,
    pub refused: u64,
    /// Of those, with `Overloaded`.
    pub overloaded: u64,
    pub fetched: u64,
    pub corrupt: u64,
    pub commits: u64,
    pub groups: GroupTally,
}

impl Tally {
    pub fn plus(&self, other: &Tally) -> Tally {
        Tally {
            acked: self.acked + other.acked,
            duplicates: self.duplicates + other.duplicates,
            refused: self.refused + other.refused,
            overloaded: self.overloaded + other.overloaded,
            fetched: self.fetched + other.fetched,
            corrupt: self.corrupt + other.corrupt,
            commits: self.commits + other.commits,
            groups: self.groups.plus(&other.groups),
        }
    }
}

/// The judge of one simulation.
#[derive(Debug)]
pub struct Checker {
    pub logs: Vec<LogModel>,
    pub topics: Topics,
    pub groups: Groups,
    pub open: BTreeMap<(u64, u64), Open>,
    pub tally: Tally,
    /// The disk was damaged: `CorruptData` may be answered.
    pub damaged: bool,
    /// The disk has no room, or had none a moment ago.
    pub disk_full: bool,
    /// The shards were told to stop.
    pub stopping: bool,
    sent: BTreeMap<Print, u32>,
    appended: BTreeMap<Print, u32>,
    /// Highest epoch handed out, by partition and producer, in this life, and
    /// where the partition ended then.
    promised: BTreeMap<(PartitionId, u64), (u32, u64)>,
    identities: std::collections::BTreeSet<u64>,
    starts: BTreeMap<PartitionId, u64>,
}

impl Checker {
    pub fn new(logs: Vec<LogModel>) -> Checker {
        Checker {
            groups: Groups::new(logs.len()),
            logs,
            topics: Topics::default(),
            open: BTreeMap::new(),
            tally: Tally::default(),
            damaged: false,
            disk_full: false,
            stopping: false,
            sent: BTreeMap::new(),
            appended: BTreeMap::new(),
            promised: BTreeMap::new(),
            identities: std::collections::BTreeSet::new(),
            starts: BTreeMap::new(),
        }
    }

    pub fn shard_of(&self, partition: PartitionId) -> usize {
        usize::from(shard_of(partition, self.logs.len() as u16).0)
    }

    fn facts(&self, partition: PartitionId) -> Option<&PartitionFacts> {
        self.logs[self.shard_of(partition)].partitions.get(&partition)
    }

    /// Offset after the partition's last durable record.
    pub fn durable_end(&self, partition: PartitionId) -> u64 {
        self.facts(partition).map_or(0, |facts| facts.durable_end)
    }

    /// One after the producer's last durable sequence, and its epoch there.
    pub fn durable_producer(&self, partition: PartitionId, producer: u64) -> (u64, u32) {
        let last = self.facts(partition).and_then(|facts| PartitionFacts::last_of(facts.durable(), producer));
        last.map_or((0, 0), |last| (last.print.next_sequence(), last.print.epoch))
    }

    /// A request for the states of a topic's partitions, with what is known.
    pub fn asked_states(&self, topic: TopicId, shard: usize) -> Asked {
        let alive = self.topics.alive().into_iter().find(|alive| alive.id == topic);
        let partitions = (0..alive.as_ref().map_or(0, |topic| topic.partitions))
            .map(|index| PartitionId::new(topic, index))
            .filter(|partition| self.shard_of(*partition) == shard);
        let ends = partitions.map(|partition| (partition.index, self.durable_end(partition))).collect();
        Asked::States { topic, ends, alive: alive.is_some() }
    }

    /// A batch is sent to a shard, perhaps not for the first time.
    pub fn sent(&mut self, print: Print) {
        *self.sent.entry(print).or_default() += 1;
    }

    /// The shard asks for a write.
    pub fn write_submitted(&mut self, shard: usize, token: u64, segment: SegmentSeq, at: u64, data: &[u8]) {
        let commits = self.logs[shard].commits().len();
        for fact in self.logs[shard].submitted(token, segment, at, data) {
            let print = fact.print;
            if [CATALOG_PARTITION, GROUPS_PARTITION].contains(&print.partition) {
                continue;
            }
            let records = &self.logs[shard].partitions[&print.partition].records.all;
            if records.get(fact.base_offset as usize).is_some_and(RecordFact::has_moved) {
                self.groups.moved(&self.logs, shard, &print, fact.base_offset);
                continue;
            }
            assert_eq!(self.shard_of(print.partition), shard, "{print:?} is on the wrong shard");
            let fence = self.promise(print.partition, print.producer).unwrap_or(0);
            assert!(print.epoch >= fence, "{print:?} is appended, and epoch {fence} was handed out before");
            let appended = self.appended.entry(print).or_default();
            *appended += 1;
            let sent = self.sent.get(&print).copied().unwrap_or(0);
            assert!(*appended <= sent, "{print:?} was sent {sent} times and is appended {appended} times");
        }
        self.tally.commits += (self.logs[shard].commits().len() - commits) as u64;
    }

    /// A request reaches its shard.
    pub fn asked(&mut self, session: u64, correlation: u64, open: Open) {
        match &open.asked {
            Asked::Create { name, refusal: None } => self.topics.create_asked(name),
            Asked::Delete { name } => {
                self.topics.delete_asked(name);
                if let Fate::Deleting(topic) = self.topics.fate(name) {
                    self.groups.topic_deleting(topic.id);
                }
            }
            _ => {}
        }
        assert!(self.open.insert((session, correlation), open).is_none());
    }

    /// Whether all that somebody still waits for has been answered.
    pub fn is_idle(&self) -> bool {
        self.open.values().all(Open::may_be_dropped)
    }

    /// A session is gone: its waiting fetches are dropped, the rest goes on.
    pub fn session_closed(&mut self, session: u64) {
        for (_, open) in self.open.range_mut((session, 0)..=(session, u64::MAX)) {
            open.unheard = true;
        }
    }

    /// The machine went down: nobody will be answered, and nothing that was
    /// only in memory is known.
    pub fn crashed(&mut self) {
        self.open.clear();
        self.promised.clear();
        self.starts.clear();
        self.stopping = false;
    }

    /// An answer leaves, perhaps one of many. Returns whether somebody hears it.
    ///
    /// # Panics
    /// If it is not true.
    pub fn replied(&mut self, shard: usize, to: ReplyTo, reply: &Reply, now: Now) -> bool {
        let Reply::Delivered { delivery, payload } = reply else {
            return self.answered(shard, to, reply, now.mono_us).is_some();
        };
        let key = (to.session, to.correlation);
        let open = self.open.get(&key).unwrap_or_else(|| panic!("a delivery to nobody: {to:?}"));
        // One that ends may have ended before its session did.
        let is_heard = !open.unheard;
        let fits = open.shard == shard && (is_heard || delivery.ranges.is_empty());
        assert!(fits, "{open:?} is sent {delivery:?}");
        if self.groups.delivered(&self.logs, (shard, key), (delivery, &whole(payload)), now) {
            self.open.remove(&key);
        }
        is_heard
    }

    /// An answer leaves. Returns the request, unless nobody hears it.
    ///
    /// # Panics
    /// If the answer is not true.
    pub fn answered(&mut self, shard: usize, to: ReplyTo, reply: &Reply, now_us: u64) -> Option<Open> {
        let open = self.open.remove(&(to.session, to.correlation));
        let open = open.unwrap_or_else(|| panic!("an answer that nobody waits for: {to:?}, {reply:?}"));
        assert_eq!(open.shard, shard, "another shard was asked");
        match (&open.asked, reply) {
            (asked, Reply::Error(error)) => self.check_error(to, asked, error),
            (Asked::Produce { print, refusal, gone, .. }, Reply::Produced(ack)) => {
                assert!(refusal.is_none() && !gone, "{print:?} must be refused ({refusal:?}): {ack:?}");
                self.check_ack(print, ack);
            }
            (Asked::Fetch(asked), Reply::Fetched { partitions, payload }) => {
                let whole = whole(payload);
                let alive: Vec<bool> =
                    asked.fetch.partitions.iter().map(|p| self.topics.is_alive(p.partition.topic)).collect();
                let (model, damaged) = (&self.logs[shard], self.damaged);
                let cx = FetchContext { model, now_us, damaged, alive: &alive };
                check_fetched(asked, partitions, &whole, cx);
                for got in partitions.iter().filter(|got| got.status == 0) {
                    self.check_start(got.partition, got.start_offset);
                }
                let corrupt = |status: u16| status == ErrorCode::CorruptData as u16;
                self.tally.corrupt += partitions.iter().filter(|got| corrupt(got.status)).count() as u64;
                self.tally.fetched += whole.len() as u64;
            }
            (Asked::Offsets { partition, spec, end, .. }, Reply::Offset(offset)) => {
                self.check_offset(*partition, *spec, *end, *offset);
            }
            (Asked::Open { open, durable_next, durable_epoch, .. }, Reply::ProducerOpened(opened)) => {
                self.check_opened(open, *durable_next, *durable_epoch, opened);
            }
            (Asked::States { topic, ends, .. }, Reply::PartitionStates(states)) => {
                self.check_states(*topic, ends, states);
            }
            (Asked::Create { name, refusal: None }, Reply::TopicCreated(topic)) => {
                assert_eq!(*name, topic.name);
                self.topics.created(topic);
            }
            (Asked::Delete { name }, Reply::TopicDeleted) => {
                if let Fate::Deleting(topic) = self.topics.fate(name) {
                    self.groups.topic_deleted(topic.id);
                }
                self.topics.deleted(name);
            }
            (Asked::Group(asked), reply) => self.group_answered(shard, to, asked, reply),
            (Asked::List { settle }, Reply::Topics(list)) => self.topics.listed(list, *settle),
            (Asked::LookUp { name }, Reply::Topic(topic)) => assert_eq!(*name, topic.name),
            (asked, reply) => panic!("{reply:?} is no answer to {asked:?}"),
        }
        (!open.unheard).then_some(open)
    }

    fn group_answered(&mut self, shard: usize, to: ReplyTo, asked: &GroupAsked, reply: &Reply) {
        if let (GroupAsked::Create(create), Reply::Group(info)) = (asked, reply)
            && info.dead_letter != TopicId(0)
        {
            let (id, partitions) = (info.dead_letter, self.logs.len() as u32);
            let name = create.dead_letter_topic.clone().unwrap_or(format!("{}.dlq", create.topic));
            self.topics.appeared(&TopicInfo { id, partitions, name });
        }
        self.groups.answered(&self.logs, shard, (to.session, to.correlation), (asked, reply));
    }

    fn check_ack(&mut self, print: &Print, ack: &ProduceAck) {
        assert_eq!(ack.copies, 1, "one broker, one copy");
        let facts = self.facts(print.partition);
        if ack.base_offset == Offset::UNKNOWN {
            assert!(ack.duplicate, "{print:?}: only an old duplicate has no offset");
            let (next, _) = self.durable_producer(print.partition, print.producer);
            assert!(print.next_sequence() <= next, "{print:?} is called durable, {next} is next");
            self.tally.duplicates += 1;
            return;
        }
        let fact = facts.and_then(|facts| facts.durable_at(ack.base_offset.0));
        let fact = fact.unwrap_or_else(|| panic!("{print:?} is acknowledged and not durable: {ack:?}"));
        // A retry may have another epoch than the original, but not other records.
        let identity = |p: &Print| (p.producer, p.sequence, p.count, p.len, p.body);
        let same = if ack.duplicate {
            identity(&fact.print) == identity(print)
        } else {
            fact.print == *print && fact.commit_time_us == ack.commit_time_us
        };
        // A producer that retention has forgotten may share its epoch with a later
        // one: what tells them apart is gone.
        let anew = facts.and_then(|facts| PartitionFacts::anew(facts.durable(), print.producer));
        let was_forgotten = ack.duplicate && anew.is_some_and(|anew| fact.base_offset >= anew);
        assert!(same || was_forgotten, "{print:?} is acknowledged as {ack:?}, where there is {fact:?}");
        assert!(!ack.duplicate || print.producer != 0, "a duplicate without a producer: {print:?}");
        self.tally.acked += 1;
        self.tally.duplicates += u64::from(ack.duplicate);
    }

    fn check_start(&mut self, partition: PartitionId, start: Offset) {
        let latest = self.logs[self.shard_of(partition)].latest_start(partition);
        assert!(start.0 <= latest, "{partition} starts at {start}, retained is {latest}");
        let before = self.starts.insert(partition, start.0);
        assert!(before.is_none_or(|before| before <= start.0), "{partition}: the start fell to {start}");
    }

    fn check_offset(&mut self, partition: PartitionId, spec: OffsetSpec, end: u64, offset: Offset) {
        let durable_end = self.durable_end(partition);
        match spec {
            OffsetSpec::Earliest => self.check_start(partition, offset),
            OffsetSpec::End => {
                assert!((end..=durable_end).contains(&offset.0), "{partition} ends at {offset}, not {end}");
            }
            OffsetSpec::Time(time_us) => {
                let latest = self.logs[self.shard_of(partition)].latest_start(partition);
                let batches = self.facts(partition).map_or(&[][..], |facts| facts.durable());
                let at = batches.partition_point(|batch| batch.end_offset() <= offset.0);
                let later = batches.get(at);
                // Nothing at or after the time may lie before the answer.
                let passed = batches[..at].iter().rfind(|batch| batch.base_offset >= latest);
                assert!(
                    passed.is_none_or(|batch| batch.commit_time_us < time_us),
                    "{partition}: {offset} for time {time_us}, but {passed:?} was before",
                );
                assert!(
                    later.is_none_or(|b| b.base_offset == offset.0 && b.commit_time_us >= time_us)
                        || (offset.0 >= end && offset.0 <= durable_end),
                    "{partition}: {offset} for time {time_us}, there is {later:?}",
                );
            }
        }
    }

    fn check_opened(&mut self, open: &OpenProducer, next: u64, epoch: u32, opened: &ProducerOpened) {
        let id = opened.producer;
        if open.producer == ProducerId::NONE {
            assert!(id != ProducerId::NONE && self.identities.insert(id.0), "{id} is no new identity");
        } else {
            assert_eq!(open.producer, id);
            self.identities.insert(id.0);
        }
        let (durable_next, _) = self.durable_producer(open.partition, id.0);
        let range = next..=durable_next;
        let told = opened.next_sequence.0;
        // Where retention gave something up, it may have been forgotten, and even
        // have begun anew since.
        let gave_up = self.logs[self.shard_of(open.partition)].given_up.is_some();
        let anew = gave_up && durable_next < next && told <= durable_next;
        let forgotten = anew || self.may_be_forgotten(open.partition, id.0);
        assert!(
            range.contains(&told) || anew || (told == 0 && forgotten),
            "producer {id} on {}: told to go on with {told}, durable is {range:?}",
            open.partition,
        );
        let in_log = (durable_next > 0 && !forgotten).then_some(epoch);
        assert!(
            in_log.is_none_or(|epoch| opened.epoch.0 >= epoch),
            "{opened:?}, epoch {epoch} is in the log"
        );
        let taken = opened.epoch.0;
        let promise = self.promise(open.partition, id.0).filter(|_| !forgotten);
        let highest = in_log.max(promise);
        assert!(
            !open.take_over || highest.is_none_or(|highest| taken > highest),
            "{opened:?} takes over from epoch {highest:?}",
        );
        if open.take_over && !forgotten {
            // Final: nothing of an older epoch is on its way that it does not count.
            let batches = self.facts(open.partition).map_or(&[][..], |facts| &facts.batches);
            let last = PartitionFacts::last_of(batches, id.0).filter(|last| last.print.epoch < taken);
            let last = last.map_or(told, |last| last.print.next_sequence());
            assert!(last <= told, "{opened:?} took over, and {last} sequences are on their way");
        }
        let end = self.facts(open.partition).map_or(0, |facts| facts.end);
        let promised = self.promise(open.partition, id.0).max(Some(taken)).unwrap_or(taken);
        self.promised.insert((open.partition, id.0), (promised, end));
    }

    /// The highest epoch that was handed out, unless it may be forgotten by now,
    /// with the producer's last record.
    fn promise(&self, partition: PartitionId, producer: u64) -> Option<u32> {
        let (promised, end) = self.promised.get(&(partition, producer))?;
        let batches = self.facts(partition).map_or(&[][..], |facts| &facts.batches);
        let given_up = self.logs[self.shard_of(partition)].given_up;
        let last = PartitionFacts::last_of(batches, producer);
        let forgotten = last.is_some_and(|last| given_up >= Some(last.segment))
            || PartitionFacts::anew(batches, producer).is_some_and(|anew| anew >= *end);
        (!forgotten).then_some(*promised)
    }

    /// Whether the producer's last durable record was in a segment that was given
    /// up.
    pub fn may_be_forgotten(&self, partition: PartitionId, producer: u64) -> bool {
        let model = &self.logs[self.shard_of(partition)];
        let last = self.facts(partition).and_then(|facts| PartitionFacts::last_of(facts.durable(), producer));
        last.is_some_and(|last| model.given_up >= Some(last.segment))
    }

    fn check_states(&mut self, topic: TopicId, ends: &BTreeMap<u32, u64>, states: &[(u32, Offset, Offset)]) {
        assert!(states.iter().map(|s| s.0).eq(ends.keys().copied()), "{topic}: {states:?}, not {ends:?}");
        for (index, start, end) in states {
            let partition = PartitionId::new(topic, *index);
            let range = ends[index]..=self.durable_end(partition);
            assert!(range.contains(&end.0), "{partition} ends at {end}, not in {range:?}");
            self.check_start(partition, *start);
        }
    }

    fn check_error(&mut self, to: ReplyTo, asked: &Asked, error: &ErrorResponse) {
        let code = error.error_code().expect("a known code");
        self.tally.refused += 1;
        self.tally.overloaded += u64::from(code == ErrorCode::Overloaded);
        let busy = code == ErrorCode::ShuttingDown && self.stopping;
        let allowed = match asked {
            Asked::Produce { print, refusal, alive, gone } => match refusal {
                Some(refusal) => code == *refusal || (busy || self.may_refuse(print, code, error, *alive)),
                None => busy || (*gone && is_unknown(code)) || self.may_refuse(print, code, error, *alive),
            },
            Asked::Fetch(asked) => is_unknown(code) && asked.alive.contains(&false),
            Asked::Offsets { partition, alive, .. } => {
                (is_unknown(code) && !(*alive && self.topics.is_alive(partition.topic)))
                    || (self.damaged && code == ErrorCode::CorruptData)
            }
            Asked::Open { .. } if self.is_busy(code) => true,
            Asked::Open { open, alive, .. } => {
                is_unknown(code) && !(*alive && self.topics.is_alive(open.partition.topic))
            }
            Asked::States { topic, alive, .. } => {
                is_unknown(code) && !(*alive && self.topics.is_alive(*topic))
            }
            Asked::Create { name, refusal } => {
                self.topics.refused(name);
                *refusal == Some(code) || self.is_busy(code)
            }
            Asked::Delete { name } => {
                self.topics.refused(name);
                code == ErrorCode::UnknownTopic || self.is_busy(code)
            }
            Asked::LookUp { .. } => code == ErrorCode::UnknownTopic,
            Asked::List { .. } => false,
            Asked::Group(asked) => {
                let is_busy = self.is_busy(code);
                self.groups.refused((to.session, to.correlation), asked, error, is_busy)
            }
        };
        assert!(allowed || busy, "{error:?} answers {asked:?}");
    }

    /// Whether the broker may ask for a change to be tried again later.
    fn is_busy(&self, code: ErrorCode) -> bool {
        code == ErrorCode::Overloaded || (self.disk_full && code == ErrorCode::DiskFull)
    }

    fn may_refuse(&self, print: &Print, code: ErrorCode, error: &ErrorResponse, alive: bool) -> bool {
        match code {
            ErrorCode::DiskFull | ErrorCode::Overloaded => self.is_busy(code),
            ErrorCode::UnknownTopic | ErrorCode::UnknownPartition => {
                !(alive && self.topics.is_alive(print.partition.topic))
            }
            ErrorCode::OutOfOrderSequence => {
                let (next, _) = self.durable_producer(print.partition, print.producer);
                let known = error.detail >= next || self.may_be_forgotten(print.partition, print.producer);
                assert!(
                    known && print.producer != 0 && error.detail != print.sequence,
                    "{error:?}, {print:?}"
                );
                true
            }
            ErrorCode::FencedProducer => {
                let promised = self.promised.get(&(print.partition, print.producer)).map_or(0, |p| p.0);
                let durable = self.durable_producer(print.partition, print.producer).1;
                // Take-overs fence when they arrive, before they are answered.
                let waiting = self.open.values().filter(|other| match &other.asked {
                    Asked::Open { open, .. } => {
                        open.take_over
                            && (open.partition, open.producer.0) == (print.partition, print.producer)
                    }
                    _ => false,
                });
                let newest = u64::from(promised.max(durable)) + waiting.count() as u64;
                assert!(
                    error.detail > u64::from(print.epoch) && error.detail <= newest,
                    "{error:?}, {print:?}"
                );
                true
            }
            _ => false,
        }
    }

    /// The shard that holds the partition, as the wire names it.
    pub fn shard_id(&self, partition: PartitionId) -> ShardId {
        ShardId(self.shard_of(partition) as u16)
    }
}

fn is_unknown(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::UnknownTopic | ErrorCode::UnknownPartition)
}
