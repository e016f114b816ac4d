//! io_uring, feature by feature, each one used once.

mod error;
mod exercise;

pub use error::RingError;

use crate::io::echo;

/// Something of io_uring that Ringbolt uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Feature {
    /// A file table of its own, filled in as connections come.
    SparseFiles,
    /// Provided buffers through a shared ring.
    BufferRings,
    /// One accept for all connections.
    MultishotAccept,
    /// One receive per connection for all its bytes.
    MultishotRecv,
    /// Cancelling an operation that is under way.
    AsyncCancel,
    /// Writes from registered memory.
    WriteFixed,
    /// Reads into registered memory.
    ReadFixed,
    /// Waking another core's ring.
    MsgRing,
    /// The ring known to the kernel by index, which saves a look-up per call.
    RegisteredRing,
    /// Sending without a copy.
    SendZc,
    /// The kernel saying whether a zero-copy send copied after all.
    SendZcReport,
    /// Provided buffers that are filled piece by piece.
    IncrementalBuffers,
}

impl Feature {
    /// All of them, required ones first.
    pub const ALL: [Feature; 12] = [
        Feature::SparseFiles,
        Feature::BufferRings,
        Feature::MultishotAccept,
        Feature::MultishotRecv,
        Feature::AsyncCancel,
        Feature::WriteFixed,
        Feature::ReadFixed,
        Feature::MsgRing,
        Feature::RegisteredRing,
        Feature::SendZc,
        Feature::SendZcReport,
        Feature::IncrementalBuffers,
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
        !matches!(
            self,
            Feature::RegisteredRing | Feature::SendZc | Feature::SendZcReport | Feature::IncrementalBuffers
        )
    }

    /// What Ringbolt uses it for.
    pub fn why(self) -> &'static str {
        self.facts().2
    }

    fn facts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Feature::SparseFiles => {
                ("sparse file table", "5.19", "sockets are used without a look-up per operation")
            }
            Feature::BufferRings => ("buffer rings", "5.19", "idle connections hold no receive buffer"),
            Feature::MultishotAccept => {
                ("multishot accept", "5.19", "one operation accepts every connection")
            }
            Feature::MultishotRecv => {
                ("multishot receive", "6.0", "one operation receives all of a connection's bytes")
            }
            Feature::AsyncCancel => ("cancel", "5.5", "connections end without waiting for a peer"),
            Feature::WriteFixed => ("write from registered memory", "5.1", "commits are written"),
            Feature::ReadFixed => ("read to registered memory", "5.1", "stored records are read"),
            Feature::MsgRing => ("message to another ring", "5.18", "cores wake each other"),
            Feature::RegisteredRing => ("registered ring", "5.18", "saves a look-up per system call"),
            Feature::SendZc => ("zero-copy send", "6.0", "large responses can leave without a copy"),
            Feature::SendZcReport => {
                ("zero-copy report", "6.2", "shows whether a zero-copy send copied after all")
            }
            Feature::IncrementalBuffers => {
                ("incremental buffer rings", "6.12", "a large receive buffer can take many small receives")
            }
        }
    }
}

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
    /// [`RingError::Missing`] with the first one.
    pub fn require(&self) -> Result<(), RingError> {
        let missing = Feature::ALL.into_iter().find(|f| f.required() && !self.has(*f));
        missing.map_or(Ok(()), |feature| Err(RingError::Missing { feature }))
    }
}

/// Makes a ring with the set-up that Ringbolt's cores use, and uses every
/// feature once, over a loopback connection. Takes about a millisecond.
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
}
