//! A client that creates groups in every shape, sets them back, deletes them, and asks
//! how far they are. It is the only one that does.

use ringbolt::shard::action::Reply;
use ringbolt_wire::Offset;
use ringbolt_wire::message::{Backoff, CreateGroup, GroupConfig, GroupInfo, GroupMode, GroupStart};

use super::workload::{Body, Client, Cx, GroupBody};

#[derive(Debug)]
pub struct GroupAdmin {
    session: u64,
    asked: Option<u64>,
    names: u64,
}

impl GroupAdmin {
    pub fn new(cx: &mut Cx<'_>) -> GroupAdmin {
        GroupAdmin { session: cx.new_session(), asked: None, names: 0 }
    }

    fn choose(&mut self, cx: &mut Cx<'_>) -> Option<(usize, GroupBody)> {
        let own: Vec<GroupInfo> =
            cx.groups.iter().filter(|group| !group.name.ends_with(".dlq")).cloned().collect();
        if own.len() < cx.habits.groups && !cx.topics.is_empty() {
            self.names += 1;
            let topic = cx.rng.pick(cx.topics).name;
            let name = format!("group-{:06}", self.names);
            let (start, config) = (some_start(cx), some_config(cx));
            let dead_letter_topic = cx.rng.percent(20).then(|| "failed.dlq".to_owned());
            let create = CreateGroup { name, topic, start, or_find: false, config, dead_letter_topic };
            return Some((0, GroupBody::Create(create)));
        }
        let shard = cx.rng.below(u64::from(cx.shards)) as usize;
        if own.is_empty() {
            return None;
        }
        let any = cx.rng.pick(cx.groups);
        let one = cx.rng.pick(&own);
        Some(match cx.rng.below(40) {
            0 if cx.habits.churn => (0, GroupBody::Delete(one.name)),
            0..3 => (0, GroupBody::List { settle: false }),
            3..6 => (0, GroupBody::LookUp(any.name)),
            6..12 if !cx.topics.is_empty() => {
                (0, GroupBody::LookUp(format!("{}.dlq", cx.rng.pick(cx.topics).name)))
            }
            12 => (0, GroupBody::Delete("there-is-no-such-group".into())),
            13..16 => {
                let to = some_start(cx);
                let partition = cx.rng.percent(50).then(|| cx.rng.below(4) as u32);
                (shard, GroupBody::Reset { group: any.id, to, partition })
            }
            _ => (shard, GroupBody::States(any.id)),
        })
    }
}

fn some_start(cx: &mut Cx<'_>) -> GroupStart {
    match cx.rng.below(10) {
        0..6 => GroupStart::Earliest,
        6 => GroupStart::End,
        7 => GroupStart::Time(cx.now.wall_us.saturating_sub(cx.rng.below(1_000_000))),
        _ => GroupStart::Offset(Offset(cx.rng.below(60))),
    }
}

fn some_config(cx: &mut Cx<'_>) -> GroupConfig {
    let backoff = match cx.rng.below(3) {
        0 => Backoff::None,
        1 => Backoff::Fixed(cx.rng.between(1, 40) as u32),
        _ => Backoff::Exponential { first_ms: cx.rng.between(1, 5) as u32, max_ms: 60 },
    };
    GroupConfig {
        mode: cx.rng.pick(&[GroupMode::Shared, GroupMode::KeyOrdered, GroupMode::Exclusive]),
        lease_ms: cx.rng.pick(&[3, 20, 100, 1_000]),
        max_failures: cx.rng.below(5) as u32,
        timeout_is_failure: cx.rng.percent(60),
        dead_letter_expired: cx.rng.percent(30),
        backoff,
        max_open: cx.rng.pick(&[1, 3, 20, 1_000]),
    }
}

impl Client for GroupAdmin {
    fn wake(&mut self, cx: &mut Cx<'_>) {
        if !cx.active || self.asked.is_some() {
            return;
        }
        match self.choose(cx) {
            Some((shard, body)) => self.asked = Some(cx.send(self.session, shard, Body::Group(body))),
            None => cx.wake_in(2_000),
        }
    }

    fn hear(&mut self, correlation: u64, _: Reply, cx: &mut Cx<'_>) {
        assert_eq!(self.asked.take(), Some(correlation));
        let pause = cx.rng.between(1, 1_000 + 10 * cx.habits.think_us);
        cx.wake_in(pause);
    }

    fn lose(&mut self, cx: &mut Cx<'_>) {
        self.session = cx.new_session();
        self.asked = None;
        cx.think();
    }

    fn session(&self) -> u64 {
        self.session
    }

    fn is_done(&self) -> bool {
        self.asked.is_none()
    }
}
