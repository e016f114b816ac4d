//! What calls of the client can end in, and what to do about it.

use std::sync::Arc;
use std::time::Duration;

use ringbolt_wire::Outcome;
use ringbolt_wire::message::{ErrorResponse, GroupMode};

use crate::producer_state::Failure;
use crate::session::SessionError;

/// Why a call failed.
#[derive(thiserror::Error, Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// No address could be connected to. Nothing was sent; try again when the
    /// broker is up, or correct the address.
    #[error("cannot connect to {addrs}: {source}")]
    Connect {
        /// The addresses that were tried.
        addrs: String,
        /// What the last one said.
        source: Arc<std::io::Error>,
    },
    /// The other side does not speak this protocol as it should. Is the address
    /// that of a Ringbolt broker?
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The connection was lost while the answer was awaited. A request that
    /// changes something may or may not have been carried out.
    #[error("the connection was lost before the answer; it is not known whether the request was carried out")]
    ConnectionLost,
    /// No answer in time. A request that changes something may or may not have
    /// been carried out.
    #[error("no answer within {0:?}; it is not known whether the request was carried out")]
    Timeout(Duration),
    /// The broker refused the request;
    /// [`ErrorResponse::is_retryable`] tells whether it may succeed later.
    #[error("the broker refused: {0}")]
    Refused(ErrorResponse),
    /// The topic has no partition of this index.
    #[error("topic {topic} has {partitions} partitions, there is no partition {partition}")]
    NoSuchPartition {
        /// The topic.
        topic: String,
        /// How many partitions it has.
        partitions: u32,
        /// The index asked for.
        partition: u32,
    },
    /// A setting is out of range.
    #[error("{0}")]
    InvalidSetting(String),
    /// The offset to read from is not there. Continue from `start` (what is
    /// below was removed) or `end`, or set
    /// [`ReaderBuilder::skip_removed`](crate::ReaderBuilder::skip_removed).
    #[error("offset {requested} is out of range: partition {partition} starts at {start} and ends at {end}")]
    OffsetOutOfRange {
        /// Index of the partition.
        partition: u32,
        /// The offset asked for.
        requested: u64,
        /// First offset that is there.
        start: u64,
        /// Offset after the last.
        end: u64,
    },
    /// Fetched records do not match their checksums. The reader stays where it
    /// was and fetches them again when asked.
    #[error("records from partition {partition}, offset {offset} on arrived damaged: {text}")]
    Damaged {
        /// Index of the partition.
        partition: u32,
        /// Offset of the fetch.
        offset: u64,
        /// What did not match.
        text: String,
    },
    /// Every partition of the reader has ended in an error that was reported
    /// before.
    #[error("the reader has no partition left to read from")]
    ReaderEnded,
    /// The consumer was closed.
    #[error("the consumer is closed")]
    ConsumerClosed,
    /// A consumer has attached under the same id elsewhere, or this one was detached
    /// from there: what this one had is no longer its own.
    #[error("another consumer has attached under this consumer's id")]
    ConsumerReplaced,
    /// A record was not settled.
    #[error(transparent)]
    Settle(#[from] SettleError),
    /// [`Consumer::process_with`](crate::Consumer::process_with) needs an exclusive
    /// group: in another, records of a partition are processed side by side.
    #[error("group {group} is {mode}; only what an exclusive group consumes can be processed once")]
    NotExclusive {
        /// The group.
        group: String,
        /// Its mode.
        mode: GroupMode,
    },
    /// [`Consumer::process_with`](crate::Consumer::process_with) cannot tell which
    /// records of an input partition were processed: it would have to guess.
    #[error("it is not known how far partition {partition} was processed: {text}")]
    ProgressUnknown {
        /// Index of the input partition.
        partition: u32,
        /// What was found instead.
        text: String,
    },
    /// What was made of a record cannot be produced.
    #[error("what was made of the record at offset {offset} of partition {partition}: {error}")]
    Output {
        /// Index of the input partition.
        partition: u32,
        /// Offset of the input.
        offset: u64,
        /// Why not.
        error: ProduceError,
    },
}

/// Why a delivered record was not settled as asked.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SettleError {
    /// The record is no longer this consumer's: its lease ran out, or was given back,
    /// and another delivery of it counts. Nothing was changed.
    #[error("no longer yours: the record's lease ran out or was given back; it is delivered again")]
    LeaseLost,
    /// The record was completed before: acknowledged, dead-lettered or expired.
    /// (Acknowledging it once more is no error.)
    #[error("the record was completed before")]
    AlreadyCompleted,
    /// The broker refused, for another reason. Nothing was changed.
    #[error("the broker refused: {0}")]
    Refused(ErrorResponse),
    /// The consumer was closed before this was sent: the record was given back.
    #[error("the consumer is closed; the record was given back")]
    Closed,
    /// The answer was lost. Either it was done, or the record's lease ended in
    /// another way; it is delivered again unless it was completed.
    #[error("the answer was lost; it is not known whether the record was settled")]
    Unknown,
}

impl SettleError {
    /// Which of the four outcomes; never [`Outcome::Durable`].
    pub fn outcome(&self) -> Outcome {
        match self {
            SettleError::Unknown => Outcome::Unknown,
            SettleError::Refused(refusal) if refusal.is_retryable() => Outcome::RejectedRetryable,
            _ => Outcome::RejectedFinal,
        }
    }
}

impl Error {
    /// What is known of the request that ended so.
    pub fn outcome(&self) -> Outcome {
        match self {
            Error::Connect { .. } | Error::Damaged { .. } => Outcome::RejectedRetryable,
            Error::Refused(refusal) if refusal.is_retryable() => Outcome::RejectedRetryable,
            Error::Settle(error) => error.outcome(),
            Error::Output { error, .. } => error.outcome(),
            Error::Session(_) | Error::ConnectionLost | Error::Timeout(_) => Outcome::Unknown,
            _ => Outcome::RejectedFinal,
        }
    }
}

/// Why a record is not known to be durable.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ProduceError {
    /// The record alone is longer than the largest batch. Send it in parts.
    #[error("a record of {len} bytes, at most {limit} are possible")]
    TooLarge {
        /// Bytes of the record in a batch.
        len: usize,
        /// Most bytes that fit.
        limit: usize,
    },
    /// The record has more or longer headers than the protocol allows.
    #[error("{0}")]
    InvalidHeaders(&'static str),
    /// The topic has no partition of this index.
    #[error("the topic has {partitions} partitions, there is no partition {partition}")]
    NoSuchPartition {
        /// How many partitions it has.
        partitions: u32,
        /// The index asked for.
        partition: u32,
    },
    /// The producer was made for one partition, and this is another.
    #[error("this producer writes to partition {fixed} only, not to {partition}")]
    OtherPartition {
        /// The one it was made for.
        fixed: u32,
        /// The one asked for.
        partition: u32,
    },
    /// The producer was closed before the record was taken.
    #[error("the producer is closed; the record was not sent")]
    Closed,
    /// What became of its batch.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl ProduceError {
    /// Which of the four outcomes; never [`Outcome::Durable`].
    ///
    /// - [`Outcome::RejectedRetryable`]: not written, and the record may be
    ///   sent again;
    /// - [`Outcome::RejectedFinal`]: not written, and it never will be;
    /// - [`Outcome::Unknown`]: written or not. Sending it again may make a
    ///   duplicate.
    pub fn outcome(&self) -> Outcome {
        match self {
            ProduceError::Closed => Outcome::RejectedRetryable,
            ProduceError::Failed(failure) => failure.outcome(),
            _ => Outcome::RejectedFinal,
        }
    }
}
