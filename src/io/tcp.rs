//! What every TCP socket of the broker and of its measuring tools is set to.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

/// A congestion control without a clock, which every kernel has and lets
/// everybody choose.
const UNPACED: &[u8] = b"reno";

/// Makes a connected or listening socket send at once whatever it is given;
/// what is accepted inherits it from the listener. `addr` is the peer's
/// address, or the listener's own.
///
/// On loopback, where nothing is ever congested, it also keeps the kernel from
/// pacing: with `bbr` as the system's congestion control, timers space the
/// packets out, which costs large batches a fifth of their throughput (see
/// tuning.md).
///
/// # Errors
/// When the kernel refuses to send at once; a connection works without, too.
pub fn prepare(socket: &impl AsRawFd, addr: IpAddr) -> io::Result<()> {
    if addr.is_loopback() {
        // A kernel that refuses paces, and everything works.
        let _ = set(socket, libc::IPPROTO_TCP, libc::TCP_CONGESTION, UNPACED);
    }
    set_number(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)
}

/// Bytes of data that the socket has received since it was connected.
///
/// # Errors
/// When the kernel does not say.
pub(in crate::io) fn received_bytes(socket: &impl AsRawFd) -> io::Result<u64> {
    // SAFETY: a tcp_info is plain data, for which all zeros is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes of plain data into `info`.
    let done = unsafe {
        let value = (&raw mut info).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, value, &raw mut len)
    };
    match done {
        0 if len as usize >= std::mem::offset_of!(libc::tcp_info, tcpi_bytes_received) + 8 => {
            Ok(info.tcpi_bytes_received)
        }
        0 => Err(io::ErrorKind::Unsupported.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets an option whose value is a number.
pub(in crate::io) fn set_number(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set(socket, level, name, &value.to_ne_bytes())
}

fn set(socket: &impl AsRawFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the value is `len` bytes long, and only read.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    fn congestion_control(socket: &TcpStream) -> String {
        let mut name = [0u8; 16];
        let mut len = name.len() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes.
        let done = unsafe {
            let value = name.as_mut_ptr().cast();
            libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_CONGESTION, value, &raw mut len)
        };
        assert_eq!(done, 0);
        name.iter().take_while(|&&byte| byte != 0).map(|&byte| char::from(byte)).collect()
    }

    #[test]
    fn both_ends_of_a_loopback_connection_send_at_once_and_unpaced() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        prepare(&listener, IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap();
        let addr = listener.local_addr().unwrap();
        let ours = TcpStream::connect(addr).unwrap();
        prepare(&ours, addr.ip()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        for end in [&ours, &theirs] {
            assert!(end.nodelay().unwrap());
            assert_eq!(congestion_control(end), "reno");
        }
    }

    #[test]
    fn the_system_decides_about_pacing_to_other_hosts() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let before = congestion_control(&ours);
        prepare(&ours, IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))).unwrap();
        assert!(ours.nodelay().unwrap());
        assert_eq!(congestion_control(&ours), before);
    }
}
