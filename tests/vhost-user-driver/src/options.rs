//! What a driver asks for.

use crate::{Error, Result};

/// Feature bits of virtio that the driver knows (virtio 1.2, section 6 and 5.2.3, 5.1.3).
pub mod feature {
    /// A disk's largest number of segments is in its configuration.
    pub const BLK_SEG_MAX: u64 = 1 << 2;
    /// A disk refuses writes.
    pub const BLK_RO: u64 = 1 << 5;
    /// A disk's block size is in its configuration.
    pub const BLK_BLK_SIZE: u64 = 1 << 6;
    /// A disk takes flushes.
    pub const BLK_FLUSH: u64 = 1 << 9;
    /// A disk has several queues.
    pub const BLK_MQ: u64 = 1 << 12;
    /// A disk takes discards.
    pub const BLK_DISCARD: u64 = 1 << 13;
    /// A disk writes zeroes.
    pub const BLK_WRITE_ZEROES: u64 = 1 << 14;
    /// An interface has an address.
    pub const NET_MAC: u64 = 1 << 5;
    /// A received frame may take several buffers.
    pub const NET_MRG_RXBUF: u64 = 1 << 15;
    /// An interface tells whether its link is up.
    pub const NET_STATUS: u64 = 1 << 16;
    /// Descriptors in a table of their own.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications by index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Virtio 1.0 and later.
    pub const VERSION_1: u64 = 1 << 32;
    /// Protocol features of vhost-user; not a feature of the device.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
}

/// The most descriptors that a chain of this driver has.
pub const MOST_SEGMENTS: u16 = 3;

/// How the memory lies in the guest's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryMap {
    /// One region.
    OneRegion,
    /// Rings and headers in one region, buffers in another, with a hole between them: a server must look addresses up.
    TwoRegions,
}

/// What a driver asks for.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many queues to set up.
    pub queues: u16,
    /// Entries of each ring, a power of two.
    pub queue_size: u16,
    /// Requests that a queue can have in flight. Each has a buffer.
    pub slots: u16,
    /// The size of a slot's buffer, in bytes; rounded up to whole pages.
    pub buffer: usize,
    /// The device's features to take where they are offered; those of the ring and `VERSION_1` too.
    pub features: u64,
    /// Bits of the protocol features to take where they are offered.
    pub protocol_features: u64,
    /// How the memory lies in the guest's addresses.
    pub memory_map: MemoryMap,
}

impl Options {
    /// A disk: one queue of 256 entries, 128 requests of up to 128 KiB, all that is offered.
    pub fn blk() -> Self {
        Self {
            queues: 1,
            queue_size: 256,
            slots: 128,
            buffer: 128 << 10,
            features: feature::VERSION_1
                | feature::EVENT_IDX
                | feature::INDIRECT_DESC
                | feature::BLK_SEG_MAX
                | feature::BLK_BLK_SIZE
                | feature::BLK_FLUSH
                | feature::BLK_MQ
                | feature::BLK_DISCARD
                | feature::BLK_WRITE_ZEROES,
            protocol_features: u64::MAX,
            memory_map: MemoryMap::OneRegion,
        }
    }

    /// An interface: a pair of queues of 256 entries, 256 buffers of 2 KiB (a page each) in both.
    pub fn net() -> Self {
        Self {
            queues: 2,
            slots: 256,
            buffer: 2 << 10,
            features: feature::VERSION_1
                | feature::EVENT_IDX
                | feature::INDIRECT_DESC
                | feature::NET_MAC
                | feature::NET_STATUS,
            ..Self::blk()
        }
    }

    /// Checks that the options fit together.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Options(what));
        if self.queues == 0 || self.queues > 128 {
            return refuse(format!("{} queues; 1 to 128 are possible", self.queues));
        }
        if !self.queue_size.is_power_of_two() || self.queue_size < 4 {
            return refuse(format!("queues of {} entries; a power of two from 4 is needed", self.queue_size));
        }
        if self.slots == 0 || self.slots > self.queue_size {
            return refuse(format!("{} slots; 1 to {} are possible", self.slots, self.queue_size));
        }
        if self.buffer == 0 || self.buffer > 1 << 24 {
            return refuse(format!("buffers of {} bytes; 1 to 16 MiB are possible", self.buffer));
        }
        Ok(())
    }
}
