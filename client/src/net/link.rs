//! One session over one TCP connection. Knows nothing of retries.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use ringbolt_wire::PartitionId;
use tokio::net::TcpStream;

use crate::error::Error;
use crate::session::{Session, SessionConfig, SessionEvent, Transmit};

/// Bytes that one read asks for at least: a whole socket buffer's worth.
const READ_LEN: usize = 64 << 10;

/// Pieces handed to one vectored write.
const MAX_PIECES: usize = 16;

/// How to reach the broker.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    pub addrs: Arc<[String]>,
    pub client_name: String,
    pub affinity: Option<PartitionId>,
    pub max_receive_len: u32,
    /// For one address: connecting and the handshake.
    pub timeout: Duration,
}

impl Dialer {
    /// Tries the addresses in turn until the handshake with one is done.
    pub async fn dial<T>(&self) -> Result<Link<T>, Error> {
        let mut last = Error::InvalidSetting("no address was given".to_owned());
        for addr in self.addrs.iter() {
            let attempt = tokio::time::timeout(self.timeout, self.dial_one(addr)).await;
            match attempt {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(error)) => last = error,
                Err(_) => last = self.failed(addr, io::Error::from(io::ErrorKind::TimedOut)),
            }
        }
        Err(last)
    }

    async fn dial_one<T>(&self, addr: &str) -> Result<Link<T>, Error> {
        let stream = TcpStream::connect(addr).await.map_err(|error| self.failed(addr, error))?;
        // Whatever is written is meant to leave; a failure costs only latency.
        let _ = stream.set_nodelay(true);
        let session = Session::new(SessionConfig {
            client_name: self.client_name.clone(),
            affinity: self.affinity,
            max_receive_len: self.max_receive_len,
            ..SessionConfig::default()
        });
        let mut link = Link { stream, session, input: BytesMut::new(), sending: VecDeque::new(), sent: 0 };
        match link.next_event().await? {
            SessionEvent::Connected(_) => Ok(link),
            // The session lets nothing else come first.
            _ => Err(self.failed(addr, io::Error::other("an answer came before the handshake"))),
        }
    }

    fn failed(&self, addr: &str, source: io::Error) -> Error {
        Error::Connect { addrs: addr.to_owned(), source: Arc::new(source) }
    }
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub(crate) struct Link<T> {
    stream: TcpStream,
    session: Session<T>,
    input: BytesMut,
    sending: VecDeque<Transmit>,
    /// Bytes of the first piece that are sent.
    sent: usize,
}

impl<T> Link<T> {
    /// Requests are made here; they leave with the next call of
    /// [`next_event`](Self::next_event).
    pub fn session(&mut self) -> &mut Session<T> {
        &mut self.session
    }

    /// Sends what waits and awaits the next event. Dropping the future loses
    /// nothing.
    pub async fn next_event(&mut self) -> Result<SessionEvent<T>, Error> {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    /// An event in what has been received already.
    pub fn buffered_event(&mut self) -> Result<Option<SessionEvent<T>>, Error> {
        Ok(self.session.receive(&mut self.input)?)
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<SessionEvent<T>, Error>> {
        loop {
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                tracing::debug!(%error, "sending failed");
                return Poll::Ready(Err(Error::ConnectionLost));
            }
            if let Some(event) = self.session.receive(&mut self.input)? {
                return Poll::Ready(Ok(event));
            }
            let wanted = self.session.wanted(&self.input).max(READ_LEN);
            self.input.reserve(wanted);
            if let Err(error) = ready!(self.poll_read(cx)) {
                tracing::debug!(%error, "receiving failed");
                return Poll::Ready(Err(Error::ConnectionLost));
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read_buf(&mut self.input) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.sending.len() < MAX_PIECES {
                let Some(piece) = self.session.poll_transmit() else { break };
                self.sending.push_back(piece);
            }
            if self.sending.is_empty() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.stream.poll_write_ready(cx))?;
            let mut slices = [IoSlice::new(&[]); MAX_PIECES];
            let mut skip = self.sent;
            for (slice, piece) in slices.iter_mut().zip(&self.sending) {
                *slice = IoSlice::new(&piece.as_ref()[std::mem::take(&mut skip)..]);
            }
            let count = self.sending.len().min(MAX_PIECES);
            match self.stream.try_write_vectored(&slices[..count]) {
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn advance(&mut self, written: usize) {
        self.sent += written;
        while let Some(first) = self.sending.front() {
            let len = first.as_ref().len();
            if self.sent < len {
                return;
            }
            self.sent -= len;
            if let Some(Transmit::Buffer(buffer)) = self.sending.pop_front() {
                self.session.recycle(buffer);
            }
        }
    }
}
