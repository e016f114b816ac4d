//! Nobody's work takes all of a turn from the others, and nobody is forgotten for it.

use super::*;
use crate::consumer::GroupKey;
use crate::consumer::groups::Groups;

impl Rig {
    /// A turn as the reactor has it: the shard is asked until it has nothing to say, and asked
    /// once more.
    fn turn(&mut self) {
        self.now.mono_us += 1;
        self.run();
        self.run();
    }

    fn groups(&self) -> &Groups {
        &self.shard.groups
    }

    /// A topic of two partitions, and an exclusive group of it.
    fn exclusive_of_two(&mut self) -> (TopicId, GroupId) {
        self.request(ShardRequest::CreateTopic { name: "two".to_owned(), partitions: 2 });
        let Some((_, Reply::TopicCreated(topic))) = self.replies.pop() else { panic!("no topic") };
        self.request(ShardRequest::CreateGroup(CreateGroup {
            name: "pair".to_owned(),
            topic: "two".to_owned(),
            start: GroupStart::Earliest,
            or_find: false,
            config: calm(GroupMode::Exclusive),
            dead_letter_topic: None,
        }));
        let Some((_, Reply::Group(group))) = self.replies.pop() else { panic!("no group") };
        (topic.id, group.id)
    }
}

/// It took each turn for itself, as the other one was the first to be sent back to the end of
/// the line.
#[test]
fn a_group_with_work_for_every_turn_leaves_turns_to_others() {
    let mut rig = Rig::with(ShardConfig { tail_cache_bytes: 8 << 20, ..config() });
    let (busy, other) =
        (rig.calm_group(GroupMode::Shared), rig.group("h", calm(GroupMode::Shared), GroupStart::End).id);
    rig.append(&(0..250).map(plain).collect::<Vec<_>>());
    (0..250).for_each(|_| rig.values(b"x"));
    for who in 1..=400 {
        rig.hand_in(ShardRequest::Attach(Attach {
            at: at(busy, ConsumerId(who)),
            credit: Credit { records: 1, bytes: 1 << 20 },
            lease_ms: 0,
            held: Vec::new(),
        }));
    }
    let credit = Credit { records: 10, bytes: 1 << 20 };
    let bob = rig.hand_in(ShardRequest::Attach(Attach {
        at: at(other, BOB),
        credit,
        lease_ms: 0,
        held: Vec::new(),
    }));
    rig.turn();
    assert!(rig.replies.len() < 100, "{} deliveries in one turn", rig.replies.len());
    rig.turn();
    assert_eq!(rig.offsets_got(bob).len(), 10);
    (0..8).for_each(|_| rig.turn());
    assert_eq!(rig.replies.len(), 400, "and nobody is forgotten");
}

/// All of a topic whose time was over was looked at in one go.
#[test]
fn records_that_are_passed_over_take_their_turns() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let gone = Directions { expire_at_us: Some(rig.now.wall_us + 1), ..Directions::default() };
    for _ in 0..40 {
        rig.append(&(0..250).map(|value| directed(value, gone)).collect::<Vec<_>>());
    }
    rig.values(b"a");
    rig.wait(10);
    let credit = Credit { records: 10, bytes: 1 << 20 };
    let attach = Attach { at: at(id, ALICE), credit, lease_ms: 0, held: Vec::new() };
    let alice = rig.hand_in(ShardRequest::Attach(attach));
    rig.turn();
    let part = rig.groups().part_of(GroupKey { group: id, partition: 0 }).unwrap();
    let next = rig.groups().parts[part as usize].next;
    assert!((1..5_000).contains(&next), "{next} records were looked at");
    assert!(rig.shard.has_actions(), "there is more to do");
    (0..4).for_each(|_| rig.turn());
    assert_eq!(rig.offsets_got(alice), [10_000]);
    assert_eq!(rig.state(id).progress.expired_total, 10_000);
}

#[test]
fn settle_requests_wait_for_the_next_turn_when_they_spoke_of_many_records() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let items = vec![SettleItem { range: range(0, 8_192, 1), verb: Verb::Ack }];
    let settle = Settle { at: at(id, ALICE), credit: Credit::default(), confirm: false, items };
    rig.hand_in(ShardRequest::Settle(settle.clone()));
    assert!(rig.shard.accepts_produce());
    rig.hand_in(ShardRequest::Settle(settle));
    assert!(!rig.shard.accepts_produce());
    rig.turn();
    assert!(rig.shard.accepts_produce());
}

/// It waits for no room, so nobody need keep it: a crowd of them was more than a core could.
#[test]
fn a_reset_is_never_kept_for_later() {
    let to = GroupStart::Earliest;
    let reset: ShardRequest<'_, Vector> = ShardRequest::ResetGroup { group: GroupId(1), to, partition: None };
    assert!(!reset.appends());
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"a");
    let alice = rig.attach(id, ALICE, 10);
    let got = rig.got(alice);
    rig.ack(id, ALICE, &got[0]);
    // As many commits wait as may.
    rig.auto = false;
    while rig.shard.accepts_produce() {
        rig.hand_in(ShardRequest::Produce {
            payload: Payload::Borrowed(&batch_of(&vec![7; 400 << 10])),
            min_copies: 0,
        });
    }
    let reset = rig.request(ShardRequest::ResetGroup { group: id, to, partition: None });
    rig.auto = true;
    while !rig.pending.is_empty() {
        rig.complete(0, Ok(()));
    }
    rig.run();
    assert!(rig.replies.iter().any(|(to, reply)| *to == reset && matches!(reply, Reply::GroupReset)));
    assert!(rig.offsets_got(alice).contains(&0), "it is delivered again");
}

fn batch_of(value: &[u8]) -> Vec<u8> {
    let mut batch = BatchBuilder::new();
    batch.push(0, None, value, &[]);
    batch.finish(PARTITION, ProducerId::NONE, Epoch(0), Sequence(0))
}

/// What is asked between the turns was found by chance, when something else happened.
#[test]
fn a_shard_says_that_it_has_something_to_say() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Exclusive);
    rig.values(b"a");
    let alice = rig.receive(id, ALICE, 10, 1_000);
    assert_eq!(rig.offsets_got(alice), [0]);
    let alice = rig.receive(id, ALICE, 10, 1_000);
    assert!(!rig.shard.has_actions());
    let from = ReplyTo { core: 0, session: 1, correlation: alice };
    rig.shard.handle(Event::FetchNow { from }, rig.now);
    assert!(rig.shard.has_actions());
    rig.run();
    assert_eq!(rig.offsets_got(alice), NONE);
    assert!(!rig.shard.has_actions());
}

/// It was whoever's that had asked for something when it was empty.
#[test]
fn a_partition_of_which_nobody_has_anything_is_for_who_asks() {
    let mut rig = Rig::new();
    let (topic, id) = rig.exclusive_of_two();
    let produce = |rig: &mut Rig, partition: u32| {
        let mut batch = BatchBuilder::new();
        batch.push(0, None, b"x", &[]);
        let batch = batch.finish(PartitionId::new(topic, partition), ProducerId::NONE, Epoch(0), Sequence(0));
        let request =
            rig.request(ShardRequest::Produce { payload: Payload::Borrowed(&batch), min_copies: 0 });
        rig.replies.retain(|(to, _)| *to != request);
    };
    let alice = rig.receive(id, ALICE, 1, 60_000);
    produce(&mut rig, 1);
    assert_eq!(rig.got(alice).iter().map(|got| got.partition).collect::<Vec<_>>(), [1]);
    let bob = rig.receive(id, BOB, 10, 60_000);
    produce(&mut rig, 1);
    assert_eq!(rig.got(bob), [], "that one is hers as long as she has a record of it");
    produce(&mut rig, 0);
    assert_eq!(rig.got(bob).iter().map(|got| got.partition).collect::<Vec<_>>(), [0]);
}
