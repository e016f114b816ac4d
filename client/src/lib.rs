//! The Rust client of Ringbolt, a message broker that acknowledges only what is
//! on disk.
//!
//! [`Client`] knows where the broker is. [`Client::producer`] makes a
//! [`Producer`], [`Client::reader`] a [`Reader`], [`Client::consumer`] a
//! [`Consumer`] of a group, [`Client::admin`] has the calls that concern topics,
//! groups and the broker as a whole. All of them survive lost connections and
//! restarts of the broker.
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
mod consumer;
mod consumer_state;
mod error;
mod net;
mod partitioner;
mod producer;
pub mod producer_state;
mod reader;
mod record;
pub mod session;

pub use client::{Admin, Client, ClientConfig};
pub use consumer::{Consumer, ConsumerBuilder, Delivery, Settling};
pub use error::{Error, ProduceError, SettleError};
pub use partitioner::partition_for_key;
pub use producer::{Pending, Producer, ProducerBuilder};
pub use reader::{Reader, ReaderBuilder, StartAt};
pub use record::{ConsumedRecord, Receipt, Record, SOURCE_HEADER, Source};

pub use ringbolt_wire::batch::DeadLetter;
pub use ringbolt_wire::message::{
    Backoff as RetryBackoff, ConsumerInfo, CreateGroup, ErrorResponse, GroupConfig, GroupDescription,
    GroupInfo, GroupMode, GroupPartition, GroupStart, HelloAck, Hold, OffsetSpec, PartitionInfo, Progress,
    ResetGroup, TopicDescription, TopicInfo,
};
pub use ringbolt_wire::{
    ConsumerId, ErrorCode, GroupId, Offset, Outcome, PartitionId, ProducerId, ShardId, TopicId,
};
