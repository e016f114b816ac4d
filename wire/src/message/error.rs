//! What can be wrong with a message, and how a refusal is said.

use crate::code::ErrorCode;

/// Why a frame's meta is not the message that its opcode announces.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum MessageError {
    /// Fewer bytes than the fields need.
    #[error("message ends early: {wanted} more bytes wanted, {left} left")]
    Truncated {
        /// Bytes that the next field needs.
        wanted: usize,
        /// Bytes that are left.
        left: usize,
    },
    /// Bytes after the last field.
    #[error("{0} bytes follow the message")]
    TrailingBytes(usize),
    /// A string is not UTF-8.
    #[error("a string is not UTF-8")]
    NotUtf8,
    /// A field has a value outside its range.
    #[error("{field} is {value}, which is out of range")]
    OutOfRange {
        /// The field's name in the protocol document.
        field: &'static str,
        /// As sent.
        value: u64,
    },
    /// The operation number is not known.
    #[error("unknown operation {0}")]
    UnknownOpcode(u8),
    /// A payload where the operation has none, or none where it needs one.
    #[error("the payload does not belong to this operation")]
    UnexpectedPayload,
}

impl MessageError {
    /// The code that the peer is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            MessageError::UnknownOpcode(_) => ErrorCode::UnknownOpcode,
            _ => ErrorCode::InvalidRequest,
        }
    }
}

/// A refusal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ErrorResponse {
    /// Number of an [`ErrorCode`], never 0; a newer broker may send one that is
    /// not known here.
    pub code: u16,
    /// Wait this long before a retry, in milliseconds; 0 says nothing.
    pub retry_after_ms: u32,
    /// A number that belongs to the code: the expected sequence for
    /// `OutOfOrderSequence`, the current epoch for `FencedProducer`, the limit
    /// for the limits of a connection, the broker's version for
    /// `UnsupportedVersion`; else 0.
    pub detail: u64,
    /// For a person.
    pub text: String,
}

impl ErrorResponse {
    /// A refusal with this code and text.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        ErrorResponse { code: code as u16, retry_after_ms: 0, detail: 0, text: text.into() }
    }

    /// The same with its number.
    pub fn with_detail(mut self, detail: u64) -> Self {
        self.detail = detail;
        self
    }

    /// The code, if it is known here.
    pub fn error_code(&self) -> Option<ErrorCode> {
        ErrorCode::from_u16(self.code)
    }

    /// Whether the same request may succeed later. Unknown codes say no.
    pub fn is_retryable(&self) -> bool {
        self.error_code().is_some_and(ErrorCode::is_retryable)
    }
}

impl std::fmt::Display for ErrorResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.error_code() {
            Some(code) if self.text.is_empty() => code.fmt(f),
            Some(code) => write!(f, "{code}: {}", self.text),
            None => write!(f, "error {}: {}", self.code, self.text),
        }
    }
}
