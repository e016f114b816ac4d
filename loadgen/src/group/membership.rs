//! Before consumers attach: the group, and which shards have something for it.

use std::collections::BTreeMap;

use ringbolt_wire::message::{CreateGroup, GroupConfig, GroupInfo, GroupStart};
use ringbolt_wire::{PartitionId, ShardId, TopicId};

use crate::admin::{Admin, AdminError};

/// The group that is wanted.
#[derive(Clone, Debug)]
pub struct GroupPlan {
    /// Its name.
    pub name: String,
    /// The topic.
    pub topic: String,
    /// Where it begins if it is made for this run.
    pub start: GroupStart,
    /// What it does, if it is.
    pub config: GroupConfig,
}

/// A shard that has partitions of the topic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seat {
    /// The shard.
    pub shard: ShardId,
    /// One of its partitions.
    pub affinity: PartitionId,
}

/// The group as it is, and where its consumers attach.
#[derive(Clone, Debug)]
pub struct Membership {
    /// The group.
    pub group: GroupInfo,
    /// The shards.
    pub seats: Vec<Seat>,
    /// By partition: where the group goes on.
    pub floors: Vec<u64>,
    /// Records that are not completed.
    pub lag: u64,
    /// Whether records were completed behind others that are not.
    pub has_gaps: bool,
    /// Records that went to the dead-letter topic before this.
    pub dead_lettered: u64,
    /// Where the dead-letter topic ends, if there is one.
    pub dead_ends: Vec<(PartitionId, u64)>,
}

impl Membership {
    /// Finds the group, or creates it.
    ///
    /// # Errors
    /// If the broker refuses, such as for a group of that name on another topic.
    pub fn of(admin: &mut Admin, plan: &GroupPlan) -> Result<Membership, AdminError> {
        let topic = admin.describe_topic(&plan.topic)?;
        let create = CreateGroup {
            name: plan.name.clone(),
            topic: plan.topic.clone(),
            start: plan.start,
            or_find: true,
            config: plan.config,
            dead_letter_topic: None,
        };
        let group = admin.create_group(create)?;
        let mut first = BTreeMap::new();
        for (index, partition) in (0..).zip(&topic.partitions) {
            first.entry(partition.shard.0).or_insert(PartitionId::new(topic.topic.id, index));
        }
        let seats = first.into_iter().map(|(shard, affinity)| Seat { shard: ShardId(shard), affinity });
        let described = admin.describe_group(&plan.name)?;
        let progress = || described.partitions.iter().map(|p| &p.progress);
        let lag = progress().map(|p| p.lag).sum();
        let behind: u64 = progress().map(|p| p.end_offset.saturating_sub(p.floor)).sum();
        Ok(Membership {
            dead_ends: dead_ends(admin, group.dead_letter)?,
            group,
            seats: seats.collect(),
            floors: progress().map(|p| p.floor).collect(),
            lag,
            has_gaps: behind > lag,
            dead_lettered: progress().map(|p| p.dead_lettered_total).sum(),
        })
    }
}

/// Where the dead-letter topic of this number ends, if there is one. Its name says nothing: a
/// group can have another one than its topic's, and share it with groups of other topics.
fn dead_ends(admin: &mut Admin, dead_letter: TopicId) -> Result<Vec<(PartitionId, u64)>, AdminError> {
    if dead_letter == TopicId(0) {
        return Ok(Vec::new());
    }
    let Some(topic) = admin.list_topics()?.into_iter().find(|topic| topic.id == dead_letter) else {
        let text = format!("the broker lists no topic {dead_letter}, where the group's dead letters go");
        return Err(std::io::Error::other(text).into());
    };
    let dead = admin.describe_topic(&topic.name)?;
    let partitions = (0..).zip(&dead.partitions);
    Ok(partitions.map(|(index, p)| (PartitionId::new(dead.topic.id, index), p.end_offset.0)).collect())
}
