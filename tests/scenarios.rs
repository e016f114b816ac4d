//! Histories of a broker that are told in full, one for each way to fail that
//! chance alone would seldom meet. Each opens with the story that it guards.

mod sim;

use ringbolt::log::SegmentSeq;
use ringbolt::log::recovery::RecoveryError;
use ringbolt::shard::action::Reply;
use ringbolt_wire::message::OpenProducer;
use ringbolt_wire::{Epoch, ErrorCode, Offset, PartitionId, ProducerId, Sequence};

use sim::disk::Fate;
use sim::script::{NOBODY, Script, calm_profile};
use sim::workload::Body;

/// Nearly the longest batch: it always gets a commit of its own.
const LARGE: usize = 900_000;

/// Hands in so many large batches at once, each a commit, and leaves their
/// writes unfinished. Returns the requests.
fn write_unfinished(script: &mut Script, partition: PartitionId, count: usize) -> Vec<u64> {
    let requests = (0..count).map(|_| {
        let spec = script.batch(LARGE);
        script.tell(Script::produce(partition, NOBODY, 0, spec))
    });
    let requests: Vec<u64> = requests.collect();
    script.act();
    assert!(script.sim.nodes[0].disk.has_pending_writes());
    requests
}

fn crash(script: &mut Script, fates: &[Fate]) {
    script.sim.nodes[0].disk.set_fates(fates);
    script.sim.crash();
}

/// Fills segments until the log is in the one with this number.
fn fill_up_to(script: &mut Script, partition: PartitionId, segment: u64) {
    while script.sim.checker.logs[0].last_segment() < Some(SegmentSeq(segment)) {
        script.append(partition, LARGE);
    }
    script.pass(300_000);
}

#[test]
fn log_torn_last_commit_is_cut_and_its_place_is_used_again() {
    for fate in [Fate::Lost, Fate::Beheaded, Fate::CutShort] {
        let mut script = Script::new(calm_profile());
        let partition = script.create("t");
        assert_eq!(script.append(partition, 100).base_offset, Offset(0));
        write_unfinished(&mut script, partition, 1);
        crash(&mut script, &[fate]);
        script.boot();
        assert_eq!(script.end(partition), 1, "{fate:?}");
        assert_eq!(script.append(partition, 100).base_offset, Offset(1), "{fate:?}");
        crash(&mut script, &[]);
        script.boot();
        assert_eq!(script.end(partition), 2, "{fate:?}");
    }
}

#[test]
fn log_commit_that_was_written_but_not_acknowledged_stays_once_it_was_seen() {
    let mut script = Script::new(calm_profile());
    let partition = script.create("t");
    script.append(partition, 100);
    write_unfinished(&mut script, partition, 1);
    crash(&mut script, &[Fate::Kept]);
    script.boot();
    assert_eq!(script.end(partition), 2);
    for _ in 0..3 {
        crash(&mut script, &[]);
        script.boot();
        assert_eq!(script.end(partition), 2);
    }
}

/// Two commits were on their way; the first was lost, the second is whole. Taken
/// up, it would leave a hole in the offsets. Worse, once the hole was filled by
/// a commit of the same length, it would seem to follow.
#[test]
fn log_commit_beyond_a_hole_is_not_resurrected_even_when_the_hole_is_filled() {
    let mut script = Script::new(calm_profile());
    let partition = script.create("t");
    script.append(partition, 100);
    write_unfinished(&mut script, partition, 2);
    crash(&mut script, &[Fate::Lost, Fate::Kept]);
    script.boot();
    assert_eq!(script.end(partition), 1);
    script.append(partition, LARGE);
    crash(&mut script, &[]);
    script.boot();
    assert_eq!(script.end(partition), 2);
}

/// The first of three commits lacks a block, and the log is cut before it. Its
/// producer sends the batch again, which is written to the same place; of that, a
/// second crash leaves just the block that was missing. Then the first commit is
/// whole again, and the other two follow it: batches that others have given up by
/// now, as they were told that they are not in the log. The start between the two
/// may itself be cut off at any moment.
#[test]
fn log_what_was_cut_stays_cut_even_when_a_retry_supplies_what_was_missing() {
    for between in [None, Some(Fate::Lost), Some(Fate::Kept), Some(Fate::Beheaded), Some(Fate::CutShort)] {
        let mut script = Script::new(calm_profile());
        let partition = script.create("t");
        script.append(partition, 100);
        let retried = script.batch(LARGE);
        script.tell(Script::produce(partition, NOBODY, 0, retried));
        write_unfinished(&mut script, partition, 2);
        crash(&mut script, &[Fate::Holed, Fate::Kept, Fate::Kept]);
        if let Some(fate) = between {
            script.sim.boot().expect("a torn log");
            assert!(script.sim.nodes[0].disk.has_pending_writes());
            crash(&mut script, &[fate]);
        }
        script.boot();
        assert_eq!(script.end(partition), 1, "{between:?}");
        script.tell(Script::produce(partition, NOBODY, 0, retried));
        script.act();
        assert!(script.sim.nodes[0].disk.has_pending_writes());
        crash(&mut script, &[Fate::SecondBlock]);
        script.boot();
        assert_eq!(script.end(partition), 1, "{between:?}");
        script.append(partition, 100);
        assert_eq!(script.end(partition), 2, "{between:?}");
    }
}

/// As above; but what follows must not be on disk when what replaces the cut is not.
#[test]
fn log_nothing_is_written_before_what_replaces_a_cut_is_durable() {
    let mut script = Script::new(calm_profile());
    let partition = script.create("t");
    script.append(partition, 100);
    write_unfinished(&mut script, partition, 2);
    crash(&mut script, &[Fate::Holed, Fate::Kept]);
    script.sim.boot().expect("a torn log");
    write_unfinished(&mut script, partition, 2);
    let log = &script.sim.checker.logs[0];
    assert_eq!(log.commits().len() - log.durable_commits().len(), 1);
    script.pass(300_000);
    assert_eq!(script.end(partition), 3);
}

/// The head of the first segment was lost: its file is there, and nothing else.
#[test]
fn segments_crash_before_the_first_head_is_durable() {
    for fate in [Fate::Lost, Fate::Kept, Fate::Beheaded] {
        let mut script = Script::new(calm_profile());
        while !script.sim.nodes[0].disk.has_pending_writes() {
            assert!(script.sim.round(), "the shard makes its first segment");
        }
        crash(&mut script, &[fate]);
        script.boot();
        let partition = script.create("t");
        script.append(partition, 100);
        crash(&mut script, &[]);
        script.boot();
        assert_eq!(script.end(partition), 1, "{fate:?}");
    }
}

/// A segment was full and the next one begun when the footer was lost, or its
/// trailer; the log must be read without them, and they must be written later.
#[test]
fn segments_crash_before_a_footer_is_durable() {
    for crash_after_rounds in 0..12 {
        let mut script = Script::new(calm_profile());
        let partition = script.create("t");
        fill_up_to(&mut script, partition, 0);
        while script.sim.checker.logs[0].last_segment() < Some(SegmentSeq(1)) {
            let spec = script.batch(LARGE);
            script.tell(Script::produce(partition, NOBODY, 0, spec));
            script.act();
            script.sim.round();
        }
        for _ in 0..crash_after_rounds {
            script.sim.round();
        }
        crash(&mut script, &[Fate::Kept, Fate::Lost, Fate::Kept, Fate::Lost]);
        script.boot();
        let end = script.end(partition);
        script.append(partition, 100);
        script.pass(300_000);
        crash(&mut script, &[]);
        script.boot();
        assert_eq!(script.end(partition), end + 1, "crash after {crash_after_rounds} rounds");
    }
}

/// A recycled file still holds the head, the commits and the footer of its
/// earlier life.
#[test]
fn segments_recycled_file_shows_nothing_of_its_earlier_life() {
    let mut profile = calm_profile();
    profile.retention_bytes = Some(2 * profile.segment_len);
    let mut script = Script::new(profile);
    let partition = script.create("t");
    for segment in 1..9 {
        fill_up_to(&mut script, partition, segment);
        let end = script.end(partition);
        crash(&mut script, &[]);
        script.boot();
        assert_eq!(script.end(partition), end);
    }
    let first = script.sim.nodes[0].disk.segments()[0];
    assert!(first > SegmentSeq(3), "segments were given up: {first} is the first");
}

/// The catalog and the ends of idle partitions are known from footers once the
/// segments that held them are given up.
#[test]
fn retention_keeps_topics_offsets_and_order_of_idle_partitions() {
    let mut profile = calm_profile();
    profile.retention_bytes = Some(2 * profile.segment_len);
    let mut script = Script::new(profile);
    let idle = script.create("idle");
    assert_eq!(script.append(idle, 100).base_offset, Offset(0));
    let busy = script.create("busy");
    for segment in 1..8 {
        fill_up_to(&mut script, busy, segment);
        crash(&mut script, &[]);
        script.boot();
    }
    assert_eq!(script.end(idle), 1, "offsets do not begin anew");
    assert_eq!(script.append(idle, 100).base_offset, Offset(1));
}

#[test]
fn producer_retry_after_a_crash_gets_the_offset_of_the_original() {
    let mut script = Script::new(calm_profile());
    let partition = script.create("t");
    let opened = script.open(partition, ProducerId::NONE, false);
    let who = (opened.producer, opened.epoch);
    script.append(partition, 10);
    let batches = [script.batch(50), script.batch(LARGE), script.batch(60)];
    let mut offsets = Vec::new();
    for (i, spec) in batches.iter().enumerate() {
        match script.ask(Script::produce(partition, who, i as u64, *spec)) {
            Reply::Produced(ack) if !ack.duplicate => offsets.push(ack.base_offset),
            other => panic!("{other:?}"),
        }
    }
    for _ in 0..3 {
        crash(&mut script, &[]);
        script.boot();
        assert_eq!(script.open(partition, who.0, false).next_sequence.0, 3);
        for (i, spec) in batches.iter().enumerate() {
            match script.ask(Script::produce(partition, who, i as u64, *spec)) {
                Reply::Produced(ack) => assert!(ack.duplicate && ack.base_offset == offsets[i], "{ack:?}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(script.end(partition), 4);
    }
}

/// A retry overtakes the original's write: it is a duplicate, and must not be
/// acknowledged before the original is durable.
#[test]
fn producer_duplicate_of_a_batch_in_flight_waits_for_it() {
    let mut script = Script::new(calm_profile());
    let partition = script.create("t");
    let opened = script.open(partition, ProducerId::NONE, false);
    let who = (opened.producer, opened.epoch);
    let spec = script.batch(LARGE);
    let original = script.tell(Script::produce(partition, who, 0, spec));
    script.act();
    let retry = script.tell(Script::produce(partition, who, 0, spec));
    script.act();
    assert!(script.answer(retry).is_none());
    match (script.wait(original), script.wait(retry)) {
        (Reply::Produced(first), Reply::Produced(second)) => {
            assert!(!first.duplicate && second.duplicate);
            assert_eq!(first.base_offset, second.base_offset);
        }
        other => panic!("{other:?}"),
    }
}

/// The old incarnation's batches are appended and not yet durable when a new one
/// takes over. The new one's first batch has a sequence that one of them has as
/// well; acknowledged as its duplicate, its records would be nowhere.
#[test]
fn producer_take_over_does_not_mistake_the_old_ones_batches_for_its_own() {
    let mut script = Script::new(calm_profile());
    let partition = script.create("t");
    let id = ProducerId(77);
    let old = script.open(partition, id, true);
    let first = script.batch(10);
    assert!(matches!(
        script.ask(Script::produce(partition, (id, old.epoch), 0, first)),
        Reply::Produced(ack) if !ack.duplicate
    ));
    let (before, after) = (script.batch(LARGE), script.batch(LARGE));
    script.tell(Script::produce(partition, (id, old.epoch), 1, before));
    script.act();
    let new = script.open(partition, id, true);
    assert!(new.epoch > old.epoch);
    match script.ask(Script::produce(partition, (id, new.epoch), new.next_sequence.0, after)) {
        Reply::Produced(ack) => assert!(!ack.duplicate, "{ack:?}"),
        Reply::Error(error) => assert!(error.is_retryable(), "{error:?}"),
        other => panic!("{other:?}"),
    }
    // The checker has compared what is there with what was sent.
    script.sim.audit();
}

/// A take-over waits for what is on its way, and meanwhile another batch of the
/// old incarnation arrives. Taken in, it would be in the log under a sequence
/// that the take-over's answer, which is final, calls free.
#[test]
fn producer_take_over_refuses_old_epochs_from_its_arrival_on() {
    let mut script = Script::new(calm_profile());
    let partition = script.create("t");
    let id = ProducerId(77);
    let old = script.open(partition, id, true);
    let (first, late) = (script.batch(LARGE), script.batch(10));
    let first = script.tell(Script::produce(partition, (id, old.epoch), 0, first));
    script.act();
    let take_over = script.tell(Body::Open(OpenProducer { partition, producer: id, take_over: true }));
    script.act();
    assert!(script.answer(take_over).is_none(), "the take-over waits for the first batch");
    match script.ask(Script::produce(partition, (id, old.epoch), 1, late)) {
        Reply::Error(error) => assert_eq!(error.error_code(), Some(ErrorCode::FencedProducer)),
        other => panic!("the old epoch is taken in after the take-over: {other:?}"),
    }
    assert!(matches!(script.wait(first), Reply::Produced(_)));
    match script.wait(take_over) {
        Reply::ProducerOpened(new) => {
            assert!(new.epoch > old.epoch);
            assert_eq!((new.next_sequence, new.last_offset), (Sequence(1), Offset(0)));
        }
        other => panic!("{other:?}"),
    }
    script.pass(300_000);
    assert_eq!(script.end(partition), 1, "the answer was final");
}

#[test]
fn producer_two_take_overs_in_a_row_get_two_epochs() {
    let mut script = Script::new(calm_profile());
    let partition = script.create("t");
    let first = script.open(partition, ProducerId(5), true);
    let second = script.open(partition, ProducerId(5), true);
    assert!(second.epoch > first.epoch);
    let spec = script.batch(10);
    match script.ask(Script::produce(partition, (ProducerId(5), first.epoch), 0, spec)) {
        Reply::Error(error) => {
            assert_eq!(error.error_code(), Some(ErrorCode::FencedProducer));
            assert_eq!(error.detail, u64::from(second.epoch.0));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn disk_full_refuses_producing_and_reading_goes_on_until_there_is_room() {
    let mut script = Script::new(calm_profile());
    let partition = script.create("t");
    script.append(partition, LARGE);
    script.pass(100_000);
    script.sim.nodes[0].disk.set_full(true);
    let refused = loop {
        let spec = script.batch(LARGE);
        let request = script.tell(Script::produce(partition, NOBODY, 0, spec));
        script.act();
        match script.wait(request) {
            Reply::Produced(_) => {}
            Reply::Error(error) if error.error_code() == Some(ErrorCode::Overloaded) => script.pass(1_000),
            Reply::Error(error) => break error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused.error_code(), Some(ErrorCode::DiskFull));
    script.sim.audit();
    let end = script.end(partition);
    script.sim.nodes[0].disk.set_full(false);
    script.pass(3_000_000);
    assert_eq!(script.append(partition, LARGE).base_offset, Offset(end));
}

/// The kernel may have dropped what it could not write, so no retry can make
/// the acknowledgement true.
#[test]
fn disk_failed_write_ends_everything() {
    let mut script = Script::new(calm_profile());
    let partition = script.create("t");
    script.append(partition, 100);
    script.sim.nodes[0].disk.fail_next_write();
    let requests = write_unfinished(&mut script, partition, 2);
    script.pass(10_000);
    assert!(script.sim.nodes[0].stopped);
    let late = script.tell(Body::List { settle: false });
    script.act();
    script.pass(10_000);
    for request in requests.into_iter().chain([late]) {
        assert!(script.answer(request).is_none());
    }
    crash(&mut script, &[]);
    script.boot();
}

/// Those at the ends leave no trace in the others. A lost oldest one would pass
/// for one that is no longer retained, and a log of which nothing is left for a
/// new one.
#[test]
fn recovery_missing_segments_are_named_wherever_they_are() {
    // The log is in segment 3, and 4 stands ready.
    for lost in [0..=0, 0..=1, 1..=1, 1..=2, 3..=4, 4..=4, 0..=4u64] {
        let mut script = Script::new(calm_profile());
        let partition = script.create("t");
        fill_up_to(&mut script, partition, 3);
        crash(&mut script, &[]);
        let disk = &mut script.sim.nodes[0].disk;
        assert_eq!(disk.segments(), [0, 1, 2, 3, 4].map(SegmentSeq));
        lost.clone().for_each(|segment| disk.delete(SegmentSeq(segment)));
        let (oldest, newest) = (SegmentSeq(*lost.start()), SegmentSeq(*lost.end()));
        for _ in 0..2 {
            match script.sim.boot() {
                Err(RecoveryError::MissingSegments { missing, .. }) => assert_eq!(missing, oldest..=newest),
                other => panic!("{lost:?} are lost: {other:?}"),
            }
        }
    }
}

/// A crash may come when the oldest segment need not be there any more, and is.
/// It stays in the log until retention finds it again.
#[test]
fn recovery_segment_that_was_about_to_be_recycled_is_kept_until_it_is_no_longer_retained() {
    let mut profile = calm_profile();
    profile.retention_bytes = Some(4 * profile.segment_len);
    for crashes in 0..20 {
        let mut script = Script::new(profile.clone());
        let partition = script.create("t");
        fill_up_to(&mut script, partition, 3 + crashes);
        crash(&mut script, &[]);
        let extent = script.sim.nodes[0].disk.start();
        let segments = script.sim.nodes[0].disk.segments();
        let leftover = segments[0] < extent.first();
        script.boot();
        script.sim.audit();
        fill_up_to(&mut script, partition, 9 + crashes);
        let disk = &script.sim.nodes[0].disk;
        assert!(disk.segments()[0] > segments[0] && disk.segments().len() <= 5, "{:?}", disk.segments());
        if leftover {
            return;
        }
    }
    panic!("no crash came at the right moment");
}

/// Every bit of an acknowledged commit in the open segment matters, and a later
/// commit bears witness that it was acknowledged.
#[test]
fn recovery_damage_to_an_acknowledged_commit_is_refused_and_named() {
    for within in [0, 5, 30, 127, 128, 140, 150, 200, 300] {
        let mut script = Script::new(calm_profile());
        let partition = script.create("t");
        script.append(partition, 2_000);
        let (segment, position) = {
            let commit = script.sim.checker.logs[0].durable_commits().last().expect("there is one");
            (commit.segment, commit.position)
        };
        script.append(partition, 2_000);
        crash(&mut script, &[]);
        script.sim.nodes[0].disk.flip(segment, position as usize + within, 3);
        script.sim.checker.damaged = true;
        match script.sim.boot() {
            Err(RecoveryError::Acknowledged { segment: named, position: at, .. }) => {
                assert_eq!((named, at), (segment, position), "bit in byte {within}");
            }
            other => panic!("bit in byte {within}: {other:?}"),
        }
    }
}

/// The very last commit has no later one to bear witness; a moment after it, the
/// broker puts its durability on record.
#[test]
fn recovery_damage_to_the_last_acknowledged_commit_is_refused_after_a_while() {
    let mut script = Script::new(calm_profile());
    let partition = script.create("t");
    script.append(partition, 2_000);
    let (segment, position) = {
        let commit = script.sim.checker.logs[0].durable_commits().last().expect("there is one");
        (commit.segment, commit.position)
    };
    script.pass(1_000_000);
    crash(&mut script, &[]);
    script.sim.nodes[0].disk.flip(segment, position as usize + 300, 3);
    script.sim.checker.damaged = true;
    let refused = script.sim.boot();
    assert!(matches!(refused, Err(RecoveryError::Acknowledged { .. })), "{refused:?}");
}

/// A footer sums up its segment. Where it is damaged, the segment itself still
/// says all; what it holds must not be hidden behind later footers that are
/// whole.
#[test]
fn recovery_damaged_footer_or_trailer_hides_nothing() {
    for segment in 0..3 {
        for from_the_end in [4096 + 30, 4096 - 20] {
            let mut script = Script::new(calm_profile());
            let partition = script.create("t");
            fill_up_to(&mut script, partition, 3);
            let end = script.end(partition);
            crash(&mut script, &[]);
            let len = script.sim.profile.segment_len as usize;
            let trailer = script.sim.nodes[0].disk.file(SegmentSeq(segment)).expect("it is there");
            let footer = u64::from_le_bytes(trailer[len - 4096 + 40..][..8].try_into().expect("eight bytes"));
            let place = if from_the_end > 4096 { footer as usize + 30 } else { len - from_the_end };
            script.sim.nodes[0].disk.flip(SegmentSeq(segment), place, 0);
            script.sim.checker.damaged = true;
            if let Err(refused) = script.sim.boot() {
                assert!(matches!(refused, RecoveryError::Acknowledged { .. }), "{refused:?}");
                continue;
            }
            script.sim.audit();
            assert_eq!(script.end(partition), end);
        }
    }
}

#[test]
fn stop_answers_what_is_under_way_and_refuses_what_comes_later() {
    let mut script = Script::new(calm_profile());
    let partition = script.create("t");
    let (first, second) = (script.batch(LARGE), script.batch(100));
    script.tell(Script::produce(partition, NOBODY, 0, first));
    script.tell(Script::produce(partition, NOBODY, 0, second));
    script.act();
    script.sim.stop();
    script.boot();
    assert_eq!(script.end(partition), 2);
    let epoch = Epoch(0);
    assert_eq!(script.open(partition, ProducerId(9), false).epoch, epoch);
}
