//! The project's rules about its own text, each with a planted violation that
//! it must catch: a rule that cannot fail is not kept.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Longest file, in lines.
const MAX_FILE_LINES: usize = 600;

/// Longest function, in lines from its signature to its closing brace.
const MAX_FUNCTION_LINES: usize = 70;

/// Functions that are longer, with their length. The list may only shrink: an
/// entry that is not needed any more is an error, and so is a longer one.
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[];

/// Folders and files that are pure: no system call, no clock, no thread, no
/// randomness of their own.
const PURE: &[&str] = &[
    "src/shard/",
    "src/consumer/",
    "src/log/",
    "src/session/",
    "src/catalog.rs",
    "src/hash.rs",
    "src/limits.rs",
    "src/buffer.rs",
    "src/time.rs",
    "wire/src/",
    "client/src/session/",
    "client/src/producer_state/",
    "client/src/consumer_state/",
];

/// What pure code never names.
const IMPURE_NAMES: &[&str] = &[
    "crate::io",
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "Instant",
    "SystemTime",
    "rand::",
    "getrandom",
    "libc::",
    "io_uring",
    "tokio",
];

/// Where `unsafe` may stand.
const UNSAFE_FOLDERS: &[&str] = &["src/io/"];

/// Markers of unfinished work.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!"];

/// A Rust file of the workspace, or one that a self-test plants.
struct Source {
    /// From the repository's root, with `/`.
    path: String,
    text: String,
    /// The text without comments, strings and character literals; as many
    /// lines.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into(), code: without_comments_and_strings(text) }
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path.starts_with(place))
    }

    /// The code without its test modules, which may do what they like.
    fn code_without_tests(&self) -> &str {
        let tests = self.code.find("#[cfg(test)]\nmod ");
        &self.code[..tests.unwrap_or(self.code.len())]
    }
}

/// A rule: what is wrong with a file, one line for each place.
type Rule = fn(&Source) -> Vec<String>;

#[test]
fn every_file_keeps_every_rule() {
    let rules: [(&str, Rule); 7] = [
        ("layers", layers),
        ("unsafe", unsafe_places),
        ("file length", file_length),
        ("function length", function_length),
        ("banners", banners),
        ("unfinished work", unfinished),
        ("head comment", head_comment),
    ];
    let sources = sources();
    assert!(sources.len() > 50, "only {} files were found", sources.len());
    let mut report = String::new();
    for source in &sources {
        for (name, rule) in rules {
            for fault in rule(source) {
                let _ = writeln!(report, "{}: {name}: {fault}", source.path);
            }
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn the_list_of_long_functions_only_shrinks() {
    let sources = sources();
    for (path, name, len) in LONG_FUNCTIONS {
        let source = sources.iter().find(|source| source.path == *path);
        let source = source.unwrap_or_else(|| panic!("{path} is in LONG_FUNCTIONS, and is gone"));
        let now = functions(&source.code).into_iter().find(|function| function.name == *name);
        let now = now.unwrap_or_else(|| panic!("{name} in {path} is in LONG_FUNCTIONS, and is gone"));
        assert!(now.lines > MAX_FUNCTION_LINES, "{name} in {path} need not be in LONG_FUNCTIONS any more");
        assert_eq!(now.lines, *len, "{name} in {path}: the list must say how long it is, and only shrink");
    }
}

#[test]
fn documentation_names_only_flags_that_exist() {
    let mut flags: Vec<String> = sources().iter().flat_map(|source| defined_flags(&source.text)).collect();
    assert!(flags.len() > 20, "{flags:?}");
    let script = script_flags(include_str!("../benches/compare.sh"));
    assert!(script.iter().any(|flag| flag == "rounds"), "{script:?}");
    flags.extend(script);
    let mut report = String::new();
    for (path, text) in documents() {
        for (line, flag) in unknown_flags(&text, &flags) {
            let _ = writeln!(report, "{path}:{line}: --{flag} is no flag of ringbolt, loadgen or compare.sh");
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn ci_runs_the_test_command_of_the_readme() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read =
        |name: &str| std::fs::read_to_string(root.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let command = "cargo test --workspace";
    assert!(read("README.md").lines().any(|line| line.trim() == command));
    assert!(read(".ci/run").lines().any(|line| line.trim() == format!("step {command}")));
}

/// Options of `serve` that say what it serves and where, and change no speed.
const NO_KNOBS: &[&str] = &["data", "listen", "help", "version"];

#[test]
fn every_knob_of_serve_has_a_section_in_tuning() {
    let flags = defined_flags(include_str!("../src/serve/options.rs"));
    assert!(flags.len() > 15, "{flags:?}");
    let missing = flags_without_section(include_str!("../tuning.md"), &flags);
    assert!(missing.is_empty(), "tuning.md has no section about {missing:?}");
    let gone: Vec<_> = NO_KNOBS.iter().filter(|flag| !flags.iter().any(|known| known == *flag)).collect();
    assert!(gone.is_empty(), "{gone:?} in NO_KNOBS are no flags any more");
}

/// The knobs among `flags` that no heading of a document names.
fn flags_without_section(text: &str, flags: &[String]) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with("### "));
    let words = headings.flat_map(|line| line.split(|c: char| c.is_whitespace() || c == ',' || c == '`'));
    let named: Vec<&str> = words.filter_map(|word| word.strip_prefix("--")).collect();
    let has_none = |flag: &&String| !named.contains(&flag.as_str()) && !NO_KNOBS.contains(&flag.as_str());
    flags.iter().filter(has_none).cloned().collect()
}

#[test]
fn a_knob_without_a_section_is_found() {
    let flags = ["data", "cores", "memory", "idle"].map(String::from);
    let found = flags_without_section("### --cores, --idle-poll\n`--memory` is one.\n", &flags);
    assert_eq!(found, ["memory", "idle"]);
}

/// The flags that a shell script takes, as the arms of its `case` name them.
fn script_flags(text: &str) -> Vec<String> {
    let arms = text.lines().filter_map(|line| line.trim().strip_prefix("--")?.split_once(')'));
    arms.map(|(flag, _)| flag.to_owned()).collect()
}

fn layers(source: &Source) -> Vec<String> {
    if !source.is_in(PURE) {
        return Vec::new();
    }
    lines_with(source.code_without_tests(), IMPURE_NAMES)
}

fn unsafe_places(source: &Source) -> Vec<String> {
    if source.is_in(UNSAFE_FOLDERS) { Vec::new() } else { lines_with(&source.code, &["unsafe"]) }
}

fn file_length(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    if lines <= MAX_FILE_LINES {
        Vec::new()
    } else {
        vec![format!("{lines} lines, at most {MAX_FILE_LINES}")]
    }
}

fn function_length(source: &Source) -> Vec<String> {
    let known = |name: &str| LONG_FUNCTIONS.iter().any(|(path, f, _)| *path == source.path && *f == name);
    let long =
        functions(&source.code).into_iter().filter(|f| f.lines > MAX_FUNCTION_LINES && !known(&f.name));
    long.map(|f| format!("{} has {} lines, at most {MAX_FUNCTION_LINES}", f.name, f.lines)).collect()
}

/// A comment that is only a line of signs, or has one around its words.
fn banners(source: &Source) -> Vec<String> {
    let is_banner = |line: &str| {
        let Some(comment) = line.trim_start().strip_prefix("//") else { return false };
        ["-----", "=====", "*****", "#####", "/////", "~~~~~"].iter().any(|sign| {
            // Tables and drawings in documentation have such lines too, between
            // other signs.
            let words = comment.trim_matches(|c: char| c == '/' || c == '!' || c.is_whitespace());
            words.starts_with(sign) || (words.ends_with(sign) && !words.starts_with(['|', '+']))
        })
    };
    let lines = source.text.lines().enumerate().filter(|(_, line)| is_banner(line));
    lines.map(|(i, line)| format!("line {}: {}", i + 1, line.trim())).collect()
}

fn unfinished(source: &Source) -> Vec<String> {
    lines_with(&source.code, UNFINISHED)
}

/// A file opens by saying what it is.
fn head_comment(source: &Source) -> Vec<String> {
    if source.text.starts_with("//! ") { Vec::new() } else { vec!["it does not open with //!".into()] }
}

/// Programs that documentation names beside ours, each with its own flags.
const OTHER_PROGRAMS: &[&str] =
    &["cargo", "redis-server", "redis-benchmark", "perf ", "docker", "podman", "fio "];

/// The long flags that a file defines with clap: named, or after their field.
fn defined_flags(text: &str) -> Vec<String> {
    let mut flags = vec!["help".to_owned(), "version".to_owned()];
    let mut rest = text;
    while let Some(at) = rest.find("#[arg(") {
        rest = &rest[at + "#[arg(".len()..];
        let Some(end) = rest.find(")]\n") else { break };
        let (attribute, after) = (&rest[..end], &rest[end + 3..]);
        let named = attribute.split_once("long = \"").and_then(|(_, name)| name.split_once('"'));
        let field = after.lines().map(str::trim).find(|line| !line.starts_with('#') && !line.is_empty());
        let field = field.and_then(|line| line.strip_prefix("pub ").unwrap_or(line).split_once(':'));
        match (named, field) {
            (Some((name, _)), _) => flags.push(name.to_owned()),
            (None, Some((field, _))) if names(attribute, "long") => flags.push(field.replace('_', "-")),
            _ => {}
        }
    }
    flags
}

/// The flags in a document that are not among those, with their lines. What
/// other programs are given does not count, but for what cargo passes on.
fn unknown_flags(text: &str, known: &[String]) -> Vec<(usize, String)> {
    let mut unknown = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let ours = match line.split_once(" -- ") {
            Some((_, passed_on)) if line.contains("cargo") => passed_on,
            _ if OTHER_PROGRAMS.iter().any(|program| line.contains(program)) => continue,
            _ => line,
        };
        for (at, _) in ours.match_indices("--") {
            let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            let flag: String = ours[at + 2..].chars().take_while(|c| is_part(*c)).collect();
            let opens = ours[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '-');
            if opens && flag.starts_with(|c: char| c.is_ascii_lowercase()) && !known.contains(&flag) {
                unknown.push((i + 1, flag));
            }
        }
    }
    unknown
}

/// The lines of `code` that name one of `words`, as a whole word.
fn lines_with(code: &str, words: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    for (i, line) in code.lines().enumerate() {
        for word in words {
            if names(line, word) {
                faults.push(format!("line {} names {word}", i + 1));
            }
        }
    }
    faults
}

fn names(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let ends_open = word.ends_with(is_part);
        !(before.is_some_and(is_part) || ends_open && after.is_some_and(is_part))
    })
}

struct Function {
    name: String,
    lines: usize,
}

/// The functions of a file that is formatted by rustfmt: each ends at the brace
/// that stands as far in as its signature.
fn functions(code: &str) -> Vec<Function> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = line.len() - line.trim_start().len();
        let closes = |l: &&str| l.len() - l.trim_start().len() == indent && l.trim_start().starts_with('}');
        let body = lines[i..].iter().position(|l| l.trim_end().ends_with(['{', ';', '}']));
        let Some(body) = body else { continue };
        // A declaration, or a body on the signature's line.
        if !lines[i + body].trim_end().ends_with('{') {
            continue;
        }
        let Some(end) = lines[i + body + 1..].iter().position(closes) else { continue };
        found.push(Function { name, lines: body + 1 + end + 1 });
    }
    found
}

fn function_name(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let qualifiers = ["pub", "const", "async", "unsafe", "extern", "pub(crate)", "pub(super)"];
    let word = words.find(|word| !qualifiers.contains(word))?;
    if word != "fn" {
        return None;
    }
    let name: String = words.next()?.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// Blanks out comments, strings and character literals, keeping every line.
fn without_comments_and_strings(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match &bytes[at..] {
            [b'/', b'/', ..] => find(bytes, at, b"\n").unwrap_or(bytes.len()),
            [b'/', b'*', ..] => find(bytes, at + 2, b"*/").map_or(bytes.len(), |end| end + 2),
            [b'"', ..] => end_of_string(bytes, at + 1),
            [b'r', b'"' | b'#', ..] if !is_word_before(bytes, at) => {
                end_of_raw_string(bytes, at).unwrap_or(at)
            }
            [b'\'', ..] => end_of_char(bytes, at).unwrap_or(at),
            _ => at,
        };
        if end == at {
            // Only whole ASCII characters matter; others are copied byte by byte
            // as blanks.
            out.push(if bytes[at].is_ascii() { char::from(bytes[at]) } else { ' ' });
            at += 1;
            continue;
        }
        out.extend(bytes[at..end].iter().map(|&byte| if byte == b'\n' { '\n' } else { ' ' }));
        at = end;
    }
    out
}

fn is_word_before(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_') && bytes[at - 1] != b'b'
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    let from = from.min(bytes.len());
    bytes[from..].windows(what.len()).position(|window| window == what).map(|at| from + at)
}

fn end_of_string(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

fn end_of_raw_string(bytes: &[u8], at: usize) -> Option<usize> {
    let hashes = bytes[at + 1..].iter().take_while(|&&byte| byte == b'#').count();
    if bytes.get(at + 1 + hashes) != Some(&b'"') {
        return None;
    }
    let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    Some(find(bytes, at + 2 + hashes, &close).map_or(bytes.len(), |end| end + close.len()))
}

/// The end of a character literal; `None` for a lifetime.
fn end_of_char(bytes: &[u8], at: usize) -> Option<usize> {
    let escaped = bytes.get(at + 1) == Some(&b'\\');
    let limit = (at + 12).min(bytes.len());
    let from = if escaped { at + 3 } else { at + 2 };
    let end = (from..limit).find(|&end| bytes[end] == b'\'')?;
    let is_one = escaped || std::str::from_utf8(&bytes[at + 1..end]).is_ok_and(|s| s.chars().count() == 1);
    is_one.then_some(end + 1)
}

/// Every Rust file of the workspace.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches", "wire", "client", "loadgen"] {
        collect(&root.join(folder), &mut files);
    }
    files.sort();
    let read = |file: &PathBuf| {
        let path = file.strip_prefix(root).expect("it is under the root");
        let path = path.to_str().expect("the repository's names are UTF-8").replace('\\', "/");
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{path}: {error}"));
        Source::new(&path, &text)
    };
    files.iter().map(read).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("a folder that can be read").path();
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The documents for users, with their text.
fn documents() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in [root.to_path_buf(), root.join("docs")] {
        let entries =
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries {
            let path = entry.expect("a folder that can be read").path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = std::fs::read_to_string(&path).expect("a document is text");
                found.push((path.display().to_string(), text));
            }
        }
    }
    found
}

/// Asserts that a rule finds so many faults in a planted file.
fn check(rule: Rule, path: &str, text: &str, faults: usize) {
    let found = rule(&Source::new(path, text));
    assert_eq!(found.len(), faults, "{path}:\n{text}\n{found:?}");
}

#[test]
fn pure_code_that_names_the_outside_is_found() {
    check(layers, "src/shard/shard.rs", "//! x\nuse std::time::Instant;\n", 1);
    check(layers, "src/log/recovery.rs", "use crate::io::disk;\nlet t = SystemTime::now();\n", 2);
    check(layers, "wire/src/batch.rs", "fn f() { std::thread::spawn(g); }\n", 1);
    check(layers, "client/src/session/mod.rs", "let x: u8 = rand::random();\n", 1);
    check(layers, "client/src/producer_state/window.rs", "use tokio::time::sleep;\n", 1);
    check(layers, "src/io/disk.rs", "use std::time::Instant;\n", 0);
    check(layers, "src/shard/shard.rs", "// not std::fs, and no Instant\nlet s = \"std::net\";\n", 0);
    check(layers, "src/shard/shard.rs", "struct Instantly;\nuse std::fmt;\nuse crate::iodine;\n", 0);
    check(layers, "src/log/superblock.rs", "#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n", 0);
}

#[test]
fn unsafe_code_outside_of_io_is_found() {
    check(unsafe_places, "src/shard/shard.rs", "fn f() { unsafe { g() } }\n", 1);
    check(unsafe_places, "src/io/ring.rs", "fn f() { unsafe { g() } }\n", 0);
    check(unsafe_places, "src/log/index.rs", "// unsafe\nlet s = r#\"an \"unsafe\" word\"#;\n", 0);
}

#[test]
fn a_file_that_is_too_long_is_found() {
    check(file_length, "src/a.rs", &"x\n".repeat(MAX_FILE_LINES), 0);
    check(file_length, "src/a.rs", &"x\n".repeat(MAX_FILE_LINES + 1), 1);
}

#[test]
fn a_function_that_is_too_long_is_found() {
    let function = |lines: usize| {
        format!("    pub(super) fn f(\n        a: u8,\n    ) {{\n{}    }}\n", "        x();\n".repeat(lines))
    };
    check(function_length, "src/a.rs", &function(MAX_FUNCTION_LINES - 4), 0);
    check(function_length, "src/a.rs", &function(MAX_FUNCTION_LINES - 3), 1);
    let within = format!("impl A {{\n{}}}\n", function(3).repeat(40));
    check(function_length, "src/a.rs", &within, 0);
    check(
        function_length,
        "src/a.rs",
        &format!("trait A {{\n    fn a(&self) -> u8;\n{}}}\n", "    x\n".repeat(90)),
        0,
    );
}

#[test]
fn a_banner_is_found() {
    check(banners, "src/a.rs", "// ------------\n// Tests\n// ------------\n", 2);
    check(banners, "src/a.rs", "// ===== Public =====\n", 1);
    check(banners, "src/a.rs", "//! |---|---|\n//! +------+------+\n// a - b\n", 0);
}

#[test]
fn unfinished_work_is_found() {
    let marked: String = UNFINISHED.iter().map(|mark| format!("fn f() {{ {mark}(1) }}\n")).collect();
    check(unfinished, "src/a.rs", &marked, UNFINISHED.len());
    let [said, called] = [UNFINISHED[0], UNFINISHED[2]];
    check(unfinished, "src/a.rs", &format!("// no {said}() here\nlet todo = 1;\nmy_{called}();\n"), 0);
}

#[test]
fn a_file_without_a_head_comment_is_found() {
    check(head_comment, "src/a.rs", "use std::fmt;\n", 1);
    check(head_comment, "src/a.rs", "// A comment, but not of the file.\n", 1);
    check(head_comment, "src/a.rs", "//! What it is.\n", 0);
}

#[test]
fn comments_and_strings_are_blanked_and_lines_are_kept() {
    let check = |text: &str, code: &str| assert_eq!(without_comments_and_strings(text), code);
    check("a // b\nc", "a     \nc");
    check("a /* b\n */ c", "a     \n    c");
    check(r#"f("a\"b", 'x', '\'', 'a)"#, "f(      ,    ,     , 'a)");
    check("r#\"a\"b\"# d", "         d");
    check("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)");
}

#[test]
fn a_flag_that_does_not_exist_is_found() {
    let source = "    #[arg(long, value_name = \"N\")]\n    pub in_flight: u32,\n\
        #[arg(long = \"busy-poll\")]\n    spin: bool,\n    #[arg(short)]\n    quiet: bool,\n";
    let known = defined_flags(source);
    assert_eq!(known, ["help", "version", "in-flight", "busy-poll"]);
    let check = |text: &str, unknown: &[(usize, &str)]| {
        let found = unknown_flags(text, &known);
        assert!(
            found.iter().map(|(line, flag)| (*line, flag.as_str())).eq(unknown.iter().copied()),
            "{found:?}"
        );
    };
    check("`--in-flight 3` and\n`--inflight`", &[(2, "inflight")]);
    check("cargo test --workspace", &[]);
    check("cargo run --release -- serve --help --spin", &[(1, "spin")]);
    check("|---|---|\na -- b --\n", &[]);
}
