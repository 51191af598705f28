//! The worker itself.

use super::clock::{Clock, MonotonicClock, Time};
use super::context::{Core, LaneState, RingState, WorkerContext};
use super::fd::duplicate;
use super::lane::{Lane, LaneWaker, Turn};
use super::polling::Polling;
use super::reactor::Reactor;
use super::uring::UringPolicy;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How a worker is made.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Where its time comes from.
    pub clock: Arc<dyn Clock>,
    /// Whether it may use io_uring.
    pub uring: UringPolicy,
    /// How many rounds over its ready lanes one [`Worker::run`] makes at most: the bound on how long it keeps the
    /// embedder's event loop. A worker that polls makes more of them in [`Worker::run_within`], for as long as that may wait.
    pub rounds: usize,
    /// How long the worker looks for new work at most before it sleeps, so that whoever brings some need not wake it. It looks for
    /// less or not at all where that finds nothing. Zero, the default, turns it off. Only where the worker waits by itself: in
    /// [`WorkerThread`](super::WorkerThread), [`Worker::run_until_stopped`] and [`Worker::run_within`].
    pub poll: Duration,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        let (clock, uring) = (Arc::new(MonotonicClock::new()), UringPolicy::default());
        Self { clock, uring, rounds: 16, poll: Duration::ZERO }
    }
}

/// A lane that is yet to be made, and the waker that whoever asked for it has already.
struct NewLane {
    waker: LaneWaker,
    #[expect(clippy::type_complexity, reason = "the type stands here once")]
    make: Box<dyn FnOnce(&mut WorkerContext<'_>) -> Option<Box<dyn Lane>> + Send>,
}

/// What other threads leave for a worker.
pub(super) struct Inbox {
    wake: EventFd,
    notified: AtomicBool,
    stop: AtomicBool,
    /// `None` once the worker is gone.
    new_lanes: Mutex<Option<Vec<NewLane>>>,
}

impl Inbox {
    fn new() -> io::Result<Self> {
        Ok(Self {
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            notified: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            new_lanes: Mutex::new(Some(Vec::new())),
        })
    }

    fn new_lanes(&self) -> MutexGuard<'_, Option<Vec<NewLane>>> {
        self.new_lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn notify(&self) {
        if !self.notified.swap(true, Ordering::SeqCst) {
            // The only failure is a counter at its end, and then the worker is awake already.
            let _ = self.wake.write(1);
        }
    }

    fn is_notified(&self) -> bool {
        self.notified.load(Ordering::SeqCst)
    }

    /// The worker looks at everything after this: whoever notifies from now on makes the descriptor readable again.
    fn heed(&self) {
        // Read and written in one: the worker sees what came before each notification that it takes away here.
        self.notified.swap(false, Ordering::SeqCst);
    }
}

/// Reaches a worker from any thread.
#[derive(Clone)]
pub struct WorkerHandle {
    inbox: Arc<Inbox>,
}

impl WorkerHandle {
    /// Makes a lane on the worker's thread: `make` runs there with the new lane's context, and reports for itself
    /// where it gives `None`. It is dropped where the worker is gone.
    ///
    /// The lane's waker can be used at once: a wake-up that comes before the lane is kept for it.
    pub fn add_lane(
        &self,
        make: impl FnOnce(&mut WorkerContext<'_>) -> Option<Box<dyn Lane>> + Send + 'static,
    ) -> LaneWaker {
        let waker = LaneWaker::new(self.inbox.clone());
        let lane = NewLane { waker: waker.clone(), make: Box::new(make) };
        // Dropping it may run anything: not under the lock.
        let refused = match &mut *self.inbox.new_lanes() {
            Some(new_lanes) => {
                new_lanes.push(lane);
                None
            }
            None => Some(lane),
        };
        drop(refused);
        self.inbox.notify();
        waker
    }

    /// Asks the worker to drop its lanes and end. Requests in flight keep their memory until the host is done with it.
    pub fn stop(&self) {
        self.inbox.stop.store(true, Ordering::SeqCst);
        self.inbox.notify();
    }
}

impl fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerHandle").field("stop", &self.inbox.stop).finish_non_exhaustive()
    }
}

/// Runs lanes on the thread that made it; see the [module](super).
pub struct Worker {
    // The lanes go first: what they leave in flight is waited for when the ring in `core` goes.
    lanes: Vec<Option<Box<dyn Lane>>>,
    core: Core,
    fd: OwnedFd,
    inbox: Arc<Inbox>,
    rounds: usize,
    polling: Polling,
}

/// While a worker looks for new work, it polls its descriptor once in that many looks.
const LOOKS_PER_POLL: u32 = if cfg!(loom) { 1 } else { 64 };

/// The lane of [`Worker::with_context`]: it is nobody's.
const SCRATCH: usize = 0;

impl Worker {
    /// A worker without lanes.
    ///
    /// # Errors
    /// Where the host has no descriptor left.
    pub fn new(config: WorkerConfig) -> io::Result<Self> {
        let inbox = Arc::new(Inbox::new()?);
        let reactor = Reactor::new(&inbox.wake)?;
        let fd = duplicate(&reactor)?;
        let core = Core {
            now: config.clock.now(),
            clock: config.clock,
            reactor: Rc::new(RefCell::new(reactor)),
            ring: RingState::new(config.uring),
            lanes: Vec::new(),
            polls: false,
        };
        let (rounds, polling) = (config.rounds.max(1), Polling::new(config.poll));
        let mut worker = Self { lanes: Vec::new(), core, fd, inbox, rounds, polling };
        let nobody = LaneWaker::new(worker.inbox.clone());
        worker.reserve_lane(nobody);
        Ok(worker)
    }

    /// Reaches this worker from any thread.
    pub fn handle(&self) -> WorkerHandle {
        WorkerHandle { inbox: self.inbox.clone() }
    }

    /// One step that does not block: what is ready, at most [`WorkerConfig::rounds`] rounds of it. Where more is left the
    /// descriptor stays readable.
    ///
    /// # Errors
    /// Where the host fails to poll or to time, which it does only when misused.
    pub fn run(&mut self) -> io::Result<()> {
        self.step(Some(Duration::ZERO))
    }

    /// The same, but waits first, at most for `limit`, until something is ready.
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub fn run_within(&mut self, limit: Duration) -> io::Result<()> {
        self.step(Some(limit))
    }

    /// Runs until [`WorkerHandle::stop`].
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub fn run_until_stopped(&mut self) -> io::Result<()> {
        while !self.is_stopped() {
            self.step(None)?;
        }
        self.lanes.clear();
        Ok(())
    }

    /// Whether [`WorkerHandle::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        self.inbox.stop.load(Ordering::SeqCst)
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> usize {
        self.lanes.iter().flatten().count()
    }

    /// When a lane next wants a turn for the sake of time: what a simulation moves its virtual clock to.
    pub fn next_deadline(&self) -> Option<Time> {
        self.core.lanes.iter().filter_map(|lane| lane.deadline).min()
    }

    /// Runs `action` with a context that belongs to no lane: for driving a queue by hand.
    pub fn with_context<T>(&mut self, action: impl FnOnce(&mut WorkerContext<'_>) -> T) -> T {
        self.core.now = self.core.clock.now();
        let result = action(&mut WorkerContext { core: &mut self.core, lane: SCRATCH });
        self.flush_ring();
        if let Err(error) = self.announce() {
            tracing::error!(%error, "a deadline was not armed because the host failed to time");
        }
        result
    }

    /// Makes the descriptor readable now where a lane is ready or the ring has a backlog, and at the next deadline.
    fn announce(&mut self) -> io::Result<()> {
        if self.gather() || self.core.ring.has_backlog() {
            self.inbox.notify();
        }
        let deadline = if self.core.clock.runs() { self.next_deadline() } else { None };
        self.core.reactor.borrow_mut().arm(deadline, self.core.now)
    }

    fn step(&mut self, limit: Option<Duration>) -> io::Result<()> {
        let timeout_ms = match limit {
            _ if self.has_ready() => 0,
            None => -1,
            // Rounded up, so that a short limit does not spin.
            Some(limit) => i32::try_from(limit.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX),
        };
        self.collect(timeout_ms)?;
        let window = if self.core.clock.runs() { self.polling.window(limit) } else { Duration::ZERO };
        self.core.polls = window > Duration::ZERO;
        for round in 0..self.rounds {
            if round > 0 && !self.gather() {
                break;
            }
            self.round();
            self.flush_ring();
        }
        let idle_since = self.look(window, limit)?;
        self.core.polls = false;
        if window > Duration::ZERO {
            // Looking may have taken the edge of a notification off the descriptor: nobody would be woken by that any more.
            self.inbox.heed();
            self.accept_new();
        }
        self.look_for_the_last_time();
        if !self.has_ready() {
            self.polling.sleeps(idle_since);
        }
        self.announce()
    }

    /// Looks for new work until there was none for that long, and says since when. Ends early where somebody has left something for
    /// the worker, and where work that does not end keeps an embedder waiting for longer than `limit`.
    fn look(&mut self, window: Duration, limit: Option<Duration>) -> io::Result<Time> {
        let (begun, mut idle_since, mut looks) = (self.core.now, self.core.now, 0u32);
        let is_over = |now: Time| limit.is_some_and(|limit| now.since(begun) > limit);
        while self.core.lanes.iter().any(|lane| lane.polled) && !self.inbox.is_notified() {
            std::hint::spin_loop();
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(LOOKS_PER_POLL) || self.completions_wait() {
                self.poll_descriptor(0)?;
            }
            if self.collect_completions() || self.gather() {
                idle_since = self.core.clock.now();
                self.core.now = idle_since;
            }
            self.core.lanes.iter_mut().for_each(|lane| lane.ready |= lane.polled);
            self.round();
            self.flush_ring();
            self.core.now = self.core.clock.now();
            if is_over(self.core.now) || (self.core.now.since(idle_since) > window && !self.gather()) {
                break;
            }
        }
        Ok(idle_since)
    }

    /// Gives lanes that nobody would wake a turn in which they see to it.
    fn look_for_the_last_time(&mut self) {
        let mut any = false;
        for lane in &mut self.core.lanes {
            any |= lane.polled;
            lane.ready |= lane.polled;
        }
        if any {
            self.round();
            self.flush_ring();
        }
    }

    /// Whether a system call would bring completions.
    fn completions_wait(&self) -> bool {
        matches!(&self.core.ring, RingState::Open(ring) if ring.borrow_mut().waits_for_a_call())
    }

    /// Takes completions that have come by themselves; whether there were any.
    fn collect_completions(&mut self) -> bool {
        let Core { lanes, ring: RingState::Open(ring), .. } = &mut self.core else { return false };
        let mut ring = ring.borrow_mut();
        let any = ring.has_completions();
        if any {
            ring.collect_for_lanes(|lane| {
                if let Some(lane) = lanes.get_mut(lane) {
                    lane.ready = true;
                }
            });
        }
        any
    }

    /// Polls the descriptor and marks who is ready.
    fn collect(&mut self, timeout_ms: i32) -> io::Result<()> {
        self.poll_descriptor(timeout_ms)?;
        self.inbox.heed();
        self.accept_new();
        if self.gather() {
            self.polling.wakes(self.core.now);
        }
        Ok(())
    }

    fn poll_descriptor(&mut self, timeout_ms: i32) -> io::Result<()> {
        // The descriptor is shared too, and the model checker knows atomics only: here others may come first.
        #[cfg(loom)]
        self.inbox.is_notified();
        let Core { reactor, lanes, ring, clock, now, .. } = &mut self.core;
        let ready = |lane: usize| {
            if let Some(lane) = lanes.get_mut(lane) {
                lane.ready = true;
            }
        };
        let mut completions = false;
        reactor.borrow_mut().wait(timeout_ms, ready, || completions = true)?;
        *now = clock.now();
        if completions && let RingState::Open(ring) = ring {
            ring.borrow_mut().collect_for_lanes(|lane| {
                if let Some(lane) = lanes.get_mut(lane) {
                    lane.ready = true;
                }
            });
        }
        Ok(())
    }

    /// Marks lanes that were woken or whose deadline has passed; whether any lane is ready.
    fn gather(&mut self) -> bool {
        let mut any = false;
        for lane in &mut self.core.lanes {
            lane.ready |= lane.waker.take() | lane.deadline.is_some_and(|deadline| deadline <= self.core.now);
            any |= lane.ready;
        }
        any
    }

    fn has_ready(&self) -> bool {
        self.core.lanes.iter().any(|lane| lane.ready)
    }

    fn round(&mut self) {
        for index in 0..self.lanes.len() {
            let state = &mut self.core.lanes[index];
            if !std::mem::take(&mut state.ready) {
                continue;
            }
            (state.deadline, state.polled) = (None, false);
            let Some(lane) = &mut self.lanes[index] else { continue };
            match lane.turn(&mut WorkerContext { core: &mut self.core, lane: index }) {
                Turn::Idle => {}
                Turn::Poll if self.core.polls => self.core.lanes[index].polled = true,
                Turn::Again | Turn::Poll => self.core.lanes[index].ready = true,
                Turn::Finished => {
                    self.lanes[index] = None;
                    // What it asked for in its last turn is nobody's wish any more.
                    self.core.lanes[index].deadline = None;
                    self.core.lanes[index].ready = false;
                }
            }
        }
    }

    fn accept_new(&mut self) {
        let new_lanes = self.inbox.new_lanes().as_mut().map(std::mem::take);
        for NewLane { waker, make } in new_lanes.into_iter().flatten() {
            let index = self.reserve_lane(waker);
            self.lanes[index] = make(&mut WorkerContext { core: &mut self.core, lane: index });
            self.core.lanes[index].ready = true;
        }
    }

    /// A place for one more lane. The place of a finished lane is used again: what was meant for its former owner can at
    /// most give the new one a turn without a reason.
    fn reserve_lane(&mut self, waker: LaneWaker) -> usize {
        let state = LaneState { waker, deadline: None, ready: false, polled: false };
        match self.lanes.iter().skip(SCRATCH + 1).position(Option::is_none) {
            Some(free) => {
                let index = free + SCRATCH + 1;
                self.core.lanes[index] = state;
                index
            }
            None => {
                self.core.lanes.push(state);
                self.lanes.push(None);
                self.lanes.len() - 1
            }
        }
    }

    fn flush_ring(&mut self) {
        if let RingState::Open(ring) = &self.core.ring {
            ring.borrow_mut().flush();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // In two steps: dropping them may add more.
        let never_made = self.inbox.new_lanes().take();
        drop(never_made);
    }
}

impl AsFd for Worker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Worker {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("lanes", &self.lanes())
            .field("now", &self.core.now)
            .finish_non_exhaustive()
    }
}
