//! Many who come, speak, or leave at one moment, and what others notice of it.

use std::net::{Ipv4Addr, TcpListener};

use super::*;
use crate::limits::MAX_REFUSED_CONNECTIONS;

/// Connects so many, who say nothing.
fn crowd(f: &Fixture, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| TcpStream::connect(f.addr).unwrap()).collect()
}

/// Connects so many, each of whom may say something.
pub(super) fn peers(f: &Fixture, count: usize) -> Vec<Peer> {
    crowd(f, count).into_iter().map(Peer::new).collect()
}

/// Connects so many, who have said hello.
pub(super) fn greeted(f: &mut Fixture, count: usize) -> Vec<Peer> {
    let mut peers = peers(f, count);
    peers.iter_mut().for_each(|peer| peer.send(&hello()));
    f.settle();
    assert!(peers.iter_mut().all(|peer| peer.answers() == [GREETED]));
    peers
}

/// All of a crowd are told this, in turn, and somebody else is answered at once.
fn are_told_in_turn(f: &mut Fixture, step: Step, crowd: &mut [Peer], wanted: (u8, u16), other: &mut Peer) {
    let at_once = pace::AT_ONCE * pace::EACH_US as usize / step.time_us() as usize;
    let (since, mut told, mut rounds) = (f.host.now.mono_us, 0, 0);
    while told < crowd.len() {
        other.send(&ping());
        f.turns(20, 0);
        assert_eq!(other.answers(), [PONG]);
        let came: Vec<_> = crowd.iter_mut().flat_map(Peer::answers).collect();
        assert!(came.len() <= at_once, "{} at once", came.len());
        assert!(came.iter().all(|answer| *answer == wanted), "{came:?}");
        told += came.len();
        assert!(f.wait() || told == crowd.len(), "{told} were told, and nobody goes on");
        rounds += 1;
        assert!(rounds < 1000, "{told} were told");
    }
    let time_us = f.host.now.mono_us - since;
    assert!(time_us >= (crowd.len() - 2 * at_once) as u64 * step.time_us(), "{time_us} us");
}

/// Nothing is received from those who have said hello until
/// [`receive_again`] is called, as if much waited for a shard.
fn receive_nothing(f: &mut Fixture) {
    f.net.stashed.whole += f.net.config.max_stashed + 1;
    f.net.mark(0);
    f.settle();
    assert!(f.net.throttled);
}

fn receive_again(f: &mut Fixture) {
    f.net.stashed.whole -= f.net.config.max_stashed + 1;
    f.net.mark(0);
}

/// Whoever is connected waits for no more than a few of those who come, or leave,
/// all at once.
#[test]
fn a_crowd_that_comes_or_leaves_takes_its_turns() {
    let mut f = Fixture::new(|_| {});
    f.turn();
    let crowd = crowd(&f, 100);
    let open = |f: &Fixture| f.net.counters().open as usize;
    let time = |f: &mut Fixture, wanted: usize| {
        let (since, mut rounds) = (f.host.now.mono_us, 0);
        while open(f) != wanted {
            rounds += 1;
            assert!(rounds < 1000, "{} are there", open(f));
            let before = open(f);
            // Accepts may have waited since long ago.
            f.turns(5, 0);
            assert!(open(f).abs_diff(before) <= 2 * pace::AT_ONCE, "{before}, then {}", open(f));
            assert!(f.wait() || open(f) == wanted, "{} are there, and nobody goes on", open(f));
        }
        f.host.now.mono_us - since
    };
    let least_us = (100 - 3 * pace::AT_ONCE) as u64 * pace::EACH_US;
    assert!(time(&mut f, 100) >= least_us);
    drop(crowd);
    assert!(time(&mut f, 0) >= least_us);
}

/// Those who left count until they are closed, so as many are closed as come, and the
/// time is for both, however short the turns of the loop are.
#[test]
fn those_who_left_and_those_who_come_take_turns() {
    for turn_us in [5, 60, 300] {
        let mut f = Fixture::new(|_| {});
        let left = crowd(&f, 100);
        f.settle();
        drop(left);
        // All of them have been noticed.
        f.turns(20, 0);
        let came = crowd(&f, 100);
        let (since, mut turns, mut came_by_half) = (f.host.now.mono_us, 0, None);
        while f.net.counters().accepted < 200 || f.net.counters().open > 100 {
            f.turns(1, turn_us);
            let open = f.net.counters().open as usize;
            assert!(open <= 100 + 2 * pace::AT_ONCE, "{open} are open after {turns} turns of {turn_us} us");
            if f.net.ended.len() <= 50 {
                came_by_half.get_or_insert(f.net.counters().accepted - 100);
            }
            turns += 1;
            assert!(turns < 10_000, "{open} are open");
        }
        let came_by_half = came_by_half.expect("half was closed at some time");
        assert!(came_by_half >= 30, "{came_by_half} came while half was closed, in turns of {turn_us} us");
        let time_us = f.host.now.mono_us - since;
        assert!(time_us >= (200 - 4 * pace::AT_ONCE) as u64 * pace::EACH_US, "{time_us} us");
        drop(came);
    }
}

/// Whoever has no work but time was saved up for: a long turn of the loop lets more in
/// than a short one.
#[test]
fn a_long_turn_lets_more_in_at_once() {
    let mut f = Fixture::new(|_| {});
    f.turn();
    let _crowd = crowd(&f, 200);
    let mut came = Vec::new();
    for _ in 0..10 {
        let before = f.net.counters().accepted;
        f.turn();
        came.push((f.net.counters().accepted - before) as usize);
        f.host.now.mono_us += 1_000;
    }
    // What a turn starts has come in the next.
    assert!(came[2..].iter().all(|&count| count == pace::AT_ONCE), "{came:?}");
}

/// Refused connections wait for their peers to read why, and hold descriptors
/// meanwhile that a log needs.
#[test]
fn those_who_are_far_too_many_are_closed_at_once() {
    let mut f = Fixture::new(|config| config.max_connections = 10);
    let most = 10 + MAX_REFUSED_CONNECTIONS + 2 * pace::AT_ONCE;
    let mut crowd = Vec::new();
    let mut flood = |f: &mut Fixture, count: usize| {
        for _ in 0..count {
            crowd.push(TcpStream::connect(f.addr).unwrap());
            f.turn();
            assert!(f.net.counters().open as usize <= most, "{} are open", f.net.counters().open);
            f.wait();
        }
        f.settle();
    };
    flood(&mut f, 300);
    assert_eq!((f.net.counters().accepted, f.net.counters().refused), (300, 290));
    assert_eq!(f.net.counters().open as usize, 10 + MAX_REFUSED_CONNECTIONS, "who was told why, and lingers");
    // Nobody lingers for long.
    f.pass(2_000_000);
    assert_eq!(f.net.counters().open, 10);
    flood(&mut f, 1);
    let mut told = [0; FRAME_HEADER_LEN];
    let last = crowd.last_mut().unwrap();
    last.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    last.read_exact(&mut told).unwrap();
}

/// A stop waits for nobody's pace.
#[test]
fn a_stop_tells_all_who_are_there() {
    let mut f = Fixture::new(|_| {});
    let mut crowd = greeted(&mut f, 100);
    f.net.stop(&mut f.host);
    f.turns(20, 0);
    for peer in &mut crowd {
        assert_eq!(peer.answers(), [goodbye(ErrorCode::ShuttingDown)]);
    }
}

#[test]
fn a_stop_closes_all_that_have_left() {
    let mut f = Fixture::new(|_| {});
    let crowd = crowd(&f, 100);
    f.settle();
    assert_eq!(f.net.counters().open, 100);
    drop(crowd);
    f.net.stop(&mut f.host);
    let mut turns = 0;
    while !f.net.is_drained() {
        f.turn();
        turns += 1;
        assert!(turns < 20, "{} are open", f.net.counters().open);
    }
}

/// Deadlines of many connections at once are looked at in several turns, each due
/// at once.
#[test]
fn many_deadlines_take_their_turns() {
    let mut f = Fixture::new(|_| {});
    let crowd = crowd(&f, 200);
    f.settle();
    f.host.now.mono_us += 20_000_000;
    let mut turns = 0;
    while f.net.session_config().counters.violations.get() < 200 {
        let before = f.net.session_config().counters.violations.get();
        f.net.tick(&mut f.host);
        let due = f.net.settle(&mut f.host);
        let told = f.net.session_config().counters.violations.get();
        assert!(told - before <= TIMERS_AT_ONCE as u64, "{} in a turn", told - before);
        assert!(told == 200 || due.is_some_and(|due| due <= f.host.now.mono_us), "the next turn is due");
        turns += 1;
        assert!(turns < 100);
    }
    assert!(turns >= 4);
    drop(crowd);
}

/// Whoever has said hello is heard at once, however many newcomers speak before.
#[test]
fn newcomers_who_all_speak_at_once_take_their_turns() {
    for (says, told) in [(hello(), GREETED), (vec![0x5a; 500], goodbye(ErrorCode::MalformedFrame))] {
        let mut f = Fixture::new(|_| {});
        let mut other = f.peer();
        let mut crowd = peers(&f, 100);
        f.settle();
        crowd.iter_mut().for_each(|peer| peer.send(&says));
        let step = if told == GREETED { Step::Hear } else { Step::Part };
        are_told_in_turn(&mut f, step, &mut crowd, told, &mut other);
        assert_eq!(f.net.stashed, Stashed::default());
    }
}

#[test]
fn what_newcomers_say_before_their_turn_stays_within_its_bound() {
    let mut f = Fixture::new(|config| config.max_stashed = 60_000);
    let mut greeted = f.peer();
    let mut crowd = peers(&f, 100);
    f.settle();
    for peer in &mut crowd {
        peer.send(&[0x5a; 3_000]);
        f.turn();
        assert!(f.net.stashed.half <= 60_000, "{} bytes", f.net.stashed.half);
    }
    let waited = f.net.newcomers.len();
    assert!(waited > 10, "{waited} wait");
    f.settle();
    // Who waited was heard; who found no room is gone, and was told nothing.
    let told: Vec<_> = crowd.iter_mut().flat_map(Peer::last_answers).collect();
    assert!(told.len() >= waited && told.len() < 50, "{} of {waited}", told.len());
    assert!(told.iter().all(|told| *told == goodbye(ErrorCode::MalformedFrame)), "{told:?}");
    // Nobody lingers for long.
    f.pass(2_000_000);
    assert_eq!((f.net.counters().open, f.net.stashed), (1, Stashed::default()));
    greeted.send(&frame(1_000));
    f.settle();
    f.acknowledge();
    f.settle();
    assert_eq!(greeted.answers(), [PRODUCED]);
}

/// Who sends more than a hello can be is not kept until its turn.
#[test]
fn a_newcomer_who_says_more_than_a_hello_before_its_turn_is_closed() {
    let mut f = Fixture::new(|_| {});
    let mut crowd = peers(&f, 100);
    f.settle();
    crowd.iter_mut().for_each(|peer| peer.send(&[0x5a; 5_000]));
    f.turns(30, 0);
    assert_eq!((f.net.newcomers.len(), f.net.stashed), (0, Stashed::default()));
    // Who was in turn was told.
    f.settle();
    let told: Vec<_> = crowd.iter_mut().flat_map(Peer::last_answers).collect();
    assert!((1..=2 * pace::AT_ONCE).contains(&told.len()), "{told:?}");
}

/// A hello that comes byte by byte takes a turn for each; others take theirs.
#[test]
fn newcomers_who_dribble_do_not_hold_up_who_comes_parts_or_leaves() {
    let mut f = Fixture::new(|_| {});
    let mut dribbling = peers(&f, 50);
    let mut bad = greeted(&mut f, 50);
    let left = crowd(&f, 50);
    f.settle();
    drop(left);
    bad.iter_mut().for_each(|peer| peer.send(&[0x5a; 500]));
    let mut came = peers(&f, 50);
    came.iter_mut().for_each(|peer| peer.send(&hello()));
    // A hello of 4,000 bytes, whose end does not come.
    let mut long = hello()[..FRAME_HEADER_LEN].to_vec();
    long[16..20].copy_from_slice(&4_000u32.to_le_bytes());
    long.resize(4_000, 0);
    let since = f.host.now.mono_us;
    let (mut told, mut greeted, mut sent) = (0, 0, 0);
    while told < 50 || greeted < 50 || !f.net.ended.is_empty() {
        dribbling.iter_mut().for_each(|peer| peer.send(&[long[sent]]));
        sent += 1;
        f.turns(1, 20);
        told += bad.iter_mut().flat_map(Peer::last_answers).count();
        greeted += came.iter_mut().flat_map(Peer::last_answers).count();
        assert!(sent < 3_000, "{told} were told, {greeted} greeted, {} are to be closed", f.net.ended.len());
    }
    assert!(f.host.now.mono_us - since < 100_000);
    assert!(dribbling.iter_mut().all(|peer| peer.answers().is_empty()), "they took part to the end");
}

/// A buffer is taken before it is known whether anything has come.
#[test]
fn who_has_said_something_is_heard_behind_many_silent_ones_without_a_buffer() {
    let mut f = Fixture::new(|_| {});
    let mut peers = greeted(&mut f, 400);
    receive_nothing(&mut f);
    // As many as there are buffers, and one that is far behind.
    let speaks = |number: usize| number < 31 || number == 399;
    for (_, peer) in peers.iter_mut().enumerate().filter(|(number, _)| speaks(*number)) {
        peer.send(&ping());
    }
    f.settle();
    receive_again(&mut f);
    // A turn when something has come, or one is due; each may leave work for the next.
    let mut quiet = 0;
    while quiet < 2 {
        let is_due = f.due_us.is_some_and(|due| due <= f.host.now.mono_us);
        quiet = if f.turn() || is_due { 0 } else { quiet + 1 };
    }
    for (number, peer) in peers.iter_mut().enumerate() {
        assert_eq!(peer.answers().len(), usize::from(speaks(number)), "{number}");
    }
    assert!(f.net.counters().starved_receives > 100, "there were buffers for all");
}

/// All who are received from again at one moment find few buffers; each tries again
/// when there is one for it.
#[test]
fn those_who_found_no_buffer_do_not_all_try_again_at_once() {
    const PEERS: usize = 400;
    let mut f = Fixture::new(|_| {});
    let mut peers = greeted(&mut f, PEERS);
    receive_nothing(&mut f);
    peers.iter_mut().for_each(|peer| peer.send(&ping()));
    f.settle();
    assert!(peers.iter_mut().all(|peer| peer.answers().is_empty()));
    receive_again(&mut f);
    let before = f.net.counters().starved_receives;
    f.settle();
    assert!(peers.iter_mut().all(|peer| peer.answers() == [PONG]));
    let starved = (f.net.counters().starved_receives - before) as usize;
    assert!(starved > PEERS / 2, "there were buffers for all but {starved}");
    assert!(starved < 2 * PEERS, "{starved} receives found no buffer");
}

/// Who comes by way of another core waits as others do.
#[test]
fn newcomers_from_another_core_take_their_turns() {
    let mut f = Fixture::new(|_| {});
    let mut other = f.peer();
    let door = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let come = |_| Peer::new(TcpStream::connect(door.local_addr().unwrap()).unwrap());
    let mut crowd: Vec<Peer> = (0..100).map(come).collect();
    for _ in &crowd {
        let (socket, _) = door.accept().unwrap();
        f.net.adopt(Handover { socket: socket.into(), bytes: hello() }, &mut f.host);
    }
    are_told_in_turn(&mut f, Step::Hear, &mut crowd, GREETED, &mut other);
}

/// A goodbye is expensive, and waits for its turn, whoever it is for.
#[test]
fn many_who_break_the_rules_at_once_are_told_so_in_turn() {
    let mut f = Fixture::new(|_| {});
    let mut bad = greeted(&mut f, 100);
    let mut other = f.peer();
    f.host.now.mono_us += 1_000;
    f.settle();
    bad.iter_mut().for_each(|peer| peer.send(&[0x5a; 500]));
    are_told_in_turn(&mut f, Step::Part, &mut bad, goodbye(ErrorCode::MalformedFrame), &mut other);
}
