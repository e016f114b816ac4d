//! Drives consumers on tokio-uring: a task and a connection each, on a thread of
//! their own beside the producers'.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ringbolt::io::tcp;
use ringbolt_client::session::{Session, SessionConfig, SessionError, SessionEvent, Transmit};
use ringbolt_wire::message::FetchedPartition;
use ringbolt_wire::{Request, Response};
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

use super::tokio_uring::runtime;
use super::{EngineConfig, EngineError};
use crate::consumer::{Consumer, Reader};
use crate::signals::Signals;
use crate::stats::Clock;

/// Between two looks at whether the run is over.
const LOOK: Duration = Duration::from_millis(5);
/// Between two attempts to connect, or to read where the last one brought
/// nothing.
const RETRY: Duration = Duration::from_millis(20);
/// Most of what a broker asks for between two attempts that is granted to it.
const LONGEST_RETRY: Duration = Duration::from_secs(1);
/// Once the ends are fixed: give up after this long without progress. What is
/// missing then is missing.
const PATIENCE: Duration = Duration::from_secs(10);
/// Least room for a receive.
const RECEIVE_LEN: usize = 64 << 10;

/// Takes what consumers read.
pub trait Sink: Reader {
    /// A fetch was answered: when it was asked, and when its last byte came, on
    /// the run's clock; and its payload in bytes.
    fn fetched(&mut self, asked: u64, now: u64, bytes: usize);
}

struct Shared<S> {
    config: EngineConfig,
    patience: Duration,
    clock: Clock,
    signals: Arc<Signals>,
    sink: RefCell<S>,
    /// The last moment at which somebody read something.
    progress_at: RefCell<u64>,
    failure: RefCell<Option<String>>,
}

/// Reads with all consumers at once until the signals say that it is enough,
/// and the end is reached. Gives the sink back, and what went wrong.
///
/// # Errors
/// If there is no ring to be had.
pub fn run<S: Sink + 'static>(
    consumers: Vec<Consumer>,
    sink: S,
    config: EngineConfig,
    clock: Clock,
    signals: Arc<Signals>,
) -> Result<(S, Option<String>), EngineError> {
    drive(consumers, sink, config, clock, signals, PATIENCE)
}

fn drive<S: Sink + 'static>(
    consumers: Vec<Consumer>,
    sink: S,
    config: EngineConfig,
    clock: Clock,
    signals: Arc<Signals>,
    patience: Duration,
) -> Result<(S, Option<String>), EngineError> {
    let shared = Rc::new(Shared {
        config,
        patience,
        clock,
        signals,
        sink: RefCell::new(sink),
        progress_at: RefCell::new(clock.now()),
        failure: RefCell::new(None),
    });
    let runtime = runtime(config.core)?;
    runtime.block_on(async {
        let tasks: Vec<_> =
            consumers.into_iter().map(|c| tokio_uring::spawn(consume(shared.clone(), c))).collect();
        for task in tasks {
            if let Err(error) = task.await {
                shared.failure.borrow_mut().get_or_insert_with(|| error.to_string());
            }
        }
    });
    drop(runtime);
    let shared = Rc::into_inner(shared).expect("every task that shared it has ended");
    Ok((shared.sink.into_inner(), shared.failure.into_inner()))
}

/// Reads what is one consumer's, and says what of it was read to the end.
async fn consume<S: Sink>(shared: Rc<Shared<S>>, mut consumer: Consumer) {
    read_through(&shared, &mut consumer).await;
    let mut sink = shared.sink.borrow_mut();
    consumer.finished().for_each(|partition| sink.finished(partition));
}

/// One consumer's connections, one after the other.
async fn read_through<S: Sink>(shared: &Shared<S>, consumer: &mut Consumer) {
    while !consumer.is_done() && !consumer.is_idle() {
        if shared.is_hopeless() {
            shared.fail("nothing more could be read before the end was reached".into());
            return;
        }
        // A peer whose queue is full does not even refuse.
        let connecting = TcpStream::connect(shared.config.addr);
        let connected = tokio::select! {
            connected = connecting => connected,
            () = watch(shared) => continue,
        };
        let Ok(stream) = connected else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        // A socket that refuses still works.
        let _ = tcp::prepare(&stream, shared.config.addr.ip());
        match read_over(&stream, shared, consumer).await {
            Err(error) if !error.is_shutting_down() => {
                shared.fail(error.to_string());
                return;
            }
            // A restart, if anything.
            _ => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Reads over one connection, as long as there is hope.
async fn read_over<S: Sink>(
    stream: &TcpStream,
    shared: &Shared<S>,
    consumer: &mut Consumer,
) -> Result<(), SessionError> {
    let mut connection = Connection::new(stream);
    let ended = {
        let reading = connection.read_on(shared, consumer);
        let watching = watch(shared);
        tokio::select! {
            ended = reading => ended,
            () = watching => Ok(()),
        }
    };
    // Whoever watches may have ended the reading anywhere.
    connection.read_unread(shared, consumer);
    ended
}

/// Returns when there is no hope of more.
async fn watch<S>(shared: &Shared<S>) {
    while !shared.is_hopeless() {
        tokio::time::sleep(LOOK).await;
    }
}

impl<S> Shared<S> {
    fn is_hopeless(&self) -> bool {
        let Some(frozen_at) = self.signals.frozen_at() else { return false };
        let progress_at = frozen_at.max(*self.progress_at.borrow());
        u128::from(self.clock.now().saturating_sub(progress_at)) > self.patience.as_nanos()
    }

    fn fail(&self, why: String) {
        self.failure.borrow_mut().get_or_insert(why);
    }
}

struct Connection<'a> {
    stream: &'a TcpStream,
    session: Session<u64>,
    input: BytesMut,
    answers: VecDeque<(u64, Vec<FetchedPartition>, Bytes)>,
    unread: Option<Unread>,
}

/// An answer behind which the consumer has moved on, and which is not read yet.
struct Unread {
    asked: u64,
    came_at: u64,
    fetched: Vec<FetchedPartition>,
    payload: Bytes,
}

impl<'a> Connection<'a> {
    fn new(stream: &'a TcpStream) -> Connection<'a> {
        let config = SessionConfig { client_name: "loadgen-consumer".into(), ..SessionConfig::default() };
        let session = Session::new(config);
        Connection { stream, session, input: BytesMut::new(), answers: VecDeque::new(), unread: None }
    }

    /// Fetches until the consumer is done (or the connection is gone, which is
    /// no error).
    async fn read_on<S: Sink>(
        &mut self,
        shared: &Shared<S>,
        consumer: &mut Consumer,
    ) -> Result<(), SessionError> {
        loop {
            if self.flush().await.is_err() || !self.receive().await {
                return Ok(());
            }
            let mut ask_after = None;
            while let Some(event) = self.session.receive(&mut self.input)? {
                match event {
                    SessionEvent::Answer { tag, response: Response::Fetched(fetched), payload } => {
                        self.answers.push_back((tag, fetched, payload));
                    }
                    SessionEvent::Connected(_) => ask_after = Some(Duration::ZERO),
                    SessionEvent::Answer { response: Response::Error(error), .. }
                        if !error.is_retryable() =>
                    {
                        shared.fail(format!("a consumer was refused: {error}"));
                        return Ok(());
                    }
                    SessionEvent::Answer { response: Response::Error(error), .. } => {
                        let wanted = Duration::from_millis(error.retry_after_ms.into());
                        ask_after = Some(wanted.clamp(RETRY, LONGEST_RETRY));
                    }
                    // The session sees to it that a fetch is answered with what
                    // was fetched, or an error.
                    SessionEvent::Answer { .. }
                    | SessionEvent::Goodbye(_)
                    | SessionEvent::Delivered { .. }
                    | SessionEvent::Produced { .. } => {}
                }
            }
            if let Some(wait) = ask_after {
                tokio::time::sleep(wait).await;
                self.ask(shared, consumer);
            }
            while let Some((asked, fetched, payload)) = self.answers.pop_front() {
                let came_at = shared.clock.now();
                let before = consumer.progress();
                consumer.advance(&fetched, &payload);
                if consumer.progress() != before {
                    *shared.progress_at.borrow_mut() = came_at;
                }
                self.unread = Some(Unread { asked, came_at, fetched, payload });
                if consumer.is_stalled() {
                    self.read_unread(shared, consumer);
                    tokio::time::sleep(RETRY).await;
                }
                // The next fetch is on its way before this answer is read.
                self.ask(shared, consumer);
                let flushed = self.flush().await;
                self.read_unread(shared, consumer);
                if flushed.is_err() {
                    return Ok(());
                }
            }
            if consumer.is_done() || consumer.is_idle() {
                return Ok(());
            }
        }
    }

    /// Reads what the consumer has moved past already: skipping it would look as
    /// if the broker had lost it.
    fn read_unread<S: Sink>(&mut self, shared: &Shared<S>, consumer: &mut Consumer) {
        let Some(unread) = self.unread.take() else { return };
        let mut sink = shared.sink.borrow_mut();
        sink.fetched(unread.asked, unread.came_at, unread.payload.len());
        consumer.read(&unread.fetched, &unread.payload, &mut *sink);
    }

    fn ask<S>(&mut self, shared: &Shared<S>, consumer: &mut Consumer) {
        if shared.signals.frozen_at().is_some() {
            consumer.freeze();
        }
        if !consumer.is_done() && !consumer.is_idle() {
            let fetch = Request::Fetch(consumer.fetch());
            // Without credit the broker is leaving, and the connection ends.
            let _ = self.session.request(&fetch, shared.clock.now());
        }
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        while let Some(piece) = self.session.poll_transmit() {
            match piece {
                Transmit::Buffer(buffer) => {
                    let (result, buffer) = self.stream.write_all(buffer).await;
                    result?;
                    self.session.recycle(buffer);
                }
                Transmit::Batch(batch) => self.stream.write_all(batch).await.0?,
            }
        }
        Ok(())
    }

    /// Receives some bytes; false at the end of the connection.
    async fn receive(&mut self) -> bool {
        let wanted = self.session.wanted(&self.input).max(RECEIVE_LEN);
        self.input.reserve(wanted);
        let have = self.input.len();
        let input = std::mem::take(&mut self.input);
        let (result, slice) = self.stream.read(input.slice(have..)).await;
        self.input = slice.into_inner();
        matches!(result, Ok(1..))
    }
}

#[cfg(test)]
#[path = "consume_tests.rs"]
mod tests;
