//! Messages to the echo peer and back, over loopback.
//!
//! A closed loop: each connection keeps its messages in flight and sends the
//! next when one has come back in full. As the echo peer does, it sends once
//! per connection and turn, however many messages that is.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use io_uring::types::Fixed;
use io_uring::{cqueue, opcode, squeue};

use super::{Conditions, FloorError, Latency, MESSAGE_LEN, Shape, histogram, latency, on_core, record};
use crate::io::echo::{self, BareRing, EchoServer, MappedBuffers, Wait};
use crate::io::tcp;

const GROUP: u16 = 0;
/// Receive buffers, as the echo peer has them; what is received is used at
/// once, so few are enough.
const BUFFERS: u16 = 256;
const BUFFER_LEN: usize = 64 << 10;

/// Marks a send in user data; the rest is the connection.
const SEND: u64 = 1 << 32;

/// What an echo peer with nothing to do but echo reaches.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct EchoFloor {
    /// Messages that came back in full, per second.
    pub per_s: f64,
    /// Time from sending a message to having it back in full.
    pub round_trip: Latency,
}

/// Measures messages of [`MESSAGE_LEN`] bytes to an [`EchoServer`] of its own
/// and back; both sides wait as `wait` says.
///
/// # Errors
///
/// When a core is not available, the peer or a connection fails, or an echo is
/// not what was sent.
pub fn measure_echo(shape: Shape, wait: Wait, conditions: &Conditions) -> Result<EchoFloor, FloorError> {
    assert!(shape.connections > 0 && shape.in_flight > 0, "an empty shape measures nothing");
    let server = EchoServer::start_with(conditions.server_core, wait)
        .map_err(|source| FloorError::Loopback { doing: "starting", source })?;
    on_core(conditions.client_core, || run(server.addr(), shape, wait, conditions))
}

struct Conn {
    _stream: TcpStream,
    /// Bytes that came back.
    received: u64,
    /// Messages that may be sent and have not been.
    due: usize,
    /// Bytes in the send under way; 0 without one.
    sending: usize,
    dirty: bool,
    /// When messages were sent, oldest first, and how many at that time.
    sent: VecDeque<(Duration, u64)>,
}

struct Client<'r> {
    ring: BareRing<'r>,
    buffers: MappedBuffers,
    /// What is sent: the same message as often as fits in flight.
    messages: &'r [u8],
    conns: Vec<Conn>,
    dirty: Vec<u32>,
    start: Instant,
    times: Histogram<u64>,
}

fn run(addr: SocketAddr, shape: Shape, wait: Wait, conditions: &Conditions) -> Result<EchoFloor, FloorError> {
    let messages: Vec<u8> = (0..shape.in_flight).flat_map(|_| (0..MESSAGE_LEN as u64).map(byte_at)).collect();
    let connect = || -> io::Result<TcpStream> {
        let stream = TcpStream::connect(addr)?;
        tcp::prepare(&stream, addr.ip())?;
        Ok(stream)
    };
    let streams = std::iter::repeat_with(connect).take(shape.connections).collect::<io::Result<Vec<_>>>();
    let streams = streams.map_err(|source| FloorError::Loopback { doing: "connecting", source })?;

    let failed = |doing| move |source| FloorError::Ring { doing, source };
    let mut ring = echo::build(1024, 8192).map_err(failed("making a ring"))?;
    let fds: Vec<_> = streams.iter().map(AsRawFd::as_raw_fd).collect();
    ring.submitter().register_files(&fds).map_err(failed("registering connections"))?;
    let ring = BareRing::new(&mut ring);
    // SAFETY: the client below drops the buffers only after `wind_down` has
    // ended all receives, and leaks them if it fails.
    let buffers = unsafe { MappedBuffers::register(ring.submitter(), GROUP, BUFFERS, BUFFER_LEN) };
    let conn = |stream| Conn {
        _stream: stream,
        received: 0,
        due: shape.in_flight,
        sending: 0,
        dirty: true,
        sent: VecDeque::new(),
    };
    let mut client = Client {
        ring,
        buffers: buffers.map_err(failed("registering receive buffers"))?,
        messages: &messages,
        dirty: (0..streams.len() as u32).collect(),
        conns: streams.into_iter().map(conn).collect(),
        start: Instant::now(),
        times: histogram(),
    };
    let outcome = client.measure(wait, conditions);
    if let Err(source) = client.ring.wind_down() {
        std::mem::forget(client);
        std::mem::forget(messages);
        return outcome.and(Err(FloorError::Ring { doing: "ending the round trips", source }));
    }
    outcome
}

/// The byte of the messages at a position in a connection's stream.
fn byte_at(position: u64) -> u8 {
    (position % MESSAGE_LEN as u64 * 7 % 251) as u8
}

impl Client<'_> {
    fn measure(&mut self, wait: Wait, conditions: &Conditions) -> Result<EchoFloor, FloorError> {
        let (warm, end) = conditions.phases();
        let mut counted_from = None;
        for conn in 0..self.conns.len() as u32 {
            self.receive(conn);
        }
        loop {
            self.send_due();
            self.buffers.publish();
            self.ring
                .wait(wait)
                .map_err(|source| FloorError::Ring { doing: "waiting for an echo", source })?;
            let now = self.start.elapsed();
            while let Some(cqe) = self.ring.next() {
                self.complete(&cqe, now)?;
            }
            match counted_from {
                None if now >= warm => {
                    counted_from = Some(now);
                    self.times.reset();
                }
                Some(from) if now >= end => {
                    let round_trip = latency(&self.times, conditions)?;
                    let per_s = self.times.len() as f64 / (now - from).as_secs_f64();
                    return Ok(EchoFloor { per_s, round_trip });
                }
                _ => {}
            }
        }
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: a send names a prefix of `messages`, which nobody changes and
        // which `run` keeps until `wind_down` has ended all operations; a
        // receive names no memory but its buffer group's.
        unsafe { self.ring.push(entry) };
    }

    fn receive(&mut self, conn: u32) {
        let receive = opcode::RecvMulti::new(Fixed(conn), GROUP).build();
        self.push(receive.user_data(u64::from(conn)));
    }

    fn mark_dirty(&mut self, index: u32) {
        let conn = &mut self.conns[index as usize];
        if conn.due > 0 && conn.sending == 0 && !conn.dirty {
            conn.dirty = true;
            self.dirty.push(index);
        }
    }

    /// One send per connection that has something to send.
    fn send_due(&mut self) {
        let now = self.start.elapsed();
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            let conn = &mut self.conns[index as usize];
            conn.dirty = false;
            conn.sending = conn.due * MESSAGE_LEN;
            conn.sent.push_back((now, conn.due as u64));
            conn.due = 0;
            let bytes = &self.messages[..conn.sending];
            let send = opcode::Send::new(Fixed(index), bytes.as_ptr(), bytes.len() as u32)
                .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
                .build();
            self.push(send.user_data(SEND | u64::from(index)));
        }
        self.dirty = dirty;
    }

    fn complete(&mut self, cqe: &cqueue::Entry, now: Duration) -> Result<(), FloorError> {
        let index = cqe.user_data() as u32;
        if cqe.user_data() & SEND != 0 {
            return self.sent(index, cqe.result());
        }
        match cqe.result() {
            len @ 1.. => {
                let id = cqueue::buffer_select(cqe.flags()).expect("a receive names its buffer");
                self.buffers.taken();
                let outcome = self.received(index, id, len as usize, now);
                self.buffers.give_back(id);
                outcome?;
            }
            // Without a free buffer; this turn's are given back before the next.
            e if e == -libc::ENOBUFS => {}
            0 => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
            e => return Err(broken(io::Error::from_raw_os_error(-e))),
        }
        if !cqueue::more(cqe.flags()) {
            self.receive(index);
        }
        Ok(())
    }

    fn sent(&mut self, index: u32, result: i32) -> Result<(), FloorError> {
        let conn = &mut self.conns[index as usize];
        match usize::try_from(result) {
            // With MSG_WAITALL only an error or a signal cuts a send short.
            Ok(len) if len == conn.sending => conn.sending = 0,
            Ok(_) => return Err(broken(io::ErrorKind::WriteZero.into())),
            Err(_) => return Err(broken(io::Error::from_raw_os_error(-result))),
        }
        self.mark_dirty(index);
        Ok(())
    }

    /// Counts the messages that are complete with these bytes.
    fn received(&mut self, index: u32, id: u16, len: usize, now: Duration) -> Result<(), FloorError> {
        let Client { conns, buffers, times, .. } = self;
        let conn = &mut conns[index as usize];
        let bytes = buffers.bytes(id, len);
        let last = conn.received + len as u64 - 1;
        // Two bytes of each receive: comparing all would slow the measurement
        // down, and the echo peer's own tests do.
        for (position, byte) in [(conn.received, bytes[0]), (last, bytes[len - 1])] {
            if byte != byte_at(position) {
                return Err(FloorError::WrongEcho { position });
            }
        }
        let message = MESSAGE_LEN as u64;
        let mut complete = (last + 1) / message - conn.received / message;
        conn.received = last + 1;
        conn.due += complete as usize;
        while complete > 0 {
            let (sent, count) = conn.sent.front_mut().expect("an echo of something that was sent");
            let part = complete.min(*count);
            record(times, now.saturating_sub(*sent).as_nanos() as u64, part);
            complete -= part;
            *count -= part;
            if *count == 0 {
                conn.sent.pop_front();
            }
        }
        self.mark_dirty(index);
        Ok(())
    }
}

fn broken(source: io::Error) -> FloorError {
    FloorError::Loopback { doing: "echoing", source }
}
