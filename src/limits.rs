//! The bounds that what comes from outside can meet, and those that depend on
//! each other, in one place: each with the reason for its number, and asserted
//! against the others at compile time. A bound that concerns one part alone (how
//! many connections the metrics have, how many accepts a turn of the loop) stands
//! there; how the memory is divided stands in `serve/config.rs`.

/// Unit of everything on disk, in bytes: what O_DIRECT on a 4 KiB-sector
/// device can write whole.
pub const BLOCK_LEN: usize = 4096;

/// Unit in which the broker's memory is handed out: one huge page, so that a
/// buffer costs the kernel one entry in its tables.
pub const CHUNK_LEN: usize = 2 << 20;

/// Longest record batch in bytes. With the block before it, it fits a chunk
/// whatever the segment; Kafka's default for the same bound is 1 MB.
pub const MAX_BATCH_LEN: u32 = 1 << 20;

/// Longest frame after the handshake: a batch, and a head with room to spare.
pub const MAX_FRAME_LEN: u32 = MAX_BATCH_LEN + (64 << 10);

/// Longest frame before the handshake: a `hello` is far below it, and nobody
/// is known yet to whom memory should be lent.
pub const MAX_HELLO_FRAME_LEN: u32 = 4096;

/// Longest answer to a fetch in bytes of payload, unless one batch is longer.
pub const MAX_FETCH_BYTES: u32 = 8 << 20;

/// Longest time that a fetch waits for records, in ms. An empty answer a minute
/// costs nothing, and whoever asks for longer is soon heard of again: a peer that
/// has vanished without a word is found out only by sending.
pub const MAX_FETCH_WAIT_MS: u32 = 60_000;

/// Most unanswered requests on one connection: four times the deepest shape
/// that is measured (256), and 64 KiB of bookkeeping at the most, beside what
/// fetches are charged for.
pub const MAX_IN_FLIGHT: u32 = 1024;

/// What a fetch in flight costs for each of its partitions, in bytes: 24 for what
/// is asked, up to 80 to find who waits for a partition, and 40 for its answer,
/// three times: from the shard, gathered, and as a frame.
pub const FETCH_PARTITION_COST: usize = 256;
/// Most bytes of fetches in flight of one session: four of the most partitions.
pub const MAX_FETCHING_PER_SESSION: usize = 4 << 20;
/// Bytes that every session may have of them, whatever others have: 16 partitions.
/// With 10,000 connections that makes 40 MiB.
pub const OWN_FETCHING_PER_SESSION: usize = 4096;
/// Most bytes of them beyond that, over all sessions of a core.
pub const MAX_FETCHING_PER_CORE: usize = 16 << 20;
/// Partitions that a shard looks at in one turn for fetches that have waited: 1 to
/// 2 ms. The others are looked at in the next.
pub const MAX_LOOKS_PER_TURN: usize = 16 << 10;

/// Longest gathered commit in bytes. Past this size a write's time is all
/// transfer, so larger ones only add latency.
pub const MAX_COMMIT_LEN: usize = 512 << 10;

/// Unit in which stored data is read back, in bytes.
pub const PAGE_LEN: usize = 256 << 10;

/// Commits that a shard may be told to write at once, at most: more kept no disk
/// busier.
pub const MAX_COMMITS_IN_FLIGHT: usize = 16;

/// Commits that may be sealed and wait for room in flight before producing
/// is held back.
pub const MAX_SEALED_COMMITS: usize = 16;

/// Smallest and largest segment in bytes: positions within a segment are
/// stored as `u32`.
pub const MIN_SEGMENT_LEN: u64 = 4 << 20;
/// See [`MIN_SEGMENT_LEN`].
pub const MAX_SEGMENT_LEN: u64 = 2 << 30;
/// Segment size unless told otherwise: start-up scans at most one of them, and
/// at 1 GB/s that is a quarter of a second.
pub const DEFAULT_SEGMENT_LEN: u64 = 256 << 20;

/// Record batches of at least this many bytes are received straight into memory
/// that is written to disk, unless told otherwise. Measured: below it copies win
/// by 1.3 to 2.4 times, above it they lose by 1.7 to 2.9 (`tuning.md`). It lies
/// just above what one receive buffer holds.
pub const DEFAULT_DIRECT_THRESHOLD: u64 = 72 << 10;

/// Most topics.
pub const MAX_TOPICS: usize = 10_000;
/// Most partitions over all topics: each costs some 300 bytes of memory and 32
/// bytes in every segment's footer.
pub const MAX_TOTAL_PARTITIONS: usize = 200_000;
/// Most consumer groups, those of dead-letter topics included.
pub const MAX_GROUPS: usize = 10_000;
/// Most partitions over all groups: each costs 600 bytes of memory (416 for who has what
/// there, 104 for what is durable of it, the rest to find it by), up to twice that as
/// tables have room to grow, and 48 bytes in every checkpoint. In all 120 to 240 MB.
pub const MAX_GROUP_PARTITIONS: usize = 200_000;
/// Most consumers that a shard knows, attached or with leases: some 200 bytes each.
pub const MAX_CONSUMERS: usize = 20_000;
/// Most records that one settle request may speak of: looking at each takes 1 to 3
/// ms in all.
pub const MAX_SETTLE_RECORDS: u64 = ringbolt_wire::message::MAX_SETTLE_RECORDS;

/// Records that the confirmed settle requests in flight of one session may speak of, unless it
/// is one request: each can take 24 bytes of the answer, twice or three times.
pub const MAX_SETTLING_PER_SESSION: u64 = MAX_SETTLE_RECORDS;

/// Dead letters of a shard that may be on their way back to where they came from.
pub const MAX_REDRIVES: usize = 65_536;
/// Most bytes of one delivery, unless a single record is longer: one consumer's
/// share is sent while the next one's is put together.
pub const MAX_DELIVERY_LEN: usize = 1 << 20;
/// Longest record batch that the broker stores: a dead letter is its record with a
/// header more.
pub const MAX_STORED_BATCH_LEN: u32 = MAX_BATCH_LEN + (4 << 10);

/// Most producers remembered per shard: some 100 bytes each, and their runs.
/// Those that took over and have no record yet give way to others.
pub const MAX_PRODUCERS: usize = 1_000_000;
/// Acknowledged batches per producer and partition whose offsets are
/// remembered for retries, after adjacent ones were merged. Older retries are
/// still recognised, but answered without their offset.
pub const MAX_REMEMBERED_RUNS: usize = 256;
/// As many per shard over all producers, 24 bytes each: 96 MB. Beyond, every
/// producer keeps as many as it has, and one at least.
pub const MAX_TOTAL_RUNS: usize = 4_000_000;

/// Most shards of a data directory.
pub const MAX_SHARDS: u16 = 256;
/// Most cores: one without a shard would only pass on.
pub const MAX_CORES: usize = MAX_SHARDS as usize;

/// Most connections at once, unless told otherwise.
pub const DEFAULT_MAX_CONNECTIONS: usize = 20_000;

/// Connections beyond those that are told so at once; further ones are closed without
/// a word, so that they do not use up the descriptors.
pub const MAX_REFUSED_CONNECTIONS: usize = 64;
/// Connections that a core accepts at once.
pub const MAX_ACCEPTS: usize = 8;

/// Memory of a broker in bytes, unless told otherwise.
pub const DEFAULT_MEMORY: u64 = 512 << 20;

/// Segments of a shard that are open files at a time.
pub const MAX_OPEN_SEGMENTS: usize = 64;

/// Open files that are neither connections nor segments: rings, locks, folders,
/// the metrics' connections.
pub const OPEN_FILES_OF_PROCESS: usize = 256;

/// Open files of a broker with so many shards, and as many cores or fewer, beside
/// its connections.
pub fn open_files_beside_connections(shards: usize) -> usize {
    OPEN_FILES_OF_PROCESS + MAX_REFUSED_CONNECTIONS + OPEN_FILES_PER_SHARD * shards
}

/// See [`open_files_beside_connections`].
pub const OPEN_FILES_PER_SHARD: usize = MAX_OPEN_SEGMENTS + MAX_ACCEPTS;

/// Time that a connection has for its hello, in ms, unless told otherwise.
pub const DEFAULT_HANDSHAKE_TIMEOUT_MS: u64 = 10_000;
/// A frame that takes longer than this to come must come at [`MIN_FRAME_RATE`],
/// in ms, unless told otherwise. Links that fail for some seconds and then go on,
/// as mobile ones do, are forgiven.
pub const DEFAULT_FRAME_TIMEOUT_MS: u64 = 30_000;
/// Bytes per second at which the rest of a long frame must come, on average over
/// each [`DEFAULT_FRAME_TIMEOUT_MS`]. The slowest link that carries record batches
/// at all, GPRS, has 4 times as much; web servers want 240 to 500. The longest
/// frame holds its memory for 18 minutes at the most.
pub const MIN_FRAME_RATE: u64 = 1024;
/// A peer that takes no byte of its answers for so long, in ms, does not read
/// them. It is closed sooner while memory is short.
pub const MAX_SEND_STALL_MS: u64 = 30_000;
/// Time that a peer has to close its side after the goodbye, in ms.
pub const MAX_LINGER_MS: u64 = 1000;

/// Bytes of unsent answers at which a session takes no more requests, and its consumers
/// are sent no more: two of the longest fetch answers.
pub const MAX_UNSENT: usize = 2 * MAX_FETCH_BYTES as usize;
/// The same, for answers outside of the pool: four times the acknowledgements
/// of as many requests as may be in flight.
pub const MAX_UNSENT_OWN: usize = 256 << 10;

/// Bytes of memory that the longest answer takes while it is made: a topic of
/// 100,000 partitions, of which each is 24 bytes from its shard, 24 gathered, and
/// 20 in a frame that is allocated anew as it grows; or the names of all topics.
pub const MAX_LISTING_LEN: usize = 12 << 20;

/// Partitions of which the description of a group says why nothing is sent, and
/// consumers that it names, at most: with 100,000 partitions it has 13 MB then.
pub const MAX_DESCRIBED_HOLDS: usize = 10_000;
/// See [`MAX_DESCRIBED_HOLDS`].
pub const MAX_DESCRIBED_CONSUMERS: usize = 10_000;

/// Vectors that are kept for the sessions of a core to gather answers in: one for
/// each session in a turn of the loop that takes all receive buffers.
pub const MAX_SPARES: usize = 64;
/// Longest of them in bytes, so that all of them have 1 MiB at the most.
pub const MAX_SPARE_LEN: usize = 16 << 10;
/// Requests in flight for which a session that has none keeps its table, 8 KiB:
/// as many as the deepest shape that is measured.
pub const KEEP_IN_FLIGHT: usize = 256;

/// Messages that fit a core's mailbox: as many requests as one connection may
/// have in flight.
pub const MAILBOX_LEN: usize = MAX_IN_FLIGHT as usize;
/// Messages for other cores that wait for room in their mailboxes, beyond which a
/// core lets its shards rest: what it makes next are mostly answers to those very
/// cores. It receives all the time, so two cores never wait for each other.
pub const MAX_OUTGOING: usize = 4 * MAILBOX_LEN;
/// Requests of other cores that may wait on a core for one of its shards: what was
/// in the mailbox when the others were told to send no more, and one from each
/// that was about to.
pub const MAX_HELD: usize = MAILBOX_LEN + MAX_CORES;

const _: () = assert!(MAX_STORED_BATCH_LEN as usize + BLOCK_LEN <= CHUNK_LEN);
const _: () = assert!(MAX_COMMIT_LEN <= CHUNK_LEN && MAX_COMMIT_LEN.is_multiple_of(BLOCK_LEN));
const _: () = assert!(CHUNK_LEN.is_multiple_of(PAGE_LEN) && PAGE_LEN.is_multiple_of(BLOCK_LEN));
const _: () =
    assert!(ringbolt_wire::message::MAX_FETCH_PARTITIONS * FETCH_PARTITION_COST <= MAX_FETCHING_PER_SESSION);
const _: () = assert!(MAX_FETCHING_PER_SESSION <= MAX_FETCHING_PER_CORE);
const _: () = assert!(MAX_SEGMENT_LEN <= u32::MAX as u64);
const _: () = assert!(MIN_SEGMENT_LEN.is_multiple_of(PAGE_LEN as u64));
// A segment must hold its header, one largest commit, and a footer.
const _: () = assert!(MIN_SEGMENT_LEN >= 2 * (MAX_BATCH_LEN as u64 + 3 * BLOCK_LEN as u64));
const _: () =
    assert!(ringbolt_wire::message::MAX_PARTITIONS as usize * (24 + 24 + 3 * 20) <= MAX_LISTING_LEN);
const _: () = assert!(MAX_TOPICS * 4 * (ringbolt_wire::message::MAX_TOPIC_NAME_LEN + 16) <= MAX_LISTING_LEN);
// However slow the longest frame may come, it is bounded: by 18 minutes.
const _: () = assert!(MAX_FRAME_LEN as u64 / MIN_FRAME_RATE < 18 * 60 + 20);
const _: () = assert!(MAX_FRAME_LEN > MAX_BATCH_LEN && MAX_HELLO_FRAME_LEN < MAX_FRAME_LEN);
