//! What the protocol's description says about the broker's own limits is what the
//! code has, and no limit is missing.

use ringbolt::limits::*;

const fn partitions(cost: usize) -> u64 {
    (cost / FETCH_PARTITION_COST) as u64
}

/// Limits that a client can meet: the constant, its row in the table.
const MET: &[(&str, &str, u64)] = &[
    ("MAX_HELLO_FRAME_LEN", "frame before the handshake", MAX_HELLO_FRAME_LEN as u64),
    ("MAX_FRAME_LEN", "frame", MAX_FRAME_LEN as u64),
    ("MAX_BATCH_LEN", "record batch", MAX_BATCH_LEN as u64),
    ("MAX_IN_FLIGHT", "requests in flight", MAX_IN_FLIGHT as u64),
    ("DEFAULT_MAX_CONNECTIONS", "connections", DEFAULT_MAX_CONNECTIONS as u64),
    ("MAX_REFUSED_CONNECTIONS", "connections beyond", MAX_REFUSED_CONNECTIONS as u64),
    ("DEFAULT_HANDSHAKE_TIMEOUT_MS", "ms for the hello", DEFAULT_HANDSHAKE_TIMEOUT_MS),
    ("DEFAULT_FRAME_TIMEOUT_MS", "ms for a frame", DEFAULT_FRAME_TIMEOUT_MS),
    ("MIN_FRAME_RATE", "bytes per second of a frame that takes longer", MIN_FRAME_RATE),
    ("MAX_SEND_STALL_MS", "ms in which no byte of an answer is taken", MAX_SEND_STALL_MS),
    ("MAX_LINGER_MS", "ms to close after the goodbye", MAX_LINGER_MS),
    ("MAX_FETCH_WAIT_MS", "ms that a fetch waits", MAX_FETCH_WAIT_MS as u64),
    ("MAX_FETCH_BYTES", "payload of a fetch response", MAX_FETCH_BYTES as u64),
    ("MAX_FETCHING_PER_SESSION", "partitions of fetches in flight", partitions(MAX_FETCHING_PER_SESSION)),
    ("OWN_FETCHING_PER_SESSION", "of these while others have many", partitions(OWN_FETCHING_PER_SESSION)),
    ("MAX_UNSENT", "unsent answers", MAX_UNSENT as u64),
    ("MAX_UNSENT_OWN", "unsent answers without payload", MAX_UNSENT_OWN as u64),
    ("MAX_TOPICS", "topics", MAX_TOPICS as u64),
    ("MAX_TOTAL_PARTITIONS", "partitions of all topics", MAX_TOTAL_PARTITIONS as u64),
    ("MAX_PRODUCERS", "producers of a shard", MAX_PRODUCERS as u64),
    ("MAX_REMEMBERED_RUNS", "remembered runs of a producer", MAX_REMEMBERED_RUNS as u64),
    ("MAX_TOTAL_RUNS", "remembered runs of a shard", MAX_TOTAL_RUNS as u64),
    ("MAX_GROUPS", "consumer groups", MAX_GROUPS as u64),
    ("MAX_GROUP_PARTITIONS", "partitions of all groups", MAX_GROUP_PARTITIONS as u64),
    ("MAX_CONSUMERS", "consumers of a shard", MAX_CONSUMERS as u64),
    ("MAX_SETTLE_RECORDS", "records of a settle", MAX_SETTLE_RECORDS),
    (
        "MAX_SETTLING_PER_SESSION",
        "records of confirmed settles in flight on a connection",
        MAX_SETTLING_PER_SESSION,
    ),
    ("MAX_REDRIVES", "dead letters of a shard on their way back", MAX_REDRIVES as u64),
    ("MAX_DESCRIBED_HOLDS", "partitions described with holds", MAX_DESCRIBED_HOLDS as u64),
    ("MAX_DESCRIBED_CONSUMERS", "consumers described", MAX_DESCRIBED_CONSUMERS as u64),
];

/// Limits that no client can tell from their absence.
const INTERNAL: &[&str] = &[
    "BLOCK_LEN",
    "CHUNK_LEN",
    "MAX_COMMIT_LEN",
    "PAGE_LEN",
    "MAX_COMMITS_IN_FLIGHT",
    "MAX_SEALED_COMMITS",
    "MIN_SEGMENT_LEN",
    "MAX_SEGMENT_LEN",
    "DEFAULT_SEGMENT_LEN",
    "DEFAULT_DIRECT_THRESHOLD",
    "MAX_SHARDS",
    "MAX_CORES",
    "MAX_LISTING_LEN",
    "MAX_SPARES",
    "MAX_SPARE_LEN",
    "KEEP_IN_FLIGHT",
    "MAILBOX_LEN",
    "MAX_OUTGOING",
    "MAX_HELD",
    "FETCH_PARTITION_COST",
    "MAX_FETCHING_PER_CORE",
    "MAX_LOOKS_PER_TURN",
    "DEFAULT_MEMORY",
    "MAX_OPEN_SEGMENTS",
    "OPEN_FILES_PER_SHARD",
    "MAX_ACCEPTS",
    "OPEN_FILES_OF_PROCESS",
    "MAX_STORED_BATCH_LEN",
    "MAX_DELIVERY_LEN",
];

#[test]
fn the_table_of_the_brokers_limits_is_the_codes() {
    let document = include_str!("../docs/protocol.md");
    let (_, rest) = document.split_once("<!-- table: limits of the broker -->\n").unwrap();
    let documented: Vec<(String, String)> = rest
        .lines()
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
            (cells.next().unwrap(), cells.next().unwrap())
        })
        .collect();
    let known: Vec<_> = MET.iter().map(|(_, row, value)| ((*row).to_owned(), value.to_string())).collect();
    assert_eq!(documented, known);
}

#[test]
fn every_limit_is_in_the_table_or_none_of_a_clients_business() {
    let constants: Vec<&str> = include_str!("../src/limits.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.split(':').next())
        .collect();
    assert!(constants.len() > 20, "{constants:?}");
    for name in &constants {
        let is_known = MET.iter().any(|(met, ..)| met == name) || INTERNAL.contains(name);
        assert!(is_known, "{name} is new: put it into the protocol's table, or into INTERNAL");
    }
    assert_eq!(constants.len(), MET.len() + INTERNAL.len(), "what is gone, or in both");
}
