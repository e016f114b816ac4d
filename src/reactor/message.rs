//! What cores tell each other.

use std::sync::atomic::{AtomicU16, Ordering};

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
    /// Finish what is there, then end.
    Stop,
    /// End at once: a core has failed.
    Abort,
    /// Look again at what all cores share.
    Wake,
}

/// What all cores share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Cores that have no connections left and take no more.
    drained: AtomicU16,
}

impl Shared {
    /// One more core has no connections left. Returns how many that makes.
    pub fn drained_one(&self) -> u16 {
        self.drained.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Cores without connections.
    pub fn drained(&self) -> u16 {
        self.drained.load(Ordering::Acquire)
    }
}
