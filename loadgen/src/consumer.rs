//! A consumer as a state machine: asks for what follows, and hands every batch
//! that comes to a reader. Knows no sockets.
//!
//! The next request leaves before the records of the last answer are checked,
//! so that broker and consumer work at the same time.

use std::ops::Range;

use bytes::Bytes;
use ringbolt_wire::message::{Fetch, FetchPartition, FetchedPartition, MAX_FETCH_PARTITIONS};
use ringbolt_wire::{BatchHeader, BatchView, ErrorCode, Offset, PartitionId};
use rustc_hash::FxHashMap;

/// How long a broker may wait for records, in ms, when one request names all
/// partitions of a consumer.
const LONG_POLL_MS: u32 = 100;
/// The same when it takes several requests to name them all: the others wait
/// meanwhile.
const SHORT_POLL_MS: u32 = 1;

/// One partition on its way to the end.
struct Part {
    partition: PartitionId,
    next: u64,
    /// The highest that `next` ever was.
    highest: u64,
    /// Read so far, once the end is fixed; `None` before.
    goal: Option<u64>,
    /// Reading begins here again when the goal is reached.
    again_from: Option<u64>,
    wish: Wish,
}

/// Whether more of a partition is to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    More,
    /// What was read is enough.
    Enough,
    /// It cannot be read on. An answer that is still on its way would tell of
    /// what lies behind.
    Unreadable,
}

impl Part {
    /// Whether there is more to be read.
    fn is_wanted(&self) -> bool {
        self.wish == Wish::More && self.goal.is_none_or(|goal| self.next < goal)
    }

    /// Goes on at `next`, and says how much of the way there is new.
    fn move_to(&mut self, next: u64) -> u64 {
        // Who goes round is at places where it was before, and gets on.
        let from = if self.again_from.is_some() { self.next } else { self.highest };
        self.next = next;
        self.highest = self.highest.max(next);
        next.saturating_sub(from)
    }

    /// Goes on within `held`, which is all that there is.
    fn move_into(&mut self, held: &Range<u64>) -> u64 {
        if let (Some(again), Some(goal)) = (self.again_from, self.goal) {
            (self.again_from, self.goal) = (Some(again.max(held.start)), Some(goal.min(held.end)));
        }
        if self.has_expired() {
            self.wish = Wish::Enough;
        }
        self.move_to(self.next.max(held.start).min(held.end))
    }

    /// Whether nothing is left of what is to be read again and again.
    fn has_expired(&self) -> bool {
        self.again_from.is_some_and(|again| self.goal.is_some_and(|goal| again >= goal))
    }
}

/// What is done with what was read.
pub trait Reader {
    /// Takes a partition's next batch, whose CRC was verified.
    fn batch(&mut self, batch: &BatchView<'_>);
    /// What is to be read next is not there: the broker says that it holds these
    /// offsets. Reading goes on at the nearest of them.
    fn holds(&mut self, partition: PartitionId, offsets: Range<u64>);
    /// The broker says that there is no such partition.
    fn missing(&mut self, partition: PartitionId);
    /// The partition cannot be read on.
    fn unreadable(&mut self, partition: PartitionId, why: String);
    /// The partition was read to its end.
    fn finished(&mut self, partition: PartitionId);
}

/// See the [module](self).
pub struct Consumer {
    parts: Vec<Part>,
    index: FxHashMap<PartitionId, usize>,
    max_bytes: u32,
    /// The first partition of the next request.
    turn: usize,
    /// The ends are fixed: what is there now is all that is wanted.
    frozen: bool,
    /// Rises with every record that was read, and with what is known of where to
    /// read on.
    progress: u64,
    stalled: bool,
}

impl Consumer {
    /// A consumer of these partitions, each from its offset, that asks for at
    /// most `max_bytes` at a time.
    pub fn new(from: impl IntoIterator<Item = (PartitionId, u64)>, max_bytes: u32) -> Consumer {
        let part = |(partition, next)| Part {
            partition,
            next,
            highest: next,
            goal: None,
            again_from: None,
            wish: Wish::More,
        };
        let parts: Vec<Part> = from.into_iter().map(part).collect();
        assert!(!parts.is_empty(), "a consumer reads something");
        let index = parts.iter().enumerate().map(|(i, p)| (p.partition, i)).collect();
        Consumer { parts, index, max_bytes, turn: 0, frozen: false, progress: 0, stalled: false }
    }

    /// A consumer that reads the given offsets of each partition again and
    /// again, until it is frozen.
    pub fn cycling(ranges: impl IntoIterator<Item = (PartitionId, Range<u64>)>, max_bytes: u32) -> Consumer {
        let ranges: Vec<_> = ranges.into_iter().collect();
        let mut consumer = Consumer::new(ranges.iter().map(|(p, r)| (*p, r.start)), max_bytes);
        for (part, (_, range)) in consumer.parts.iter_mut().zip(ranges) {
            assert!(!range.is_empty(), "there is something to go round");
            (part.goal, part.again_from) = (Some(range.end), Some(range.start));
        }
        consumer
    }

    /// From now on only what the next answers call the end is read.
    pub fn freeze(&mut self) {
        self.frozen = true;
        for part in &mut self.parts {
            // A reader that goes round and round is done wherever it is.
            if part.again_from.is_some() && part.wish == Wish::More {
                part.wish = Wish::Enough;
            }
        }
    }

    /// Whether everything up to the fixed ends was read.
    pub fn is_done(&self) -> bool {
        self.frozen && !self.parts.iter().any(Part::is_wanted)
    }

    /// The partitions whose end was reached.
    pub fn finished(&self) -> impl Iterator<Item = PartitionId> + '_ {
        let is_finished = |p: &&Part| p.wish == Wish::More && p.goal.is_some_and(|goal| p.next >= goal);
        self.parts.iter().filter(is_finished).map(|p| p.partition)
    }

    /// Whether no partition is left that can be read.
    pub fn is_idle(&self) -> bool {
        self.parts.iter().all(|p| p.wish != Wish::More)
    }

    /// A number that rises while there is progress.
    pub fn progress(&self) -> u64 {
        self.progress
    }

    /// Whether the last answer moved nothing, and that not because the broker
    /// waited in vain: the same request would be answered like that at once.
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// The next request.
    ///
    /// # Panics
    /// If the consumer is done or idle.
    pub fn fetch(&mut self) -> Fetch {
        let count = self.parts.len();
        let partitions: Vec<FetchPartition> = (0..count)
            .map(|i| &self.parts[(self.turn + i) % count])
            .filter(|p| p.is_wanted())
            .take(MAX_FETCH_PARTITIONS)
            .map(|p| FetchPartition {
                partition: p.partition,
                offset: Offset(p.next),
                max_bytes: self.max_bytes,
            })
            .collect();
        assert!(!partitions.is_empty(), "a consumer that is neither done nor idle wants something");
        self.turn = (self.turn + MAX_FETCH_PARTITIONS.min(count)) % count;
        let wait = match count > MAX_FETCH_PARTITIONS {
            _ if self.frozen => 0,
            true => SHORT_POLL_MS,
            false => LONG_POLL_MS,
        };
        Fetch { max_wait_ms: wait, min_bytes: u32::from(!self.frozen), max_bytes: self.max_bytes, partitions }
    }

    /// Notes what an answer brings, so that the next request can leave.
    pub fn advance(&mut self, fetched: &[FetchedPartition], payload: &[u8]) {
        let mut rest = payload;
        let before = self.progress;
        self.stalled =
            self.frozen || fetched.iter().any(|answer| answer.status != 0 || answer.payload_len > 0);
        for answer in fetched {
            let (mut batches, after) = rest.split_at(answer.payload_len as usize);
            rest = after;
            let Some(&index) = self.index.get(&answer.partition) else { continue };
            let part = &mut self.parts[index];
            if part.wish == Wish::Unreadable {
                continue;
            }
            // A batch that makes no sense ends the walk, and is reported when
            // the records are checked.
            while let Ok(header) = BatchHeader::decode(batches)
                && header.len() <= batches.len()
            {
                let end = header.base_offset().0.saturating_add(u64::from(header.count()));
                self.progress += part.move_to(part.next.max(end));
                batches = &batches[header.len()..];
            }
            if let (Some(goal), Some(start)) = (part.goal, part.again_from)
                && part.next >= goal
            {
                part.next = start;
            }
            let end = match held(answer) {
                Some(held) => {
                    self.progress += part.move_into(&held);
                    held.end
                }
                None if answer.status == 0 => answer.end_offset.0,
                None => continue,
            };
            if self.frozen && part.again_from.is_none() {
                self.progress += u64::from(part.goal.is_none());
                // An end that moved back leaves nothing to wait for behind it.
                part.goal = Some(part.goal.map_or(end, |goal| goal.min(end)));
            }
        }
        self.stalled &= self.progress == before;
    }

    /// Checks what an answer brought, which was [noted](Self::advance) before, and
    /// hands it to `reader`.
    pub fn read(&mut self, fetched: &[FetchedPartition], payload: &Bytes, reader: &mut impl Reader) {
        let mut rest: &[u8] = payload;
        for answer in fetched {
            let (batches, after) = rest.split_at(answer.payload_len as usize);
            rest = after;
            let Some(&index) = self.index.get(&answer.partition) else { continue };
            if self.parts[index].wish == Wish::Unreadable {
                continue;
            }
            let why = match ErrorCode::from_u16(answer.status) {
                _ if answer.status == 0 => read_batches(answer, batches, reader).err(),
                Some(ErrorCode::OffsetOutOfRange | ErrorCode::UnknownTopic | ErrorCode::UnknownPartition)
                    if self.parts[index].has_expired() =>
                {
                    Some("nothing is left of what was to be read".to_owned())
                }
                Some(ErrorCode::OffsetOutOfRange) => {
                    reader.holds(answer.partition, answer.start_offset.0..answer.end_offset.0);
                    None
                }
                Some(ErrorCode::UnknownTopic | ErrorCode::UnknownPartition) => {
                    reader.missing(answer.partition);
                    None
                }
                Some(code) if code.is_retryable() => None,
                Some(code) => Some(code.to_string()),
                None => Some(format!("error {}", answer.status)),
            };
            if let Some(why) = why {
                self.parts[index].wish = Wish::Unreadable;
                reader.unreadable(answer.partition, why);
            }
        }
    }
}

/// What a broker holds that does not have what it was asked for.
fn held(answer: &FetchedPartition) -> Option<Range<u64>> {
    match ErrorCode::from_u16(answer.status)? {
        ErrorCode::OffsetOutOfRange => Some(answer.start_offset.0..answer.end_offset.0),
        ErrorCode::UnknownTopic | ErrorCode::UnknownPartition => Some(0..0),
        _ => None,
    }
}

fn read_batches(answer: &FetchedPartition, mut bytes: &[u8], reader: &mut impl Reader) -> Result<(), String> {
    // No CRC covers a batch's offset but that of the answer, which names the first.
    let mut from = answer.base_offset.0;
    let mut is_first = true;
    while !bytes.is_empty() {
        let batch = BatchView::parse(bytes, u32::MAX).map_err(|error| error.to_string())?;
        let header = batch.header();
        if header.partition() != answer.partition {
            return Err(format!("it gave back records of partition {}", header.partition()));
        }
        let base = header.base_offset().0;
        if base < from || (is_first && base != from) {
            return Err(format!("it gave back offset {base} where {from} was to be"));
        }
        reader.batch(&batch);
        (from, is_first) = (header.next_offset().0, false);
        bytes = &bytes[header.len()..];
    }
    Ok(())
}
