//! One core's start, on its own thread.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, mpsc};

use ringbolt_wire::ShardId;

use super::{Config, MemoryPlan, ServeError, ShareFlushes};
use crate::catalog::Catalog;
use crate::io::clock;
use crate::io::datadir::{ShardDir, segment_name};
use crate::io::disk::{Disk, DiskConfig, FileMode, FolderReader, Sharing};
use crate::io::mailbox::Mailbox;
use crate::io::net::{Net, NetConfig};
use crate::io::pin::pin_thread;
use crate::io::pool::Pool;
use crate::io::probe::{Device, Resource, Sys, limit};
use crate::io::ring::{Ring, RingConfig};
use crate::limits::{MAX_UNSENT, MAX_UNSENT_OWN, open_files_beside_connections};
use crate::log::group_commit::small_in_flight;
use crate::log::recovery::{LogIdentity, RecoveredLog, recover};
use crate::log::superblock::Superblock;
use crate::reactor::{Core, Idle, LocalShard, Message, Place, Reactor, Shared};
use crate::session::{Fetching, Listings, SessionConfig, SessionCounters, Spares};
use crate::shard::{Shard, ShardConfig};

/// Connections that are served however few files may be open.
const MIN_CONNECTIONS: usize = 64;

/// What a core reports while it starts.
pub(super) enum Recovered {
    /// Its shards are recovered, shard 0 among them: this is the catalog.
    Catalog(Catalog),
    /// Its shards are recovered.
    Others,
    /// It serves.
    Serving,
    /// It has ended with an error, which its thread returns.
    Failed,
}

/// What a core needs to go on once all have recovered.
pub(super) struct Go {
    pub catalog: Arc<Catalog>,
    pub listener: OwnedFd,
}

/// What all cores are started with.
pub(super) struct CoreStart {
    pub config: Config,
    pub superblock: Superblock,
    pub dirs: Vec<ShardDir>,
    pub mode: FileMode,
    pub plan: MemoryPlan,
    pub pool: Pool,
    pub shared: Arc<Shared>,
    pub connections: Arc<AtomicUsize>,
    pub cores: u16,
}

impl CoreStart {
    /// Runs a core from its start to its end. A core whose starter is gone ends
    /// without an error of its own.
    pub fn run(
        &self,
        mailbox: Mailbox<Message>,
        cpu: usize,
        report: &mpsc::Sender<Recovered>,
        go: &mpsc::Receiver<Go>,
    ) -> Result<(), ServeError> {
        pin_thread(cpu)?;
        let core = mailbox.core();
        let mut ring = Ring::new(RingConfig::default())?;
        if !self.config.unregistered_memory {
            ring.register_pool(&self.pool)?;
        }
        let mut catalog = None;
        let mut logs = Vec::new();
        for dir in self.dirs.iter().filter(|dir| self.core_of(dir.shard) == core) {
            let (log, disk) = self.recover(dir, &mut ring)?;
            if dir.shard == ShardId(0) {
                catalog = Some(log.state.catalog.clone());
            }
            logs.push((log, disk));
        }
        let recovered = catalog.map_or(Recovered::Others, Recovered::Catalog);
        if report.send(recovered).is_err() {
            return Ok(());
        }
        let Ok(Go { catalog, listener }) = go.recv() else { return Ok(()) };
        let reactor = self.assemble(ring, mailbox, logs, &catalog, listener)?;
        if report.send(Recovered::Serving).is_err() {
            return Ok(());
        }
        Ok(reactor.run()?)
    }

    /// Shards go round the cores.
    fn core_of(&self, shard: ShardId) -> u16 {
        shard.0 % self.cores
    }

    fn recover(&self, dir: &ShardDir, ring: &mut Ring) -> Result<(RecoveredLog, Disk), ServeError> {
        let shard = dir.shard;
        let identity = LogIdentity {
            log_id: self.superblock.log_id(shard),
            shard,
            segment_len: self.superblock.segment_len,
            term: self.superblock.boot_count,
        };
        let reader = FolderReader::new(&dir.path, self.mode);
        let started = clock::mono_us();
        let log = recover(identity, dir.extent, &dir.segments, &reader, &mut self.pool.clone())?;
        sync_tail(dir, &log)?;
        let elapsed_ms = (clock::mono_us() - started) / 1000;
        tracing::info!(%shard, segments = dir.segments.len(), elapsed_ms, "recovered");
        let mut config = DiskConfig::new(self.superblock.segment_len, self.mode);
        config.sharing = self.sharing(dir);
        config.spares_max = config.spares_max.max(self.config.preallocate);
        let mut disk =
            Disk::new(config, dir).map_err(ServeError::io(format!("opening {}", dir.path.display())))?;
        if self.config.preallocate > 0 {
            match disk.preallocate(ring, self.config.preallocate) {
                // What is there can be read, and the open segment has room.
                Err(fault) if fault.may_pass() => {
                    let ready = disk.spares_ready();
                    tracing::warn!(%shard, ready, wanted = self.config.preallocate, %fault, "going on with fewer files for segments to come");
                }
                other => other.map_err(|fault| ServeError::Preallocate { shard, fault })?,
            }
        }
        Ok((log, disk))
    }

    /// More writes than small commits may use are in flight only where large batches
    /// are: what counts for them is how many flushes there are, and for the others
    /// when each begins.
    fn sharing(&self, dir: &ShardDir) -> Sharing {
        let needs_flushes = || Device::under(&Sys::default(), &dir.path).is_none_or(|d| d.needs_flushes());
        match self.config.share_flushes_from {
            ShareFlushes::From(from) => Sharing::From(from),
            ShareFlushes::Auto if needs_flushes() => {
                Sharing::Adaptive(small_in_flight(self.config.commits_in_flight))
            }
            ShareFlushes::Auto | ShareFlushes::Never => Sharing::Never,
        }
    }

    fn assemble(
        &self,
        mut ring: Ring,
        mut mailbox: Mailbox<Message>,
        logs: Vec<(RecoveredLog, Disk)>,
        catalog: &Catalog,
        listener: OwnedFd,
    ) -> Result<Reactor, ServeError> {
        let now = clock::now();
        mailbox.attach(&mut ring);
        let core = mailbox.core();
        let mut places = Vec::new();
        for dir in &self.dirs {
            let on = self.core_of(dir.shard);
            let index = usize::from(dir.shard.0 / self.cores);
            places.push(if on == core { Place::Here(index) } else { Place::On(on) });
        }
        let mut shards = Vec::new();
        for (log, mut disk) in logs {
            let id = log.identity.shard;
            disk.start(&mut ring);
            let shard = Shard::new(self.shard_config(id), log, catalog, self.pool.clone(), now);
            shards.push(LocalShard { id, shard, disk });
        }
        let session_config = Rc::new(SessionConfig {
            core,
            cores_of_shards: self.dirs.iter().map(|dir| self.core_of(dir.shard)).collect(),
            boot: self.superblock.boot_count,
            broker_id: self.superblock.broker_id,
            direct_threshold: usize::try_from(self.config.direct_threshold).unwrap_or(usize::MAX),
            max_unsent: MAX_UNSENT,
            max_unsent_own: MAX_UNSENT_OWN,
            fetching: Fetching::default(),
            spares: Spares::default(),
            listings: Listings::new(self.plan.unsent_own),
            counters: SessionCounters::default(),
        });
        let net_config = self.net_config();
        if core == 0 && net_config.max_connections < self.config.max_connections {
            tracing::warn!(
                max_connections = net_config.max_connections,
                wanted = self.config.max_connections,
                "fewer connections than --max-connections: the limit of open files (ulimit -n) is too low"
            );
        }
        let net = Net::new(&mut ring, self.pool.clone(), listener, net_config, session_config)
            .map_err(ServeError::io("registering receive buffers with io_uring"))?;
        let pool = self.pool.clone();
        let core = Core::new(ring, mailbox, shards, places, pool, Arc::clone(&self.shared), now);
        let idle = match self.config.busy_poll {
            true => Idle::BusyPoll,
            false => Idle::SleepAfter(micros(self.config.idle_poll)),
        };
        Ok(Reactor::new(core, net, idle))
    }

    fn shard_config(&self, shard: ShardId) -> ShardConfig {
        ShardConfig {
            shard,
            shards: self.dirs.len() as u16,
            commits_in_flight: self.config.commits_in_flight,
            commit_delay_us: micros(self.config.commit_delay),
            retention_bytes: self.config.retention_bytes.map(|bytes| bytes / self.dirs.len() as u64),
            retention_us: self.config.retention_time.map(micros),
            tail_cache_bytes: self.plan.tail_cache,
            page_cache_bytes: self.plan.page_cache,
            max_delayed: self.plan.delayed,
            max_open: self.plan.open,
            seed: random_seed(),
        }
    }

    /// As many connections as configured, or as leave enough open files for
    /// segments.
    fn max_connections(&self) -> usize {
        let wanted = self.config.max_connections;
        let Some(files) = limit(Resource::OpenFiles).soft else { return wanted };
        let own = open_files_beside_connections(self.dirs.len()) as u64;
        let left = usize::try_from(files.saturating_sub(own)).unwrap_or(usize::MAX);
        wanted.min(left.max(MIN_CONNECTIONS))
    }

    fn net_config(&self) -> NetConfig {
        NetConfig {
            max_connections: self.max_connections(),
            connections: Arc::clone(&self.connections),
            handshake_timeout_us: micros(self.config.handshake_timeout),
            frame_timeout_us: micros(self.config.frame_timeout),
            max_stashed: self.plan.stashed,
            max_unsent_own: self.plan.unsent_own,
            max_direct: self.plan.direct,
            low_chunks: self.plan.low_chunks,
            receive_chunks: self.plan.receive_chunks,
        }
    }
}

/// Makes durable what recovery has read: it may only be in the device's cache,
/// written just before a crash, and nobody was told that it is durable.
fn sync_tail(dir: &ShardDir, log: &RecoveredLog) -> Result<(), ServeError> {
    let open = log.open.map(|(segment, _)| segment);
    // Its trailer may have been the last thing to be written.
    let sealed = log.sealed.last().map(|sealed| sealed.segment);
    for segment in log.unsealed.iter().map(|unsealed| unsealed.segment).chain(open).chain(sealed) {
        let path = dir.path.join(segment_name(segment));
        let synced = File::options().write(true).open(&path).and_then(|file| file.sync_data());
        synced.map_err(ServeError::io(format!("flushing {}", path.display())))?;
    }
    Ok(())
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn random_seed() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low
}
