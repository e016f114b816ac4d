//! The shard's own cost per batch and per commit, without disk and network.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringbolt::buffer::BufferPool;
use ringbolt::log::commit::OpenCommit;
use ringbolt::log::extent::Extent;
use ringbolt::log::index::{PartitionIndex, Run};
use ringbolt::log::recovery::recover;
use ringbolt::log::{SegmentSeq, verify::verify};
use ringbolt_wire::Offset;

mod support;
use support::{Rig, batch, identity, pool};

/// Packing 64 batches of one 1 KiB record into a commit's buffer.
fn commit_assembly(c: &mut Criterion) {
    let batch = batch(0, 0, 0, 1, 1024);
    let mut group = c.benchmark_group("commit_assembly");
    group.throughput(Throughput::Elements(64));
    let mut buffer = pool().take();
    group.bench_function("64x1KiB", |b| {
        b.iter(|| {
            let mut commit = OpenCommit::new(buffer.take().expect("given back below"), 1);
            for i in 0..64 {
                let (header, _) = commit.next_header(&batch, Offset(i));
                commit.append(&header, &batch);
            }
            buffer = Some(commit.into_buffer());
        });
    });
    group.finish();
}

/// Everything that a shard does for 64 batches that share a commit, from the
/// bytes received to the acknowledgements.
fn group_commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("group_commit");
    group.throughput(Throughput::Elements(64));
    for (name, partitions, producers) in [("1_partition", 1, 64u64), ("1000_partitions", 1000, 64)] {
        group.bench_function(name, |b| {
            let mut rig = Rig::new(partitions, false);
            let mut sequence = 0;
            b.iter_batched(
                || {
                    sequence += 1;
                    (0..producers)
                        .map(|p| batch((p as u32 * 16) % partitions, p + 1, sequence - 1, 1, 1024))
                        .collect::<Vec<_>>()
                },
                |batches| {
                    batches.iter().for_each(|batch| rig.produce(batch));
                    rig.run();
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// Finding an offset among a million runs.
fn index_look_up(c: &mut Criterion) {
    let mut index = PartitionIndex::default();
    for i in 0..1_000_000u64 {
        index.push(Run {
            base_offset: Offset(i * 3),
            count: 3,
            position: (i * 1200 + 7) as u32,
            len: 1100,
            commit_time_us: i,
        });
    }
    let mut offset = 0;
    c.bench_function("index_look_up/1M_runs", |b| {
        b.iter(|| {
            offset = (offset + 1_234_567) % 3_000_000;
            std::hint::black_box(index.locate(Offset(offset), SegmentSeq(0)))
        });
    });
}

/// Reading a log back: the open segment commit by commit, all segments through
/// their footers, and every byte as `log verify` does.
fn recovery_scan(c: &mut Criterion) {
    let mut rig = Rig::new(16, true);
    for sequence in 0..3000 {
        for p in 0..32 {
            rig.produce(&batch(p % 16, u64::from(p) + 1, sequence, 1, 1024));
        }
        rig.run();
    }
    assert_eq!(rig.acked, 96_000);
    let segments = rig.segments();
    let mut pool = pool();
    let mut group = c.benchmark_group("recovery_scan");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(96_000 * 1128));
    group.bench_function("recover", |b| {
        b.iter(|| recover(identity(2), Extent::EMPTY, &segments, &rig.disk, &mut pool).expect("a good log"));
    });
    group.bench_function("verify", |b| {
        b.iter(|| {
            verify(identity(2), Extent::EMPTY, &segments, &rig.disk, &mut pool, |_, _, _| {})
                .expect("a good log")
        });
    });
    group.finish();
}

criterion_group!(benches, commit_assembly, group_commit, index_look_up, recovery_scan);
criterion_main!(benches);
