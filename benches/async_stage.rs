//! What a step of an async stage costs: requests from `submit` to `poll` over a null back-end, through one stage.
//!
//! * `null`: no stage.
//! * `hook`: a hook that lets everything pass.
//! * `forward`: an async handler of one step.
//! * `child`: an async handler that makes a request of its own.
//! * `sleep, forward, sleep`: three steps, where the sleeps are over at once.
//! * `yield × 8, forward`: nine steps; the difference to `forward`, divided by eight, is a step.
//!
//! `cargo bench --bench async_stage`

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use iovirt_backends::block::null::{NullBackend, NullConfig};
use iovirt_core::dma::{SgLimits, SgPool};
use iovirt_core::pipeline::{BoxBackend, BoxInterposer, Pipeline};
use iovirt_core::prelude::*;
use iovirt_core::request::block::{BlockCaps, BlockError, BlockOp, BlockOutput, BlockRequest};
use iovirt_core::stage::async_stage::{AsyncLayer, AsyncStage, Handler, Io};
use iovirt_core::stage::{Flow, Hook, HookLayer, HookStage};
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
struct Pass;

impl Hook<BlockRequest> for Pass {
    fn on_submit(&mut self, _: &mut WorkerContext<'_>, _: &mut BlockRequest) -> Flow<BlockOutput> {
        Flow::Pass
    }
}

impl HookStage<BlockRequest> for Pass {
    type Hook = Self;

    fn name(&self) -> &'static str {
        "pass"
    }

    fn caps(&self, below: &BlockCaps) -> Result<BlockCaps, AttachError> {
        Ok(below.clone())
    }

    fn hook(&self, _: &mut WorkerContext<'_>, _: Depth) -> Self {
        *self
    }
}

macro_rules! handler {
    ($name:ident, $children:expr, |$io:ident, $request:ident| $body:expr) => {
        #[derive(Clone, Copy, Debug)]
        struct $name;

        impl Handler<BlockRequest> for $name {
            const CHILDREN: u32 = $children;

            async fn handle(&self, $io: &Io<BlockRequest>, $request: &mut BlockRequest) -> BlockOutput {
                $body
            }
        }

        impl AsyncStage<BlockRequest> for $name {
            type Handler = Self;

            fn name(&self) -> &'static str {
                stringify!($name)
            }

            fn caps(&self, below: &BlockCaps) -> Result<BlockCaps, AttachError> {
                Ok(below.clone())
            }

            fn handler(&self, _: &mut WorkerContext<'_>, _: Depth) -> Result<Self, BackendError> {
                Ok(*self)
            }
        }
    };
}

handler!(Forward, 0, |io, request| io.forward(request).await);
handler!(Sleeps, 0, |io, request| {
    io.sleep(Duration::ZERO).await;
    let output = io.forward(request).await;
    io.sleep(Duration::ZERO).await;
    output
});
handler!(Yields, 0, |io, request| {
    for _ in 0..8 {
        io.yield_now().await;
    }
    io.forward(request).await
});
handler!(OwnRequest, 1, |io, request| {
    let Some(mut child) = io.child() else { return BlockOutput::Failed(BlockError::Io) };
    if request.sg().slice_into(0, request.len(), child.sg_mut()).is_err() {
        return BlockOutput::Failed(BlockError::Io);
    }
    match child.transfer(request.op(), request.flags(), request.offset()) {
        Ok(call) => call.await.output(),
        Err(_) => BlockOutput::Failed(BlockError::OutOfRange),
    }
});

fn null() -> BoxBackend<BlockRequest> {
    BoxBackend::new(NullBackend::new(&NullConfig { fill: false, ..NullConfig::default() }).unwrap())
}

fn above(stage: BoxInterposer<BlockRequest>) -> BoxBackend<BlockRequest> {
    Pipeline::boxed(vec![stage], null()).unwrap()
}

fn stages(c: &mut Criterion) {
    let mut group = c.benchmark_group("async stage");
    let stacks = [
        ("null", null()),
        ("hook", above(BoxInterposer::new(HookLayer::new(Pass)))),
        ("forward", above(BoxInterposer::new(AsyncLayer::new(Forward)))),
        ("child", above(BoxInterposer::new(AsyncLayer::new(OwnRequest)))),
        ("sleep, forward, sleep", above(BoxInterposer::new(AsyncLayer::new(Sleeps)))),
        ("yield × 8, forward", above(BoxInterposer::new(AsyncLayer::new(Yields)))),
    ];
    for (name, stack) in stacks {
        for batch in [1u32, 32] {
            let depth = Depth::new(64).unwrap();
            let mut worker = Worker::new(WorkerConfig::default()).unwrap();
            let mut queue = worker.with_context(|cx| stack.open(cx, depth)).unwrap();
            let mut pool = SgPool::new(64, SgLimits::default());
            let mut done = Completions::with_depth(depth);
            group.throughput(Throughput::Elements(u64::from(batch)));
            group.bench_function(BenchmarkId::new(name, batch), |bencher| {
                worker.with_context(|cx| {
                    bencher.iter(|| {
                        for tag in 0..batch {
                            let mut sg = pool.take();
                            sg.push_host(4096).unwrap();
                            let request = BlockRequest::transfer(BlockOp::Read, Tag::new(tag), 0, sg);
                            queue.submit(cx, request.unwrap());
                        }
                        queue.kick(cx);
                        while queue.in_flight() > 0 {
                            queue.poll(cx, &mut done);
                        }
                        done.drain().for_each(|completion| pool.put(completion.request.into_sg()));
                    });
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, stages);
criterion_main!(benches);
