//! Records as lines on standard output.

use std::io::{self, BufWriter, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringbolt_client::ConsumedRecord;
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

    /// False if nobody reads the output any more.
    pub fn print(&mut self, record: &ConsumedRecord) -> Result<bool, CommandError> {
        self.printed += 1;
        let result = write_record(&mut self.out, self.format, record);
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

fn write_record(out: &mut impl Write, format: Format, record: &ConsumedRecord) -> io::Result<()> {
    match format {
        Format::Value => out.write_all(&record.value)?,
        Format::Verbose => {
            write!(out, "{}\t{}\t{}\t", record.partition, record.offset, rfc3339(record.commit_time))?;
            out.write_all(record.key.as_deref().unwrap_or(b"-"))?;
            out.write_all(b"\t")?;
            out.write_all(&record.value)?;
        }
        Format::Json => serde_json::to_writer(&mut *out, &to_json(record))?,
    }
    out.write_all(b"\n")
}

/// The object that the help of the command describes.
pub fn to_json(record: &ConsumedRecord) -> Value {
    let headers: Vec<Value> =
        record.headers.iter().map(|(name, value)| json!({ "name": name, "value": text(value) })).collect();
    json!({
        "topic": &*record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "commit_time": rfc3339(record.commit_time),
        "timestamp": rfc3339(record.timestamp),
        "key": record.key.as_deref().map(text),
        "value": text(&record.value),
        "headers": headers,
    })
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

    fn printed(format: Format, record: &ConsumedRecord) -> Vec<u8> {
        let mut out = Vec::new();
        write_record(&mut out, format, record).unwrap();
        out
    }

    #[test]
    fn values_are_printed_as_they_are() {
        assert_eq!(printed(Format::Value, &record()), b"\xff\x00\n");
    }

    #[test]
    fn verbose_puts_where_and_when_before_the_value() {
        let with_key = ConsumedRecord { key: Some(b"k"[..].into()), value: b"v"[..].into(), ..record() };
        let line = String::from_utf8(printed(Format::Verbose, &with_key)).unwrap();
        assert_eq!(line, "2\t7\t1970-01-01T00:00:01.500000Z\tk\tv\n");
        assert!(printed(Format::Verbose, &record()).ends_with(b"\t-\t\xff\x00\n"));
    }

    #[test]
    fn json_is_one_line_with_the_keys_of_the_help() {
        let line = String::from_utf8(printed(Format::Json, &record())).unwrap();
        let expected = json!({
            "topic": "orders",
            "partition": 2,
            "offset": 7,
            "commit_time": "1970-01-01T00:00:01.500000Z",
            "timestamp": "1970-01-01T00:00:00.000000Z",
            "key": null,
            "value": { "hex": "ff00" },
            "headers": [{ "name": "lang", "value": "en" }],
        });
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), expected);
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn times_that_no_calendar_has_are_printed_all_the_same() {
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(1 << 40)), "9999-12-31T23:59:59.000000Z");
    }
}
