//! Looks for each io_uring feature, and notes which ones are there.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, Submitter, cqueue, opcode, squeue, types};

use super::Feature;
use crate::io::echo::MappedBuffers;
use crate::io::ring::RingError;

/// A completion on loopback takes microseconds; past this it is not coming.
const PATIENCE: Duration = Duration::from_secs(1);

const GROUP: u16 = 0;

/// User data of all operations: they are told apart by what goes on.
const UNNAMED: u64 = 1;

/// What a look at the kernel's list of operations settles.
const OPERATIONS: [(Feature, &[u8]); 5] = [
    (Feature::Sockets, &[opcode::Recv::CODE, opcode::Send::CODE, opcode::SendMsg::CODE, opcode::Close::CODE]),
    (Feature::ReadWrite, &[opcode::Read::CODE, opcode::Write::CODE]),
    (Feature::RegisteredMemory, &[opcode::ReadFixed::CODE, opcode::WriteFixed::CODE]),
    (
        Feature::Files,
        &[
            opcode::OpenAt::CODE,
            opcode::Fallocate::CODE,
            opcode::Fsync::CODE,
            opcode::RenameAt::CODE,
            opcode::UnlinkAt::CODE,
        ],
    ),
    (Feature::MsgRing, &[opcode::MsgRingData::CODE]),
];

/// Tries everything; the features found, in no order.
pub(super) fn all(ring: &mut IoUring) -> Result<Vec<Feature>, RingError> {
    let (silent, timed) =
        (ring.params().is_feature_skip_cqe_on_success(), ring.params().is_feature_ext_arg());
    let (submitter, sq, cq) = ring.split();
    let mut bench = Bench { submitter, sq, cq, found: Vec::new() };
    bench.note(Feature::SilentSuccess, silent);
    bench.note(Feature::TimedWait, timed);
    if !timed {
        // Nothing can be tried without it.
        return Ok(bench.found);
    }
    bench.operations()?;
    let registered = bench.submitter.register_ring_fd().is_ok();
    bench.note(Feature::RegisteredRing, registered);
    let sparse = bench.submitter.register_files_sparse(4).is_ok();
    bench.note(Feature::SparseFiles, sparse);
    let with_buffers = bench.with_buffers(Bench::connection)?;
    bench.note(Feature::BufferRings, with_buffers);
    Ok(bench.found)
}

struct Bench<'r> {
    submitter: Submitter<'r>,
    sq: squeue::SubmissionQueue<'r>,
    cq: cqueue::CompletionQueue<'r>,
    found: Vec<Feature>,
}

impl Bench<'_> {
    fn note(&mut self, feature: Feature, works: bool) {
        if works {
            self.found.push(feature);
        }
    }

    fn operations(&mut self) -> Result<(), RingError> {
        let mut probe = Probe::new();
        self.submitter
            .register_probe(&mut probe)
            .map_err(|source| RingError::Failed { step: "listing the operations", source })?;
        // Registered memory is filled in slice by slice.
        let sparse = self.submitter.register_buffers_sparse(1).is_ok();
        for (feature, codes) in OPERATIONS {
            let is_there = codes.iter().all(|&code| probe.is_supported(code));
            self.note(feature, is_there && (feature != Feature::RegisteredMemory || sparse));
        }
        Ok(())
    }

    /// Runs `tests` with a group of receive buffers; false when the kernel has
    /// no such group.
    fn with_buffers(
        &mut self,
        tests: impl FnOnce(&mut Self) -> Result<(), RingError>,
    ) -> Result<bool, RingError> {
        // SAFETY: the group is unregistered below before the buffers go, which
        // ends its receives, or else the buffers are leaked.
        let buffers = match unsafe { MappedBuffers::register(&self.submitter, GROUP, 4, 4096) } {
            Ok(buffers) => buffers,
            Err(source) if source.raw_os_error() == Some(libc::ENOMEM) => {
                return Err(RingError::from_registering("registering receive buffers", source));
            }
            Err(_) => return Ok(false),
        };
        let tested = tests(self);
        if let Err(source) = self.submitter.unregister_buf_ring(GROUP) {
            std::mem::forget(buffers);
            return Err(RingError::Failed { step: "taking back receive buffers", source });
        }
        tested.map(|()| true)
    }

    /// Accept, receive, poll and cancel, on one loopback connection.
    fn connection(&mut self) -> Result<(), RingError> {
        let failed = |step| move |source| RingError::Failed { step, source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .or_else(|_| TcpListener::bind((Ipv6Addr::LOCALHOST, 0)))
            .map_err(failed("listening on loopback"))?;
        let addr = listener.local_addr().map_err(failed("listening on loopback"))?;
        let mut peer = TcpStream::connect(addr).map_err(failed("connecting on loopback"))?;

        let no_addr = std::ptr::null_mut();
        let accept = opcode::Accept::new(Fd(listener.as_raw_fd()), no_addr, std::ptr::null_mut())
            .flags(libc::SOCK_CLOEXEC);
        let accepted = self.submit(accept.build()).map_err(failed("accepting"))?;
        let Some((fd @ 0.., _)) = accepted.first().copied() else {
            return Ok(());
        };
        // SAFETY: the descriptor is new, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        self.note(Feature::Accept, true);
        // What is left running is cancelled below.
        let mut running = self.receive(&socket, &mut peer).map_err(failed("receiving"))?;
        running += self.poll(&peer).map_err(failed("polling"))?;
        self.cancel(running).map_err(failed("cancelling"))
    }

    fn receive(&mut self, socket: &OwnedFd, peer: &mut TcpStream) -> io::Result<usize> {
        peer.write_all(&[1])?;
        let first = self.submit(opcode::RecvMulti::new(Fd(socket.as_raw_fd()), GROUP).build())?;
        let works = matches!(first[..], [(1, flags)] if cqueue::more(flags));
        self.note(Feature::MultishotRecv, works);
        Ok(usize::from(works))
    }

    /// A socket with nothing to take in can be written to at once.
    fn poll(&mut self, peer: &TcpStream) -> io::Result<usize> {
        let poll = opcode::PollAdd::new(Fd(peer.as_raw_fd()), libc::POLLOUT as u32).multi(true);
        let first = self.submit(poll.build())?;
        let works = matches!(first[..], [(1.., flags)] if cqueue::more(flags));
        self.note(Feature::MultishotPoll, works);
        Ok(usize::from(works))
    }

    /// Cancels what is under way, all of it at once but for one operation.
    fn cancel(&mut self, running: usize) -> io::Result<()> {
        let one = self.submit(opcode::AsyncCancel::new(UNNAMED).build())?;
        let all = opcode::AsyncCancel2::new(types::CancelBuilder::any().all()).build();
        let mut ended = one;
        ended.extend(self.submit(all)?);
        while ended.len() < running + 2 {
            let more = self.wait()?;
            if more.is_empty() {
                break;
            }
            ended.extend(more);
        }
        let cancelled = ended.iter().filter(|(result, _)| *result == -libc::ECANCELED).count();
        self.note(Feature::AsyncCancel, cancelled == running);
        Ok(())
    }

    /// Submits one entry and returns the completions that come of it, or none
    /// when the kernel stays silent.
    fn submit(&mut self, entry: squeue::Entry) -> io::Result<Vec<(i32, u32)>> {
        // SAFETY: no entry of this file names memory; receives go to the
        // group's, which outlives its registration.
        unsafe { self.sq.push(&entry.user_data(UNNAMED)) }.expect("the queue is empty between submissions");
        self.sq.sync();
        self.wait()
    }

    fn wait(&mut self) -> io::Result<Vec<(i32, u32)>> {
        let patience = Timespec::from(PATIENCE);
        let args = SubmitArgs::new().timespec(&patience);
        match self.submitter.submit_with_args(1, &args) {
            Ok(_) => {}
            Err(e) if e.raw_os_error() == Some(libc::ETIME) => {}
            Err(e) => return Err(e),
        }
        self.sq.sync();
        self.cq.sync();
        Ok((&mut self.cq).map(|cqe| (cqe.result(), cqe.flags())).collect())
    }
}
