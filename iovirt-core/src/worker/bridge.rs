//! A queue on another worker: for a stack that has a home, such as a scheduler's or a connection's.
//!
//! ```text
//!   front worker                                home worker
//!   BridgeQueue ── batch of requests ──►  lock ──► lane ──► the stack below
//!               ◄─ batch of completions ─ lock ◄──
//! ```
//!
//! Each side takes the lock of each direction once per batch and wakes the other once per batch; a wake-up of a worker that
//! is awake costs one atomic operation. Drain goes through: the front is at rest when the home says that the stack is, and
//! nothing is on its way.
//!
//! Where the home worker is gone, what was on its way counts as lost: it comes home as aborted, see
//! [`Client`](crate::stage::Client).

use super::context::WorkerContext;
use super::lane::{Lane, LaneWaker, Turn};
use super::run::WorkerHandle;
use crate::backend::{Backend, Mode, Queue};
use crate::error::BackendError;
use crate::pipeline::{BoxBackend, BoxQueue, EventListener, Stages};
use crate::request::{Completion, Completions, Depth, Request};
use crate::state::{StageStates, StateError};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::fmt;

/// A stack whose queues run on a worker of their own choice, whoever opens them.
#[derive(Debug)]
pub struct Bridge<R: Request> {
    below: BoxBackend<R>,
    home: WorkerHandle,
}

impl<R: Request> Bridge<R> {
    /// Has the queues of `below` run on `home`.
    pub fn new(below: BoxBackend<R>, home: WorkerHandle) -> Self {
        Self { below, home }
    }
}

struct Shared<R: Request> {
    requests: Mutex<Vec<R>>,
    completions: Mutex<Vec<Completion<R>>>,
    /// Whether there is something in the other direction: read before a lock is taken.
    arrived: AtomicBool,
    front: LaneWaker,
    /// What the front wants: twice the number of its changes of mind, and one more where it drains.
    order: AtomicU64,
    /// The order for which the home is at rest.
    rests: AtomicU64,
    front_gone: AtomicBool,
    home_gone: AtomicBool,
}

impl<R: Request> Shared<R> {
    fn requests(&self) -> MutexGuard<'_, Vec<R>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn completions(&self) -> MutexGuard<'_, Vec<Completion<R>>> {
        self.completions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_drain(order: u64) -> bool {
    order & 1 == 1
}

impl<R: Request> Backend<R> for Bridge<R> {
    type Queue = BridgeQueue<R>;

    fn caps(&self) -> Arc<R::Caps> {
        self.below.caps()
    }

    /// Opens the queue on its home worker, in that worker's next turn. Where that fails there is a line in the log, and
    /// requests come home as aborted.
    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<BridgeQueue<R>, BackendError> {
        let shared = Arc::new(Shared {
            requests: Mutex::new(Vec::with_capacity(depth.get())),
            completions: Mutex::new(Vec::with_capacity(depth.get())),
            arrived: AtomicBool::new(false),
            front: cx.waker(),
            order: AtomicU64::new(0),
            rests: AtomicU64::new(0),
            front_gone: AtomicBool::new(false),
            home_gone: AtomicBool::new(false),
        });
        let (below, guard) = (self.below.clone(), HomeGuard(shared.clone()));
        let home = self.home.add_lane(move |cx| match below.open(cx, depth) {
            Ok(queue) => Some(Box::new(Home {
                queue,
                inbox: Vec::with_capacity(depth.get()),
                done: Completions::with_depth(depth),
                order: 0,
                guard,
            })),
            Err(error) => {
                tracing::error!(%error, "a queue could not be opened on its home worker");
                None
            }
        });
        Ok(BridgeQueue { shared, home, outbox: Vec::with_capacity(depth.get()), in_flight: 0, order: 0 })
    }

    fn stages(&self, stages: &mut Stages) {
        self.below.stages(stages);
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        self.below.subscribe(listener);
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.below.save(states)
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.below.restore(states)
    }
}

/// The near end of a [`Bridge`].
pub struct BridgeQueue<R: Request> {
    shared: Arc<Shared<R>>,
    home: LaneWaker,
    /// Submitted since the last kick.
    outbox: Vec<R>,
    in_flight: usize,
    order: u64,
}

impl<R: Request> BridgeQueue<R> {
    fn give(&mut self, order: u64) {
        self.order = order;
        self.shared.order.store(order, Ordering::SeqCst);
        self.home.wake();
    }

    /// The home worker is gone: nothing comes back from there any more.
    #[cold]
    fn give_up(&mut self) {
        self.outbox.clear();
        self.shared.requests().clear();
        self.in_flight = 0;
    }
}

impl<R: Request> Queue<R> for BridgeQueue<R> {
    #[inline]
    fn submit(&mut self, _: &mut WorkerContext<'_>, request: R) {
        self.outbox.push(request);
        self.in_flight += 1;
    }

    #[inline]
    fn kick(&mut self, _: &mut WorkerContext<'_>) {
        if self.outbox.is_empty() {
            return;
        }
        self.shared.requests().append(&mut self.outbox);
        self.home.wake();
    }

    #[inline]
    fn poll(&mut self, _: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        let gone = self.shared.home_gone.load(Ordering::SeqCst);
        if self.shared.arrived.load(Ordering::SeqCst) && self.shared.arrived.swap(false, Ordering::SeqCst) {
            let mut completions = self.shared.completions();
            self.in_flight -= completions.len();
            done.append(&mut completions);
        }
        if gone && self.in_flight > 0 {
            self.give_up();
        }
    }

    fn drain(&mut self, _: &mut WorkerContext<'_>) {
        if !is_drain(self.order) {
            self.give(self.order + 1);
        }
    }

    fn resume(&mut self, _: &mut WorkerContext<'_>) {
        if is_drain(self.order) {
            self.give(self.order + 1);
        }
    }

    fn mode(&self) -> Mode {
        if !is_drain(self.order) {
            return Mode::Running;
        }
        let rests = self.shared.rests.load(Ordering::SeqCst) == self.order
            || self.shared.home_gone.load(Ordering::SeqCst);
        if rests && self.in_flight == 0 { Mode::Quiesced } else { Mode::Draining }
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl<R: Request> Drop for BridgeQueue<R> {
    fn drop(&mut self) {
        self.shared.front_gone.store(true, Ordering::SeqCst);
        self.home.wake();
    }
}

/// Tells the front when the home is gone, in whichever way it goes.
struct HomeGuard<R: Request>(Arc<Shared<R>>);

impl<R: Request> Drop for HomeGuard<R> {
    fn drop(&mut self) {
        self.0.home_gone.store(true, Ordering::SeqCst);
        self.0.front.wake();
    }
}

/// The far end: the lane that owns the queue below.
struct Home<R: Request> {
    // Before the guard: what it loses is lost before the front hears of it.
    queue: BoxQueue<R>,
    inbox: Vec<R>,
    done: Completions<R>,
    order: u64,
    guard: HomeGuard<R>,
}

impl<R: Request> Home<R> {
    fn obey(&mut self, cx: &mut WorkerContext<'_>) {
        let order = self.guard.0.order.load(Ordering::SeqCst);
        if order == self.order {
            return;
        }
        self.order = order;
        if is_drain(order) {
            self.queue.drain(cx);
        } else {
            self.queue.resume(cx);
        }
    }

    /// Takes the batch that came over, and gives it on.
    fn take_in(&mut self, cx: &mut WorkerContext<'_>) {
        std::mem::swap(&mut *self.guard.0.requests(), &mut self.inbox);
        if self.inbox.is_empty() {
            return;
        }
        // Before anything of this batch can come home: the front must not take it, done, for a stack at rest.
        self.guard.0.rests.store(0, Ordering::SeqCst);
        for request in self.inbox.drain(..) {
            self.queue.submit(cx, request);
        }
        self.queue.kick(cx);
        cx.tick();
    }

    /// Sends over what is done; whether that was anything.
    fn send_back(&mut self, cx: &mut WorkerContext<'_>) -> bool {
        self.queue.poll(cx, &mut self.done);
        if self.done.is_empty() {
            return false;
        }
        self.guard.0.completions().extend(self.done.drain());
        self.guard.0.arrived.store(true, Ordering::SeqCst);
        true
    }
}

impl<R: Request> Lane for Home<R> {
    fn turn(&mut self, cx: &mut WorkerContext<'_>) -> Turn {
        // Before the batch is taken: the last one of a front that goes is served too.
        let front_gone = self.guard.0.front_gone.load(Ordering::SeqCst);
        self.obey(cx);
        self.take_in(cx);
        let mut news = self.send_back(cx);
        if is_drain(self.order) {
            let rests = if self.queue.mode() == Mode::Quiesced { self.order } else { 0 };
            news |= self.guard.0.rests.swap(rests, Ordering::SeqCst) != rests;
        }
        if news {
            self.guard.0.front.wake();
        }
        if front_gone && self.queue.in_flight() == 0 {
            return Turn::Finished;
        }
        Turn::Idle
    }
}

impl<R: Request> fmt::Debug for BridgeQueue<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BridgeQueue").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}
