//! How far a group is, for commands that end when there is nothing more to deliver.

use ringbolt_client::{ConsumerId, GroupDescription, Hold};

/// Whether nothing more comes to this consumer as things are: all that is leased to it are the
/// `in_hand` records that have arrived, none is to be delivered again, and in each
/// partition every record before `end` was delivered to somebody, or cannot be now. What
/// waits for a time or for its key does not count.
pub fn is_nothing_to_come(
    description: &GroupDescription,
    consumer: ConsumerId,
    in_hand: u64,
    end: impl Fn(u32) -> u64,
) -> bool {
    let own = description.consumers.iter().filter(|other| other.consumer == consumer);
    let leased: u64 = own.map(|own| own.leased).sum();
    leased <= in_hand
        && description.partitions.iter().all(|partition| {
            let progress = &partition.progress;
            let is_past = progress.ready == 0 && progress.next_offset >= end(partition.partition);
            is_past || partition.holds.iter().any(is_lasting)
        })
}

/// Whether nothing is sent for this reason however long a consumer waits, or until
/// another one does something.
fn is_lasting(hold: &Hold) -> bool {
    matches!(
        hold,
        Hold::AtBound { .. } | Hold::Exclusive { .. } | Hold::DelayedBound { .. } | Hold::Damaged { .. }
    )
}

#[cfg(test)]
mod tests {
    use ringbolt_client::{ConsumerInfo, GroupPartition, Progress, ShardId};

    use super::*;

    const ME: ConsumerId = ConsumerId(7);

    fn description(progress: Progress, holds: Vec<Hold>, leased: u64) -> GroupDescription {
        let partitions = vec![GroupPartition { partition: 0, shard: ShardId(0), progress, holds }];
        let consumers = vec![ConsumerInfo {
            consumer: ME,
            shard: ShardId(0),
            attached: true,
            credit_records: 1,
            credit_bytes: 1,
            leased,
        }];
        GroupDescription { partitions, consumers, ..super::super::text::tests::description() }
    }

    #[test]
    fn nothing_is_to_come_once_all_was_delivered_and_has_arrived() {
        let done = |progress, holds, leased| {
            is_nothing_to_come(&description(progress, holds, leased), ME, 1, |_| 10)
        };
        let past = Progress { next_offset: 10, end_offset: 12, ..Progress::default() };
        assert!(done(past, vec![], 1));
        assert!(!done(past, vec![], 2), "one is on its way");
        assert!(!done(Progress { ready: 1, ..past }, vec![], 1), "one comes again");
        let before = Progress { next_offset: 9, ..past };
        assert!(!done(before, vec![Hold::Delayed { count: 1, ms: 1 }], 1), "one is new");
        assert!(done(before, vec![Hold::AtBound { open: 5 }], 1), "the new one has to wait");
    }
}
