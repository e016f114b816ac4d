//! The ring against the real kernel: nothing is lost, and memory comes back
//! only when the kernel is done with it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use bytes::Bytes;

use super::*;
use crate::buffer::{Buffer, BufferPool};
use crate::io::pool::Pool;
use crate::limits::{BLOCK_LEN, CHUNK_LEN};

fn small() -> Ring {
    Ring::new(RingConfig { entries: 4, completions: 8 }).unwrap()
}

fn token(value: u64) -> Token {
    Token::new(Class::Disk, value)
}

fn wait_one(ring: &mut Ring) -> Completion {
    loop {
        if let Some(completion) = ring.next_completion() {
            return completion;
        }
        ring.submit_and_wait(Some(Duration::from_secs(10))).unwrap();
    }
}

/// Whether the pool could be registered. A user without privilege may lock
/// little, for all processes together; it is said if that was too little.
fn register(ring: &mut Ring, pool: &Pool) -> bool {
    match ring.register_pool(pool) {
        Ok(()) => true,
        Err(error @ RegistrationError::Memlock { .. }) => {
            eprintln!("NOT REGISTERED, WHAT NEEDS IT WAS NOT TESTED: {error}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

fn pool_with(chunks: usize) -> Pool {
    Pool::new(chunks * CHUNK_LEN).unwrap()
}

#[test]
fn no_operation_is_lost_when_far_more_are_pushed_than_the_queues_hold() {
    let mut ring = small();
    let file = tempfile::tempfile_in(".").unwrap();
    let count = 5000;
    for n in 0..count {
        ring.write(
            token(n),
            Target::Fd(file.as_raw_fd()),
            n * 8,
            Bytes::from(n.to_le_bytes().to_vec()),
            false,
        );
    }
    let mut seen = vec![false; count as usize];
    for _ in 0..count {
        let completion = wait_one(&mut ring);
        assert_eq!(completion.result, 8);
        assert!(!std::mem::replace(&mut seen[completion.token.value() as usize], true));
    }
    assert_eq!(ring.outstanding(), 0);
    assert!(ring.next_completion().is_none());
    let counters = ring.counters();
    assert_eq!((counters.sqes, counters.cqes), (count, count));
    assert!(counters.full_submits > 0 && counters.backlogged == 0, "{counters:?}");
    let mut bytes = Vec::new();
    (&file).read_to_end(&mut bytes).unwrap();
    let written: Vec<u8> = (0..count).flat_map(u64::to_le_bytes).collect();
    assert!(bytes == written);
}

#[test]
fn operations_that_the_kernel_does_not_take_now_are_kept_in_order() {
    let mut ring = small();
    let file = tempfile::tempfile_in(".").unwrap();
    ring.refuses = true;
    for n in 0..20u64 {
        ring.write(token(n), Target::Fd(file.as_raw_fd()), n, Bytes::from(vec![n as u8]), false);
    }
    ring.submit_and_wait(None).unwrap();
    assert!(ring.next_completion().is_none());
    assert_eq!(ring.counters().backlogged, 16);
    ring.refuses = false;
    let mut seen: Vec<_> = (0..20).map(|_| wait_one(&mut ring).token.value()).collect();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..20));
    let mut bytes = Vec::new();
    (&file).read_to_end(&mut bytes).unwrap();
    assert!(bytes.into_iter().eq(0..20));
}

/// More completions than the completion queue holds, all at once: the kernel
/// keeps the rest, and they are handed over later.
#[test]
fn completions_beyond_the_queue_are_not_lost() {
    let mut ring = small();
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut pool = pool_with(1);
    let mut chunk = pool.take().unwrap();
    let count = 100;
    for n in 0..count {
        let rest = chunk.split_off(BLOCK_LEN);
        let piece = std::mem::replace(&mut chunk, rest);
        ring.recv(token(n), Target::Fd(near.as_raw_fd()), piece, 0..1, 0);
    }
    ring.submit().unwrap();
    far.write_all(&vec![1; count as usize]).unwrap();
    let mut seen: Vec<_> = (0..count).map(|_| wait_one(&mut ring).token.value()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..count).collect::<Vec<_>>());
}

#[test]
fn a_wait_ends_with_its_timeout_and_finds_nothing() {
    let mut ring = small();
    let start = Instant::now();
    ring.submit_and_wait(Some(Duration::from_millis(30))).unwrap();
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(29) && waited < Duration::from_secs(5), "{waited:?}");
    assert!(ring.next_completion().is_none());
}

#[test]
fn nothing_to_do_costs_no_system_call() {
    let mut ring = small();
    ring.submit().unwrap();
    let before = ring.counters().enters;
    for _ in 0..100 {
        ring.submit().unwrap();
    }
    assert_eq!(ring.counters().enters, before);
}

#[test]
fn pieces_of_a_registered_pool_are_written_and_read_as_fixed_buffers() {
    let mut ring = small();
    let mut pool = pool_with(2);
    if !register(&mut ring, &pool) {
        return;
    }
    let file = tempfile::tempfile_in(".").unwrap();
    let target = Target::Fd(file.as_raw_fd());
    let mut data = pool.take().unwrap();
    let rest = data.split_off(2 * BLOCK_LEN);
    data.fill(0xab);
    let data = data.freeze();
    ring.write(token(1), target, 0, data.slice(BLOCK_LEN..), true);
    let written = wait_one(&mut ring);
    assert_eq!((written.result as usize, written.token), (BLOCK_LEN, token(1)));
    assert!(matches!(&written.held, Held::Bytes(b) if b.len() == BLOCK_LEN));

    ring.read(token(2), target, 0, rest);
    let read = wait_one(&mut ring);
    assert_eq!(read.outcome().unwrap() as usize, BLOCK_LEN);
    let buffer = read.held.into_buffer().unwrap();
    assert!(buffer[..BLOCK_LEN].iter().all(|&b| b == 0xab));
}

#[test]
fn memory_in_flight_belongs_to_the_ring_until_the_operation_ends() {
    let mut ring = small();
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut pool = pool_with(1);
    let buffer = pool.take().unwrap();
    ring.recv(token(1), Target::Fd(near.as_raw_fd()), buffer, 10..20, 0);
    ring.submit().unwrap();
    assert_eq!(pool.available(), 0);
    far.write_all(b"hello").unwrap();
    let completion = wait_one(&mut ring);
    assert_eq!(pool.available(), 0, "the completion has it now");
    let buffer = completion.held.into_buffer().unwrap();
    assert_eq!(&buffer[10..15], b"hello");
    drop(buffer);
    assert_eq!(pool.available(), 1);
}

#[test]
fn dropping_the_ring_cancels_and_gives_the_memory_back() {
    let mut ring = small();
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut pool = pool_with(2);
    ring.recv(token(1), Target::Fd(near.as_raw_fd()), pool.take().unwrap(), 0..10, 0);
    ring.submit().unwrap();
    // Pushed and never submitted: as much the ring's as the other.
    ring.recv(token(2), Target::Fd(near.as_raw_fd()), pool.take().unwrap(), 0..10, 0);
    ring.poll_multi(token(3), near.as_raw_fd(), libc::POLLIN);
    assert_eq!(pool.available(), 0);
    drop(ring);
    assert_eq!(pool.available(), 2);
    let mut again = pool.take().unwrap();
    again.fill(0);
    far.write_all(b"late").unwrap();
    let mut late = [0; 4];
    (&near).read_exact(&mut late).unwrap();
    assert_eq!(&late, b"late", "the cancelled receive took nothing");
}

/// The device reads the memory while it writes: who gets it back too early
/// finds the next user's bytes on disk.
#[test]
fn dropping_the_ring_waits_for_writes_that_cannot_be_cancelled() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_DIRECT);
    let path = dir.path().join("direct");
    let file = options.write(true).create(true).truncate(true).open(&path).unwrap();
    let mut pool = pool_with(16);
    let mut ring = Ring::new(RingConfig { entries: 16, completions: 32 }).unwrap();
    register(&mut ring, &pool);
    let mut write_all = |ring: &mut Ring, byte| {
        for n in 0..16 {
            let mut chunk = pool.take().unwrap();
            chunk.fill(byte);
            ring.write(token(n), Target::Fd(file.as_raw_fd()), n * CHUNK_LEN as u64, chunk.freeze(), true);
        }
        ring.submit().unwrap();
    };
    // Once before, so that the writes go straight to the device.
    write_all(&mut ring, 0);
    (0..16).for_each(|_| assert_eq!(wait_one(&mut ring).result as usize, CHUNK_LEN));
    write_all(&mut ring, 0x11);
    drop(ring);
    assert_eq!(pool.available(), 16);
    let mut again: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
    again.iter_mut().for_each(|chunk| chunk.fill(0x22));
    let written = std::fs::read(&path).unwrap();
    assert!(written.contains(&0x11), "some were on their way");
    assert!(!written.contains(&0x22));
}

#[test]
fn memory_that_gets_warm_later_is_registered_then() {
    let mut ring = small();
    // More than is warm at once.
    let mut pool = pool_with(40);
    if !register(&mut ring, &pool) {
        return;
    }
    let start = Instant::now();
    let mut all: Vec<crate::io::pool::PoolBuffer> = Vec::new();
    let registered = |ring: &Ring, chunk: &[u8]| ring.pool.as_ref().unwrap().index(chunk).is_some();
    while all.len() < 40 || !all.iter().all(|chunk| registered(&ring, chunk)) {
        all.extend(pool.take());
        assert!(start.elapsed() < Duration::from_secs(20), "{pool:?}");
        ring.submit_and_wait(Some(Duration::from_millis(1))).unwrap();
    }
    // And used: a write from the last chunk comes through whole.
    let file = tempfile::tempfile_in(".").unwrap();
    let last = all.pop().unwrap().freeze();
    ring.write(token(0), Target::Fd(file.as_raw_fd()), 0, last, false);
    assert_eq!(wait_one(&mut ring).result as usize, CHUNK_LEN);
}

#[test]
fn a_cancelled_operation_says_so_and_gives_its_memory_back() {
    let mut ring = small();
    let (near, _far) = UnixStream::pair().unwrap();
    let mut pool = pool_with(1);
    let op = ring.recv(token(7), Target::Fd(near.as_raw_fd()), pool.take().unwrap(), 0..10, 0);
    ring.cancel(op);
    let completion = wait_one(&mut ring);
    assert_eq!((completion.token, completion.result), (token(7), -libc::ECANCELED));
    assert!(completion.held.into_buffer().is_some());
    // Cancelling what has ended is no error, and cancels nobody else who has
    // its place now.
    ring.recv(token(8), Target::Fd(near.as_raw_fd()), pool.take().unwrap(), 0..10, 0);
    ring.cancel(op);
    ring.submit_and_wait(Some(Duration::from_millis(50))).unwrap();
    assert!(ring.next_completion().is_none());
}

#[test]
fn pieces_are_sent_in_order_as_one() {
    let mut ring = small();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    let mut parts = Box::<SendParts>::default();
    for piece in ["one ", "two ", "three"] {
        parts.push(Bytes::from(piece));
    }
    ring.send_parts(token(1), Target::Fd(near.as_raw_fd()), parts);
    let sent = wait_one(&mut ring);
    assert_eq!(sent.result, 13);
    let Held::Parts(mut parts) = sent.held else { panic!("the parts come back") };
    parts.advance(13);
    assert!(parts.is_empty());
    let mut got = [0; 13];
    far.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"one two three");
    assert_eq!(ring.outstanding(), 0);
}

#[test]
fn a_connection_is_accepted_and_heard() {
    let mut ring = small();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let net = Token::new(Class::Net, 9);
    ring.accept(net, Target::Fd(listener.as_raw_fd()));
    ring.submit().unwrap();
    let mut far = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let accepted = wait_one(&mut ring);
    assert_eq!(accepted.token, net);
    let fd = accepted.outcome().unwrap() as RawFd;
    let mut pool = pool_with(1);
    // Armed before there is anything to hear: it must wait, not fail.
    ring.recv(token(1), Target::Fd(fd), pool.take().unwrap(), 0..100, 0);
    ring.submit().unwrap();
    far.write_all(b"hello").unwrap();
    let heard = wait_one(&mut ring);
    assert_eq!(heard.outcome().unwrap(), 5);
    ring.close(token(2), Target::Fd(fd));
    assert_eq!(wait_one(&mut ring).result, 0);
    assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn files_are_opened_renamed_synced_and_removed() {
    let mut ring = small();
    let dir = tempfile::tempdir_in(".").unwrap();
    let folder = File::open(dir.path()).unwrap();
    let dir_fd = folder.as_raw_fd();
    ring.open_at(token(1), dir_fd, c"a".into(), libc::O_RDWR | libc::O_CREAT | libc::O_EXCL);
    let fd = wait_one(&mut ring).outcome().unwrap() as RawFd;
    ring.fallocate(token(2), fd, 0, 8192);
    assert_eq!(wait_one(&mut ring).result, 0);
    ring.rename_at(token(3), dir_fd, c"a".into(), c"b".into());
    assert_eq!(wait_one(&mut ring).result, 0);
    ring.fsync(token(4), dir_fd, false);
    assert_eq!(wait_one(&mut ring).result, 0);
    assert_eq!(std::fs::metadata(dir.path().join("b")).unwrap().len(), 8192);
    std::fs::write(dir.path().join("c"), b"in the way").unwrap();
    ring.rename_at(token(5), dir_fd, c"b".into(), c"c".into());
    assert_eq!(wait_one(&mut ring).result, -libc::EEXIST);
    ring.unlink_at(token(6), dir_fd, c"b".into());
    assert_eq!(wait_one(&mut ring).result, 0);
    ring.close(token(7), Target::Fd(fd));
    assert_eq!(wait_one(&mut ring).result, 0);
    assert!(!dir.path().join("b").exists());
}

#[test]
fn registering_more_than_may_be_locked_names_the_limit_and_the_remedy() {
    let error = RegistrationError::Memlock {
        bytes: 1 << 30,
        limit: 8192,
        source: io::Error::from_raw_os_error(libc::ENOMEM),
    };
    let text = error.to_string();
    for word in ["1073741824", "8192 bytes", "ulimit -l", "LimitMEMLOCK", "--memory", "--unregistered-memory"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
}
