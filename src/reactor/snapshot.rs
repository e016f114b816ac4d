//! A core's counters at one moment, and their sum over cores.

use std::collections::BTreeMap;

use crate::io::disk::DiskStats;
use crate::io::net::NetCounters;
use crate::io::ring::RingCounters;
use crate::session::SessionCounters;
use crate::shard::counters::ShardCounters;

/// Counters of one core, or of several added up.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    values: BTreeMap<&'static str, u64>,
    disk: DiskStats,
}

impl Snapshot {
    /// Adds a shard's counters.
    pub fn add_shard(&mut self, counters: &ShardCounters, disk: &DiskStats) {
        counters.iter().for_each(|(name, value)| self.add_value(name, value));
        self.add_value("shards", 1);
        self.disk.add(disk);
    }

    /// Adds the counters of a core's sockets and sessions.
    pub fn add_net(&mut self, net: &NetCounters, sessions: &SessionCounters) {
        net.iter().for_each(|(name, value)| self.add_value(name, value));
        sessions.iter().for_each(|(name, value)| self.add_value(name, value));
        self.add_value("cores", 1);
    }

    /// Adds a ring's counters.
    pub fn add_ring(&mut self, ring: &RingCounters) {
        self.add_value("ring_enters_total", ring.enters);
        self.add_value("ring_submissions_total", ring.sqes);
        self.add_value("ring_completions_total", ring.cqes);
        self.add_value("ring_full_total", ring.full_submits);
        self.add_value("ring_backlogged_total", ring.backlogged);
    }

    /// Adds to one value.
    pub fn add_value(&mut self, name: &'static str, value: u64) {
        *self.values.entry(name).or_default() += value;
    }

    /// Adds another core's.
    pub fn add(&mut self, other: &Snapshot) {
        other.values.iter().for_each(|(name, value)| self.add_value(name, *value));
        self.disk.add(&other.disk);
    }

    /// Name and value of each, sorted by name.
    pub fn values(&self) -> Vec<(String, u64)> {
        let mut all = self.values.clone();
        all.extend(self.disk.values());
        all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_cores_add_up_and_are_sorted_by_name() {
        let mut one = Snapshot::default();
        one.add_shard(
            &ShardCounters { acked_bytes: 5, copied_bytes: 2, ..Default::default() },
            &DiskStats::default(),
        );
        let mut other = Snapshot::default();
        other.add_shard(&ShardCounters { acked_bytes: 7, ..Default::default() }, &DiskStats::default());
        let sessions = SessionCounters::default();
        sessions.copied_bytes.set(10);
        other.add_net(&NetCounters { sends: 3, ..Default::default() }, &sessions);
        one.add(&other);
        let values = one.values();
        let get = |name: &str| values.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        assert_eq!(get("acked_bytes_total"), Some(12));
        assert_eq!(get("copied_bytes_total"), Some(12), "sessions and shards copy");
        assert_eq!(get("sends_total"), Some(3));
        assert_eq!(get("shards"), Some(2));
        assert!(values.is_sorted_by_key(|(name, _)| name.clone()));
    }
}
