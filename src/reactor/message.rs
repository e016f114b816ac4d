//! What cores tell each other.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, Ordering};

use ringbolt_wire::ShardId;

use crate::catalog::CatalogUpdate;
use crate::io::net::Handover;
use crate::io::pool::PoolBuffer;
use crate::reactor::Snapshot;
use crate::shard::action::Reply;
use crate::shard::event::{ReplyTo, ShardRequest};

/// A message to a core.
#[derive(Debug)]
pub enum Message {
    /// A request for one of its shards.
    Request {
        /// Which shard.
        shard: ShardId,
        /// Where the answer goes.
        from: ReplyTo,
        /// What is asked; it borrows nothing.
        request: ShardRequest<'static, PoolBuffer>,
    },
    /// A waiting fetch on one of its shards is to be answered now.
    FetchNow {
        /// Which shard.
        shard: ShardId,
        /// As given with the fetch.
        from: ReplyTo,
    },
    /// A consumer on one of its shards is sent nothing for a while, or that while is over.
    Pause {
        /// Which shard.
        shard: ShardId,
        /// As given with its `Attach`.
        from: ReplyTo,
        /// Which of the two.
        pauses: bool,
    },
    /// A session is gone: none of its fetches need be answered.
    SessionClosed {
        /// Core that had it.
        core: u16,
        /// The session.
        session: u64,
    },
    /// An answer to one of its sessions.
    Reply {
        /// Which request of which session.
        to: ReplyTo,
        /// The answer.
        reply: Reply,
    },
    /// A connection whose partitions are on this core.
    Connection(Handover),
    /// Shard 0 has changed the catalog.
    Catalog(CatalogUpdate),
    /// To the core of shard 0: a shard has applied a change.
    CatalogApplied {
        /// Which shard.
        shard: ShardId,
        /// The change's version.
        version: u64,
    },
    /// Another core asks for this one's counters.
    SnapshotWanted {
        /// Which core.
        core: u16,
    },
    /// A core's counters, as asked for.
    Snapshot(Box<Snapshot>),
}

/// What the cores are asked to do; each outdoes the one before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Course {
    /// Go on.
    Serve,
    /// Finish what is there, then end.
    Stop,
    /// End at once: a core has failed.
    Abort,
}

/// What all cores share.
///
/// The course is no message: a mailbox may be full for as long as its core has
/// no room for what is in it, and a stop must get through all the same.
#[derive(Debug)]
pub struct Shared {
    course: AtomicU8,
    /// See [`Shared::changes`]: counted after what has changed.
    changes: AtomicU32,
    /// Cores that have no connections left and take no more.
    drained: AtomicU16,
    /// By shard: its core holds requests of other cores for which it has no
    /// room, and is not to be sent more.
    full: Box<[AtomicBool]>,
}

impl Shared {
    /// What the cores of a broker with so many shards share.
    pub fn new(shards: usize) -> Shared {
        Shared {
            course: AtomicU8::new(Course::Serve as u8),
            changes: AtomicU32::new(0),
            drained: AtomicU16::new(0),
            full: (0..shards).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// Asks all cores for this, unless more was asked for already. They look at
    /// every turn; one that sleeps has to be woken afterwards.
    pub fn set_course(&self, course: Course) {
        self.course.fetch_max(course as u8, Ordering::AcqRel);
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts the changes of the course and of how many cores have drained: a
    /// core that has seen all of them may sleep.
    #[inline]
    pub fn changes(&self) -> u32 {
        self.changes.load(Ordering::Acquire)
    }

    /// What the cores are asked to do.
    #[inline]
    pub fn course(&self) -> Course {
        match self.course.load(Ordering::Acquire) {
            0 => Course::Serve,
            1 => Course::Stop,
            _ => Course::Abort,
        }
    }

    /// Says whether a shard has no room for requests from other cores.
    pub fn set_full(&self, shard: ShardId, is_full: bool) {
        self.full[usize::from(shard.0)].store(is_full, Ordering::Release);
    }

    /// Whether a shard has no room for requests from other cores.
    #[inline]
    pub fn is_full(&self, shard: ShardId) -> bool {
        self.full[usize::from(shard.0)].load(Ordering::Acquire)
    }

    /// One more core has no connections left. Returns how many that makes. A
    /// core that sleeps has to be woken when it is the last.
    pub fn drained_one(&self) -> u16 {
        let drained = self.drained.fetch_add(1, Ordering::AcqRel) + 1;
        self.changes.fetch_add(1, Ordering::AcqRel);
        drained
    }

    /// Cores without connections.
    pub fn drained(&self) -> u16 {
        self.drained.load(Ordering::Acquire)
    }
}
