//! Which topics there must be, may be, and cannot be.

use std::collections::{BTreeMap, BTreeSet};

use ringbolt_wire::TopicId;
use ringbolt_wire::message::TopicInfo;

/// What is known of a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Somebody asked for it, and the answer is not known.
    Creating,
    /// It is there.
    Alive(TopicInfo),
    /// Somebody asked to delete it, and the answer is not known.
    Deleting(TopicInfo),
    /// It is not there.
    Gone,
}

/// The topics, as their clients know them. A name has one request under way at
/// a time.
#[derive(Debug, Default)]
pub struct Topics {
    by_name: BTreeMap<String, Fate>,
    used: BTreeSet<TopicId>,
    gone: BTreeSet<TopicId>,
}

impl Topics {
    pub fn fate(&self, name: &str) -> &Fate {
        self.by_name.get(name).unwrap_or(&Fate::Gone)
    }

    pub fn create_asked(&mut self, name: &str) {
        if *self.fate(name) == Fate::Gone {
            self.by_name.insert(name.to_owned(), Fate::Creating);
        }
    }

    pub fn delete_asked(&mut self, name: &str) {
        if let Fate::Alive(topic) = self.fate(name).clone() {
            self.by_name.insert(name.to_owned(), Fate::Deleting(topic));
        }
    }

    pub fn created(&mut self, topic: &TopicInfo) {
        assert_eq!(*self.fate(&topic.name), Fate::Creating, "{topic:?} was created");
        assert!(self.used.insert(topic.id), "the number of {topic:?} was used before");
        assert_ne!(topic.id, TopicId(0));
        self.by_name.insert(topic.name.clone(), Fate::Alive(topic.clone()));
    }

    /// It is there, and nobody asked for it by its name.
    pub fn appeared(&mut self, topic: &TopicInfo) {
        self.used.insert(topic.id);
        self.by_name.insert(topic.name.clone(), Fate::Alive(topic.clone()));
    }

    pub fn deleted(&mut self, name: &str) {
        let Fate::Deleting(topic) = self.fate(name).clone() else { panic!("{name} was deleted") };
        self.gone.insert(topic.id);
        self.by_name.insert(name.to_owned(), Fate::Gone);
    }

    /// The request for it was refused: it is as it was.
    pub fn refused(&mut self, name: &str) {
        let before = match self.fate(name).clone() {
            Fate::Creating => Fate::Gone,
            Fate::Deleting(topic) => Fate::Alive(topic),
            settled => settled,
        };
        self.by_name.insert(name.to_owned(), before);
    }

    /// Judges a list of topics. With `settle`, when no request is under way,
    /// it also decides what was open.
    pub fn listed(&mut self, list: &[TopicInfo], settle: bool) {
        assert!(list.is_sorted_by(|a, b| a.name < b.name), "the list is sorted by name: {list:?}");
        for topic in list {
            let known = match self.fate(&topic.name) {
                Fate::Alive(known) | Fate::Deleting(known) => known == topic,
                Fate::Creating => !self.used.contains(&topic.id),
                // It came with a group.
                Fate::Gone => topic.name.ends_with(".dlq"),
            };
            assert!(known, "{topic:?} is listed, and is {:?}", self.fate(&topic.name));
        }
        list.iter().filter(|topic| topic.name.ends_with(".dlq")).for_each(|topic| self.appeared(topic));
        let listed: BTreeSet<&str> = list.iter().map(|topic| topic.name.as_str()).collect();
        for (name, fate) in &self.by_name {
            let missing = matches!(fate, Fate::Alive(_)) && !listed.contains(name.as_str());
            assert!(!missing, "{fate:?} is not listed");
        }
        if settle {
            self.settle(list);
        }
    }

    fn settle(&mut self, list: &[TopicInfo]) {
        for fate in self.by_name.values_mut() {
            if let Fate::Deleting(topic) = fate {
                self.gone.insert(topic.id);
            }
            *fate = Fate::Gone;
        }
        for topic in list {
            self.used.insert(topic.id);
            self.gone.remove(&topic.id);
            self.by_name.insert(topic.name.clone(), Fate::Alive(topic.clone()));
        }
    }

    /// What was known of the newest changes may be lost: nothing is certain.
    pub fn doubt(&mut self) {
        for fate in self.by_name.values_mut() {
            if let Fate::Alive(topic) = fate {
                *fate = Fate::Deleting(topic.clone());
            }
        }
    }

    /// The topics that are certainly there.
    pub fn alive(&self) -> Vec<TopicInfo> {
        let alive = self.by_name.values().filter_map(|fate| match fate {
            Fate::Alive(topic) => Some(topic.clone()),
            _ => None,
        });
        alive.collect()
    }

    /// Whether the topic is certainly there.
    pub fn is_alive(&self, id: TopicId) -> bool {
        self.by_name.values().any(|fate| matches!(fate, Fate::Alive(topic) if topic.id == id))
    }

    /// Whether the topic was deleted, and its deleter knows it.
    pub fn is_gone(&self, id: TopicId) -> bool {
        self.gone.contains(&id)
    }
}
