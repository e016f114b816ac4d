//! The listening socket of a core. Each core has one of its own on the same
//! address (SO_REUSEPORT), so the kernel spreads connections over cores.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::pace::{AT_ONCE, Step};
use super::{Host, Net, Op};
use crate::io::ring::{Completion, OpId, Ring, Target};
use crate::io::tcp;
use crate::limits::MAX_REFUSED_CONNECTIONS;
use crate::session::Violation;

/// Connections that wait to be accepted: as many as net.core.somaxconn lets.
const BACKLOG: i32 = i32::MAX;

/// How long accepting pauses after it failed: with no descriptor left it would
/// fail again at once, for ever.
const RETRY_US: u64 = 100_000;

/// How long an address may be taken before somebody is taken to listen there.
const LET_GO_WITHIN: Duration = Duration::from_secs(1);

/// Why there is no listening socket.
#[derive(thiserror::Error, Debug)]
#[error("cannot listen on {addr}: {source}")]
pub struct ListenError {
    /// Where.
    pub addr: SocketAddr,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// Finds out whether anybody listens on an address. SO_REUSEPORT would share the
/// port with another broker of the same user, and each would get some of the
/// connections.
///
/// The kernel lets go of a killed broker's ring, and with it of the accepts on its
/// socket, some time after the process is gone: that is waited for.
pub fn try_address(addr: SocketAddr) -> Result<(), ListenError> {
    let started = Instant::now();
    loop {
        match std::net::TcpListener::bind(addr) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && started.elapsed() < LET_GO_WITHIN => {
                std::thread::sleep(LET_GO_WITHIN / 100);
            }
            Err(source) => return Err(ListenError { addr, source }),
        }
    }
}

/// Opens `count` sockets that listen on the same address, and says which: port
/// 0 becomes a free one. Fails if anybody else listens there.
pub fn bind(addr: SocketAddr, count: usize) -> Result<(Vec<OwnedFd>, SocketAddr), ListenError> {
    let error = |source| ListenError { addr, source };
    try_address(addr)?;
    let first = open(addr).map_err(error)?;
    let bound = local_addr(&first).map_err(error)?;
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(open(bound).map_err(error)?);
    }
    Ok((sockets, bound))
}

fn open(addr: SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: socket makes a new descriptor, or -1.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    tcp::set_number(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    tcp::set_number(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    // An acknowledgement never waits for company.
    tcp::prepare(&socket, addr.ip())?;
    let (raw, len) = to_raw(addr);
    // SAFETY: `raw` is a socket address of `len` bytes.
    check(unsafe { libc::bind(fd, (&raw const raw).cast(), len) })?;
    // SAFETY: no memory.
    check(unsafe { libc::listen(fd, BACKLOG) })?;
    Ok(socket)
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn to_raw(addr: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: a sockaddr_storage is plain data, for which all zeros is a value.
    let mut raw: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let len = match addr {
        SocketAddr::V4(v4) => {
            let sin = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_storage has room for, and the alignment of, any
            // socket address.
            unsafe { (&raw mut raw).cast::<libc::sockaddr_in>().write(sin) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let sin6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut raw).cast::<libc::sockaddr_in6>().write(sin6) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (raw, len as libc::socklen_t)
}

fn local_addr(socket: &OwnedFd) -> io::Result<SocketAddr> {
    std::net::TcpListener::from(socket.try_clone()?).local_addr()
}

/// A socket with its accepts, each for one connection. Not a multishot accept: that
/// would go on within one system call for as long as they come.
pub(super) struct Listener {
    socket: OwnedFd,
    accepts: [Option<OpId>; AT_ONCE],
    /// When accepting may go on after it failed (monotonic, µs).
    retry_us: u64,
}

impl Listener {
    pub fn new(socket: OwnedFd) -> Listener {
        Listener { socket, accepts: [None; AT_ONCE], retry_us: 0 }
    }

    /// Ends accepting. Returns whether that must be waited for.
    pub fn cancel(&mut self, ring: &mut Ring) -> bool {
        for op in self.accepts.iter().flatten() {
            ring.cancel(*op);
        }
        self.is_accepting()
    }

    fn is_accepting(&self) -> bool {
        self.accepts.iter().any(Option::is_some)
    }
}

impl Net {
    /// Starts the accepts that are not under way, as far as the pace lets them. Returns
    /// when to go on if some are left (monotonic, µs).
    #[inline]
    pub(super) fn accept<H: Host>(&mut self, host: &mut H) -> Option<u64> {
        let listener = self.listener.as_mut().filter(|_| !self.stopping)?;
        let now_us = host.now().mono_us;
        if now_us < listener.retry_us {
            self.pace.wait(Step::Accept, false);
            return Some(listener.retry_us);
        }
        let target = Target::Fd(listener.socket.as_raw_fd());
        let idle = listener.accepts.iter_mut().enumerate().filter(|(_, accept)| accept.is_none());
        for (number, accept) in idle {
            if !self.pace.take(Step::Accept, now_us) {
                return self.pace.wait(Step::Accept, true);
            }
            *accept = Some(host.ring().accept(Op::Accept.token(number as u64), target));
        }
        self.pace.wait(Step::Accept, false)
    }

    /// Takes a completion of the accept of that number.
    pub(super) fn accepted<H: Host>(&mut self, number: u64, completion: &Completion, host: &mut H) {
        let listener = self.listener.as_mut().expect("it is kept until all accepts have ended");
        listener.accepts[number as usize] = None;
        let is_last = !listener.is_accepting();
        match completion.outcome() {
            Ok(fd) => {
                // SAFETY: the kernel made this descriptor for us.
                let socket = unsafe { OwnedFd::from_raw_fd(fd as i32) };
                self.greet(socket, host);
            }
            Err(_) if self.stopping => {}
            Err(error) => {
                let now_us = host.now().mono_us;
                if listener.retry_us <= now_us {
                    tracing::warn!(%error, "accepting connections failed; trying again");
                    listener.retry_us = now_us + RETRY_US;
                }
            }
        }
        if self.stopping && is_last {
            self.listener = None;
        }
    }

    fn greet<H: Host>(&mut self, socket: OwnedFd, host: &mut H) {
        if self.stopping {
            return;
        }
        self.counters.accepted += 1;
        let slot = self.open(socket, host);
        let limit = self.config.max_connections;
        let open = self.config.connections.load(Ordering::Relaxed);
        if open > limit {
            self.counters.refused += 1;
        }
        if open > limit + MAX_REFUSED_CONNECTIONS {
            self.end(slot, host);
        } else if open > limit {
            self.violate(slot, &Violation::TooManyConnections(limit), host);
        }
    }
}
