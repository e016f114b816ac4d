//! A peer that follows the protocol over real sockets and holds its records in
//! memory, except where a test tells it to misbehave. It stands for the broker
//! where a test needs faults that a healthy broker does not have on demand.

// Each test file uses some of it.
#![allow(dead_code)]

pub mod consumers;
mod group;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ringbolt_client::{Client, ClientConfig, Record};
use ringbolt_wire::frame::FRAME_HEADER_LEN;
use ringbolt_wire::message::{
    ErrorResponse, Fetch, FetchedPartition, HelloAck, OffsetSpec, OpenProducer, PartitionInfo, ProduceAck,
    ProducerOpened, TopicDescription, TopicInfo,
};
use ringbolt_wire::{
    BatchHeader, BatchView, Epoch, ErrorCode, FrameHeader, Offset, Opcode, PartitionId, ProducerId, Request,
    Response, Sequence, ShardId, TopicId,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub use group::Group;

pub const TOPIC: TopicId = TopicId(1);
/// The topic `out`: as many partitions as `t`, for what is made of its records.
pub const OUT: TopicId = TopicId(2);

/// What happens to one request instead of what should.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing unusual.
    None,
    /// It is refused.
    Refuse(ErrorCode),
    /// The connection ends, and nothing was done.
    DropBefore,
    /// It is carried out, and the connection ends before the answer.
    DropAfter,
    /// It is never answered, nor carried out.
    Ignore,
    /// It is answered twice.
    AnswerTwice,
    /// The answer is kept until the next request of the connection was
    /// answered.
    AnswerLate,
    /// Bytes that are no frame come instead of the answer.
    Garbage,
    /// The broker says goodbye after the answer, and closes.
    Goodbye,
    /// A bit of the answer's payload is flipped.
    Damage,
}

#[derive(Default)]
pub struct State {
    pub partitions: Vec<Partition>,
    /// Faults of the next requests of each operation.
    pub faults: HashMap<u8, VecDeque<Fault>>,
    /// Requests seen, by operation.
    pub seen: HashMap<u8, u32>,
    /// Affinity of each connection.
    pub affinities: Vec<Option<PartitionId>>,
    pub max_in_flight: u32,
    pub topics_created: Vec<String>,
    /// Partitions of the topic `out`.
    pub outputs: Vec<Partition>,
    /// Groups of the topic `t`, by name.
    pub groups: BTreeMap<String, Group>,
    pub connections: u64,
    /// Producers as they were opened, and whether they took over.
    pub opened: Vec<(ProducerId, bool)>,
    /// Settles that acknowledge something end their connection, and do nothing.
    pub drop_acks: bool,
    /// So many of the next deliveries have a bit of their payload flipped.
    pub damage_deliveries: u32,
}

/// A connection as the groups know it.
#[derive(Clone)]
pub struct Peer {
    id: u64,
    /// Frames that answer no request at once.
    out: mpsc::UnboundedSender<Vec<u8>>,
}

#[derive(Default)]
pub struct Partition {
    pub shard: u16,
    pub start: u64,
    /// Whole batches, by offset of their first record.
    pub batches: BTreeMap<u64, Vec<u8>>,
    pub end: u64,
    /// Epoch, next sequence, and offset by first sequence.
    pub producers: HashMap<ProducerId, (u32, u64, HashMap<u64, u64>)>,
}

pub struct FakeBroker {
    pub addr: String,
    pub state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Drop for FakeBroker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeBroker {
    /// A broker with a topic `t` of so many partitions, on two shards, and `count`
    /// numbered records in each partition, in batches of 10.
    pub async fn filled(partitions: u32, count: u32) -> FakeBroker {
        let broker = FakeBroker::start(partitions).await;
        let builder = broker.client().await.producer("t").batch_records(10).linger(Duration::from_secs(1));
        let producer = builder.build().await.unwrap();
        for n in 0..count {
            for partition in 0..partitions {
                let record = Record::new(n.to_string()).with_key("k").with_header("h", [partition as u8]);
                drop(producer.enqueue_to(partition, record).await.unwrap());
            }
        }
        producer.close().await;
        broker
    }

    /// A broker with a topic `t` of so many partitions, on two shards.
    pub async fn start(partitions: u32) -> FakeBroker {
        let made = |index| Partition { shard: (index % 2) as u16, ..Partition::default() };
        let state = State {
            partitions: (0..partitions).map(made).collect(),
            outputs: (0..partitions).map(made).collect(),
            max_in_flight: 64,
            ..State::default()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        Self::serve(listener, addr, Arc::new(Mutex::new(state)))
    }

    fn serve(listener: TcpListener, addr: String, state: Arc<Mutex<State>>) -> FakeBroker {
        let shared = state.clone();
        let task = tokio::spawn(async move {
            // Dropped with the task, and the connections with it.
            let mut connections = tokio::task::JoinSet::new();
            let mut tick = tokio::time::interval(Duration::from_millis(2));
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        connections.spawn(connection(accepted.unwrap().0, shared.clone()));
                    }
                    _ = tick.tick() => shared.lock().unwrap().pump(),
                }
            }
        });
        FakeBroker { addr, state, task }
    }

    /// Goes away with all connections; what it holds comes back with
    /// [`Stopped::start`].
    pub async fn stop(self) -> Stopped {
        self.task.abort();
        while !self.task.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.state().groups.values_mut().for_each(Group::detach_all);
        Stopped { addr: self.addr.clone(), state: self.state.clone() }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Lets the next requests of this operation meet these faults.
    pub fn fail(&self, opcode: Opcode, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.entry(opcode as u8).or_default().extend(faults);
    }

    pub fn seen(&self, opcode: Opcode) -> u32 {
        self.state().seen.get(&(opcode as u8)).copied().unwrap_or(0)
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.config()).await.unwrap()
    }

    pub fn config(&self) -> ClientConfig {
        ClientConfig {
            request_timeout: Duration::from_millis(300),
            operation_timeout: Duration::from_secs(5),
            ..ClientConfig::new(self.addr.clone())
        }
    }

    /// The values in a partition's log, in order.
    pub fn values(&self, partition: usize) -> Vec<String> {
        self.state().partitions[partition].values()
    }

    /// The same of a partition of the topic `out`.
    pub fn outputs(&self, partition: usize) -> Vec<String> {
        self.state().outputs[partition].values()
    }

    /// Waits until the group `g` looks like that.
    pub async fn until(&self, what: impl Fn(&mut Group) -> bool) {
        for _ in 0..1000 {
            if self.group("g", &what) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it did not come to that within 5 s");
    }

    /// What the group of this name has seen and holds.
    pub fn group<R>(&self, name: &str, look: impl FnOnce(&mut Group) -> R) -> R {
        look(self.state().groups.get_mut(name).unwrap())
    }
}

impl Partition {
    pub fn values(&self) -> Vec<String> {
        self.batches
            .values()
            .flat_map(|batch| {
                let view = BatchView::parse_exact(batch, u32::MAX).unwrap();
                view.records().map(|(_, r)| String::from_utf8(r.value.to_vec()).unwrap()).collect::<Vec<_>>()
            })
            .collect()
    }
}

/// A broker that is down.
pub struct Stopped {
    addr: String,
    state: Arc<Mutex<State>>,
}

impl Stopped {
    pub async fn start(self) -> FakeBroker {
        let listener = TcpListener::bind(&self.addr).await.unwrap();
        FakeBroker::serve(listener, self.addr, self.state)
    }
}

async fn connection(stream: TcpStream, state: Arc<Mutex<State>>) {
    // Answers and deliveries are frames of their own: each is to leave at once.
    stream.set_nodelay(true).unwrap();
    let (out, deliveries) = mpsc::unbounded_channel();
    let peer = {
        let mut state = state.lock().unwrap();
        state.connections += 1;
        Peer { id: state.connections, out }
    };
    serve(stream, state.clone(), &peer, deliveries).await;
    state.lock().unwrap().groups.values_mut().for_each(|group| group.detach(&peer));
}

async fn serve(
    mut stream: TcpStream,
    state: Arc<Mutex<State>>,
    peer: &Peer,
    mut deliveries: mpsc::UnboundedReceiver<Vec<u8>>,
) -> Option<()> {
    let mut input = Vec::new();
    let mut late = Vec::new();
    loop {
        let whole = |header: &FrameHeader| input.len() >= header.frame_len();
        let Some(header) = FrameHeader::decode(&input, u32::MAX).unwrap().filter(whole) else {
            tokio::select! {
                read = read_more(&mut stream, &mut input) => read?,
                frame = deliveries.recv() => stream.write_all(&frame.unwrap()).await.ok()?,
            }
            continue;
        };
        header.verify(&input).unwrap();
        let frame: Vec<u8> = input.drain(..header.frame_len()).collect();
        let (head, payload) = frame.split_at(header.head_len());
        let request = Request::decode(header.opcode, &head[FRAME_HEADER_LEN..], header.payload_len).unwrap();
        let fault = {
            let mut state = state.lock().unwrap();
            if state.drop_acks && group::acknowledges(&request) {
                return None;
            }
            *state.seen.entry(header.opcode).or_default() += 1;
            let faults = state.faults.get_mut(&header.opcode);
            faults.and_then(VecDeque::pop_front).unwrap_or(Fault::None)
        };
        let (mut answer, wait) = match &fault {
            Fault::DropBefore => return None,
            Fault::Ignore => continue,
            Fault::Refuse(code) => (encode_refusal(&header, *code), Duration::ZERO),
            _ => state.lock().unwrap().answer(&header, request, payload, peer),
        };
        tokio::time::sleep(wait).await;
        match fault {
            Fault::DropAfter => return None,
            Fault::AnswerLate => {
                late = answer;
                continue;
            }
            Fault::AnswerTwice => answer.extend_from_within(..),
            Fault::Garbage => answer = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            Fault::Damage if !answer.is_empty() => *answer.last_mut().unwrap() ^= 1,
            _ => {}
        }
        answer.append(&mut late);
        if matches!(fault, Fault::Goodbye) {
            let reason = ErrorResponse::new(ErrorCode::ShuttingDown, "");
            Response::Error(reason).encode(&mut answer, Opcode::Goodbye as u8, 0, 0);
        }
        stream.write_all(&answer).await.ok()?;
        if matches!(fault, Fault::Goodbye) {
            // The client is expected to leave.
            read_more(&mut stream, &mut input).await?;
        }
    }
}

async fn read_more(stream: &mut TcpStream, input: &mut Vec<u8>) -> Option<()> {
    match stream.read_buf(input).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(()),
    }
}

fn encode_refusal(header: &FrameHeader, code: ErrorCode) -> Vec<u8> {
    let mut out = Vec::new();
    let refusal = ErrorResponse::new(code, "told to");
    Response::Error(refusal).encode(&mut out, header.opcode, header.correlation, 0);
    out
}

impl State {
    /// The answer's frame, and how long to wait before it is sent.
    fn answer(
        &mut self,
        header: &FrameHeader,
        request: Request,
        payload: &[u8],
        peer: &Peer,
    ) -> (Vec<u8>, Duration) {
        let mut wait = Duration::ZERO;
        let mut records = Vec::new();
        let response = match request {
            Request::Hello(hello) => {
                self.affinities.push(hello.affinity);
                Response::Hello(self.hello())
            }
            Request::Ping => Response::Pong,
            Request::CreateTopic { name, partitions } => {
                self.topics_created.push(name.clone());
                Response::TopicCreated(TopicInfo { id: TopicId(9), partitions, name })
            }
            Request::DeleteTopic { .. } => Response::TopicDeleted,
            Request::ListTopics => Response::Topics(vec![self.topic()]),
            Request::DescribeTopic { name } if name == "t" || name == "out" => {
                Response::Topic(self.describe(name))
            }
            Request::DescribeTopic { .. } => {
                Response::Error(ErrorResponse::new(ErrorCode::UnknownTopic, "only t is here"))
            }
            Request::Produce { .. } => self.produce(payload),
            Request::Fetch(fetch) => {
                let fetched = self.fetch(&fetch, &mut records);
                if records.is_empty() && fetched.iter().all(|p| p.status == 0) {
                    wait = Duration::from_millis(u64::from(fetch.max_wait_ms).min(20));
                }
                Response::Fetched(fetched)
            }
            Request::Offsets { partition, spec } => {
                let partition = self.partition(partition);
                Response::Offset(Offset(match spec {
                    OffsetSpec::Earliest => partition.start,
                    OffsetSpec::End => partition.end,
                    OffsetSpec::Time(_) => partition.start + 1,
                }))
            }
            Request::OpenProducer(open) => self.open_producer(open),
            Request::Stats => Response::Stats(vec![("a".into(), 1), ("b".into(), 2)]),
            of_groups => match self.answer_of_groups(header, of_groups, peer) {
                Some(response) => response,
                None => return (Vec::new(), wait),
            },
        };
        let mut out = Vec::new();
        response.encode(&mut out, header.opcode, header.correlation, records.len() as u32);
        out.append(&mut records);
        (out, wait)
    }

    fn open_producer(&mut self, open: OpenProducer) -> Response {
        self.opened.push((open.producer, open.take_over));
        let known = &mut self.partition(open.partition).producers;
        let producer = if open.producer == ProducerId::NONE { ProducerId(7) } else { open.producer };
        let (mut epoch, mut next, mut last_offset) = (0, 0, Offset::UNKNOWN);
        if let Some(state) = known.get_mut(&producer) {
            state.0 += u32::from(open.take_over);
            (epoch, next) = (state.0, state.1);
            if let Some((sequence, offset)) = state.2.iter().max() {
                last_offset = Offset(offset + (next - sequence) - 1);
            }
        }
        Response::ProducerOpened(ProducerOpened {
            producer,
            epoch: Epoch(epoch),
            next_sequence: Sequence(next),
            last_offset,
        })
    }

    fn hello(&self) -> HelloAck {
        HelloAck {
            version: 1,
            copies: 1,
            shards: 2,
            features: 0,
            max_frame_len: 2 << 20,
            max_batch_len: 1 << 20,
            max_in_flight: self.max_in_flight,
            boot: 1,
            broker_id: [3; 16],
        }
    }

    pub fn partition(&mut self, id: PartitionId) -> &mut Partition {
        let partitions = if id.topic == OUT { &mut self.outputs } else { &mut self.partitions };
        &mut partitions[id.index as usize]
    }

    fn topic(&self) -> TopicInfo {
        TopicInfo { id: TOPIC, partitions: self.partitions.len() as u32, name: "t".into() }
    }

    fn describe(&self, name: String) -> TopicDescription {
        let partition = |p: &Partition| PartitionInfo {
            shard: ShardId(p.shard),
            start_offset: Offset(p.start),
            end_offset: Offset(p.end),
        };
        let (id, partitions) = if name == "out" { (OUT, &self.outputs) } else { (TOPIC, &self.partitions) };
        TopicDescription {
            topic: TopicInfo { id, partitions: partitions.len() as u32, name },
            partitions: partitions.iter().map(partition).collect(),
        }
    }

    /// What a produce request with this batch does, whoever sent it.
    pub fn produce(&mut self, payload: &[u8]) -> Response {
        let view = BatchView::parse_exact(payload, 1 << 20).unwrap();
        let header = view.header();
        let partition = self.partition(header.partition());
        let (base, count) = (header.base_sequence().0, u64::from(header.count()));
        let known = partition.producers.entry(header.producer_id()).or_default();
        let refuse = |code, detail| Response::Error(ErrorResponse::new(code, "").with_detail(detail));
        let epoch = header.producer_epoch().0;
        if epoch < known.0 {
            return refuse(ErrorCode::FencedProducer, u64::from(known.0));
        }
        if base > known.1 {
            return refuse(ErrorCode::OutOfOrderSequence, known.1);
        }
        let duplicate = base < known.1;
        let offset = match duplicate {
            true => known.2[&base],
            false => {
                let offset = partition.end;
                let mut batch = payload.to_vec();
                BatchHeader::set_placement(&mut batch, Offset(offset), 1_000_000 + offset);
                partition.batches.insert(offset, batch);
                partition.end += count;
                *known = (epoch, base + count, std::mem::take(&mut known.2));
                known.2.insert(base, offset);
                offset
            }
        };
        Response::Produced(ProduceAck {
            base_offset: Offset(offset),
            commit_time_us: if duplicate { 0 } else { 1_000_000 + offset },
            copies: 1,
            duplicate,
        })
    }

    fn fetch(&mut self, fetch: &Fetch, records: &mut Vec<u8>) -> Vec<FetchedPartition> {
        let mut fetched = Vec::new();
        for asked in &fetch.partitions {
            let partition = self.partition(asked.partition);
            let before = records.len();
            let mut base = Offset::UNKNOWN;
            let in_range = (partition.start..=partition.end).contains(&asked.offset.0);
            for (&offset, batch) in &partition.batches {
                let header = BatchHeader::decode(batch).unwrap();
                let wanted = in_range && header.next_offset() > asked.offset;
                if wanted && (records.is_empty() || records.len() + batch.len() <= fetch.max_bytes as usize) {
                    if base == Offset::UNKNOWN {
                        base = Offset(offset);
                    }
                    records.extend_from_slice(batch);
                } else if wanted {
                    break;
                }
            }
            fetched.push(FetchedPartition {
                partition: asked.partition,
                status: if in_range { 0 } else { ErrorCode::OffsetOutOfRange as u16 },
                payload_len: (records.len() - before) as u32,
                base_offset: base,
                start_offset: Offset(partition.start),
                end_offset: Offset(partition.end),
            });
        }
        fetched
    }
}
