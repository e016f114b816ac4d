//! Consumer groups: who has which record, and what became of it.
//!
//! What is durable ([`AckState`]) is changed through the log; who has what at the
//! moment is in memory and ends with the broker's life. Nothing here reads records,
//! answers anybody or knows the time: `shard/` does, and drives this.

pub mod acks;
pub mod change_log;
pub mod changes;
pub mod group;
pub mod groups;
pub mod judge;
pub mod keys;
pub mod parcel;
pub mod part;
pub mod ranges;
pub mod wheel;

pub use acks::{AckState, Attempts, How};
pub use changes::{GROUPS_PARTITION, GroupKey, GroupsState};
pub use group::{Consumer, Group, Link};
pub use groups::Groups;
pub use part::{Back, Part, Place};
