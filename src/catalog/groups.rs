//! The consumer groups in the catalog.

use std::collections::BTreeMap;

use ringbolt_wire::message::{
    CreateGroup, GroupConfig, GroupInfo, GroupStart, MAX_TOPIC_NAME_LEN, TopicInfo, is_valid_topic_name,
};
use ringbolt_wire::{ErrorCode, GroupId, Offset, TopicId};

use super::{Catalog, CatalogChange, CatalogFormatError, CatalogUpdate, put_topic, take, take_topic};
use crate::limits::{MAX_GROUP_PARTITIONS, MAX_GROUPS, MAX_TOPICS, MAX_TOTAL_PARTITIONS};

/// What a topic's name has behind it in the name of its dead-letter topic.
pub const DEAD_LETTER_SUFFIX: &str = ".dlq";

/// A group, and where it begins in partitions in which it has not begun.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupEntry {
    /// The group.
    pub info: GroupInfo,
    /// Where it begins.
    pub start: GroupStart,
}

/// A group to be created, with its dead-letter topic and the group of that, if they
/// are not there yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewGroup {
    /// The group.
    pub group: GroupEntry,
    /// Where its dead letters go, and the group through which they are handled.
    pub dead_letter: Option<(TopicInfo, GroupEntry)>,
}

const FIXED_LEN: usize = 4 + 4 + 4 + GroupConfig::LEN + 1 + 8 + 2;

/// The most that a group adds to an encoded catalog, a dead-letter topic and its
/// group included.
pub const MAX_GROUP_ROW_LEN: usize =
    2 * (PARTITIONS_LEN + FIXED_LEN + MAX_TOPIC_NAME_LEN) + super::MAX_TOPIC_ROW_LEN;

/// Before each group, of how many partitions its topic has.
const PARTITIONS_LEN: usize = 4;

impl GroupEntry {
    fn put(&self, out: &mut Vec<u8>) {
        let (kind, value) = match self.start {
            GroupStart::Earliest => (0, 0),
            GroupStart::End => (1, 0),
            GroupStart::Offset(offset) => (2, offset.0),
            GroupStart::Time(time_us) => (3, time_us),
        };
        for number in [self.info.id.0, self.info.topic.0, self.info.dead_letter.0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        self.info.config.put(out);
        out.push(kind);
        out.extend_from_slice(&u64::to_le_bytes(value));
        out.extend_from_slice(&(self.info.name.len() as u16).to_le_bytes());
        out.extend_from_slice(self.info.name.as_bytes());
    }

    fn take(bytes: &mut &[u8]) -> Result<GroupEntry, CatalogFormatError> {
        let id = GroupId(u32::from_le_bytes(take(bytes)?));
        let topic = TopicId(u32::from_le_bytes(take(bytes)?));
        let dead_letter = TopicId(u32::from_le_bytes(take(bytes)?));
        let config = take::<{ GroupConfig::LEN }>(bytes)?;
        let config = GroupConfig::decode(&config).map_err(|_| CatalogFormatError)?;
        let kind = take::<1>(bytes)?[0];
        let value = u64::from_le_bytes(take(bytes)?);
        let start = match kind {
            0 => GroupStart::Earliest,
            1 => GroupStart::End,
            2 => GroupStart::Offset(Offset(value)),
            3 => GroupStart::Time(value),
            _ => return Err(CatalogFormatError),
        };
        let len = u16::from_le_bytes(take(bytes)?) as usize;
        let (name, tail) = bytes.split_at_checked(len).ok_or(CatalogFormatError)?;
        *bytes = tail;
        let name = std::str::from_utf8(name).map_err(|_| CatalogFormatError)?.to_owned();
        Ok(GroupEntry { info: GroupInfo { id, topic, dead_letter, config, name }, start })
    }

    fn encoded_len(&self) -> usize {
        FIXED_LEN + self.info.name.len()
    }
}

impl NewGroup {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        self.group.put(out);
        out.push(u8::from(self.dead_letter.is_some()));
        if let Some((topic, group)) = &self.dead_letter {
            put_topic(out, topic);
            group.put(out);
        }
    }

    pub(super) fn take(bytes: &mut &[u8]) -> Result<NewGroup, CatalogFormatError> {
        let group = GroupEntry::take(bytes)?;
        let dead_letter = match take::<1>(bytes)?[0] {
            0 => None,
            1 => Some((take_topic(bytes)?, GroupEntry::take(bytes)?)),
            _ => return Err(CatalogFormatError),
        };
        Ok(NewGroup { group, dead_letter })
    }
}

/// The groups.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct GroupTable {
    next_id: u32,
    by_id: BTreeMap<GroupId, GroupEntry>,
    by_name: BTreeMap<String, GroupId>,
    /// Of all groups' topics.
    partitions: usize,
    partitions_of: BTreeMap<GroupId, u32>,
}

impl Default for GroupTable {
    fn default() -> Self {
        GroupTable {
            next_id: 1,
            by_id: BTreeMap::new(),
            by_name: BTreeMap::new(),
            partitions: 0,
            partitions_of: BTreeMap::new(),
        }
    }
}

impl GroupTable {
    /// Nothing, for a broker that never had a group: such a catalog is as it was
    /// before there were groups.
    pub fn put(&self, out: &mut Vec<u8>) {
        if *self == GroupTable::default() {
            return;
        }
        out.extend_from_slice(&self.next_id.to_le_bytes());
        out.extend_from_slice(&(self.by_id.len() as u32).to_le_bytes());
        for (id, group) in &self.by_id {
            out.extend_from_slice(&self.partitions_of[id].to_le_bytes());
            group.put(out);
        }
    }

    pub fn take(bytes: &mut &[u8]) -> Result<GroupTable, CatalogFormatError> {
        let next_id = u32::from_le_bytes(take(bytes)?);
        let count = u32::from_le_bytes(take(bytes)?);
        let mut table = GroupTable::default();
        for _ in 0..count {
            let partitions = u32::from_le_bytes(take(bytes)?);
            table.insert(GroupEntry::take(bytes)?, partitions);
        }
        table.next_id = next_id;
        Ok(table)
    }

    pub fn encoded_len(&self) -> usize {
        8 + self.by_id.values().map(|group| PARTITIONS_LEN + group.encoded_len()).sum::<usize>()
    }

    pub fn insert(&mut self, group: GroupEntry, partitions: u32) {
        let id = group.info.id;
        self.next_id = self.next_id.max(id.0.saturating_add(1));
        self.by_name.insert(group.info.name.clone(), id);
        self.by_id.insert(id, group);
        self.partitions += partitions as usize;
        self.partitions_of.insert(id, partitions);
    }

    pub fn remove(&mut self, id: GroupId) {
        if let Some(group) = self.by_id.remove(&id) {
            self.by_name.remove(&group.info.name);
            self.partitions -= self.partitions_of.remove(&id).unwrap_or(0) as usize;
        }
    }

    /// Removes the groups of a topic.
    pub fn remove_of(&mut self, topic: TopicId) {
        let gone: Vec<GroupId> = self
            .by_id
            .values()
            .filter(|group| group.info.topic == topic)
            .map(|group| group.info.id)
            .collect();
        gone.into_iter().for_each(|id| self.remove(id));
    }

    /// Whether a group's dead letters go to this topic.
    pub fn has_dead_letters_in(&self, topic: TopicId) -> bool {
        self.by_id.values().any(|group| group.info.dead_letter == topic)
    }
}

/// Why a group is not created.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotCreated {
    /// It is there, as wanted.
    Found(GroupInfo),
    /// It cannot be.
    Refused(ErrorCode, String),
}

impl Catalog {
    /// The change that creates this group, on a broker with so many shards.
    pub fn plan_create_group(&self, create: &CreateGroup, shards: u16) -> Result<CatalogUpdate, NotCreated> {
        let refused = |code, text: String| Err(NotCreated::Refused(code, text));
        let Some(topic) = self.by_name(&create.topic) else {
            return refused(ErrorCode::UnknownTopic, format!("topic {:?}", create.topic));
        };
        if let Some(group) = self.group_by_name(&create.name) {
            return Err(self.found(group, create, topic.id));
        }
        if !is_valid_topic_name(&create.name) {
            return refused(ErrorCode::InvalidTopicName, "of a group".into());
        }
        let letters = self.dead_letter_topic(create, topic, shards)?;
        let mut next_id = self.groups.next_id;
        let mut new_group = |name: &str, topic, dead_letter, config, start| {
            let id = GroupId(next_id);
            next_id = next_id.saturating_add(1);
            GroupEntry { info: GroupInfo { id, topic, dead_letter, config, name: name.to_owned() }, start }
        };
        let (mut dead_letter, mut partitions, mut groups) = (TopicId(0), topic.partitions as usize, 1);
        let (mut created, mut is_new_topic) = (None, false);
        if let Some(letters) = letters {
            dead_letter = letters.id;
            is_new_topic = self.by_name(&letters.name).is_none();
            if is_new_topic || self.group_by_name(&letters.name).is_none() {
                // Dead letters stay until somebody decides about them.
                let config = GroupConfig { max_failures: 0, ..GroupConfig::default() };
                let group = new_group(&letters.name, letters.id, TopicId(0), config, GroupStart::Earliest);
                (partitions, groups) = (partitions + letters.partitions as usize, 2);
                created = Some((letters, group));
            }
        }
        let group = new_group(&create.name, topic.id, dead_letter, create.config, create.start);
        let has_room = self.has_room_for_groups(groups, partitions)
            && (!is_new_topic || self.has_room_for_topic(u32::from(shards)));
        if !has_room {
            let text = format!(
                "a broker has at most {MAX_GROUPS} groups, on {MAX_GROUP_PARTITIONS} partitions, dead-letter \
                 topics included; it has {} on {}",
                self.groups.by_id.len(),
                self.groups.partitions
            );
            return refused(ErrorCode::TooManyGroups, text);
        }
        let change = CatalogChange::GroupCreated(NewGroup { group, dead_letter: created });
        Ok(CatalogUpdate { version: self.version + 1, change })
    }

    /// The topic for this group's dead letters, which may have to be created; `None` if
    /// there are to be none.
    fn dead_letter_topic(
        &self,
        create: &CreateGroup,
        topic: &TopicInfo,
        shards: u16,
    ) -> Result<Option<TopicInfo>, NotCreated> {
        let refused = |text: String| Err(NotCreated::Refused(ErrorCode::InvalidTopicName, text));
        let holds_dead_letters =
            topic.name.ends_with(DEAD_LETTER_SUFFIX) || self.groups.has_dead_letters_in(topic.id);
        let name = match &create.dead_letter_topic {
            Some(_) if holds_dead_letters => {
                return refused(format!(
                    "topic {:?} holds dead letters, and has no topic for its own",
                    topic.name
                ));
            }
            Some(name) if !name.ends_with(DEAD_LETTER_SUFFIX) => {
                return refused(format!(
                    "a dead-letter topic's name ends in {DEAD_LETTER_SUFFIX}, and {name:?} does not"
                ));
            }
            Some(name) => name.clone(),
            None if holds_dead_letters => return Ok(None),
            None if create.config.max_failures == 0 && !create.config.dead_letter_expired => return Ok(None),
            None => format!("{}{DEAD_LETTER_SUFFIX}", topic.name),
        };
        let partitions = u32::from(shards);
        let found = self.by_name(&name).cloned();
        let letters = found.unwrap_or(TopicInfo { id: TopicId(self.next_id), partitions, name });
        let handled = self.group_by_name(&letters.name);
        let fits = is_valid_topic_name(&letters.name)
            && letters.partitions >= partitions
            && letters.name != create.name
            && handled.is_none_or(|group| group.info.topic == letters.id);
        if !fits {
            return refused(format!(
                "the dead-letter topic {:?} cannot be: its name is not valid, or that of another group, or it has \
                 less than {shards} partitions",
                letters.name
            ));
        }
        Ok(Some(letters))
    }

    /// A group of the name is there.
    fn found(&self, group: &GroupEntry, create: &CreateGroup, topic: TopicId) -> NotCreated {
        let fits = group.info.topic == topic && group.info.config.mode == create.config.mode;
        if create.or_find && fits {
            return NotCreated::Found(group.info.clone());
        }
        let on = self.get(group.info.topic).map_or("", |topic| topic.name.as_str());
        let text = format!("group {:?} is {} on topic {on:?}", create.name, group.info.config.mode);
        NotCreated::Refused(ErrorCode::GroupExists, text)
    }

    fn has_room_for_groups(&self, groups: usize, partitions: usize) -> bool {
        self.groups.by_id.len() + groups <= MAX_GROUPS
            && self.groups.partitions + partitions <= MAX_GROUP_PARTITIONS
            && self.groups.next_id < u32::MAX - 1
    }

    fn has_room_for_topic(&self, partitions: u32) -> bool {
        self.by_id.len() < MAX_TOPICS
            && self.partitions + partitions as usize <= MAX_TOTAL_PARTITIONS
            && self.next_id < u32::MAX
    }

    /// The change that deletes this group, or why it cannot be.
    pub fn plan_delete_group(&self, name: &str) -> Result<CatalogUpdate, ErrorCode> {
        let group = self.group_by_name(name).ok_or(ErrorCode::UnknownGroup)?;
        let change = CatalogChange::GroupDeleted(group.info.id);
        Ok(CatalogUpdate { version: self.version + 1, change })
    }

    /// The group of that name.
    pub fn group_by_name(&self, name: &str) -> Option<&GroupEntry> {
        self.groups.by_id.get(self.groups.by_name.get(name)?)
    }

    /// The groups, by name.
    pub fn groups(&self) -> impl Iterator<Item = &GroupEntry> {
        self.groups.by_name.values().filter_map(|id| self.groups.by_id.get(id))
    }

    /// The group of that number.
    pub fn group(&self, id: GroupId) -> Option<&GroupEntry> {
        self.groups.by_id.get(&id)
    }
}

#[cfg(test)]
mod tests {
    use ringbolt_wire::message::GroupMode;

    use super::*;

    fn apply(catalog: &mut Catalog, update: CatalogUpdate) {
        catalog.apply(&CatalogUpdate::decode(&update.encode()).unwrap());
        assert_eq!(Catalog::decode(&catalog.encode()).as_ref(), Ok(&*catalog));
        assert!(catalog.encode().len() <= catalog.encoded_len());
    }

    fn create(name: &str, topic: &str, or_find: bool) -> CreateGroup {
        let (start, config) = (GroupStart::Time(9), GroupConfig::default());
        let (name, topic) = (name.into(), topic.into());
        CreateGroup { name, topic, start, or_find, config, dead_letter_topic: None }
    }

    fn with_topic() -> Catalog {
        let mut catalog = Catalog::default();
        let update = catalog.plan_create("orders", 3).unwrap();
        apply(&mut catalog, update);
        catalog
    }

    #[test]
    fn a_group_comes_with_one_dead_letter_topic_for_all_groups_of_its_topic() {
        let mut catalog = with_topic();
        for name in ["a", "b"] {
            let update = catalog.plan_create_group(&create(name, "orders", false), 2).unwrap();
            apply(&mut catalog, update);
        }
        let names: Vec<&str> = catalog.groups().map(|group| group.info.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "orders.dlq"]);
        let dead_letters = catalog.by_name("orders.dlq").unwrap();
        assert_eq!(dead_letters.partitions, 2);
        let b = catalog.group_by_name("b").unwrap();
        assert_eq!((b.info.dead_letter, b.start), (dead_letters.id, GroupStart::Time(9)));
        let own = catalog.group_by_name("orders.dlq").unwrap();
        assert_eq!((own.info.topic, own.info.dead_letter), (dead_letters.id, TopicId(0)));
        assert_eq!(catalog.plan_delete("orders.dlq"), Err(ErrorCode::TopicInUse));
        let update = catalog.plan_delete("orders").unwrap();
        apply(&mut catalog, update);
        assert_eq!(catalog.groups().count(), 1, "a topic's groups go with it");
        let update = catalog.plan_delete("orders.dlq").unwrap();
        apply(&mut catalog, update);
        assert_eq!((catalog.groups().count(), catalog.groups.partitions), (0, 0));
    }

    #[test]
    fn a_group_number_is_never_used_twice_even_after_a_restart() {
        let mut catalog = with_topic();
        let update = catalog.plan_create_group(&create("a", "orders", false), 2).unwrap();
        apply(&mut catalog, update);
        let first = catalog.group_by_name("a").unwrap().info.id;
        let update = catalog.plan_delete_group("a").unwrap();
        apply(&mut catalog, update);
        let mut restarted = Catalog::decode(&catalog.encode()).unwrap();
        let update = restarted.plan_create_group(&create("a", "orders", false), 2).unwrap();
        apply(&mut restarted, update);
        assert!(restarted.group_by_name("a").unwrap().info.id > first);
    }

    #[test]
    fn a_group_is_found_only_on_its_topic_and_in_its_mode() {
        let mut catalog = with_topic();
        let update = catalog.plan_create("other", 1).unwrap();
        apply(&mut catalog, update);
        let update = catalog.plan_create_group(&create("a", "orders", true), 2).unwrap();
        apply(&mut catalog, update);
        let found = catalog.plan_create_group(&create("a", "orders", true), 2);
        assert!(matches!(found, Err(NotCreated::Found(info)) if info.name == "a"));
        let mut exclusive = create("a", "orders", true);
        exclusive.config.mode = GroupMode::Exclusive;
        for create in [create("a", "other", true), create("a", "orders", false), exclusive] {
            let refused = catalog.plan_create_group(&create, 2);
            assert!(matches!(refused, Err(NotCreated::Refused(ErrorCode::GroupExists, _))));
        }
        let refused = catalog.plan_create_group(&create("a/b", "orders", false), 2);
        assert!(matches!(refused, Err(NotCreated::Refused(ErrorCode::InvalidTopicName, _))));
        let refused = catalog.plan_create_group(&create("b", "none", false), 2);
        assert!(matches!(refused, Err(NotCreated::Refused(ErrorCode::UnknownTopic, _))));
    }

    #[test]
    fn a_topic_that_is_there_serves_for_dead_letters_if_every_shard_has_a_partition_of_it() {
        let mut catalog = with_topic();
        let update = catalog.plan_create("orders.dlq", 2).unwrap();
        apply(&mut catalog, update);
        let refused = catalog.plan_create_group(&create("a", "orders", false), 3);
        assert!(matches!(refused, Err(NotCreated::Refused(ErrorCode::InvalidTopicName, _))));
        let update = catalog.plan_create_group(&create("a", "orders", false), 2).unwrap();
        apply(&mut catalog, update);
        assert_eq!((catalog.topics().count(), catalog.groups().count(), catalog.partitions()), (2, 2, 5));
        let own = catalog.group_by_name("orders.dlq").unwrap();
        assert_eq!(Some(own.info.topic), catalog.by_name("orders.dlq").map(|topic| topic.id));
    }

    /// A segment whose footer had no room was the end of its shard.
    #[test]
    fn a_group_with_the_longest_names_takes_no_more_of_a_footer_than_is_reckoned() {
        let name = |tail: &str| format!("{}{tail}", "x".repeat(MAX_TOPIC_NAME_LEN - tail.len()));
        let mut catalog = with_topic();
        let update = catalog.plan_create_group(&create("first", "orders", false), 2).unwrap();
        apply(&mut catalog, update);
        let before = catalog.encode().len();
        let update = with_dead_letters_in(&catalog, (&name("g"), "orders"), &name(".dlq")).unwrap();
        apply(&mut catalog, update);
        assert_eq!(catalog.encode().len() - before, MAX_GROUP_ROW_LEN);
    }

    /// What the catalog says to group `name` with dead letters in `dead_letter_topic`.
    fn with_dead_letters_in(
        catalog: &Catalog,
        (name, topic): (&str, &str),
        dead_letter_topic: &str,
    ) -> Result<CatalogUpdate, NotCreated> {
        let mut create = create(name, topic, false);
        create.config.max_failures = 0;
        create.dead_letter_topic = Some(dead_letter_topic.into());
        catalog.plan_create_group(&create, 2)
    }

    #[test]
    fn dead_letters_go_where_the_group_wants_them_whatever_else_it_is() {
        let mut catalog = with_topic();
        let update = catalog.plan_create("other", 1).unwrap();
        apply(&mut catalog, update);
        for of in [("a", "orders"), ("b", "other")] {
            let update = with_dead_letters_in(&catalog, of, "failed.dlq").unwrap();
            apply(&mut catalog, update);
        }
        let names: Vec<&str> = catalog.groups().map(|group| group.info.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "failed.dlq"]);
        let letters = catalog.by_name("failed.dlq").unwrap().id;
        for name in ["a", "b"] {
            assert_eq!(catalog.group_by_name(name).unwrap().info.dead_letter, letters);
        }
        assert_eq!(catalog.topics().count(), 3, "no other dead-letter topic came");
    }

    #[test]
    fn dead_letters_go_only_to_a_topic_that_says_so_and_not_on_from_there() {
        let mut catalog = with_topic();
        let update = with_dead_letters_in(&catalog, ("a", "orders"), "failed.dlq").unwrap();
        apply(&mut catalog, update);
        for (of, letters) in [
            (("b", "orders"), "orders"),
            (("b", "orders"), "failed"),
            (("b", "orders"), "a/b.dlq"),
            (("b.dlq", "orders"), "b.dlq"),
            (("b", "failed.dlq"), "more.dlq"),
        ] {
            let refused = with_dead_letters_in(&catalog, of, letters);
            let is_name = matches!(refused, Err(NotCreated::Refused(ErrorCode::InvalidTopicName, _)));
            assert!(is_name, "{of:?} to {letters}: {refused:?}");
        }
    }

    #[test]
    fn a_catalog_without_groups_is_as_before_there_were_any() {
        let catalog = with_topic();
        assert_eq!(catalog.encode().len() + 8, catalog.encoded_len());
    }
}
