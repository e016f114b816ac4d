//! A disk that fails under a running broker.

mod net_common;

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use net_common::*;
use ringbolt_wire::message::{Response, TopicInfo};
use ringbolt_wire::{Offset, PartitionId};
use tempfile::TempDir;

const SHARDS: u32 = 2;

/// A broker of two shards whose standard error can be read.
fn serve(dir: &TempDir) -> Server {
    // With the signal ignored, a write beyond the limit of file sizes fails, as
    // one to a broken disk does, instead of ending the process.
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_ringbolt")])
        .args(["serve", "--listen", "127.0.0.1:0", "--segment-size", "16MiB", "--memory", "160MiB"])
        .args(["--shards", "2", "--preallocate", "3", "--data"])
        .arg(dir.path().join("data"))
        .stderr(Stdio::piped());
    Server::spawn(&mut command)
}

/// From now on no file of the process can be written at this position or beyond.
fn break_disk_at(child: &Child, position: u64) {
    let (pid, limit) = (child.id().to_string(), format!("--fsize={position}"));
    assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
}

fn has_spare(dir: &TempDir, shard: u32) -> bool {
    let folder = std::fs::read_dir(dir.path().join(format!("data/shard-{shard:03}"))).unwrap();
    let names: Vec<_> = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.iter().any(|name| name.starts_with("spare-") && !name.ends_with(".tmp"))
}

/// Produces to both partitions in turn until the broker is gone. Returns how
/// many batches of each were acknowledged.
fn produce_until_it_ends(peer: &mut Peer, topic: &TopicInfo) -> [usize; SHARDS as usize] {
    let mut acked = [0; SHARDS as usize];
    for number in 0.. {
        let index = number % SHARDS as usize;
        let batch = batch(PartitionId::new(topic.id, index as u32), &[&[number as u8; 20_000]]);
        let correlation = peer.correlation();
        if std::io::Write::write_all(&mut peer.stream, &produce_frame(correlation, &batch)).is_err() {
            break;
        }
        match peer.try_answer() {
            Ok(Some(answer)) => {
                assert!(matches!(answer.response, Response::Produced(_)), "{answer:?}");
                acked[index] += 1;
            }
            _ => break,
        }
    }
    acked
}

#[test]
fn a_failed_write_ends_the_broker_with_its_place_and_without_an_acknowledgement() {
    let dir = TempDir::new().unwrap();
    let mut server = serve(&dir);
    let mut peer = Peer::greeted(server.addr);
    let topic = peer.topic("t", SHARDS);
    // One that is being made would be the first to meet the fault.
    wait_until("each shard has a spare file", || (0..SHARDS).all(|shard| has_spare(&dir, shard)));
    break_disk_at(&server.child, 1 << 20);
    let acked = produce_until_it_ends(&mut peer, &topic);
    assert!(acked.iter().all(|&batches| batches > 10), "{acked:?} were written before the fault");

    let started = Instant::now();
    let status = loop {
        if let Some(status) = server.child.try_wait().unwrap() {
            break status;
        }
        assert!(started.elapsed() < PATIENCE, "a core goes on without the other");
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    let mut text = String::new();
    server.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("segment") && text.contains("position"), "{text}");
    assert!(text.contains("write failed"), "{text}");

    let server = serve(&dir);
    let mut peer = Peer::greeted(server.addr);
    for (index, &acked) in acked.iter().enumerate() {
        let kept = peer.read_all(PartitionId::new(topic.id, index as u32), Offset(0));
        assert!(kept.len() >= acked, "{acked} batches were acknowledged, {} are there", kept.len());
        for (number, value) in kept.iter().enumerate() {
            assert_eq!(value[..], [(number * SHARDS as usize + index) as u8; 20_000]);
        }
    }
}
