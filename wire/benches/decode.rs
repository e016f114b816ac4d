//! The produce path and its answer, each as the broker and the client run it:
//! bytes to types and back, CRCs included, without I/O.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringbolt_wire::frame::FRAME_HEADER_LEN;
use ringbolt_wire::message::{PRODUCE_HEAD_LEN, ProduceAck, produce_head};
use ringbolt_wire::{
    BatchBuilder, BatchView, Epoch, FrameHeader, Offset, PartitionId, ProducerId, Request, Response,
    Sequence, TopicId,
};

const MAX_LEN: u32 = 2 << 20;

/// A batch of `count` records of `len` bytes, with room for its head before it.
fn build(buffer: Vec<u8>, count: usize, value: &[u8]) -> Vec<u8> {
    let mut builder = BatchBuilder::with_buffer(buffer, &[0; PRODUCE_HEAD_LEN]);
    for i in 0..count {
        builder.push(i as u64, None, value, &[]);
    }
    let mut frame = builder.finish(PartitionId::new(TopicId(1), 0), ProducerId(9), Epoch(1), Sequence(1000));
    let head = produce_head(7, 1, (frame.len() - PRODUCE_HEAD_LEN) as u32);
    frame[..PRODUCE_HEAD_LEN].copy_from_slice(&head);
    frame
}

/// What a broker does with a produce request before a shard sees it.
fn receive(frame: &[u8]) -> u32 {
    let header = FrameHeader::decode(frame, MAX_LEN).expect("a frame").expect("whole");
    header.verify(frame).expect("intact");
    let meta = &frame[FRAME_HEADER_LEN..header.head_len()];
    let request = Request::decode(header.opcode, meta, header.payload_len).expect("a request");
    assert!(matches!(request, Request::Produce { .. }));
    let batch = BatchView::parse_exact(&frame[header.head_len()..], MAX_LEN).expect("a batch");
    batch.header().count()
}

fn produce(c: &mut Criterion) {
    let mut group = c.benchmark_group("produce");
    for (count, len) in [(1, 1024), (256, 100), (256, 1024)] {
        let value = vec![0x5a; len];
        let frame = build(Vec::new(), count, &value);
        group.throughput(Throughput::Bytes(frame.len() as u64));
        let shape = format!("{count} x {len} B");
        group.bench_with_input(BenchmarkId::new("receive", &shape), &frame, |b, frame| {
            b.iter(|| receive(black_box(frame)));
        });
        let mut buffer = Vec::new();
        group.bench_function(BenchmarkId::new("build", &shape), |b| {
            b.iter(|| {
                buffer = build(std::mem::take(&mut buffer), count, black_box(&value));
            });
        });
    }
    group.finish();
}

fn heads(c: &mut Criterion) {
    let mut group = c.benchmark_group("heads");
    let head = produce_head(7, 1, 1200);
    group.bench_function("produce head, encode", |b| {
        b.iter(|| produce_head(black_box(7), black_box(1), black_box(1200)));
    });
    group.bench_function("produce head, encode through Request", |b| {
        let mut out = Vec::with_capacity(64);
        b.iter(|| {
            out.clear();
            Request::Produce { min_copies: black_box(1) }.encode(&mut out, black_box(7), black_box(1200));
        });
    });
    group.bench_function("produce head, decode and verify", |b| {
        b.iter(|| {
            let header = FrameHeader::decode(black_box(&head), MAX_LEN).expect("a frame").expect("whole");
            header.verify(black_box(&head)).expect("intact");
            Request::decode(header.opcode, &head[FRAME_HEADER_LEN..], header.payload_len)
        });
    });
    let ack = ProduceAck { base_offset: Offset(5), commit_time_us: 6, copies: 1, duplicate: false };
    let mut frame = Vec::with_capacity(64);
    ack.encode(&mut frame, 7);
    group.bench_function("ack, encode", |b| {
        let mut out = Vec::with_capacity(64);
        b.iter(|| {
            out.clear();
            black_box(ack).encode(&mut out, black_box(7));
        });
    });
    group.bench_function("ack, decode and verify", |b| {
        b.iter(|| {
            let header = FrameHeader::decode(black_box(&frame), MAX_LEN).expect("a frame").expect("whole");
            header.verify(black_box(&frame)).expect("intact");
            Response::decode(header.opcode, header.status, &frame[FRAME_HEADER_LEN..], header.payload_len)
        });
    });
    group.finish();
}

criterion_group!(benches, produce, heads);
criterion_main!(benches);
