//! Answers out: one send per connection at a time, everything that waits in
//! it.

use super::connection::{Life, Send};
use super::{Host, Net, Op, Timer};
use crate::io::ring::{Held, SendParts};
use crate::limits::MAX_SEND_STALL_MS;
use crate::session::{Input, Output, Violation};

const STALL_US: u64 = MAX_SEND_STALL_MS * 1000;

impl Net {
    /// Starts a send if there is something to send and none is under way.
    #[inline]
    pub(super) fn start_send<H: Host>(&mut self, slot: u32, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        if connection.send.is_some() || connection.life == Life::Ending {
            return;
        }
        let Some(output) = connection.session.take_output() else { return };
        let (target, token) = (connection.target(), Op::Send.token(connection.key));
        let now = host.now().mono_us;
        let op = match output {
            Output::Frames(frames) => {
                let len = frames.len();
                host.ring().send(token, target, frames, 0..len, 0)
            }
            Output::Pieces(pieces) => {
                let mut parts = connection.parts.take().unwrap_or_default();
                pieces.into_iter().for_each(|piece| parts.push(piece));
                host.ring().send_parts(token, target, parts)
            }
        };
        connection.send = Some(Send { op, done: 0 });
        connection.progress_us = now;
        if !connection.send_timer {
            connection.send_timer = true;
            self.timers.push(now + STALL_US, connection.key, Timer::SendStall);
        }
    }

    pub(super) fn sent<H: Host>(&mut self, key: u64, result: i32, held: Held, host: &mut H) {
        let slot = self.find(key).expect("a slot is not freed before its last completion");
        let connection = self.slots[slot as usize].get();
        let send = connection.send.take().expect("a completion belongs to a send");
        self.mark(slot);
        let connection = self.slots[slot as usize].get();
        if connection.life == Life::Ending {
            return;
        }
        let count = match result {
            count @ 0.. => count as usize,
            e if e == -libc::EINTR || e == -libc::EAGAIN => 0,
            e => {
                self.lost(slot, -e, host);
                return;
            }
        };
        self.counters.sends += 1;
        self.counters.sent_bytes += count as u64;
        if count > 0 {
            connection.progress_us = host.now().mono_us;
        }
        if connection.session.sent(count) {
            match held {
                Held::Vec(frames) => connection.session.recycle(frames),
                Held::Parts(mut parts) => {
                    parts.clear();
                    connection.parts = Some(parts);
                }
                _ => {}
            }
        } else {
            self.send_rest(slot, send.done + count, count, held, host);
        }
        let connection = self.slots[slot as usize].get();
        if connection.session.may_end_pause() {
            connection.session.end_pause(&mut host.shards_for(connection.key));
        }
        if connection.session.input() == Input::Backlogged && connection.session.has_caught_up() {
            self.resume_slot(slot, host);
        }
    }

    fn send_rest<H: Host>(&mut self, slot: u32, done: usize, count: usize, held: Held, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        let (target, token) = (connection.target(), Op::Send.token(connection.key));
        let op = match held {
            Held::Vec(frames) => {
                let len = frames.len();
                host.ring().send(token, target, frames, done..len, 0)
            }
            Held::Parts(mut parts) => {
                SendParts::advance(&mut parts, count);
                host.ring().send_parts(token, target, parts)
            }
            other => unreachable!("a send holds {other:?}"),
        };
        connection.send = Some(Send { op, done });
    }

    /// Looks whether the peer reads its answers.
    pub(super) fn check_send<H: Host>(&mut self, slot: u32, now: u64, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        connection.send_timer = false;
        if connection.send.is_none() {
            return;
        }
        if connection.progress_us + STALL_US <= now {
            self.drop_slow_reader(slot, host);
        } else {
            connection.send_timer = true;
            let due = connection.progress_us + STALL_US;
            self.timers.push(due, connection.key, Timer::SendStall);
        }
    }

    /// Closes a connection that holds memory and makes no progress, whichever
    /// way. One that reads is told.
    pub(super) fn drop_standing<H: Host>(&mut self, slot: u32, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        if connection.send.is_some() {
            return self.drop_slow_reader(slot, host);
        }
        tracing::info!(session = connection.key, "closing a connection whose batch does not come to its end");
        self.counters.slow_writers += 1;
        self.violate(slot, &Violation::Overloaded, host);
    }

    /// Closes a connection whose peer does not read. There is no way to say
    /// goodbye: a send is under way, its socket takes nothing, and behind half an
    /// answer nothing else can be said.
    pub(super) fn drop_slow_reader<H: Host>(&mut self, slot: u32, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        let unsent = connection.session.unsent();
        tracing::info!(
            session = connection.key,
            unsent,
            "closing a connection that does not read its answers"
        );
        self.counters.slow_readers += 1;
        self.end(slot, host);
    }
}
