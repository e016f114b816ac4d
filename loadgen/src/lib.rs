//! Ringbolt's load generator: measures acknowledgement latency, and proves that
//! nothing acknowledged was lost.

#![forbid(unsafe_code)]

pub mod admin;
pub mod args;
pub mod consumer;
pub mod drain;
pub mod embedded;
pub mod engine;
pub mod error;
pub mod fleet;
pub mod frame;
pub mod group;
pub mod group_run;
pub mod judge;
pub mod lag;
pub mod ledger;
pub mod payload;
pub mod peer;
pub mod producer;
pub mod ranges;
pub mod read;
pub mod report;
pub mod run;
pub mod schedule;
pub mod send_buffer;
pub mod signals;
pub mod sinks;
pub mod stage;
pub mod stats;
#[cfg(test)]
mod test_broker;
mod varint;
pub mod verify;
