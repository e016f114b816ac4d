//! Consuming through a group.
//!
//! One task per consumer ([`task`]) owns a connection and, for each shard that has
//! partitions of the topic, a [`ShardState`](crate::consumer_state::ShardState), which
//! decides what is asked. Records wait in an [`inbox`] for [`Consumer::recv`]; what is
//! said of them goes back to the task as a command.

mod builder;
mod decode;
mod delivery;
mod inbox;
mod output;
mod process;
mod task;

use std::sync::{Arc, Mutex, PoisonError};

use ringbolt_wire::ConsumerId;
use ringbolt_wire::message::GroupInfo;
use tokio::task::JoinHandle;

pub use builder::ConsumerBuilder;
use delivery::Handle;
pub use delivery::{Delivery, Settling};
use task::Command;

use crate::error::Error;

/// A consumer of a group: records are leased to it, and it says of each what became
/// of it.
///
/// A record counts as handled only once that is said and durable; whatever happens
/// before (a lost connection, the end of this process, a lease that runs out), it is
/// delivered again. Lost connections are made again: what is in hand stays leased, and
/// what was said without an answer is said again.
///
/// ```no_run
/// # async fn example(client: ringbolt_client::Client) -> Result<(), ringbolt_client::Error> {
/// let consumer = client.consumer("orders", "billing").open().await?;
/// for _ in 0..100 {
///     let order = consumer.recv().await?;
///     match std::str::from_utf8(&order.value) {
///         Ok(text) => {
///             println!("bill {text}");
///             order.ack().await?;
///         }
///         Err(error) => order.reject(error.to_string()).await?,
///     }
/// }
/// consumer.close().await;
/// # Ok(())
/// # }
/// ```
///
/// Dropping it does in the background what [`close`](Self::close) does: records that
/// are being worked on are given back. Keep it while there are any.
#[derive(Debug)]
pub struct Consumer {
    handle: Arc<Handle>,
    id: ConsumerId,
    group: GroupInfo,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Consumer {
    /// The next record, of whichever partition has one. Several tasks may wait here.
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`Error::ConsumerClosed`], [`Error::ConsumerReplaced`], or [`Error::Refused`]
    /// (the group was deleted): there will be no more records. That the broker cannot
    /// be reached is none: it waits.
    pub async fn recv(&self) -> Result<Delivery, Error> {
        let received = self.handle.inbox.take().await?;
        Ok(Delivery::new(received, self.handle.clone()))
    }

    /// A record if one is there already.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn try_recv(&self) -> Result<Option<Delivery>, Error> {
        let received = self.handle.inbox.try_take().transpose()?;
        Ok(received.map(|received| Delivery::new(received, self.handle.clone())))
    }

    /// Takes no more records; waits until everything that was said of records is
    /// confirmed, and gives the others back, those that are being worked on included.
    ///
    /// It ends within [`ClientConfig::operation_timeout`](crate::ClientConfig), also
    /// without a broker; what was not given back then comes back when its lease runs
    /// out.
    pub async fn close(&self) {
        let _ = self.handle.commands.send(Command::Close);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            // A task that panicked has dropped the answers: their futures say unknown.
            let _ = task.await;
        }
    }

    /// Who consumes: to be given to [`ConsumerBuilder::consumer_id`] by a later
    /// incarnation that continues.
    pub fn id(&self) -> ConsumerId {
        self.id
    }

    /// The group, as it was found or created.
    pub fn group(&self) -> &GroupInfo {
        &self.group
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // Without a task it is closed.
        let _ = self.handle.commands.send(Command::Close);
    }
}
