//! What a broker gives back is falsified on its way to consumers that read
//! along: the run must end with a verdict against it that says what was found.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringbolt::serve::{Broker, Config};
use ringbolt_wire::frame::FRAME_HEADER_LEN;
use ringbolt_wire::{BatchHeader, FrameHeader, Opcode, Response};
use serde_json::Value;

/// Changes three or more record batches of one record each.
type Fault = fn(&mut Vec<Vec<u8>>);

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Passes connections on to the broker at `to`, and does `fault` to one answer to
/// a fetch.
fn falsifying(to: SocketAddr, fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind(anywhere()).unwrap();
    let addr = listener.local_addr().unwrap();
    let planted = Arc::new(AtomicBool::new(false));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, broker) = (client.unwrap(), TcpStream::connect(to).unwrap());
            let (mut asking, mut asked) = (client.try_clone().unwrap(), broker.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut asking, &mut asked);
                let _ = asked.shutdown(Shutdown::Both);
            });
            let planted = planted.clone();
            std::thread::spawn(move || pass_answers(broker, client, fault, &planted));
        }
    });
    addr
}

fn pass_answers(mut broker: TcpStream, mut client: TcpStream, fault: Fault, planted: &AtomicBool) {
    while let Some((header, mut frame)) = next_frame(&mut broker) {
        if header.opcode == Opcode::Fetch as u8 && !planted.load(Ordering::Relaxed) {
            // Meanwhile there come to be several batches for the next answer.
            std::thread::sleep(Duration::from_millis(20));
            if let Some(falsified) = falsified(header, &frame, fault) {
                planted.store(true, Ordering::Relaxed);
                frame = falsified;
            }
        }
        if client.write_all(&frame).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
}

fn next_frame(stream: &mut TcpStream) -> Option<(FrameHeader, Vec<u8>)> {
    let mut frame = vec![0; FRAME_HEADER_LEN];
    stream.read_exact(&mut frame).ok()?;
    let header = FrameHeader::decode(&frame, u32::MAX).unwrap().unwrap();
    frame.resize(header.frame_len(), 0);
    stream.read_exact(&mut frame[FRAME_HEADER_LEN..]).ok()?;
    Some((header, frame))
}

/// The answer with the fault in it, if it has batches enough.
fn falsified(header: FrameHeader, frame: &[u8], fault: Fault) -> Option<Vec<u8>> {
    let (head, mut payload) = frame.split_at(header.head_len());
    let meta = &head[FRAME_HEADER_LEN..];
    let response = Response::decode(header.opcode, header.status, meta, header.payload_len).unwrap();
    let Response::Fetched(mut answers) = response else { panic!("{response:?}") };
    let mut batches = Vec::new();
    while !payload.is_empty() {
        let (batch, rest) = payload.split_at(BatchHeader::decode(payload).unwrap().len());
        batches.push(batch.to_vec());
        payload = rest;
    }
    if batches.len() < 3 {
        return None;
    }
    fault(&mut batches);
    let payload = batches.concat();
    answers[0].payload_len = payload.len() as u32;
    let mut out = Vec::new();
    Response::Fetched(answers).encode(&mut out, header.opcode, header.correlation, payload.len() as u32);
    out.extend(payload);
    Some(out)
}

/// Puts `batch` at the offset of `place`; no CRC covers that.
fn at_the_place_of(place: &[u8], batch: &[u8]) -> Vec<u8> {
    let place = BatchHeader::decode(place).unwrap();
    let mut bytes = batch.to_vec();
    BatchHeader::set_placement(&mut bytes, place.base_offset(), place.commit_time_us());
    bytes
}

/// What `loadgen run --consumers 1` ends with when this fault is done to a
/// broker's answer: its exit code, its report, and what it says.
fn run_with(fault: Fault) -> (Option<i32>, Value, String) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut config = Config::new(dir.path().join("data"));
    config.listen = anywhere();
    config.shards = Some(1);
    config.memory = 64 << 20;
    config.segment_size = Some(16 << 20);
    config.allow_buffered = true;
    let broker = Broker::start(config).unwrap();
    let json = dir.path().join("run.json");
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["run", "--addr", &falsifying(broker.addr(), fault).to_string(), "--consumers", "1"])
        .args(["--producers", "1", "--in-flight", "64", "--batch", "1", "--count", "2000", "--json"])
        .arg(&json)
        .output()
        .unwrap();
    broker.stop().unwrap();
    let report = std::fs::read(&json).unwrap_or_else(|_| panic!("{output:?}"));
    let said = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), serde_json::from_slice(&report).unwrap(), said)
}

#[test]
fn an_honest_broker_behind_the_proxy_is_acquitted() {
    let (code, report, said) = run_with(|_| {});
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((&report["acked"], &report["verdict"]["read"]), (&2000.into(), &2000.into()), "{said}");
}

#[test]
fn consumers_that_read_along_convict_a_broker_of_each_fault_and_say_which() {
    let faults: [(&str, &str, Fault); 4] = [
        ("corrupted", "cannot be read at offset", |batches| {
            let damaged = batches[1].last_mut().unwrap();
            *damaged ^= 1;
        }),
        ("lost", "were acknowledged and are lost", |batches| drop(batches.remove(1))),
        ("duplicated", "comes out of turn at offset", |batches| {
            batches[1] = at_the_place_of(&batches[1], &batches[0]);
        }),
        ("reordered", "comes out of turn at offset", |batches| {
            let (second, third) = (batches[1].clone(), batches[2].clone());
            batches[1] = at_the_place_of(&second, &third);
            batches[2] = at_the_place_of(&third, &second);
        }),
    ];
    for (count, finding, fault) in faults {
        let (code, report, said) = run_with(fault);
        assert_eq!((code, &report[count]), (Some(1), &1.into()), "{count}: {said}");
        assert!(said.contains(finding), "{count}: {said}");
        assert!(said.contains("the broker did not keep its word"), "{count}: {said}");
        assert_eq!(report["acked"], 2000, "only what was fetched was falsified: {said}");
    }
}
