//! One spare file in the making: opened under a name that says it is not whole,
//! allocated, filled with zeros, flushed, and only then named.

use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::AtomicU64;

use bytes::Bytes;

use super::{c_name, fault, owned, raw};
use crate::io::datadir::{spare_name, unfinished_name};
use crate::io::ring::{Ring, Target, Token};
use crate::limits::BLOCK_LEN;
use crate::shard::event::DiskFault;

/// Most bytes of one write of zeros.
const PIECE_LEN: u64 = 1 << 20;

/// Writes of zeros in flight while a segment waits for its file.
const URGENT_DEPTH: u32 = 4;

/// Fewest bytes of one write of zeros while no segment waits: so small that a
/// commit that queues behind it in the device hardly notices. (Behind 1 MiB at
/// a time without a pause, the median of 4 KiB commits rose from 111 to 620 µs.)
const QUIET_PIECE_LEN: u64 = 128 << 10;

/// How much may be zero-written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pace {
    /// As fast as the disk allows.
    Urgent,
    /// So many bytes, one write at a time.
    Credit(u64),
}

/// `FALLOC_FL_WRITE_ZEROES`, Linux 6.17: the device writes zeros by itself.
const WRITE_ZEROES: i32 = 0x80;

/// An operation on the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::io::disk) enum MakeStep {
    Open,
    WriteZeroes,
    Allocate,
    Zero { position: u64, len: u64 },
    Sync,
    Name,
    Remove,
}

/// How the making ended.
#[derive(Debug)]
pub(super) enum Made {
    Ready { number: u64, fd: OwnedFd },
    Failed(DiskFault),
}

#[derive(Debug)]
pub(super) struct Making {
    number: u64,
    len: u64,
    fd: Option<OwnedFd>,
    /// What comes next; zeros are written until `filled` reaches `len`.
    next: MakeStep,
    /// Bytes for which a write was submitted.
    submitted: u64,
    /// Parts that a short write left out.
    left_out: Vec<(u64, u64)>,
    zeroed: u64,
    in_flight: u32,
    skip_write_zeroes: bool,
    fault: Option<DiskFault>,
}

impl Making {
    pub(super) fn new(number: u64, len: u64, skip_write_zeroes: bool) -> Making {
        Making {
            number,
            len,
            fd: None,
            next: MakeStep::Open,
            submitted: 0,
            left_out: Vec::new(),
            zeroed: 0,
            in_flight: 0,
            skip_write_zeroes,
            fault: None,
        }
    }

    pub(super) fn zeroed_bytes(&self) -> u64 {
        self.zeroed
    }

    /// Whether zeros had to be written, as the file system does not do it.
    pub(super) fn wrote_zeros(&self) -> bool {
        self.skip_write_zeroes
    }

    /// What is to be submitted now; it counts as submitted.
    pub(super) fn next_step(&mut self, pace: Pace) -> Option<MakeStep> {
        let step = match self.next {
            MakeStep::Zero { .. } if self.fault.is_none() => self.next_piece(pace)?,
            _ if self.in_flight > 0 => return None,
            step => step,
        };
        if step == MakeStep::Remove {
            // Closed before, so that the removal, on a worker of the kernel's,
            // is what frees the blocks.
            self.fd = None;
        }
        self.in_flight += 1;
        Some(step)
    }

    fn next_piece(&mut self, pace: Pace) -> Option<MakeStep> {
        let most = match pace {
            Pace::Urgent if self.in_flight < URGENT_DEPTH => PIECE_LEN,
            Pace::Credit(credit) if self.in_flight == 0 => credit.min(PIECE_LEN),
            _ => return None,
        };
        if let Some((position, len)) = self.left_out.pop() {
            return Some(MakeStep::Zero { position, len });
        }
        let left = self.len - self.submitted;
        if most < QUIET_PIECE_LEN.min(left) {
            return None;
        }
        let (position, len) = (self.submitted, most.min(left) / BLOCK_LEN as u64 * BLOCK_LEN as u64);
        self.submitted += len;
        (len > 0).then_some(MakeStep::Zero { position, len })
    }

    pub(super) fn push(&self, ring: &mut Ring, token: Token, step: MakeStep, dir: RawFd, open_flags: i32) {
        match step {
            MakeStep::Open => {
                let flags = open_flags | libc::O_CREAT | libc::O_EXCL;
                ring.open_at(token, dir, c_name(unfinished_name(self.number)), flags)
            }
            MakeStep::WriteZeroes => ring.fallocate(token, raw(&self.fd), WRITE_ZEROES, self.len),
            MakeStep::Allocate => ring.fallocate(token, raw(&self.fd), 0, self.len),
            MakeStep::Zero { position, len } => {
                let file = Target::Fd(raw(&self.fd));
                ring.write(token, file, position, zeros(len), false)
            }
            MakeStep::Sync => ring.fsync(token, raw(&self.fd), false),
            MakeStep::Name => {
                let (from, to) = (unfinished_name(self.number), spare_name(self.number));
                ring.rename_at(token, dir, c_name(from), c_name(to))
            }
            MakeStep::Remove => ring.unlink_at(token, dir, c_name(unfinished_name(self.number))),
        };
    }

    /// Takes the result of a step; `Some` when the making is over.
    pub(super) fn complete(&mut self, step: MakeStep, result: i32) -> Option<Made> {
        self.in_flight -= 1;
        if result < 0 {
            return self.failed(step, -result);
        }
        self.next = match step {
            MakeStep::Open => {
                self.fd = Some(owned(result));
                if self.skip_write_zeroes { MakeStep::Allocate } else { MakeStep::WriteZeroes }
            }
            MakeStep::WriteZeroes => MakeStep::Sync,
            MakeStep::Allocate => MakeStep::Zero { position: 0, len: 0 },
            MakeStep::Zero { position, len } => {
                let done = u64::try_from(result).expect("not negative");
                self.zeroed += done;
                if done == 0 {
                    return self.failed(step, libc::EIO);
                }
                if done < len {
                    self.left_out.push((position + done, len - done));
                }
                if self.fault.is_some() { MakeStep::Remove } else { self.after_zeros() }
            }
            MakeStep::Sync => MakeStep::Name,
            MakeStep::Name => {
                let fd = self.fd.take().expect("opened at first");
                return Some(Made::Ready { number: self.number, fd });
            }
            MakeStep::Remove => return self.fault.take().map(Made::Failed),
        };
        None
    }

    fn after_zeros(&self) -> MakeStep {
        let all = self.submitted == self.len && self.left_out.is_empty() && self.in_flight == 0;
        if all { MakeStep::Sync } else { MakeStep::Zero { position: 0, len: 0 } }
    }

    fn failed(&mut self, step: MakeStep, errno: i32) -> Option<Made> {
        let operation = match step {
            MakeStep::WriteZeroes if errno != libc::ENOSPC => {
                self.skip_write_zeroes = true;
                self.next = MakeStep::Allocate;
                return None;
            }
            // Some file systems cannot; the zeros allocate it as well.
            MakeStep::Allocate if errno == libc::EOPNOTSUPP => {
                self.next = MakeStep::Zero { position: 0, len: 0 };
                return None;
            }
            MakeStep::Open => return Some(Made::Failed(fault("create a spare file", errno))),
            MakeStep::Remove => {
                tracing::warn!(number = self.number, errno, "an unfinished spare file could not be removed");
                return self.fault.take().map(Made::Failed);
            }
            MakeStep::WriteZeroes | MakeStep::Allocate => "allocate a spare file",
            MakeStep::Zero { .. } => "write zeros to a spare file",
            MakeStep::Sync => "fsync of a spare file",
            MakeStep::Name => "rename a spare file",
        };
        self.fault.get_or_insert_with(|| fault(operation, errno));
        self.next = MakeStep::Remove;
        None
    }
}

/// Zeros to write from. They are atomics only so that the linker lays them out
/// without contents, and as nobody ever stores to them, they take no memory
/// when the program runs either.
#[repr(C, align(4096))]
struct Zeros([AtomicU64; PIECE_LEN as usize / 8]);

static ZEROS: Zeros = Zeros([const { AtomicU64::new(0) }; PIECE_LEN as usize / 8]);

fn zeros(len: u64) -> Bytes {
    assert!(len <= PIECE_LEN);
    // SAFETY: the static has PIECE_LEN initialised bytes, lives for ever, and is
    // never stored to.
    Bytes::from_static(unsafe { std::slice::from_raw_parts(ZEROS.0.as_ptr().cast(), len as usize) })
}
