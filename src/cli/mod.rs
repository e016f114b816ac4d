//! The command line: one file per command, each a thin layer over the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub mod doctor;

/// A message broker that acknowledges only what is on disk.
#[derive(Parser)]
#[command(name = "ringbolt", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check this machine for Ringbolt and measure the floor under its latency.
    Doctor(doctor::DoctorArgs),
}

/// Runs the command that the process was started with; the exit code is 0 on
/// success, 1 when the command failed, 2 for bad usage.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Doctor(args) => doctor::run(args),
    }
}
