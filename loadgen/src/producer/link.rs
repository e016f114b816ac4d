//! What a producer is connected to: a broker, through the client's session
//! state machine, or a bare echo peer.
//!
//! An echo peer knows no protocol: it returns the produce frame, and the frame
//! that comes back is the answer to itself. Answers come in the order of the
//! requests, so a queue stands where the session has its table.

use std::collections::VecDeque;

use ringbolt_client::session::{Session, SessionConfig, SessionError, SessionEvent};
use ringbolt_wire::frame::FRAME_HEADER_LEN;
use ringbolt_wire::message::{PRODUCE_HEAD_LEN, ProduceAck, produce_head};
use ringbolt_wire::{FrameError, FrameHeader, PartitionId};

use super::Tag;
use crate::frame::FrameMaker;

/// Why a connection's bytes make no sense.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum LinkError {
    /// See [`SessionError`].
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The echo peer returned something else.
    #[error("the echo peer returned something that is not a frame: {0}")]
    Echo(#[from] FrameError),
    /// The echo peer returned a frame that was not sent, or out of turn.
    #[error("the echo peer returned frame {found:?} instead of {wanted}")]
    EchoOrder {
        /// Its number.
        found: u64,
        /// The number of the oldest frame that was not returned.
        wanted: u64,
    },
}

/// The other end.
pub enum Link {
    /// A broker.
    Broker(Box<Session<Tag>>),
    /// An echo peer.
    Echo(Echo),
}

/// What a link received.
pub enum LinkEvent {
    /// From a broker.
    Session(SessionEvent<Tag>),
    /// A frame came back.
    Echoed(Tag),
}

impl Link {
    /// A link to a broker that will mostly be used for this partition.
    pub fn broker(index: u32, affinity: PartitionId) -> Link {
        Link::Broker(Box::new(Session::new(SessionConfig {
            client_name: format!("loadgen-{index}"),
            affinity: Some(affinity),
            ..SessionConfig::default()
        })))
    }

    /// Requests that can be made now.
    #[inline]
    pub fn credit(&self) -> u32 {
        match self {
            Link::Broker(session) => session.credit(),
            Link::Echo(_) => u32::MAX,
        }
    }

    /// The head of a produce frame, as far as the batch; `None` if the session
    /// does not take it now.
    #[inline]
    pub fn head(&mut self, maker: &FrameMaker, tag: Tag, count: u32) -> Option<[u8; PRODUCE_HEAD_LEN]> {
        let len = maker.batch_len(count);
        match self {
            Link::Broker(session) => session.produce_head(len, 0, tag).ok(),
            Link::Echo(echo) => {
                let head = produce_head(echo.next, 0, len as u32);
                echo.next += 1;
                echo.sent.push_back(tag);
                Some(head)
            }
        }
    }

    /// The next acknowledgement in `input`, if that is what stands there; see
    /// [`Session::receive_ack`].
    #[inline]
    pub fn receive_ack(&mut self, input: &mut &[u8]) -> Option<(Tag, ProduceAck)> {
        match self {
            Link::Broker(session) => session.receive_ack(input),
            Link::Echo(_) => None,
        }
    }

    /// The next thing in `input`, which is advanced past it; `None` when more
    /// bytes are needed.
    #[inline]
    pub fn receive(&mut self, input: &mut &[u8]) -> Result<Option<LinkEvent>, LinkError> {
        match self {
            Link::Broker(session) => Ok(session.receive_slice(input)?.map(LinkEvent::Session)),
            Link::Echo(echo) => Ok(echo.receive(input)?.map(LinkEvent::Echoed)),
        }
    }

    /// The requests without answer.
    pub fn into_unanswered(self) -> Vec<Tag> {
        match self {
            Link::Broker(session) => session.into_unanswered().collect(),
            Link::Echo(echo) => echo.sent.into(),
        }
    }
}

/// Hands everything that the session has to send to `put`, in order.
#[inline]
pub fn drain(session: &mut Session<Tag>, mut put: impl FnMut(&[u8])) {
    while let Some(piece) = session.poll_transmit() {
        put(piece.as_ref());
        if let ringbolt_client::session::Transmit::Buffer(buffer) = piece {
            session.recycle(buffer);
        }
    }
}

/// The state towards an echo peer.
#[derive(Default)]
pub struct Echo {
    /// Number of the next frame to be sent.
    next: u64,
    sent: VecDeque<Tag>,
    /// The head of a frame whose rest is to come.
    partial: Vec<u8>,
    /// Bytes of the current frame's payload that are still to come.
    body_left: usize,
    current: Option<Tag>,
}

impl Echo {
    fn receive(&mut self, input: &mut &[u8]) -> Result<Option<Tag>, LinkError> {
        loop {
            let body = self.body_left.min(input.len());
            *input = &input[body..];
            self.body_left -= body;
            if self.body_left > 0 {
                return Ok(None);
            }
            if let Some(tag) = self.current.take() {
                return Ok(Some(tag));
            }
            let Some(header) = self.head(input)? else { return Ok(None) };
            let wanted = self.next - self.sent.len() as u64;
            let tag = self.sent.pop_front().filter(|_| header.correlation == wanted);
            self.current = Some(tag.ok_or(LinkError::EchoOrder { found: header.correlation, wanted })?);
            self.body_left = header.payload_len as usize;
        }
    }

    /// The next head, checked, if all of it is there.
    fn head(&mut self, input: &mut &[u8]) -> Result<Option<FrameHeader>, FrameError> {
        if self.partial.is_empty()
            && let Some(header) = FrameHeader::decode(input, u32::MAX)?
            && input.len() >= header.head_len()
        {
            header.verify(input)?;
            *input = &input[header.head_len()..];
            return Ok(Some(header));
        }
        loop {
            let header = FrameHeader::decode(&self.partial, u32::MAX)?;
            let len = header.as_ref().map_or(FRAME_HEADER_LEN, FrameHeader::head_len);
            let taken = (len - self.partial.len()).min(input.len());
            self.partial.extend_from_slice(&input[..taken]);
            *input = &input[taken..];
            match header {
                Some(header) if self.partial.len() == len => {
                    header.verify(&self.partial)?;
                    self.partial.clear();
                    return Ok(Some(header));
                }
                None if self.partial.len() == len => {}
                _ => return Ok(None),
            }
        }
    }
}
