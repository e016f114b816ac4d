//! The operations that a ring takes. Each is safe: its memory goes in with it,
//! or it uses none.

use std::ffi::{CStr, CString};
use std::ops::Range;
use std::os::fd::RawFd;

use io_uring::opcode;
use io_uring::types::{Fd, Fixed, FsyncFlags};

use super::held::{Held, SendParts};
use super::{Class, OpId, Ring, Token};
use crate::io::pool::PoolBuffer;

/// An open file or socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// By descriptor.
    Fd(RawFd),
    /// By its place in the ring's registered files.
    Fixed(u32),
}

/// Builds an entry for either kind of target: `$file` is one or the other.
macro_rules! on {
    ($target:expr, |$file:ident| $build:expr) => {
        match $target {
            Target::Fd(fd) => {
                let $file = Fd(fd);
                $build
            }
            Target::Fixed(place) => {
                let $file = Fixed(place);
                $build
            }
        }
    };
}

fn io_len(len: usize) -> u32 {
    u32::try_from(len).expect("no buffer is longer than 4 GiB")
}

/// Files.
impl Ring {
    /// Writes `data` at `position`; durable with its completion if `durable`
    /// (`RWF_DSYNC`).
    pub fn write(
        &mut self,
        token: Token,
        file: Target,
        position: u64,
        data: impl Into<Held>,
        durable: bool,
    ) -> OpId {
        let rw_flags = if durable { libc::RWF_DSYNC } else { 0 };
        // SAFETY: the entry points to the held bytes, which do not move.
        unsafe {
            self.push_held(token, data.into(), |held, pool| {
                let bytes = held.as_slice();
                let (at, len) = (bytes.as_ptr(), io_len(bytes.len()));
                match pool.and_then(|pool| pool.index(bytes)) {
                    Some(index) => on!(file, |f| opcode::WriteFixed::new(f, at, len, index)
                        .offset(position)
                        .rw_flags(rw_flags)
                        .build()),
                    None => on!(file, |f| opcode::Write::new(f, at, len)
                        .offset(position)
                        .rw_flags(rw_flags)
                        .build()),
                }
            })
        }
    }

    /// Reads the buffer full from `position`; fewer bytes come at the file's
    /// end.
    pub fn read(&mut self, token: Token, file: Target, position: u64, buffer: PoolBuffer) -> OpId {
        // SAFETY: the entry points to the held buffer, which does not move.
        unsafe {
            self.push_held(token, Held::Buffer(buffer), |held, pool| {
                let index = pool.and_then(|pool| pool.index(held.as_slice()));
                let (at, len) = held_range(held, None);
                match index {
                    Some(index) => {
                        on!(file, |f| opcode::ReadFixed::new(f, at, len, index).offset(position).build())
                    }
                    None => on!(file, |f| opcode::Read::new(f, at, len).offset(position).build()),
                }
            })
        }
    }

    /// Flushes a file, or a folder; only what is needed to read the data back
    /// if `data_only`. Runs on a worker of the kernel's.
    pub fn fsync(&mut self, token: Token, fd: RawFd, data_only: bool) -> OpId {
        let flags = if data_only { FsyncFlags::DATASYNC } else { FsyncFlags::empty() };
        // SAFETY: no memory.
        unsafe { self.push_raw(opcode::Fsync::new(Fd(fd)).flags(flags).build(), token) }
    }

    /// Allocates the first `len` bytes of a file; `mode` as for fallocate(2).
    pub fn fallocate(&mut self, token: Token, fd: RawFd, mode: i32, len: u64) -> OpId {
        // SAFETY: no memory.
        unsafe { self.push_raw(opcode::Fallocate::new(Fd(fd), len).mode(mode).build(), token) }
    }

    /// Opens `name` in the folder `dir`; the result is a descriptor that is the
    /// caller's to close. `flags` as for open(2); a new file has mode 0640.
    pub fn open_at(&mut self, token: Token, dir: RawFd, name: CString, flags: i32) -> OpId {
        // SAFETY: the entry points to the held name, which does not move.
        unsafe {
            self.push_held(token, Held::Paths(name, None), |held, _| {
                let (name, _) = held_paths(held);
                opcode::OpenAt::new(Fd(dir), name.as_ptr()).flags(flags | libc::O_CLOEXEC).mode(0o640).build()
            })
        }
    }

    /// Renames within the folder `dir`; an existing file of the new name is an
    /// error.
    pub fn rename_at(&mut self, token: Token, dir: RawFd, from: CString, to: CString) -> OpId {
        // SAFETY: the entry points to the held names, which do not move.
        unsafe {
            self.push_held(token, Held::Paths(from, Some(to)), |held, _| {
                let (from, to) = held_paths(held);
                opcode::RenameAt::new(Fd(dir), from.as_ptr(), Fd(dir), to.as_ptr())
                    .flags(libc::RENAME_NOREPLACE)
                    .build()
            })
        }
    }

    /// Removes `name` from the folder `dir`.
    pub fn unlink_at(&mut self, token: Token, dir: RawFd, name: CString) -> OpId {
        // SAFETY: the entry points to the held name, which does not move.
        unsafe {
            self.push_held(token, Held::Paths(name, None), |held, _| {
                opcode::UnlinkAt::new(Fd(dir), held_paths(held).0.as_ptr()).build()
            })
        }
    }
}

/// Sockets.
impl Ring {
    /// Accepts a connection: the result is a new descriptor. The sockets are
    /// blocking ones: on others the kernel answers EAGAIN where it should wait.
    pub fn accept(&mut self, token: Token, listener: Target) -> OpId {
        let no_addr = (std::ptr::null_mut(), std::ptr::null_mut());
        let entry =
            on!(listener, |f| opcode::Accept::new(f, no_addr.0, no_addr.1).flags(libc::SOCK_CLOEXEC).build());
        // SAFETY: no memory: the peer's address is not asked for.
        unsafe { self.push_raw(entry, token) }
    }

    /// Receives into buffers of a registered group until it fails or they run
    /// out. Re-arm when no more are to come.
    pub fn recv_multi(&mut self, token: Token, socket: Target, group: u16) -> OpId {
        let entry = on!(socket, |f| opcode::RecvMulti::new(f, group).build());
        // SAFETY: no memory but that of the group, for which the one who
        // registered it answers.
        unsafe { self.push_raw(entry, token) }
    }

    /// Receives into `buffer[range]`; `flags` as for recv(2).
    ///
    /// # Panics
    /// If the range is not within the buffer.
    pub fn recv(
        &mut self,
        token: Token,
        socket: Target,
        buffer: PoolBuffer,
        range: Range<usize>,
        flags: i32,
    ) -> OpId {
        // SAFETY: the entry points to the held buffer, which does not move.
        unsafe {
            self.push_held(token, Held::Buffer(buffer), |held, _| {
                let (at, len) = held_range(held, Some(range));
                on!(socket, |f| opcode::Recv::new(f, at, len).flags(flags).build())
            })
        }
    }

    /// Sends `data[range]`; `flags` as for send(2).
    ///
    /// # Panics
    /// If the range is not within the data.
    pub fn send(
        &mut self,
        token: Token,
        socket: Target,
        data: impl Into<Held>,
        range: Range<usize>,
        flags: i32,
    ) -> OpId {
        let flags = flags | libc::MSG_NOSIGNAL;
        // SAFETY: the entry points to the held bytes, which do not move.
        unsafe {
            self.push_held(token, data.into(), |held, _| {
                let bytes = &held.as_slice()[range];
                let (at, len) = (bytes.as_ptr(), io_len(bytes.len()));
                on!(socket, |f| opcode::Send::new(f, at, len).flags(flags).build())
            })
        }
    }

    /// Sends the pieces in order, as many as one system call takes.
    pub fn send_parts(&mut self, token: Token, socket: Target, parts: Box<SendParts>) -> OpId {
        let flags = libc::MSG_NOSIGNAL as u32;
        // SAFETY: the header points into the box and to shared bytes, which the
        // held value keeps and which do not move with it.
        unsafe {
            self.push_held(token, Held::Parts(parts), |held, _| {
                let Held::Parts(parts) = held else { unreachable!("pushed as parts") };
                let header = parts.header();
                on!(socket, |f| opcode::SendMsg::new(f, header).flags(flags).build())
            })
        }
    }
}

/// Everything else.
impl Ring {
    /// Closes a file.
    pub fn close(&mut self, token: Token, file: Target) -> OpId {
        let entry = on!(file, |f| opcode::Close::new(f).build());
        // SAFETY: no memory.
        unsafe { self.push_raw(entry, token) }
    }

    /// Completes whenever the descriptor becomes ready for `events` (poll(2)).
    /// Re-arm when no more are to come.
    pub fn poll_multi(&mut self, token: Token, fd: RawFd, events: i16) -> OpId {
        // The kernel takes poll(2)'s bits as they are.
        let entry = opcode::PollAdd::new(Fd(fd), events as u16 as u32).multi(true).build();
        // SAFETY: no memory.
        unsafe { self.push_raw(entry, token) }
    }

    /// Cancels an operation, if it is still there: its own completion then says
    /// `ECANCELED`. The cancelling itself is not answered.
    pub fn cancel(&mut self, op: OpId) -> OpId {
        let entry = opcode::AsyncCancel::new(op.0).build();
        // SAFETY: no memory.
        unsafe { self.push_raw_silent(entry, Token::new(Class::Ignored, 0)) }
    }

    /// Makes a completion with `deliver` appear on another ring, which wakes the
    /// core that waits on it. Answered, with `token`, only on failure.
    pub fn message(&mut self, token: Token, ring: RawFd, deliver: Token) -> OpId {
        let entry = opcode::MsgRingData::new(Fd(ring), 0, deliver.message(), None).build();
        // SAFETY: no memory.
        unsafe { self.push_raw_silent(entry, token) }
    }
}

/// Where a kernel that fills the held buffer starts, and how far it may go.
fn held_range(held: &mut Held, range: Option<Range<usize>>) -> (*mut u8, u32) {
    let Held::Buffer(buffer) = held else { unreachable!("pushed as a buffer") };
    let bytes = match range {
        Some(range) => &mut buffer.as_mut()[range],
        None => buffer.as_mut(),
    };
    (bytes.as_mut_ptr(), io_len(bytes.len()))
}

fn held_paths(held: &Held) -> (&CStr, &CStr) {
    match held {
        Held::Paths(one, other) => (one, other.as_deref().unwrap_or(one)),
        _ => unreachable!("pushed as names"),
    }
}
