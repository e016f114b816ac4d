//! What this machine lets Ringbolt do: io_uring as it is used here, and a
//! directory that can be written durably.
//!
//! Everything is tried for real, on a ring, a loopback connection and a file
//! of its own, because version numbers lie (back-ports, seccomp profiles) and
//! opcode lists do not show flags. It knows nothing of speed: that is
//! [`floor`](crate::io::floor).

mod device;
mod limits;
mod mounts;
mod ring;
mod storage;
mod sys;

pub use device::Device;
pub(in crate::io) use limits::seccomp_filtered;
pub use limits::{Limit, Resource, effective_capability, limit};
pub use mounts::{Mount, mount_of};
pub use ring::{Feature, MissingFeature, RingSupport, probe_ring};
pub use storage::{Alignment, ScratchFile, StorageError, StorageSupport, probe_storage};
pub use sys::Sys;
