//! Every order of events between the registers and a lane.
//!
//! Seen to fail where: the flag of a command, or that of a device that goes, is set after the wake-up; the lane takes the flag back
//! outside the lock; commands are taken in when nobody obeys any more.

use super::{Command, LaneEnd, QueueLink, QueueSnapshot};
use crate::virtio::queue::{QueueConfig, QueueState};
use iovirt_core::frontend::{Outcome, Ticket};
use iovirt_core::model::{check, is_caught, settle, worker};
use iovirt_core::sync::atomic::{AtomicU64, Ordering};
use iovirt_core::worker::{Lane, Turn};
use iovirt_core::{Worker, WorkerContext};
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::Ordering as Plain;

const CONFIG: QueueConfig = QueueConfig { size: 8, max_size: 8, desc: 0, avail: 0, used: 0, ready: true };

/// A lane with the real link and no device: it comes to rest when it is told to.
struct Obedient {
    link: LaneEnd,
    /// Whether it takes all commands of a turn, or the first one only.
    all: bool,
    /// Stands for the map of guest memory, and what it saw of it when it was told to follow.
    map: Arc<AtomicU64>,
    followed: Arc<std::sync::atomic::AtomicU64>,
}

impl Lane for Obedient {
    fn turn(&mut self, _: &mut WorkerContext<'_>) -> Turn {
        if self.link.is_abandoned() {
            return Turn::Finished;
        }
        while let Some(command) = self.link.next() {
            match command {
                Command::Drain(completer) => {
                    let state = QueueState { config: CONFIG, next_avail: 1, next_used: 1 };
                    self.link.set_snapshot(Some(QueueSnapshot { state, heads: Vec::new() }));
                    completer.done();
                }
                Command::Resume(completer) | Command::Deactivate(completer) => {
                    self.link.set_snapshot(None);
                    completer.done();
                }
                Command::Follow(completer) => {
                    self.followed.store(self.map.load(Ordering::Relaxed), Plain::Relaxed);
                    completer.done();
                }
                Command::Activate(_) => {}
            }
            if !self.all {
                break;
            }
        }
        Turn::Idle
    }
}

fn start(worker: &Worker, all: bool) -> Arc<QueueLink> {
    start_over(worker, all, Arc::new(AtomicU64::new(0)), Arc::default())
}

fn start_over(
    worker: &Worker,
    all: bool,
    map: Arc<AtomicU64>,
    followed: Arc<std::sync::atomic::AtomicU64>,
) -> Arc<QueueLink> {
    let link = Arc::new(QueueLink::new().unwrap());
    let lane = Obedient { link: LaneEnd(link.clone()), all, map, followed };
    let waker = worker.handle().add_lane(move |_| Some(Box::new(lane)));
    link.waker.set(waker).unwrap();
    link
}

fn tell(link: &QueueLink, command: impl Fn(iovirt_core::frontend::Completer) -> Command) -> Ticket {
    let (ticket, completer) = Ticket::new();
    link.tell(command(completer));
    ticket
}

/// Two threads tell the lane something while it takes its turns.
fn two_commands(all: bool) {
    let mut worker = worker();
    let link = start(&worker, all);
    let other = link.clone();
    let telling = thread::spawn(move || tell(&other, Command::Drain));
    let running = thread::spawn(move || {
        worker.run().unwrap();
        worker.run().unwrap();
        worker
    });
    let second = tell(&link, Command::Drain);
    let first = telling.join().unwrap();
    let mut worker = running.join().unwrap();
    settle(&mut [&mut worker]);
    assert_eq!([first.outcome(), second.outcome()], [Some(Outcome::Done); 2], "a command was not obeyed");
    assert!(link.snapshot().is_some());
}

#[test]
fn loom_every_command_is_obeyed() {
    check(2, || two_commands(true));
}

/// One wake-up may stand for two commands.
#[test]
fn loom_a_lane_that_takes_one_command_a_turn_is_caught() {
    assert!(is_caught(2, || two_commands(false)));
}

/// Commands that meet a worker that goes: the ticket is done or cancelled, and nobody waits for ever.
#[test]
fn loom_a_worker_that_goes_cancels_what_it_was_told() {
    check(2, || {
        let mut worker = worker();
        let link = start(&worker, true);
        let running = thread::spawn(move || {
            worker.run().unwrap();
            drop(worker);
        });
        let ticket = tell(&link, Command::Drain);
        running.join().unwrap();
        assert!(ticket.is_done(), "somebody waits for a worker that is gone");
    });
}

/// A device that goes: its lane ends.
#[test]
fn loom_a_lane_ends_with_its_device() {
    check(2, || {
        let mut worker = worker();
        let link = start(&worker, true);
        let running = thread::spawn(move || {
            worker.run().unwrap();
            worker
        });
        link.abandon();
        let mut worker = running.join().unwrap();
        settle(&mut [&mut worker]);
        assert_eq!(worker.lanes(), 0);
    });
}

/// A map that is announced while the lane takes its turns: once the ticket is done, the lane goes by it.
fn a_new_map(order: [Announce; 2]) {
    let mut worker = worker();
    let (map, followed) = (Arc::new(AtomicU64::new(0)), Arc::<std::sync::atomic::AtomicU64>::default());
    let link = start_over(&worker, true, map.clone(), followed.clone());
    let running = thread::spawn(move || {
        worker.run().unwrap();
        worker.run().unwrap();
        worker
    });
    let mut ticket = None;
    for step in order {
        match step {
            Announce::Replace => map.store(1, Ordering::Relaxed),
            Announce::Tell => ticket = Some(tell(&link, Command::Follow)),
        }
    }
    let mut worker = running.join().unwrap();
    settle(&mut [&mut worker]);
    assert_eq!(ticket.and_then(|ticket| ticket.outcome()), Some(Outcome::Done));
    assert_eq!(followed.load(Plain::Relaxed), 1, "the lane goes by the old map");
}

#[derive(Clone, Copy)]
enum Announce {
    Replace,
    Tell,
}

#[test]
fn loom_a_lane_follows_the_map_that_it_is_told_of() {
    check(2, || a_new_map([Announce::Replace, Announce::Tell]));
}

#[test]
fn loom_a_map_that_comes_after_its_announcement_is_caught() {
    assert!(is_caught(2, || a_new_map([Announce::Tell, Announce::Replace])));
}
