//! A worker that looks for work before it sleeps loses no wake-up: neither of a driver nor of whoever commands the device.

use super::rig::{PATIENCE, POLL, Served, small, within_limit};
use iovirt_core::frontend::Outcome;
use iovirt_core::test_utils::{Rng, rounds_or, seed_or};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vhost_user_driver::options::feature;
use vhost_user_driver::{BlkQueue, BlkRequest, Operation, Options};

/// Waits without sleeping, for a time that a scheduler cannot tell.
fn pause(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// One request after another, with pauses that are about as long as the worker looks.
fn now_and_then(queue: &mut BlkQueue, rng: &mut Rng, requests: u64) {
    for _ in 0..requests {
        let sector = rng.below(64) * 8;
        queue.submit(0, BlkRequest { operation: Operation::Read, sector, len: 512 });
        queue.publish().unwrap();
        assert_eq!(queue.next(PATIENCE).expect("nobody woke the device, or the driver").status, 0);
        pause(Duration::from_nanos(rng.below(120_000)));
    }
}

#[test]
fn a_sleeping_driver_is_always_woken() {
    let seed = seed_or(0x51ee);
    println!("seed {seed:#x}");
    for event_idx in [feature::EVENT_IDX, 0] {
        within_limit("a driver that sleeps", move || {
            let mut rng = Rng::new(seed);
            let served = Served::new("virtio-blk,queues=2,queue-size=64 -> memory,size=1M", 1, POLL);
            let features = Options::blk().features & !feature::EVENT_IDX | event_idx;
            let mut driver = served.connect(&Options { features, ..small(2) });
            std::thread::scope(|scope| {
                for queue in &mut driver.queues {
                    let mut rng = rng.fork();
                    scope.spawn(move || now_and_then(queue, &mut rng, rounds_or(4000)));
                }
            });
        });
    }
}

/// A queue that is busy keeps the worker looking; commands to the other queue's lane, and new lanes, come by its waker.
#[test]
fn whoever_commands_a_worker_that_looks_is_heard() {
    within_limit("a command", || {
        let served = Served::new("virtio-blk,queues=2,queue-size=64 -> memory,size=1M", 1, POLL);
        let mut driver = served.connect(&small(1));
        let ended = Arc::new(AtomicBool::new(false));
        let busy = ended.clone();
        let load = std::thread::spawn(move || {
            let mut rng = Rng::new(1);
            while !busy.load(Ordering::Relaxed) {
                now_and_then(&mut driver.queues[0], &mut rng, 10);
            }
            driver
        });
        for round in 0..rounds_or(3000) {
            pause(Duration::from_nanos(round * 7919 % 90_000));
            let (drained, resumed) = (served.device().drain(), served.device().resume());
            assert!(drained.wait(PATIENCE).is_some(), "a drain in round {round}");
            assert_eq!(resumed.wait(PATIENCE), Some(Outcome::Done), "a resume in round {round}");
        }
        ended.store(true, Ordering::Relaxed);
        load.join().unwrap();
    });
}
