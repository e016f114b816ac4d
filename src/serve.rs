//! A broker: started, reached at an address, stopped.
//!
//! Start-up goes from what is cheap to find wrong to what is not: options, what
//! the kernel offers, directory and lock, memory, rings; then every core recovers its shards at
//! the same time; then shard 0's catalog goes to all, and the sockets listen.

mod config;
mod core;
mod options;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::admin::{Admin, AdminError, AdminListener};
use crate::catalog::Catalog;
use crate::hash;
use crate::io::datadir::{DataDir, DataDirError, Layout, shard_name};
use crate::io::disk::{FileMode, choose_mode};
use crate::io::mailbox::{Post, mailboxes};
use crate::io::net::{ListenError, bind, try_address};
use crate::io::pin::{PinError, available_cpus};
use crate::io::pool::{Pool, PoolError, RegistrationError, too_little_to_lock};
use crate::io::probe::{MissingFeature, StorageError, probe_ring};
use crate::io::process::reserve_descriptors;
use crate::io::ring::RingError;
use crate::limits::{DEFAULT_SEGMENT_LEN, MAILBOX_LEN, MAX_SHARDS, open_files_beside_connections};
use crate::log::recovery::RecoveryError;
use crate::reactor::{Course, Message, ReactorError, Shared};
use crate::shard::event::DiskFault;
pub use config::{Config, ConfigError, MIN_MEMORY, MemoryPlan, ShareFlushes};
use core::{CoreStart, Go, Recovered};
pub use options::{ByteCount, Cpus, Options, Span};
use ringbolt_wire::ShardId;

/// Why a broker did not start, or ended.
#[derive(thiserror::Error, Debug)]
pub enum ServeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// How its files can be written.
    #[error(transparent)]
    Mode(#[from] StorageError),
    /// The memory.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// What this machine lets the broker do.
    #[error(transparent)]
    Feature(#[from] MissingFeature),
    /// A ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The memory, with a ring.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// A core's CPU.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A shard's log.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// Making segments ahead.
    #[error("shard {shard}: preparing segments: {fault}")]
    Preallocate {
        /// Which shard.
        shard: ShardId,
        /// What the kernel said.
        fault: DiskFault,
    },
    /// The listening socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Metrics and health.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Something that hardly ever fails.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A core has ended with an error.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
    /// A core's thread panicked: a bug in the broker. Its message is in the log.
    #[error("core {0} has panicked; please report this")]
    Panicked(u16),
}

impl ServeError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> ServeError {
        let what = what.into();
        move |source| ServeError::Io { what, source }
    }
}

/// A running broker. Stopped when dropped.
pub struct Broker {
    addr: SocketAddr,
    mode: FileMode,
    handle: BrokerHandle,
    threads: Vec<JoinHandle<Result<(), ServeError>>>,
    /// Ends after the cores, so that it can say that they are stopping.
    admin: Option<Admin>,
    /// Locked as long as the broker runs.
    _data: DataDir,
}

/// Asks a broker to stop, from any thread.
#[derive(Clone)]
pub struct BrokerHandle {
    shared: Arc<Shared>,
    post: Post<Message>,
}

impl BrokerHandle {
    /// Asks for a stop: no more connections and requests are taken, what is in
    /// flight is finished and answered. [`Broker::wait`] tells when that is
    /// done.
    pub fn stop(&self) {
        self.set_course(Course::Stop);
    }

    /// Whether it was asked to stop, or has failed.
    pub fn is_stopping(&self) -> bool {
        self.shared.course() != Course::Serve
    }

    fn set_course(&self, course: Course) {
        self.shared.set_course(course);
        (0..self.post.cores()).for_each(|core| self.post.wake(core));
    }
}

impl Broker {
    /// Starts a broker and returns when it listens.
    ///
    /// Where the kernel locks too little memory to register it, the broker runs
    /// on unregistered memory, and warns.
    pub fn start(config: Config) -> Result<Broker, ServeError> {
        Self::start_with(config, |_| {})
    }

    /// As [`start`](Self::start). Calls `before_listening` when all is recovered
    /// and nobody can have connected yet: from then on the broker can be stopped
    /// in order, and until then the process can be ended at any time, as by a
    /// crash, and nobody has been told anything.
    pub fn start_with(
        mut config: Config,
        before_listening: impl FnOnce(BrokerHandle),
    ) -> Result<Broker, ServeError> {
        config.check()?;
        // Another broker of this process may have.
        hash::choose_key(uuid::Uuid::new_v4().as_u64_pair());
        // A taken address is found out before anything is touched, and whoever
        // watches is answered while logs are recovered.
        try_address(config.listen)?;
        let admin = config.admin.map(AdminListener::bind).transpose()?;
        let admin = admin.map(Admin::start).transpose()?;
        probe_ring()?.require()?;
        let available = available_cpus()?;
        let asked = config.cores.clone().unwrap_or_else(|| available.clone());
        let shards = config.shards.unwrap_or_else(|| asked.len().min(usize::from(MAX_SHARDS)) as u16);
        let segment_len = config.segment_size.unwrap_or(DEFAULT_SEGMENT_LEN);
        let layout = Layout { shards, segment_len };
        if let Some(&cpu) = asked.iter().find(|cpu| !available.contains(cpu)) {
            return Err(PinError::Unavailable { cpu, available }.into());
        }
        if DataDir::is_new(&config.data)? {
            // What a directory is made with stays: not if it is good for nothing.
            MemoryPlan::new(config.memory, asked.len().min(usize::from(shards)), usize::from(shards))?;
        }
        let data = DataDir::open(&config.data, layout)?;
        let shards = data.shards().len();
        warn_of_fixed(&config, shards, data.superblock().segment_len);
        warn_of_least(&config, shards, data.superblock().segment_len);
        // A core without shards would only pass on.
        let cpus = asked[..asked.len().min(shards)].to_vec();
        let mode = choose_mode(&config.data.join(shard_name(ShardId(0))), config.allow_buffered)?;
        let plan = MemoryPlan::new(config.memory, cpus.len(), shards)?;
        reserve_files(&config, shards);
        let pool = Pool::new(plan.pool)?;
        // Each core's ring counts all of it.
        let locked = plan.pool * cpus.len();
        if !config.unregistered_memory
            && let Some(limit) = too_little_to_lock(locked)
        {
            tracing::warn!(
                limit,
                wanted = locked,
                "the limit on locked memory (ulimit -l) is too low to register memory with io_uring: \
                 running with --unregistered-memory"
            );
            config.unregistered_memory = true;
        }
        if config.unregistered_memory {
            pool.prefault();
        }
        let start = Arc::new(CoreStart {
            superblock: *data.superblock(),
            dirs: data.shards().to_vec(),
            mode,
            plan,
            pool,
            shared: Arc::new(Shared::new(shards)),
            connections: Arc::new(AtomicUsize::new(0)),
            cores: cpus.len() as u16,
            config,
        });
        let mut broker = Self::start_cores(&start, &cpus, data, before_listening)?;
        if let Some(admin) = &admin {
            let handle = broker.handle();
            admin.broker_serves(broker.addr, move || handle.is_stopping());
        }
        broker.admin = admin;
        Ok(broker)
    }

    fn start_cores(
        start: &Arc<CoreStart>,
        cpus: &[usize],
        data: DataDir,
        before_listening: impl FnOnce(BrokerHandle),
    ) -> Result<Broker, ServeError> {
        let mailboxes =
            mailboxes(cpus.len() as u16, MAILBOX_LEN).map_err(ServeError::io("making mailboxes"))?;
        let handle = BrokerHandle { shared: Arc::clone(&start.shared), post: mailboxes[0].post() };
        let (report, reports) = mpsc::channel();
        let mut threads = Vec::new();
        let mut goes = Vec::new();
        for (mailbox, &cpu) in mailboxes.into_iter().zip(cpus) {
            let (go, gone) = mpsc::channel();
            let (start, report, abort) = (Arc::clone(start), report.clone(), handle.clone());
            goes.push(go);
            let thread =
                std::thread::Builder::new().name(format!("core-{}", mailbox.core())).spawn(move || {
                    let guard = FailureGuard { handle: abort, report, armed: true };
                    let result = start.run(mailbox, cpu, &guard.report, &gone);
                    guard.end(result.is_ok());
                    result
                });
            threads.push(thread.map_err(ServeError::io("starting a thread"))?);
        }
        drop(report);
        let brought_up = Self::gather(&reports, goes.len()).and_then(|catalog| {
            before_listening(handle.clone());
            Self::listen(start, catalog, &reports, &goes)
        });
        let addr = match brought_up {
            Ok(addr) => addr,
            Err(silent) => {
                drop(goes);
                return Err(join_all(threads).err().or(silent).unwrap_or(ServeError::Panicked(0)));
            }
        };
        Ok(Broker { addr, mode: start.mode, handle, threads, admin: None, _data: data })
    }

    /// Waits until every core has recovered its shards, and returns the catalog.
    /// The error is `None` if a core has one to tell.
    fn gather(reports: &mpsc::Receiver<Recovered>, cores: usize) -> Result<Arc<Catalog>, Option<ServeError>> {
        let mut catalog = None;
        for _ in 0..cores {
            match reports.recv().map_err(|_| None)? {
                Recovered::Catalog(found) => catalog = Some(found),
                Recovered::Others => {}
                Recovered::Failed => return Err(None),
                Recovered::Serving => unreachable!("no core serves before it was told to"),
            }
        }
        Ok(Arc::new(catalog.expect("some core has shard 0")))
    }

    /// Gives the catalog and a listening socket to each core, and waits until
    /// each serves. Errors as for [`gather`](Self::gather).
    fn listen(
        start: &CoreStart,
        catalog: Arc<Catalog>,
        reports: &mpsc::Receiver<Recovered>,
        goes: &[mpsc::Sender<Go>],
    ) -> Result<SocketAddr, Option<ServeError>> {
        let (sockets, addr) = bind(start.config.listen, goes.len()).map_err(|e| Some(e.into()))?;
        for (go, listener) in goes.iter().zip(sockets) {
            go.send(Go { catalog: Arc::clone(&catalog), listener }).map_err(|_| None)?;
        }
        for _ in goes {
            if !matches!(reports.recv(), Ok(Recovered::Serving)) {
                return Err(None);
            }
        }
        Ok(addr)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it serves metrics and health, if it does.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Admin::addr)
    }

    /// Whether it writes through the kernel's cache, for want of direct I/O.
    pub fn is_buffered(&self) -> bool {
        self.mode == FileMode::Buffered
    }

    /// For asking it to stop from elsewhere.
    pub fn handle(&self) -> BrokerHandle {
        self.handle.clone()
    }

    /// Stops it: takes nothing more, finishes and answers what is in flight.
    pub fn stop(self) -> Result<(), ServeError> {
        self.handle.stop();
        self.wait()
    }

    /// Waits until it ends: because it was asked to, or because it failed.
    pub fn wait(mut self) -> Result<(), ServeError> {
        join_all(std::mem::take(&mut self.threads))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.handle.stop();
            // Nobody is left to be told of an error.
            let _ = join_all(std::mem::take(&mut self.threads));
        }
    }
}

/// What was chosen when the directory was made stays; whoever asks for something
/// else now is told.
fn warn_of_fixed(config: &Config, shards: usize, segment_size: u64) {
    let made = "the data directory stays as it was made";
    if let Some(asked) = config.shards.filter(|asked| usize::from(*asked) != shards) {
        tracing::warn!(asked, shards, "--shards has no effect: {made}");
    }
    if let Some(asked) = config.segment_size.filter(|asked| *asked != segment_size) {
        tracing::warn!(asked, segment_size, "--segment-size has no effect: {made}");
    }
}

/// Makes room for all the files that may be open, before others could wait for it.
fn reserve_files(config: &Config, shards: usize) {
    let files = config.max_connections + open_files_beside_connections(shards);
    if let Err(error) = reserve_descriptors(files as u64) {
        tracing::warn!(%error, "no room was reserved for descriptors: many new connections may hold others up");
    }
}

/// What recovery starts from and what is written to stay, however little is to be
/// kept.
fn warn_of_least(config: &Config, shards: usize, segment_size: u64) {
    let least = 2 * segment_size * shards as u64;
    if let Some(asked) = config.retention_bytes.filter(|asked| *asked < least) {
        tracing::warn!(asked, least, "--retention-bytes is less than two segments per shard, which are kept");
    }
}

/// Joins all cores; of their errors, the one that made the others stop.
fn join_all(threads: Vec<JoinHandle<Result<(), ServeError>>>) -> Result<(), ServeError> {
    let mut first = Ok(());
    for (core, thread) in threads.into_iter().enumerate() {
        let ended = thread.join().unwrap_or(Err(ServeError::Panicked(core as u16)));
        let is_followed = matches!(ended, Err(ServeError::Reactor(ReactorError::Aborted)));
        if ended.is_err() && (first.is_ok() || !is_followed) {
            first = ended;
        }
    }
    first
}

/// Ends the other cores when this one has failed, by whatever way: shards that
/// go on without each other would answer half of what they are asked.
struct FailureGuard {
    handle: BrokerHandle,
    report: mpsc::Sender<Recovered>,
    armed: bool,
}

impl FailureGuard {
    fn end(mut self, is_ok: bool) {
        self.armed = !is_ok;
    }
}

impl Drop for FailureGuard {
    fn drop(&mut self) {
        if self.armed {
            // Nobody listens any more once the broker has started.
            let _ = self.report.send(Recovered::Failed);
            self.handle.set_course(Course::Abort);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_reaches_a_core_whose_mailbox_is_full() {
        let mailboxes = mailboxes(1, 1).unwrap();
        let handle = BrokerHandle { shared: Arc::new(Shared::new(1)), post: mailboxes[0].post() };
        handle.post.send(0, Message::SnapshotWanted { core: 0 }).unwrap();
        let seen = handle.shared.changes();
        handle.stop();
        assert_eq!(handle.shared.course(), Course::Stop);
        assert_ne!(handle.shared.changes(), seen, "a core that is about to sleep looks again");
        handle.set_course(Course::Abort);
        handle.stop();
        assert_eq!(handle.shared.course(), Course::Abort, "a stop does not soften it");
    }
}
