//! A broker in this process or in one of its own, and a peer that speaks its
//! protocol byte by byte, so that it can also speak it wrongly.

#![allow(dead_code)] // not every test file uses everything

pub mod cli;
pub mod namespace;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use ringbolt::serve::{Broker, Config};
use ringbolt_wire::frame::FRAME_HEADER_LEN;
use ringbolt_wire::message::{
    Fetch, FetchPartition, FetchedPartition, Hello, HelloAck, Request, Response, TopicInfo, produce_head,
};
use ringbolt_wire::{
    BatchBuilder, Batches, Epoch, ErrorCode, FrameHeader, Offset, Opcode, PartitionId, ProducerId, Sequence,
};
use tempfile::TempDir;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A broker in a directory of its own, small enough for tests.
pub struct TestBroker {
    pub broker: Option<Broker>,
    pub addr: SocketAddr,
    pub dir: TempDir,
}

pub fn small_config(dir: &TempDir) -> Config {
    let mut config = Config::new(dir.path().join("data"));
    config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.memory = 96 << 20;
    config.segment_size = Some(16 << 20);
    config.shards = Some(1);
    config
}

/// Starts a broker, set up by `change`.
pub fn start(change: impl FnOnce(&mut Config)) -> TestBroker {
    let dir = TempDir::new().unwrap();
    let mut config = small_config(&dir);
    change(&mut config);
    let broker = Broker::start(config).unwrap();
    TestBroker { addr: broker.addr(), broker: Some(broker), dir }
}

impl TestBroker {
    pub fn connect(&self) -> Peer {
        Peer::greeted(self.addr)
    }

    /// Makes a topic and returns it.
    pub fn topic(&self, name: &str, partitions: u32) -> TopicInfo {
        self.connect().topic(name, partitions)
    }

    pub fn stat(&self, name: &str) -> u64 {
        self.connect().stat(name)
    }

    pub fn stop(mut self) -> TempDir {
        self.broker.take().unwrap().stop().unwrap();
        self.dir
    }
}

/// `ringbolt serve` as a process of its own, killed when dropped.
pub struct Server {
    pub child: Child,
    pub addr: SocketAddr,
}

impl Server {
    /// On a free port, with one shard.
    pub fn start(dir: &TempDir, more: &[&str]) -> Server {
        let usual = ["--listen", "127.0.0.1:0", "--segment-size", "16MiB", "--shards", "1"];
        Server::serve(dir, &[&usual, more].concat())
    }

    /// On a free port, unless the options say otherwise.
    pub fn serve(dir: &TempDir, options: &[&str]) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringbolt"));
        Server::spawn(command.arg("serve").arg("--data").arg(dir.path().join("data")).args(options))
    }

    /// Runs a command that becomes a broker, and waits until it listens.
    pub fn spawn(command: &mut Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut out = io::BufReader::new(child.stdout.take().unwrap());
        io::BufRead::read_line(&mut out, &mut line).unwrap();
        let addr = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("said {line:?}"));
        Server { addr: addr.parse().unwrap(), child }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and the end that follows.
    pub fn stop(&mut self) -> ExitStatus {
        signal(&self.child, "-TERM");
        ended(&mut self.child)
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most resident memory that there ever was, in bytes.
    pub fn peak_rss(&self) -> u64 {
        self.status("VmHWM:")
    }

    fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process of this test's.
pub fn signal(child: &Child, signal: &str) {
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Waits for the end of a process.
pub fn ended(child: &mut Child) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(started.elapsed() < PATIENCE, "process {} does not end", child.id());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An address that nobody listens on, to be used again and again: its port is
/// none that the system gives to a connection in between.
pub fn own_address() -> SocketAddr {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let first: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    static ASKED: AtomicU16 = AtomicU16::new(0);
    let nth = ASKED.fetch_add(1, Ordering::Relaxed);
    let start = 10_000 + (std::process::id() % 900) as u16 * 16 + nth;
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let port = (start..first).find(is_free).expect("a free port below the system's own");
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// One connection.
pub struct Peer {
    pub stream: TcpStream,
    next: u64,
}

/// A frame as it came.
#[derive(Debug)]
pub struct Answer {
    pub header: FrameHeader,
    pub response: Response,
    pub payload: Vec<u8>,
}

pub fn hello() -> Hello {
    Hello { min_version: 1, max_version: 1, features: 0, affinity: None, client_name: "test".to_owned() }
}

pub fn encode(request: &Request, correlation: u64) -> Vec<u8> {
    let mut out = Vec::new();
    request.encode(&mut out, correlation, 0);
    out
}

/// A batch with these values, without producer.
pub fn batch(partition: PartitionId, values: &[&[u8]]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    values.iter().for_each(|value| builder.push(1, None, value, &[]));
    builder.finish(partition, ProducerId::NONE, Epoch(0), Sequence(0))
}

/// The batch with a bit of its last record turned over.
pub fn damaged(good: &[u8]) -> Vec<u8> {
    let mut damaged = good.to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    damaged
}

/// The batch with a number of records that it does not have, and a CRC that fits.
pub fn miscounted(good: &[u8]) -> Vec<u8> {
    let mut lying = good.to_vec();
    lying[28..32].copy_from_slice(&1000u32.to_le_bytes());
    let crc = ringbolt_wire::crc32c(&lying[24..]);
    lying[20..24].copy_from_slice(&crc.to_le_bytes());
    lying
}

pub fn produce_frame(correlation: u64, batch: &[u8]) -> Vec<u8> {
    [&produce_head(correlation, 1, batch.len() as u32)[..], batch].concat()
}

impl Peer {
    /// Connects and says nothing.
    pub fn silent(addr: SocketAddr) -> Peer {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Peer { stream, next: 1 }
    }

    /// Connects and exchanges the hello.
    pub fn greeted(addr: SocketAddr) -> Peer {
        let mut peer = Peer::silent(addr);
        peer.greet(hello());
        peer
    }

    pub fn greet(&mut self, hello: Hello) -> HelloAck {
        match self.ask(&Request::Hello(hello)) {
            Response::Hello(ack) => ack,
            other => panic!("{other:?}"),
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn correlation(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Sends a request and takes its answer.
    pub fn ask(&mut self, request: &Request) -> Response {
        let correlation = self.correlation();
        self.send(&encode(request, correlation));
        let answer = self.answer();
        assert_eq!(answer.header.correlation, correlation, "{:?}", answer.response);
        answer.response
    }

    /// The next frame, or `None` at the end.
    pub fn try_answer(&mut self) -> io::Result<Option<Answer>> {
        let mut head = [0; FRAME_HEADER_LEN];
        match self.stream.read(&mut head)? {
            0 => return Ok(None),
            n => self.stream.read_exact(&mut head[n..])?,
        }
        let header = FrameHeader::decode(&head, u32::MAX).unwrap().unwrap();
        let mut rest = vec![0; header.frame_len() - head.len()];
        self.stream.read_exact(&mut rest)?;
        let payload = rest.split_off(header.meta_len as usize);
        header.verify(&[&head[..], &rest].concat()).unwrap();
        let response = Response::decode(header.opcode, header.status, &rest, header.payload_len).unwrap();
        Ok(Some(Answer { header, response, payload }))
    }

    pub fn answer(&mut self) -> Answer {
        self.try_answer().unwrap().expect("the connection ended")
    }

    /// The code with which the broker says goodbye, after which it closes.
    pub fn goodbye(&mut self) -> ErrorCode {
        let answer = self.answer();
        assert_eq!(answer.header.opcode, Opcode::Goodbye as u8, "{answer:?}");
        assert!(self.is_closed());
        code(&answer.response)
    }

    /// Whether bytes have come that were not read yet.
    pub fn was_sent_something(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let is_there = self.stream.peek(&mut [0]).is_ok_and(|n| n > 0);
        self.stream.set_nonblocking(false).unwrap();
        is_there
    }

    pub fn is_closed(&mut self) -> bool {
        match self.try_answer() {
            Ok(None) => true,
            Err(e) => matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe),
            Ok(Some(answer)) => panic!("{answer:?}"),
        }
    }

    pub fn topic(&mut self, name: &str, partitions: u32) -> TopicInfo {
        match self.ask(&Request::CreateTopic { name: name.to_owned(), partitions }) {
            Response::TopicCreated(topic) => topic,
            other => panic!("{other:?}"),
        }
    }

    pub fn stat(&mut self, name: &str) -> u64 {
        match self.ask(&Request::Stats) {
            Response::Stats(stats) => {
                stats.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name} in {stats:?}")).1
            }
            other => panic!("{other:?}"),
        }
    }

    /// Produces one batch and returns its offset.
    pub fn produce(&mut self, batch: &[u8]) -> Offset {
        match self.try_produce(batch) {
            Response::Produced(ack) => ack.base_offset,
            other => panic!("{other:?}"),
        }
    }

    pub fn try_produce(&mut self, batch: &[u8]) -> Response {
        let correlation = self.correlation();
        self.send(&produce_frame(correlation, batch));
        let answer = self.answer();
        assert_eq!(answer.header.correlation, correlation, "{:?}", answer.response);
        answer.response
    }

    /// Fetches once from the partitions, each from its offset.
    pub fn fetch(
        &mut self,
        from: &[(PartitionId, Offset)],
        max_bytes: u32,
        wait_ms: u32,
    ) -> (Vec<FetchedPartition>, Vec<u8>) {
        let correlation = self.correlation();
        self.send(&encode(&fetch_request(from, max_bytes, wait_ms), correlation));
        let answer = self.answer();
        match answer.response {
            Response::Fetched(partitions) => (partitions, answer.payload),
            other => panic!("{other:?}"),
        }
    }

    /// Reads all values of a partition from `offset` to its end.
    pub fn read_all(&mut self, partition: PartitionId, mut offset: Offset) -> Vec<Vec<u8>> {
        let mut values = Vec::new();
        loop {
            let (partitions, payload) = self.fetch(&[(partition, offset)], 1 << 20, 0);
            assert_eq!(partitions[0].status, 0);
            if payload.is_empty() {
                assert_eq!(offset, partitions[0].end_offset);
                return values;
            }
            for (at, value) in records(&partitions, &payload) {
                if at >= offset {
                    assert_eq!(at, offset);
                    offset = Offset(at.0 + 1);
                    values.push(value);
                }
            }
        }
    }
}

pub fn fetch_request(from: &[(PartitionId, Offset)], max_bytes: u32, wait_ms: u32) -> Request {
    let partition = |&(partition, offset)| FetchPartition { partition, offset, max_bytes };
    let partitions = from.iter().map(partition).collect();
    Request::Fetch(Fetch { max_wait_ms: wait_ms, min_bytes: u32::from(wait_ms > 0), max_bytes, partitions })
}

/// Offset and value of all records in a fetch answer.
pub fn records(partitions: &[FetchedPartition], mut payload: &[u8]) -> Vec<(Offset, Vec<u8>)> {
    let mut found = Vec::new();
    for partition in partitions {
        let (batches, rest): (Batches<'_>, _) = partition.split_payload(payload);
        payload = rest;
        for batch in batches {
            let batch = batch.unwrap();
            found.extend(batch.records().map(|(offset, record)| (offset, record.value.to_vec())));
        }
    }
    found
}

/// The code of a refusal.
pub fn code(response: &Response) -> ErrorCode {
    match response {
        Response::Error(error) => error.error_code().unwrap(),
        other => panic!("not refused: {other:?}"),
    }
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
