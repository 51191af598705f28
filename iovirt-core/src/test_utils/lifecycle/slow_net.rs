//! A network whose frames take their time, by seed, and that stalls by command.

use crate::backend::{Backend, Mode, Queue};
use crate::error::BackendError;
use crate::pipeline::{BoxBackend, BoxQueue, Event, EventListener, Listeners, Stages};
use crate::request::net::{Link, NetCaps, NetOp, NetRequest};
use crate::request::{Completions, Depth};
use crate::state::{StageStates, StateError};
use crate::test_utils::rng::Rng;
use crate::worker::{LaneWaker, Time, WorkerContext};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Stands above a network and lets each frame through when its time has come, in order. Unlike a stage it does not hurry when
/// it drains: it is the network for what is above. Tokens pass.
pub struct SlowNet {
    below: BoxBackend<NetRequest>,
    shared: Arc<Shared>,
}

/// The test's end of a [`SlowNet`].
#[derive(Clone)]
pub struct SlowNetHandle {
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
    link: Link,
    wakers: Vec<LaneWaker>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SlowNet {
    /// A network above `below` that takes up to `longest` for a frame.
    pub fn new(below: BoxBackend<NetRequest>, longest: Duration, seed: u64) -> (Self, SlowNetHandle) {
        let rng = Rng::new(seed);
        let state = State { rng, longest, stalled: false, link: Link::Up, wakers: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), listeners: Listeners::default() });
        (Self { below, shared: shared.clone() }, SlowNetHandle { shared })
    }
}

impl SlowNetHandle {
    /// From now on no frame is let through.
    pub fn stall(&self) {
        self.shared.lock().stalled = true;
    }

    /// The way back from [`SlowNetHandle::stall`].
    pub fn go_on(&self) {
        let wakers = {
            let mut state = self.shared.lock();
            state.stalled = false;
            state.wakers.clone()
        };
        wakers.iter().for_each(LaneWaker::wake);
    }

    /// Changes the link that the network tells, and announces it; frames flow all the same.
    pub fn set_link(&self, link: Link) {
        self.shared.lock().link = link;
        self.shared.listeners.announce(Event::CapsChanged);
    }
}

impl Backend<NetRequest> for SlowNet {
    type Queue = SlowNetQueue;

    fn caps(&self) -> Arc<NetCaps> {
        let link = self.shared.lock().link;
        Arc::new(NetCaps { link, ..(*self.below.caps()).clone() })
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<SlowNetQueue, BackendError> {
        let below = self.below.open(cx, depth)?;
        self.shared.lock().wakers.push(cx.waker());
        Ok(SlowNetQueue { below, shared: self.shared.clone(), waiting: VecDeque::with_capacity(depth.get()) })
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

/// The data plane of a [`SlowNet`].
pub struct SlowNetQueue {
    below: BoxQueue<NetRequest>,
    shared: Arc<Shared>,
    /// In order, also of their times.
    waiting: VecDeque<(Time, NetRequest)>,
}

impl SlowNetQueue {
    /// Lets through whose time has come; whether there was any.
    fn let_through(&mut self, cx: &mut WorkerContext<'_>) -> bool {
        if self.waiting.is_empty() || self.shared.lock().stalled {
            return false;
        }
        let mut any = false;
        while self.waiting.front().is_some_and(|(time, _)| *time <= cx.now()) {
            if let Some((_, request)) = self.waiting.pop_front() {
                self.below.submit(cx, request);
                any = true;
            }
        }
        if let Some((next, _)) = self.waiting.front() {
            cx.wake_at(*next);
        }
        any
    }
}

impl Queue<NetRequest> for SlowNetQueue {
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: NetRequest) {
        if request.op() == NetOp::Receive {
            self.below.submit(cx, request);
            return;
        }
        let delay = {
            let mut state = self.shared.lock();
            let longest = state.longest.as_nanos() as u64;
            // One in four takes no time.
            if state.rng.one_in(4) { 0 } else { state.rng.below(longest + 1) }
        };
        let due = cx.now() + Duration::from_nanos(delay);
        let due = self.waiting.back().map_or(due, |(last, _)| due.max(*last));
        self.waiting.push_back((due, request));
    }

    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        self.let_through(cx);
        self.below.kick(cx);
    }

    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<NetRequest>) {
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

impl fmt::Debug for SlowNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlowNet").field("below", &self.below).finish_non_exhaustive()
    }
}

impl fmt::Debug for SlowNetHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlowNetHandle").field("stalled", &self.shared.lock().stalled).finish_non_exhaustive()
    }
}

impl fmt::Debug for SlowNetQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlowNetQueue").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}
