//! What `ringbolt serve` can be told, on the command line or in a TOML file
//! whose keys are the flags' names.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use super::config::{Config, ConfigError, ShareFlushes};

/// A number of bytes, written like `512MiB` or `4096`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ByteCount(pub u64);

impl FromStr for ByteCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<bytesize::ByteSize>().map(|size| ByteCount(size.as_u64()))
    }
}

/// A duration, written like `250us`, `10s` or `7days`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = humantime::DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text).map(Span)
    }
}

/// CPU numbers, written like `0,1` or `2-5`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cpus(pub Vec<usize>);

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse::<usize>().map_err(|e| format!("{text:?}: {e}"));
        let mut cpus = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                None => cpus.push(number(part)?),
                Some((from, to)) => {
                    let (from, to) = (number(from)?, number(to)?);
                    if to < from || to - from >= 4096 {
                        return Err(format!("{part:?} is not a range of CPUs"));
                    }
                    cpus.extend(from..=to);
                }
            }
        }
        Ok(Cpus(cpus))
    }
}

impl FromStr for ShareFlushes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(ShareFlushes::Auto),
            "never" => Ok(ShareFlushes::Never),
            number => match number.parse() {
                Ok(writes) => Ok(ShareFlushes::From(writes)),
                Err(_) => Err(format!("{number:?} is not auto, never or a number of writes")),
            },
        }
    }
}

/// In the file, such a value is a string, or a number where that is plain.
fn text_or_number<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Raw {
        Number(u64),
        Text(String),
    }
    let text = match Raw::deserialize(deserializer)? {
        Raw::Number(number) => number.to_string(),
        Raw::Text(text) => text,
    };
    text.parse().map_err(de::Error::custom)
}

macro_rules! deserialize_from_text {
    ($($name:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                text_or_number(deserializer)
            }
        }
    )*};
}

deserialize_from_text!(ByteCount, Span, Cpus, ShareFlushes);

macro_rules! options {
    ($($(#[$attribute:meta])* $name:ident: $type:ty,)*) => {
        /// Every option of `ringbolt serve`, given or not.
        #[derive(clap::Args, Deserialize, Clone, PartialEq, Debug, Default)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        pub struct Options {
            $($(#[$attribute])* pub $name: Option<$type>,)*
        }

        impl Options {
            /// These options, and where they say nothing, `other`'s.
            pub fn or(self, other: Options) -> Options {
                Options { $($name: self.$name.or(other.$name),)* }
            }
        }
    };
}

options! {
    /// Directory of the data: made if it is not there
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:7411]
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Address to serve metrics and health on over HTTP (GET /metrics, GET
    /// /health); port 0 takes a free one [default: not served]
    #[arg(long, value_name = "ADDR")]
    admin: SocketAddr,
    /// Shards of a new data directory: each is a commit log of its own, with
    /// the partitions placed on it. An existing directory keeps its number
    /// [default: number of cores]
    #[arg(long, value_name = "N")]
    shards: u16,
    /// CPUs to run on, one thread each, like 0,1 or 0-3 [default: all that this
    /// process may use]
    #[arg(long, value_name = "LIST")]
    cores: Cpus,
    /// Memory that the broker may use, at least 64MiB [default: 512MiB]
    #[arg(long, value_name = "BYTES")]
    memory: ByteCount,
    /// Length of a segment of a new data directory, 4MiB to 2GiB. An existing
    /// directory keeps its length [default: 256MiB]
    #[arg(long, value_name = "BYTES")]
    segment_size: ByteCount,
    /// Segments per shard that are zero-written before the broker listens
    /// [default: 0; one is always made ahead in the background]
    #[arg(long, value_name = "N")]
    preallocate: usize,
    /// Most bytes of segments to keep, over all shards; the oldest are recycled.
    /// Each shard keeps two segments whatever this says [default: no limit]
    #[arg(long, value_name = "BYTES")]
    retention_bytes: ByteCount,
    /// Longest time to keep records, like 7days [default: no limit]
    #[arg(long, value_name = "TIME")]
    retention_time: Span,
    /// Commits that a shard writes at once, 1 to 16; those with room for more
    /// batches use a quarter of them [default: 16]
    #[arg(long, value_name = "N")]
    commits_in_flight: usize,
    /// Writes in flight from which on another one shares a flush with others
    /// instead of having its own; 0: all share, never: none does. auto: from a
    /// quarter of --commits-in-flight on, and all while that is faster; never if
    /// the device needs no flush after a durable write [default: auto]
    #[arg(long, value_name = "N")]
    share_flushes_from: ShareFlushes,
    /// Longest time that a commit waits for more batches, up to 100ms: trades
    /// latency for size [default: 0s]
    #[arg(long, value_name = "TIME")]
    commit_delay: Span,
    /// Time that a core without work looks on before it sleeps, up to 100ms:
    /// lower latency for processor time while the load is light [default: 200us]
    #[arg(long, value_name = "TIME")]
    idle_poll: Span,
    /// Never sleep: lower latency at the price of whole cores
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    busy_poll: bool,
    /// Record batches of at least this many bytes are received straight into
    /// memory that is written to disk [default: 72KiB]
    #[arg(long, value_name = "BYTES")]
    direct_threshold: ByteCount,
    /// Permit writes through the kernel's cache (each flushed) where O_DIRECT
    /// is not to be had
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    allow_buffered: bool,
    /// Do not register memory with io_uring, for systems whose limit of locked
    /// memory is low: costs a little speed
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    unregistered_memory: bool,
    /// Most connections at once [default: 20000]
    #[arg(long, value_name = "N")]
    max_connections: usize,
    /// Time that a connection has for its hello [default: 10s]
    #[arg(long, value_name = "TIME")]
    handshake_timeout: Span,
    /// Time that a frame may take to come; longer if over each such time its
    /// rest comes at 1 KiB per second [default: 30s]
    #[arg(long, value_name = "TIME")]
    frame_timeout: Span,
}

impl Options {
    /// The options in a TOML file.
    pub fn from_file(path: &Path) -> Result<Options, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        toml::from_str(&text)
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: Box::new(source) })
    }

    /// The configuration that these options make, with defaults for the rest.
    pub fn into_config(self) -> Result<Config, ConfigError> {
        let default = Config::new(self.data.ok_or(ConfigError::NoData)?);
        let bytes = |value: Option<ByteCount>, default: u64| value.map_or(default, |b| b.0);
        let config = Config {
            listen: self.listen.unwrap_or(default.listen),
            admin: self.admin.or(default.admin),
            shards: self.shards.or(default.shards),
            cores: self.cores.map(|c| c.0).or(default.cores),
            memory: bytes(self.memory, default.memory),
            segment_size: self.segment_size.map(|b| b.0).or(default.segment_size),
            preallocate: self.preallocate.unwrap_or(default.preallocate),
            retention_bytes: self.retention_bytes.map(|b| b.0).or(default.retention_bytes),
            retention_time: self.retention_time.map(|t| t.0).or(default.retention_time),
            commits_in_flight: self.commits_in_flight.unwrap_or(default.commits_in_flight),
            share_flushes_from: self.share_flushes_from.unwrap_or(default.share_flushes_from),
            commit_delay: self.commit_delay.map_or(default.commit_delay, |t| t.0),
            idle_poll: self.idle_poll.map_or(default.idle_poll, |t| t.0),
            busy_poll: self.busy_poll.unwrap_or(default.busy_poll),
            direct_threshold: bytes(self.direct_threshold, default.direct_threshold),
            allow_buffered: self.allow_buffered.unwrap_or(default.allow_buffered),
            unregistered_memory: self.unregistered_memory.unwrap_or(default.unregistered_memory),
            max_connections: self.max_connections.unwrap_or(default.max_connections),
            handshake_timeout: self.handshake_timeout.map_or(default.handshake_timeout, |t| t.0),
            frame_timeout: self.frame_timeout.map_or(default.frame_timeout, |t| t.0),
            data: default.data,
        };
        config.check()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ringbolt.toml");
        std::fs::write(
            &file,
            "data = \"/file\"\nmemory = \"128MiB\"\nsegment-size = 8388608\nretention-time = \"7days\"\n\
             cores = \"0,2-3\"\nbusy-poll = true\nadmin = \"127.0.0.1:9\"\n",
        )
        .unwrap();
        let flags = Options { memory: Some(ByteCount(256 << 20)), ..Options::default() };
        let config = flags.or(Options::from_file(&file).unwrap()).into_config().unwrap();
        assert_eq!(config.data, Path::new("/file"));
        assert_eq!(config.memory, 256 << 20);
        assert_eq!(config.segment_size, Some(8 << 20));
        assert_eq!(config.retention_time, Some(Duration::from_secs(7 * 86400)));
        assert_eq!(config.cores, Some(vec![0, 2, 3]));
        assert!(config.busy_poll);
        assert_eq!(config.admin, Some("127.0.0.1:9".parse().unwrap()));
        assert_eq!(config.commits_in_flight, Config::new("/x".into()).commits_in_flight);
    }

    #[test]
    fn a_bad_file_is_named_with_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ringbolt.toml");
        for (text, word) in [("memry = 1", "memry"), ("memory = \"much\"", "memory"), ("=", "ringbolt.toml")]
        {
            std::fs::write(&file, text).unwrap();
            let error = Options::from_file(&file).unwrap_err();
            let text = format!("{error}");
            assert!(text.contains("ringbolt.toml") && text.contains(word), "{text}");
        }
        let missing = Options::from_file(&dir.path().join("none")).unwrap_err();
        assert!(matches!(missing, ConfigError::Unreadable { .. }), "{missing}");
        assert!(matches!(Options::default().into_config(), Err(ConfigError::NoData)));
    }

    #[test]
    fn shared_flushes_are_a_word_or_a_number() {
        let file = |text| toml::from_str::<Options>(text).map(|o| o.share_flushes_from);
        assert_eq!("auto".parse(), Ok(ShareFlushes::Auto));
        assert_eq!(file("share-flushes-from = \"never\""), Ok(Some(ShareFlushes::Never)));
        assert_eq!(file("share-flushes-from = 3"), Ok(Some(ShareFlushes::From(3))));
        for bad in ["", "none", "-1", "1.5"] {
            assert!(bad.parse::<ShareFlushes>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn cpus_are_listed_or_ranged() {
        assert_eq!("1".parse::<Cpus>().unwrap().0, [1]);
        assert_eq!("0-2, 5".parse::<Cpus>().unwrap().0, [0, 1, 2, 5]);
        for bad in ["", "a", "3-1", "0-99999", "1,"] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad:?}");
        }
    }
}
