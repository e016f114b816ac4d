//! No room for more records.

use super::*;

#[test]
fn a_full_disk_refuses_producing_keeps_reading_and_resumes_by_itself() {
    let mut rig = Rig::new();
    let value = vec![1; 900 << 10];
    rig.disk_full = true;
    let (mut sequence, mut refusals) = (0, 0);
    for _ in 0..40 {
        rig.produce(sequence, &value);
        match rig.replies.pop() {
            Some((_, Reply::Produced(_))) => sequence += 1,
            Some((_, Reply::Error(error))) => {
                assert_eq!(error.error_code(), Some(ErrorCode::DiskFull));
                assert!(error.is_retryable());
                refusals += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(sequence >= 4 && refusals > 10);
    rig.fetch(0, 0);
    assert!(rig.fetched().1 >= value.len());
    rig.disk_full = false;
    rig.wait(2_000_000);
    rig.produce(sequence, &value);
    assert_eq!(rig.acks().len(), 1);
}

#[test]
fn want_of_descriptors_is_no_damage_and_passes() {
    let mut rig = Rig::new();
    let value = vec![1; 100 << 10];
    for sequence in 0..3 {
        rig.produce(sequence, &value);
    }
    assert_eq!(rig.acks().len(), 3);
    for (errno, code) in
        [(24, ErrorCode::Overloaded), (12, ErrorCode::Overloaded), (5, ErrorCode::CorruptData)]
    {
        rig.read_fault = Some(errno);
        rig.fetch(0, 0);
        assert_eq!(rig.fetched().0, code as u16, "errno {errno}");
    }
    rig.read_fault = None;
    rig.fetch(0, 0);
    assert_eq!(rig.fetched().0, 0);
    assert!(ErrorCode::Overloaded.is_retryable());
}
