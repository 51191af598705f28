//! What can go wrong with an address.

use super::DmaFault;

/// Why guest memory could not be reached. Small and `Copy`: it travels on the data path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DmaError {
    /// No region holds the whole range.
    #[error("guest address {addr:#x} + {len:#x} bytes is not mapped")]
    Unmapped {
        /// First address of the part that is not mapped.
        addr: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The device wants to write memory that is mapped read-only.
    #[error("guest address {addr:#x} + {len:#x} bytes is read-only")]
    ReadOnly {
        /// First address of the read-only part.
        addr: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// `addr + len` does not fit 64 bits, or a list's total length does not.
    #[error("address {addr:#x} + {len:#x} bytes overflows")]
    Overflow {
        /// The address asked for.
        addr: u64,
        /// The length asked for, in bytes.
        len: u64,
    },
    /// The address, in the guest or on the host, is not aligned as its use demands.
    #[error("address {addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// The address asked for.
        addr: u64,
        /// The alignment in bytes.
        align: u64,
    },
    /// The range lies in several pieces where one is needed (a ring).
    #[error("address {addr:#x} + {len:#x} bytes is not contiguous in host memory")]
    NotContiguous {
        /// The address asked for.
        addr: u64,
        /// The length asked for, in bytes.
        len: u64,
    },
    /// The IOMMU refused the access.
    #[error("{0}")]
    Fault(DmaFault),
    /// The list would need more segments than it may have.
    #[error("more than {max} segments")]
    TooManySegments {
        /// The list's limit.
        max: usize,
    },
    /// The list would need a larger host buffer than it may have.
    #[error("more than {max} bytes of host memory for one request")]
    BufferTooLarge {
        /// The list's limit in bytes.
        max: usize,
    },
    /// An offset into a list lies beyond its end.
    #[error("offset {offset} + {len} bytes lies beyond the end of the list")]
    OutOfRange {
        /// The offset asked for, in bytes.
        offset: u64,
        /// The length asked for, in bytes.
        len: u64,
    },
}

impl From<DmaFault> for DmaError {
    fn from(fault: DmaFault) -> Self {
        Self::Fault(fault)
    }
}

/// Why a table of regions is not a memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// A region of no bytes.
    #[error("the region at {base:#x} is empty")]
    EmptyRegion {
        /// Its guest physical address.
        base: u64,
    },
    /// `base + len` does not fit 64 bits, or the length exceeds the host's address space.
    #[error("the region at {base:#x} of {len:#x} bytes overflows")]
    Overflow {
        /// Its guest physical address.
        base: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// A region of memory that the host process may not read.
    #[error("the region at {base:#x} is mapped without the right to read it")]
    NotReadable {
        /// Its guest physical address.
        base: u64,
    },
    /// Two regions share guest physical addresses.
    #[error("the regions at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Base of the lower one.
        first: u64,
        /// Base of the higher one.
        second: u64,
    },
    /// A region of a file that ends before the region does, or that is no file that can be mapped.
    #[error("the region at {base:#x} lies beyond the end of its file of {file_len:#x} bytes")]
    BeyondFile {
        /// Its guest physical address.
        base: u64,
        /// Length of the file in bytes; zero where it is no file.
        file_len: u64,
    },
    /// The host has no memory for it.
    #[error("the host refused to map {len:#x} bytes (errno {errno})")]
    Host {
        /// Length asked for, in bytes.
        len: u64,
        /// The host's error number.
        errno: i32,
    },
}
