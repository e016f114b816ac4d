//! What is known of consumer groups: for each record of each, who has it, what became
//! of it, and what a crash may make of that.
//!
//! A change is certain for a crash once an answer has said so; until then the record
//! may be found in any state that it had since.

use std::collections::{BTreeMap, BTreeSet};

use ringbolt::time::Now;
use ringbolt_wire::message::{GroupInfo, GroupMode};
use ringbolt_wire::{GroupId, PartitionId};

/// A group in one partition of its topic.
pub type PartKey = (GroupId, u32);

/// How it went with a record so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tries {
    /// Deliveries; 0 if none was put on record.
    pub acquired: u32,
    pub failed: u32,
    pub first_us: u64,
    /// Not to be delivered before, by the wall clock; 0 for at once.
    pub not_before_us: u64,
    /// The same by the monotonic clock, in this life.
    pub due_us: u64,
}

/// A state in which a record may be found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kept {
    Open(Tries),
    /// To go to the dead-letter topic, for this reason.
    Condemned(Tries, String),
    Done,
    /// In whichever.
    Unknown,
}

/// Somebody has a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    pub consumer: u64,
    pub acquired: u32,
    pub failed: u32,
    pub first_us: u64,
    pub deadline_us: u64,
}

/// Why a record comes back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Why {
    Released,
    Later(u32),
    TimedOut,
    Failed { dead_letter: bool, reason: String },
}

/// A record in a group.
#[derive(Clone, Debug)]
pub struct Rec {
    /// In which it may be now; one of them, unless a crash left it open.
    pub possible: Vec<Kept>,
    /// What a crash leaves at least.
    base: Vec<Kept>,
    /// Changes that a crash may leave as well, by their number, oldest first.
    later: Vec<(u64, Vec<Kept>)>,
    /// Where it moved to: the dead-letter topic, or back where it came from.
    pub moved: Option<(PartitionId, u64)>,
    /// Somebody wants it back where it came from: by the lease with this count.
    pub redriving: Option<u32>,
    /// Moves that may have happened before a reset, and are not in a commit yet.
    pub loose_moves: u32,
    /// Delivered since the broker started or the group began.
    pub delivered: bool,
    /// The change that was a reset; 0 if there was none since the broker started.
    pub reset_at: u64,
}

impl Rec {
    fn new(possible: Vec<Kept>) -> Rec {
        Rec {
            base: possible.clone(),
            possible,
            later: Vec::new(),
            moved: None,
            redriving: None,
            loose_moves: 0,
            delivered: false,
            reset_at: 0,
        }
    }

    /// It is in one of these states from now on.
    pub fn change(&mut self, number: u64, to: Vec<Kept>) {
        self.possible.clone_from(&to);
        self.later.push((number, to));
    }

    /// Changes up to this one are certain.
    fn fold(&mut self, confirmed: u64) {
        while self.later.first().is_some_and(|(number, _)| *number <= confirmed) {
            self.base = self.later.remove(0).1;
        }
    }

    /// Only the states of which `keep` says yes are left. False if none is.
    pub fn narrow(&mut self, keep: impl Fn(&Kept) -> bool) -> bool {
        self.possible.retain(&keep);
        if self.later.is_empty() {
            self.base.clone_from(&self.possible);
        }
        !self.possible.is_empty()
    }

    /// It is completed, for good.
    pub fn claim_done(&mut self) {
        (self.possible, self.base) = (vec![Kept::Done], vec![Kept::Done]);
        self.later.clear();
    }

    pub fn may_be_done(&self) -> bool {
        let may = |kept: &Kept| matches!(kept, Kept::Done | Kept::Unknown);
        self.moved.is_some() || self.possible.iter().any(may)
    }

    pub fn is_done(&self) -> bool {
        self.moved.is_some() || self.possible == [Kept::Done]
    }

    pub fn may_be_condemned(&self) -> bool {
        let may = |kept: &Kept| matches!(kept, Kept::Condemned(..) | Kept::Unknown);
        self.moved.is_none() && self.possible.iter().any(may)
    }

    /// The broker's memory is gone. `survives` says whether a move is in the log. A wait
    /// that was over by now may be put on record as that.
    fn crash(
        &mut self,
        confirmed: u64,
        (now_us, ahead_us): (u64, u64),
        survives: impl Fn(PartitionId, u64) -> bool,
    ) {
        self.fold(confirmed);
        let moved = self.moved.take().is_some_and(|(partition, offset)| survives(partition, offset));
        if moved {
            return *self = Rec::new(vec![Kept::Done]);
        }
        let mut found: Vec<Kept> = Vec::new();
        for kept in self.base.iter().chain(self.later.iter().flat_map(|(_, kept)| kept)) {
            let kept = match kept.clone() {
                Kept::Open(mut tries) => {
                    let over = match tries.due_us {
                        0 => now_us + ahead_us >= tries.not_before_us,
                        due_us => now_us >= due_us,
                    };
                    tries.due_us = 0;
                    tries.not_before_us *= u64::from(!over);
                    Kept::Open(tries)
                }
                other => other,
            };
            if !found.contains(&kept) {
                found.push(kept);
            }
        }
        *self = Rec::new(found);
    }
}

/// A group in a partition.
#[derive(Clone, Debug)]
pub struct Part {
    pub partition: PartitionId,
    pub shard: usize,
    /// The group begins at an offset from the first to the second.
    floor: (u64, u64),
    recs: BTreeMap<u64, Rec>,
    pub leases: BTreeMap<u64, Lease>,
    /// All leases since the broker started: which record, and the count of the delivery.
    given: BTreeSet<(u64, u32)>,
    /// The highest count before the last reset since then; 0 if there was none.
    acquired_before: u32,
    /// Came back since the broker started, and wait to be delivered again.
    pub returned: BTreeSet<u64>,
    /// Retention may have taken a record that a consumer had in order: nobody can tell
    /// whether the later ones came back with it.
    pub loose: bool,
    /// The broker has started since the group began here.
    pub restored: bool,
    /// Leases last until then at least.
    held_until_us: u64,
    /// Everything before it is certainly done.
    pub done_end: u64,
    /// For each key, how many of its first records are certainly done.
    pub done_of_key: BTreeMap<u64, usize>,
}

impl Part {
    pub fn new(partition: PartitionId, shard: usize, floor: (u64, u64)) -> Part {
        Part {
            partition,
            shard,
            floor,
            recs: BTreeMap::new(),
            leases: BTreeMap::new(),
            given: BTreeSet::new(),
            acquired_before: 0,
            returned: BTreeSet::new(),
            loose: false,
            restored: false,
            held_until_us: 0,
            done_end: 0,
            done_of_key: BTreeMap::new(),
        }
    }

    /// Somebody is given a record. False if somebody was before, by a lease that looks the
    /// same.
    pub fn give(&mut self, offset: u64, mut lease: Lease) -> bool {
        lease.deadline_us = lease.deadline_us.max(self.held_until_us);
        self.leases.insert(offset, lease);
        self.returned.remove(&offset);
        self.given.insert((offset, lease.acquired))
    }

    pub fn extend(&mut self, offset: u64, deadline_us: u64) {
        if let Some(lease) = self.leases.get_mut(&offset) {
            lease.deadline_us = deadline_us.max(self.held_until_us);
        }
    }

    pub fn hold(&mut self, until_us: u64) {
        self.held_until_us = until_us;
        for lease in self.leases.values_mut() {
            lease.deadline_us = lease.deadline_us.max(until_us);
        }
    }

    /// What the count of a first delivery may be.
    pub fn may_be_first(&self, acquired: u32) -> bool {
        let again = |before: u32| before > 0 && acquired == before + 1;
        acquired == 1 || again(u32::from(self.restored)) || again(self.acquired_before)
    }

    pub fn rec(&mut self, offset: u64) -> &mut Rec {
        let (low, high) = self.floor;
        self.recs.entry(offset).or_insert_with(|| {
            let open = Kept::Open(Tries::default());
            Rec::new(match offset {
                _ if offset < low => vec![Kept::Done],
                _ if offset < high => vec![Kept::Done, open],
                _ => vec![open],
            })
        })
    }

    fn forget_cursors(&mut self) {
        self.done_end = 0;
        self.done_of_key.clear();
    }

    /// The group begins anew here: at `floor`, or nobody knows when and where.
    pub fn reset(
        &mut self,
        floor: Option<u64>,
        end: u64,
        number: u64,
        durable: impl Fn(PartitionId, u64) -> bool,
        expires: impl Fn(u64) -> bool,
    ) {
        for offset in 0..end {
            let rec = self.rec(offset);
            match rec.moved.take() {
                Some((partition, at)) if durable(partition, at) => rec.claim_done(),
                Some(_) => rec.change(number, vec![Kept::Done]),
                None if rec.may_be_condemned() || rec.redriving.is_some() || expires(offset) => {
                    rec.loose_moves += 1;
                }
                None => {}
            }
            rec.redriving = None;
            (rec.delivered, rec.reset_at) = (false, number);
            let to = match floor {
                Some(floor) if offset < floor => Kept::Done,
                Some(_) => Kept::Open(Tries::default()),
                None => Kept::Unknown,
            };
            rec.change(number, vec![to]);
        }
        self.leases.clear();
        self.returned.clear();
        self.acquired_before = self.given.iter().map(|(_, acquired)| *acquired).max().unwrap_or(0).max(1);
        (self.restored, self.loose) = (false, floor.is_none());
        self.forget_cursors();
    }

    pub fn crash(&mut self, confirmed: u64, clocks: (u64, u64), survives: impl Fn(PartitionId, u64) -> bool) {
        self.leases.clear();
        self.returned.clear();
        self.given.clear();
        self.held_until_us = 0;
        self.acquired_before = 0;
        (self.restored, self.loose) = (true, false);
        self.forget_cursors();
        self.recs.values_mut().for_each(|rec| rec.crash(confirmed, clocks, &survives));
    }

    /// What a record is after it came back.
    pub fn after(lease: &Lease, why: &Why, info: &GroupInfo, now: Now) -> Kept {
        let (config, has_topic) = (&info.config, info.dead_letter.0 != 0);
        let fails = match why {
            Why::Released | Why::Later(_) => false,
            Why::TimedOut => config.timeout_is_failure,
            Why::Failed { .. } => true,
        };
        let failed = lease.failed + u32::from(fails);
        let exhausted = fails && has_topic && config.max_failures > 0 && failed >= config.max_failures;
        let delay_ms = match why {
            Why::Later(ms) => *ms,
            _ if fails => config.backoff.after(failed),
            _ => 0,
        };
        let delay_us = u64::from(delay_ms) * 1000;
        let mut tries =
            Tries { acquired: lease.acquired, failed, first_us: lease.first_us, ..Tries::default() };
        match why {
            Why::Failed { dead_letter, reason } if (*dead_letter && has_topic) || exhausted => {
                return Kept::Condemned(tries, reason.clone());
            }
            Why::TimedOut if exhausted => return Kept::Condemned(tries, "the lease ran out".into()),
            _ => {}
        }
        if delay_us > 0 {
            (tries.not_before_us, tries.due_us) = (now.wall_us + delay_us, now.mono_us + delay_us);
        }
        Kept::Open(tries)
    }

    /// From now on nothing is certain of records that were delivered.
    pub fn loosen(&mut self, number: u64) {
        self.loose = true;
        for rec in self.recs.values_mut().filter(|rec| !rec.is_done()) {
            rec.change(number, vec![Kept::Unknown]);
        }
    }

    /// A record is taken from who has it.
    pub fn give_back(&mut self, offset: u64, why: &Why, info: &GroupInfo, number: u64, now: Now) {
        let Some(lease) = self.leases.remove(&offset) else { return };
        let after = Self::after(&lease, why, info, now);
        let wanted = matches!(why, Why::Failed { dead_letter: true, .. });
        let is_out_of_the_way = wanted && matches!(after, Kept::Condemned(..));
        self.put_back(offset, vec![after], number);
        if self.loose {
            return;
        }
        if !is_out_of_the_way && info.config.mode == GroupMode::Exclusive {
            for (later, lease) in self.leases.split_off(&offset) {
                self.put_back(later, vec![Self::after(&lease, &Why::Released, info, now)], number);
            }
        }
    }

    fn put_back(&mut self, offset: u64, to: Vec<Kept>, number: u64) {
        if self.loose {
            return;
        }
        if to.iter().all(|kept| matches!(kept, Kept::Open(_))) {
            self.returned.insert(offset);
        }
        self.rec(offset).change(number, to);
    }

    /// Leases whose time is over end. Where several of a partition that one consumer
    /// has in order end at once, a later one may have been given back before.
    pub fn end_leases(&mut self, info: &GroupInfo, number: u64, now: Now) -> u64 {
        let due: Vec<(u64, Lease)> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.deadline_us <= now.mono_us)
            .map(|(offset, lease)| (*offset, *lease))
            .collect();
        for (offset, lease) in &due {
            if info.config.mode == GroupMode::Exclusive && !self.leases.contains_key(offset) {
                let either = [Why::Released, Why::TimedOut].map(|why| Self::after(lease, &why, info, now));
                self.put_back(*offset, either.to_vec(), number);
            } else {
                self.give_back(*offset, &Why::TimedOut, info, number, now);
            }
        }
        due.len() as u64
    }

    /// A record is completed by who has it.
    pub fn complete(&mut self, offset: u64, number: u64) {
        self.leases.remove(&offset);
        if !self.loose {
            self.rec(offset).change(number, vec![Kept::Done]);
        }
    }

    /// The latest time at which a record that is known to wait can come, µs, by the
    /// monotonic clock.
    pub fn latest_due(&self, now: Now) -> u64 {
        let leases = self.leases.values().map(|lease| lease.deadline_us);
        let waits = self.recs.values().flat_map(|rec| &rec.possible).map(|kept| match kept {
            Kept::Open(tries) if tries.due_us > 0 => tries.due_us,
            Kept::Open(tries) => now.mono_us + tries.not_before_us.saturating_sub(now.wall_us),
            _ => 0,
        });
        leases.chain(waits).max().unwrap_or(0).max(now.mono_us)
    }
}

/// A group that there is, may be, or was.
#[derive(Clone, Debug)]
pub struct Known {
    pub info: GroupInfo,
    pub fate: GroupFate,
    /// Its topic holds dead letters.
    pub of_dead_letters: bool,
    pub parts: BTreeMap<u32, Part>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GroupFate {
    Alive,
    /// Somebody asked to delete it, or its topic, and the answer is not known.
    Deleting,
    Gone,
}

/// How a consumer gets records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Session and correlation of its request.
    pub to: (u64, u64),
    pub once: bool,
    pub records: u64,
    pub bytes: u64,
    pub debt: u64,
    pub lease_ms: u32,
}

impl Link {
    pub fn sent(&mut self, records: u64, bytes: u64) {
        self.records -= records;
        self.debt += bytes.saturating_sub(self.bytes);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    pub fn grant(&mut self, records: u64, bytes: u64) {
        let paid = self.debt.min(bytes);
        self.debt -= paid;
        self.records += records;
        self.bytes += bytes - paid;
    }
}
