//! Words between a run's producers, its consumers, and the thread that waits
//! for both.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Moments on the run's clock that everybody has to know.
pub struct Signals {
    /// Measured is what happens from here ...
    from: AtomicU64,
    /// ... to here.
    until: AtomicU64,
    /// Nothing is produced after this: read to the end, and stop.
    frozen_at: AtomicU64,
    /// The user has had enough.
    interrupted: AtomicBool,
}

const NEVER: u64 = u64::MAX;

impl Default for Signals {
    fn default() -> Self {
        Signals {
            from: NEVER.into(),
            until: NEVER.into(),
            frozen_at: NEVER.into(),
            interrupted: false.into(),
        }
    }
}

impl Signals {
    /// What happens from now on is measured.
    pub fn measure_from(&self, now: u64) {
        self.from.store(now, Ordering::Relaxed);
    }

    /// What happens from now on is not measured any more.
    pub fn measure_until(&self, now: u64) {
        self.until.fetch_min(now, Ordering::Relaxed);
    }

    /// Whether this moment is measured.
    #[inline]
    pub fn is_measured(&self, at: u64) -> bool {
        at >= self.from.load(Ordering::Relaxed) && at < self.until.load(Ordering::Relaxed)
    }

    /// Seconds that were measured.
    pub fn measured_seconds(&self) -> f64 {
        let (from, until) = (self.from.load(Ordering::Relaxed), self.until.load(Ordering::Relaxed));
        if until == NEVER { 0.0 } else { until.saturating_sub(from) as f64 / 1e9 }
    }

    /// The run is to end early, in an orderly way.
    pub fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
    }

    /// Whether the run is to end early.
    #[inline]
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Nothing is produced any more.
    pub fn freeze(&self, now: u64) {
        self.frozen_at.fetch_min(now, Ordering::Release);
    }

    /// Since when nothing is produced any more.
    pub fn frozen_at(&self) -> Option<u64> {
        Some(self.frozen_at.load(Ordering::Acquire)).filter(|&at| at != NEVER)
    }
}
