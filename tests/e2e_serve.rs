//! `ringbolt serve` as a process: how it starts, refuses to, and ends.

mod net_common;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use net_common::*;
use ringbolt::io::datadir::{FileName, segment_name};
use ringbolt::log::SegmentSeq;
use ringbolt::log::extent::Extent;
use ringbolt::serve::Broker;
use ringbolt_wire::message::Response;
use ringbolt_wire::{ErrorCode, Offset, PartitionId};
use tempfile::TempDir;

const ZERO: Offset = Offset(0);

#[test]
fn sigterm_answers_what_is_in_flight_and_exits_with_0() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&dir, &["--memory", "96MiB"]);
    let mut peer = Peer::greeted(server.addr);
    let partition = PartitionId::new(peer.topic("t", 1).id, 0);
    let frames: Vec<u8> = (0..100).flat_map(|i| produce_frame(i, &batch(partition, &[&[3; 3000]]))).collect();
    peer.send(&frames);
    let first = peer.answer();
    assert!(matches!(first.response, Response::Produced(_)));
    signal(&server.child, "-TERM");
    let mut acked = 1;
    loop {
        let answer = peer.answer();
        match answer.response {
            Response::Produced(_) => acked += 1,
            Response::Error(error) => {
                assert_eq!(error.error_code(), Some(ErrorCode::ShuttingDown));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    drop(peer);
    assert_eq!(ended(&mut server.child).code(), Some(0));
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    let kept = Peer::greeted(server.addr).read_all(partition, ZERO).len();
    assert!(kept >= acked, "{acked} batches were acknowledged, {kept} are there");
}

#[test]
fn acknowledged_batches_survive_a_sigkill() {
    let dir = TempDir::new().unwrap();
    let mut expected = Vec::new();
    let mut partition = None;
    for round in 0..4u8 {
        let mut server = Server::start(&dir, &["--memory", "96MiB"]);
        let mut peer = Peer::greeted(server.addr);
        let partition = *partition.get_or_insert_with(|| PartitionId::new(peer.topic("t", 1).id, 0));
        assert!(peer.read_all(partition, ZERO) == expected, "round {round}");
        for i in 0..40u8 {
            let value = vec![round ^ i; 1 + 3001 * usize::from(i)];
            peer.produce(&batch(partition, &[&value]));
            expected.push(value);
        }
        server.kill();
    }
}

/// A killed broker's last writes may still be on their way to the device, past
/// its end. They hold the file that they go to, as this test does.
#[test]
fn a_start_waits_for_the_writes_that_a_killed_broker_has_left_in_flight() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&dir, &["--memory", "96MiB"]);
    let mut peer = Peer::greeted(server.addr);
    let partition = PartitionId::new(peer.topic("t", 1).id, 0);
    peer.produce(&batch(partition, &[b"a"]));
    let segment = dir.path().join("data/shard-000").join(segment_name(SegmentSeq(0)));
    let held = std::fs::File::open(&segment).unwrap();
    assert!(held.try_lock_shared().is_err(), "a broker locks what it writes to");
    server.kill();
    held.lock().unwrap();
    let late = Duration::from_millis(500);
    let writes = std::thread::spawn(move || {
        std::thread::sleep(late);
        drop(held);
    });
    let started = Instant::now();
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    assert!(started.elapsed() >= late);
    writes.join().unwrap();
    assert_eq!(Peer::greeted(server.addr).read_all(partition, ZERO), [b"a"]);
}

/// A start that waits for a killed broker's writes is stopped at once all the same.
#[test]
fn a_start_that_waits_can_be_stopped() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&dir, &["--memory", "96MiB"]);
    Peer::greeted(server.addr).topic("t", 1);
    let segment = dir.path().join("data/shard-000").join(segment_name(SegmentSeq(0)));
    server.kill();
    let held = std::fs::File::open(&segment).unwrap();
    held.lock().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringbolt"))
        .args(["serve", "--memory", "96MiB", "--listen", "127.0.0.1:0", "--data"])
        .arg(dir.path().join("data"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "it waits");
    let asked = Instant::now();
    signal(&child, "-TERM");
    let status = ended(&mut child);
    assert!(status.success() && asked.elapsed() < Duration::from_secs(1), "{status} {:?}", asked.elapsed());
    drop(held);
    Server::start(&dir, &["--memory", "96MiB"]);
}

#[test]
fn a_second_broker_and_a_taken_port_are_refused_with_the_reason() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    let refused = |dir: &TempDir, listen: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringbolt"))
            .args(["serve", "--memory", "96MiB", "--shards", "1", "--listen", listen, "--data"])
            .arg(dir.path().join("data"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1));
        text
    };
    let text = refused(&dir, "127.0.0.1:0");
    assert!(text.contains(&server.child.id().to_string()), "{text}");
    let elsewhere = TempDir::new().unwrap();
    let text = refused(&elsewhere, &server.addr.to_string());
    assert!(text.contains(&server.addr.to_string()) && text.contains("in use"), "{text}");
}

#[test]
fn a_damaged_shard_refuses_the_start_of_all_cores() {
    let cpus = ringbolt::io::pin::available_cpus().unwrap();
    let broker = start(|config| {
        config.shards = Some(2);
        config.cores = Some(cpus[..cpus.len().min(2)].to_vec());
        config.memory = 160 << 20;
    });
    let topic = broker.topic("t", 2);
    let mut peer = broker.connect();
    for index in [0, 1] {
        let batch = batch(PartitionId::new(topic.id, index), &[&[5; 10_000]]);
        (0..20).for_each(|_| assert!(peer.produce(&batch) >= ZERO));
    }
    drop(peer);
    let dir = broker.stop();
    let segment = dir.path().join("data/shard-001/segment-0000000000000000");
    let file = std::fs::File::options().write(true).open(&segment).unwrap();
    file.write_all_at(&[0xff; 100], 30_000).unwrap();
    drop(file);
    let mut config = small_config(&dir);
    config.cores = Some(cpus[..cpus.len().min(2)].to_vec());
    config.memory = 160 << 20;
    let text = Broker::start(config).err().expect("the damage is seen").to_string();
    assert!(text.contains("shard-001/segment-0000000000000000 at position"), "{text}");
}

/// Every file below `folder` with its contents, but for the lock, which names
/// its last holder.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else if path.file_name().is_some_and(|name| name != "lock") {
            all.extend([(path.clone(), std::fs::read(&path).unwrap())]);
        }
    }
    all
}

/// Of these files, those that a start which comes to nothing leaves alone: it is
/// counted in the superblock and removes what is half made.
fn logs(all: BTreeMap<PathBuf, Vec<u8>>) -> BTreeMap<PathBuf, Vec<u8>> {
    let kept = |path: &PathBuf| !path.ends_with("superblock") && path.extension().is_none();
    all.into_iter().filter(|(path, _)| kept(path)).collect()
}

/// Standard error of a command that must fail.
fn refusal(args: &[&str], data: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbolt"));
    let command = command.args(args).arg(data).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            None if started.elapsed() > PATIENCE => child.kill().unwrap(),
            None => std::thread::sleep(Duration::from_millis(10)),
            Some(status) => break status,
        }
    };
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    // None if it had to be killed, for it serves.
    assert!(status.code().is_some_and(|code| code != 0), "{args:?}: {status}: {text}");
    text
}

const SERVE: [&str; 8] =
    ["serve", "--listen", "127.0.0.1:0", "--memory", "96MiB", "--preallocate", "0", "--data"];

#[test]
fn a_data_directory_of_another_version_is_refused_and_stays_as_it_was() {
    let broker = start(|_| ());
    let partition = PartitionId::new(broker.topic("t", 1).id, 0);
    broker.connect().produce(&batch(partition, &[&[5; 10_000]]));
    let dir = broker.stop();
    let data = dir.path().join("data");
    let path = data.join("superblock");
    let right = std::fs::read(&path).unwrap();
    // One that knew no extents, and one that is to come.
    for version in [1, 3u32] {
        // Format and CRC of each of the two blocks that was written.
        let mut other = right.clone();
        for block in other.chunks_mut(4096).filter(|block| block.iter().any(|&byte| byte != 0)) {
            block[8..12].copy_from_slice(&version.to_le_bytes());
            let crc = ringbolt_wire::crc32c(&block[8..]);
            block[4..8].copy_from_slice(&crc.to_le_bytes());
        }
        std::fs::write(&path, &other).unwrap();
        let before = contents(&data);
        for args in [&SERVE[..], &["log", "inspect"], &["log", "verify"]] {
            let text = refusal(args, &data);
            let named = text.contains("superblock") && text.contains(&format!("format {version}"));
            assert!(named, "{args:?}: {text}");
            assert!(contents(&data) == before, "{args:?} has changed something");
        }
    }
    std::fs::write(&path, &right).unwrap();
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    assert_eq!(Peer::greeted(server.addr).read_all(partition, ZERO), [[5; 10_000]]);
}

/// The place of `value` in a file.
fn position_of(file: &[u8], value: &[u8]) -> usize {
    file.windows(value.len()).position(|window| window == value).expect("it is in the file")
}

#[test]
fn a_flipped_bit_is_refused_at_the_start_and_stays_as_it_was() {
    let broker = start(|_| ());
    let partition = PartitionId::new(broker.topic("t", 1).id, 0);
    let mut peer = broker.connect();
    for n in 0..20u8 {
        peer.produce(&batch(partition, &[&[n + 100; 5000]]));
    }
    drop(peer);
    let dir = broker.stop();
    let data = dir.path().join("data");
    let path = data.join("shard-000/segment-0000000000000000");
    let mut damaged = std::fs::read(&path).unwrap();
    let at = position_of(&damaged, &[105; 5000]);
    damaged[at + 2000] ^= 4;
    std::fs::write(&path, &damaged).unwrap();
    let before = contents(&data);
    refusal(&["log", "verify"], &data);
    assert!(contents(&data) == before, "verify has changed something");
    let text = refusal(&SERVE, &data);
    assert!(text.contains("shard-000/segment-0000000000000000 at position"), "{text}");
    assert!(logs(contents(&data)) == logs(before), "serve has changed something");
}

#[test]
fn missing_segments_are_named_at_the_start_and_the_rest_stays_as_it_was() {
    let broker = start(|config| config.segment_size = Some(4 << 20));
    let partition = PartitionId::new(broker.topic("t", 1).id, 0);
    let mut peer = broker.connect();
    let values: Vec<Vec<u8>> = (0..30).map(|n| vec![n; 400_000]).collect();
    values.iter().for_each(|value| assert!(peer.produce(&batch(partition, &[value])) >= ZERO));
    drop(peer);
    let dir = broker.stop();
    let data = dir.path().join("data");
    let segments = names(&data.join("shard-000")).1;
    assert!(segments.len() >= 4, "{segments:?}");
    let (last, kept) = (segments.len() - 1, dir.path().join("kept"));
    std::fs::create_dir(&kept).unwrap();
    // The last one may be ready ahead, and empty.
    for lost in [0..=0, 0..=1, 1..=1, last - 1..=last, 0..=last] {
        let lost: Vec<_> = segments[lost].iter().map(|segment| segment_name(*segment)).collect();
        lost.iter().for_each(|name| move_file(&data.join("shard-000"), &kept, name));
        let before = logs(contents(&data));
        let text = refusal(&SERVE, &data);
        assert!(text.contains(&format!("shard-000/{} is missing", lost[0])), "{text}");
        assert!(logs(contents(&data)) == before, "{lost:?}: serve has changed something");
        lost.iter().for_each(|name| move_file(&kept, &data.join("shard-000"), name));
    }
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    assert!(Peer::greeted(server.addr).read_all(partition, ZERO) == values);
}

fn move_file(from: &Path, to: &Path, name: &str) {
    std::fs::rename(from.join(name), to.join(name)).unwrap();
}

/// What a shard's folder says that it must have, and the segments that it has.
fn names(shard: &Path) -> (Extent, Vec<SegmentSeq>) {
    let (mut extents, mut segments) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(shard).unwrap() {
        match FileName::parse(entry.unwrap().file_name().to_str().unwrap()) {
            Some(FileName::Extent(extent)) => extents.push(extent),
            Some(FileName::Segment(segment)) => segments.push(segment),
            _ => {}
        }
    }
    segments.sort_unstable();
    assert_eq!(extents.len(), 1, "{extents:?}");
    (extents[0], segments)
}

/// Every kill comes while segments are made and recycled as fast as the disk
/// allows; what is retained is there, and the next start finds no segment
/// missing.
#[test]
fn a_sigkill_in_the_middle_of_recycling_never_keeps_a_broker_from_starting() {
    let broker = start(|config| config.segment_size = Some(4 << 20));
    let partition = PartitionId::new(broker.topic("t", 1).id, 0);
    let dir = broker.stop();
    let shard = dir.path().join("data/shard-000");
    let value = |n: u64| vec![n as u8; 900_000];
    let (mut acked, mut first) = (0, SegmentSeq(0));
    for round in 0..10 {
        let mut server = Server::start(&dir, &["--memory", "96MiB", "--retention-bytes", "16MiB"]);
        let mut peer = Peer::greeted(server.addr);
        if acked > 0 {
            let found = peer.read_all(partition, Offset(acked - 1));
            assert!(found[0] == value(acked - 1), "round {round}");
            acked += found.len() as u64 - 1;
        }
        let until = Instant::now() + Duration::from_millis(700 + 37 * round);
        let mut sent = acked;
        while Instant::now() < until {
            while sent < acked + 8 {
                peer.send(&produce_frame(sent, &batch(partition, &[&value(sent)])));
                sent += 1;
            }
            match peer.answer().response {
                Response::Produced(ack) => assert_eq!(ack.base_offset, Offset(acked)),
                other => panic!("{other:?}"),
            }
            acked += 1;
        }
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        let (extent, segments) = names(&shard);
        assert_eq!(extent.missing(&segments), [], "{extent} with {segments:?}");
        assert!(extent.first() > first, "round {round}: nothing was recycled in it");
        first = extent.first();
    }
    let server = Server::start(&dir, &["--memory", "96MiB", "--retention-bytes", "16MiB"]);
    assert!(Peer::greeted(server.addr).read_all(partition, Offset(acked - 1))[0] == value(acked - 1));
}

#[test]
fn a_bit_that_flips_while_a_broker_runs_is_answered_as_damage_and_the_rest_is_served() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&dir, &["--memory", "96MiB"]);
    let mut peer = Peer::greeted(server.addr);
    let [good, bad] = [0, 1].map(|index| PartitionId::new(peer.topic(["a", "b"][index], 1).id, 0));
    peer.produce(&batch(bad, &[&[105; 5000]]));
    peer.produce(&batch(good, &[&[106; 5000]]));
    server.kill();
    // Read anew from the disk by this broker, which has it in no cache yet.
    let mut server = Server::start(&dir, &["--memory", "96MiB"]);
    let path = dir.path().join("data/shard-000/segment-0000000000000000");
    let at = position_of(&std::fs::read(&path).unwrap(), &[105; 5000]);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[105 ^ 4], at as u64 + 2000).unwrap();
    file.sync_all().unwrap();
    let mut peer = Peer::greeted(server.addr);
    let (partitions, payload) = peer.fetch(&[(bad, ZERO)], 1 << 20, 0);
    assert_eq!((partitions[0].status, payload.len()), (ErrorCode::CorruptData as u16, 0));
    assert_eq!(peer.read_all(good, ZERO), [[106; 5000]]);
    assert_eq!(peer.produce(&batch(bad, &[&[107; 5000]])), Offset(1));
    assert!(server.child.try_wait().unwrap().is_none());
}

/// A broker that may have `files` open files.
fn start_with_files(dir: &TempDir, files: u64) -> Server {
    let mut command = Command::new("prlimit");
    command
        .args([&format!("--nofile={files}:{files}"), env!("CARGO_BIN_EXE_ringbolt"), "serve"])
        .args(["--listen", "127.0.0.1:0", "--segment-size", "16MiB", "--shards", "1"])
        .args(["--memory", "96MiB", "--handshake-timeout", "60s", "--data"])
        .arg(dir.path().join("data"));
    Server::spawn(&mut command)
}

#[test]
fn connections_never_take_the_descriptors_that_segments_need() {
    ringbolt::io::process::raise_open_files().unwrap();
    let dir = TempDir::new().unwrap();
    let mut server = start_with_files(&dir, 1024);
    let mut peer = Peer::greeted(server.addr);
    let partition = PartitionId::new(peer.topic("t", 1).id, 0);
    let crowd: Vec<Peer> = (0..1100).map(|_| Peer::silent(server.addr)).collect();
    let open = format!("/proc/{}/fd", server.child.id());
    wait_until("the crowd is let in", || std::fs::read_dir(&open).unwrap().count() > 600);
    std::thread::sleep(Duration::from_secs(1));
    let value = vec![7; 400_000];
    for n in 0..250 {
        let acked = loop {
            match peer.try_produce(&batch(partition, &[&value])) {
                Response::Produced(ack) => break ack.base_offset,
                // The last descriptor may just have gone to one of the crowd.
                refused => assert_eq!(code(&refused), ErrorCode::DiskFull),
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        assert_eq!(acked, Offset(n));
    }
    assert!(server.child.try_wait().unwrap().is_none());
    assert_eq!(peer.read_all(partition, ZERO).len(), 250);
    drop(crowd);
}

/// Processor time of a process so far, in clock ticks of 10 ms.
fn ticks(server: &Server) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.child.id())).unwrap();
    // The name before may have spaces; utime and stime are the 14th and 15th.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// How often a core of a process went to sleep so far.
fn sleeps(server: &Server) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.child.id())).unwrap();
    // A thread that has ended meanwhile has none.
    let status = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("status")).ok();
    let cores =
        tasks.filter_map(|task| status(task.unwrap())).filter(|text| text.starts_with("Name:\tcore-"));
    cores
        .map(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.unwrap().trim().parse::<u64>().unwrap()
        })
        .sum()
}

/// How often a broker sleeps in a second in which it is asked something every
/// 50 ms, and the ticks that it spends in one in which it is left alone.
fn sleeps_when_asked_and_ticks_when_idle(options: &[&str]) -> (u64, u64) {
    const SECOND: Duration = Duration::from_secs(1);
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &[&["--memory", "96MiB"], options].concat());
    let mut peer = Peer::greeted(server.addr);
    // Its first segments are made ahead by now.
    std::thread::sleep(SECOND);
    let (start, before) = (Instant::now(), sleeps(&server));
    while start.elapsed() < SECOND {
        peer.stat("requests_total");
        std::thread::sleep(Duration::from_millis(50));
    }
    let asked = sleeps(&server) - before;
    std::thread::sleep(SECOND / 5);
    let before = ticks(&server);
    std::thread::sleep(SECOND);
    (asked, ticks(&server) - before)
}

#[test]
fn a_core_looks_on_as_long_as_it_was_told_and_an_idle_one_sleeps() {
    let (sleeps, idle) = sleeps_when_asked_and_ticks_when_idle(&["--idle-poll", "100ms"]);
    // Unless others keep this test from asking in time, it never does.
    assert!(sleeps < 8, "slept {sleeps} times between questions");
    assert!(idle <= 5, "{idle} ticks of 100 while idle");
    let (sleeps, idle) = sleeps_when_asked_and_ticks_when_idle(&["--idle-poll", "0s"]);
    assert!(sleeps >= 15, "slept {sleeps} times between 20 questions");
    assert!(idle <= 5, "{idle} ticks of 100 while idle");
}
