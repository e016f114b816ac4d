//! The time, for those who may not ask for it themselves.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::time::Now;

/// The moment of the call.
pub fn now() -> Now {
    // A wall clock before 1970 is as good as none.
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono_us: mono_us(), wall_us: u64::try_from(wall.as_micros()).unwrap_or(u64::MAX) }
}

/// Only the monotonic part: µs of CLOCK_MONOTONIC.
pub fn mono_us() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime fills the one struct that it is given; this clock
    // is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn both_clocks_count_microseconds() {
        let before = now();
        std::thread::sleep(Duration::from_millis(20));
        let after = now();
        let passed = after.mono_us - before.mono_us;
        assert!((20_000..5_000_000).contains(&passed), "{passed} µs");
        assert!(after.wall_us > 1_700_000_000_000_000, "after 2023: {}", after.wall_us);
    }
}
