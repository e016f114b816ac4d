//! The state of a consumer at one shard, step by step, against a scripted broker; and, in
//! [`random`], whatever happens.

mod random;

use std::time::Duration;

use ringbolt_wire::message::{
    DeliveredRange, LeaseRange, MAX_SETTLE_ITEMS, MAX_SETTLE_RECORDS, SettleItem, Settled, Unsettled,
};
use ringbolt_wire::{ConsumerId, ErrorCode, GroupId, Offset, ShardId};

use super::*;

const LEASE_MS: u32 = 900;
const LEASE_US: u64 = 900_000;

fn config() -> ShardConfig {
    ShardConfig {
        at: ConsumerAt { shard: ShardId(1), group: GroupId(2), consumer: ConsumerId(3) },
        window: Credit { records: 100, bytes: 10_000 },
        lease_ms: 0,
        auto_extend: true,
        exclusive: false,
        dead_letters: true,
        request_timeout_us: 5_000_000,
        backoff: BackoffConfig { first: Duration::from_millis(10), cap: Duration::from_millis(10) },
    }
}

type State = ShardState<u64>;

/// Connected and attached, with its steps done.
fn attached(config: ShardConfig) -> State {
    let mut state = State::new(config, 1);
    state.on_connected();
    let steps = steps(&mut state, 0);
    let [Step::Attach(attach)] = &steps[..] else { panic!("{steps:?}") };
    assert_eq!((attach.credit, &attach.held), (config.window, &vec![]));
    state
}

fn steps(state: &mut State, now_us: u64) -> Vec<Step<u64>> {
    std::iter::from_fn(|| state.poll(now_us, true)).collect()
}

fn range(partition: u32, offset: u64, count: u32, acquired: u32) -> LeaseRange {
    LeaseRange { partition, base_offset: Offset(offset), count, acquired }
}

/// Records of 10 bytes each.
fn deliver(state: &mut State, lease: LeaseRange, now_us: u64) -> Option<Vec<LeaseRange>> {
    let payload_len = lease.count * 10;
    let range = DeliveredRange { lease, failed: 0, first_delivery_us: 0, payload_len };
    state.on_delivery(&range, &vec![10; lease.count as usize], LEASE_MS, now_us)
}

fn settle(state: &mut State, offset: u64, acquired: u32, verb: Verb, tag: Option<u64>) {
    state.settle(0, Offset(offset), acquired, verb, tag, 0);
}

/// The one settle of these steps, and its number.
fn only_settle(steps: &[Step<u64>]) -> (SettleId, Settle) {
    let mut settles = steps.iter().filter_map(|step| match step {
        Step::Settle { id, settle } => Some((*id, settle.clone())),
        _ => None,
    });
    match (settles.next(), settles.next()) {
        (Some(settle), None) => settle,
        _ => panic!("{steps:?}"),
    }
}

fn resolved(steps: &[Step<u64>]) -> Vec<(u64, Result<(), SettleError>)> {
    let mut resolved: Vec<_> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Resolved { tag, verdict } => Some((*tag, verdict.clone())),
            _ => None,
        })
        .collect();
    resolved.sort_by_key(|(tag, _)| *tag);
    resolved
}

fn lost(steps: &[Step<u64>]) -> Vec<LeaseRange> {
    steps.iter().filter_map(|step| if let Step::Lost(range) = step { Some(*range) } else { None }).collect()
}

fn unsettled(partition: u32, offset: u64, count: u32, code: ErrorCode) -> Settled {
    let one = Unsettled { partition, base_offset: Offset(offset), count, status: code as u16 };
    Settled { unsettled: vec![one] }
}

#[test]
fn neighbours_with_the_same_verb_and_count_are_one_item() {
    let mut state = attached(config());
    deliver(&mut state, range(0, 10, 20, 1), 0);
    deliver(&mut state, range(0, 30, 2, 2), 0);
    for offset in [12, 10, 14, 11, 13, 16] {
        settle(&mut state, offset, 1, Verb::Ack, Some(offset));
    }
    settle(&mut state, 15, 1, Verb::Nack { delay_ms: 5 }, Some(15));
    settle(&mut state, 29, 1, Verb::Ack, Some(29));
    settle(&mut state, 30, 2, Verb::Ack, Some(30));
    let (id, sent) = only_settle(&steps(&mut state, 0));
    let item = |range, verb| SettleItem { range, verb };
    let expected = [
        item(range(0, 10, 5, 1), Verb::Ack),
        item(range(0, 15, 1, 1), Verb::Nack { delay_ms: 5 }),
        item(range(0, 16, 1, 1), Verb::Ack),
        item(range(0, 29, 1, 1), Verb::Ack),
        item(range(0, 30, 1, 2), Verb::Ack),
    ];
    assert_eq!((sent.items.as_slice(), sent.confirm), (&expected[..], true));
    assert_eq!(sent.credit, Credit { records: 9, bytes: 90 });

    state.on_settled(id, unsettled(0, 13, 2, ErrorCode::LeaseLost), 0);
    let ends = resolved(&steps(&mut state, 0));
    assert_eq!(ends.len(), 9);
    for (tag, verdict) in ends {
        let expected = if (13..15).contains(&tag) { Err(SettleError::LeaseLost) } else { Ok(()) };
        assert_eq!(verdict, expected, "of record {tag}");
    }
}

#[test]
fn of_one_record_only_one_thing_is_said_in_a_request() {
    let mut state = attached(config());
    deliver(&mut state, range(0, 10, 3, 1), 0);
    settle(&mut state, 11, 1, Verb::Extend { lease_ms: 7 }, Some(1));
    settle(&mut state, 11, 1, Verb::Ack, Some(2));
    settle(&mut state, 12, 1, Verb::Ack, Some(3));
    let sent = steps(&mut state, 0);
    let settles: Vec<_> =
        sent.iter()
            .map(|step| {
                if let Step::Settle { settle, .. } = step { settle.items.clone() } else { panic!("{sent:?}") }
            })
            .collect();
    let extend = SettleItem { range: range(0, 11, 1, 1), verb: Verb::Extend { lease_ms: 7 } };
    let ack = |offset| SettleItem { range: range(0, offset, 1, 1), verb: Verb::Ack };
    assert_eq!(settles, [vec![extend, ack(12)], vec![ack(11)]]);
}

#[test]
fn a_request_has_no_more_items_than_the_protocol_allows_and_stays_short() {
    let mut state = attached(ShardConfig { window: Credit { records: 5000, bytes: 100_000 }, ..config() });
    deliver(&mut state, range(0, 0, 5000, 1), 0);
    (0..2500).for_each(|n| settle(&mut state, n * 2, 1, Verb::Ack, Some(n)));
    let mut counts = Vec::new();
    for step in steps(&mut state, 0) {
        let Step::Settle { id, settle } = step else { panic!("{step:?}") };
        counts.push(settle.items.len());
        state.on_settled(id, Settled::default(), 0);
    }
    assert_eq!(counts, [MAX_SETTLE_ITEMS, MAX_SETTLE_ITEMS, 2500 - 2 * MAX_SETTLE_ITEMS]);
    steps(&mut state, 0);
    for n in 0..200 {
        let verb = Verb::Reject { dead_letter: false, reason: "x".repeat(1024) };
        settle(&mut state, n * 2 + 1, 1, verb, None);
    }
    let mut items = 0;
    for step in steps(&mut state, 0) {
        let Step::Tell(settle) = step else { panic!("{step:?}") };
        items += settle.items.len();
        let mut bytes = Vec::new();
        ringbolt_wire::Request::Settle(settle).encode(&mut bytes, 1, 0);
        assert!(bytes.len() < 64 << 10, "{} bytes", bytes.len());
    }
    assert_eq!(items, 200);
}

/// A broker whose disk is full refuses it, and nobody hears of that.
#[test]
fn credit_does_not_go_with_what_has_no_answer() {
    let mut state = attached(config());
    deliver(&mut state, range(0, 0, 50, 1), 0);
    (0..10).for_each(|offset| settle(&mut state, offset, 1, Verb::Ack, None));
    let sent = steps(&mut state, 0);
    let [Step::Tell(acks), Step::Tell(credit)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((acks.items.len(), acks.credit), (1, Credit::default()));
    assert_eq!((&credit.items[..], credit.credit.records), (&[][..], 10));
}

/// It went with an extension that was sent before the acknowledgement.
#[test]
fn credit_for_a_record_goes_with_its_acknowledgement_when_that_is_sent_again() {
    let mut state = attached(config());
    deliver(&mut state, range(0, 0, 2, 1), 0);
    state.on_disconnected();
    state.on_connected();
    let (extends, _) = only_settle(&steps(&mut state, 0));
    settle(&mut state, 1, 1, Verb::Ack, Some(1));
    let (acks, sent) = only_settle(&steps(&mut state, 0));
    assert_eq!(sent.credit.records, 1);
    for refused in [extends, acks] {
        state.on_settle_refused(refused, ErrorResponse::new(ErrorCode::Overloaded, ""), 0);
    }
    let mut credits = Vec::new();
    for step in steps(&mut state, 100_000) {
        let Step::Settle { settle, .. } = step else { panic!("{step:?}") };
        credits.push((settle.items[0].verb == Verb::Ack, settle.credit.records));
    }
    assert_eq!(credits, [(false, 0), (true, 1)]);
}

#[test]
fn a_request_speaks_of_no_more_records_than_the_protocol_allows() {
    let window = Credit { records: 40_000, bytes: 1_000_000 };
    let mut state = attached(ShardConfig { window, ..config() });
    deliver(&mut state, range(0, 0, 40_000, 1), 0);
    (0..100).for_each(|offset| settle(&mut state, offset, 1, Verb::Ack, Some(offset)));
    let mut spoken_of = 0;
    for step in steps(&mut state, LEASE_US / 2) {
        let Step::Settle { id, settle } = step else { panic!("{step:?}") };
        let records: u64 = settle.items.iter().map(|item| u64::from(item.range.count)).sum();
        assert!(records <= MAX_SETTLE_RECORDS, "{records}");
        spoken_of += records;
        state.on_settled(id, Settled::default(), LEASE_US / 2);
    }
    assert_eq!(spoken_of, 40_000, "each is acknowledged or extended");
}

#[test]
fn while_many_requests_are_unanswered_the_rest_gathers_and_its_credit_stays_here() {
    let mut state = attached(config());
    deliver(&mut state, range(0, 0, 50, 1), 0);
    let mut ids = Vec::new();
    for offset in 0..MAX_UNANSWERED as u64 {
        settle(&mut state, offset, 1, Verb::Ack, Some(offset));
        ids.push(only_settle(&steps(&mut state, 0)).0);
    }
    (10..20).for_each(|offset| settle(&mut state, offset, 1, Verb::Ack, Some(offset)));
    assert!(steps(&mut state, 0).is_empty());
    state.on_settled(ids[0], Settled::default(), 0);
    let (_, sent) = only_settle(&steps(&mut state, 0));
    assert_eq!((sent.items.len(), sent.credit.records), (1, 10));
}

#[test]
fn bytes_beyond_the_window_are_made_up_for() {
    let mut state = attached(ShardConfig { window: Credit { records: 10, bytes: 25 }, ..config() });
    // The third record goes beyond.
    deliver(&mut state, range(0, 0, 3, 1), 0);
    settle(&mut state, 0, 1, Verb::Ack, Some(0));
    let (_, sent) = only_settle(&steps(&mut state, 0));
    assert_eq!(sent.credit, Credit { records: 1, bytes: 10 }, "25 - 20 in hand, and 5 are owed");
}

#[test]
fn credit_of_leases_that_were_lost_goes_back_by_itself() {
    let mut state = attached(ShardConfig { auto_extend: false, ..config() });
    deliver(&mut state, range(0, 0, 5, 1), 0);
    assert_eq!(state.poll_timeout(), Some(LEASE_US));
    let done = steps(&mut state, LEASE_US);
    assert_eq!(lost(&done), [range(0, 0, 5, 1)]);
    let Some(Step::Tell(tell)) = done.last() else { panic!("{done:?}") };
    assert_eq!((tell.credit, tell.confirm, &tell.items), (Credit { records: 5, bytes: 50 }, false, &vec![]));
}

#[test]
fn leases_are_extended_at_a_third_of_their_time_together() {
    let mut state = attached(config());
    deliver(&mut state, range(0, 0, 5, 1), 0);
    deliver(&mut state, range(0, 5, 5, 1), 200_000);
    settle(&mut state, 2, 1, Verb::Ack, None);
    steps(&mut state, 250_000);
    assert_eq!(state.poll_timeout(), Some(300_000));
    assert!(steps(&mut state, 299_999).is_empty());
    let (id, sent) = only_settle(&steps(&mut state, 300_000));
    let verb = Verb::Extend { lease_ms: 0 };
    let item = |range| SettleItem { range, verb: verb.clone() };
    assert_eq!(sent.items, [item(range(0, 0, 2, 1)), item(range(0, 3, 7, 1))]);
    state.on_settled(id, unsettled(0, 4, 2, ErrorCode::LeaseLost), 300_100);
    assert_eq!(lost(&steps(&mut state, 300_100)), [range(0, 4, 2, 1)]);
    assert_eq!(state.poll_timeout(), Some(600_000));
    let (_, sent) = only_settle(&steps(&mut state, 600_000));
    assert_eq!(sent.items, [item(range(0, 0, 2, 1)), item(range(0, 3, 1, 1)), item(range(0, 6, 4, 1))]);
}

#[test]
fn after_a_lost_connection_first_comes_what_has_no_answer_and_then_the_attach() {
    let mut state = attached(config());
    deliver(&mut state, range(0, 0, 10, 1), 0);
    settle(&mut state, 0, 1, Verb::Ack, Some(0));
    settle(&mut state, 1, 1, Verb::Nack { delay_ms: 0 }, Some(1));
    steps(&mut state, 0);
    settle(&mut state, 2, 1, Verb::Ack, Some(2));
    state.on_disconnected();
    assert!(steps(&mut state, 0).is_empty());
    settle(&mut state, 3, 1, Verb::Ack, Some(3));
    state.on_connected();
    let (id, again) = only_settle(&steps(&mut state, 1000));
    assert_eq!(again.credit, Credit::default(), "not attached yet");
    let ranges: Vec<_> = again.items.iter().map(|item| item.range).collect();
    assert_eq!(ranges, [range(0, 0, 1, 1), range(0, 1, 1, 1), range(0, 2, 2, 1)]);
    let unsettled = [(0, ErrorCode::AlreadyCompleted), (1, ErrorCode::LeaseLost), (2, ErrorCode::LeaseLost)];
    let unsettled = unsettled.map(|(offset, code)| Unsettled {
        partition: 0,
        base_offset: Offset(offset),
        count: 1,
        status: code as u16,
    });
    state.on_settled(id, Settled { unsettled: unsettled.into() }, 1000);
    let done = steps(&mut state, 1000);
    let ends = resolved(&done);
    let expected = [Ok(()), Err(SettleError::Unknown), Err(SettleError::LeaseLost), Ok(())];
    assert_eq!(ends, [0, 1, 2, 3].into_iter().zip(expected).collect::<Vec<_>>());
    let [.., Step::Attach(attach), Step::Settle { settle: extend, .. }] = &done[..] else {
        panic!("{done:?}")
    };
    assert_eq!(
        (attach.credit, &attach.held),
        (Credit { records: 94, bytes: 9940 }, &vec![range(0, 4, 6, 1)])
    );
    assert_eq!(extend.items[0].range, range(0, 4, 6, 1), "which leases are left?");
}

#[test]
fn what_cannot_be_held_is_let_go_of() {
    let records = MAX_HELD_RANGES as u64 * 2 + 10;
    let mut state = attached(ShardConfig { window: Credit { records, bytes: 1 << 20 }, ..config() });
    deliver(&mut state, range(0, 0, records as u32, 1), 0);
    (0..records / 2).for_each(|n| settle(&mut state, n * 2, 1, Verb::Ack, None));
    steps(&mut state, 0);
    state.on_disconnected();
    state.on_connected();
    let done = steps(&mut state, 0);
    let attach =
        done.iter().find_map(|step| if let Step::Attach(attach) = step { Some(attach) } else { None });
    let attach = attach.unwrap();
    assert_eq!((attach.held.len(), lost(&done).len()), (MAX_HELD_RANGES, 5));
    assert_eq!(attach.credit.records, records - MAX_HELD_RANGES as u64);
}

#[test]
fn a_refusal_for_the_moment_is_tried_again_after_a_wait() {
    let mut state = attached(config());
    deliver(&mut state, range(0, 0, 3, 1), 0);
    settle(&mut state, 1, 1, Verb::Ack, Some(1));
    let (id, sent) = only_settle(&steps(&mut state, 0));
    let refusal = ErrorResponse { retry_after_ms: 50, ..ErrorResponse::new(ErrorCode::Overloaded, "") };
    state.on_settle_refused(id, refusal, 1000);
    assert!(steps(&mut state, 1000).is_empty());
    assert_eq!(state.poll_timeout(), Some(51_000));
    let (id, again) = only_settle(&steps(&mut state, 51_000));
    assert_eq!(again.items, sent.items);
    assert_eq!((again.credit, sent.credit.records), (sent.credit, 1), "it was refused as well");
    let refusal = ErrorResponse::new(ErrorCode::UnknownGroup, "");
    state.on_settle_refused(id, refusal.clone(), 51_000);
    assert_eq!(resolved(&steps(&mut state, 51_000)), [(1, Err(SettleError::Refused(refusal)))]);
}

#[test]
fn without_an_answer_in_time_the_connection_is_given_up() {
    let mut state = attached(ShardConfig { auto_extend: false, ..config() });
    deliver(&mut state, range(0, 0, 1, 1), 0);
    settle(&mut state, 0, 1, Verb::Ack, Some(1));
    steps(&mut state, 7);
    assert_eq!(state.poll_timeout(), Some(5_000_007));
    assert!(matches!(state.poll(5_000_007, true), Some(Step::Reconnect)));
}

#[test]
fn in_an_exclusive_group_what_was_on_its_way_behind_a_record_that_goes_back_does_not_count() {
    let mut state = attached(ShardConfig { exclusive: true, ..config() });
    deliver(&mut state, range(0, 5, 5, 1), 0);
    settle(&mut state, 5, 1, Verb::Ack, Some(5));
    settle(&mut state, 6, 1, Verb::Nack { delay_ms: 0 }, Some(6));
    let done = steps(&mut state, 0);
    assert_eq!(lost(&done), [range(0, 7, 3, 1)]);
    let (id, sent) = only_settle(&done);
    assert_eq!(sent.items.len(), 3, "the ack, the nack, and the release of the others: {sent:?}");
    assert!(deliver(&mut state, range(0, 10, 2, 1), 0).is_none(), "sent before the broker knew");
    assert!(deliver(&mut state, range(0, 6, 6, 2), 0).is_some());
    assert!(deliver(&mut state, range(0, 12, 2, 1), 0).is_some());
    // The answer that comes now is no news.
    state.on_settled(id, Settled::default(), 0);
    assert!(deliver(&mut state, range(0, 14, 2, 1), 0).is_some());

    // If the record went to the dead letters, the answer tells that it is over.
    let verb = Verb::Reject { dead_letter: false, reason: String::new() };
    settle(&mut state, 6, 2, verb, Some(7));
    let (id, _) = only_settle(&steps(&mut state, 0));
    assert!(deliver(&mut state, range(0, 16, 2, 1), 0).is_none());
    state.on_settled(id, Settled::default(), 0);
    assert!(deliver(&mut state, range(0, 7, 2, 3), 0).is_some());
}

/// Without a topic for dead letters the broker takes it for a failure like any other.
#[test]
fn in_an_exclusive_group_a_record_for_the_dead_letters_goes_back_if_there_are_none() {
    for (dead_letters, left) in [(true, None), (false, Some(range(0, 6, 4, 1)))] {
        let mut state = attached(ShardConfig { exclusive: true, dead_letters, ..config() });
        deliver(&mut state, range(0, 5, 5, 1), 0);
        settle(&mut state, 5, 1, Verb::Reject { dead_letter: true, reason: String::new() }, Some(5));
        let done = steps(&mut state, 0);
        assert_eq!(lost(&done), Vec::from_iter(left), "{dead_letters}");
        assert_eq!(deliver(&mut state, range(0, 10, 2, 1), 0).is_some(), dead_letters);
    }
}

#[test]
fn a_record_that_comes_again_takes_the_place_of_its_earlier_lease() {
    let mut state = attached(config());
    assert_eq!(deliver(&mut state, range(0, 0, 3, 1), 0), Some(vec![]));
    assert_eq!(deliver(&mut state, range(0, 1, 1, 2), 0), Some(vec![range(0, 1, 1, 1)]));
    settle(&mut state, 1, 1, Verb::Ack, Some(1));
    let (_, sent) = only_settle(&steps(&mut state, 0));
    assert_eq!(sent.credit.records, 1, "that of the lease that was lost, and not the new one's");
    settle(&mut state, 1, 2, Verb::Ack, Some(2));
    let (_, sent) = only_settle(&steps(&mut state, 0));
    assert_eq!(sent.credit.records, 1);
}

#[test]
fn a_closed_consumer_settles_first_and_detaches_then() {
    let mut state = attached(config());
    deliver(&mut state, range(0, 0, 3, 1), 0);
    settle(&mut state, 0, 1, Verb::Ack, Some(0));
    state.close();
    let done = steps(&mut state, 0);
    assert_eq!(lost(&done), [range(0, 1, 2, 1)]);
    let (id, sent) = only_settle(&done);
    assert_eq!((sent.items.len(), sent.credit), (1, Credit::default()));
    state.on_settled(id, Settled::default(), 0);
    let done = steps(&mut state, 0);
    assert!(matches!(done[..], [Step::Resolved { .. }, Step::Detach(_)]), "{done:?}");
    assert!(!state.is_done());
    // Lost meanwhile: was it carried out? To attach without credit tells it again.
    state.on_disconnected();
    state.on_connected();
    let done = steps(&mut state, 0);
    let [Step::Attach(attach), Step::Detach(_)] = &done[..] else { panic!("{done:?}") };
    assert_eq!((attach.credit, &attach.held), (Credit::default(), &vec![]));
    state.on_attach_ended(None, 0);
    assert!(state.is_done());
    state.on_detached();
}

#[test]
fn the_end_of_the_attach_is_the_end_of_what_is_in_hand() {
    for refusal in [Some(ErrorResponse::new(ErrorCode::ConsumerReplaced, "")), None] {
        let mut state = attached(config());
        deliver(&mut state, range(0, 0, 3, 1), 0);
        state.on_attach_ended(refusal, 0);
        let done = steps(&mut state, 0);
        let [Step::Lost(_), Step::Ended(why)] = &done[..] else { panic!("{done:?}") };
        assert_eq!(why.error_code(), Some(ErrorCode::ConsumerReplaced));
        assert!(state.poll_timeout().is_none());
        state.on_disconnected();
        state.on_connected();
        assert!(steps(&mut state, 0).is_empty(), "it does not take the place of who replaced it");
    }
}
