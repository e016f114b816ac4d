//! From topic to topic, effectively once: takes records, makes others of them, produces
//! those, acknowledges.
//!
//! The rules are [`OutputState`]'s. This drives them: it opens producers, sends, and
//! whenever something is not as it should be it opens anew and looks at the log.

use std::collections::BTreeMap;
use std::time::Duration;

use ringbolt_wire::message::{Fetch, FetchPartition, OpenProducer, ProduceAck};
use ringbolt_wire::{BatchView, ErrorCode, Offset, PartitionId, Request, Response};
use tokio::task::JoinSet;

use super::output::{Output, OutputState, source_at};
use super::{Consumer, Delivery};
use crate::backoff::{Backoff, BackoffConfig};
use crate::client::Client;
use crate::error::{Error, ProduceError, SettleError};
use crate::net::{CallError, Caller};
use crate::producer::{PlainSettings, ProducerBuilder};
use crate::record::{ConsumedRecord, Record};

/// Most records that are taken at once.
const MAX_TURN: usize = 10_000;

/// Room in an answer beyond its records.
const ANSWER_HEAD_LEN: u32 = 1 << 20;

impl Consumer {
    /// Makes records of another topic from those of this one, each input once.
    ///
    /// For every record that comes, `process` tells what is to be produced, if
    /// anything; when that is durable in `output`'s topic, the record is acknowledged.
    /// It goes on until the consumer is closed, or an error; dropping the future is as
    /// good as a crash.
    ///
    /// # What is promised
    ///
    /// *Of every input record of the group there is at most one output in the log; and
    /// whatever was acknowledged here has its output there, or `process` said that it
    /// needs none.* Crashes of this process, of the broker, lost connections and other
    /// consumers that take over change nothing about that. `process` may be called more
    /// than once for a record; what else it does besides its answer may happen more than
    /// once.
    ///
    /// How: what is made of input partition `p` goes to output partition `p` modulo the
    /// number of output partitions, in the order of the inputs, under a producer
    /// identity that follows from group, topic and `p` alone. Each output names its
    /// input in the header [`SOURCE_HEADER`](crate::SOURCE_HEADER). Whoever begins with
    /// a partition takes the producer over, so that nothing that is still on its way
    /// arrives any more, and reads its last output: up to that input everything is
    /// done, and is only acknowledged. The sequence, which the broker keeps dense, is
    /// the number of outputs before; a second output for the same place is recognised
    /// as a duplicate, or refused.
    ///
    /// # Conditions
    ///
    /// - The group is exclusive, so that one consumer has a partition and sees it
    ///   strictly in order. Others are refused with [`Error::NotExclusive`].
    /// - The output topic stays the same. Another one is begun with from where the
    ///   group stands.
    /// - Retention leaves the last output of a partition in the log for as long as its
    ///   input may not have been acknowledged: longer than this process is ever down.
    ///   When only the record is gone, that is [`Error::ProgressUnknown`]; when the
    ///   broker has forgotten the producer as well, nobody can tell: what was produced
    ///   and not acknowledged is then produced again.
    /// - Only this writes under its producer identities.
    ///
    /// # What else can happen to a record
    ///
    /// - *Expired* before it was delivered, or *dead-lettered* (its lease ran out too
    ///   often, which only crashes bring about here): the group goes on without it, and
    ///   it has no output, unless it was produced before the crash. A dead letter that
    ///   is redriven is a new record with an offset of its own, and processed as such,
    ///   also if the first one had an output. A group whose `max_failures` is 0, or that
    ///   does not count timeouts as failures, makes no dead letters here.
    /// - *Reset*: when the group is set back, records that have been processed come
    ///   again, and are acknowledged without another output. To process them again, use
    ///   another group. When it is set forward, what it passes over has no output.
    ///
    /// ```no_run
    /// # async fn example(client: ringbolt_client::Client) -> Result<(), ringbolt_client::Error> {
    /// use ringbolt_client::{GroupMode, Record};
    /// let consumer = client.consumer("orders", "invoicing").mode(GroupMode::Exclusive).open().await?;
    /// let invoices = client.producer("invoices");
    /// consumer
    ///     .process_with(invoices, |order| {
    ///         let order_text = std::str::from_utf8(&order.value).ok()?;
    ///         Some(Record::new(format!("please pay for {order_text}")))
    ///     })
    ///     .await
    /// # }
    /// ```
    ///
    /// Of `output`'s settings those count that are about batches and copies; partition
    /// and identity must not be set. Batches of a partition follow each other, each as
    /// large as what has come while the one before was under way.
    ///
    /// # Errors
    /// [`Error::NotExclusive`], [`Error::ProgressUnknown`], [`Error::Output`] (what was
    /// made cannot be produced, however often it is tried), [`Error::Refused`] (the
    /// output topic or the group is gone), [`Error::ConsumerReplaced`],
    /// [`Error::InvalidSetting`]. `Ok` when the consumer was closed.
    pub async fn process_with<F>(&self, output: ProducerBuilder, process: F) -> Result<(), Error>
    where
        F: FnMut(&ConsumedRecord) -> Option<Record>,
    {
        let mode = self.group.config.mode;
        if !self.handle.exclusive {
            return Err(Error::NotExclusive { group: self.group.name.clone(), mode });
        }
        let PlainSettings { client, topic, min_copies, batch_bytes, batch_records } = output.into_plain()?;
        let topic = client.admin().describe_topic(&topic).await?.topic;
        let longest = client.broker().max_batch_len.saturating_add(ANSWER_HEAD_LEN);
        let config = client.config();
        let sender = Sender {
            caller: Caller::spawn(client.dialer(None, longest)),
            min_copies,
            max_bytes: batch_bytes,
            max_records: batch_records,
            timeout: config.request_timeout,
            backoff: config.backoff,
        };
        let to = |input: u32| PartitionId::new(topic.id, input % topic.partitions);
        let lane = |input: u32| Lane {
            state: OutputState::new(self.group.id, PartitionId::new(self.group.topic, input), to(input)),
            input,
            sender: sender.clone(),
            seed: client.seed(),
        };
        let mut pipeline =
            Pipeline { max_record_len: longest_record(&client), lanes: BTreeMap::new(), lane, process };
        loop {
            match pipeline.turn(self).await {
                Ok(()) => {}
                Err(Error::ConsumerClosed) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn longest_record(client: &Client) -> usize {
    client.broker().max_batch_len as usize - ringbolt_wire::batch::BATCH_HEADER_LEN
}

struct Pipeline<L, F> {
    max_record_len: usize,
    lanes: BTreeMap<u32, Lane>,
    /// Makes the lane of an input partition.
    lane: L,
    process: F,
}

impl<L, F> Pipeline<L, F>
where
    L: Fn(u32) -> Lane,
    F: FnMut(&ConsumedRecord) -> Option<Record>,
{
    /// Takes what is there, at least one record, through to its acknowledgement.
    async fn turn(&mut self, consumer: &Consumer) -> Result<(), Error> {
        let mut taken: BTreeMap<u32, Vec<Delivery>> = BTreeMap::new();
        let first = consumer.recv().await?;
        taken.entry(first.partition).or_default().push(first);
        for _ in 1..MAX_TURN {
            let Some(next) = consumer.try_recv()? else { break };
            taken.entry(next.partition).or_default().push(next);
        }
        let mut sending = JoinSet::new();
        for (input, deliveries) in taken {
            let mut lane = self.lanes.remove(&input).unwrap_or_else(|| (self.lane)(input));
            if !lane.state.is_open && !lane.open(&deliveries[0]).await? {
                // The deliveries are not ours any more; dropped, they are as good as new.
                self.lanes.insert(input, lane);
                continue;
            }
            let outputs = self.process(&lane.state, &deliveries)?;
            sending.spawn(async move {
                let sent = lane.send(outputs, &deliveries[0]).await;
                (lane, deliveries, sent)
            });
        }
        while let Some(joined) = sending.join_next().await {
            // A task ends early only by a panic, which goes on here.
            let (lane, deliveries, sent) = match joined {
                Ok(sent) => sent,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            };
            self.lanes.insert(lane.input, lane);
            if sent? {
                // Should an acknowledgement get lost, the record comes again and is
                // found to be done.
                deliveries.into_iter().for_each(|delivery| drop(delivery.ack()));
            }
        }
        Ok(())
    }

    fn process(&mut self, state: &OutputState, deliveries: &[Delivery]) -> Result<Vec<Output>, Error> {
        let mut outputs = Vec::new();
        for input in deliveries.iter().filter(|input| !state.covers(input.offset)) {
            let Some(record) = (self.process)(input.record()) else { continue };
            let check = record.check_headers().and_then(|()| {
                let len = record.encoded_len() + SOURCE_LEN;
                let limit = self.max_record_len;
                if len > limit { Err(ProduceError::TooLarge { len, limit }) } else { Ok(()) }
            });
            match check {
                Ok(()) => outputs.push(Output { input: input.offset, record }),
                Err(error) => {
                    let (partition, offset) = (input.partition, input.offset);
                    return Err(Error::Output { partition, offset, error });
                }
            }
        }
        Ok(outputs)
    }
}

/// Bytes of the header that names the input.
const SOURCE_LEN: usize = 6 + crate::record::SOURCE_HEADER.len() + 20;

/// How outputs are sent.
#[derive(Clone)]
struct Sender {
    caller: Caller,
    min_copies: u8,
    max_bytes: usize,
    max_records: u32,
    timeout: Duration,
    backoff: BackoffConfig,
}

/// One input partition.
struct Lane {
    state: OutputState,
    input: u32,
    sender: Sender,
    seed: u64,
}

impl Lane {
    /// Takes the producer over and finds out how far the inputs are covered. False if
    /// the partition is no longer this consumer's, so that the producer is not either.
    async fn open(&mut self, holds: &Delivery) -> Result<bool, Error> {
        let mut backoff = Backoff::new(self.sender.backoff, self.seed);
        loop {
            match holds.extend(Duration::ZERO).await {
                Ok(()) => {}
                Err(SettleError::Closed) => return Err(Error::ConsumerClosed),
                Err(_) => return Ok(false),
            }
            match self.try_open().await {
                Ok(()) => return Ok(true),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing(wait) | Trouble::Unknown(wait)) => {
                    tokio::time::sleep(backoff.next_wait().max(wait)).await;
                }
            }
        }
    }

    async fn try_open(&mut self) -> Result<(), Trouble> {
        let (partition, producer) = (self.state.to, self.state.producer);
        let open = Request::OpenProducer(OpenProducer { partition, producer, take_over: true });
        let Response::ProducerOpened(opened) = self.sender.caller.call(open, self.sender.timeout).await?.0
        else {
            return Err(Trouble::Unknown(Duration::ZERO));
        };
        let last = match opened.last_offset {
            Offset::UNKNOWN => None,
            offset => self.source_at(offset).await?,
        };
        if self.state.on_opened(&opened, last.as_deref()) {
            return Ok(());
        }
        let text = format!(
            "offset {} of partition {}, where its last output should be, does not tell",
            opened.last_offset, self.state.to
        );
        Err(Trouble::Final(Error::ProgressUnknown { partition: self.input, text }))
    }

    /// The header that names the input, of the output at this offset.
    async fn source_at(&self, offset: Offset) -> Result<Option<Vec<u8>>, Trouble> {
        let partition = self.state.to;
        let wanted = FetchPartition { partition, offset, max_bytes: 1 };
        let fetch = Fetch { max_wait_ms: 0, min_bytes: 0, max_bytes: 1, partitions: vec![wanted] };
        let (response, payload) = self.sender.caller.call(Request::Fetch(fetch), self.sender.timeout).await?;
        let Response::Fetched(fetched) = response else { return Err(Trouble::Unknown(Duration::ZERO)) };
        let status = fetched.first().map_or(0, |fetched| fetched.status);
        match ErrorCode::from_u16(status) {
            Some(code) if code.is_retryable() => Err(Trouble::Passing(Duration::ZERO)),
            Some(_) => Ok(None),
            None if BatchView::parse(&payload, u32::MAX).is_err() && !payload.is_empty() => {
                Err(Trouble::Passing(Duration::ZERO))
            }
            None => Ok(source_at(&payload, offset)),
        }
    }

    /// Produces until every output is in the log. False if the partition is no longer
    /// this consumer's.
    async fn send(&mut self, mut outputs: Vec<Output>, holds: &Delivery) -> Result<bool, Error> {
        let mut backoff = Backoff::new(self.sender.backoff, self.seed);
        while !outputs.is_empty() {
            if !self.state.is_open {
                if !self.open(holds).await? {
                    return Ok(false);
                }
                outputs.retain(|output| !self.state.covers(output.input));
                continue;
            }
            let Sender { min_copies, max_bytes, max_records, timeout, .. } = self.sender;
            let (batch, count) = self.state.batch(&outputs, max_bytes, max_records);
            let answer = self.sender.caller.produce(batch, min_copies, timeout).await;
            match answer.map_err(Trouble::from) {
                Ok(ProduceAck { duplicate: false, .. }) => {
                    self.state.on_appended(&outputs[..count]);
                    outputs.drain(..count);
                    backoff.reset();
                }
                // Something stands in the log under these sequences: what, is seen there.
                Ok(ProduceAck { duplicate: true, .. }) => self.state.is_open = false,
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing(wait)) => tokio::time::sleep(backoff.next_wait().max(wait)).await,
                Err(Trouble::Unknown(wait)) => {
                    self.state.is_open = false;
                    tokio::time::sleep(backoff.next_wait().max(wait)).await;
                }
            }
        }
        Ok(true)
    }
}

/// Why there is no answer that says yes.
enum Trouble {
    /// Nothing was done; it may be tried again, after this long at least.
    Passing(Duration),
    /// It is not known how the log stands.
    Unknown(Duration),
    /// It will not succeed.
    Final(Error),
}

impl From<CallError> for Trouble {
    fn from(error: CallError) -> Trouble {
        match error {
            CallError::NotSent(error @ Error::InvalidSetting(_)) => Trouble::Final(error),
            CallError::NotSent(_) => Trouble::Passing(Duration::ZERO),
            CallError::Lost(_) => Trouble::Unknown(Duration::ZERO),
            CallError::Refused(refusal) => {
                let wait = Duration::from_millis(u64::from(refusal.retry_after_ms));
                match refusal.error_code() {
                    // Another one has taken over, or the log stands elsewhere.
                    Some(ErrorCode::FencedProducer | ErrorCode::OutOfOrderSequence) => Trouble::Unknown(wait),
                    Some(code) if code.is_retryable() => Trouble::Passing(wait),
                    _ => Trouble::Final(Error::Refused(refusal)),
                }
            }
        }
    }
}
