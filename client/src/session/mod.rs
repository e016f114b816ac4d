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
#[cfg(test)]
mod tests;

use bytes::{Buf, Bytes, BytesMut};
use ringbolt_wire::frame::{FRAME_HEADER_LEN, FrameHeader, Opcode};
use ringbolt_wire::message::{
    ErrorResponse, Hello, HelloAck, MAX_CLIENT_NAME_LEN, PRODUCE_ACK_FRAME_LEN, PRODUCE_HEAD_LEN, ProduceAck,
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
        /// The record batches of a fetch answer; else empty.
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

    /// Makes a request other than produce and hello.
    ///
    /// # Errors
    /// [`NotSent`], with `tag`, when there is no credit, the session has
    /// failed, the request is longer than the broker accepts, or it is not for
    /// this method.
    pub fn request(&mut self, request: &Request, tag: T) -> Result<Correlation, NotSent<T>> {
        if matches!(request, Request::Hello(_) | Request::Produce { .. }) {
            return Err(NotSent { tag, why: SendRefusal::WrongMethod });
        }
        let limit = match self.admit(0) {
            Ok(limits) => limits.max_frame_len,
            Err(why) => return Err(NotSent { tag, why }),
        };
        let correlation = self.in_flight.insert(request.opcode(), Some(tag));
        let buffer = self.out.buffer();
        let start = buffer.len();
        request.encode(buffer, correlation.0, 0);
        let len = buffer.len() - start;
        if len as u64 <= u64::from(limit) {
            return Ok(correlation);
        }
        buffer.truncate(start);
        match self.in_flight.remove(correlation) {
            Some((_, Some(tag))) => {
                Err(NotSent { tag, why: SendRefusal::TooLong { len: len as u64, limit: u64::from(limit) } })
            }
            _ => unreachable!("the request was inserted with its tag above"),
        }
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
        if self.failed.is_some() {
            return Err(SendRefusal::Closed);
        }
        let limits = match (&self.limits, self.state) {
            (Some(limits), State::Connected) => limits,
            (_, State::Leaving) => return Err(SendRefusal::Closed),
            _ => return Err(SendRefusal::NotConnected),
        };
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

    /// Consumes one frame from the front of `input` and tells what it meant.
    /// `None`: more bytes are needed, see [`wanted`](Self::wanted). Call again
    /// after an event, since `input` may hold more. Fetched batches are split
    /// off `input`, not copied.
    ///
    /// # Errors
    /// [`SessionError`]: the connection cannot go on; every later call repeats
    /// the error. Requests without answer are in
    /// [`into_unanswered`](Self::into_unanswered).
    pub fn receive(&mut self, input: &mut BytesMut) -> Result<Option<SessionEvent<T>>, SessionError> {
        self.guard(|session| {
            let Some(header) = session.complete_frame(input)? else { return Ok(None) };
            let event = session.settle(&header, &input[FRAME_HEADER_LEN..header.head_len()])?;
            input.advance(header.head_len());
            let body = input.split_to(header.payload_len as usize);
            Ok(Some(event.with_payload(|| body.freeze())))
        })
    }

    /// As [`receive`](Self::receive) for borrowed bytes: `input` is advanced
    /// past what was consumed. The start of a frame whose rest is missing is
    /// kept inside, so `None` always leaves `input` empty. Payload is copied.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    #[inline]
    pub fn receive_slice(&mut self, input: &mut &[u8]) -> Result<Option<SessionEvent<T>>, SessionError> {
        self.guard(|session| {
            if !session.partial.is_empty() {
                return session.continue_partial(input);
            }
            let Some(header) = session.complete_frame(input)? else {
                session.partial.extend_from_slice(input);
                *input = &[];
                return Ok(None);
            };
            let (frame, rest) = input.split_at(header.frame_len());
            *input = rest;
            session.settle_frame(&header, frame).map(Some)
        })
    }

    /// The acknowledgement of a batch at the front of `input`, which is advanced
    /// past it: the same as [`receive_slice`](Self::receive_slice) would find, at
    /// a fraction of the cost, for a driver that waits for little else. `None` if
    /// something else stands there, or not all of it; `receive_slice` then tells
    /// what.
    #[inline]
    pub fn receive_ack(&mut self, input: &mut &[u8]) -> Option<(T, ProduceAck)> {
        if self.failed.is_some()
            || !self.partial.is_empty()
            || PRODUCE_ACK_FRAME_LEN > self.max_receive_len as usize
        {
            return None;
        }
        let (correlation, ack) = ProduceAck::from_frame(input)?;
        let tag = self.in_flight.remove_if(Correlation(correlation), Opcode::Produce)?;
        *input = &input[PRODUCE_ACK_FRAME_LEN..];
        Some((tag, ack))
    }

    /// Fewest bytes that must follow `have` (what `receive` left) before it can
    /// find something; a driver may reserve that much. Before the frame's head
    /// is there and verified this is only the rest of the head, so that no
    /// reservation follows an unchecked length.
    pub fn wanted(&self, have: &[u8]) -> usize {
        let Ok(Some(header)) = FrameHeader::decode(have, self.max_receive_len) else {
            return FRAME_HEADER_LEN.saturating_sub(have.len()).max(1);
        };
        let head_is_good = have.len() >= header.head_len() && header.verify(have).is_ok();
        let len = if head_is_good { header.frame_len() } else { header.head_len() };
        len.saturating_sub(have.len()).max(1)
    }

    /// The notes of all requests without answer, in no particular order: for
    /// each of them the outcome is unknown. For when the connection is gone.
    pub fn into_unanswered(self) -> impl Iterator<Item = T> {
        self.in_flight.into_tags()
    }

    /// Runs `step` unless an error came before; remembers the error it ends in.
    #[inline]
    fn guard<R>(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<R, SessionError>,
    ) -> Result<R, SessionError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = step(self);
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    /// The header of the frame at the front of `bytes` if all of it is there.
    #[inline]
    fn complete_frame(&self, bytes: &[u8]) -> Result<Option<FrameHeader>, SessionError> {
        let Some(header) = FrameHeader::decode(bytes, self.max_receive_len)? else { return Ok(None) };
        if bytes.len() < header.frame_len() {
            return Ok(None);
        }
        header.verify(bytes)?;
        Ok(Some(header))
    }

    fn continue_partial(&mut self, input: &mut &[u8]) -> Result<Option<SessionEvent<T>>, SessionError> {
        loop {
            let header = FrameHeader::decode(&self.partial, self.max_receive_len)?;
            let len = header.as_ref().map_or(FRAME_HEADER_LEN, FrameHeader::frame_len);
            let taken = (len - self.partial.len()).min(input.len());
            self.partial.extend_from_slice(&input[..taken]);
            *input = &input[taken..];
            match header {
                Some(header) if self.partial.len() == len => {
                    let frame = std::mem::take(&mut self.partial);
                    header.verify(&frame)?;
                    let event = self.settle_frame(&header, &frame);
                    self.partial = frame;
                    self.partial.clear();
                    return event.map(Some);
                }
                // The header is complete only now: look at it.
                None if self.partial.len() == len => {}
                _ => return Ok(None),
            }
        }
    }

    #[inline]
    fn settle_frame(&mut self, header: &FrameHeader, frame: &[u8]) -> Result<SessionEvent<T>, SessionError> {
        let (head, payload) = frame.split_at(header.head_len());
        let event = self.settle(header, &head[FRAME_HEADER_LEN..])?;
        Ok(event.with_payload(|| Bytes::copy_from_slice(payload)))
    }

    /// Finds out what a frame with this header and meta means. The payload is
    /// filled in by the caller, who knows how it can be had.
    #[inline]
    fn settle(&mut self, header: &FrameHeader, meta: &[u8]) -> Result<SessionEvent<T>, SessionError> {
        if !header.is_response {
            return Err(SessionError::NotAResponse { opcode: header.opcode });
        }
        let decode = || {
            Response::decode(header.opcode, header.status, meta, header.payload_len)
                .map_err(|error| SessionError::Message { opcode: header.opcode, error })
        };
        if header.opcode == Opcode::Goodbye as u8 {
            return self.leave(decode()?);
        }
        let correlation = Correlation(header.correlation);
        let Some((opcode, tag)) = self.in_flight.remove(correlation) else {
            return Err(SessionError::UnexpectedAnswer { correlation: header.correlation });
        };
        if opcode as u8 != header.opcode {
            return Err(SessionError::WrongOperation { asked: opcode as u8, answered: header.opcode });
        }
        match (decode()?, tag) {
            (Response::Produced(ack), Some(tag)) => Ok(SessionEvent::Produced { tag, ack }),
            (response, Some(tag)) => Ok(SessionEvent::Answer { tag, response, payload: Bytes::new() }),
            // Only hello carries no tag.
            (Response::Hello(ack), None) => self.greeted(ack),
            (Response::Error(refusal), None) => Err(SessionError::HandshakeRefused(refusal)),
            (_, None) => Err(SessionError::UnexpectedAnswer { correlation: header.correlation }),
        }
    }

    fn greeted(&mut self, ack: HelloAck) -> Result<SessionEvent<T>, SessionError> {
        if ack.version != PROTOCOL_VERSION {
            return Err(SessionError::UnsupportedVersion(ack.version));
        }
        if self.state == State::Greeting {
            self.state = State::Connected;
        }
        self.limits = Some(ack.clone());
        Ok(SessionEvent::Connected(ack))
    }

    fn leave(&mut self, response: Response) -> Result<SessionEvent<T>, SessionError> {
        match response {
            Response::Error(reason) if self.state == State::Greeting => {
                Err(SessionError::HandshakeRefused(reason))
            }
            Response::Error(reason) => {
                self.state = State::Leaving;
                Ok(SessionEvent::Goodbye(reason))
            }
            // The decoder knows no other goodbye.
            _ => Err(SessionError::NotAResponse { opcode: Opcode::Goodbye as u8 }),
        }
    }
}

impl<T> SessionEvent<T> {
    /// Puts the frame's payload into the one event that has one.
    #[inline]
    fn with_payload(self, payload: impl FnOnce() -> Bytes) -> Self {
        match self {
            SessionEvent::Answer { tag, response: response @ Response::Fetched(_), .. } => {
                SessionEvent::Answer { tag, response, payload: payload() }
            }
            other => other,
        }
    }
}
