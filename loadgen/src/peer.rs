//! What a run talks to: a broker somewhere, one started for the occasion, or an
//! echo peer.

use std::net::SocketAddr;

use crate::admin::{AdminError, resolve};
use crate::args::RunArgs;
use crate::embedded::{Embedded, EmbeddedError};

/// Why there is nobody to talk to.
#[derive(thiserror::Error, Debug)]
pub enum PeerError {
    /// See [`AdminError`].
    #[error(transparent)]
    Address(#[from] AdminError),
    /// See [`EmbeddedError`].
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    /// The echo peer does not start.
    #[error("cannot start an echo peer: {0}")]
    Echo(std::io::Error),
}

/// See the [module](self). What was started ends when it is dropped.
pub enum Peer {
    /// Runs anyway.
    Remote(SocketAddr),
    /// Runs within this process.
    Embedded(Box<Embedded>),
    /// Runs within this process.
    Echo(ringbolt::io::echo::EchoServer),
}

impl Peer {
    /// The peer that these arguments ask for.
    pub fn of(args: &RunArgs) -> Result<Peer, PeerError> {
        Ok(match &args.addr {
            _ if args.echo => {
                Peer::Echo(ringbolt::io::echo::EchoServer::start(args.peer_core).map_err(PeerError::Echo)?)
            }
            Some(addr) => Peer::Remote(resolve(addr)?),
            None => Peer::Embedded(Box::new(Embedded::start(args.data.as_deref(), args.peer_core)?)),
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        match self {
            Peer::Remote(addr) => *addr,
            Peer::Embedded(embedded) => embedded.addr(),
            Peer::Echo(echo) => echo.addr(),
        }
    }
}
