//! Time as the pure code sees it: a value that comes in from outside.

/// The moment at which an event is handled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// Monotonic, µs from an arbitrary start: for deadlines and durations.
    pub mono_us: u64,
    /// Wall clock, µs since 1970 UTC: for what people see. May jump.
    pub wall_us: u64,
}
