//! Writes that share flushes are answered when they are durable, and not before.

use super::*;
use crate::io::ring::Held;

const WRITES: u64 = 8;
const WRITE_LEN: usize = 16 << 10;

fn sharing_from(from: usize) -> DiskConfig {
    DiskConfig { sharing: Sharing::From(from), ..direct() }
}

impl Bench {
    /// Asks for writes without waiting for any.
    fn ask_for_writes(&mut self, segment: u64) {
        for n in 0..WRITES {
            let mut piece = self.pool.take().unwrap();
            drop(piece.split_off(WRITE_LEN));
            piece.fill(n as u8 + 1);
            let (token, position) = (WriteToken(segment << 32 | n), n * WRITE_LEN as u64);
            self.disk.write(&mut self.ring, token, SegmentSeq(segment), position, piece.freeze());
        }
    }

    fn written(&mut self) -> WriteToken {
        match self.event() {
            Event::Written { token, result } => {
                result.unwrap();
                token
            }
            other => panic!("{other:?}"),
        }
    }
}

fn bench(path: &Path, config: DiskConfig) -> Bench {
    let mut bench = Bench::new(path, config);
    bench.pool = Pool::new(2 * WRITES as usize * CHUNK_LEN).unwrap();
    bench
}

/// One whose writes to segment 1 have ended, all of them, and wait for the flush
/// that the next turn starts.
fn with_landed_writes(path: &Path) -> Bench {
    let mut bench = bench(path, sharing_from(0));
    bench.prepare(1).unwrap();
    bench.settle();
    bench.ask_for_writes(1);
    while !bench.disk.ops.is_empty() {
        bench.ring.submit_and_wait(Some(Duration::from_secs(20))).unwrap();
        while let Some(completion) = bench.ring.next_completion() {
            bench.disk.complete(&mut bench.ring, completion);
        }
    }
    assert_eq!(bench.disk.flushes.waiting(), WRITES as usize);
    bench
}

#[test]
fn writes_beyond_a_few_share_flushes_and_each_is_answered_once() {
    let dir = folder();
    let mut bench = bench(dir.path(), sharing_from(2));
    for segment in [1, 2] {
        bench.prepare(segment).unwrap();
    }
    bench.settle();
    for segment in [1, 2] {
        bench.ask_for_writes(segment);
    }
    let all = 2 * WRITES;
    let tokens: BTreeSet<_> = (0..all).map(|_| bench.written().0).collect();
    assert_eq!(tokens.len() as u64, all);
    bench.settle();
    assert!(bench.disk.next_event().is_none());
    let flushes = bench.disk.stats().flushes;
    assert!((2..=all - 2).contains(&flushes), "{flushes} flushes of two files for {} writes", all - 2);
    for (segment, n) in [(1, 0), (1, WRITES - 1), (2, WRITES - 1)] {
        let read = bench.read(segment, n * WRITE_LEN as u64, WRITE_LEN).unwrap();
        assert!(read.iter().all(|&byte| byte == n as u8 + 1));
    }
}

/// A write alone has its own flush: nothing is to be waited for after it.
#[test]
fn few_writes_in_flight_are_flushed_with_themselves() {
    let dir = folder();
    let mut bench = bench(dir.path(), sharing_from(1));
    bench.prepare(1).unwrap();
    bench.settle();
    for n in 0..4 {
        bench.write(1, n * BLOCK_LEN as u64, 7, BLOCK_LEN).unwrap();
    }
    assert_eq!(bench.disk.stats().flushes, 0);
}

/// What has ended and is not flushed is still under way: a stop waits for it, and
/// its file stays open.
#[test]
fn a_write_is_under_way_until_its_flush_has_ended() {
    let dir = folder();
    let mut bench = with_landed_writes(dir.path());
    assert!(bench.disk.next_event().is_none(), "nothing is durable yet");
    assert_eq!((bench.disk.in_flight(), bench.disk.stats().writes), (WRITES as usize, 0));
    assert!(bench.disk.files.give_up_idle().is_none(), "the file is in use");
    bench.disk.tick(&mut bench.ring, 0);
    let tokens: BTreeSet<_> = (0..WRITES).map(|_| bench.written().0).collect();
    assert_eq!(tokens.len() as u64, WRITES);
    assert_eq!((bench.disk.in_flight(), bench.disk.stats().flushes), (0, 1));
}

/// The kernel tells of a failed flush once, and may have dropped what it could not
/// write: a flush that succeeds later says nothing of it.
#[test]
fn nothing_is_durable_after_a_flush_that_failed() {
    let dir = folder();
    let mut bench = with_landed_writes(dir.path());
    let segment = bench.disk.flushes.next().unwrap();
    let token = bench.disk.track(Op::Flush { segment });
    let failed = Completion { token, result: -libc::EIO, flags: 0, held: Held::Nothing };
    bench.disk.complete(&mut bench.ring, failed);
    for _ in 0..WRITES {
        let Event::Written { result: Err(fault), .. } = bench.event() else { panic!("it was answered") };
        assert_eq!((fault.operation, fault.errno), ("fdatasync", libc::EIO));
    }
    assert_eq!(bench.write(1, 0, 7, BLOCK_LEN).unwrap_err().operation, "fdatasync");
}
