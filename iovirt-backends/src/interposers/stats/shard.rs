//! The counters of one queue: written by its worker alone, read by anyone.

use super::control::KindSnapshot;
use super::histogram::{BUCKETS, bucket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The counters of one queue.
#[derive(Debug)]
pub(super) struct Shard {
    submitted: Counter,
    completed: Counter,
    lost: Counter,
    kinds: Box<[KindShard]>,
    closed: AtomicBool,
}

/// Counters of one kind of request. How many completed is the sum over its buckets.
#[derive(Debug)]
struct KindShard {
    bytes: Counter,
    failures: Counter,
    sum: Counter,
    buckets: Box<[Counter]>,
}

/// A counter with one writer: a load and a store, where a shared one needs a locked instruction.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    #[inline]
    fn add(&self, more: u64) {
        self.0.store(self.get().wrapping_add(more), Ordering::Relaxed);
    }

    #[inline]
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Shard {
    pub(super) fn new(kinds: usize) -> Self {
        let kind = || KindShard {
            bytes: Counter::default(),
            failures: Counter::default(),
            sum: Counter::default(),
            buckets: (0..BUCKETS).map(|_| Counter::default()).collect(),
        };
        Self {
            submitted: Counter::default(),
            completed: Counter::default(),
            lost: Counter::default(),
            kinds: (0..kinds).map(|_| kind()).collect(),
            closed: AtomicBool::new(false),
        }
    }

    // For the worker

    #[inline]
    pub(super) fn submitted(&self) {
        self.submitted.add(1);
    }

    /// A request took the tag of another that never came home.
    #[cold]
    pub(super) fn lost(&self) {
        self.lost.add(1);
    }

    /// A request of that kind came home, and moved so many bytes unless it failed.
    #[inline]
    pub(super) fn completed(&self, kind: usize, nanos: u64, moved: Option<u64>) {
        self.completed.add(1);
        let Some(kind) = self.kinds.get(kind) else { return };
        kind.buckets[bucket(nanos)].add(1);
        kind.sum.add(nanos);
        match moved {
            Some(bytes) => kind.bytes.add(bytes),
            None => kind.failures.add(1),
        }
    }

    /// The worker will write no more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    // For the readers

    /// Whether the counters stay as they are. What is read after this said so is final.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn lost_count(&self) -> u64 {
        self.lost.get()
    }

    pub(super) fn in_flight(&self) -> u64 {
        if self.is_closed() {
            return 0;
        }
        // In this order, so that a request that comes and goes in between does not make the difference negative.
        let completed = self.completed.get();
        self.submitted.get().saturating_sub(completed)
    }

    pub(super) fn add_to(&self, kinds: &mut [KindSnapshot]) {
        for (kind, total) in self.kinds.iter().zip(kinds) {
            total.bytes += kind.bytes.get();
            total.failures += kind.failures.get();
            total.latency.sum = total.latency.sum.wrapping_add(kind.sum.get());
            for (held, count) in kind.buckets.iter().zip(&mut total.latency.counts) {
                *count += held.get();
                total.ops += held.get();
            }
        }
    }
}
