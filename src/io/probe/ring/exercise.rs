//! Uses each io_uring feature once and notes which ones worked.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::types::{Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, Submitter, cqueue, opcode, squeue, types};

use super::{Feature, RingError};
use crate::io::echo::RecvBuffers;

/// A completion on loopback takes microseconds; past this it is not coming.
const PATIENCE: Duration = Duration::from_secs(1);

/// `IORING_SEND_ZC_REPORT_USAGE` of linux/io_uring.h, which the io-uring crate
/// does not export.
const SEND_ZC_REPORT_USAGE: u16 = 1 << 3;

const GROUP: u16 = 0;
const INCREMENTAL_GROUP: u16 = 1;

/// Tries everything; the features found, in no order.
pub(super) fn all(ring: &mut IoUring) -> Result<Vec<Feature>, RingError> {
    let (submitter, sq, cq) = ring.split();
    let mut bench = Bench { submitter, sq, cq, found: Vec::new() };
    bench.opcodes()?;
    if bench.submitter.register_ring_fd().is_ok() {
        bench.found.push(Feature::RegisteredRing);
    }
    if bench.submitter.register_files_sparse(4).is_ok() {
        bench.found.push(Feature::SparseFiles);
    }
    let incremental = types::IOU_PBUF_RING_INC as u16;
    if bench.with_buffers(INCREMENTAL_GROUP, incremental, |_| Ok(()))? {
        bench.found.push(Feature::IncrementalBuffers);
    }
    if bench.with_buffers(GROUP, 0, Bench::connection)? {
        bench.found.push(Feature::BufferRings);
    }
    Ok(bench.found)
}

struct Bench<'r> {
    submitter: Submitter<'r>,
    sq: squeue::SubmissionQueue<'r>,
    cq: cqueue::CompletionQueue<'r>,
    found: Vec<Feature>,
}

impl Bench<'_> {
    /// What a look at the kernel's list of opcodes settles.
    fn opcodes(&mut self) -> Result<(), RingError> {
        let mut probe = Probe::new();
        self.submitter
            .register_probe(&mut probe)
            .map_err(|source| RingError::Failed { step: "listing the opcodes", source })?;
        for (code, feature) in [
            (opcode::WriteFixed::CODE, Feature::WriteFixed),
            (opcode::ReadFixed::CODE, Feature::ReadFixed),
            (opcode::MsgRingData::CODE, Feature::MsgRing),
        ] {
            if probe.is_supported(code) {
                self.found.push(feature);
            }
        }
        Ok(())
    }

    /// Runs `tests` with a group of receive buffers; false when the kernel has
    /// no such group.
    fn with_buffers(
        &mut self,
        group: u16,
        flags: u16,
        tests: impl FnOnce(&mut Self) -> Result<(), RingError>,
    ) -> Result<bool, RingError> {
        // SAFETY: the group is unregistered below before the buffers go, which
        // ends its receives, or else the buffers are leaked.
        let buffers = match unsafe { RecvBuffers::register(&self.submitter, group, 4, 4096, flags) } {
            Ok(buffers) => buffers,
            Err(source) if source.raw_os_error() == Some(libc::ENOMEM) => {
                return Err(RingError::from_registering("registering receive buffers", source));
            }
            Err(_) => return Ok(false),
        };
        let tested = tests(self);
        if let Err(source) = self.submitter.unregister_buf_ring(group) {
            std::mem::forget(buffers);
            return Err(RingError::Failed { step: "taking back receive buffers", source });
        }
        tested.map(|()| true)
    }

    /// Accept, receive, send and cancel, on one loopback connection.
    fn connection(&mut self) -> Result<(), RingError> {
        let failed = |step| move |source| RingError::Failed { step, source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .or_else(|_| TcpListener::bind((Ipv6Addr::LOCALHOST, 0)))
            .map_err(failed("listening on loopback"))?;
        let addr = listener.local_addr().map_err(failed("listening on loopback"))?;
        let mut peer = TcpStream::connect(addr).map_err(failed("connecting on loopback"))?;

        let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).allocate_file_index(true);
        let accepted = self.submit(accept.build(), 1).map_err(failed("accepting"))?;
        let Some((slot @ 0.., flags)) = accepted.first().copied() else {
            return Ok(());
        };
        if cqueue::more(flags) {
            self.found.push(Feature::MultishotAccept);
        }
        let slot = Fixed(slot as u32);
        self.receive(slot, &mut peer).map_err(failed("receiving"))?;
        self.send_zc(slot).map_err(failed("sending"))?;
        self.cancel().map_err(failed("cancelling"))
    }

    fn receive(&mut self, slot: Fixed, peer: &mut TcpStream) -> io::Result<()> {
        peer.write_all(&[1])?;
        let first = self.submit(opcode::RecvMulti::new(slot, GROUP).build(), 1)?;
        if matches!(first[..], [(1, flags)] if cqueue::more(flags)) {
            self.found.push(Feature::MultishotRecv);
        }
        Ok(())
    }

    /// Answers once for the send and once when the buffer is free again; the
    /// second only with the MORE flag on the first.
    fn send_zc(&mut self, slot: Fixed) -> io::Result<()> {
        static BYTES: [u8; 1] = [1];
        for (feature, flags) in [(Feature::SendZc, 0), (Feature::SendZcReport, SEND_ZC_REPORT_USAGE)] {
            let send = opcode::SendZc::new(slot, BYTES.as_ptr(), 1).zc_flags(flags).build();
            let answers = self.submit(send, 1)?;
            let Some(&(1, flags)) = answers.first() else { continue };
            if cqueue::more(flags) && answers.len() < 2 {
                self.wait(1)?;
            }
            self.found.push(feature);
        }
        Ok(())
    }

    /// Cancels the accept and the receive, and so leaves nothing under way.
    fn cancel(&mut self) -> io::Result<()> {
        let all = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
        let mut ended = self.submit(all, 1)?;
        while ended.len() < 3 {
            let more = self.wait(1)?;
            if more.is_empty() {
                break;
            }
            ended.extend(more);
        }
        if ended.iter().filter(|(result, _)| *result == -libc::ECANCELED).count() == 2 {
            self.found.push(Feature::AsyncCancel);
        }
        Ok(())
    }

    /// Submits one entry and returns the completions that come of it, or none
    /// when the kernel stays silent.
    fn submit(&mut self, entry: squeue::Entry, want: usize) -> io::Result<Vec<(i32, u32)>> {
        // SAFETY: the only memory that an entry of this file names is a static
        // byte; receives go to the pool, which outlives its registration.
        unsafe { self.sq.push(&entry) }.expect("the queue is empty between submissions");
        self.sq.sync();
        self.wait(want)
    }

    fn wait(&mut self, want: usize) -> io::Result<Vec<(i32, u32)>> {
        let patience = Timespec::from(PATIENCE);
        let args = SubmitArgs::new().timespec(&patience);
        match self.submitter.submit_with_args(want, &args) {
            Ok(_) => {}
            Err(e) if e.raw_os_error() == Some(libc::ETIME) => {}
            Err(e) => return Err(e),
        }
        self.sq.sync();
        self.cq.sync();
        Ok((&mut self.cq).map(|cqe| (cqe.result(), cqe.flags())).collect())
    }
}
