//! What a request costs on its way: a whole disk over a null back-end, and each boxed stage on the way down.
//!
//! * `virtio-blk -> null`: the driver makes a batch of 4 KiB reads available and rings the doorbell; the worker takes a
//!   step (one poll of its descriptor), in which the device pops, parses, submits, completes, writes status and used ring,
//!   and decides the interrupt. The memory of the reads is left alone, so that the path is measured and not a fill.
//! * `boxed forwarding stages`: a request from `submit` to `poll` through stages that only forward, each erased. The
//!   difference between two lines, divided by the stages between them, is the cost of a stage.
//!
//! Times are per batch; the throughput that is printed is requests.
//!
//! `cargo bench --bench request_path`

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use iovirt_backends::block::null::{NullBackend, NullConfig};
use iovirt_backends::interposers::stats::{Stats, StatsConfig};
use iovirt_core::dma::{SgLimits, SgPool};
use iovirt_core::pipeline::{BoxBackend, BoxInterposer, Pipeline};
use iovirt_core::prelude::*;
use iovirt_core::request::block::{BlockCaps, BlockOp, BlockOutput, BlockRequest};
use iovirt_core::stage::{Flow, Hook, HookLayer, HookStage};
use std::hint::black_box;

use blk::{Disk, plain};

#[path = "fixture/blk.rs"]
#[allow(dead_code, reason = "other benches use more of it")]
mod blk;

fn null() -> BoxBackend<BlockRequest> {
    BoxBackend::new(NullBackend::new(&NullConfig { fill: false, ..NullConfig::default() }).unwrap())
}

fn virtio_blk(c: &mut Criterion) {
    let mut group = c.benchmark_group("virtio-blk");
    let stats = || BoxInterposer::new(Stats::new(&StatsConfig::default()).layer());
    for (name, stack) in
        [("null", null()), ("stats -> null", Pipeline::boxed(vec![stats()], null()).unwrap())]
    {
        for batch in [1u16, 32, 64] {
            let mut disk = Disk::new(&plain(), stack.clone());
            group.throughput(Throughput::Elements(batch.into()));
            group.bench_function(BenchmarkId::new(name, batch), |b| b.iter(|| disk.turn(batch)));
            disk.check();
        }
    }
    group.finish();
}

/// Lets everything pass.
#[derive(Debug)]
struct Forward;

impl HookStage<BlockRequest> for Forward {
    type Hook = Self;

    fn name(&self) -> &'static str {
        "forward"
    }

    fn caps(&self, below: &BlockCaps) -> Result<BlockCaps, AttachError> {
        Ok(below.clone())
    }

    fn hook(&self, _: &mut WorkerContext<'_>, _: Depth) -> Self {
        Self
    }
}

impl Hook<BlockRequest> for Forward {
    fn on_submit(&mut self, _: &mut WorkerContext<'_>, request: &mut BlockRequest) -> Flow<BlockOutput> {
        black_box(request.tag());
        Flow::Pass
    }
}

fn boxed_stages(c: &mut Criterion) {
    let mut group = c.benchmark_group("boxed forwarding stages");
    let depth = Depth::new(32).unwrap();
    for stages in [0u32, 1, 2, 4, 8] {
        let layers = (0..stages).map(|_| BoxInterposer::new(HookLayer::new(Forward))).collect();
        let stack = Pipeline::boxed(layers, null()).unwrap();
        let mut worker = Worker::new(WorkerConfig::default()).unwrap();
        let mut pool = SgPool::new(depth.get(), SgLimits::default());
        let mut done = Completions::with_depth(depth);
        group.throughput(Throughput::Elements(depth.get() as u64));
        group.bench_function(BenchmarkId::from_parameter(stages), |b| {
            worker.with_context(|cx| {
                let mut queue = stack.open(cx, depth).unwrap();
                b.iter(|| {
                    for tag in 0..depth.get() as u32 {
                        let request =
                            BlockRequest::ranged(BlockOp::Read, Tag::new(tag), 4096, 4096, pool.take());
                        queue.submit(cx, request.unwrap());
                    }
                    queue.kick(cx);
                    queue.poll(cx, &mut done);
                    for completion in done.drain() {
                        pool.put(completion.request.into_sg());
                    }
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, virtio_blk, boxed_stages);
criterion_main!(benches);
