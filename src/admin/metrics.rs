//! Counters as text for Prometheus.

use std::fmt::Write as _;

use super::source::Stats;

/// What [`render`] writes: the text format of Prometheus, version 0.0.4.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All counters, each with what it means and its type.
pub(super) fn render(stats: &Stats) -> String {
    let mut text = String::new();
    for (name, value) in stats {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        // Writing to a String does not fail.
        if let Some(help) = help(name) {
            let _ = writeln!(text, "# HELP ringbolt_{name} {help}");
        }
        let _ = writeln!(text, "# TYPE ringbolt_{name} {kind}\nringbolt_{name} {value}");
    }
    text
}

/// One line on what a counter means.
fn help(name: &str) -> Option<&'static str> {
    Some(match name {
        "acked_batches_total" => "Record batches acknowledged as durable, duplicates not counted.",
        "acked_bytes_total" => "Bytes of record batches acknowledged as durable, duplicates not counted.",
        "buffered_shards" => "Shards whose files are written through the kernel's cache.",
        "commit_bytes_total" => "Bytes of commits written, headers and padding included.",
        "commits_total" => "Commits written.",
        "connections" => "Connections open now.",
        "connections_accepted_total" => "Connections accepted.",
        "connections_refused_total" => "Connections accepted and closed again, for there were too many.",
        "copied_bytes_total" => {
            "Bytes of payload copied in user space; over acked_bytes_total, the copy ratio."
        }
        "cores" => "Threads that drive shards and sockets.",
        "corrupt_reads_total" => "Damaged places met on reading; what is damaged is not served.",
        "direct_batches_total" => {
            "Record batches received straight into the memory that was written to disk."
        }
        "direct_misses_total" => "Receives prepared for a large batch that met another frame.",
        "disk_read_bytes_total" => "Bytes read from segments.",
        "disk_read_p50_us" => "Median time of a read from disk since the start, in microseconds.",
        "disk_read_p99_us" => "99th percentile of the time of a read from disk, in microseconds.",
        "disk_reads_total" => "Reads from segments.",
        "disk_write_max_us" => "Longest time of a write to durability since the start, in microseconds.",
        "disk_write_p50_us" => "Median time of a write to durability since the start, in microseconds.",
        "disk_flushes_total" => {
            "Flushes of segments that were not part of a write: each is for all writes that had ended."
        }
        "disk_write_p99_us" => "99th percentile of the time of a write to durability, in microseconds.",
        "disk_writes_total" => "Writes to segments that have become durable.",
        "disk_written_bytes_total" => "Bytes written to segments.",
        "disk_zeroed_bytes_total" => "Bytes of zeroes written to segments that were made ahead.",
        "duplicate_batches_total" => {
            "Record batches that had been written before, acknowledged and not written again."
        }
        "errors_total" => "Requests answered with an error.",
        "fetch_requests_total" => "Fetch requests taken.",
        "fetched_bytes_total" => "Bytes of record batches handed to consumers.",
        "fetches_total" => "Fetches answered, counted in each shard that took part.",
        "forwarded_bytes_total" => "Bytes of record batches passed on to the core of their shard.",
        "page_reads_total" => "Pages read back from disk for consumers.",
        "pool_bytes" => "Bytes of payload memory in all.",
        "pool_free_bytes" => "Bytes of payload memory that nothing holds or that can be freed at once.",
        "produce_requests_total" => "Produce requests taken.",
        "received_bytes_total" => "Bytes received from sockets.",
        "receives_total" => "Receives from sockets that brought bytes.",
        "refused_batches_total" => "Record batches refused.",
        "requests_total" => "Requests taken, of any kind.",
        "ring_backlogged_total" => "Operations that waited because the ring's submission queue was full.",
        "ring_completions_total" => "Operations that io_uring has completed.",
        "ring_enters_total" => "System calls to io_uring.",
        "ring_full_total" => "System calls made because io_uring's queue was full.",
        "ring_submissions_total" => "Operations given to io_uring.",
        "sealed_index_bytes" => "Bytes of memory that tell where sealed segments' records lie.",
        "segments" => "Segments that hold records.",
        "sends_total" => "Sends to sockets that took bytes.",
        "sent_bytes_total" => "Bytes sent to sockets.",
        "shards" => "Commit logs.",
        "slow_readers_total" => "Connections closed because their peer did not read its answers.",
        "slow_writers_total" => {
            "Connections closed because a large batch did not end while memory was short."
        }
        "stalled_sessions" => "Connections held back now because a shard or its queue is full.",
        "starved_receives_total" => "Receives that found no buffer.",
        "tail_cache_bytes" => "Bytes of recent commits in memory.",
        "violations_total" => "Connections closed for what their peer did.",
        "waiting_fetches" => "Fetches that wait for records or for pages now.",
        _ => return help_of_groups(name),
    })
}

fn help_of_groups(name: &str) -> Option<&'static str> {
    Some(match name {
        "acked_records_total" => "Records that consumers of groups acknowledged.",
        "consumers" => "Consumers of groups that are attached, or have leases.",
        "dead_letters_total" => "Records moved to dead-letter topics.",
        "delayed_records" => "Records that wait for a time of their own, for each group.",
        "delivered_bytes_total" => "Bytes of record batches delivered to consumers of groups.",
        "delivered_records_total" => "Records delivered to consumers of groups, each time.",
        "expired_leases_total" => "Leases that ran out.",
        "group_log_bytes_total" => "Bytes of consumer groups' state appended to the logs.",
        "leased_records" => "Records that consumers have now.",
        "lost_settles_total" => "Settle requests without answer that could not be carried out.",
        "redriven_records_total" => "Dead letters moved back to where they came from.",
        "returned_records_total" => "Records that came back from consumers, for whatever reason.",
        _ => return None,
    })
}
