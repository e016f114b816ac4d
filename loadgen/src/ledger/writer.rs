//! Writes a ledger from a thread of its own, so that the loop that sends and
//! receives never waits for a file.
//!
//! Entries travel in chunks over a bounded queue. Should the disk be slower
//! than the run for long, the queue fills and the run waits: a ledger with gaps
//! would be worth nothing.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::format::{Codec, MAX_BODY_LEN, seal};
use super::{Entry, LedgerError, LedgerReader};

/// Entries per chunk: 256 KiB of them, which at a million messages a second
/// are handed over about every 8 ms.
const CHUNK: usize = 8192;
/// Chunks in the queue.
const QUEUE: usize = 64;
/// A block is written when it has this many bytes ...
const BLOCK_LEN: usize = 64 << 10;
/// ... or when its first entry has waited for this long.
const PATIENCE: Duration = Duration::from_millis(20);

const _: () = assert!(BLOCK_LEN + (64 << 10) < MAX_BODY_LEN, "room for one entry after the threshold");

/// The writing end of a ledger file.
pub struct LedgerWriter {
    thread: JoinHandle<Result<(), LedgerError>>,
    path: PathBuf,
}

/// Where a run drops its entries. Cheap to push to; what was pushed is on its
/// way to the file only after [`LedgerSink::hand_over`].
pub struct LedgerSink {
    /// `None` when the run keeps no ledger.
    queue: Option<Sender<Vec<Entry>>>,
    recycled: Receiver<Vec<Entry>>,
    chunk: Vec<Entry>,
}

impl LedgerWriter {
    /// Opens the ledger at `path` for appending, cutting off a torn tail, and
    /// starts its thread.
    ///
    /// # Errors
    /// If the file cannot be opened, or is damaged before its tail.
    pub fn start(path: &Path) -> Result<(LedgerWriter, LedgerSink), LedgerError> {
        let io = |source| LedgerError::Io { path: path.to_owned(), source };
        let options = OpenOptions::new().create(true).append(true).open(path);
        let file = options.map_err(io)?;
        let tail = LedgerReader::open(path)?.for_each(drop)?;
        if tail.torn_len > 0 {
            file.set_len(tail.valid_len).map_err(io)?;
        }
        let (queue, chunks) = bounded(QUEUE);
        let (recycle, recycled) = bounded(QUEUE);
        let name = path.to_owned();
        let thread = std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || {
                write_chunks(file, &chunks, &recycle).map_err(|source| LedgerError::Io { path: name, source })
            })
            .map_err(io)?;
        let sink = LedgerSink { queue: Some(queue), recycled, chunk: Vec::with_capacity(CHUNK) };
        Ok((LedgerWriter { thread, path: path.to_owned() }, sink))
    }

    /// Waits until everything that was handed over is on the device. The sink
    /// must have been dropped, or this waits for ever.
    ///
    /// # Errors
    /// The first error that the thread met.
    pub fn finish(self) -> Result<(), LedgerError> {
        self.thread.join().unwrap_or_else(|_| {
            let source = std::io::Error::other("the ledger's thread panicked");
            Err(LedgerError::Io { path: self.path, source })
        })
    }
}

fn write_chunks(
    mut file: File,
    chunks: &Receiver<Vec<Entry>>,
    recycle: &Sender<Vec<Entry>>,
) -> std::io::Result<()> {
    let mut codec = Codec::default();
    let mut body = Vec::with_capacity(2 * BLOCK_LEN);
    // When what lies in `body` is written at the latest.
    let mut due = Instant::now() + PATIENCE;
    loop {
        if body.is_empty() {
            due = Instant::now() + PATIENCE;
        } else if due <= Instant::now() {
            write_block(&mut file, &mut body)?;
            continue;
        }
        match chunks.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(mut chunk) => {
                for entry in chunk.drain(..) {
                    codec.encode(&mut body, &entry);
                    if body.len() >= BLOCK_LEN {
                        write_block(&mut file, &mut body)?;
                    }
                }
                // A full return queue means that there are chunks enough.
                let _ = recycle.try_send(chunk);
            }
            Err(RecvTimeoutError::Timeout) => write_block(&mut file, &mut body)?,
            Err(RecvTimeoutError::Disconnected) => {
                write_block(&mut file, &mut body)?;
                return file.sync_all();
            }
        }
    }
}

/// One write call per block: a kill between two calls tears nothing.
fn write_block(file: &mut File, body: &mut Vec<u8>) -> std::io::Result<()> {
    if body.is_empty() {
        return Ok(());
    }
    let header = seal(body);
    body.splice(..0, header);
    let written = file.write_all(body);
    body.clear();
    written
}

impl LedgerSink {
    /// A sink that forgets everything.
    pub fn none() -> LedgerSink {
        let (_, recycled) = bounded(0);
        LedgerSink { queue: None, recycled, chunk: Vec::new() }
    }

    /// Notes an entry.
    ///
    /// # Errors
    /// [`LedgerError::WriterGone`] if a chunk was full and nobody takes it.
    #[inline]
    pub fn push(&mut self, entry: Entry) -> Result<(), LedgerError> {
        if self.queue.is_none() || self.chunk.last_mut().is_some_and(|last| last.absorb(&entry)) {
            return Ok(());
        }
        self.chunk.push(entry);
        if self.chunk.len() >= CHUNK { self.hand_over() } else { Ok(()) }
    }

    /// A sink whose chunks can be looked at.
    #[cfg(test)]
    pub fn visible() -> (LedgerSink, Receiver<Vec<Entry>>) {
        let (queue, chunks) = crossbeam::channel::unbounded();
        let (_, recycled) = bounded(0);
        (LedgerSink { queue: Some(queue), recycled, chunk: Vec::new() }, chunks)
    }

    /// Whether anything is kept at all.
    pub fn is_kept(&self) -> bool {
        self.queue.is_some()
    }

    /// Hands what was pushed to the writing thread; waits if its queue is full.
    ///
    /// # Errors
    /// [`LedgerError::WriterGone`] if nobody takes it.
    pub fn hand_over(&mut self) -> Result<(), LedgerError> {
        let Some(queue) = &self.queue else { return Ok(()) };
        if self.chunk.is_empty() {
            return Ok(());
        }
        let fresh = self.recycled.try_recv().unwrap_or_else(|_| Vec::with_capacity(CHUNK));
        queue.send(std::mem::replace(&mut self.chunk, fresh)).map_err(|_| LedgerError::WriterGone)
    }
}
