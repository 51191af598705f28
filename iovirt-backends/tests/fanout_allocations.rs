//! Fan-outs allocate nothing per request once they are warm; an overlay not even where it copies clusters up.

use iovirt_backends::block::memory::{MemoryBackend, MemoryConfig};
use iovirt_backends::interposers::mirror::{Mirror, MirrorConfig};
use iovirt_backends::interposers::overlay::{Overlay, OverlayConfig};
use iovirt_backends::interposers::stripe::{Stripe, StripeConfig};
use iovirt_core::dma::{Access, DmaSpace, SgLimits, SgPool};
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::prelude::*;
use iovirt_core::request::block::{BlockOp, BlockOutput, BlockRequest};
use iovirt_core::test_utils::{CountingAllocator, count_allocations};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const DEPTH: u32 = 16;
const CLUSTER: u64 = 4096;
const BATCHES: u64 = 40;

fn memory() -> BoxBackend<BlockRequest> {
    let config = MemoryConfig { size: 64 << 20, ..MemoryConfig::default() };
    BoxBackend::new(MemoryBackend::new(&config).expect("memory"))
}

/// Batches of a request of a part of a cluster each, of clusters that were not written before; gives what each allocated.
fn batches(stack: &BoxBackend<BlockRequest>) -> Vec<u64> {
    let depth = Depth::new(DEPTH).expect("a depth");
    let mut worker = Worker::new(WorkerConfig::default()).expect("a worker");
    let mut queue = worker.with_context(|cx| stack.open(cx, depth)).expect("a queue");
    let mut pool = SgPool::new(depth.get(), SgLimits::default());
    let mut done = Completions::with_depth(depth);
    let space = DmaSpace::anonymous(&[(0, 1 << 20)]).expect("guest memory");
    let view = space.view();
    let mut batch = |number: u64| {
        worker.with_context(|cx| {
            for tag in 0..u64::from(DEPTH) {
                let (op, access) = match (number + tag) % 3 {
                    0 => (BlockOp::Read, Access::Write),
                    _ => (BlockOp::Write, Access::Read),
                };
                let mut sg = pool.take();
                // Two pieces, over the end of a cluster.
                sg.push(&view, tag * 4096, 1536, access).expect("room");
                sg.push(&view, tag * 4096 + 2048, 512, access).expect("room");
                let offset = (number * u64::from(DEPTH) + tag) * 2 * CLUSTER + 3072;
                let request = BlockRequest::transfer(op, Tag::new(tag as u32), offset, sg).expect("a range");
                queue.submit(cx, request);
            }
            while queue.in_flight() > 0 {
                queue.kick(cx);
                queue.poll(cx, &mut done);
            }
        });
        for completion in done.drain() {
            assert_eq!(completion.output, BlockOutput::Done);
            pool.put(completion.request.into_sg());
        }
    };
    (0..BATCHES).map(|number| count_allocations(|| batch(number)).0.allocations).collect()
}

fn check(name: &str, stack: impl Backend<BlockRequest>) {
    let counts = batches(&BoxBackend::new(stack));
    // Lists move between pools until each has its memory.
    let (warm_up, warm) = counts.split_at(counts.len() / 2);
    assert_eq!(warm.iter().sum::<u64>(), 0, "{name}: {warm_up:?}, then {warm:?}");
}

#[test]
fn nothing_is_allocated_per_request() {
    let mirror = Mirror::over(&MirrorConfig::default(), vec![memory(), memory(), memory()]);
    check("mirror", mirror.expect("a mirror"));
    let config = StripeConfig { chunk: 512, ..StripeConfig::default() };
    check("stripe", Stripe::over(&config, vec![memory(), memory()]).expect("a stripe"));
    let config = OverlayConfig { cluster: CLUSTER, ..OverlayConfig::default() };
    check("overlay", Overlay::over(&config, memory(), memory()).expect("an overlay"));
}
