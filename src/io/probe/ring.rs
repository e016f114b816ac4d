//! io_uring as Ringbolt uses it: each operation and feature looked for, and used
//! once where the kernel's list of operations does not tell.

mod exercise;

use crate::io::echo;
use crate::io::ring::RingError;

/// Something of io_uring that Ringbolt uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Feature {
    /// Waiting for a completion, but not for ever.
    TimedWait,
    /// Provided buffers through a shared ring.
    BufferRings,
    /// Accepting a connection.
    Accept,
    /// One receive per connection for all its bytes.
    MultishotRecv,
    /// The other operations on sockets.
    Sockets,
    /// Cancelling an operation that is under way.
    AsyncCancel,
    /// Reads and writes.
    ReadWrite,
    /// The same from and to registered memory.
    RegisteredMemory,
    /// Everything that is done to files but reading and writing.
    Files,
    /// One poll for all that a descriptor tells.
    MultishotPoll,
    /// Waking another core's ring.
    MsgRing,
    /// Operations that answer only when they fail.
    SilentSuccess,
    /// A file table of its own, filled in as connections come.
    SparseFiles,
    /// The ring known to the kernel by index, which saves a look-up per call.
    RegisteredRing,
}

impl Feature {
    /// All of them, required ones first.
    pub const ALL: [Feature; 14] = [
        Feature::TimedWait,
        Feature::BufferRings,
        Feature::Accept,
        Feature::MultishotRecv,
        Feature::Sockets,
        Feature::AsyncCancel,
        Feature::ReadWrite,
        Feature::RegisteredMemory,
        Feature::Files,
        Feature::MultishotPoll,
        Feature::MsgRing,
        Feature::SilentSuccess,
        Feature::SparseFiles,
        Feature::RegisteredRing,
    ];

    /// A name for reports.
    pub fn name(self) -> &'static str {
        self.facts().0
    }

    /// The Linux version that brought it.
    pub fn since(self) -> &'static str {
        self.facts().1
    }

    /// True when Ringbolt does not run without it.
    pub fn required(self) -> bool {
        !matches!(self, Feature::SparseFiles | Feature::RegisteredRing)
    }

    /// What Ringbolt uses it for.
    pub fn why(self) -> &'static str {
        self.facts().2
    }

    fn facts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Feature::BufferRings => ("buffer rings", "5.19", "idle connections hold no receive buffer"),
            Feature::Accept => ("accept", "5.5", "connections come in a few at a time"),
            Feature::MultishotRecv => {
                ("multishot receive", "6.0", "one operation receives all of a connection's bytes")
            }
            Feature::Sockets => (
                "receive, send, sendmsg, close",
                "5.6",
                "large batches are received where they are written from, and answers are sent",
            ),
            Feature::AsyncCancel => ("cancel", "5.19", "connections end without waiting for a peer"),
            Feature::ReadWrite => ("read and write", "5.6", "commits are written, stored records are read"),
            Feature::RegisteredMemory => (
                "registered memory",
                "5.19",
                "commits are written from memory that the kernel knows, without pinning pages each time",
            ),
            Feature::Files => (
                "openat, fallocate, fsync, renameat, unlinkat",
                "5.11",
                "segments are made and recycled without holding up a core",
            ),
            Feature::MultishotPoll => ("multishot poll", "5.13", "threads without a ring wake a core"),
            Feature::MsgRing => ("message to another ring", "5.18", "cores wake each other"),
            Feature::SilentSuccess => {
                ("silent success", "5.17", "cancelling and waking cost no completion of their own")
            }
            Feature::TimedWait => ("timed wait", "5.11", "a core sleeps until its next deadline"),
            Feature::SparseFiles => {
                ("sparse file table", "5.19", "sockets are used without a look-up per operation")
            }
            Feature::RegisteredRing => ("registered ring", "5.18", "saves a look-up per system call"),
        }
    }
}

/// A feature without which Ringbolt does not run is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "this kernel's io_uring has no working {}, which came with Linux {}. Run a newer kernel",
    .0.name(),
    .0.since()
)]
pub struct MissingFeature(pub Feature);

/// The io_uring features that were seen working.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingSupport {
    found: Vec<Feature>,
}

impl RingSupport {
    /// True when the feature works here.
    pub fn has(&self, feature: Feature) -> bool {
        self.found.contains(&feature)
    }

    /// Fails when a required feature is missing.
    ///
    /// # Errors
    ///
    /// The first one that is.
    pub fn require(&self) -> Result<(), MissingFeature> {
        let missing = Feature::ALL.into_iter().find(|f| f.required() && !self.has(*f));
        missing.map_or(Ok(()), |feature| Err(MissingFeature(feature)))
    }
}

/// Makes a ring with the set-up that Ringbolt's cores use, and looks for every
/// feature, by use on a loopback connection where the kernel's list of
/// operations does not tell. Takes about a millisecond.
///
/// # Errors
///
/// Only when there is no usable ring at all: a single missing feature is
/// absent from the result, and [`RingSupport::require`] judges it.
pub fn probe_ring() -> Result<RingSupport, RingError> {
    // A thread of its own: the ring belongs to the one thread that made it, and
    // this one may be short-lived.
    let prober = std::thread::Builder::new().name("probe".into()).spawn(|| {
        let mut ring = echo::build(16, 64).map_err(RingError::from_setup)?;
        exercise::all(&mut ring).map(|found| RingSupport { found })
    });
    let prober = prober.map_err(|source| RingError::Failed { step: "starting a thread", source })?;
    prober.join().expect("the probe does not panic")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_missing_required_feature_is_named_with_the_version_that_has_it() {
        let all_but_one = Feature::ALL.into_iter().filter(|f| *f != Feature::MultishotRecv);
        let error = RingSupport { found: all_but_one.collect() }.require().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("multishot receive") && text.contains("6.0"), "{text}");
    }

    #[test]
    fn a_missing_optional_feature_is_no_error() {
        let required = Feature::ALL.into_iter().filter(|f| f.required());
        RingSupport { found: required.collect() }.require().unwrap();
    }

    #[test]
    fn a_machine_that_runs_these_tests_has_every_feature() {
        let found = probe_ring().unwrap();
        for feature in Feature::ALL {
            assert!(found.has(feature), "{feature:?}");
        }
    }

    /// The operations that a source text names.
    fn operations(source: &str) -> BTreeSet<&str> {
        let names = source.split("opcode::").skip(1);
        names.map(|rest| rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or(rest)).collect()
    }

    #[test]
    fn every_operation_of_the_brokers_ring_is_looked_for_and_no_other() {
        let ring = [include_str!("../ring/ops.rs"), include_str!("../ring.rs")].map(operations);
        let used = &ring[0] | &ring[1];
        assert!(used.len() > 15, "{used:?}");
        assert_eq!(operations(include_str!("ring/exercise.rs")), used);
    }
}
