//! Bytes of a frame as lines for a person, and back.

const HEADER: &str = "= frame header, magic a4, crc x32, version u8, opcode u8, flags u16, status u16, \
    reserved u16, meta_len u32, payload_len u32, correlation u64, = meta";

/// One line for each field: position, bytes, name and value. `fields` names
/// them in order: `u8` to `u64` are numbers, `x32` is one in hexadecimal, `aN`
/// is N bytes of text, `rN` N raw bytes; `=` starts a heading.
pub fn dump(frame: &[u8], fields: &str) -> String {
    let mut out = String::new();
    let mut at = 0;
    let spec = format!("{HEADER}, {fields}");
    for field in spec.split(", ").map(str::trim).filter(|f| !f.is_empty()) {
        let (name, kind) = field.rsplit_once(' ').expect("a name and a kind");
        if let Some(heading) = field.strip_prefix("= ") {
            // Nothing to head when meta is empty.
            if at < frame.len() {
                out.push_str(&format!("# {heading}\n"));
            }
            continue;
        }
        let (len, value) = value_of(&frame[at..], kind);
        for (i, line) in frame[at..at + len].chunks(8).enumerate() {
            let hex: Vec<String> = line.iter().map(|b| format!("{b:02x}")).collect();
            let text = if i == 0 { format!("{name} = {value}") } else { String::new() };
            let line = format!("{:4}  {:24}{text}", at + 8 * i, hex.join(" "));
            out.push_str(line.trim_end());
            out.push('\n');
        }
        at += len;
    }
    assert_eq!(at, frame.len(), "the fields do not cover the frame:\n{out}");
    out
}

/// Length of a field and its value in words.
fn value_of(bytes: &[u8], kind: &str) -> (usize, String) {
    let number = |len: usize| {
        let mut word = [0; 8];
        word[..len].copy_from_slice(&bytes[..len]);
        u64::from_le_bytes(word)
    };
    match kind {
        "x32" => (4, format!("{:#010x}", number(4))),
        "u8" | "u16" | "u32" | "u64" => {
            let len = kind[1..].parse::<usize>().unwrap() / 8;
            let value = number(len);
            let none = (len == 4 && value == u64::from(u32::MAX)) || value == u64::MAX;
            (len, if none { format!("2^{} - 1", 8 * len) } else { value.to_string() })
        }
        _ => {
            let len: usize = kind[1..].parse().unwrap_or_else(|_| panic!("kind {kind}"));
            let text = match &kind[..1] {
                "a" => format!("{:?}", std::str::from_utf8(&bytes[..len]).expect("text")),
                _ => format!("{len} bytes"),
            };
            (len, text)
        }
    }
}

/// The bytes of a [`dump`].
pub fn undump(text: &str) -> Vec<u8> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| {
            let columns = line.get(6..line.len().min(30)).unwrap_or_default();
            columns
                .split_whitespace()
                .map(|hex| u8::from_str_radix(hex, 16).expect("hex"))
                .collect::<Vec<_>>()
        })
        .collect()
}
