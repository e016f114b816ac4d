//! A bare echo peer: the fastest answer that this machine's loopback and
//! io_uring give, which is what the broker's own speed is compared with.
//!
//! It returns the bytes that it received, in order, and knows nothing else.

mod pool;
mod worker;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread::JoinHandle;

use io_uring::IoUring;

pub(crate) use pool::{Mapping, RecvPool};

/// A running echo peer on 127.0.0.1; it stops when dropped.
pub struct EchoServer {
    addr: SocketAddr,
    stop: OwnedFd,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl EchoServer {
    /// Starts one.
    pub fn start(core: Option<usize>, spin: bool) -> io::Result<EchoServer> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let fd = listener.as_raw_fd();
        // SAFETY: fine
        unsafe { libc::listen(fd, 4096) };
        set_opts(fd);
        let addr = listener.local_addr()?;
        // SAFETY: fine
        let stop = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, 0)) };
        let stop_fd = stop.as_raw_fd();
        let thread = std::thread::spawn(move || {
            if let Some(core) = core { pin(core)?; }
            let mut ring = IoUring::builder()
                .setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all().setup_cqsize(8192).build(1024)?;
            let r = worker::serve(&mut ring, &worker::WorkerConfig { listener: listener.as_raw_fd(), stop: stop_fd, connections: 4096, spin });
            if let Err(e) = &r { eprintln!("echo: {e}"); }
            r
        });
        Ok(EchoServer { addr, stop, thread: Some(thread) })
    }
    /// Addr.
    pub fn addr(&self) -> SocketAddr { self.addr }
}

pub(crate) fn set_opts(fd: i32) {
    let one: i32 = 1;
    // SAFETY: fine
    unsafe {
        libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const one).cast(), 4);
        if let Ok(cc) = std::env::var("X_CC") {
            let r = libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_CONGESTION, cc.as_ptr().cast(), cc.len() as u32);
            if r != 0 { eprintln!("cc: {}", io::Error::last_os_error()); }
        }
        if let Ok(b) = std::env::var("X_BUF") {
            let b: i32 = b.parse().unwrap();
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, (&raw const b).cast(), 4);
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, (&raw const b).cast(), 4);
        }
    }
}

pub(crate) fn pin(core: usize) -> io::Result<()> {
    // SAFETY: fine
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        if libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) != 0 { return Err(io::Error::last_os_error()); }
    }
    Ok(())
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        let one = 1u64;
        // SAFETY: fine
        unsafe { libc::write(self.stop.as_raw_fd(), (&raw const one).cast(), 8) };
        if let Some(t) = self.thread.take() { let _ = t.join(); }
    }
}
