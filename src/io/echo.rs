//! A bare echo peer: the fastest answer that this machine's loopback and
//! io_uring give, which is what the broker's own speed is compared with.
//!
//! It returns the bytes that it received, in order, and knows nothing else.

mod bare;
mod buffers;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc;
use std::thread::JoinHandle;

pub(crate) use bare::{BareRing, build};
pub(crate) use buffers::{MappedBuffers, Mapping};

use crate::io::pin;
use crate::io::probe::{Resource, limit};
use crate::io::tcp;

/// Connections waiting to be accepted; the kernel caps it at net.core.somaxconn.
const ACCEPT_BACKLOG: i32 = 4096;

/// Most connections at one time, unless the process may open fewer files.
const MAX_CONNECTIONS: u64 = 16 << 10;

/// What a thread does when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wait {
    /// Sleeps until the kernel wakes it.
    #[default]
    Sleep,
    /// Looks again and again: answers sooner, and costs a whole core.
    BusyPoll,
}

/// A running echo peer on 127.0.0.1; it stops when dropped.
#[derive(Debug)]
pub struct EchoServer {
    addr: SocketAddr,
    /// An eventfd; the peer stops when it is written to.
    stop: OwnedFd,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl EchoServer {
    /// Starts one on a free port, on a thread of its own that is pinned to
    /// `core` (if given) and sleeps when idle.
    ///
    /// # Errors
    ///
    /// When the core is not available, or socket or ring cannot be made.
    pub fn start(core: Option<usize>) -> io::Result<EchoServer> {
        Self::start_with(core, Wait::Sleep)
    }

    /// As [`EchoServer::start`], with a choice of what it does when idle.
    ///
    /// # Errors
    ///
    /// As for [`EchoServer::start`].
    pub fn start_with(core: Option<usize>, wait: Wait) -> io::Result<EchoServer> {
        let listener = listen()?;
        let addr = listener.local_addr()?;
        let stop = eventfd()?;
        let stop_for_thread = stop.try_clone()?;
        let (started, on_start) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("echo".into())
            .spawn(move || serve(core, wait, &listener, &stop_for_thread, &started))?;
        // A thread that ends without a word has panicked; its error is there
        // all the same.
        on_start.recv().map_err(io::Error::other)??;
        Ok(EchoServer { addr, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn end(&mut self) -> io::Result<()> {
        let one = 1u64;
        // SAFETY: eight bytes are read from a u64, and an eventfd takes eight.
        let written = unsafe { libc::write(self.stop.as_raw_fd(), (&raw const one).cast(), 8) };
        assert_eq!(written, 8, "an eventfd takes a first write");
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            Some(Err(_)) => Err(io::Error::other("the echo peer's thread has panicked")),
            None => Ok(()),
        }
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "the echo peer failed");
        }
    }
}

fn serve(
    core: Option<usize>,
    wait: Wait,
    listener: &TcpListener,
    stop: &OwnedFd,
    started: &mpsc::SyncSender<io::Result<()>>,
) -> io::Result<()> {
    let set_up = || {
        if let Some(core) = core {
            pin::pin_thread(core).map_err(io::Error::other)?;
        }
        build(1024, 8192)
    };
    let files = limit(Resource::OpenFiles).soft.unwrap_or(MAX_CONNECTIONS);
    let connections = files.min(MAX_CONNECTIONS) as u32;
    let mut ring = match set_up() {
        Ok(ring) => ring,
        Err(error) => return refuse(error, started),
    };
    match worker::Worker::new(BareRing::new(&mut ring), listener.as_fd(), stop.as_fd(), connections) {
        Ok(worker) => {
            // Nobody listening means that nobody can stop the peer either.
            started.send(Ok(())).map_err(io::Error::other)?;
            worker.run(wait)
        }
        Err(error) => refuse(error, started),
    }
}

/// Hands the error to whoever starts the peer.
fn refuse(error: io::Error, started: &mpsc::SyncSender<io::Result<()>>) -> io::Result<()> {
    started.send(Err(error)).map_err(io::Error::other)
}

/// A listening socket whose connections are set as the broker's are.
fn listen() -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    tcp::prepare(&listener, IpAddr::V4(Ipv4Addr::LOCALHOST))?;
    // SAFETY: no memory; listening again on a listening socket only changes
    // its backlog.
    let done = unsafe { libc::listen(listener.as_raw_fd(), ACCEPT_BACKLOG) };
    if done == 0 { Ok(listener) } else { Err(io::Error::last_os_error()) }
}

fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: eventfd takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
