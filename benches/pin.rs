//! What pins cost a queue behind an IOMMU. Without one they cost nothing: `cargo bench --bench ring` measures that.
//!
//! `pin and release` is one request with a table of descriptors, a header, data and a status, in a turn of 32: the ranges
//! are collected, held in a slot, and released. `turn` is what begins and ends the turn, once for the whole batch.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iovirt_core::Time;
use iovirt_core::dma::{InvalidateStatus, IovaRange, IovaSpans, PinBoard, PinTable};

const BATCH: usize = 32;

/// The ranges of request number `at`.
fn spans(at: u64) -> IovaSpans {
    let mut spans = IovaSpans::EMPTY;
    collect(&mut spans, at);
    spans
}

#[inline]
fn collect(spans: &mut IovaSpans, at: u64) {
    spans.clear();
    for (iova, len) in [(0x10_0000, 64), (0x20_0000, 16), (0x30_0000, 4096), (0x20_0010, 1)] {
        if let Some(range) = IovaRange::new(iova + at * 0x1000, len) {
            spans.add(range);
        }
    }
}

fn pin(criterion: &mut Criterion) {
    let board = PinBoard::new();
    let mut pins = PinTable::new(&board, 256);
    let mut group = criterion.benchmark_group("pin");
    group.throughput(Throughput::Elements(BATCH as u64));
    let held: Vec<_> = (0..BATCH as u64).map(spans).collect();
    pins.enter();
    group.bench_function("hold and release", |bencher| {
        bencher.iter(|| {
            for (slot, spans) in held.iter().enumerate() {
                pins.pin(slot, black_box(spans));
            }
            for slot in 0..BATCH {
                pins.unpin(black_box(slot));
            }
        });
    });
    let mut spans_at_hand = IovaSpans::EMPTY;
    group.bench_function("collect, hold and release", |bencher| {
        bencher.iter(|| {
            for slot in 0..BATCH {
                collect(&mut spans_at_hand, black_box(slot as u64));
                pins.pin(slot, &spans_at_hand);
            }
            for slot in 0..BATCH {
                pins.unpin(black_box(slot));
            }
        });
    });
    pins.leave();
    group.throughput(Throughput::Elements(1));
    group.bench_function("turn", |bencher| {
        bencher.iter(|| {
            pins.enter();
            pins.leave();
        });
    });
    group.bench_function("invalidate, nothing held", |bencher| {
        bencher.iter(|| {
            let mut ticket = board.invalidate(IovaRange::ALL);
            assert_eq!(ticket.poll(Time::ZERO), InvalidateStatus::Done);
        });
    });
    group.finish();
}

criterion_group!(benches, pin);
criterion_main!(benches);
