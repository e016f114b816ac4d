//! Messages between cores: one bounded queue per core, which any thread may put
//! into and only its core takes from.
//!
//! A core that is busy finds its messages when it next looks; one that sleeps
//! is woken, by a message from ring to ring, or through an eventfd by threads
//! that have no ring. What the messages mean is not known here.
//!
//! # Why no wake-up is lost
//!
//! The sleeper stores `sleeping = true`, then looks whether its queue is empty
//! and whether what it shares with others is as it knew it. The sender pushes,
//! or changes what is shared, then looks whether `sleeping` is true. Each has a
//! sequentially consistent fence between its two steps, and of two such fences
//! one comes first: if the sleeper's, the sender sees `true` and wakes; if the
//! sender's, the sleeper sees the message or the change and stays awake. (Both
//! may hold: then the wake-up finds the core awake and is taken as a completion
//! that says nothing new.) A wake-up that comes between the sleeper's look and
//! its system call is a completion that is already there, so the call returns
//! at once.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering, fence};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use crate::io::ring::{Class, Completion, Ring, Token};

/// A message from another core's ring has come.
const WOKEN: u64 = 0;
/// The eventfd was written to.
const EVENTFD: u64 = 1;
/// Waking core (the rest of the value) failed.
const WAKE_FAILED: u64 = 2;
const CORE_SHIFT: u32 = 8;

const NO_RING: i32 = -1;

struct Slot<M> {
    queue: ArrayQueue<M>,
    sleeping: AtomicBool,
    ring: AtomicI32,
    eventfd: OwnedFd,
}

impl<M> Slot<M> {
    fn new(capacity: usize) -> io::Result<Self> {
        // Blocking, so that a poll on the ring waits; nobody reads it, and a
        // counter of 64 bits does not fill up.
        // SAFETY: eventfd makes a new descriptor, or -1.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let eventfd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Slot {
            queue: ArrayQueue::new(capacity),
            sleeping: AtomicBool::new(false),
            ring: AtomicI32::new(NO_RING),
            eventfd,
        })
    }

    /// Whether the caller must wake the core: true for one caller per sleep.
    fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel)
    }

    fn wake_by_eventfd(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the bytes are there for the length of the call. A write of 8
        // bytes to an eventfd cannot fail while its counter has room.
        unsafe { libc::write(self.eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

type Slots<M> = Arc<[CachePadded<Slot<M>>]>;

/// Mailboxes for `cores` cores, in order, each with room for `capacity`
/// messages.
pub fn mailboxes<M: Send>(cores: u16, capacity: usize) -> io::Result<Vec<Mailbox<M>>> {
    assert!(capacity > 0, "a mailbox holds at least one message");
    let slots: Vec<_> =
        (0..cores).map(|_| Slot::new(capacity).map(CachePadded::new)).collect::<io::Result<_>>()?;
    let slots: Slots<M> = slots.into();
    let outgoing = || (0..cores).map(|_| VecDeque::new()).collect();
    Ok((0..cores)
        .map(|core| Mailbox { core, slots: slots.clone(), outgoing: outgoing(), waiting: 0 })
        .collect())
}

/// The way into all mailboxes for threads without a ring.
pub struct Post<M> {
    slots: Slots<M>,
}

impl<M> Clone for Post<M> {
    fn clone(&self) -> Self {
        Post { slots: self.slots.clone() }
    }
}

impl<M: Send> Post<M> {
    /// Puts a message into a core's mailbox and wakes the core if it sleeps.
    /// Gives the message back if the mailbox is full.
    pub fn send(&self, to: u16, message: M) -> Result<(), M> {
        let slot = &self.slots[usize::from(to)];
        slot.queue.push(message)?;
        self.wake(to);
        Ok(())
    }

    /// Wakes a core if it sleeps, without a message: for those who have changed
    /// what the core looks at in [`Mailbox::may_sleep`].
    pub fn wake(&self, core: u16) {
        let slot = &self.slots[usize::from(core)];
        if slot.must_wake() {
            slot.wake_by_eventfd();
        }
    }

    /// Number of cores.
    pub fn cores(&self) -> u16 {
        self.slots.len() as u16
    }
}

/// One core's mailbox, and its way into the others'.
pub struct Mailbox<M> {
    core: u16,
    slots: Slots<M>,
    /// For each core, messages that its mailbox had no room for, oldest first.
    outgoing: Vec<VecDeque<M>>,
    /// Sum of their lengths.
    waiting: usize,
}

impl<M: Send> Mailbox<M> {
    /// Lets this core be woken through its ring. To be called once, on the
    /// core's thread, before it first sleeps.
    pub fn attach(&mut self, ring: &mut Ring) {
        self.slot().ring.store(ring.as_raw_fd(), Ordering::Release);
        self.arm(ring);
    }

    /// A handle for threads without a ring.
    pub fn post(&self) -> Post<M> {
        Post { slots: self.slots.clone() }
    }

    /// This core.
    pub fn core(&self) -> u16 {
        self.core
    }

    /// The oldest message for this core.
    #[inline]
    pub fn receive(&mut self) -> Option<M> {
        self.slot().queue.pop()
    }

    /// Whether there is a message for this core.
    #[inline]
    pub fn has_messages(&self) -> bool {
        !self.slot().queue.is_empty()
    }

    /// Sends to another core, or to this one. Messages to one core arrive in
    /// order; what its mailbox has no room for waits here, and
    /// [`Mailbox::flush`] tries again.
    #[inline]
    pub fn send(&mut self, ring: &mut Ring, to: u16, message: M) {
        self.outgoing[usize::from(to)].push_back(message);
        self.waiting += 1;
        self.flush_to(ring, to);
    }

    /// Tries again what waits for room. To be called once per turn of the loop.
    #[inline]
    pub fn flush(&mut self, ring: &mut Ring) {
        if self.waiting > 0 {
            for to in 0..self.slots.len() as u16 {
                self.flush_to(ring, to);
            }
        }
    }

    /// Messages that wait for room in others' mailboxes. While there are any,
    /// take no more requests that make such messages, and do not sleep for long:
    /// nobody tells when there is room again. From
    /// [`MAX_OUTGOING`](crate::limits::MAX_OUTGOING) on, make none at all.
    #[inline]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Announces that the core is about to sleep. If it answers false there are
    /// messages to receive first, or `has_changed` says that there is something
    /// else to look at: whoever changes that calls [`Post::wake`] afterwards.
    #[must_use]
    #[inline]
    pub fn may_sleep(&mut self, has_changed: impl FnOnce() -> bool) -> bool {
        let slot = self.slot();
        slot.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if slot.queue.is_empty() && !has_changed() {
            return true;
        }
        slot.sleeping.store(false, Ordering::Relaxed);
        false
    }

    /// To be called after every sleep, before receiving.
    #[inline]
    pub fn awake(&mut self) {
        self.slot().sleeping.store(false, Ordering::Relaxed);
    }

    /// Takes a completion of [`Class::Mailbox`].
    pub fn complete(&mut self, ring: &mut Ring, completion: &Completion) {
        match completion.token.value() & 0xff {
            EVENTFD if !completion.more() => self.arm(ring),
            WAKE_FAILED => {
                let core = (completion.token.value() >> CORE_SHIFT) as usize;
                self.slots[core].wake_by_eventfd();
            }
            _ => {}
        }
    }

    fn slot(&self) -> &Slot<M> {
        &self.slots[usize::from(self.core)]
    }

    fn arm(&self, ring: &mut Ring) {
        ring.poll_multi(Token::new(Class::Mailbox, EVENTFD), self.slot().eventfd.as_raw_fd(), libc::POLLIN);
    }

    fn flush_to(&mut self, ring: &mut Ring, to: u16) {
        let slot = &self.slots[usize::from(to)];
        let outgoing = &mut self.outgoing[usize::from(to)];
        let mut sent = false;
        while let Some(message) = outgoing.pop_front() {
            if let Err(message) = slot.queue.push(message) {
                outgoing.push_front(message);
                break;
            }
            self.waiting -= 1;
            sent = true;
        }
        if sent && to != self.core && slot.must_wake() {
            let failed = Token::new(Class::Mailbox, WAKE_FAILED | u64::from(to) << CORE_SHIFT);
            match slot.ring.load(Ordering::Acquire) {
                NO_RING => slot.wake_by_eventfd(),
                target => {
                    ring.message(failed, target, Token::new(Class::Mailbox, WOKEN));
                }
            }
        }
    }
}

impl<M> Drop for Mailbox<M> {
    fn drop(&mut self) {
        // The ring goes with its core, and its descriptor may become another
        // file's.
        self.slots[usize::from(self.core)].ring.store(NO_RING, Ordering::Release);
    }
}
