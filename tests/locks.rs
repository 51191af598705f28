//! The data path takes no lock that threads share more than once per batch: counted on the worker's own thread, over the boxed
//! path that users run. One turn may take a lock on the way down and once more on the way up.
//!
//! Stages that let requests go by and by (`delay`, `scheduled`) and threads that finish them one by one cut a batch into pieces;
//! a lock may then be taken for each piece, which still must be far from each request.
//!
//! Builds with debug assertions count; others have nothing to say here.
#![cfg(debug_assertions)]

mod common;

use common::raw::{BUFFERS, Piece, RawDriver};
use common::stacks::{BACKENDS, NET_STAGES, TRANSPARENT, build, stacks};
use common::{ALL, Rig};
use iovirt::registry::Registry;
use iovirt_core::pipeline::{BoxBackend, Pipeline};
use iovirt_core::prelude::*;
use iovirt_core::request::block::{BlockCaps, BlockOutput, BlockRequest};
use iovirt_core::stage::{Flow, Hook, HookLayer, HookStage};
use iovirt_core::sync::{LockCount, Mutex, count_locks};
use iovirt_core::test_utils::virtio::{BlkDriver, BlkOp, BlkStatus};
use iovirt_frontends::virtio::blk::BlkConfig;
use std::sync::Arc;
use std::time::{Duration, Instant};

const DEPTH: u64 = 32;
/// One way down, one way up.
const PER_TURN: u64 = 2;
/// For a batch in pieces of four, of which the disk looks after every eight whether some have come home.
const IN_PIECES: u64 = DEPTH / 4 + DEPTH / 8;
const LIMIT: Duration = Duration::from_secs(30);

/// Pushes one batch through by hand: the worst of the worker's turns.
fn batch(rig: &Rig, driver: &mut BlkDriver, op: BlkOp) -> LockCount {
    let data = [7; 4096];
    for request in 0..DEPTH {
        driver.submit(op, request * 8, &data).unwrap();
    }
    driver.ring();
    let (mut worst, start) = (LockCount::default(), Instant::now());
    while !driver.batch_is_home() {
        assert!(start.elapsed() < LIMIT, "the batch does not come home");
        let mut worker = rig.worker.borrow_mut();
        let count = count_locks(|| worker.run().unwrap());
        worst = LockCount { total: worst.total.max(count.total), most: worst.most.max(count.most) };
    }
    driver.poll(|_, status, _| assert_eq!(status, BlkStatus::Ok)).unwrap();
    worst
}

/// The worst turn of some batches, after the first ones.
fn worst(stack: BoxBackend<BlockRequest>) -> LockCount {
    let rig = Rig::one_round(BlkConfig::default(), stack);
    let mut driver = rig.driver(ALL, 4096);
    for op in [BlkOp::Out, BlkOp::In, BlkOp::Out] {
        batch(&rig, &mut driver, op);
    }
    let counts = [BlkOp::Out, BlkOp::In, BlkOp::Out, BlkOp::In].map(|op| batch(&rig, &mut driver, op));
    let of = |what: fn(&LockCount) -> u64| counts.iter().map(what).max().unwrap_or(0);
    LockCount { total: of(|count| count.total), most: of(|count| count.most) }
}

#[test]
fn a_batch_takes_a_lock_once_in_each_direction() {
    let mut over = Vec::new();
    for (backend, folder) in BACKENDS {
        for stack in stacks(TRANSPARENT, backend) {
            let (below, _image) = build(&stack, folder);
            let count = worst(below);
            println!("{:3} locks in a turn, {} of them the same: {stack}", count.total, count.most);
            let cut = ["delay", "scheduled", "engine=threads"].iter().any(|part| stack.contains(part));
            if count.most > if cut { IN_PIECES } else { PER_TURN } {
                over.push(stack);
            }
        }
    }
    assert!(over.is_empty(), "a lock was taken more than once per batch and direction: {over:#?}");
}

#[test]
fn a_batch_of_frames_too() {
    let registry = Registry::standard();
    for stack in stacks(NET_STAGES, "loopback") {
        let card =
            registry.build_virtio(&registry.parse(&format!("virtio-net -> {stack}")).unwrap()).unwrap();
        let mut driver = RawDriver::new(card, 0);
        let mut worst = LockCount::default();
        for round in 0..6 {
            for frame in 0..16 {
                driver.offer(0, &[Piece::Device(BUFFERS + frame * 0x1000, 2048)]);
                driver.offer(1, &[Piece::Driver(BUFFERS + 0x10_0000 + frame * 0x1000, 12 + 64)]);
            }
            let _ = driver.register(0x050, 0);
            let _ = driver.register(0x050, 1);
            let start = Instant::now();
            let mut home = 0;
            while home < 16 {
                assert!(start.elapsed() < LIMIT, "{stack}: the frames do not come home");
                let count = count_locks(|| driver.worker.run().unwrap());
                if round > 1 {
                    worst.most = worst.most.max(count.most);
                    worst.total = worst.total.max(count.total);
                }
                home += driver.used(0).len();
                driver.used(1);
            }
        }
        println!("{:3} locks in a turn, {} of them the same: {stack}", worst.total, worst.most);
        // Both queues of the pair are on this worker: the lock of what joins them is taken by each, in each direction.
        assert!(worst.most <= 2 * PER_TURN, "{stack}: {worst:?}");
    }
}

/// A stage that asks a lock for each request.
#[derive(Debug, Default)]
struct Counts(Arc<Mutex<u64>>);

struct CountsHook(Arc<Mutex<u64>>);

impl HookStage<BlockRequest> for Counts {
    type Hook = CountsHook;
    fn name(&self) -> &str {
        "counts"
    }
    fn caps(&self, below: &BlockCaps) -> Result<BlockCaps, AttachError> {
        Ok(below.clone())
    }
    fn hook(&self, _: &mut WorkerContext<'_>, _: Depth) -> CountsHook {
        CountsHook(self.0.clone())
    }
}

impl Hook<BlockRequest> for CountsHook {
    fn on_submit(&mut self, _: &mut WorkerContext<'_>, _: &mut BlockRequest) -> Flow<BlockOutput> {
        *self.0.lock().unwrap() += 1;
        Flow::Pass
    }
}

#[test]
fn a_stage_that_locks_for_each_request_is_found() {
    let (memory, _) = build("memory,size=1M", "");
    let counts = HookLayer::new(Counts::default());
    let count = worst(BoxBackend::new(Pipeline::top().stage(counts).backend(memory).unwrap()));
    assert_eq!(count.most, DEPTH, "one for each request");
}
