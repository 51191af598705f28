//! What a driver can do wrong with a queue.

use std::fmt;

use iovirt_core::dma::DmaError;

/// One of a queue's three areas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RingArea {
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Available,
    /// The used ring.
    Used,
}

impl fmt::Display for RingArea {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "descriptor table",
            Self::Available => "available ring",
            Self::Used => "used ring",
        })
    }
}

/// Why a queue cannot be set up as the driver wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The driver has not enabled the queue.
    #[error("the queue is not enabled")]
    NotReady,
    /// A split queue's size is a power of two, and not zero (2.7).
    #[error("queue size {size} is not a power of two")]
    SizeNotPowerOfTwo {
        /// As the driver wrote it.
        size: u16,
    },
    /// The driver chose more than was offered.
    #[error("queue size {size} exceeds the maximum of {max}")]
    SizeTooLarge {
        /// As the driver wrote it.
        size: u16,
        /// What the device offered.
        max: u16,
    },
    /// An area does not start where it may (2.7).
    #[error("the {area} at {addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Which one.
        area: RingArea,
        /// Where the driver put it.
        addr: u64,
        /// The alignment it needs, in bytes.
        align: u64,
    },
    /// An area is not in memory that the device can reach in one piece.
    #[error("the {area} is not usable: {error}")]
    Area {
        /// Which one.
        area: RingArea,
        /// What is wrong with its memory.
        error: DmaError,
    },
}

/// What a driver did wrong with a queue; each is reason for `DEVICE_NEEDS_RESET`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The queue cannot be used as configured, or no longer after the memory map changed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The available index moved by more than the queue size, or backwards.
    #[error("available index {index} is more than {size} entries ahead of {next}")]
    AvailIndexJump {
        /// What the driver wrote.
        index: u16,
        /// The next entry the device would take.
        next: u16,
        /// The queue size.
        size: u16,
    },
    /// An available ring entry names a descriptor that does not exist.
    #[error("head {head} lies beyond the {size} descriptors")]
    HeadOutOfRange {
        /// What the driver wrote.
        head: u16,
        /// The queue size.
        size: u16,
    },
    /// A descriptor's `next` names one that does not exist in its table.
    #[error("next descriptor {next} lies beyond the {size} of its table")]
    NextOutOfRange {
        /// What the driver wrote.
        next: u16,
        /// Entries of the table.
        size: u16,
    },
    /// A chain is longer than its table, so it comes back to itself.
    #[error("the chain at head {head} is a loop")]
    Loop {
        /// Where it starts.
        head: u16,
    },
    /// A device-readable buffer after a device-writable one (2.7.4.2).
    #[error("the chain at head {head} has a readable buffer after a writable one")]
    ReadableAfterWritable {
        /// Where it starts.
        head: u16,
    },
    /// A chain of more than 2^32 - 1 bytes (2.7.5.2; the used length has 32 bits).
    #[error("the chain at head {head} has {len} bytes")]
    TooLong {
        /// Where it starts.
        head: u16,
        /// Its length in bytes.
        len: u64,
    },
    /// An indirect descriptor without `VIRTIO_F_INDIRECT_DESC` (2.7.5.3.1).
    #[error("an indirect descriptor, which was not negotiated")]
    IndirectNotNegotiated,
    /// A descriptor that is both indirect and followed by another (2.7.5.3.1).
    #[error("an indirect descriptor that has a next one")]
    IndirectWithNext,
    /// An indirect descriptor in an indirect table (2.7.5.3.1).
    #[error("an indirect descriptor in an indirect table")]
    IndirectNested,
    /// An indirect table that is empty, not a multiple of a descriptor's size, or too large.
    #[error("an indirect table of {len} bytes")]
    IndirectTableSize {
        /// Its length in bytes.
        len: u32,
    },
    /// A buffer or an indirect table is not in memory that the device can reach.
    #[error(transparent)]
    Memory(#[from] DmaError),
}
