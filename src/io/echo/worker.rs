//! The echo peer's event loop: receive, answer with the same bytes, repeat.
//!
//! Knows nothing of messages: a connection is a stream of bytes.

use std::io;
use std::os::fd::RawFd;

use io_uring::types::{CancelBuilder, Fd, Fixed};
use io_uring::{IoUring, Submitter, cqueue, opcode, squeue};
use smallvec::SmallVec;

use super::pool::RecvPool;

/// Unsent bytes of one connection at which its receive is paused: what a peer
/// that never reads can cost.
const BACKLOG_LIMIT: usize = 1 << 20;

/// Receive buffers that one send gathers at most.
const GATHER_MAX: usize = 16;

const GROUP: u16 = 0;

/// What a completion belongs to: kept in the top byte of its user data, with
/// the connection's slot below.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Op {
    Accept = 1,
    Stop,
    Recv,
    Direct,
    Backlog,
    Cancel,
    Close,
}

impl Op {
    const ALL: [Op; 7] = [
        Op::Accept,
        Op::Stop,
        Op::Recv,
        Op::Direct,
        Op::Backlog,
        Op::Cancel,
        Op::Close,
    ];

    fn tag(self, slot: u32) -> u64 {
        (self as u64) << 56 | u64::from(slot)
    }

    fn of(user_data: u64) -> (Op, u32) {
        let op = Op::ALL[(user_data >> 56) as usize - 1];
        (op, user_data as u32)
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

/// Scatter list of one gathered send; boxed, so the kernel's pointer to it
/// stays good wherever the connection table moves.
struct Gather {
    header: libc::msghdr,
    parts: [libc::iovec; GATHER_MAX],
}

#[derive(Default)]
struct Conn {
    open: bool,
    recv: Recv,
    eof: bool,
    dead: bool,
    dirty: bool,
    starved: bool,
    /// Arrived, not yet handed to a send.
    arrived: SmallVec<[Chunk; 4]>,
    /// In the send that is straight from receive buffers.
    direct: SmallVec<[Chunk; 4]>,
    /// In the send of bytes that the socket did not take at once.
    sending: Vec<u8>,
    sent: usize,
    /// To be sent after `sending`.
    backlog: Vec<u8>,
    gather: Option<Box<Gather>>,
    closing: bool,
}

impl Conn {
    fn unsent(&self) -> usize {
        self.backlog.len() + self.sending.len() - self.sent
    }
}

pub(super) struct Worker<'r> {
    submitter: Submitter<'r>,
    sq: squeue::SubmissionQueue<'r>,
    pool: RecvPool,
    conns: Vec<Conn>,
    listener: RawFd,
    /// Connections to look at once the batch of completions has been read.
    dirty: Vec<u32>,
    /// Connections whose receive ended for want of a buffer.
    starved: Vec<u32>,
    accept_armed: bool,
    /// Operations that the kernel still owes a final completion.
    owed: usize,
    stopping: bool,
}

pub(super) struct WorkerConfig {
    pub listener: RawFd,
    pub stop: RawFd,
    pub connections: u32,
    pub spin: bool,
}

/// Serves until `config.stop` becomes readable.
pub(super) fn serve(ring: &mut IoUring, config: &WorkerConfig) -> io::Result<()> {
    let (mut submitter, sq, mut cq) = ring.split();
    submitter.register_ring_fd()?;
    submitter.register_files_sparse(config.connections)?;
    let entries = std::env::var("X_ENTRIES").ok().and_then(|v| v.parse().ok()).unwrap_or(256u16);
    let len = std::env::var("X_LEN").ok().and_then(|v| v.parse().ok()).unwrap_or(65536usize);
    let pool = RecvPool::register(&submitter, GROUP, entries, len)?;
    let mut conns = Vec::new();
    conns.resize_with(config.connections as usize, Conn::default);
    let mut worker = Worker {
        submitter,
        sq,
        pool,
        conns,
        listener: config.listener,
        dirty: Vec::new(),
        starved: Vec::new(),
        accept_armed: false,
        owed: 0,
        stopping: false,
    };
    worker.push(opcode::PollAdd::new(Fd(config.stop), libc::POLLIN as u32).build(), Op::Stop, 0)?;
    let result = worker.run(&mut cq, config.spin);
    worker.wind_down(&mut cq).and(result)
}

impl Worker<'_> {
    fn run(&mut self, cq: &mut cqueue::CompletionQueue<'_>, spin: bool) -> io::Result<()> {
        while !self.stopping {
            if !self.accept_armed {
                self.arm_accept()?;
            }
            self.wait(cq, spin)?;
            for cqe in &mut *cq {
                self.complete(&cqe)?;
            }
            let mut dirty = std::mem::take(&mut self.dirty);
            for slot in dirty.drain(..) {
                self.flush(slot)?;
            }
            self.dirty = dirty;
            self.pool.publish();
            self.feed_starved()?;
        }
        Ok(())
    }

    fn wait(&mut self, cq: &mut cqueue::CompletionQueue<'_>, spin: bool) -> io::Result<()> {
        self.sq.sync();
        if spin {
            self.submitter.submit()?;
            self.sq.sync();
            cq.sync();
            while cq.is_empty() && !self.sq.taskrun() {
                std::hint::spin_loop();
                cq.sync();
            }
            if cq.is_empty() { self.submitter.submit()?; }
        } else {
            match self.submitter.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
                Err(e) => return Err(e),
            }
        }
        self.sq.sync();
        cq.sync();
        Ok(())
    }

    fn push(&mut self, entry: squeue::Entry, op: Op, slot: u32) -> io::Result<()> {
        let entry = entry.user_data(op.tag(slot));
        // SAFETY: memory named by an entry is a receive buffer held by the
        // connection (`direct`), its `sending` vector or its boxed `gather`;
        // none of them is touched or freed before the operation's completion,
        // and `wind_down` waits for every one of them.
        while unsafe { self.sq.push(&entry) }.is_err() {
            self.sq.sync();
            self.submitter.submit()?;
            self.sq.sync();
        }
        self.owed += 1;
        Ok(())
    }

    fn arm_accept(&mut self) -> io::Result<()> {
        self.accept_armed = true;
        let accept = opcode::AcceptMulti::new(Fd(self.listener)).allocate_file_index(true).build();
        self.push(accept, Op::Accept, 0)
    }

    fn arm_recv(&mut self, slot: u32) -> io::Result<()> {
        self.conns[slot as usize].recv = Recv::Armed;
        self.push(opcode::RecvMulti::new(Fixed(slot), GROUP).build(), Op::Recv, slot)
    }

    fn complete(&mut self, cqe: &cqueue::Entry) -> io::Result<()> {
        let (op, slot) = Op::of(cqe.user_data());
        if !cqueue::more(cqe.flags()) {
            self.owed -= 1;
        }
        match op {
            Op::Accept => self.accepted(cqe),
            Op::Stop => {
                self.stopping = true;
                Ok(())
            }
            Op::Recv => {
                self.received(slot, cqe);
                Ok(())
            }
            Op::Direct => {
                self.sent_direct(slot, cqe.result());
                Ok(())
            }
            Op::Backlog => self.sent_backlog(slot, cqe.result()),
            Op::Cancel => Ok(()),
            Op::Close => {
                self.conns[slot as usize] = Conn::default();
                Ok(())
            }
        }
    }

    fn accepted(&mut self, cqe: &cqueue::Entry) -> io::Result<()> {
        if !cqueue::more(cqe.flags()) {
            self.accept_armed = false;
        }
        if cqe.result() < 0 {
            return Ok(());
        }
        let slot = cqe.result() as u32;
        let conn = &mut self.conns[slot as usize];
        assert!(!conn.open, "the kernel reused a slot that is open");
        conn.open = true;
        self.arm_recv(slot)
    }

    fn mark(&mut self, slot: u32) {
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
                self.pool.taken();
                conn.arrived.push(Chunk { id, len: len as u32 });
            }
            0 => conn.eof = true,
            e if e == -libc::ENOBUFS || e == -libc::ECANCELED => {}
            _ => conn.dead = true,
        }
        self.mark(slot);
    }

    fn sent_direct(&mut self, slot: u32, result: i32) {
        let conn = &mut self.conns[slot as usize];
        let mut sent = match result {
            n @ 0.. => n as usize,
            e if e == -libc::EAGAIN => 0,
            _ => {
                conn.dead = true;
                usize::MAX
            }
        };
        let mut rest = Vec::new();
        for chunk in conn.direct.drain(..) {
            let skip = sent.min(chunk.len as usize);
            sent -= skip;
            rest.extend_from_slice(&self.pool.bytes(chunk.id, chunk.len as usize)[skip..]);
            self.pool.give_back(chunk.id);
        }
        if !rest.is_empty() {
            rest.append(&mut conn.backlog);
            conn.backlog = rest;
        }
        self.mark(slot);
    }

    fn sent_backlog(&mut self, slot: u32, result: i32) -> io::Result<()> {
        let conn = &mut self.conns[slot as usize];
        if result < 0 {
            conn.dead = true;
            conn.sending.clear();
            conn.sent = 0;
        } else {
            conn.sent += result as usize;
            if conn.sent < conn.sending.len() {
                return self.send_backlog(slot);
            }
            conn.sending.clear();
            conn.sent = 0;
        }
        self.mark(slot);
        Ok(())
    }

    fn send_backlog(&mut self, slot: u32) -> io::Result<()> {
        let conn = &self.conns[slot as usize];
        let rest = &conn.sending[conn.sent..];
        let entry = opcode::Send::new(Fixed(slot), rest.as_ptr(), rest.len() as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        self.push(entry, Op::Backlog, slot)
    }

    /// Decides what a connection does next, after this turn's completions.
    fn flush(&mut self, slot: u32) -> io::Result<()> {
        let conn = &mut self.conns[slot as usize];
        conn.dirty = false;
        if conn.dead {
            for chunk in conn.arrived.drain(..) {
                self.pool.give_back(chunk.id);
            }
            conn.backlog.clear();
        }
        if conn.direct.is_empty() {
            if conn.sending.is_empty() && !conn.backlog.is_empty() {
                std::mem::swap(&mut conn.sending, &mut conn.backlog);
                self.send_backlog(slot)?;
            }
            let conn = &mut self.conns[slot as usize];
            if !conn.sending.is_empty() {
                for chunk in conn.arrived.drain(..) {
                    conn.backlog.extend_from_slice(self.pool.bytes(chunk.id, chunk.len as usize));
                    self.pool.give_back(chunk.id);
                }
            } else if !conn.arrived.is_empty() {
                self.send_direct(slot)?;
            }
        }
        self.regulate(slot)
    }

    /// Sends what arrived straight from the receive buffers. `MSG_DONTWAIT`
    /// makes it complete at submission, in full or not, so a peer that does not
    /// read cannot hold the pool's buffers.
    fn send_direct(&mut self, slot: u32) -> io::Result<()> {
        let conn = &mut self.conns[slot as usize];
        let count = conn.arrived.len().min(GATHER_MAX);
        conn.direct.extend(conn.arrived.drain(..count));
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let entry = if let [chunk] = conn.direct[..] {
            opcode::Send::new(Fixed(slot), self.pool.address(chunk.id), chunk.len)
                .flags(flags)
                .build()
        } else {
            let gather = conn.gather.get_or_insert_with(Gather::new);
            for (part, chunk) in gather.parts.iter_mut().zip(&conn.direct) {
                part.iov_base = self.pool.address(chunk.id).cast_mut().cast();
                part.iov_len = chunk.len as usize;
            }
            gather.header.msg_iov = gather.parts.as_mut_ptr();
            gather.header.msg_iovlen = count;
            opcode::SendMsg::new(Fixed(slot), &gather.header).flags(flags as u32).build()
        };
        self.push(entry, Op::Direct, slot)
    }

    /// Pauses, resumes or ends a connection's receive; closes what is done.
    fn regulate(&mut self, slot: u32) -> io::Result<()> {
        let conn = &mut self.conns[slot as usize];
        let wants = !conn.eof && !conn.dead && conn.unsent() < BACKLOG_LIMIT;
        match conn.recv {
            Recv::Armed if !wants => {
                conn.recv = Recv::Cancelling;
                self.push(opcode::AsyncCancel::new(Op::Recv.tag(slot)).build(), Op::Cancel, slot)
            }
            Recv::Off if wants => {
                if !conn.starved {
                    conn.starved = true;
                    self.starved.push(slot);
                }
                Ok(())
            }
            Recv::Off if !conn.closing
                && conn.direct.is_empty()
                && conn.arrived.is_empty()
                && conn.sending.is_empty()
                && (conn.eof || conn.dead) =>
            {
                conn.closing = true;
                self.push(opcode::Close::new(Fixed(slot)).build(), Op::Close, slot)
            }
            _ => Ok(()),
        }
    }

    fn feed_starved(&mut self) -> io::Result<()> {
        if !self.pool.has_free() { return Ok(()); }
        let mut starved = std::mem::take(&mut self.starved);
        for slot in starved.drain(..) {
            let conn = &mut self.conns[slot as usize];
            conn.starved = false;
            if conn.open && conn.recv == Recv::Off && !conn.closing {
                self.arm_recv(slot)?;
            }
        }
        self.starved = starved;
        Ok(())
    }

    /// Cancels everything and waits until the kernel has let go of all memory.
    fn wind_down(&mut self, cq: &mut cqueue::CompletionQueue<'_>) -> io::Result<()> {
        self.stopping = true;
        self.push(opcode::AsyncCancel2::new(CancelBuilder::any()).build(), Op::Cancel, 0)?;
        while self.owed > 0 {
            self.wait(cq, false)?;
            for cqe in &mut *cq {
                if !cqueue::more(cqe.flags()) {
                    self.owed -= 1;
                }
            }
        }
        Ok(())
    }
}

impl Gather {
    fn new() -> Box<Self> {
        // SAFETY: msghdr and iovec are plain C structs of integers and raw
        // pointers, for which all zeroes is a value.
        unsafe { Box::new(std::mem::zeroed()) }
    }
}
