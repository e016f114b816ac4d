//! Consumers of a session, and what they have not read.

use ringbolt_wire::message::{
    Attach, ConsumerAt, Credit, Delivery, ErrorResponse, LeaseRange, MAX_SETTLE_RECORDS, Settle, SettleItem,
    Verb,
};
use ringbolt_wire::{ConsumerId, GroupId};

use super::*;

fn attach(consumer: u64, shard: u16) -> Vec<u8> {
    let at = ConsumerAt { shard: ShardId(shard), group: GroupId(1), consumer: ConsumerId(consumer) };
    let credit = Credit { records: 1000, bytes: 64 << 20 };
    encode(&Request::Attach(Attach { at, credit, lease_ms: 0, held: Vec::new() }), consumer)
}

/// So many bytes for a consumer.
fn delivered(len: usize) -> Reply {
    Reply::Delivered {
        delivery: Delivery::default(),
        payload: [Bytes::from(vec![1; len])].into_iter().collect(),
    }
}

#[test]
fn consumers_of_a_session_that_has_much_to_send_are_sent_no_more_until_it_has_little() {
    let (mut session, mut shards) = greeted();
    let both = [attach(1, 0), attach(2, 3)].concat();
    assert_eq!(session.receive(&both, &mut shards), Input::Open);
    let [(_, alice, _), (_, bob, _)] = shards.requests[..] else { panic!("{:?}", shards.requests) };
    session.reply(alice, delivered(1 << 20), &mut shards);
    // With its head it is more than a session has to send at the most.
    assert_eq!(shards.pauses, [(0, alice, true), (3, bob, true)]);
    session.reply(bob, delivered(10), &mut shards);
    assert_eq!(shards.pauses[2..], [(3, bob, true)], "it was on its way");
    assert!(!session.may_end_pause());
    let output = session.take_output().unwrap();
    session.sent(output.len() / 4);
    assert!(!session.may_end_pause(), "not for every little that is sent");
    session.sent(output.len() - output.len() / 4);
    assert!(session.may_end_pause());
    shards.pauses.clear();
    session.end_pause(&mut shards);
    assert_eq!(shards.pauses, [(0, alice, false), (3, bob, false)]);
    assert!(!session.may_end_pause());
    session.reply(bob, delivered(10), &mut shards);
    assert_eq!(shards.pauses.len(), 2);
}

/// Ten thousand bytes of requests had answers of hundreds of megabytes.
#[test]
fn settle_requests_with_long_answers_wait_for_each_other() {
    let (mut session, mut shards) = greeted();
    let settle = |count: u32, confirm: bool, correlation: u64| {
        let at = ConsumerAt { shard: ShardId(0), group: GroupId(1), consumer: ConsumerId(1) };
        let range = LeaseRange { partition: 0, base_offset: Offset(0), count, acquired: 1 };
        let items = vec![SettleItem { range, verb: Verb::Ack }];
        encode(&Request::Settle(Settle { at, credit: Credit::default(), confirm, items }), correlation)
    };
    let most = MAX_SETTLE_RECORDS as u32;
    // Those that are not answered do not count, and short ones fit.
    let first: Vec<u8> =
        (0..20).flat_map(|i| [settle(most, false, i), settle(most / 20, true, i)].concat()).collect();
    assert_eq!(session.receive(&first, &mut shards), Input::Open);
    assert_eq!(shards.requests.len(), 40);
    let rest = [settle(most, true, 40), settle(1, true, 41)].concat();
    assert_eq!(session.receive(&rest, &mut shards), Input::Backlogged);
    let numbers: Vec<u64> =
        shards.requests.iter().map(|(_, number, _)| *number).filter(|n| *n < 100).collect();
    let settled = || Reply::Error(ErrorResponse::new(ErrorCode::UnknownGroup, ""));
    numbers.iter().for_each(|number| session.reply(*number, settled(), &mut shards));
    assert_eq!(drain(&mut session).len(), 20);
    // The longest is taken alone.
    assert_eq!(session.resume(&mut shards), Input::Backlogged);
    assert_eq!(shards.requests.len(), 41);
    let (_, number, _) = *shards.requests.last().unwrap();
    session.reply(number, settled(), &mut shards);
    drain(&mut session);
    assert_eq!(session.resume(&mut shards), Input::Open);
    assert_eq!(shards.requests.len(), 42);
}
