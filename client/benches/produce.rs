//! What one record of 1 KiB costs the client itself: through the session alone
//! (head, copy, acknowledgement), and through the producer's state as well
//! (batch, sequence, CRC). No socket is involved.
//!
//! `cargo bench -p ringbolt-client --bench produce`

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringbolt_client::producer_state::{BatchId, ProducerConfig, ProducerState, Step};
use ringbolt_client::session::{Correlation, Session, SessionConfig, SessionEvent, Transmit};
use ringbolt_wire::frame::{FrameHeader, Opcode};
use ringbolt_wire::message::{HelloAck, ProduceAck, ProducerOpened};
use ringbolt_wire::{BatchBuilder, Epoch, Offset, PartitionId, ProducerId, Response, Sequence, TopicId};

const IN_FLIGHT: usize = 16;

fn ack() -> ProduceAck {
    ProduceAck { base_offset: Offset(1), commit_time_us: 1, copies: 1, duplicate: false }
}

fn connected<T>() -> Session<T> {
    let mut session = Session::new(SessionConfig::default());
    let hello = session.poll_transmit().expect("hello is queued");
    let header = FrameHeader::decode(hello.as_ref(), u32::MAX).ok().flatten().expect("hello is a frame");
    let limits = HelloAck {
        version: 1,
        copies: 1,
        shards: 1,
        features: 0,
        max_frame_len: 2 << 20,
        max_batch_len: 1 << 20,
        max_in_flight: 1024,
        boot: 1,
        broker_id: [0; 16],
    };
    let mut answer = Vec::new();
    Response::Hello(limits).encode(&mut answer, Opcode::Hello as u8, header.correlation, 0);
    assert!(matches!(session.receive_slice(&mut &answer[..]), Ok(Some(SessionEvent::Connected(_)))));
    session
}

/// Sends what waits, and acknowledges it.
fn answer_all<T>(
    session: &mut Session<T>,
    sent: &mut Vec<Correlation>,
    acks: &mut Vec<u8>,
    mut on_ack: impl FnMut(T, ProduceAck),
) {
    while let Some(piece) = session.poll_transmit() {
        black_box(piece.as_ref());
        if let Transmit::Buffer(buffer) = piece {
            session.recycle(buffer);
        }
    }
    acks.clear();
    for correlation in sent.drain(..) {
        ack().encode(acks, correlation.0);
    }
    let mut input = &acks[..];
    while let Ok(Some(SessionEvent::Produced { tag, ack })) = session.receive_slice(&mut input) {
        on_ack(tag, ack);
    }
}

fn session(c: &mut Criterion) {
    let mut session = connected::<u32>();
    let batch = vec![7; 1128];
    let (mut sent, mut acks) = (Vec::new(), Vec::new());
    let mut group = c.benchmark_group("session");
    group.throughput(Throughput::Elements(IN_FLIGHT as u64));
    group.bench_function("16 x 1 KiB, sent and acknowledged", |b| {
        b.iter(|| {
            for tag in 0..IN_FLIGHT as u32 {
                sent.push(session.produce(&batch, 1, tag).expect("there is credit"));
            }
            answer_all(&mut session, &mut sent, &mut acks, |tag, ack| {
                black_box((tag, ack));
            });
        });
    });
    group.finish();
}

fn producer_state(c: &mut Criterion) {
    let config = ProducerConfig { max_in_flight: IN_FLIGHT, ..ProducerConfig::default() };
    let mut state = ProducerState::<()>::new(PartitionId::new(TopicId(1), 0), config, 1);
    let mut session = connected::<BatchId>();
    let value = vec![7; 1024];
    let (mut sent, mut acks, mut spares) = (Vec::new(), Vec::new(), Vec::<Vec<u8>>::new());
    state.on_connected();
    let mut group = c.benchmark_group("producer_state");
    group.throughput(Throughput::Elements(IN_FLIGHT as u64));
    group.bench_function("16 batches of 1 x 1 KiB, made, sent and acknowledged", |b| {
        b.iter(|| {
            for _ in 0..IN_FLIGHT {
                let mut builder = BatchBuilder::with_buffer(spares.pop().unwrap_or_default(), &[]);
                builder.push(1, None, &value, &[]);
                state.push(builder, u64::MAX, ());
            }
            while let Some(step) = state.poll(0, true) {
                match step {
                    Step::Send { id, batch } => {
                        sent.push(session.produce(&batch, 1, id).expect("there is credit"));
                    }
                    Step::Open(_) => state.on_opened(ProducerOpened {
                        producer: ProducerId(1),
                        epoch: Epoch(0),
                        next_sequence: Sequence(0),
                        last_offset: Offset::UNKNOWN,
                    }),
                    other => panic!("{other:?}"),
                }
            }
            answer_all(&mut session, &mut sent, &mut acks, |id, ack| state.on_acked(id, ack));
            while let Some(Step::Finished(finished)) = state.poll(0, true) {
                spares.extend(finished.batch.map(Bytes::into));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, session, producer_state);
criterion_main!(benches);
