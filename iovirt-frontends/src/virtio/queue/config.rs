//! What the transport tells a queue.

use serde::{Deserialize, Serialize};

use super::{ConfigError, RingArea, layout};

/// A queue as the driver set it up: the transport's registers of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueConfig {
    /// Entries, as the driver chose.
    pub size: u16,
    /// Most entries, as the device offered.
    pub max_size: u16,
    /// Address of the descriptor table, as the device sees memory.
    pub desc: u64,
    /// Address of the available ring ("driver area").
    pub avail: u64,
    /// Address of the used ring ("device area").
    pub used: u64,
    /// Whether the driver enabled the queue.
    pub ready: bool,
}

impl QueueConfig {
    /// The largest queue there is (2.7).
    pub const MAX_SIZE: u16 = 32768;

    /// Checks everything that can be checked without looking at memory.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], which names the field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let &Self { size, max_size, .. } = self;
        if !self.ready {
            return Err(ConfigError::NotReady);
        }
        if !size.is_power_of_two() {
            return Err(ConfigError::SizeNotPowerOfTwo { size });
        }
        if size > max_size || size > Self::MAX_SIZE {
            return Err(ConfigError::SizeTooLarge { size, max: max_size.min(Self::MAX_SIZE) });
        }
        for (area, addr, align) in [
            (RingArea::Descriptors, self.desc, layout::DESC_ALIGN),
            (RingArea::Available, self.avail, layout::AVAIL_ALIGN),
            (RingArea::Used, self.used, layout::USED_ALIGN),
        ] {
            let align = align as u64;
            if !addr.is_multiple_of(align) {
                return Err(ConfigError::Misaligned { area, addr, align });
            }
        }
        Ok(())
    }
}

/// The negotiated features that change how rings work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingFeatures {
    /// `VIRTIO_F_EVENT_IDX`: notifications are asked for by index (2.7.7, 2.7.10).
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC`: a descriptor may refer to a table of descriptors (2.7.5.3).
    pub indirect: bool,
}

impl RingFeatures {
    /// Picks them from the negotiated feature bits (6).
    pub fn from_negotiated(features: u64) -> Self {
        let has = |bit: u32| features >> bit & 1 == 1;
        Self {
            event_idx: has(virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX),
            indirect: has(virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC),
        }
    }
}
