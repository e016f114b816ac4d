//! The order of steps, and what becomes of each that fails: driven by hand,
//! without a disk.

use std::os::fd::IntoRawFd;

use super::*;
use crate::io::disk::FileMode;

fn spares(ready: &[u64]) -> Spares {
    let next_number = ready.last().map_or(0, |last| last + 1);
    Spares::new(&DiskConfig::new(3 << 20, FileMode::Direct), ready, next_number)
}

/// A descriptor for the state machine to own.
fn open_result() -> i32 {
    std::fs::File::open("/dev/null").unwrap().into_raw_fd()
}

/// Completes one step after the other; the `fails`-th with EIO. Returns all
/// steps.
fn run(spares: &mut Spares, fails: Option<usize>) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some(step) = spares.next_step() {
        let result = match step {
            _ if fails == Some(steps.len()) => -libc::EIO,
            Step::Make(MakeStep::Open) | Step::Folder(FolderStep::Open) => open_result(),
            Step::Make(MakeStep::WriteZeroes) => -libc::EOPNOTSUPP,
            Step::Make(MakeStep::Zero { len, .. }) => len as i32,
            _ => 0,
        };
        steps.push(step);
        spares.complete(step, result);
    }
    steps
}

fn zero(mib: u64) -> Step {
    Step::Make(MakeStep::Zero { position: mib << 20, len: 1 << 20 })
}

fn whole_way() -> Vec<Step> {
    vec![
        Step::Make(MakeStep::Open),
        Step::Make(MakeStep::WriteZeroes),
        Step::Make(MakeStep::Allocate),
        zero(0),
        zero(1),
        zero(2),
        Step::Make(MakeStep::Sync),
        Step::Make(MakeStep::Name),
        Step::Folder(FolderStep::Rename),
        Step::Folder(FolderStep::Sync),
    ]
}

#[test]
fn a_segment_is_prepared_when_file_and_folder_are_flushed_and_not_before() {
    let mut spares = spares(&[]);
    spares.prepare(SegmentSeq(4));
    let mut steps = Vec::new();
    while let Some(step) = spares.next_step() {
        assert!(spares.next_prepared().is_none(), "before {step:?} has ended");
        steps.push(step);
        let result = match step {
            Step::Make(MakeStep::Open) => open_result(),
            Step::Make(MakeStep::WriteZeroes) => -libc::EOPNOTSUPP,
            Step::Make(MakeStep::Zero { len, .. }) => len as i32,
            _ => 0,
        };
        spares.complete(step, result);
    }
    assert_eq!(steps, whole_way());
    let (segment, result) = spares.next_prepared().unwrap();
    assert_eq!(segment, SegmentSeq(4));
    assert!(result.is_ok());
}

#[test]
fn a_device_that_writes_zeros_by_itself_is_not_sent_any() {
    let mut spares = spares(&[]);
    spares.prepare(SegmentSeq(0));
    for wanted in [MakeStep::Open, MakeStep::WriteZeroes, MakeStep::Sync, MakeStep::Name] {
        assert_eq!(spares.next_step(), Some(Step::Make(wanted)));
        let result = if wanted == MakeStep::Open { open_result() } else { 0 };
        spares.complete(Step::Make(wanted), result);
    }
    assert_eq!(run(&mut spares, None), [FolderStep::Rename, FolderStep::Sync].map(Step::Folder));
    assert_eq!(spares.zeroed_bytes(), 0);
}

#[test]
fn each_step_that_fails_is_reported_and_leaves_no_half_made_file() {
    for fails in (0..whole_way().len()).filter(|&n| n != 1) {
        let mut spares = spares(&[]);
        spares.prepare(SegmentSeq(0));
        let steps = run(&mut spares, Some(fails));
        let (_, result) = spares.next_prepared().unwrap_or_else(|| panic!("step {fails} is answered"));
        let fault = result.unwrap_err();
        assert_eq!(fault.errno, libc::EIO, "{fault}");
        let removed = steps.contains(&Step::Make(MakeStep::Remove));
        assert_eq!(removed, (2..8).contains(&fails), "{fails}: {steps:?}");
        assert!(spares.next_prepared().is_none());
    }
}

#[test]
fn after_a_failed_flush_of_the_folder_nothing_is_prepared_any_more() {
    let mut spares = spares(&[1, 2]);
    spares.recycle(SegmentSeq(0), None);
    assert_eq!(run(&mut spares, Some(1)).last(), Some(&Step::Folder(FolderStep::Sync)));
    spares.prepare(SegmentSeq(5));
    assert_eq!(run(&mut spares, None), [], "though there are spare files");
    let (segment, result) = spares.next_prepared().unwrap();
    assert_eq!((segment, result.unwrap_err().operation), (SegmentSeq(5), "fsync of the shard's folder"));
}

#[test]
fn a_short_write_of_zeros_is_completed_where_it_stopped() {
    let mut spares = spares(&[]);
    spares.want(1);
    up_to_zeros(&mut spares);
    assert_eq!(spares.next_step(), Some(zero(0)));
    spares.complete(zero(0), 4096);
    let steps = run(&mut spares, None);
    let rest = Step::Make(MakeStep::Zero { position: 4096, len: (1 << 20) - 4096 });
    assert!(steps.contains(&rest), "{steps:?}");
    assert_eq!((spares.ready(), spares.zeroed_bytes()), (1, 3 << 20));
}

/// Opens and allocates the file; zeros are next.
fn up_to_zeros(spares: &mut Spares) {
    for step in &whole_way()[..3] {
        assert_eq!(spares.next_step(), Some(*step));
        let result = match step {
            Step::Make(MakeStep::Open) => open_result(),
            Step::Make(MakeStep::WriteZeroes) => -libc::EOPNOTSUPP,
            _ => 0,
        };
        spares.complete(*step, result);
    }
}

#[test]
fn zeros_are_written_at_once_while_a_segment_waits() {
    let mut spares = spares(&[]);
    spares.prepare(SegmentSeq(0));
    up_to_zeros(&mut spares);
    let submitted: Vec<_> = std::iter::from_fn(|| spares.next_step()).collect();
    assert_eq!(submitted, (0..3).map(zero).collect::<Vec<_>>());
}

#[test]
fn ahead_of_need_zeros_are_written_as_the_log_grows() {
    let mut spares = spares(&[]);
    spares.keep_ahead();
    up_to_zeros(&mut spares);
    assert_eq!(spares.next_step(), None, "nobody writes");
    let (mut written, mut zeroed) = (0u64, 0);
    while spares.ready() == 0 {
        spares.wrote(4096);
        written += 4096;
        while let Some(step) = spares.next_step() {
            let result = match step {
                Step::Make(MakeStep::Zero { len, .. }) => {
                    assert!(len >= 128 << 10 && len.is_multiple_of(4096), "{len}");
                    assert_eq!(spares.next_step(), None, "one at a time");
                    zeroed += len;
                    len as i32
                }
                _ => 0,
            };
            spares.complete(step, result);
        }
        assert!(zeroed <= 2 * written, "{zeroed} of zeros for {written}");
    }
    assert_eq!((zeroed, written), (3 << 20, 3 << 19), "ready when half a segment has filled");
}

#[test]
fn a_file_that_fails_is_not_tried_again_until_somebody_asks() {
    let mut spares = spares(&[]);
    spares.keep_ahead();
    run(&mut spares, Some(2));
    assert_eq!(run(&mut spares, None), []);
    spares.prepare(SegmentSeq(0));
    assert!(run(&mut spares, None).len() > 5);
    assert!(spares.next_prepared().unwrap().1.is_ok());
}

#[test]
fn a_younger_segment_is_not_recycled_before_an_older_one_whose_rename_failed() {
    let mut spares = spares(&[]);
    spares.recycle(SegmentSeq(0), None);
    spares.recycle(SegmentSeq(1), None);
    let rename = Step::Folder(FolderStep::Rename);
    assert_eq!(run(&mut spares, Some(0)), [rename], "the first fails, the second does not start");
    spares.retry_recycling(clock::mono_us);
    assert_eq!(run(&mut spares, None), [], "not at once");
    spares.retry_recycling(|| u64::MAX);
    assert_eq!(spares.next_step(), Some(rename));
    let oldest = spares.folder.as_ref().map(|folder| &folder.job);
    assert!(matches!(oldest, Some(Job::Recycle { segment: SegmentSeq(0), .. })), "{oldest:?}");
    spares.complete(rename, 0);
    assert_eq!(run(&mut spares, None).len(), 3, "its flush, and then the second");
    assert_eq!(spares.ready(), 2);
}

#[test]
fn a_segment_does_not_wait_for_a_file_that_cannot_be_recycled() {
    let mut spares = spares(&[]);
    spares.recycle(SegmentSeq(0), None);
    run(&mut spares, Some(0));
    spares.prepare(SegmentSeq(7));
    assert_eq!(run(&mut spares, None), whole_way());
    assert!(spares.next_prepared().unwrap().1.is_ok());
}
