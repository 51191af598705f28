//! A disk whose requests take their time, by seed, and that stalls by command.

use crate::backend::{Backend, Mode, Queue};
use crate::error::BackendError;
use crate::pipeline::{BoxBackend, BoxQueue, Event, EventListener, Listeners, Stages};
use crate::request::block::{BlockCaps, BlockRequest};
use crate::request::{Completions, Depth, Request};
use crate::state::{StageStates, StateError};
use crate::test_utils::rng::Rng;
use crate::worker::{LaneWaker, Time, WorkerContext};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Stands above a disk and lets each request through when its time has come. Unlike a stage it does not hurry when it drains,
/// as a disk does not: it is one for what is above.
pub struct SlowDisk {
    below: BoxBackend<BlockRequest>,
    shared: Arc<Shared>,
}

/// The test's end of a [`SlowDisk`].
#[derive(Clone)]
pub struct SlowHandle {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    listeners: Listeners,
}

struct State {
    rng: Rng,
    longest: Duration,
    stalled: bool,
    capacity: u64,
    wakers: Vec<LaneWaker>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SlowDisk {
    /// A disk above `below`, of `capacity` bytes until it is resized, that takes up to `longest` for a request.
    pub fn new(
        below: BoxBackend<BlockRequest>,
        capacity: u64,
        longest: Duration,
        seed: u64,
    ) -> (Self, SlowHandle) {
        let state = State { rng: Rng::new(seed), longest, stalled: false, capacity, wakers: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), listeners: Listeners::default() });
        (Self { below, shared: shared.clone() }, SlowHandle { shared })
    }
}

impl SlowHandle {
    /// From now on no request is let through.
    pub fn stall(&self) {
        self.shared.lock().stalled = true;
    }

    /// The way back from [`SlowHandle::stall`].
    pub fn go_on(&self) {
        let wakers = {
            let mut state = self.shared.lock();
            state.stalled = false;
            state.wakers.clone()
        };
        wakers.iter().for_each(LaneWaker::wake);
    }

    /// Changes the capacity in bytes, within what is below, and announces it.
    pub fn resize(&self, capacity: u64) {
        self.shared.lock().capacity = capacity;
        self.shared.listeners.announce(Event::Resized);
    }
}

impl Backend<BlockRequest> for SlowDisk {
    type Queue = SlowQueue;

    fn caps(&self) -> Arc<BlockCaps> {
        let below = self.below.caps();
        let capacity = self.shared.lock().capacity.min(below.capacity);
        Arc::new(BlockCaps { capacity, ..(*below).clone() })
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<SlowQueue, BackendError> {
        let below = self.below.open(cx, depth)?;
        self.shared.lock().wakers.push(cx.waker());
        Ok(SlowQueue { below, shared: self.shared.clone(), waiting: Vec::with_capacity(depth.get()) })
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push("slow");
        self.below.stages(stages);
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        self.shared.listeners.add(listener);
        self.below.subscribe(listener);
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.below.save(states)
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.below.restore(states)
    }
}

/// The data plane of a [`SlowDisk`].
pub struct SlowQueue {
    below: BoxQueue<BlockRequest>,
    shared: Arc<Shared>,
    waiting: Vec<(Time, BlockRequest)>,
}

impl SlowQueue {
    /// Lets through whose time has come; whether there was any.
    fn let_through(&mut self, cx: &mut WorkerContext<'_>) -> bool {
        if self.waiting.is_empty() || self.shared.lock().stalled {
            return false;
        }
        let now = cx.now();
        let mut any = false;
        let mut at = 0;
        while at < self.waiting.len() {
            if self.waiting[at].0 <= now {
                let (_, request) = self.waiting.remove(at);
                self.below.submit(cx, request);
                any = true;
            } else {
                at += 1;
            }
        }
        if let Some(next) = self.waiting.iter().map(|(time, _)| *time).min() {
            cx.wake_at(next);
        }
        any
    }
}

impl Queue<BlockRequest> for SlowQueue {
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: BlockRequest) {
        let delay = {
            let mut state = self.shared.lock();
            let longest = state.longest.as_nanos() as u64;
            // One in four takes no time.
            if state.rng.one_in(4) { 0 } else { state.rng.below(longest + 1) }
        };
        let known = self.waiting.iter().any(|(_, waiting)| waiting.tag() == request.tag());
        assert!(!known, "tag {:?} is used twice", request.tag());
        self.waiting.push((cx.now() + Duration::from_nanos(delay), request));
    }

    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        self.let_through(cx);
        self.below.kick(cx);
    }

    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<BlockRequest>) {
        if self.let_through(cx) {
            self.below.kick(cx);
        }
        self.below.poll(cx, done);
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.below.drain(cx);
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        self.below.resume(cx);
    }

    fn mode(&self) -> Mode {
        match self.below.mode() {
            Mode::Quiesced if !self.waiting.is_empty() => Mode::Draining,
            mode => mode,
        }
    }

    fn in_flight(&self) -> usize {
        self.waiting.len() + self.below.in_flight()
    }
}

impl fmt::Debug for SlowDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlowDisk").field("below", &self.below).finish_non_exhaustive()
    }
}

impl fmt::Debug for SlowHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlowHandle").field("stalled", &self.shared.lock().stalled).finish_non_exhaustive()
    }
}

impl fmt::Debug for SlowQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlowQueue").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}
