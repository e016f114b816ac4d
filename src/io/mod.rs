//! The only folder with system calls and `unsafe`.

pub mod clock;
pub mod datadir;
pub mod disk;
pub mod echo;
pub mod floor;
pub mod mailbox;
pub mod net;
pub mod netring;
pub mod pin;
pub mod pool;
pub mod probe;
pub mod process;
mod recv_buffers;
pub mod ring;
pub mod tcp;
#[cfg(test)]
mod test_mount;
