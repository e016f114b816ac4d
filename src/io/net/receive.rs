//! Bytes from shared buffers to sessions.

use std::collections::VecDeque;

use super::connection::{Farewell, Life, Receive, Stashed};
use super::pace::Step;
use super::{Host, Net, Timer};
use crate::io::ring::Completion;
use crate::limits::MAX_HELLO_FRAME_LEN;
use crate::session::{Input, Violation};

impl Net {
    #[inline]
    pub(super) fn received<H: Host>(&mut self, key: u64, completion: &Completion, host: &mut H) {
        let buffer = io_uring::cqueue::buffer_select(completion.flags);
        if buffer.is_some() {
            self.buffers.taken();
        }
        let slot = self.find(key).expect("a slot is not freed before its last completion");
        let connection = self.slots[slot as usize].get();
        if !completion.more() {
            connection.receive = Receive::Off;
        }
        match (completion.result, buffer) {
            (len @ 1.., Some(id)) => {
                self.counters.receives += 1;
                self.counters.received_bytes += len as u64;
                if connection.life == Life::Open {
                    let session = &mut connection.session;
                    let bytes = self.buffers.bytes(id, len as usize);
                    if session.is_greeted()
                        || session.is_closing()
                        || self.newcomers.is_empty() && self.pace.take(Step::Hear, host.now().mono_us)
                    {
                        let input = session.receive(bytes, &mut host.shards_for(key));
                        self.after_input(slot, input, host);
                    } else {
                        let waits = session.stashed() + bytes.len();
                        if waits <= MAX_HELLO_FRAME_LEN as usize && self.has_room_to_wait(waits) {
                            let session = &mut self.slots[slot as usize].get().session;
                            let input = session.hold(self.buffers.bytes(id, len as usize));
                            self.hear_later(slot);
                            self.after_input(slot, input, host);
                        } else {
                            self.end(slot, host);
                        }
                    }
                }
            }
            (0, _) => connection.ended = true,
            (e, _) if e == -libc::ENOBUFS => {
                self.counters.starved_receives += 1;
                connection.receive = Receive::Starved;
                self.starved.push_back(slot);
            }
            (e, _) if e == -libc::ECANCELED || e == -libc::EINTR || e == -libc::EAGAIN => {}
            (e, _) => self.lost(slot, -e, host),
        }
        if let Some(id) = buffer {
            self.buffers.give_back(id);
        }
        self.mark(slot);
    }

    /// Acts on what a session makes of its bytes.
    #[inline]
    pub(super) fn after_input<H: Host>(&mut self, slot: u32, input: Input, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        let key = connection.key;
        match input {
            Input::Open => connection.direct.rest(),
            Input::Large { .. } => connection.direct.want(),
            Input::Stalled(shard) => {
                if !connection.stalled {
                    connection.stalled = true;
                    host.stalled(key, shard);
                }
            }
            Input::Queued => {
                if !connection.queued {
                    connection.queued = true;
                    self.queued.push_back(key);
                    self.session_config.listings.queue(self.queued.len(), false);
                }
            }
            Input::Backlogged | Input::Moves { .. } => {}
            Input::Closed => {
                if connection.farewell == Farewell::None {
                    connection.farewell = Farewell::Due;
                    connection.session.hurry_fetches(&mut host.shards_for(key));
                }
            }
        }
        let connection = self.slots[slot as usize].get();
        let stash = Stashed::of(&connection.session);
        let is_other = stash.half > 0 && connection.stashed_frame != connection.session.frames();
        if stash != connection.stashed || is_other {
            self.count_stash(slot, stash, host);
        }
        self.mark(slot);
    }

    /// Goes on with a session that had to wait.
    pub(super) fn resume_slot<H: Host>(&mut self, slot: u32, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        let key = connection.key;
        connection.stalled = false;
        if connection.life != Life::Open {
            return;
        }
        if let Some(frame) = connection.direct.take_held() {
            self.direct_held -= frame.buffer.as_ref().len();
            self.take_direct(slot, frame, host);
            return;
        }
        let input = connection.session.resume(&mut host.shards_for(key));
        self.after_input(slot, input, host);
    }

    /// Goes on with those who have not said hello, and whose bytes waited for their turn.
    #[inline]
    pub(super) fn hear_newcomers<H: Host>(&mut self, host: &mut H) {
        while let Some(slot) = self.next_in_turn(Step::Hear, |net| &mut net.newcomers, host) {
            self.slots[slot as usize].get().arrives = false;
            self.resume_slot(slot, host);
            self.check_hello(slot, host);
        }
    }

    /// Whether there is memory for so many bytes that are heard later, without closing
    /// anybody for it. As they come they may take up to twice as much.
    pub(super) fn has_room_to_wait(&self, len: usize) -> bool {
        self.stashed.half + 2 * len <= self.config.max_stashed
    }

    /// What a newcomer has said is heard when it is its turn.
    pub(super) fn hear_later(&mut self, slot: u32) {
        let connection = self.slots[slot as usize].get();
        if !std::mem::replace(&mut connection.arrives, true) {
            self.newcomers.push_back(connection.key);
        }
    }

    /// Ends a connection whose hello is not there in time, once all that came was heard.
    pub(super) fn check_hello<H: Host>(&mut self, slot: u32, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        let is_there = connection.session.is_greeted()
            || connection.session.is_closing()
            || matches!(connection.session.input(), Input::Moves { .. });
        if connection.overdue && !connection.arrives && !is_there {
            let timeout = self.config.handshake_timeout_us / 1000;
            self.violate(slot, &Violation::HandshakeTimeout(timeout), host);
        }
    }

    /// Takes the first out of a list of those who wait for a step that has a pace, if
    /// the pace lets it, or the broker stops; who is gone is passed over.
    #[inline]
    pub(super) fn next_in_turn<H: Host>(
        &mut self,
        step: Step,
        list: impl Fn(&mut Net) -> &mut VecDeque<u64>,
        host: &mut H,
    ) -> Option<u32> {
        loop {
            let key = *list(self).front()?;
            let slot = self.find(key);
            if slot.is_some() && !self.stopping && !self.pace.take(step, host.now().mono_us) {
                return None;
            }
            list(self).pop_front();
            if slot.is_some() {
                return slot;
            }
        }
    }

    /// Goes on with those who wait for room for an answer that lists, in the
    /// order in which they began to wait.
    pub(super) fn resume_queued<H: Host>(&mut self, host: &mut H) {
        while self.has_turn()
            && let Some(key) = self.queued.pop_front()
        {
            self.session_config.listings.queue(self.queued.len(), true);
            if let Some(slot) = self.find(key) {
                self.slots[slot as usize].get().queued = false;
                self.resume_slot(slot, host);
            }
            self.session_config.listings.queue(self.queued.len(), false);
        }
    }

    /// Whether somebody waits for room for an answer that lists, and there is
    /// some.
    #[inline]
    pub(super) fn has_turn(&self) -> bool {
        !self.queued.is_empty() && self.session_config.listings.has_room()
    }

    /// Ends a connection for what its peer did, or for the broker's stop.
    pub(super) fn violate<H: Host>(&mut self, slot: u32, violation: &Violation, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        tracing::debug!(session = connection.key, %violation, "closing a connection");
        let input = connection.session.close(violation);
        // The rest of its batch is not waited for.
        if let Receive::Direct(op) = connection.receive {
            host.ring().cancel(op);
        }
        self.after_input(slot, input, host);
    }

    /// Arms receives of those that found no buffer, in the order in which they did not:
    /// as many as there are buffers, since all at once would find none again. Returns
    /// when to go on if some are left (monotonic, µs).
    ///
    /// The kernel takes a buffer before it looks whether there is anything to receive,
    /// so some of them may have nothing, and no completion follows.
    #[inline]
    pub(super) fn feed_starved<H: Host>(&mut self, host: &mut H) -> Option<u64> {
        let mut free = self.buffers.free();
        while free > 0 {
            let slot = self.starved.pop_front()?;
            let Some(connection) = self.slots[slot as usize].connection.as_deref_mut() else { continue };
            if connection.receive == Receive::Starved {
                free -= 1;
                connection.receive = Receive::Off;
                self.regulate(slot, host);
            }
        }
        (!self.starved.is_empty()).then(|| host.now().mono_us)
    }

    /// Counts anew what a session keeps.
    pub(super) fn count_stash<H: Host>(&mut self, slot: u32, stash: Stashed, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        // One that always has a half frame here has another one every time.
        let frames = connection.session.frames();
        if connection.stashed.half == 0 || connection.stashed_frame != frames {
            connection.stashed_us = host.now().mono_us;
            connection.stashed_frame = frames;
        }
        let before = std::mem::replace(&mut connection.stashed, stash);
        self.stashed.replace(before, stash);
        if stash.half > 0 {
            self.watch_frame(slot, host);
        }
        if self.stashed.half > self.config.max_stashed && stash.half > 0 {
            self.close_oldest_stashes(slot, host);
        }
    }

    /// Closes the connections whose half-received frames are oldest, until the others
    /// keep within their bound: frames that never end must not use up the memory. If a
    /// few do not make room enough, only the one closes that has `grown` beyond it.
    fn close_oldest_stashes<H: Host>(&mut self, grown: u32, host: &mut H) {
        while self.stashed.half > self.config.max_stashed {
            if let Some((since, key)) = self.oldest_halves.pop() {
                if let Some(slot) = self.find(key)
                    && let connection = self.slots[slot as usize].get()
                    && connection.stashed.half > 0
                    && connection.stashed_us == since
                {
                    self.violate(slot, &Violation::Overloaded, host);
                }
            } else if self.look_for_halves() < self.stashed.half - self.config.max_stashed {
                return self.violate(grown, &Violation::Overloaded, host);
            }
        }
    }

    /// Finds the oldest half-received frames, and returns how many bytes they take.
    /// Several, so that one look at all connections does for them, since those that
    /// begin later are never older. Not those that take far less than others, and would
    /// make no room.
    fn look_for_halves(&mut self) -> usize {
        const AT_A_LOOK: usize = 64;
        const FAR_LESS: usize = 8;
        let connections = self.slots.iter().filter_map(|slot| slot.connection.as_deref());
        let halves = connections.filter(|c| c.stashed.half > 0);
        let mean = self.stashed.half / halves.clone().count().max(1);
        let not_far_less = halves.filter(|c| c.stashed.half >= mean / FAR_LESS);
        let mut oldest: Vec<_> = not_far_less.map(|c| (c.stashed_us, c.key, c.stashed.half)).collect();
        if oldest.len() > AT_A_LOOK {
            oldest.select_nth_unstable(AT_A_LOOK);
            oldest.truncate(AT_A_LOOK);
        }
        oldest.sort_unstable_by(|a, b| b.cmp(a));
        self.oldest_halves.extend(oldest.iter().map(|&(since, key, _)| (since, key)));
        oldest.iter().map(|&(.., len)| len).sum()
    }

    /// Wakes the loop at this time, for no connection in particular.
    pub(super) fn wake_at(&mut self, due_us: u64) {
        self.timers.push(due_us, 0, Timer::Turn);
    }
}
