//! Every byte of a data directory, checked.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Identity, LogError, Look, reader, segment_path, show_bytes};
use crate::io::datadir::ShardDir;
use crate::log::SegmentSeq;
use crate::log::verify::{LogReport, verify as verify_log};

/// What there is, and what is wrong with it.
#[derive(Serialize, Debug)]
pub(super) struct Report {
    #[serde(flatten)]
    identity: Identity,
    /// Whether acknowledged records are damaged, missing or unreadable.
    damaged: bool,
    shards: Vec<Shard>,
}

#[derive(Serialize, Debug)]
struct Shard {
    shard: u16,
    segments: usize,
    commits: u64,
    batches: u64,
    records: u64,
    batch_bytes: u64,
    /// Whole commits behind one that was not written whole. None of them was
    /// acknowledged; the next start cuts them.
    cut_commits: u64,
    /// Records in those.
    cut_records: u64,
    /// Commits that an earlier start has cut: no part of the log, and overwritten
    /// as it grows.
    leftover_commits: u64,
    damaged: bool,
    faults: Vec<Fault>,
}

#[derive(Serialize, Debug)]
struct Fault {
    file: PathBuf,
    /// Bytes from the file's start; absent if it concerns the whole file.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<u64>,
    /// Index of the commit that should be there.
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<u64>,
    what: String,
    /// Whether acknowledged records are concerned; otherwise it is the end of
    /// writes that a crash interrupted, or something that can be made anew.
    acknowledged: bool,
}

/// Reads the whole directory.
pub(super) fn verify(path: &Path) -> Result<Report, LogError> {
    let mut look = Look::open(path)?;
    let mut shards = Vec::new();
    for dir in look.dir.shards().to_vec() {
        let log = verify_log(
            look.log(&dir),
            dir.extent,
            &dir.segments,
            &reader(&dir),
            &mut look.pool,
            |_, _, _| {},
        );
        shards.push(match log {
            Ok(log) => shard(&dir, &log),
            Err(error) => unreadable(&dir, error.to_string()),
        });
    }
    let damaged = shards.iter().any(|shard| shard.damaged);
    Ok(Report { identity: Identity::of(&look.dir), damaged, shards })
}

fn unreadable(dir: &ShardDir, what: String) -> Shard {
    let fault = Fault { file: dir.path.clone(), position: None, commit: None, what, acknowledged: true };
    let segments = dir.segments.len();
    Shard {
        shard: dir.shard.0,
        segments,
        commits: 0,
        batches: 0,
        records: 0,
        batch_bytes: 0,
        cut_commits: 0,
        cut_records: 0,
        leftover_commits: 0,
        damaged: true,
        faults: vec![fault],
    }
}

fn shard(dir: &ShardDir, log: &LogReport) -> Shard {
    let sum = |of: fn(&crate::log::verify::SegmentReport) -> u64| log.segments.iter().map(of).sum();
    let missing = log.missing.iter().map(|segments| Fault {
        file: segment_path(dir, *segments.start()),
        position: None,
        commit: None,
        what: match segments.end().0 - segments.start().0 {
            0 => "the file is missing".to_owned(),
            more => format!("the file is missing, and {more} after it"),
        },
        acknowledged: true,
    });
    let heads = log.segments.iter().filter_map(|segment| head_fault(dir, log, segment));
    let faults = log.faults.iter().map(|fault| Fault {
        file: segment_path(dir, fault.segment),
        position: Some(fault.position),
        commit: Some(fault.index),
        what: fault.damage.to_string(),
        acknowledged: fault.acknowledged,
    });
    let faults: Vec<_> = missing.chain(heads).chain(faults).collect();
    Shard {
        shard: dir.shard.0,
        segments: log.segments.len(),
        commits: sum(|s| s.log.commits),
        batches: sum(|s| s.log.batches),
        records: sum(|s| s.log.records),
        batch_bytes: sum(|s| s.log.batch_bytes),
        cut_commits: sum(|s| s.beyond.commits),
        cut_records: sum(|s| s.beyond.records),
        leftover_commits: sum(|s| s.leftovers),
        damaged: log.is_damaged() || faults.iter().any(|fault| fault.acknowledged),
        faults,
    }
}

/// A segment without a header is one that was made ready and not used, unless
/// it holds commits, or later segments do.
fn head_fault(dir: &ShardDir, log: &LogReport, segment: &crate::log::verify::SegmentReport) -> Option<Fault> {
    let head = segment.head.as_ref()?;
    let SegmentSeq(this) = segment.segment;
    let used = log.segments.iter().any(|s| s.segment.0 >= this && s.log.commits > 0);
    used.then(|| Fault {
        file: segment_path(dir, segment.segment),
        position: Some(0),
        commit: None,
        what: head.to_string(),
        acknowledged: true,
    })
}

impl Report {
    /// Whether everything that was acknowledged is there.
    pub(super) fn is_sound(&self) -> bool {
        !self.damaged
    }

    pub(super) fn print(&self) -> String {
        let mut out = self.identity.print();
        for shard in &self.shards {
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "shard {}: {} segments, {} commits, {} batches, {} records, {}",
                shard.shard,
                shard.segments,
                shard.commits,
                shard.batches,
                shard.records,
                show_bytes(shard.batch_bytes)
            );
            for fault in &shard.faults {
                fault.print(&mut out);
            }
            if shard.cut_commits > 0 {
                let _ = writeln!(
                    out,
                    "  not acknowledged: {} commits with {} records behind the first place above; \
                     the next start cuts them",
                    shard.cut_commits, shard.cut_records
                );
            }
            if shard.leftover_commits > 0 {
                let _ = writeln!(
                    out,
                    "  left over: {} commits that an earlier start has cut; no part of the log, \
                     and not counted above",
                    shard.leftover_commits
                );
            }
        }
        let verdict = match (self.damaged, self.shards.iter().all(|shard| shard.faults.is_empty())) {
            (true, _) => "DAMAGED: acknowledged records are damaged or missing",
            (false, true) => "sound",
            (false, false) => "sound: nothing that was acknowledged is damaged",
        };
        let _ = writeln!(out, "{verdict}");
        out
    }
}

impl Fault {
    fn print(&self, out: &mut String) {
        let kind = if self.acknowledged { "damaged" } else { "not acknowledged" };
        let _ = write!(out, "  {kind}: {}", self.file.display());
        if let Some(position) = self.position {
            let _ = write!(out, ", byte {position}");
        }
        if let Some(commit) = self.commit {
            let _ = write!(out, ", commit {commit}");
        }
        let _ = writeln!(out, ": {}", self.what);
    }
}
