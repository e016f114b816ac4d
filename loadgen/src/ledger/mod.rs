//! The ledger: an append-only file of what a run sent, what was acknowledged at
//! which offset, what was refused, and what stayed unknown.
//!
//! A run can be judged from it after a crash of the broker, or of the load
//! generator itself: every block carries a CRC, and a block that was being
//! written when the process was killed is dropped by the reader and cut off
//! when the file is appended to again.
//!
//! Knows nothing of sockets or of what a broker holds; [`crate::judge`] draws
//! the conclusions.

mod format;
mod reader;
mod writer;

pub use reader::{LedgerReader, Tail};
pub use writer::{LedgerSink, LedgerWriter};

use std::io;
use std::path::PathBuf;

use ringbolt_wire::{Epoch, PartitionId, ProducerId};
use serde::{Deserialize, Serialize};

/// Stands for an offset that the broker no longer knew.
pub const NO_OFFSET: u64 = u64::MAX;

/// One thing that happened in a run. `first` and `count` name the sequences
/// `first..first + count` of a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// A run begins; the streams that follow are its own.
    RunStarted(Box<RunInfo>),
    /// A producer has opened a partition. Streams are numbered from 0 in the
    /// order of these entries.
    StreamOpened(StreamInfo),
    /// Handed to the kernel, or about to be.
    Sent {
        /// Which stream.
        stream: u32,
        /// First sequence.
        first: u64,
        /// Number of records.
        count: u64,
    },
    /// Acknowledged as durable.
    Acked {
        /// Which stream.
        stream: u32,
        /// First sequence.
        first: u64,
        /// Number of records.
        count: u64,
        /// Offset of the first, the others following densely; or [`NO_OFFSET`].
        offset: u64,
    },
    /// Refused, for good or until its producer gave up, and sure not to have been
    /// carried out.
    Refused {
        /// Which stream.
        stream: u32,
        /// First sequence.
        first: u64,
        /// Number of records.
        count: u64,
        /// Number of the error code.
        code: u16,
    },
    /// Given up without an answer: carried out or not.
    Unknown {
        /// Which stream.
        stream: u32,
        /// First sequence.
        first: u64,
        /// Number of records.
        count: u64,
    },
    /// The run ended in an orderly way: nothing is missing above.
    RunEnded,
}

/// A run's parameters.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RunInfo {
    /// Random number that every value of the run carries.
    pub run: u64,
    /// When it began, µs since 1970 UTC.
    pub started_us: u64,
    /// The broker, as HOST:PORT.
    pub addr: String,
    /// The topic.
    pub topic: String,
    /// The command line.
    pub command: String,
}

/// A producer on a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StreamInfo {
    /// Index of the producer within the run.
    pub index: u32,
    /// Where it produces.
    pub partition: PartitionId,
    /// Its identity, from the broker.
    pub producer: ProducerId,
    /// Its epoch, from the broker.
    pub epoch: Epoch,
    /// Its first sequence in this run.
    pub first_sequence: u64,
}

/// What can go wrong with a ledger.
#[derive(thiserror::Error, Debug)]
pub enum LedgerError {
    /// The file system refused.
    #[error("ledger {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Bytes that were written whole are not what was written.
    #[error("ledger {path} is damaged at byte {at}: {what}; it cannot judge anything")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Byte of the file at which the damaged block starts.
        at: u64,
        /// What does not fit.
        what: &'static str,
    },
    /// The writing thread has stopped; its own error says why.
    #[error("the ledger's writer has stopped")]
    WriterGone,
}

impl Entry {
    /// Lets this entry swallow `next` where the two are one range.
    #[inline]
    fn absorb(&mut self, next: &Entry) -> bool {
        match (self, next) {
            (
                Entry::Acked { stream, first, count, offset },
                Entry::Acked { stream: s, first: f, count: c, offset: o },
            ) if stream == s && *first + *count == *f => {
                let follows = if *offset == NO_OFFSET { *o == NO_OFFSET } else { *offset + *count == *o };
                if follows {
                    *count += c;
                }
                follows
            }
            (Entry::Sent { stream, first, count }, Entry::Sent { stream: s, first: f, count: c })
                if stream == s && *first + *count == *f =>
            {
                *count += c;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
