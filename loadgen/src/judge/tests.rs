//! Every fault that the judge should see is planted here and seen.

use proptest::prelude::*;
use ringbolt_wire::{BatchBuilder, BatchHeader, Epoch, Offset, Sequence, TopicId};

use super::*;
use crate::ledger::RunInfo;
use crate::payload::Filler;

const RUN: u64 = 0xabc;
const PARTITION: PartitionId = PartitionId { topic: TopicId(1), index: 0 };

fn record(stamp: Stamp, damage: bool) -> Vec<u8> {
    let filler = Filler::new(1, 64);
    let (bytes, crc) = filler.get(stamp.sequence);
    let mut value = [bytes, &stamp.trailer(crc)].concat();
    value[3] ^= u8::from(damage);
    value
}

/// A case: one producer (number 9), records written by one after the other.
struct Case {
    judge: Judge,
    next_offset: u64,
    damage: bool,
}

impl Case {
    fn new() -> Case {
        let mut judge = Judge::default();
        judge.entry(&Entry::RunStarted(Box::new(RunInfo { run: RUN, ..RunInfo::default() })));
        judge.entry(&Entry::StreamOpened(StreamInfo {
            index: 3,
            partition: PARTITION,
            producer: ProducerId(9),
            epoch: Epoch(1),
            first_sequence: 0,
        }));
        Case { judge, next_offset: 0, damage: false }
    }

    fn sent(mut self, count: u64) -> Case {
        self.judge.entry(&Entry::Sent { stream: 0, first: 0, count });
        self
    }

    fn acked(mut self, first: u64, count: u64, offset: u64) -> Case {
        self.judge.entry(&Entry::Acked { stream: 0, first, count, offset });
        self
    }

    fn refused(mut self, first: u64, count: u64) -> Case {
        self.judge.entry(&Entry::Refused { stream: 0, first, count, code: 35 });
        self
    }

    fn ended(mut self) -> Case {
        self.judge.entry(&Entry::RunEnded);
        self
    }

    /// The broker gives back a batch with these sequences.
    fn there(mut self, first: u64, count: u64) -> Case {
        let stamps = (first..first + count).map(|sequence| Stamp {
            run: RUN,
            producer: 3,
            partition: 0,
            sequence,
            sent_ns: 0,
        });
        self.give(first, stamps.collect(), ProducerId(9));
        self
    }

    fn give(&mut self, first: u64, stamps: Vec<Stamp>, producer: ProducerId) {
        let mut builder = BatchBuilder::new();
        for &stamp in &stamps {
            builder.push(1, None, &record(stamp, self.damage), &[]);
        }
        let mut bytes = builder.finish(PARTITION, producer, Epoch(1), Sequence(first));
        BatchHeader::set_placement(&mut bytes, Offset(self.next_offset), 1);
        self.next_offset += stamps.len() as u64;
        self.judge.batch(&BatchView::parse(&bytes, u32::MAX).unwrap(), |_| {});
    }

    fn damaged(mut self) -> Case {
        self.damage = true;
        self
    }

    fn skip_offsets(mut self, count: u64) -> Case {
        self.next_offset += count;
        self
    }

    /// The verdict when the partition was read to its end.
    fn verdict(mut self) -> Verdict {
        self.judge.finished(PARTITION);
        self.unfinished()
    }

    /// The verdict when it was not.
    fn unfinished(self) -> Verdict {
        let verdict = self.judge.verdict();
        assert_eq!(verdict.is_good(), verdict.findings.is_empty(), "{verdict:?}");
        verdict
    }
}

#[test]
fn a_faithful_broker_is_acquitted() {
    let v = Case::new().sent(10).acked(0, 10, 0).ended().there(0, 4).there(4, 6).verdict();
    assert!(v.is_good() && v.complete);
    assert_eq!((v.sent, v.acked, v.read, v.unknown), (10, 10, 10, 0));
}

#[test]
fn a_lost_record_is_seen_at_the_start_in_the_middle_and_at_the_end() {
    let sent = || Case::new().sent(10).acked(0, 10, NO_OFFSET).ended();
    assert_eq!(sent().there(1, 9).verdict().lost, 1);
    assert_eq!(sent().there(0, 4).there(6, 4).verdict().lost, 2);
    assert_eq!(sent().there(0, 7).verdict().lost, 3);
    assert_eq!(sent().verdict().lost, 10);
}

#[test]
fn a_duplicate_is_seen_next_to_the_original_and_long_after() {
    let v = Case::new().sent(6).acked(0, 6, 0).ended().there(0, 6).there(4, 2).there(0, 1).verdict();
    assert_eq!((v.duplicated, v.reordered, v.lost), (3, 0, 0));
}

#[test]
fn records_out_of_turn_are_seen() {
    let v = Case::new().sent(6).acked(0, 6, NO_OFFSET).ended().there(0, 2).there(4, 2).there(2, 2).verdict();
    assert_eq!((v.reordered, v.duplicated, v.lost), (2, 0, 0));
}

#[test]
fn damaged_values_are_seen_and_not_called_lost() {
    let v = Case::new().sent(4).acked(0, 4, 0).ended().there(0, 2).damaged().there(2, 2).verdict();
    assert_eq!((v.corrupted, v.lost), (2, 0));
}

#[test]
fn a_value_that_speaks_for_another_message_is_damaged() {
    let good = Stamp { run: RUN, producer: 3, partition: 0, sequence: 0, sent_ns: 0 };
    for bad in [
        Stamp { sequence: 1, ..good },
        Stamp { partition: 1, ..good },
        Stamp { producer: 4, ..good },
        Stamp { run: 1, ..good },
    ] {
        let mut case = Case::new().sent(1).acked(0, 1, 0).ended();
        case.give(0, vec![bad], ProducerId(9));
        assert_eq!(case.verdict().corrupted, 1, "{bad:?}");
    }
}

#[test]
fn an_acknowledgement_that_named_another_offset_is_seen() {
    let v = Case::new().sent(4).acked(0, 4, 7).ended().there(0, 4).verdict();
    assert_eq!((v.misplaced, v.lost), (4, 0));
}

#[test]
fn a_record_that_was_never_sent_is_a_phantom() {
    let v = Case::new().sent(2).acked(0, 2, 0).ended().there(0, 3).verdict();
    assert_eq!((v.phantom, v.unknown_present), (1, 0));
}

#[test]
fn a_refused_record_that_is_there_is_a_phantom() {
    let v = Case::new().sent(3).acked(0, 2, 0).refused(2, 1).ended().there(0, 3).verdict();
    assert_eq!((v.phantom, v.refused, v.unknown), (1, 1, 0));
}

#[test]
fn missing_offsets_are_seen() {
    let v =
        Case::new().sent(2).acked(0, 2, NO_OFFSET).ended().there(0, 1).skip_offsets(3).there(1, 1).verdict();
    assert_eq!(v.holes, 3);
}

#[test]
fn what_was_not_answered_is_unknown_whether_there_or_not() {
    let v = Case::new().sent(10).acked(0, 4, 0).refused(8, 2).ended().there(0, 6).verdict();
    assert!(v.is_good());
    assert_eq!((v.unknown_present, v.unknown_absent, v.refused), (2, 2, 2));
}

#[test]
fn a_ledger_cut_short_accuses_nobody_of_the_sends_that_it_lacks() {
    let v = Case::new().sent(2).acked(0, 2, 0).there(0, 5).verdict();
    assert!(v.is_good() && !v.complete);
    assert_eq!(v.unknown_present, 3);
}

/// Retention has removed what is below `start` before it was read.
fn retained_from(mut case: Case, start: u64) -> Case {
    case.judge.holds(PARTITION, start..start);
    case.next_offset = start;
    case
}

#[test]
fn what_retention_removed_is_expired_and_not_lost_and_proves_nothing_unless_accepted() {
    for (accepted, decision) in [(false, Decision::Unproven), (true, Decision::Kept)] {
        let case = Case::new().sent(11).acked(0, 10, 0).ended();
        let mut case = retained_from(case, 6);
        case.judge.allow_expired(accepted);
        let v = case.there(6, 4).verdict();
        assert_eq!((v.expired, v.lost, v.decision()), (6, 0, decision));
        assert_eq!((v.unknown_absent, v.unknown_unread), (0, 1));
    }
}

#[test]
fn what_was_missing_before_retention_removed_its_place_is_lost() {
    let mut case = Case::new().sent(9).acked(0, 9, 0).ended().there(0, 1);
    case.give(1, vec![Stamp::default()], ProducerId(77));
    let v = retained_from(case.there(2, 2), 8).there(8, 1).verdict();
    assert_eq!((v.lost, v.expired), (1, 4), "{v:?}");
}

/// Sequences 0 to 2 were acknowledged at 0 to 2, 3 and 4 without an offset, and
/// 5 to 7 from `next` on.
fn without_an_offset(next: u64) -> Case {
    Case::new().sent(8).acked(0, 3, 0).acked(3, 2, NO_OFFSET).acked(5, 3, next).ended()
}

#[test]
fn without_an_offset_a_message_is_expired_if_its_place_must_be_and_lost_if_that_was_read() {
    // Between 3 and 20, and retention took all of that.
    let v = retained_from(without_an_offset(20), 20).there(5, 3).verdict();
    assert_eq!((v.lost, v.expired), (0, 5), "{v:?}");
    // Between 3 and 20, and it took only what is before 3.
    let case = retained_from(without_an_offset(20), 3).skip_offsets(17);
    let v = case.there(5, 3).verdict();
    assert_eq!((v.lost, v.expired), (2, 3), "{v:?}");
    // Between 3 and 20, of which it took one.
    let case = retained_from(without_an_offset(20), 4).skip_offsets(16);
    let v = case.there(5, 3).verdict();
    assert_eq!((v.lost, v.expired), (1, 4), "{v:?}");
}

#[test]
fn without_an_offset_a_message_has_no_place_between_others_that_are_out_of_order() {
    let case = Case::new().sent(8).acked(0, 3, 50).acked(3, 2, NO_OFFSET).acked(5, 3, 20).ended();
    let v = retained_from(case, 60).verdict();
    assert_eq!((v.lost, v.expired), (2, 6), "{v:?}");
}

#[test]
fn without_an_offset_a_message_is_unverified_if_its_place_may_not_have_been_read() {
    let v = without_an_offset(20).there(0, 3).unfinished();
    assert_eq!((v.lost, v.unverified), (0, 5), "{v:?}");
    // It must be before what follows it, and that was found.
    let v = without_an_offset(3).there(0, 3).there(5, 2).unfinished();
    assert_eq!((v.lost, v.unverified), (2, 1), "{v:?}");
}

#[test]
fn what_was_read_and_is_gone_later_is_seen_and_what_comes_in_its_place_is_read() {
    let mut case = Case::new().sent(9).acked(0, 4, 0).acked(4, 3, NO_OFFSET).ended().there(0, 6);
    case.judge.holds(PARTITION, 0..4);
    case.next_offset = 4;
    let v = case.there(6, 1).verdict();
    assert_eq!((v.vanished, v.read, v.lost, v.decision()), (2, 7, 0, Decision::Broken), "{v:?}");
}

#[test]
fn retention_that_goes_on_after_the_end_moved_back_is_counted_once() {
    let mut case = retained_from(Case::new().sent(9).acked(0, 9, 0).ended(), 6);
    // All that is there is somebody else's.
    case.give(0, vec![Stamp::default(); 2], ProducerId(77));
    case.judge.holds(PARTITION, 0..3);
    let mut case = retained_from(case, 8);
    case.give(2, vec![Stamp::default()], ProducerId(77));
    let v = case.verdict();
    assert_eq!((v.vanished, v.expired, v.lost), (2, 8, 1), "{v:?}");
}

#[test]
fn all_of_a_partition_that_is_not_there_is_lost() {
    let mut case = Case::new().sent(9).acked(0, 8, 0).ended();
    case.judge.missing(PARTITION);
    let v = case.verdict();
    assert_eq!((v.lost, v.unknown_absent, v.corrupted), (8, 1, 0), "{v:?}");
    assert!(v.findings[0].contains("knows no such partition"));
}

#[test]
fn what_was_not_read_is_neither_lost_nor_absent() {
    let sent = || Case::new().sent(12).acked(0, 10, 0).ended();
    let v = sent().there(0, 4).unfinished();
    assert_eq!((v.lost, v.unverified, v.decision()), (0, 6, Decision::Unproven));
    assert_eq!((v.unknown, v.unknown_absent, v.unknown_unread), (2, 0, 2));
    // Nobody read anything.
    let v = sent().unfinished();
    assert_eq!((v.lost, v.unverified, v.unknown_absent, v.unknown_unread), (0, 10, 0, 2));
    // Everything acknowledged was found, but not what may be behind it.
    let v = sent().there(0, 10).unfinished();
    assert_eq!((v.unverified, v.unfinished, v.decision()), (0, 1, Decision::Unproven));
    assert_eq!((v.unknown_absent, v.unknown_unread), (0, 2));
    let v = sent().there(0, 10).verdict();
    assert_eq!((v.decision(), v.unknown_absent, v.unknown_unread), (Decision::Kept, 2, 0));
}

#[test]
fn what_lies_behind_an_unreadable_spot_is_not_lost_and_what_is_missing_before_it_is() {
    let mut case = Case::new().sent(10).acked(0, 2, 0).acked(2, 2, 2).acked(4, 6, 4).ended();
    case = case.there(0, 2).there(7, 2);
    case.judge.unreadable(PARTITION, "it is damaged");
    let v = case.unfinished();
    assert_eq!((v.corrupted, v.lost, v.unverified, v.decision()), (1, 2, 4, Decision::Broken), "{v:?}");
}

#[test]
fn strangers_records_are_counted_apart() {
    let mut case = Case::new().sent(1).acked(0, 1, 0).ended().there(0, 1);
    case.damage = true;
    case.give(0, vec![Stamp::default(); 3], ProducerId(77));
    case.give(0, vec![Stamp::default(); 2], ProducerId::NONE);
    let v = case.verdict();
    assert!(v.is_good());
    assert_eq!((v.foreign, v.read), (5, 6));
}

#[test]
fn of_two_runs_only_the_one_that_lost_something_is_said_to_have() {
    let mut case = Case::new().sent(4).acked(0, 4, NO_OFFSET).ended().there(0, 4);
    let (run, producer) = (RUN + 1, ProducerId(10));
    case.judge.entry(&Entry::RunStarted(Box::new(RunInfo { run, ..RunInfo::default() })));
    let epoch = Epoch(1);
    let stream = StreamInfo { index: 3, partition: PARTITION, producer, epoch, first_sequence: 0 };
    case.judge.entry(&Entry::StreamOpened(stream));
    // Three of the five that were acknowledged are there, and the run was cut off.
    let mut case = case.sent(7).acked(0, 5, NO_OFFSET);
    let stamp = |sequence| Stamp { run, producer: 3, partition: 0, sequence, sent_ns: 0 };
    case.give(0, (0..3).map(stamp).collect(), producer);
    let v = case.verdict();
    let first = RunVerdict { run: RUN, ended: true, acked: 4, ..RunVerdict::default() };
    let second = RunVerdict { run, acked: 5, lost: 2, unknown: 2, ..RunVerdict::default() };
    assert_eq!(v.runs, [first, second]);
    assert_eq!((v.acked, v.lost, v.unknown), (9, 2, 2));
}

#[test]
fn a_batch_that_begins_before_the_position_counts_once() {
    let mut case = Case::new().sent(4).acked(0, 4, 0).ended().there(0, 2);
    case.next_offset = 0;
    assert!(case.there(0, 4).verdict().is_good());
}

proptest! {
    /// Takes a faithful history, loses some acknowledged batches and repeats
    /// some others, and wants exactly those reported; and it does not matter
    /// whether the ledger or the records come first.
    #[test]
    fn what_was_planted_is_what_is_found(
        batches in prop::collection::vec((1u64..5, 0u8..10), 1..60),
        ledger_first in any::<bool>(),
    ) {
        let total: u64 = batches.iter().map(|(n, _)| n).sum();
        let (mut lost, mut duplicated, mut first) = (0, 0, 0);
        let mut case = Case::new();
        if ledger_first {
            case = case.sent(total).acked(0, total, NO_OFFSET).ended();
        }
        for (count, fate) in batches {
            match fate {
                0 => lost += count,
                1 => {
                    duplicated += count;
                    case = case.there(first, count).there(first, count);
                }
                _ => case = case.there(first, count),
            }
            first += count;
        }
        if !ledger_first {
            case = case.sent(total).acked(0, total, NO_OFFSET).ended();
        }
        let v = case.verdict();
        prop_assert_eq!((v.lost, v.duplicated, v.reordered, v.corrupted), (lost, duplicated, 0, 0));
    }
}
