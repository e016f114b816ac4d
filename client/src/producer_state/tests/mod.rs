//! The producer's rules, one by one, and all of them against a model of the
//! broker under random loss.

mod model;
mod rules;

use ringbolt_wire::message::{ErrorResponse, ProduceAck, ProducerOpened};
use ringbolt_wire::{
    BatchBuilder, BatchView, Epoch, ErrorCode, Offset, PartitionId, ProducerId, Sequence, TopicId,
};

use super::*;

const PARTITION: PartitionId = PartitionId::new(TopicId(3), 1);
const PRODUCER: ProducerId = ProducerId(77);

/// A batch of `count` records that all hold `tag`.
fn batch(tag: u64, count: u32) -> BatchBuilder {
    let mut builder = BatchBuilder::new();
    for index in 0..count {
        let header = [("index".to_owned(), index.to_le_bytes().to_vec())];
        builder.push(1, Some(b"key"), &tag.to_le_bytes(), &header);
    }
    builder
}

/// Epoch, sequence, count and tag of a batch.
fn read(batch: &[u8]) -> (u32, u64, u32, u64) {
    let view = BatchView::parse_exact(batch, u32::MAX).unwrap();
    let header = view.header();
    assert_eq!((header.partition(), header.producer_id()), (PARTITION, PRODUCER));
    let tags: Vec<u64> =
        view.records().map(|(_, r)| u64::from_le_bytes(r.value.try_into().unwrap())).collect();
    assert!(tags.iter().all(|tag| *tag == tags[0]));
    for (index, (_, record)) in view.records().enumerate() {
        let headers: Vec<_> = record.headers().collect();
        assert_eq!(headers, [("index", &(index as u32).to_le_bytes()[..])]);
        assert_eq!(record.key, Some(&b"key"[..]));
    }
    (header.producer_epoch().0, header.base_sequence().0, header.count(), tags[0])
}
