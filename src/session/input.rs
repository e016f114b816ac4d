//! Bytes in: frames, the handshake, and the way to the right shard.

use ringbolt_wire::frame::FRAME_HEADER_LEN;
use ringbolt_wire::message::{
    ErrorResponse, Fetch, Hello, HelloAck, PRODUCE_HEAD_LEN, Request, ResetGroup, Response, Settle,
};
use ringbolt_wire::{BatchError, BatchHeader, ErrorCode, FrameHeader, Opcode, PROTOCOL_VERSION, ShardId};

use super::fetching::Charge;
use super::gather::{FetchGather, TopicGather};
use super::group_gather::GroupTask;
use super::listing::Listing;
use super::pending::{Pending, number};
use super::route::for_one_shard;
use super::{Input, Phase, Session, Shards, Violation, add};
use crate::limits::{
    BLOCK_LEN, MAX_BATCH_LEN, MAX_FETCH_BYTES, MAX_FETCH_WAIT_MS, MAX_FRAME_LEN, MAX_HELLO_FRAME_LEN,
    MAX_IN_FLIGHT,
};
use crate::shard::event::{Payload, ShardRequest};
use crate::shard::placement::shard_of;

/// A frame received straight into aligned memory: its payload starts at
/// [`BLOCK_LEN`], the head lies right before it.
#[derive(Debug)]
pub struct DirectFrame<B> {
    /// The memory. Ends at the first multiple of a block that holds the batch;
    /// what follows the batch is zero.
    pub buffer: B,
    /// Bytes of the payload.
    pub payload_len: usize,
}

/// What became of one frame.
pub(super) enum Taken {
    /// It was handled.
    Yes,
    /// It must be handled later; nothing of it was taken.
    No(Input),
}

impl Session {
    /// Takes what arrived. Whole frames are handled in place; what remains is
    /// kept, and so is everything while the input is not open.
    pub fn receive<S: Shards>(&mut self, mut bytes: &[u8], shards: &mut S) -> Input {
        if self.phase == Phase::Closing {
            return Input::Closed;
        }
        if !matches!(self.input, Input::Open | Input::Large { .. }) {
            self.keep(bytes);
            return self.input;
        }
        while !self.stash.is_empty() {
            let wanted = self.missing();
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            self.keep(now);
            bytes = later;
            if now.len() < wanted {
                return self.coming_now();
            }
            if wanted == 0 {
                let input = self.run_stash(shards);
                if !matches!(input, Input::Open | Input::Large { .. }) {
                    self.keep(bytes);
                    return input;
                }
            }
        }
        let used = self.run(bytes, shards);
        self.keep(&bytes[used..]);
        self.coming_now()
    }

    /// Goes on with what was kept, after a shard takes requests again or
    /// answers were sent.
    pub fn resume<S: Shards>(&mut self, shards: &mut S) -> Input {
        if self.phase == Phase::Closing {
            return Input::Closed;
        }
        self.input = Input::Open;
        self.run_stash(shards);
        self.coming_now()
    }

    /// Takes a frame that was received straight into aligned memory, or gives
    /// it back while it must wait (see [`input`](Self::input)). The stash must
    /// be empty.
    pub fn receive_direct<S: Shards>(
        &mut self,
        frame: DirectFrame<S::Buffer>,
        shards: &mut S,
    ) -> Result<Input, DirectFrame<S::Buffer>>
    where
        S::Buffer: AsRef<[u8]>,
    {
        assert!(self.stash.is_empty(), "bytes of a direct frame came before it");
        if self.phase == Phase::Closing {
            return Ok(Input::Closed);
        }
        self.input = Input::Open;
        let bytes = frame.buffer.as_ref();
        let head = &bytes[BLOCK_LEN - PRODUCE_HEAD_LEN..BLOCK_LEN];
        let header = match self.decode(head) {
            Ok(header) => header.expect("a head is longer than a frame header"),
            Err(violation) => return Ok(self.close(&violation)),
        };
        assert!(
            header.head_len() == PRODUCE_HEAD_LEN && header.payload_len as usize == frame.payload_len,
            "the driver took this frame for what it is not"
        );
        if self.is_backlogged() {
            self.input = Input::Backlogged;
            return Err(frame);
        }
        let batch = &bytes[BLOCK_LEN..BLOCK_LEN + frame.payload_len];
        let (shard, min_copies) = match self.check_produce(&header, head, batch) {
            Ok(checked) => checked,
            Err(Refused::Closed(violation)) => return Ok(self.close(&violation)),
            Err(Refused::Answered(error)) => {
                self.frames += 1;
                self.refuse(header.opcode, header.correlation, error);
                return Ok(Input::Open);
            }
        };
        if !shards.accepts(shard, true) {
            self.input = Input::Stalled(shard);
            return Err(frame);
        }
        self.frames += 1;
        self.count(&header);
        let number =
            self.insert(Pending::Single { correlation: header.correlation, opcode: Opcode::Produce });
        let payload = Payload::Aligned { buffer: frame.buffer, len: frame.payload_len };
        shards.request(shard, number, ShardRequest::Produce { payload, min_copies });
        Ok(Input::Open)
    }

    /// Ends the connection: nothing that still comes is taken; what is in
    /// flight is answered, and then is the time to [part](Self::part). Waiting fetches
    /// should be [hurried](Self::hurry_fetches).
    pub fn close(&mut self, violation: &Violation) -> Input {
        if self.phase != Phase::Closing {
            self.phase = Phase::Closing;
            if !matches!(violation, Violation::ShuttingDown) {
                add(&self.config.counters.violations, 1);
            }
            self.goodbye = Some(Box::new(violation.response()));
            self.stash.consume(self.stash.len());
        }
        self.input = Input::Closed;
        self.input
    }

    /// Says the goodbye of a session that was [closed](Self::close), behind all answers:
    /// once nothing is in flight any more.
    pub fn part(&mut self) {
        if self.pending.is_empty()
            && let Some(goodbye) = self.goodbye.take()
        {
            let goodbye = Response::Error(*goodbye);
            self.gathering
                .append(&self.config.spares, |out| goodbye.encode(out, Opcode::Goodbye as u8, 0, 0));
        }
    }

    /// The peer sends no more: what is in flight is still answered, and waiting
    /// fetches are answered now.
    pub fn end_of_input<S: Shards>(&mut self, shards: &mut S) {
        self.phase = Phase::Closing;
        self.input = Input::Closed;
        self.stash.consume(self.stash.len());
        self.hurry_fetches(shards);
    }

    /// Asks for the answers to all waiting fetches.
    pub fn hurry_fetches<S: Shards>(&mut self, shards: &mut S) {
        for (slot, pending) in &self.pending {
            match pending {
                Pending::Fetch { shard, .. } => shards.fetch_now(*shard, number(slot, 0)),
                Pending::FetchParts { gather, .. } => {
                    gather.waiting().for_each(|(part, shard)| shards.fetch_now(shard, number(slot, part)));
                }
                Pending::Attach { shard, .. } | Pending::Receive { shard, .. } => {
                    shards.fetch_now(*shard, number(slot, 0));
                }
                Pending::Single { .. }
                | Pending::Settle { .. }
                | Pending::Topic { .. }
                | Pending::Group { .. } => {}
            }
        }
    }

    /// Keeps what arrived, to [go on](Self::resume) with it later.
    pub fn hold(&mut self, bytes: &[u8]) -> Input {
        self.keep(bytes);
        self.input
    }

    fn keep(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() && self.phase != Phase::Closing {
            add(&self.config.counters.copied_bytes, bytes.len());
            self.stash.push(bytes);
        }
    }

    /// Bytes that the stash lacks until its first frame is whole, or its header
    /// until that is; 0 as well if it cannot become a frame.
    fn missing(&mut self) -> usize {
        match self.decode(self.stash.as_slice()) {
            Ok(Some(header)) => {
                let len = header.frame_len();
                self.stash.expect(len);
                len.saturating_sub(self.stash.len())
            }
            Ok(None) => FRAME_HEADER_LEN - self.stash.len(),
            Err(_) => 0,
        }
    }

    /// The input's state, after as much as possible was handled.
    fn coming_now(&mut self) -> Input {
        if matches!(self.input, Input::Open | Input::Large { .. }) {
            self.input = Input::Open;
            if self.phase == Phase::Ready
                && let Ok(Some(header)) = self.decode(self.stash.as_slice())
                && header.opcode == Opcode::Produce as u8
                && header.head_len() == PRODUCE_HEAD_LEN
                && header.payload_len as usize >= self.config.direct_threshold
            {
                self.input = Input::Large { frame_len: header.frame_len() };
            }
        }
        self.input
    }

    fn run_stash<S: Shards>(&mut self, shards: &mut S) -> Input {
        let stash = std::mem::take(&mut self.stash);
        let used = self.run(stash.as_slice(), shards);
        // A goodbye has emptied the stash for good.
        if self.phase != Phase::Closing {
            self.stash = stash;
            self.stash.consume(used);
        }
        self.input
    }

    /// Handles whole frames; returns how many bytes they were.
    fn run<S: Shards>(&mut self, bytes: &[u8], shards: &mut S) -> usize {
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            let header = match self.decode(rest) {
                Ok(Some(header)) if rest.len() >= header.frame_len() => header,
                Ok(_) => return used,
                Err(violation) => {
                    self.close(&violation);
                    return bytes.len();
                }
            };
            if self.is_backlogged() {
                self.input = Input::Backlogged;
                return used;
            }
            let frame = &rest[..header.frame_len()];
            match self.frame(&header, frame, shards) {
                Ok(Taken::Yes) => {
                    used += frame.len();
                    self.frames += 1;
                }
                Ok(Taken::No(input)) => {
                    self.input = input;
                    return used;
                }
                Err(violation) => {
                    self.close(&violation);
                    return bytes.len();
                }
            }
        }
    }

    #[inline]
    fn decode(&self, bytes: &[u8]) -> Result<Option<FrameHeader>, Violation> {
        let limit = if self.phase == Phase::Greeting { MAX_HELLO_FRAME_LEN } else { MAX_FRAME_LEN };
        match FrameHeader::decode(bytes, limit)? {
            Some(header) if header.is_response => Err(Violation::NotARequest),
            // A stranger is told what is wrong before a long frame has come.
            Some(header) if self.phase == Phase::Greeting && header.opcode != Opcode::Hello as u8 => {
                Err(Violation::HandshakeRequired(header.opcode))
            }
            header => Ok(header),
        }
    }

    #[inline]
    fn frame<S: Shards>(
        &mut self,
        header: &FrameHeader,
        frame: &[u8],
        shards: &mut S,
    ) -> Result<Taken, Violation> {
        let (head, payload) = frame.split_at(header.head_len());
        if header.opcode == Opcode::Produce as u8 && header.payload_len > 0 {
            return self.produce(header, head, payload, shards);
        }
        header.verify(head)?;
        let request = match Request::decode(header.opcode, &head[FRAME_HEADER_LEN..], header.payload_len) {
            Ok(Request::Hello(hello)) if self.phase == Phase::Greeting => {
                return self.greet(header, &hello);
            }
            Ok(request) => request,
            Err(error) if self.phase == Phase::Greeting => return Err(Violation::BadHello(error)),
            Err(error) => {
                self.count(header);
                let error = ErrorResponse::new(error.code(), error.to_string());
                self.refuse(header.opcode, header.correlation, error);
                return Ok(Taken::Yes);
            }
        };
        self.request(header, request, shards)
    }

    #[inline]
    fn produce<S: Shards>(
        &mut self,
        header: &FrameHeader,
        head: &[u8],
        batch: &[u8],
        shards: &mut S,
    ) -> Result<Taken, Violation> {
        let (shard, min_copies) = match self.check_produce(header, head, batch) {
            Ok(checked) => checked,
            Err(Refused::Closed(violation)) => return Err(violation),
            Err(Refused::Answered(error)) => {
                self.count(header);
                self.refuse(header.opcode, header.correlation, error);
                return Ok(Taken::Yes);
            }
        };
        if !shards.accepts(shard, true) {
            return Ok(Taken::No(Input::Stalled(shard)));
        }
        self.count(header);
        let number =
            self.insert(Pending::Single { correlation: header.correlation, opcode: Opcode::Produce });
        let payload = Payload::Borrowed(batch);
        shards.request(shard, number, ShardRequest::Produce { payload, min_copies });
        Ok(Taken::Yes)
    }

    /// Checks a produce request as far as a session can: where it belongs.
    #[inline]
    fn check_produce(
        &self,
        header: &FrameHeader,
        head: &[u8],
        batch: &[u8],
    ) -> Result<(ShardId, u8), Refused> {
        header.verify(head).map_err(|e| Refused::Closed(e.into()))?;
        self.check_in_flight().map_err(Refused::Closed)?;
        let request = Request::decode(header.opcode, &head[FRAME_HEADER_LEN..], header.payload_len);
        let min_copies = match request {
            Ok(Request::Produce { min_copies }) => min_copies,
            Ok(_) => unreachable!("a produce opcode decodes to a produce request"),
            Err(error) => {
                return Err(Refused::Answered(ErrorResponse::new(error.code(), error.to_string())));
            }
        };
        let batch_header = BatchHeader::decode(batch).map_err(bad_batch)?;
        let len = batch_header.len();
        if len > MAX_BATCH_LEN as usize {
            return Err(bad_batch(BatchError::TooLarge { len: len as u32, limit: MAX_BATCH_LEN }));
        }
        if len > batch.len() {
            return Err(bad_batch(BatchError::Truncated { len, have: batch.len() }));
        }
        if len < batch.len() {
            return Err(bad_batch(BatchError::TrailingBytes(batch.len() - len)));
        }
        Ok((shard_of(batch_header.partition(), self.config.shards()), min_copies))
    }

    fn greet(&mut self, header: &FrameHeader, hello: &Hello) -> Result<Taken, Violation> {
        if !(hello.min_version..=hello.max_version).contains(&PROTOCOL_VERSION) {
            return Err(Violation::UnsupportedVersion { min: hello.min_version, max: hello.max_version });
        }
        if let Some(partition) = hello.affinity {
            let shard = shard_of(partition, self.config.shards());
            let core = self.config.cores_of_shards[usize::from(shard.0)];
            if core != self.config.core {
                return Ok(Taken::No(Input::Moves { core }));
            }
        }
        self.phase = Phase::Ready;
        let ack = Response::Hello(HelloAck {
            version: PROTOCOL_VERSION,
            copies: 1,
            shards: self.config.shards(),
            features: 0,
            max_frame_len: MAX_FRAME_LEN,
            max_batch_len: MAX_BATCH_LEN,
            max_in_flight: MAX_IN_FLIGHT,
            boot: self.config.boot,
            broker_id: self.config.broker_id,
        });
        self.gathering
            .append(&self.config.spares, |out| ack.encode(out, header.opcode, header.correlation, 0));
        Ok(Taken::Yes)
    }

    fn request<S: Shards>(
        &mut self,
        header: &FrameHeader,
        request: Request,
        shards: &mut S,
    ) -> Result<Taken, Violation> {
        if !matches!(request, Request::Settle(Settle { confirm: false, .. })) {
            self.check_in_flight()?;
        }
        let correlation = header.correlation;
        let all = self.config.shards();
        let first = ShardId(0);
        let lists = matches!(
            request,
            Request::DescribeTopic { .. }
                | Request::ListTopics
                | Request::Stats
                | Request::ListGroups
                | Request::DescribeGroup { .. }
        );
        if lists && let Err(input) = self.begin_listing(shards) {
            return Ok(Taken::No(input));
        }
        let (shard, request) = match request {
            Request::Ping => return Ok(self.answer(header, &Response::Pong)),
            Request::Stats => {
                self.count(header);
                let number = self.insert(Pending::Single { correlation, opcode: Opcode::Stats });
                shards.stats(number);
                return Ok(Taken::Yes);
            }
            Request::Hello(_) => {
                self.count(header);
                let error = ErrorResponse::new(ErrorCode::AlreadyGreeted, "");
                self.refuse(header.opcode, correlation, error);
                return Ok(Taken::Yes);
            }
            Request::Fetch(fetch) => return Ok(self.fetch(header, fetch, shards)),
            Request::DescribeTopic { name } => {
                self.count(header);
                let gather = Box::new(TopicGather::new(all));
                let number = self.insert(Pending::Topic { correlation, gather });
                shards.request(first, number, ShardRequest::LookUpTopic { name });
                return Ok(Taken::Yes);
            }
            Request::DescribeGroup { name } => {
                return Ok(self.ask_group(header, name, GroupTask::Describe, shards));
            }
            Request::ResetGroup(ResetGroup { name, to, partition }) => {
                return Ok(self.ask_group(header, name, GroupTask::Reset { to, partition }, shards));
            }
            Request::Attach(_) | Request::Detach(_) | Request::Receive(_) | Request::Settle(_) => {
                return Ok(self.consume(header, request, shards));
            }
            other => for_one_shard(other, all),
        };
        // What asks how far a producer got waits behind what appends, so it waits
        // here as well, and not without a bound on the shard's core.
        let appends = request.appends() || matches!(request, ShardRequest::OpenProducer(_));
        if !lists && !shards.accepts(shard, appends) {
            return Ok(Taken::No(Input::Stalled(shard)));
        }
        self.count(header);
        let opcode = Opcode::from_u8(header.opcode).expect("the request was decoded by its opcode");
        let number = self.insert(Pending::Single { correlation, opcode });
        shards.request(shard, number, request);
        Ok(Taken::Yes)
    }

    /// Takes its turn for an answer that lists, or says what to wait for.
    fn begin_listing<S: Shards>(&mut self, shards: &mut S) -> Result<(), Input> {
        let first = ShardId(0);
        if self.listing != Listing::Idle {
            Err(Input::Backlogged)
        } else if !shards.accepts(first, false) {
            Err(Input::Stalled(first))
        } else if !self.listing.begin(&self.config.listings) {
            Err(Input::Queued)
        } else {
            Ok(())
        }
    }

    fn fetch<S: Shards>(&mut self, header: &FrameHeader, mut fetch: Fetch, shards: &mut S) -> Taken {
        let (correlation, all) = (header.correlation, self.config.shards());
        fetch.max_bytes = fetch.max_bytes.min(MAX_FETCH_BYTES);
        fetch.max_wait_ms = fetch.max_wait_ms.min(MAX_FETCH_WAIT_MS);
        let shard = shard_of(fetch.partitions[0].partition, all);
        let is_single = fetch.partitions[1..].iter().all(|p| shard_of(p.partition, all) == shard);
        if is_single {
            if !shards.accepts(shard, false) {
                return Taken::No(Input::Stalled(shard));
            }
            let Some(charge) = self.charge(header, &fetch) else { return Taken::Yes };
            self.count(header);
            let number = self.insert(Pending::Fetch { correlation, shard, _charge: charge });
            shards.request(shard, number, ShardRequest::Fetch(fetch));
            return Taken::Yes;
        }
        let Some(charge) = self.charge(header, &fetch) else { return Taken::Yes };
        let (gather, parts) = FetchGather::split(&fetch, all);
        if let Some((full, _)) = parts.iter().find(|(shard, _)| !shards.accepts(*shard, false)) {
            return Taken::No(Input::Stalled(*full));
        }
        self.count(header);
        let slot = self.pending.insert(Pending::FetchParts {
            correlation,
            gather: Box::new(gather),
            _charge: charge,
        });
        for (part, (shard, fetch)) in parts.into_iter().enumerate() {
            shards.request(shard, number(slot, part as u32), ShardRequest::Fetch(fetch));
        }
        Taken::Yes
    }

    /// Memory for a fetch; it is refused if there is none left.
    #[inline]
    fn charge(&mut self, header: &FrameHeader, fetch: &Fetch) -> Option<Charge> {
        let charge = self.fetching.charge(fetch.partitions.len());
        if charge.is_none() {
            self.count(header);
            let text = "the fetches in flight ask for too many partitions: wait for their answers";
            self.refuse(header.opcode, header.correlation, ErrorResponse::new(ErrorCode::Overloaded, text));
        }
        charge
    }

    #[inline]
    fn check_in_flight(&self) -> Result<(), Violation> {
        if self.pending.len() < MAX_IN_FLIGHT as usize {
            Ok(())
        } else {
            Err(Violation::TooManyInFlight(MAX_IN_FLIGHT))
        }
    }

    #[inline]
    pub(super) fn insert(&mut self, pending: Pending) -> u64 {
        number(self.pending.insert(pending), 0)
    }

    #[inline]
    pub(super) fn count(&self, header: &FrameHeader) {
        let counters = &self.config.counters;
        add(&counters.requests, 1);
        if header.opcode == Opcode::Produce as u8 {
            add(&counters.produce_requests, 1);
        } else if header.opcode == Opcode::Fetch as u8 {
            add(&counters.fetch_requests, 1);
        }
    }

    fn answer(&mut self, header: &FrameHeader, response: &Response) -> Taken {
        self.count(header);
        self.gathering
            .append(&self.config.spares, |out| response.encode(out, header.opcode, header.correlation, 0));
        Taken::Yes
    }

    /// Answers a request with a refusal.
    pub(super) fn refuse(&mut self, opcode: u8, correlation: u64, error: ErrorResponse) {
        add(&self.config.counters.errors, 1);
        let response = Response::Error(error);
        self.gathering.append(&self.config.spares, |out| response.encode(out, opcode, correlation, 0));
    }
}

/// Why a produce request goes to no shard.
enum Refused {
    /// The connection ends.
    Closed(Violation),
    /// The request is answered with this.
    Answered(ErrorResponse),
}

fn bad_batch(error: BatchError) -> Refused {
    Refused::Answered(ErrorResponse::new(error.code(), error.to_string()))
}
