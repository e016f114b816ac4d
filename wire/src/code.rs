//! Error codes and the four outcomes of a request.

/// What became of a request, from its sender's point of view. Every request
/// ends in exactly one of these, under the same names in protocol and client.
/// The load generator counts durable as `acked`, both kinds of rejected as
/// `refused`, and unknown as `unknown`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// Carried out; what it wrote is on disk.
    Durable,
    /// Not carried out; the same request may succeed later.
    RejectedRetryable,
    /// Not carried out; the same request will not succeed.
    RejectedFinal,
    /// The connection was lost before the answer: carried out or not.
    Unknown,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $retry:ident, $effect:ident, $text:literal;)*) => {
        /// Why a request was refused, or a connection closed. The number is what
        /// travels; [`ErrorCode::is_retryable`] belongs to the number.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum ErrorCode {
            $($(#[$doc])* $name = $value,)*
        }

        impl ErrorCode {
            /// Every code, in order of its number.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The code with this number, if there is one.
            pub fn from_u16(value: u16) -> Option<ErrorCode> {
                match value {
                    $($value => Some(ErrorCode::$name),)*
                    _ => None,
                }
            }

            /// Whether the same request may succeed later.
            pub fn is_retryable(self) -> bool {
                match self { $(ErrorCode::$name => codes!(@is retryable $retry),)* }
            }

            /// Whether the broker says this in a goodbye, as its last word on the
            /// connection, and not as the answer to a request. `ShuttingDown`,
            /// `Overloaded` and `InvalidRequest` (of a hello) come as either.
            pub fn closes_connection(self) -> bool {
                match self { $(ErrorCode::$name => codes!(@is closes $effect),)* }
            }

            /// The code's name, as it stands in the protocol document.
            pub fn name(self) -> &'static str {
                match self { $(ErrorCode::$name => stringify!($name),)* }
            }

            /// One line for a person.
            pub fn text(self) -> &'static str {
                match self { $(ErrorCode::$name => $text,)* }
            }
        }
    };
    (@is retryable retryable) => { true };
    (@is retryable lasting) => { false };
    (@is closes closes) => { true };
    (@is closes answers) => { false };
}

codes! {
    /// The bytes are not a frame, or its fields contradict each other. Closes
    /// the connection.
    MalformedFrame = 1, lasting, closes, "the bytes are not a valid frame";
    /// A frame is longer than the limit announced in the handshake. Closes the
    /// connection.
    FrameTooLarge = 2, lasting, closes, "the frame is larger than this connection allows";
    /// No protocol version in common. Closes the connection.
    UnsupportedVersion = 3, lasting, closes, "no protocol version in common";
    /// The operation is not known to this broker.
    UnknownOpcode = 4, lasting, answers, "unknown operation";
    /// A frame's CRC does not match. Closes the connection.
    FrameCrcMismatch = 5, retryable, closes, "the frame was damaged on its way";
    /// Something other than `hello` came first. Closes the connection.
    HandshakeRequired = 6, lasting, closes, "the first frame must be hello";
    /// No `hello` in time. Closes the connection.
    HandshakeTimeout = 7, retryable, closes, "no hello within the handshake timeout";
    /// The broker has as many connections as it may. Closes the connection.
    TooManyConnections = 8, retryable, closes, "the broker's connection limit is reached";
    /// More requests in flight than the handshake allowed. Closes the
    /// connection.
    TooManyInFlight = 9, retryable, closes, "more requests in flight than this connection allows";
    /// The peer did not read its answers. Closes the connection.
    SlowReader = 10, retryable, closes, "answers were not read in time";
    /// A request's fields are out of range or contradict each other.
    InvalidRequest = 11, lasting, answers, "the request is not valid";
    /// A second `hello` on one connection.
    AlreadyGreeted = 12, lasting, answers, "hello was already exchanged";
    /// A frame was begun, and its rest came too slowly. Closes the connection.
    FrameTimeout = 13, retryable, closes, "a frame did not come to its end in time";

    /// A topic name is empty, too long, or has other characters than
    /// `A-Z a-z 0-9 . _ -`.
    InvalidTopicName = 20, lasting, answers, "not a valid topic name";
    /// A topic of that name exists.
    TopicExists = 21, lasting, answers, "the topic exists already";
    /// No such topic (it may have been deleted).
    UnknownTopic = 22, lasting, answers, "no such topic";
    /// The topic has no partition of that index.
    UnknownPartition = 23, lasting, answers, "the topic has no such partition";
    /// More topics or partitions than the broker may hold.
    TooManyPartitions = 24, lasting, answers, "the broker's limit of topics or partitions is reached";

    /// A record batch's CRC does not match: damaged on its way.
    BatchCrcMismatch = 30, retryable, answers, "the record batch was damaged on its way";
    /// A record batch's lengths or counts contradict each other.
    MalformedBatch = 31, lasting, answers, "the record batch is malformed";
    /// A record batch is larger than the broker accepts.
    BatchTooLarge = 32, lasting, answers, "the record batch is larger than the broker accepts";
    /// The batch's compression is not known to this broker.
    UnsupportedCompression = 33, lasting, answers, "the batch's compression is not supported";
    /// The batch does not continue its producer's sequence: an earlier one was
    /// not accepted. Retry in order.
    OutOfOrderSequence = 34, retryable, answers, "an earlier batch of this producer is missing";
    /// A newer incarnation of the producer has taken over.
    FencedProducer = 35, lasting, answers, "a newer incarnation of this producer has taken over";
    /// The demanded durability cannot be had from this broker.
    DurabilityUnavailable = 36, lasting, answers, "the demanded durability is not available";
    /// More producers than the broker may remember.
    TooManyProducers = 37, retryable, answers, "the broker's limit of remembered producers is reached";

    /// The offset is below the first retained one or beyond the end.
    OffsetOutOfRange = 40, lasting, answers, "the offset is out of range";
    /// What is on disk does not match its CRC; it is not served.
    CorruptData = 41, lasting, answers, "the stored data is damaged and is not served";

    /// No room for more segments. Reading goes on; producing resumes when
    /// there is room.
    DiskFull = 50, retryable, answers, "the disk is full";
    /// A bound of memory or queue was reached.
    Overloaded = 51, retryable, answers, "the broker is overloaded";
    /// The broker is stopping.
    ShuttingDown = 52, retryable, answers, "the broker is shutting down";

    /// A group of that name exists, for another topic or in another mode.
    GroupExists = 60, lasting, answers, "a group of that name exists, for another topic or in another mode";
    /// No such consumer group (it may have been deleted, with its topic as well).
    UnknownGroup = 61, lasting, answers, "no such consumer group";
    /// More consumer groups, or consumers, than the broker may hold.
    TooManyGroups = 62, lasting, answers, "the broker's limit of consumer groups or consumers is reached";
    /// The record is no longer leased to this consumer: the lease ran out, was
    /// given back, or is another consumer's now.
    LeaseLost = 63, lasting, answers, "no longer yours: the lease ran out or is another consumer's";
    /// The record was completed before: acknowledged, dead-lettered or expired.
    AlreadyCompleted = 64, lasting, answers, "the record was completed before";
    /// The record was not delivered yet, to anybody.
    NotDelivered = 65, lasting, answers, "the record was not delivered";
    /// No consumer of that number is attached to the group.
    UnknownConsumer = 66, lasting, answers, "no such consumer is attached to the group";
    /// The consumer has attached anew, over another connection or with another
    /// request. Ends the `Attach` before it.
    ConsumerReplaced = 67, lasting, answers, "the consumer has attached anew elsewhere";
    /// The topic is a group's dead-letter topic.
    TopicInUse = 68, lasting, answers, "the topic is the dead-letter topic of a consumer group";
}

impl ErrorCode {
    /// The outcome of a request that was answered with this code.
    pub fn outcome(self) -> Outcome {
        if self.is_retryable() { Outcome::RejectedRetryable } else { Outcome::RejectedFinal }
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.text(), self.name())
    }
}
