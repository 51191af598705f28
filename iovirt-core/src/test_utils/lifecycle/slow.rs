//! A back-end whose requests take their time, by seed, and that stalls by command.

use crate::backend::{Backend, Mode, Queue};
use crate::error::BackendError;
use crate::pipeline::{BoxBackend, BoxQueue, Event, EventListener, Listeners, Stages};
use crate::request::block::{BlockCaps, BlockRequest};
use crate::request::net::{Link, NetCaps, NetRequest};
use crate::request::{Completions, Depth, Request};
use crate::state::{StageStates, StateError};
use crate::test_utils::rng::Rng;
use crate::worker::{LaneWaker, Time, WorkerContext};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Stands above a back-end and lets each request through when its time has come; in order, where the family keeps one, and
/// tokens at once. Unlike a stage it does not hurry when it drains, as a back-end does not: it is one for what is above.
pub struct Slow<R: Request> {
    below: BoxBackend<R>,
    shared: Arc<Shared<R>>,
}

/// A slow disk.
pub type SlowDisk = Slow<BlockRequest>;
/// A slow network.
pub type SlowNet = Slow<NetRequest>;

/// The test's end of a [`Slow`].
pub struct SlowHandle<R: Request> {
    shared: Arc<Shared<R>>,
}

/// The test's end of a [`SlowDisk`].
pub type SlowDiskHandle = SlowHandle<BlockRequest>;
/// The test's end of a [`SlowNet`].
pub type SlowNetHandle = SlowHandle<NetRequest>;

impl<R: Request> Clone for SlowHandle<R> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

struct Shared<R: Request> {
    state: Mutex<State<R>>,
    listeners: Listeners,
}

/// What is told of what is below.
type Told<R> = Box<dyn Fn(&<R as Request>::Caps) -> <R as Request>::Caps + Send>;

struct State<R: Request> {
    rng: Rng,
    longest: Duration,
    stalled: bool,
    told: Told<R>,
    wakers: Vec<LaneWaker>,
}

impl<R: Request> Shared<R> {
    fn lock(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Request> Slow<R> {
    fn above(below: BoxBackend<R>, longest: Duration, seed: u64, told: Told<R>) -> (Self, SlowHandle<R>) {
        let state = State { rng: Rng::new(seed), longest, stalled: false, told, wakers: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), listeners: Listeners::default() });
        (Self { below, shared: shared.clone() }, SlowHandle { shared })
    }
}

impl SlowDisk {
    /// A disk above `below`, of `capacity` bytes until it is resized, that takes up to `longest` for a request.
    pub fn new(
        below: BoxBackend<BlockRequest>,
        capacity: u64,
        longest: Duration,
        seed: u64,
    ) -> (Self, SlowDiskHandle) {
        Self::above(below, longest, seed, of_capacity(capacity))
    }
}

impl SlowNet {
    /// A network above `below` that takes up to `longest` for a frame.
    pub fn new(below: BoxBackend<NetRequest>, longest: Duration, seed: u64) -> (Self, SlowNetHandle) {
        Self::above(below, longest, seed, with_link(Link::Up))
    }
}

fn of_capacity(capacity: u64) -> Told<BlockRequest> {
    Box::new(move |below| BlockCaps { capacity: capacity.min(below.capacity), ..below.clone() })
}

fn with_link(link: Link) -> Told<NetRequest> {
    Box::new(move |below| NetCaps { link, ..below.clone() })
}

impl<R: Request> SlowHandle<R> {
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

    fn tell(&self, told: Told<R>, event: Event) {
        self.shared.lock().told = told;
        self.shared.listeners.announce(event);
    }
}

impl SlowDiskHandle {
    /// Changes the capacity in bytes, within what is below, and announces it.
    pub fn resize(&self, capacity: u64) {
        self.tell(of_capacity(capacity), Event::Resized);
    }
}

impl SlowNetHandle {
    /// Changes the link that the network tells, and announces it; frames flow all the same.
    pub fn set_link(&self, link: Link) {
        self.tell(with_link(link), Event::CapsChanged);
    }
}

impl<R: Request> Backend<R> for Slow<R> {
    type Queue = SlowQueue<R>;

    fn caps(&self) -> Arc<R::Caps> {
        let below = self.below.caps();
        Arc::new((self.shared.lock().told)(&below))
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<SlowQueue<R>, BackendError> {
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

/// The data plane of a [`Slow`].
pub struct SlowQueue<R: Request> {
    below: BoxQueue<R>,
    shared: Arc<Shared<R>>,
    /// As they came.
    waiting: Vec<(Time, R)>,
}

impl<R: Request> SlowQueue<R> {
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

impl<R: Request> Queue<R> for SlowQueue<R> {
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: R) {
        if request.is_token() {
            self.below.submit(cx, request);
            return;
        }
        let delay = {
            let mut state = self.shared.lock();
            let longest = state.longest.as_nanos() as u64;
            // One in four takes no time.
            if state.rng.one_in(4) { 0 } else { state.rng.below(longest + 1) }
        };
        let known = self.waiting.iter().any(|(_, waiting)| waiting.tag() == request.tag());
        assert!(!known, "tag {:?} is used twice", request.tag());
        let mut due = cx.now() + Duration::from_nanos(delay);
        if R::IN_ORDER {
            due = self.waiting.last().map_or(due, |(last, _)| due.max(*last));
        }
        self.waiting.push((due, request));
    }

    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        self.let_through(cx);
        self.below.kick(cx);
    }

    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<R>) {
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

impl<R: Request> fmt::Debug for Slow<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slow").field("below", &self.below).finish_non_exhaustive()
    }
}

impl<R: Request> fmt::Debug for SlowHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlowHandle").field("stalled", &self.shared.lock().stalled).finish_non_exhaustive()
    }
}

impl<R: Request> fmt::Debug for SlowQueue<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlowQueue").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}
