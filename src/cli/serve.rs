//! `ringbolt serve`: runs a broker until it is told to stop.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::EnvFilter;

use crate::io::probe::{Mount, mount_of};
use crate::io::process::{StopSignals, raise_open_files};
use crate::serve::{Broker, BrokerHandle, Options, ServeError};

/// Arguments of `ringbolt serve`.
#[derive(clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    options: Options,
    /// TOML file with options; what is given here as well wins
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Serves until SIGTERM or SIGINT; a second signal ends the process at once. One
/// that comes while the broker starts ends it there.
///
/// Standard output gets a line when the broker listens, `listening on ADDR`, and
/// with `--admin` another, `admin on ADDR`.
pub fn run(args: ServeArgs) -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // Fails only if there is a subscriber already, which serves as well.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringbolt: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: ServeArgs) -> Result<(), ServeError> {
    let file = args.config.as_deref().map(Options::from_file).transpose()?;
    let config = args.options.or(file.unwrap_or_default()).into_config()?;
    let data = config.data.clone();
    let io_error = |what: &str| {
        let what = what.to_owned();
        move |source| ServeError::Io { what, source }
    };
    let signals = StopSignals::hold().map_err(io_error("holding signals back"))?;
    let reachable = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&reachable);
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || obey(&signals, &seen))
        .map_err(io_error("starting a thread"))?;
    raise_open_files().map_err(io_error("raising the limit of open files"))?;
    let broker = Broker::start_with(config, |handle| *lock(&reachable) = Some(handle))?;
    warn_of_storage(&data, broker.is_buffered());
    let mut lines = format!("listening on {}\n", broker.addr());
    if let Some(addr) = broker.admin_addr() {
        lines += &format!("admin on {addr}\n");
    }
    let mut out = std::io::stdout();
    // Nobody may be listening to this: not a reason to end.
    let _ = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
    broker.wait()
}

/// Says what the storage takes from the guarantees, or from the speed. Not through
/// the log, which may be told to leave warnings out.
fn warn_of_storage(data: &Path, is_buffered: bool) {
    let mount = mount_of(data);
    if mount.as_ref().is_some_and(Mount::in_memory) {
        eprintln!(
            "ringbolt: WARNING: the data directory lies in memory ({}): whatever is acknowledged goes when the \
             machine stops. Put it on a disk.",
            mount.as_ref().map_or("", |mount| &mount.fs)
        );
    }
    if mount.as_ref().is_some_and(Mount::without_barriers) {
        eprintln!(
            "ringbolt: WARNING: the data directory's file system is mounted without barriers: it never flushes \
             the device, and what was acknowledged can go with the power. Mount it with barrier=1."
        );
    }
    if is_buffered {
        eprintln!(
            "ringbolt: WARNING: the data directory's file system has no O_DIRECT. As --allow-buffered permits, \
             records are written through the kernel's page cache, which is slower. Every acknowledgement still \
             waits for the flush to the device."
        );
    }
}

/// Stops the broker at the first signal, and ends the process at the second.
///
/// A start can take long (recovery, `--preallocate`). Until clients can reach the
/// broker there is nothing to finish, so the process ends where it stands: what
/// is on disk then is what a crash would leave, and the next start goes on
/// from there.
fn obey(signals: &StopSignals, reachable: &Mutex<Option<BrokerHandle>>) {
    signals.wait();
    {
        let handle = lock(reachable);
        match &*handle {
            Some(handle) => {
                tracing::info!("stopping");
                handle.stop();
            }
            None => {
                tracing::info!("stopped while starting");
                // With the lock held, so that no socket is opened meanwhile.
                std::process::exit(0);
            }
        }
    }
    signals.wait();
    // As a shell reports a process that an interrupt has ended.
    std::process::exit(130);
}

/// A handle that is set whole is whole, whoever panicked.
fn lock(handle: &Mutex<Option<BrokerHandle>>) -> MutexGuard<'_, Option<BrokerHandle>> {
    handle.lock().unwrap_or_else(PoisonError::into_inner)
}
