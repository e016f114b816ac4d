//! The receiving half of a session: frames in, events out.

use bytes::{Buf, Bytes, BytesMut};
use ringbolt_wire::frame::{FRAME_HEADER_LEN, FrameHeader, Opcode};
use ringbolt_wire::message::{HelloAck, PRODUCE_ACK_FRAME_LEN, ProduceAck};
use ringbolt_wire::{PROTOCOL_VERSION, Response};

use super::{Correlation, Session, SessionError, SessionEvent, State};

impl<T> Session<T> {
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
            let event = session.interpret(&header, &input[FRAME_HEADER_LEN..header.head_len()])?;
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
            session.interpret_frame(&header, frame).map(Some)
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
                    let event = self.interpret_frame(&header, &frame);
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
    fn interpret_frame(
        &mut self,
        header: &FrameHeader,
        frame: &[u8],
    ) -> Result<SessionEvent<T>, SessionError> {
        let (head, payload) = frame.split_at(header.head_len());
        let event = self.interpret(header, &head[FRAME_HEADER_LEN..])?;
        Ok(event.with_payload(|| Bytes::copy_from_slice(payload)))
    }

    /// Finds out what a frame with this header and meta means. The payload is
    /// filled in by the caller, who knows how it can be had.
    #[inline]
    fn interpret(&mut self, header: &FrameHeader, meta: &[u8]) -> Result<SessionEvent<T>, SessionError> {
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
        if header.opcode == Opcode::Delivery as u8 {
            return self.delivered(correlation, decode()?);
        }
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

    /// A delivery: the attach that it belongs to goes on.
    fn delivered(
        &self,
        correlation: Correlation,
        response: Response,
    ) -> Result<SessionEvent<T>, SessionError> {
        match (self.in_flight.get(correlation), response) {
            (Some((Opcode::Attach, _)), Response::Delivered(delivery)) => {
                Ok(SessionEvent::Delivered { attach: correlation, delivery, payload: Bytes::new() })
            }
            (None, _) => Err(SessionError::UnexpectedAnswer { correlation: correlation.0 }),
            // Of another operation, or a refusal, which would be an attach's answer.
            (Some((asked, _)), _) => {
                let (asked, answered) = (asked as u8, Opcode::Delivery as u8);
                Err(SessionError::WrongOperation { asked, answered })
            }
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
    /// Puts the frame's payload into the events that have one.
    #[inline]
    fn with_payload(self, payload: impl FnOnce() -> Bytes) -> Self {
        match self {
            SessionEvent::Answer {
                tag,
                response: response @ (Response::Fetched(_) | Response::Delivered(_)),
                ..
            } => SessionEvent::Answer { tag, response, payload: payload() },
            SessionEvent::Delivered { attach, delivery, .. } => {
                SessionEvent::Delivered { attach, delivery, payload: payload() }
            }
            other => other,
        }
    }
}
