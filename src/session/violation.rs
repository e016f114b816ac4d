//! What a peer can do that ends its connection.

use ringbolt_wire::frame::FrameError;
use ringbolt_wire::message::{ErrorResponse, MessageError};
use ringbolt_wire::{ErrorCode, PROTOCOL_VERSION};

/// Why the broker ends a connection: a value, sent to the peer as the goodbye
/// that closes the connection.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum Violation {
    /// The bytes are no frame, or damaged.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A client sent an answer.
    #[error("a client sends requests, this frame is a response")]
    NotARequest,
    /// Something else than a hello came first.
    #[error("operation {0} before hello")]
    HandshakeRequired(u8),
    /// The hello is not one.
    #[error("hello: {0}")]
    BadHello(MessageError),
    /// No version in common.
    #[error("the client speaks versions {min} to {max}, this broker {PROTOCOL_VERSION}")]
    UnsupportedVersion {
        /// Lowest version of the client.
        min: u8,
        /// Highest version of the client.
        max: u8,
    },
    /// No hello in time.
    #[error("no hello within {0} ms")]
    HandshakeTimeout(u64),
    /// More connections than the broker may have.
    #[error("the limit is {0} connections")]
    TooManyConnections(usize),
    /// More requests in flight than announced.
    #[error("the limit is {0} requests in flight")]
    TooManyInFlight(u32),
    /// A frame was begun, and its rest does not come.
    #[error(
        "{received} bytes of a frame in {time_ms} ms, less than {} a second",
        crate::limits::MIN_FRAME_RATE
    )]
    FrameTimeout {
        /// Bytes that came.
        received: u64,
        /// Within this time.
        time_ms: u64,
    },
    /// The broker's memory for half-received frames is used up, and this
    /// connection's is among the oldest, or grew when those could not make room.
    #[error("no memory left for frames that do not end")]
    Overloaded,
    /// The broker stops.
    #[error("the broker is shutting down")]
    ShuttingDown,
}

impl Violation {
    /// The code that the peer is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            Violation::Frame(e) => e.code(),
            Violation::NotARequest => ErrorCode::MalformedFrame,
            Violation::HandshakeRequired(_) => ErrorCode::HandshakeRequired,
            Violation::BadHello(e) => e.code(),
            Violation::UnsupportedVersion { .. } => ErrorCode::UnsupportedVersion,
            Violation::HandshakeTimeout(_) => ErrorCode::HandshakeTimeout,
            Violation::TooManyConnections(_) => ErrorCode::TooManyConnections,
            Violation::TooManyInFlight(_) => ErrorCode::TooManyInFlight,
            Violation::FrameTimeout { .. } => ErrorCode::FrameTimeout,
            Violation::Overloaded => ErrorCode::Overloaded,
            Violation::ShuttingDown => ErrorCode::ShuttingDown,
        }
    }

    /// The goodbye's content.
    pub fn response(&self) -> ErrorResponse {
        let detail = match self {
            Violation::Frame(FrameError::TooLarge { limit, .. }) => *limit,
            Violation::TooManyConnections(limit) => *limit as u64,
            Violation::FrameTimeout { .. } => crate::limits::MIN_FRAME_RATE,
            Violation::TooManyInFlight(limit) => u64::from(*limit),
            Violation::UnsupportedVersion { .. } => u64::from(PROTOCOL_VERSION),
            _ => 0,
        };
        ErrorResponse::new(self.code(), self.to_string()).with_detail(detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the protocol document says of each code.
    #[test]
    fn a_goodbye_says_only_what_is_documented_to_close() {
        let either = [ErrorCode::ShuttingDown, ErrorCode::Overloaded, ErrorCode::InvalidRequest];
        for violation in [
            Violation::Frame(FrameError::BadMagic([0; 4])),
            Violation::Frame(FrameError::BadVersion(2)),
            Violation::Frame(FrameError::TooLarge { len: 2, limit: 1 }),
            Violation::Frame(FrameError::CrcMismatch { found: 1, computed: 2 }),
            Violation::NotARequest,
            Violation::HandshakeRequired(2),
            Violation::BadHello(MessageError::NotUtf8),
            Violation::UnsupportedVersion { min: 2, max: 3 },
            Violation::HandshakeTimeout(1),
            Violation::TooManyConnections(1),
            Violation::TooManyInFlight(1),
            Violation::Overloaded,
            Violation::ShuttingDown,
        ] {
            let code = violation.code();
            assert!(code.closes_connection() || either.contains(&code), "{code}");
        }
    }
}
