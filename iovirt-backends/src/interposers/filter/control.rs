//! The control handle: the predicate, and what it said.

use super::Drops;
use iovirt_core::request::net::Offload;
use iovirt_core::sync::{Arc, Mutex, PoisonError};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The guest sends it.
    FromGuest,
    /// It came for the guest.
    ToGuest,
}

/// A frame to be judged: in host memory, nobody changes it.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Which way it goes.
    pub direction: Direction,
    /// The pair of queues it belongs to.
    pub pair: u16,
    /// All of it, from its Ethernet header on.
    pub bytes: &'a [u8],
    /// What is left to be done to it: with that, a frame has no checksum of TCP or UDP yet, or is as long as many.
    pub offload: Offload,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Pass,
    /// It does not.
    Drop,
}

/// Says what becomes of a frame. Called on the workers, for every frame: it is to be quick and must not block.
pub(super) type Predicate = dyn Fn(&Frame<'_>) -> Verdict + Send + Sync;

/// Controls a [`Filter`](super::Filter) while frames flow, from any thread.
pub struct FilterControl {
    predicate: Mutex<Arc<Predicate>>,
    /// How often the predicate changed, so that queues look at it only when it did.
    generation: AtomicU64,
    pub(super) counters: Counters,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) passed_from_guest: AtomicU64,
    pub(super) dropped_from_guest: AtomicU64,
    pub(super) passed_to_guest: AtomicU64,
    pub(super) dropped_to_guest: AtomicU64,
}

/// What a filter counted since it was made, over all queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct FilterSnapshot {
    /// Frames that the guest sent and that went on.
    pub passed_from_guest: u64,
    /// Frames that the guest sent and that were dropped.
    pub dropped_from_guest: u64,
    /// Frames that came and went on to the guest.
    pub passed_to_guest: u64,
    /// Frames that came and were dropped.
    pub dropped_to_guest: u64,
}

impl FilterControl {
    pub(super) fn new(drops: Drops) -> Self {
        let predicate = Mutex::new(standing(drops));
        Self { predicate, generation: AtomicU64::new(1), counters: Counters::default() }
    }

    /// Judges by `predicate` from now on.
    pub fn set(&self, predicate: impl Fn(&Frame<'_>) -> Verdict + Send + Sync + 'static) {
        self.replace(Arc::new(predicate));
    }

    /// Drops this from now on, without looking at frames.
    pub fn set_drops(&self, drops: Drops) {
        self.replace(standing(drops));
    }

    fn replace(&self, predicate: Arc<Predicate>) {
        *self.predicate.lock().unwrap_or_else(PoisonError::into_inner) = predicate;
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> FilterSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FilterSnapshot {
            passed_from_guest: get(&self.counters.passed_from_guest),
            dropped_from_guest: get(&self.counters.dropped_from_guest),
            passed_to_guest: get(&self.counters.passed_to_guest),
            dropped_to_guest: get(&self.counters.dropped_to_guest),
        }
    }

    /// The predicate where it changed since `seen`, which is brought up to date. One load where it did not.
    #[inline]
    pub(super) fn changed(&self, seen: &mut u64) -> Option<Arc<Predicate>> {
        let generation = self.generation.load(Ordering::SeqCst);
        if generation == *seen {
            return None;
        }
        *seen = generation;
        Some(self.current())
    }

    pub(super) fn current(&self) -> Arc<Predicate> {
        self.predicate.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The predicate of a filter that looks at directions alone.
fn standing(drops: Drops) -> Arc<Predicate> {
    Arc::new(move |frame: &Frame<'_>| match (drops, frame.direction) {
        (Drops::All, _) | (Drops::Transmit, Direction::FromGuest) | (Drops::Receive, Direction::ToGuest) => {
            Verdict::Drop
        }
        _ => Verdict::Pass,
    })
}

impl fmt::Debug for FilterControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilterControl").field("snapshot", &self.snapshot()).finish_non_exhaustive()
    }
}
