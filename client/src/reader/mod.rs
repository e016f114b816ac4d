//! Reading by offset.
//!
//! One task per shard fetches, one answer ahead of the application, and checks
//! every batch's CRC; [`Reader`] takes the batches apart.

mod builder;
mod decode;
mod task;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use builder::{ReaderBuilder, StartAt};
use decode::{Fetched, decode};

use crate::error::Error;
use crate::record::ConsumedRecord;

/// Reads the records of a topic's partitions, each in the order of its offsets.
///
/// It follows the topic: [`next`](Self::next) waits for records that do not
/// exist yet. Lost connections are made again, and reading goes on where it
/// was. Only durable records are ever seen.
///
/// ```no_run
/// # async fn example(client: ringbolt_client::Client) -> Result<(), ringbolt_client::Error> {
/// use ringbolt_client::StartAt;
/// let mut reader = client.reader("orders").start_at(StartAt::Earliest).build().await?;
/// loop {
///     let record = reader.next().await?;
///     println!("{}/{}: {:?}", record.partition, record.offset, record.value);
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Reader {
    topic: Arc<str>,
    fetched: mpsc::Receiver<Result<Fetched, Error>>,
    records: VecDeque<ConsumedRecord>,
    /// Next offset of each partition.
    positions: BTreeMap<u32, u64>,
    /// Dropped with the reader, which ends them.
    _tasks: JoinSet<()>,
}

impl Reader {
    /// The next record, of whichever partition has one. Dropping the future
    /// loses nothing.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`], [`Error::Refused`] (the topic was deleted,
    /// stored data is damaged): reading this partition has ended, that of the
    /// others goes on. [`Error::Damaged`]: calling again fetches again.
    /// [`Error::ReaderEnded`]: no partition is left.
    pub async fn next(&mut self) -> Result<ConsumedRecord, Error> {
        loop {
            if let Some(record) = self.records.pop_front() {
                self.positions.insert(record.partition, record.offset + 1);
                return Ok(record);
            }
            let fetched = self.fetched.recv().await.ok_or(Error::ReaderEnded)??;
            decode(&self.topic, &fetched, &mut self.records)?;
        }
    }

    /// A record if one was fetched already.
    pub fn try_next(&mut self) -> Option<ConsumedRecord> {
        let record = self.records.pop_front()?;
        self.positions.insert(record.partition, record.offset + 1);
        Some(record)
    }

    /// The offset of the next record of each partition: where another reader
    /// would have to start to continue from here.
    pub fn positions(&self) -> &BTreeMap<u32, u64> {
        &self.positions
    }
}
