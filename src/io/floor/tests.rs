//! The floor: figures that are possible, and nothing left behind.

use super::*;
use crate::io::echo::Wait;

const SHORT: Conditions =
    Conditions { duration: Duration::from_millis(50), server_core: None, client_core: None };

#[test]
fn writes_of_every_kind_are_measured_and_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let disk = DiskFloor::create(dir.path(), 8 << 20).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
    let small = disk.durable_write(4096, &SHORT).unwrap();
    assert!(small.samples > 0 && small.p50 > 0.0 && small.p50 <= small.p99, "{small:?}");
    let large = disk.durable_write(65_536, &SHORT).unwrap();
    assert!(large.samples > 0, "{large:?}");
    let rate = disk.durable_mb_per_s(262_144, 4, &SHORT).unwrap();
    assert!(rate > 0.0, "{rate} MB/s");
}

#[test]
fn every_shape_is_echoed_in_full() {
    for (connections, in_flight) in [(1, 1), (7, 3), (64, 16), (1, 256), (300, 1)] {
        let shape = Shape { connections, in_flight };
        let echo = measure_echo(shape, Wait::Sleep, &SHORT).unwrap();
        assert!(echo.round_trip.samples > 0, "{shape}: {echo:?}");
        // Little's law: what is under way is rate times mean, and no median is
        // more than twice the mean of times.
        let under_way = echo.per_s * echo.round_trip.p50 / 1e6;
        assert!(under_way < (connections * in_flight) as f64 * 2.1, "{shape}: {echo:?}");
    }
}

#[test]
fn a_core_that_is_not_there_is_named() {
    let conditions = Conditions { client_core: Some(999), ..SHORT };
    let shape = Shape { connections: 1, in_flight: 1 };
    let error = measure_echo(shape, Wait::Sleep, &conditions).unwrap_err();
    assert!(matches!(error, FloorError::Pin(_)) && error.to_string().contains("999"), "{error}");
}

#[test]
fn a_directory_without_direct_writes_is_refused() {
    let error = DiskFloor::create("/proc/self".as_ref(), 1 << 20).err().unwrap();
    assert!(matches!(error, FloorError::Storage(_)), "{error}");
}
