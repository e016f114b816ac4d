//! A client's sockets on one ring: many connections, one thread, nothing unsafe
//! to the outside.
//!
//! Knows connections by the number that the caller gave them, and bytes; it
//! knows no protocol. Receives are multishot, into buffers that all connections
//! share; sends take a vector and give it back.

use std::cell::{Ref, RefCell};
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use crate::io::echo::MappedBuffers;
use crate::io::ring::{Class, Completion, Held, Ring, RingConfig, RingError, Target, Token};

/// The ring's only group of buffers.
const GROUP: u16 = 0;

/// Most connections: what fits into a token beside the rest.
const MAX_CONNECTIONS: usize = 1 << 24;
const GENERATION_MASK: u32 = (1 << 24) - 1;

const RECEIVE: u64 = 0;
const SEND: u64 = 1;

/// Sizes of a [`NetRing`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NetRingConfig {
    /// Connections, at most 2^24.
    pub connections: usize,
    /// Receive buffers, a power of two, at most 32,768.
    pub buffers: u16,
    /// Bytes of a receive buffer.
    pub buffer_len: usize,
}

impl Default for NetRingConfig {
    /// 64 connections and 8 MiB of buffers. 64 KiB a buffer: with 16 KiB,
    /// large messages take several receives each.
    fn default() -> Self {
        NetRingConfig { connections: 64, buffers: 128, buffer_len: 64 << 10 }
    }
}

/// Why there is no ring for sockets.
#[derive(thiserror::Error, Debug)]
pub enum NetRingError {
    /// See [`RingError`].
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The kernel does not take the buffers.
    #[error("cannot register receive buffers with io_uring: {0}; Linux 5.19 or newer is needed")]
    Buffers(#[source] io::Error),
    /// The kernel does not take so many sockets.
    #[error(
        "cannot register {connections} sockets with io_uring: {source}; raise the limit of open files (ulimit -n)"
    )]
    Files {
        /// How many.
        connections: usize,
        /// Why.
        source: io::Error,
    },
}

/// Something that happened to a connection.
#[derive(Debug)]
pub enum NetEvent<'a> {
    /// Bytes arrived. They are gone with the next event.
    Received(usize, Ref<'a, [u8]>),
    /// Everything was sent; this was its buffer.
    Sent(usize, Vec<u8>),
    /// The connection is at its end, and closed: by the peer without an error,
    /// or for this reason.
    Closed(usize, Option<io::Error>),
}

#[derive(Default)]
struct Connection {
    /// Rises with every socket, so that what an earlier one left behind is not
    /// taken for news.
    generation: u32,
    stream: Option<TcpStream>,
    /// A receive is under way.
    receiving: bool,
    /// Bytes of the current send that are gone, while there is one.
    sent: Option<usize>,
    /// Bytes of the current send.
    to_send: usize,
}

/// See the [module](self). It stays on the thread that made it.
pub struct NetRing {
    /// First, so that it lets go of the buffers before they go.
    ring: Ring,
    /// A second owner keeps them with the ring, should that be leaked.
    buffers: Rc<RefCell<MappedBuffers>>,
    connections: Vec<Connection>,
    /// The buffer whose bytes the last event handed out.
    lent: Option<u16>,
    /// Connections whose receive has to be started.
    unarmed: Vec<usize>,
}

impl NetRing {
    /// A ring without connections, for the calling thread alone.
    pub fn new(config: NetRingConfig) -> Result<NetRing, NetRingError> {
        assert!(config.connections <= MAX_CONNECTIONS, "a connection's number has 24 bits");
        let mut ring = Ring::new(RingConfig::default())?;
        // Registered sockets spare every operation the counting of references
        // to a file that several threads can see.
        let connections = config.connections;
        ring.submitter()
            .register_files_sparse(connections as u32)
            .map_err(|source| NetRingError::Files { connections, source })?;
        // SAFETY: the value is kept by the ring, which drops what it keeps only
        // when no operation is under way, and it is gone by then itself.
        let buffers =
            unsafe { MappedBuffers::register(ring.submitter(), GROUP, config.buffers, config.buffer_len) };
        let buffers = Rc::new(RefCell::new(buffers.map_err(NetRingError::Buffers)?));
        ring.keep(Box::new(buffers.clone()));
        let mut connections = Vec::new();
        connections.resize_with(config.connections, Connection::default);
        Ok(NetRing { ring, buffers, connections, lent: None, unarmed: Vec::new() })
    }

    /// Lets the calling thread's sleeps end on time: the kernel may otherwise
    /// let it sleep 50 µs longer to save wake-ups.
    pub fn sleep_precisely(&self) {
        // SAFETY: sets a number of the calling thread; a kernel that refuses
        // leaves it as it was.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    }

    /// Takes a connected socket, and begins to receive.
    ///
    /// # Errors
    /// If the kernel does not take the socket.
    ///
    /// # Panics
    /// If there is no connection of this number, or it is open.
    pub fn open(&mut self, number: usize, stream: TcpStream) -> io::Result<()> {
        assert!(self.connections[number].stream.is_none(), "connection {number} is open");
        self.ring.submitter().register_files_update(number as u32, &[stream.as_raw_fd()])?;
        let connection = &mut self.connections[number];
        connection.generation = (connection.generation + 1) & GENERATION_MASK;
        connection.stream = Some(stream);
        (connection.receiving, connection.sent) = (false, None);
        self.unarmed.push(number);
        Ok(())
    }

    /// Whether the connection can take something to send.
    #[inline]
    pub fn can_send(&self, number: usize) -> bool {
        let connection = &self.connections[number];
        connection.stream.is_some() && connection.sent.is_none()
    }

    /// Sends the first `len` bytes of a buffer, which comes back with
    /// [`NetEvent::Sent`].
    ///
    /// # Panics
    /// If the connection is not open, or still sends; or if the buffer is
    /// shorter.
    #[inline]
    pub fn send(&mut self, number: usize, buffer: Vec<u8>, len: usize) {
        assert!(self.can_send(number), "connection {number} cannot send now");
        self.connections[number].sent = Some(0);
        self.connections[number].to_send = len;
        self.send_rest(number, buffer, 0);
    }

    fn send_rest(&mut self, number: usize, buffer: Vec<u8>, from: usize) {
        let Some((token, target)) = self.address(number, SEND) else { return };
        let range = from..self.connections[number].to_send;
        self.ring.send(token, target, buffer, range, libc::MSG_WAITALL);
    }

    /// Closes a connection; no event of it comes after this.
    pub fn close(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        if let Some(stream) = connection.stream.take() {
            // Ends what is under way. A peer that is gone already is as good,
            // and a socket that stays registered goes with the next one.
            let _ = stream.shutdown(Shutdown::Both);
            // What was asked for and not submitted names the socket by its place,
            // which may be another's next. A broken ring shows at the next wait.
            let _ = self.ring.submit();
            let _ = self.ring.submitter().register_files_update(number as u32, &[-1]);
        }
        connection.sent = None;
    }

    /// Submits what was asked for and waits for something to happen, or for the
    /// time to pass; `Some(Duration::ZERO)` does not wait.
    ///
    /// # Errors
    /// When the ring itself is broken.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.take_back();
        self.arm();
        self.buffers.borrow_mut().publish();
        match timeout {
            Some(Duration::ZERO) => self.ring.submit(),
            timeout => self.ring.submit_and_wait(timeout),
        }
    }

    /// The next of the events that the last wait brought.
    #[inline]
    pub fn next_event(&mut self) -> Option<NetEvent<'_>> {
        self.take_back();
        loop {
            let completion = self.ring.next_completion()?;
            let value = completion.token.value();
            let number = (value & 0xff_ffff) as usize;
            let current = self.connections[number].generation == (value >> 24) as u32 & GENERATION_MASK
                && self.connections[number].stream.is_some();
            let happened = match value >> 48 {
                RECEIVE => self.received(number, current, &completion),
                _ if current => self.sent(number, completion),
                _ => None,
            };
            match happened {
                None => {}
                Some(Happened::Received(id, len)) => {
                    self.lent = Some(id);
                    let bytes = Ref::map(self.buffers.borrow(), |buffers| buffers.bytes(id, len));
                    return Some(NetEvent::Received(number, bytes));
                }
                Some(Happened::Sent(buffer)) => return Some(NetEvent::Sent(number, buffer)),
                Some(Happened::Ended(error)) => {
                    self.close(number);
                    return Some(NetEvent::Closed(number, error));
                }
            }
        }
    }

    #[inline]
    fn received(&mut self, number: usize, current: bool, completion: &Completion) -> Option<Happened> {
        if current && !completion.more() {
            self.connections[number].receiving = false;
            self.unarmed.push(number);
        }
        match completion.outcome() {
            Ok(0) => current.then_some(Happened::Ended(None)),
            Ok(len) => {
                let id =
                    io_uring::cqueue::buffer_select(completion.flags).expect("a receive names its buffer");
                let mut buffers = self.buffers.borrow_mut();
                buffers.taken();
                if !current {
                    buffers.give_back(id);
                    return None;
                }
                Some(Happened::Received(id, len as usize))
            }
            // All buffers were full: goes on once they are back.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => None,
            Err(error) => current.then_some(Happened::Ended(Some(error))),
        }
    }

    #[inline]
    fn sent(&mut self, number: usize, completion: Completion) -> Option<Happened> {
        let (outcome, held) = (completion.outcome(), completion.held);
        let Held::Vec(buffer) = held else { unreachable!("a send gives its vector back") };
        match outcome {
            Ok(len) => {
                let sent = self.connections[number].sent.unwrap_or(0) + len as usize;
                if sent < self.connections[number].to_send {
                    self.connections[number].sent = Some(sent);
                    self.send_rest(number, buffer, sent);
                    return None;
                }
                self.connections[number].sent = None;
                Some(Happened::Sent(buffer))
            }
            Err(error) => Some(Happened::Ended(Some(error))),
        }
    }

    /// The bytes of the last event are no longer in use.
    #[inline]
    fn take_back(&mut self) {
        if let Some(id) = self.lent.take() {
            self.buffers.borrow_mut().give_back(id);
        }
    }

    fn arm(&mut self) {
        while let Some(number) = self.unarmed.pop() {
            if self.connections[number].receiving {
                continue;
            }
            if let Some((token, target)) = self.address(number, RECEIVE) {
                self.connections[number].receiving = true;
                self.ring.recv_multi(token, target, GROUP);
            }
        }
    }

    #[inline]
    fn address(&self, number: usize, kind: u64) -> Option<(Token, Target)> {
        let connection = &self.connections[number];
        connection.stream.as_ref()?;
        let value = kind << 48 | u64::from(connection.generation) << 24 | number as u64;
        Some((Token::new(Class::Net, value), Target::Fixed(number as u32)))
    }
}

enum Happened {
    Received(u16, usize),
    Sent(Vec<u8>),
    Ended(Option<io::Error>),
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    fn small() -> NetRingConfig {
        NetRingConfig { connections: 2, buffers: 2, buffer_len: 4096 }
    }

    fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    /// Collects events until `until` says that it is enough.
    fn drive(net: &mut NetRing, mut until: impl FnMut(NetEvent<'_>) -> bool) {
        for _ in 0..100_000 {
            net.wait(Some(Duration::from_secs(5))).unwrap();
            while let Some(event) = net.next_event() {
                if until(event) {
                    return;
                }
            }
        }
        panic!("it never happened");
    }

    #[test]
    fn more_bytes_than_all_buffers_hold_arrive_whole_and_in_order() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (ours, mut theirs) = pair(&listener);
        let mut net = NetRing::new(small()).unwrap();
        net.open(1, ours).unwrap();
        let wanted: Vec<u8> = (0..1_000_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        let sent = wanted.clone();
        let writer = std::thread::spawn(move || theirs.write_all(&sent));
        let mut got = Vec::new();
        let mut clean = false;
        drive(&mut net, |event| match event {
            NetEvent::Received(1, bytes) => {
                got.extend_from_slice(&bytes);
                false
            }
            NetEvent::Closed(1, error) => {
                clean = error.is_none();
                true
            }
            other => panic!("{other:?}"),
        });
        writer.join().unwrap().unwrap();
        assert!(clean && got == wanted);
    }

    #[test]
    fn a_large_send_arrives_whole_and_its_buffer_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (ours, mut theirs) = pair(&listener);
        let mut net = NetRing::new(small()).unwrap();
        net.open(0, ours).unwrap();
        let data: Vec<u8> = (0..8_000_000u32).map(|i| (i >> 5) as u8).collect();
        net.send(0, [&data[..], b"not sent"].concat(), data.len());
        assert!(!net.can_send(0));
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; 8_000_000];
            theirs.read_exact(&mut got).map(|()| got)
        });
        let mut back = Vec::new();
        drive(&mut net, |event| match event {
            NetEvent::Sent(0, buffer) => {
                back = buffer;
                true
            }
            other => panic!("{other:?}"),
        });
        assert!(net.can_send(0));
        assert!(back.starts_with(&data) && reader.join().unwrap().unwrap() == data);
    }

    /// A send that no wait has submitted yet names the place that the next
    /// connection takes.
    #[test]
    fn what_was_to_be_sent_does_not_reach_the_next_connection_of_the_same_number() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut net = NetRing::new(small()).unwrap();
        let ((first, _), (second, mut theirs)) = (pair(&listener), pair(&listener));
        net.open(0, first).unwrap();
        net.send(0, b"for the first".to_vec(), 13);
        net.close(0);
        net.open(0, second).unwrap();
        net.send(0, b"for the second".to_vec(), 14);
        drive(&mut net, |event| matches!(event, NetEvent::Sent(0, _)));
        let mut got = [0; 14];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(got, *b"for the second");
    }

    #[test]
    fn a_number_can_be_used_again_and_hears_nothing_of_its_past() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut net = NetRing::new(small()).unwrap();
        for round in 0..50u8 {
            let (ours, mut theirs) = pair(&listener);
            net.open(0, ours).unwrap();
            theirs.write_all(&[round; 3000]).unwrap();
            if round % 2 == 0 {
                // Closed with bytes unread and a send under way.
                net.send(0, vec![1; 4_000_000], 4_000_000);
                net.wait(Some(Duration::ZERO)).unwrap();
                net.close(0);
                continue;
            }
            let mut got = Vec::new();
            drive(&mut net, |event| {
                if let NetEvent::Received(0, bytes) = event {
                    got.extend_from_slice(&bytes);
                }
                got.len() == 3000
            });
            assert_eq!(got, [round; 3000]);
            net.close(0);
        }
    }
}
