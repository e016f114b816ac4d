//! One core's sockets: its listener, its connections, and the way between their
//! bytes and the sessions.
//!
//! Receives are multishot, from a group of buffers that all connections share,
//! so an idle connection costs no buffer; a connection that sends large batches
//! changes to receives straight into memory that can be written to disk. There
//! is one send at a time per connection; what comes meanwhile gathers.
//!
//! What requests mean is not known here: that is between sessions and shards.

mod buffers;
mod close;
mod connection;
mod direct;
mod half;
mod listener;
mod pace;
mod receive;
mod send;
#[cfg(test)]
mod tests;
mod timers;

use std::cell::Cell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use ringbolt_wire::ShardId;

use crate::buffer::{BufferPool, Carver};
use crate::io::pool::{Pool, PoolBuffer};
use crate::io::recv_buffers::RecvBuffers;
use crate::io::ring::{Class, Completion, Held, Ring, Token};
use crate::session::{Input, SessionConfig, Shards, Violation};
use crate::shard::action::Reply;
use crate::time::Now;
use connection::{Connection, Life, Slot, Stashed};
use listener::Listener;
pub use listener::{ListenError, bind, try_address};
use pace::{Pace, Step};
use timers::{Timer, Timers};

/// What connections need of their core.
pub trait Host {
    /// The core's ring.
    fn ring(&mut self) -> &mut Ring;
    /// When this turn of the loop began.
    fn now(&self) -> Now;
    /// The shards, as the session with this key reaches them.
    fn shards_for(&mut self, session: u64) -> impl Shards<Buffer = PoolBuffer> + '_;
    /// The session waits until this shard takes requests again.
    fn stalled(&mut self, session: u64, shard: ShardId);
    /// The session is gone, and had asked for fetches.
    fn session_closed(&mut self, session: u64);
    /// The connection goes to another core.
    fn hand_over(&mut self, core: u16, connection: Handover);
}

/// A connection on its way to another core.
#[derive(Debug)]
pub struct Handover {
    /// The socket.
    pub socket: OwnedFd,
    /// What was received and not handled: the hello, and what followed it.
    pub bytes: Vec<u8>,
}

/// How a core's sockets behave.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// Most connections over all cores.
    pub max_connections: usize,
    /// Connections over all cores.
    pub connections: Arc<AtomicUsize>,
    /// Time for the hello, in µs.
    pub handshake_timeout_us: u64,
    /// Time over which the rest of a frame must come at
    /// [`MIN_FRAME_RATE`](crate::limits::MIN_FRAME_RATE), in µs.
    pub frame_timeout_us: u64,
    /// Most bytes of memory for half-received frames over this core's connections,
    /// and for frames that wait.
    pub max_stashed: usize,
    /// Bytes of unsent answers outside of the pool, over this core's connections,
    /// beyond which readers that do not read are closed.
    pub max_unsent_own: usize,
    /// Most bytes of the pool that receives of large batches hold at once.
    pub max_direct: usize,
    /// Free chunks of the pool below which readers that do not read are closed.
    pub low_chunks: usize,
    /// Chunks of the pool that become receive buffers.
    pub receive_chunks: usize,
}

/// What one core's sockets have done since the start.
#[derive(Clone, Debug, Default)]
pub struct NetCounters {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections of these that were more than there may be.
    pub refused: u64,
    /// Connections that are open now.
    pub open: u64,
    /// Receives that brought bytes.
    pub receives: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Sends that took bytes.
    pub sends: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Batches received straight into memory that was written to disk.
    pub direct_batches: u64,
    /// Direct receives that met another frame than predicted.
    pub direct_misses: u64,
    /// Receives that found no buffer.
    pub starved_receives: u64,
    /// Connections closed because their peer did not read.
    pub slow_readers: u64,
    /// Connections closed because a frame did not come to its end: at once while
    /// memory was short, or for too long.
    pub slow_writers: u64,
}

impl NetCounters {
    /// Name and value of each.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("connections_accepted_total", self.accepted),
            ("connections_refused_total", self.refused),
            ("connections", self.open),
            ("receives_total", self.receives),
            ("received_bytes_total", self.received_bytes),
            ("sends_total", self.sends),
            ("sent_bytes_total", self.sent_bytes),
            ("direct_batches_total", self.direct_batches),
            ("direct_misses_total", self.direct_misses),
            ("starved_receives_total", self.starved_receives),
            ("slow_readers_total", self.slow_readers),
            ("slow_writers_total", self.slow_writers),
        ]
        .into_iter()
    }
}

/// One core's sockets. See the module.
pub struct Net {
    config: NetConfig,
    session_config: Rc<SessionConfig>,
    buffers: RecvBuffers,
    pool: Pool,
    carver: Carver<PoolBuffer>,
    slots: Vec<Slot>,
    /// Slots, from the first on, whose sockets are registered with the ring. That
    /// spares each operation the counting of references to a file that several
    /// threads can see: 54 of 310 ns, measured on writes to /dev/null.
    places: u32,
    free: Vec<u32>,
    /// Connections that something has happened to in this turn.
    dirty: Vec<u32>,
    /// Connections whose receive ended for want of a buffer.
    starved: VecDeque<u32>,
    /// Connections that have ended, and are to be closed.
    ended: VecDeque<close::Ended>,
    /// Of those who come and those who leave.
    pace: Pace,
    /// Sessions without a hello whose bytes wait, oldest first.
    newcomers: VecDeque<u64>,
    /// Sessions whose last word waits for its turn, oldest first.
    parting: VecDeque<u64>,
    /// Sessions that wait for room for an answer that lists, oldest first.
    queued: VecDeque<u64>,
    timers: Timers,
    listener: Option<Listener>,
    /// Bytes in the stashes of all sessions.
    stashed: Stashed,
    /// When the stashes were last too large: since when the oldest have had half a
    /// frame, and their sessions; the oldest last.
    oldest_halves: Vec<(u64, u64)>,
    /// So much has come for sessions that may not go on that nothing more is
    /// received.
    throttled: bool,
    /// Bytes of unsent answers outside of the pool, and of the requests that wait
    /// for them to be read.
    unsent_own: usize,
    /// Bytes of the pool that direct receives hold.
    direct_held: usize,
    /// When readers that do not read were last looked for.
    relieved_us: u64,
    stopping: bool,
    counters: NetCounters,
}

/// What an operation was for; the low bits of its token's value, with the
/// session's key above.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Op {
    Accept,
    Receive,
    Direct,
    Send,
    Close,
}

/// Deadlines of connections that are looked at in a turn of the loop, at most: the
/// next turn follows at once.
const TIMERS_AT_ONCE: usize = 8;

const OPS: [Op; 5] = [Op::Accept, Op::Receive, Op::Direct, Op::Send, Op::Close];
const OP_BITS: u32 = 3;

impl Op {
    fn token(self, key: u64) -> Token {
        Token::new(Class::Net, key << OP_BITS | self as u64)
    }
}

impl Net {
    /// The sockets of a core that listens on `listener`. Its receive buffers
    /// are taken from `pool`, and registered with `ring`.
    pub fn new(
        ring: &mut Ring,
        mut pool: Pool,
        listener: OwnedFd,
        config: NetConfig,
        session_config: Rc<SessionConfig>,
    ) -> std::io::Result<Net> {
        let chunks = (0..config.receive_chunks).map_while(|_| pool.take()).collect();
        let buffers = buffers::register(ring, chunks)?;
        // A kernel that does not take so many at once takes none, and all works
        // without.
        let places = u32::try_from(config.max_connections).unwrap_or(u32::MAX);
        let registered = ring.submitter().register_files_sparse(places);
        let places = registered.map_or(0, |()| places);
        Ok(Net {
            config,
            session_config,
            buffers,
            pool,
            carver: Carver::default(),
            slots: Vec::new(),
            places,
            free: Vec::new(),
            dirty: Vec::new(),
            starved: VecDeque::new(),
            ended: VecDeque::new(),
            pace: Pace::default(),
            newcomers: VecDeque::new(),
            parting: VecDeque::new(),
            queued: VecDeque::new(),
            timers: Timers::default(),
            listener: Some(Listener::new(listener)),
            stashed: Stashed::default(),
            oldest_halves: Vec::new(),
            throttled: false,
            unsent_own: 0,
            direct_held: 0,
            relieved_us: 0,
            stopping: false,
            counters: NetCounters::default(),
        })
    }

    /// What was counted.
    pub fn counters(&self) -> &NetCounters {
        &self.counters
    }

    /// What the sessions counted.
    pub fn session_config(&self) -> &SessionConfig {
        &self.session_config
    }

    /// Takes a completion of [`Class::Net`].
    #[inline]
    pub fn complete<H: Host>(&mut self, completion: Completion, host: &mut H) {
        let value = completion.token.value();
        let op = OPS[(value & ((1 << OP_BITS) - 1)) as usize];
        let key = value >> OP_BITS;
        match op {
            Op::Receive => self.received(key, &completion, host),
            Op::Send => self.sent(key, completion.result, completion.held, host),
            Op::Direct => self.received_direct(key, completion.result, completion.held, host),
            Op::Accept => self.accepted(key, &completion, host),
            Op::Close => {}
        }
    }

    /// Takes a shard's answer to a session. One that is gone needs none.
    #[inline]
    pub fn reply<H: Host>(&mut self, key: u64, number: u64, reply: Reply, host: &mut H) {
        let Some(slot) = self.find(key) else { return };
        let connection = self.slots[slot as usize].get();
        connection.session.reply(number, reply, &mut host.shards_for(key));
        self.mark(slot);
    }

    /// Takes the broker's counters for a session that asked for them.
    pub fn stats(&mut self, key: u64, number: u64, stats: Vec<(String, u64)>) {
        let Some(slot) = self.find(key) else { return };
        self.slots[slot as usize].get().session.stats(number, stats);
        self.mark(slot);
    }

    /// Goes on with a session that had to wait for a shard.
    pub fn resume<H: Host>(&mut self, key: u64, host: &mut H) {
        let Some(slot) = self.find(key) else { return };
        self.resume_slot(slot, host);
    }

    /// Acts on the passing of time. To be called once per turn of the loop,
    /// before the shards are polled.
    #[inline]
    pub fn tick<H: Host>(&mut self, host: &mut H) {
        self.run_timers(host);
        self.hear_newcomers(host);
        self.let_part(host);
        self.resume_queued(host);
        if self.pool.available() < self.config.low_chunks || self.unsent_own > self.config.max_unsent_own {
            self.relieve(host);
        }
    }

    /// Ends a turn of the loop: starts sends, arms receives, closes what is
    /// done. Returns when [`tick`](Self::tick) is due at the latest.
    pub fn settle<H: Host>(&mut self, host: &mut H) -> Option<u64> {
        self.buffers.publish();
        // Settling may mark connections again: a resumed session may have more
        // to send.
        while !self.dirty.is_empty() {
            let mut dirty = std::mem::take(&mut self.dirty);
            for slot in dirty.drain(..) {
                self.settle_one(slot, host);
            }
            self.regulate_all();
            if self.dirty.is_empty() {
                self.dirty = dirty;
                break;
            }
        }
        let feeds_us = self.feed_starved(host);
        let hears_us = self.pace.wait(Step::Hear, !self.newcomers.is_empty());
        let parts_us = self.pace.wait(Step::Part, !self.parting.is_empty());
        let accepts_us = self.accept(host);
        let closes_us = self.close_ended(host);
        if self.has_turn() {
            self.wake_at(host.now().mono_us);
        }
        let due = [feeds_us, hears_us, parts_us, accepts_us, closes_us, self.timers.next()];
        due.into_iter().flatten().min()
    }

    /// Takes a connection over from another core: its hello is heard in its turn. One
    /// that comes during a stop is told goodbye.
    pub fn adopt<H: Host>(&mut self, connection: Handover, host: &mut H) {
        let slot = self.open(connection.socket, host);
        if self.stopping {
            return self.violate(slot, &Violation::ShuttingDown, host);
        }
        if !self.has_room_to_wait(connection.bytes.len()) {
            return self.end(slot, host);
        }
        let input = self.slots[slot as usize].get().session.hold(&connection.bytes);
        self.hear_later(slot);
        self.after_input(slot, input, host);
    }

    /// Stops: accepts nothing more, takes no more requests; what is in flight
    /// is answered and sent, then everybody is told goodbye.
    pub fn stop<H: Host>(&mut self, host: &mut H) {
        self.stopping = true;
        if self.listener.as_mut().is_some_and(|listener| !listener.cancel(host.ring())) {
            self.listener = None;
        }
        for slot in 0..self.slots.len() as u32 {
            if self.slots[slot as usize].connection.is_some() {
                self.violate(slot, &Violation::ShuttingDown, host);
            }
        }
    }

    /// Whether, after [`stop`](Self::stop), nobody is left who waits for an
    /// answer, or for one to be sent.
    pub fn is_drained(&self) -> bool {
        self.counters.open == 0
    }

    /// The slot of a session that is still there.
    #[inline]
    fn find(&self, key: u64) -> Option<u32> {
        let (slot, generation) = connection::split_key(key);
        let found = self.slots.get(slot as usize)?;
        (found.generation == generation && found.connection.is_some()).then_some(slot)
    }

    #[inline]
    fn mark(&mut self, slot: u32) {
        let connection = self.slots[slot as usize].get();
        if !connection.dirty {
            connection.dirty = true;
            self.dirty.push(slot);
        }
    }

    fn run_timers<H: Host>(&mut self, host: &mut H) {
        let now = host.now().mono_us;
        for _ in 0..TIMERS_AT_ONCE {
            let Some((key, timer)) = self.timers.pop_due(now) else { break };
            match timer {
                Timer::Turn => {}
                Timer::Handshake | Timer::SendStall | Timer::Linger | Timer::DirectIdle | Timer::Frame => {
                    if let Some(slot) = self.find(key) {
                        self.connection_timer(slot, timer, host);
                    }
                }
            }
        }
    }

    fn connection_timer<H: Host>(&mut self, slot: u32, timer: Timer, host: &mut H) {
        let now = host.now().mono_us;
        let connection = self.slots[slot as usize].get();
        match timer {
            Timer::Handshake => {
                connection.overdue = true;
                self.check_hello(slot, host);
            }
            Timer::SendStall => self.check_send(slot, now, host),
            Timer::Linger => self.end(slot, host),
            Timer::DirectIdle => self.check_direct(slot, now, host),
            Timer::Frame => self.check_frame(slot, now, host),
            Timer::Turn => unreachable!("it concerns no session"),
        }
    }

    fn settle_one<H: Host>(&mut self, slot: u32, host: &mut H) {
        let Some(connection) = self.slots[slot as usize].connection.as_deref_mut() else { return };
        connection.dirty = false;
        let waits = self.waits_to_part(slot, host);
        self.start_send(slot, host);
        self.count_unsent(slot);
        if !waits {
            self.regulate(slot, host);
            self.advance_life(slot, host);
        }
    }

    fn count_unsent(&mut self, slot: u32) {
        let connection = self.slots[slot as usize].get();
        let session = &connection.session;
        let waits = match session.input() {
            Input::Backlogged | Input::Queued => session.stash_memory(),
            _ => 0,
        };
        let unsent = session.unsent_own() + waits;
        self.unsent_own = self.unsent_own + unsent - connection.unsent_own;
        connection.unsent_own = unsent;
    }

    /// Arms or cancels the receive, as the session wants it.
    fn regulate<H: Host>(&mut self, slot: u32, host: &mut H) {
        let throttled = self.throttled;
        let connection = self.slots[slot as usize].get();
        let key = connection.key;
        let wants_multishot = connection.wants_multishot() && !(throttled && connection.session.is_greeted());
        match connection.receive {
            connection::Receive::Multi(op) if !wants_multishot => {
                connection.receive = connection::Receive::Cancelling;
                host.ring().cancel(op);
            }
            connection::Receive::Off if wants_multishot => {
                let target = connection.target();
                let op = host.ring().recv_multi(Op::Receive.token(key), target, buffers::GROUP);
                connection.receive = connection::Receive::Multi(op);
            }
            connection::Receive::Off if connection.wants_direct() => self.begin_direct(slot, host),
            connection::Receive::Off => {
                if let Input::Moves { core } = connection.session.input()
                    && connection.life == Life::Open
                {
                    self.move_away(slot, core, host);
                }
            }
            _ => {}
        }
    }

    fn move_away<H: Host>(&mut self, slot: u32, core: u16, host: &mut H) {
        let Connection { socket, mut session, registered, .. } = *self.take_out(slot);
        self.free(slot, registered, host);
        host.hand_over(core, Handover { socket, bytes: session.take_stash() });
    }

    /// Closes the connections that hold memory for longest without any progress,
    /// one at a time, while the pool is nearly used up or too much lies outside
    /// of it: a reader that never reads, or a batch that never ends, must not
    /// stop the others.
    fn relieve<H: Host>(&mut self, host: &mut H) {
        /// A peer that took or sent nothing for so long is taken for one that
        /// does not. Others lose at most this.
        const PATIENCE_US: u64 = 50_000;
        const EVERY_US: u64 = 5_000;
        /// So little outside of the pool is not worth a connection.
        const LITTLE_UNSENT: usize = 4096;
        let now = host.now().mono_us;
        if now < self.relieved_us + EVERY_US {
            return;
        }
        self.relieved_us = now;
        let is_low = self.pool.available() < self.config.low_chunks;
        let reads_not = |c: &Connection| {
            let holds = if is_low { c.session.holds_shared() } else { c.unsent_own > LITTLE_UNSENT };
            (holds && c.send.is_some()).then_some(c.progress_us)
        };
        let stands = |c: &Connection| reads_not(c).or_else(|| is_low.then(|| Net::half_since(c)).flatten());
        let mut standing: Vec<(u64, u32)> = (0..self.slots.len() as u32)
            .filter_map(|slot| Some((slot, self.slots[slot as usize].connection.as_deref()?)))
            .filter(|(_, c)| c.life != Life::Ending)
            .filter_map(|(slot, c)| Some((stands(c)?, slot)))
            .collect();
        standing.sort_unstable();
        for (since, slot) in standing {
            if since + PATIENCE_US > now {
                return self.wake_at(since + PATIENCE_US);
            }
            self.drop_standing(slot, host);
            // The pool's memory returns only when the kernel has let go of it.
            if is_low || self.unsent_own <= self.config.max_unsent_own {
                return self.wake_at(now + EVERY_US);
            }
        }
    }

    /// Whether so much lies outside of the pool that nothing more is received.
    fn regulate_all(&mut self) {
        let (waits, unsent) = (self.stashed.whole, self.unsent_own);
        let (stash, own) = (self.config.max_stashed, 2 * self.config.max_unsent_own);
        let throttled = match self.throttled {
            true => waits > stash / 2 || unsent > own / 2,
            false => waits > stash || unsent > own,
        };
        if throttled == self.throttled {
            return;
        }
        self.throttled = throttled;
        for slot in 0..self.slots.len() as u32 {
            if let Some(connection) = &mut self.slots[slot as usize].connection {
                // That nothing came was not their fault.
                connection.slow.forget();
                self.mark(slot);
            }
        }
    }
}

/// Adds to a counter of the sessions.
fn count_copied(config: &SessionConfig, bytes: usize) {
    let copied: &Cell<u64> = &config.counters.copied_bytes;
    copied.set(copied.get() + bytes as u64);
}

/// The buffer that an operation held.
fn buffer_of(held: Held) -> PoolBuffer {
    match held {
        Held::Buffer(buffer) => buffer,
        other => unreachable!("a direct receive holds {other:?}"),
    }
}
