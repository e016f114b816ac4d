//! One connection: a socket, its session, and what is under way on it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::direct::Direct;
use super::half::SlowFrame;
use super::{Host, Net, Timer};
use crate::io::ring::{OpId, SendParts, Target};
use crate::session::{Input, Session};

/// Bytes of memory for what came and was not handled yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stashed {
    /// Of a frame whose end has not come.
    pub half: usize,
    /// Of sessions that wait for a shard, which is not their fault.
    pub whole: usize,
}

impl Stashed {
    /// A session's.
    pub fn of(session: &Session) -> Stashed {
        match session.input() {
            Input::Open | Input::Large { .. } => Stashed { half: session.stash_memory(), whole: 0 },
            Input::Stalled(_) => Stashed { half: 0, whole: session.stash_memory() },
            // Counted with the answers for which it waits.
            Input::Backlogged | Input::Queued => Stashed::default(),
            Input::Moves { .. } | Input::Closed => Stashed { half: 0, whole: session.stash_memory() },
        }
    }

    /// Counts a session anew in a sum.
    pub fn replace(&mut self, before: Stashed, after: Stashed) {
        self.half = self.half + after.half - before.half;
        self.whole = self.whole + after.whole - before.whole;
    }
}

/// Bits of a session's key that are its slot's number. Above are as many of
/// its slot's generation as fit a token.
const SLOT_BITS: u32 = 24;
const GENERATION_MASK: u32 = (1 << 28) - 1;

/// Slot and generation of a key.
#[inline]
pub(super) fn split_key(key: u64) -> (u32, u32) {
    ((key & ((1 << SLOT_BITS) - 1)) as u32, (key >> SLOT_BITS) as u32)
}

/// A place for a connection. Its generation tells the connections apart that
/// are there one after the other, so that a late answer reaches nobody else.
pub(super) struct Slot {
    pub generation: u32,
    pub connection: Option<Box<Connection>>,
}

impl Slot {
    /// The key of the session in this slot, which has this number.
    pub fn key(&self, slot: u32) -> u64 {
        u64::from(self.generation) << SLOT_BITS | u64::from(slot)
    }

    /// The connection.
    ///
    /// # Panics
    /// If there is none.
    #[inline]
    pub fn get(&mut self) -> &mut Connection {
        self.connection.as_deref_mut().expect("the slot was looked up, or is in a list of open ones")
    }
}

/// How far a connection's life is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Life {
    /// Requests are taken, or what is in flight is still to be answered.
    Open,
    /// Everything is sent and our side is shut; what the peer still sends is
    /// thrown away until it closes its side too. Closing with bytes unread
    /// would reset the connection, and the peer might never see the goodbye.
    Lingering,
    /// Everything was cancelled; the last completions are awaited.
    Ending,
}

/// How far a session's goodbye is. It has its turn, since that and what follows cost
/// more than most requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Farewell {
    /// There is none.
    None,
    /// Its peer broke a rule, or must go for another reason: it is to be said when all
    /// is answered.
    Due,
    /// All is, and it is in the list of those that wait for their turn.
    Waits,
    /// It was said, and the connection ends when it is sent.
    Said,
}

/// The receive that is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Receive {
    Off,
    Multi(OpId),
    /// A multishot receive was cancelled; its last completion is awaited.
    Cancelling,
    Direct(OpId),
    /// In the list of those that wait for a receive buffer.
    Starved,
}

/// The send that is under way: how much of it has been sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Send {
    pub op: OpId,
    pub done: usize,
}

pub(super) struct Connection {
    pub key: u64,
    pub socket: OwnedFd,
    /// Whether its socket is registered with the ring, at its slot's place.
    pub registered: bool,
    pub session: Session,
    pub life: Life,
    pub farewell: Farewell,
    pub receive: Receive,
    pub direct: Direct,
    pub send: Option<Send>,
    /// Scatter list of the last send, for the next one.
    pub parts: Option<Box<SendParts>>,
    /// When the peer last took bytes, or the send started that it should take
    /// bytes of.
    pub progress_us: u64,
    /// When the first bytes of the frame in the stash came.
    pub stashed_us: u64,
    /// How many frames came before it.
    pub stashed_frame: u64,
    /// How fast a frame comes that takes its time.
    pub slow: SlowFrame,
    /// What the core's sum counts of the stash.
    pub stashed: Stashed,
    /// Bytes of unsent answers, outside of the pool, that the core's sum counts.
    pub unsent_own: usize,
    /// The peer sends no more.
    pub ended: bool,
    pub dirty: bool,
    pub send_timer: bool,
    pub direct_timer: bool,
    /// In the list of sessions that wait for a shard.
    pub stalled: bool,
    /// In the list of sessions that wait for room for an answer that lists.
    pub queued: bool,
    /// In the list of those who have not said hello, and whose bytes wait.
    pub arrives: bool,
    /// The time for its hello is over.
    pub overdue: bool,
}

impl Connection {
    #[inline]
    pub fn target(&self) -> Target {
        match self.registered {
            true => Target::Fixed(split_key(self.key).0),
            false => Target::Fd(self.socket.as_raw_fd()),
        }
    }

    /// Says its goodbye: all is answered.
    pub fn part(&mut self) {
        self.farewell = Farewell::Said;
        self.session.part();
    }

    /// Whether the peer sends no more, and all that it has said was heard.
    pub fn has_said_all(&self) -> bool {
        let waits = self.arrives || !matches!(self.session.input(), Input::Open | Input::Large { .. });
        self.ended && !waits
    }

    /// Whether bytes may come into shared buffers.
    #[inline]
    pub fn wants_multishot(&self) -> bool {
        match self.life {
            Life::Open if self.ended || self.arrives => false,
            Life::Open => {
                matches!(self.session.input(), Input::Open | Input::Large { .. })
                    && self.direct.allows_shared()
            }
            Life::Lingering => !self.ended,
            Life::Ending => false,
        }
    }

    /// Whether a large batch should come into memory of its own.
    pub fn wants_direct(&self) -> bool {
        let is_large = matches!(self.session.input(), Input::Large { .. });
        self.life == Life::Open && !self.ended && is_large && self.direct.is_wanted()
    }

    /// Whether the kernel works on anything of this connection.
    pub fn is_idle(&self) -> bool {
        self.send.is_none() && matches!(self.receive, Receive::Off | Receive::Starved)
    }
}

impl Net {
    /// Gives a socket a slot and a session.
    pub(super) fn open<H: Host>(&mut self, socket: OwnedFd, host: &mut H) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            assert!(self.slots.len() < 1 << SLOT_BITS, "fewer connections than descriptors can be");
            self.slots.push(Slot { generation: 0, connection: None });
            self.slots.len() as u32 - 1
        });
        let key = self.slots[slot as usize].key(slot);
        let now = host.now().mono_us;
        // Without a place of its own the socket works as well.
        let registered = slot < self.places
            && host.ring().submitter().register_files_update(slot, &[socket.as_raw_fd()]).is_ok();
        self.slots[slot as usize].connection = Some(Box::new(Connection {
            key,
            socket,
            registered,
            session: Session::new(Rc::clone(&self.session_config)),
            life: Life::Open,
            farewell: Farewell::None,
            receive: Receive::Off,
            direct: Direct::default(),
            send: None,
            parts: None,
            progress_us: now,
            stashed_us: now,
            stashed_frame: 0,
            slow: SlowFrame::default(),
            stashed: Stashed::default(),
            unsent_own: 0,
            ended: false,
            dirty: false,
            send_timer: false,
            direct_timer: false,
            stalled: false,
            queued: false,
            arrives: false,
            overdue: false,
        }));
        self.counters.open += 1;
        self.config.connections.fetch_add(1, Ordering::Relaxed);
        self.timers.push(now + self.config.handshake_timeout_us, key, Timer::Handshake);
        self.mark(slot);
        slot
    }

    /// Takes a connection out of its slot, on which nothing is under way, with all
    /// that is counted of it but the connection itself. The slot is to be
    /// [freed](Self::free).
    pub(super) fn take_out(&mut self, slot: u32) -> Box<Connection> {
        let place = &mut self.slots[slot as usize];
        let connection = place.connection.take().expect("only an open connection is taken out");
        assert!(connection.is_idle(), "the kernel still works on this connection");
        place.generation = (place.generation + 1) & GENERATION_MASK;
        self.stashed.replace(connection.stashed, Stashed::default());
        self.unsent_own -= connection.unsent_own;
        connection
    }

    /// Frees a slot for the next connection.
    pub(super) fn free<H: Host>(&mut self, slot: u32, registered: bool, host: &mut H) {
        if registered && let Err(error) = host.ring().submitter().register_files_update(slot, &[-1]) {
            // It stays open until the next connection takes its place.
            tracing::warn!(%error, "a socket cannot be taken back from io_uring");
        }
        self.free.push(slot);
        self.counters.open -= 1;
        self.config.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
