//! Figures that are too good to be true: a flush that is faster than any
//! device's is one that something on the way has swallowed.

use super::checks::DataDir;
use super::figures::Figures;

/// Below this no device makes a block durable, in µs: the fastest that is sold
/// (Optane, battery-backed memory behind NVMe) takes about 10 through the
/// kernel.
const FASTEST_US: f64 = 8.0;

/// Below this no device with a volatile cache makes a block durable, in µs: it
/// has to program flash, which takes 100 to 200 even for the fastest kind
/// (SLC), or turn a disk. Measured drives without power-loss protection take
/// 500 and more.
const FASTEST_VOLATILE_US: f64 = 100.0;

/// Everything about durability that the user should know, a sentence or two
/// each.
pub(super) fn warnings(data: &DataDir, figures: &Figures) -> Vec<String> {
    let mut warnings = Vec::new();
    if data.in_memory() {
        warnings.push(format!(
            "{} lies in memory: everything acknowledged there is lost when the machine stops. Use it for \
             trials only.",
            data.path.display()
        ));
        return warnings;
    }
    let volatile = data.device.as_ref().and_then(|device| device.volatile_cache);
    if data.without_barriers() && volatile != Some(false) {
        warnings.push(
            "The file system is mounted without barriers, so the device's cache is never flushed: what was \
             acknowledged can be lost with the power. Mount it with barriers."
                .into(),
        );
    }
    let Some(flush) = figures.dsync_4k_us else { return warnings };
    let emulated = data.device.as_ref().is_some_and(|device| device.emulated);
    warnings.extend(too_fast(flush.p50, volatile, emulated));
    warnings
}

fn too_fast(us: f64, volatile: Option<bool>, emulated: bool) -> Option<String> {
    if us < FASTEST_US {
        return Some(format!(
            "A durable 4 KiB write takes {us} µs, and no known device is faster than {FASTEST_US}: it ends in \
             memory, so what was acknowledged can be lost with the power."
        ));
    }
    if volatile != Some(true) || us >= FASTEST_VOLATILE_US {
        return None;
    }
    Some(if emulated {
        format!(
            "A durable 4 KiB write takes {us} µs on a virtual disk that reports a volatile cache. That is \
             faster than any device with such a cache (from {FASTEST_VOLATILE_US} µs), so either the host's \
             device is protected against power loss, or the host does not pass flushes on. Only the host's \
             operator knows: QEMU's cache=unsafe, for one, ignores them."
        )
    } else {
        format!(
            "A durable 4 KiB write takes {us} µs on a device that reports a volatile cache, and none is known \
             that programs its flash in less than {FASTEST_VOLATILE_US} µs. Unless its cache is protected \
             against power loss after all (see its data sheet), it ignores flushes."
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_be_is_warned_of() {
        for (us, volatile, emulated, expected) in [
            (2.0, Some(false), false, Some("no known device")),
            (12.0, Some(false), false, None),
            (12.0, None, false, None),
            (60.0, Some(true), false, Some("ignores flushes")),
            (60.0, Some(true), true, Some("host's operator")),
            (60.0, Some(false), true, None),
            (450.0, Some(true), false, None),
        ] {
            let warning = too_fast(us, volatile, emulated);
            match expected {
                Some(part) => {
                    assert!(warning.as_ref().is_some_and(|w| w.contains(part)), "{us}: {warning:?}")
                }
                None => assert_eq!(warning, None, "{us} {volatile:?} {emulated}"),
            }
        }
    }
}
