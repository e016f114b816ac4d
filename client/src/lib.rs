//! The Rust client of Ringbolt, a message broker that acknowledges only what is
//! on disk.
//!
//! [`Client`] knows where the broker is. [`Client::producer`] makes a
//! [`Producer`], [`Client::reader`] a [`Reader`], [`Client::admin`] has the
//! calls that concern topics and the broker as a whole. All three survive lost
//! connections and restarts of the broker.
//!
//! Every record that is produced ends in one of the four outcomes of
//! [`Outcome`]: durable, rejected (retry may help), rejected (retry will not
//! help), or unknown, which only the loss of an answer brings about.
//!
//! Underneath are two pure state machines for drivers of other kinds:
//! [`session`] speaks the protocol of one connection, [`producer_state`] keeps
//! one producer's order and retries.

pub mod backoff;
mod client;
mod error;
mod net;
mod partitioner;
mod producer;
pub mod producer_state;
mod reader;
mod record;
pub mod session;

pub use client::{Admin, Client, ClientConfig};
pub use error::{Error, ProduceError};
pub use partitioner::partition_for_key;
pub use producer::{Pending, Producer, ProducerBuilder};
pub use reader::{Reader, ReaderBuilder, StartAt};
pub use record::{ConsumedRecord, Delivery, Record};

pub use ringbolt_wire::message::{
    ErrorResponse, HelloAck, OffsetSpec, PartitionInfo, TopicDescription, TopicInfo,
};
pub use ringbolt_wire::{ErrorCode, Offset, Outcome, PartitionId, ProducerId, ShardId, TopicId};
