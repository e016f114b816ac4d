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

/// A crash would bring it back.
#[test]
fn a_list_does_not_leave_out_a_topic_before_its_deletion_is_durable() {
    let mut rig = Rig::new();
    rig.auto = false;
    rig.request(ShardRequest::DeleteTopic { name: "t".to_owned() });
    let listed = rig.request(ShardRequest::ListTopics);
    assert_eq!(codes(&mut rig), []);
    rig.complete(0, Ok(()));
    assert_eq!(codes(&mut rig)[1..], [(listed, None)]);
    let listed = rig.request(ShardRequest::ListTopics);
    assert_eq!(codes(&mut rig), [(listed, None)], "nothing is to be waited for");
}

/// Two clients on two cores create and delete the same topic at once: shard 0
/// puts them in order, and each is answered when every shard has followed.
#[test]
fn changes_to_one_topic_are_answered_in_order_when_each_other_shard_has_applied_them() {
    let three = ShardConfig { shards: 3, ..config() };
    let mut rig = Rig::start_with(three, Disk::default(), 1).expect("an empty log");
    let delete = |rig: &mut Rig| rig.request(ShardRequest::DeleteTopic { name: "new".to_owned() });
    let (first, second) = (create(&mut rig, "new"), create(&mut rig, "new"));
    let (third, fourth) = (delete(&mut rig), delete(&mut rig));
    let fifth = create(&mut rig, "new");
    let versions: Vec<_> = rig.published.iter().map(|update| update.version).collect();
    assert_eq!(versions, [1, 2, 3], "one creation, one deletion, one creation");
    let applied = |rig: &mut Rig, shard, version| {
        rig.shard.handle(Event::CatalogApplied { shard: ShardId(shard), version }, rig.now);
        rig.run();
        codes(rig)
    };
    assert_eq!(applied(&mut rig, 1, 1), []);
    assert_eq!(applied(&mut rig, 1, 1), [], "one shard does not stand in for another");
    assert_eq!(applied(&mut rig, 1, 2), []);
    assert_eq!(applied(&mut rig, 2, 2), [], "the change before it is not applied everywhere");
    let exists = Some(ErrorCode::TopicExists);
    let gone = Some(ErrorCode::UnknownTopic);
    let all = [(first, None), (second, exists), (third, None), (fourth, gone)];
    assert_eq!(applied(&mut rig, 2, 1), all);
    assert_eq!(applied(&mut rig, 2, 3), []);
    assert_eq!(applied(&mut rig, 1, 3), [(fifth, None)]);
}
