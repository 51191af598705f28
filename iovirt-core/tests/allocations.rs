//! The counting allocator, and what the data path allocates: nothing, once it is warm.
#![cfg(feature = "test-utils")]

use iovirt_core::dma::SgLimits;
use iovirt_core::pipeline::{BoxBackend, Pipeline};
use iovirt_core::prelude::*;
use iovirt_core::request::block::{BlockCaps, BlockOutput, BlockRequest};
use iovirt_core::stage::{Client, EmulateFua, HookLayer};
use iovirt_core::test_utils::{CountingAllocator, ManualBackend, count_all_allocations, count_allocations};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

#[test]
fn allocations_are_counted_per_thread_and_for_all() {
    let (count, list) = count_allocations(|| vec![0_u8; 1000]);
    assert_eq!((count.allocations, count.frees, count.bytes), (1, 0, 1000));
    let (count, ()) = count_allocations(|| drop(list));
    assert_eq!((count.allocations, count.frees), (0, 1));
    let other = || std::thread::spawn(|| drop(std::hint::black_box(vec![0_u8; 5000]))).join().unwrap();
    let (all, ()) = count_all_allocations(other);
    assert!(all.bytes >= 5000);
    let (mine, ()) = count_allocations(other);
    assert!(mine.bytes < 5000, "the other thread's are not this one's");
}

#[test]
fn a_warm_data_path_allocates_nothing() {
    let (backend, manual) = ManualBackend::<BlockRequest>::new(BlockCaps::new(1 << 20));
    let stack = BoxBackend::new(Pipeline::top().stage(HookLayer::new(EmulateFua)).backend(backend).unwrap());
    let mut worker = Worker::new(WorkerConfig::default()).unwrap();
    let depth = Depth::new(8).unwrap();
    let mut client = worker.with_context(|cx| {
        let queue = stack.open(cx, depth).unwrap();
        Client::<BlockRequest, u32>::new(cx, queue, depth, SgLimits::default())
    });
    let mut turn = |count: bool| {
        let mut submit = || {
            worker.with_context(|cx| {
                for _ in 0..8 {
                    let (tag, sg) = client.begin().unwrap();
                    client.submit(cx, BlockRequest::flush(tag, sg), 1);
                }
                client.kick(cx);
            });
        };
        let submitted = if count { count_allocations(&mut submit).0 } else { count_allocations(submit).0 };
        manual.complete_all(BlockOutput::Done);
        let poll = || worker.with_context(|cx| client.poll(cx, |_, _| ()));
        let (polled, finished) = count_allocations(poll);
        assert_eq!(finished, 8);
        submitted.allocations + polled.allocations
    };
    turn(false);
    turn(false);
    assert_eq!(turn(true), 0);
}
