//! How a broker is set up, checked before anything is touched.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::consumer::groups::OPEN_COST;
use crate::consumer::wheel::ENTRY_COST;
use crate::limits::{
    BLOCK_LEN, CHUNK_LEN, DEFAULT_DIRECT_THRESHOLD, DEFAULT_FRAME_TIMEOUT_MS, DEFAULT_HANDSHAKE_TIMEOUT_MS,
    DEFAULT_MAX_CONNECTIONS, DEFAULT_MEMORY, DEFAULT_SEGMENT_LEN, MAX_BATCH_LEN, MAX_COMMITS_IN_FLIGHT,
    MAX_CORES, MAX_SEGMENT_LEN, MAX_SHARDS, MIN_SEGMENT_LEN, PAGE_LEN,
};

/// Which durable writes share flushes: `auto`, `never`, or a number of writes in
/// flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ShareFlushes {
    /// Those beyond a quarter of the commits in flight, and all while that is
    /// faster, where the device needs a flush after a durable write; else none.
    #[default]
    Auto,
    /// None: each has its own flush.
    Never,
    /// Those begun while so many others are in flight.
    From(usize),
}

/// Least memory of a broker in bytes.
pub const MIN_MEMORY: u64 = 64 << 20;

/// How a broker is set up.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// Directory of the data; made if it is not there.
    pub data: PathBuf,
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address to serve metrics and health on; port 0 takes a free one.
    pub admin: Option<SocketAddr>,
    /// Shards of a new data directory; `None`: as many as cores. An existing
    /// directory keeps its number.
    pub shards: Option<u16>,
    /// CPUs to run on, a thread each; `None`: all that the process may use, but
    /// no more than there are shards.
    pub cores: Option<Vec<usize>>,
    /// Memory that the broker may use, in bytes, at least [`MIN_MEMORY`].
    pub memory: u64,
    /// Bytes of a segment of a new data directory: a multiple of 256 KiB from
    /// 4 MiB to 2 GiB; `None`: [`DEFAULT_SEGMENT_LEN`]. An existing directory
    /// keeps its size.
    pub segment_size: Option<u64>,
    /// Segments per shard that are made before the broker listens.
    pub preallocate: usize,
    /// Most bytes of segments over all shards.
    pub retention_bytes: Option<u64>,
    /// Longest time that records are kept.
    pub retention_time: Option<Duration>,
    /// Most commits that a shard writes at once, 1 to [`MAX_COMMITS_IN_FLIGHT`]; those with room for
    /// more batches use a quarter of them.
    pub commits_in_flight: usize,
    /// Which durable writes share flushes; a number is less than
    /// [`MAX_COMMITS_IN_FLIGHT`].
    pub share_flushes_from: ShareFlushes,
    /// Longest time that a commit waits for more batches, at most 100 ms.
    pub commit_delay: Duration,
    /// Time that a core without work looks on before it sleeps, at most 100 ms.
    pub idle_poll: Duration,
    /// Never sleep.
    pub busy_poll: bool,
    /// Bytes of a record batch from which on it is received straight into
    /// memory that is written to disk; at least 4 KiB.
    pub direct_threshold: u64,
    /// Permit writes through the kernel's cache.
    pub allow_buffered: bool,
    /// Do not register memory with io_uring.
    pub unregistered_memory: bool,
    /// Most connections at once, at least 1.
    pub max_connections: usize,
    /// Time that a connection has for its hello.
    pub handshake_timeout: Duration,
    /// Time that a frame may take to come, or longer if its rest comes at
    /// [`MIN_FRAME_RATE`](crate::limits::MIN_FRAME_RATE).
    pub frame_timeout: Duration,
}

/// Why a configuration cannot be used.
#[derive(thiserror::Error, Debug)]
pub enum ConfigError {
    /// No directory was given.
    #[error("no data directory: give --data DIR, or `data` in the configuration file")]
    NoData,
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file does not say what it should.
    #[error("{}: {source}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: Box<toml::de::Error>,
    },
    /// A value is out of range.
    #[error("--{option} is {value}: {wanted}")]
    Range {
        /// Which option.
        option: &'static str,
        /// As given.
        value: String,
        /// What it may be.
        wanted: String,
    },
}

impl Config {
    /// The defaults, for this data directory.
    pub fn new(data: PathBuf) -> Config {
        Config {
            data,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, ringbolt_wire::DEFAULT_PORT)),
            admin: None,
            shards: None,
            cores: None,
            memory: DEFAULT_MEMORY,
            segment_size: None,
            preallocate: 0,
            retention_bytes: None,
            retention_time: None,
            // For large batches 1.31 of the rate of 8; small ones use a quarter.
            commits_in_flight: 16,
            share_flushes_from: ShareFlushes::Auto,
            commit_delay: Duration::ZERO,
            idle_poll: Duration::from_micros(200),
            busy_poll: false,
            direct_threshold: DEFAULT_DIRECT_THRESHOLD,
            allow_buffered: false,
            unregistered_memory: false,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            handshake_timeout: Duration::from_millis(DEFAULT_HANDSHAKE_TIMEOUT_MS),
            frame_timeout: Duration::from_millis(DEFAULT_FRAME_TIMEOUT_MS),
        }
    }

    /// Checks every value against its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let range = |is_valid: bool, option, value: String, wanted: String| {
            if is_valid { Ok(()) } else { Err(ConfigError::Range { option, value, wanted }) }
        };
        let shards = self.shards.unwrap_or(1);
        let wanted = format!("a data directory has 1 to {MAX_SHARDS} shards");
        range((1..=MAX_SHARDS).contains(&shards), "shards", shards.to_string(), wanted)?;
        if let Some(cores) = &self.cores {
            let mut sorted = cores.clone();
            sorted.sort_unstable();
            sorted.dedup();
            let is_valid = !cores.is_empty() && sorted.len() == cores.len() && cores.len() <= MAX_CORES;
            range(is_valid, "cores", format!("{cores:?}"), format!("1 to {MAX_CORES} different CPUs"))?;
        }
        let wanted = format!("the broker needs at least {MIN_MEMORY} bytes");
        range(self.memory >= MIN_MEMORY, "memory", self.memory.to_string(), wanted)?;
        let segment = self.segment_size.unwrap_or(DEFAULT_SEGMENT_LEN);
        let is_valid =
            (MIN_SEGMENT_LEN..=MAX_SEGMENT_LEN).contains(&segment) && segment.is_multiple_of(PAGE_LEN as u64);
        let wanted = format!("a multiple of {PAGE_LEN} from {MIN_SEGMENT_LEN} to {MAX_SEGMENT_LEN}");
        range(is_valid, "segment-size", segment.to_string(), wanted)?;
        let is_valid = self.retention_bytes.is_none_or(|bytes| bytes >= 2 * MIN_SEGMENT_LEN);
        let wanted = format!("at least two of the smallest segments, {} bytes", 2 * MIN_SEGMENT_LEN);
        range(is_valid, "retention-bytes", format!("{:?}", self.retention_bytes.unwrap_or(0)), wanted)?;
        let in_flight = self.commits_in_flight;
        let wanted = format!("1 to {MAX_COMMITS_IN_FLIGHT} commits");
        let is_valid = (1..=MAX_COMMITS_IN_FLIGHT).contains(&in_flight);
        range(is_valid, "commits-in-flight", in_flight.to_string(), wanted)?;
        if let ShareFlushes::From(from) = self.share_flushes_from {
            let wanted = format!("less than {MAX_COMMITS_IN_FLIGHT} writes; to share none: never");
            range(from < MAX_COMMITS_IN_FLIGHT, "share-flushes-from", from.to_string(), wanted)?;
        }
        let delay = self.commit_delay;
        let is_valid = delay <= Duration::from_millis(100);
        range(is_valid, "commit-delay", format!("{delay:?}"), "at most 100 ms".to_owned())?;
        let idle = self.idle_poll;
        let is_valid = idle <= Duration::from_millis(100);
        range(is_valid, "idle-poll", format!("{idle:?}"), "at most 100 ms".to_owned())?;
        let threshold = self.direct_threshold;
        let wanted = format!("at least {BLOCK_LEN} bytes");
        range(threshold >= BLOCK_LEN as u64, "direct-threshold", threshold.to_string(), wanted)?;
        let wanted = "1 to 1,000,000 connections".to_owned();
        let is_valid = (1..=1_000_000).contains(&self.max_connections);
        range(is_valid, "max-connections", self.max_connections.to_string(), wanted)?;
        let timeout = self.handshake_timeout;
        let is_valid = (Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&timeout);
        range(is_valid, "handshake-timeout", format!("{timeout:?}"), "10 ms to an hour".to_owned())?;
        let timeout = self.frame_timeout;
        let is_valid = (Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&timeout);
        range(is_valid, "frame-timeout", format!("{timeout:?}"), "10 ms to an hour".to_owned())
    }
}

/// How `--memory` is divided. Everything that payload passes through is a piece
/// of the pool; the rest is for tables, which are bounded by their own limits,
/// and for half-received frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryPlan {
    /// Bytes of the pool.
    pub pool: usize,
    /// Chunks of the pool that become receive buffers, for each core.
    pub receive_chunks: usize,
    /// Bytes of recent commits kept in memory, for each shard.
    pub tail_cache: usize,
    /// Bytes of pages read back kept in memory, for each shard.
    pub page_cache: usize,
    /// Records of a shard that may wait for a time of their own.
    pub delayed: usize,
    /// Records of a shard that may be open in groups.
    pub open: usize,
    /// Bytes of the pool that receives of large batches may hold, for each core.
    pub direct: usize,
    /// Bytes of other memory for half-received frames, for each core, and as many for
    /// frames that wait for a shard.
    pub stashed: usize,
    /// Bytes of unsent answers in other memory, for each core.
    pub unsent_own: usize,
    /// Free chunks of the pool below which readers that do not read are closed.
    pub low_chunks: usize,
}

impl MemoryPlan {
    /// The division for so many cores and shards, or how much memory would be
    /// enough.
    pub fn new(memory: u64, cores: usize, shards: usize) -> Result<MemoryPlan, ConfigError> {
        /// Chunks that a shard needs to write at all: one open, two in flight,
        /// one that is being filled while the others are held by readers.
        const MIN_SHARD_CHUNKS: usize = 6;
        let too_small = |wanted: usize| ConfigError::Range {
            option: "memory",
            value: memory.to_string(),
            wanted: format!("{cores} cores and {shards} shards need at least {wanted} bytes"),
        };
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        let chunks = memory / 4 * 3 / CHUNK_LEN;
        let receive_chunks = if memory / cores >= 128 << 20 { 2 } else { 1 };
        let needed = cores * (receive_chunks + 1) + shards * MIN_SHARD_CHUNKS;
        if chunks < needed {
            return Err(too_small(needed * CHUNK_LEN / 3 * 4));
        }
        let rest = chunks - cores * receive_chunks;
        // A quarter stays for what is on its way: commits, large batches,
        // answers. Of the caches, recent commits serve most readers.
        let in_flight = (rest / 4).max(needed - cores * receive_chunks).min(rest);
        let caches = rest - in_flight;
        let tail_chunks = caches * 3 / 5;
        Ok(MemoryPlan {
            pool: chunks * CHUNK_LEN,
            receive_chunks,
            tail_cache: tail_chunks * CHUNK_LEN / shards,
            page_cache: (caches - tail_chunks) * CHUNK_LEN / shards,
            // Of the quarter beside the chunks, like half frames and answers, with a
            // sixteenth for both of these.
            delayed: memory / 8 / ENTRY_COST / shards,
            open: memory / 16 / OPEN_COST / shards,
            direct: in_flight * CHUNK_LEN / 2 / cores,
            stashed: (memory / 32 / cores).max(4 * MAX_BATCH_LEN as usize),
            // The answer about a topic with as many partitions as there may be
            // has 5 MB.
            unsent_own: (memory / 32 / cores).max(8 << 20),
            low_chunks: (in_flight / 4).max(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_named() {
        let good = Config::new("/x".into());
        good.check().unwrap();
        let cases: [(&str, Config); 12] = [
            ("shards", Config { shards: Some(0), ..good.clone() }),
            ("cores", Config { cores: Some(vec![1, 1]), ..good.clone() }),
            ("memory", Config { memory: 1 << 20, ..good.clone() }),
            ("segment-size", Config { segment_size: Some((4 << 20) + 1), ..good.clone() }),
            ("retention-bytes", Config { retention_bytes: Some(1), ..good.clone() }),
            ("commits-in-flight", Config { commits_in_flight: 0, ..good.clone() }),
            ("share-flushes-from", Config { share_flushes_from: ShareFlushes::From(16), ..good.clone() }),
            ("commit-delay", Config { commit_delay: Duration::from_secs(1), ..good.clone() }),
            ("idle-poll", Config { idle_poll: Duration::from_secs(1), ..good.clone() }),
            ("direct-threshold", Config { direct_threshold: 10, ..good.clone() }),
            ("handshake-timeout", Config { handshake_timeout: Duration::ZERO, ..good.clone() }),
            ("frame-timeout", Config { frame_timeout: Duration::ZERO, ..good.clone() }),
        ];
        for (name, config) in cases {
            let text = config.check().unwrap_err().to_string();
            assert!(text.starts_with(&format!("--{name} is ")), "{text}");
        }
    }

    #[test]
    fn the_parts_of_memory_never_exceed_the_whole() {
        for memory in [64u64 << 20, 100 << 20, 128 << 20, 512 << 20, 3 << 30] {
            for (cores, shards) in [(1usize, 1usize), (2, 2), (1, 4), (2, 8), (8, 8)] {
                let Ok(plan) = MemoryPlan::new(memory, cores, shards) else {
                    assert!(memory <= 128 << 20, "{memory} is enough for {cores} cores, {shards} shards");
                    continue;
                };
                let held = cores * plan.receive_chunks * CHUNK_LEN
                    + shards * (plan.tail_cache + plan.page_cache)
                    + cores * plan.direct;
                assert!(held + plan.low_chunks * CHUNK_LEN <= plan.pool, "{memory} {cores} {shards}");
                assert!(plan.pool as u64 <= memory / 4 * 3);
            }
        }
        assert!(MemoryPlan::new(64 << 20, 1, 1).is_ok(), "the least memory is enough for one core");
        let error = MemoryPlan::new(64 << 20, 64, 64).unwrap_err().to_string();
        assert!(error.contains("64 cores"), "{error}");
    }
}
