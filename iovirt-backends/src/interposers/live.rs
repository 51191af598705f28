//! Settings that change while a stage runs, and word from a control handle to the queues.

use iovirt_core::WorkerContext;
use iovirt_core::sync::atomic::{AtomicU64, Ordering};
use iovirt_core::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use iovirt_core::worker::LaneWaker;
use std::fmt;

#[cfg(all(test, loom))]
mod model;

/// What a control handle shares with the queues of its stage. A queue looks at two counters in a line of memory that only
/// changes when somebody controls the stage, and takes the lock only then.
pub(super) struct Live<T> {
    settings: Mutex<T>,
    changes: AtomicU64,
    releases: AtomicU64,
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    opened: u64,
    wakers: Vec<Weak<LaneWaker>>,
}

/// One queue's end.
pub(super) struct LiveQueue<T> {
    live: Arc<Live<T>>,
    settings: T,
    number: u64,
    seen_changes: u64,
    seen_releases: u64,
    /// Lives as long as the queue does.
    _waker: Arc<LaneWaker>,
}

impl<T: Clone> Live<T> {
    pub(super) fn new(settings: T) -> Self {
        Self {
            settings: Mutex::new(settings),
            changes: AtomicU64::new(0),
            releases: AtomicU64::new(0),
            queues: Mutex::default(),
        }
    }

    pub(super) fn get(&self) -> T {
        lock(&self.settings).clone()
    }

    /// Holds for requests that are submitted from now on.
    pub(super) fn set(&self, settings: T) {
        let mut current = lock(&self.settings);
        *current = settings;
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Has every queue let go what it holds.
    pub(super) fn release(&self) {
        self.releases.fetch_add(1, Ordering::Release);
        let queues = lock(&self.queues);
        queues.wakers.iter().filter_map(Weak::upgrade).for_each(|waker| waker.wake());
    }

    /// The end of one more queue.
    pub(super) fn open(self: &Arc<Self>, cx: &WorkerContext<'_>) -> LiveQueue<T> {
        let waker = Arc::new(cx.waker());
        let mut queues = lock(&self.queues);
        queues.wakers.retain(|waker| waker.strong_count() > 0);
        queues.wakers.push(Arc::downgrade(&waker));
        queues.opened += 1;
        // The counter before what it counts: a change in between is seen twice rather than not at all.
        let seen_changes = self.changes.load(Ordering::Acquire);
        LiveQueue {
            settings: self.get(),
            number: queues.opened - 1,
            seen_changes,
            seen_releases: self.releases.load(Ordering::Acquire),
            live: self.clone(),
            _waker: waker,
        }
    }
}

impl<T: Clone> LiveQueue<T> {
    /// The number of the queue in the order of opening.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Takes the settings as they are now; whether they changed.
    #[inline]
    pub(super) fn refresh(&mut self) -> bool {
        let changes = self.live.changes.load(Ordering::Acquire);
        let changed = changes != self.seen_changes;
        if changed {
            self.seen_changes = changes;
            self.settings = self.live.get();
        }
        changed
    }

    /// The settings as they were at the last refresh.
    #[inline]
    pub(super) fn settings(&self) -> &T {
        &self.settings
    }

    /// Whether what is held is to be let go.
    #[inline]
    pub(super) fn take_release(&mut self) -> bool {
        let releases = self.live.releases.load(Ordering::Acquire);
        std::mem::replace(&mut self.seen_releases, releases) != releases
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Clone + fmt::Debug> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Live").field(&self.get()).finish()
    }
}

impl<T: fmt::Debug> fmt::Debug for LiveQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LiveQueue").field(&self.settings).finish()
    }
}
