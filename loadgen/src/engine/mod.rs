//! What moves the bytes: two engines that drive the same fleet of producers. The
//! raw one drives a group's consumers as well.
//!
//! [`tokio_uring`] came first and can do everything; consumers and `verify`
//! always run on it. Its cost per operation caps the producers' shapes: a task
//! wake-up per read and per write, an epoll between the ring and the runtime,
//! one receive per read instead of a multishot one, and a timer that knows only
//! whole milliseconds, which is no way to keep an open loop's schedule. Hence
//! [`raw`], and hence `--engine auto` takes it.
//!
//! Messages per second against the echo peer, as a share of what the doctor's
//! bare client reaches in the same shape; medians of five pairs measured in turn
//! on a 2-core VM (`loadgen run --echo --engine E --core 1 --peer-core 0` against
//! `ringbolt doctor --only SHAPE`):
//!
//! | connections x in flight | raw, 1 KiB values | raw, 1 KiB frames | tokio-uring, 1 KiB values | tokio-uring, 1 KiB frames |
//! |---|---|---|---|---|
//! | 64 x 1 | 0.90 | 0.95 | 0.76 | 0.74 |
//! | 64 x 16 | 0.75 | 0.72 | 0.63 | 0.68 |
//! | 1 x 256 | 0.85 | 0.76 | 0.92 | 0.80 |
//!
//! At 1 x 256 the echo has two speeds, 1.3 and 2.2 million a second, whichever
//! client asks, so that the last row tells little.
//!
//! A frame is 160 bytes longer than its value; `--size 864` makes it as long as
//! the doctor's message. What remains in the pipelined shapes is the difference
//! between messages and bytes: the doctor's client sends one block of memory
//! again and again, which stays in the first-level cache and costs nothing to
//! make, at 310 to 600 ns a message; this one makes, checks and books every
//! message, with three checksums going out and one coming back, which is 20 % of
//! its core, and sends from one buffer for each connection of a turn, which the
//! kernel reads from further away (another 5 to 10 %). It makes 1.1 to 1.9
//! million messages a second where the bare client makes 1.6 to 2.7.

pub mod consume;
pub mod raw;
pub mod tokio_uring;

use std::net::SocketAddr;
use std::time::Duration;

use crate::fleet::Fleet;

/// What an engine needs to know.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// The peer.
    pub addr: SocketAddr,
    /// Pin the driving thread to this core.
    pub core: Option<usize>,
    /// Spin instead of sleeping.
    pub busy_poll: bool,
}

/// Why an engine could not run.
#[derive(thiserror::Error, Debug)]
pub enum EngineError {
    /// No ring, or it broke.
    #[error("io_uring: {0}")]
    Ring(String),
    /// The thread cannot be pinned.
    #[error(transparent)]
    Pin(#[from] ringbolt::io::pin::PinError),
}

/// Pins the calling thread if asked to.
pub fn pin(core: Option<usize>) -> Result<(), EngineError> {
    Ok(core.map_or(Ok(()), ringbolt::io::pin::pin_thread)?)
}

/// The longest time that an engine sleeps: the fleet's bookkeeping is due about
/// as often.
pub const LONGEST_SLEEP: Duration = Duration::from_millis(5);

/// What an engine is to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// Go on.
    Go,
    /// Call [`Troop::fill`] for every member: all may send now.
    FillAll,
    /// Stop: the run is over.
    Done,
}

/// What the raw engine drives: members with a connection each, as state machines
/// that know no sockets.
pub trait Troop {
    /// Now, on the run's clock.
    fn now(&self) -> u64;
    /// How many members there are.
    fn len(&self) -> usize;
    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Lets the run take its course; called at every turn.
    fn poll(&mut self, now: u64) -> Turn;
    /// When a member wants a connection; `None` if it has one, or wants none any
    /// more.
    fn connect_at(&self, index: usize) -> Option<u64>;
    /// There is a connection for a member.
    fn connected(&mut self, index: usize, now: u64);
    /// A member has no connection.
    fn disconnected(&mut self, index: usize, now: u64);
    /// Bytes arrived for a member. Returns false if its connection must be closed.
    fn received(&mut self, index: usize, bytes: &[u8], now: u64) -> bool;
    /// Lets a member make what it can send now. Returns false if its connection must
    /// be closed.
    fn fill(&mut self, index: usize, now: u64) -> bool;
    /// What a member has to send, if anything: memory, and how much of it.
    fn take_output(&mut self, index: usize) -> Option<(Vec<u8>, usize)>;
    /// Takes the memory of a member's last output back, when it was sent.
    fn recycle(&mut self, index: usize, memory: Vec<u8>);
    /// When a member wants to be filled although nothing arrived.
    fn wake_at(&self, index: usize) -> Option<u64>;
}

/// An engine's work: drives the fleet until its run is over, and gives it back.
pub type Engine = fn(Fleet, EngineConfig) -> Result<Fleet, EngineError>;
