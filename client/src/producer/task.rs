//! The task of one shard: it owns the connection and the producer states of the
//! shard's partitions.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ringbolt_wire::message::ErrorResponse;
use ringbolt_wire::{ErrorCode, Request, Response};
use tokio::time::sleep_until;

use super::lane::{Shard, Shared, Tag, Times};
use super::turn;
use crate::backoff::Backoff;
use crate::error::Error;
use crate::net::{Connection, ConnectionEvent, Dialer};
use crate::producer_state::{BatchId, Finished, ProducerConfig, ProducerState, Step};
use crate::record::{Receipt, from_us};
use crate::session::{SendRefusal, SessionEvent};

/// Which request an answer belongs to.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Open { lane: usize },
    Batch { lane: usize, id: BatchId },
}

struct LaneTask {
    state: ProducerState<Tag>,
    /// Is in `ShardTask::ready`.
    queued: bool,
    /// Earliest entry of this lane in `ShardTask::timers`.
    timer_us: Option<u64>,
    /// The open batch leaves without waiting for more.
    hurry: bool,
}

pub(super) struct ShardTask {
    shard: Arc<Shard>,
    shared: Arc<Shared>,
    connection: Connection<Asked>,
    min_copies: u8,
    sticky: (Arc<AtomicU32>, u32),
    lanes: Vec<LaneTask>,
    /// Lanes with something to do.
    ready: VecDeque<usize>,
    /// Lanes that had no credit.
    starved: Vec<usize>,
    timers: BinaryHeap<Reverse<(u64, usize)>>,
    dirty: Vec<usize>,
    told_down: bool,
}

impl ShardTask {
    pub fn new(
        shard: Arc<Shard>,
        shared: Arc<Shared>,
        dialer: Dialer,
        config: ProducerConfig,
        min_copies: u8,
        sticky: (Arc<AtomicU32>, u32),
        seed: u64,
    ) -> Self {
        let lane = |(index, lane): (usize, &super::Lane)| LaneTask {
            state: ProducerState::new(lane.partition, config, seed ^ index as u64),
            queued: false,
            timer_us: None,
            hurry: false,
        };
        let lanes = shard.lanes.iter().enumerate().map(lane).collect();
        ShardTask {
            connection: Connection::new(dialer, Backoff::new(config.backoff, !seed)),
            shard,
            shared,
            min_copies,
            sticky,
            lanes,
            ready: VecDeque::new(),
            starved: Vec::new(),
            timers: BinaryHeap::new(),
            dirty: Vec::new(),
            told_down: false,
        }
    }

    /// Runs until the producer is closed and everything has ended.
    pub async fn run(mut self) {
        loop {
            self.gather();
            while let Some(lane) = self.ready.pop_front() {
                self.lanes[lane].queued = false;
                self.service(lane);
            }
            if self.may_end() {
                return;
            }
            let shared = self.shared.clone();
            let timer = self.timers.peek().and_then(|Reverse((at, _))| shared.instant(*at));
            tokio::select! {
                () = self.shard.wake.notified() => {}
                event = self.connection.next() => {
                    self.on_connection(event);
                    while let Some(event) = self.connection.next_buffered() {
                        self.on_connection(event);
                    }
                }
                () = async { sleep_until(timer.unwrap_or_else(far).into()).await }, if timer.is_some() => {}
            }
        }
    }

    /// Queues the lanes that have news or whose time has come.
    fn gather(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        self.shard.take_dirty(&mut dirty);
        dirty.drain(..).for_each(|lane| self.queue(lane));
        self.dirty = dirty;
        let closing = self.shard.closing.load(Ordering::Acquire);
        if self.shard.hurry.swap(false, Ordering::AcqRel) || closing {
            for lane in 0..self.lanes.len() {
                if self.shard.lanes[lane].open_times().is_some() {
                    self.lanes[lane].hurry = true;
                    self.queue(lane);
                }
            }
        }
        let now = self.shared.now_us();
        while let Some(&Reverse((at, lane))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            self.lanes[lane].timer_us = None;
            self.queue(lane);
        }
    }

    fn queue(&mut self, lane: usize) {
        if !std::mem::replace(&mut self.lanes[lane].queued, true) {
            self.ready.push_back(lane);
        }
    }

    fn may_end(&self) -> bool {
        self.shard.closing.load(Ordering::Acquire)
            && self.lanes.iter().all(|lane| lane.state.is_idle())
            && self.shard.lanes.iter().all(|lane| lane.close_if_empty())
    }

    /// Moves a lane's records on as far as they go now.
    fn service(&mut self, lane: usize) {
        let now = self.shared.now_us();
        loop {
            self.take_batches(lane, now);
            let credit = self.connection.session().map(|session| session.credit());
            let has_credit = credit.is_some_and(|credit| credit > 0);
            let Some(step) = self.lanes[lane].state.poll(now, has_credit) else {
                if credit == Some(0) {
                    self.starved.push(lane);
                }
                break;
            };
            self.carry_out(lane, step, now);
        }
        self.set_timer(lane, now);
    }

    fn take_batches(&mut self, lane: usize, now: u64) {
        let limits = self.shared.gathering;
        let task = &mut self.lanes[lane];
        while let Some(batch) = self.shard.lanes[lane].take_complete() {
            task.state.push(batch.builder, batch.times.deadline_us, batch.tag);
        }
        let wanted = task.state.wants_batch(now);
        let hurry = task.hurry;
        let due = |times: Times| {
            let lingered = hurry || now >= times.begun_us.saturating_add(limits.linger_us);
            (wanted && lingered) || now >= times.deadline_us
        };
        if let Some(batch) = self.shard.lanes[lane].take_open(due) {
            task.hurry = false;
            task.state.push(batch.builder, batch.times.deadline_us, batch.tag);
            let partition = self.shard.lanes[lane].partition.index;
            turn(&self.sticky.0, partition, self.sticky.1);
        }
    }

    fn carry_out(&mut self, lane: usize, step: Step<Tag>, now: u64) {
        let Some(session) = self.connection.session() else {
            // Without a connection there are only ends, and `on_lost` tells
            // every state when there is none.
            if let Step::Finished(finished) = step {
                self.finish(lane, finished);
            }
            return;
        };
        let state = &mut self.lanes[lane].state;
        match step {
            Step::Finished(finished) => self.finish(lane, finished),
            Step::Reconnect => {
                tracing::warn!("the broker does not answer; connecting anew");
                self.connection.reset();
                self.on_lost();
            }
            Step::Open(open) => {
                if let Err(refused) = session.request(&Request::OpenProducer(open), Asked::Open { lane }) {
                    state.on_open_refused(not_sent(refused.why), now);
                }
            }
            Step::Send { id, batch } => {
                let asked = Asked::Batch { lane, id };
                if let Err(refused) = session.produce_bytes(&batch, self.min_copies, asked) {
                    state.on_refused(id, not_sent(refused.why), now);
                }
            }
        }
    }

    fn finish(&mut self, lane: usize, finished: Finished<Tag>) {
        let partition = self.shard.lanes[lane].partition.index;
        let verdict = match finished.verdict {
            Ok(durable) => Ok(durable),
            Err(failure) => Err(failure.into()),
        };
        for (index, waiter) in (0u64..).zip(finished.tag.waiters) {
            let answer = verdict.clone().map(|durable| Receipt {
                partition,
                offset: durable.base_offset.map(|base| base.0 + index),
                commit_time: (durable.commit_time_us > 0).then(|| from_us(durable.commit_time_us)),
                copies: durable.copies,
            });
            // Who dropped the future does not want to know.
            let _ = waiter.send(answer);
        }
        self.shared.release(finished.tag.cost);
    }

    fn set_timer(&mut self, lane: usize, now: u64) {
        let limits = self.shared.gathering;
        let task = &mut self.lanes[lane];
        let open = self.shard.lanes[lane].open_times().map(|times| {
            let lingered = times.begun_us.saturating_add(limits.linger_us);
            if task.state.wants_batch(now) { lingered.min(times.deadline_us) } else { times.deadline_us }
        });
        let Some(at) = [task.state.poll_timeout(), open].into_iter().flatten().min() else { return };
        if task.timer_us.is_none_or(|set| at < set) {
            task.timer_us = Some(at);
            self.timers.push(Reverse((at, lane)));
        }
    }

    fn on_connection(&mut self, event: ConnectionEvent<Asked>) {
        match event {
            ConnectionEvent::Up => {
                if std::mem::take(&mut self.told_down) {
                    tracing::info!("connected to the broker again");
                }
                self.lanes.iter_mut().for_each(|lane| lane.state.on_connected());
                (0..self.lanes.len()).for_each(|lane| self.queue(lane));
            }
            ConnectionEvent::Failed(error) => {
                if !std::mem::replace(&mut self.told_down, true) {
                    tracing::warn!(%error, "the broker cannot be reached; trying until the records' deadline");
                }
            }
            ConnectionEvent::Lost(error) => {
                match error {
                    Error::ConnectionLost => tracing::warn!("the connection was lost; connecting anew"),
                    error => tracing::warn!(%error, "connecting anew"),
                }
                self.told_down = true;
                self.on_lost();
            }
            ConnectionEvent::Session(event) => self.on_event(event),
        }
    }

    fn on_lost(&mut self) {
        self.starved.clear();
        self.lanes.iter_mut().for_each(|lane| lane.state.on_disconnected());
        (0..self.lanes.len()).for_each(|lane| self.queue(lane));
    }

    fn on_event(&mut self, event: SessionEvent<Asked>) {
        let now = self.shared.now_us();
        let lane = match event {
            SessionEvent::Produced { tag: Asked::Batch { lane, id }, ack } => {
                self.connection.is_well();
                self.lanes[lane].state.on_acked(id, ack);
                Some(lane)
            }
            SessionEvent::Answer { tag, response, .. } => self.on_answer(tag, response, now),
            SessionEvent::Goodbye(reason) => {
                tracing::debug!(%reason, "the broker said goodbye");
                None
            }
            // Only batches are produced, nobody is attached, and the handshake is over.
            SessionEvent::Produced { .. } | SessionEvent::Delivered { .. } | SessionEvent::Connected(_) => {
                None
            }
        };
        if let Some(lane) = lane {
            self.queue(lane);
        }
        for lane in std::mem::take(&mut self.starved) {
            self.queue(lane);
        }
        if self.connection.session().is_some_and(|session| session.is_done()) {
            self.connection.reset();
            self.on_lost();
        }
    }

    fn on_answer(&mut self, asked: Asked, response: Response, now: u64) -> Option<usize> {
        let (Asked::Open { lane } | Asked::Batch { lane, .. }) = asked;
        let state = &mut self.lanes[lane].state;
        match (asked, response) {
            (Asked::Open { .. }, Response::ProducerOpened(opened)) => state.on_opened(opened),
            (Asked::Open { .. }, Response::Error(refusal)) => state.on_open_refused(refusal, now),
            (Asked::Batch { id, .. }, Response::Error(refusal)) => state.on_refused(id, refusal, now),
            // The session pairs answers with requests by operation.
            (_, other) => tracing::error!(?other, "an answer of another kind came"),
        }
        Some(lane)
    }
}

/// What the session did not take, as the broker would have refused it.
fn not_sent(why: SendRefusal) -> ErrorResponse {
    let code = match why {
        SendRefusal::TooLong { .. } => ErrorCode::BatchTooLarge,
        _ => ErrorCode::Overloaded,
    };
    ErrorResponse::new(code, why.to_string())
}

/// Never reached: stands where there is no timer.
fn far() -> std::time::Instant {
    std::time::Instant::now() + std::time::Duration::from_secs(3600)
}
