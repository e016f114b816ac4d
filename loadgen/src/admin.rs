//! What happens before and after a run: one request, one answer, on a blocking
//! socket.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringbolt_client::session::{Session, SessionConfig, SessionError, SessionEvent};
use ringbolt_wire::message::{
    CreateGroup, Delivery, ErrorResponse, Fetch, FetchPartition, GroupDescription, GroupInfo, HelloAck,
    OffsetSpec, Receive, Settle, TopicDescription, TopicInfo,
};
use ringbolt_wire::{BatchHeader, ErrorCode, Offset, PartitionId, Request, Response};

/// Longest wait for a connection or an answer. Creating a topic of 100,000
/// partitions is the slowest of them.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts to reach a broker that was there before.
const AGAIN: Duration = Duration::from_millis(20);

/// Why a broker could not be asked.
#[derive(thiserror::Error, Debug)]
pub enum AdminError {
    /// The address means nothing.
    #[error("{addr} is not an address: {source}; write HOST:PORT")]
    Address {
        /// As given.
        addr: String,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody there.
    #[error("cannot reach a broker at {addr}: {source}")]
    Connect {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the connection to the broker broke: {0}")]
    Io(#[from] std::io::Error),
    /// What answered is no broker, or does not want us.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The broker refused.
    #[error("the broker refused: {0}")]
    Refused(ErrorResponse),
    /// The topic does not fit the run.
    #[error(
        "topic {name} has {has} partitions, the run wants {wants}; choose another --topic or --partitions"
    )]
    Partitions {
        /// The topic.
        name: String,
        /// Its partitions.
        has: u32,
        /// What was asked for.
        wants: u32,
    },
}

/// The first address of `addr`.
pub fn resolve(addr: &str) -> Result<SocketAddr, AdminError> {
    let error = |source| AdminError::Address { addr: addr.to_owned(), source };
    let mut all = addr.to_socket_addrs().map_err(error)?;
    all.next().ok_or_else(|| error(std::io::Error::other("the name has no address")))
}

impl AdminError {
    /// Whether it says that the broker goes away, as one does that is started
    /// again.
    fn is_departure(&self) -> bool {
        match self {
            AdminError::Io(error) => error.kind() != std::io::ErrorKind::Other,
            AdminError::Connect { .. } => true,
            AdminError::Session(error) => error.is_shutting_down(),
            AdminError::Refused(error) => error.error_code() == Some(ErrorCode::ShuttingDown),
            AdminError::Address { .. } | AdminError::Partitions { .. } => false,
        }
    }
}

/// A connection that asks one thing at a time.
pub struct Admin {
    stream: TcpStream,
    session: Session<()>,
    limits: HelloAck,
}

impl Admin {
    /// Connects and shakes hands.
    pub fn connect(addr: SocketAddr) -> Result<Admin, AdminError> {
        let connect = |source| AdminError::Connect { addr, source };
        let stream = TcpStream::connect_timeout(&addr, PATIENCE).map_err(connect)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let config = SessionConfig { client_name: "loadgen-admin".into(), ..SessionConfig::default() };
        let mut session = Session::new(config);
        let mut stream = stream;
        loop {
            if let SessionEvent::Connected(limits) = next_event(&mut stream, &mut session)? {
                return Ok(Admin { stream, session, limits });
            }
        }
    }

    /// Does `work` with a broker that may be started again meanwhile: what a
    /// broken connection cut short is done once more from its beginning, for up
    /// to [`PATIENCE`]. A broker that is not there at first is an error at once.
    pub fn persist<T>(
        addr: SocketAddr,
        mut work: impl FnMut(&mut Admin) -> Result<T, AdminError>,
    ) -> Result<T, AdminError> {
        let mut done = work(&mut Admin::connect(addr)?);
        let start = Instant::now();
        while matches!(&done, Err(error) if error.is_departure()) && start.elapsed() < PATIENCE {
            std::thread::sleep(AGAIN);
            done = Admin::connect(addr).and_then(|mut admin| work(&mut admin));
        }
        done
    }

    /// What the broker accepts.
    pub fn limits(&self) -> &HelloAck {
        &self.limits
    }

    /// So many connections, which are of no use but that they exist.
    pub fn connect_idle(addr: SocketAddr, count: u32) -> Result<Vec<Admin>, AdminError> {
        (0..count).map(|_| Admin::connect(addr)).collect()
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`AdminError::Refused`] if the answer is a refusal.
    pub fn ask(&mut self, request: &Request) -> Result<Response, AdminError> {
        Ok(self.ask_whole(request)?.0)
    }

    /// All topics.
    pub fn list_topics(&mut self) -> Result<Vec<TopicInfo>, AdminError> {
        match self.ask(&Request::ListTopics)? {
            Response::Topics(topics) => Ok(topics),
            _ => Err(something_else()),
        }
    }

    /// Produces a batch, and waits until it is durable.
    pub fn produce(&mut self, batch: &[u8]) -> Result<(), AdminError> {
        if let Err(refused) = self.session.produce(batch, 0, ()) {
            return Err(std::io::Error::other(refused.why).into());
        }
        self.answer().map(drop)
    }

    /// Asks for records of a group.
    pub fn receive(&mut self, receive: Receive) -> Result<Delivery, AdminError> {
        match self.ask(&Request::Receive(receive))? {
            Response::Delivered(delivery) => Ok(delivery),
            _ => Err(something_else()),
        }
    }

    /// Says what became of records, all of which must still be this consumer's.
    pub fn settle(&mut self, settle: Settle) -> Result<(), AdminError> {
        match self.ask(&Request::Settle(settle))? {
            Response::Settled(settled) if settled.unsettled.is_empty() => Ok(()),
            Response::Settled(settled) => {
                let first = settled.unsettled[0];
                Err(std::io::Error::other(format!("offset {} was not settled", first.base_offset)).into())
            }
            _ => Err(something_else()),
        }
    }

    fn ask_whole(&mut self, request: &Request) -> Result<(Response, Bytes), AdminError> {
        if let Err(refused) = self.session.request(request, ()) {
            return Err(std::io::Error::other(refused.why).into());
        }
        self.answer()
    }

    /// Waits for the answer.
    fn answer(&mut self) -> Result<(Response, Bytes), AdminError> {
        loop {
            match next_event(&mut self.stream, &mut self.session)? {
                SessionEvent::Answer { response: Response::Error(error), .. }
                | SessionEvent::Goodbye(error) => {
                    return Err(AdminError::Refused(error));
                }
                SessionEvent::Answer { response, payload, .. } => return Ok((response, payload)),
                SessionEvent::Produced { ack, .. } => return Ok((Response::Produced(ack), Bytes::new())),
                SessionEvent::Connected(_) | SessionEvent::Delivered { .. } => {}
            }
        }
    }

    /// Describes a topic, and creates it first if it is missing and `partitions`
    /// says how many it should have.
    pub fn topic(&mut self, name: &str, partitions: Option<u32>) -> Result<TopicInfo, AdminError> {
        if let Some(partitions) = partitions {
            match self.ask(&Request::CreateTopic { name: name.to_owned(), partitions }) {
                Err(AdminError::Refused(e)) if e.error_code() == Some(ErrorCode::TopicExists) => {}
                other => drop(other?),
            }
        }
        let topic = self.describe_topic(name)?.topic;
        match partitions {
            Some(wants) if wants > topic.partitions => {
                Err(AdminError::Partitions { name: name.to_owned(), has: topic.partitions, wants })
            }
            _ => Ok(topic),
        }
    }

    /// Describes a topic.
    pub fn describe_topic(&mut self, name: &str) -> Result<TopicDescription, AdminError> {
        match self.ask(&Request::DescribeTopic { name: name.to_owned() })? {
            Response::Topic(topic) => Ok(topic),
            _ => Err(something_else()),
        }
    }

    /// Creates a group, or finds it.
    pub fn create_group(&mut self, create: CreateGroup) -> Result<GroupInfo, AdminError> {
        match self.ask(&Request::CreateGroup(create))? {
            Response::Group(group) => Ok(group),
            _ => Err(something_else()),
        }
    }

    /// Describes a group.
    pub fn describe_group(&mut self, name: &str) -> Result<GroupDescription, AdminError> {
        match self.ask(&Request::DescribeGroup { name: name.to_owned() })? {
            Response::GroupDescribed(group) => Ok(*group),
            _ => Err(something_else()),
        }
    }

    /// Deletes a group.
    pub fn delete_group(&mut self, name: &str) -> Result<(), AdminError> {
        self.ask(&Request::DeleteGroup { name: name.to_owned() }).map(drop)
    }

    /// The offset after a partition's last record.
    pub fn end(&mut self, partition: PartitionId) -> Result<u64, AdminError> {
        self.offset(partition, OffsetSpec::End)
    }

    /// A partition's first retained offset.
    pub fn earliest(&mut self, partition: PartitionId) -> Result<u64, AdminError> {
        self.offset(partition, OffsetSpec::Earliest)
    }

    fn offset(&mut self, partition: PartitionId, spec: OffsetSpec) -> Result<u64, AdminError> {
        match self.ask(&Request::Offsets { partition, spec })? {
            Response::Offset(offset) => Ok(offset.0),
            _ => Err(something_else()),
        }
    }

    /// Bytes per record in the batch at this offset, at least 1.
    pub fn record_len(&mut self, partition: PartitionId, offset: u64) -> Result<u64, AdminError> {
        let partitions = vec![FetchPartition { partition, offset: Offset(offset), max_bytes: 1 }];
        let fetch = Fetch { max_wait_ms: 0, min_bytes: 0, max_bytes: 1, partitions };
        let (_, payload) = self.ask_whole(&Request::Fetch(fetch))?;
        let header = BatchHeader::decode(&payload).map_err(std::io::Error::other)?;
        Ok((header.len() as u64 / u64::from(header.count())).max(1))
    }
}

fn next_event(stream: &mut TcpStream, session: &mut Session<()>) -> Result<SessionEvent<()>, AdminError> {
    while let Some(piece) = session.poll_transmit() {
        stream.write_all(piece.as_ref())?;
    }
    let mut buffer = [0; 16 << 10];
    // The session may hold events of bytes that came before.
    let mut rest: &[u8] = &[];
    loop {
        if let Some(event) = session.receive_slice(&mut rest)? {
            // One request at a time: at most one answer per read, and after
            // a goodbye nothing matters.
            return Ok(event);
        }
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        rest = &buffer[..len];
    }
}

/// The session sees to it that answers belong to their requests, so this takes
/// a broker that breaks the protocol.
fn something_else() -> AdminError {
    std::io::Error::other("the broker answered something else than was asked").into()
}
