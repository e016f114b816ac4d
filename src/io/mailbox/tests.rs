//! Messages arrive once and in order, and no sleeper is forgotten.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::*;
use crate::io::ring::RingConfig;

fn ring() -> Ring {
    Ring::new(RingConfig { entries: 8, completions: 64 }).unwrap()
}

/// One turn of a core's loop; sleeps at most `patience` if nothing is to do.
fn turn(ring: &mut Ring, mailbox: &mut Mailbox<u64>, patience: Duration, got: &mut Vec<u64>) {
    if mailbox.waiting() == 0 && mailbox.may_sleep(|| false) {
        ring.submit_and_wait(Some(patience)).unwrap();
        mailbox.awake();
    } else {
        ring.submit().unwrap();
    }
    while let Some(completion) = ring.next_completion() {
        assert_eq!(completion.token.class(), Class::Mailbox);
        mailbox.complete(ring, &completion);
    }
    while let Some(message) = mailbox.receive() {
        got.push(message);
    }
    mailbox.flush(ring);
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_thread_without_a_ring_wakes_a_sleeping_core_again_and_again() {
    let mut boxes = mailboxes::<u64>(1, 4).unwrap();
    let mut mailbox = boxes.remove(0);
    let post = mailbox.post();
    let (answered, answers) = mpsc::channel();
    let core = std::thread::spawn(move || {
        let mut ring = ring();
        mailbox.attach(&mut ring);
        let mut got = Vec::new();
        while got.len() < 50 {
            let before = got.len();
            turn(&mut ring, &mut mailbox, LONG, &mut got);
            got[before..].iter().for_each(|&message| answered.send(message).unwrap());
        }
    });
    let start = Instant::now();
    for n in 0..50 {
        // Long enough now and then for the core to be asleep for sure.
        std::thread::sleep(Duration::from_millis(if n % 10 == 0 { 20 } else { 0 }));
        post.send(0, n).unwrap();
        assert_eq!(answers.recv_timeout(LONG).unwrap(), n);
    }
    core.join().unwrap();
    assert!(start.elapsed() < LONG / 2, "a wake-up was lost: {:?}", start.elapsed());
}

#[test]
fn a_full_mailbox_gives_the_message_back() {
    let mut boxes = mailboxes::<u64>(1, 2).unwrap();
    let post = boxes[0].post();
    assert_eq!((post.send(0, 1), post.send(0, 2), post.send(0, 3)), (Ok(()), Ok(()), Err(3)));
    assert_eq!(boxes[0].receive(), Some(1));
    assert_eq!(post.send(0, 3), Ok(()));
}

/// Two cores that send to each other through tiny mailboxes, with sleeps
/// whenever they can: every message arrives once, in order, and a lost wake-up
/// would cost `LONG`.
#[test]
fn cores_exchange_messages_in_order_and_no_wake_up_is_lost() {
    let count = 30_000;
    let start = Instant::now();
    let threads: Vec<_> = mailboxes::<u64>(2, 4)
        .unwrap()
        .into_iter()
        .map(|mut mailbox| {
            std::thread::spawn(move || {
                let mut ring = ring();
                mailbox.attach(&mut ring);
                let peer = 1 - mailbox.core();
                let (mut got, mut sent) = (Vec::new(), 0);
                loop {
                    // At most three ahead of what came back: both sides run dry
                    // and sleep all the time.
                    while sent < count && sent < got.len() as u64 + 3 {
                        mailbox.send(&mut ring, peer, sent);
                        sent += 1;
                    }
                    if got.len() == count as usize && sent == count && mailbox.waiting() == 0 {
                        break;
                    }
                    turn(&mut ring, &mut mailbox, LONG, &mut got);
                }
                ring.submit().unwrap();
                (got, ring.counters().enters, mailbox)
            })
        })
        .collect();
    let ends: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    for (got, _, _) in &ends {
        assert!(got.iter().copied().eq(0..count), "each message once and in order");
    }
    assert!(start.elapsed() < LONG, "a wake-up was lost: {:?}", start.elapsed());
}

#[test]
fn a_core_whose_ring_is_not_there_yet_gets_its_messages_when_it_comes() {
    let mut boxes = mailboxes::<u64>(2, 8).unwrap();
    let mut late = boxes.pop().unwrap();
    let mut early = boxes.pop().unwrap();
    let mut ring0 = ring();
    early.attach(&mut ring0);
    assert!(late.may_sleep(|| false));
    early.send(&mut ring0, 1, 42);
    ring0.submit().unwrap();
    let mut ring1 = ring();
    late.attach(&mut ring1);
    let start = Instant::now();
    ring1.submit_and_wait(Some(LONG)).unwrap();
    assert!(start.elapsed() < LONG / 2);
    assert_eq!(late.receive(), Some(42));
}

#[test]
fn a_wake_up_that_fails_between_rings_goes_through_the_eventfd() {
    let mut boxes = mailboxes::<u64>(2, 8).unwrap();
    let mut target = boxes.pop().unwrap();
    let mut sender = boxes.pop().unwrap();
    let (mut ring0, mut ring1) = (ring(), ring());
    sender.attach(&mut ring0);
    target.attach(&mut ring1);
    ring1.submit().unwrap();
    // A descriptor that is no ring.
    target.slot().ring.store(0, Ordering::Release);
    assert!(target.may_sleep(|| false));
    sender.send(&mut ring0, 1, 5);
    ring0.submit_and_wait(Some(LONG)).unwrap();
    let failure = ring0.next_completion().expect("the failed wake-up is answered");
    sender.complete(&mut ring0, &failure);
    let start = Instant::now();
    ring1.submit_and_wait(Some(LONG)).unwrap();
    assert!(start.elapsed() < LONG / 2);
    assert_eq!(target.receive(), Some(5));
}

#[test]
fn a_change_that_comes_between_the_look_and_the_sleep_keeps_the_core_awake() {
    let mut mailbox = mailboxes::<u64>(1, 1).unwrap().remove(0);
    let post = mailbox.post();
    let shared = AtomicI32::new(0);
    let seen = shared.load(Ordering::Acquire);
    // Nobody sleeps yet, so nobody is woken.
    shared.store(1, Ordering::Release);
    post.wake(0);
    assert!(!mailbox.may_sleep(|| shared.load(Ordering::Acquire) != seen));
    assert!(mailbox.may_sleep(|| shared.load(Ordering::Acquire) != 1));
}

/// No message tells of the changes; a lost one would cost `LONG`.
#[test]
fn changes_are_seen_by_a_core_that_sleeps_whenever_it_can() {
    let count = 20_000;
    let mut mailbox = mailboxes::<u64>(1, 1).unwrap().remove(0);
    let post = mailbox.post();
    let shared = Arc::new(AtomicI32::new(0));
    let (seen, all_seen) = mpsc::channel();
    let core = std::thread::spawn({
        let shared = Arc::clone(&shared);
        move || {
            let mut ring = ring();
            mailbox.attach(&mut ring);
            let mut last = 0;
            while last < count {
                if mailbox.may_sleep(|| shared.load(Ordering::Acquire) != last) {
                    ring.submit_and_wait(Some(LONG)).unwrap();
                    mailbox.awake();
                }
                while let Some(completion) = ring.next_completion() {
                    mailbox.complete(&mut ring, &completion);
                }
                let now = shared.load(Ordering::Acquire);
                if now != last {
                    last = now;
                    seen.send(now).unwrap();
                }
            }
        }
    });
    for change in 1..=count {
        shared.store(change, Ordering::Release);
        post.wake(0);
        let start = Instant::now();
        assert_eq!(all_seen.recv_timeout(LONG).unwrap(), change);
        assert!(start.elapsed() < LONG / 2, "a change was lost: {:?}", start.elapsed());
    }
    core.join().unwrap();
}
