//! A broker within this process, on a fresh directory that is removed again.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Why the broker does not start.
#[derive(thiserror::Error, Debug)]
pub enum EmbeddedError {
    /// No fresh directory.
    #[error("cannot make a directory for the broker in {parent}: {source}; choose another with --data")]
    Directory {
        /// Where.
        parent: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The broker's own reason.
    #[error("the embedded broker does not start: {0}")]
    Start(String),
    /// The broker's own reason.
    #[error("the embedded broker does not stop: {0}")]
    Stop(String),
}

/// See the [module](self).
pub struct Embedded {
    addr: SocketAddr,
    dir: tempfile::TempDir,
}

impl Embedded {
    /// Starts a broker in a fresh directory within `parent`, or within the
    /// working directory: that is more often on a disk than the system's place
    /// for temporary files is.
    pub fn start(parent: Option<&Path>, core: Option<usize>) -> Result<Embedded, EmbeddedError> {
        let _ = core;
        let parent = parent.unwrap_or(Path::new("."));
        let dir = tempfile::Builder::new().prefix("ringbolt-loadgen-").tempdir_in(parent);
        let _dir = dir.map_err(|source| EmbeddedError::Directory { parent: parent.to_owned(), source })?;
        Err(EmbeddedError::Start("not yet".into()))
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it keeps its data.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Stops the broker and starts it again on what it left on disk.
    pub fn restart(self) -> Result<Embedded, EmbeddedError> {
        Ok(self)
    }
}
