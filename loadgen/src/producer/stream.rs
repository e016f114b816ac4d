//! One producer's messages to one partition: their numbers, and what has to be
//! sent again.

use ringbolt_client::backoff::{Backoff, BackoffConfig};

use crate::frame::Place;

/// A record batch on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Which of the producer's streams.
    pub stream: u32,
    /// Records.
    pub count: u32,
    /// Sequence of the first.
    pub first: u64,
    /// When it was sent first, or was to be sent: ns on the run's clock.
    pub due: u64,
    /// An attempt got no answer, so a refusal of another one proves nothing.
    pub doubtful: bool,
    /// Error code of the last refusal after which it is to be sent again.
    pub refusal: Option<u16>,
}

/// Whether a stream can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// Not opened at the broker.
    Closed,
    /// As it should be.
    Open,
    /// Refused for good, or given up.
    Stopped,
}

/// See the [module](self).
///
/// A refused batch may be sent again only when those behind it have been
/// answered too: they will be refused as out of order, and must follow it.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Number in the ledger.
    pub ledger: u32,
    /// Partition, producer and epoch.
    pub place: Place,
    /// Sequence of the next new record.
    pub next: u64,
    /// The ledger knows of everything sent below this.
    pub told: u64,
    /// Whether it can be used.
    pub usable: Use,
    in_flight: u32,
    /// To be sent again.
    again: Vec<Batch>,
    again_at: u64,
    backoff: Backoff,
}

impl Stream {
    /// A stream that is not opened yet. Streams with other seeds retry at other
    /// times.
    pub fn new(place: Place, seed: u64) -> Stream {
        Stream {
            ledger: 0,
            place,
            next: 0,
            told: 0,
            usable: Use::Closed,
            in_flight: 0,
            again: Vec::new(),
            again_at: 0,
            backoff: Backoff::new(BackoffConfig::default(), seed),
        }
    }

    /// Whether a new batch may be sent: none waits to go before it.
    #[inline]
    pub fn takes_new(&self) -> bool {
        self.usable == Use::Open && self.again.is_empty()
    }

    /// Whether batches wait to be sent again.
    #[inline]
    pub fn has_again(&self) -> bool {
        !self.again.is_empty()
    }

    /// Notes that a batch is on its way.
    #[inline]
    pub fn sent(&mut self) {
        self.in_flight += 1;
    }

    /// Notes an answer that settles a batch.
    #[inline]
    pub fn settled(&mut self) {
        self.in_flight -= 1;
        self.backoff.reset();
    }

    /// Notes a refusal with this error code after which `batch` is to be sent
    /// again, at the earliest `wait` ns from `now`.
    pub fn refused(&mut self, batch: Batch, code: u16, now: u64, wait: u64) {
        self.in_flight -= 1;
        // One wait for all that were refused together.
        if self.again.is_empty() {
            self.again_at = now + wait.max(1000 * self.backoff.next_us());
        }
        self.again.push(Batch { refusal: Some(code), ..batch });
    }

    /// Notes that a batch's connection is gone.
    pub fn interrupted(&mut self, batch: Batch) {
        self.in_flight -= 1;
        self.again_at = 0;
        self.again.push(Batch { doubtful: true, ..batch });
    }

    /// When batches may be sent again; `None` if there are none, or answers are
    /// to be waited for.
    #[inline]
    pub fn again_at(&self) -> Option<u64> {
        (!self.again.is_empty() && self.in_flight == 0).then_some(self.again_at)
    }

    /// Takes the batches that are to be sent again, in their order.
    pub fn take_again(&mut self) -> Vec<Batch> {
        let mut again = std::mem::take(&mut self.again);
        again.sort_by_key(|batch| batch.first);
        again
    }

    /// Puts back, in their order, what could not be sent just now.
    pub fn keep(&mut self, batches: impl Iterator<Item = Batch>) {
        self.again.extend(batches);
    }
}
