//! Whoever has the device does as they please while a front-end uses it: drains and resumes it, exchanges what is below; and front-ends
//! come, start rings and go meanwhile.

use super::protocol::load;
use super::raw::{Raw, code, duplicate, longs, words};
use super::rig::{PATIENCE, POLL, Served, small, within_limit};
use iovirt_core::frontend::Outcome;
use iovirt_core::pipeline::SwapControl;
use iovirt_core::request::block::BlockRequest;
use iovirt_core::test_utils::{Rng, rounds_or, seed_or};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vhost_user_driver::{BlkRequest, Error, Operation};

const STACK: &str =
    "virtio-blk,queues=2,queue-size=64 -> swappable -> delay,time=20us,jitter=40us -> memory,size=1M";

#[test]
fn drained_resumed_and_exchanged_under_load() {
    let seed = seed_or(0x11fe);
    println!("seed {seed:#x}");
    within_limit("the embedder", move || {
        let mut rng = Rng::new(seed);
        let served = Served::new(STACK, 2, POLL);
        let mut driver = served.connect(&small(2));
        let raw = Raw::of(&mut driver);
        let kicks: Vec<_> = driver.queues.iter().map(|queue| duplicate(queue.queue().kick_fd())).collect();
        let stages = served.device().stages();
        let (_, control) = stages.controls::<SwapControl<BlockRequest>>().next().unwrap();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..)
                .zip(&mut driver.queues)
                .map(|(number, queue)| {
                    let ended = &ended;
                    scope.spawn(move || load(queue, number, ended))
                })
                .collect();
            for _ in 0..rounds_or(200) {
                match rng.below(5) {
                    0 | 1 => {
                        let drained = served.device().drain();
                        if rng.one_in(2) {
                            assert_eq!(drained.wait(PATIENCE), Some(Outcome::Done));
                        }
                        if rng.one_in(3) {
                            let queue = rng.below(2) as u32;
                            assert_eq!(raw.tell(code::SET_VRING_ENABLE, &words(&[queue, 0])), 0);
                            assert_eq!(raw.tell(code::SET_VRING_ENABLE, &words(&[queue, 1])), 0);
                        }
                        assert_eq!(served.device().resume().wait(PATIENCE), Some(Outcome::Done));
                    }
                    2 => {
                        let ticket = control.swap(control.current()).unwrap();
                        if rng.one_in(4) {
                            control.cancel();
                        }
                        assert!(ticket.wait(PATIENCE).is_some());
                    }
                    3 => {
                        // The front-end stops a ring and starts it again where it stood; an embedder may have drained it.
                        let drained = rng.one_in(2).then(|| served.device().drain());
                        let queue = rng.below(2);
                        let base = raw.ask(code::GET_VRING_BASE, &words(&[queue as u32, 0]));
                        if drained.is_some() {
                            let _ = served.device().resume();
                        }
                        assert_eq!(raw.tell(code::SET_VRING_BASE, &base), 0);
                        let kick = kicks[queue as usize].as_fd();
                        assert_eq!(raw.tell_with(code::SET_VRING_KICK, &longs(&[queue]), &[kick]), 0);
                    }
                    _ => std::thread::sleep(Duration::from_micros(rng.below(500))),
                }
            }
            ended.store(true, Ordering::Relaxed);
            assert!(threads.into_iter().all(|thread| thread.join().unwrap() > 0));
        });
    });
}

/// A device that its embedder holds at rest serves nobody, whoever comes; and serves again afterwards.
#[test]
fn front_ends_of_a_device_at_rest_wait() {
    within_limit("a device at rest", || {
        for poll in [Duration::ZERO, POLL] {
            let served = Served::new(STACK, 2, poll);
            assert_eq!(served.device().drain().wait(PATIENCE), Some(Outcome::Done));
            for round in 0..5 {
                let mut driver = served.connect(&small(2));
                let queue = &mut driver.queues[0];
                queue.submit(0, BlkRequest { operation: Operation::Read, sector: 0, len: 512 });
                queue.publish().unwrap();
                let nothing = queue.next(Duration::from_millis(20));
                assert!(matches!(nothing, Err(Error::TimedOut)), "{nothing:?} in round {round}");
                if round % 2 == 0 {
                    assert_eq!(served.device().resume().wait(PATIENCE), Some(Outcome::Done));
                    assert_eq!(driver.queues[0].next(PATIENCE).unwrap().status, 0);
                    assert_eq!(served.device().drain().wait(PATIENCE), Some(Outcome::Done));
                }
            }
        }
    });
}

#[test]
fn front_ends_come_and_go_while_the_embedder_drains() {
    within_limit("front-ends that come and go", || {
        let served = Served::new(STACK, 2, POLL);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    // A drain that meets a front-end's leave may be cancelled by that; it ends in any case.
                    assert!(served.device().drain().wait(PATIENCE).is_some());
                    assert!(served.device().resume().wait(PATIENCE).is_some());
                    std::thread::sleep(Duration::from_micros(300));
                }
            });
            for round in 0..rounds_or(60) {
                let mut driver = served.connect(&small(2));
                for queue in &mut driver.queues {
                    for slot in 0..queue.slots() {
                        queue.submit(slot, BlkRequest { operation: Operation::Write, sector: 8, len: 4096 });
                    }
                    queue.publish().unwrap();
                }
                if round % 2 == 0 {
                    assert_eq!(driver.queues[0].next(PATIENCE).unwrap().status, 0);
                }
            }
            ended.store(true, Ordering::Relaxed);
        });
    });
}
