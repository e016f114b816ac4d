//! A deterministic simulation of the broker's pure half.
//!
//! The shards, their logs and their recovery are the real ones; the machine
//! under them, the clients before them and the time are simulated, and one seed
//! decides everything. Files mirror their real counterparts by name: `disk`,
//! `clock`, `pool`, and `harness` for the reactor.
//!
//! `checker` and `log_model` judge, and know nothing of how shards work;
//! `workload` and the clients ask, and know nothing of what is right.

// Two test programs use this, and neither uses all of it.
#![allow(dead_code)]

pub mod admin;
pub mod audit;
pub mod check_fetch;
pub mod checker;
pub mod clock;
pub mod consumer;
pub mod disk;
pub mod disturb;
pub mod group_admin;
pub mod group_check;
pub mod group_clients;
pub mod group_delivery;
pub mod group_drain;
pub mod group_model;
pub mod group_settle;
pub mod harness;
pub mod life;
pub mod log_model;
pub mod node;
pub mod planted;
pub mod pool;
pub mod producer;
pub mod profile;
pub mod records;
pub mod rng;
pub mod rot;
pub mod script;
pub mod topics;
pub mod trace;
pub mod workload;
