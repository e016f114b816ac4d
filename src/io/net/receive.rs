//! Bytes from shared buffers to sessions.

use super::connection::{Life, Receive, Stashed};
use super::{Host, Net, Timer};
use crate::io::ring::Completion;
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
                    let is_in_turn = connection.session.is_greeted()
                        || self.newcomers.is_empty() && self.pace.take(1, host.now().mono_us);
                    let bytes = self.buffers.bytes(id, len as usize);
                    if is_in_turn {
                        let input = connection.session.receive(bytes, &mut host.shards_for(key));
                        self.after_input(slot, input, host);
                    } else if self.stashed.half + bytes.len() > self.config.max_stashed {
                        // Nobody who waits for longer is closed for it.
                        self.end(slot, host);
                    } else {
                        if !std::mem::replace(&mut connection.arrives, true) {
                            self.newcomers.push_back(key);
                        }
                        let input = connection.session.hold(bytes);
                        self.after_input(slot, input, host);
                    }
                }
            }
            (0, _) => self.ended(slot, host),
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
            Input::Closed => connection.session.hurry_fetches(&mut host.shards_for(key)),
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

    /// Goes on with those who have not said hello and whose bytes had to wait, as far as
    /// the pace lets it, in the order in which these came.
    #[inline]
    pub(super) fn hear_newcomers<H: Host>(&mut self, host: &mut H) {
        while let Some(&key) = self.newcomers.front()
            && (self.stopping || self.pace.take(1, host.now().mono_us))
        {
            self.newcomers.pop_front();
            let Some(slot) = self.find(key) else { continue };
            self.slots[slot as usize].get().arrives = false;
            self.resume_slot(slot, host);
            if self.slots[slot as usize].get().ended {
                self.ended(slot, host);
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
    /// as many as there are buffers, since all at once would find none again. For each
    /// of them something has come, so a completion follows, and a turn for the others.
    #[inline]
    pub(super) fn feed_starved<H: Host>(&mut self, host: &mut H) {
        let mut free = self.buffers.free();
        while free > 0
            && let Some(slot) = self.starved.pop_front()
        {
            let Some(connection) = self.slots[slot as usize].connection.as_deref_mut() else { continue };
            if connection.receive != Receive::Starved {
                continue;
            }
            connection.receive = Receive::Off;
            self.regulate(slot, host);
            // It may have gone to another core.
            let connection = self.slots[slot as usize].connection.as_deref();
            free -= usize::from(connection.is_some_and(|c| matches!(c.receive, Receive::Multi(_))));
        }
    }

    /// The peer sends no more.
    pub(super) fn ended<H: Host>(&mut self, slot: u32, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        let key = connection.key;
        connection.ended = true;
        if connection.arrives {
            // What it said is heard first.
            return self.mark(slot);
        }
        if connection.life == Life::Open && !connection.session.is_closing() {
            connection.session.end_of_input(&mut host.shards_for(key));
        }
        self.count_stash(slot, Stashed::default(), host);
        self.mark(slot);
    }

    fn count_stash<H: Host>(&mut self, slot: u32, stash: Stashed, host: &mut H) {
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
            self.close_old_stash(host);
        }
    }

    /// Closes the connection whose half-received frame is oldest, of as many as are
    /// looked at: frames that never end must not use up the memory, nor thousands of
    /// them the time.
    fn close_old_stash<H: Host>(&mut self, host: &mut H) {
        const LOOKS: usize = 64;
        let first = self.looked_at as usize + 1;
        let slots = (0..self.slots.len()).cycle().skip(first).take(self.slots.len());
        let halves = slots.filter_map(|slot| {
            let connection = self.slots[slot].connection.as_deref()?;
            (connection.stashed.half > 0).then_some((connection.stashed_us, slot as u32))
        });
        let mut last = 0;
        let oldest = halves.take(LOOKS).inspect(|(_, slot)| last = *slot).min();
        self.looked_at = last;
        if let Some((_, slot)) = oldest {
            self.violate(slot, &Violation::Overloaded, host);
        }
    }

    /// Wakes the loop at this time, for no connection in particular.
    pub(super) fn wake_at(&mut self, due_us: u64) {
        self.timers.push(due_us, 0, Timer::Turn);
    }
}
