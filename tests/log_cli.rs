//! `ringbolt log` on the directories that a real broker leaves: it says what is
//! there, finds what was damaged, names file and position, and changes nothing.

mod net_common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use net_common::*;
use ringbolt_wire::PartitionId;
use serde_json::Value;
use tempfile::TempDir;

const SEGMENT_LEN: u64 = 4 << 20;
const RECORD_LEN: usize = 100_000;
const RECORDS: u64 = 100;

/// A directory with two topics and records over several segments, and the path
/// of its data.
fn filled() -> (TempDir, PathBuf) {
    let broker = start(|config| config.segment_size = Some(SEGMENT_LEN));
    let orders = broker.topic("orders", 2);
    broker.topic("empty", 3);
    let mut peer = broker.connect();
    for n in 0..RECORDS {
        let value: Vec<u8> = (0..RECORD_LEN).map(|j| (n as usize * 31 + j * 7) as u8).collect();
        peer.produce(&batch(PartitionId::new(orders.id, (n % 2) as u32), &[&value]));
    }
    drop(peer);
    let dir = broker.stop();
    let data = dir.path().join("data");
    (dir, data)
}

fn log(command: &str, data: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringbolt")).args(["log", command]).arg(data).args(more).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path))
        } else {
            all.extend([(path.clone(), fs::read(&path).unwrap())])
        }
    }
    all
}

/// Where in a segment's file the given record value begins.
fn find_record(segment: &Path, n: usize) -> Option<usize> {
    let head: Vec<u8> = (0..64).map(|j| (n * 31 + j * 7) as u8).collect();
    let bytes = fs::read(segment).unwrap();
    // The pattern has a period of 256 within a value: the first hit is its start.
    bytes.windows(64).position(|window| window == head)
}

fn flip(file: &Path, position: u64) {
    let mut byte = [0];
    let file = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[byte[0] ^ 4], position).unwrap();
}

fn segment(data: &Path, n: u64) -> PathBuf {
    data.join(format!("shard-000/segment-{n:016x}"))
}

#[test]
fn a_sound_directory_is_described_and_verified_and_not_changed() {
    let (_dir, data) = filled();
    let before = contents(&data);

    let inspected = log("inspect", &data, &["--json"]);
    assert!(inspected.status.success(), "{inspected:?}");
    let report = json(&inspected);
    assert_eq!(
        (&report["format"], &report["boot_count"], &report["segment_len"]),
        (&2.into(), &1.into(), &SEGMENT_LEN.into())
    );
    let topics = report["topics"].as_array().unwrap();
    let orders = topics.iter().find(|topic| topic["name"] == "orders").unwrap();
    for partition in orders["partitions"].as_array().unwrap() {
        assert_eq!(
            (&partition["first_offset"], &partition["end_offset"]),
            (&0.into(), &(RECORDS / 2).into())
        );
    }
    let empty = topics.iter().find(|topic| topic["name"] == "empty").unwrap();
    assert_eq!(empty["partitions"].as_array().unwrap().len(), 3);
    let segments = report["shards"][0]["segments"].as_array().unwrap();
    let states: Vec<_> = segments.iter().map(|segment| segment["state"].as_str().unwrap()).collect();
    // 10 MB in segments of 4 MiB.
    assert!(states.starts_with(&["sealed", "sealed", "open"]), "{states:?}");
    assert!(segments[2]["position"].as_u64().unwrap() > 4096);

    let shown = text(&log("inspect", &data, &[]).stdout);
    for part in [
        "orders",
        "empty",
        "sealed",
        "open",
        "4.0 MiB",
        "  0000000000000002 ",
        report["broker_id"].as_str().unwrap(),
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }

    let verified = log("verify", &data, &["--json"]);
    assert!(verified.status.success(), "{verified:?}");
    let report = json(&verified);
    assert_eq!(report["damaged"], false);
    let shard = &report["shards"][0];
    assert_eq!(shard["faults"].as_array().unwrap().len(), 0, "{shard}");
    // The topics' making is in the log as well.
    assert_eq!(shard["records"], RECORDS + 2);
    assert_eq!((&shard["cut_commits"], &shard["leftover_commits"]), (&0.into(), &0.into()));
    assert!(text(&log("verify", &data, &[]).stdout).ends_with("sound\n"));
    assert!(contents(&data) == before, "looking changes nothing");
}

#[test]
fn a_flipped_bit_in_an_acknowledged_record_is_found_and_named() {
    let (_dir, data) = filled();
    for n in [0, 1, 2] {
        let file = segment(&data, n);
        let (record, at) = (0..RECORDS as usize).find_map(|r| Some((r, find_record(&file, r)?))).unwrap();
        flip(&file, at as u64 + 5000);
        let verified = log("verify", &data, &["--json"]);
        assert_eq!(verified.status.code(), Some(1), "record {record}: {verified:?}");
        let report = json(&verified);
        assert_eq!(report["damaged"], true);
        let faults = report["shards"][0]["faults"].as_array().unwrap();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!(faults[0]["file"].as_str().unwrap(), file.to_str().unwrap());
        let position = faults[0]["position"].as_u64().unwrap();
        assert!(position <= at as u64 && at as u64 - position <= 8192, "{position} for a record at {at}");
        assert_eq!(faults[0]["acknowledged"], true);
        let shown = text(&log("verify", &data, &[]).stdout);
        assert!(shown.contains(&format!("{}, byte {position}", file.display())), "{shown}");
        assert!(shown.contains("DAMAGED"), "{shown}");
        flip(&file, at as u64 + 5000);
    }
    assert!(log("verify", &data, &[]).status.success(), "as it was");
}

/// What an earlier start had written, beyond where the log was cut then, is
/// neither damage nor part of the log.
#[test]
fn leftovers_of_an_earlier_start_are_told_apart_from_records() {
    let (dir, data) = filled();
    let file = segment(&data, 2);
    let whole = fs::read(&file).unwrap();
    // As if the last writes before a crash had been lost: all but the first commit,
    // whose length stands in its header.
    let len = u32::from_le_bytes(whole[4096 + 64..][..4].try_into().unwrap());
    let mut rest = whole[..4096 + len as usize].to_vec();
    rest.resize(whole.len(), 0);
    fs::write(&file, &rest).unwrap();
    let before = json(&log("verify", &data, &["--json"]))["shards"][0]["records"].as_u64().unwrap();
    let lost = RECORDS + 2 - before;
    assert!(lost > 10, "{before} are left");

    let broker = ringbolt::serve::Broker::start(small_config(&dir)).unwrap();
    let partition = PartitionId::new(ringbolt_wire::TopicId(1), 0);
    Peer::greeted(broker.addr()).produce(&batch(partition, &[&[5; RECORD_LEN]]));
    broker.stop().unwrap();
    // What the start has written is kept; behind it lies what was there before.
    let end = json(&log("inspect", &data, &["--json"]))["shards"][0]["segments"][2]["position"].clone();
    let end = end.as_u64().unwrap() as usize;
    let mut now = fs::read(&file).unwrap();
    let trailer = now.len() - 4096;
    now[end..trailer].copy_from_slice(&whole[end..trailer]);
    fs::write(&file, &now).unwrap();

    let verified = log("verify", &data, &["--json"]);
    assert!(verified.status.success(), "{verified:?}");
    let shard = &json(&verified)["shards"][0];
    assert_eq!((&shard["records"], &shard["faults"]), (&(before + 1).into(), &Value::Array(Vec::new())));
    let left = shard["leftover_commits"].as_u64().unwrap();
    // One was overwritten by the new record, another by what the stop has written.
    assert!(left >= lost - 2, "{left} of {lost}");
    let shown = text(&log("verify", &data, &[]).stdout);
    assert!(shown.contains(&format!("left over: {left} commits")) && shown.ends_with("sound\n"), "{shown}");
}

#[test]
fn a_missing_segment_is_named_by_both_commands() {
    let (_dir, data) = filled();
    let file = segment(&data, 1);
    fs::remove_file(&file).unwrap();
    let verified = log("verify", &data, &[]);
    assert_eq!(verified.status.code(), Some(1));
    assert!(text(&verified.stdout).contains(&format!("{}: the file is missing", file.display())));
    let inspected = log("inspect", &data, &[]);
    assert_eq!(inspected.status.code(), Some(1));
    assert!(
        text(&inspected.stdout).contains("shard-000/segment-0000000000000001 is missing"),
        "{inspected:?}"
    );
}

#[test]
fn segments_missing_at_either_end_are_named_by_both_commands() {
    let (_dir, data) = filled();
    let shard = data.join("shard-000");
    let count = (0..).take_while(|&n| segment(&data, n).exists()).count() as u64;
    assert!(count >= 3, "{count}");
    for lost in [0..1, 0..2, count - 2..count, 0..count] {
        let files: Vec<_> =
            lost.clone().map(|n| (segment(&data, n), shard.join(format!("kept-{n}")))).collect();
        files.iter().for_each(|(file, kept)| fs::rename(file, kept).unwrap());
        let before = contents(&data);
        let more = lost.end - lost.start - 1;
        let verified = log("verify", &data, &["--json"]);
        assert_eq!(verified.status.code(), Some(1), "{lost:?}: {verified:?}");
        let faults = json(&verified)["shards"][0]["faults"].as_array().unwrap().clone();
        assert_eq!(faults.len(), 1, "{lost:?}: {faults:?}");
        assert_eq!(faults[0]["file"].as_str().unwrap(), files[0].0.to_str().unwrap());
        let after = if more == 0 { String::new() } else { format!(", and {more} after it") };
        assert_eq!(faults[0]["what"], format!("the file is missing{after}"));
        let inspected = log("inspect", &data, &[]);
        assert_eq!(inspected.status.code(), Some(1));
        let name = format!("shard-000/segment-{:016x} is missing", lost.start);
        assert!(text(&inspected.stdout).contains(&name), "{inspected:?}");
        assert!(contents(&data) == before, "looking changes nothing");
        files.iter().for_each(|(file, kept)| fs::rename(kept, file).unwrap());
    }
    assert!(log("verify", &data, &[]).status.success(), "as it was");
}

#[test]
fn a_cut_segment_another_format_and_a_strange_folder_are_refused() {
    let (_dir, data) = filled();
    let file = segment(&data, 0);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..1 << 20]).unwrap();
    for command in ["inspect", "verify"] {
        let refused = log(command, &data, &[]);
        assert_eq!(refused.status.code(), Some(1));
        let error = text(&refused.stderr);
        assert!(error.contains(file.to_str().unwrap()) && error.contains("1048576"), "{error}");
    }
    fs::write(&file, &whole).unwrap();

    let nowhere = log("verify", &data.join("nowhere"), &[]);
    assert!(text(&nowhere.stderr).contains("does not exist"), "{nowhere:?}");
    let strange = log("inspect", &data.join("shard-000"), &[]);
    assert!(text(&strange.stderr).contains("has no superblock"), "{strange:?}");
}

#[test]
fn a_directory_that_is_served_is_refused() {
    let broker = start(|_| {});
    let refused = log("verify", &broker.dir.path().join("data"), &[]);
    assert_eq!(refused.status.code(), Some(1));
    let error = text(&refused.stderr);
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    broker.stop();
}
