//! Fetched bytes to records that share them.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use ringbolt_wire::{BatchView, Offset};

use crate::error::Error;
use crate::record::{ConsumedRecord, from_us};

/// Batches of one partition, checked by the task that fetched them.
#[derive(Debug)]
pub(super) struct Fetched {
    pub partition: u32,
    /// The offset that was asked for; the first batch may begin before it.
    pub from: Offset,
    /// Whole batches.
    pub batches: Bytes,
}

/// Appends the records from `fetched.from` on. Their bytes are slices of
/// `fetched.batches`.
pub(super) fn decode(
    topic: &Arc<str>,
    fetched: &Fetched,
    records: &mut VecDeque<ConsumedRecord>,
) -> Result<(), Error> {
    let mut rest = fetched.batches.clone();
    while !rest.is_empty() {
        let view = BatchView::parse(&rest, u32::MAX).map_err(|error| Error::Damaged {
            partition: fetched.partition,
            offset: fetched.from.0,
            text: error.to_string(),
        })?;
        let len = view.as_bytes().len();
        let commit_time = from_us(view.header().commit_time_us());
        for (offset, record) in view.records().filter(|(offset, _)| *offset >= fetched.from) {
            records.push_back(ConsumedRecord {
                topic: topic.clone(),
                partition: fetched.partition,
                offset: offset.0,
                commit_time,
                timestamp: from_us(record.timestamp_us),
                key: record.key.map(|key| rest.slice_ref(key)),
                value: rest.slice_ref(record.value),
                headers: record.headers().map(|(n, v)| (n.to_owned(), rest.slice_ref(v))).collect(),
            });
        }
        rest = rest.slice(len..);
    }
    Ok(())
}
