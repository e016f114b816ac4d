//! The task of a consumer: it owns the connection and the state at each shard.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringbolt_wire::message::{Delivery, ErrorResponse, Verb};
use ringbolt_wire::{ErrorCode, Offset, Request, Response};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep_until;

use super::decode::decode;
use super::inbox::Inbox;
use crate::consumer_state::{SettleId, ShardState, Step};
use crate::error::{Error, SettleError};
use crate::net::{Connection, ConnectionEvent};
use crate::session::{Correlation, SendRefusal, SessionEvent};

/// Where the end of a settle is told.
pub(super) type Waiter = oneshot::Sender<Result<(), SettleError>>;

/// Commands taken at once: what was said of so many records leaves together.
const MAX_COMMANDS: usize = 16 << 10;

#[derive(Debug)]
pub(super) enum Command {
    /// Something is said of a record.
    Settle {
        partition: u32,
        offset: Offset,
        acquired: u32,
        verb: Verb,
        waiter: Option<Waiter>,
        /// The inbox holds back what comes after it until this was heard.
        bars: bool,
    },
    /// Give back what is in hand, and end.
    Close,
}

/// Which request an answer belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked {
    Attach { shard: usize },
    Settle { shard: usize, id: SettleId },
    Detach { shard: usize },
    Ping,
}

/// When something was last heard of the broker, in µs since the task was made. An
/// attach has no answer in time, so a connection that is idle is tried.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    at_us: u64,
    asked: bool,
}

/// What a consumer's task is made of.
pub(super) struct Parts {
    pub topic: Arc<str>,
    pub inbox: Arc<Inbox>,
    pub connection: Connection<Asked>,
    pub shards: Vec<ShardState<Waiter>>,
    /// By partition: index of its shard.
    pub shard_of: Vec<usize>,
    pub request_timeout: Duration,
    /// Longest time from closing to the end.
    pub close_timeout: Duration,
}

pub(super) struct Task {
    parts: Parts,
    origin: Instant,
    heard: Heard,
    /// Partitions of which the inbox holds records back until what was heard has been
    /// carried out.
    barred: Vec<u32>,
    /// By when it is to have ended, once it is closed.
    close_by: Option<Instant>,
    told_down: bool,
    /// The broker's boot count at the last connection: another one has ended all leases.
    boot: Option<u64>,
}

impl Task {
    pub fn new(parts: Parts) -> Self {
        let origin = Instant::now();
        Task {
            parts,
            origin,
            heard: Heard::default(),
            barred: Vec::new(),
            close_by: None,
            told_down: false,
            boot: None,
        }
    }

    /// Runs until the consumer is closed and everything was answered, which the close
    /// timeout bounds.
    pub async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut taken = Vec::new();
        let mut has_handles = true;
        while !self.may_end() {
            let timer = self.service();
            if self.may_end() {
                break;
            }
            tokio::select! {
                count = commands.recv_many(&mut taken, MAX_COMMANDS), if has_handles => {
                    has_handles = count > 0;
                    taken.drain(..).for_each(|command| self.on_command(command));
                    if !has_handles {
                        self.close();
                    }
                }
                event = self.parts.connection.next() => {
                    self.on_connection(event);
                    while let Some(event) = self.parts.connection.next_buffered() {
                        self.on_connection(event);
                    }
                }
                () = async { sleep_until(timer.unwrap_or_else(far).into()).await }, if timer.is_some() => {}
            }
        }
        self.end(commands);
    }

    fn may_end(&self) -> bool {
        let is_late = self.close_by.is_some_and(|by| Instant::now() >= by);
        is_late || self.parts.shards.iter().all(ShardState::is_done)
    }

    /// Answers whoever still waits.
    fn end(self, mut commands: mpsc::UnboundedReceiver<Command>) {
        commands.close();
        while let Ok(command) = commands.try_recv() {
            if let Command::Settle { waiter: Some(waiter), .. } = command {
                let _ = waiter.send(Err(SettleError::Closed));
            }
        }
        for (waiter, error) in self.parts.shards.into_iter().flat_map(|mut shard| shard.give_up()) {
            let _ = waiter.send(Err(error));
        }
    }

    fn now_us(&self) -> u64 {
        self.origin.elapsed().as_micros() as u64
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Close => self.close(),
            Command::Settle { partition, offset, acquired, verb, waiter, bars } => {
                if bars {
                    self.barred.push(partition);
                }
                let now = self.now_us();
                let shard = self.parts.shard_of[partition as usize];
                self.parts.shards[shard].settle(partition, offset, acquired, verb, waiter, now);
            }
        }
    }

    fn close(&mut self) {
        if self.close_by.is_none() {
            // Later than the platform can express is never.
            self.close_by = Instant::now().checked_add(self.parts.close_timeout).or_else(|| Some(far()));
            self.parts.inbox.end(Error::ConsumerClosed);
            self.parts.shards.iter_mut().for_each(ShardState::close);
        }
    }

    /// Moves everything on as far as it goes now; returns when to call again.
    fn service(&mut self) -> Option<Instant> {
        let now = self.now_us();
        self.try_connection(now);
        for shard in 0..self.parts.shards.len() {
            loop {
                let credit = self.parts.connection.session().is_some_and(|session| session.credit() > 0);
                let Some(step) = self.parts.shards[shard].poll(now, credit) else { break };
                self.carry_out(shard, step, now);
            }
        }
        for partition in self.barred.drain(..) {
            self.parts.inbox.unbar(partition);
        }
        let tried = self.parts.connection.is_up().then(|| self.silent_at_us());
        let at = self.parts.shards.iter().filter_map(ShardState::poll_timeout).chain(tried).min();
        let at = at.and_then(|us| self.origin.checked_add(Duration::from_micros(us)));
        [at, self.close_by].into_iter().flatten().min()
    }

    /// When silence is to be looked into.
    fn silent_at_us(&self) -> u64 {
        let timeout = self.parts.request_timeout.as_micros() as u64;
        self.heard.at_us.saturating_add(timeout)
    }

    /// Asks a silent broker for a sign of life; gives it up when there is none.
    fn try_connection(&mut self, now: u64) {
        if !self.parts.connection.is_up() || now < self.silent_at_us() {
            return;
        }
        if self.heard.asked {
            return self.give_up_connection();
        }
        self.heard = Heard { at_us: now, asked: true };
        if let Some(session) = self.parts.connection.session() {
            // Without credit there are requests that wait for an answer anyway.
            let _ = session.request(&Request::Ping, Asked::Ping);
        }
    }

    fn give_up_connection(&mut self) {
        tracing::warn!("the broker does not answer; connecting anew");
        self.parts.connection.reset();
        self.on_lost();
    }

    fn carry_out(&mut self, shard: usize, step: Step<Waiter>, now: u64) {
        match step {
            Step::Resolved { tag, verdict } => {
                // Who dropped the future does not want to know.
                let _ = tag.send(verdict);
                return;
            }
            Step::Lost(range) => return self.parts.inbox.remove(&range),
            Step::Ended(why) => return self.on_ended(why),
            Step::Reconnect => return self.give_up_connection(),
            Step::Settle { .. } | Step::Tell(_) | Step::Attach(_) | Step::Detach(_) => {}
        }
        let Some(session) = self.parts.connection.session() else { return };
        let state = &mut self.parts.shards[shard];
        match step {
            Step::Settle { id, settle } => {
                let asked = Asked::Settle { shard, id };
                if let Err(refused) = session.request(&Request::Settle(settle), asked) {
                    state.on_settle_refused(id, not_sent(refused.why), now);
                }
            }
            Step::Tell(settle) => {
                if let Err(why) = session.settle_unconfirmed(settle) {
                    tracing::debug!(%why, "a settle without confirmation was not sent");
                }
            }
            Step::Attach(attach) => {
                if let Err(refused) = session.request(&Request::Attach(attach), Asked::Attach { shard }) {
                    state.on_attach_ended(Some(not_sent(refused.why)), now);
                }
            }
            Step::Detach(at) => {
                if session.request(&Request::Detach(at), Asked::Detach { shard }).is_err() {
                    state.on_detached();
                }
            }
            Step::Resolved { .. } | Step::Lost(_) | Step::Ended(_) | Step::Reconnect => {
                unreachable!("these were carried out above")
            }
        }
    }

    fn on_ended(&mut self, why: ErrorResponse) {
        self.parts.inbox.end(match why.error_code() {
            Some(ErrorCode::ConsumerReplaced) => Error::ConsumerReplaced,
            _ => Error::Refused(why.clone()),
        });
        // What is over at one shard is over: the group, or the consumer's id.
        self.parts.shards.iter_mut().for_each(|shard| shard.end(why.clone()));
    }

    fn on_connection(&mut self, event: ConnectionEvent<Asked>) {
        self.heard = Heard { at_us: self.now_us(), asked: false };
        match event {
            ConnectionEvent::Up => {
                if std::mem::take(&mut self.told_down) {
                    tracing::info!("connected to the broker again");
                }
                self.on_up();
            }
            ConnectionEvent::Failed(error) => {
                if !std::mem::replace(&mut self.told_down, true) {
                    tracing::warn!(%error, "the broker cannot be reached; trying on");
                }
            }
            ConnectionEvent::Lost(error) => {
                tracing::warn!(%error, "connecting anew");
                self.told_down = true;
                self.on_lost();
            }
            ConnectionEvent::Session(event) => self.on_event(event),
        }
    }

    fn on_up(&mut self) {
        let limits = self.parts.connection.session().and_then(|session| session.limits());
        let boot = limits.map(|limits| limits.boot);
        if std::mem::replace(&mut self.boot, boot).is_some_and(|before| Some(before) != boot) {
            // What it has from before may be another consumer's by now, or completed.
            for lost in self.parts.shards.iter_mut().flat_map(ShardState::broker_restarted) {
                self.parts.inbox.remove(&lost);
            }
        }
        self.parts.shards.iter_mut().for_each(ShardState::on_connected);
        self.parts.inbox.resume();
    }

    fn on_lost(&mut self) {
        self.parts.inbox.pause();
        self.parts.shards.iter_mut().for_each(ShardState::on_disconnected);
    }

    fn on_event(&mut self, event: SessionEvent<Asked>) {
        match event {
            SessionEvent::Delivered { attach, delivery, payload } => {
                self.on_delivery(attach, &delivery, &payload);
            }
            SessionEvent::Answer { tag, response, .. } => self.on_answer(tag, response),
            SessionEvent::Goodbye(reason) => tracing::debug!(%reason, "the broker said goodbye"),
            // Nothing is produced here, and the handshake is over.
            SessionEvent::Produced { .. } | SessionEvent::Connected(_) => {}
        }
        // Attaches are answered when the broker leaves; what else is open stays so.
        if self.parts.connection.session().is_some_and(|session| session.is_done()) {
            self.parts.connection.reset();
            self.on_lost();
        }
    }

    fn on_delivery(&mut self, attach: Correlation, delivery: &Delivery, payload: &Bytes) {
        let now = self.now_us();
        let tag = self.parts.connection.session().and_then(|session| session.tag(attach).copied());
        // Nothing else than an attach has deliveries.
        let Some(Asked::Attach { shard }) = tag else { return };
        self.parts.connection.is_well();
        let decoded = match decode(&self.parts.topic, delivery, payload) {
            Ok(decoded) => decoded,
            Err((partition, offset)) => {
                tracing::warn!(partition, offset, "delivered records arrived damaged; connecting anew");
                self.parts.connection.reset();
                return self.on_lost();
            }
        };
        for range in decoded {
            let state = &mut self.parts.shards[shard];
            let replaced = state.on_delivery(&range.range, &range.bytes, delivery.lease_ms, now);
            if let Some(replaced) = replaced {
                replaced.iter().for_each(|lost| self.parts.inbox.remove(lost));
                self.parts.inbox.put(range.records);
            }
        }
    }

    fn on_answer(&mut self, asked: Asked, response: Response) {
        let now = self.now_us();
        let state = match asked {
            Asked::Ping => return,
            Asked::Attach { shard } | Asked::Settle { shard, .. } | Asked::Detach { shard } => {
                &mut self.parts.shards[shard]
            }
        };
        match (asked, response) {
            (Asked::Settle { id, .. }, Response::Settled(settled)) => {
                state.on_settled(id, settled, now);
                self.parts.connection.is_well();
            }
            (Asked::Settle { id, .. }, Response::Error(refusal)) => state.on_settle_refused(id, refusal, now),
            (Asked::Attach { .. }, Response::Detached) => state.on_attach_ended(None, now),
            (Asked::Attach { .. }, Response::Error(refusal)) => state.on_attach_ended(Some(refusal), now),
            (Asked::Detach { .. }, Response::Detached | Response::Error(_)) => state.on_detached(),
            // The session pairs answers with requests by operation.
            (_, other) => tracing::error!(?other, "an answer of another kind came"),
        }
    }
}

/// What the session did not take, as the broker would have refused it.
fn not_sent(why: SendRefusal) -> ErrorResponse {
    let code = match why {
        SendRefusal::TooLong { .. } => ErrorCode::InvalidRequest,
        _ => ErrorCode::Overloaded,
    };
    ErrorResponse::new(code, why.to_string())
}

/// Never reached: stands where there is no timer.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}
