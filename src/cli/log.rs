//! `ringbolt log`: looks at a stopped broker's data directory, and changes
//! nothing.

mod inspect;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::connection::print;
use crate::io::datadir::{DataDir, DataDirError, ShardDir, segment_name};
use crate::io::disk::{FolderReader, readable_mode};
use crate::io::pool::{Pool, PoolError};
use crate::limits::CHUNK_LEN;
use crate::log::SegmentSeq;
use crate::log::recovery::LogIdentity;

/// Arguments of `ringbolt log`.
#[derive(clap::Args)]
pub struct LogArgs {
    #[command(subcommand)]
    command: LogCommand,
}

#[derive(Subcommand)]
enum LogCommand {
    /// Show what a data directory holds: shards, segments, topics. Reads segment heads and the open end
    Inspect(DirArgs),
    /// Read every byte and say what is damaged; the exit code is 1 if acknowledged records are
    Verify(DirArgs),
}

#[derive(clap::Args)]
struct DirArgs {
    /// Data directory of a broker that does not run
    dir: PathBuf,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Why a data directory could not be looked at.
#[derive(thiserror::Error, Debug)]
pub enum LogError {
    /// It cannot be opened.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// No memory to read into.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// Runs the command. The exit code is 1 if the directory cannot be read, or if
/// what was acknowledged is damaged.
pub fn run(args: LogArgs) -> ExitCode {
    let done = match args.command {
        LogCommand::Inspect(args) => inspect::inspect(&args.dir)
            .map(|report| (show(&report, args.json, inspect::Report::print), report.is_sound())),
        LogCommand::Verify(args) => verify::verify(&args.dir)
            .map(|report| (show(&report, args.json, verify::Report::print), report.is_sound())),
    };
    match done {
        Ok((text, sound)) => match print(&text) {
            Ok(()) if sound => ExitCode::SUCCESS,
            Ok(()) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("ringbolt: {error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("ringbolt: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show<R: Serialize>(report: &R, json: bool, print: impl FnOnce(&R) -> String) -> String {
    if json {
        let json = serde_json::to_string_pretty(report).expect("strings and numbers are always JSON");
        json + "\n"
    } else {
        print(report)
    }
}

/// What every look at a data directory begins with.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
struct Identity {
    path: PathBuf,
    /// Version of the format on disk.
    format: u32,
    broker_id: String,
    created_us: u64,
    boot_count: u64,
    segment_len: u64,
}

impl Identity {
    fn of(dir: &DataDir) -> Identity {
        let superblock = dir.superblock();
        Identity {
            path: dir.path().to_owned(),
            format: crate::log::superblock::FORMAT,
            broker_id: uuid::Uuid::from_bytes(superblock.broker_id).to_string(),
            created_us: superblock.created_us,
            boot_count: superblock.boot_count,
            segment_len: superblock.segment_len,
        }
    }

    fn print(&self) -> String {
        format!(
            "{}: broker {}, format {}, made {}, started {} times, segments of {}\n",
            self.path.display(),
            self.broker_id,
            self.format,
            show_time(self.created_us),
            self.boot_count,
            show_bytes(self.segment_len)
        )
    }
}

/// A data directory, and memory to read it into.
struct Look {
    dir: DataDir,
    pool: Pool,
}

impl Look {
    fn open(path: &Path) -> Result<Look, LogError> {
        Ok(Look { dir: DataDir::open_read_only(path)?, pool: Pool::new(4 * CHUNK_LEN)? })
    }

    fn log(&self, shard: &ShardDir) -> LogIdentity {
        let superblock = self.dir.superblock();
        LogIdentity {
            log_id: superblock.log_id(shard.shard),
            shard: shard.shard,
            segment_len: superblock.segment_len,
            // As if it were started now.
            term: superblock.boot_count + 1,
        }
    }
}

fn reader(shard: &ShardDir) -> FolderReader {
    let mode = readable_mode(&shard.path, shard.segments.first().copied());
    FolderReader::new(&shard.path, mode)
}

fn segment_path(shard: &ShardDir, segment: SegmentSeq) -> PathBuf {
    shard.path.join(segment_name(segment))
}

fn show_time(us: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_micros(us);
    humantime::format_rfc3339_millis(time).to_string()
}

fn show_bytes(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

fn table(head: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(head);
    table
}
