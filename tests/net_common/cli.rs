//! The commands of `ringbolt` as processes: run to their end, or talked to
//! while they run.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;

use serde_json::Value;

use super::{PATIENCE, ended};

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// What it printed, if it went well.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// What it printed, as one JSON document.
    #[track_caller]
    pub fn json(self) -> Value {
        let out = self.good();
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
    }

    /// Its complaint: it has failed with this code, and says each of these.
    #[track_caller]
    pub fn bad(self, code: i32, says: &[&str]) {
        assert_eq!((self.code, self.out.as_str()), (code, ""), "{self:?}");
        for text in says {
            assert!(self.err.contains(text), "{text:?} is not in {:?}", self.err);
        }
    }
}

/// Runs `ringbolt` on this input.
pub fn ringbolt(args: &[&str], input: &[u8]) -> Ran {
    let mut running = Running::new(Command::new(env!("CARGO_BIN_EXE_ringbolt")).args(args));
    // One that refuses its arguments does not read.
    let _ = running.input.take().unwrap().write_all(input);
    running.end()
}

/// A broker's address, for the commands.
#[derive(Clone, Copy)]
pub struct At(pub SocketAddr);

impl At {
    /// Runs a command with this broker.
    pub fn run(self, args: &[&str]) -> Ran {
        self.run_on(args, b"")
    }

    /// Runs a command with this broker on this input.
    pub fn run_on(self, args: &[&str], input: &[u8]) -> Ran {
        ringbolt(&[args, &["--addr", &self.0.to_string()]].concat(), input)
    }

    /// Starts a command with this broker.
    pub fn start(self, args: &[&str]) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringbolt"));
        Running::new(command.args(args).args(["--addr", &self.0.to_string()]))
    }
}

/// A command that runs. Killed when dropped.
pub struct Running {
    pub child: Child,
    pub input: Option<ChildStdin>,
    out: mpsc::Receiver<String>,
    err: mpsc::Receiver<String>,
}

/// The lines of a stream, as they come.
fn lines(stream: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            if sender.send(line.unwrap()).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Running {
    pub fn new(command: &mut Command) -> Running {
        // What a command logs on its way is beside what it tells.
        command.env("RUST_LOG", "off");
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (out, err) = (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        Running { input: child.stdin.take(), child, out, err }
    }

    /// Writes a line to its input.
    pub fn say(&mut self, line: &str) {
        let input = self.input.as_mut().expect("its input is open");
        input.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// The next line that it prints.
    #[track_caller]
    pub fn line(&mut self) -> String {
        self.out.recv_timeout(PATIENCE).expect("a line on standard output")
    }

    /// A line if there is one.
    pub fn try_line(&mut self) -> Option<String> {
        self.out.try_recv().ok()
    }

    /// The next line of its complaints.
    #[track_caller]
    pub fn error_line(&mut self) -> String {
        self.err.recv_timeout(PATIENCE).expect("a line on standard error")
    }

    /// Closes its input and waits for its end; the lines not taken yet.
    pub fn end(mut self) -> Ran {
        drop(self.input.take());
        let status: ExitStatus = ended(&mut self.child);
        let rest = |lines: &mpsc::Receiver<String>| lines.iter().map(|line| line + "\n").collect();
        Ran {
            code: status.code().expect("no signal has ended it"),
            out: rest(&self.out),
            err: rest(&self.err),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
