//! What a data directory holds, as the next start would find it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Identity, LogError, Look, reader, segment_path, show_bytes, show_time, table};
use crate::io::datadir::ShardDir;
use crate::log::SegmentSeq;
use crate::log::recovery::{RecoveredLog, recover};

/// What there is.
#[derive(Serialize, Debug)]
pub(super) struct Report {
    #[serde(flatten)]
    identity: Identity,
    shards: Vec<Shard>,
    topics: Vec<Topic>,
}

#[derive(Serialize, Debug)]
struct Shard {
    shard: u16,
    path: PathBuf,
    segments: Vec<Segment>,
    spare_files: usize,
    unknown_files: Vec<PathBuf>,
    /// Why the next start would refuse this shard.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    log: Option<Log>,
}

#[derive(Serialize, Debug)]
struct Log {
    /// Index of the next commit.
    next_index: u64,
    last_commit_time_us: u64,
    /// Whether the last start's end holds a commit that was not written whole,
    /// and was not acknowledged; the next start overwrites it.
    torn_tail: bool,
    partitions: usize,
}

#[derive(Serialize, Debug)]
struct Segment {
    segment: u64,
    file: PathBuf,
    state: SegmentState,
    /// Where the log goes on in it; bytes from its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_commit_time_us: Option<u64>,
}

#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
enum SegmentState {
    /// Full, with a footer.
    Sealed,
    /// Full; the next start writes its footer.
    Full,
    /// The log goes on here.
    Open,
    /// Nothing in it yet.
    Prepared,
    /// The shard cannot be recovered, so nobody knows.
    Unknown,
}

#[derive(Serialize, Debug)]
struct Topic {
    name: String,
    id: u32,
    partitions: Vec<Partition>,
}

#[derive(Serialize, Clone, Copy, Debug)]
struct Partition {
    index: u32,
    shard: u16,
    first_offset: u64,
    end_offset: u64,
}

/// Looks at the directory.
pub(super) fn inspect(path: &Path) -> Result<Report, LogError> {
    let mut look = Look::open(path)?;
    let (mut shards, mut partitions) = (Vec::new(), BTreeMap::<u32, Vec<Partition>>::new());
    let mut names = Vec::new();
    for dir in look.dir.shards().to_vec() {
        let log = recover(look.log(&dir), dir.extent, &dir.segments, &reader(&dir), &mut look.pool);
        if let Ok(log) = &log {
            for p in log.state.partitions() {
                partitions.entry(p.id.topic.0).or_default().push(Partition {
                    index: p.id.index,
                    shard: dir.shard.0,
                    first_offset: p.start_offset.0,
                    end_offset: p.end_offset.0,
                });
            }
            // Only shard 0 has any.
            names.extend(log.state.catalog.topics().cloned());
        }
        shards.push(shard(&dir, log.map_err(|error| error.to_string())));
    }
    let shard_count = look.dir.superblock().shards;
    let topics = names.into_iter().map(|topic| {
        let mut known = partitions.remove(&topic.id.0).unwrap_or_default();
        known.sort_unstable_by_key(|p| p.index);
        let mut known = known.into_iter().peekable();
        // A partition without records is known to the catalog alone.
        let all = (0..topic.partitions).map(|index| {
            let empty = || {
                let id = ringbolt_wire::PartitionId::new(topic.id, index);
                let shard = crate::shard::placement::shard_of(id, shard_count).0;
                Partition { index, shard, first_offset: 0, end_offset: 0 }
            };
            known.next_if(|p| p.index == index).unwrap_or_else(empty)
        });
        Topic { partitions: all.collect(), name: topic.name, id: topic.id.0 }
    });
    let topics = topics.collect();
    Ok(Report { identity: Identity::of(&look.dir), shards, topics })
}

fn shard(dir: &ShardDir, log: Result<RecoveredLog, String>) -> Shard {
    let segments = dir.segments.iter().map(|&segment| match &log {
        Ok(log) => describe(dir, segment, log),
        Err(_) => Segment {
            segment: segment.0,
            file: segment_path(dir, segment),
            state: SegmentState::Unknown,
            position: None,
            last_commit_time_us: None,
        },
    });
    Shard {
        shard: dir.shard.0,
        path: dir.path.clone(),
        segments: segments.collect(),
        spare_files: dir.spares.len(),
        unknown_files: dir.unknown.clone(),
        error: log.as_ref().err().cloned(),
        log: log.ok().map(|log| Log {
            next_index: log.tail.next_index,
            last_commit_time_us: log.tail.last_commit_time_us,
            torn_tail: log.cut.torn || log.cut.valid_commits_beyond > 0,
            partitions: log.state.partitions().count(),
        }),
    }
}

fn describe(dir: &ShardDir, segment: SegmentSeq, log: &RecoveredLog) -> Segment {
    let sealed = log.sealed.iter().find(|s| s.segment == segment);
    let (state, position, last_commit_time_us) = match (sealed, log.open) {
        (Some(sealed), _) => (SegmentState::Sealed, None, Some(sealed.last_commit_time_us)),
        (None, Some((open, position))) if open == segment => {
            (SegmentState::Open, Some(position), Some(log.tail.last_commit_time_us))
        }
        _ => match log.unsealed.iter().find(|u| u.segment == segment) {
            Some(unsealed) => (SegmentState::Full, None, Some(unsealed.trailer.last_commit_time_us)),
            None => (SegmentState::Prepared, None, None),
        },
    };
    let last_commit_time_us = last_commit_time_us.filter(|&us| us > 0);
    Segment { segment: segment.0, file: segment_path(dir, segment), state, position, last_commit_time_us }
}

impl Report {
    /// Whether the next start would accept all of it.
    pub(super) fn is_sound(&self) -> bool {
        self.shards.iter().all(|shard| shard.error.is_none())
    }

    pub(super) fn print(&self) -> String {
        let mut out = self.identity.print();
        for shard in &self.shards {
            shard.print(&mut out);
        }
        let mut topics = table(&["topic", "id", "partitions", "records"]);
        for topic in &self.topics {
            let records: u64 = topic.partitions.iter().map(|p| p.end_offset - p.first_offset).sum();
            let row = [topic.name.clone(), topic.id.to_string(), topic.partitions.len().to_string()];
            topics.add_row(row.into_iter().chain([records.to_string()]));
        }
        let _ = writeln!(out, "\n{} topics", self.topics.len());
        if !self.topics.is_empty() {
            let _ = writeln!(out, "{topics}");
        }
        out
    }
}

impl Shard {
    fn print(&self, out: &mut String) {
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "\nshard {}: {} segments, {} spare files",
            self.shard,
            self.segments.len(),
            self.spare_files
        );
        if let Some(log) = &self.log {
            let _ = write!(out, ", {} partitions, next commit {}", log.partitions, log.next_index);
            if log.torn_tail {
                let _ = write!(out, ", ends in a commit that was not written whole (never acknowledged)");
            }
        }
        let _ = writeln!(out);
        if let Some(error) = &self.error {
            let _ = writeln!(out, "  cannot be recovered: {error}");
        }
        let mut segments = table(&["  segment", "state", "up to", "last commit"]);
        for segment in &self.segments {
            let state = serde_json::to_value(segment.state).unwrap_or_default();
            segments.add_row([
                format!("  {}", SegmentSeq(segment.segment)),
                state.as_str().unwrap_or_default().to_owned(),
                segment.position.map_or(String::new(), show_bytes),
                segment.last_commit_time_us.map_or(String::new(), show_time),
            ]);
        }
        if !self.segments.is_empty() {
            let _ = writeln!(out, "{segments}");
        }
        for unknown in &self.unknown_files {
            let _ =
                writeln!(out, "  not one of Ringbolt's files, or of a wrong length: {}", unknown.display());
        }
    }
}
