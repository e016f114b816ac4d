//! What became of a batch: one of the four outcomes, with its particulars.

use bytes::Bytes;
use ringbolt_wire::message::ErrorResponse;
use ringbolt_wire::{Offset, Outcome};

/// The batch is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Durable {
    /// Offset of the batch's first record, the others follow densely; `None`
    /// when only the fact of its durability could be found out, after a lost
    /// connection.
    pub base_offset: Option<Offset>,
    /// When the broker took it into a commit, µs since 1970 UTC; 0 if it was
    /// found out by a retry.
    pub commit_time_us: u64,
    /// On how many disks it is; 1 is `local`.
    pub copies: u8,
    /// It had been written by an attempt whose answer was lost; a retry found
    /// it there.
    pub duplicate: bool,
}

/// The batch is not known to be durable.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// Refused, and the same request will not succeed: nothing was written.
    #[error("refused, and not written: {0}")]
    Refused(ErrorResponse),
    /// Not written before its deadline; it may be sent again.
    #[error("not written before the deadline{}; it may be sent again", because(last))]
    Expired {
        /// The last refusal, if there was one; without it, it was never sent.
        last: Option<Box<ErrorResponse>>,
    },
    /// Not written when the producer was closed; it may be sent again.
    #[error("not written before the producer was closed; it may be sent again")]
    Closed,
    /// Sent, and no answer came that settles it: written or not. Sending it
    /// again may make a duplicate; reading the partition tells.
    #[error("sent, but the answer was lost{}; it may or may not have been written", because(last))]
    Unknown {
        /// The last refusal, of this or of a later attempt, if there was one.
        last: Option<Box<ErrorResponse>>,
    },
}

fn because(last: &Option<Box<ErrorResponse>>) -> String {
    last.as_ref().map(|refusal| format!(" (last refusal: {refusal})")).unwrap_or_default()
}

impl Failure {
    /// Which of the four outcomes; never [`Outcome::Durable`].
    pub fn outcome(&self) -> Outcome {
        match self {
            Failure::Refused(_) => Outcome::RejectedFinal,
            Failure::Expired { .. } | Failure::Closed => Outcome::RejectedRetryable,
            Failure::Unknown { .. } => Outcome::Unknown,
        }
    }
}

/// A batch that has ended.
#[derive(Debug)]
pub struct Finished<T> {
    /// As given to [`ProducerState::push`](super::ProducerState::push).
    pub tag: T,
    /// Records in the batch.
    pub count: u32,
    /// The batch as it was sent last, so that its memory can serve again;
    /// `None` if it was never sent.
    pub batch: Option<Bytes>,
    /// What became of it.
    pub verdict: Result<Durable, Failure>,
}
