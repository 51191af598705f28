//! What a scheduler costs for a request: asked for, granted and completed, with 1, 8 and 64 flows that always have requests waiting.
//!
//! Each round asks for one request, grants one and completes one, so that the number of requests that wait stays as it is.
//! Weights differ from flow to flow. `Fifo` is there for comparison: it knows no shares.

use std::hint::black_box;
use std::num::NonZeroUsize;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use iovirt_core::scheduler::{FlowId, Grant, IoScheduler, Weight};
use iovirt_core::{Cost, Time};
use iovirt_sched::{Fifo, Sfq, SfqConfig};

/// Requests of each flow that wait.
const WAITING: u64 = 16;

/// Requests under way.
const DEPTH: usize = 32;

struct Load {
    scheduler: Box<dyn IoScheduler>,
    granted: Vec<Grant>,
    token: u64,
}

impl Load {
    fn new(mut scheduler: Box<dyn IoScheduler>, flows: u32) -> Self {
        for flow in 0..flows {
            scheduler.set_weight(FlowId(flow), Weight::new(100 + flow % 7 * 100).unwrap_or_default());
            (0..WAITING).for_each(|token| scheduler.ask(FlowId(flow), cost(token), token, Time::ZERO));
        }
        let mut load = Self { scheduler, granted: Vec::with_capacity(DEPTH), token: WAITING };
        // All but one place is taken for good, so that each round has one to give.
        load.scheduler.dispatch(Time::ZERO, DEPTH - 1, &mut load.granted);
        load.granted.drain(..).for_each(|grant| {
            load.scheduler.ask(grant.flow, cost(grant.token), grant.token, Time::ZERO);
        });
        load
    }

    fn round(&mut self) {
        self.scheduler.dispatch(Time::ZERO, 1, &mut self.granted);
        for Grant { flow, token } in self.granted.drain(..) {
            self.scheduler.complete(flow, cost(token), Time::ZERO);
            self.token += 1;
            self.scheduler.ask(flow, cost(self.token), self.token, Time::ZERO);
        }
    }
}

fn cost(token: u64) -> Cost {
    Cost { ops: 1, bytes: 512 << (token % 8) }
}

fn ask_dispatch_complete(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ask, dispatch, complete");
    let depth = NonZeroUsize::new(DEPTH).unwrap_or(NonZeroUsize::MIN);
    for flows in [1, 8, 64] {
        let sfq = || Box::new(Sfq::new(SfqConfig { depth, ..SfqConfig::default() }));
        let mut load = Load::new(sfq(), flows);
        group.bench_function(BenchmarkId::new("sfq", flows), |bencher| {
            bencher.iter(|| black_box(&mut load).round())
        });
        let mut load = Load::new(Box::new(Fifo::new(depth)), flows);
        group.bench_function(BenchmarkId::new("fifo", flows), |bencher| {
            bencher.iter(|| black_box(&mut load).round())
        });
    }
    group.finish();
}

criterion_group!(benches, ask_dispatch_complete);
criterion_main!(benches);
