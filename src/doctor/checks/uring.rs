//! io_uring and its features.

use crate::doctor::check::{Check, Verdict};
use crate::io::probe::{Feature, RingSupport, probe_ring};

pub(super) fn checks() -> Vec<Check> {
    let ring = Check::new("io_uring", "single issuer, deferred task work")
        .why("every byte from and to disk and sockets passes through it");
    match probe_ring() {
        Ok(support) => {
            let ring = ring.found(Some("available"), Verdict::Ok);
            let ring =
                ring.how("Linux 6.1 or later; kernel.io_uring_disabled=0; a seccomp profile that allows it");
            std::iter::once(ring).chain(Feature::ALL.into_iter().map(|f| of_feature(f, &support))).collect()
        }
        Err(error) => vec![ring.found(Some("not available"), Verdict::Required).how(error.to_string())],
    }
}

fn of_feature(feature: Feature, support: &RingSupport) -> Check {
    let (found, verdict) = match (support.has(feature), feature.required()) {
        (true, _) => ("works", Verdict::Ok),
        (false, true) => ("missing", Verdict::Required),
        (false, false) => ("missing", Verdict::Advice),
    };
    let wanted = if feature.required() { "required" } else { "optional" };
    Check::new(format!("io_uring: {}", feature.name()), wanted)
        .found(Some(found), verdict)
        .why(feature.why())
        .how(format!("Linux {} or later", feature.since()))
}
