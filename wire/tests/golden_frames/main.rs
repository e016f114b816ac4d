//! `docs/protocol.md` against the code: every example byte, and the tables of
//! operations, errors and limits.
//!
//! The document holds the golden bytes. After a deliberate change of a layout,
//! `UPDATE_GOLDEN=1 cargo test -p ringbolt-wire --test golden_frames` writes
//! the examples anew; the tables and the prose are for a person to change.

#[path = "../support/mod.rs"]
mod support;

mod consumers;
mod dump;
mod examples;
mod groups;
mod tables;

use std::collections::BTreeMap;
use std::fs;

use ringbolt_wire::{BatchView, Batches, Opcode, Request, Response};

use dump::{dump, undump};
use examples::{Message, ORDERS, examples};
use support::open_frame;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md");

/// The document's fenced blocks that follow a line `<!-- example: NAME -->`,
/// each as name and byte range of its contents.
fn example_blocks(document: &str) -> Vec<(String, std::ops::Range<usize>)> {
    const OPEN: &str = "\n<!-- example: ";
    let mut blocks = Vec::new();
    for (start, _) in document.match_indices(OPEN) {
        let rest = &document[start + OPEN.len()..];
        let (name, rest) = rest.split_once(" -->\n```text\n").expect("a fenced block after the marker");
        assert!(!name.contains('\n'), "no fenced block after the example before {name:?}");
        let from = document.len() - rest.len();
        let len = rest.find("```\n").expect("the end of the block");
        blocks.push((name.to_owned(), from..from + len));
    }
    blocks
}

fn read_document() -> String {
    fs::read_to_string(DOCUMENT).expect("docs/protocol.md")
}

#[test]
fn the_documents_examples_are_what_the_code_sends() {
    let mut document = read_document();
    let blocks = example_blocks(&document);
    let examples: BTreeMap<_, _> = examples().into_iter().map(|e| (e.name, e)).collect();
    let named: Vec<&str> = blocks.iter().map(|(name, _)| name.as_str()).collect();
    let mut sorted = named.clone();
    sorted.sort_unstable();
    assert_eq!(
        sorted,
        examples.keys().copied().collect::<Vec<_>>(),
        "examples of the document and of this test"
    );

    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for (name, range) in blocks.iter().rev() {
        let example = &examples[name.as_str()];
        let dump = dump(&example.frame, &example.fields);
        if update {
            document.replace_range(range.clone(), &dump);
        } else {
            assert_eq!(document[range.clone()], dump, "example {name:?}; see the head of this file");
        }
    }
    if update {
        fs::write(DOCUMENT, document).expect("docs/protocol.md");
    }
}

/// Read back from the document, not from what this test encodes.
#[test]
fn the_documents_examples_mean_what_they_are_said_to_mean() {
    let document = read_document();
    let examples: BTreeMap<_, _> = examples().into_iter().map(|e| (e.name, e)).collect();
    let mut seen = Vec::new();
    for (name, range) in example_blocks(&document) {
        let bytes = undump(&document[range]);
        let (header, meta) = open_frame(&bytes);
        let payload = &bytes[header.head_len()..];
        assert_eq!(payload.len(), header.payload_len as usize, "{name}");
        seen.push((header.opcode, header.is_response));
        match &examples[name.as_str()].message {
            Message::Request(request) => {
                assert!(!header.is_response, "{name}");
                assert_eq!(Request::decode(header.opcode, meta, header.payload_len).as_ref(), Ok(request));
                if matches!(request, Request::Produce { .. }) {
                    let view = BatchView::parse_exact(payload, u32::MAX).expect("a batch");
                    assert_eq!(view.header().partition(), ORDERS);
                }
            }
            Message::Response(response) => {
                assert!(header.is_response, "{name}");
                let decoded = Response::decode(header.opcode, header.status, meta, header.payload_len);
                assert_eq!(decoded.as_ref(), Ok(response));
                if let Response::Fetched(partitions) = response {
                    let (mut batches, rest): (Batches<'_>, _) = partitions[0].split_payload(payload);
                    let records = batches.next().expect("a batch").expect("a good one").records().count();
                    assert_eq!((records, batches.next().is_none(), rest.len()), (2, true, 0));
                }
                if let Response::Delivered(delivery) = response {
                    let rest = delivery.ranges.iter().fold(payload, |payload, range| {
                        range.split_payload(payload).expect("the batches of the range").1
                    });
                    assert_eq!((rest.len(), delivery.ranges.is_empty()), (0, false), "{name}");
                }
            }
        }
    }
    for &opcode in Opcode::ALL {
        assert!(seen.contains(&(opcode as u8, true)), "no example of an answer to {}", opcode.name());
        let is_the_brokers = matches!(opcode, Opcode::Goodbye | Opcode::Delivery);
        let is_requested = seen.contains(&(opcode as u8, false));
        assert_eq!(is_requested, !is_the_brokers, "an example of a request {}", opcode.name());
    }
}
