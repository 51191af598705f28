//! Every order of events between a worker and whoever wakes it, and between the two ends of a [`Bridge`].
//!
//! Seen to fail where: a notification is taken away by a store, or a wake-up relaxed; `arrived` is set before the completions are
//! there, or nobody is woken for them; an order, or `home_gone`, is written after the wake-up; `rests` is not taken back before a
//! batch; `front_gone` is read after the batch was taken.

use super::{Bridge, BridgeQueue, Lane, LaneWaker, Turn, Worker, WorkerContext};
use crate::backend::{Mode, Queue};
use crate::model::{Disk, DiskState, Place, Sleeper, check, flushes, is_caught, settle, worker};
use crate::request::block::BlockRequest;
use crate::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering as Plain};

/// Reads what others have left for it.
struct Reader {
    mail: Arc<AtomicU64>,
    seen: Arc<AtomicUsize>,
}

impl Lane for Reader {
    fn turn(&mut self, _: &mut WorkerContext<'_>) -> Turn {
        self.seen.store(usize::try_from(self.mail.load(Ordering::Relaxed)).unwrap(), Plain::Relaxed);
        Turn::Idle
    }
}

/// A lane that a running worker is given, and that two threads write to.
#[test]
fn loom_no_wake_up_of_a_lane_is_lost() {
    check(2, || {
        let mut worker = worker();
        let (mail, seen) = (Arc::new(AtomicU64::new(0)), Arc::<AtomicUsize>::default());
        let reader = Reader { mail: mail.clone(), seen: seen.clone() };
        let waker = worker.handle().add_lane(move |_| Some(Box::new(reader)));
        let write = move |bit: u64, waker: &LaneWaker| {
            mail.fetch_or(bit, Ordering::Relaxed);
            waker.wake();
        };
        let (other_write, other_waker) = (write.clone(), waker.clone());
        let other = thread::spawn(move || other_write(1, &other_waker));
        let running = thread::spawn(move || {
            worker.run().unwrap();
            worker.run().unwrap();
            worker
        });
        write(2, &waker);
        other.join().unwrap();
        let mut worker = running.join().unwrap();
        settle(&mut [&mut worker]);
        assert_eq!(seen.load(Plain::Relaxed), 3, "the lane sleeps over what it was woken for");
    });
}

/// A lane that comes while the worker looks for new ones.
#[test]
fn loom_a_lane_that_is_added_gets_its_turn() {
    check(3, || {
        let mut worker = worker();
        let (handle, seen) = (worker.handle(), Arc::<AtomicUsize>::default());
        let reader = Reader { mail: Arc::new(AtomicU64::new(7)), seen: seen.clone() };
        let adding = thread::spawn(move || {
            handle.add_lane(|_| None);
            handle.add_lane(move |_| Some(Box::new(reader)));
        });
        worker.run().unwrap();
        worker.run().unwrap();
        adding.join().unwrap();
        settle(&mut [&mut worker]);
        assert_eq!(seen.load(Plain::Relaxed), 7, "a lane was never made");
    });
}

/// Writes first, then wakes: the other way round something is missed.
#[test]
fn loom_a_wake_up_before_its_reason_is_caught() {
    assert!(is_caught(2, || {
        let mut worker = worker();
        let (mail, seen) = (Arc::new(AtomicU64::new(0)), Arc::<AtomicUsize>::default());
        let reader = Reader { mail: mail.clone(), seen: seen.clone() };
        let waker = worker.handle().add_lane(move |_| Some(Box::new(reader)));
        let running = thread::spawn(move || {
            worker.run().unwrap();
            worker
        });
        waker.wake();
        mail.fetch_or(1, Ordering::Relaxed);
        let mut worker = running.join().unwrap();
        settle(&mut [&mut worker]);
        assert_eq!(seen.load(Plain::Relaxed), 1);
    }));
}

type Front = Place<BlockRequest, BridgeQueue<BlockRequest>>;

fn open(home: &Worker) -> (Front, Arc<DiskState>) {
    let (disk, state) = Disk::boxed();
    (Place::open(&Bridge::new(disk, home.handle())), state)
}

#[test]
fn loom_what_crosses_a_bridge_comes_back() {
    check(2, || {
        let mut home = worker();
        let (mut front, disk) = open(&home);
        let running = thread::spawn(move || {
            home.run().unwrap();
            home.run().unwrap();
            home
        });
        for request in flushes(2) {
            front.submit(request);
        }
        let mut home = running.join().unwrap();
        settle(&mut [&mut front, &mut home]);
        assert_eq!((front.done.len(), front.queue.in_flight()), (2, 0));
        assert_eq!(disk.served.load(Plain::Relaxed), 2);
    });
}

/// A drain that meets a lane in the making, a request on its way, or a way back.
#[test]
fn loom_a_drain_goes_over_a_bridge() {
    for resumed in [false, true] {
        check(2, move || {
            let mut home = worker();
            let (mut front, _) = open(&home);
            let running = thread::spawn(move || {
                home.run().unwrap();
                home.run().unwrap();
                home
            });
            front.submit(flushes(1).remove(0));
            front.act(|queue, cx| queue.drain(cx));
            if resumed {
                front.act(|queue, cx| queue.resume(cx));
            }
            let mut home = running.join().unwrap();
            settle(&mut [&mut front, &mut home]);
            let mode = if resumed { Mode::Running } else { Mode::Quiesced };
            assert_eq!((front.queue.mode(), front.done.len()), (mode, 1));
        });
    }
}

/// A queue at rest that serves one more request is not at rest again before what that one wrote is durable.
#[test]
fn loom_a_bridge_is_not_at_rest_before_its_home_is() {
    check(2, || {
        let mut home = worker();
        let (mut front, disk) = open(&home);
        front.act(|queue, cx| queue.drain(cx));
        settle(&mut [&mut front, &mut home]);
        assert_eq!(front.queue.mode(), Mode::Quiesced);
        let running = thread::spawn(move || {
            home.run().unwrap();
            home
        });
        front.submit(flushes(1).remove(0));
        for _ in 0..2 {
            front.poll();
            let dirty = disk.dirty.load(Plain::Relaxed);
            assert!(!dirty || front.queue.mode() != Mode::Quiesced, "at rest, but not durable");
        }
        let mut home = running.join().unwrap();
        settle(&mut [&mut front, &mut home]);
        assert_eq!(front.queue.mode(), Mode::Quiesced);
    });
}

/// The home goes, at whatever moment: every request comes home, one way or the other, and what was done counts as done.
#[test]
fn loom_nothing_waits_for_a_home_that_is_gone() {
    check(3, || {
        let mut home = worker();
        let (mut front, disk) = open(&home);
        let running = thread::spawn(move || {
            home.run().unwrap();
            drop(home);
        });
        front.submit(flushes(1).remove(0));
        front.step();
        front.step();
        running.join().unwrap();
        settle(&mut [&mut front]);
        assert_eq!(front.queue.in_flight(), 0);
        assert_eq!(front.done.len(), disk.served.load(Plain::Relaxed));
    });
}

/// The near end goes: the far end finishes what it has, and ends.
#[test]
fn loom_a_home_does_not_outlive_its_front() {
    check(2, || {
        let mut home = worker();
        let (mut front, disk) = open(&home);
        let running = thread::spawn(move || {
            home.run().unwrap();
            home
        });
        front.submit(flushes(1).remove(0));
        drop(front);
        let mut home = running.join().unwrap();
        settle(&mut [&mut home]);
        assert_eq!((home.lanes(), disk.served.load(Plain::Relaxed)), (0, 1));
    });
}
