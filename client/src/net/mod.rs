//! Connections over tokio: one [`Link`] drives one session over one socket, a
//! [`Connection`] makes a new link when one is lost, a [`Caller`] keeps a link up and
//! matches requests with answers.

mod caller;
mod connection;
mod link;

pub(crate) use caller::{Answer, CallError, Caller};
pub(crate) use connection::{Connection, ConnectionEvent};
pub(crate) use link::Dialer;
