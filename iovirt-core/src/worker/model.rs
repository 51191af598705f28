//! Every order of events between a worker and whoever wakes it, and between the two ends of a [`Bridge`].
//!
//! Seen to fail where: a notification is taken away by a store, or a wake-up relaxed; `arrived` is set before the completions are
//! there, or nobody is woken for them; an order, or `home_gone`, is written after the wake-up; `rests` is not taken back before a
//! batch; `front_gone` is read after the batch was taken; a worker that looked for work goes to sleep over a notification whose edge
//! its looking took away; a lane that looks does not ask to be woken before the worker sleeps, or does not look once more after that.

use super::clock::{Clock, Time};
use super::uring::UringPolicy;
use super::{Bridge, BridgeQueue, Lane, LaneWaker, Turn, Worker, WorkerConfig, WorkerContext};
use crate::backend::{Mode, Queue};
use crate::model::{Disk, DiskState, Place, Sleeper, check, flushes, is_caught, settle, worker};
use crate::request::block::BlockRequest;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64 as PlainU64, AtomicUsize, Ordering as Plain};
use std::time::Duration;

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

/// A clock that goes on a little whenever it is asked, so that every run of a model is the same.
#[derive(Debug, Default)]
struct Steps(PlainU64);

impl Clock for Steps {
    fn now(&self) -> Time {
        Time::from_nanos(self.0.fetch_add(4_000, Plain::Relaxed))
    }
}

/// A worker that looks two or three times before it sleeps.
fn looking_worker() -> Worker {
    let poll = Duration::from_micros(8);
    let clock = Arc::new(Steps::default());
    Worker::new(WorkerConfig { clock, uring: UringPolicy::Off, rounds: 1, poll }).unwrap()
}

/// One run of a worker that may wait and therefore looks.
fn look(worker: &mut Worker) {
    worker.run_within(Duration::from_micros(500)).unwrap();
}

/// Looks for mail that comes without a word, for as long as its worker looks, and asks for a word before that sleeps: as the queue of a
/// device does with its driver.
struct Looker {
    mail: Arc<AtomicU64>,
    wants: Arc<AtomicBool>,
    seen: Arc<AtomicUsize>,
    manners: Manners,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manners {
    Good,
    /// Does not look once more after it asked.
    Hasty,
}

impl Lane for Looker {
    fn turn(&mut self, cx: &mut WorkerContext<'_>) -> Turn {
        // Read-modify-writes throughout: they are in one order for all, as with the fences of a ring.
        self.wants.swap(false, Ordering::SeqCst);
        let mail = self.mail.fetch_or(0, Ordering::SeqCst);
        self.seen.store(usize::try_from(mail).unwrap(), Plain::Relaxed);
        if cx.polls() {
            return Turn::Poll;
        }
        self.wants.swap(true, Ordering::SeqCst);
        let came = self.mail.fetch_or(0, Ordering::SeqCst) != mail;
        if came && self.manners == Manners::Good { Turn::Again } else { Turn::Idle }
    }
}

/// Mail comes while a worker looks and goes to sleep; a word is said only where it is asked for.
fn mail_for_a_looker(manners: Manners) {
    let mut worker = looking_worker();
    let (mail, wants, seen) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(true)), Arc::<AtomicUsize>::default());
    let looker = Looker { mail: mail.clone(), wants: wants.clone(), seen: seen.clone(), manners };
    let waker = worker.handle().add_lane(move |_| Some(Box::new(looker)));
    let running = thread::spawn(move || {
        look(&mut worker);
        worker
    });
    for bit in [1, 2] {
        mail.fetch_or(bit, Ordering::SeqCst);
        if wants.fetch_and(true, Ordering::SeqCst) {
            waker.wake();
        }
    }
    let mut worker = running.join().unwrap();
    settle(&mut [&mut worker]);
    assert_eq!(seen.load(Plain::Relaxed), 3, "mail is left");
}

#[test]
fn loom_a_worker_that_looks_sleeps_over_no_mail() {
    check(2, || mail_for_a_looker(Manners::Good));
}

#[test]
fn loom_a_lane_that_does_not_look_again_is_caught() {
    assert!(is_caught(2, || mail_for_a_looker(Manners::Hasty)));
}

/// Words that come while a worker looks: it takes the first one in passing, and must not sleep over the second.
#[test]
fn loom_a_worker_that_looks_misses_no_wake_up() {
    // Three: the worker goes first, hears one word, and has gone to sleep when the other comes.
    check(3, || {
        let mut worker = looking_worker();
        let (mail, seen) = (Arc::new(AtomicU64::new(0)), Arc::<AtomicUsize>::default());
        let idle = Looker {
            mail: Arc::new(AtomicU64::new(0)),
            wants: Arc::new(AtomicBool::new(true)),
            seen: Arc::default(),
            manners: Manners::Good,
        };
        // One lane has the worker look; the other is only woken.
        worker.handle().add_lane(move |_| Some(Box::new(idle)));
        let reader = Reader { mail: mail.clone(), seen: seen.clone() };
        let waker = worker.handle().add_lane(move |_| Some(Box::new(reader)));
        let running = thread::spawn(move || {
            look(&mut worker);
            worker
        });
        for bit in [1, 2] {
            mail.fetch_or(bit, Ordering::Relaxed);
            waker.wake();
        }
        let mut worker = running.join().unwrap();
        settle(&mut [&mut worker]);
        assert_eq!(seen.load(Plain::Relaxed), 3, "the lane sleeps over what it was woken for");
    });
}

/// A lane that comes while the worker looks.
#[test]
fn loom_a_lane_that_is_added_to_a_worker_that_looks_gets_its_turn() {
    check(2, || {
        let mut worker = looking_worker();
        let idle = Looker {
            mail: Arc::new(AtomicU64::new(0)),
            wants: Arc::new(AtomicBool::new(true)),
            seen: Arc::default(),
            manners: Manners::Good,
        };
        worker.handle().add_lane(move |_| Some(Box::new(idle)));
        let (handle, seen) = (worker.handle(), Arc::<AtomicUsize>::default());
        let running = thread::spawn(move || {
            look(&mut worker);
            worker
        });
        let reader = Reader { mail: Arc::new(AtomicU64::new(7)), seen: seen.clone() };
        handle.add_lane(move |_| Some(Box::new(reader)));
        let mut worker = running.join().unwrap();
        settle(&mut [&mut worker]);
        assert_eq!(seen.load(Plain::Relaxed), 7, "a lane was never made");
    });
}
