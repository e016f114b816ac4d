//! One run of a command: the record goes in, what it said last comes out.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use bytes::Bytes;
use ringbolt_client::Delivery;
use tokio::sync::oneshot;

use super::print::rfc3339;

/// Most bytes of a command's last line that are kept.
const MAX_LINE_LEN: usize = 512;

/// Bytes that a pipe takes at once, whatever its size is.
const PIPE_LEN: usize = 4096;

/// Longest key that is put into the environment, in bytes: the kernel takes strings of
/// 128 KiB.
const MAX_KEY_LEN: usize = 32 << 10;

/// How long the end of standard error is waited for after the command's: a process that it
/// left behind may hold it open.
const GRACE: Duration = Duration::from_millis(200);

/// What is run.
pub struct Job {
    /// For `sh -c`.
    pub command: String,
    /// Name of the group.
    pub group: String,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    status: io::Result<ExitStatus>,
    /// The last line of its standard error.
    line: String,
}

impl Ended {
    /// Why the record failed; `None` if it did not.
    pub fn failure(&self) -> Option<String> {
        let how = match &self.status {
            Ok(status) if status.success() => return None,
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => status.to_string(),
            },
            Err(error) => error.to_string(),
        };
        Some(if self.line.is_empty() { how } else { format!("{how}: {}", self.line) })
    }
}

/// A command that runs, in a process group of its own: signals from the terminal do not
/// reach it.
pub struct Running {
    pid: u32,
    ended: oneshot::Receiver<Ended>,
}

impl Running {
    /// Starts the command for this record. A command that does not read the value is no
    /// error.
    ///
    /// # Errors
    /// No process, or no thread to watch it, could be started.
    pub fn start(job: &Job, delivery: &Delivery) -> io::Result<Running> {
        let mut child = command(job, delivery).spawn()?;
        let (tell, ended) = oneshot::channel();
        let running = Running { pid: child.id(), ended };
        let watched = feed(&mut child, delivery.value.clone()).and_then(|()| watch(child, tell));
        if watched.is_err() {
            running.kill();
        }
        watched.map(|()| running)
    }

    /// Waits for its end. To be called again only if the future was dropped before.
    pub async fn ended(&mut self) -> Ended {
        let lost = |_| Ended { status: Err(io::ErrorKind::Other.into()), line: String::new() };
        (&mut self.ended).await.unwrap_or_else(lost)
    }

    /// Kills it, and what it has started.
    pub fn kill(&self) {
        let kill = "kill -s KILL -- \"-$0\"";
        // It may have ended on its own.
        let _ = Command::new("sh").args(["-c", kill, &self.pid.to_string()]).stderr(Stdio::null()).status();
    }
}

fn command(job: &Job, delivery: &Delivery) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(&job.command).process_group(0);
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    command.env("RINGBOLT_TOPIC", &*delivery.topic).env("RINGBOLT_GROUP", &job.group);
    for (name, number) in [
        ("RINGBOLT_PARTITION", delivery.partition.into()),
        ("RINGBOLT_OFFSET", delivery.offset),
        ("RINGBOLT_ACQUIRED", delivery.acquired().into()),
        ("RINGBOLT_FAILED", delivery.failed().into()),
    ] {
        command.env(name, number.to_string());
    }
    match delivery.first_delivery() {
        Some(time) => command.env("RINGBOLT_FIRST_DELIVERY", rfc3339(time)),
        None => command.env_remove("RINGBOLT_FIRST_DELIVERY"),
    };
    match delivery.key.as_deref().filter(|key| key.len() <= MAX_KEY_LEN && !key.contains(&0)) {
        Some(key) => command.env("RINGBOLT_KEY", OsStr::from_bytes(key)),
        None => command.env_remove("RINGBOLT_KEY"),
    };
    command
}

/// Gives it the value, and closes its input.
fn feed(child: &mut Child, value: Bytes) -> io::Result<()> {
    let Some(mut input) = child.stdin.take() else { return Ok(()) };
    let is_short = value.len() <= PIPE_LEN;
    let mut write = move || {
        // Who does not read it does not need it.
        let _ = input.write_all(&value);
    };
    if is_short {
        write();
        return Ok(());
    }
    thread("input", write)
}

/// Waits for its end on a thread, and reads what it says on another one.
fn watch(mut child: Child, tell: oneshot::Sender<Ended>) -> io::Result<()> {
    let last = Arc::new(Mutex::new(LastLine::default()));
    let (at_end, ends) = mpsc::channel::<()>();
    if let Some(errors) = child.stderr.take() {
        let last = last.clone();
        thread("errors", move || {
            pass_on(errors, &last);
            drop(at_end);
        })?;
    }
    thread("command", move || {
        let status = child.wait();
        // Nothing is sent: it is over when the other thread is done.
        let _ = ends.recv_timeout(GRACE);
        let line = lock(&last).text();
        // Nobody waits when the process ends.
        let _ = tell.send(Ended { status, line });
    })
}

/// Copies to this process's standard error.
fn pass_on(mut from: impl Read, last: &Mutex<LastLine>) {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => {
                lock(last).feed(&buffer[..len]);
                // A closed standard error is the user's wish.
                let _ = io::stderr().write_all(&buffer[..len]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn lock(last: &Mutex<LastLine>) -> MutexGuard<'_, LastLine> {
    // Whole between any two statements that could panic.
    last.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last line that is not empty, of bytes that come in pieces; of a long one its
/// beginning.
#[derive(Default)]
struct LastLine {
    whole: Vec<u8>,
    /// Its end has not come.
    partial: Vec<u8>,
}

impl LastLine {
    fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\n' if self.partial.trim_ascii().is_empty() => self.partial.clear(),
                b'\n' => self.whole = std::mem::take(&mut self.partial),
                _ if self.partial.len() < MAX_LINE_LEN => self.partial.push(byte),
                _ => {}
            }
        }
    }

    fn text(&self) -> String {
        let has_partial = !self.partial.trim_ascii().is_empty();
        let line = if has_partial { &self.partial } else { &self.whole };
        String::from_utf8_lossy(line.trim_ascii()).into_owned()
    }
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_line(pieces: &[&str]) -> String {
        let mut last = LastLine::default();
        pieces.iter().for_each(|piece| last.feed(piece.as_bytes()));
        last.text()
    }

    #[test]
    fn the_last_line_is_the_one_that_says_something() {
        assert_eq!(last_line(&[]), "");
        assert_eq!(last_line(&["a\nb", "c\n\n \n"]), "bc");
        assert_eq!(last_line(&["a\n", "no newline"]), "no newline");
        assert_eq!(last_line(&[&"x".repeat(2 * MAX_LINE_LEN)]), "x".repeat(MAX_LINE_LEN));
    }

    #[test]
    fn the_reason_of_a_failure_is_how_it_ended_and_what_it_said_last() {
        let ended = |raw, line: &str| Ended { status: Ok(ExitStatus::from_raw(raw)), line: line.into() };
        assert_eq!(ended(0, "a warning").failure(), None);
        assert_eq!(ended(3 << 8, "no such customer").failure().unwrap(), "exit status 3: no such customer");
        assert_eq!(ended(9, "").failure().unwrap(), "signal 9");
    }
}
