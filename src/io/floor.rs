//! x
pub mod loopback;
