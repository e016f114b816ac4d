//! Delivering: records from the log to consumers of groups.

use ringbolt_wire::batch::BATCH_HEADER_LEN;
use ringbolt_wire::message::{Delivery, GroupMode};
use ringbolt_wire::{BatchHeader, BatchView, GroupId, Offset, RecordView};

use super::Shard;
use super::action::Reply;
use super::read::{Pieces, Unavailable};
use crate::buffer::BufferPool;
use crate::consumer::judge::{Verdict, judge};
use crate::consumer::keys::Keys;
use crate::consumer::parcel::{Cut, Parcel, Span, batches_of};
use crate::consumer::wheel::Entry;
use crate::consumer::{Attempts, How};
use crate::limits::{MAX_DELIVERY_LEN, MAX_STORED_BATCH_LEN};
use crate::log::group_commit::PendingAck;
use crate::log::pages::PageId;
use crate::time::Now;

/// Deliveries of one turn, after which others have theirs; long ones count for several.
const MAX_DELIVERIES_PER_TURN: usize = 64;

/// Bytes of a delivery that count for one more.
const LONG_DELIVERY: usize = 128 << 10;

/// Records that a look at a part may pass over: expired ones, others' ones, such as wait. A
/// quarter of a millisecond.
const MAX_PASSED: usize = 4096;

/// So many of them count for one delivery more.
const PASSED_FOR_ONE: usize = MAX_PASSED / MAX_DELIVERIES_PER_TURN;

/// How long until a part is looked at again for which memory was short, µs.
const SHORTAGE_RETRY_US: u64 = 1000;

/// How long until a damaged record is read again, µs: the disk may have failed that once.
const DAMAGED_RETRY_US: u64 = 30_000_000;

/// How a look at a part has ended.
enum Look {
    /// There is more, and no room for it in this parcel.
    More,
    /// There is nothing more, or it must wait.
    Nothing,
    /// These pages must be read first, for this record.
    Pages(u64, Vec<PageId>),
}

/// What goes on while a parcel is put together.
struct Packing {
    id: GroupId,
    number: u32,
    consumer: u32,
    parcel: Parcel,
    max_records: u64,
    max_len: usize,
    max_open: usize,
    /// Records that were looked at and are not in the parcel.
    passed: usize,
    deadline_us: u64,
    now: Now,
}

impl Packing {
    fn is_full(&self) -> bool {
        self.is_full_with(&None)
    }

    /// The same once this is in it: the last record may go beyond the bytes, and no
    /// other.
    fn is_full_with(&self, cut: &Option<Cut>) -> bool {
        let (records, len) =
            cut.map_or((0, 0), |cut| (u64::from(cut.count), BATCH_HEADER_LEN + cut.bytes.1 - cut.bytes.0));
        let is_long =
            self.parcel.records + records >= self.max_records || self.parcel.len + len >= self.max_len;
        is_long || self.passed >= MAX_PASSED
    }
}

impl<P: BufferPool> Shard<P> {
    /// Lets groups look at partitions in which something has become durable.
    pub(super) fn wake_groups(&mut self, acks: &[PendingAck]) {
        if self.groups.is_empty() {
            return;
        }
        let mut last = None;
        for ack in acks.iter().filter(|ack| !ack.duplicate) {
            if last.replace(ack.partition) == Some(ack.partition) {
                continue;
            }
            for number in self.groups.parts_of(ack.partition) {
                self.groups.stir(number);
            }
        }
    }

    /// Sends to consumers what there is, as far as their credit goes.
    pub(super) fn deliver(&mut self, now: Now) {
        self.groups.goes_on = false;
        if self.groups_held().is_some() {
            return;
        }
        if self.groups.turn.0 != now.mono_us {
            self.groups.turn = (now.mono_us, MAX_DELIVERIES_PER_TURN);
        }
        self.groups.relieve(self.config.max_open);
        let mut left = self.groups.turn.1;
        while left > 0
            && let Some(id) = self.groups.next_in_line()
        {
            self.deliver_of(id, &mut left, now);
        }
        self.groups.turn.1 = left;
        // Who stands first is first in the next turn.
        self.groups.goes_on = self.groups.has_line();
    }

    fn deliver_of(&mut self, id: GroupId, left: &mut usize, now: Now) {
        // Each part is looked at until it has nothing, or nobody takes it.
        while let Some(group) = self.groups.by_id.get_mut(&id) {
            let is_exclusive = group.info.config.mode == GroupMode::Exclusive;
            if !is_exclusive && !group.has_takers() {
                return;
            }
            if *left == 0 {
                return self.groups.line_up(id);
            }
            let Some(number) = group.dequeue() else { return };
            self.groups.parts[number as usize].queued = false;
            *left -= 1;
            let consumer = match is_exclusive {
                true => self.holder(id, number),
                false => self.groups.by_id.get_mut(&id).and_then(|group| group.next_in_line()),
            };
            let Some(consumer) = consumer else { continue };
            match self.deliver_to(id, number, consumer, left, now) {
                Look::More => {
                    if let Some(group) = self.groups.by_id.get_mut(&id) {
                        group.requeue(number, &mut self.groups.parts[number as usize]);
                    }
                }
                Look::Nothing => {}
                Look::Pages(offset, pages) => self.read_for_part(number, offset, pages),
            }
        }
    }

    /// Who has a partition for itself and takes records, if somebody does.
    fn holder(&mut self, id: GroupId, number: u32) -> Option<u32> {
        let group = self.groups.by_id.get_mut(&id)?;
        let holder = group.hold(number, &mut self.groups.parts[number as usize])?;
        group.consumer(holder).takes().then_some(holder)
    }

    fn deliver_to(&mut self, id: GroupId, number: u32, consumer: u32, left: &mut usize, now: Now) -> Look {
        let room = self.groups.room(number, self.config.max_open);
        let open = self.groups.parts[number as usize].open();
        let Some(group) = self.groups.by_id.get(&id) else { return Look::Nothing };
        let most_open = group.info.config.max_open as usize;
        let who = group.consumer(consumer);
        let mut packing = Packing {
            id,
            number,
            consumer,
            parcel: Parcel::default(),
            max_records: who.credit.records,
            max_len: (who.credit.bytes as usize).min(MAX_DELIVERY_LEN),
            max_open: most_open.min(open + room),
            passed: 0,
            deadline_us: now.mono_us + u64::from(who.lease_ms) * 1000,
            now,
        };
        let look = self.pack(&mut packing);
        self.count_open(number);
        let open_now = self.groups.parts[number as usize].open();
        self.groups.crowd(number, (packing.max_open..most_open).contains(&open_now));
        *left = left.saturating_sub(packing.parcel.len / LONG_DELIVERY + packing.passed / PASSED_FOR_ONE);
        if !packing.parcel.is_empty() {
            self.send(packing);
        }
        look
    }

    fn send(&mut self, packing: Packing) {
        let Packing { id, number, consumer, parcel, deadline_us, .. } = packing;
        let (records, len) = (parcel.records, parcel.len as u64);
        let (ranges, payload) = parcel.finish();
        let owner = self.groups.parts[number as usize].owner;
        for range in &ranges {
            self.groups.set_timer(owner, (range.lease.base_offset.0, range.lease.end().0), deadline_us);
        }
        let Some(group) = self.groups.by_id.get_mut(&id) else { return };
        let who = group.consumer_mut(consumer);
        who.sent(records, len);
        let delivery = Delivery { lease_ms: who.lease_ms, ranges };
        let to = who.link().to().expect("only who gets records takes them");
        self.counters.delivered_records += records;
        self.counters.delivered_bytes += len;
        self.reply(to, Reply::Delivered { delivery, payload });
        self.delivered_once(id, consumer);
    }

    /// Puts records into a parcel until it is full, or there are no more.
    fn pack(&mut self, packing: &mut Packing) -> Look {
        let part = &self.groups.parts[packing.number as usize];
        let Some(slot) = self.state.slot(part.partition).filter(|_| !part.beginning) else {
            return Look::Nothing;
        };
        let end = self.state.partition(slot).durable_end.0;
        let looked = self.pack_ready(packing, slot).and_then(|()| self.pack_new(packing, slot, end));
        match looked {
            Ok(look) => look,
            Err(Unavailable::Pages(pages)) => {
                let part = &self.groups.parts[packing.number as usize];
                Look::Pages(part.first_ready().unwrap_or(part.next), pages)
            }
            Err(Unavailable::Shortage) => {
                let part = &mut self.groups.parts[packing.number as usize];
                part.reading = true;
                self.groups.short.insert(part.owner);
                self.groups.retry_us.get_or_insert(packing.now.mono_us + SHORTAGE_RETRY_US);
                Look::Nothing
            }
            Err(Unavailable::Corrupt { segment, position }) => {
                let part = &mut self.groups.parts[packing.number as usize];
                let (partition, offset) = (part.partition, part.first_ready().unwrap_or(part.next));
                part.damaged = Some(offset);
                self.groups.damaged.push(part.owner);
                self.groups.damaged_retry_us.get_or_insert(packing.now.mono_us + DAMAGED_RETRY_US);
                if part.reported.replace(offset) != Some(offset) {
                    self.report_corrupt(partition, Offset(offset), segment, position);
                }
                Look::Nothing
            }
        }
    }

    /// Records that came back and are ready.
    fn pack_ready(&mut self, packing: &mut Packing, slot: u32) -> Result<(), Unavailable> {
        while !packing.is_full() {
            let part = &self.groups.parts[packing.number as usize];
            let may_give = |offset: &u64| self.may_give_again(packing, *offset);
            let Some(offset) = part.first_ready().filter(may_give) else { return Ok(()) };
            // All of the batch that are ready, in one go.
            let batch = self.read_batch(slot, offset)?;
            let end = BatchHeader::decode(batch.as_slice()).expect("reading has checked it").next_offset().0;
            let last = self.groups.parts[packing.number as usize].last_ready(end).unwrap_or(offset);
            self.pack_batch(packing, &batch, (offset, last + 1), false);
        }
        Ok(())
    }

    /// Whether one that came back may be delivered now.
    fn may_give_again(&self, packing: &Packing, offset: u64) -> bool {
        let part = &self.groups.parts[packing.number as usize];
        // Those that waited for their own time did not count; now they do.
        part.damaged.is_none_or(|at| offset < at) && part.leased() < packing.max_open
    }

    /// Records that were not looked at, up to the durable end.
    fn pack_new(&mut self, packing: &mut Packing, slot: u32, end: u64) -> Result<Look, Unavailable> {
        loop {
            let part = &mut self.groups.parts[packing.number as usize];
            if packing.is_full() {
                let more = part.first_ready().is_some() || part.next < end;
                return Ok(if more { Look::More } else { Look::Nothing });
            }
            let acks = self.state.groups.acks.entry(part.key).or_default();
            while let Some(until) = acks.completed_until(part.next) {
                part.next = until;
            }
            part.reading = false;
            if part.next >= end || part.damaged.is_some() || part.open() >= packing.max_open {
                return Ok(Look::Nothing);
            }
            let room = (packing.max_len - packing.parcel.len).max(1);
            let next = part.next;
            let mut pieces = Pieces::new();
            self.may_read_for_groups();
            let batches = self.read_some(slot, Offset(next), room, true, &mut pieces)?;
            assert!(batches.len > 0 && batches.next.0 <= end, "what is durable can be read");
            for batch in batches_of(&pieces) {
                if !self.pack_batch(packing, &batch, (next, u64::MAX), true) {
                    let is_full = packing.is_full();
                    return Ok(if is_full { Look::More } else { Look::Nothing });
                }
            }
        }
    }

    /// The batch that holds a record.
    pub(super) fn read_batch(&mut self, slot: u32, offset: u64) -> Result<Span, Unavailable> {
        let mut pieces = Pieces::new();
        self.may_read_for_groups();
        self.read_some(slot, Offset(offset), 1, true, &mut pieces)?;
        let first = batches_of(&pieces).into_iter().next();
        Ok(first.expect("reading gives one batch at least"))
    }

    fn may_read_for_groups(&mut self) {
        self.reader.may_want = self.fetches.may_read(None, self.reader.pages.max_readers());
    }

    /// Puts those records of a batch into the parcel that are in `range`. `is_new` says
    /// that they were not looked at. False if no more may be.
    fn pack_batch(&mut self, packing: &mut Packing, batch: &Span, range: (u64, u64), is_new: bool) -> bool {
        let header = *BatchHeader::decode(batch.as_slice()).expect("reading has checked it");
        let (base, end) = (header.base_offset().0, header.next_offset().0);
        let (Some(group), part) =
            (self.groups.by_id.get(&packing.id), &mut self.groups.parts[packing.number as usize])
        else {
            return false;
        };
        let acks = self.state.groups.acks.entry(part.key).or_default();
        let mode = group.info.config.mode;
        let count = u64::from(header.count());
        let is_plain = is_new
            && mode != GroupMode::KeyOrdered
            && (!header.is_directed() || group.of_dead_letters)
            && part.next == base
            && part.are_alike(base, end)
            && packing.parcel.records + count <= packing.max_records
            && packing.parcel.len + header.len() <= packing.max_len
            && part.open() + count as usize <= packing.max_open
            && part.held_by.is_none()
            && !acks.knows_any(base, end);
        if !is_plain {
            return self.pack_records(packing, &header, batch, range, is_new);
        }
        let about = part.about(base, acks);
        for offset in base..end {
            part.give(offset, &about, packing.consumer, packing.deadline_us, packing.now);
        }
        part.next = end;
        acks.delivered_up_to(end);
        packing.parcel.push_whole(part.key.partition, &header, batch, &about);
        !packing.is_full()
    }

    fn pack_records(
        &mut self,
        packing: &mut Packing,
        header: &BatchHeader,
        batch: &Span,
        range: (u64, u64),
        is_new: bool,
    ) -> bool {
        let bytes = batch.as_slice();
        let view = BatchView::parse_stored(bytes, MAX_STORED_BATCH_LEN).expect("reading has checked it");
        let partition = self.groups.parts[packing.number as usize].key.partition;
        let (mut cut, mut goes_on): (Option<Cut>, bool) = (None, true);
        for (index, (record, record_bytes)) in (0u32..).zip(view.records_with_bytes()) {
            let offset = header.base_offset().0 + u64::from(index);
            if offset < range.0 {
                continue;
            }
            if offset >= range.1 {
                break;
            }
            let directed = header.is_directed().then_some(&record);
            let step = match packing.is_full_with(&cut) {
                _ if !is_new && !self.groups.parts[packing.number as usize].is_ready(offset) => Step::Pass,
                true => Step::Stop,
                false if !is_new && !self.may_give_again(packing, offset) => Step::Stop,
                false => self.step(packing, offset, &record, directed, is_new),
            };
            match step {
                Step::Take => {
                    let start = record_bytes.as_ptr() as usize - bytes.as_ptr() as usize;
                    let time = record.timestamp_us;
                    let about = self.take(packing, offset);
                    match &mut cut {
                        Some(open) if open.about == about => {
                            open.count += 1;
                            open.bytes.1 = start + record_bytes.len();
                            open.timestamps.1 = open.timestamps.1.max(time);
                        }
                        _ => {
                            let bytes = (start, start + record_bytes.len());
                            let next = Cut { first: index, count: 1, bytes, timestamps: (time, time), about };
                            let done = cut.replace(next);
                            done.iter()
                                .for_each(|cut| packing.parcel.push_cut(partition, header, batch, cut));
                        }
                    }
                }
                Step::Pass => {
                    packing.passed += 1;
                    let done = cut.take();
                    done.iter().for_each(|cut| packing.parcel.push_cut(partition, header, batch, cut));
                }
                Step::Stop => {
                    goes_on = false;
                    break;
                }
            }
            if is_new {
                self.groups.parts[packing.number as usize].next = offset + 1;
            }
        }
        cut.iter().for_each(|cut| packing.parcel.push_cut(partition, header, batch, cut));
        goes_on && !packing.is_full()
    }

    /// Gives a record to the consumer.
    fn take(&mut self, packing: &Packing, offset: u64) -> crate::consumer::part::Delivered {
        let part = &mut self.groups.parts[packing.number as usize];
        let acks = self.state.groups.acks.entry(part.key).or_default();
        let about = part.about(offset, acks);
        part.give(offset, &about, packing.consumer, packing.deadline_us, packing.now);
        acks.delivered_up_to(offset + 1);
        about
    }

    /// Decides about a record whose turn it is.
    fn step(
        &mut self,
        packing: &Packing,
        offset: u64,
        record: &RecordView<'_>,
        directed: Option<&RecordView<'_>>,
        is_new: bool,
    ) -> Step {
        let Some(group) = self.groups.by_id.get(&packing.id) else { return Step::Stop };
        let part = &mut self.groups.parts[packing.number as usize];
        if !is_new {
            part.unready(offset);
        }
        let acks = self.state.groups.acks.entry(part.key).or_default();
        if acks.is_completed(offset) {
            return Step::Pass;
        }
        let mode = group.info.config.mode;
        // It may be looked at again while it waits, if it is one of those that one consumer has
        // in order.
        if mode == GroupMode::Exclusive && part.backing_off.contains(&offset) {
            part.held_by.get_or_insert(offset);
        }
        if part.held_by.is_some() {
            return Step::Stop;
        }
        let verdict = judge(directed, acks.attempts(offset), group, packing.now.wall_us);
        match verdict {
            Verdict::Skip => {
                self.finish(packing.number, offset, How::Skipped);
                return Step::Pass;
            }
            Verdict::Expire if !group.info.config.dead_letter_expired || group.info.dead_letter.0 == 0 => {
                self.finish(packing.number, offset, How::Expired);
                return Step::Pass;
            }
            _ => {}
        }
        if is_new && part.open() >= packing.max_open {
            return Step::Stop;
        }
        if is_new
            && mode == GroupMode::KeyOrdered
            && let Some(key) = record.key
            && !part.keys.add(offset, Keys::hash(key))
        {
            return Step::Pass;
        }
        self.step_aside(packing, offset, verdict, is_new)
    }

    /// Delivers a record, or puts it where it waits.
    fn step_aside(&mut self, packing: &Packing, offset: u64, verdict: Verdict, is_new: bool) -> Step {
        let part = &mut self.groups.parts[packing.number as usize];
        let now = packing.now;
        let is_condemned = matches!(verdict, Verdict::Condemned | Verdict::Expire);
        let is_exclusive = self.groups.by_id[&packing.id].info.config.mode == GroupMode::Exclusive;
        match verdict {
            Verdict::Deliver | Verdict::Skip => return Step::Take,
            Verdict::Condemned => self.condemn(packing.number, offset),
            Verdict::Expire => {
                let acks = self.state.groups.acks.entry(part.key).or_default();
                let mut attempts = acks.attempts(offset).cloned().unwrap_or_else(Attempts::default);
                attempts.condemned = Some("its time to live was over".into());
                self.groups.changes.came_back(part.key, offset, &attempts);
                acks.came_back(offset, attempts);
                self.condemn(packing.number, offset);
            }
            Verdict::BackOff(wait_us) => {
                part.backing_off.insert(offset);
                let entry = Entry { due_us: now.mono_us + wait_us, offset, owner: part.owner };
                self.groups.backing_off.add(entry, now.mono_us);
            }
            Verdict::Dated(_) if part.dated_held == Some(offset) => {}
            Verdict::Dated(due_us) => {
                let is_at_bound = self.groups.room_to_delay(self.config.max_delayed) == 0;
                let part = &mut self.groups.parts[packing.number as usize];
                if is_at_bound && is_new {
                    part.at_delayed_bound = Some(offset);
                    self.groups.at_delayed_bound.insert(part.owner);
                    return Step::Stop;
                }
                if is_at_bound && !is_exclusive {
                    // Its key has become free for it.
                    part.crowd_out(offset);
                    self.groups.at_delayed_bound.insert(part.owner);
                    return Step::Pass;
                }
                if is_exclusive {
                    part.dated_held = Some(offset);
                }
                self.groups.delay(packing.number, offset, due_us, now.wall_us);
            }
        }
        if !is_exclusive {
            return Step::Pass;
        }
        // What follows it waits for it.
        if !is_condemned {
            self.groups.parts[packing.number as usize].held_by = Some(offset);
        }
        Step::Stop
    }

    /// A record is to go to the dead-letter topic.
    fn condemn(&mut self, number: u32, offset: u64) {
        self.groups.parts[number as usize].condemn(offset);
        self.groups.condemned.insert(number);
    }

    /// A record that nobody has is completed.
    fn finish(&mut self, number: u32, offset: u64, how: How) {
        self.complete(number, offset, how);
    }

    /// Asks for pages; the part is looked at again when they are there.
    fn read_for_part(&mut self, number: u32, offset: u64, pages: Vec<PageId>) {
        let part = &mut self.groups.parts[number as usize];
        part.reading = true;
        let owner = part.owner;
        self.wait_for_pages(owner, offset, pages);
    }

    /// Whether a part's record can be read now.
    pub(super) fn probe(&mut self, owner: u32, offset: u64) -> Result<(), Unavailable> {
        let number = self.groups.part_of_owner(owner);
        let partition = number.map(|number| self.groups.parts[number as usize].partition);
        let Some(slot) = partition.and_then(|partition| self.state.slot(partition)) else { return Ok(()) };
        let known = self.state.partition(slot);
        if offset < known.start_offset.0 || offset >= known.durable_end.0 {
            return Ok(());
        }
        self.read_some(slot, Offset(offset), MAX_DELIVERY_LEN, true, &mut Pieces::new()).map(|_| ())
    }

    /// What was missing to go on with a part is there, or will not come.
    pub(super) fn go_on_with(&mut self, owner: u32, now: Now) {
        let Some(number) = self.groups.part_of_owner(owner) else { return };
        self.groups.parts[number as usize].reading = false;
        self.groups.stir(number);
        self.moves.retry_us = None;
        self.move_records(now);
        self.deliver(now);
    }
}

/// What to do with a record.
enum Step {
    /// It goes into the parcel.
    Take,
    /// It does not, and the next one is looked at.
    Pass,
    /// Neither it nor those behind it are looked at now.
    Stop,
}
