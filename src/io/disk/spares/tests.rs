//! The order of steps, and what becomes of each that fails: driven by hand,
//! without a disk.

use std::os::fd::IntoRawFd;

use super::*;
use crate::io::disk::FileMode;

fn spares(ready: &[u64]) -> Spares {
    spares_of(Extent::EMPTY, ready)
}

/// Those of a shard that must have these segments.
fn spares_of(extent: Extent, ready: &[u64]) -> Spares {
    let dir = ShardDir {
        shard: ringbolt_wire::ShardId(0),
        path: "not looked at".into(),
        extent,
        segments: Vec::new(),
        spares: ready.to_vec(),
        unknown: Vec::new(),
    };
    Spares::new(&DiskConfig::new(3 << 20, FileMode::Direct), &dir)
}

fn extent(first: u64, next: u64) -> Extent {
    Extent::new(SegmentSeq(first), SegmentSeq(next)).unwrap()
}

const TAKE: [Step; 4] = [
    Step::Folder(FolderStep::Rename),
    Step::Folder(FolderStep::Sync),
    Step::Folder(FolderStep::Extent),
    Step::Folder(FolderStep::SyncExtent),
];

const RECYCLE: [Step; 4] = [
    Step::Folder(FolderStep::Extent),
    Step::Folder(FolderStep::SyncExtent),
    Step::Folder(FolderStep::Rename),
    Step::Folder(FolderStep::Sync),
];

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
        TAKE[0],
        TAKE[1],
        TAKE[2],
        TAKE[3],
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
    assert_eq!(run(&mut spares, None), TAKE);
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
    for flush in [1, 3] {
        let mut spares = spares_of(extent(0, 5), &[1, 2]);
        spares.recycle(SegmentSeq(0), None);
        assert_eq!(run(&mut spares, Some(flush)), RECYCLE[..=flush]);
        spares.prepare(SegmentSeq(5));
        assert_eq!(run(&mut spares, None), [], "though there are spare files");
        let (segment, result) = spares.next_prepared().unwrap();
        assert_eq!((segment, result.unwrap_err().operation), (SegmentSeq(5), "fsync of the shard's folder"));
    }
}

/// Completes steps until none is left; the `fails`-th finds the disk full.
fn run_full(spares: &mut Spares, fails: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some(step) = spares.next_step() {
        let result = match step {
            _ if fails == steps.len() => -libc::ENOSPC,
            Step::Folder(FolderStep::Open) => open_result(),
            _ => 0,
        };
        steps.push(step);
        spares.complete(step, result);
    }
    steps
}

const UNDO_RENAME: Step = Step::Folder(FolderStep::UndoRename);
const UNDO_EXTENT: Step = Step::Folder(FolderStep::UndoExtent);

#[test]
fn a_segment_for_whose_name_there_was_no_room_is_prepared_anew_when_there_is() {
    let open = Step::Folder(FolderStep::Open);
    for (flush, undo, again) in [(2, UNDO_RENAME, &TAKE[..]), (4, UNDO_EXTENT, &TAKE[2..])] {
        let mut spares = spares_of(extent(0, 5), &[1]);
        spares.prepare(SegmentSeq(5));
        let steps = [&[open][..], &TAKE[..flush], &[undo]].concat();
        assert_eq!(run_full(&mut spares, flush), steps, "the flush is not repeated");
        let (segment, result) = spares.next_prepared().unwrap();
        assert_eq!((segment, result.unwrap_err().errno), (SegmentSeq(5), libc::ENOSPC));
        assert_eq!(spares.extent, extent(0, 5), "nobody may rely on it");
        assert_eq!(run(&mut spares, None), [], "until it is asked for again");
        spares.prepare(SegmentSeq(5));
        assert_eq!(run(&mut spares, None), again);
        let (segment, result) = spares.next_prepared().unwrap();
        assert!(segment == SegmentSeq(5) && result.is_ok() && spares.next_prepared().is_none());
        assert_eq!(spares.extent, extent(0, 6));
    }
}

#[test]
fn a_segment_whose_recycling_found_no_room_is_recycled_when_there_is() {
    for (flush, undo, again) in [(1, UNDO_EXTENT, &RECYCLE[..]), (3, UNDO_RENAME, &RECYCLE[2..])] {
        let mut spares = spares_of(extent(0, 5), &[]);
        spares.recycle(SegmentSeq(0), None);
        assert_eq!(run_full(&mut spares, flush), [&RECYCLE[..=flush], &[undo]].concat());
        assert_eq!((run(&mut spares, None), spares.ready()), (vec![], 0), "not at once");
        spares.retry(|| u64::MAX);
        assert_eq!(run(&mut spares, None), again);
        assert_eq!((spares.ready(), spares.extent), (1, extent(1, 5)));
    }
}

#[test]
fn a_rename_that_cannot_be_taken_back_yet_holds_up_the_next_one() {
    let mut spares = spares_of(extent(0, 5), &[1]);
    spares.prepare(SegmentSeq(5));
    for (step, errno) in [(Step::Folder(FolderStep::Open), 0), (TAKE[0], 0), (TAKE[1], 28), (UNDO_RENAME, 28)]
    {
        assert_eq!(spares.next_step(), Some(step));
        let opened = step == Step::Folder(FolderStep::Open);
        spares.complete(step, if opened { open_result() } else { -errno });
    }
    assert!(spares.next_prepared().unwrap().1.is_err(), "producing is refused meanwhile");
    spares.prepare(SegmentSeq(5));
    spares.recycle(SegmentSeq(0), None);
    let folder = |steps: Vec<Step>| -> Vec<Step> {
        steps.into_iter().filter(|step| matches!(step, Step::Folder(_))).collect()
    };
    assert_eq!(folder(run(&mut spares, None)), []);
    spares.retry(clock::mono_us);
    assert_eq!(folder(run(&mut spares, None)), [], "not at once");
    spares.retry(|| u64::MAX);
    assert_eq!(folder(run(&mut spares, None)), [&[UNDO_RENAME], &TAKE[..], &RECYCLE].concat());
    assert!(spares.next_prepared().unwrap().1.is_ok() && spares.next_prepared().is_none());
}

/// Whatever it is that a crash leaves done, the extent claims no segment without
/// its file.
#[test]
fn a_segment_is_claimed_after_it_has_its_file_and_not_any_more_before_it_loses_it() {
    let mut spares = spares_of(extent(3, 7), &[1]);
    spares.prepare(SegmentSeq(7));
    for (step, after) in TAKE.into_iter().zip([extent(3, 7), extent(3, 7), extent(3, 8), extent(3, 8)]) {
        assert_eq!(
            spares.next_step(),
            Some(if step == TAKE[0] { Step::Folder(FolderStep::Open) } else { step })
        );
        if step == TAKE[0] {
            spares.complete(Step::Folder(FolderStep::Open), open_result());
            assert_eq!(spares.next_step(), Some(step));
        }
        spares.complete(step, 0);
        assert_eq!(spares.extent, after, "after {step:?}");
    }
    spares.recycle(SegmentSeq(3), None);
    for step in RECYCLE {
        assert_eq!(spares.next_step(), Some(step));
        spares.complete(step, 0);
        assert_eq!(spares.extent, extent(4, 8), "after {step:?}");
    }
}

#[test]
fn a_segment_that_was_about_to_be_recycled_at_a_crash_is_recycled() {
    let mut spares = spares_of(extent(3, 7), &[]);
    spares.recycle(SegmentSeq(2), None);
    assert_eq!(run(&mut spares, None), RECYCLE[2..], "it is not claimed");
    assert_eq!((spares.ready(), spares.extent), (1, extent(3, 7)));
}

#[test]
fn a_segment_that_could_not_be_claimed_is_claimed_when_it_is_asked_for_again() {
    let mut spares = spares(&[]);
    spares.prepare(SegmentSeq(0));
    let claim = whole_way().len() - 2;
    run(&mut spares, Some(claim));
    assert!(spares.next_prepared().unwrap().1.is_err());
    assert_eq!(run(&mut spares, None), [], "until then");
    spares.prepare(SegmentSeq(0));
    assert_eq!(run(&mut spares, None), TAKE[2..], "it has its file");
    assert!(spares.next_prepared().unwrap().1.is_ok());
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
    for fails in [0, 2] {
        let mut spares = spares_of(extent(0, 5), &[]);
        spares.recycle(SegmentSeq(0), None);
        spares.recycle(SegmentSeq(1), None);
        assert_eq!(run(&mut spares, Some(fails)), RECYCLE[..=fails], "the second does not start");
        spares.retry(clock::mono_us);
        assert_eq!(run(&mut spares, None), [], "not at once");
        spares.retry(|| u64::MAX);
        assert_eq!(spares.next_step(), Some(RECYCLE[fails]), "what was done is not done again");
        let oldest = spares.folder.as_ref().map(|folder| &folder.job);
        assert!(matches!(oldest, Some(Job::Recycle { segment: SegmentSeq(0), .. })), "{oldest:?}");
        spares.complete(RECYCLE[fails], 0);
        let rest = [&RECYCLE[fails + 1..], &RECYCLE].concat();
        assert_eq!(run(&mut spares, None), rest, "its rest, and then the second");
        assert_eq!((spares.ready(), spares.extent), (2, extent(2, 5)));
    }
}

/// On a full disk a segment gets the file that is just being recycled, and is
/// refused only if that comes to nothing.
#[test]
fn a_segment_waits_for_a_file_that_is_being_recycled_while_none_can_be_made() {
    for fails in [false, true] {
        let mut spares = spares_of(extent(0, 5), &[]);
        spares.keep_ahead();
        spares.recycle(SegmentSeq(0), None);
        spares.prepare(SegmentSeq(5));
        assert_eq!(spares.next_step(), Some(RECYCLE[0]));
        let open = Step::Make(MakeStep::Open);
        assert_eq!(spares.next_step(), Some(open), "another is wanted to be ready ahead");
        spares.complete(open, -libc::ENOSPC);
        assert!(spares.next_prepared().is_none(), "there is a file to come");
        spares.complete(RECYCLE[0], if fails { -libc::EIO } else { 0 });
        let mut steps = run(&mut spares, None);
        steps.retain(|step| matches!(step, Step::Folder(_)) && *step != Step::Folder(FolderStep::Open));
        let (segment, result) = spares.next_prepared().expect("it is answered");
        assert_eq!(
            (segment, result.map_err(|fault| fault.errno).err()),
            (SegmentSeq(5), fails.then_some(libc::ENOSPC))
        );
        assert_eq!(steps, if fails { vec![] } else { [&RECYCLE[1..], &TAKE].concat() });
    }
}

#[test]
fn a_segment_does_not_wait_for_a_file_that_cannot_be_recycled() {
    let mut spares = spares_of(extent(0, 7), &[]);
    spares.recycle(SegmentSeq(0), None);
    run(&mut spares, Some(0));
    spares.prepare(SegmentSeq(7));
    assert_eq!(run(&mut spares, None), whole_way());
    assert!(spares.next_prepared().unwrap().1.is_ok());
}
