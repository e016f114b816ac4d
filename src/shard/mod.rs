//! A shard: a commit log with the partitions placed on it, as a state machine
//! without system calls, clock, threads or randomness.
//!
//! A driver feeds it [`event::Event`]s through [`Shard::handle`], each with the
//! time, and after each round of them takes [`action::Action`]s from
//! [`Shard::poll_action`] until there are none. `reactor` and the simulator in
//! `tests/` are the two drivers.

pub mod action;
mod beginnings;
mod config;
mod consume;
pub mod counters;
mod dead_letter;
mod deliver;
pub mod event;
mod fetch;
mod group_admin;
mod group_log;
mod offsets;
pub mod placement;
mod produce;
mod read;
mod segments;
mod settle;
#[allow(clippy::module_inception)] // the type that the folder is named after
mod shard;
#[cfg(test)]
mod tests;
mod topics;

pub use config::ShardConfig;
pub use shard::Shard;
