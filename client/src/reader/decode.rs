//! Fetched bytes to records that share them.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use ringbolt_wire::{BatchView, Offset};

use crate::error::Error;
use crate::record::ConsumedRecord;

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
        let header = view.header();
        for record in view.records().filter(|(offset, _)| *offset >= fetched.from) {
            records.push_back(ConsumedRecord::from_batch(topic, fetched.partition, header, record, &rest));
        }
        rest = rest.slice(len..);
    }
    Ok(())
}
