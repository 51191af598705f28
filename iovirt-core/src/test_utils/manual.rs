//! A back-end under the test's command: its requests complete, fail, stall or vanish one at a time.

use crate::backend::{Backend, Mode, Queue};
use crate::error::{BackendError, BackendErrorKind};
use crate::pipeline::{Event, EventListener, Listeners, Stages};
use crate::request::{Completion, Completions, Cost, Depth, Request, Tag};
use crate::state::{StageStates, StateError};
use crate::worker::{LaneWaker, WorkerContext};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A back-end whose requests wait for the test's word, given through its [`ManualHandle`] from any thread.
///
/// ```
/// use iovirt_core::request::block::{BlockCaps, BlockOutput, BlockRequest};
/// use iovirt_core::pipeline::BoxBackend;
/// use iovirt_core::test_utils::{BlockIo, Driver, ManualBackend};
/// use iovirt_core::Tag;
///
/// let (backend, manual) = ManualBackend::<BlockRequest>::new(BlockCaps::new(1 << 20));
/// let mut driver = Driver::new(7)?;
/// driver.open(&BoxBackend::new(backend), 4)?;
/// driver.submit(BlockIo::read(0, 512));
/// driver.submit(BlockIo::flush());
/// driver.turn();
/// assert_eq!(manual.in_flight().iter().map(|request| request.name).collect::<Vec<_>>(), ["read", "flush"]);
/// assert_eq!(manual.complete_all_reversed(BlockOutput::Done), 2);
/// assert_eq!(driver.turn().len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ManualBackend<R: Request> {
    shared: Arc<Shared<R>>,
}

/// The test's end of a [`ManualBackend`].
pub struct ManualHandle<R: Request> {
    shared: Arc<Shared<R>>,
}

struct Shared<R: Request> {
    state: Mutex<State<R>>,
    listeners: Listeners,
}

struct State<R: Request> {
    caps: Arc<R::Caps>,
    refuse_open: bool,
    restless: bool,
    queues: Vec<QueueState<R>>,
}

struct QueueState<R: Request> {
    requests: Vec<Waiting<R>>,
    ready: Vec<Completion<R>>,
    depth: Depth,
    waker: LaneWaker,
    draining: bool,
    open: bool,
    calls: Calls,
}

struct Waiting<R> {
    request: R,
    kicked: bool,
    stalled: bool,
}

/// How often the methods of one queue were called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Requests submitted.
    pub submits: u64,
    /// Batches ended.
    pub kicks: u64,
    /// Polls.
    pub polls: u64,
    /// Drains.
    pub drains: u64,
    /// Resumes.
    pub resumes: u64,
}

/// One request among those of all queues: the queue's number in the order of opening, and the tag. A bare [`Tag`]
/// means the first queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// The number of the queue.
    pub queue: usize,
    /// The tag on that queue.
    pub tag: Tag,
}

impl From<Tag> for RequestId {
    fn from(tag: Tag) -> Self {
        Self { queue: 0, tag }
    }
}

/// A request that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Which one.
    pub id: RequestId,
    /// Its kind, as an index into [`Request::KINDS`].
    pub kind: usize,
    /// Its kind's name.
    pub name: &'static str,
    /// What it costs.
    pub cost: Cost,
    /// Whether a kick came after it.
    pub kicked: bool,
    /// Whether [`ManualHandle::stall`] was called for it.
    pub stalled: bool,
    /// The request in words.
    pub summary: String,
}

impl<R: Request> ManualBackend<R> {
    /// A back-end of these capabilities, and the test's end of it.
    pub fn new(caps: R::Caps) -> (Self, ManualHandle<R>) {
        let state = State { caps: Arc::new(caps), refuse_open: false, restless: false, queues: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), listeners: Listeners::default() });
        (Self { shared: shared.clone() }, ManualHandle { shared })
    }
}

impl<R: Request> Shared<R> {
    fn lock(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Request> QueueState<R> {
    fn position(&self, tag: Tag) -> Option<usize> {
        self.requests.iter().position(|waiting| waiting.request.tag() == tag)
    }

    fn in_flight(&self) -> usize {
        self.requests.len() + self.ready.len()
    }
}

impl<R: Request> ManualHandle<R> {
    /// The requests that wait, queue by queue, in the order of submission.
    pub fn in_flight(&self) -> Vec<InFlight> {
        let state = self.shared.lock();
        let queues = state.queues.iter().enumerate();
        queues
            .flat_map(|(queue, held)| held.requests.iter().map(move |waiting| waiting.describe(queue)))
            .collect()
    }

    /// Completes a request with that output at the queue's next poll, which the queue's worker is woken for. False where
    /// it does not wait.
    pub fn complete(&self, id: impl Into<RequestId>, output: R::Output) -> bool {
        let mut state = self.shared.lock();
        let Some((queue, at)) = state.find(id.into()) else { return false };
        let request = queue.requests.remove(at).request;
        queue.ready.push(Completion { request, output });
        queue.waker.wake();
        true
    }

    /// Completes a request as given up; any other failure is an output for [`ManualHandle::complete`].
    pub fn fail(&self, id: impl Into<RequestId>) -> bool {
        self.complete(id, R::aborted())
    }

    /// Completes all that wait and are not stalled, in the order of submission; says how many.
    pub fn complete_all(&self, output: R::Output) -> usize {
        let ids = self.ids();
        ids.into_iter().filter(|&id| self.complete(id, output)).count()
    }

    /// The same, the last first.
    pub fn complete_all_reversed(&self, output: R::Output) -> usize {
        let ids = self.ids();
        ids.into_iter().rev().filter(|&id| self.complete(id, output)).count()
    }

    /// From now on [`ManualHandle::complete_all`] passes over the request: it is stuck until it is named.
    pub fn stall(&self, id: impl Into<RequestId>) -> bool {
        let mut state = self.shared.lock();
        let Some((queue, at)) = state.find(id.into()) else { return false };
        queue.requests[at].stalled = true;
        true
    }

    /// Drops a request instead of completing it, as a broken stage would.
    pub fn lose(&self, id: impl Into<RequestId>) -> bool {
        let lost = {
            let mut state = self.shared.lock();
            let Some((queue, at)) = state.find(id.into()) else { return false };
            queue.requests.remove(at)
        };
        drop(lost);
        true
    }

    /// Looks at a waiting request, and may fill its memory.
    pub fn with_request<T>(&self, id: impl Into<RequestId>, action: impl FnOnce(&mut R) -> T) -> Option<T> {
        let mut state = self.shared.lock();
        let (queue, at) = state.find(id.into())?;
        Some(action(&mut queue.requests[at].request))
    }

    /// Changes the capabilities and announces it.
    pub fn set_caps(&self, caps: R::Caps, event: Event) {
        self.shared.lock().caps = Arc::new(caps);
        self.shared.listeners.announce(event);
    }

    /// Whether the next calls of `open` fail.
    pub fn refuse_open(&self, refuse: bool) {
        self.shared.lock().refuse_open = refuse;
    }

    /// Whether queues stay [`Mode::Draining`] with nothing in flight, as one whose metadata takes long to write.
    pub fn keep_from_rest(&self, restless: bool) {
        let mut state = self.shared.lock();
        state.restless = restless;
        state.queues.iter().for_each(|queue| queue.waker.wake());
    }

    /// How many queues were opened and not dropped.
    pub fn open_queues(&self) -> usize {
        self.shared.lock().queues.iter().filter(|queue| queue.open).count()
    }

    /// The depth that queue number `queue` was opened with.
    pub fn depth(&self, queue: usize) -> Option<Depth> {
        self.shared.lock().queues.get(queue).map(|queue| queue.depth)
    }

    /// How often the methods of queue number `queue` were called.
    pub fn calls(&self, queue: usize) -> Calls {
        self.shared.lock().queues.get(queue).map_or_else(Calls::default, |queue| queue.calls)
    }

    fn ids(&self) -> Vec<RequestId> {
        self.in_flight().into_iter().filter(|request| !request.stalled).map(|request| request.id).collect()
    }
}

impl<R: Request> State<R> {
    fn find(&mut self, id: RequestId) -> Option<(&mut QueueState<R>, usize)> {
        let queue = self.queues.get_mut(id.queue)?;
        let at = queue.position(id.tag)?;
        Some((queue, at))
    }
}

impl<R: Request> Waiting<R> {
    fn describe(&self, queue: usize) -> InFlight {
        let kind = self.request.kind();
        InFlight {
            id: RequestId { queue, tag: self.request.tag() },
            kind,
            name: R::KINDS[kind],
            cost: self.request.cost(),
            kicked: self.kicked,
            stalled: self.stalled,
            summary: format!("{:?}", self.request),
        }
    }
}

impl<R: Request> Backend<R> for ManualBackend<R> {
    type Queue = ManualQueue<R>;

    fn caps(&self) -> Arc<R::Caps> {
        self.shared.lock().caps.clone()
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<ManualQueue<R>, BackendError> {
        let mut state = self.shared.lock();
        if state.refuse_open {
            return Err(BackendError::new(BackendErrorKind::Busy, "the test refuses to open a queue"));
        }
        state.queues.push(QueueState {
            requests: Vec::new(),
            ready: Vec::new(),
            depth,
            waker: cx.waker(),
            draining: false,
            open: true,
            calls: Calls::default(),
        });
        Ok(ManualQueue { shared: self.shared.clone(), index: state.queues.len() - 1 })
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push("manual");
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        self.shared.listeners.add(listener);
    }

    fn save(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }

    fn restore(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }
}

/// The data plane of a [`ManualBackend`].
pub struct ManualQueue<R: Request> {
    shared: Arc<Shared<R>>,
    index: usize,
}

impl<R: Request> ManualQueue<R> {
    fn with<T>(&self, action: impl FnOnce(&mut QueueState<R>) -> T) -> T {
        action(&mut self.shared.lock().queues[self.index])
    }
}

impl<R: Request> Queue<R> for ManualQueue<R> {
    fn submit(&mut self, _: &mut WorkerContext<'_>, request: R) {
        self.with(|queue| {
            queue.calls.submits += 1;
            assert!(queue.in_flight() < queue.depth.get(), "more requests than the queue was opened for");
            assert!(queue.position(request.tag()).is_none(), "tag {:?} is used twice", request.tag());
            queue.requests.push(Waiting { request, kicked: false, stalled: false });
        });
    }

    fn kick(&mut self, _: &mut WorkerContext<'_>) {
        self.with(|queue| {
            queue.calls.kicks += 1;
            queue.requests.iter_mut().for_each(|waiting| waiting.kicked = true);
        });
    }

    fn poll(&mut self, _: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        self.with(|queue| {
            queue.calls.polls += 1;
            done.append(&mut queue.ready);
        });
    }

    fn drain(&mut self, _: &mut WorkerContext<'_>) {
        self.with(|queue| {
            queue.calls.drains += 1;
            queue.draining = true;
        });
    }

    fn resume(&mut self, _: &mut WorkerContext<'_>) {
        self.with(|queue| {
            queue.calls.resumes += 1;
            queue.draining = false;
        });
    }

    fn mode(&self) -> Mode {
        let state = self.shared.lock();
        let queue = &state.queues[self.index];
        match queue.draining {
            false => Mode::Running,
            true if state.restless || queue.in_flight() > 0 => Mode::Draining,
            true => Mode::Quiesced,
        }
    }

    fn in_flight(&self) -> usize {
        self.with(|queue| queue.in_flight())
    }
}

impl<R: Request> Drop for ManualQueue<R> {
    fn drop(&mut self) {
        let (requests, ready) = self.with(|queue| {
            queue.open = false;
            (std::mem::take(&mut queue.requests), std::mem::take(&mut queue.ready))
        });
        // Outside the lock: dropping a request wakes whoever waits for it.
        drop((requests, ready));
    }
}

impl<R: Request> Clone for ManualHandle<R> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<R: Request> fmt::Debug for ManualHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManualHandle").field("in_flight", &self.in_flight()).finish()
    }
}

impl<R: Request> fmt::Debug for ManualBackend<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManualBackend").finish_non_exhaustive()
    }
}

impl<R: Request> fmt::Debug for ManualQueue<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManualQueue").field("index", &self.index).finish_non_exhaustive()
    }
}
