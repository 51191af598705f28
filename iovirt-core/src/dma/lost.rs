//! Requests that were dropped instead of completed.

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex, PoisonError};
use std::fmt;

/// Called, on whatever thread dropped the list, when a tag was lost. It must not block.
pub type LostWaker = Arc<dyn Fn() + Send + Sync>;

/// Where lists that were dropped while armed leave their tags.
pub struct LostTags {
    any: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    tags: Vec<u32>,
    waker: Option<LostWaker>,
}

impl LostTags {
    pub(super) fn new(depth: usize) -> Self {
        let inner = Inner { tags: Vec::with_capacity(depth), waker: None };
        Self { any: AtomicBool::new(false), inner: Mutex::new(inner) }
    }

    /// Leaves a tag and wakes the owner.
    #[cold]
    pub(super) fn report(&self, tag: u32) {
        let waker = {
            let mut inner = self.lock();
            inner.tags.push(tag);
            self.any.store(true, Ordering::Release);
            inner.waker.clone()
        };
        if let Some(wake) = waker {
            wake();
        }
    }

    /// Moves all tags to `into`. One load when there are none.
    #[inline]
    pub(super) fn take(&self, into: &mut Vec<u32>) -> usize {
        if !self.any.load(Ordering::Relaxed) {
            return 0;
        }
        self.take_some(into)
    }

    #[cold]
    fn take_some(&self, into: &mut Vec<u32>) -> usize {
        let mut inner = self.lock();
        self.any.store(false, Ordering::Relaxed);
        let count = inner.tags.len();
        into.append(&mut inner.tags);
        count
    }

    pub(super) fn set_waker(&self, waker: Option<LostWaker>) {
        self.lock().waker = waker;
    }

    fn lock(&self) -> crate::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LostTags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LostTags").field("any", &self.any).finish_non_exhaustive()
    }
}
