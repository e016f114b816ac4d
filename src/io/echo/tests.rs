//! The echo peer: exactly the bytes sent, in order, whatever the shape.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::*;

/// Bytes that are different for each connection and position.
fn stream_of(connection: usize, len: usize) -> Vec<u8> {
    let mut state = connection as u64 + 1;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(len)
    .collect()
}

fn connect(server: &EchoServer) -> TcpStream {
    let stream = TcpStream::connect(server.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Sends `bytes` in pieces of `piece` while another thread reads, ends the
/// sending side, and returns all that came back.
fn echoed(server: &EchoServer, bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut stream = connect(server);
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for part in bytes.chunks(piece) {
                writer.write_all(part).unwrap();
            }
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        back
    })
}

#[test]
fn every_size_comes_back_as_it_went() {
    for wait in [Wait::Sleep, Wait::BusyPoll] {
        let server = EchoServer::start_with(None, wait).unwrap();
        for (len, piece) in
            [(0, 1), (1, 1), (777, 13), (65_536, 65_535), (65_537, 4096), (9_000_001, 1 << 20)]
        {
            let bytes = stream_of(len, len);
            assert!(echoed(&server, &bytes, piece) == bytes, "{len} bytes in pieces of {piece}, {wait:?}");
        }
    }
}

/// 1,500 connections at once, far more than the 256 receive buffers, each with
/// bytes of its own.
#[test]
fn many_connections_get_their_own_bytes_back() {
    let server = EchoServer::start(None).unwrap();
    let mut streams: Vec<_> = (0..1500).map(|_| connect(&server)).collect();
    for round in 0..3 {
        let len = [1, 1024, 5000][round];
        for (i, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&stream_of(i + round, len)).unwrap();
        }
        for (i, stream) in streams.iter_mut().enumerate() {
            let mut back = vec![0; len];
            stream.read_exact(&mut back).unwrap();
            assert!(back == stream_of(i + round, len), "connection {i}, round {round}");
        }
    }
}

/// A peer that writes 64 MiB without reading is held back at a bounded cost,
/// others go on, and when it reads at last it gets all of its bytes.
#[test]
fn a_peer_that_does_not_read_is_held_back_and_loses_nothing() {
    let server = EchoServer::start(None).unwrap();
    let bytes = stream_of(7, 64 << 20);
    let mut slow = connect(&server);
    let mut writer = slow.try_clone().unwrap();
    // Judged only after everything was read: a writer that nobody reads from
    // would keep a failed test from ending.
    let (held_back, other_right, back) = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            writer.write_all(&bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        std::thread::sleep(Duration::from_millis(300));
        let held_back = !writing.is_finished();
        let other = stream_of(8, 3_000_000);
        let other_right = echoed(&server, &other, 10_000) == other;
        let mut back = Vec::new();
        slow.read_to_end(&mut back).unwrap();
        (held_back, other_right, back)
    });
    assert!(held_back, "64 MiB were taken in without a reader");
    assert!(other_right, "another connection got other bytes back");
    assert!(back == bytes, "{} of {} bytes, or other ones", back.len(), bytes.len());
}

#[test]
fn connections_come_and_go_without_using_anything_up() {
    let server = EchoServer::start(None).unwrap();
    for i in 0..3000 {
        let mut stream = connect(&server);
        stream.write_all(b"ping").unwrap();
        if i % 3 == 0 {
            continue; // Closed with the echo unread: a reset for the server.
        }
        let mut back = [0; 4];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"ping");
    }
}

#[test]
fn dropping_it_ends_its_connections_and_frees_its_port() {
    let server = EchoServer::start(None).unwrap();
    let addr = server.addr();
    let mut stream = connect(&server);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    let begun = Instant::now();
    drop(server);
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(stream.read(&mut [0; 8]).unwrap_or(0), 0, "the connection has ended");
    assert!(TcpStream::connect(addr).is_err(), "nobody listens any more");
}

#[test]
fn a_core_that_does_not_exist_is_an_error_at_start() {
    let error = EchoServer::start(Some(9999)).unwrap_err();
    assert!(error.to_string().contains("9999"), "{error}");
}
