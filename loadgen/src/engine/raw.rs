//! The engine on a raw ring: one loop, multishot receives, one send per
//! connection and turn.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::TcpStream;
use std::time::Duration;

use ringbolt::io::netring::{NetEvent, NetRing, NetRingConfig};
use ringbolt::io::tcp;

use super::{EngineConfig, EngineError, LONGEST_SLEEP, Troop, Turn, pin};

/// Longest wait for one connection. The loop stands still meanwhile, which is
/// no loss: a broker that does not accept does not answer the others either.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);

/// What is due sooner than this, in ns, is waited for without sleeping: going
/// to sleep and waking up takes about as long.
const TOO_SHORT_TO_SLEEP: u64 = 30_000;

/// Bytes to be sent after which they are: most sends are done when they are
/// submitted, and the next ones are made in the same memory. With it and the bound
/// per connection (`sending`), 4 producers of 256 KiB batches had 1.15 of the rate,
/// 64 x 16 1.01.
const SUBMIT_AT: usize = 256 << 10;

struct Raw<T> {
    troop: T,
    config: EngineConfig,
    net: NetRing,
    /// Members to be filled and flushed in this turn.
    dirty: VecDeque<usize>,
    is_dirty: Vec<bool>,
    /// Members that have something to do at a certain time.
    wakes: BinaryHeap<Reverse<(u64, usize)>>,
    /// By member: the soonest of its wakes; `u64::MAX` for none.
    armed: Vec<u64>,
    /// By member: nothing is connected.
    down: Vec<bool>,
}

/// Runs a troop until it is done, and gives it back.
///
/// # Errors
/// If there is no ring to be had, or it breaks.
pub fn run<T: Troop>(troop: T, config: EngineConfig) -> Result<T, EngineError> {
    pin(config.core)?;
    let members = troop.len();
    let sizes = NetRingConfig { connections: members, ..NetRingConfig::default() };
    let net = NetRing::new(sizes).map_err(|error| EngineError::Ring(error.to_string()))?;
    net.sleep_precisely();
    let mut raw = Raw {
        troop,
        config,
        net,
        dirty: VecDeque::with_capacity(members),
        is_dirty: vec![false; members],
        wakes: BinaryHeap::new(),
        armed: vec![u64::MAX; members],
        down: vec![true; members],
    };
    (0..members).for_each(|index| raw.wake(index, 0));
    raw.go().map_err(|error| EngineError::Ring(error.to_string()))?;
    Ok(raw.troop)
}

impl<T: Troop> Raw<T> {
    fn go(&mut self) -> std::io::Result<()> {
        loop {
            let now = self.troop.now();
            match self.troop.poll(now) {
                Turn::Done => return Ok(()),
                Turn::FillAll => (0..self.down.len()).for_each(|index| self.mark(index)),
                Turn::Go => {}
            }
            self.wake_due(now);
            self.flush(now);
            self.net.wait(Some(self.wait()))?;
            let now = self.troop.now();
            self.take_events(now);
        }
    }

    #[inline]
    fn mark(&mut self, index: usize) {
        if !self.is_dirty[index] {
            self.is_dirty[index] = true;
            self.dirty.push_back(index);
        }
    }

    fn wake(&mut self, index: usize, at: u64) {
        if at < self.armed[index] {
            self.armed[index] = at;
            self.wakes.push(Reverse((at, index)));
        }
    }

    fn wake_due(&mut self, now: u64) {
        while let Some(&Reverse((at, index))) = self.wakes.peek()
            && at <= now
        {
            self.wakes.pop();
            if self.armed[index] != at {
                continue;
            }
            self.armed[index] = u64::MAX;
            if self.down[index] {
                self.connect(index);
            }
            self.mark(index);
        }
    }

    fn connect(&mut self, index: usize) {
        if self.troop.connect_at(index).is_none() {
            return;
        }
        let connected = TcpStream::connect_timeout(&self.config.addr, CONNECT_PATIENCE).and_then(|stream| {
            // A socket that refuses still works.
            let _ = tcp::prepare(&stream, self.config.addr.ip());
            self.net.open(index, stream)
        });
        let now = self.troop.now();
        match connected {
            Ok(()) => {
                self.down[index] = false;
                self.troop.connected(index, now);
            }
            Err(_) => self.lost(index, now),
        }
    }

    fn lost(&mut self, index: usize, now: u64) {
        self.down[index] = true;
        self.troop.disconnected(index, now);
        if let Some(at) = self.troop.connect_at(index) {
            self.armed[index] = u64::MAX;
            self.wake(index, at);
        }
    }

    /// Lets every member to which something happened make what it can send,
    /// and sends it: one send per connection, whatever happened to it. The rest
    /// waits for the next turn once there is much to be sent.
    fn flush(&mut self, now: u64) {
        let mut queued = 0;
        while queued < SUBMIT_AT
            && let Some(index) = self.dirty.pop_front()
        {
            self.is_dirty[index] = false;
            if !self.troop.fill(index, now) {
                self.net.close(index);
                self.lost(index, now);
                continue;
            }
            if self.net.can_send(index)
                && let Some((memory, len)) = self.troop.take_output(index)
            {
                queued += len;
                self.net.send(index, memory, len);
            }
            if let Some(at) = self.troop.wake_at(index) {
                self.wake(index, at);
            }
        }
    }

    fn take_events(&mut self, now: u64) {
        while let Some((index, is_up)) = self.net.next_event().map(|event| tell(&mut self.troop, event, now))
        {
            if !is_up {
                self.net.close(index);
                self.lost(index, now);
            }
            self.mark(index);
        }
    }

    /// How long nothing needs to be done unless something arrives.
    fn wait(&self) -> Duration {
        if self.config.busy_poll || !self.dirty.is_empty() {
            return Duration::ZERO;
        }
        let Some(&Reverse((at, _))) = self.wakes.peek() else { return LONGEST_SLEEP };
        match at.saturating_sub(self.troop.now()) {
            ..TOO_SHORT_TO_SLEEP => Duration::ZERO,
            ns => Duration::from_nanos(ns).min(LONGEST_SLEEP),
        }
    }
}

/// Tells the troop what happened: to whom, and whether its connection is still
/// of use.
#[inline]
fn tell<T: Troop>(troop: &mut T, event: NetEvent<'_>, now: u64) -> (usize, bool) {
    match event {
        NetEvent::Received(index, bytes) => (index, troop.received(index, &bytes, now)),
        NetEvent::Sent(index, buffer) => {
            troop.recycle(index, buffer);
            (index, true)
        }
        // Why matters little: it is made again, whatever it was.
        NetEvent::Closed(index, _) => (index, false),
    }
}
