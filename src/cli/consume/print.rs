//! Records as lines on standard output.

use std::io::{self, BufWriter, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringbolt_client::{ConsumedRecord, Delivery};
use serde_json::{Value, json};

use crate::cli::connection::CommandError;

/// How records are printed.
#[derive(Clone, Copy)]
pub enum Format {
    /// The value.
    Value,
    /// Partition, offset, time and key before it.
    Verbose,
    /// A JSON object.
    Json,
}

/// What a group says of a record that it delivers.
#[derive(Clone, Copy)]
struct Attempts {
    acquired: u32,
    failed: u32,
    /// `None` if it is this one, or nobody knows.
    first_delivery: Option<SystemTime>,
}

impl Attempts {
    fn of(delivery: &Delivery) -> Attempts {
        Attempts {
            acquired: delivery.acquired(),
            failed: delivery.failed(),
            first_delivery: delivery.first_delivery(),
        }
    }

    fn in_words(&self) -> String {
        let Attempts { acquired, failed, first_delivery } = self;
        let first = first_delivery.map(|time| format!(", first {}", rfc3339(time))).unwrap_or_default();
        format!(" (delivery {acquired}, failed {failed}{first})")
    }
}

/// Prints records.
pub struct Printer {
    out: BufWriter<io::Stdout>,
    format: Format,
    /// Records so far.
    pub printed: u64,
}

impl Printer {
    /// To standard output.
    pub fn new(format: Format) -> Self {
        Printer { out: BufWriter::with_capacity(256 << 10, io::stdout()), format, printed: 0 }
    }

    /// A record that no group delivered. False if nobody reads the output any more.
    pub fn print(&mut self, record: &ConsumedRecord) -> Result<bool, CommandError> {
        self.write(record, None)
    }

    /// False if nobody reads the output any more.
    pub fn print_delivery(&mut self, delivery: &Delivery) -> Result<bool, CommandError> {
        self.write(delivery.record(), Some(Attempts::of(delivery)))
    }

    fn write(&mut self, record: &ConsumedRecord, attempts: Option<Attempts>) -> Result<bool, CommandError> {
        self.printed += 1;
        let result = write_record(&mut self.out, self.format, record, attempts);
        still_read(result)
    }

    /// False if nobody reads the output any more.
    pub fn flush(&mut self) -> Result<bool, CommandError> {
        let result = self.out.flush();
        still_read(result)
    }
}

fn still_read(result: io::Result<()>) -> Result<bool, CommandError> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CommandError::io("writing to standard output")(error)),
    }
}

fn write_record(
    out: &mut impl Write,
    format: Format,
    record: &ConsumedRecord,
    attempts: Option<Attempts>,
) -> io::Result<()> {
    match format {
        Format::Value => out.write_all(&record.value)?,
        Format::Verbose => {
            let time = rfc3339(record.commit_time);
            // Within the field of the time: those behind it stay where they are.
            let again = attempts.filter(|it| it.acquired > 1).map(|it| it.in_words()).unwrap_or_default();
            write!(out, "{}\t{}\t{time}{again}\t", record.partition, record.offset)?;
            out.write_all(record.key.as_deref().unwrap_or(b"-"))?;
            out.write_all(b"\t")?;
            out.write_all(&record.value)?;
        }
        Format::Json => serde_json::to_writer(&mut *out, &to_json(record, attempts))?,
    }
    out.write_all(b"\n")
}

/// The object that the help of the command describes.
fn to_json(record: &ConsumedRecord, attempts: Option<Attempts>) -> Value {
    let headers: Vec<Value> =
        record.headers.iter().map(|(name, value)| json!({ "name": name, "value": text(value) })).collect();
    let mut json = json!({
        "topic": &*record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "commit_time": rfc3339(record.commit_time),
        "timestamp": rfc3339(record.timestamp),
        "key": record.key.as_deref().map(text),
        "value": text(&record.value),
        "headers": headers,
    });
    if let Some(Attempts { acquired, failed, first_delivery }) = attempts {
        json["acquired"] = json!(acquired);
        json["failed"] = json!(failed);
        json["first_delivery"] = json!(first_delivery.map(rfc3339));
    }
    json
}

/// A string if it is one.
pub fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({ "hex": hex })
        }
    }
}

/// humantime prints no year beyond 9999, and a producer may claim any time.
pub fn rfc3339(time: SystemTime) -> String {
    let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_micros(time.clamp(UNIX_EPOCH, last)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ConsumedRecord {
        ConsumedRecord {
            topic: "orders".into(),
            partition: 2,
            offset: 7,
            commit_time: UNIX_EPOCH + Duration::from_micros(1_500_000),
            timestamp: UNIX_EPOCH,
            key: None,
            value: b"\xff\x00"[..].into(),
            headers: vec![("lang".to_owned(), b"en"[..].into())],
        }
    }

    fn attempts(acquired: u32, failed: u32, first_delivery: Option<u64>) -> Option<Attempts> {
        let first_delivery = first_delivery.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        Some(Attempts { acquired, failed, first_delivery })
    }

    fn printed(format: Format, record: &ConsumedRecord, attempts: Option<Attempts>) -> Vec<u8> {
        let mut out = Vec::new();
        write_record(&mut out, format, record, attempts).unwrap();
        out
    }

    #[test]
    fn values_are_printed_as_they_are() {
        assert_eq!(printed(Format::Value, &record(), None), b"\xff\x00\n");
        assert_eq!(printed(Format::Value, &record(), attempts(3, 2, Some(1))), b"\xff\x00\n");
    }

    #[test]
    fn verbose_puts_where_and_when_before_the_value() {
        let with_key = ConsumedRecord { key: Some(b"k"[..].into()), value: b"v"[..].into(), ..record() };
        for (attempts, again) in [
            (None, ""),
            (attempts(1, 0, None), ""),
            (attempts(2, 0, None), " (delivery 2, failed 0)"),
            (attempts(3, 2, Some(1)), " (delivery 3, failed 2, first 1970-01-01T00:00:01.000000Z)"),
        ] {
            let line = String::from_utf8(printed(Format::Verbose, &with_key, attempts)).unwrap();
            assert_eq!(line, format!("2\t7\t1970-01-01T00:00:01.500000Z{again}\tk\tv\n"));
        }
        assert!(printed(Format::Verbose, &record(), None).ends_with(b"\t-\t\xff\x00\n"));
    }

    #[test]
    fn json_is_one_line_with_the_keys_of_the_help() {
        let parsed = |attempts| {
            let line = String::from_utf8(printed(Format::Json, &record(), attempts)).unwrap();
            assert_eq!(line.lines().count(), 1);
            serde_json::from_str::<Value>(&line).unwrap()
        };
        let mut expected = json!({
            "topic": "orders",
            "partition": 2,
            "offset": 7,
            "commit_time": "1970-01-01T00:00:01.500000Z",
            "timestamp": "1970-01-01T00:00:00.000000Z",
            "key": null,
            "value": { "hex": "ff00" },
            "headers": [{ "name": "lang", "value": "en" }],
        });
        assert_eq!(parsed(None), expected);
        expected["acquired"] = json!(3);
        expected["failed"] = json!(2);
        expected["first_delivery"] = json!("1970-01-01T00:00:01.000000Z");
        assert_eq!(parsed(attempts(3, 2, Some(1))), expected);
        expected["first_delivery"] = Value::Null;
        assert_eq!(parsed(attempts(3, 2, None)), expected);
    }

    #[test]
    fn times_that_no_calendar_has_are_printed_all_the_same() {
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(1 << 40)), "9999-12-31T23:59:59.000000Z");
    }
}
