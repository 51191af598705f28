//! The stage above disks of 4096-byte blocks.

use super::parent::{Next, Parent};
use super::*;
use iovirt_core::dma::{SgLimits, SgPool};
use iovirt_core::pipeline::{BoxBackend, Pipeline};
use iovirt_core::request::block::{BlockError, BlockOp, BlockOutput};
use iovirt_core::stage::{Hold, RangeLocks};
use iovirt_core::test_utils::conformance::{self, Profile};
use iovirt_core::test_utils::{
    BlockIo, Driver, ManualBackend, ManualHandle, PowerLossConfig, PowerLossDisk, power_loss::Pace,
};
use iovirt_core::{Tag, Worker, WorkerConfig};
use proptest::prelude::*;

const SIZE: u64 = 1 << 20;
const BLOCK: u32 = 4096;

fn large_blocks() -> BlockCaps {
    let config = PowerLossConfig::new(SIZE);
    BlockCaps { logical_block: BLOCK, physical_block: BLOCK, ..config.caps }
}

fn stack(config: AlignConfig, below: BoxBackend<BlockRequest>) -> BoxBackend<BlockRequest> {
    BoxBackend::new(Pipeline::top().stage(AlignLayer::new(config)).backend(below).expect("a stack"))
}

fn small_copies() -> AlignConfig {
    // Small, so that long requests take several steps.
    AlignConfig { memory: 4096, bounce_bytes: 3 * BLOCK as usize, ..AlignConfig::default() }
}

#[test]
fn the_suite_above_large_blocks() {
    for (name, pace) in [("align-random", Pace::Random), ("align-in-order", Pace::InOrder)] {
        let factory = || {
            let disk = PowerLossConfig { caps: large_blocks(), tear: BLOCK, ..PowerLossConfig::new(SIZE) };
            stack(small_copies(), PowerLossDisk::boxed(disk.pace(pace)))
        };
        conformance::run(&factory, &Profile::new(name)).assert_passed();
    }
}

#[test]
fn what_was_durable_below_is_durable_above() {
    let above = |below| stack(small_copies(), below);
    conformance::durability(&above, &Profile::new("align")).assert_passed();
}

#[test]
fn a_wrong_configuration_is_told() {
    let refuse = |config: AlignConfig| {
        let (below, _) = ManualBackend::new(large_blocks());
        AlignLayer::new(config).attach(below).expect_err("refused").to_string()
    };
    let config = AlignConfig::default();
    assert_eq!(
        refuse(AlignConfig { logical_block: 8192, ..config }),
        "align: logical-block=8192 is not allowed: powers of two from 512 to the 4096 below are"
    );
    assert!(refuse(AlignConfig { memory: 3, ..config }).contains("memory=3 is not allowed"));
    assert!(
        refuse(AlignConfig { bounce_bytes: 4096, ..config }).contains("bounce-bytes=4096 is not allowed")
    );
}

#[test]
fn capabilities_are_translated() {
    let (below, handle) = ManualBackend::new(large_blocks());
    let stack = stack(AlignConfig::default(), BoxBackend::new(below));
    let caps = stack.caps();
    assert_eq!((caps.logical_block, caps.physical_block, caps.capacity), (512, BLOCK, SIZE));
    assert_eq!(caps.discard.map(|discard| discard.alignment), Some(BLOCK));
    // A change below is seen by queues that are open.
    let mut driver = Driver::new(1).expect("a driver");
    driver.open(&stack, 4).expect("a queue");
    handle.set_caps(BlockCaps { capacity: SIZE / 2, ..large_blocks() }, Event::Resized);
    driver.submit(BlockIo::read(SIZE / 2, 512));
    let done = driver.turn();
    assert_eq!(done[0].output, BlockOutput::Failed(BlockError::OutOfRange));
    assert!(handle.in_flight().is_empty(), "refused before anything was done");
}

/// A stack above a back-end whose requests complete by command, and so many drivers of it.
fn by_hand(drivers: usize) -> (Vec<Driver>, ManualHandle<BlockRequest>) {
    let (below, handle) = ManualBackend::new(large_blocks());
    let stack = stack(AlignConfig::default(), BoxBackend::new(below));
    let open = |seed| {
        let mut driver = Driver::new(seed as u64).expect("a driver");
        driver.open(&stack, 8).expect("a queue");
        driver
    };
    ((0..drivers).map(open).collect(), handle)
}

fn kinds(handle: &ManualHandle<BlockRequest>) -> Vec<(usize, &'static str)> {
    handle.in_flight().iter().map(|request| (request.id.queue, request.name)).collect()
}

#[test]
fn parts_of_one_block_are_changed_one_after_another() {
    let (mut drivers, handle) = by_hand(2);
    drivers[0].submit(BlockIo::write(0, vec![1; 512]));
    drivers[0].turn();
    assert_eq!(kinds(&handle), [(0, "read")]);
    drivers[1].submit(BlockIo::write(512, vec![2; 512]));
    drivers[1].submit(BlockIo::discard(0, 4096));
    drivers[1].submit(BlockIo::read(0, 512));
    drivers[1].submit(BlockIo::write_zeroes(4096, 4096));
    drivers[1].turn();
    // A read, and a change of another block, wait for nothing.
    assert_eq!(kinds(&handle), [(0, "read"), (1, "read"), (1, "write-zeroes")]);
    handle.complete_all(BlockOutput::Done);
    let done: usize = drivers.iter_mut().map(|driver| driver.turn().len()).sum();
    assert_eq!((done, kinds(&handle)), (2, vec![(0, "write")]));
    handle.complete_all(BlockOutput::Done);
    assert_eq!(drivers[0].turn().len(), 1);
    drivers[1].turn();
    assert_eq!(kinds(&handle), [(1, "read")], "the second one reads what the first has written");
    handle.complete_all(BlockOutput::Done);
    drivers[1].turn();
    assert_eq!(kinds(&handle), [(1, "write")]);
    handle.complete_all(BlockOutput::Done);
    assert_eq!(drivers[1].turn().len(), 1);
    drivers[1].turn();
    assert_eq!(kinds(&handle), [(1, "discard")], "first come, first served");
    handle.complete_all(BlockOutput::Done);
    assert_eq!(drivers[1].turn().len(), 1);
}

#[test]
fn a_step_that_fails_or_is_lost_ends_its_request_and_frees_its_range() {
    for lose in [false, true] {
        let (mut drivers, handle) = by_hand(2);
        drivers[0].submit(BlockIo::write(512, vec![1; 512]));
        drivers[0].turn();
        drivers[1].submit(BlockIo::write(1024, vec![1; 512]));
        drivers[1].turn();
        let id = handle.in_flight()[0].id;
        let expected = if lose {
            assert!(handle.lose(id));
            BlockError::Aborted
        } else {
            assert!(handle.complete(id, BlockOutput::Failed(BlockError::Io)));
            BlockError::Io
        };
        let done = drivers[0].turn();
        assert_eq!(done[0].output, BlockOutput::Failed(expected));
        drivers[0].turn();
        drivers[1].turn();
        assert_eq!(kinds(&handle), [(1, "read")]);
    }
}

#[test]
fn a_write_of_a_queue_that_is_gone_keeps_its_blocks_until_it_is_done() {
    let (mut drivers, handle) = by_hand(2);
    drivers[0].submit(BlockIo::write(512, vec![1; 512]));
    drivers[0].turn();
    handle.complete_all(BlockOutput::Done);
    drivers[0].turn();
    assert_eq!(kinds(&handle), [(0, "write")]);
    // What the host still works on when the queue has gone.
    let id = handle.in_flight()[0].id;
    let kept = handle.with_request(id, |request| std::mem::take(request.sg_mut())).expect("it waits");
    drivers[0].close();
    drivers[1].submit(BlockIo::write(1024, vec![1; 512]));
    drivers[1].turn();
    assert_eq!(kinds(&handle), [], "the blocks may still be written");
    drop(kept);
    drivers[1].turn();
    assert_eq!(kinds(&handle), [(1, "read")]);
}

#[test]
fn a_write_that_was_lost_before_its_queue_went_keeps_nothing() {
    let (mut drivers, handle) = by_hand(2);
    drivers[0].submit(BlockIo::write(512, vec![1; 512]));
    drivers[0].turn();
    handle.complete_all(BlockOutput::Done);
    drivers[0].turn();
    assert!(handle.lose(handle.in_flight()[0].id));
    drivers[0].close();
    drivers[1].submit(BlockIo::write(1024, vec![1; 512]));
    drivers[1].turn();
    assert_eq!(kinds(&handle), [(1, "read")]);
}

#[test]
fn a_drain_waits_for_all_steps() {
    let (mut drivers, handle) = by_hand(1);
    drivers[0].submit(BlockIo::write(512, vec![1; 512]));
    drivers[0].turn();
    drivers[0].drain();
    for _ in 0..2 {
        assert_eq!((drivers[0].mode(), drivers[0].in_flight()), (iovirt_core::Mode::Draining, 1));
        handle.complete_all(BlockOutput::Done);
        drivers[0].turn();
    }
    drivers[0].turn();
    assert_eq!((drivers[0].mode(), drivers[0].in_flight()), (iovirt_core::Mode::Quiesced, 0));
}

proptest! {
    /// Every byte is done once, through aligned copies of bounded size or in whole blocks.
    #[test]
    fn parts_cover_a_request(sector in 0..64u64, sectors in 1..64u64, op in 0..4usize, bounce in 2..5u64) {
        let op = [BlockOp::Read, BlockOp::Write, BlockOp::WriteZeroes, BlockOp::Discard][op];
        let (offset, len, block) = (sector * 512, sectors * 512, 4096);
        let mut pool = SgPool::new(1, SgLimits::default());
        let request = BlockRequest::ranged(op, Tag::new(0), offset, len, pool.take()).expect("a range");
        let mut parent = Parent::new(request, None);
        let mut bytes = 0;
        while let Some(next) = parent.next(block, bounce * block) {
            let range = match next {
                Next::Copied(range) => {
                    let cover = super::parent::cover(&range, block);
                    prop_assert!(cover.end - cover.start <= bounce * block);
                    prop_assert_eq!(range.start, parent.done);
                    range
                }
                Next::Whole(range) => {
                    prop_assert!(range.start.is_multiple_of(block) && range.end.is_multiple_of(block));
                    range
                }
            };
            prop_assert!(range.start < range.end && range.end <= offset + len);
            bytes += range.end - range.start;
            parent.done = range.end;
        }
        if op != BlockOp::Discard {
            prop_assert_eq!(bytes, len);
        }
    }

    /// No two ranges are held against each other, and everyone gets a turn.
    #[test]
    fn ranges_are_kept_apart(steps in prop::collection::vec((0..40u64, 1..10u64, any::<bool>(), any::<bool>()), 1..60)) {
        let mut worker = Worker::new(WorkerConfig::default()).expect("a worker");
        let locks = Arc::new(RangeLocks::default());
        let waker = worker.with_context(|cx| cx.waker());
        let clients = [0, 1].map(|_| locks.client(waker.clone(), 64));
        let mut asked = Vec::new();
        let mut held: Vec<usize> = Vec::new();
        let (mut granted, mut next) = (Vec::new(), 0);
        for round in 0..steps.len() * 3 {
            if let Some(&(start, len, exclusive, which)) = steps.get(round) {
                let hold = if exclusive { Hold::Exclusive } else { Hold::Shared };
                let range = start..start + len;
                let client = &clients[usize::from(which)];
                let tag = Tag::new(asked.len() as u32);
                let (ticket, now) = client.ask(&mut client.batch(), range.clone(), hold, tag);
                if now {
                    held.push(asked.len());
                }
                asked.push((ticket, range, hold));
            } else if !held.is_empty() {
                next = (next * 7 + round) % held.len();
                let gone = held.swap_remove(next);
                clients[0].batch().release(asked[gone].0);
                for client in &clients {
                    if client.has_granted() {
                        client.granted(&mut client.batch(), &mut granted);
                    }
                }
                held.extend(granted.drain(..).map(Tag::index));
            }
            for (at, &one) in held.iter().enumerate() {
                for &other in &held[at + 1..] {
                    let ((_, a, hold), (_, b, with)) = (&asked[one], &asked[other]);
                    let apart = a.end <= b.start || b.end <= a.start;
                    prop_assert!(apart || (*hold, *with) == (Hold::Shared, Hold::Shared));
                }
            }
        }
        prop_assert!(held.is_empty(), "all had their turn and let go");
        prop_assert_eq!(locks.is_idle(), true);
    }
}
