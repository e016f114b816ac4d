//! What a fetch may bring.

use ringbolt::limits::{MAX_FETCH_BYTES, MAX_STORED_BATCH_LEN};
use ringbolt_wire::message::{Fetch, FetchPartition, FetchedPartition};
use ringbolt_wire::{BatchView, ErrorCode};

use super::log_model::{BatchFact, LogModel, PartitionFacts, Print};

/// What was known when the fetch was asked.
#[derive(Clone, Debug)]
pub struct FetchAsked {
    pub fetch: Fetch,
    pub asked_at_us: u64,
    /// Durable ends then, one for each partition.
    pub ends: Vec<u64>,
    /// Whether each topic was certainly there then.
    pub alive: Vec<bool>,
    /// Whether each topic was certainly deleted then.
    pub gone: Vec<bool>,
    /// The shard was told to answer at once, or to stop.
    pub hurried: bool,
}

/// What is known when the answer comes.
#[derive(Clone, Copy, Debug)]
pub struct FetchContext<'a> {
    pub model: &'a LogModel,
    pub now_us: u64,
    /// Damage was done to the disk, so some of it may be reported.
    pub damaged: bool,
    /// Whether each topic is certainly there now.
    pub alive: &'a [bool],
}

/// Judges an answer. `payload` is all of its pieces in one.
pub fn check_fetched(
    asked: &FetchAsked,
    partitions: &[FetchedPartition],
    payload: &[u8],
    cx: FetchContext<'_>,
) {
    let fetch = &asked.fetch;
    assert_eq!(partitions.len(), fetch.partitions.len(), "an entry for each partition that was asked for");
    let mut rest = payload;
    let (mut batches, mut refused, mut all_given) = (0, false, true);
    for (i, (want, got)) in fetch.partitions.iter().zip(partitions).enumerate() {
        assert_eq!(want.partition, got.partition, "entries come in the order of the request");
        let (own, tail) = rest.split_at_checked(got.payload_len as usize).expect("payload lengths add up");
        rest = tail;
        if got.status != 0 {
            assert_eq!(got.payload_len, 0, "a refused partition has no payload");
            check_refusal(asked, i, got, cx);
            refused = true;
            continue;
        }
        assert!(!asked.gone[i], "{} was deleted, and is read", want.partition);
        let given = check_batches(asked, i, got, own, cx);
        batches += given.0;
        all_given &= given.1 == got.end_offset.0;
    }
    assert!(rest.is_empty(), "the payload is longer than its parts");
    let limit = fetch.max_bytes.min(MAX_FETCH_BYTES) as usize;
    assert!(
        payload.len() <= limit || batches == 1,
        "{} bytes in {batches} batches, not {limit}",
        payload.len()
    );
    if refused || asked.hurried {
        return;
    }
    let waited = cx.now_us >= asked.asked_at_us + u64::from(fetch.max_wait_ms) * 1000;
    let enough = payload.len() >= fetch.min_bytes.min(fetch.max_bytes) as usize;
    assert!(
        enough || waited || !all_given,
        "answered with {} bytes after {} µs: {fetch:?}",
        payload.len(),
        cx.now_us - asked.asked_at_us,
    );
    assert!(
        all_given || batches > 0,
        "nothing was given though there was something: {fetch:?}, {partitions:?}"
    );
}

impl FetchContext<'_> {
    fn facts(&self, want: &FetchPartition) -> PartitionView<'_> {
        PartitionView { facts: self.model.partitions.get(&want.partition) }
    }
}

/// A partition that may have no record yet.
struct PartitionView<'a> {
    facts: Option<&'a PartitionFacts>,
}

impl PartitionView<'_> {
    fn durable_end(&self) -> u64 {
        self.facts.map_or(0, |facts| facts.durable_end)
    }

    fn durable_at(&self, offset: u64) -> Option<&BatchFact> {
        self.facts?.durable_at(offset)
    }

    fn durable_holding(&self, offset: u64) -> Option<&BatchFact> {
        let durable = self.facts?.durable();
        let at = durable.partition_point(|batch| batch.end_offset() <= offset);
        durable.get(at).filter(|batch| batch.base_offset <= offset)
    }
}

fn check_refusal(asked: &FetchAsked, i: usize, got: &FetchedPartition, cx: FetchContext<'_>) {
    let want = &asked.fetch.partitions[i];
    let code = ErrorCode::from_u16(got.status).expect("a known code");
    let offset = want.offset.0;
    let allowed = match code {
        ErrorCode::UnknownTopic | ErrorCode::UnknownPartition => !(asked.alive[i] && cx.alive[i]),
        ErrorCode::OffsetOutOfRange => {
            let end = cx.facts(want).durable_end();
            let too_high = offset > asked.ends[i] && got.end_offset.0 < offset && got.end_offset.0 <= end;
            let too_low =
                offset < got.start_offset.0 && got.start_offset.0 <= cx.model.latest_start(want.partition);
            too_high || too_low
        }
        ErrorCode::CorruptData => cx.damaged,
        ErrorCode::Overloaded => false,
        ErrorCode::ShuttingDown => asked.hurried,
        _ => false,
    };
    assert!(allowed, "{code:?} for {want:?}: {got:?}");
}

/// Returns the number of batches and the offset after the last one.
fn check_batches(
    asked: &FetchAsked,
    i: usize,
    got: &FetchedPartition,
    mut bytes: &[u8],
    cx: FetchContext<'_>,
) -> (usize, u64) {
    let want = &asked.fetch.partitions[i];
    let view = cx.facts(want);
    let (start, end) = (got.start_offset.0, got.end_offset.0);
    assert!(
        end >= asked.ends[i] && end <= view.durable_end(),
        "{}: end offset {end}, durable was {} and is {}",
        want.partition,
        asked.ends[i],
        view.durable_end(),
    );
    assert!(start <= cx.model.latest_start(want.partition), "{}: start {start}", want.partition);
    assert!((start..=end).contains(&want.offset.0), "{want:?} is out of range, and is served: {got:?}");
    let (mut batches, mut next, len) = (0, want.offset.0, bytes.len());
    while !bytes.is_empty() {
        let batch = BatchView::parse(bytes, MAX_STORED_BATCH_LEN).expect("a batch that is served is whole");
        let header = batch.header();
        let fact = if batches == 0 { view.durable_holding(next) } else { view.durable_at(next) };
        let fact = fact.unwrap_or_else(|| {
            panic!("{}: {:?} is served at {next}, where no durable batch is", want.partition, header)
        });
        assert_eq!(Print::of(&batch), fact.print, "{}: what is served is what was sent", want.partition);
        assert_eq!(header.base_offset().0, fact.base_offset, "{}: at its offset", want.partition);
        assert_eq!(header.commit_time_us(), fact.commit_time_us, "{}: with its time", want.partition);
        next = fact.end_offset();
        batches += 1;
        bytes = &bytes[header.len()..];
    }
    assert!(next <= end, "{}: served up to {next}, the end is {end}", want.partition);
    assert!(len <= want.max_bytes as usize || batches == 1, "{want:?}: {len} bytes in {batches} batches");
    (batches, next)
}
