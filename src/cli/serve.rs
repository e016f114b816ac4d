//! `ringbolt serve`: runs a broker until it is told to stop.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use crate::io::process::{StopSignals, raise_open_files};
use crate::serve::{Broker, Options, ServeError};

/// Arguments of `ringbolt serve`.
#[derive(clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    options: Options,
    /// TOML file with options; what is given here as well wins
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Serves until SIGTERM or SIGINT; a second signal ends the process at once.
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
    let io_error = |what: &str| {
        let what = what.to_owned();
        move |source| ServeError::Io { what, source }
    };
    let signals = StopSignals::hold().map_err(io_error("holding signals back"))?;
    raise_open_files().map_err(io_error("raising the limit of open files"))?;
    let broker = Broker::start(config)?;
    let handle = broker.handle();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            signals.wait();
            tracing::info!("stopping");
            handle.stop();
            signals.wait();
            // As a shell reports a process that an interrupt has ended.
            std::process::exit(130);
        })
        .map_err(io_error("starting a thread"))?;
    let mut lines = format!("listening on {}\n", broker.addr());
    if let Some(addr) = broker.admin_addr() {
        lines += &format!("admin on {addr}\n");
    }
    let mut out = std::io::stdout();
    // Nobody may be listening to this: not a reason to end.
    let _ = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
    broker.wait()
}
