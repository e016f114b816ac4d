//! Topics: changes to the catalog, made durable by shard 0 and carried to all.

use ringbolt_wire::message::{ErrorResponse, MAX_PARTITIONS, MAX_TOPIC_NAME_LEN, TopicInfo};
use ringbolt_wire::{
    BatchBuilder, Epoch, ErrorCode, Offset, PartitionId, ProducerId, Sequence, ShardId, TopicId,
};
use rustc_hash::FxHashSet;

use super::Shard;
use super::action::{Action, Reply};
use super::event::ReplyTo;
use super::placement::shard_of;
use crate::buffer::BufferPool;
use crate::catalog::{CATALOG_PARTITION, CatalogChange, CatalogUpdate, DEAD_LETTER_SUFFIX};
use crate::limits::{MAX_TOPICS, MAX_TOTAL_PARTITIONS};
use crate::log::footer::PARTITION_ROW_LEN;
use crate::time::Now;

/// A change on its way: appended, durable, applied by all.
#[derive(Debug)]
pub(super) struct PendingChange {
    update: CatalogUpdate,
    from: ReplyTo,
    /// The commit that holds it.
    index: u64,
    /// Whether that commit is durable, and so the change published.
    published: bool,
    /// Other shards that have not said yet that they have applied it.
    missing: FxHashSet<ShardId>,
    /// Answers that speak of it, and so of what is not durable before it is.
    after: Vec<(ReplyTo, Reply)>,
}

/// A topic's or group's name for a refusal: one that is too long to be any is not sent
/// back.
pub(super) fn shown(kind: &str, name: &str) -> String {
    match name.len() {
        0..=MAX_TOPIC_NAME_LEN => format!("{kind} {name:?}"),
        len => format!("a {kind} name of {len} bytes"),
    }
}

impl<P: BufferPool> Shard<P> {
    pub(super) fn create_topic(&mut self, from: ReplyTo, name: &str, partitions: u32, now: Now) {
        match self.state.catalog.plan_create(name, partitions) {
            Ok(_) if partitions as usize > self.footer_room() => {
                let text = format!(
                    "segments of {} bytes can describe {} partitions more; see --segment-size",
                    self.identity.segment_len,
                    self.footer_room()
                );
                self.refuse(from, ErrorCode::TooManyPartitions, text);
            }
            Ok(update) => self.change_catalog(from, update, now),
            Err(code @ ErrorCode::TooManyPartitions) => {
                let (topics, held) = (self.state.catalog.topics().count(), self.state.catalog.partitions());
                let text = format!(
                    "a topic has at most {MAX_PARTITIONS} partitions, a broker {MAX_TOPICS} topics with \
                     {MAX_TOTAL_PARTITIONS}; it has {topics} with {held}"
                );
                self.refuse_when_durable(from, code, text);
            }
            Err(code) => self.refuse_when_durable(from, code, shown("topic", name)),
        }
    }

    pub(super) fn delete_topic(&mut self, from: ReplyTo, name: &str, now: Now) {
        match self.state.catalog.plan_delete(name) {
            Ok(update) => self.change_catalog(from, update, now),
            Err(code) => self.refuse_when_durable(from, code, shown("topic", name)),
        }
    }

    /// Refuses for what the catalog says. It may say so because of a change that a
    /// crash would still undo: then the answer waits for it.
    pub(super) fn refuse_when_durable(&mut self, from: ReplyTo, code: ErrorCode, text: String) {
        self.answer_when_durable(from, Reply::Error(ErrorResponse::new(code, text)));
    }

    /// Answers what the catalog says, once that is durable.
    pub(super) fn answer_when_durable(&mut self, from: ReplyTo, reply: Reply) {
        match self.changes.back_mut() {
            Some(change) => change.after.push((from, reply)),
            None => self.reply(from, reply),
        }
    }

    /// How many more partitions a footer can name: it must not take more than a
    /// quarter of a segment by itself.
    fn footer_room(&self) -> usize {
        let catalog = &self.state.catalog;
        let taken = catalog.encoded_len() + catalog.partitions() * PARTITION_ROW_LEN;
        (self.identity.segment_len / 4).saturating_sub(taken as u64) as usize / PARTITION_ROW_LEN
    }

    /// Whether a footer can name what a new group brings with it.
    pub(super) fn footer_has_room_for(&self, update: &CatalogUpdate) -> bool {
        let topic = match &update.change {
            CatalogChange::GroupCreated(new) => new.dead_letter.as_ref().map(|(topic, _)| topic),
            _ => None,
        };
        let is_new = |topic: &&TopicInfo| self.state.catalog.get(topic.id).is_none();
        let partitions = topic.filter(is_new).map_or(0, |topic| topic.partitions as usize);
        partitions + update.encode().len().div_ceil(PARTITION_ROW_LEN) <= self.footer_room()
    }

    pub(super) fn change_catalog(&mut self, from: ReplyTo, update: CatalogUpdate, now: Now) {
        if self.stopping {
            return self.refuse(from, ErrorCode::ShuttingDown, "");
        }
        let mut batch = BatchBuilder::new();
        batch.push(now.wall_us, None, &update.encode(), &[]);
        let batch = batch.finish(CATALOG_PARTITION, ProducerId::NONE, Epoch(0), Sequence(0));
        let slot = self.state.slot_or_insert(CATALOG_PARTITION);
        if let Err(code) = self.append(slot, CATALOG_PARTITION, &batch, None, now) {
            return self.refuse(from, code, "");
        }
        self.state.apply_catalog(&update);
        let index = self.commits.tail().next_index;
        // Where a new group begins must be durable here as well.
        let first = u16::from(!matches!(update.change, CatalogChange::GroupCreated(_)));
        self.changes.push_back(PendingChange {
            update,
            from,
            index,
            published: false,
            missing: (first..self.config.shards).map(ShardId).collect(),
            after: Vec::new(),
        });
    }

    /// Publishes the changes whose commit is durable by now.
    pub(super) fn changes_durable(&mut self, durable_index: u64, now: Now) {
        let mut due = Vec::new();
        for change in self.changes.iter_mut().filter(|c| !c.published && c.index <= durable_index) {
            change.published = true;
            due.push(change.update.clone());
        }
        for update in due {
            self.apply_change(&update, now);
            if self.config.shards > 1 {
                self.out.push_back(Action::PublishCatalog(update));
            }
        }
        self.answer_changes();
    }

    /// Another shard has applied a change.
    pub(super) fn change_applied(&mut self, by: ShardId, version: u64) {
        if let Some(change) = self.changes.iter_mut().find(|c| c.update.version == version) {
            change.missing.remove(&by);
        }
        self.answer_changes();
    }

    fn answer_changes(&mut self) {
        while self.changes.front().is_some_and(|c| c.published && c.missing.is_empty()) {
            let Some(change) = self.changes.pop_front() else { return };
            let reply = match change.update.change {
                CatalogChange::Created(topic) => Reply::TopicCreated(topic),
                CatalogChange::Deleted(_) => Reply::TopicDeleted,
                CatalogChange::GroupCreated(new) => Reply::Group(new.group.info),
                CatalogChange::GroupDeleted(_) => Reply::GroupDeleted,
            };
            self.reply(change.from, reply);
            change.after.into_iter().for_each(|(to, reply)| self.reply(to, reply));
        }
    }

    /// Shard 0 has published a change.
    pub(super) fn apply_published(&mut self, update: &CatalogUpdate, now: Now) {
        self.apply_change(update, now);
        if !matches!(update.change, CatalogChange::GroupCreated(_)) {
            let (shard, version) = (self.config.shard, update.version);
            self.out.push_back(Action::CatalogApplied { shard, version });
        }
    }

    fn apply_change(&mut self, update: &CatalogUpdate, now: Now) {
        match &update.change {
            CatalogChange::Created(topic) => self.add_topic(topic),
            CatalogChange::Deleted(id) => {
                self.remove_groups(&self.groups.of_topic(*id));
                self.topics.remove(id);
                self.groups.forget_topic(*id);
                self.state.remove_topic(*id);
                // Whoever waits for its records is told.
                self.fetches.make_all_ready();
            }
            CatalogChange::GroupCreated(new) => {
                if let Some((topic, group)) = &new.dead_letter {
                    self.add_topic(topic);
                    self.add_group(group, None, now);
                }
                self.add_group(&new.group, Some(update.version), now);
            }
            CatalogChange::GroupDeleted(id) => self.remove_groups(&[*id]),
        }
    }

    /// Makes room for this shard's partitions of a topic.
    pub(super) fn add_topic(&mut self, topic: &TopicInfo) {
        self.topics.insert(topic.id, topic.partitions);
        if topic.name.ends_with(DEAD_LETTER_SUFFIX) {
            self.groups.holds_dead_letters(topic.id);
        }
        for index in 0..topic.partitions {
            let id = PartitionId::new(topic.id, index);
            if shard_of(id, self.config.shards) == self.config.shard {
                self.state.slot_or_insert(id);
            }
        }
    }

    pub(super) fn list_topics(&mut self, from: ReplyTo) {
        let catalog = &self.state.catalog;
        let topics = catalog.topics().filter(|topic| self.topics.contains_key(&topic.id)).cloned().collect();
        let reply = Reply::Topics(topics);
        // A topic that the list leaves out may come back, by a crash, as long as its
        // deletion is not durable.
        let is_going =
            |c: &&mut PendingChange| !c.published && matches!(c.update.change, CatalogChange::Deleted(_));
        match self.changes.iter_mut().rev().find(is_going) {
            Some(change) => change.after.push((from, reply)),
            None => self.reply(from, reply),
        }
    }

    pub(super) fn look_up_topic(&mut self, from: ReplyTo, name: &str) {
        let topic = self.state.catalog.by_name(name);
        match topic.filter(|topic| self.topics.contains_key(&topic.id)).cloned() {
            Some(topic) => self.reply(from, Reply::Topic(topic)),
            None => self.refuse_when_durable(from, ErrorCode::UnknownTopic, shown("topic", name)),
        }
    }

    pub(super) fn partition_states(&mut self, from: ReplyTo, topic: TopicId) {
        let Some(&partitions) = self.topics.get(&topic) else {
            return self.refuse(from, ErrorCode::UnknownTopic, format!("topic {topic}"));
        };
        let states: Vec<(u32, Offset, Offset)> = (0..partitions)
            .filter_map(|index| {
                let slot = self.state.slot(PartitionId::new(topic, index))?;
                let partition = self.state.partition(slot);
                Some((index, partition.start_offset, partition.durable_end))
            })
            .collect();
        self.reply(from, Reply::PartitionStates(states));
    }
}
