//! `ringbolt stats`: the broker's counters.

use std::process::ExitCode;

use serde_json::json;

use super::connection::{ConnectionArgs, print, print_json, run_short};
use super::topic::table;

/// Arguments of `ringbolt stats`.
#[derive(clap::Args)]
pub struct StatsArgs {
    #[command(flatten)]
    connection: ConnectionArgs,
    /// Print one JSON document: {"broker": {"id", "boot", "shards"}, "stats": {NAME: NUMBER}}. Names
    /// ending in _total count since the broker was started
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: StatsArgs) -> ExitCode {
    run_short(|| async move {
        let client = args.connection.connect().await?;
        let stats = client.admin().stats().await?;
        let broker = client.broker();
        let id = uuid::Uuid::from_bytes(broker.broker_id);
        if args.json {
            let broker = json!({ "id": id.to_string(), "boot": broker.boot, "shards": broker.shards });
            print_json(&json!({ "broker": broker, "stats": stats }))?;
        } else {
            let mut table = table(&["COUNTER", "VALUE"]);
            for (name, value) in &stats {
                table.add_row([name, &value.to_string()]);
            }
            print(&format!("broker {id}, boot {}, {} shards\n{table}\n", broker.boot, broker.shards))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}
