//! All consumers of a run, and the end of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ringbolt_wire::GroupId;

use super::chance::Dice;
use super::{Conduct, Counts, Member, Watcher};
use crate::engine::{Troop, Turn};
use crate::stats::{Clock, Recorder};

/// How long the last answers are waited for, in ns.
const PATIENCE: u64 = 5_000_000_000;

/// Words between consumers and the thread that waits for them.
#[derive(Default)]
pub struct Course {
    stop: AtomicBool,
    progress: AtomicU64,
}

impl Course {
    /// The consumers are to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Whether they are to end, or have ended.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// A number that rises with everything that is delivered or settled.
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }
}

/// What consumers share.
pub struct Context<W> {
    /// The group.
    pub group: GroupId,
    /// What each of them does.
    pub conduct: Conduct,
    /// The run's clock.
    pub clock: Clock,
    /// Sees what they see.
    pub watcher: W,
    /// What they did.
    pub counts: Counts,
    /// The same second by second; latency is that of confirmations.
    pub recorder: Recorder,
    /// The first thing that went wrong for good, in words.
    pub failure: Option<String>,
    pub(super) dice: Dice,
    pub(super) attaches: u64,
}

impl<W> Context<W> {
    /// What they share before anything has happened.
    pub fn new(group: GroupId, conduct: Conduct, clock: Clock, recorder: Recorder, watcher: W) -> Context<W> {
        let dice = Dice::new(uuid::Uuid::new_v4().as_u64_pair().0);
        let counts = Counts::default();
        Context { group, conduct, clock, watcher, counts, recorder, failure: None, dice, attaches: 0 }
    }

    /// Remembers why the run fails, unless it knows already.
    pub fn fail(&mut self, why: impl FnOnce() -> String) {
        self.failure.get_or_insert_with(why);
    }

    /// Records have come: with the first ones begins what is measured.
    #[inline]
    pub(super) fn begin(&mut self, now: u64) {
        if self.counts.first_delivery.is_none() {
            self.counts.first_delivery = Some(now);
            self.recorder.cut(now, true);
        }
    }

    /// Records that were settled at `sent` are done.
    #[inline]
    pub(super) fn settled(&mut self, sent: u64, now: u64, records: u64, bytes: u64) {
        if records > 0 {
            self.counts.last_confirmation = now;
            self.counts.confirmation.saturating_record_n(now.saturating_sub(sent), records);
        }
        self.recorder.answered(sent, now, records, bytes);
    }
}

/// What is left of a crew. The recorder is closed, which is what its other end waits
/// for.
pub struct Finished<W> {
    /// What it has seen.
    pub watcher: W,
    /// What the consumers did.
    pub counts: Counts,
    /// The first thing that went wrong for good.
    pub failure: Option<String>,
}

/// See the [module](self).
pub struct Crew<W> {
    members: Vec<Member>,
    /// What they share.
    pub ctx: Context<W>,
    course: Arc<Course>,
    /// Confirmed acknowledgements that are enough.
    goal: Option<u64>,
    give_up_at: Option<u64>,
}

impl<W: Watcher> Crew<W> {
    /// Consumers that end when so many acknowledgements are confirmed, or when they are
    /// told to.
    pub fn new(members: Vec<Member>, ctx: Context<W>, course: Arc<Course>, goal: Option<u64>) -> Crew<W> {
        Crew { members, ctx, course, goal, give_up_at: None }
    }

    /// Closes the books.
    pub fn finish(self) -> Finished<W> {
        let Context { watcher, counts, failure, .. } = self.ctx;
        Finished { watcher, counts, failure }
    }
}

impl<W: Watcher> Troop for Crew<W> {
    fn now(&self) -> u64 {
        self.ctx.clock.now()
    }

    fn len(&self) -> usize {
        self.members.len()
    }

    fn poll(&mut self, now: u64) -> Turn {
        let counts = &self.ctx.counts;
        let progress = counts.deliveries + counts.acked + counts.rejected + counts.unconfirmed;
        self.course.progress.store(progress, Ordering::Relaxed);
        self.ctx.recorder.tick(now);
        let reached = self.goal.is_some_and(|goal| self.ctx.counts.acked >= goal);
        if reached || self.ctx.failure.is_some() {
            self.course.stop();
        }
        if !self.course.is_stopped() {
            return Turn::Go;
        }
        let give_up_at = *self.give_up_at.get_or_insert_with(|| {
            self.members.iter_mut().for_each(Member::stop);
            now + PATIENCE
        });
        let is_over = reached || now >= give_up_at || self.members.iter().all(Member::is_settled);
        if !is_over {
            return Turn::Go;
        }
        self.ctx.recorder.cut(now, false);
        Turn::Done
    }

    fn connect_at(&self, index: usize) -> Option<u64> {
        self.members[index].connect_at()
    }

    fn connected(&mut self, index: usize, _now: u64) {
        self.members[index].connected();
    }

    fn disconnected(&mut self, index: usize, now: u64) {
        self.members[index].disconnected(&mut self.ctx, now);
    }

    #[inline]
    fn received(&mut self, index: usize, bytes: &[u8], now: u64) -> bool {
        match self.members[index].received(&mut self.ctx, bytes, now) {
            Ok(()) => true,
            // A restart, seen while shaking hands.
            Err(error) if error.is_shutting_down() => false,
            Err(error) => {
                self.ctx.fail(|| format!("consumer {index}: {error}"));
                false
            }
        }
    }

    #[inline]
    fn fill(&mut self, index: usize, now: u64) -> bool {
        self.members[index].fill(&mut self.ctx, now)
    }

    #[inline]
    fn take_output(&mut self, index: usize) -> Option<(Vec<u8>, usize)> {
        self.members[index].take_output()
    }

    #[inline]
    fn recycle(&mut self, index: usize, memory: Vec<u8>) {
        self.members[index].recycle(memory);
    }

    fn wake_at(&self, index: usize) -> Option<u64> {
        self.members[index].wake_at()
    }
}
