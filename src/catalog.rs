//! The topics of a broker: what there is, and the changes to it.
//!
//! Shard 0's log is the authority; every shard applies the same changes in the
//! same order.

use ringbolt_wire::TopicId;
use ringbolt_wire::message::TopicInfo;

/// What changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CatalogChange {
    /// A topic is there from now on.
    Created(TopicInfo),
    /// A topic is gone.
    Deleted(TopicId),
}

/// A change, numbered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CatalogUpdate {
    /// Rises by one with each change.
    pub version: u64,
    /// The change.
    pub change: CatalogChange,
}
