//! Files for segments to come: made, kept ready, given a segment's name, taken
//! back.
//!
//! A new file is allocated whole, so that it lies in one piece, and filled with
//! zeros, so that a later write finds its blocks written and has no metadata to
//! flush. It gets the name of a spare file only when all that is on disk.
//! Changes of names go one at a time, each flushed before the next: after a
//! crash a younger segment is never gone while an older one is still there, and
//! the extent, which is a name as well, claims no segment that is not there.
//!
//! A flush that finds no room is not repeated, as no failed flush is. The rename
//! before it is taken back, and when there is room both are done anew: that
//! writes the same blocks of the folder again, whatever the kernel has dropped.
//!
//! This is a state machine: [`Spares::next_step`] says what to submit, and
//! [`Spares::complete`] takes what came of it.

mod making;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::{DiskConfig, c_name, fault, owned};
use crate::io::clock;
use crate::io::datadir::{ShardDir, extent_name, segment_name, spare_name};
use crate::io::ring::{Ring, Token};
use crate::log::SegmentSeq;
use crate::log::extent::Extent;
use crate::shard::event::DiskFault;
pub(super) use making::MakeStep;
use making::{Made, Making, Pace};

/// Most credit that piles up while there is nothing to make.
const CREDIT_MAX: u64 = 4 << 20;

/// How long a change of names that has failed waits, in µs.
const RETRY_US: u64 = 1_000_000;

/// An operation for the spare files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Of the file that is being made.
    Make(MakeStep),
    /// Of the change of names in progress.
    Folder(FolderStep),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FolderStep {
    Open,
    Rename,
    Sync,
    /// Says which segments there must be, from now on.
    Extent,
    SyncExtent,
    /// Takes a rename back whose flush found no room.
    UndoRename,
    /// The same for what says which segments there must be.
    UndoExtent,
    Remove,
}

/// A file without records, of full length.
#[derive(Debug)]
struct Spare {
    number: u64,
    /// Open since it was made; files from an earlier start are not.
    fd: Option<OwnedFd>,
}

/// A change of names.
#[derive(Debug)]
enum Job {
    /// A spare file becomes a segment.
    Take { segment: SegmentSeq, spare: Spare },
    /// A segment becomes a spare file.
    Recycle { segment: SegmentSeq, spare: Spare },
    /// A spare file too many is removed.
    Remove { number: u64 },
}

#[derive(Debug)]
struct FolderJob {
    job: Job,
    step: FolderStep,
    in_flight: bool,
    /// The step has failed, and is tried again at this time (monotonic, µs).
    retry_at: Option<u64>,
    /// The extent when the job began.
    extent: Extent,
}

#[derive(Debug)]
pub(super) struct Spares {
    segment_len: u64,
    open_flags: i32,
    extent: Extent,
    ahead: usize,
    max: usize,
    /// Files to have ready, apart from those that segments wait for.
    target: usize,
    /// They are wanted at once.
    hurry: bool,
    ready: VecDeque<Spare>,
    next_number: u64,
    /// Segments that wait for a file, oldest first.
    wanted: VecDeque<SegmentSeq>,
    /// It has its file, and it could not be said that it must be there.
    named: Option<(SegmentSeq, Spare)>,
    recycled: VecDeque<(SegmentSeq, Option<OwnedFd>)>,
    /// The oldest of them could not be recycled: it is tried again at this time
    /// (monotonic, µs), and none younger before it.
    recycle_at: Option<u64>,
    folder: Option<FolderJob>,
    making: Option<Making>,
    /// Why the last file could not be made; nothing is tried until somebody
    /// asks again.
    failed: Option<DiskFault>,
    /// A flush of the folder failed for another reason than want of room: nobody
    /// knows which names are on disk.
    broken: Option<DiskFault>,
    prepared: VecDeque<(SegmentSeq, Result<OwnedFd, DiskFault>)>,
    zeroed_bytes: u64,
    /// Bytes of zeros that may be written while no segment waits for a file.
    credit: u64,
    /// The file system cannot write zeros by itself.
    no_write_zeroes: bool,
}

impl Spares {
    /// Those of a folder that was listed.
    pub(super) fn new(config: &DiskConfig, dir: &ShardDir) -> Self {
        Spares {
            segment_len: config.segment_len,
            open_flags: libc::O_RDWR | config.mode.flags(),
            extent: dir.extent,
            ahead: config.spares_ahead,
            max: config.spares_max.max(config.spares_ahead),
            target: 0,
            hurry: false,
            ready: dir.spares.iter().map(|&number| Spare { number, fd: None }).collect(),
            next_number: dir.next_spare(),
            wanted: VecDeque::new(),
            named: None,
            recycled: VecDeque::new(),
            recycle_at: None,
            folder: None,
            making: None,
            failed: None,
            broken: None,
            prepared: VecDeque::new(),
            zeroed_bytes: 0,
            credit: 0,
            no_write_zeroes: false,
        }
    }

    /// Keeps files ready ahead of need from now on.
    pub(super) fn keep_ahead(&mut self) {
        self.target = self.ahead;
        self.hurry = false;
    }

    /// Makes files until `count` are ready, and keeps room for as many.
    pub(super) fn want(&mut self, count: usize) {
        self.target = self.target.max(count);
        self.max = self.max.max(count);
        self.hurry = true;
        self.failed = None;
    }

    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    pub(super) fn take_fault(&mut self) -> Option<DiskFault> {
        self.broken.clone().or_else(|| self.failed.clone())
    }

    pub(super) fn zeroed_bytes(&self) -> u64 {
        self.zeroed_bytes
    }

    /// A segment needs a file.
    pub(super) fn prepare(&mut self, segment: SegmentSeq) {
        self.failed = None;
        self.wanted.push_back(segment);
    }

    /// A segment's file is free.
    pub(super) fn recycle(&mut self, segment: SegmentSeq, fd: Option<OwnedFd>) {
        self.recycled.push_back((segment, fd));
    }

    /// Lets what has failed be tried again when its time has come.
    pub(super) fn retry(&mut self, now_us: impl FnOnce() -> u64) {
        let undo_at = self.folder.as_ref().and_then(|folder| folder.retry_at);
        if self.recycle_at.is_none() && undo_at.is_none() {
            return;
        }
        let now_us = now_us();
        self.recycle_at = self.recycle_at.filter(|at| *at > now_us);
        if let Some(folder) = &mut self.folder {
            folder.retry_at = folder.retry_at.filter(|at| *at > now_us);
        }
    }

    /// A segment that has its file, or will not get one.
    pub(super) fn next_prepared(&mut self) -> Option<(SegmentSeq, Result<OwnedFd, DiskFault>)> {
        self.prepared.pop_front()
    }

    /// What is to be submitted now, if anything; it counts as submitted.
    pub(super) fn next_step(&mut self) -> Option<Step> {
        if let Some(broken) = &self.broken {
            let failed = self.wanted.drain(..).map(|segment| (segment, Err(broken.clone())));
            self.prepared.extend(failed);
            return None;
        }
        self.next_folder_step().map(Step::Folder).or_else(|| self.next_make_step().map(Step::Make))
    }

    fn next_folder_step(&mut self) -> Option<FolderStep> {
        if self.folder.is_none() {
            self.folder = self.next_job();
        }
        let folder = self.folder.as_mut()?;
        if folder.in_flight || folder.retry_at.is_some() {
            return None;
        }
        folder.in_flight = true;
        Some(folder.step)
    }

    fn next_job(&mut self) -> Option<FolderJob> {
        let (job, step) = if !self.wanted.is_empty()
            && let Some((segment, spare)) = self.named.take()
        {
            assert_eq!(
                self.wanted.pop_front(),
                Some(segment),
                "what could not be prepared is asked for again"
            );
            (Job::Take { segment, spare }, FolderStep::Extent)
        } else if !self.wanted.is_empty() && !self.ready.is_empty() {
            let segment = self.wanted.pop_front()?;
            let spare = self.ready.pop_front()?;
            let step = if spare.fd.is_some() { FolderStep::Rename } else { FolderStep::Open };
            (Job::Take { segment, spare }, step)
        } else if self.recycle_at.is_none()
            && let Some((segment, fd)) = self.recycled.pop_front()
        {
            let spare = Spare { number: self.new_number(), fd };
            let job = Job::Recycle { segment, spare };
            let is_claimed = self.extent_after(&job) != self.extent;
            (job, if is_claimed { FolderStep::Extent } else { FolderStep::Rename })
        } else if self.ready.len() > self.max {
            // Closed before it is removed, so that the removal, on a worker of
            // the kernel's, is what frees its blocks.
            let spare = self.ready.pop_back()?;
            (Job::Remove { number: spare.number }, FolderStep::Remove)
        } else {
            return None;
        };
        Some(FolderJob { job, step, in_flight: false, retry_at: None, extent: self.extent })
    }

    /// What there must be when the job is done.
    fn extent_after(&self, job: &Job) -> Extent {
        match job {
            Job::Take { segment, .. } => self.extent.with(*segment),
            Job::Recycle { segment, .. } => self.extent.without(*segment),
            Job::Remove { .. } => self.extent,
        }
    }

    fn new_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// Files that are being recycled, or will be next.
    fn coming_back(&self) -> usize {
        let recycling = self.folder.as_ref().is_some_and(|folder| {
            let is_undone = matches!(folder.step, FolderStep::UndoRename | FolderStep::UndoExtent);
            matches!(folder.job, Job::Recycle { .. }) && !is_undone
        });
        let recycled = if self.recycle_at.is_none() { self.recycled.len() } else { 0 };
        recycled + usize::from(recycling)
    }

    fn next_make_step(&mut self) -> Option<MakeStep> {
        if self.making.is_none() && self.failed.is_none() {
            let coming = self.ready.len() + self.coming_back();
            if coming < self.target + self.wanted.len() {
                let number = self.new_number();
                self.making = Some(Making::new(number, self.segment_len, self.no_write_zeroes));
            }
        }
        let urgent = self.hurry || !self.wanted.is_empty();
        let pace = if urgent { Pace::Urgent } else { Pace::Credit(self.credit) };
        let step = self.making.as_mut()?.next_step(pace);
        if let Some(MakeStep::Zero { len, .. }) = step {
            self.credit = self.credit.saturating_sub(len);
        }
        step
    }

    /// The shard has written: lets twice as many zeros be written, so that a
    /// file is ready when half a segment has filled, and the disk has nothing
    /// to do for it while nobody writes.
    pub(super) fn wrote(&mut self, len: usize) {
        self.credit = (self.credit + 2 * len as u64).min(CREDIT_MAX);
    }

    /// Submits a step.
    pub(super) fn push(&self, ring: &mut Ring, token: Token, step: Step, dir: RawFd) {
        match step {
            Step::Make(step) => {
                let making = self.making.as_ref().expect("a step belongs to a file");
                making.push(ring, token, step, dir, self.open_flags);
            }
            Step::Folder(step) => {
                let folder = self.folder.as_ref().expect("a step belongs to a job");
                self.push_folder(ring, token, step, folder, dir);
            }
        }
    }

    fn push_folder(&self, ring: &mut Ring, token: Token, step: FolderStep, folder: &FolderJob, dir: RawFd) {
        let (job, before) = (&folder.job, folder.extent);
        match (step, job) {
            (FolderStep::Sync | FolderStep::SyncExtent, _) => ring.fsync(token, dir, false),
            (FolderStep::Extent, job) => {
                let (from, to) = (extent_name(self.extent), extent_name(self.extent_after(job)));
                ring.rename_at(token, dir, c_name(from), c_name(to))
            }
            (FolderStep::UndoExtent, _) => {
                ring.rename_at(token, dir, c_name(extent_name(self.extent)), c_name(extent_name(before)))
            }
            (FolderStep::Open, Job::Take { spare, .. }) => {
                ring.open_at(token, dir, c_name(spare_name(spare.number)), self.open_flags)
            }
            (FolderStep::Rename, Job::Take { segment, spare })
            | (FolderStep::UndoRename, Job::Recycle { segment, spare }) => {
                let (from, to) = (spare_name(spare.number), segment_name(*segment));
                ring.rename_at(token, dir, c_name(from), c_name(to))
            }
            (FolderStep::Rename, Job::Recycle { segment, spare })
            | (FolderStep::UndoRename, Job::Take { segment, spare }) => {
                let (from, to) = (segment_name(*segment), spare_name(spare.number));
                ring.rename_at(token, dir, c_name(from), c_name(to))
            }
            (FolderStep::Remove, Job::Remove { number }) => {
                ring.unlink_at(token, dir, c_name(spare_name(*number)))
            }
            (step, job) => unreachable!("{step:?} is no step of {job:?}"),
        };
    }

    /// Takes the result of a step.
    pub(super) fn complete(&mut self, step: Step, result: i32) {
        match step {
            Step::Make(step) => self.complete_make(step, result),
            Step::Folder(step) => self.complete_folder(step, result),
        }
    }

    fn complete_make(&mut self, step: MakeStep, result: i32) {
        let making = self.making.as_mut().expect("a step belongs to a file");
        let Some(made) = making.complete(step, result) else { return };
        let making = self.making.take().expect("it is there");
        self.zeroed_bytes += making.zeroed_bytes();
        self.no_write_zeroes |= making.wrote_zeros();
        match made {
            Made::Ready { number, fd } => self.ready.push_back(Spare { number, fd: Some(fd) }),
            Made::Failed(fault) => {
                tracing::warn!(%fault, "no file could be made for a segment to come");
                self.failed = Some(fault);
                self.refuse_wanted(self.coming_back());
            }
        }
    }

    /// After a file could not be made: segments will get none, but for the
    /// oldest `served`.
    fn refuse_wanted(&mut self, served: usize) {
        let Some(fault) = &self.failed else { return };
        let refused = self.wanted.drain(served.min(self.wanted.len())..);
        self.prepared.extend(refused.map(|segment| (segment, Err(fault.clone()))));
    }

    fn complete_folder(&mut self, step: FolderStep, result: i32) {
        let mut folder = self.folder.take().expect("a step belongs to a job");
        folder.in_flight = false;
        if result < 0 {
            return self.folder_failed(step, folder, -result);
        }
        let next = match step {
            FolderStep::Open => FolderStep::Rename,
            FolderStep::Rename => FolderStep::Sync,
            FolderStep::Extent => {
                self.extent = self.extent_after(&folder.job);
                FolderStep::SyncExtent
            }
            FolderStep::Sync if matches!(folder.job, Job::Take { .. }) => FolderStep::Extent,
            FolderStep::SyncExtent if matches!(folder.job, Job::Recycle { .. }) => FolderStep::Rename,
            FolderStep::UndoRename | FolderStep::UndoExtent => {
                self.extent = match step {
                    FolderStep::UndoExtent => folder.extent,
                    _ => self.extent,
                };
                return self.put_back(step, folder.job);
            }
            FolderStep::Sync | FolderStep::SyncExtent | FolderStep::Remove => {
                return self.folder_done(folder.job);
            }
        };
        if let (FolderStep::Open, Job::Take { spare, .. }) = (step, &mut folder.job) {
            spare.fd = Some(owned(result));
        }
        self.folder = Some(FolderJob { step: next, ..folder });
    }

    fn folder_done(&mut self, job: Job) {
        match job {
            Job::Take { segment, spare } => {
                let fd = spare.fd.expect("opened before it was renamed");
                self.prepared.push_back((segment, Ok(fd)));
            }
            Job::Recycle { spare, .. } => {
                self.ready.push_back(spare);
                // There is room again.
                self.failed = None;
            }
            Job::Remove { .. } => self.failed = None,
        }
    }

    fn folder_failed(&mut self, step: FolderStep, folder: FolderJob, errno: i32) {
        let fault = fault(
            match step {
                FolderStep::Open => "open a spare file",
                FolderStep::Rename => "rename",
                FolderStep::Sync | FolderStep::SyncExtent => "fsync of the shard's folder",
                FolderStep::Extent => "rename the file that says which segments there must be",
                FolderStep::UndoRename | FolderStep::UndoExtent => "take a rename back",
                FolderStep::Remove => "remove a spare file",
            },
            errno,
        );
        self.report(&folder.job, step, &fault);
        match (step, fault.may_pass()) {
            // Flushed once more it might pass for durable, though the kernel has
            // dropped what it could not write. So the change is taken back, and
            // made anew when there is room.
            (FolderStep::Sync, true) => {
                self.folder = Some(FolderJob { step: FolderStep::UndoRename, ..folder });
            }
            (FolderStep::SyncExtent, true) => {
                self.folder = Some(FolderJob { step: FolderStep::UndoExtent, ..folder });
            }
            (FolderStep::UndoRename | FolderStep::UndoExtent, true) => {
                let retry_at = Some(clock::mono_us() + RETRY_US);
                self.folder = Some(FolderJob { retry_at, ..folder });
            }
            (
                FolderStep::Sync | FolderStep::SyncExtent | FolderStep::UndoRename | FolderStep::UndoExtent,
                false,
            ) => self.broken = Some(fault),
            // A file that is not what it must be stays out of use.
            (FolderStep::Open | FolderStep::Rename, false) if matches!(folder.job, Job::Take { .. }) => {}
            _ => self.put_back(step, folder.job),
        }
    }

    /// Says that a job has failed, unless that was said when it had to be undone.
    fn report(&mut self, job: &Job, step: FolderStep, fault: &DiskFault) {
        match job {
            _ if matches!(step, FolderStep::UndoRename | FolderStep::UndoExtent) => {
                tracing::warn!(%fault, "a change of names could not be taken back yet; trying again");
            }
            Job::Take { segment, .. } => self.prepared.push_back((*segment, Err(fault.clone()))),
            Job::Recycle { segment, .. } => {
                tracing::error!(%segment, %fault, "a segment that is no longer retained could not be recycled; trying again");
                self.refuse_wanted(0);
            }
            Job::Remove { number } => {
                tracing::warn!(number, %fault, "a spare file too many could not be removed");
            }
        }
    }

    /// A job that failed at `step` has changed nothing, but for what an earlier
    /// step has made durable: its file goes back to where it will be looked for.
    fn put_back(&mut self, step: FolderStep, job: Job) {
        match job {
            Job::Take { segment, spare } => match step {
                FolderStep::Extent | FolderStep::UndoExtent => self.named = Some((segment, spare)),
                _ => self.ready.push_front(spare),
            },
            Job::Recycle { segment, spare } => {
                // First in line: without it the younger ones must stay.
                self.recycled.push_front((segment, spare.fd));
                self.recycle_at = Some(clock::mono_us() + RETRY_US);
                self.refuse_wanted(0);
            }
            Job::Remove { .. } => {}
        }
    }
}

fn raw(fd: &Option<OwnedFd>) -> RawFd {
    fd.as_ref().expect("open by now").as_raw_fd()
}
