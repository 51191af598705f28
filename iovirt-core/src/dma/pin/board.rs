//! All pins of one device.

use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::fmt;
use std::time::Duration;

use super::{InvalidateTicket, IovaRange, Slots};

/// Called when something that an invalidation may wait for was released. On any thread; it must not block.
pub type PinWaker = Arc<dyn Fn() + Send + Sync>;

/// Called once for an invalidation that a device holds up for too long. On the thread that polls; it must not block.
pub type StuckListener = Arc<dyn Fn(&StuckReport) + Send + Sync>;

/// What to do about a device that does not let go of memory. Whatever it is, the memory stays: an invalidation is done when
/// the device has let go, and not before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StuckPolicy {
    /// Wait, and say nothing.
    #[default]
    WaitForever,
    /// Wait, and report the device as faulty after that time.
    ReportAfter(Duration),
}

/// A device that does not let go of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StuckReport {
    /// What was invalidated.
    pub range: IovaRange,
    /// How long that has been waited for.
    pub waited: Duration,
    /// Requests that hold part of it. None where a turn or a copy does not end.
    pub requests: usize,
}

/// All pins of one device: the tables of its queues, leases, and the generation of its translation.
///
/// It belongs to the device's [`Translate`](crate::dma::Translate). All methods may be called on any thread, and none waits.
#[derive(Default)]
pub struct PinBoard {
    generation: AtomicU64,
    /// Number of `wakers`.
    waiting: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    queues: Vec<Arc<Slots>>,
    leases: Vec<(u64, IovaRange)>,
    wakers: Vec<(u64, PinWaker)>,
    /// The last number given to a lease or a waker.
    number: u64,
    policy: StuckPolicy,
    listeners: Vec<StuckListener>,
}

impl PinBoard {
    /// A board that nothing is pinned on.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Changes with every [`invalidate`](PinBoard::invalidate). Who sees a generation sees the table that it came with, or a
    /// newer one.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Announces that translations within `range` are gone. **The table must have been changed before.**
    ///
    /// It waits for nobody. The ticket tells when nobody uses what was translated before; until then that memory is the
    /// device's. A ticket that is dropped is not waited for, and changes nothing else.
    pub fn invalidate(self: &Arc<Self>, range: IovaRange) -> InvalidateTicket {
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        fence(Ordering::SeqCst);
        let inner = self.lock();
        let queues = inner.queues.iter().map(|slots| (slots.clone(), slots.begin_scan())).collect();
        let leases = inner.leases.iter().filter(|(_, held)| held.overlaps(range)).map(|(id, _)| *id);
        InvalidateTicket::new(self.clone(), (range, generation), queues, leases.collect())
    }

    /// Holds `range` for a copy, from any thread: translate after this, and drop the lease when the copy is done. It takes
    /// a lock; queues use a [`PinTable`](super::PinTable).
    pub fn lease(self: &Arc<Self>, range: IovaRange) -> Lease {
        let mut inner = self.lock();
        inner.number += 1;
        let id = inner.number;
        inner.leases.push((id, range));
        Lease { board: self.clone(), id }
    }

    /// Sets what to do about a device that does not let go.
    pub fn set_stuck_policy(&self, policy: StuckPolicy) {
        self.lock().policy = policy;
    }

    /// What is done about a device that does not let go.
    pub fn stuck_policy(&self) -> StuckPolicy {
        self.lock().policy
    }

    /// Adds someone to call when the device is reported; see [`StuckPolicy`].
    pub fn on_stuck(&self, listener: StuckListener) {
        self.lock().listeners.push(listener);
    }

    pub(super) fn report(&self, report: &StuckReport) {
        let listeners = self.lock().listeners.clone();
        for listener in listeners {
            listener(report);
        }
    }

    pub(super) fn holds_lease(&self, id: u64) -> bool {
        self.lock().leases.iter().any(|(held, _)| *held == id)
    }

    pub(super) fn add(&self, slots: &Arc<Slots>) {
        self.lock().queues.push(slots.clone());
    }

    pub(super) fn remove(&self, slots: &Arc<Slots>) {
        self.lock().queues.retain(|held| !Arc::ptr_eq(held, slots));
    }

    pub(super) fn add_waker(&self, waker: PinWaker) -> u64 {
        let mut inner = self.lock();
        inner.number += 1;
        let id = inner.number;
        inner.wakers.push((id, waker));
        self.waiting.store(inner.wakers.len(), Ordering::Relaxed);
        // The other half of the fence in `Slots::leave`: who polls after this sees what was released, or is woken.
        fence(Ordering::SeqCst);
        id
    }

    pub(super) fn remove_waker(&self, id: u64) {
        let mut inner = self.lock();
        inner.wakers.retain(|(held, _)| *held != id);
        self.waiting.store(inner.wakers.len(), Ordering::Relaxed);
    }

    /// Wakes whoever waits. One load where nobody does.
    #[inline]
    pub(super) fn wake_waiting(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        let wakers: Vec<PinWaker> = self.lock().wakers.iter().map(|(_, waker)| waker.clone()).collect();
        for wake in wakers {
            wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for PinBoard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        f.debug_struct("PinBoard")
            .field("generation", &self.generation())
            .field("queues", &inner.queues.len())
            .field("leases", &inner.leases)
            .field("policy", &inner.policy)
            .finish_non_exhaustive()
    }
}

/// One pin from any thread; see [`PinBoard::lease`].
#[derive(Debug)]
#[must_use = "dropping it releases the range"]
pub struct Lease {
    board: Arc<PinBoard>,
    id: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.board.lock().leases.retain(|(id, _)| *id != self.id);
        self.board.wake_waiting();
    }
}
