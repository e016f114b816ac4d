//! Where a topic's dead letters are, and which of them are open.

use std::ops::Range;

use ringbolt_client::{Client, Error, ErrorCode, GroupInfo, TopicDescription};

use crate::catalog::DEAD_LETTER_SUFFIX;
use crate::cli::connection::CommandError;

/// The dead-letter topic that is given, or that of a topic unless its groups want another.
pub(super) fn dead_letter_topic(topic: &str) -> String {
    if topic.ends_with(DEAD_LETTER_SUFFIX) {
        topic.to_owned()
    } else {
        format!("{topic}{DEAD_LETTER_SUFFIX}")
    }
}

/// The topic whose dead letters are in this one unless its groups want another.
fn origin(dead_letter_topic: &str) -> &str {
    dead_letter_topic.strip_suffix(DEAD_LETTER_SUFFIX).unwrap_or(dead_letter_topic)
}

/// A dead-letter topic, and the group through which its records are handled.
pub(super) struct Letters {
    pub topic: TopicDescription,
    pub group: GroupInfo,
}

impl Letters {
    /// Looks them up.
    ///
    /// # Errors
    /// That there is no such topic or group; what the broker says.
    pub async fn find(client: &Client, name: &str) -> Result<Letters, CommandError> {
        let none = |what: &str| {
            let text = format!(
                "topic {} has no dead letters: there is no {what} {name}; see: ringbolt dlq list",
                origin(name)
            );
            CommandError::Client(Error::InvalidSetting(text))
        };
        let topic = match client.admin().describe_topic(name).await {
            Err(Error::Refused(refusal)) if refusal.error_code() == Some(ErrorCode::UnknownTopic) => {
                return Err(none("topic"));
            }
            other => other?,
        };
        let groups = client.admin().groups().await?;
        let group = groups.into_iter().find(|group| group.name == name && group.topic == topic.topic.id);
        Ok(Letters { group: group.ok_or_else(|| none("group"))?, topic })
    }

    /// First offset and end of a partition; `None` if there is none of this index.
    pub fn offsets(&self, partition: u32) -> Option<Range<u64>> {
        let info = self.topic.partitions.get(partition as usize)?;
        Some(info.start_offset.0..info.end_offset.0)
    }

    /// Those among these records of a partition that were redriven or dropped.
    ///
    /// # Errors
    /// Those of [`Admin::completed`](ringbolt_client::Admin::completed).
    pub async fn done(
        &self,
        client: &Client,
        partition: u32,
        offsets: Range<u64>,
    ) -> Result<Done, CommandError> {
        let Some(info) = self.topic.partitions.get(partition as usize) else { return Ok(Done::default()) };
        Ok(Done(client.admin().completed(self.group.id, info.shard, partition, offsets).await?))
    }
}

/// Offsets of a partition that were redriven or dropped.
#[derive(Default)]
pub(super) struct Done(Vec<Range<u64>>);

impl Done {
    pub fn contains(&self, offset: u64) -> bool {
        let after = self.0.partition_point(|range| range.end <= offset);
        self.0.get(after).is_some_and(|range| range.contains(&offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_and_its_dead_letter_topic_name_the_same() {
        assert_eq!(dead_letter_topic("orders"), "orders.dlq");
        assert_eq!(dead_letter_topic("orders.dlq"), "orders.dlq");
        assert_eq!((origin("orders.dlq"), origin("orders")), ("orders", "orders"));
    }

    #[test]
    fn what_is_done_is_found_in_its_range() {
        let done = Done(vec![0..3, 5..6]);
        let found: Vec<u64> = (0..8).filter(|&offset| done.contains(offset)).collect();
        assert_eq!(found, [0, 1, 2, 5]);
        assert!(!Done::default().contains(0));
    }
}
