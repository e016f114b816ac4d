//! What is to be done with a record whose turn it is.

use ringbolt_wire::RecordView;
use ringbolt_wire::batch::Directions;
use ringbolt_wire::message::MAX_RETRY_DELAY_MS;

use super::acks::Attempts;
use super::group::Group;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Deliver it.
    Deliver,
    /// It is for another group.
    Skip,
    /// Its time is over.
    Expire,
    /// Its time, µs since 1970 UTC, has not come.
    Dated(u64),
    /// It came back, and waits for so many µs yet.
    BackOff(u64),
    /// It goes to the dead-letter topic.
    Condemned,
}

/// Decides about a record, of which `directed` is given if it may have directions, by
/// the wall clock.
pub fn judge(
    directed: Option<&RecordView<'_>>,
    attempts: Option<&Attempts>,
    group: &Group,
    wall_us: u64,
) -> Verdict {
    if let Some(known) = attempts {
        if known.condemned.is_some() {
            return Verdict::Condemned;
        }
        let wait_us = known.not_before_us.saturating_sub(wall_us);
        if wait_us > 0 {
            // A clock that was set back does not make it wait longer than it may.
            return Verdict::BackOff(wait_us.min(u64::from(MAX_RETRY_DELAY_MS) * 1000));
        }
    }
    if group.of_dead_letters {
        return Verdict::Deliver;
    }
    let directions = directed.and_then(Directions::of).unwrap_or_default();
    match directions {
        Directions { only_group: Some(other), .. } if other != group.info.id => Verdict::Skip,
        Directions { expire_at_us: Some(at_us), .. } if at_us <= wall_us => Verdict::Expire,
        Directions { deliver_at_us: Some(at_us), .. } if at_us > wall_us => Verdict::Dated(at_us),
        _ => Verdict::Deliver,
    }
}
