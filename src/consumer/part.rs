//! A group in one partition, as long as the broker lives: who has which record, and
//! what is to be delivered next.
//!
//! A record at or after [`next`](Part::next) was not looked at yet. One before it is
//! completed, leased, ready to be delivered again, waiting for a time (in a wheel),
//! behind an earlier one of its key, or condemned to the dead-letter topic.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ringbolt_wire::PartitionId;
use ringbolt_wire::message::{GroupConfig, GroupMode};
use rustc_hash::FxHashMap;

use super::acks::{AckState, Attempts, How};
use super::change_log::ChangeLog;
use super::changes::GroupKey;
use super::keys::Keys;
use crate::time::Now;

/// Consumers of a part of whom it is remembered which leases they do not have.
const MAX_HINTS: usize = 256;

/// A record that a consumer has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Whose, as its group numbers it.
    pub consumer: u32,
    /// How often the record was delivered, this time included.
    pub acquired: u32,
    /// When it runs out (monotonic, µs).
    pub deadline_us: u64,
    /// When the record was first delivered, µs since 1970 UTC.
    pub first_delivery_us: u64,
}

/// Why a record comes back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Back {
    /// Its consumer gave it back, or is gone.
    Released,
    /// Its consumer wants it later, after so many ms.
    Later(u32),
    /// The lease ran out.
    TimedOut,
    /// Its consumer could not handle it.
    Failed {
        /// Not to be tried again.
        condemned: bool,
        /// Why.
        reason: Arc<str>,
    },
}

/// Where a record went that came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// It is ready.
    Ready,
    /// It waits until this time (monotonic, µs).
    Waits(u64),
    /// It is condemned.
    Condemned,
}

/// What a delivery says of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivered {
    /// How often it was delivered, this time included.
    pub acquired: u32,
    /// How often it failed.
    pub failed: u32,
    /// When it was first delivered, µs since 1970 UTC; 0 if this is the first
    /// time.
    pub first_delivery_us: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Part {
    /// Which group and partition.
    pub key: GroupKey,
    /// The partition.
    pub partition: PartitionId,
    /// Its name in wheels and timers; another one after a reset.
    pub owner: u32,
    /// First record that was not looked at.
    pub next: u64,
    /// Records before it were delivered in an earlier life of the broker, or before a
    /// reset, if they are not completed.
    delivered_before: u64,
    /// Retention has taken the records before this one.
    pub gone_before: u64,
    /// The consumer that has the partition for itself.
    pub active: Option<u32>,
    /// Damaged on disk: nothing at or behind it is delivered.
    pub damaged: Option<u64>,
    /// The damaged record that was reported last.
    pub reported: Option<u64>,
    /// It begins here, and a crash could undo that: nothing is delivered yet.
    pub beginning: bool,
    /// Pages are being read for it.
    pub reading: bool,
    /// It is in its group's queue.
    pub queued: bool,
    /// So many of its records were [open](Self::open) when they were counted last.
    pub counted: usize,
    /// Of how many of them it was remembered then how it went.
    pub remembered: usize,
    /// So many completed ranges lay above its floor then.
    pub ranges: usize,
    /// The first record that would have to wait and may not: as many do as may.
    pub at_delayed_bound: Option<u64>,
    /// Records whose turn came before their time, when no more could wait for it: they are
    /// looked at again when there is room.
    crowded_out: BTreeSet<u64>,
    /// Records in the wheel of times, not delivered yet.
    pub dated: usize,
    /// The one of them that an exclusive partition waits for.
    pub dated_held: Option<u64>,
    /// Records that wait after a delivery.
    pub backing_off: BTreeSet<u64>,
    /// The record for whose time a partition waits that one consumer has in order.
    pub held_by: Option<u64>,
    /// Of the same key as an earlier one.
    pub keys: Keys,
    leases: BTreeMap<u64, Lease>,
    /// Consumers that have no lease before this record, as was seen when their earlier ones
    /// [ended](Self::ending_up_to).
    has_from: FxHashMap<u32, u64>,
    ready: BTreeSet<u64>,
    condemned: BTreeSet<u64>,
    /// Those of them that could not be moved when it was tried last.
    stuck: BTreeSet<u64>,
    /// The highest count that a delivery has said, and the first record that was not
    /// delivered, nor any behind it.
    last_acquired: u32,
    given_end: u64,
    /// The highest count that those before `delivered_before` were delivered with.
    acquired_before: u32,
}

impl Part {
    /// Nothing was looked at from `floor` on; records before `delivered_before` were
    /// delivered in an earlier life.
    pub fn new(
        key: GroupKey,
        partition: PartitionId,
        owner: u32,
        (floor, delivered_before): (u64, u64),
    ) -> Part {
        Part {
            key,
            partition,
            owner,
            next: floor,
            delivered_before,
            gone_before: 0,
            active: None,
            damaged: None,
            reported: None,
            beginning: false,
            reading: false,
            queued: false,
            counted: 0,
            remembered: 0,
            ranges: 0,
            at_delayed_bound: None,
            crowded_out: BTreeSet::new(),
            dated: 0,
            dated_held: None,
            backing_off: BTreeSet::new(),
            held_by: None,
            keys: Keys::default(),
            leases: BTreeMap::new(),
            has_from: FxHashMap::default(),
            ready: BTreeSet::new(),
            condemned: BTreeSet::new(),
            stuck: BTreeSet::new(),
            last_acquired: 0,
            given_end: floor,
            acquired_before: 1,
        }
    }

    /// Begins anew from `floor` on. Counts of deliveries go on above those before, so that
    /// no lease of before passes for one of afterwards.
    pub fn restart(&mut self, owner: u32, floor: u64) {
        let delivered_before = self.delivered_end();
        let new = Part {
            queued: self.queued,
            active: self.active,
            acquired_before: self.acquired_before.max(self.last_acquired),
            ..Part::new(self.key, self.partition, owner, (floor, delivered_before))
        };
        *self = new;
    }

    /// Records that were delivered, or looked at and held back, and are not
    /// completed; those that wait for their own time do not count.
    pub fn open(&self) -> usize {
        let held = self.leases.len() + self.ready.len() + self.condemned();
        held + self.backing_off.len() + self.crowded_out.len() + self.keys.behind()
    }

    /// Records that count where the memory of all groups is bounded.
    pub fn takes_memory(&self) -> usize {
        self.open().max(self.remembered)
    }

    /// Records that somebody has.
    pub fn leased(&self) -> usize {
        self.leases.len()
    }

    /// Records to be delivered again now.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Records that are to go to the dead-letter topic.
    pub fn condemned(&self) -> usize {
        self.condemned.len() + self.stuck.len()
    }

    /// Records that wait for a time; or until others need not, if as many do as may.
    pub fn delayed(&self) -> usize {
        self.dated + self.backing_off.len() + self.crowded_out.len()
    }

    /// The lease of a record.
    pub fn lease(&self, offset: u64) -> Option<&Lease> {
        self.leases.get(&offset)
    }

    /// The leases, by offset.
    pub fn leases(&self) -> impl Iterator<Item = (u64, &Lease)> {
        self.leases.iter().map(|(offset, lease)| (*offset, lease))
    }

    /// The leases of a consumer up to and with `last`, lowest first.
    pub fn leases_of(&self, consumer: u32, last: u64) -> Vec<u64> {
        let up_to = self.leases.range(..=last).filter(|(_, lease)| lease.consumer == consumer);
        up_to.map(|(offset, _)| *offset).collect()
    }

    /// The same, for leases that all end now. Those of others are not looked at again the
    /// next time, unless the consumer was given an earlier one since.
    pub fn ending_up_to(&mut self, consumer: u32, last: u64) -> Vec<u64> {
        let from = self.has_from.get(&consumer).copied().unwrap_or(0);
        if from > last {
            return Vec::new();
        }
        let up_to = self.leases.range(from..=last).filter(|(_, lease)| lease.consumer == consumer);
        let ending = up_to.map(|(offset, _)| *offset).collect();
        // Where few records are leased, looking at all of them costs little.
        if self.has_from.len() >= self.leases.len().min(MAX_HINTS) {
            self.has_from.clear();
        }
        self.has_from.insert(consumer, last.saturating_add(1));
        ending
    }

    /// Whether somebody has one of these records.
    pub fn has_lease_in(&self, start: u64, end: u64) -> bool {
        self.leases.range(start..end).next().is_some()
    }

    /// When the first lease runs out (monotonic, µs).
    pub fn first_deadline(&self) -> Option<u64> {
        self.leases.values().map(|lease| lease.deadline_us).min()
    }

    /// The record that is to be delivered again first.
    pub fn first_ready(&self) -> Option<u64> {
        self.ready.first().copied()
    }

    /// The record that is to be moved to the dead-letter topic next.
    pub fn first_condemned(&self) -> Option<u64> {
        self.condemned.first().copied()
    }

    /// The last record before `end` to be delivered again now.
    pub fn last_ready(&self, end: u64) -> Option<u64> {
        self.ready.range(..end).next_back().copied()
    }

    /// Whether a record is ready.
    pub fn is_ready(&self, offset: u64) -> bool {
        self.ready.contains(&offset)
    }

    /// A record is ready no longer: it was looked at.
    pub fn unready(&mut self, offset: u64) {
        self.ready.remove(&offset);
    }

    /// A record goes to the dead-letter topic.
    pub fn condemn(&mut self, offset: u64) {
        if !self.stuck.contains(&offset) {
            self.condemned.insert(offset);
        }
    }

    /// A record cannot be moved to the dead-letter topic as things are.
    pub fn stick(&mut self, offset: u64) {
        self.condemned.remove(&offset);
        self.stuck.insert(offset);
    }

    /// Those that could not be moved are to be tried again.
    pub fn unstick(&mut self) {
        self.condemned.append(&mut self.stuck);
    }

    /// A wait of a record is over. False if there is nothing to deliver.
    pub fn wait_over(&mut self, offset: u64, acks: &AckState) -> bool {
        self.held_by = self.held_by.filter(|held_by| *held_by != offset);
        let is_waiting = !acks.is_completed(offset)
            && !self.leases.contains_key(&offset)
            && !self.condemned.contains(&offset)
            && !self.stuck.contains(&offset)
            && offset < self.next;
        is_waiting && self.ready.insert(offset)
    }

    /// No more records can wait for their time, and this one must.
    pub fn crowd_out(&mut self, offset: u64) {
        self.crowded_out.insert(offset);
    }

    /// The first record that waits until others may wait for their time.
    pub fn first_at_delayed_bound(&self) -> Option<u64> {
        self.crowded_out.first().copied().or(self.at_delayed_bound)
    }

    /// There is room for so many more that wait for their time. Returns whether that is enough.
    pub fn leave_delayed_bound(&mut self, room: usize) -> bool {
        self.at_delayed_bound = None;
        self.ready.extend((0..room).map_while(|_| self.crowded_out.pop_first()));
        self.crowded_out.is_empty()
    }

    /// What a delivery of a record would say of it.
    #[inline]
    pub fn about(&self, offset: u64, acks: &AckState) -> Delivered {
        match acks.attempts(offset) {
            Some(known) => Delivered {
                acquired: known.acquired.saturating_add(1),
                failed: known.failed,
                first_delivery_us: known.first_delivery_us,
            },
            None => {
                let before = if offset < self.delivered_before { self.acquired_before } else { 0 };
                let acquired = before.saturating_add(1);
                Delivered { acquired, failed: 0, first_delivery_us: 0 }
            }
        }
    }

    /// No record from it on was ever delivered.
    pub fn delivered_end(&self) -> u64 {
        self.given_end.max(self.delivered_before)
    }

    /// Whether a delivery says the same [about](Self::about) all records of `start..end`,
    /// of which none came back.
    #[inline]
    pub fn are_alike(&self, start: u64, end: u64) -> bool {
        start >= self.delivered_before || end <= self.delivered_before
    }

    /// Gives a record to a consumer.
    ///
    /// # Panics
    /// If somebody has it.
    #[inline]
    pub fn give(&mut self, offset: u64, about: &Delivered, consumer: u32, deadline_us: u64, now: Now) {
        let first_delivery_us =
            if about.first_delivery_us == 0 { now.wall_us } else { about.first_delivery_us };
        self.last_acquired = self.last_acquired.max(about.acquired);
        self.given_end = self.given_end.max(offset + 1);
        if !self.has_from.is_empty()
            && let Some(from) = self.has_from.get_mut(&consumer)
        {
            *from = offset.min(*from);
        }
        let lease = Lease { consumer, acquired: about.acquired, deadline_us, first_delivery_us };
        let before = self.leases.insert(offset, lease);
        assert!(before.is_none(), "record {offset} is leased twice");
    }

    /// A lease runs until then.
    pub fn extend(&mut self, offset: u64, deadline_us: u64) {
        if let Some(lease) = self.leases.get_mut(&offset) {
            lease.deadline_us = deadline_us;
        }
    }

    /// A record is completed. Returns whose lease ended with it, and whether it is to be
    /// [freed](Self::free) once this is durable: until then the next record of its key
    /// waits. Should a crash undo it, that one would have come before it.
    pub fn complete(
        &mut self,
        offset: u64,
        how: How,
        acks: &mut AckState,
        log: &mut ChangeLog,
    ) -> (Option<u32>, bool) {
        let lease = self.leases.remove(&offset);
        self.condemned.remove(&offset);
        self.stuck.remove(&offset);
        self.ready.remove(&offset);
        self.crowded_out.remove(&offset);
        acks.complete(offset, offset + 1, how);
        log.completed(self.key, how, (offset, offset + 1), self.next);
        (lease.map(|lease| lease.consumer), self.keys.complete(offset))
    }

    /// It is durable that a record is completed. True if the next one of its key can be
    /// delivered.
    pub fn free(&mut self, offset: u64, acks: &AckState) -> bool {
        self.keys.release(offset).is_some_and(|next| self.wait_over(next, acks))
    }

    /// Records that were never delivered are completed without having been.
    pub fn pass_over(&mut self, start: u64, end: u64, how: How, acks: &mut AckState, log: &mut ChangeLog) {
        acks.complete(start, end, how);
        log.completed(self.key, how, (start, end), acks.delivered_end());
    }

    /// Retention has taken everything before `start`. Returns those whose leases
    /// ended with it.
    pub fn retained_from(&mut self, start: u64, acks: &mut AckState, log: &mut ChangeLog) -> Vec<u32> {
        self.gone_before = start;
        self.dated_held = self.dated_held.filter(|held| *held >= start);
        let kept = self.leases.split_off(&start);
        let gone = std::mem::replace(&mut self.leases, kept);
        self.ready = self.ready.split_off(&start);
        self.crowded_out = self.crowded_out.split_off(&start);
        self.condemned = self.condemned.split_off(&start);
        self.stuck = self.stuck.split_off(&start);
        self.backing_off = self.backing_off.split_off(&start);
        self.held_by = self.held_by.filter(|held_by| *held_by >= start);
        acks.complete(0, start, How::Expired);
        log.completed(self.key, How::Expired, (0, start), self.next);
        for freed in self.keys.complete_before(start) {
            self.ready.insert(freed);
        }
        self.next = self.next.max(start);
        self.damaged = self.damaged.filter(|damaged| *damaged >= start);
        gone.into_values().map(|lease| lease.consumer).collect()
    }

    /// Takes a record from who has it. Returns where it is now; and, of a partition
    /// that one consumer has in order, the later ones that come back with it.
    ///
    /// # Panics
    /// If nobody has it.
    pub fn give_back(
        &mut self,
        offset: u64,
        why: &Back,
        config: &GroupConfig,
        acks: &mut AckState,
        log: &mut ChangeLog,
        now: Now,
    ) -> Place {
        let place = self.one_back(offset, why, config, acks, log, now);
        // One that its consumer wants out of the way does not hold up those behind it. (That it
        // has failed too often its consumer does not know.)
        let is_out_of_the_way = matches!(why, Back::Failed { condemned: true, .. });
        if config.mode == GroupMode::Exclusive && !is_out_of_the_way {
            if place == Place::Ready {
                self.ready.remove(&offset);
            }
            let later: Vec<u64> = self.leases.range(offset + 1..).map(|(offset, _)| *offset).collect();
            for offset in later {
                self.one_back(offset, &Back::Released, config, acks, log, now);
                self.ready.remove(&offset);
            }
            self.next = self.next.min(offset);
        }
        place
    }

    fn one_back(
        &mut self,
        offset: u64,
        why: &Back,
        config: &GroupConfig,
        acks: &mut AckState,
        log: &mut ChangeLog,
        now: Now,
    ) -> Place {
        let lease = self.leases.remove(&offset).expect("the caller saw the lease");
        let failed_before = acks.attempts(offset).map_or(0, |known| known.failed);
        let fails = match why {
            Back::Released | Back::Later(_) => false,
            Back::TimedOut => config.timeout_is_failure,
            Back::Failed { .. } => true,
        };
        let failed = failed_before.saturating_add(u32::from(fails));
        let exhausted = fails && config.max_failures > 0 && failed >= config.max_failures;
        let condemned: Option<Arc<str>> = match why {
            Back::Failed { condemned, reason } if *condemned || exhausted => Some(reason.clone()),
            Back::TimedOut if exhausted => Some("the lease ran out".into()),
            _ => None,
        };
        let delay_ms = match why {
            Back::Later(ms) => *ms,
            _ if fails => config.backoff.after(failed),
            _ => 0,
        };
        let delay_us = u64::from(delay_ms) * 1000;
        let attempts = Attempts {
            acquired: lease.acquired,
            failed,
            first_delivery_us: lease.first_delivery_us,
            not_before_us: if delay_us > 0 { now.wall_us.saturating_add(delay_us) } else { 0 },
            condemned,
        };
        log.came_back(self.key, offset, &attempts);
        let is_condemned = attempts.condemned.is_some();
        acks.came_back(offset, attempts);
        if is_condemned {
            self.condemned.insert(offset);
            Place::Condemned
        } else if delay_us > 0 {
            Place::Waits(now.mono_us + delay_us)
        } else {
            self.ready.insert(offset);
            Place::Ready
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part() -> Part {
        let key = GroupKey { group: ringbolt_wire::GroupId(1), partition: 0 };
        Part::new(key, PartitionId::new(ringbolt_wire::TopicId(1), 0), 1, (0, 0))
    }

    proptest! {
        /// Records are given to three consumers and taken from them, in any order.
        #[test]
        fn what_ends_with_a_record_is_all_that_its_consumer_has_up_to_it(
            steps in prop::collection::vec((0u32..3, 0u64..40, any::<bool>()), 1..200),
        ) {
            let (mut part, mut acks, mut log) = (part(), AckState::new(0), ChangeLog::default());
            part.next = 40;
            let about = Delivered { acquired: 1, failed: 0, first_delivery_us: 1 };
            for (consumer, offset, gives) in steps {
                if !gives {
                    let all = part.leases_of(consumer, offset);
                    let ending = part.ending_up_to(consumer, offset);
                    prop_assert_eq!(&ending, &all);
                    let config = GroupConfig::default();
                    for offset in ending {
                        part.give_back(offset, &Back::Released, &config, &mut acks, &mut log, Now::default());
                    }
                } else if part.lease(offset).is_none() {
                    part.unready(offset);
                    part.give(offset, &about, consumer, 1, Now::default());
                }
            }
        }
    }

    /// Thousands of records are others': asking again and again is not looking again and again.
    #[test]
    fn leases_of_others_are_looked_at_once() {
        let mut part = part();
        let about = Delivered { acquired: 1, failed: 0, first_delivery_us: 1 };
        let last = 130_000;
        (0..last).for_each(|offset| part.give(offset, &about, 1, 1, Now::default()));
        part.give(last, &about, 2, 1, Now::default());
        let begun = std::time::Instant::now();
        (0..100_000).for_each(|_| assert!(part.ending_up_to(2, last - 1).is_empty()));
        // Looking at each would take minutes.
        assert!(begun.elapsed().as_secs() < 5);
        assert_eq!(part.ending_up_to(2, last), [last]);
    }
}
