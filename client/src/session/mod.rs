//! One connection to a broker as a pure state machine: bytes in, bytes out,
//! events out. It knows the handshake, the frames and which request an answer
//! belongs to; it does not know sockets, clocks, tasks or retries.
//!
//! A driver does three things, in any order and as often as it likes:
//!
//! 1. sends what [`Session::poll_transmit`] hands out, in that order;
//! 2. gives what it received to [`Session::receive`] (its own `BytesMut`, so
//!    that fetched records are not copied) or [`Session::receive_slice`] (a
//!    borrowed ring buffer), until the answer is `None`;
//! 3. makes requests, as long as [`Session::credit`] is above zero.
//!
//! `T` is the driver's own note about a request: it is kept next to the request
//! and handed back with the answer, so that no driver needs a table by
//! correlation. Nothing is allocated per produce request or acknowledgement
//! once the buffers have grown to the working size.

mod error;
mod in_flight;
mod outbox;
mod receive;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use ringbolt_wire::frame::Opcode;
use ringbolt_wire::message::{
    Delivery, ErrorResponse, Hello, HelloAck, MAX_CLIENT_NAME_LEN, PRODUCE_HEAD_LEN, ProduceAck, Settle,
    produce_head,
};
use ringbolt_wire::{PROTOCOL_VERSION, PartitionId, Request, Response};

pub use error::{NotSent, SendRefusal, SessionError};
pub use in_flight::Correlation;
use in_flight::InFlight;
use outbox::Outbox;
pub use outbox::Transmit;

/// What a session needs to know before it starts.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Who connects, for the broker's logs; at most 255 bytes, cut if longer.
    pub client_name: String,
    /// The partition that the connection will mostly use: the broker serves
    /// the connection from the core that owns it.
    pub affinity: Option<PartitionId>,
    /// Longest frame in bytes that is accepted from the broker. It has to hold
    /// the largest fetch asked for plus one record batch.
    pub max_receive_len: u32,
    /// Batches of at least this many bytes, given as [`Bytes`], are handed out
    /// as they are instead of being copied behind their head.
    pub split_from: usize,
}

impl Default for SessionConfig {
    fn default() -> Self {
        SessionConfig {
            client_name: concat!("ringbolt-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            affinity: None,
            max_receive_len: 128 << 20,
            // Below this a copy costs less than one more piece of a vectored send.
            split_from: 8 << 10,
        }
    }
}

/// What [`Session::receive`] found.
#[derive(Debug)]
pub enum SessionEvent<T> {
    /// The handshake is done; requests may be made.
    Connected(HelloAck),
    /// A batch is durable.
    Produced {
        /// As given to [`Session::produce`].
        tag: T,
        /// Where it is.
        ack: ProduceAck,
    },
    /// Any other answer, refusals ([`Response::Error`]) included.
    Answer {
        /// As given with the request.
        tag: T,
        /// The answer; it belongs to the request's operation.
        response: Response,
        /// The record batches of a fetch or receive answer; else empty.
        payload: Bytes,
    },
    /// Records for an attached consumer. Its attach goes on: the final answer comes
    /// as [`SessionEvent::Answer`].
    Delivered {
        /// Which attach, see [`Session::tag`].
        attach: Correlation,
        /// What they are.
        delivery: Delivery,
        /// The record batches.
        payload: Bytes,
    },
    /// The broker is about to close the connection, for this reason. Requests
    /// are refused from here on; answers may still come.
    Goodbye(ErrorResponse),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Greeting,
    Connected,
    Leaving,
}

/// One connection's protocol state. See the [module](self) for its use.
#[derive(Debug)]
pub struct Session<T> {
    state: State,
    limits: Option<HelloAck>,
    max_receive_len: u32,
    in_flight: InFlight<T>,
    out: Outbox,
    /// Start of a frame whose rest has not arrived; only `receive_slice` uses it.
    partial: Vec<u8>,
    /// The first error; every later call repeats it.
    failed: Option<SessionError>,
}

impl<T> Session<T> {
    /// A session whose `hello` is waiting in [`poll_transmit`](Self::poll_transmit).
    pub fn new(config: SessionConfig) -> Self {
        let mut in_flight = InFlight::default();
        let mut out = Outbox::new(config.split_from);
        let correlation = in_flight.insert(Opcode::Hello, None);
        let mut client_name = config.client_name;
        let mut end = client_name.len().min(MAX_CLIENT_NAME_LEN);
        while !client_name.is_char_boundary(end) {
            end -= 1;
        }
        client_name.truncate(end);
        let hello = Hello {
            min_version: PROTOCOL_VERSION,
            max_version: PROTOCOL_VERSION,
            features: 0,
            affinity: config.affinity,
            client_name,
        };
        Request::Hello(hello).encode(out.buffer(), correlation.0, 0);
        Session {
            state: State::Greeting,
            limits: None,
            max_receive_len: config.max_receive_len,
            in_flight,
            out,
            partial: Vec::new(),
            failed: None,
        }
    }

    /// What the broker said in the handshake, once it is done.
    pub fn limits(&self) -> Option<&HelloAck> {
        self.limits.as_ref()
    }

    /// How many more requests may be made now: 0 before the handshake, after a
    /// goodbye, and while as many are unanswered as the broker accepts.
    #[inline]
    pub fn credit(&self) -> u32 {
        match (&self.limits, self.state) {
            (Some(limits), State::Connected) => limits.max_in_flight.saturating_sub(self.in_flight.len()),
            _ => 0,
        }
    }

    /// Requests that wait for an answer.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.len()
    }

    /// Whether the broker said goodbye and every answer has come: the
    /// connection is of no more use.
    pub fn is_done(&self) -> bool {
        self.state == State::Leaving && self.in_flight.len() == 0
    }

    /// Whether bytes wait in [`poll_transmit`](Self::poll_transmit).
    #[inline]
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Makes a request other than produce, hello, and a settle without answer.
    ///
    /// # Errors
    /// [`NotSent`], with `tag`, when there is no credit, the session has
    /// failed, the request is longer than the broker accepts, or it is not for
    /// this method.
    pub fn request(&mut self, request: &Request, tag: T) -> Result<Correlation, NotSent<T>> {
        let has_own_method = match request {
            Request::Hello(_) | Request::Produce { .. } => true,
            Request::Settle(settle) => !settle.confirm,
            _ => false,
        };
        if has_own_method {
            return Err(NotSent { tag, why: SendRefusal::WrongMethod });
        }
        let limit = match self.admit(0) {
            Ok(limits) => limits.max_frame_len,
            Err(why) => return Err(NotSent { tag, why }),
        };
        let correlation = self.in_flight.insert(request.opcode(), Some(tag));
        let Err(why) = self.put(request, correlation.0, limit) else { return Ok(correlation) };
        match self.in_flight.remove(correlation) {
            Some((_, Some(tag))) => Err(NotSent { tag, why }),
            _ => unreachable!("the request was inserted with its tag above"),
        }
    }

    /// Sends a settle that asks for no confirmation: there is no answer, so it is
    /// not in flight and needs no credit of the session.
    ///
    /// # Errors
    /// [`SendRefusal`] when the session has failed or is not connected, the request
    /// is longer than the broker accepts, or it asks for a confirmation.
    pub fn settle_unconfirmed(&mut self, settle: Settle) -> Result<(), SendRefusal> {
        if settle.confirm {
            return Err(SendRefusal::WrongMethod);
        }
        let limit = self.ready()?.max_frame_len;
        self.put(&Request::Settle(settle), 0, limit)
    }

    /// Appends a request to what is sent unless it is longer than `limit`.
    fn put(&mut self, request: &Request, correlation: u64, limit: u32) -> Result<(), SendRefusal> {
        let buffer = self.out.buffer();
        let start = buffer.len();
        request.encode(buffer, correlation, 0);
        let len = buffer.len() - start;
        if len as u64 <= u64::from(limit) {
            return Ok(());
        }
        buffer.truncate(start);
        Err(SendRefusal::TooLong { len: len as u64, limit: u64::from(limit) })
    }

    /// The driver's note about a request that waits for its answer.
    pub fn tag(&self, correlation: Correlation) -> Option<&T> {
        self.in_flight.get(correlation)?.1
    }

    /// Sends a complete record batch, copied behind its head: right for small
    /// batches that the caller keeps or reuses.
    ///
    /// # Errors
    /// [`NotSent`], with `tag`, when there is no credit, the session has
    /// failed, or the batch is longer than the broker accepts.
    #[inline]
    pub fn produce(&mut self, batch: &[u8], min_copies: u8, tag: T) -> Result<Correlation, NotSent<T>> {
        let (correlation, head) = self.begin_produce(batch.len(), min_copies, tag)?;
        let buffer = self.out.buffer();
        buffer.extend_from_slice(&head);
        buffer.extend_from_slice(batch);
        Ok(correlation)
    }

    /// As [`produce`](Self::produce); a batch of at least
    /// [`SessionConfig::split_from`] bytes is not copied but handed out by
    /// `poll_transmit` as it is.
    ///
    /// # Errors
    /// As [`produce`](Self::produce).
    #[inline]
    pub fn produce_bytes(
        &mut self,
        batch: &Bytes,
        min_copies: u8,
        tag: T,
    ) -> Result<Correlation, NotSent<T>> {
        let (correlation, head) = self.begin_produce(batch.len(), min_copies, tag)?;
        self.out.buffer().extend_from_slice(&head);
        self.out.push_bytes(batch);
        Ok(correlation)
    }

    /// Only the head of a produce request, for a driver that sends the batch
    /// from memory of its own: head and the `batch_len` bytes of the batch must
    /// be the next that leave. So the driver has taken everything that
    /// [`poll_transmit`](Self::poll_transmit) had before.
    ///
    /// # Errors
    /// As [`produce`](Self::produce).
    ///
    /// # Panics
    /// If bytes wait to be sent.
    #[inline]
    pub fn produce_head(
        &mut self,
        batch_len: usize,
        min_copies: u8,
        tag: T,
    ) -> Result<[u8; PRODUCE_HEAD_LEN], NotSent<T>> {
        assert!(!self.has_output(), "what was asked for before goes first");
        self.begin_produce(batch_len, min_copies, tag).map(|(_, head)| head)
    }

    #[inline]
    fn begin_produce(
        &mut self,
        batch_len: usize,
        min_copies: u8,
        tag: T,
    ) -> Result<(Correlation, [u8; PRODUCE_HEAD_LEN]), NotSent<T>> {
        if let Err(why) = self.admit(batch_len) {
            return Err(NotSent { tag, why });
        }
        let correlation = self.in_flight.insert(Opcode::Produce, Some(tag));
        // `admit` checked the length against a u32 limit.
        Ok((correlation, produce_head(correlation.0, min_copies, batch_len as u32)))
    }

    /// Whether a request with a batch of this length (0 for none) may be made.
    #[inline]
    fn admit(&self, batch_len: usize) -> Result<&HelloAck, SendRefusal> {
        let limits = self.ready()?;
        if self.in_flight.len() >= limits.max_in_flight {
            return Err(SendRefusal::NoCredit { limit: limits.max_in_flight });
        }
        let frame_room = (limits.max_frame_len as usize).saturating_sub(PRODUCE_HEAD_LEN);
        let limit = frame_room.min(limits.max_batch_len as usize);
        if batch_len > limit {
            return Err(SendRefusal::TooLong { len: batch_len as u64, limit: limit as u64 });
        }
        Ok(limits)
    }

    /// The broker's limits, if frames may be sent.
    #[inline]
    fn ready(&self) -> Result<&HelloAck, SendRefusal> {
        match (&self.limits, self.state) {
            _ if self.failed.is_some() => Err(SendRefusal::Closed),
            (Some(limits), State::Connected) => Ok(limits),
            (_, State::Leaving) => Err(SendRefusal::Closed),
            _ => Err(SendRefusal::NotConnected),
        }
    }

    /// The next bytes to send, if any. Pieces follow each other without gap;
    /// several may be sent by one vectored call. Give [`Transmit::Buffer`] back
    /// through [`recycle`](Self::recycle) so that no new one is allocated.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.pop()
    }

    /// Takes back the buffer of a [`Transmit::Buffer`] that was sent whole.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.out.recycle(buffer);
    }

    /// The notes of all requests without answer, in no particular order: for
    /// each of them the outcome is unknown. For when the connection is gone.
    pub fn into_unanswered(self) -> impl Iterator<Item = T> {
        self.in_flight.into_tags()
    }
}
