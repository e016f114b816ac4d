//! One connection, seen from the broker: bytes in, requests to shards; answers
//! from shards, bytes out.
//!
//! A driver gives what arrived to [`Session::receive`], answers to
//! [`Session::reply`], and sends what [`Session::take_output`] offers. The
//! session knows frames, the handshake, and what a peer may do; it knows no
//! socket, no clock, and nothing of what is in a log.

use std::cell::Cell;
use std::rc::Rc;

use ringbolt_wire::ShardId;
use ringbolt_wire::message::ErrorResponse;

use crate::limits::KEEP_IN_FLIGHT;
use crate::shard::event::ShardRequest;

mod fetching;
mod gather;
mod group_gather;
mod groups;
mod input;
mod listing;
mod outbox;
mod pending;
mod replies;
mod route;
mod spares;
mod stash;
mod violation;

#[cfg(test)]
mod tests;

pub use fetching::Fetching;
pub use input::DirectFrame;
pub use listing::Listings;
pub use outbox::Output;
pub use spares::Spares;
pub use violation::Violation;

use fetching::SessionFetching;
use listing::Listing;
use outbox::Outbox;
use pending::{Pending, PendingTable};
use stash::Stash;

/// What all sessions of one core have in common.
#[derive(Debug)]
pub struct SessionConfig {
    /// This core.
    pub core: u16,
    /// For each shard, the core that drives it.
    pub cores_of_shards: Vec<u16>,
    /// The broker's boot count.
    pub boot: u64,
    /// The data directory's identity.
    pub broker_id: [u8; 16],
    /// Bytes of a record batch from which on a produce request is better
    /// received straight into memory that can be written to disk.
    pub direct_threshold: usize,
    /// Bytes of unsent answers at which a session takes no more requests.
    pub max_unsent: usize,
    /// The same, for answers in memory of their own.
    pub max_unsent_own: usize,
    /// What their fetches in flight take.
    pub fetching: Fetching,
    /// Vectors that no session needs now.
    pub spares: Spares,
    /// The budget for answers that list.
    pub listings: Listings,
    /// What was counted.
    pub counters: SessionCounters,
}

#[cfg(test)]
impl SessionConfig {
    /// For sessions of core `core` of a broker with these shards, with the bounds
    /// that a broker has; a test that is about others sets them.
    pub fn for_tests(core: u16, cores_of_shards: Vec<u16>) -> SessionConfig {
        SessionConfig {
            core,
            cores_of_shards,
            boot: 1,
            broker_id: [1; 16],
            direct_threshold: crate::limits::DEFAULT_DIRECT_THRESHOLD as usize,
            max_unsent: crate::limits::MAX_UNSENT,
            max_unsent_own: crate::limits::MAX_UNSENT_OWN,
            fetching: Fetching::default(),
            spares: Spares::default(),
            listings: Listings::new(8 << 20),
            counters: SessionCounters::default(),
        }
    }
}

impl SessionConfig {
    fn shards(&self) -> u16 {
        self.cores_of_shards.len() as u16
    }
}

/// What the sessions of one core have done since the start.
#[derive(Debug, Default)]
pub struct SessionCounters {
    /// Bytes of payload and half-received frames that were copied.
    pub copied_bytes: Cell<u64>,
    /// Requests taken, of any kind.
    pub requests: Cell<u64>,
    /// Produce requests among them.
    pub produce_requests: Cell<u64>,
    /// Fetch requests among them.
    pub fetch_requests: Cell<u64>,
    /// Connections that were closed for what their peer did.
    pub violations: Cell<u64>,
    /// Requests answered with an error.
    pub errors: Cell<u64>,
}

impl SessionCounters {
    /// Name and value of each, as reported by `ringbolt stats`.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("copied_bytes_total", self.copied_bytes.get()),
            ("requests_total", self.requests.get()),
            ("produce_requests_total", self.produce_requests.get()),
            ("fetch_requests_total", self.fetch_requests.get()),
            ("violations_total", self.violations.get()),
            ("errors_total", self.errors.get()),
        ]
        .into_iter()
    }
}

fn add(counter: &Cell<u64>, n: usize) {
    counter.set(counter.get() + n as u64);
}

/// The shards, as a session reaches them. The number that goes with a request
/// comes back with the answer, to [`Session::reply`].
pub trait Shards {
    /// Buffers that large batches were received into.
    type Buffer;

    /// Whether `shard` takes a request now, one that appends to its log if
    /// `appends`.
    fn accepts(&mut self, shard: ShardId, appends: bool) -> bool;

    /// Hands over a request. Always succeeds: it is asked for without
    /// [`accepts`](Self::accepts) only for requests that follow from one which
    /// was accepted.
    fn request(&mut self, shard: ShardId, number: u64, request: ShardRequest<'_, Self::Buffer>);

    /// Asks for the answer to a waiting fetch.
    fn fetch_now(&mut self, shard: ShardId, number: u64);

    /// Asks that an `Attach` is sent nothing for a while, or says that the while is over.
    fn pause(&mut self, shard: ShardId, number: u64, pauses: bool);

    /// Asks for the broker's counters; they go to [`Session::stats`].
    fn stats(&mut self, number: u64);
}

/// How things stand after bytes were taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// More bytes are welcome.
    Open,
    /// More bytes are welcome; they continue a produce request of this many
    /// bytes in all, large enough for memory of its own.
    Large {
        /// Bytes of the whole frame.
        frame_len: usize,
    },
    /// Not before this shard takes requests again: call
    /// [`Session::resume`] then.
    Stalled(ShardId),
    /// Not before answers have been sent: call [`Session::resume`] then.
    Backlogged,
    /// Not before there is room for an answer that lists, and others had theirs
    /// who waited before: call [`Session::resume`] then.
    Queued,
    /// The connection belongs on this core; nothing of the hello was taken.
    Moves {
        /// Where it should go.
        core: u16,
    },
    /// Never again: the goodbye is to be said, or was.
    Closed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The hello has not come.
    Greeting,
    /// Requests are taken.
    Ready,
    /// The goodbye was queued, or the peer sends no more.
    Closing,
}

/// One connection. See the module.
#[derive(Debug)]
pub struct Session {
    config: Rc<SessionConfig>,
    phase: Phase,
    /// What the last bytes led to.
    input: Input,
    pending: PendingTable,
    /// Records of settle requests in flight: one of which each is said something is the most.
    settling: u64,
    fetching: SessionFetching,
    /// To be said when nothing is in flight any more.
    goodbye: Option<Box<ErrorResponse>>,
    stash: Stash,
    /// Frames that were handled.
    frames: u64,
    /// Answers gathered since the last send started.
    gathering: Outbox,
    /// Bytes of the answers that the current send is made of.
    sending: usize,
    /// How many of them lay in memory of their own when it began.
    sending_own: usize,
    /// Whether they hold memory of others.
    sending_shared: bool,
    /// Some of its consumers are sent nothing, as long as so much is unsent.
    pauses: bool,
    /// A request whose answer may be megabytes of names or partitions: one at a
    /// time.
    listing: Listing,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.listing.end(&self.config.listings);
    }
}

impl Session {
    /// A connection that has just been made.
    pub fn new(config: Rc<SessionConfig>) -> Session {
        let fetching = SessionFetching::new(&config.fetching);
        Session {
            config,
            fetching,
            phase: Phase::Greeting,
            input: Input::Open,
            pending: PendingTable::default(),
            settling: 0,
            goodbye: None,
            stash: Stash::default(),
            frames: 0,
            gathering: Outbox::default(),
            sending: 0,
            sending_own: 0,
            sending_shared: false,
            pauses: false,
            listing: Listing::Idle,
        }
    }

    /// Whether the handshake is done.
    pub fn is_greeted(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Whether no more requests are taken.
    pub fn is_closing(&self) -> bool {
        self.phase == Phase::Closing
    }

    /// Whether every answer has been given and sent: a closing session can go.
    pub fn is_finished(&self) -> bool {
        self.pending.is_empty() && self.goodbye.is_none() && self.unsent() == 0
    }

    /// Requests that wait for their answer.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Bytes of answers that are not sent yet.
    pub fn unsent(&self) -> usize {
        self.gathering.len() + self.sending
    }

    /// How many of those lie in memory of their own, which no pool bounds.
    pub fn unsent_own(&self) -> usize {
        self.gathering.own() + self.sending_own
    }

    /// Whether so many answers wait that no more requests are taken.
    #[inline]
    pub fn is_backlogged(&self) -> bool {
        self.unsent() > self.config.max_unsent || self.unsent_own() > self.config.max_unsent_own
    }

    /// Whether so many of them were sent that requests are taken again.
    pub fn has_caught_up(&self) -> bool {
        self.unsent() <= self.config.max_unsent / 2 && self.unsent_own() <= self.config.max_unsent_own / 2
    }

    /// Whether its consumers may be sent more again: call
    /// [`end_pause`](Self::end_pause) then.
    #[inline]
    pub fn may_end_pause(&self) -> bool {
        self.pauses && self.has_caught_up()
    }

    /// Whether unsent answers hold memory of the broker's pool.
    pub fn holds_shared(&self) -> bool {
        self.gathering.holds_shared() || self.sending_shared
    }

    /// Bytes that came and were not handled yet.
    pub fn stashed(&self) -> usize {
        self.stash.len()
    }

    /// Bytes of memory that they take.
    #[inline]
    pub fn stash_memory(&self) -> usize {
        self.stash.memory()
    }

    /// Frames that were handled: as long as it stays the same, what waits is the
    /// start of the same frame.
    #[inline]
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// How the input stands.
    pub fn input(&self) -> Input {
        self.input
    }

    /// The bytes that came and were not handled yet, for whoever goes on with
    /// them.
    pub fn take_stash(&mut self) -> Vec<u8> {
        let bytes = self.stash.as_slice().to_vec();
        self.stash.consume(bytes.len());
        bytes
    }

    /// Moves the bytes that came and were not handled yet to the start of
    /// `into`, for a receive that goes on behind them. Returns how many.
    ///
    /// # Panics
    /// If `into` is shorter.
    pub fn move_stash(&mut self, into: &mut [u8]) -> usize {
        let len = self.stash.len();
        into[..len].copy_from_slice(self.stash.as_slice());
        add(&self.config.counters.copied_bytes, len);
        self.stash.consume(len);
        len
    }

    /// What the next send is made of, if there is something to send and no
    /// send under way. What was taken counts as unsent until
    /// [`sent`](Self::sent) is told.
    #[inline]
    pub fn take_output(&mut self) -> Option<Output> {
        if self.sending > 0 {
            return None;
        }
        self.sending_shared = self.gathering.holds_shared();
        self.sending_own = self.gathering.own();
        let output = self.gathering.take()?;
        self.sending = output.len();
        self.listing.taken();
        Some(output)
    }

    /// A send took `sent` bytes of what was taken. Returns whether all of it
    /// is gone.
    #[inline]
    pub fn sent(&mut self, sent: usize) -> bool {
        assert!(sent <= self.sending, "more was sent than there was");
        self.sending -= sent;
        if self.sending == 0 {
            (self.sending_own, self.sending_shared) = (0, false);
            self.listing.sent(&self.config.listings);
        }
        self.sending == 0
    }

    /// Takes back the vector of a send that has ended, for the next answers.
    #[inline]
    pub fn recycle(&mut self, frames: Vec<u8>) {
        self.config.spares.give(frames);
    }

    /// Takes out a request that was answered.
    #[inline]
    fn take_pending(&mut self, slot: usize) -> Pending {
        let pending = self.pending.remove(slot);
        if self.pending.is_empty() && self.pending.capacity() > KEEP_IN_FLIGHT {
            self.pending = PendingTable::default();
        }
        pending
    }

    /// The peer is gone: nothing is sent any more. Answers that
    /// still come are dropped.
    pub fn abandon(&mut self) {
        self.phase = Phase::Closing;
        self.input = Input::Closed;
        self.goodbye = None;
        self.gathering.clear();
        if self.listing != Listing::Making {
            self.listing.end(&self.config.listings);
        }
        (self.sending, self.sending_own, self.sending_shared) = (0, 0, false);
        self.stash.consume(self.stash.len());
    }
}
