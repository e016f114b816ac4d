//! What can go wrong on one connection.

use ringbolt_wire::message::ErrorResponse;
use ringbolt_wire::{ErrorCode, FrameError, MessageError, PROTOCOL_VERSION};

/// Why a connection cannot go on. All of them mean: close it; requests without
/// answer have an unknown outcome.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum SessionError {
    /// What arrived is not a frame.
    #[error("the broker sent something that is not a frame: {0}")]
    Frame(#[from] FrameError),
    /// A frame's meta is not the message that it should be.
    #[error("the broker's answer to operation {opcode} cannot be read: {error}")]
    Message {
        /// Number of the operation.
        opcode: u8,
        /// What does not fit.
        error: MessageError,
    },
    /// A request arrived where only answers may.
    #[error("the broker sent a request (operation {opcode}); is the other side a broker?")]
    NotAResponse {
        /// Number of the operation.
        opcode: u8,
    },
    /// No request waits for this answer.
    #[error("the broker answered request {correlation:#x}, which was not asked or was answered before")]
    UnexpectedAnswer {
        /// As in the answer.
        correlation: u64,
    },
    /// The answer is for another operation than the request.
    #[error("the broker answered operation {answered} where operation {asked} was asked")]
    WrongOperation {
        /// As asked.
        asked: u8,
        /// As answered.
        answered: u8,
    },
    /// The broker chose a version that was not offered.
    #[error("the broker chose protocol version {0}, offered was {PROTOCOL_VERSION}")]
    UnsupportedVersion(u8),
    /// The broker refused the connection.
    #[error("the broker refused the connection: {0}")]
    HandshakeRefused(ErrorResponse),
}

impl SessionError {
    /// Whether the broker only said that it is leaving: connecting again may
    /// find it back, or its successor.
    pub fn is_shutting_down(&self) -> bool {
        matches!(self, SessionError::HandshakeRefused(refusal)
            if refusal.error_code() == Some(ErrorCode::ShuttingDown))
    }
}

/// Why a request was not taken. Nothing was sent.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendRefusal {
    /// The handshake is not done.
    #[error("the handshake is not done")]
    NotConnected,
    /// The session failed or the broker said goodbye.
    #[error("the connection is closing")]
    Closed,
    /// As many requests are unanswered as the broker accepts.
    #[error("{limit} requests are unanswered, the broker accepts no more")]
    NoCredit {
        /// The broker's limit.
        limit: u32,
    },
    /// The request, or its batch, is longer than the broker accepts; bytes.
    #[error("{len} bytes, the broker accepts {limit}")]
    TooLong {
        /// Of the request or batch.
        len: u64,
        /// The broker's limit.
        limit: u64,
    },
    /// `hello` is the session's own; produce, and a settle without confirmation,
    /// have methods of their own.
    #[error("this request has a method of its own")]
    WrongMethod,
}

/// A request that was not taken, with its note.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("not sent: {why}")]
pub struct NotSent<T> {
    /// As given with the request.
    pub tag: T,
    /// Why.
    pub why: SendRefusal,
}
