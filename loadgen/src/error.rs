//! Everything that ends a run before it has a report.

use crate::admin::AdminError;
use crate::embedded::EmbeddedError;
use crate::engine::EngineError;
use crate::ledger::LedgerError;
use crate::peer::PeerError;
use crate::report::WriteError;

/// Bad usage, or an environment that does not let the run happen. Says nothing
/// about the broker's faithfulness.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// See [`PeerError`].
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// See [`AdminError`].
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// See [`EmbeddedError`].
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    /// See [`EngineError`].
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// See [`LedgerError`].
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// See [`WriteError`].
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A chart could not be drawn.
    #[error("cannot draw the report: {0}")]
    Chart(Box<dyn std::error::Error + Send + Sync>),
    /// A thread of this program has panicked.
    #[error("a thread of the load generator has panicked; this is a bug")]
    Panic,
    /// No room for temporary files.
    #[error("cannot make a temporary file: {0}")]
    Temporary(std::io::Error),
    /// Signals cannot be taken.
    #[error("cannot take signals: {0}")]
    Signals(std::io::Error),
    /// The arguments do not fit each other, or the topic.
    #[error("{0}")]
    Usage(String),
    /// The run could not be carried through.
    #[error("{0}")]
    Run(String),
}
