//! A broker within this process, on a fresh directory that is removed again.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ringbolt::io::pin::{PinError, available_cpus};
use ringbolt::serve::{Broker, Config, ServeError};

/// Why the broker does not run.
#[derive(thiserror::Error, Debug)]
pub enum EmbeddedError {
    /// No fresh directory.
    #[error("cannot make a directory for the broker in {}: {source}; choose another with loadgen run --data DIR", parent.display())]
    Directory {
        /// Where.
        parent: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cores are not known.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The broker's own reason.
    #[error("the embedded broker does not run in {}: {source}; choose another with loadgen run --data DIR", dir.display())]
    Broker {
        /// Its directory.
        dir: PathBuf,
        /// Why; large, and rare.
        source: Box<ServeError>,
    },
}

/// See the [module](self).
pub struct Embedded {
    broker: Broker,
    dir: tempfile::TempDir,
    core: usize,
}

impl Embedded {
    /// Starts a broker in a fresh directory within `parent`, or within the
    /// working directory: that is more often on a disk than the system's place
    /// for temporary files is.
    ///
    /// It runs on one core, `core` or the first that there is, with one shard:
    /// the others are for the load.
    pub fn start(parent: Option<&Path>, core: Option<usize>) -> Result<Embedded, EmbeddedError> {
        let parent = parent.unwrap_or(Path::new("."));
        let core = match core {
            Some(core) => core,
            None => available_cpus()?.first().copied().unwrap_or(0),
        };
        let dir = tempfile::Builder::new().prefix("ringbolt-loadgen-").tempdir_in(parent);
        let dir = dir.map_err(|source| EmbeddedError::Directory { parent: parent.to_owned(), source })?;
        let broker = start(dir.path(), core)?;
        Ok(Embedded { broker, dir, core })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.broker.addr()
    }

    /// The directory, in which `data` is the broker's.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Stops the broker and starts it again on what it left on disk.
    pub fn restart(self) -> Result<Embedded, EmbeddedError> {
        let Embedded { broker, dir, core } = self;
        broker.stop().map_err(|source| failed(dir.path(), source))?;
        let broker = start(dir.path(), core)?;
        Ok(Embedded { broker, dir, core })
    }
}

fn start(dir: &Path, core: usize) -> Result<Broker, EmbeddedError> {
    let mut config = Config::new(dir.join("data"));
    config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.cores = Some(vec![core]);
    config.shards = Some(1);
    Broker::start(config).map_err(|source| failed(dir, source))
}

fn failed(dir: &Path, source: ServeError) -> EmbeddedError {
    EmbeddedError::Broker { dir: dir.to_owned(), source: Box::new(source) }
}
