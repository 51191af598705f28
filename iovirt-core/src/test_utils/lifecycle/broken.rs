//! For each operation a stage that only this operation finds.

use super::tests::{disk, seeds};
use super::world::LANES;
use super::*;
use crate::backend::{Backend, Mode, Queue};
use crate::error::BackendError;
use crate::pipeline::{BoxQueue, EventListener, Stages, Swappable};
use crate::request::block::BlockCaps;
use crate::request::{Completions, Depth};
use crate::state::{SavedState, StageStates, StateError};
use crate::worker::{Time, WorkerContext};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Hands everything on, but for what it is asked to do in one operation.
struct Broken {
    below: Stack,
    by: Operation,
    opened: Arc<AtomicUsize>,
    /// Queues that went with requests in flight.
    left: Arc<AtomicUsize>,
}

/// How long a broken stage waits for what is below before it gives up on it for ever.
const IMPATIENCE: Duration = Duration::from_millis(5);

impl Broken {
    fn above(below: Stack, by: Operation) -> Stack {
        let broken = BoxBackend::new(Self { below, by, opened: Arc::default(), left: Arc::default() });
        match by {
            Operation::Swap => BoxBackend::new(Swappable::new(broken, |_, _| Ok(()))),
            _ => broken,
        }
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Nothing;

impl SavedState for Nothing {
    const KIND: &'static str = "broken";
    const VERSION: u16 = 1;
}

impl Backend<BlockRequest> for Broken {
    type Queue = BrokenQueue;

    fn caps(&self) -> Arc<BlockCaps> {
        self.below.caps()
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<BrokenQueue, BackendError> {
        let below = self.below.open(cx, depth)?;
        // One queue for each lane works, however many of them are gone.
        let given_up = self.opened.fetch_add(1, Ordering::Relaxed) >= LANES && self.by == Operation::Swap;
        Ok(BrokenQueue { below, by: self.by, left: self.left.clone(), since: None, given_up })
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push("broken");
        self.below.stages(stages);
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        if self.by != Operation::Resize {
            self.below.subscribe(listener);
        }
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        states.push(&Nothing);
        self.below.save(states)
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        if self.by != Operation::Restore {
            let Nothing = states.pop()?;
        }
        self.below.restore(states)
    }
}

struct BrokenQueue {
    below: BoxQueue<BlockRequest>,
    by: Operation,
    left: Arc<AtomicUsize>,
    /// Since when something is in flight and nothing came home.
    since: Option<Time>,
    given_up: bool,
}

impl Queue<BlockRequest> for BrokenQueue {
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: BlockRequest) {
        self.since = self.since.or(Some(cx.now()));
        self.below.submit(cx, request);
    }

    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        self.below.kick(cx);
    }

    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<BlockRequest>) {
        let dead = self.by == Operation::Reset && self.left.load(Ordering::Relaxed) > 0;
        let late = self.since.is_some_and(|since| cx.now() > since + IMPATIENCE);
        self.given_up |= self.by == Operation::Stall && late;
        if dead || self.given_up {
            return;
        }
        let before = done.len();
        self.below.poll(cx, done);
        if done.len() > before {
            self.since = (self.below.in_flight() > 0).then(|| cx.now());
        }
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.below.drain(cx);
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        if self.by != Operation::Drain {
            self.below.resume(cx);
        }
    }

    fn mode(&self) -> Mode {
        self.below.mode()
    }

    fn in_flight(&self) -> usize {
        self.below.in_flight()
    }
}

impl Drop for BrokenQueue {
    fn drop(&mut self) {
        self.left.fetch_add(usize::from(self.below.in_flight() > 0), Ordering::Relaxed);
    }
}

#[test]
fn each_operation_finds_what_load_alone_does_not() {
    for &operation in Operation::ALL {
        let above = |below| Broken::above(below, operation);
        let name = format!("{operation:?}");
        let case = Case::new(&name, &disk, &above);
        let quiet = run(&case.only(&[]), seeds(10)).unwrap_or_else(|failure| panic!("under load: {failure}"));
        assert_eq!(quiet.operations(), 0);
        let only = [operation];
        let found = run(&case.only(&only), seeds(1000)).expect_err("nothing was found");
        println!("{found}");
    }
}

/// With one operation asked for, that one is made and no other.
#[test]
fn the_harness_itself_counts_what_it_does() {
    let above = |below: Stack| BoxBackend::new(SlowDisk::new(below, 1 << 20, Duration::ZERO, 1).0);
    for &operation in Operation::ALL {
        let only = [operation];
        let run = run(&Case::new("honest", &disk, &above).only(&only), seeds(5)).unwrap();
        let counted = match operation {
            Operation::Drain => run.drains + run.ways_back,
            Operation::Reset => run.resets,
            Operation::Restore => run.restores,
            Operation::Stall => run.stalls,
            Operation::Resize => run.resizes,
            // Nothing in this stack can be exchanged.
            Operation::Swap => u64::from(run.swaps == 0),
        };
        assert!(counted > 0, "{operation:?}: {run}");
        assert_eq!(
            run.operations(),
            if operation == Operation::Swap { 0 } else { counted },
            "{operation:?}: {run}"
        );
    }
}
