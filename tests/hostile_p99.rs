//! What hostile peers cost the others: a producer's acknowledgements, measured
//! without them and with them, in turn.

mod net_common;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use net_common::*;
use ringbolt::io::pin::{available_cpus, pin_thread};
use ringbolt_wire::message::{Request, Response};
use ringbolt_wire::{ErrorCode, Offset, PartitionId};
use tempfile::TempDir;

/// Between two batches of the producer that is measured.
const EVERY: Duration = Duration::from_millis(2);

/// Batches of one measurement.
const SAMPLES: usize = 600;

/// Batches of one that lasts while the first half of a crowd is told goodbye, and the
/// first of those are closed.
const SAMPLES_OF_GOODBYES: usize = 1100;

/// Measurements with hostile peers, each after one without. Of each kind the median
/// counts: now and then the disk stands still for a tenth of a second, whoever is
/// connected. Many short ones, so that it is in few of them.
const ROUNDS: usize = 9;

/// So many if the first do not show it: a median of [`ROUNDS`] varies by a third.
const MOST_ROUNDS: usize = 27;

/// So many may have missed what they should see, since this machine was busy. If more do
/// it may be the broker that is slow.
const MOST_MISSED: usize = ROUNDS / 2;

/// What is compared. The p99 is the seventh longest wait, or the twelfth.
const PERCENTILES: [usize; 3] = [50, 90, 99];

/// Held by the one test that measures.
static MEASURES: Mutex<()> = Mutex::new(());

/// Peers that are connected and say nothing.
const SILENT: usize = 10_000;

#[test]
fn hostile_peers_do_not_double_the_p99_of_others() {
    let _alone = MEASURES.lock().unwrap_or_else(PoisonError::into_inner);
    let (_dir, server, mut writer) = begin("300s");
    compare(|| {
        let usual = writer.measure();
        let hostile = Hostile::begin(server.addr, writer.partition);
        assert!(writer.peer.stat("connections") > SILENT as u64, "they are all there");
        let with = writer.measure();
        let done = hostile.end();
        assert!(done.iter().all(|&count| count > 0), "some peers did nothing: {done:?}");
        wait_until("all are gone", || writer.peer.stat("connections") == 1);
        Some([usual, with])
    });
    writer.read_back();
}

/// Each broker meets its first crowd, which comes, is greeted and leaves while the
/// producer is measured.
#[test]
fn a_crowd_that_comes_and_goes_does_not_double_the_p99_of_others() {
    let _alone = MEASURES.lock().unwrap_or_else(PoisonError::into_inner);
    compare(|| {
        let (_dir, server, mut writer) = begin("300s");
        let usual = writer.measure();
        let crowd = Crowd::begin(server.addr);
        let with = writer.measure();
        let measured = Instant::now();
        let came = writer.peer.stat("connections_accepted_total") == SILENT as u64 + 1;
        let gone = crowd.end() < measured;
        wait_until("all are closed", || writer.peer.stat("connections") == 1);
        writer.read_back();
        (came && gone).then_some([usual, with])
    });
}

/// A crowd that says nothing comes while the producer is measured, and is told that its
/// time is over, while the producer is measured again.
#[test]
fn a_crowd_that_never_says_hello_does_not_double_the_p99_of_others() {
    let _alone = MEASURES.lock().unwrap_or_else(PoisonError::into_inner);
    let patience = Duration::from_secs(2);
    compare(|| {
        let (_dir, server, mut writer) = begin("2s");
        let usual = writer.measure();
        let began = Instant::now();
        let crowd = std::thread::spawn(move || {
            keep_away();
            Crowd::come(server.addr, &[])
        });
        let coming = writer.measure();
        let are_there = crowd.is_finished()
            && writer.peer.stat("connections") == SILENT as u64 + 1
            && writer.peer.stat("violations_total") == 0;
        writer.go_on_for((patience - Duration::from_millis(50)).saturating_sub(began.elapsed()));
        let parting = writer.measure_some(SAMPLES_OF_GOODBYES);
        let mut crowd = crowd.join().unwrap();
        let told = crowd.iter().filter(|peer| peer.was_sent_something()).count();
        for peer in &mut crowd {
            assert_eq!(peer.goodbye(), ErrorCode::HandshakeTimeout);
        }
        writer.read_back();
        (are_there && told >= SILENT / 2).then_some([usual, coming, parting])
    });
}

/// A broker, and the producer that is measured.
fn begin(handshake_timeout: &str) -> (TempDir, Server, Writer) {
    ringbolt::io::process::raise_open_files().unwrap();
    let dir = TempDir::new().unwrap();
    // Flushes by workers of the broker's own: the kernel's, on the disk's interrupt
    // core, wait there for the hostile peers' processor time, and not for the broker.
    let options =
        ["--memory", "96MiB", "--handshake-timeout", handshake_timeout, "--share-flushes-from", "0"];
    let server = Server::start(&dir, &options);
    let mut writer = Writer::new(server.addr);
    // Something to fetch for those that do not read.
    (0..20).for_each(|_| writer.produce(200_000));
    // What is slow at first is over.
    (0..SAMPLES).for_each(|_| writer.produce(1024));
    (dir, server, writer)
}

/// Measures what is usual, and then what is with hostile peers, once or several times,
/// until enough was measured. A measurement is none if it did not see all that it should.
fn compare<const N: usize>(mut measure: impl FnMut() -> Option<[[Duration; 3]; N]>) {
    let mut measured: [Vec<[Duration; 3]>; N] = std::array::from_fn(|_| Vec::new());
    let mut missed = 0;
    loop {
        let rounds = measured[0].len();
        let Some(round) = measure() else {
            missed += 1;
            assert!(missed <= MOST_MISSED, "{missed} rounds missed what they should see, {rounds} did not");
            continue;
        };
        measured.iter_mut().zip(round).for_each(|(all, one)| all.push(one));
        let rounds = rounds + 1;
        if rounds < ROUNDS {
            continue;
        }
        let [usual, with @ ..] = &measured.each_ref().map(|all| medians(all.clone()))[..] else {
            unreachable!("what is usual is always measured")
        };
        let is_double = with.iter().any(|with| (0..PERCENTILES.len()).any(|i| with[i] > 2 * usual[i]));
        println!(
            "{rounds} rounds and {missed} missed, {PERCENTILES:?}: {usual:?}, with hostile peers {with:?}"
        );
        if !is_double {
            return;
        }
        assert!(rounds < MOST_ROUNDS, "{usual:?}, then {with:?}: {measured:?}");
    }
}

/// Of each percentile the median.
fn medians(mut measured: Vec<[Duration; 3]>) -> [Duration; 3] {
    std::array::from_fn(|i| {
        measured.sort_unstable_by_key(|percentiles| percentiles[i]);
        measured[(measured.len() - 1) / 2][i]
    })
}

/// The producer that is measured: each record is another one.
struct Writer {
    peer: Peer,
    partition: PartitionId,
    written: Vec<Vec<u8>>,
}

impl Writer {
    fn new(addr: SocketAddr) -> Writer {
        let mut peer = Peer::greeted(addr);
        let partition = PartitionId::new(peer.topic("t", 1).id, 0);
        Writer { peer, partition, written: Vec::new() }
    }

    fn produce(&mut self, len: usize) {
        let mut value = vec![7; len];
        value[..8].copy_from_slice(&self.written.len().to_le_bytes());
        let offset = self.peer.produce(&batch(self.partition, &[&value]));
        assert_eq!(offset, Offset(self.written.len() as u64), "nobody else has written here");
        self.written.push(value);
    }

    fn measure(&mut self) -> [Duration; 3] {
        self.measure_some(SAMPLES)
    }

    /// Percentiles of the time to an acknowledgement.
    fn measure_some(&mut self, samples: usize) -> [Duration; 3] {
        let mut waits = self.at_pace(samples);
        waits.sort_unstable();
        PERCENTILES.map(|percent| waits[samples * percent / 100 - 1])
    }

    /// The time to each acknowledgement, at a fixed rate. A batch that had to wait for the
    /// one before it counts from when it should have been sent.
    fn at_pace(&mut self, batches: usize) -> Vec<Duration> {
        let started = Instant::now();
        let one = |i| {
            let intended = started + EVERY * i;
            let wait = intended.saturating_duration_since(Instant::now());
            // That a sleep ends late is no fault of the broker's.
            let since = if wait.is_zero() {
                intended
            } else {
                std::thread::sleep(wait);
                Instant::now()
            };
            self.produce(1024);
            since.elapsed()
        };
        (0..batches as u32).map(one).collect()
    }

    /// Goes on without measuring. A pause instead would be measured afterwards: whoever is
    /// connected, the first batches after 0.7 s wait for 1 to 4 ms, which is more of them
    /// than make a p99.
    fn go_on_for(&mut self, time: Duration) {
        self.at_pace((time.as_micros() / EVERY.as_micros()) as usize);
    }

    /// All that was acknowledged is there, in order, and nothing else.
    fn read_back(&mut self) {
        let read = self.peer.read_all(self.partition, Offset(0));
        assert!(read == self.written, "{} records of {}", read.len(), self.written.len());
    }
}

/// A crowd that comes, says hello, is answered, and goes.
struct Crowd(JoinHandle<Instant>);

impl Crowd {
    /// How long it is there, with its coming.
    const STAYS: Duration = Duration::from_millis(600);

    fn begin(door: SocketAddr) -> Crowd {
        Crowd(std::thread::spawn(move || {
            keep_away();
            let started = Instant::now();
            let crowd = Crowd::come(door, &encode(&Request::Hello(hello()), 1));
            std::thread::sleep(Crowd::STAYS.saturating_sub(started.elapsed()));
            let started = Instant::now();
            for (i, mut peer) in crowd.into_iter().enumerate() {
                Crowd::keep_pace(started, i);
                assert!(matches!(peer.answer().response, Response::Hello(_)));
            }
            Instant::now()
        }))
    }

    /// Connects all of them, each of whom says this.
    fn come(door: SocketAddr, says: &[u8]) -> Vec<Peer> {
        let started = Instant::now();
        let one = |i| {
            Crowd::keep_pace(started, i);
            let mut peer = Peer::silent(door);
            peer.send(says);
            peer
        };
        (0..SILENT).map(one).collect()
    }

    /// 25,000 in a second, on any machine: faster ones would find the queue at the door
    /// full, and wait for a second.
    fn keep_pace(started: Instant, i: usize) {
        if i.is_multiple_of(8) {
            let due = started + Duration::from_micros(40) * i as u32;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }

    /// When all had left.
    fn end(self) -> Instant {
        self.0.join().unwrap()
    }
}

/// Lets the calling thread run only where the broker does not.
fn keep_away() {
    let cpus = available_cpus().unwrap();
    assert!(cpus.len() > 1, "with one processor the peers' own work is in what is measured");
    pin_thread(*cpus.last().unwrap()).unwrap();
}

/// Peers that mean no good, until told to end. Their number and their pauses are
/// bounded: it is the broker that is tested, not how two cores are shared out.
struct Hostile {
    stop: Arc<AtomicBool>,
    /// What each kind has done.
    done: Arc<[AtomicU64; 6]>,
    threads: Vec<JoinHandle<()>>,
    _silent: Vec<Peer>,
}

impl Hostile {
    fn begin(addr: SocketAddr, partition: PartitionId) -> Hostile {
        let stop = Arc::new(AtomicBool::new(false));
        let done: Arc<[AtomicU64; 6]> = Arc::default();
        let silent: Vec<_> = (0..SILENT).map(|_| Peer::silent(addr)).collect();
        let mut threads = Vec::new();
        let mut spawn = |kind: usize, pause: u64, mut act: Box<dyn FnMut() + Send>| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            threads.push(std::thread::spawn(move || {
                keep_away();
                while !stop.load(Ordering::Relaxed) {
                    act();
                    done[kind].fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(pause));
                }
            }));
        };
        spawn(0, 1000, byte_by_byte(addr, partition));
        spawn(1, 200, never_read(addr, partition));
        spawn(2, 10, garbage(addr));
        spawn(3, 10, tiny_frames(addr));
        spawn(4, 20, vanish_within_frames(addr, partition));
        spawn(5, 10, bad_batches(addr, partition));
        Hostile { stop, done, threads, _silent: silent }
    }

    fn end(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.done.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

/// Fifty peers send one byte each of a frame that never ends.
fn byte_by_byte(addr: SocketAddr, partition: PartitionId) -> Box<dyn FnMut() + Send> {
    let frame = produce_frame(1, &batch(partition, &[&vec![1; 100_000]]));
    let mut peers: Vec<_> = (0..50).map(|_| Peer::greeted(addr)).collect();
    let mut sent = 0;
    Box::new(move || {
        for peer in &mut peers {
            let _ = peer.stream.write_all(&frame[sent..=sent]);
        }
        sent += 1;
    })
}

/// Four peers ask for megabytes, and read nothing. Whoever was closed comes
/// again.
fn never_read(addr: SocketAddr, partition: PartitionId) -> Box<dyn FnMut() + Send> {
    let fetch = encode(&fetch_request(&[(partition, Offset(0))], 1 << 20, 0), 1).repeat(3);
    let mut peers: Vec<_> = (0..4).map(|_| Peer::greeted(addr)).collect();
    Box::new(move || {
        for peer in &mut peers {
            if peer.stream.write_all(&fetch).is_err() {
                *peer = Peer::greeted(addr);
            }
        }
    })
}

/// Two peers say hello, then what is no frame, until they are closed.
fn garbage(addr: SocketAddr) -> Box<dyn FnMut() + Send> {
    let mut damaged = encode(&Request::Ping, 1);
    damaged[4] ^= 1;
    Box::new(move || {
        for bytes in [&[0x5a; 16 << 10][..], &damaged] {
            let mut peer = Peer::greeted(addr);
            let _ = peer.stream.write_all(bytes);
            let _ = peer.stream.read_to_end(&mut Vec::new());
        }
    })
}

/// Two peers send bursts of the smallest frames, and of small ones that are
/// refused.
fn tiny_frames(addr: SocketAddr) -> Box<dyn FnMut() + Send> {
    let pings = encode(&Request::Ping, 1).repeat(200);
    let unknown = encode(&Request::DescribeTopic { name: "none".to_owned() }, 1).repeat(20);
    let mut peers = [Peer::greeted(addr), Peer::greeted(addr)];
    Box::new(move || {
        for (peer, (bytes, count)) in peers.iter_mut().zip([(&pings, 200), (&unknown, 20)]) {
            peer.send(bytes);
            (0..count).for_each(|_| drop(peer.answer()));
        }
    })
}

/// Peers that are gone half way through a batch, small or large.
fn vanish_within_frames(addr: SocketAddr, partition: PartitionId) -> Box<dyn FnMut() + Send> {
    let frame = produce_frame(1, &batch(partition, &[&vec![1; 200_000]]));
    Box::new(move || {
        for cut in [20, 30_000, 100_000] {
            let mut peer = Peer::greeted(addr);
            let _ = peer.stream.write_all(&frame[..cut]);
        }
    })
}

/// Batches that lie: about their contents, their number of records, and where they
/// belong. Each is refused by name, and the connection goes on.
fn bad_batches(addr: SocketAddr, partition: PartitionId) -> Box<dyn FnMut() + Send> {
    let good = batch(partition, &[&[1; 1024], &[2; 1024]]);
    let elsewhere = batch(PartitionId::new(partition.topic, 7), &[&[1; 1024]]);
    let cases = [
        (damaged(&good), ErrorCode::BatchCrcMismatch),
        (miscounted(&good), ErrorCode::MalformedBatch),
        (elsewhere, ErrorCode::UnknownPartition),
    ];
    let mut peer = Peer::greeted(addr);
    Box::new(move || {
        for (batch, wanted) in &cases {
            assert_eq!(code(&peer.try_produce(batch)), *wanted);
        }
    })
}
