//! A stack exchanged under a running device: again and again under load, over several workers, and back where it fails.

mod common;

use common::{ALL, Rig};
use iovirt_backends::block::memory::{MemoryBackend, MemoryConfig};
use iovirt_backends::interposers::stats::{Stats, StatsConfig};
use iovirt_core::frontend::{Frontend, Outcome};
use iovirt_core::pipeline::{BoxBackend, Pipeline, SwapControl, SwapError, SwapLayer};
use iovirt_core::request::block::{BlockCaps, BlockOutput, BlockRequest};
use iovirt_core::test_utils::virtio::{BlkOp, BlkStatus};
use iovirt_core::test_utils::{BlockIo, Driver, ManualBackend, Rng, Workload, WorkloadConfig, seed_or};
use iovirt_frontends::virtio::blk::BlkConfig;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const SIZE: u64 = 1 << 20;

fn memory() -> BoxBackend<BlockRequest> {
    BoxBackend::new(MemoryBackend::new(&MemoryConfig { size: SIZE, ..MemoryConfig::default() }).unwrap())
}

fn counted(below: BoxBackend<BlockRequest>) -> BoxBackend<BlockRequest> {
    let stats = Stats::new(&StatsConfig::default()).layer();
    BoxBackend::new(Pipeline::top().stage(stats).backend(below).unwrap())
}

fn swappable(below: BoxBackend<BlockRequest>) -> (BoxBackend<BlockRequest>, Arc<SwapControl<BlockRequest>>) {
    let layer = SwapLayer::new(BlockCaps::may_replace);
    let stack = BoxBackend::new(Pipeline::top().stage(layer).backend(below).unwrap());
    let control = stack.list_stages().control("swappable").expect("the stage's handle");
    (stack, control)
}

fn workload(stack: &BoxBackend<BlockRequest>, blocks: u64, seed: u64) -> Workload {
    let caps = iovirt_core::Backend::caps(stack);
    Workload::new(WorkloadConfig::new(&caps, blocks), &caps, seed)
}

#[test]
fn exchanged_again_and_again_under_load() {
    let seed = seed_or(0x5a_b0);
    let mut rng = Rng::new(seed);
    let disk = memory();
    let (stack, control) = swappable(disk.clone());
    let mut driver = Driver::new(rng.next_u64()).unwrap();
    driver.open(&stack, 32).unwrap();
    let mut load = workload(&stack, 512, rng.next_u64());
    let mut exchanges = 0;
    while exchanges < 300 {
        load.run(&mut driver, rng.between(1, 40)).unwrap();
        for _ in 0..rng.below(20) {
            load.submit(&mut driver);
        }
        let newcomer = if rng.one_in(2) { disk.clone() } else { counted(disk.clone()) };
        let ticket = control.swap(newcomer).unwrap();
        if rng.one_in(5) {
            load.turn(&mut driver).unwrap();
            control.cancel();
        }
        while !ticket.is_done() {
            load.submit(&mut driver);
            load.turn(&mut driver).unwrap();
        }
        exchanges += u32::from(ticket.outcome() == Some(Outcome::Done));
    }
    load.finish(&mut driver).unwrap();
    load.verify(&mut driver).unwrap();
    println!("seed {seed:#x}: {exchanges} exchanges, {} requests", load.finished());
}

#[test]
fn every_worker_carries_its_own_queues_through() {
    let disk = memory();
    let (stack, control) = swappable(disk.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let progress: Arc<[AtomicU64; 3]> = Arc::default();
    let threads: Vec<_> = (0..3u64)
        .map(|at| {
            let (stack, stop, progress) = (stack.clone(), stop.clone(), progress.clone());
            std::thread::spawn(move || {
                let mut driver = Driver::new(at).unwrap();
                driver.open(&stack, 16).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let done = progress[at as usize].fetch_add(1, Ordering::Relaxed);
                    // Each thread has a part of the disk to itself.
                    let offset = (at * 80 + done % 80) * 4096;
                    let data = [at as u8 ^ done as u8; 4096];
                    driver.write(offset, &data).unwrap();
                    assert_eq!(driver.read(offset, 4096).unwrap(), data);
                }
            })
        })
        .collect();
    let all_worked = || progress.iter().all(|done| done.load(Ordering::Relaxed) > 100);
    let mut exchanges = 0;
    while exchanges < 100 || !all_worked() {
        let newcomer = if exchanges % 2 == 0 { counted(disk.clone()) } else { disk.clone() };
        let ticket = control.swap(newcomer).unwrap();
        assert_eq!(ticket.wait(Duration::from_secs(60)), Some(Outcome::Done));
        exchanges += 1;
    }
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    println!("{exchanges} exchanges under {progress:?} writes");
}

#[test]
fn a_stack_that_is_stuck_is_no_dead_end() {
    let (manual, handle) = ManualBackend::<BlockRequest>::new(BlockCaps::new(SIZE));
    let (stack, control) = swappable(BoxBackend::new(manual));
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 8).unwrap();
    driver.submit(BlockIo::flush()).unwrap();
    driver.turn();
    let stuck = handle.in_flight()[0].clone();
    let ticket = control.swap(memory()).unwrap_err();
    assert!(
        matches!(ticket, SwapError::Incompatible(_)),
        "memory promises less than write-through: {ticket}"
    );

    let (second, second_handle) = ManualBackend::<BlockRequest>::new(BlockCaps::new(SIZE));
    let ticket = control.swap(BoxBackend::new(second)).unwrap();
    assert_eq!(control.swap(memory()).unwrap_err(), SwapError::Busy);
    let parked = driver.submit(BlockIo::flush()).unwrap();
    for _ in 0..10 {
        driver.turn();
    }
    assert_eq!(ticket.outcome(), None);
    assert_eq!(
        second_handle.open_queues(),
        0,
        "nothing reaches the newcomer before the old stack is at rest"
    );
    control.cancel();
    driver.turn();
    assert_eq!(ticket.outcome(), Some(Outcome::Cancelled));
    // What was parked went to the old stack, and everything comes home from there.
    assert_eq!(handle.in_flight().len(), 2);
    handle.complete(stuck.id, BlockOutput::Done);
    handle.complete_all(BlockOutput::Done);
    let home = driver.wait_all().unwrap();
    assert!(home.iter().any(|done| done.id == parked));
}

#[test]
fn a_newcomer_that_cannot_be_opened_leaves_the_old_stack_in_place() {
    let (stack, control) = swappable(memory());
    let mut driver = Driver::new(2).unwrap();
    driver.open(&stack, 8).unwrap();
    driver.write(0, &[7; 512]).unwrap();
    let caps = iovirt_core::Backend::caps(&stack);
    let (manual, handle) = ManualBackend::<BlockRequest>::new((*caps).clone());
    handle.refuse_open(true);
    let ticket = control.swap(BoxBackend::new(manual)).unwrap();
    for _ in 0..10 {
        driver.turn();
    }
    assert_eq!(ticket.outcome(), Some(Outcome::Cancelled));
    assert_eq!(driver.read(0, 512).unwrap(), [7; 512]);
}

#[test]
fn under_a_whole_device() {
    let disk = memory();
    let (stack, control) = swappable(disk.clone());
    let rig = Rig::new(BlkConfig::default(), stack);
    let mut driver = rig.driver(ALL, 4096);
    for round in 0..100u64 {
        let data = [round as u8; 4096];
        let ticket = control.swap(counted(disk.clone())).unwrap();
        assert_eq!(driver.run(BlkOp::Out, round % 100 * 8, &mut data.clone()), Ok(BlkStatus::Ok));
        let mut read = [0; 4096];
        assert_eq!(driver.run(BlkOp::In, round % 100 * 8, &mut read), Ok(BlkStatus::Ok));
        assert_eq!(read, data);
        while !ticket.is_done() {
            rig.worker.borrow_mut().run().unwrap();
        }
        assert_eq!(ticket.outcome(), Some(Outcome::Done));
    }
    assert!(
        rig.device.stages().iter().any(|stage| stage.name == "stats"),
        "the newcomer's stages are the device's"
    );
}

#[test]
fn an_exchange_is_over_once_every_queue_has_left_the_old_stack() {
    let manual = || ManualBackend::<BlockRequest>::new(BlockCaps::new(SIZE));
    let ((old, old_handle), (new, new_handle)) = (manual(), manual());
    let (stack, control) = swappable(BoxBackend::new(old));
    let mut drivers = [Driver::new(3).unwrap(), Driver::new(4).unwrap()];
    for driver in &mut drivers {
        driver.open(&stack, 8).unwrap();
    }
    // The driver that had the last turn.
    let until = |drivers: &mut [Driver; 2], what: &dyn Fn() -> bool| {
        for at in 0..100 {
            drivers[at % 2].turn();
            if what() {
                return at % 2;
            }
        }
        panic!("the exchange does not get on");
    };
    let ticket = control.swap(BoxBackend::new(new)).unwrap();
    let over = until(&mut drivers, &|| new_handle.open_queues() == 2);
    // One goes over; the other does not know yet, and nothing else begins.
    drivers[over].turn();
    assert_eq!(old_handle.open_queues(), 1);
    let (third, _) = manual();
    assert_eq!(control.swap(BoxBackend::new(third)).unwrap_err(), SwapError::Busy);
    drivers[over].submit(BlockIo::flush()).unwrap();
    drivers[over].turn();
    assert_eq!((ticket.outcome(), new_handle.in_flight().len()), (None, 1), "it serves already");
    // Too late to be given up.
    control.cancel();
    until(&mut drivers, &|| ticket.is_done());
    assert_eq!((ticket.outcome(), old_handle.open_queues()), (Some(Outcome::Done), 0));
}

#[test]
fn a_queue_opened_half_way_through_loses_nothing() {
    let manual = || ManualBackend::<BlockRequest>::new(BlockCaps::new(SIZE));
    let ((old, old_handle), (new, new_handle)) = (manual(), manual());
    let (stack, control) = swappable(BoxBackend::new(old));
    let mut drivers = [5, 6, 7].map(|seed| Driver::new(seed).unwrap());
    let [early, slow, late] = &mut drivers;
    early.open(&stack, 8).unwrap();
    slow.open(&stack, 8).unwrap();
    let ticket = control.swap(BoxBackend::new(new)).unwrap();
    slow.turn();
    for _ in 0..10 {
        early.turn();
    }
    assert_eq!(
        (new_handle.open_queues(), ticket.outcome()),
        (1, None),
        "every queue rests, one has the newcomer"
    );
    // This one takes a request before it ever looks.
    late.open(&stack, 8).unwrap();
    late.submit(BlockIo::flush()).unwrap();
    let mut home = Vec::new();
    for round in 0..20 {
        home.extend(late.turn());
        slow.turn();
        early.turn();
        if round == 10 {
            assert_eq!((ticket.outcome(), old_handle.in_flight().len()), (None, 1));
            old_handle.complete_all(BlockOutput::Done);
        }
    }
    assert_eq!((home.len(), home[0].lost, home[0].output), (1, false, BlockOutput::Done));
    assert_eq!((ticket.outcome(), new_handle.open_queues()), (Some(Outcome::Done), 3));
}
