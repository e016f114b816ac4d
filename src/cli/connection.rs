//! What the commands that talk to a broker have in common: where it is, how
//! their failures are told, and how they are interrupted.

use std::future::Future;
use std::io::IsTerminal;
use std::process::ExitCode;

use ringbolt_client::{Client, ClientConfig, Error, ErrorCode};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use crate::io::process::StopSignals;

/// Exit code after an interrupt, as a shell reports it.
const INTERRUPTED: u8 = 130;

/// Exit code for bad usage, as clap has it.
const BAD_USAGE: u8 = 2;

/// Where the broker is.
#[derive(clap::Args, Clone, Debug)]
pub struct ConnectionArgs {
    /// Address of the broker; of several, separated by commas, the first that answers is taken
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7411", value_delimiter = ',')]
    addr: Vec<String>,
}

/// What most commands take: where the broker is, and how to print what it says.
#[derive(clap::Args, Debug)]
pub struct CommonArgs {
    #[command(flatten)]
    connection: ConnectionArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl CommonArgs {
    /// As [`ConnectionArgs::connect`].
    pub async fn connect(&self) -> Result<Client, CommandError> {
        self.connection.connect().await
    }
}

impl ConnectionArgs {
    /// Connects, so that a wrong address is told at once.
    pub async fn connect(&self) -> Result<Client, CommandError> {
        let config = ClientConfig {
            addrs: self.addr.clone(),
            client_name: concat!("ringbolt-cli/", env!("CARGO_PKG_VERSION")).to_owned(),
            ..ClientConfig::default()
        };
        Ok(Client::connect(config).await?)
    }
}

/// Why a command failed.
#[derive(thiserror::Error, Debug)]
pub enum CommandError {
    /// The broker refused, or could not be reached.
    #[error("{0}{hint}", hint = hint(.0))]
    Client(#[from] Error),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Standard input or output.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl CommandError {
    /// For `map_err`: an I/O error while doing `what`.
    pub fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> CommandError {
        move |source| CommandError::Io { what, source }
    }
}

/// What a user of the command line can do about it.
fn hint(error: &Error) -> &'static str {
    match error {
        Error::Connect { .. } => "; is a broker running there? (ringbolt serve, --addr)",
        Error::Refused(refusal) => match refusal.error_code() {
            Some(ErrorCode::UnknownTopic) => "; see: ringbolt topic list",
            Some(ErrorCode::TopicExists) => "; see: ringbolt topic describe",
            Some(ErrorCode::UnknownGroup) => "; see: ringbolt group list",
            Some(ErrorCode::GroupExists) => "; see: ringbolt group describe",
            Some(ErrorCode::TopicInUse) => "; delete the group first: ringbolt group delete",
            Some(ErrorCode::InvalidTopicName) => "; 1 to 249 of A-Z a-z 0-9 . _ -",
            _ => "",
        },
        Error::OffsetOutOfRange { .. } => "; see: ringbolt topic describe",
        _ => "",
    }
}

/// How often the user has interrupted the command (SIGINT, SIGTERM).
#[derive(Clone, Debug)]
pub struct Interrupt(watch::Receiver<u32>);

impl Interrupt {
    /// Waits until the user interrupts.
    pub async fn wait(&mut self) {
        self.wait_for(1).await;
    }

    /// Waits until the user interrupts a second time, which only a command that
    /// [`run_worker`] runs gets to see.
    pub async fn wait_for_second(&mut self) {
        self.wait_for(2).await;
    }

    /// Whether the user has interrupted.
    pub fn is_set(&self) -> bool {
        *self.0.borrow() > 0
    }

    async fn wait_for(&mut self, count: u32) {
        if self.0.wait_for(|signals| *signals >= count).await.is_err() {
            // The thread that tells it is gone, so nobody will.
            std::future::pending::<()>().await;
        }
    }
}

/// Runs a command to its end: 0, or the exit code that it returns, 1 if it
/// failed, 2 for bad usage, 130 if it was interrupted. A second interrupt ends it
/// at once.
pub fn run<F>(command: impl FnOnce(Interrupt) -> F) -> ExitCode
where
    F: Future<Output = Result<ExitCode, CommandError>>,
{
    let interrupted = ExitCode::from(INTERRUPTED);
    run_until(command, 1, |code, was_interrupted| if was_interrupted { interrupted } else { code })
}

/// Runs a command that an interrupt ends in order, with the exit code that it
/// returns. It sees two of them; a third one ends it at once.
pub fn run_worker<F>(command: impl FnOnce(Interrupt) -> F) -> ExitCode
where
    F: Future<Output = Result<ExitCode, CommandError>>,
{
    run_until(command, 2, |code, _| code)
}

/// Runs a command that sees so many interrupts. `ending` makes the exit code of its
/// own, and of whether it was interrupted.
fn run_until<F>(
    command: impl FnOnce(Interrupt) -> F,
    interrupts: u32,
    ending: impl FnOnce(ExitCode, bool) -> ExitCode,
) -> ExitCode
where
    F: Future<Output = Result<ExitCode, CommandError>>,
{
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    // Fails only if there is a subscriber already, which serves as well.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .try_init();
    match start(command, interrupts) {
        Ok((code, was_interrupted)) => ending(code, was_interrupted),
        Err(error) => {
            eprintln!("ringbolt: {error}");
            match error {
                CommandError::Usage(_) => ExitCode::from(BAD_USAGE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// The command's exit code, and whether it was interrupted.
fn start<F>(command: impl FnOnce(Interrupt) -> F, interrupts: u32) -> Result<(ExitCode, bool), CommandError>
where
    F: Future<Output = Result<ExitCode, CommandError>>,
{
    let signals = StopSignals::hold().map_err(CommandError::io("holding signals back"))?;
    let (stop, stopped) = watch::channel(0);
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for count in 1..=interrupts {
                signals.wait();
                stop.send_replace(count);
            }
            signals.wait();
            std::process::exit(i32::from(INTERRUPTED));
        })
        .map_err(CommandError::io("starting a thread"))?;
    let interrupt = Interrupt(stopped);
    // One thread drives the client; reading and writing are the rest of the work.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(CommandError::io("starting the runtime"))?;
    let result = runtime.block_on(command(interrupt.clone()));
    // A thread that waits for input would otherwise be waited for.
    runtime.shutdown_background();
    result.map(|code| (code, interrupt.is_set()))
}

/// Runs a short command that an interrupt may cut off anywhere.
pub fn run_short<F>(command: impl FnOnce() -> F) -> ExitCode
where
    F: Future<Output = Result<ExitCode, CommandError>>,
{
    run(|mut interrupt| async move {
        tokio::select! {
            result = command() => result,
            () = interrupt.wait() => Ok(ExitCode::SUCCESS),
        }
    })
}

/// Prints to standard output; a reader that went away is no failure.
pub fn print(text: &str) -> Result<(), CommandError> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CommandError::io("writing to standard output")(error))
        }
        _ => Ok(()),
    }
}

/// Prints one JSON document.
pub fn print_json(document: &serde_json::Value) -> Result<(), CommandError> {
    print(&format!("{document:#}\n"))
}
