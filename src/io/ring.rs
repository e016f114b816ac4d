//! One core's io_uring: operations go in with the memory that they use, and
//! come back with it.
//!
//! Memory that the kernel works on belongs to the ring until the operation has
//! ended, so no caller can free or change it meanwhile. The ring knows nothing
//! of disks, sockets or shards: [`Token`] says who is to be told.

mod error;
mod held;
mod ops;
#[cfg(test)]
mod tests;
mod token;

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use io_uring::{CompletionQueue, EnterFlags, IoUring, SubmissionQueue, Submitter, cqueue, opcode, squeue};
use slab::Slab;

use crate::io::pool::{Pool, Registered, RegistrationError};
pub use error::RingError;
pub use held::{Held, SendParts};
pub use ops::Target;
pub use token::{Class, OpId, Token};
use token::{OWNED, UNCOUNTED};

/// How long a ring that is dropped waits for the operations that it cancelled.
/// Only a device that hangs takes longer, and then their memory is leaked.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

/// Sizes of a ring.
#[derive(Clone, Copy, Debug)]
pub struct RingConfig {
    /// Operations that one entry into the kernel can take, a power of two.
    pub entries: u32,
    /// Completions that the kernel can post before it keeps them in memory of
    /// its own, a power of two, at least `entries`.
    pub completions: u32,
}

impl Default for RingConfig {
    /// 1024 operations, 8192 completions: 64 connections with 16 requests each
    /// fit one turn of the loop several times over.
    fn default() -> Self {
        RingConfig { entries: 1024, completions: 8192 }
    }
}

/// What a ring has done since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RingCounters {
    /// Entries into the kernel.
    pub enters: u64,
    /// Operations submitted.
    pub sqes: u64,
    /// Completions seen.
    pub cqes: u64,
    /// Entries that were needed only because the submission queue was full.
    pub full_submits: u64,
    /// Operations that had to wait outside a full queue which the kernel would
    /// not take from.
    pub backlogged: u64,
}

/// An operation's end, or one of several results of a multishot operation.
#[derive(Debug)]
pub struct Completion {
    /// As given with the operation.
    pub token: Token,
    /// What the kernel answered: a count, or an error number negated.
    pub result: i32,
    /// The kernel's flags: buffer id, more to come, notification.
    pub flags: u32,
    /// The operation's memory, once nothing more is to come of it.
    pub held: Held,
}

impl Completion {
    /// More completions of this operation will follow.
    pub fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// The count, or the error.
    pub fn outcome(&self) -> io::Result<u32> {
        u32::try_from(self.result).map_err(|_| io::Error::from_raw_os_error(-self.result))
    }
}

struct InFlight {
    token: Token,
    generation: u32,
    held: Held,
}

/// A ring. It stays on the thread that made it: the kernel refuses any other.
pub struct Ring {
    submitter: ManuallyDrop<Submitter<'static>>,
    sq: ManuallyDrop<SubmissionQueue<'static>>,
    cq: ManuallyDrop<CompletionQueue<'static>>,
    /// What the three above borrow from. Comes from a `Box`, freed on drop.
    uring: *mut IoUring,
    ops: ManuallyDrop<Slab<InFlight>>,
    generation: u32,
    /// Operations that found the submission queue full, oldest first.
    backlog: VecDeque<squeue::Entry>,
    /// Operations that still owe a final completion.
    outstanding: usize,
    /// Some did not end when they were cancelled.
    gave_up: bool,
    pool: ManuallyDrop<Option<Registered>>,
    /// Stands for a kernel that takes no operation now.
    #[cfg(test)]
    refuses: bool,
    kept: ManuallyDrop<Vec<Box<dyn Any>>>,
    counters: RingCounters,
}

impl Ring {
    /// Sets a ring up, for the calling thread alone.
    pub fn new(config: RingConfig) -> Result<Ring, RingError> {
        assert!(config.entries.is_power_of_two() && config.completions.is_power_of_two());
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(config.completions)
            .dontfork()
            .build(config.entries)
            .map_err(RingError::from_setup)?;
        let uring = Box::into_raw(Box::new(uring));
        // SAFETY: `uring` was just made from a box and is freed only in `drop`,
        // after the three parts; nothing else makes a reference to it but
        // `as_raw_fd` and `params`, which read fields that no part changes.
        let (mut submitter, sq, cq) = unsafe { (*uring).split() };
        // Saves the lookup of the descriptor on every entry. A process out of
        // places for it goes on without.
        let _ = submitter.register_ring_fd();
        Ok(Ring {
            submitter: ManuallyDrop::new(submitter),
            sq: ManuallyDrop::new(sq),
            cq: ManuallyDrop::new(cq),
            uring,
            ops: ManuallyDrop::new(Slab::with_capacity(256)),
            generation: 0,
            backlog: VecDeque::new(),
            outstanding: 0,
            gave_up: false,
            pool: ManuallyDrop::new(None),
            #[cfg(test)]
            refuses: false,
            kept: ManuallyDrop::new(Vec::new()),
            counters: RingCounters::default(),
        })
    }

    /// Registers the pool's memory: reads and writes of its pieces skip the
    /// per-operation pinning of pages. What is not warm yet follows as it gets
    /// so.
    pub fn register_pool(&mut self, pool: &Pool) -> Result<(), RegistrationError> {
        assert!(self.pool.is_none(), "a ring has one pool");
        *self.pool = Some(Registered::new(pool, &self.submitter)?);
        Ok(())
    }

    /// For registrations: files, buffer groups, probes.
    pub fn submitter(&self) -> &Submitter<'_> {
        &self.submitter
    }

    /// Keeps a value until the ring has let go of all memory: for buffer groups
    /// that the kernel fills.
    pub fn keep(&mut self, value: Box<dyn Any>) {
        self.kept.push(value);
    }

    /// What the ring has done.
    pub fn counters(&self) -> RingCounters {
        self.counters
    }

    /// Operations that still owe a final completion.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Submits what was pushed and waits until a completion is there, or
    /// `timeout` has passed (`None`: no limit), or a signal came. All
    /// completions so far can be taken afterwards; there may be none.
    ///
    /// An error means that the ring itself is broken.
    pub fn submit_and_wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.enter(1, timeout)
    }

    /// Submits what was pushed and makes all completions so far available,
    /// without waiting; does not enter the kernel when there is no reason to.
    pub fn submit(&mut self) -> io::Result<()> {
        self.sq.sync();
        self.cq.sync();
        let idle = self.sq.is_empty() && self.backlog.is_empty();
        if idle && !self.sq.taskrun() && !self.sq.cq_overflow() {
            return Ok(());
        }
        self.enter(0, None)
    }

    /// Whether entering the kernel would bring completions, or some can be
    /// taken already; does not enter it.
    pub fn has_news(&mut self) -> bool {
        self.cq.sync();
        !self.cq.is_empty() || self.sq.taskrun() || self.sq.cq_overflow()
    }

    /// The next completion of those that the last entry made available.
    /// Operations may be pushed between calls.
    pub fn next_completion(&mut self) -> Option<Completion> {
        loop {
            let cqe = self.cq.next()?;
            self.counters.cqes += 1;
            let completion = self.complete(cqe.user_data(), cqe.result(), cqe.flags());
            if completion.token.class() != Class::Ignored {
                return Some(completion);
            }
        }
    }

    fn complete(&mut self, user_data: u64, result: i32, flags: u32) -> Completion {
        let ended = !cqueue::more(flags);
        if ended && user_data & UNCOUNTED == 0 {
            assert!(self.outstanding > 0, "a completion that no operation owes");
            self.outstanding -= 1;
        }
        if user_data & OWNED == 0 {
            return Completion {
                token: Token::from_user_data(user_data),
                result,
                flags,
                held: Held::Nothing,
            };
        }
        let id = OpId(user_data);
        let op = &self.ops[id.index()];
        assert_eq!(op.generation, id.generation(), "a completion for an operation that has ended");
        let token = op.token;
        let held = if ended { self.ops.remove(id.index()).held } else { Held::Nothing };
        Completion { token, result, flags, held }
    }

    /// Queues an operation that uses no memory of this process, or whose memory
    /// the caller answers for.
    ///
    /// # Safety
    /// Every address in `entry` must stay valid, and unused by Rust where the
    /// kernel writes, until the operation's last completion was taken or the
    /// ring is dropped.
    pub(in crate::io) unsafe fn push_raw(&mut self, entry: squeue::Entry, token: Token) -> OpId {
        self.outstanding += 1;
        let id = token.user_data();
        self.enqueue(entry.user_data(id));
        OpId(id)
    }

    /// As [`Ring::push_raw`], for an operation that answers only when it fails.
    ///
    /// # Safety
    /// As for [`Ring::push_raw`]; and as success is silent, the memory must
    /// stay valid until the ring is dropped.
    pub(in crate::io) unsafe fn push_raw_silent(&mut self, entry: squeue::Entry, token: Token) -> OpId {
        let id = token.user_data() | UNCOUNTED;
        self.enqueue(entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(id));
        OpId(id)
    }

    /// Queues an operation on memory that `held` owns. `build` gets the held
    /// value at the place where it stays until the operation has ended.
    ///
    /// # Safety
    /// All addresses that `build` puts into the entry must lie in memory that
    /// the held value owns and that does not move when the value does.
    unsafe fn push_held(
        &mut self,
        token: Token,
        held: Held,
        build: impl FnOnce(&mut Held, Option<&Registered>) -> squeue::Entry,
    ) -> OpId {
        self.generation = (self.generation + 1) & OpId::GENERATION_MASK;
        let generation = self.generation;
        let index = self.ops.insert(InFlight { token, generation, held });
        let entry = build(&mut self.ops[index].held, self.pool.as_ref());
        self.outstanding += 1;
        let id = OpId::owned(index, generation);
        self.enqueue(entry.user_data(id.0));
        id
    }

    /// Puts the entry into the submission queue, making room by submitting; or
    /// into the backlog, if the kernel takes nothing now. It is never lost.
    fn enqueue(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() {
            if self.sq.is_full() {
                self.counters.full_submits += 1;
                // A real error shows again on the next entry, which reports it.
                let _ = self.enter_once(0, EnterFlags::empty(), None);
            }
            if self.try_push(&entry) {
                return;
            }
        }
        self.counters.backlogged += 1;
        self.backlog.push_back(entry);
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the callers of push_raw and push_held answer for the entry's
        // addresses until its last completion.
        let pushed = unsafe { self.sq.push(entry) }.is_ok();
        self.counters.sqes += u64::from(pushed);
        pushed
    }

    fn drain_backlog(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.try_push(&entry) {
                self.backlog.push_front(entry);
                return;
            }
        }
    }

    fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        if let Some(pool) = &mut *self.pool {
            pool.catch_up(&self.submitter);
        }
        loop {
            self.drain_backlog();
            // What waits in the backlog may be what would end the wait.
            let want = if self.backlog.is_empty() { want } else { 0 };
            let took_some = self.enter_once(want, EnterFlags::GETEVENTS, timeout)?;
            if self.backlog.is_empty() || !took_some {
                return Ok(());
            }
        }
    }

    /// One system call. Whether the kernel took any operation.
    fn enter_once(&mut self, want: u32, flags: EnterFlags, timeout: Option<Duration>) -> io::Result<bool> {
        #[cfg(test)]
        if self.refuses {
            return Ok(false);
        }
        self.sq.sync();
        self.cq.sync();
        let queued = self.sq.len();
        self.counters.enters += 1;
        let entered = match timeout {
            // SAFETY: no argument is passed.
            None => unsafe {
                self.submitter.enter::<libc::sigset_t>(queued as u32, want, flags.bits(), None)
            },
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timespec);
                let flags = flags | EnterFlags::EXT_ARG;
                // SAFETY: EXT_ARG goes with a SubmitArgs, which lives through
                // the call, as does the time that it points to.
                unsafe { self.submitter.enter(queued as u32, want, flags.bits(), Some(&args)) }
            }
        };
        self.sq.sync();
        self.cq.sync();
        match entered {
            Ok(taken) => Ok(taken > 0),
            // A signal, the timeout; no memory for a request; overflowed
            // completions that must be taken first. Nothing is lost in any of
            // them: what was not taken is still queued.
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY)
                ) =>
            {
                Ok(self.sq.len() < queued)
            }
            Err(e) => Err(e),
        }
    }

    /// Cancels everything and waits for the last completions, which nobody gets.
    /// Whether all came: if not, the kernel still holds on to memory and files.
    pub fn quiesce(&mut self) -> bool {
        let patience = if self.gave_up { Duration::ZERO } else { DROP_PATIENCE };
        let is_quiet = self.quiesce_within(patience);
        self.gave_up = !is_quiet;
        is_quiet
    }

    fn quiesce_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.outstanding > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let cancel = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build();
            // SAFETY: a cancellation uses no memory.
            unsafe { self.push_raw_silent(cancel, Token::new(Class::Ignored, 0)) };
            if self.submit_and_wait(Some(left.min(Duration::from_millis(100)))).is_err() {
                return false;
            }
            while self.next_completion().is_some() {}
        }
        true
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        // SAFETY: see `new`: valid until drop, and the descriptor never changes.
        unsafe { (*self.uring).as_raw_fd() }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("outstanding", &self.outstanding)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let quiet = self.quiesce();
        // SAFETY: each is dropped once, here, and not used afterwards. The
        // three parts go before what they borrow from; the memory goes after
        // the ring, and only if the kernel has let go of it.
        unsafe {
            ManuallyDrop::drop(&mut self.sq);
            ManuallyDrop::drop(&mut self.cq);
            ManuallyDrop::drop(&mut self.submitter);
            drop(Box::from_raw(self.uring));
            if quiet {
                ManuallyDrop::drop(&mut self.ops);
                ManuallyDrop::drop(&mut self.pool);
                ManuallyDrop::drop(&mut self.kept);
            }
        }
        if !quiet {
            tracing::error!(
                operations = self.outstanding,
                "the kernel holds on to operations; their memory is leaked"
            );
        }
    }
}
