//! How a core ends, and what it tells those who come then.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use ringbolt_wire::frame::FRAME_HEADER_LEN;
use ringbolt_wire::message::{ErrorResponse, Response};
use ringbolt_wire::{ErrorCode, FrameHeader, Opcode};

use super::super::message::Course;
use super::super::{Idle, Reactor, ReactorError, STOP_PATIENCE_US};
use super::*;
use crate::io::net::{Handover, bind};

fn listening() -> (OwnedFd, Arc<AtomicUsize>) {
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 1).unwrap().0.pop().unwrap();
    (listener, Arc::new(AtomicUsize::new(0)))
}

#[test]
fn a_stop_that_the_disk_holds_up_is_an_error_that_names_the_shard() {
    let dir = TempDir::new().unwrap();
    let pool = Pool::new(32 << 20).unwrap();
    let mailbox = mailboxes(1, 64).unwrap().pop().unwrap();
    let mut ring = Ring::new(RingConfig::default()).unwrap();
    let net = net(&mut ring, &pool, 0, vec![0], listening());
    let (post, shards) = (mailbox.post(), vec![local_shard(&open(&dir, 1), SHARD, &pool)]);
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
    let net = net(&mut ring, &pool, 0, vec![1], listening());
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
