//! What became of frames.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of a virtio-net device over all its queues, since it was made. Read from any thread.
#[derive(Debug, Default)]
pub struct NetCounters {
    pub(super) received: AtomicU64,
    pub(super) filtered: AtomicU64,
    pub(super) no_fit: AtomicU64,
    pub(super) not_taken: AtomicU64,
    pub(super) receive_failed: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) send_failed: AtomicU64,
    pub(super) malformed: AtomicU64,
    pub(super) refused_commands: AtomicU64,
}

/// What a virtio-net device counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetSnapshot {
    /// Frames put into the guest's buffers.
    pub received: u64,
    /// Frames that the receive mode does not want.
    pub filtered: u64,
    /// Frames dropped because they did not fit into the guest's buffers.
    pub no_fit: u64,
    /// Frames dropped because the guest does not do, or no longer, what is left to be done to them.
    pub not_taken: u64,
    /// Tokens that came home without a frame while the queue was running.
    pub receive_failed: u64,
    /// Frames that the stack below took.
    pub sent: u64,
    /// Frames that the stack below refused.
    pub send_failed: u64,
    /// Chains of the guest that are no frame: without a whole header, in too many pieces, with an offload that was not
    /// negotiated or does not describe the frame.
    pub malformed: u64,
    /// Control commands answered with `VIRTIO_NET_ERR`.
    pub refused_commands: u64,
}

impl NetCounters {
    /// What was counted so far. Two numbers in it may be a moment apart.
    pub fn snapshot(&self) -> NetSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NetSnapshot {
            received: get(&self.received),
            filtered: get(&self.filtered),
            no_fit: get(&self.no_fit),
            not_taken: get(&self.not_taken),
            receive_failed: get(&self.receive_failed),
            sent: get(&self.sent),
            send_failed: get(&self.send_failed),
            malformed: get(&self.malformed),
            refused_commands: get(&self.refused_commands),
        }
    }
}

/// A count of one queue's batch, added to the shared counter once.
#[derive(Debug, Default)]
pub(super) struct Tally(u64);

impl Tally {
    #[inline]
    pub(super) fn count(&mut self) {
        self.0 += 1;
    }

    #[inline]
    pub(super) fn add_to(&mut self, counter: &AtomicU64) {
        if self.0 != 0 {
            counter.fetch_add(std::mem::take(&mut self.0), Ordering::Relaxed);
        }
    }
}
