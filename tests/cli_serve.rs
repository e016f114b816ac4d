//! `ringbolt serve` with a file of options, stopped before it serves, and a
//! directory that is served again with others.

mod net_common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use net_common::cli::*;
use net_common::*;
use ringbolt::io::pin::available_cpus;
use tempfile::TempDir;

fn write_config(dir: &TempDir, text: &str) -> String {
    let file = dir.path().join("ringbolt.toml");
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

fn segment_len(dir: &TempDir) -> u64 {
    std::fs::metadata(dir.path().join("data/shard-000/segment-0000000000000000")).unwrap().len()
}

#[test]
fn options_come_from_the_file_and_flags_win() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    let file = write_config(
        &dir,
        &format!(
            "data = {data:?}\nlisten = \"127.0.0.1:1\"\nshards = 3\nsegment-size = \"4MiB\"\nmemory = 134217728\n"
        ),
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbolt"));
    command.args(["serve", "--config", &file, "--listen", "127.0.0.1:0", "--shards", "2"]);
    let mut server = Server::spawn(&mut command);
    let broker = At(server.addr);
    assert_eq!(broker.run(&["stats", "--json"]).json()["broker"]["shards"], 2, "the flag");
    broker.run(&["topic", "create", "t"]).good();
    assert_eq!(server.stop().code(), Some(0));
    assert_eq!(segment_len(&dir), 4 << 20, "the file");
}

#[test]
fn a_file_that_says_something_unknown_is_refused_with_its_name() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    for (text, says) in [
        ("shards = 1\nsegmnet-size = 5\n", "unknown field `segmnet-size`"),
        ("memory = \"1MiB\"\n", "--memory is 1048576"),
        ("memory = \"much\"\n", "memory"),
        ("shards = \"two\"\n", "shards"),
        ("= 1\n", "line 1"),
    ] {
        let file = write_config(&dir, text);
        let args = ["serve", "--config", &file, "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()];
        ringbolt(&args, b"").bad(1, &[says]);
    }
    let missing = dir.path().join("none.toml");
    ringbolt(&["serve", "--config", missing.to_str().unwrap()], b"").bad(1, &["cannot read", "none.toml"]);
    assert!(!data.exists(), "nothing was begun");
}

/// What a topic has, partition by partition.
fn contents(broker: At) -> String {
    let partition = |index: u32| {
        let index = index.to_string();
        broker.run(&["consume", "t", "--verbose", "--partition", &index]).good()
    };
    (0..4).map(partition).collect()
}

/// The two numbers of cores that are tried in turn; on a machine with one core
/// they are the same.
fn core_lists() -> [String; 2] {
    let cpus: Vec<String> = available_cpus().unwrap().iter().map(usize::to_string).collect();
    [cpus[0].clone(), cpus[..cpus.len().min(2)].join(",")]
}

fn serve_on(dir: &TempDir, cores: &str) -> Server {
    let usual = ["--listen", "127.0.0.1:0", "--memory", "160MiB", "--cores", cores];
    // For the first start; later ones keep to the directory.
    let first = ["--shards", "2", "--segment-size", "16MiB"];
    match dir.path().join("data").exists() {
        true => Server::serve(dir, &usual),
        false => Server::serve(dir, &[&usual[..], &first].concat()),
    }
}

#[test]
fn a_directory_is_served_by_another_number_of_cores_and_keeps_everything() {
    let dir = TempDir::new().unwrap();
    let [one, two] = core_lists();
    let mut expected = String::new();
    for (start, cores) in [&one, &two, &one, &two].into_iter().enumerate() {
        let mut server = serve_on(&dir, cores);
        let broker = At(server.addr);
        let stats = broker.run(&["stats", "--json"]).json();
        assert_eq!(stats["broker"]["shards"], 2);
        assert_eq!(stats["stats"]["cores"], cores.split(',').count() as u64, "start {start}");
        if start == 0 {
            broker.run(&["topic", "create", "t", "--partitions", "4"]).good();
        }
        assert_eq!(contents(broker), expected, "start {start}");
        for partition in 0..4 {
            let input: String = (0..50).map(|n| format!("{start}.{partition}.{n}\n")).collect();
            let partition = partition.to_string();
            let told = broker.run_on(&["produce", "t", "--partition", &partition], input.as_bytes()).good();
            assert!(told.lines().eq((0..50).map(|n| format!("{partition} {}", start * 50 + n))), "{told}");
        }
        expected = contents(broker);
        assert_eq!(expected.lines().count(), (start + 1) * 200);
        // By turns in good order and not.
        match start % 2 {
            0 => server.kill(),
            _ => assert_eq!(server.stop().code(), Some(0)),
        }
    }
}

/// Starts a broker whose complaints go to a file, and stops it again.
fn log_of_a_start(dir: &TempDir, options: &[&str]) -> String {
    let log = dir.path().join("log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbolt"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--memory", "160MiB", "--data"]);
    command.arg(dir.path().join("data")).args(options);
    command.env("RUST_LOG", "warn").stderr(Stdio::from(std::fs::File::create(&log).unwrap()));
    let mut server = Server::spawn(&mut command);
    let broker = At(server.addr);
    assert_eq!(broker.run(&["stats", "--json"]).json()["broker"]["shards"], 2);
    assert_eq!(broker.run(&["consume", "t"]).good().lines().count(), 100);
    assert_eq!(server.stop().code(), Some(0));
    std::fs::read_to_string(Path::new(&log)).unwrap()
}

#[test]
fn what_was_chosen_when_the_directory_was_made_stays_and_whoever_asks_otherwise_is_told() {
    let dir = TempDir::new().unwrap();
    let mut server = serve_on(&dir, &core_lists()[0]);
    let broker = At(server.addr);
    broker.run(&["topic", "create", "t", "--partitions", "4"]).good();
    for partition in 0..4 {
        broker.run_on(
            &["produce", "t", "-q", "--partition", &partition.to_string()],
            "v\n".repeat(25).as_bytes(),
        );
    }
    assert_eq!(server.stop().code(), Some(0));
    for shards in ["1", "3"] {
        let log = log_of_a_start(&dir, &["--shards", shards]);
        let warning = log.lines().find(|line| line.contains("--shards has no effect")).expect("a warning");
        assert!(warning.contains("stays as it was made"), "{warning}");
        assert!(warning.contains(&format!("asked={shards}")) && warning.contains("shards=2"), "{warning}");
    }
    // The second is the default of a new directory: asked for all the same.
    for (size, asked) in [("4MiB", "asked=4194304"), ("256MiB", "asked=268435456")] {
        let log = log_of_a_start(&dir, &["--segment-size", size]);
        let warning = log.lines().find(|line| line.contains("--segment-size has no effect"));
        let warning = warning.unwrap_or_else(|| panic!("{size}: {log}"));
        assert!(warning.contains(asked) && warning.contains("segment_size=16777216"), "{warning}");
    }
    assert_eq!(segment_len(&dir), 16 << 20);
    for options in [&["--shards", "2"][..], &["--segment-size", "16MiB"], &[]] {
        let log = log_of_a_start(&dir, options);
        assert!(!log.contains("has no effect"), "{log}");
    }
}

/// As in a container without root, where only little may be locked.
#[test]
fn root_of_a_user_namespace_serves_on_unregistered_memory() {
    let dir = TempDir::new().unwrap();
    let namespace = ["--memlock=8388608", "unshare", "--user", "--map-root-user", "--"];
    if !Command::new("prlimit").args(namespace).arg("true").status().is_ok_and(|status| status.success()) {
        namespace::skipped("there are no user namespaces here");
        return;
    }
    let mut command = Command::new("prlimit");
    command.args(namespace).arg(env!("CARGO_BIN_EXE_ringbolt"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--shards", "1", "--memory", "96MiB", "--data"]);
    let mut server = Server::spawn(command.arg(dir.path().join("data")));
    let broker = At(server.addr);
    broker.run(&["topic", "create", "t"]).good();
    assert_eq!(broker.run_on(&["produce", "t"], b"v\n").good(), "0 0\n");
    assert_eq!(server.stop().code(), Some(0));
}

/// How many files for segments to come there are, whole or not.
fn spares(dir: &TempDir) -> usize {
    let Ok(folder) = std::fs::read_dir(dir.path().join("data/shard-000")) else { return 0 };
    folder.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("spare-")).count()
}

#[test]
fn a_stop_during_the_start_ends_it_at_once_and_the_next_start_finds_everything() {
    let dir = TempDir::new().unwrap();
    let mut server = serve_on(&dir, &core_lists()[0]);
    let broker = At(server.addr);
    broker.run(&["topic", "create", "t", "--partitions", "4"]).good();
    broker.run_on(&["produce", "t", "-q", "--partition", "0"], "v\n".repeat(25).as_bytes()).good();
    assert_eq!(server.stop().code(), Some(0));
    let before = spares(&dir);
    for (times, stop) in [(1, "-TERM"), (2, "-INT")] {
        // 8 GiB: there is time to stop it.
        let data = dir.path().join("data");
        let mut starting = Running::new(
            Command::new(env!("CARGO_BIN_EXE_ringbolt"))
                .args(["serve", "--listen", "127.0.0.1:0", "--memory", "160MiB", "--preallocate", "512"])
                .arg("--data")
                .arg(data),
        );
        wait_until("files are being made", || spares(&dir) > before + 2 * times);
        signal(&starting.child, stop);
        let signalled = Instant::now();
        let status = ended(&mut starting.child);
        assert!(signalled.elapsed() < Duration::from_secs(5), "{:?}", signalled.elapsed());
        assert_eq!(status.code(), Some(0), "{stop}");
        assert_eq!(starting.try_line(), None, "it listened already");
    }
    let mut server = serve_on(&dir, &core_lists()[0]);
    assert_eq!(contents(At(server.addr)).lines().count(), 25);
    assert_eq!(server.stop().code(), Some(0));
}
