//! The document's tables against the code.

use std::collections::BTreeMap;

use ringbolt_wire::batch::{
    BATCH_HEADER_LEN, DEAD_LETTER_HEADER, DELIVER_AT_HEADER, EXPIRE_AT_HEADER, MAX_RECORD_HEADERS,
    ONLY_GROUP_HEADER, RECORD_HEADER_LEN, RESERVED_HEADER_PREFIX,
};
use ringbolt_wire::frame::{FRAME_HEADER_LEN, MAX_META_LEN, MAX_REQUEST_META_LEN};
use ringbolt_wire::message::{
    ConsumerAt, Credit, GroupConfig, GroupMode, Hold, LeaseRange, MAX_CLIENT_NAME_LEN, MAX_CREDIT_BYTES,
    MAX_CREDIT_RECORDS, MAX_FETCH_PARTITIONS, MAX_HELD_RANGES, MAX_LEASE_MS, MAX_OPEN_RECORDS,
    MAX_PARTITIONS, MAX_REASON_LEN, MAX_RETRY_DELAY_MS, MAX_SETTLE_ITEMS, MAX_TOPIC_NAME_LEN,
    PRODUCE_HEAD_LEN, Progress, Settle, SettleItem, Verb,
};
use ringbolt_wire::{
    ConsumerId, DEFAULT_PORT, ErrorCode, GroupId, Offset, Opcode, Request, Response, ShardId, crc32c,
};

use super::groups::description_with;
use super::read_document;

/// The cells of the rows of the table after `<!-- table: NAME -->`, without its
/// head.
fn table(document: &str, name: &str) -> Vec<Vec<String>> {
    let marker = format!("\n<!-- table: {name} -->\n");
    let (_, rest) = document.split_once(&marker).unwrap_or_else(|| panic!("no table {name}"));
    let rows = rest.lines().take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let cells = row.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().replace('`', "")).collect()
    })
    .collect()
}

#[test]
fn the_table_of_operations_is_the_codes() {
    let rows = table(&read_document(), "operations");
    let documented: Vec<_> = rows.iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    let known: Vec<_> = Opcode::ALL.iter().map(|&o| ((o as u8).to_string(), o.name().to_owned())).collect();
    assert_eq!(documented, known);
}

#[test]
fn the_table_of_errors_is_the_codes() {
    let rows = table(&read_document(), "errors");
    let documented: Vec<_> =
        rows.iter().map(|row| [&row[0], &row[1], &row[2], &row[3]].map(String::clone)).collect();
    let known: Vec<_> = ErrorCode::ALL
        .iter()
        .map(|&code| {
            let retry = if code.is_retryable() { "yes" } else { "no" };
            let closes = if code.closes_connection() { "yes" } else { "no" };
            [&(code as u16).to_string(), code.name(), retry, closes].map(str::to_owned)
        })
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn the_table_of_limits_is_the_codes() {
    let rows = table(&read_document(), "limits");
    let documented: BTreeMap<_, _> = rows.iter().map(|row| (row[0].as_str(), row[1].as_str())).collect();
    let known = [
        ("frame header", FRAME_HEADER_LEN),
        ("head of a produce request", PRODUCE_HEAD_LEN),
        ("record batch header", BATCH_HEADER_LEN),
        ("fixed part of a record", RECORD_HEADER_LEN),
        ("meta of a request", MAX_REQUEST_META_LEN as usize),
        ("meta of a response", MAX_META_LEN as usize),
        ("topic name", MAX_TOPIC_NAME_LEN),
        ("client name", MAX_CLIENT_NAME_LEN),
        ("partitions of a topic", MAX_PARTITIONS as usize),
        ("partitions of a fetch", MAX_FETCH_PARTITIONS),
        ("headers of a record", MAX_RECORD_HEADERS),
        ("ms of a lease", MAX_LEASE_MS as usize),
        ("ms of a delay before a redelivery", MAX_RETRY_DELAY_MS as usize),
        ("open records of a group in a partition", MAX_OPEN_RECORDS as usize),
        ("records of a consumer's credit", MAX_CREDIT_RECORDS as usize),
        ("bytes of a consumer's credit", MAX_CREDIT_BYTES as usize),
        ("ranges that an attach holds", MAX_HELD_RANGES),
        ("items of a settle", MAX_SETTLE_ITEMS),
        ("reason of a reject", MAX_REASON_LEN),
        ("port", usize::from(DEFAULT_PORT)),
    ];
    for (name, value) in known {
        assert_eq!(documented.get(name), Some(&value.to_string().as_str()), "{name}");
    }
    assert_eq!(documented.len(), known.len());
}

#[test]
fn the_documents_crc_values_are_right() {
    let rows = table(&read_document(), "crc");
    assert!(rows.len() >= 4);
    for row in rows {
        let bytes: Vec<u8> =
            row[0].split_whitespace().map(|hex| u8::from_str_radix(hex, 16).expect("hex")).collect();
        assert_eq!(row[1], format!("{:#010x}", crc32c(&bytes)), "CRC of {}", row[0]);
    }
}

/// Name of a value, and its fields with what they are, as its derived `Debug` has
/// them.
fn parts(value: &impl std::fmt::Debug) -> (String, Vec<(String, String)>) {
    let text = format!("{value:?}");
    let (name, rest) = text.split_once(" { ").unwrap_or((&text, ""));
    let fields = rest.trim_end_matches(" }").split(", ").filter_map(|field| field.split_once(": "));
    (name.to_owned(), fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// The bytes of an item's verb: behind frame header, consumer, credit, flags,
/// count and range.
fn verb_bytes(verb: &Verb) -> [u8; 8] {
    let range = LeaseRange { partition: 0, base_offset: Offset(0), count: 1, acquired: 1 };
    let settle = Settle {
        at: ConsumerAt { shard: ShardId(0), group: GroupId(1), consumer: ConsumerId(1) },
        credit: Credit::default(),
        confirm: true,
        items: vec![SettleItem { range, verb: verb.clone() }],
    };
    let mut frame = Vec::new();
    Request::Settle(settle).encode(&mut frame, 1, 0);
    frame[FRAME_HEADER_LEN + 60..][..8].try_into().expect("8 bytes")
}

#[test]
fn the_table_of_verbs_is_the_codes() {
    let verbs = [
        Verb::Ack,
        Verb::AckUpTo,
        Verb::Nack { delay_ms: 5 },
        Verb::Reject { dead_letter: true, reason: "r".into() },
        Verb::Extend { lease_ms: 5 },
        Verb::Release,
        Verb::Redrive,
    ];
    // Number, name, and which fields may be other than 0.
    let known = verbs.iter().map(|verb| {
        let bytes = verb_bytes(verb);
        let fields = [(1, "dead_letter"), (2, "ms"), (6, "reason")];
        let used: Vec<&str> =
            fields.iter().filter(|(at, _)| bytes[*at] != 0).map(|(_, name)| *name).collect();
        [bytes[0].to_string(), parts(verb).0, used.join(", ")].to_vec()
    });
    let mut rows = table(&read_document(), "verbs");
    rows.iter_mut().for_each(|row| row.truncate(3));
    assert_eq!(rows, known.collect::<Vec<_>>());
    // The next one would be missing above, and in the document.
    assert_eq!(usize::from(verb_bytes(verbs.last().expect("some"))[0]), verbs.len() - 1);
}

/// Number, name, and what its two words are.
fn hold_row(kind: u64) -> Option<Vec<String>> {
    const MARK: u64 = 0x1122_3344_5566_7788;
    let meta = description_with(Hold::Damaged { offset: MARK });
    let at = meta.windows(8).position(|word| word == MARK.to_le_bytes()).expect("the hold's offset");
    let decode = |a: u64, b: u64| {
        let mut meta = meta.clone();
        let words = [kind, a, b].map(u64::to_le_bytes).concat();
        meta[at - 8..at + 16].copy_from_slice(&words);
        match Response::decode(Opcode::DescribeGroup as u8, 0, &meta, 0) {
            Ok(Response::GroupDescribed(described)) => Some(described.partitions[0].holds[0]),
            _ => None,
        }
    };
    let hold = decode(1, 2).or_else(|| decode(1, 0)).or_else(|| decode(0, 0))?;
    let (name, fields) = parts(&hold);
    let word = |value: &str| fields.iter().find(|field| field.1 == value).map_or("", |field| &field.0);
    Some([&kind.to_string(), &name, word("1"), word("2")].map(str::to_owned).to_vec())
}

#[test]
fn the_table_of_holds_is_the_codes() {
    let mut rows = table(&read_document(), "holds");
    rows.iter_mut().for_each(|row| row.truncate(4));
    let known: Vec<_> = (0..100).filter_map(hold_row).collect();
    assert!(known.len() > 10);
    assert_eq!(rows, known);
}

#[test]
fn the_table_of_progress_is_the_codes() {
    let documented: Vec<_> = table(&read_document(), "progress").iter().map(|row| row[0].clone()).collect();
    let known: Vec<_> = parts(&Progress::default()).1.into_iter().map(|(name, _)| name).collect();
    assert_eq!(documented, known);
}

#[test]
fn the_table_of_modes_and_the_defaults_are_the_codes() {
    let document = read_document();
    let rows = table(&document, "modes");
    let documented: Vec<_> = rows.iter().map(|row| [row[0].clone(), row[1].clone()]).collect();
    let modes = [GroupMode::Shared, GroupMode::KeyOrdered, GroupMode::Exclusive];
    let known: Vec<_> = modes.iter().map(|&mode| [(mode as u8).to_string(), mode.to_string()]).collect();
    assert_eq!(documented, known);

    let mut bytes = Vec::new();
    GroupConfig::default().put(&mut bytes);
    for row in table(&document, "group configuration") {
        let len: usize = row[1].trim_start_matches('u').parse::<usize>().expect("a width") / 8;
        let (field, rest) = bytes.split_at(len);
        let value = field.iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
        assert_eq!(row[2], value.to_string(), "the usual {}", row[0]);
        bytes = rest.to_vec();
    }
    assert!(bytes.is_empty(), "{} bytes of the configuration are not in the table", bytes.len());
}

#[test]
fn the_table_of_reserved_headers_is_the_codes() {
    let rows = table(&read_document(), "reserved headers");
    let documented: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    let known = [DELIVER_AT_HEADER, EXPIRE_AT_HEADER, ONLY_GROUP_HEADER, DEAD_LETTER_HEADER];
    assert_eq!(documented, known);
    assert!(known.iter().all(|name| name.starts_with(RESERVED_HEADER_PREFIX)));
}

/// A section's number and the anchor that a browser makes of its heading.
fn sections(document: &str) -> Vec<(String, String)> {
    let headings = document.lines().filter_map(|line| line.strip_prefix("## "));
    let slug = |heading: &str| heading.to_lowercase().replace(' ', "-");
    headings.map(|h| (h.split(' ').next().expect("a number").to_owned(), slug(h))).collect()
}

/// Where links lead that are not to a section, or to one of another number than
/// they say.
fn bad_links(document: &str) -> Vec<String> {
    let sections = sections(document);
    let links = document.match_indices("](#").map(|(at, open)| {
        let anchor = document[at + open.len()..].split(')').next().expect("an anchor");
        let text = document[..at].rsplit('[').next().expect("a text");
        (text.split_whitespace().next().unwrap_or_default(), anchor)
    });
    let is_bad = |link: &(&str, &str)| !sections.iter().any(|(n, slug)| n == link.0 && slug == link.1);
    links.filter(is_bad).map(|(text, anchor)| format!("[{text}](#{anchor})")).collect()
}

#[test]
fn the_documents_sections_are_numbered_and_its_links_lead_to_them() {
    let document = read_document();
    let numbers: Vec<_> = sections(&document).into_iter().map(|(number, _)| number).collect();
    assert_eq!(numbers, (1..=numbers.len()).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(document.matches("](#").count() > 2 * numbers.len());
    assert_eq!(bad_links(&document), [""; 0]);
    // What it is to catch.
    let planted = "## 1 In short\n[1](#1-in-short) [2](#1-in-short) [1](#1-short)";
    assert_eq!(bad_links(planted), ["[2](#1-in-short)", "[1](#1-short)"]);
}
