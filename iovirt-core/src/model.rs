//! What models have in common; only in a build with `--cfg loom`, see [`sync`](crate::sync).
//!
//! The threads of a model run real workers, with their epoll and eventfds; the checker decides in which order they reach
//! what they share. A model ends with [`settle`], which runs each worker for as long as its descriptor is readable. A worker
//! that has something to do then, and whose descriptor is not readable, is one that would sleep for ever: a lost wake-up.

use crate::backend::{Backend, Mode, Queue};
use crate::dma::{SgLimits, SgPool};
use crate::error::BackendError;
use crate::pipeline::{BoxBackend, EventListener, Stages};
use crate::request::block::{BlockCaps, BlockOutput, BlockRequest};
use crate::request::{Completions, Depth, Request, Tag};
use crate::state::{StageStates, StateError};
use crate::worker::{UringPolicy, Worker, WorkerConfig, WorkerContext};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Runs `model` in every order of events with at most `preemptions` of them forced.
pub fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(model);
}

/// Whether the checker finds an order in which `model` fails.
pub fn is_caught(preemptions: usize, model: impl Fn() + Sync + Send + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| check(preemptions, model))).is_err()
}

/// A worker that makes one round in each run: the fewer steps, the fewer orders.
pub fn worker() -> Worker {
    Worker::new(WorkerConfig { uring: UringPolicy::Off, rounds: 1, ..WorkerConfig::default() }).unwrap()
}

/// What sleeps until its descriptor is readable.
pub trait Sleeper {
    /// The worker that has the descriptor.
    fn worker(&self) -> &Worker;
    /// One turn of whoever sleeps there.
    fn step(&mut self);
}

impl Sleeper for Worker {
    fn worker(&self) -> &Worker {
        self
    }

    fn step(&mut self) {
        self.run().unwrap();
    }
}

/// A queue of any stack on a worker of its own, driven by hand.
#[derive(Debug)]
pub struct Place<R: Request, Q> {
    worker: Worker,
    /// The queue.
    pub queue: Q,
    /// What came home.
    pub done: Completions<R>,
}

impl<R: Request, Q: Queue<R>> Place<R, Q> {
    /// A queue for two requests.
    pub fn open(backend: &impl Backend<R, Queue = Q>) -> Self {
        let (mut worker, depth) = (worker(), Depth::new(2).unwrap());
        let queue = worker.with_context(|cx| backend.open(cx, depth)).unwrap();
        Self { worker, queue, done: Completions::with_depth(depth) }
    }

    /// Does something with the queue.
    pub fn act(&mut self, action: impl FnOnce(&mut Q, &mut WorkerContext<'_>)) {
        let queue = &mut self.queue;
        self.worker.with_context(|cx| action(queue, cx));
    }

    /// Polls the queue.
    pub fn poll(&mut self) {
        let Self { worker, queue, done } = self;
        worker.with_context(|cx| queue.poll(cx, done));
    }

    /// Submits, and looks at once as every client does.
    pub fn submit(&mut self, request: R) {
        self.act(|queue, cx| {
            queue.submit(cx, request);
            queue.kick(cx);
        });
        self.poll();
    }
}

impl<R: Request, Q: Queue<R>> Sleeper for Place<R, Q> {
    fn worker(&self) -> &Worker {
        &self.worker
    }

    fn step(&mut self) {
        self.worker.run().unwrap();
        self.poll();
    }
}

/// Whether the embedder's event loop would run the worker.
fn is_readable(worker: &Worker) -> bool {
    let mut poll = libc::pollfd { fd: worker.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: it is one entry, which lives across the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
}

/// Gives turns until all would sleep.
pub fn settle(sleepers: &mut [&mut dyn Sleeper]) {
    for _ in 0..200 {
        let Some(ready) = sleepers.iter_mut().find(|sleeper| is_readable(sleeper.worker())) else { return };
        ready.step();
    }
    panic!("the workers do not come to rest");
}

/// Flushes with the tags from zero.
pub fn flushes(count: u32) -> Vec<BlockRequest> {
    let mut pool = SgPool::new(count as usize, SgLimits::default());
    (0..count).map(|tag| BlockRequest::flush(Tag::new(tag), pool.take())).collect()
}

/// A disk that completes in its next poll, and on a drain needs one more turn to make durable what it has completed.
#[derive(Debug)]
pub struct Disk {
    caps: Arc<BlockCaps>,
    state: Arc<DiskState>,
}

/// What becomes of a [`Disk`]. Not in atomics of the checker: the threads do not learn of each other by these.
#[derive(Debug, Default)]
pub struct DiskState {
    /// Requests that it has completed.
    pub served: AtomicUsize,
    /// Whether there is something that it has completed and not made durable.
    pub dirty: AtomicBool,
}

impl Disk {
    /// One, and what becomes of it.
    pub fn boxed() -> (BoxBackend<BlockRequest>, Arc<DiskState>) {
        let state = Arc::<DiskState>::default();
        let caps = Arc::new(BlockCaps::new(1 << 20));
        (BoxBackend::new(Self { caps, state: state.clone() }), state)
    }
}

impl Backend<BlockRequest> for Disk {
    type Queue = DiskQueue;

    fn caps(&self) -> Arc<BlockCaps> {
        self.caps.clone()
    }

    fn open(&self, _: &mut WorkerContext<'_>, _: Depth) -> Result<DiskQueue, BackendError> {
        Ok(DiskQueue { state: self.state.clone(), held: Vec::new(), draining: false })
    }

    fn stages(&self, _: &mut Stages) {}

    fn subscribe(&self, _: &Arc<dyn EventListener>) {}

    fn save(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }

    fn restore(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }
}

/// The data plane of a [`Disk`].
#[derive(Debug)]
pub struct DiskQueue {
    state: Arc<DiskState>,
    held: Vec<BlockRequest>,
    draining: bool,
}

impl DiskQueue {
    fn is_dirty(&self) -> bool {
        self.state.dirty.load(Ordering::Relaxed)
    }
}

impl Queue<BlockRequest> for DiskQueue {
    fn submit(&mut self, _: &mut WorkerContext<'_>, request: BlockRequest) {
        self.held.push(request);
    }

    fn kick(&mut self, _: &mut WorkerContext<'_>) {}

    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<BlockRequest>) {
        let count = self.held.len();
        self.held.drain(..).for_each(|request| done.push(request, BlockOutput::Done));
        if count > 0 {
            self.state.served.fetch_add(count, Ordering::Relaxed);
            self.state.dirty.store(true, Ordering::Relaxed);
        } else if self.draining {
            self.state.dirty.store(false, Ordering::Relaxed);
        }
        if self.draining && self.is_dirty() {
            cx.run_again();
        }
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = true;
        cx.run_again();
    }

    fn resume(&mut self, _: &mut WorkerContext<'_>) {
        self.draining = false;
    }

    fn mode(&self) -> Mode {
        match (self.draining, self.held.is_empty() && !self.is_dirty()) {
            (false, _) => Mode::Running,
            (true, false) => Mode::Draining,
            (true, true) => Mode::Quiesced,
        }
    }

    fn in_flight(&self) -> usize {
        self.held.len()
    }
}
