//! What the front-end said of a ring.

use super::memory::MemoryTable;
use crate::virtio::queue::{QueueConfig, QueueState};
use iovirt_core::dma::{DmaError, DmaSpace};
use thiserror::Error;

/// Offset of the used ring's index (VIRTIO 1.2, section 2.7.8).
const USED_IDX: u64 = 2;

/// Why a ring cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum VringError {
    #[error("its {0} lies outside the front-end's memory")]
    Outside(&'static str),
    #[error("its used ring cannot be read: {0}")]
    Used(#[from] DmaError),
}

/// Addresses of a ring in the front-end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VringAddresses {
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
}

/// The set-up of a ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vring {
    pub(super) size: u16,
    pub(super) addresses: VringAddresses,
    /// The next available entry to take.
    pub(super) base: u16,
}

impl Vring {
    pub(super) fn new(size: u16) -> Self {
        Self { size, addresses: VringAddresses::default(), base: 0 }
    }

    /// Where the ring stands in the guest's memory, and how far the driver was told of returned chains.
    pub(super) fn state(&self, memory: &MemoryTable, space: &DmaSpace) -> Result<QueueState, VringError> {
        let physical = |user, area| memory.physical(user).ok_or(VringError::Outside(area));
        let config = QueueConfig {
            size: self.size,
            max_size: QueueConfig::MAX_SIZE,
            desc: physical(self.addresses.desc, "descriptor table")?,
            avail: physical(self.addresses.avail, "available ring")?,
            used: physical(self.addresses.used, "used ring")?,
            ready: true,
        };
        let index = config.used.checked_add(USED_IDX).ok_or(VringError::Outside("used ring"))?;
        let next_used = u16::from_le_bytes(space.view().read_array(index)?);
        Ok(QueueState { config, next_avail: self.base, next_used })
    }
}
