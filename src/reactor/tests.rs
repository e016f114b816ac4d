//! A core whose disk is only driven when the test says so; and, in
//! [`pair`], two whole ones.

mod pair;
mod stop;

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use ringbolt_wire::message::{Attach, ConsumerAt, Credit};
use ringbolt_wire::{ConsumerId, GroupId, ShardId};
use tempfile::TempDir;

use super::core::{Core, LocalShard, Place};
use super::message::{Message, Shared};
use crate::io::clock;
use crate::io::datadir::{DataDir, Layout};
use crate::io::disk::{Disk, DiskConfig, FileMode, FolderReader, choose_mode};
use crate::io::mailbox::mailboxes;
use crate::io::net::{Host, Net, NetConfig};
use crate::io::pool::Pool;
use crate::io::ring::{Class, Ring, RingConfig};
use crate::limits::{MAILBOX_LEN, MAX_HELD, MAX_OUTGOING, MIN_SEGMENT_LEN};
use crate::log::recovery::{LogIdentity, RecoveredLog, recover};
use crate::session::{SessionConfig, Shards};
use crate::shard::action::Action;
use crate::shard::event::{ReplyTo, ShardRequest};
use crate::shard::{Shard, ShardConfig};

const SHARD: ShardId = ShardId(0);

fn open(dir: &TempDir, shards: u16) -> DataDir {
    let layout = Layout { shards, segment_len: MIN_SEGMENT_LEN };
    DataDir::open(&dir.path().join("data"), layout).unwrap()
}

fn recovered(data: &DataDir, id: ShardId, pool: &Pool) -> (RecoveredLog, FileMode) {
    let (superblock, folder) = (data.superblock(), &data.shards()[usize::from(id.0)]);
    let mode = choose_mode(&folder.path, true).unwrap();
    let identity = LogIdentity {
        log_id: superblock.log_id(id),
        shard: id,
        segment_len: superblock.segment_len,
        term: superblock.boot_count,
    };
    let reader = FolderReader::new(&folder.path, mode);
    let log = recover(identity, folder.extent, &folder.segments, &reader, &mut pool.clone()).unwrap();
    (log, mode)
}

fn local_shard(data: &DataDir, id: ShardId, pool: &Pool) -> LocalShard {
    let (log, mode) = recovered(data, id, pool);
    let config = ShardConfig {
        shard: id,
        shards: data.superblock().shards,
        commits_in_flight: 4,
        commit_delay_us: 0,
        retention_bytes: None,
        retention_us: None,
        tail_cache_bytes: 1 << 20,
        page_cache_bytes: 4 << 20,
        max_delayed: 100_000,
        max_open: 100_000,
        seed: 1,
    };
    let catalog = log.state.catalog.clone();
    let folder = &data.shards()[usize::from(id.0)];
    let disk = Disk::new(DiskConfig::new(MIN_SEGMENT_LEN, mode), folder).unwrap();
    LocalShard { id, shard: Shard::new(config, log, &catalog, pool.clone(), clock::now()), disk }
}

fn create(correlation: u64) -> Message {
    let request = ShardRequest::CreateTopic { name: format!("topic-{correlation}"), partitions: 1 };
    Message::Request { shard: SHARD, from: ReplyTo { core: 0, session: 1, correlation }, request }
}

/// One turn of the loop without sockets. Returns which requests of core 0 were
/// answered; answers to others are sent.
fn turn(core: &mut Core) -> Vec<u64> {
    core.now = clock::now();
    while let Some(completion) = core.ring.next_completion() {
        if completion.token.class() == Class::Disk {
            core.disk_completed(completion);
        }
    }
    core.retry_held();
    while let Some(message) = core.mailbox.receive() {
        core.message(message);
    }
    let mut answered = Vec::new();
    while let Some(action) = core.poll_action(0) {
        match action {
            Action::Reply { to, .. } if to.core == core.id() => answered.push(to.correlation),
            Action::Stop(error) => panic!("{error}"),
            action => core.perform(0, action),
        }
    }
    core.mailbox.flush(&mut core.ring);
    answered
}

fn net(
    ring: &mut Ring,
    pool: &Pool,
    core: u16,
    cores_of_shards: Vec<u16>,
    (listener, connections): (OwnedFd, Arc<AtomicUsize>),
) -> Net {
    let config = NetConfig {
        max_connections: 100,
        connections,
        handshake_timeout_us: 10_000_000,
        frame_timeout_us: 30_000_000,
        max_stashed: 8 << 20,
        max_unsent_own: 8 << 20,
        max_direct: 8 << 20,
        low_chunks: 2,
        receive_chunks: 2,
    };
    let session = SessionConfig::for_tests(core, cores_of_shards);
    Net::new(ring, pool.clone(), listener, config, Rc::new(session)).unwrap()
}

/// A core without shards, and one that drives the only shard, whose mailboxes
/// have room for so many.
fn sender_and_owner(dir: &TempDir, capacity: usize) -> (Core, Core) {
    let pool = Pool::new(32 << 20).unwrap();
    let shared = Arc::new(Shared::new(1));
    let mut boxes = mailboxes(2, capacity).unwrap();
    let core = |mailbox, shards, places| {
        let ring = Ring::new(RingConfig::default()).unwrap();
        Core::new(ring, mailbox, shards, places, pool.clone(), Arc::clone(&shared), clock::now())
    };
    let sender = core(boxes.pop().unwrap(), Vec::new(), vec![Place::On(0)]);
    let owner =
        core(boxes.pop().unwrap(), vec![local_shard(&open(dir, 1), SHARD, &pool)], vec![Place::Here(0)]);
    (sender, owner)
}

#[test]
fn what_a_shard_has_no_room_for_holds_up_nothing_else_and_is_carried_out_in_order() {
    let dir = TempDir::new().unwrap();
    let (mut sender, mut owner) = sender_and_owner(&dir, 64);
    let post = owner.mailbox.post();

    // The first segment is not there yet, so nothing can be appended.
    assert!(sender.shards_for(1).accepts(SHARD, true));
    (1..=3).for_each(|number| post.send(0, create(number)).unwrap());
    let from = ReplyTo { core: 0, session: 1, correlation: 4 };
    let list = Message::Request { shard: SHARD, from, request: ShardRequest::ListTopics };
    post.send(0, list).unwrap();
    assert_eq!(turn(&mut owner), [4], "a request that needs no room is answered behind those that do");
    assert!(!sender.shards_for(1).accepts(SHARD, true), "the others are told to send no more");
    assert!(sender.shards_for(1).accepts(SHARD, false), "but may read");

    let mut answered = Vec::new();
    while answered.len() < 3 {
        owner.ring.submit_and_wait(Some(Duration::from_secs(10))).unwrap();
        answered.extend(turn(&mut owner));
    }
    assert_eq!(answered, [1, 2, 3]);
    assert!(sender.shards_for(1).accepts(SHARD, true));
}

/// It had become a consumer without a session, and kept a partition of an exclusive group
/// for ever.
#[test]
fn a_consumer_whose_session_ends_while_it_waits_to_attach_does_not_attach() {
    let dir = TempDir::new().unwrap();
    let (mut sender, mut owner) = sender_and_owner(&dir, 64);
    let post = owner.mailbox.post();
    let attach = |session| {
        let at = ConsumerAt { shard: SHARD, group: GroupId(1), consumer: ConsumerId(session) };
        let request =
            ShardRequest::Attach(Attach { at, credit: Credit::default(), lease_ms: 0, held: vec![] });
        Message::Request { shard: SHARD, from: ReplyTo { core: 0, session, correlation: session }, request }
    };
    // The first segment is not there yet, so nothing can be appended.
    post.send(0, attach(7)).unwrap();
    assert!(turn(&mut owner).is_empty() && !sender.shards_for(1).accepts(SHARD, true));
    post.send(0, Message::SessionClosed { core: 0, session: 7 }).unwrap();
    assert!(turn(&mut owner).is_empty() && sender.shards_for(1).accepts(SHARD, true), "nothing waits");
    [create(1), attach(7), attach(8)].into_iter().for_each(|message| post.send(0, message).unwrap());
    post.send(0, Message::SessionClosed { core: 0, session: 7 }).unwrap();
    assert!(turn(&mut owner).is_empty());
    let mut answered = Vec::new();
    while answered.len() < 2 {
        owner.ring.submit_and_wait(Some(Duration::from_secs(10))).unwrap();
        answered.extend(turn(&mut owner));
    }
    answered.sort_unstable();
    assert_eq!(answered, [1, 8], "8 is told that there is no such group");
}

/// Receives what has come to a core without shards: which requests were answered.
fn answers(core: &mut Core) -> Vec<u64> {
    std::iter::from_fn(|| core.mailbox.receive())
        .filter_map(|message| match message {
            Message::Reply { to, .. } => Some(to.correlation),
            Message::Catalog(_) => None,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn requests_that_a_shard_has_no_room_for_are_bounded_and_none_is_lost() {
    let dir = TempDir::new().unwrap();
    let (mut sender, mut owner) = sender_and_owner(&dir, MAILBOX_LEN);
    // The first segment is not there yet, so nothing can be appended. The sender
    // goes on for as long as it may, and the owner takes what comes.
    let mut sent = 0;
    for _ in 0..4 {
        while sender.shards_for(1).accepts(SHARD, true) {
            sent += 1;
            let name = format!("topic-{sent}");
            let request = ShardRequest::CreateTopic { name, partitions: 1 };
            sender.shards_for(1).request(SHARD, sent, request);
            assert!(sent <= 2 * MAX_HELD as u64, "nobody holds the sender back");
        }
        assert!(turn(&mut owner).is_empty());
        sender.mailbox.flush(&mut sender.ring);
    }
    assert!(sent >= MAILBOX_LEN as u64, "the mailbox has room for more than {sent}");
    assert!(sent <= MAX_HELD as u64, "{sent} wait");

    let mut answered = Vec::new();
    while answered.len() < sent as usize {
        owner.ring.submit_and_wait(Some(Duration::from_secs(10))).unwrap();
        turn(&mut owner);
        answered.extend(answers(&mut sender));
    }
    assert_eq!(answered, (1..=sent).collect::<Vec<_>>());
}

#[test]
fn answers_that_wait_for_a_core_are_bounded_and_none_is_lost() {
    let dir = TempDir::new().unwrap();
    let (mut sender, mut owner) = sender_and_owner(&dir, 64);
    let post = owner.mailbox.post();
    let count = 2 * MAX_OUTGOING as u64;
    for correlation in 1..=count {
        let from = ReplyTo { core: 1, session: 1, correlation };
        let list = || Message::Request { shard: SHARD, from, request: ShardRequest::ListTopics };
        // The sender takes no answer in all this time.
        if post.send(0, list()).is_err() {
            turn(&mut owner);
            assert!(owner.mailbox.waiting() <= MAX_OUTGOING, "{} wait", owner.mailbox.waiting());
            post.send(0, list()).unwrap();
        }
    }
    turn(&mut owner);
    assert_eq!(owner.mailbox.waiting(), MAX_OUTGOING, "the bound was reached, and kept");
    let mut answered = Vec::new();
    while answered.len() < count as usize {
        turn(&mut owner);
        let news = answers(&mut sender);
        assert!(!news.is_empty(), "only {} of {count} were answered", answered.len());
        answered.extend(news);
    }
    assert_eq!(answered, (1..=count).collect::<Vec<_>>());
}
