//! What a queue is saved as, and the hand-over from and to the `virtio-queue` crate.

use serde::{Deserialize, Serialize};

use super::QueueConfig;

/// A queue at rest. Everything else is in guest memory, or with the device: the heads in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// How the driver set it up.
    pub config: QueueConfig,
    /// The next available ring entry to take: a free-running index.
    pub next_avail: u16,
    /// The next used ring entry to write: a free-running index.
    pub next_used: u16,
}

#[cfg(feature = "virtio-queue")]
impl From<&virtio_queue::QueueState> for QueueState {
    /// Takes a queue over. Whether event indices and indirect descriptors are in use is the device's to
    /// know, from the negotiated features.
    fn from(state: &virtio_queue::QueueState) -> Self {
        Self {
            config: QueueConfig {
                size: state.size,
                max_size: state.max_size,
                desc: state.desc_table,
                avail: state.avail_ring,
                used: state.used_ring,
                ready: state.ready,
            },
            next_avail: state.next_avail,
            next_used: state.next_used,
        }
    }
}

#[cfg(feature = "virtio-queue")]
impl From<&virtio_queue::Queue> for QueueState {
    fn from(queue: &virtio_queue::Queue) -> Self {
        Self::from(&queue.state())
    }
}

#[cfg(feature = "virtio-queue")]
impl QueueState {
    /// Hands the queue over. `virtio_queue::Queue::try_from` makes the queue of it.
    #[must_use]
    pub fn to_virtio_queue(&self, features: super::RingFeatures) -> virtio_queue::QueueState {
        virtio_queue::QueueState {
            max_size: self.config.max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: features.event_idx,
            size: self.config.size,
            ready: self.config.ready,
            desc_table: self.config.desc,
            avail_ring: self.config.avail,
            used_ring: self.config.used,
        }
    }
}
