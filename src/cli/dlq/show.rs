//! Dead letters as lines, printed as they are read; nothing is changed by looking at them.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringbolt_client::{Client, ConsumedRecord, DeadLetter, Error, ErrorCode, GroupId, TopicId};
use serde_json::{Value, json};

use super::letters::{Done, Letters};
use crate::cli::connection::{CommandError, print};
use crate::cli::consume::print::{rfc3339, text};
use crate::cli::topic::table;

/// Which are shown.
pub(super) struct Wanted {
    pub partition: Option<u32>,
    /// From here on.
    pub offset: Option<u64>,
    pub limit: Option<u64>,
    pub only_open: bool,
}

/// Names for the numbers in a dead letter.
struct Names {
    topics: BTreeMap<TopicId, String>,
    groups: BTreeMap<GroupId, String>,
}

impl Names {
    async fn ask(client: &Client) -> Result<Names, Error> {
        let topics = client.admin().list_topics().await?;
        let groups = client.admin().groups().await?;
        Ok(Names {
            topics: topics.into_iter().map(|topic| (topic.id, topic.name)).collect(),
            groups: groups.into_iter().map(|group| (group.id, group.name)).collect(),
        })
    }

    /// What was deleted has its number.
    fn topic(&self, id: TopicId) -> String {
        self.topics.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    fn group(&self, id: GroupId) -> String {
        self.groups.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }
}

/// A record of the dead-letter topic.
struct Shown {
    record: ConsumedRecord,
    state: &'static str,
}

/// Shows what is there now.
///
/// # Errors
/// That the topic has no dead letters, or no such partition; what the broker says.
pub(super) async fn run(
    client: &Client,
    topic: &str,
    wanted: &Wanted,
    as_json: bool,
) -> Result<ExitCode, CommandError> {
    let letters = Letters::find(client, topic).await?;
    let mut page = Page { names: Names::ask(client).await?, as_json, lines: Vec::new(), pages: 0 };
    read(client, &letters, wanted, &mut page).await?;
    page.print()?;
    Ok(ExitCode::SUCCESS)
}

async fn read(
    client: &Client,
    letters: &Letters,
    wanted: &Wanted,
    page: &mut Page,
) -> Result<(), CommandError> {
    let partitions = letters.topic.topic.partitions;
    let topic = &letters.topic.topic.name;
    if let Some(partition) = wanted.partition.filter(|partition| *partition >= partitions) {
        return Err(Error::NoSuchPartition { topic: topic.clone(), partitions, partition }.into());
    }
    let mut shown = 0;
    for partition in (0..partitions).filter(|p| wanted.partition.is_none_or(|only| only == *p)) {
        let Some(offsets) = letters.offsets(partition) else { continue };
        let start = wanted.offset.unwrap_or(0).max(offsets.start);
        if start >= offsets.end {
            continue;
        }
        let done = match letters.done(client, partition, start..offsets.end).await {
            Err(CommandError::Client(Error::Refused(refusal)))
                if refusal.error_code() == Some(ErrorCode::DiskFull) =>
            {
                None
            }
            other => Some(other?),
        };
        let positions = BTreeMap::from([(partition, start)]);
        let builder = client.reader(topic).partitions([partition]).positions(positions);
        let mut reader = builder.build().await?;
        let mut at = start;
        while at < offsets.end && wanted.limit.is_none_or(|limit| shown < limit) {
            let record = reader.next().await?;
            at = record.offset + 1;
            let state = state(done.as_ref(), record.offset);
            if record.offset < offsets.end && !(wanted.only_open && state == "done") {
                page.push(&Shown { record, state })?;
                shown += 1;
            }
        }
    }
    Ok(())
}

fn state(done: Option<&Done>, offset: u64) -> &'static str {
    match done.map(|done| done.contains(offset)) {
        Some(true) => "done",
        Some(false) => "open",
        None => "-",
    }
}

/// Lines that are printed together: those of a table are as wide as the widest.
struct Page {
    names: Names,
    as_json: bool,
    lines: Vec<Vec<String>>,
    /// Printed so far.
    pages: usize,
}

impl Page {
    /// Most lines of a page.
    const LINES: usize = 1000;

    fn push(&mut self, shown: &Shown) -> Result<(), CommandError> {
        if self.as_json {
            return print(&format!("{}\n", to_json(shown, &self.names)));
        }
        self.lines.push(to_row(shown, &self.names));
        if self.lines.len() >= Page::LINES { self.print() } else { Ok(()) }
    }

    /// Prints what is left. A table says what its columns are, though it be empty.
    fn print(&mut self) -> Result<(), CommandError> {
        if self.as_json || (self.lines.is_empty() && self.pages > 0) {
            return Ok(());
        }
        self.pages += 1;
        print(&to_table(std::mem::take(&mut self.lines)))
    }
}

fn to_table(rows: Vec<Vec<String>>) -> String {
    let header =
        ["PARTITION", "OFFSET", "STATE", "ORIGIN", "GROUP", "DELIVERED", "FAILED", "MOVED", "REASON"];
    let mut table = table(&header);
    table.add_rows(rows);
    format!("{table}\n")
}

fn to_row(Shown { record, state }: &Shown, names: &Names) -> Vec<String> {
    let place = [record.partition.to_string(), record.offset.to_string(), (*state).to_owned()];
    let rest = match record.dead_letter() {
        Some(letter) => origin_cells(&letter, names),
        None => ["-", "-", "-", "-", "-", "not a dead letter"].map(str::to_owned),
    };
    place.into_iter().chain(rest).collect()
}

fn origin_cells(letter: &DeadLetter, names: &Names) -> [String; 6] {
    [
        format!("{}/{}/{}", names.topic(letter.origin.topic), letter.origin.index, letter.offset),
        names.group(letter.group),
        letter.acquired.to_string(),
        letter.failed.to_string(),
        rfc3339(time(letter.moved_us)),
        letter.reason.escape_debug().to_string(),
    ]
}

fn to_json(Shown { record, state }: &Shown, names: &Names) -> Value {
    let letter = record.dead_letter();
    let letter = letter.as_ref();
    let first = letter.map(|letter| letter.first_delivery_us).filter(|us| *us > 0);
    json!({
        "partition": record.partition,
        "offset": record.offset,
        "state": state,
        "origin_topic": letter.map(|letter| names.topic(letter.origin.topic)),
        "origin_partition": letter.map(|letter| letter.origin.index),
        "origin_offset": letter.map(|letter| letter.offset.0),
        "group": letter.map(|letter| names.group(letter.group)),
        "acquired": letter.map(|letter| letter.acquired),
        "failed": letter.map(|letter| letter.failed),
        "first_delivery": first.map(|us| rfc3339(time(us))),
        "moved": letter.map(|letter| rfc3339(time(letter.moved_us))),
        "reason": letter.map(|letter| letter.reason.as_str()),
        "key": record.key.as_deref().map(text),
        "value": text(&record.value),
    })
}

fn time(us: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_micros(us)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use ringbolt_client::{Offset, PartitionId};

    use super::*;

    fn shown() -> (Shown, Names) {
        let letter = DeadLetter {
            origin: PartitionId::new(TopicId(1), 3),
            offset: Offset(41),
            group: GroupId(9),
            acquired: 6,
            failed: 5,
            first_delivery_us: 0,
            moved_us: 1_500_000,
            reason: "exit status 1: two\nlines".into(),
        };
        let record = ConsumedRecord {
            topic: "orders.dlq".into(),
            partition: 0,
            offset: 7,
            commit_time: UNIX_EPOCH,
            timestamp: UNIX_EPOCH,
            key: None,
            value: b"v"[..].into(),
            headers: vec![("ringbolt.dead-letter".to_owned(), letter.encode().into())],
        };
        let topics = BTreeMap::from([(TopicId(1), "orders".to_owned())]);
        (Shown { record, state: "open" }, Names { topics, groups: BTreeMap::new() })
    }

    #[test]
    fn a_dead_letter_is_one_row_with_where_it_comes_from_and_why() {
        let (shown, names) = shown();
        let text = to_table(vec![to_row(&shown, &names)]);
        let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        let expected =
            ["0", "7", "open", "orders/3/41", "9", "6", "5", "1970-01-01T00:00:01.500000Z", "exit"];
        assert_eq!(row[..9], expected);
        assert!(text.contains("exit status 1: two\\nlines"), "{text}");
    }

    #[test]
    fn the_keys_of_a_dead_letter_are_those_of_the_help() {
        let (shown, names) = shown();
        let json = to_json(&shown, &names);
        let mut keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let mut expected = [
            "partition",
            "offset",
            "state",
            "origin_topic",
            "origin_partition",
            "origin_offset",
            "group",
            "acquired",
            "failed",
            "first_delivery",
            "moved",
            "reason",
            "key",
            "value",
        ];
        expected.sort_unstable();
        assert_eq!(keys, expected);
        assert_eq!((&json["first_delivery"], &json["group"]), (&Value::Null, &json!("9")));
    }
}
