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
use iovirt_core::dma::{DmaSpace, SgLimits, SgPool};
use iovirt_core::frontend::Frontend;
use iovirt_core::irq::CountingInterrupt;
use iovirt_core::pipeline::{BoxBackend, BoxInterposer, Pipeline};
use iovirt_core::prelude::*;
use iovirt_core::request::block::{BlockCaps, BlockOp, BlockOutput, BlockRequest};
use iovirt_core::stage::{Flow, Hook, HookLayer, HookStage};
use iovirt_frontends::virtio::blk::{BlkConfig, VirtioBlk};
use iovirt_frontends::virtio::transport::mmio::MmioDevice;
use std::hint::black_box;
use std::sync::Arc;

const SIZE: u16 = 256;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x3000;
const USED: u64 = 0x5000;
const BUFFERS: u64 = 0x10_0000;
const CHAINS: u64 = 85;

fn null() -> BoxBackend<BlockRequest> {
    BoxBackend::new(NullBackend::new(&NullConfig { fill: false, ..NullConfig::default() }).unwrap())
}

/// Guest memory with a ring full of 4 KiB reads.
fn memory() -> DmaSpace {
    let space = DmaSpace::anonymous(&[(0, 16 << 20)]).unwrap();
    let view = space.view();
    for chain in 0..CHAINS {
        let buffer = BUFFERS + chain * 0x4000;
        view.write(buffer, &[0; 16]).unwrap();
        for (part, (len, flags)) in [(16u32, 1u16), (4096, 3), (1, 2)].into_iter().enumerate() {
            let index = chain * 3 + part as u64;
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&(buffer + part as u64 * 0x1000).to_le_bytes());
            descriptor[8..12].copy_from_slice(&len.to_le_bytes());
            descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
            descriptor[14..].copy_from_slice(&(index as u16 + 1).to_le_bytes());
            view.write(DESC + index * 16, &descriptor).unwrap();
        }
    }
    for slot in 0..u64::from(SIZE) {
        view.write(AVAIL + 4 + slot * 2, &((slot % CHAINS * 3) as u16).to_le_bytes()).unwrap();
    }
    space
}

/// A disk that a driver has set up by its registers.
fn disk(space: &DmaSpace, stack: BoxBackend<BlockRequest>) -> (Worker, MmioDevice) {
    let mut worker = Worker::new(WorkerConfig::default()).unwrap();
    let blk = Arc::new(VirtioBlk::new(BlkConfig::default(), stack).unwrap());
    let device = MmioDevice::new(blk, space, Arc::new(CountingInterrupt::new()), &[worker.handle()]).unwrap();
    let write = |offset: u64, value: u64| {
        let _ = device.write(0, offset, &(value as u32).to_le_bytes());
    };
    for (offset, value) in [
        (0x070, 3),
        (0x024, 0),
        (0x020, 1 << 29),
        (0x024, 1),
        (0x020, 1),
        (0x070, 11),
        (0x030, 0),
        (0x038, u64::from(SIZE)),
        (0x080, DESC),
        (0x090, AVAIL),
        (0x0a0, USED),
        (0x044, 1),
        (0x070, 15),
    ] {
        write(offset, value);
    }
    worker.run().unwrap();
    (worker, device)
}

fn virtio_blk(c: &mut Criterion) {
    let mut group = c.benchmark_group("virtio-blk");
    let stats = || BoxInterposer::new(Stats::new(&StatsConfig::default()).layer());
    for (name, stack) in
        [("null", null()), ("stats -> null", Pipeline::boxed(vec![stats()], null()).unwrap())]
    {
        for batch in [1u16, 32, 64] {
            let space = memory();
            let view = space.view();
            let (mut worker, device) = disk(&space, stack.clone());
            let mut index = 0u16;
            group.throughput(Throughput::Elements(batch.into()));
            group.bench_function(BenchmarkId::new(name, batch), |b| {
                b.iter(|| {
                    index = index.wrapping_add(batch);
                    view.write(AVAIL + 2, &index.to_le_bytes()).unwrap();
                    let _ = device.write(0, 0x050, &[0; 4]);
                    worker.run().unwrap();
                });
            });
            let used = u16::from_le_bytes(view.read_array(USED + 2).unwrap());
            assert_eq!(used, index, "the device serves every request in the step that follows its doorbell");
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
