//! Where the results for one queue wait, as the pool's threads leave them.

use iovirt_core::sync::atomic::{AtomicBool, Ordering};
use iovirt_core::sync::{Mutex, MutexGuard, PoisonError};
use iovirt_core::worker::LaneWaker;

#[cfg(all(test, loom))]
mod model;

#[derive(Debug)]
pub(super) struct Outbox<T> {
    done: Mutex<Vec<T>>,
    any: AtomicBool,
    waker: LaneWaker,
}

impl<T> Outbox<T> {
    /// An empty one, whose owner runs in the lane that `waker` wakes.
    pub(super) fn new(room: usize, waker: LaneWaker) -> Self {
        Self { done: Mutex::new(Vec::with_capacity(room)), any: AtomicBool::new(false), waker }
    }

    fn done(&self) -> MutexGuard<'_, Vec<T>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves one result, from any thread.
    pub(super) fn put(&self, result: T) {
        self.done().push(result);
        if !self.any.swap(true, Ordering::SeqCst) {
            self.waker.wake();
        }
    }

    /// Takes all results; `into` is empty and becomes the next list. One load where there is none.
    #[inline]
    pub(super) fn exchange(&self, into: &mut Vec<T>) {
        if self.any.load(Ordering::Relaxed) && self.any.swap(false, Ordering::SeqCst) {
            std::mem::swap(&mut *self.done(), into);
        }
    }
}
