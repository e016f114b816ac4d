//! CRC32C: what is used against the two crates that it chooses from, at the
//! lengths that matter: a produce head, a small record, a 1 KiB record in its
//! batch, a large batch, and those around which the choice changes.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn crc(c: &mut Criterion) {
    let mut group = c.benchmark_group("crc");
    for len in [36, 100, 600, 800, 1200, 4096, 256 << 10] {
        let bytes: Vec<u8> = (0..len).map(|i: u32| i.wrapping_mul(31) as u8).collect();
        group.throughput(Throughput::Bytes(u64::from(len)));
        group.bench_with_input(BenchmarkId::new("used", len), &bytes, |b, bytes| {
            b.iter(|| ringbolt_wire::crc32c(black_box(bytes)));
        });
        group.bench_with_input(BenchmarkId::new("used, continued", len), &bytes, |b, bytes| {
            b.iter(|| ringbolt_wire::crc32c_append(black_box(1), black_box(bytes)));
        });
        group.bench_with_input(BenchmarkId::new("crc-fast", len), &bytes, |b, bytes| {
            b.iter(|| crc_fast::crc32_iscsi(black_box(bytes)));
        });
        group.bench_with_input(BenchmarkId::new("crc32c", len), &bytes, |b, bytes| {
            b.iter(|| crc32c::crc32c(black_box(bytes)));
        });
    }
    group.finish();
}

criterion_group!(benches, crc);
criterion_main!(benches);
