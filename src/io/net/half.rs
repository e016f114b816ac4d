//! Frames that were begun and take long: their rest must come at a rate at which
//! an honest link carries it, or the connection is closed.
//!
//! How much came is what the kernel counts for the socket, since a batch that is
//! received directly shows itself only when it is whole. What a frame means, or
//! where its bytes go, is not known here.

use super::connection::{Connection, Life, Receive};
use super::{Host, Net, Timer};
use crate::io::tcp;
use crate::limits::MIN_FRAME_RATE;
use crate::session::Violation;

/// How fast a connection's unfinished frame comes.
#[derive(Debug, Default)]
pub(super) struct SlowFrame {
    /// A timer is set.
    timer: bool,
    /// The frame that was unfinished at the last look, if one was.
    last: Option<Look>,
}

/// How things stood at one moment.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// Frames of the connection before this one.
    frame: u64,
    /// Bytes that the socket has received.
    received: u64,
    at_us: u64,
}

impl SlowFrame {
    /// Starts anew: for a while nothing could come.
    pub fn forget(&mut self) {
        self.last = None;
    }
}

impl Look {
    /// Whether the frame at this look has come too slowly since `last`; then how
    /// many bytes came, in which time in µs.
    fn is_slower_than_allowed(&self, last: &Look) -> Option<(u64, u64)> {
        let (received, time_us) = (self.received - last.received, self.at_us - last.at_us);
        let wanted = u128::from(MIN_FRAME_RATE) * u128::from(time_us) / 1_000_000;
        (self.frame == last.frame && u128::from(received) < wanted).then_some((received, time_us))
    }
}

impl Net {
    /// A frame was begun: looks later whether it still comes.
    #[inline]
    pub(super) fn watch_frame<H: Host>(&mut self, slot: u32, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        if !connection.slow.timer {
            connection.slow.timer = true;
            let due = host.now().mono_us + self.config.frame_timeout_us;
            self.timers.push(due, connection.key, Timer::Frame);
        }
    }

    /// Looks how fast an unfinished frame comes. A peer has the time once before
    /// the first look, and once more from then on.
    pub(super) fn check_frame<H: Host>(&mut self, slot: u32, now: u64, host: &mut H) {
        let connection = self.slots[slot as usize].get();
        connection.slow.timer = false;
        let last = connection.slow.last.take();
        if !is_half(connection) {
            return;
        }
        // While the broker receives nothing, nothing can come.
        let is_held_back = self.throttled || connection.receive == Receive::Starved;
        if !is_held_back && let Ok(received) = tcp::received_bytes(&connection.socket) {
            let look = Look { frame: connection.session.frames(), received, at_us: now };
            if let Some((received, time_us)) = last.and_then(|last| look.is_slower_than_allowed(&last)) {
                self.counters.slow_writers += 1;
                let violation = Violation::FrameTimeout { received, time_ms: time_us / 1000 };
                return self.violate(slot, &violation, host);
            }
            connection.slow.last = Some(look);
        }
        self.watch_frame(slot, host);
    }
}

fn is_half(connection: &Connection) -> bool {
    let is_open = connection.life == Life::Open && !connection.ended && !connection.session.is_closing();
    is_open && (connection.stashed.half > 0 || Net::is_half_direct(connection))
}
