//! Judges what groups deliver and move: the right bytes and counts, to one consumer at
//! a time, in order where order was promised, and nothing that is completed.

use ringbolt::log::SegmentSeq;
use ringbolt::time::Now;
use ringbolt_wire::batch::{BATCH_HEADER_LEN, DeadLetter};
use ringbolt_wire::message::{DeliveredRange, Delivery, GroupMode};
use ringbolt_wire::{BatchView, GroupId, PartitionId};

use super::group_check::{Groups, durable_records};
use super::group_model::{GroupFate, Kept, Known, Lease, Part, Tries, Why};
use super::log_model::{LogModel, Print};
use super::records::RecordFact;

/// A record of a delivery, and to whom.
#[derive(Clone, Copy, Debug)]
struct Given<'a> {
    offset: u64,
    fact: &'a RecordFact,
    range: &'a DeliveredRange,
    consumer: u64,
    deadline_us: u64,
    now: Now,
}

impl Groups {
    /// Records leave for a consumer. Returns whether the request is answered thereby.
    ///
    /// # Panics
    /// If they should not.
    pub fn delivered(
        &mut self,
        logs: &[LogModel],
        (shard, to): (usize, (u64, u64)),
        (delivery, payload): (&Delivery, &[u8]),
        now: Now,
    ) -> bool {
        let link = self.links.iter().find(|(_, link)| link.to == to).map(|(at, link)| (*at, *link));
        let Some((at, mut link)) = link else {
            let ended = self.ended.remove(&to);
            assert!(ended == Some(None) && delivery.ranges.is_empty(), "records for nobody: {delivery:?}");
            return true;
        };
        let (of_shard, group, consumer) = at;
        assert_eq!(of_shard, shard);
        if delivery.ranges.is_empty() {
            assert!(link.once && payload.is_empty(), "an empty delivery for {link:?}");
            self.cut(at, None);
            self.ended.remove(&to);
            return true;
        }
        assert_eq!(delivery.lease_ms, link.lease_ms, "the lease's time is what was asked for");
        let deadline_us = now.mono_us + u64::from(link.lease_ms) * 1000;
        let (mut rest, mut records, mut last_len) = (payload, 0, 0);
        for range in &delivery.ranges {
            let (batches, after) = range.split_payload(rest).expect("whole batches of the range");
            rest = after;
            for (offset, record) in batches.iter().flat_map(BatchView::records) {
                let fact = RecordFact::of(&record, SegmentSeq(0));
                last_len = fact.len;
                let given = Given { offset: offset.0, fact: &fact, range, consumer, deadline_us, now };
                self.given(logs, (shard, group), &given);
                records += 1;
            }
        }
        let before_last = (payload.len() - last_len - BATCH_HEADER_LEN) as u64;
        assert!(records <= link.records && link.bytes > before_last, "{delivery:?} goes beyond {link:?}");
        link.sent(records, payload.len() as u64);
        if link.once {
            self.links.remove(&at);
        } else {
            self.links.insert(at, link);
        }
        link.once
    }

    fn given(&mut self, logs: &[LogModel], (shard, group): (usize, GroupId), given: &Given<'_>) {
        let key = (group, given.range.lease.partition);
        let is_here = self.part(key, logs.len()).is_some_and(|part| part.shard == shard);
        assert!(is_here, "{given:?} is of another shard");
        let mut known = self.known.remove(&group).expect("it is linked");
        let mut part = known.parts.remove(&key.1).expect("it was found or made");
        assert_ne!(known.fate, GroupFate::Gone, "{given:?} of a deleted group");
        let what = format!("group {group} ({}), {}:{}", known.info.config.mode, part.partition, given.offset);
        let facts = durable_records(logs, shard, part.partition);
        let fact = facts.get(given.offset as usize).unwrap_or_else(|| panic!("{what} is not durable"));
        assert!(fact.is(given.fact), "{what} is delivered as {given:?}, and is {fact:?}");
        self.check_times(&known, fact, given, &what);
        if !part.loose {
            self.check_lease(logs, (&known, &mut part), facts, given, &what);
            self.check_order(logs, (&known, &mut part), facts, given, &what);
        }
        self.check_counts(&known, &mut part, given, &what);
        self.last_given = Some((group, ringbolt_wire::ConsumerId(given.consumer)));
        let lease = &given.range.lease;
        let first_us = match given.range.first_delivery_us {
            0 => given.now.wall_us,
            first_us => first_us,
        };
        let (acquired, failed) = (lease.acquired, given.range.failed);
        let (consumer, deadline_us) = (given.consumer, given.deadline_us);
        part.hold(self.held_until_us(shard));
        let is_new = part.give(given.offset, Lease { consumer, acquired, failed, first_us, deadline_us });
        assert!(is_new, "{what} is delivered as {given:?}, and was before");
        part.rec(given.offset).delivered = true;
        if part.loose {
            let number = self.next_number();
            part.rec(given.offset).change(number, vec![Kept::Unknown]);
        }
        self.tally.delivered += 1;
        self.tally.redelivered += u64::from(acquired > 1);
        self.tally.dated += u64::from(fact.directions.deliver_at_us.is_some());
        known.parts.insert(key.1, part);
        self.known.insert(group, known);
    }

    fn check_times(&self, known: &Known, fact: &RecordFact, given: &Given<'_>, what: &str) {
        if known.of_dead_letters {
            return;
        }
        let (directions, wall_us) = (&fact.directions, given.now.wall_us);
        let early = directions.deliver_at_us.is_some_and(|at| at > wall_us);
        let late = directions.expire_at_us.is_some_and(|at| at <= wall_us);
        let other = directions.only_group.is_some_and(|group| group != known.info.id);
        assert!(!(early || late || other), "{what} is delivered at {wall_us}: {fact:?}");
    }

    fn check_lease(
        &mut self,
        logs: &[LogModel],
        (known, part): (&Known, &mut Part),
        facts: &[RecordFact],
        given: &Given<'_>,
        what: &str,
    ) {
        if part.leases.contains_key(&given.offset) {
            self.end_leases_of(known, part, given.now);
        }
        let lease = part.leases.get(&given.offset);
        assert!(lease.is_none(), "{what} is leased twice: {lease:?}, {given:?}");
        let max_open = known.info.config.max_open as usize;
        if part.leases.len() + part.returned.len() < max_open {
            return;
        }
        let log = &logs[part.shard];
        let vanishes = |offset: u64| self.may_vanish(known, &facts[offset as usize], log);
        let is_live =
            |(offset, lease): &(&u64, &Lease)| lease.deadline_us > given.now.mono_us && !vanishes(**offset);
        let live = part.leases.iter().filter(is_live).count();
        assert!(live < max_open, "{what}: {live} are leased, of {max_open} at most");
        let is_new = !part.rec(given.offset).delivered && given.fact.directions.deliver_at_us.is_none();
        if is_new && known.info.config.mode == GroupMode::Shared && !part.restored {
            let returned: Vec<u64> = part.returned.iter().copied().collect();
            // Those that wait for their own time, perhaps again, do not count.
            let dated = |offset: u64| facts[offset as usize].directions.deliver_at_us.is_some();
            let open = returned.into_iter().filter(|offset| !dated(*offset));
            let open = open.filter(|o| *o != given.offset && !vanishes(*o) && !part.rec(*o).may_be_done());
            let open = open.count() + live;
            assert!(open < max_open, "{what} is new, and {open} are open");
        }
    }

    fn check_counts(&mut self, known: &Known, part: &mut Part, given: &Given<'_>, what: &str) {
        let (max_ahead_us, now) = (self.max_ahead_us, given.now);
        let may_be_first = part.may_be_first(given.range.lease.acquired);
        let rec = part.rec(given.offset);
        assert!(rec.moved.is_none(), "{what} is delivered, and moved to {:?}", rec.moved);
        let before = rec.clone();
        let range = given.range;
        let fits = |kept: &Kept| {
            let Kept::Open(Tries { acquired, failed, first_us, not_before_us, due_us }) = *kept else {
                return *kept == Kept::Unknown;
            };
            let times = range.lease.acquired;
            let counts = match acquired {
                0 => may_be_first,
                _ => times == acquired + 1 && range.first_delivery_us == first_us,
            };
            let waited = match (due_us, not_before_us) {
                (0, 0) => true,
                (0, not_before_us) => now.mono_us + max_ahead_us >= not_before_us,
                (due_us, _) => now.mono_us >= due_us,
            };
            counts && failed == range.failed && waited
        };
        assert!(rec.narrow(fits), "{what} is delivered as {range:?} at {now:?}, and is {before:?}");
        let reset = rec.redriving.take_if(|acquired| *acquired != range.lease.acquired);
        assert!(reset.is_none() || known.of_dead_letters);
    }

    fn check_order(
        &mut self,
        logs: &[LogModel],
        (known, part): (&Known, &mut Part),
        facts: &[RecordFact],
        given: &Given<'_>,
        what: &str,
    ) {
        if known.info.config.mode == GroupMode::Exclusive {
            self.end_leases_before(logs, (known, part), facts, given);
            if part.loose {
                return;
            }
        }
        match (known.info.config.mode, given.fact.key) {
            (GroupMode::Shared, _) | (GroupMode::KeyOrdered, None) => {}
            (GroupMode::KeyOrdered, Some(key)) => {
                let by_key = &logs[part.shard].partitions[&part.partition].records.by_key[&key];
                self.check_key(logs, (known, part), (facts, by_key), (key, given), what);
            }
            (GroupMode::Exclusive, _) => self.check_exclusive(logs, (known, part), facts, given, what),
        }
    }

    /// Every record of the key before it is completed, and a crash does not undo that.
    fn check_key(
        &mut self,
        logs: &[LogModel],
        (known, part): (&Known, &mut Part),
        (facts, by_key): (&[RecordFact], &[u64]),
        (key, given): (u64, &Given<'_>),
        what: &str,
    ) {
        let log = &logs[part.shard];
        let from = part.done_of_key.get(&key).copied().unwrap_or(0);
        for (i, offset) in by_key.iter().enumerate().skip(from) {
            if *offset >= given.offset {
                break;
            }
            let leased = part.leases.contains_key(offset);
            let rec = part.rec(*offset);
            let vanishes = self.may_vanish(known, &facts[*offset as usize], log);
            let is_done = !leased && rec.may_be_done();
            assert!(vanishes || is_done, "{what} before {offset}, which has its key: {rec:?}");
            match rec.moved {
                _ if vanishes => {}
                Some((partition, at)) => {
                    let is_durable = (at as usize) < durable_records(logs, part.shard, partition).len();
                    assert!(is_durable, "{what} before it is durable that {offset} has moved");
                }
                // What it waited for cannot be undone.
                None => rec.claim_done(),
            }
            part.done_of_key.insert(key, i + 1);
        }
    }

    /// Nobody else has records of the partition, and every one before it is completed,
    /// or the same consumer's.
    fn check_exclusive(
        &mut self,
        logs: &[LogModel],
        (known, part): (&Known, &mut Part),
        facts: &[RecordFact],
        given: &Given<'_>,
        what: &str,
    ) {
        let log = &logs[part.shard];
        let vanishes = |offset: u64| self.may_vanish(known, &facts[offset as usize], log);
        if let Some((offset, lease)) = part.leases.last_key_value()
            && lease.deadline_us > given.now.mono_us
            && !vanishes(*offset)
        {
            assert_eq!(lease.consumer, given.consumer, "{what}, and somebody else has {offset}");
            assert!(*offset < given.offset, "{what} after {offset}");
        }
        for offset in part.done_end..given.offset {
            let leased = part.leases.contains_key(&offset);
            let at_start = part.done_end == offset;
            let vanishes = vanishes(offset);
            let rec = part.rec(offset);
            let passes = leased || rec.may_be_done() || rec.may_be_condemned() || vanishes;
            assert!(passes, "{what} before {offset}: {rec:?}");
            if at_start && (rec.is_done() || vanishes) {
                part.done_end = offset + 1;
            }
        }
    }

    /// A lease that is over has ended before a later record went to somebody else, and
    /// before one that it would have stopped.
    fn end_leases_before(
        &mut self,
        logs: &[LogModel],
        (known, part): (&Known, &mut Part),
        facts: &[RecordFact],
        given: &Given<'_>,
    ) {
        let over = |lease: &Lease| lease.deadline_us <= given.now.mono_us;
        let vanishes = |offset: u64| self.may_vanish(known, &facts[offset as usize], &logs[part.shard]);
        let mut before = part.leases.range(..given.offset);
        if before.any(|(offset, lease)| over(lease) && vanishes(*offset)) {
            // It has vanished, or runs out now and takes this one with it.
            return part.loosen(self.next_number());
        }
        let stops = |lease: &Lease| {
            let after = Part::after(lease, &Why::TimedOut, &known.info, given.now);
            lease.consumer != given.consumer || matches!(after, Kept::Condemned(..))
        };
        let ended = part.leases.range(..given.offset).any(|(_, lease)| over(lease) && stops(lease));
        if ended {
            self.end_leases_of(known, part, given.now);
        }
    }

    fn end_leases_of(&mut self, known: &Known, part: &mut Part, now: Now) {
        let number = self.next_number();
        self.tally.timed_out += part.end_leases(&known.info, number, now);
    }

    /// A shard has acted: what is due has ended by now.
    pub fn acted(&mut self, logs: &[LogModel], shard: usize, now: Now) {
        if self.held_until_us(shard) == u64::MAX {
            return;
        }
        let mut groups = std::mem::take(&mut self.known);
        for known in groups.values_mut() {
            let mut parts = std::mem::take(&mut known.parts);
            for part in parts.values_mut().filter(|part| part.shard == shard) {
                if known.info.config.mode == GroupMode::Exclusive && !part.loose {
                    let facts = durable_records(logs, part.shard, part.partition);
                    let given_up = logs[part.shard].given_up;
                    let mut held = part.leases.keys().chain(&part.returned);
                    if held.any(|offset| given_up >= Some(facts[*offset as usize].segment)) {
                        part.loosen(self.next_number());
                    }
                }
                if part.leases.values().any(|lease| lease.deadline_us <= now.mono_us) {
                    self.end_leases_of(known, part, now);
                }
            }
            known.parts = parts;
        }
        self.known = groups;
    }

    /// The broker writes a record that it has moved.
    ///
    /// # Panics
    /// If nobody wanted that, or it moved before.
    pub fn moved(&mut self, logs: &[LogModel], shard: usize, print: &Print, offset: u64) {
        let fact = &logs[shard].partitions[&print.partition].records.all[offset as usize];
        let to = (print.partition, offset);
        match &fact.letter {
            Some(letter) => self.dead_lettered(logs, shard, (fact, letter), to),
            None => self.redriven(logs, shard, fact, to),
        }
    }

    fn dead_lettered(
        &mut self,
        logs: &[LogModel],
        shard: usize,
        (fact, letter): (&RecordFact, &DeadLetter),
        to: (PartitionId, u64),
    ) {
        self.tally.letters += 1;
        self.part((letter.group, letter.origin.index), logs.len());
        let Some(mut known) = self.known.remove(&letter.group) else {
            panic!("{letter:?} of a group that nobody knows");
        };
        assert_eq!((known.info.topic, known.info.dead_letter), (letter.origin.topic, to.0.topic));
        let origin = &durable_records(logs, shard, letter.origin)[letter.offset.0 as usize];
        let own = &fact.directions;
        assert_eq!((fact.body, fact.key), (origin.body, origin.key), "{letter:?} is another record");
        assert_eq!(own.expire_at_us, origin.directions.expire_at_us, "{letter:?}");
        let expires = known.info.config.dead_letter_expired
            && origin.directions.expire_at_us.is_some_and(|at| at <= self.max_wall_us);
        let mut part = known.parts.remove(&letter.origin.index).expect("it was found or made");
        if part.leases.contains_key(&letter.offset.0) {
            self.end_leases_of(&known, &mut part, self.now);
        }
        let fits = |kept: &Kept| match kept {
            Kept::Condemned(tries, reason) => {
                (letter.acquired, letter.failed, letter.first_delivery_us)
                    == (tries.acquired, tries.failed, tries.first_us)
                    && letter.reason == *reason
            }
            Kept::Open(tries) => {
                expires && letter.failed == tries.failed && letter.reason == "its time to live was over"
            }
            Kept::Done => false,
            Kept::Unknown => true,
        };
        let (is_loose, number) = (part.loose, self.next_number());
        let rec = part.rec(letter.offset.0);
        if is_loose && rec.possible.iter().any(fits) {
            // It may be set back since.
        } else if rec.loose_moves > 0 && rec.possible.iter().any(fits) {
            // That was before it was set back, or after.
            rec.loose_moves -= 1;
            rec.change(number, vec![Kept::Unknown]);
        } else if rec.moved.is_none() && rec.possible.iter().any(fits) {
            rec.moved = Some(to);
            part.returned.remove(&letter.offset.0);
        } else {
            assert!(rec.loose_moves > 0, "{letter:?} goes to the dead-letter topic, and is {rec:?}");
            rec.loose_moves -= 1;
        }
        known.parts.insert(letter.origin.index, part);
        self.known.insert(letter.group, known);
    }

    fn redriven(&mut self, logs: &[LogModel], shard: usize, fact: &RecordFact, to: (PartitionId, u64)) {
        let group = fact.directions.only_group.expect("it has moved");
        let number = self.next_number();
        let letters = self.known.values_mut().filter(|known| known.of_dead_letters);
        let parts = letters.flat_map(|known| known.parts.values_mut()).filter(|part| part.shard == shard);
        // A record that failed again has letters that cannot be told apart.
        let mut may_be: Vec<(&mut Part, Vec<u64>)> = Vec::new();
        for part in parts {
            let facts = durable_records(logs, shard, part.partition);
            let mut is_it = |(offset, fact_of): &(u64, &RecordFact)| {
                let is_from = fact_of
                    .letter
                    .as_ref()
                    .is_some_and(|of| of.group == group && of.origin == to.0 && fact_of.body == fact.body);
                let rec = part.rec(*offset);
                is_from && ((rec.redriving.is_some() && rec.moved.is_none()) || rec.loose_moves > 0)
            };
            let offsets: Vec<u64> = (0..).zip(facts).filter(&mut is_it).map(|(offset, _)| offset).collect();
            may_be.push((part, offsets));
        }
        may_be.retain(|(_, offsets)| !offsets.is_empty());
        match &mut may_be[..] {
            [] => panic!("{fact:?} is redriven to {to:?}, and nobody wanted that"),
            [(part, offsets)] if offsets.len() == 1 && !part.loose => {
                let rec = part.rec(offsets[0]);
                if rec.redriving.take().is_none() || rec.moved.is_some() {
                    rec.loose_moves -= 1;
                    return;
                }
                rec.moved = Some(to);
                part.leases.remove(&offsets[0]);
                part.returned.remove(&offsets[0]);
            }
            several => several.iter_mut().for_each(|(part, _)| part.loosen(number)),
        }
    }

    /// Nothing goes wrong any more, and every group has said that it has nothing left:
    /// is every record completed, of which that was promised?
    ///
    /// # Panics
    /// If one was dropped.
    pub fn check_complete(&mut self, logs: &[LogModel]) {
        let mut groups = std::mem::take(&mut self.known);
        for known in groups.values_mut().filter(|known| known.fate == GroupFate::Alive) {
            let mut parts = std::mem::take(&mut known.parts);
            for part in parts.values_mut() {
                let facts = durable_records(logs, part.shard, part.partition);
                for (offset, fact) in (0..).zip(facts) {
                    let vanishes = self.may_vanish(known, fact, &logs[part.shard]);
                    let (group, partition) = (known.info.id, part.partition);
                    let rec = part.rec(offset);
                    let is_done = rec.may_be_done() || vanishes;
                    assert!(is_done, "group {group}, {partition}:{offset} was dropped: {rec:?}");
                }
            }
            known.parts = parts;
        }
        self.known = groups;
    }

    /// When everything that waits has come, µs, by the monotonic clock.
    pub fn latest_due(&self, logs: &[LogModel], now: Now) -> u64 {
        let mut latest = now.mono_us;
        for part in self.known.values().flat_map(|known| known.parts.values()) {
            latest = latest.max(part.latest_due(now));
            let dates = durable_records(logs, part.shard, part.partition).iter();
            let dates = dates.filter_map(|fact| fact.directions.deliver_at_us);
            let last = dates.max().unwrap_or(0);
            latest = latest.max(now.mono_us + last.saturating_sub(now.wall_us));
        }
        latest
    }
}
