//! The engine on tokio-uring: a task per socket and direction.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use ringbolt::io::tcp;
use tokio::sync::Notify;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

use super::{EngineConfig, EngineError, LONGEST_SLEEP, Troop, Turn, pin};
use crate::fleet::Fleet;
use crate::stats::Clock;

/// Bytes that one receive takes at most.
const RECEIVE_LEN: usize = 64 << 10;

/// Operations in one submission.
const ENTRIES: u32 = 4096;

/// The time that tokio's timer tells apart.
const TICK: Duration = Duration::from_millis(1);

struct Shared {
    fleet: RefCell<Fleet>,
    clock: Clock,
    config: EngineConfig,
    /// By producer: there is something to send.
    output: Vec<Notify>,
}

/// Sets up a runtime for the calling thread, pinned as asked.
///
/// `COOP_TASKRUN` saves an interrupt per completion; `DEFER_TASKRUN` would save
/// more, but tokio-uring waits on an epoll, which such a ring never wakes.
pub fn runtime(core: Option<usize>) -> Result<tokio_uring::Runtime, EngineError> {
    pin(core)?;
    let mut uring = tokio_uring::uring_builder();
    uring.setup_coop_taskrun().setup_cqsize(4 * ENTRIES);
    let mut builder = tokio_uring::builder();
    builder.entries(ENTRIES).uring_builder(&uring);
    tokio_uring::Runtime::new(&builder).map_err(|error| EngineError::Ring(error.to_string()))
}

/// Runs the fleet; see [`Engine`](super::Engine).
pub fn run(fleet: Fleet, config: EngineConfig) -> Result<Fleet, EngineError> {
    let producers = fleet.producers.len();
    let clock = fleet.ctx.clock;
    let output = (0..producers).map(|_| Notify::new()).collect();
    let shared = Rc::new(Shared { fleet: RefCell::new(fleet), clock, config, output });
    let runtime = runtime(config.core)?;
    runtime.block_on(async {
        let tasks: Vec<_> =
            (0..producers).map(|index| tokio_uring::spawn(drive(shared.clone(), index))).collect();
        keep_course(&shared).await;
        for task in tasks {
            task.abort();
            // Cancelled, as was asked for.
            let _ = task.await;
        }
    });
    drop(runtime);
    let shared = Rc::into_inner(shared).expect("every task that shared it has ended");
    Ok(shared.fleet.into_inner())
}

/// Calls the fleet at every tick, and wakes producers whose time has come.
async fn keep_course(shared: &Shared) {
    loop {
        let now = shared.clock.now();
        let turn = shared.fleet.borrow_mut().poll(now);
        let soonest = match turn {
            Turn::Done => return,
            turn => fill_due(shared, turn == Turn::FillAll, now),
        };
        let wait = soonest.map_or(LONGEST_SLEEP, |at| Duration::from_nanos(at.saturating_sub(now)));
        tokio::time::sleep(wait.clamp(TICK, LONGEST_SLEEP)).await;
    }
}

/// Fills the producers that are due, and says when the next one is.
fn fill_due(shared: &Shared, all: bool, now: u64) -> Option<u64> {
    let mut fleet = shared.fleet.borrow_mut();
    let mut soonest: Option<u64> = None;
    for (index, output) in shared.output.iter().enumerate() {
        let due = fleet.wake_at(index);
        if all || due.is_some_and(|at| at <= now) {
            fleet.fill(index, now);
            output.notify_one();
        }
        if let Some(at) = fleet.wake_at(index) {
            soonest = Some(soonest.map_or(at, |s| s.min(at)));
        }
    }
    soonest
}

/// One producer's connections, one after the other.
async fn drive(shared: Rc<Shared>, index: usize) {
    loop {
        let connect_at = shared.fleet.borrow().producers[index].connect_at();
        let Some(at) = connect_at else { return };
        tokio::time::sleep_until(shared.clock.instant(at).into()).await;
        if let Ok(stream) = TcpStream::connect(shared.config.addr).await {
            // A socket that refuses still works.
            let _ = tcp::prepare(&stream, shared.config.addr.ip());
            let stream = Rc::new(stream);
            shared.fleet.borrow_mut().connected(index, shared.clock.now());
            shared.output[index].notify_one();
            let writer = tokio_uring::spawn(write(shared.clone(), stream.clone(), index));
            read(&shared, &stream, index).await;
            let _ = stream.shutdown(std::net::Shutdown::Both);
            writer.abort();
            let _ = writer.await;
        }
        shared.fleet.borrow_mut().disconnected(index, shared.clock.now());
    }
}

/// Receives until the connection ends.
async fn read(shared: &Shared, stream: &TcpStream, index: usize) {
    let mut buffer = vec![0; RECEIVE_LEN];
    loop {
        let (result, returned) = stream.read(buffer).await;
        buffer = returned;
        let Ok(len @ 1..) = result else { return };
        let now = shared.clock.now();
        let mut fleet = shared.fleet.borrow_mut();
        if !fleet.received(index, &buffer[..len], now) {
            return;
        }
        fleet.fill(index, now);
        shared.output[index].notify_one();
    }
}

/// Sends whatever there is, whenever there is something.
async fn write(shared: Rc<Shared>, stream: Rc<TcpStream>, index: usize) {
    loop {
        shared.output[index].notified().await;
        loop {
            let output = shared.fleet.borrow_mut().producers[index].take_output();
            let Some((memory, len)) = output else { break };
            let (result, bytes) = stream.write_all(memory.slice(..len)).await;
            if result.is_err() {
                // The reader sees the end of the connection, too.
                return;
            }
            let now = shared.clock.now();
            let mut fleet = shared.fleet.borrow_mut();
            fleet.recycle(index, bytes.into_inner());
            fleet.fill(index, now);
        }
    }
}
