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
        commits: sum(|s| s.commits),
        batches: sum(|s| s.batches),
        records: sum(|s| s.records),
        batch_bytes: sum(|s| s.batch_bytes),
        damaged: log.is_damaged() || faults.iter().any(|fault| fault.acknowledged),
        faults,
    }
}

/// A segment without a header is one that was made ready and not used, unless
/// it holds commits, or later segments do.
fn head_fault(dir: &ShardDir, log: &LogReport, segment: &crate::log::verify::SegmentReport) -> Option<Fault> {
    let head = segment.head.as_ref()?;
    let SegmentSeq(this) = segment.segment;
    let used = log.segments.iter().any(|s| s.segment.0 >= this && s.commits > 0);
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
