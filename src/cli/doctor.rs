//! `ringbolt doctor`.

use std::process::ExitCode;

/// Arguments of `ringbolt doctor`.
#[derive(clap::Args)]
pub struct DoctorArgs {}

/// Runs the checks and measurements.
pub fn run(_args: DoctorArgs) -> ExitCode {
    ExitCode::SUCCESS
}
