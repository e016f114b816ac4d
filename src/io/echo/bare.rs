//! A ring with nothing around it: what the echo peer, the floor and the probe
//! run on.
//!
//! The broker's own ring keeps the memory of its operations; this one leaves
//! that to its few users, so that nothing but the kernel is measured.

use std::collections::VecDeque;
use std::io;

use io_uring::types::CancelBuilder;
use io_uring::{CompletionQueue, IoUring, SubmissionQueue, Submitter, cqueue, opcode, squeue};

use super::Wait;

/// User data of the cancellation in [`BareRing::wind_down`]; nobody sees it.
const WIND_DOWN: u64 = u64::MAX;

/// Makes a ring with the set-up that Ringbolt's cores use, for the calling
/// thread alone: one issuer, deferred task work, every submission attempted, a
/// completion queue of its own size.
pub(crate) fn build(entries: u32, completions: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(completions)
        .dontfork()
        .build(entries)
}

/// The three parts of a ring, and a count of what the kernel still owes.
pub(crate) struct BareRing<'r> {
    submitter: Submitter<'r>,
    sq: SubmissionQueue<'r>,
    cq: CompletionQueue<'r>,
    /// Entries that found the submission queue full.
    late: VecDeque<squeue::Entry>,
    owed: usize,
}

impl<'r> BareRing<'r> {
    /// Takes the ring apart.
    pub(crate) fn new(ring: &'r mut IoUring) -> Self {
        let (mut submitter, sq, cq) = ring.split();
        // Saves a look-up on every system call; no loss where it is refused.
        let _ = submitter.register_ring_fd();
        Self { submitter, sq, cq, late: VecDeque::new(), owed: 0 }
    }

    /// For registrations.
    pub(crate) fn submitter(&self) -> &Submitter<'r> {
        &self.submitter
    }

    /// Queues an operation; the kernel sees it on the next wait.
    ///
    /// # Safety
    ///
    /// What the entry points to must stay valid, and untouched by Rust where
    /// the kernel writes, until its last completion was taken or
    /// [`BareRing::wind_down`] has succeeded.
    pub(crate) unsafe fn push(&mut self, entry: squeue::Entry) {
        self.owed += 1;
        // SAFETY: the caller vouches for what the entry points to.
        if !self.late.is_empty() || unsafe { self.sq.push(&entry) }.is_err() {
            self.late.push_back(entry);
        }
    }

    /// Submits what was queued and returns once a completion is there, or on a
    /// signal without one.
    pub(crate) fn wait(&mut self, wait: Wait) -> io::Result<()> {
        while !self.late.is_empty() {
            self.enter(0)?;
            while let Some(entry) = self.late.pop_front() {
                // SAFETY: as when it was first tried, in `push`.
                if unsafe { self.sq.push(&entry) }.is_err() {
                    self.late.push_front(entry);
                    break;
                }
            }
            if !self.cq.is_empty() {
                return Ok(());
            }
        }
        match wait {
            Wait::Sleep => self.enter(1),
            Wait::BusyPoll => {
                self.enter(0)?;
                while self.cq.is_empty() {
                    if self.sq.taskrun() {
                        self.enter(0)?;
                    } else {
                        std::hint::spin_loop();
                        self.cq.sync();
                    }
                }
                Ok(())
            }
        }
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        self.sq.sync();
        self.cq.sync();
        let entered = self.submitter.submit_and_wait(want);
        self.sq.sync();
        self.cq.sync();
        match entered {
            Ok(_) => Ok(()),
            // A signal; no memory for a request now; completions that must be
            // taken first. Nothing is lost in any of them.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The next of the completions that the last wait made available.
    pub(crate) fn next(&mut self) -> Option<cqueue::Entry> {
        let cqe = self.cq.next()?;
        if !cqueue::more(cqe.flags()) {
            self.owed = self.owed.checked_sub(1).expect("a completion that no operation owes");
        }
        Some(cqe)
    }

    /// Cancels everything and waits until the kernel has let go of all memory.
    pub(crate) fn wind_down(&mut self) -> io::Result<()> {
        while self.owed > 0 {
            let all = opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(WIND_DOWN);
            // SAFETY: a cancellation points to nothing.
            unsafe { self.push(all) };
            // An operation can start after the cancellation looked, so it is
            // asked for again until nothing is left.
            let mut cancelled = false;
            while self.owed > 0 && !cancelled {
                self.wait(Wait::Sleep)?;
                while let Some(cqe) = self.next() {
                    cancelled |= cqe.user_data() == WIND_DOWN;
                }
            }
        }
        Ok(())
    }
}
