//! Virtio devices (VIRTIO 1.2): the devices, their rings and their transports.
//!
//! ```text
//!   transport/{mmio,pci}   registers, doorbell, interrupt  any thread
//!        │  VirtioDevice: features, configuration space
//!   blk, net   ─── commands ──► lane ── QueueWork           one worker each
//!                               │        │
//!                             queue/   Client ──► the pipeline below
//!                             split ring
//! ```

mod again;
pub mod blk;
mod device;
#[cfg_attr(not(feature = "vhost-user"), allow(dead_code, reason = "only that transport uses it"))]
mod inflight;
mod lane;
pub mod net;
pub mod queue;
mod ring;
pub mod transport;

pub use device::{ConfigListener, QueueError, QueueFactory, QueueWork, VirtioDevice, VirtioNotify};
pub use lane::{QueueCounters, QueueSnapshot};
pub use ring::Ring;

/// Feature bits that belong to no device class (VIRTIO 1.2, section 6).
pub mod feature {
    use virtio_bindings::{virtio_config, virtio_ring};

    /// Chains may be tables of descriptors elsewhere in memory.
    pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
    /// Notifications are suppressed by index.
    pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    /// The device complies with version 1 of the specification.
    pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
    /// A queue can be reset alone.
    pub const RING_RESET: u64 = 1 << virtio_config::VIRTIO_F_RING_RESET;
    /// The device's addresses go through an IOMMU.
    pub const ACCESS_PLATFORM: u64 = 1 << virtio_config::VIRTIO_F_ACCESS_PLATFORM;
}

/// Bits of the device status register (VIRTIO 1.2, section 2.1).
pub mod status {
    use virtio_bindings::virtio_config;

    /// The guest has found the device.
    pub const ACKNOWLEDGE: u8 = virtio_config::VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
    /// The guest has a driver for it.
    pub const DRIVER: u8 = virtio_config::VIRTIO_CONFIG_S_DRIVER as u8;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = virtio_config::VIRTIO_CONFIG_S_DRIVER_OK as u8;
    /// Features have been negotiated.
    pub const FEATURES_OK: u8 = virtio_config::VIRTIO_CONFIG_S_FEATURES_OK as u8;
    /// The device is broken until it is reset.
    pub const NEEDS_RESET: u8 = virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET as u8;
    /// The driver has given up.
    pub const FAILED: u8 = virtio_config::VIRTIO_CONFIG_S_FAILED as u8;
}
