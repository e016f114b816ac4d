//! Metrics and health over HTTP, for those who watch over a broker.
//!
//! On a thread of its own, so that no core ever waits for a monitor. The broker
//! is asked over loopback as any client asks it: this knows nothing of cores
//! and shards, and what it says has been through all that a client's requests
//! go through.

mod http;
mod metrics;
mod source;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use source::{BrokerAt, Source};

/// Metrics and health cannot be served.
#[derive(thiserror::Error, Debug)]
pub enum AdminError {
    /// The address.
    #[error("cannot serve metrics and health (--admin) on {addr}: {source}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The thread or what it runs on.
    #[error("cannot start the thread for metrics and health: {0}")]
    Start(#[source] io::Error),
}

/// A taken address, where nothing is answered yet.
#[derive(Debug)]
pub struct AdminListener {
    listener: TcpListener,
    addr: SocketAddr,
}

impl AdminListener {
    /// Listens on `addr`; port 0 becomes a free one.
    ///
    /// # Errors
    /// [`AdminError::Listen`], above all when somebody else listens there.
    pub fn bind(addr: SocketAddr) -> Result<AdminListener, AdminError> {
        let error = |source| AdminError::Listen { addr, source };
        let listener = TcpListener::bind(addr).map_err(error)?;
        listener.set_nonblocking(true).map_err(error)?;
        let addr = listener.local_addr().map_err(error)?;
        Ok(AdminListener { listener, addr })
    }
}

/// Metrics and health, served until this is dropped. Requests that are under
/// way then are not waited for.
#[derive(Debug)]
pub struct Admin {
    addr: SocketAddr,
    broker: Arc<OnceLock<BrokerAt>>,
    /// Dropped to end the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Serves on `listener`, and says that the broker is recovering until it is
    /// told [otherwise](Self::broker_serves). The thread may run where the calling
    /// thread may, which therefore should not be pinned.
    ///
    /// # Errors
    /// [`AdminError::Start`].
    pub fn start(listener: AdminListener) -> Result<Admin, AdminError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(AdminError::Start)?;
        let AdminListener { listener, addr } = listener;
        let listener = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(AdminError::Start)?
        };
        let broker = Arc::new(OnceLock::new());
        let source = Source::new(Arc::clone(&broker));
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = http::serve(listener, source) => {}
                }
            });
        };
        let thread =
            std::thread::Builder::new().name("admin".to_owned()).spawn(serve).map_err(AdminError::Start)?;
        Ok(Admin { addr, broker, stop: Some(stop), thread: Some(thread) })
    }

    /// From now on tells what the broker that listens on `addr` says, as long as
    /// it is not stopping. What was told first stays.
    pub fn broker_serves(&self, addr: SocketAddr, is_stopping: impl Fn() -> bool + Send + Sync + 'static) {
        self.broker.get_or_init(|| BrokerAt::new(addr, Box::new(is_stopping)));
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // If it has panicked, its message is in the log, and the broker ends
            // as it would have.
            let _ = thread.join();
        }
    }
}
