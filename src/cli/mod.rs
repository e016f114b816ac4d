//! The command line: one file per command, each a thin layer over the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod connection;
pub mod consume;
pub mod dlq;
pub mod doctor;
pub mod group;
mod input;
mod lines;
pub mod log;
pub mod produce;
pub mod serve;
pub mod stats;
pub mod topic;

/// A message broker that acknowledges only what is on disk.
#[derive(Parser)]
#[command(name = "ringbolt", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a broker.
    Serve(Box<serve::ServeArgs>),
    /// Create, list, describe and delete topics.
    Topic(topic::TopicArgs),
    /// Produce a record for each line of standard input.
    Produce(produce::ProduceArgs),
    /// Print the records of a topic, or work on them as one of a consumer group.
    Consume(consume::ConsumeArgs),
    /// Create, list, describe, reset, delete and explain consumer groups.
    Group(group::GroupArgs),
    /// List, show, redrive and drop dead letters.
    Dlq(dlq::DlqArgs),
    /// Print the broker's counters.
    Stats(stats::StatsArgs),
    /// Check this machine for Ringbolt and measure the floor under its latency.
    Doctor(doctor::DoctorArgs),
    /// Look into a stopped broker's data directory, without changing it.
    Log(log::LogArgs),
}

/// Runs the command that the process was started with; the exit code is 0 on
/// success, 1 when the command failed, 2 for bad usage.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(*args),
        Command::Topic(args) => topic::run(args),
        Command::Produce(args) => produce::run(args),
        Command::Consume(args) => consume::run(args),
        Command::Group(args) => group::run(args),
        Command::Dlq(args) => dlq::run(args),
        Command::Stats(args) => stats::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Log(args) => log::run(args),
    }
}
