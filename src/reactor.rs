//! One core: a pinned thread with one ring, which drives its sockets, its
//! shards and their disks, and knows nothing of what they do.
//!
//! A turn of the loop: take completions and messages, let sessions and shards
//! act on them, carry out what the shards ask for, and send what has gathered.

mod copies;
mod core;
mod message;
mod snapshot;
#[cfg(test)]
mod tests;

use std::time::Duration;

use ringbolt_wire::ShardId;

use crate::io::clock;
use crate::io::net::Net;
use crate::io::ring::Class;
use crate::shard::action::{Action, FatalError};
use crate::shard::event::Event;
pub use core::{Core, LocalShard, Place};
pub use message::{Course, Message, Shared};
pub use snapshot::Snapshot;

/// While messages wait for room in another core's mailbox, nobody says when
/// there is: look again after this time.
const MAILBOX_RETRY_US: u64 = 200;

/// While sessions wait for a shard, what it lacks may be memory that another
/// core gives back, and nobody says so either.
const STALL_RETRY_US: u64 = 1000;

/// How long a stop waits for the disk, and for peers to take their answers.
const STOP_PATIENCE_US: u64 = 10_000_000;

/// Why a core's thread has ended.
#[derive(thiserror::Error, Debug)]
pub enum ReactorError {
    /// A shard has stopped for good.
    #[error(transparent)]
    Shard(#[from] FatalError),
    /// The ring does not work any more.
    #[error("io_uring failed: {0}")]
    Ring(#[from] std::io::Error),
    /// The broker was told to stop, and the disk does not come to an end.
    #[error(
        "shard {shard}: what was in flight did not come to its end within {} s of the stop, the disk may \
         hang: it is not acknowledged, and the next start decides from what is on disk",
        STOP_PATIENCE_US / 1_000_000
    )]
    Unfinished {
        /// The first of this core's shards that waits.
        shard: ShardId,
    },
    /// Another core has failed, and said why.
    #[error("stopped because another core failed")]
    Aborted,
}

/// What a core does when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// Looks on for so many µs after the last work, then sleeps.
    SleepAfter(u64),
    /// Never sleeps.
    BusyPoll,
}

/// One core's loop.
pub struct Reactor {
    core: Core,
    net: Net,
    idle: Idle,
    /// Whether this turn found something to do.
    worked: bool,
    /// When the stop began, if it has.
    stopping_since: Option<u64>,
    /// Whether the other cores were told that nobody is connected here.
    told_drained: bool,
}

impl Reactor {
    /// The loop of a core whose parts are ready.
    pub fn new(core: Core, net: Net, idle: Idle) -> Reactor {
        Reactor { core, net, idle, worked: false, stopping_since: None, told_drained: false }
    }

    /// Runs until the broker was stopped and everything is durable and
    /// answered.
    pub fn run(mut self) -> Result<(), ReactorError> {
        loop {
            self.core.now = clock::now();
            self.worked = false;
            while let Some(completion) = self.core.ring.next_completion() {
                self.worked = true;
                match completion.token.class() {
                    Class::Net => self.net.complete(completion, &mut self.core),
                    Class::Disk => self.core.disk_completed(completion),
                    Class::Mailbox => self.core.mailbox.complete(&mut self.core.ring, &completion),
                    Class::Timer | Class::Ignored => {}
                }
            }
            match self.core.course() {
                Course::Serve => {}
                Course::Stop => self.stop(),
                Course::Abort => return Err(ReactorError::Aborted),
            }
            self.receive_messages();
            self.net.tick(&mut self.core);
            self.resume_stalled();
            self.poll_shards()?;
            self.answer_stats();
            let due = self.net.settle(&mut self.core);
            self.core.mailbox.flush(&mut self.core.ring);
            if self.is_done()? {
                return Ok(());
            }
            self.sleep(due)?;
        }
    }

    fn receive_messages(&mut self) {
        self.core.tick_disks();
        self.core.retry_held();
        while let Some(message) = self.core.mailbox.receive() {
            self.worked = true;
            match message {
                Message::Reply { to, reply } => {
                    self.net.reply(to.session, to.correlation, reply, &mut self.core);
                }
                Message::Connection(connection) => self.net.adopt(connection, &mut self.core),
                other => self.core.message(other),
            }
        }
    }

    /// Lets sessions go on that wait for a shard, in the order in which they
    /// began to wait.
    fn resume_stalled(&mut self) {
        while let Some(session) = self.core.next_resumable() {
            self.core.resuming = true;
            self.net.resume(session, &mut self.core);
            self.core.resuming = false;
        }
    }

    /// Carries out what the shards ask for, until none asks for anything.
    fn poll_shards(&mut self) -> Result<(), FatalError> {
        let mut is_quiet = false;
        while !is_quiet {
            is_quiet = true;
            for index in 0..self.core.shards.len() {
                while let Some(action) = self.core.poll_action(index) {
                    is_quiet = false;
                    match action {
                        Action::Reply { to, reply } if to.core == self.core.id() => {
                            self.net.reply(to.session, to.correlation, reply, &mut self.core);
                        }
                        Action::Stop(error) => return Err(error),
                        action => self.core.perform(index, action),
                    }
                }
            }
        }
        Ok(())
    }

    fn answer_stats(&mut self) {
        if self.core.wants_snapshot() {
            let snapshot = self.core.snapshot(&self.net);
            for (session, number, stats) in self.core.spread_snapshot(snapshot) {
                self.net.stats(session, number, stats);
            }
        }
    }

    fn stop(&mut self) {
        if self.stopping_since.is_none() {
            self.stopping_since = Some(self.core.now.mono_us);
            self.net.stop(&mut self.core);
            self.core.handle_all(|| Event::Stop);
        }
    }

    /// Whether nothing is left to do on any core. Cores first wait for each
    /// other's connections to end, since those may ask any shard, or be handed
    /// over.
    ///
    /// A peer that does not take its answers holds the stop up for some time; a
    /// disk that does not make it an error.
    fn is_done(&mut self) -> Result<bool, ReactorError> {
        let Some(since) = self.stopping_since else { return Ok(false) };
        if self.core.now.mono_us > since + STOP_PATIENCE_US {
            if let Some(shard) = self.core.undrained_shard() {
                return Err(ReactorError::Unfinished { shard });
            }
            tracing::warn!("stopping although some peers have not taken their answers");
            return Ok(true);
        }
        let is_alone = self.net.is_drained() && self.core.mailbox.waiting() == 0;
        if is_alone && !std::mem::replace(&mut self.told_drained, true) {
            self.core.tell_drained();
        }
        // What another core sent before it had drained is there when it has.
        Ok(is_alone
            && self.core.all_drained()
            && !self.core.mailbox.has_messages()
            && self.core.undrained_shard().is_none())
    }

    fn sleep(&mut self, net_due: Option<u64>) -> Result<(), ReactorError> {
        let core = &mut self.core;
        let due_of = |s: &LocalShard| s.shard.next_deadline().into_iter().chain(s.disk.next_deadline()).min();
        let shard_due = core.shards.iter().filter_map(due_of).min();
        let retry = match core.mailbox.waiting() {
            0 => core.holds_back().then_some(core.now.mono_us + STALL_RETRY_US),
            _ => Some(core.now.mono_us + MAILBOX_RETRY_US),
        };
        let patience = self.stopping_since.map(|since| since + STOP_PATIENCE_US + 1);
        let due = [net_due, shard_due, retry, patience].into_iter().flatten().min();
        // A connection that has ended may have asked a shard for something just now.
        let is_due = due.is_some_and(|due| due <= core.now.mono_us) || core.has_actions();
        if is_due || self.look_on(due)? || !self.core.may_sleep() {
            self.core.ring.submit()?;
        } else {
            let timeout = due.map(|due| Duration::from_micros(due.saturating_sub(clock::mono_us())));
            self.core.ring.submit_and_wait(timeout)?;
            self.core.mailbox.awake();
        }
        Ok(())
    }

    /// Looks for news for a while before the core sleeps: what answers within
    /// that time is spared the waking up, which takes a halted core tens of µs.
    /// Returns whether the core is to go on instead of sleeping.
    ///
    /// Others on this core come first: the kernel's worker that ends a flush
    /// may be one of them. And when the disk is what everything waits for,
    /// nothing is gained.
    fn look_on(&mut self, due: Option<u64>) -> std::io::Result<bool> {
        let Idle::SleepAfter(patience) = self.idle else { return Ok(true) };
        let core = &mut self.core;
        if patience == 0 || !self.worked || core.disk_is_saturated() {
            return Ok(false);
        }
        core.ring.submit()?;
        let since = clock::mono_us();
        loop {
            if core.ring.has_news() || core.mailbox.has_messages() {
                return Ok(true);
            }
            let now = clock::mono_us();
            if due.is_some_and(|due| due <= now) {
                return Ok(true);
            }
            if now >= since + patience {
                return Ok(false);
            }
            std::thread::yield_now();
        }
    }
}
