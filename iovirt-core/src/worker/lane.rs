//! What a worker runs.

use super::context::WorkerContext;
use super::run::Inbox;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering};
use std::fmt;

/// What a worker runs: usually one device queue with the stack below it.
///
/// A lane gets a turn when it is new, when what it watches became ready, when its deadline passed, when its waker was
/// woken, or when its last turn said so. Turns without a reason can happen and do no harm.
pub trait Lane {
    /// Does a bounded amount of work, without blocking.
    fn turn(&mut self, cx: &mut WorkerContext<'_>) -> Turn;
}

/// How a lane's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing to do until something happens.
    Idle,
    /// Nothing to do now, and whoever brings more need not say so: the worker gives the lane another turn, before it sleeps or at
    /// once. Only where [`WorkerContext::polls`]; elsewhere it is as good as `Again`.
    Poll,
    /// The bound was reached and there is more to do.
    Again,
    /// The lane is finished and is dropped.
    Finished,
}

/// Wakes one lane from any thread. Waking a lane that is awake costs one atomic operation.
#[derive(Clone)]
pub struct LaneWaker {
    shared: Arc<LaneShared>,
}

pub(super) struct LaneShared {
    pending: AtomicBool,
    inbox: Arc<Inbox>,
}

impl LaneWaker {
    pub(super) fn new(inbox: Arc<Inbox>) -> Self {
        Self { shared: Arc::new(LaneShared { pending: AtomicBool::new(false), inbox }) }
    }

    /// Gives the lane a turn.
    pub fn wake(&self) {
        if !self.shared.pending.swap(true, Ordering::SeqCst) {
            self.shared.inbox.notify();
        }
    }

    /// Gives the lane a turn, from within a turn of a lane of the same worker: it looks at all lanes before it sleeps. False,
    /// and nothing is done, where the worker is another one.
    #[inline]
    pub(super) fn wake_beside(&self, other: &Self) -> bool {
        let same = Arc::ptr_eq(&self.shared.inbox, &other.shared.inbox);
        if same {
            self.shared.pending.store(true, Ordering::SeqCst);
        }
        same
    }

    /// Takes the wake-up, if there is one.
    #[inline]
    pub(super) fn take(&self) -> bool {
        // The plain load keeps an idle lane's line shared.
        self.shared.pending.load(Ordering::SeqCst) && self.shared.pending.swap(false, Ordering::SeqCst)
    }
}

impl std::task::Wake for LaneShared {
    fn wake(self: Arc<Self>) {
        LaneWaker { shared: self }.wake();
    }
}

impl From<LaneWaker> for std::task::Waker {
    fn from(waker: LaneWaker) -> Self {
        waker.shared.into()
    }
}

impl fmt::Debug for LaneWaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaneWaker").field("pending", &self.shared.pending).finish_non_exhaustive()
    }
}
