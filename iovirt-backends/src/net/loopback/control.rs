//! The control handle: what was carried and what was dropped.

use super::pair::Pair;
use std::fmt;
use std::sync::Arc;

/// Reads the counters of a [`LoopbackBackend`](super::LoopbackBackend), from any thread.
pub struct LoopbackControl {
    pairs: Arc<[Pair]>,
}

/// What a loopback counted since it was made, over all pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LoopbackSnapshot {
    /// Frames that came back.
    pub carried: u64,
    /// Frames that nobody had a token for, or tokens for only some of their segments.
    pub dropped: u64,
}

impl LoopbackControl {
    pub(super) fn new(pairs: Arc<[Pair]>) -> Self {
        Self { pairs }
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> LoopbackSnapshot {
        self.pairs.iter().fold(LoopbackSnapshot::default(), |total, pair| {
            let (carried, dropped) = pair.counts();
            LoopbackSnapshot { carried: total.carried + carried, dropped: total.dropped + dropped }
        })
    }
}

impl fmt::Debug for LoopbackControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopbackControl").field("snapshot", &self.snapshot()).finish_non_exhaustive()
    }
}
