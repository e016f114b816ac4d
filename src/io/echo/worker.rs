//! The echo peer's event loop: receive, answer with the same bytes, repeat.
//!
//! Knows nothing of messages: a connection is a stream of bytes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::types::{Fd, Fixed};
use io_uring::{cqueue, opcode, squeue};
use smallvec::SmallVec;

use super::Wait;
use super::bare::BareRing;
use super::buffers::MappedBuffers;

/// Unsent bytes of one connection at which its receive is paused: what a peer
/// that never reads can cost.
const BACKLOG_LIMIT: usize = 1 << 20;

/// Receive buffers that one send gathers at most: 1 MiB, more than a socket
/// takes at once.
const GATHER_MAX: usize = 16;

/// 256 buffers of 64 KiB. With 1024, the buffers in turn no longer fit the
/// processor's cache: 0.80 of the echoes per second at 64 connections; 64
/// buffers or 256 KiB each made no difference that repeats.
const BUFFERS: u16 = 256;
const BUFFER_LEN: usize = 64 << 10;

const GROUP: u16 = 0;

/// What a completion belongs to: kept in the top byte of its user data, with
/// the connection's slot below.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Op {
    Accept,
    Stop,
    Recv,
    Direct,
    Backlog,
    Cancel,
    Close,
}

impl Op {
    const ALL: [Op; 7] = [Op::Accept, Op::Stop, Op::Recv, Op::Direct, Op::Backlog, Op::Cancel, Op::Close];

    fn tag(self, slot: u32) -> u64 {
        u64::from(self as u8) << 56 | u64::from(slot)
    }

    fn of(user_data: u64) -> (Op, u32) {
        (Op::ALL[(user_data >> 56) as usize], user_data as u32)
    }
}

/// Bytes that arrived and still sit in the receive buffer `id`.
#[derive(Clone, Copy)]
struct Chunk {
    id: u16,
    len: u32,
}

/// Where a connection's receive stands.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Recv {
    #[default]
    Off,
    Armed,
    Cancelling,
}

/// The parts of one gathered send; boxed, so the kernel's pointer to it stays
/// good when the connection table moves.
struct Gather {
    header: libc::msghdr,
    parts: [libc::iovec; GATHER_MAX],
}

impl Gather {
    fn new() -> Box<Self> {
        // SAFETY: msghdr and iovec are plain C structs of integers and raw
        // pointers, for which all zeroes is a value.
        unsafe { Box::new(std::mem::zeroed()) }
    }
}

/// One connection. Bytes pass from `arrived` to `direct`, and what the socket
/// does not take at once by copy to `backlog` and from there to `sending`.
#[derive(Default)]
struct Conn {
    open: bool,
    recv: Recv,
    /// The peer has sent all it will.
    eof: bool,
    /// An error ended the connection.
    dead: bool,
    closing: bool,
    /// Is in the worker's list of this name.
    dirty: bool,
    /// Is in the worker's list of this name.
    starved: bool,
    /// Arrived, not yet handed to a send.
    arrived: SmallVec<[Chunk; 4]>,
    /// In the send straight from receive buffers.
    direct: SmallVec<[Chunk; 4]>,
    gather: Option<Box<Gather>>,
    /// In the send that waits for the socket; `sent` of it is gone.
    sending: Vec<u8>,
    sent: usize,
    /// To be sent after `sending`.
    backlog: Vec<u8>,
}

impl Conn {
    fn unsent(&self) -> usize {
        self.backlog.len() + self.sending.len() - self.sent
    }

    fn idle(&self) -> bool {
        self.arrived.is_empty()
            && self.direct.is_empty()
            && self.sending.is_empty()
            && self.backlog.is_empty()
    }
}

/// Everything that the loop works on.
pub(super) struct Worker<'r> {
    ring: BareRing<'r>,
    buffers: MappedBuffers,
    listener: BorrowedFd<'r>,
    accepting: bool,
    conns: Vec<Conn>,
    /// Connections to look at once this turn's completions have been read.
    dirty: Vec<u32>,
    /// Connections whose receive is to be armed when there are buffers.
    starved: Vec<u32>,
    stopping: bool,
}

impl<'r> Worker<'r> {
    /// Registers what the loop needs. `stop` ends it when it becomes readable.
    pub(super) fn new(
        mut ring: BareRing<'r>,
        listener: BorrowedFd<'r>,
        stop: BorrowedFd<'r>,
        connections: u32,
    ) -> io::Result<Self> {
        ring.submitter().register_files_sparse(connections)?;
        // SAFETY: `run` drops the buffers only after `wind_down` has ended all
        // receives, and leaks them if it fails; before `run` there are none.
        let buffers = unsafe { MappedBuffers::register(ring.submitter(), GROUP, BUFFERS, BUFFER_LEN)? };
        let readable = opcode::PollAdd::new(Fd(stop.as_raw_fd()), libc::POLLIN as u32).build();
        // SAFETY: a poll points to no memory.
        unsafe { ring.push(readable.user_data(Op::Stop.tag(0))) };
        Ok(Self {
            ring,
            buffers,
            listener,
            accepting: false,
            conns: Vec::new(),
            dirty: Vec::new(),
            starved: Vec::new(),
            stopping: false,
        })
    }

    /// Serves until told to stop, then ends all operations.
    pub(super) fn run(mut self, wait: Wait) -> io::Result<()> {
        let served = self.serve(wait);
        if let Err(error) = self.ring.wind_down() {
            // The kernel may still use the memory, so it is not given back.
            std::mem::forget(self);
            return served.and(Err(error));
        }
        served
    }

    fn serve(&mut self, wait: Wait) -> io::Result<()> {
        while !self.stopping {
            if !self.accepting {
                self.accepting = true;
                let accept = opcode::AcceptMulti::new(Fd(self.listener.as_raw_fd()));
                self.push(accept.allocate_file_index(true).build(), Op::Accept, 0);
            }
            self.ring.wait(wait)?;
            while let Some(cqe) = self.ring.next() {
                self.complete(&cqe)?;
            }
            // Only now, so that all that arrived on a connection in this turn
            // leaves in one send.
            let mut dirty = std::mem::take(&mut self.dirty);
            for slot in dirty.drain(..) {
                self.flush(slot);
            }
            self.dirty = dirty;
            self.buffers.publish();
            self.feed_starved();
        }
        Ok(())
    }

    fn push(&mut self, entry: squeue::Entry, op: Op, slot: u32) {
        // SAFETY: the memory that an entry names is a receive buffer listed in
        // the connection's `direct`, its `gather`, or its `sending` from `sent`
        // on; none of them is changed, moved or freed before the operation's
        // completion, and `run` ends all operations before it frees any.
        unsafe { self.ring.push(entry.user_data(op.tag(slot))) };
    }

    fn complete(&mut self, cqe: &cqueue::Entry) -> io::Result<()> {
        let (op, slot) = Op::of(cqe.user_data());
        match op {
            Op::Accept => return self.accepted(cqe),
            Op::Stop => self.stopping = true,
            Op::Recv => self.received(slot, cqe),
            Op::Direct => self.sent_direct(slot, cqe.result()),
            Op::Backlog => self.sent_backlog(slot, cqe.result()),
            Op::Cancel => {}
            Op::Close => self.conns[slot as usize] = Conn::default(),
        }
        Ok(())
    }

    /// A failed accept has used up the connection that it failed on, so trying
    /// again waits for the next one; only a broken listener is the end.
    fn accepted(&mut self, cqe: &cqueue::Entry) -> io::Result<()> {
        if !cqueue::more(cqe.flags()) {
            self.accepting = false;
        }
        let Ok(slot) = u32::try_from(cqe.result()) else {
            return match -cqe.result() {
                libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP => {
                    Err(io::Error::from_raw_os_error(-cqe.result()))
                }
                _ => Ok(()),
            };
        };
        let needed = slot as usize + 1;
        if self.conns.len() < needed {
            self.conns.resize_with(needed, Conn::default);
        }
        let conn = &mut self.conns[slot as usize];
        assert!(!conn.open, "the kernel reused a slot that is open");
        conn.open = true;
        self.arm_recv(slot);
        Ok(())
    }

    fn arm_recv(&mut self, slot: u32) {
        self.conns[slot as usize].recv = Recv::Armed;
        self.push(opcode::RecvMulti::new(Fixed(slot), GROUP).build(), Op::Recv, slot);
    }

    fn mark_dirty(&mut self, slot: u32) {
        let conn = &mut self.conns[slot as usize];
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(slot);
        }
    }

    fn received(&mut self, slot: u32, cqe: &cqueue::Entry) {
        let conn = &mut self.conns[slot as usize];
        if !cqueue::more(cqe.flags()) {
            conn.recv = Recv::Off;
        }
        match cqe.result() {
            len @ 1.. => {
                let id = cqueue::buffer_select(cqe.flags()).expect("a receive names its buffer");
                self.buffers.taken();
                conn.arrived.push(Chunk { id, len: len as u32 });
            }
            0 => conn.eof = true,
            e if e == -libc::ENOBUFS || e == -libc::ECANCELED => {}
            _ => conn.dead = true,
        }
        self.mark_dirty(slot);
    }

    fn sent_direct(&mut self, slot: u32, result: i32) {
        let conn = &mut self.conns[slot as usize];
        let total: usize = conn.direct.iter().map(|chunk| chunk.len as usize).sum();
        let sent = match result {
            n @ 0.. => n as usize,
            e if e == -libc::EAGAIN => 0,
            _ => {
                conn.dead = true;
                total
            }
        };
        let mut rest = Vec::with_capacity(total - sent);
        let mut skip = sent;
        for chunk in conn.direct.drain(..) {
            let bytes = self.buffers.bytes(chunk.id, chunk.len as usize);
            let skipped = skip.min(bytes.len());
            rest.extend_from_slice(&bytes[skipped..]);
            skip -= skipped;
            self.buffers.give_back(chunk.id);
        }
        assert!(conn.backlog.is_empty(), "a direct send began before older bytes had left");
        conn.backlog = rest;
        self.mark_dirty(slot);
    }

    fn sent_backlog(&mut self, slot: u32, result: i32) {
        let conn = &mut self.conns[slot as usize];
        match usize::try_from(result) {
            Ok(sent) => conn.sent += sent,
            Err(_) => {
                conn.dead = true;
                conn.sent = conn.sending.len();
            }
        }
        if conn.sent < conn.sending.len() {
            self.send_backlog(slot);
        } else {
            conn.sending.clear();
            conn.sent = 0;
            self.mark_dirty(slot);
        }
    }

    fn send_backlog(&mut self, slot: u32) {
        let conn = &self.conns[slot as usize];
        let rest = &conn.sending[conn.sent..];
        let send = opcode::Send::new(Fixed(slot), rest.as_ptr(), rest.len() as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL);
        self.push(send.build(), Op::Backlog, slot);
    }

    /// Decides what a connection does next, after this turn's completions.
    fn flush(&mut self, slot: u32) {
        let conn = &mut self.conns[slot as usize];
        conn.dirty = false;
        if conn.dead {
            for chunk in conn.arrived.drain(..) {
                self.buffers.give_back(chunk.id);
            }
            conn.backlog.clear();
        }
        // A direct send that is under way may leave a rest, which goes first.
        if conn.direct.is_empty() {
            if conn.sending.is_empty() && !conn.backlog.is_empty() {
                std::mem::swap(&mut conn.sending, &mut conn.backlog);
                self.send_backlog(slot);
            }
            let conn = &mut self.conns[slot as usize];
            if conn.sending.is_empty() {
                self.send_direct(slot);
            } else {
                for chunk in conn.arrived.drain(..) {
                    conn.backlog.extend_from_slice(self.buffers.bytes(chunk.id, chunk.len as usize));
                    self.buffers.give_back(chunk.id);
                }
            }
        }
        self.regulate(slot);
    }

    /// Sends what arrived straight from the receive buffers. `MSG_DONTWAIT`
    /// makes the send complete as it is submitted, in full or not, so a peer
    /// that does not read cannot hold on to buffers that others need.
    fn send_direct(&mut self, slot: u32) {
        let conn = &mut self.conns[slot as usize];
        let count = conn.arrived.len().min(GATHER_MAX);
        conn.direct.extend(conn.arrived.drain(..count));
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let send = match conn.direct[..] {
            [] => return,
            [Chunk { id, len }] => {
                opcode::Send::new(Fixed(slot), self.buffers.address(id), len).flags(flags).build()
            }
            _ => {
                let Gather { header, parts } = &mut **conn.gather.get_or_insert_with(Gather::new);
                for (part, chunk) in parts.iter_mut().zip(&conn.direct) {
                    part.iov_base = self.buffers.address(chunk.id).cast_mut().cast();
                    part.iov_len = chunk.len as usize;
                }
                header.msg_iov = parts.as_mut_ptr();
                header.msg_iovlen = count;
                opcode::SendMsg::new(Fixed(slot), header).flags(flags as u32).build()
            }
        };
        self.push(send, Op::Direct, slot);
    }

    /// Pauses, resumes or ends a connection's receive; closes what is done.
    fn regulate(&mut self, slot: u32) {
        let conn = &mut self.conns[slot as usize];
        let ended = conn.eof || conn.dead;
        let wants = !ended && conn.unsent() < BACKLOG_LIMIT;
        match conn.recv {
            Recv::Armed if !wants => {
                conn.recv = Recv::Cancelling;
                let cancel = opcode::AsyncCancel::new(Op::Recv.tag(slot)).build();
                self.push(cancel, Op::Cancel, slot);
            }
            Recv::Off if wants && !conn.starved => {
                conn.starved = true;
                self.starved.push(slot);
            }
            Recv::Off if ended && conn.idle() && !conn.closing => {
                conn.closing = true;
                self.push(opcode::Close::new(Fixed(slot)).build(), Op::Close, slot);
            }
            _ => {}
        }
    }

    /// Arms receives again. Without a free buffer it would only fail again, so
    /// it waits for the sends that hold them; those complete on the next turn.
    fn feed_starved(&mut self) {
        if self.buffers.free() == 0 {
            return;
        }
        let mut starved = std::mem::take(&mut self.starved);
        for slot in starved.drain(..) {
            let conn = &mut self.conns[slot as usize];
            conn.starved = false;
            if conn.open && !conn.closing && conn.recv == Recv::Off {
                self.arm_recv(slot);
            }
        }
        self.starved = starved;
    }
}
