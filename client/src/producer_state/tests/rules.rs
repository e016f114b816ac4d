//! One test for each rule.

use super::*;

const SECOND: u64 = 1_000_000;

fn config(max_in_flight: usize) -> ProducerConfig {
    ProducerConfig { max_in_flight, ..ProducerConfig::default() }
}

fn opened(epoch: u32, next: u64) -> ProducerOpened {
    ProducerOpened {
        producer: PRODUCER,
        epoch: Epoch(epoch),
        next_sequence: Sequence(next),
        last_offset: Offset::UNKNOWN,
    }
}

fn ack(offset: u64) -> ProduceAck {
    ProduceAck { base_offset: Offset(offset), commit_time_us: 9, copies: 1, duplicate: false }
}

fn refusal(code: ErrorCode, detail: u64) -> ErrorResponse {
    ErrorResponse::new(code, "").with_detail(detail)
}

/// A connected, open producer with one batch of one record per tag pushed.
fn producer(max_in_flight: usize, tags: &[u64]) -> ProducerState<u64> {
    let mut state = ProducerState::new(PARTITION, config(max_in_flight), 1);
    for &tag in tags {
        state.push(batch(tag, 1), 100 * SECOND, tag);
    }
    connect(&mut state, false, 0, 0);
    state
}

fn connect(state: &mut ProducerState<u64>, take_over: bool, epoch: u32, next: u64) {
    state.on_connected();
    reopen(state, 0, take_over, epoch, next);
}

fn reopen(state: &mut ProducerState<u64>, now: u64, take_over: bool, epoch: u32, next: u64) {
    match state.poll(now, true) {
        Some(Step::Open(open)) => assert_eq!((open.partition, open.take_over), (PARTITION, take_over)),
        other => panic!("{other:?}"),
    }
    state.on_opened(opened(epoch, next));
}

/// Everything that is sent now: id, then epoch, sequence and tag.
fn sends(state: &mut ProducerState<u64>, now: u64) -> Vec<(BatchId, (u32, u64, u64))> {
    let mut sent = Vec::new();
    while let Some(step) = state.poll(now, true) {
        let Step::Send { id, batch } = step else { panic!("{step:?}") };
        let (epoch, sequence, _, tag) = read(&batch);
        sent.push((id, (epoch, sequence, tag)));
    }
    sent
}

fn what(sent: &[(BatchId, (u32, u64, u64))]) -> Vec<(u32, u64, u64)> {
    sent.iter().map(|s| s.1).collect()
}

fn finished(state: &mut ProducerState<u64>, now: u64) -> Vec<(u64, Result<Durable, Failure>)> {
    let mut ended = Vec::new();
    while let Some(Step::Finished(finished)) = state.poll(now, false) {
        ended.push((finished.tag, finished.verdict));
    }
    ended
}

/// First moment at which the state sends or opens again.
fn retry_at(state: &mut ProducerState<u64>, now: u64) -> u64 {
    assert!(state.poll(now, true).is_none());
    state.poll_timeout().unwrap()
}

#[test]
fn nothing_is_opened_before_there_is_something_to_send() {
    let mut state = ProducerState::<u64>::new(PARTITION, config(4), 1);
    state.on_connected();
    assert!(state.poll(0, true).is_none());
    state.push(batch(1, 1), SECOND, 1);
    assert!(state.poll(0, false).is_none(), "no credit");
    assert!(matches!(state.poll(0, true), Some(Step::Open(_))));
    assert!(state.poll(0, true).is_none(), "asked once");
}

#[test]
fn sequences_count_records_from_where_the_broker_stands() {
    let mut state = ProducerState::new(PARTITION, config(4), 1);
    for (tag, count) in [(1, 3), (2, 1), (3, 5)] {
        state.push(batch(tag, count), 100 * SECOND, tag);
    }
    connect(&mut state, false, 6, 40);
    let sent = sends(&mut state, 0);
    assert_eq!(what(&sent), [(6, 40, 1), (6, 43, 2), (6, 44, 3)]);
}

#[test]
fn no_more_than_the_window_is_in_flight() {
    let mut state = producer(2, &[1, 2, 3]);
    let sent = sends(&mut state, 0);
    assert_eq!(what(&sent), [(0, 0, 1), (0, 1, 2)]);
    assert!(!state.wants_batch(0));
    state.on_acked(sent[0].0, ack(10));
    let ended = finished(&mut state, 0);
    assert!(matches!(ended[..], [(1, Ok(Durable { base_offset: Some(Offset(10)), .. }))]));
    assert_eq!(what(&sends(&mut state, 0)), [(0, 2, 3)]);
}

#[test]
fn a_lost_connection_resends_everything_unanswered_as_it_was() {
    let mut state = producer(4, &[1, 2, 3]);
    let sent = sends(&mut state, 0);
    state.on_acked(sent[0].0, ack(0));
    finished(&mut state, 0);
    state.on_disconnected();
    assert!(state.poll(0, true).is_none());
    connect(&mut state, false, 0, 2);
    let again = sends(&mut state, 0);
    assert_eq!(what(&again), [(0, 1, 2), (0, 2, 3)]);
    let duplicate = ProduceAck { duplicate: true, commit_time_us: 0, ..ack(1) };
    state.on_acked(again[0].0, duplicate);
    let ended = finished(&mut state, 0);
    assert!(matches!(ended[..], [(2, Ok(Durable { base_offset: Some(Offset(1)), duplicate: true, .. }))]));
}

#[test]
fn a_retryable_refusal_waits_for_the_flight_and_resends_in_order() {
    let mut state = producer(3, &[1, 2, 3]);
    let sent = sends(&mut state, 0);
    state.on_refused(sent[0].0, refusal(ErrorCode::Overloaded, 0), 0);
    assert!(sends(&mut state, 1).is_empty(), "two are still in flight");
    state.on_refused(sent[1].0, refusal(ErrorCode::OutOfOrderSequence, 0), 0);
    state.on_refused(sent[2].0, refusal(ErrorCode::OutOfOrderSequence, 0), 0);
    let at = retry_at(&mut state, 0);
    assert!((5000..=10_000).contains(&at), "{at}");
    assert_eq!(what(&sends(&mut state, at)), [(0, 0, 1), (0, 1, 2), (0, 2, 3)]);
}

#[test]
fn waits_grow_until_something_is_durable_and_heed_the_broker() {
    let mut state = producer(1, &[1, 2]);
    let (mut now, mut waits) = (0, Vec::new());
    for _ in 0..6 {
        let sent = sends(&mut state, now);
        state.on_refused(sent[0].0, refusal(ErrorCode::DiskFull, 0), now);
        let at = retry_at(&mut state, now);
        waits.push(at - now);
        now = at;
    }
    assert!(waits[5] > 8 * waits[0], "{waits:?}");
    let sent = sends(&mut state, now);
    state.on_acked(sent[0].0, ack(0));
    finished(&mut state, now);
    let sent = sends(&mut state, now);
    let told = ErrorResponse { retry_after_ms: 700, ..refusal(ErrorCode::Overloaded, 0) };
    state.on_refused(sent[0].0, told, now);
    assert_eq!(retry_at(&mut state, now), now + 700_000);
}

#[test]
fn a_final_refusal_ends_one_batch_and_the_others_go_on_under_a_new_epoch() {
    let mut state = producer(3, &[1, 2, 3]);
    let sent = sends(&mut state, 0);
    state.on_acked(sent[0].0, ack(0));
    state.on_refused(sent[1].0, refusal(ErrorCode::BatchTooLarge, 9), 0);
    state.on_refused(sent[2].0, refusal(ErrorCode::OutOfOrderSequence, 1), 0);
    let ended = finished(&mut state, 0);
    assert!(matches!(&ended[..], [(1, Ok(_)), (2, Err(Failure::Refused(r)))] if r.detail == 9));
    assert_eq!(ended[1].1.as_ref().unwrap_err().outcome(), ringbolt_wire::Outcome::RejectedFinal);
    reopen(&mut state, 0, true, 1, 1);
    assert_eq!(what(&sends(&mut state, 0)), [(1, 1, 3)]);
}

#[test]
fn a_batch_that_was_never_sent_expires_as_retryable() {
    let mut state = ProducerState::new(PARTITION, config(1), 1);
    state.push(batch(1, 1), SECOND, 1);
    assert_eq!(state.poll_timeout(), Some(SECOND));
    assert!(finished(&mut state, SECOND - 1).is_empty());
    let ended = finished(&mut state, SECOND);
    assert_eq!(ended, [(1, Err(Failure::Expired { last: None }))]);
    assert!(state.is_idle());
}

#[test]
fn a_batch_that_was_last_refused_expires_as_retryable_and_says_why() {
    let mut state = producer(1, &[1]);
    let sent = sends(&mut state, 0);
    let full = refusal(ErrorCode::DiskFull, 0);
    state.on_refused(sent[0].0, full.clone(), 0);
    let ended = finished(&mut state, 100 * SECOND);
    assert_eq!(ended, [(1, Err(Failure::Expired { last: Some(Box::new(full)) }))]);
    assert_eq!(ended[0].1.as_ref().unwrap_err().outcome(), ringbolt_wire::Outcome::RejectedRetryable);
}

#[test]
fn a_batch_without_answer_expires_as_unknown() {
    let mut state = producer(1, &[1]);
    let sent = sends(&mut state, 0);
    let ended = finished(&mut state, 100 * SECOND);
    assert_eq!(ended, [(1, Err(Failure::Unknown { last: None }))]);
    state.on_acked(sent[0].0, ack(0));
    assert!(finished(&mut state, 100 * SECOND).is_empty(), "told once");
}

#[test]
fn once_an_answer_was_lost_a_refusal_does_not_make_it_rejected() {
    for code in [ErrorCode::Overloaded, ErrorCode::UnknownTopic, ErrorCode::FencedProducer] {
        let mut state = producer(1, &[1]);
        sends(&mut state, 0);
        state.on_disconnected();
        connect(&mut state, false, 0, 0);
        let sent = sends(&mut state, 0);
        state.on_refused(sent[0].0, refusal(code, 1), 0);
        let ended = finished(&mut state, 100 * SECOND);
        assert!(
            matches!(&ended[..], [(1, Err(Failure::Unknown { last: Some(r) }))] if r.error_code() == Some(code)),
            "{ended:?}"
        );
    }
}

#[test]
fn fencing_ends_the_producer_for_good() {
    let mut state = producer(2, &[1, 2, 3]);
    let sent = sends(&mut state, 0);
    state.on_refused(sent[0].0, refusal(ErrorCode::FencedProducer, 5), 0);
    let ended = finished(&mut state, 0);
    assert!(matches!(&ended[0], (1, Err(Failure::Refused(_)))));
    assert!(matches!(&ended[1], (2, Err(Failure::Unknown { .. }))), "it was in flight");
    assert!(matches!(&ended[2], (3, Err(Failure::Refused(_)))));
    state.push(batch(4, 1), 100 * SECOND, 4);
    assert!(matches!(&finished(&mut state, 0)[..], [(4, Err(Failure::Refused(_)))]));
    assert_eq!(state.refusal().unwrap().detail, 5);
}

#[test]
fn somebody_elses_take_over_is_seen_when_reconnecting() {
    let mut state = producer(2, &[1]);
    sends(&mut state, 0);
    state.on_disconnected();
    connect(&mut state, false, 1, 0);
    assert!(matches!(&finished(&mut state, 0)[..], [(1, Err(Failure::Unknown { .. }))]));
    assert_eq!(state.refusal().unwrap().error_code(), Some(ErrorCode::FencedProducer));
}

#[test]
fn its_own_unanswered_take_over_is_not_taken_for_somebody_elses() {
    let mut state = producer(1, &[1, 2]);
    let sent = sends(&mut state, 0);
    state.on_refused(sent[0].0, refusal(ErrorCode::BatchTooLarge, 0), 0);
    finished(&mut state, 0);
    assert!(matches!(state.poll(0, true), Some(Step::Open(open)) if open.take_over));
    state.on_disconnected();
    connect(&mut state, true, 2, 0);
    assert_eq!(what(&sends(&mut state, 0)), [(2, 0, 2)]);
}

#[test]
fn a_broker_that_forgot_the_producer_gets_a_new_epoch_from_the_start() {
    let mut state = producer(1, &[1, 2]);
    let sent = sends(&mut state, 0);
    state.on_acked(sent[0].0, ack(0));
    finished(&mut state, 0);
    let sent = sends(&mut state, 0);
    state.on_refused(sent[0].0, refusal(ErrorCode::OutOfOrderSequence, 0), 0);
    let at = retry_at(&mut state, 0);
    reopen(&mut state, at, true, 0, 0);
    assert_eq!(what(&sends(&mut state, at)), [(1, 0, 2)]);
}

#[test]
fn a_first_attempt_answered_as_duplicate_was_not_written() {
    let mut state = producer(1, &[1]);
    let sent = sends(&mut state, 0);
    state.on_acked(sent[0].0, ProduceAck { duplicate: true, ..ack(3) });
    assert!(finished(&mut state, 0).is_empty());
    reopen(&mut state, 0, true, 1, 1);
    assert_eq!(what(&sends(&mut state, 0)), [(1, 1, 1)]);
}

#[test]
fn while_late_attempts_may_come_batches_go_one_by_one() {
    let mut state = producer(3, &[1, 2, 3, 4, 5, 6]);
    sends(&mut state, 0);
    state.on_disconnected();
    connect(&mut state, false, 0, 0);
    let sent = sends(&mut state, 0);
    state.on_refused(sent[0].0, refusal(ErrorCode::Overloaded, 0), 0);
    state.on_refused(sent[1].0, refusal(ErrorCode::MalformedBatch, 0), 0);
    state.on_refused(sent[2].0, refusal(ErrorCode::OutOfOrderSequence, 0), 0);
    let ended = finished(&mut state, 0);
    assert!(matches!(&ended[..], [(2, Err(Failure::Unknown { .. }))]));
    let at = retry_at(&mut state, 0);
    reopen(&mut state, at, true, 1, 0);
    let ended = finished(&mut state, at);
    assert!(matches!(&ended[..], [(3, Err(Failure::Unknown { .. }))]), "a late attempt may fill the hole");
    let sent = sends(&mut state, at);
    assert_eq!(what(&sent), [(1, 0, 1)]);
    // Found where the lost attempt put it: that says nothing of the new epoch.
    state.on_acked(sent[0].0, ProduceAck { duplicate: true, ..ack(0) });
    assert!(matches!(&finished(&mut state, at)[..], [(1, Ok(_))]));
    let sent = sends(&mut state, at);
    assert_eq!(what(&sent), [(1, 1, 4)]);
    state.on_acked(sent[0].0, ack(1));
    finished(&mut state, at);
    assert_eq!(what(&sends(&mut state, at)), [(1, 2, 5), (1, 3, 6)]);
}

#[test]
fn a_resumed_producer_sends_its_first_batch_alone() {
    let config = ProducerConfig { producer: PRODUCER, resume: true, take_over: true, ..config(3) };
    let mut state = ProducerState::new(PARTITION, config, 1);
    for tag in [1, 2, 3] {
        state.push(batch(tag, 1), 100 * SECOND, tag);
    }
    connect(&mut state, true, 4, 9);
    let sent = sends(&mut state, 0);
    assert_eq!(what(&sent), [(4, 9, 1)]);
    state.on_acked(sent[0].0, ack(0));
    finished(&mut state, 0);
    assert_eq!(what(&sends(&mut state, 0)), [(4, 10, 2), (4, 11, 3)]);
}

#[test]
fn silence_asks_for_a_new_connection() {
    let mut state = producer(1, &[1]);
    sends(&mut state, 0);
    assert_eq!(state.poll_timeout(), Some(10 * SECOND));
    assert!(state.poll(10 * SECOND - 1, true).is_none());
    assert!(matches!(state.poll(10 * SECOND, true), Some(Step::Reconnect)));
    state.on_disconnected();
    state.on_connected();
    assert!(matches!(state.poll(10 * SECOND, true), Some(Step::Open(_))));
    assert!(matches!(state.poll(20 * SECOND, true), Some(Step::Reconnect)), "an open has no answer either");
}

#[test]
fn a_refused_open_is_tried_again_or_ends_the_producer() {
    let mut state = ProducerState::new(PARTITION, config(1), 1);
    state.push(batch(1, 1), 100 * SECOND, 1);
    state.on_connected();
    assert!(matches!(state.poll(0, true), Some(Step::Open(_))));
    state.on_open_refused(refusal(ErrorCode::Overloaded, 0), 0);
    let at = retry_at(&mut state, 0);
    assert!(matches!(state.poll(at, true), Some(Step::Open(_))));
    state.on_open_refused(refusal(ErrorCode::UnknownTopic, 0), at);
    assert!(matches!(&finished(&mut state, at)[..], [(1, Err(Failure::Refused(_)))]));
}

#[test]
fn closing_says_of_each_batch_what_can_be_said() {
    let mut state = producer(1, &[1, 2]);
    sends(&mut state, 0);
    state.close();
    let ended = finished(&mut state, 0);
    assert!(matches!(&ended[..], [(1, Err(Failure::Unknown { .. })), (2, Err(Failure::Closed))]));
}
