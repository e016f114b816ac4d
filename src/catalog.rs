//! The topics and consumer groups of a broker: what there is, and the changes to it.
//!
//! Shard 0's log is the authority: a change is a record in its partition of
//! topic 0, and every segment's footer repeats the whole catalog. The other
//! shards apply the same changes in the same order.

use std::collections::BTreeMap;

use ringbolt_wire::message::{MAX_PARTITIONS, TopicInfo, is_valid_topic_name};
use ringbolt_wire::{ErrorCode, GroupId, PartitionId, TopicId};

use crate::limits::{MAX_TOPICS, MAX_TOTAL_PARTITIONS};

mod groups;

use groups::GroupTable;
pub use groups::{DEAD_LETTER_SUFFIX, GroupEntry, MAX_GROUP_ROW_LEN, NewGroup, NotCreated};

/// The partition of shard 0 that holds the catalog's changes. Not a topic that
/// anybody can name.
pub const CATALOG_PARTITION: PartitionId = PartitionId::new(TopicId(0), 0);

/// What changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CatalogChange {
    /// A topic is there from now on.
    Created(TopicInfo),
    /// A topic is gone, and its consumer groups.
    Deleted(TopicId),
    /// A consumer group is there from now on, and what it needs.
    GroupCreated(NewGroup),
    /// A consumer group is gone.
    GroupDeleted(GroupId),
}

/// A change, numbered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CatalogUpdate {
    /// Rises by one with each change.
    pub version: u64,
    /// The change.
    pub change: CatalogChange,
}

/// Bytes that are not a catalog or a change to one, though their CRC is right.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
#[error("not a catalog entry of this version")]
pub struct CatalogFormatError;

/// The topics and groups.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Catalog {
    version: u64,
    next_id: u32,
    by_id: BTreeMap<TopicId, TopicInfo>,
    by_name: BTreeMap<String, TopicId>,
    partitions: usize,
    groups: GroupTable,
}

impl Default for Catalog {
    fn default() -> Self {
        Catalog {
            version: 0,
            next_id: 1,
            by_id: BTreeMap::new(),
            by_name: BTreeMap::new(),
            partitions: 0,
            groups: GroupTable::default(),
        }
    }
}

const KIND_CREATED: u8 = 1;
const KIND_DELETED: u8 = 2;
const KIND_GROUP_CREATED: u8 = 3;
const KIND_GROUP_DELETED: u8 = 4;

impl CatalogUpdate {
    /// The update as the value of a record.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.version.to_le_bytes().to_vec();
        match &self.change {
            CatalogChange::Created(topic) => {
                out.push(KIND_CREATED);
                put_topic(&mut out, topic);
            }
            CatalogChange::Deleted(id) => {
                out.push(KIND_DELETED);
                out.extend_from_slice(&id.0.to_le_bytes());
            }
            CatalogChange::GroupCreated(new) => {
                out.push(KIND_GROUP_CREATED);
                new.put(&mut out);
            }
            CatalogChange::GroupDeleted(id) => {
                out.push(KIND_GROUP_DELETED);
                out.extend_from_slice(&id.0.to_le_bytes());
            }
        }
        out
    }

    /// The update in a record's value.
    pub fn decode(mut bytes: &[u8]) -> Result<CatalogUpdate, CatalogFormatError> {
        let version = u64::from_le_bytes(take(&mut bytes)?);
        let change = match take::<1>(&mut bytes)?[0] {
            KIND_CREATED => CatalogChange::Created(take_topic(&mut bytes)?),
            KIND_DELETED => CatalogChange::Deleted(TopicId(u32::from_le_bytes(take(&mut bytes)?))),
            KIND_GROUP_CREATED => CatalogChange::GroupCreated(NewGroup::take(&mut bytes)?),
            KIND_GROUP_DELETED => CatalogChange::GroupDeleted(GroupId(u32::from_le_bytes(take(&mut bytes)?))),
            _ => return Err(CatalogFormatError),
        };
        if bytes.is_empty() { Ok(CatalogUpdate { version, change }) } else { Err(CatalogFormatError) }
    }
}

/// Bytes that a topic takes in an encoded catalog.
pub fn topic_row_len(topic: &TopicInfo) -> usize {
    4 + 4 + 2 + topic.name.len()
}

/// The most that [`topic_row_len`] can be.
pub const MAX_TOPIC_ROW_LEN: usize = 4 + 4 + 2 + ringbolt_wire::message::MAX_TOPIC_NAME_LEN;

fn put_topic(out: &mut Vec<u8>, topic: &TopicInfo) {
    out.extend_from_slice(&topic.id.0.to_le_bytes());
    out.extend_from_slice(&topic.partitions.to_le_bytes());
    out.extend_from_slice(&(topic.name.len() as u16).to_le_bytes());
    out.extend_from_slice(topic.name.as_bytes());
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], CatalogFormatError> {
    let (head, tail) = bytes.split_first_chunk::<N>().ok_or(CatalogFormatError)?;
    *bytes = tail;
    Ok(*head)
}

fn take_topic(bytes: &mut &[u8]) -> Result<TopicInfo, CatalogFormatError> {
    let id = TopicId(u32::from_le_bytes(take(bytes)?));
    let partitions = u32::from_le_bytes(take(bytes)?);
    let len = u16::from_le_bytes(take(bytes)?) as usize;
    let (name, tail) = bytes.split_at_checked(len).ok_or(CatalogFormatError)?;
    *bytes = tail;
    let name = std::str::from_utf8(name).map_err(|_| CatalogFormatError)?.to_owned();
    Ok(TopicInfo { id, partitions, name })
}

impl Catalog {
    /// The whole catalog as bytes, for a footer.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.version.to_le_bytes().to_vec();
        out.extend_from_slice(&self.next_id.to_le_bytes());
        out.extend_from_slice(&(self.by_id.len() as u32).to_le_bytes());
        self.by_id.values().for_each(|topic| put_topic(&mut out, topic));
        self.groups.put(&mut out);
        out
    }

    /// The catalog in a footer.
    pub fn decode(mut bytes: &[u8]) -> Result<Catalog, CatalogFormatError> {
        let version = u64::from_le_bytes(take(&mut bytes)?);
        let next_id = u32::from_le_bytes(take(&mut bytes)?);
        let count = u32::from_le_bytes(take(&mut bytes)?);
        let mut catalog = Catalog::default();
        for _ in 0..count {
            catalog.insert(take_topic(&mut bytes)?);
        }
        (catalog.version, catalog.next_id) = (version, next_id);
        // A catalog from before there were groups ends here.
        if !bytes.is_empty() {
            catalog.groups = GroupTable::take(&mut bytes)?;
        }
        if bytes.is_empty() { Ok(catalog) } else { Err(CatalogFormatError) }
    }

    /// Bytes that [`encode`](Self::encode) takes.
    pub fn encoded_len(&self) -> usize {
        8 + 4 + 4 + self.by_id.values().map(topic_row_len).sum::<usize>() + self.groups.encoded_len()
    }

    /// Partitions of all topics.
    pub fn partitions(&self) -> usize {
        self.partitions
    }

    /// Adds a topic, unless it is there.
    fn insert(&mut self, topic: TopicInfo) {
        if self.by_id.contains_key(&topic.id) {
            return;
        }
        self.partitions += topic.partitions as usize;
        self.next_id = self.next_id.max(topic.id.0.saturating_add(1));
        self.by_name.insert(topic.name.clone(), topic.id);
        self.by_id.insert(topic.id, topic);
    }

    /// Carries out a change. One that has been carried out already, by its
    /// version, changes nothing.
    pub fn apply(&mut self, update: &CatalogUpdate) {
        if update.version <= self.version {
            return;
        }
        self.version = update.version;
        match &update.change {
            CatalogChange::Created(topic) => self.insert(topic.clone()),
            CatalogChange::Deleted(id) => {
                if let Some(topic) = self.by_id.remove(id) {
                    self.by_name.remove(&topic.name);
                    self.partitions -= topic.partitions as usize;
                }
                self.groups.remove_of(*id);
            }
            CatalogChange::GroupCreated(new) => {
                if let Some((topic, group)) = &new.dead_letter {
                    self.insert(topic.clone());
                    self.groups.insert(group.clone(), topic.partitions);
                }
                let partitions = self.by_id.get(&new.group.info.topic).map_or(0, |topic| topic.partitions);
                self.groups.insert(new.group.clone(), partitions);
            }
            CatalogChange::GroupDeleted(id) => self.groups.remove(*id),
        }
    }

    /// The change that creates this topic, or why it cannot be.
    pub fn plan_create(&self, name: &str, partitions: u32) -> Result<CatalogUpdate, ErrorCode> {
        if !is_valid_topic_name(name) {
            return Err(ErrorCode::InvalidTopicName);
        }
        if partitions == 0 {
            return Err(ErrorCode::InvalidRequest);
        }
        if self.by_name.contains_key(name) {
            return Err(ErrorCode::TopicExists);
        }
        let total = self.partitions.saturating_add(partitions as usize);
        let full = self.by_id.len() >= MAX_TOPICS || total > MAX_TOTAL_PARTITIONS;
        if full || partitions > MAX_PARTITIONS || self.next_id == u32::MAX {
            return Err(ErrorCode::TooManyPartitions);
        }
        let topic = TopicInfo { id: TopicId(self.next_id), partitions, name: name.to_owned() };
        Ok(CatalogUpdate { version: self.version + 1, change: CatalogChange::Created(topic) })
    }

    /// The change that deletes this topic, or why it cannot be.
    pub fn plan_delete(&self, name: &str) -> Result<CatalogUpdate, ErrorCode> {
        let id = *self.by_name.get(name).ok_or(ErrorCode::UnknownTopic)?;
        if self.groups.has_dead_letters_in(id) {
            return Err(ErrorCode::TopicInUse);
        }
        Ok(CatalogUpdate { version: self.version + 1, change: CatalogChange::Deleted(id) })
    }

    /// The topic of that name.
    pub fn by_name(&self, name: &str) -> Option<&TopicInfo> {
        self.by_id.get(self.by_name.get(name)?)
    }

    /// The topic with that number.
    pub fn get(&self, id: TopicId) -> Option<&TopicInfo> {
        self.by_id.get(&id)
    }

    /// The topics, by name.
    pub fn topics(&self) -> impl Iterator<Item = &TopicInfo> {
        self.by_name.values().filter_map(|id| self.by_id.get(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(catalog: &mut Catalog, name: &str, partitions: u32) {
        let update = catalog.plan_create(name, partitions).unwrap();
        catalog.apply(&CatalogUpdate::decode(&update.encode()).unwrap());
    }

    #[test]
    fn a_topic_number_is_never_used_twice_even_after_a_restart() {
        let mut catalog = Catalog::default();
        create(&mut catalog, "a", 3);
        let first = catalog.by_name("a").unwrap().id;
        let update = catalog.plan_delete("a").unwrap();
        catalog.apply(&CatalogUpdate::decode(&update.encode()).unwrap());
        let mut restarted = Catalog::decode(&catalog.encode()).unwrap();
        assert_eq!(restarted, catalog);
        create(&mut restarted, "a", 3);
        assert_ne!(restarted.by_name("a").unwrap().id, first);
    }

    #[test]
    fn a_change_is_applied_once() {
        let mut catalog = Catalog::default();
        let update = catalog.plan_create("a", 3).unwrap();
        catalog.apply(&update);
        let once = catalog.clone();
        catalog.apply(&update);
        assert_eq!(catalog, once);
    }

    #[test]
    fn bad_names_and_counts_are_refused() {
        let catalog = Catalog::default();
        for name in ["", "a/b", ".", "..", "ä", &"x".repeat(250)] {
            assert_eq!(catalog.plan_create(name, 1), Err(ErrorCode::InvalidTopicName));
        }
        assert_eq!(catalog.plan_create("a", 0), Err(ErrorCode::InvalidRequest));
        assert_eq!(catalog.plan_create("a", u32::MAX), Err(ErrorCode::TooManyPartitions));
        assert_eq!(catalog.plan_delete("a"), Err(ErrorCode::UnknownTopic));
    }
}
