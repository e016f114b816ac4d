//! The Ringbolt broker: acknowledges only what is on disk.
//!
//! `ARCHITECTURE.md` has the map. In short: [`io`] is the only folder that
//! touches the kernel; everything the broker decides is decided in pure code.

pub mod admin;
pub mod buffer;
pub mod catalog;
pub mod cli;
pub mod consumer;
pub mod doctor;
pub mod hash;
pub mod io;
pub mod limits;
pub mod log;
pub mod reactor;
pub mod serve;
pub mod session;
pub mod shard;
pub mod time;
