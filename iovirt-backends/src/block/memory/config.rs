//! How a RAM disk is set up.

use iovirt_core::request::block::SECTOR;

/// How a [`MemoryBackend`](super::MemoryBackend) is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Size of the disk in bytes, a multiple of 512; not zero.
    pub size: u64,
    /// The unit that the guest is told to write in, in bytes: a power of two, 512 to 1 MiB. Any 512 bytes can be written
    /// all the same.
    pub physical_block: u32,
    /// Whether to refuse what changes the disk. [`MemoryBackend::write`](super::MemoryBackend::write) still does.
    pub read_only: bool,
}

impl Default for MemoryConfig {
    /// 1 GiB, writable, blocks of 512 bytes.
    fn default() -> Self {
        Self { size: 1 << 30, physical_block: SECTOR as u32, read_only: false }
    }
}
