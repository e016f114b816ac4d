//! What is still said to those who send no more, or have broken a rule.

use std::net::Shutdown;

use ringbolt_wire::message::{Fetch, FetchPartition};

use super::crowds::{greeted, peers};
use super::*;

/// So many wait for their turn to be told goodbye that the next ones wait long.
fn crowd_that_parts(f: &mut Fixture) -> Vec<Peer> {
    let mut crowd = greeted(f, 100);
    crowd.iter_mut().for_each(|peer| peer.send(&[0x5a; 20]));
    f.turns(20, 0);
    assert!(f.net.parting.len() > 50, "{} wait", f.net.parting.len());
    crowd
}

/// To have shut one's side does not mean that the answer is not awaited.
#[test]
fn a_newcomer_who_has_said_all_is_heard_in_its_turn() {
    let mut f = Fixture::new(|_| {});
    let mut crowd = peers(&f, 100);
    f.settle();
    let ping = ping();
    for peer in &mut crowd {
        peer.send(&[hello(), ping.clone()].concat());
        peer.stream.shutdown(Shutdown::Write).unwrap();
    }
    // The kernel tells of some in each turn.
    f.turns(20, 0);
    assert!(f.net.newcomers.len() >= 100 - 2 * pace::AT_ONCE, "{} wait", f.net.newcomers.len());
    f.settle();
    for peer in &mut crowd {
        assert_eq!(peer.answers(), [GREETED, PONG]);
    }
    assert_eq!(f.net.counters().open, 0);
}

/// The same if what they say must wait for a shard.
#[test]
fn what_was_said_before_the_end_is_heard_when_a_shard_takes_it() {
    let mut f = Fixture::new(|_| {});
    let mut peer = f.peer();
    f.host.is_open = false;
    // The end comes with them, before the receive has been cancelled.
    peer.send(&frame(1_000).repeat(2));
    peer.stream.shutdown(Shutdown::Write).unwrap();
    f.settle();
    assert!(f.net.slots[0].get().ended);
    assert_eq!((peer.answers(), f.net.counters().open), (vec![], 1));
    f.open_shard();
    f.settle();
    f.acknowledge();
    f.settle();
    assert_eq!(peer.answers(), [PRODUCED, PRODUCED]);
    assert_eq!((f.net.counters().open, f.net.stashed), (0, Stashed::default()));
}

/// The same if another core is to hear it.
#[test]
fn a_newcomer_who_has_said_all_is_handed_over() {
    let hello = hello_for(Some(PartitionId::new(TopicId(1), 0)));
    let mut f = Fixture::with_shard_on(1, |_| {});
    for count in [1, 100] {
        let mut crowd = peers(&f, count);
        f.settle();
        for peer in &mut crowd {
            peer.send(&hello);
            peer.stream.shutdown(Shutdown::Write).unwrap();
        }
        f.settle();
        assert!(f.host.handed_over.iter().all(|connection| connection.bytes == hello));
        assert_eq!((f.host.handed_over.len(), f.net.counters().open), (count, 0));
        f.host.handed_over.clear();
    }
}

/// Half a frame is not waited for.
#[test]
fn who_ends_within_a_frame_is_gone() {
    let mut f = Fixture::new(|_| {});
    for bytes in [frame(1_000), frame(200_000)] {
        let mut peer = f.peer();
        peer.send(&bytes[..bytes.len() / 2]);
        f.settle();
        peer.stream.shutdown(Shutdown::Write).unwrap();
        f.settle();
        assert_eq!((peer.answers(), f.net.counters().open), (vec![], 0));
        assert_eq!((f.net.stashed, f.net.direct_held), (Stashed::default(), 0));
    }
}

/// What is in flight is answered to who breaks a rule, whatever else comes from it.
#[test]
fn who_breaks_a_rule_and_goes_on_talking_has_its_answers_first() {
    let mut f = Fixture::new(|config| config.max_stashed = 10_000);
    let mut peer = f.peer();
    peer.send(&frame(1_000));
    f.settle();
    let mut others = peers(&f, 100);
    f.settle();
    others.iter_mut().for_each(|peer| peer.send(&[0x5a; 20]));
    f.turns(20, 0);
    assert!(!f.net.newcomers.is_empty(), "nobody waits");
    // More than comes in one receive.
    peer.send(&[0x5a; 200_000]);
    f.turns(10, 0);
    f.acknowledge();
    f.settle();
    assert_eq!(peer.last_answers(), [PRODUCED, goodbye(ErrorCode::MalformedFrame)]);
}

/// Only the goodbye waits for its turn: answers take memory until they are sent.
#[test]
fn who_breaks_a_rule_has_its_answers_before_its_turn() {
    let mut f = Fixture::new(|_| {});
    let mut peer = f.peer();
    let _crowd = crowd_that_parts(&mut f);
    peer.send(&[&ping().repeat(10)[..], &[0x5a; 20]].concat());
    f.turns(20, 0);
    assert_eq!(peer.answers(), [PONG; 10]);
    assert_eq!(f.net.unsent_own, 0);
    f.settle();
    assert_eq!(peer.answers(), [goodbye(ErrorCode::MalformedFrame)]);
}

/// Goodbyes have their pace also when the answers before them all come at one moment.
#[test]
fn who_breaks_a_rule_with_requests_in_flight_parts_in_turn() {
    let mut f = Fixture::new(|_| {});
    let mut bad = greeted(&mut f, 100);
    for peer in &mut bad {
        peer.send(&[&frame(1_000)[..], &[0x5a; 20]].concat());
    }
    f.pass(1_000_000);
    assert_eq!(f.host.requests.len(), 100);
    f.acknowledge();
    f.turns(20, 0);
    let answers: Vec<_> = bad.iter_mut().flat_map(Peer::answers).collect();
    assert_eq!(answers.iter().filter(|answer| **answer == PRODUCED).count(), 100);
    assert!(answers.len() <= 100 + pace::AT_ONCE, "{} were told goodbye", answers.len() - 100);
    f.settle();
    let told = bad.iter_mut().flat_map(Peer::answers).count();
    assert_eq!(answers.len() + told, 200);
}

/// Whoever waits for its turn cannot make the shards work meanwhile.
#[test]
fn who_breaks_a_rule_has_its_fetches_answered_at_once_and_once() {
    let mut f = Fixture::new(|_| {});
    let mut peer = f.peer();
    let partition = PartitionId::new(TopicId(1), 0);
    let wanted = FetchPartition { partition, offset: Offset(0), max_bytes: 1_000 };
    let fetch = Fetch { max_wait_ms: 10_000, min_bytes: 1, max_bytes: 1_000, partitions: vec![wanted] };
    let mut request = Vec::new();
    Request::Fetch(fetch).encode(&mut request, 3, 0);
    peer.send(&request);
    f.settle();
    assert_eq!((f.host.requests.len(), f.host.hurried), (1, 0));
    let _crowd = crowd_that_parts(&mut f);
    for _ in 0..5 {
        peer.send(&[0x5a; 20]);
        f.turns(20, 0);
        assert_eq!(f.host.hurried, 1);
    }
}

/// That its hello waited is not the peer's fault; that half of it is missing is.
#[test]
fn a_hello_that_came_in_time_is_answered_however_long_it_waits() {
    let mut f = Fixture::new(|config| config.handshake_timeout_us = 500_000);
    let mut half = peers(&f, 50);
    let mut whole = peers(&f, 50);
    f.settle();
    for (half, whole) in half.iter_mut().zip(&mut whole) {
        half.send(&hello()[..20]);
        whole.send(&hello());
    }
    f.turns(20, 0);
    let waiting = f.net.newcomers.len();
    assert!(waiting > 80, "{waiting} wait");
    f.host.now.mono_us += 600_000;
    while f.net.timers.next().is_some_and(|due| due <= f.host.now.mono_us) {
        f.net.run_timers(&mut f.host);
    }
    assert_eq!(f.net.newcomers.len(), waiting, "the time of all was over before they were heard");
    f.settle();
    assert!(whole.iter_mut().all(|peer| peer.answers() == [GREETED]));
    assert!(half.iter_mut().all(|peer| peer.answers() == [goodbye(ErrorCode::HandshakeTimeout)]));
}
