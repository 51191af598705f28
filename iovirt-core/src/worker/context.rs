//! What a stage may need and may not fetch for itself.

use super::clock::{Clock, Time};
use super::fd::duplicate;
use super::lane::LaneWaker;
use super::reactor::{Reactor, Trigger};
use super::uring::{Uring, UringClient, UringPolicy};
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

/// What a stage may need and may not fetch for itself: the time, its lane's waker, timers, readiness, the worker's ring.
///
/// A virtual clock can therefore replace real time under a whole stack.
pub struct WorkerContext<'a> {
    pub(super) core: &'a mut Core,
    pub(super) lane: usize,
}

pub(super) struct Core {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) now: Time,
    pub(super) reactor: Rc<RefCell<Reactor>>,
    pub(super) ring: RingState,
    pub(super) lanes: Vec<LaneState>,
    /// Lanes may end their turn with `Turn::Poll`.
    pub(super) polls: bool,
}

pub(super) struct LaneState {
    pub(super) waker: LaneWaker,
    pub(super) deadline: Option<Time>,
    pub(super) ready: bool,
    /// It ended its last turn with `Turn::Poll`.
    pub(super) polled: bool,
}

pub(super) enum RingState {
    Unopened { entries: u32 },
    Open(Rc<RefCell<Uring>>),
    Unavailable,
}

impl RingState {
    pub(super) fn new(policy: UringPolicy) -> Self {
        match policy {
            UringPolicy::Auto { entries } => Self::Unopened { entries },
            UringPolicy::Off => Self::Unavailable,
        }
    }

    /// Whether the kernel has not taken all that was pushed.
    pub(super) fn has_backlog(&self) -> bool {
        matches!(self, Self::Open(ring) if ring.borrow().has_backlog())
    }
}

impl WorkerContext<'_> {
    /// The time, as read at the beginning of this turn or at the last [`WorkerContext::tick`].
    #[inline]
    pub fn now(&self) -> Time {
        self.core.now
    }

    /// Reads the clock again: for whoever did a batch of work inside one turn, so that what it took is seen. About 20 ns.
    #[inline]
    pub fn tick(&mut self) -> Time {
        self.core.now = self.core.clock.now();
        self.core.now
    }

    /// Gives the lane a turn at `deadline` or soon after. Every turn forgets it: a stage that still waits asks again in
    /// its `poll`.
    pub fn wake_at(&mut self, deadline: Time) {
        let lane = &mut self.core.lanes[self.lane];
        lane.deadline = Some(lane.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
    }

    /// Gives the lane another turn right after this one.
    #[inline]
    pub fn run_again(&mut self) {
        self.core.lanes[self.lane].ready = true;
    }

    /// Whether the worker looks for new work for a while before it sleeps. A lane that finds nothing to do may then end its turn with
    /// [`Turn::Poll`](super::Turn::Poll) without having asked to be woken.
    #[inline]
    pub fn polls(&self) -> bool {
        self.core.polls
    }

    /// Gives the lane of that waker a turn: as [`LaneWaker::wake`], without its system call where the lane is on this
    /// worker.
    #[inline]
    pub fn wake(&self, waker: &LaneWaker) {
        if !waker.wake_beside(&self.core.lanes[self.lane].waker) {
            waker.wake();
        }
    }

    /// Wakes this lane from any thread.
    pub fn waker(&self) -> LaneWaker {
        self.core.lanes[self.lane].waker.clone()
    }

    /// Gives this lane a turn whenever `fd` becomes what `trigger` says, until the watch is dropped.
    ///
    /// # Errors
    /// Where the descriptor cannot be polled, or none is left to duplicate it.
    pub fn watch(&mut self, fd: &impl AsRawFd, trigger: Trigger) -> io::Result<Watch> {
        let fd = duplicate(fd)?;
        self.core.reactor.borrow().watch_lane(&fd, self.lane, trigger)?;
        Ok(Watch { reactor: self.core.reactor.clone(), fd })
    }

    /// A place on the worker's io_uring; `None` where the host does not permit one. Completions give this lane a turn.
    pub fn uring(&mut self) -> Option<UringClient> {
        if let RingState::Unopened { entries } = self.core.ring {
            self.core.ring = match Uring::open(entries, &self.core.reactor.borrow()) {
                Ok(ring) => RingState::Open(Rc::new(RefCell::new(ring))),
                Err(error) => {
                    tracing::info!(%error, "io_uring is not available on this host");
                    RingState::Unavailable
                }
            };
        }
        match &self.core.ring {
            RingState::Open(ring) => Some(UringClient::new(ring, self.lane)),
            RingState::Unopened { .. } | RingState::Unavailable => None,
        }
    }
}

impl fmt::Debug for WorkerContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerContext")
            .field("now", &self.core.now)
            .field("lane", &self.lane)
            .finish_non_exhaustive()
    }
}

/// A file descriptor under watch; dropping it ends the watch.
pub struct Watch {
    reactor: Rc<RefCell<Reactor>>,
    fd: OwnedFd,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.reactor.borrow().forget(&self.fd);
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watch(fd {})", self.fd.as_raw_fd())
    }
}
