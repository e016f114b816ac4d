//! What is written comes back; what a kill tore is dropped; what is damaged is
//! refused.

use std::path::Path;

use proptest::prelude::*;
use ringbolt_wire::{Epoch, PartitionId, ProducerId, TopicId};

use super::*;

fn history() -> impl Strategy<Value = Vec<Entry>> {
    let number = prop_oneof![any::<u64>().prop_map(|v| v >> 1), 0u64..1000];
    let event = (0u32..3, number, 1u64..5000, any::<u64>(), 0u8..6).prop_map(
        |(stream, first, count, offset, kind)| match kind {
            0 | 1 => Entry::Sent { stream, first, count },
            2 => Entry::Acked { stream, first, count, offset: offset >> 1 },
            3 => Entry::Acked { stream, first, count, offset: NO_OFFSET },
            4 => Entry::Refused { stream, first, count, code: offset as u16 },
            _ => Entry::Unknown { stream, first, count },
        },
    );
    prop::collection::vec(event, 0..300).prop_map(|events| {
        let info = RunInfo { run: u64::MAX, topic: "täst".into(), ..RunInfo::default() };
        let mut all = vec![Entry::RunStarted(Box::new(info))];
        all.extend((0..3).map(|i| {
            Entry::StreamOpened(StreamInfo {
                index: i,
                partition: PartitionId::new(TopicId(9), i),
                producer: ProducerId(1 << 40),
                epoch: Epoch(2),
                first_sequence: u64::from(i) * 1000,
            })
        }));
        all.extend(events);
        all.push(Entry::RunEnded);
        all
    })
}

fn write(path: &Path, entries: &[Entry]) {
    let (writer, mut sink) = LedgerWriter::start(path).unwrap();
    for entry in entries {
        sink.push(entry.clone()).unwrap();
    }
    sink.hand_over().unwrap();
    drop(sink);
    writer.finish().unwrap();
}

fn read(path: &Path) -> Result<(Vec<Entry>, Tail), LedgerError> {
    let mut entries = Vec::new();
    let tail = LedgerReader::open(path)?.for_each(|entry| entries.push(entry))?;
    Ok((entries, tail))
}

/// One range for what is one range, as the sink makes it.
fn merged(entries: &[Entry]) -> Vec<Entry> {
    let mut out: Vec<Entry> = Vec::new();
    for entry in entries {
        if !out.last_mut().is_some_and(|last| last.absorb(entry)) {
            out.push(entry.clone());
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_ledger_torn_anywhere_gives_back_a_prefix_and_can_be_appended_to(
        (first, second, cut) in (history(), history(), any::<prop::sample::Index>()),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("torn.ledger");
        write(&path, &first);
        prop_assert_eq!(&read(&path).unwrap().0, &merged(&first));

        let bytes = std::fs::read(&path).unwrap();
        let len = cut.index(bytes.len());
        std::fs::write(&path, &bytes[..len]).unwrap();
        let (kept, tail) = read(&path).unwrap();
        prop_assert_eq!(tail.valid_len + tail.torn_len, len as u64);
        prop_assert_eq!(&kept[..], &merged(&first)[..kept.len()]);

        write(&path, &second);
        let (all, tail) = read(&path).unwrap();
        prop_assert_eq!(tail.torn_len, 0);
        prop_assert_eq!(all, [kept, merged(&second)].concat());
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.ledger");
        std::fs::write(&path, &bytes).unwrap();
        prop_assert!(read(&path).unwrap().0.is_empty());
    }
}

/// Several blocks: as many entries as do not merge.
fn long() -> Vec<Entry> {
    let mut entries = vec![Entry::RunStarted(Box::default()), Entry::StreamOpened(StreamInfo::default())];
    entries.extend((0..200_000).map(|i| Entry::Acked { stream: 0, first: i, count: 1, offset: i * 3 }));
    entries
}

#[test]
fn a_steady_stream_costs_at_most_five_bytes_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.ledger");
    write(&path, &long());
    let len = std::fs::metadata(&path).unwrap().len();
    // A thousandth more for the blocks' headers.
    assert!(len < 5 * 200_000 * 1001 / 1000, "{len} bytes");
    assert_eq!(read(&path).unwrap().0, long());
}

#[test]
fn damage_before_the_last_block_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.ledger");
    write(&path, &long());
    let good = std::fs::read(&path).unwrap();
    for at in [0, 10, 100, 70_000, 300_000] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        assert!(matches!(read(&path), Err(LedgerError::Damaged { .. })), "byte {at}");
        assert!(LedgerWriter::start(&path).is_err(), "appending to a damaged ledger hides the damage");
    }
}

#[test]
fn a_sink_that_keeps_nothing_takes_everything() {
    let mut sink = LedgerSink::none();
    sink.push(Entry::RunEnded).unwrap();
    sink.hand_over().unwrap();
    assert!(!sink.is_kept());
}
