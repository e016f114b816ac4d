//! Why a group's consumers are sent nothing, in sentences.

use std::collections::BTreeMap;
use std::time::Duration;

use ringbolt_client::{ConsumerInfo, GroupDescription, Hold};
use serde_json::{Value, json};

/// What holds a partition back, and what can be done about it.
pub(super) fn sentence(hold: &Hold, group: &str) -> String {
    match *hold {
        Hold::NothingNew => "There is nothing new: every record is completed.".to_owned(),
        Hold::NoConsumer => {
            "There are records, and no consumer is attached: start one, or look why it does not connect."
                .to_owned()
        }
        Hold::NoCredit => {
            "Consumers are attached, and none has credit left: they have as many records in hand as they \
             take, and settle none."
                .to_owned()
        }
        Hold::NotReading => {
            "Consumers are attached, and do not read what they were sent as fast as it comes: more is sent \
             when they have."
                .to_owned()
        }
        Hold::Leased { count, ms } => format!(
            "{} out to consumers and not settled; the first lease ends in {}.",
            records(count, "is", "are"),
            time(ms)
        ),
        Hold::Key { offset, count } => format!(
            "{} for the one at offset {offset}, which has the same key and is not completed.",
            records(count, "waits", "wait")
        ),
        Hold::AtBound { open } => format!(
            "{} delivered and not completed, as many as the group allows (--max-open): others come when some \
             are.",
            records(open, "is", "are")
        ),
        Hold::Delayed { count, ms: 0 } => format!("{} for a time.", records(count, "waits", "wait")),
        Hold::Delayed { count, ms } => {
            format!("{} for a time; none comes within {}.", records(count, "waits", "wait"), time(ms))
        }
        Hold::Exclusive { consumer } => format!(
            "Consumer {consumer:016x} has the partition for itself, whether or not it takes something now; another \
             one follows when it has left and its leases have ended."
        ),
        Hold::DeadLetter { count } => format!(
            "{} to go to the dead-letter topic; there is no room there yet, or {} cannot be read.",
            records(count, "is", "are"),
            if count == 1 { "it" } else { "they" }
        ),
        Hold::Reading => {
            "Records are being read from disk, or the broker is short of memory for that.".to_owned()
        }
        Hold::DelayedBound { offset } => format!(
            "As many records wait for their time as the broker may hold (--memory); the one at offset {offset} \
             and those behind it come when there are fewer."
        ),
        Hold::MemoryBound { open } => format!(
            "{} open in all groups of the shard, as many as the broker may hold (--memory): those that came back \
             are delivered, new ones when there are fewer.",
            records(open, "is", "are")
        ),
        Hold::DiskFull => {
            "The broker's disk is full: what becomes of records could not be put on it. Leases do not run \
             out meanwhile."
                .to_owned()
        }
        Hold::Damaged { offset } => format!(
            "The record at offset {offset} is damaged on disk and is not served, nor what is behind it; to go \
             past it: ringbolt group reset {group} --partition INDEX --to {}.",
            offset.saturating_add(1)
        ),
    }
}

fn records(count: u64, one: &str, many: &str) -> String {
    if count == 1 { format!("1 record {one}") } else { format!("{count} records {many}") }
}

fn time(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

fn sentences(holds: &[Hold], group: &str) -> Vec<String> {
    match holds {
        [] => vec!["Records are being sent.".to_owned()],
        holds => holds.iter().map(|hold| sentence(hold, group)).collect(),
    }
}

/// For people: partitions of which the same is to be said are told together.
pub(super) fn text(description: &GroupDescription) -> String {
    let name = &description.group.name;
    let mut alike: BTreeMap<Vec<String>, Vec<u32>> = BTreeMap::new();
    for partition in &description.partitions {
        alike.entry(sentences(&partition.holds, name)).or_default().push(partition.partition);
    }
    let mut told: Vec<(Vec<u32>, Vec<String>)> = alike.into_iter().map(|(said, of)| (of, said)).collect();
    told.sort();
    let mut text = format!("{name}, {} on {}\n", description.group.config.mode, description.topic);
    for (partitions, said) in told {
        let list: Vec<String> = partitions.iter().map(u32::to_string).collect();
        let plural = if partitions.len() == 1 { "" } else { "s" };
        text.push_str(&format!("partition{plural} {}:\n", list.join(", ")));
        said.iter().for_each(|sentence| text.push_str(&format!("  {sentence}\n")));
    }
    without_credit(description).iter().for_each(|sentence| text.push_str(&format!("{sentence}\n")));
    text
}

/// Of each consumer that takes nothing now: whatever there is, it is for others.
fn without_credit(description: &GroupDescription) -> Vec<String> {
    let takes_nothing = |c: &&ConsumerInfo| c.attached && (c.credit_records == 0 || c.credit_bytes == 0);
    let sentence = |c: &ConsumerInfo| {
        format!(
            "Consumer {:016x} has no credit left at shard {}; {} out to it and not settled.",
            c.consumer.0,
            c.shard.0,
            records(c.leased, "is", "are")
        )
    };
    description.consumers.iter().filter(takes_nothing).map(sentence).collect()
}

pub(super) fn json(description: &GroupDescription) -> Value {
    let name = &description.group.name;
    let partition = |p: &ringbolt_client::GroupPartition| json!({ "partition": p.partition, "sentences": sentences(&p.holds, name) });
    json!({
        "group": name,
        "partitions": description.partitions.iter().map(partition).collect::<Vec<_>>(),
        "consumers": without_credit(description),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use ringbolt_client::ConsumerId;

    use super::*;

    #[test]
    fn partitions_of_which_the_same_is_to_be_said_are_told_together() {
        let description = super::super::text::tests::description();
        let text = text(&description);
        assert!(text.contains("partitions 0, 2:\n  There is nothing new"), "{text}");
        assert!(text.contains("partition 1:\n  3 records are out to consumers"), "{text}");
        assert!(text.contains("the first lease ends in 1s 500ms."), "{text}");
    }

    #[test]
    fn a_consumer_without_credit_is_told_beside_one_that_has_some() {
        let mut description = super::super::text::tests::description();
        assert_eq!(without_credit(&description), [""; 0]);
        let one = ConsumerInfo { consumer: ConsumerId(7), credit_records: 0, ..description.consumers[0] };
        let gone = ConsumerInfo { attached: false, credit_bytes: 0, ..description.consumers[0] };
        description.consumers.extend([one, gone]);
        let told = "Consumer 0000000000000007 has no credit left at shard 0; 3 records are out to it and not settled.";
        assert_eq!(without_credit(&description), [told]);
        assert!(text(&description).ends_with(&format!("{told}\n")));
    }

    /// Every hold, with one record and with more where it counts them, and what is said of it.
    const SENTENCES: [(Hold, &str); 22] = [
        (Hold::NothingNew, "There is nothing new: every record is completed."),
        (
            Hold::NoConsumer,
            "There are records, and no consumer is attached: start one, or look why it does not connect.",
        ),
        (
            Hold::NoCredit,
            "Consumers are attached, and none has credit left: they have as many records in hand as they \
             take, and settle none.",
        ),
        (
            Hold::NotReading,
            "Consumers are attached, and do not read what they were sent as fast as it comes: more is sent \
             when they have.",
        ),
        (
            Hold::Leased { count: 1, ms: 0 },
            "1 record is out to consumers and not settled; the first lease ends in 0s.",
        ),
        (
            Hold::Leased { count: 2, ms: 61_500 },
            "2 records are out to consumers and not settled; the first lease ends in 1m 1s 500ms.",
        ),
        (
            Hold::Key { offset: 7, count: 1 },
            "1 record waits for the one at offset 7, which has the same key and is not completed.",
        ),
        (
            Hold::Key { offset: 7, count: 2 },
            "2 records wait for the one at offset 7, which has the same key and is not completed.",
        ),
        (
            Hold::AtBound { open: 1 },
            "1 record is delivered and not completed, as many as the group allows (--max-open): others \
             come when some are.",
        ),
        (
            Hold::AtBound { open: 2 },
            "2 records are delivered and not completed, as many as the group allows (--max-open): others \
             come when some are.",
        ),
        (Hold::Delayed { count: 1, ms: 0 }, "1 record waits for a time."),
        (Hold::Delayed { count: 1, ms: 70 }, "1 record waits for a time; none comes within 70ms."),
        (Hold::Delayed { count: 2, ms: 1000 }, "2 records wait for a time; none comes within 1s."),
        (
            Hold::Exclusive { consumer: 0xabc },
            "Consumer 0000000000000abc has the partition for itself, whether or not it takes something now; \
             another one follows when it has left and its leases have ended.",
        ),
        (
            Hold::DeadLetter { count: 1 },
            "1 record is to go to the dead-letter topic; there is no room there yet, or it cannot be read.",
        ),
        (
            Hold::DeadLetter { count: 2 },
            "2 records are to go to the dead-letter topic; there is no room there yet, or they cannot be \
             read.",
        ),
        (Hold::Reading, "Records are being read from disk, or the broker is short of memory for that."),
        (
            Hold::DelayedBound { offset: 7 },
            "As many records wait for their time as the broker may hold (--memory); the one at offset 7 and \
             those behind it come when there are fewer.",
        ),
        (
            Hold::MemoryBound { open: 1 },
            "1 record is open in all groups of the shard, as many as the broker may hold (--memory): those \
             that came back are delivered, new ones when there are fewer.",
        ),
        (
            Hold::MemoryBound { open: 2 },
            "2 records are open in all groups of the shard, as many as the broker may hold (--memory): those \
             that came back are delivered, new ones when there are fewer.",
        ),
        (
            Hold::DiskFull,
            "The broker's disk is full: what becomes of records could not be put on it. Leases do not run \
             out meanwhile.",
        ),
        (
            Hold::Damaged { offset: 7 },
            "The record at offset 7 is damaged on disk and is not served, nor what is behind it; to go past \
             it: ringbolt group reset g --partition INDEX --to 8.",
        ),
    ];

    #[test]
    fn every_hold_has_its_sentence() {
        for (hold, said) in SENTENCES {
            assert_eq!(sentence(&hold, "g"), said, "{hold:?}");
            assert!(!said.contains("  ") && !said.contains('\n'), "{hold:?}: a break within: {said}");
            assert!(said.ends_with('.'), "{hold:?}: {said}");
        }
        let kinds: HashSet<_> = SENTENCES.iter().map(|(hold, _)| std::mem::discriminant(hold)).collect();
        assert_eq!(kinds.len(), 15, "one of them is missing");
    }
}
