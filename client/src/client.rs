//! The client: where the broker is, and the calls that concern it as a whole.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringbolt_wire::message::{
    ConsumerAt, CreateGroup, Credit, GroupDescription, GroupInfo, HelloAck, LeaseRange, OffsetSpec,
    OpenProducer, ResetGroup, Settle, SettleItem, TopicDescription, TopicInfo, Verb,
};
use ringbolt_wire::{
    ConsumerId, DEFAULT_PORT, ErrorCode, GroupId, Offset, PartitionId, ProducerId, Request, Response, ShardId,
};

use crate::backoff::{Backoff, BackoffConfig};
use crate::consumer::ConsumerBuilder;
use crate::error::Error;
use crate::net::{Answer, CallError, Caller, Dialer};
use crate::producer::ProducerBuilder;
use crate::reader::ReaderBuilder;

/// Where the broker is, and how long to try.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port` of the broker; several are tried in turn.
    pub addrs: Vec<String>,
    /// Who connects, for the broker's logs; at most 255 bytes.
    pub client_name: String,
    /// Longest time to connect to one address, handshake included.
    pub connect_timeout: Duration,
    /// Longest wait for one answer before the connection is taken for dead.
    pub request_timeout: Duration,
    /// How long a call is tried again while the broker cannot be reached or
    /// refuses for the moment. Producers have a deadline of their own, readers
    /// try for ever.
    pub operation_timeout: Duration,
    /// Waits between attempts.
    pub backoff: BackoffConfig,
}

impl Default for ClientConfig {
    fn default() -> Self {
        ClientConfig {
            addrs: vec![format!("127.0.0.1:{DEFAULT_PORT}")],
            client_name: concat!("ringbolt-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(30),
            backoff: BackoffConfig::default(),
        }
    }
}

impl ClientConfig {
    /// The defaults, for a broker at `addr` (`host:port`).
    pub fn new(addr: impl Into<String>) -> Self {
        ClientConfig { addrs: vec![addr.into()], ..ClientConfig::default() }
    }
}

impl<A: Into<String>> From<A> for ClientConfig {
    fn from(addr: A) -> Self {
        ClientConfig::new(addr)
    }
}

/// A client of one broker. Cheap to clone; clones share a connection.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use ringbolt_client::{Client, Record};
///
/// let client = Client::connect("127.0.0.1:7411").await?;
/// client.admin().create_topic("orders", 4).await?;
///
/// let producer = client.producer("orders").build().await?;
/// let receipt = producer.send(Record::new("one coffee").with_key("table 7")).await?;
/// println!("on disk: partition {}, offset {:?}", receipt.partition, receipt.offset);
/// producer.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ClientConfig,
    addrs: Arc<[String]>,
    limits: HelloAck,
    caller: Caller,
}

/// Records about which a group is asked at once.
const MAX_ASKED: u64 = 10_000;

/// Longest frame that is accepted where no records are fetched.
const MAX_ADMIN_FRAME: u32 = 32 << 20;

impl Client {
    /// Connects once, to learn that the broker is there and what its limits
    /// are. Later calls connect again as needed. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`Error::Connect`] if no address can be reached, [`Error::Session`] if
    /// no Ringbolt broker answers there.
    pub async fn connect(config: impl Into<ClientConfig>) -> Result<Client, Error> {
        let config = config.into();
        let addrs: Arc<[String]> = config.addrs.clone().into();
        let dialer = dialer(&config, &addrs, None, MAX_ADMIN_FRAME);
        let mut first = dialer.dial::<()>().await?;
        let Some(limits) = first.session().limits().cloned() else {
            return Err(Error::ConnectionLost);
        };
        let caller = Caller::spawn(dialer);
        Ok(Client { inner: Arc::new(Inner { config, addrs, limits, caller }) })
    }

    /// Topics, groups, offsets, counters.
    pub fn admin(&self) -> Admin<'_> {
        Admin { client: self }
    }

    /// A producer to this topic; see [`ProducerBuilder`] for its settings.
    pub fn producer(&self, topic: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), topic.into())
    }

    /// A reader of this topic by offset; see [`ReaderBuilder`] for its
    /// settings.
    pub fn reader(&self, topic: impl Into<String>) -> ReaderBuilder {
        ReaderBuilder::new(self.clone(), topic.into())
    }

    /// What the broker said of itself when the client connected.
    pub fn broker(&self) -> &HelloAck {
        &self.inner.limits
    }

    /// The settings that the client was made with.
    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    /// A consumer of this topic in a group, which is created if there is none of
    /// that name; see [`ConsumerBuilder`] for its settings.
    pub fn consumer(&self, topic: impl Into<String>, group: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone(), topic.into(), group.into())
    }

    /// For a connection of a producer's, reader's or consumer's own, to the core that
    /// owns `affinity`, or whichever.
    pub(crate) fn dialer(&self, affinity: Option<PartitionId>, max_receive_len: u32) -> Dialer {
        dialer(&self.inner.config, &self.inner.addrs, affinity, max_receive_len)
    }

    /// A seed that differs between clients and calls.
    pub(crate) fn seed(&self) -> u64 {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(0)
    }

    /// Asks until there is an answer, a refusal that lasts, or the operation's
    /// time is over. A request that is not `repeatable` is not made again once
    /// it may have been carried out.
    async fn ask(&self, request: Request, repeatable: bool) -> Result<Answer, Error> {
        let config = &self.inner.config;
        let until = Instant::now() + config.operation_timeout;
        let mut backoff = Backoff::new(config.backoff, self.seed());
        loop {
            let error = match self.inner.caller.call(request.clone(), config.request_timeout).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let again = match &error {
                CallError::NotSent(error) => matches!(error, Error::Connect { .. } | Error::ConnectionLost),
                CallError::Lost(_) => repeatable,
                CallError::Refused(refusal) => refusal.is_retryable(),
            };
            let mut wait = backoff.next_wait();
            if let CallError::Refused(refusal) = &error {
                wait = wait.max(Duration::from_millis(u64::from(refusal.retry_after_ms)));
            }
            if !again || Instant::now() + wait > until {
                return Err(error.into());
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// An identity for a new producer.
    pub(crate) async fn new_producer_id(&self, partition: PartitionId) -> Result<ProducerId, Error> {
        let open = OpenProducer { partition, producer: ProducerId::NONE, take_over: false };
        match self.ask(Request::OpenProducer(open), true).await?.0 {
            Response::ProducerOpened(opened) => Ok(opened.producer),
            other => Err(unexpected(&other)),
        }
    }
}

fn dialer(
    config: &ClientConfig,
    addrs: &Arc<[String]>,
    affinity: Option<PartitionId>,
    max_receive_len: u32,
) -> Dialer {
    Dialer {
        addrs: addrs.clone(),
        client_name: config.client_name.clone(),
        affinity,
        max_receive_len,
        timeout: config.connect_timeout,
    }
}

/// The session pairs answers with requests by operation, so this is not
/// reached; it is an error and not a panic because the bytes are a peer's.
fn unexpected(response: &Response) -> Error {
    Error::InvalidSetting(format!("an answer of another kind came: {response:?}"))
}

/// Calls that concern topics, groups, and the broker as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Admin<'a> {
    client: &'a Client,
}

impl Admin<'_> {
    /// Asks for a sign of life and tells how long it took.
    ///
    /// # Errors
    /// [`Error::Connect`] and [`Error::Timeout`] once the operation's time is
    /// over.
    pub async fn ping(&self) -> Result<Duration, Error> {
        let start = Instant::now();
        self.client.ask(Request::Ping, true).await?;
        Ok(start.elapsed())
    }

    /// Creates a topic with 1 to 100,000 partitions. The name has 1 to 249 of
    /// `A-Z a-z 0-9 . _ -`.
    ///
    /// # Errors
    /// [`Error::Refused`] with `TopicExists`, `InvalidTopicName`,
    /// `TooManyPartitions` or `InvalidRequest`; [`Error::ConnectionLost`] or
    /// [`Error::Timeout`] when it is not known whether it was created.
    pub async fn create_topic(&self, name: &str, partitions: u32) -> Result<TopicInfo, Error> {
        let request = Request::CreateTopic { name: name.to_owned(), partitions };
        match self.client.ask(request, false).await?.0 {
            Response::TopicCreated(topic) => Ok(topic),
            other => Err(unexpected(&other)),
        }
    }

    /// Deletes a topic and its records.
    ///
    /// # Errors
    /// [`Error::Refused`] with `UnknownTopic`; [`Error::ConnectionLost`] or
    /// [`Error::Timeout`] when it is not known whether it was deleted.
    pub async fn delete_topic(&self, name: &str) -> Result<(), Error> {
        self.client.ask(Request::DeleteTopic { name: name.to_owned() }, false).await.map(drop)
    }

    /// The topics, by name.
    ///
    /// # Errors
    /// [`Error::Connect`] and the like.
    pub async fn list_topics(&self) -> Result<Vec<TopicInfo>, Error> {
        match self.client.ask(Request::ListTopics, true).await?.0 {
            Response::Topics(topics) => Ok(topics),
            other => Err(unexpected(&other)),
        }
    }

    /// A topic and its partitions: which shard has each, and from which offset
    /// to which.
    ///
    /// # Errors
    /// [`Error::Refused`] with `UnknownTopic`.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription, Error> {
        let request = Request::DescribeTopic { name: name.to_owned() };
        match self.client.ask(request, true).await?.0 {
            Response::Topic(topic) => Ok(topic),
            other => Err(unexpected(&other)),
        }
    }

    /// An offset of a partition of the topic with this number (see
    /// [`describe_topic`](Self::describe_topic)): the first, the end, or that
    /// of the first record taken at or after a time.
    ///
    /// # Errors
    /// [`Error::Refused`] with `UnknownTopic` or `UnknownPartition`.
    pub async fn offset(&self, partition: PartitionId, spec: OffsetSpec) -> Result<Offset, Error> {
        match self.client.ask(Request::Offsets { partition, spec }, true).await?.0 {
            Response::Offset(offset) => Ok(offset),
            other => Err(unexpected(&other)),
        }
    }

    /// Creates a consumer group; with `or_find`, a group of that name on that topic
    /// and in that mode is answered as it is.
    ///
    /// # Errors
    /// [`Error::Refused`] with `GroupExists`, `UnknownTopic`, `InvalidTopicName`,
    /// `TooManyGroups` or `InvalidRequest`. Without `or_find` also
    /// [`Error::ConnectionLost`] or [`Error::Timeout`] when it is not known whether it
    /// was created.
    pub async fn create_group(&self, create: CreateGroup) -> Result<GroupInfo, Error> {
        let repeatable = create.or_find;
        match self.client.ask(Request::CreateGroup(create), repeatable).await?.0 {
            Response::Group(group) => Ok(group),
            other => Err(unexpected(&other)),
        }
    }

    /// Deletes a consumer group: its consumers end, and what it had completed is
    /// forgotten.
    ///
    /// # Errors
    /// [`Error::Refused`] with `UnknownGroup`; [`Error::ConnectionLost`] or
    /// [`Error::Timeout`] when it is not known whether it was deleted.
    pub async fn delete_group(&self, name: &str) -> Result<(), Error> {
        self.client.ask(Request::DeleteGroup { name: name.to_owned() }, false).await.map(drop)
    }

    /// The consumer groups, by name.
    ///
    /// # Errors
    /// [`Error::Connect`] and the like.
    pub async fn groups(&self) -> Result<Vec<GroupInfo>, Error> {
        match self.client.ask(Request::ListGroups, true).await?.0 {
            Response::Groups(groups) => Ok(groups),
            other => Err(unexpected(&other)),
        }
    }

    /// A consumer group: how far it is in each partition, what keeps it from being
    /// further, and its consumers.
    ///
    /// # Errors
    /// [`Error::Refused`] with `UnknownGroup`.
    pub async fn describe_group(&self, name: &str) -> Result<GroupDescription, Error> {
        let request = Request::DescribeGroup { name: name.to_owned() };
        match self.client.ask(request, true).await?.0 {
            Response::GroupDescribed(group) => Ok(*group),
            other => Err(unexpected(&other)),
        }
    }

    /// Sets a consumer group back, or forward, in one partition or in all. What was
    /// delivered before is no longer its consumers'.
    ///
    /// It is not made again after a loss: what was delivered in between would be
    /// forgotten with it.
    ///
    /// # Errors
    /// [`Error::Refused`] with `UnknownGroup` or `UnknownPartition`;
    /// [`Error::ConnectionLost`] or [`Error::Timeout`] when it is not known whether it
    /// was done.
    pub async fn reset_group(&self, reset: ResetGroup) -> Result<(), Error> {
        self.client.ask(Request::ResetGroup(reset), false).await.map(drop)
    }

    /// Which of these records of a partition a consumer group has completed: ranges in
    /// order. It asks the shard that has the partition (see
    /// [`describe_topic`](Self::describe_topic)), and changes nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] with `UnknownGroup`, or `DiskFull` while the broker takes no
    /// settles.
    pub async fn completed(
        &self,
        group: GroupId,
        shard: ShardId,
        partition: u32,
        offsets: Range<u64>,
    ) -> Result<Vec<Range<u64>>, Error> {
        let mut completed: Vec<Range<u64>> = Vec::new();
        let mut base = offsets.start;
        while base < offsets.end {
            let count = (offsets.end - base).min(MAX_ASKED);
            // Nobody has a lease of acquisition 0: nothing is released, and the answer
            // says why not.
            let range = LeaseRange {
                partition,
                base_offset: Offset(base),
                // At most MAX_ASKED.
                count: count as u32,
                acquired: 0,
            };
            let at = ConsumerAt { shard, group, consumer: ConsumerId(self.client.seed().max(1)) };
            let items = vec![SettleItem { range, verb: Verb::Release }];
            let settle = Settle { at, credit: Credit::default(), confirm: true, items };
            let settled = match self.client.ask(Request::Settle(settle), true).await?.0 {
                Response::Settled(settled) => settled,
                other => return Err(unexpected(&other)),
            };
            let done = settled.unsettled.iter().filter(|unsettled| {
                ErrorCode::from_u16(unsettled.status) == Some(ErrorCode::AlreadyCompleted)
            });
            completed.extend(done.map(|done| {
                let start = done.base_offset.0;
                start..start.saturating_add(done.count.into())
            }));
            base += count;
        }
        Ok(completed)
    }

    /// The broker's counters by name.
    ///
    /// # Errors
    /// [`Error::Connect`] and the like.
    pub async fn stats(&self) -> Result<BTreeMap<String, u64>, Error> {
        match self.client.ask(Request::Stats, true).await?.0 {
            Response::Stats(stats) => Ok(stats.into_iter().collect()),
            other => Err(unexpected(&other)),
        }
    }
}
