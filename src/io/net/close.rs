//! The end of a connection: goodbye, shut our side, wait for theirs, cancel
//! what is under way, and only when the kernel has let go of everything, free
//! slot and socket.

use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use super::connection::{Connection, Farewell, Life, Receive, Stashed};
use super::pace::Step;
use super::{Host, Net, Op, Timer};
use crate::io::ring::Target;
use crate::limits::MAX_LINGER_MS;

const LINGER_US: u64 = MAX_LINGER_MS * 1000;

/// A connection that is gone but for its socket and its slot's place.
pub(super) struct Ended {
    slot: u32,
    key: u64,
    socket: OwnedFd,
    registered: bool,
}

impl Net {
    /// The socket failed.
    pub(super) fn lost<H: Host>(&mut self, slot: u32, errno: i32, host: &mut H) {
        let error = std::io::Error::from_raw_os_error(errno);
        tracing::debug!(session = self.slots[slot as usize].get().key, %error, "a connection was lost");
        self.end(slot, host);
    }

    /// Gives a connection up: nothing more is sent, everything is cancelled.
    pub(super) fn end<H: Host>(&mut self, slot: u32, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        if connection.life == Life::Ending {
            return;
        }
        let key = connection.key;
        connection.life = Life::Ending;
        connection.session.abandon();
        let before = std::mem::take(&mut connection.stashed);
        self.stashed.replace(before, Stashed::default());
        self.unsent_own -= std::mem::take(&mut connection.unsent_own);
        if connection.session.in_flight() > 0 {
            host.session_closed(key);
        }
        if let Receive::Multi(op) | Receive::Direct(op) = connection.receive {
            host.ring().cancel(op);
        }
        if let Some(send) = connection.send {
            host.ring().cancel(send.op);
        }
        self.drop_held(slot);
        self.mark(slot);
    }

    /// Lets a session say its goodbye, which has a pace, when all is answered. Returns
    /// whether it must wait. What was answered before is sent meanwhile.
    #[inline]
    pub(super) fn waits_to_part<H: Host>(&mut self, slot: u32, host: &mut H) -> bool {
        let connection = self.slots[slot as usize].get();
        if connection.life != Life::Open {
            return false;
        }
        if connection.farewell == Farewell::Due && connection.session.in_flight() == 0 {
            if self.parting.is_empty() && self.pace.take(Step::Part, host.now().mono_us) {
                connection.part();
            } else {
                connection.farewell = Farewell::Waits;
                self.parting.push_back(connection.key);
            }
        }
        matches!(connection.farewell, Farewell::Due | Farewell::Waits)
    }

    /// Goes on with those whose turn it is to part: all during a stop.
    #[inline]
    pub(super) fn let_part<H: Host>(&mut self, host: &mut H) {
        while let Some(slot) = self.next_in_turn(Step::Part, |net| &mut net.parting, host) {
            self.slots[slot as usize].get().part();
            self.mark(slot);
        }
    }

    /// Moves a connection on towards its end, if it is on its way there.
    #[inline]
    pub(super) fn advance_life<H: Host>(&mut self, slot: u32, host: &mut H) {
        let Some(connection) = self.slots[slot as usize].connection.as_deref_mut() else { return };
        if connection.life == Life::Open && connection.has_said_all() {
            connection.session.end_of_input(&mut host.shards_for(connection.key));
            self.count_stash(slot, Stashed::default(), host);
        }
        let connection = self.slots[slot as usize].get();
        match connection.life {
            Life::Open if connection.session.is_closing() && connection.session.is_finished() => {
                self.shut(slot, host);
            }
            Life::Lingering if connection.ended => self.end(slot, host),
            Life::Ending if connection.is_idle() => {
                let Connection { key, socket, registered, .. } = *self.take_out(slot);
                self.ended.push_back(Ended { slot, key, socket, registered });
            }
            _ => {}
        }
    }

    /// Everything was said.
    fn shut<H: Host>(&mut self, slot: u32, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        if connection.ended {
            self.end(slot, host);
            return;
        }
        connection.life = Life::Lingering;
        let (key, fd) = (connection.key, connection.socket.as_raw_fd());
        if let Receive::Direct(op) = connection.receive {
            host.ring().cancel(op);
        }
        // Not through the ring, which would hand it to a worker thread: it does
        // not block. If it fails the connection is gone, as the next receive
        // will tell.
        // SAFETY: no memory; the socket is open.
        unsafe { libc::shutdown(fd, libc::SHUT_WR) };
        self.timers.push(host.now().mono_us + LINGER_US, key, Timer::Linger);
        // Receives again, to throw away.
        self.mark(slot);
    }

    /// Closes sockets of connections that have ended, and frees their slots, as far as
    /// the pace lets it; all during a stop. Returns when to go on if some are left
    /// (monotonic, µs).
    pub(super) fn close_ended<H: Host>(&mut self, host: &mut H) -> Option<u64> {
        let now_us = host.now().mono_us;
        while !self.ended.is_empty() && (self.stopping || self.pace.take(Step::Close, now_us)) {
            let Ended { slot, key, socket, registered } = self.ended.pop_front()?;
            self.free(slot, registered, host);
            host.ring().close(Op::Close.token(key), Target::Fd(socket.into_raw_fd()));
        }
        self.pace.wait(Step::Close, !self.ended.is_empty())
    }
}
