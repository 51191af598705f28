//! Which replicas are good: shared by the queues, and shown by the control handle.

use iovirt_core::pipeline::{Event, Listeners};
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};

/// Shows the replicas of a [`Mirror`](super::Mirror), from any thread.
#[derive(Debug)]
pub struct MirrorControl {
    quorum: usize,
    /// By bit.
    failed: AtomicU64,
    read_errors: Vec<AtomicU64>,
    pub(super) listeners: Listeners,
}

/// One replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReplicaSnapshot {
    /// It has missed a write that another has: it is neither read nor written any more.
    pub failed: bool,
    /// Reads that failed on it.
    pub read_errors: u64,
}

impl MirrorControl {
    pub(super) fn new(replicas: usize, quorum: usize) -> Self {
        let read_errors = (0..replicas).map(|_| AtomicU64::new(0)).collect();
        Self { quorum, failed: AtomicU64::new(0), read_errors, listeners: Listeners::default() }
    }

    /// The replicas in their order.
    pub fn replicas(&self) -> Vec<ReplicaSnapshot> {
        let failed = self.failed();
        let replica = |(index, errors): (usize, &AtomicU64)| ReplicaSnapshot {
            failed: failed & 1 << index != 0,
            read_errors: errors.load(Ordering::Relaxed),
        };
        self.read_errors.iter().enumerate().map(replica).collect()
    }

    /// On how many replicas a write must succeed.
    pub fn quorum(&self) -> usize {
        self.quorum
    }

    /// Whether enough replicas are left to write.
    pub fn is_writable(&self) -> bool {
        self.healthy().count_ones() as usize >= self.quorum
    }

    /// The replicas that have failed, by bit.
    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::SeqCst)
    }

    /// The replicas that have not failed, by bit.
    pub(super) fn healthy(&self) -> u64 {
        all(self.read_errors.len()) & !self.failed()
    }

    pub(super) fn read_failed(&self, replica: usize) {
        self.read_errors[replica].fetch_add(1, Ordering::Relaxed);
    }

    /// Some replicas did not do what others did: before the request that they missed comes home. They have failed if one
    /// that did it is still good; otherwise nothing changes, as no replica would be left.
    pub(super) fn fail(&self, replicas: u64, others: u64) {
        let change = |failed: u64| (others & !failed != 0).then_some(failed | replicas);
        let Ok(before) = self.failed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change) else { return };
        let new = replicas & !before;
        if new != 0 {
            let numbers: Vec<_> = (0..self.read_errors.len()).filter(|at| new & 1 << at != 0).collect();
            tracing::error!(replicas = ?numbers, "replicas failed and are no longer used");
            self.listeners.announce(Event::CapsChanged);
        }
    }

    /// For a mirror that is restored.
    pub(super) fn set_failed(&self, replicas: u64) {
        self.failed.store(replicas, Ordering::SeqCst);
    }
}

/// That many replicas, by bit.
pub(super) fn all(replicas: usize) -> u64 {
    u64::MAX >> (64 - replicas)
}
