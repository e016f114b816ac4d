//! Topics: what is said of them is durable.

use super::*;

fn create(rig: &mut Rig, name: &str) -> u64 {
    rig.request(ShardRequest::CreateTopic { name: name.to_owned(), partitions: 1 })
}

fn codes(rig: &mut Rig) -> Vec<(u64, Option<ErrorCode>)> {
    let code = |reply| match reply {
        Reply::Error(error) => error.error_code(),
        _ => None,
    };
    std::mem::take(&mut rig.replies).into_iter().map(|(to, reply)| (to, code(reply))).collect()
}

#[test]
fn that_a_topic_exists_is_not_said_before_it_is_durable() {
    let mut rig = Rig::new();
    rig.auto = false;
    let (first, second) = (create(&mut rig, "new"), create(&mut rig, "new"));
    assert_eq!(codes(&mut rig), [], "a crash would undo it");
    rig.complete(0, Ok(()));
    assert_eq!(codes(&mut rig), [(first, None), (second, Some(ErrorCode::TopicExists))]);
    let third = create(&mut rig, "new");
    assert_eq!(codes(&mut rig), [(third, Some(ErrorCode::TopicExists))], "nothing is to be waited for");
}

#[test]
fn that_a_topic_is_gone_is_not_said_before_it_is_durable() {
    let mut rig = Rig::new();
    rig.auto = false;
    let delete = |rig: &mut Rig| rig.request(ShardRequest::DeleteTopic { name: "t".to_owned() });
    let (first, second) = (delete(&mut rig), delete(&mut rig));
    let looked_up = rig.request(ShardRequest::LookUpTopic { name: "t".to_owned() });
    assert_eq!(codes(&mut rig), [], "a crash would undo it");
    rig.complete(0, Ok(()));
    let unknown = Some(ErrorCode::UnknownTopic);
    assert_eq!(codes(&mut rig), [(first, None), (second, unknown), (looked_up, unknown)]);
}
