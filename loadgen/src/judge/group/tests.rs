//! Every check of a group's judge is shown to catch what it is there for, and to let
//! pass what only looks like it.

use ringbolt_wire::batch::DEAD_LETTER_HEADER;
use ringbolt_wire::message::LeaseRange;
use ringbolt_wire::{BatchBuilder, BatchHeader, ConsumerId, Epoch, ErrorCode, Offset, ProducerId, Sequence};

use super::super::Decision;
use super::*;
use crate::ledger::{Entry as Line, RunInfo, StreamInfo};
use crate::payload::Filler;

const RUN: u64 = 7;
const TOPIC: TopicId = TopicId(3);
const PRODUCER: ProducerId = ProducerId(9);
const PARTITION: PartitionId = PartitionId { topic: TOPIC, index: 0 };
/// Offset of the first message, which has sequence 0.
const FLOOR: u64 = 100;
const MAX_FAILURES: u32 = 3;
const LEASE_LOST: u16 = ErrorCode::LeaseLost as u16;
const COMPLETED: u16 = ErrorCode::AlreadyCompleted as u16;

/// A group with one partition, whose messages are acknowledged to their producer.
struct Case {
    judge: GroupJudge,
    messages: u64,
    boot: u64,
}

fn case(mode: GroupMode) -> Case {
    let promises =
        Promises { topic: TOPIC, group: GroupId(5), mode, max_failures: MAX_FAILURES, up_to: false };
    Case { judge: GroupJudge::new(promises, &[FLOOR]), messages: 0, boot: 1 }
}

fn value(sequence: u64, partition: u32) -> Vec<u8> {
    let filler = Filler::new(1, 60);
    let (bytes, crc) = filler.get(sequence);
    let stamp = Stamp { run: RUN, producer: 0, partition, sequence, sent_ns: 0 };
    [bytes, &stamp.trailer(crc)].concat()
}

fn batch(offset: u64, key: u64, value: &[u8]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    builder.push(1, Some(&key.to_le_bytes()), value, &[]);
    let mut bytes = builder.finish(PARTITION, PRODUCER, Epoch(0), Sequence(offset - FLOOR));
    BatchHeader::set_placement(&mut bytes, Offset(offset), 1);
    bytes
}

fn entry(offset: u64, acquired: u32, failed: u32, deed: Deed) -> Entry {
    Entry { partition: 0, count: 1, offset, acquired, failed, attach: 1, deed }
}

impl Case {
    /// So many messages were produced, from [`FLOOR`] on.
    fn produced(mut self, messages: u64) -> Case {
        self.messages = messages;
        self
    }

    fn give(&mut self, consumer: u64, offset: u64, (acquired, failed): (u32, u32), bytes: &[u8]) {
        let to = Holder { consumer: ConsumerId(consumer), attach: consumer, boot: self.boot };
        let lease = LeaseRange { partition: 0, base_offset: Offset(offset), count: 1, acquired };
        let payload_len = bytes.len() as u32;
        let range = DeliveredRange { lease, failed, first_delivery_us: 0, payload_len };
        self.judge.delivered(&to, &range, bytes, |_| {}).unwrap();
    }

    /// A record is delivered, with its offset modulo 2 as its key.
    fn to(&mut self, consumer: u64, offset: u64, acquired: u32, failed: u32) -> &mut Case {
        let bytes = batch(offset, offset % 2, &value(offset - FLOOR, 0));
        self.give(consumer, offset, (acquired, failed), &bytes);
        self
    }

    fn delivered(&mut self, offset: u64, acquired: u32, failed: u32) -> &mut Case {
        self.to(1, offset, acquired, failed)
    }

    fn sends(&mut self, entry: Entry) -> &mut Case {
        self.judge.settling(&[entry]);
        self
    }

    fn hears(&mut self, entry: Entry, status: u16) -> &mut Case {
        self.judge.settled(&entry, status);
        self
    }

    fn acks(&mut self, offset: u64, acquired: u32) -> &mut Case {
        let entry = entry(offset, acquired, 0, Deed::Ack);
        self.sends(entry).hears(entry, 0)
    }

    fn rejects(&mut self, offset: u64, acquired: u32, failed: u32) -> &mut Case {
        let entry = entry(offset, acquired, failed, Deed::Reject);
        self.sends(entry).hears(entry, 0)
    }

    fn restart(&mut self) -> &mut Case {
        self.boot += 1;
        self
    }

    fn dead(&mut self, offset: u64, failed: u32) -> &mut Case {
        self.dead_letter(offset, failed, &value(offset - FLOOR, 0))
    }

    fn dead_letter(&mut self, offset: u64, failed: u32, value: &[u8]) -> &mut Case {
        let letter = DeadLetter {
            origin: PARTITION,
            offset: Offset(offset),
            group: GroupId(5),
            acquired: failed,
            failed,
            first_delivery_us: 1,
            moved_us: 2,
            reason: String::new(),
        };
        self.in_dead_letter_topic(value, &[(DEAD_LETTER_HEADER.to_owned(), letter.encode())])
    }

    fn in_dead_letter_topic(&mut self, value: &[u8], headers: &[(String, Vec<u8>)]) -> &mut Case {
        let mut builder = BatchBuilder::new();
        builder.push(1, None, value, headers);
        let bytes = builder.finish(PARTITION, PRODUCER, Epoch(0), Sequence(0));
        let view = BatchView::parse(&bytes, u32::MAX).unwrap();
        let (_, record) = view.records().next().unwrap();
        self.judge.dead_letter(&record);
        self
    }

    /// Delivers and acknowledges everything from this offset on.
    fn the_rest(&mut self, from: u64) -> &mut Case {
        for offset in from..FLOOR + self.messages {
            self.delivered(offset, 1, 0).acks(offset, 1);
        }
        self
    }

    fn ended(&mut self, is_drained: bool) -> Verdict {
        let mut judge = std::mem::replace(self, case(GroupMode::Shared)).judge;
        let count = self.acknowledged(&judge);
        let info = StreamInfo { partition: PARTITION, producer: PRODUCER, ..StreamInfo::default() };
        for line in [
            Line::RunStarted(Box::new(RunInfo { run: RUN, ..RunInfo::default() })),
            Line::StreamOpened(info),
            Line::Acked { stream: 0, first: 0, count, offset: FLOOR },
            Line::RunEnded,
        ] {
            judge.messages().entry(&line);
        }
        judge.verdict(is_drained)
    }

    fn acknowledged(&self, judge: &GroupJudge) -> u64 {
        judge.parts[0].end - FLOOR
    }

    fn verdict(&mut self) -> Verdict {
        self.ended(true)
    }
}

/// Faults as they are reported of messages: lost, duplicated, reordered, phantom.
fn faults(verdict: &Verdict) -> [u64; 4] {
    [verdict.lost, verdict.duplicated, verdict.reordered, verdict.phantom]
}

#[track_caller]
fn acquits(case: &mut Case) {
    let verdict = case.verdict();
    assert_eq!(verdict.decision(), Decision::Kept, "{verdict:?}");
}

#[track_caller]
fn convicts(case: &mut Case, expected: [u64; 4]) {
    let verdict = case.verdict();
    assert_eq!(faults(&verdict), expected, "{verdict:?}");
    assert_eq!(verdict.decision(), Decision::Broken);
    assert!(!verdict.findings.is_empty(), "it says what was found");
}

#[test]
fn a_group_that_keeps_its_word_is_acquitted() {
    for mode in [GroupMode::Shared, GroupMode::KeyOrdered, GroupMode::Exclusive] {
        let mut case = case(mode).produced(10);
        // 100 fails until it is a dead letter, 101 fails once.
        case.delivered(100, 1, 0).rejects(100, 1, 0).delivered(100, 2, 1).rejects(100, 2, 1);
        case.delivered(100, 3, 2).rejects(100, 3, 2).delivered(101, 1, 0).rejects(101, 1, 0);
        case.delivered(101, 2, 1).acks(101, 2).the_rest(102).dead(100, 3);
        let verdict = case.verdict();
        assert_eq!(verdict.decision(), Decision::Kept, "{mode}: {verdict:?}");
        let group = verdict.group.unwrap();
        assert_eq!((group.acked, group.dead_letters, group.uncompleted), (9, 1, 0));
    }
}

#[test]
fn a_message_that_was_never_delivered_is_lost() {
    let mut one = case(GroupMode::Shared).produced(10);
    (100..105).chain(106..110).for_each(|offset| {
        one.delivered(offset, 1, 0).acks(offset, 1);
    });
    let verdict = one.verdict();
    assert!(verdict.lost >= 1 && verdict.holes == 1, "{verdict:?}");
    assert_eq!(verdict.decision(), Decision::Broken);
}

#[test]
fn a_message_that_nobody_completed_is_lost_when_nothing_is_left() {
    convicts(case(GroupMode::Shared).produced(10).delivered(100, 1, 0).the_rest(101), [1, 0, 0, 0]);
    let rejected = &mut case(GroupMode::Shared).produced(10);
    convicts(rejected.delivered(100, 1, 0).rejects(100, 1, 0).the_rest(101), [1, 0, 0, 0]);
}

#[test]
fn what_was_not_waited_for_proves_nothing() {
    let verdict = case(GroupMode::Shared).produced(10).delivered(100, 1, 0).the_rest(101).ended(false);
    assert_eq!((verdict.lost, verdict.decision()), (0, Decision::Unproven));
    assert_eq!(verdict.group.unwrap().uncompleted, 1);
}

#[test]
fn a_message_that_comes_again_after_its_acknowledgement_is_a_duplicate() {
    for acquired in [1, 2, 5] {
        let case = &mut case(GroupMode::Shared).produced(10);
        convicts(case.the_rest(100).delivered(104, acquired, 0), [0, 1, 0, 0]);
    }
}

#[test]
fn a_message_that_comes_again_after_a_restart_is_a_duplicate_whatever_its_number() {
    for acquired in [1, 2] {
        let case = &mut case(GroupMode::Shared).produced(10);
        convicts(case.the_rest(100).restart().delivered(104, acquired, 0), [0, 1, 0, 0]);
    }
}

#[test]
fn a_message_that_comes_as_often_as_it_came_before_is_a_duplicate() {
    let case = &mut case(GroupMode::Shared).produced(10);
    convicts(case.delivered(100, 1, 0).to(2, 100, 1, 0).acks(100, 1).the_rest(101), [0, 1, 0, 0]);
}

#[test]
fn a_delivery_that_is_read_late_is_no_duplicate() {
    let case = &mut case(GroupMode::Shared).produced(10);
    // Its lease ran out before anybody read it.
    acquits(case.to(2, 100, 2, 1).acks(100, 2).to(1, 100, 1, 0).the_rest(101));
}

#[test]
fn a_delivery_that_was_read_late_once_is_a_duplicate_the_next_time() {
    let case = &mut case(GroupMode::Shared).produced(10);
    case.to(2, 100, 2, 1).acks(100, 2).to(1, 100, 1, 0).to(1, 100, 1, 0).the_rest(101);
    convicts(case, [0, 1, 0, 0]);
}

#[test]
fn a_delivery_from_before_a_restart_that_is_read_late_proves_nothing() {
    let case = &mut case(GroupMode::Shared).produced(10);
    case.delivered(100, 1, 0).restart().delivered(100, 2, 0).acks(100, 2).the_rest(101);
    case.boot = 1;
    acquits(case.delivered(105, 1, 0));
}

#[test]
fn an_acknowledgement_without_an_answer_may_have_been_lost_or_not() {
    let ack = entry(100, 1, 0, Deed::Ack);
    for comes_again in [false, true] {
        let case = &mut case(GroupMode::Shared).produced(10);
        case.delivered(100, 1, 0).sends(ack).judge.unanswered(&[ack]);
        if comes_again {
            case.restart().delivered(100, 2, 0).acks(100, 2);
        }
        acquits(case.the_rest(101));
    }
    let case = &mut case(GroupMode::Shared).produced(10);
    case.delivered(100, 1, 0).sends(ack).judge.unanswered(&[ack]);
    // It was lost, as the record came again; and then nobody has it.
    convicts(case.delivered(100, 2, 0).the_rest(101), [1, 0, 0, 0]);
}

#[test]
fn two_successful_acknowledgements_of_one_message_are_a_duplicate() {
    let case = &mut case(GroupMode::Shared).produced(10);
    convicts(
        case.delivered(100, 1, 0).to(2, 100, 2, 0).acks(100, 1).acks(100, 2).the_rest(101),
        [0, 1, 0, 0],
    );
}

#[test]
fn what_the_broker_calls_completed_is_completed() {
    let ack = entry(100, 1, 0, Deed::Ack);
    acquits(
        case(GroupMode::Shared)
            .produced(10)
            .delivered(100, 1, 0)
            .sends(ack)
            .hears(ack, COMPLETED)
            .the_rest(101),
    );
    let case = &mut case(GroupMode::Shared).produced(10);
    case.delivered(100, 1, 0).sends(ack).hears(ack, COMPLETED).delivered(100, 2, 0);
    convicts(case.the_rest(101), [0, 1, 0, 0]);
}

#[test]
fn a_lost_lease_is_no_fault() {
    let ack = entry(100, 1, 0, Deed::Ack);
    let case = &mut case(GroupMode::Shared).produced(10);
    case.delivered(100, 1, 0).sends(ack).hears(ack, LEASE_LOST).to(2, 100, 2, 1).acks(100, 2);
    acquits(case.the_rest(101));
}

#[test]
fn an_answer_that_makes_no_sense_is_a_fault() {
    let ack = entry(100, 1, 0, Deed::Ack);
    let case = &mut case(GroupMode::Shared).produced(10);
    case.delivered(100, 1, 0).sends(ack).hears(ack, ErrorCode::OffsetOutOfRange as u16).delivered(100, 2, 0);
    let verdict = case.acks(100, 2).the_rest(101).verdict();
    assert_eq!((verdict.group.clone().unwrap().misanswered, verdict.decision()), (1, Decision::Broken));
}

#[test]
fn a_key_whose_earlier_record_is_not_completed_is_seen() {
    // 102 has the key of 100, and 101 another one.
    let case_of = || case(GroupMode::KeyOrdered).produced(10);
    let mut in_hand = case_of();
    in_hand.delivered(100, 1, 0).delivered(101, 1, 0).delivered(102, 1, 0);
    (100..103).for_each(|offset| {
        in_hand.acks(offset, 1);
    });
    convicts(in_hand.the_rest(103), [0, 0, 1, 0]);
    let mut rejected = case_of();
    rejected.delivered(100, 1, 0).rejects(100, 1, 0).delivered(101, 1, 0).acks(101, 1);
    // Both that 102 comes, and that 100 comes after it.
    rejected.delivered(102, 1, 0).acks(102, 1).delivered(100, 2, 1).acks(100, 2);
    convicts(rejected.the_rest(103), [0, 0, 2, 0]);
}

#[test]
fn a_key_whose_earlier_record_comes_after_a_later_one_is_seen() {
    let case = &mut case(GroupMode::KeyOrdered).produced(10);
    case.delivered(102, 1, 0)
        .acks(102, 1)
        .delivered(100, 1, 0)
        .acks(100, 1)
        .delivered(101, 1, 0)
        .acks(101, 1);
    convicts(case.the_rest(103), [0, 0, 1, 0]);
}

#[test]
fn a_key_waits_for_nothing_that_may_be_completed() {
    let case_of = || case(GroupMode::KeyOrdered).produced(10);
    let ack = entry(100, 1, 0, Deed::Ack);
    // The acknowledgement is under way.
    let mut under_way = case_of();
    under_way.delivered(100, 1, 0).sends(ack).delivered(102, 1, 0).hears(ack, 0).acks(102, 1);
    acquits(under_way.delivered(101, 1, 0).acks(101, 1).the_rest(103));
    // It was under way when the connection was lost.
    let mut lost = case_of();
    lost.delivered(100, 1, 0).sends(ack).judge.unanswered(&[ack]);
    acquits(lost.delivered(102, 1, 0).acks(102, 1).delivered(101, 1, 0).acks(101, 1).the_rest(103));
    // Its last lease ran out, so that it went to the dead letters.
    let mut dead = case_of();
    dead.delivered(100, 3, 2).delivered(102, 1, 0).acks(102, 1).delivered(101, 1, 0).acks(101, 1);
    acquits(dead.the_rest(103).dead(100, 3));
}

#[test]
fn a_restart_lets_a_key_begin_again_at_what_is_not_completed() {
    let ack = entry(100, 1, 0, Deed::Ack);
    let case = &mut case(GroupMode::KeyOrdered).produced(10);
    case.delivered(100, 1, 0).delivered(101, 1, 0).acks(101, 1).sends(ack).delivered(102, 1, 0);
    case.judge.unanswered(&[ack]);
    case.restart().delivered(100, 2, 0).acks(100, 2).delivered(102, 2, 0).acks(102, 2);
    acquits(case.the_rest(103));
}

#[test]
fn what_one_consumer_has_in_order_is_not_passed_over() {
    let case_of = || case(GroupMode::Exclusive).produced(10);
    let all = |case: &mut Case, offsets: std::ops::Range<u64>| {
        offsets.for_each(|offset| {
            case.delivered(offset, 1, 0);
        });
    };
    // 103 comes before 102.
    let mut gap = case_of();
    all(&mut gap, 100..102);
    gap.delivered(103, 1, 0).delivered(102, 1, 0);
    (100..104).for_each(|offset| {
        gap.acks(offset, 1);
    });
    convicts(gap.the_rest(104), [0, 0, 1, 0]);
    // 101 came back, and 103 is next.
    let mut passed = case_of();
    all(&mut passed, 100..103);
    passed.rejects(101, 1, 0).delivered(103, 1, 0).delivered(101, 2, 1).delivered(102, 2, 0);
    passed.acks(100, 1).acks(101, 2).acks(102, 2).delivered(103, 2, 0).acks(103, 2);
    convicts(passed.the_rest(104), [0, 0, 1, 0]);
    // Of two that came back, the later one comes first.
    let mut turned = case_of();
    all(&mut turned, 100..103);
    turned.rejects(100, 1, 0).hears(entry(101, 1, 0, Deed::Ack), LEASE_LOST);
    turned.delivered(101, 2, 0).acks(101, 2).delivered(100, 2, 1).acks(100, 2).acks(102, 1);
    convicts(turned.the_rest(103), [0, 0, 1, 0]);
}

#[test]
fn a_consumer_that_gets_a_partition_begins_with_the_first_that_is_not_completed() {
    let case_of = || case(GroupMode::Exclusive).produced(10);
    let mut beyond = case_of();
    beyond.delivered(100, 1, 0).delivered(101, 1, 0).to(2, 102, 1, 0);
    (100..103).for_each(|offset| {
        beyond.acks(offset, 1);
    });
    convicts(beyond.the_rest(103), [0, 0, 1, 0]);
    let mut first = case_of();
    first.delivered(100, 1, 0).delivered(101, 1, 0).to(2, 100, 2, 0).to(2, 101, 2, 0).to(2, 102, 1, 0);
    first.acks(100, 2).acks(101, 2).acks(102, 1);
    (103..110).for_each(|offset| {
        first.to(2, offset, 1, 0).acks(offset, 1);
    });
    acquits(&mut first);
}

#[test]
fn in_order_a_step_back_is_good_and_so_is_what_was_on_its_way() {
    let case = &mut case(GroupMode::Exclusive).produced(10);
    let (reject, ack) = (entry(100, 1, 0, Deed::Reject), entry(101, 1, 0, Deed::Ack));
    case.delivered(100, 1, 0).delivered(101, 1, 0).sends(reject).sends(ack);
    // Sent before the broker has heard of it.
    case.delivered(102, 1, 0).delivered(100, 2, 1).hears(reject, 0).hears(ack, LEASE_LOST);
    case.delivered(101, 2, 0).delivered(102, 2, 0).acks(100, 2).acks(101, 2).acks(102, 2);
    acquits(case.the_rest(103));
}

#[test]
fn a_restart_begins_the_order_at_what_is_not_completed() {
    let case_of = || case(GroupMode::Exclusive).produced(10);
    let mut good = case_of();
    good.delivered(100, 1, 0).delivered(101, 1, 0).acks(100, 1).restart().delivered(101, 2, 0).acks(101, 2);
    acquits(good.the_rest(102));
    let mut bad = case_of();
    bad.delivered(100, 1, 0).delivered(101, 1, 0).restart().delivered(101, 2, 0).delivered(100, 2, 0);
    convicts(bad.acks(100, 2).acks(101, 2).the_rest(102), [0, 0, 1, 0]);
}

#[test]
fn an_answer_about_a_lease_of_before_a_restart_says_nothing_of_the_one_after_it() {
    let case = &mut case(GroupMode::Exclusive).produced(10);
    let old = entry(100, 1, 0, Deed::Ack);
    case.delivered(100, 1, 0).restart().sends(old);
    // The broker has forgotten that it had delivered it, and counts anew.
    case.to(2, 100, 1, 0).hears(old, LEASE_LOST).to(2, 101, 1, 0).acks(100, 1).acks(101, 1);
    (102..110).for_each(|offset| {
        case.to(2, offset, 1, 0).acks(offset, 1);
    });
    acquits(case);
}

#[test]
fn behind_one_that_may_be_a_dead_letter_others_are_still_not_passed_over() {
    let case = &mut case(GroupMode::Exclusive).produced(10);
    case.delivered(100, 3, 2).delivered(101, 1, 0).to(2, 101, 2, 0).to(2, 102, 1, 0).to(3, 102, 2, 0);
    (103..110).for_each(|offset| {
        case.to(3, offset, 1, 0).acks(offset, 1);
    });
    convicts(case.acks(101, 2).acks(102, 2).dead(100, 3), [0, 0, 1, 0]);
}

#[test]
fn failures_that_are_forgotten_are_seen_and_so_is_one_delivery_too_many() {
    let mut forgotten = case(GroupMode::Shared).produced(10);
    forgotten.delivered(100, 1, 0).rejects(100, 1, 0).restart().delivered(100, 2, 0).acks(100, 2);
    let verdict = forgotten.the_rest(101).verdict();
    assert_eq!(
        (verdict.group.clone().unwrap().failures_forgotten, verdict.decision()),
        (1, Decision::Broken)
    );
    let mut too_many = case(GroupMode::Shared).produced(10);
    convicts(too_many.delivered(100, 4, MAX_FAILURES).acks(100, 4).the_rest(101), [0, 1, 0, 0]);
}

/// Rejected until it is a dead letter, and all others acknowledged.
fn with_a_dead_letter() -> Case {
    let mut case = case(GroupMode::Shared).produced(10);
    case.delivered(100, 3, MAX_FAILURES - 1).rejects(100, 3, MAX_FAILURES - 1).the_rest(101);
    case
}

#[test]
fn a_dead_letter_is_there_exactly_once() {
    acquits(with_a_dead_letter().dead(100, MAX_FAILURES));
    let verdict = with_a_dead_letter().verdict();
    assert_eq!((verdict.lost, verdict.group.unwrap().dead_lost), (1, 1));
    convicts(&mut with_a_dead_letter(), [1, 0, 0, 0]);
    convicts(with_a_dead_letter().dead(100, MAX_FAILURES).dead(100, MAX_FAILURES), [0, 1, 0, 0]);
    convicts(with_a_dead_letter().delivered(100, 4, 2).dead(100, MAX_FAILURES), [0, 1, 0, 0]);
}

#[test]
fn nothing_else_is_among_the_dead_letters() {
    let one = || {
        let mut case = with_a_dead_letter();
        case.dead(100, MAX_FAILURES);
        case
    };
    // Acknowledged, never delivered, failed too seldom, another message, damaged, no dead
    // letter at all.
    convicts(one().dead(105, MAX_FAILURES), [0, 0, 0, 1]);
    convicts(one().dead(110, MAX_FAILURES), [0, 0, 0, 1]);
    let mut seldom = case(GroupMode::Shared).produced(10);
    convicts(seldom.delivered(100, 1, 0).the_rest(101).dead(100, MAX_FAILURES - 1), [0, 0, 0, 1]);
    convicts(with_a_dead_letter().dead_letter(100, MAX_FAILURES, &value(0, 1)), [0, 0, 0, 1]);
    convicts(with_a_dead_letter().dead_letter(100, MAX_FAILURES, b"damaged"), [0, 0, 0, 1]);
    convicts(one().in_dead_letter_topic(&value(0, 0), &[]), [0, 0, 0, 1]);
}

#[test]
fn damaged_messages_are_seen() {
    let case = &mut case(GroupMode::Shared).produced(10);
    let mut damaged = value(0, 0);
    damaged[3] ^= 1;
    let bytes = batch(100, 0, &damaged);
    case.give(1, 100, (1, 0), &bytes);
    let verdict = case.acks(100, 1).the_rest(101).verdict();
    assert_eq!((verdict.corrupted, verdict.decision()), (1, Decision::Broken));
}

#[test]
fn batches_that_are_not_what_was_announced_are_seen() {
    for damage in [
        |bytes: &mut Vec<u8>| bytes[90] ^= 1,
        |bytes: &mut Vec<u8>| BatchHeader::set_placement(bytes, Offset(101), 1),
    ] {
        let case = &mut case(GroupMode::Shared).produced(10);
        let mut bytes = batch(100, 0, &value(0, 0));
        damage(&mut bytes);
        case.give(1, 100, (1, 0), &bytes);
        let verdict = case.verdict();
        assert_eq!((verdict.corrupted, verdict.decision()), (1, Decision::Broken));
    }
}

#[test]
fn acknowledgements_up_to_a_record_prove_less() {
    let case = &mut case(GroupMode::Shared).produced(10);
    case.judge.promises.up_to = true;
    // Its lease had run out, which such an acknowledgement is not told.
    acquits(case.delivered(100, 1, 0).acks(100, 1).delivered(100, 2, 1).acks(100, 2).the_rest(101));
}

#[test]
fn a_million_messages_leave_little_behind() {
    let case = &mut case(GroupMode::KeyOrdered);
    // Without the bytes, which take the time.
    let part = &mut case.judge.parts[0];
    for offset in 0..1_000_000u64 {
        // In pairs, of which the second is acknowledged first.
        let offset = FLOOR + (offset ^ 1);
        assert_eq!(part.delivered(offset, 1, 1, 0), Meaning::Good);
        let ack = entry(offset, 1, 0, Deed::Ack);
        part.settling(&ack);
        part.settled(&ack, false, 0);
    }
    assert_eq!((part.open.len(), part.acked.ranges().count()), (0, 1));
}
