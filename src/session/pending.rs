//! Requests that wait for their answer.

use ringbolt_wire::{Opcode, ShardId};
use slab::Slab;

use super::fetching::Charge;
use super::gather::{FetchGather, TopicGather};
use super::group_gather::GroupGather;

/// A request in flight: what its answer must repeat, and what is known of its
/// parts.
#[derive(Debug)]
pub enum Pending {
    /// One shard answers.
    Single {
        correlation: u64,
        opcode: Opcode,
    },
    /// One shard answers, with up to so many records that were not settled.
    Settle {
        correlation: u64,
        records: u64,
    },
    /// One shard answers, perhaps late.
    Fetch {
        correlation: u64,
        shard: ShardId,
        // Given back when it is dropped.
        _charge: Charge,
    },
    FetchParts {
        correlation: u64,
        gather: Box<FetchGather>,
        _charge: Charge,
    },
    Topic {
        correlation: u64,
        gather: Box<TopicGather>,
    },
    Group {
        correlation: u64,
        gather: Box<GroupGather>,
    },
    /// One shard answers, as often as it has records, and once at the end.
    Attach {
        correlation: u64,
        shard: ShardId,
    },
    /// One shard answers with records, perhaps late.
    Receive {
        correlation: u64,
        shard: ShardId,
    },
}

/// The number under which a part of the request in `slot` goes to a shard.
pub fn number(slot: usize, part: u32) -> u64 {
    u64::from(part) << 32 | slot as u64
}

/// Slot and part of a number.
pub fn split(number: u64) -> (usize, u32) {
    (number as u32 as usize, (number >> 32) as u32)
}

/// The requests in flight of one session.
pub type PendingTable = Slab<Pending>;
