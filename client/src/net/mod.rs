//! Connections over tokio: one [`Link`] drives one session over one socket, a
//! [`Caller`] keeps a link up and matches requests with answers.

mod caller;
mod link;

pub(crate) use caller::{Answer, CallError, Caller};
pub(crate) use link::{Dialer, Link};
