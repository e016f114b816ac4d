//! A core whose disk is only driven when the test says so, and the end of one.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use ringbolt_wire::frame::FRAME_HEADER_LEN;
use ringbolt_wire::message::{ErrorResponse, Response};
use ringbolt_wire::{ErrorCode, FrameHeader, Opcode};

use ringbolt_wire::ShardId;
use tempfile::TempDir;

use super::core::{Core, LocalShard, Place};
use super::message::{Course, Message, Shared};
use super::{Idle, Reactor, ReactorError, STOP_PATIENCE_US};
use crate::io::clock;
use crate::io::datadir::{DataDir, Layout};
use crate::io::disk::{Disk, DiskConfig, FolderReader, choose_mode};
use crate::io::mailbox::mailboxes;
use crate::io::net::{Handover, Host, Net, NetConfig, bind};
use crate::io::pool::Pool;
use crate::io::ring::{Class, Ring, RingConfig};
use crate::limits::MIN_SEGMENT_LEN;
use crate::log::recovery::{LogIdentity, recover};
use crate::session::{SessionConfig, SessionCounters, Shards};
use crate::shard::action::Action;
use crate::shard::event::{ReplyTo, ShardRequest};
use crate::shard::{Shard, ShardConfig};

const SHARD: ShardId = ShardId(0);

fn shard(dir: &TempDir, pool: &Pool) -> LocalShard {
    let layout = Layout { shards: 1, segment_len: MIN_SEGMENT_LEN };
    let data = DataDir::open(&dir.path().join("data"), layout).unwrap();
    let (superblock, folder) = (data.superblock(), &data.shards()[0]);
    let mode = choose_mode(&folder.path, true).unwrap();
    let identity = LogIdentity {
        log_id: superblock.log_id(SHARD),
        shard: SHARD,
        segment_len: superblock.segment_len,
        term: superblock.boot_count,
    };
    let log =
        recover(identity, folder.extent, &[], &FolderReader::new(&folder.path, mode), &mut pool.clone())
            .unwrap();
    let config = ShardConfig {
        shard: SHARD,
        shards: 1,
        commits_in_flight: 4,
        commit_delay_us: 0,
        retention_bytes: None,
        retention_us: None,
        tail_cache_bytes: 1 << 20,
        page_cache_bytes: 4 << 20,
        seed: 1,
    };
    let catalog = log.state.catalog.clone();
    let disk = Disk::new(DiskConfig::new(MIN_SEGMENT_LEN, mode), folder).unwrap();
    LocalShard { id: SHARD, shard: Shard::new(config, log, &catalog, pool.clone(), clock::now()), disk }
}

fn create(correlation: u64) -> Message {
    let request = ShardRequest::CreateTopic { name: format!("topic-{correlation}"), partitions: 1 };
    Message::Request { shard: SHARD, from: ReplyTo { core: 0, session: 1, correlation }, request }
}

/// One turn of the loop without sockets. Returns which requests were answered.
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
            Action::Reply { to, .. } => answered.push(to.correlation),
            Action::Stop(error) => panic!("{error}"),
            action => core.perform(0, action),
        }
    }
    answered
}

#[test]
fn what_a_shard_has_no_room_for_holds_up_nothing_else_and_is_carried_out_in_order() {
    let dir = TempDir::new().unwrap();
    let pool = Pool::new(32 << 20).unwrap();
    let shared = Arc::new(Shared::new(1));
    let mut boxes = mailboxes(2, 64).unwrap();
    let core = |mailbox, shards, places| {
        let ring = Ring::new(RingConfig::default()).unwrap();
        Core::new(ring, mailbox, shards, places, pool.clone(), Arc::clone(&shared), clock::now())
    };
    let mut sender = core(boxes.pop().unwrap(), Vec::new(), vec![Place::On(0)]);
    let mut owner = core(boxes.pop().unwrap(), vec![shard(&dir, &pool)], vec![Place::Here(0)]);
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

fn net(ring: &mut Ring, pool: &Pool, cores_of_shards: Vec<u16>) -> Net {
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 1).unwrap().0.pop().unwrap();
    let config = NetConfig {
        max_connections: 8,
        connections: Arc::new(AtomicUsize::new(0)),
        handshake_timeout_us: 10_000_000,
        max_stashed: 8 << 20,
        max_unsent_own: 8 << 20,
        max_direct: 8 << 20,
        low_chunks: 1,
        receive_chunks: 1,
    };
    let session_config = SessionConfig {
        core: 0,
        cores_of_shards,
        boot: 1,
        broker_id: [0; 16],
        direct_threshold: usize::MAX,
        max_unsent: 1 << 20,
        max_unsent_own: 1 << 20,
        counters: SessionCounters::default(),
    };
    Net::new(ring, pool.clone(), listener, config, Rc::new(session_config)).unwrap()
}

#[test]
fn a_stop_that_the_disk_holds_up_is_an_error_that_names_the_shard() {
    let dir = TempDir::new().unwrap();
    let pool = Pool::new(32 << 20).unwrap();
    let mailbox = mailboxes(1, 64).unwrap().pop().unwrap();
    let mut ring = Ring::new(RingConfig::default()).unwrap();
    let net = net(&mut ring, &pool, vec![0]);
    let (post, shards) = (mailbox.post(), vec![shard(&dir, &pool)]);
    let shared = Arc::new(Shared::new(1));
    let core = Core::new(ring, mailbox, shards, vec![Place::Here(0)], pool, shared, clock::now());
    let mut reactor = Reactor::new(core, net, Idle::SleepAfter(0));
    // Waits for the first segment, which this disk never makes.
    post.send(0, create(1)).unwrap();
    assert!(turn(&mut reactor.core).is_empty());
    reactor.stop();
    assert!(!reactor.is_done().unwrap());
    reactor.core.now.mono_us += STOP_PATIENCE_US + 1;
    let error = reactor.is_done().unwrap_err();
    assert!(matches!(error, ReactorError::Unfinished { shard: SHARD }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("shard 0") && text.contains("10 s"), "{text}");
}

/// All that a peer is told until its connection ends, which must be one frame.
fn goodbye(mut peer: TcpStream) -> ErrorResponse {
    peer.shutdown(Shutdown::Write).unwrap();
    let mut told = Vec::new();
    peer.read_to_end(&mut told).unwrap();
    let header = FrameHeader::decode(&told, u32::MAX).unwrap().expect("a frame");
    assert_eq!((header.opcode, header.frame_len()), (Opcode::Goodbye as u8, told.len()));
    let rest = &told[FRAME_HEADER_LEN..];
    match Response::decode(header.opcode, header.status, rest, header.payload_len).unwrap() {
        Response::Error(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_connection_that_another_core_hands_over_during_a_stop_is_told_goodbye() {
    let pool = Pool::new(32 << 20).unwrap();
    let mut boxes = mailboxes(2, 64).unwrap();
    let (mut other, mailbox) = (boxes.pop().unwrap(), boxes.pop().unwrap());
    let mut other_ring = Ring::new(RingConfig::default()).unwrap();
    let mut ring = Ring::new(RingConfig::default()).unwrap();
    let net = net(&mut ring, &pool, vec![1]);
    let shared = Arc::new(Shared::new(1));
    let places = vec![Place::On(1)];
    let core = Core::new(ring, mailbox, Vec::new(), places, pool, Arc::clone(&shared), clock::now());
    let mut reactor = Reactor::new(core, net, Idle::SleepAfter(0));
    reactor.stop();
    assert!(!reactor.is_done().unwrap(), "the other core has not said that it has drained");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    peer.write_all(b"more than the hello").unwrap();
    let socket = listener.accept().unwrap().0.into();
    other.send(&mut other_ring, 0, Message::Connection(Handover { socket, bytes: b"hello".to_vec() }));
    assert_eq!(shared.drained_one(), 2);
    assert!(!reactor.is_done().unwrap(), "a connection is on its way here");

    shared.set_course(Course::Stop);
    let told = std::thread::spawn(|| goodbye(peer));
    reactor.run().unwrap();
    assert_eq!(told.join().unwrap().error_code(), Some(ErrorCode::ShuttingDown));
}
