//! What scheduling allocates for a request: nothing, once it is warm.

use iovirt_core::dma::SgLimits;
use iovirt_core::pipeline::{BoxBackend, Pipeline};
use iovirt_core::prelude::*;
use iovirt_core::request::block::{BlockCaps, BlockOutput, BlockRequest};
use iovirt_core::scheduler::{FlowId, IoScheduler, Weight};
use iovirt_core::stage::Client;
use iovirt_core::test_utils::{CountingAllocator, ManualBackend, ManualHandle, count_allocations};
use iovirt_sched::scheduled::{Group, Groups, Scheduled};
use iovirt_sched::{Sfq, SfqConfig};
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

#[test]
fn a_warm_scheduler_allocates_nothing() {
    let mut sfq = Sfq::new(SfqConfig::default());
    let mut granted = Vec::new();
    let mut round = || {
        for token in 0..64 {
            for flow in (0..16).map(FlowId) {
                sfq.ask(flow, Cost { ops: 1, bytes: token * 512 }, token, Time::ZERO);
            }
        }
        while sfq.waiting() > 0 {
            sfq.dispatch(Time::ZERO, 8, &mut granted);
            for grant in granted.drain(..) {
                sfq.complete(grant.flow, Cost::default(), Time::ZERO);
            }
        }
    };
    round();
    assert_eq!(count_allocations(round).0.allocations, 0);
}

struct Pipe {
    client: Client<BlockRequest, ()>,
    manual: ManualHandle<BlockRequest>,
}

fn pipe(worker: &mut Worker, group: &Arc<Group>) -> Pipe {
    let (backend, manual) = ManualBackend::<BlockRequest>::new(BlockCaps::new(1 << 20));
    let stage = Scheduled::new(group, Weight::DEFAULT);
    let stack = BoxBackend::new(Pipeline::top().stage(stage).backend(backend).unwrap());
    let depth = Depth::new(8).unwrap();
    let client = worker.with_context(|cx| {
        let queue = stack.open(cx, depth).unwrap();
        Client::new(cx, queue, depth, SgLimits::default())
    });
    Pipe { client, manual }
}

#[test]
fn a_warm_group_allocates_nothing() {
    let group = Groups::new().open("warm", None).unwrap();
    let mut worker = Worker::new(WorkerConfig::default()).unwrap();
    let mut pipes = [pipe(&mut worker, &group), pipe(&mut worker, &group)];
    let mut turn = || {
        let mut allocations = 0;
        for Pipe { client, manual } in &mut pipes {
            let submit = || {
                worker.with_context(|cx| {
                    while let Some((tag, sg)) = client.begin() {
                        client.submit(cx, BlockRequest::flush(tag, sg), ());
                    }
                    client.kick(cx);
                });
            };
            allocations += count_allocations(submit).0.allocations;
            manual.complete_all(BlockOutput::Done);
            let (polled, finished) =
                count_allocations(|| worker.with_context(|cx| client.poll(cx, |_, _| ())));
            assert_eq!(finished, 8);
            allocations += polled.allocations;
        }
        allocations
    };
    turn();
    turn();
    assert_eq!(turn(), 0);
}
