//! What moves the bytes: two engines that drive the same fleet of producers.

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

/// An engine's work: drives the fleet until its run is over, and gives it back.
pub type Engine = fn(Fleet, EngineConfig) -> Result<Fleet, EngineError>;
