//! Delivered bytes to records that share them.

use std::sync::Arc;

use bytes::Bytes;
use ringbolt_wire::batch::BATCH_HEADER_LEN;
use ringbolt_wire::message::{DeliveredRange, Delivery};

use super::inbox::Received;
use crate::record::{ConsumedRecord, from_us};

/// The records of one range, and what each takes of the payload.
#[derive(Debug)]
pub(super) struct Decoded {
    pub range: DeliveredRange,
    pub records: Vec<Received>,
    /// Of each record; together the range's payload.
    pub bytes: Vec<u64>,
}

/// The records of a delivery, or where it is damaged: a partition and an offset.
pub(super) fn decode(
    topic: &Arc<str>,
    delivery: &Delivery,
    payload: &Bytes,
) -> Result<Vec<Decoded>, (u32, u64)> {
    let mut rest = &payload[..];
    let mut decoded = Vec::with_capacity(delivery.ranges.len());
    for range in &delivery.ranges {
        let lease = range.lease;
        let damaged = (lease.partition, lease.base_offset.0);
        let (batches, after) = range.split_payload(rest).ok_or(damaged)?;
        rest = after;
        let (mut records, mut bytes) = (Vec::new(), Vec::new());
        for batch in batches {
            let owner = payload.slice_ref(batch.as_bytes());
            let lens = batch.records_with_bytes().map(|(_, bytes)| bytes.len());
            for ((index, record), len) in batch.records().enumerate().zip(lens) {
                let head = if index == 0 { BATCH_HEADER_LEN } else { 0 };
                bytes.push((head + len) as u64);
                records.push(Received {
                    record: ConsumedRecord::from_batch(
                        topic,
                        lease.partition,
                        batch.header(),
                        record,
                        &owner,
                    ),
                    acquired: lease.acquired,
                    failed: range.failed,
                    first_delivery: (range.first_delivery_us > 0).then(|| from_us(range.first_delivery_us)),
                });
            }
        }
        // The batches' headers promise as many; their records were checked as well.
        if records.len() != lease.count as usize {
            return Err(damaged);
        }
        decoded.push(Decoded { range: *range, records, bytes });
    }
    Ok(decoded)
}
