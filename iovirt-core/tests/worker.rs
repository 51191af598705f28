//! The worker: wake-ups from other threads, time, watches, lanes, and an embedder's event loop.
#![cfg(feature = "test-utils")]
#![expect(
    clippy::redundant_closure_for_method_calls,
    reason = "the method alone is not general enough in its lifetime"
)]

use iovirt_core::prelude::*;
use iovirt_core::test_utils::{Simulation, VirtualClock};
use iovirt_core::worker::{Lane, Trigger, Turn, Watch};
use iovirt_core::{Clock, WorkerThread};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Long enough for any machine; nothing is measured by it.
const LIMIT: Duration = Duration::from_secs(60);

/// A lane of one closure.
struct By<F>(F);

impl<F: FnMut(&mut WorkerContext<'_>) -> Turn> Lane for By<F> {
    fn turn(&mut self, cx: &mut WorkerContext<'_>) -> Turn {
        (self.0)(cx)
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is what `add_lane` takes")]
fn lane(turn: impl FnMut(&mut WorkerContext<'_>) -> Turn + 'static) -> Option<Box<dyn Lane>> {
    Some(Box::new(By(turn)))
}

#[derive(Clone, Debug, Default)]
struct Count(Arc<AtomicUsize>);

impl Count {
    fn add(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

#[test]
fn no_wake_up_from_another_thread_is_missed() {
    const THREADS: usize = 4;
    const EACH: usize = 2000;
    let worker = WorkerThread::spawn("test", WorkerConfig::default()).unwrap();
    let inbox = Arc::new(Mutex::new(Vec::new()));
    let (waker_sender, waker_receiver) = mpsc::channel();
    let (sender, receiver) = mpsc::channel();
    let taken = inbox.clone();
    worker.handle().add_lane(move |cx| {
        waker_sender.send(cx.waker()).unwrap();
        lane(move |_| {
            for item in taken.lock().unwrap().drain(..) {
                sender.send(item).unwrap();
            }
            Turn::Idle
        })
    });
    let waker = waker_receiver.recv_timeout(LIMIT).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for item in 0..EACH {
                    inbox.lock().unwrap().push(item);
                    waker.wake();
                }
            });
        }
    });
    for _ in 0..THREADS * EACH {
        receiver.recv_timeout(LIMIT).expect("a wake-up was missed");
    }
}

#[test]
fn one_item_at_a_time_wakes_a_sleeping_worker() {
    let worker = WorkerThread::spawn("test", WorkerConfig::default()).unwrap();
    let (waker_sender, waker_receiver) = mpsc::channel();
    let (sender, receiver) = mpsc::channel();
    worker.handle().add_lane(move |cx| {
        waker_sender.send(std::task::Waker::from(cx.waker())).unwrap();
        lane(move |_| {
            let _ = sender.send(());
            Turn::Idle
        })
    });
    let waker = waker_receiver.recv_timeout(LIMIT).unwrap();
    receiver.recv_timeout(LIMIT).expect("a new lane gets a turn");
    for _ in 0..500 {
        waker.wake_by_ref();
        receiver.recv_timeout(LIMIT).expect("a wake-up was missed");
    }
}

#[test]
fn deadlines_come_in_their_order_and_at_their_time() {
    let mut simulation = Simulation::new().unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    for (name, first) in [("a", 5), ("b", 3), ("c", 9)] {
        let log = log.clone();
        simulation.worker().handle().add_lane(move |_| {
            let mut waited = false;
            lane(move |cx| {
                if waited {
                    log.lock().unwrap().push((name, cx.now().as_nanos()));
                    return Turn::Finished;
                }
                waited = true;
                // The earliest counts.
                cx.wake_at(Time::from_nanos(100));
                cx.wake_at(Time::from_nanos(first));
                cx.wake_at(Time::from_nanos(50));
                Turn::Idle
            })
        });
    }
    while simulation.step().unwrap().is_some() {}
    assert_eq!(*log.lock().unwrap(), [("b", 3), ("a", 5), ("c", 9)]);
    assert_eq!(simulation.worker().lanes(), 0);
    assert_eq!(simulation.worker().next_deadline(), None);
}

#[test]
fn a_turn_forgets_the_deadline_and_a_finished_lane_has_none() {
    let mut simulation = Simulation::new().unwrap();
    let turns = Count::default();
    let (mut waker, counted) = (None, turns.clone());
    let slot = Arc::new(Mutex::new(None));
    let given = slot.clone();
    simulation.worker().handle().add_lane(move |cx| {
        *given.lock().unwrap() = Some(cx.waker());
        lane(move |cx| {
            match counted.add() {
                1 => cx.wake_at(Time::from_nanos(10)),
                2 => {}
                _ => {
                    cx.wake_at(Time::from_nanos(1000));
                    return Turn::Finished;
                }
            }
            Turn::Idle
        })
    });
    simulation.settle().unwrap();
    assert_eq!(simulation.worker().next_deadline(), Some(Time::from_nanos(10)));
    waker.clone_from(&slot.lock().unwrap());
    let waker = waker.unwrap();
    waker.wake();
    simulation.settle().unwrap();
    assert_eq!((turns.get(), simulation.worker().next_deadline()), (2, None));
    waker.wake();
    simulation.settle().unwrap();
    assert_eq!((simulation.worker().lanes(), simulation.worker().next_deadline()), (0, None));
}

#[test]
fn a_simulation_passes_over_a_year_in_no_time() {
    let mut simulation = Simulation::new().unwrap();
    let turns = Count::default();
    let counted = turns.clone();
    simulation.worker().handle().add_lane(move |_| {
        lane(move |cx| {
            counted.add();
            cx.wake_at(cx.now() + Duration::from_hours(24));
            Turn::Idle
        })
    });
    simulation.run_for(Duration::from_hours(24 * 365)).unwrap();
    assert_eq!(turns.get(), 366);
    assert_eq!(simulation.clock().now(), Time::ZERO + Duration::from_hours(24 * 365));
    let earlier = VirtualClock::new();
    earlier.advance(Duration::from_secs(2));
    earlier.set(Time::ZERO);
    assert_eq!(earlier.now(), Time::ZERO + Duration::from_secs(2), "a clock does not go back");
}

fn watching(worker: &mut Worker, event: &EventFd, trigger: Trigger) -> (Count, Arc<Mutex<bool>>) {
    let (turns, keep) = (Count::default(), Arc::new(Mutex::new(true)));
    let (counted, kept) = (turns.clone(), keep.clone());
    let event = event.try_clone().unwrap();
    worker.handle().add_lane(move |cx| {
        let mut watch: Option<Watch> = Some(cx.watch(&event, trigger).unwrap());
        lane(move |_| {
            counted.add();
            if !*kept.lock().unwrap() {
                watch = None;
            }
            let _ = &watch;
            Turn::Idle
        })
    });
    worker.run().unwrap();
    (turns, keep)
}

#[test]
fn a_level_watch_gives_turns_as_long_as_there_is_something_to_read() {
    let mut worker = Worker::new(WorkerConfig::default()).unwrap();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let (turns, keep) = watching(&mut worker, &event, Trigger::Level);
    let before = turns.get();
    worker.run().unwrap();
    assert_eq!(turns.get(), before, "nothing to read, no turn");
    event.write(1).unwrap();
    for more in 1..=3 {
        worker.run().unwrap();
        assert_eq!(turns.get(), before + more);
    }
    event.read().unwrap();
    worker.run().unwrap();
    assert_eq!(turns.get(), before + 3);
    *keep.lock().unwrap() = false;
    event.write(1).unwrap();
    worker.run().unwrap();
    worker.run().unwrap();
    assert_eq!(turns.get(), before + 4, "the watch was dropped in that turn");
}

#[test]
fn an_edge_watch_gives_one_turn_for_each_write() {
    let mut worker = Worker::new(WorkerConfig::default()).unwrap();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let (turns, _keep) = watching(&mut worker, &event, Trigger::Edge);
    let before = turns.get();
    for more in 1..=3 {
        event.write(1).unwrap();
        worker.run().unwrap();
        worker.run().unwrap();
        assert_eq!(turns.get(), before + more, "the event was never read");
    }
}

#[test]
fn a_busy_lane_is_bounded_and_the_descriptor_stays_readable() {
    for by_context in [true, false] {
        let mut worker = Worker::new(WorkerConfig { rounds: 5, ..WorkerConfig::default() }).unwrap();
        let turns = Count::default();
        let counted = turns.clone();
        worker.handle().add_lane(move |_| {
            lane(move |cx| {
                if counted.add() == 12 {
                    return Turn::Idle;
                }
                if by_context {
                    cx.run_again();
                    return Turn::Idle;
                }
                Turn::Again
            })
        });
        for expected in [5, 10, 12, 12] {
            assert_eq!(is_readable(&worker), turns.get() < 12);
            worker.run().unwrap();
            assert_eq!(turns.get(), expected);
        }
    }
}

fn is_readable(worker: &Worker) -> bool {
    wait_readable(worker, 0)
}

fn wait_readable(worker: &Worker, timeout_ms: i32) -> bool {
    let epoll = Epoll::new().unwrap();
    epoll.ctl(ControlOperation::Add, worker.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
    epoll.wait(timeout_ms, &mut [EpollEvent::default()]).unwrap() == 1
}

#[test]
fn an_embedders_event_loop_learns_of_everything_by_one_descriptor() {
    let mut worker = Worker::new(WorkerConfig::default()).unwrap();
    assert!(!is_readable(&worker));
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let (turns, slot) = (Count::default(), Arc::new(Mutex::new(None)));
    let (counted, given, watched) = (turns.clone(), slot.clone(), event.try_clone().unwrap());
    worker.handle().add_lane(move |cx| {
        *given.lock().unwrap() = Some(cx.waker());
        let watch = cx.watch(&watched, Trigger::Edge).unwrap();
        lane(move |cx| {
            let _ = &watch;
            if counted.add() == 4 {
                cx.wake_at(cx.now() + Duration::from_millis(1));
            }
            Turn::Idle
        })
    });
    let mut expect = |turn: usize, what: &str| {
        assert!(wait_readable(&worker, 60_000), "{what}");
        worker.run().unwrap();
        assert_eq!(turns.get(), turn, "{what}");
        turn
    };
    expect(1, "a new lane");
    slot.lock().unwrap().as_ref().unwrap().wake();
    expect(2, "a wake-up");
    event.write(1).unwrap();
    expect(3, "a watched descriptor");
    slot.lock().unwrap().as_ref().unwrap().wake();
    expect(4, "a wake-up, in which it asks for a time");
    expect(5, "the time");
    assert!(!is_readable(&worker), "nothing left to do");
}

#[test]
fn what_a_hand_asked_for_is_announced_too() {
    let mut worker = Worker::new(WorkerConfig::default()).unwrap();
    worker.with_context(|cx| cx.wake_at(cx.now() + Duration::from_millis(1)));
    assert!(wait_readable(&worker, 60_000), "the time has come");
    worker.run().unwrap();
    assert!(!is_readable(&worker));
    worker.with_context(|cx| cx.run_again());
    assert!(is_readable(&worker), "the next turn is due");
    worker.run().unwrap();
    assert!(!is_readable(&worker));
}

#[test]
fn a_lane_wakes_another_on_its_worker_and_elsewhere() {
    let config = || WorkerConfig { rounds: 1, ..WorkerConfig::default() };
    let mut workers = [Worker::new(config()).unwrap(), Worker::new(config()).unwrap()];
    let turns = [Count::default(), Count::default()];
    let (sender, wakers) = mpsc::channel();
    for (worker, counted) in workers.iter_mut().zip(turns.clone()) {
        let sender = sender.clone();
        worker.handle().add_lane(move |cx| {
            sender.send(cx.waker()).unwrap();
            lane(move |_| {
                counted.add();
                Turn::Idle
            })
        });
        worker.run().unwrap();
    }
    let wakers: Vec<_> = wakers.try_iter().collect();
    // This one comes after the lane that it wakes, in the only round.
    workers[0].handle().add_lane(move |_| {
        lane(move |cx| {
            for waker in &wakers {
                cx.wake(waker);
            }
            Turn::Idle
        })
    });
    workers[0].run().unwrap();
    for (worker, turns) in workers.iter_mut().zip(&turns) {
        assert!(is_readable(worker), "the woken lane is due");
        worker.run().unwrap();
        assert_eq!(turns.get(), 2);
        assert!(!is_readable(worker));
    }
}

#[test]
fn lanes_come_from_other_threads_and_places_are_used_again() {
    let mut worker = Worker::new(WorkerConfig::default()).unwrap();
    let handle = worker.handle();
    let turns = Count::default();
    for round in 1..=3 {
        let counted = turns.clone();
        let sender = handle.clone();
        std::thread::spawn(move || {
            sender.add_lane(|_| None);
            sender.add_lane(move |_| {
                lane(move |_| {
                    counted.add();
                    Turn::Finished
                })
            });
        })
        .join()
        .unwrap();
        worker.run().unwrap();
        assert_eq!((turns.get(), worker.lanes()), (round, 0));
    }
}

/// Says on which thread it was dropped.
struct Tell(mpsc::Sender<std::thread::ThreadId>);

impl Drop for Tell {
    fn drop(&mut self) {
        let _ = self.0.send(std::thread::current().id());
    }
}

#[test]
fn a_lane_for_a_worker_that_is_gone_is_given_up() {
    let (sender, receiver) = mpsc::channel();
    let worker = Worker::new(WorkerConfig::default()).unwrap();
    let handle = worker.handle();
    let add = || {
        let tell = Tell(sender.clone());
        handle.add_lane(move |_| {
            drop(tell);
            unreachable!("the worker never runs")
        });
    };
    add();
    drop(worker);
    add();
    assert_eq!(receiver.try_iter().count(), 2, "what it holds is not kept with it");
}

#[test]
fn a_stopped_worker_drops_its_lanes_on_its_own_thread() {
    let worker = WorkerThread::spawn("test", WorkerConfig::default()).unwrap();
    let (sender, receiver) = mpsc::channel();
    let (id_sender, id_receiver) = mpsc::channel();
    worker.handle().add_lane(move |_| {
        id_sender.send(std::thread::current().id()).unwrap();
        let tell = Tell(sender);
        lane(move |_| {
            let _ = &tell;
            Turn::Idle
        })
    });
    let id = id_receiver.recv_timeout(LIMIT).unwrap();
    assert_ne!(id, std::thread::current().id());
    drop(worker);
    assert_eq!(receiver.recv_timeout(LIMIT).unwrap(), id);
}

/// A worker that looks for work, with a lane that has it look and one that always has work.
fn busy_and_polling() -> (Worker, Count) {
    let poll = Duration::from_micros(50);
    let worker = Worker::new(WorkerConfig { poll, ..WorkerConfig::default() }).unwrap();
    let turns = Count::default();
    worker
        .handle()
        .add_lane(|_| lane(|cx: &mut WorkerContext<'_>| if cx.polls() { Turn::Poll } else { Turn::Idle }));
    let busy = turns.clone();
    worker.handle().add_lane(move |_| {
        lane(move |_| {
            busy.add();
            Turn::Again
        })
    });
    (worker, turns)
}

#[test]
fn a_worker_that_looks_keeps_an_event_loop_no_longer_than_it_may_wait() {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut worker, turns) = busy_and_polling();
        for _ in 0..10 {
            worker.run_within(Duration::from_millis(2)).unwrap();
        }
        sender.send(turns.get()).unwrap();
    });
    assert!(receiver.recv_timeout(LIMIT).expect("the worker comes back") > 0);
}

/// New lanes and wake-ups, all while the worker looks: each is heard of.
#[test]
fn a_worker_that_looks_hears_of_new_lanes_and_wake_ups() {
    const ROUNDS: usize = 3000;
    let poll = Duration::from_micros(50);
    let worker = WorkerThread::spawn("test", WorkerConfig { poll, ..WorkerConfig::default() }).unwrap();
    let (sender, receiver) = mpsc::channel();
    // Looks, and is given work all the time by a lane that it does not know.
    worker
        .handle()
        .add_lane(|_| lane(|cx: &mut WorkerContext<'_>| if cx.polls() { Turn::Poll } else { Turn::Idle }));
    let turns = Count::default();
    let counted = turns.clone();
    let waker = worker.handle().add_lane(move |_| {
        lane(move |_| {
            counted.add();
            Turn::Idle
        })
    });
    for round in 0..ROUNDS {
        let before = turns.get();
        waker.wake();
        let begun = std::time::Instant::now();
        while turns.get() == before {
            assert!(begun.elapsed() < LIMIT, "a wake-up in round {round}");
            std::hint::spin_loop();
        }
        for _ in 0..round % 40 {
            std::hint::spin_loop();
        }
        let sender = sender.clone();
        worker.handle().add_lane(move |_| {
            sender.send(round).unwrap();
            None
        });
        assert_eq!(receiver.recv_timeout(LIMIT), Ok(round), "a new lane");
    }
}
