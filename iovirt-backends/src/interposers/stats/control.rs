//! The control handle: what was counted so far, over all queues.

use super::histogram::Latency;
use super::shard::Shard;
use iovirt_core::sync::{Arc, Mutex, MutexGuard, PoisonError};
use serde::Serialize;
use std::fmt;

/// Reads the counters of a [`Stats`](super::Stats) stage, from any thread.
pub struct StatsControl {
    kinds: &'static [&'static str],
    state: Mutex<State>,
}

struct State {
    /// The counters of queues that are open, or were at the last look.
    shards: Vec<Arc<Shard>>,
    /// What queues counted that are closed.
    closed: Totals,
    /// What had been counted at the last reset.
    before: Totals,
}

#[derive(Clone)]
struct Totals {
    kinds: Vec<KindSnapshot>,
    lost: u64,
}

/// What a stage counted since it was made or reset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StatsSnapshot {
    /// The counts of each kind of request, in the order of the family's
    /// [`KINDS`](iovirt_core::Request::KINDS).
    pub kinds: Vec<KindSnapshot>,
    /// Requests that are below the stage now; a reset leaves them.
    pub in_flight: u64,
    /// Requests that a stage below dropped, and whose tags have been used again since. Each counts as in flight until
    /// then.
    pub lost: u64,
}

/// What a stage counted of one kind of request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KindSnapshot {
    /// The kind: `read`, `write`.
    pub name: &'static str,
    /// Requests that completed, successfully or not.
    pub ops: u64,
    /// Bytes that successful requests moved.
    pub bytes: u64,
    /// Requests that failed.
    pub failures: u64,
    /// How long requests took, successful or not.
    pub latency: Latency,
}

impl StatsSnapshot {
    /// What was counted since an earlier snapshot of the same stage. What is in flight stays as it is.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = self.clone();
        for (kind, before) in since.kinds.iter_mut().zip(&earlier.kinds) {
            kind.subtract(before);
        }
        since.lost = since.lost.saturating_sub(earlier.lost);
        since
    }
}

impl StatsControl {
    pub(super) fn new(kinds: &'static [&'static str]) -> Self {
        let state = State { shards: Vec::new(), closed: Totals::new(kinds), before: Totals::new(kinds) };
        Self { kinds, state: Mutex::new(state) }
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> StatsSnapshot {
        let state = self.lock();
        let Totals { mut kinds, mut lost } = state.total();
        for (kind, before) in kinds.iter_mut().zip(&state.before.kinds) {
            kind.subtract(before);
        }
        lost -= state.before.lost.min(lost);
        let in_flight = state.shards.iter().map(|shard| shard.in_flight()).sum();
        StatsSnapshot { kinds, in_flight, lost }
    }

    /// Begins anew: later snapshots count from here.
    pub fn reset(&self) {
        let mut state = self.lock();
        state.before = state.total();
    }

    /// Counters for one more queue.
    pub(super) fn open_shard(&self) -> Arc<Shard> {
        let shard = Arc::new(Shard::new(self.kinds.len()));
        let mut state = self.lock();
        state.fold_closed();
        state.shards.push(shard.clone());
        shard
    }

    #[cfg(test)]
    pub(super) fn shards(&self) -> usize {
        self.lock().shards.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn total(&self) -> Totals {
        let mut total = self.closed.clone();
        self.shards.iter().for_each(|shard| total.add(shard));
        total
    }

    /// Keeps the counters of no more queues than are open.
    fn fold_closed(&mut self) {
        let Self { shards, closed, .. } = self;
        shards.retain(|shard| {
            let open = !shard.is_closed();
            if !open {
                closed.add(shard);
            }
            open
        });
    }
}

impl Totals {
    fn new(kinds: &'static [&'static str]) -> Self {
        let kind = |&name| KindSnapshot { name, ops: 0, bytes: 0, failures: 0, latency: Latency::default() };
        Self { kinds: kinds.iter().map(kind).collect(), lost: 0 }
    }

    fn add(&mut self, shard: &Shard) {
        shard.add_to(&mut self.kinds);
        self.lost += shard.lost_count();
    }
}

impl KindSnapshot {
    /// Takes away what was there at an earlier time.
    fn subtract(&mut self, earlier: &Self) {
        self.ops = self.ops.saturating_sub(earlier.ops);
        self.bytes = self.bytes.saturating_sub(earlier.bytes);
        self.failures = self.failures.saturating_sub(earlier.failures);
        self.latency.subtract(&earlier.latency);
    }
}

impl fmt::Debug for StatsControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatsControl").field("kinds", &self.kinds).finish_non_exhaustive()
    }
}
