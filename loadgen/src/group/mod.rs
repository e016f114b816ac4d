//! Consumers of a group, as state machines: they attach to every shard, work on what
//! they are sent, and settle it; some of them fail and crash as they are told to.
//! Time is an argument, and they know no sockets.
//!
//! They speak the protocol themselves instead of through the client's consumer: what
//! is to be measured is the broker, and what a client hides or mends (a lease that was
//! lost, a record that came twice) is to be seen.

mod chance;
mod counts;
mod crew;
mod member;
mod membership;
mod settle;
#[cfg(test)]
mod tests;

pub use chance::Chance;
pub use counts::{Consumed, Counts};
pub use crew::{Context, Course, Crew, Finished};
pub use member::Member;
pub use membership::{GroupPlan, Membership, Seat};
pub use settle::{AckMode, Deed, Entry};

use ringbolt_wire::ConsumerId;
use ringbolt_wire::message::DeliveredRange;

/// What every consumer of a run does.
#[derive(Clone, Copy, Debug)]
pub struct Conduct {
    /// Records that it may have in hand, at each shard.
    pub credit: u32,
    /// For how long records are leased, in ms; 0 for the group's time.
    pub lease_ms: u32,
    /// How it acknowledges.
    pub ack: AckMode,
    /// How long it works on a record, in ns; on as many at once as it has in hand.
    pub work: u64,
    /// How likely it is to reject a record.
    pub fail: Chance,
    /// How likely it is to crash over a record.
    pub crash: Chance,
}

/// Who was sent something: a consumer, from when it has attached on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Holder {
    /// The consumer.
    pub consumer: ConsumerId,
    /// Rises with every attach of the run.
    pub attach: u64,
    /// The boot of the broker that it has attached to.
    pub boot: u64,
}

/// Sees everything that passes between consumers and broker.
pub trait Watcher {
    /// Records came; `payload` is theirs alone.
    ///
    /// # Errors
    /// What does not fit, in words: the run ends.
    fn delivered(
        &mut self,
        to: &Holder,
        range: &DeliveredRange,
        payload: &[u8],
        now: u64,
    ) -> Result<(), String>;

    /// A settle is about to be sent.
    fn settling(&mut self, by: &Holder, entries: &[Entry]);

    /// The broker has answered about these records, all of which are of one entry:
    /// with 0, what was said of them is durable; else with the number of an
    /// [`ErrorCode`](ringbolt_wire::ErrorCode).
    fn settled(&mut self, by: &Holder, entry: &Entry, status: u16);

    /// There will be no answer about these.
    fn unanswered(&mut self, by: &Holder, entries: &[Entry]);
}
