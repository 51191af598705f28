//! Where the fields of a split virtqueue lie (VIRTIO 1.2, sections 2.7 to 2.7.8). Offsets and sizes in bytes.

use iovirt_core::dma::MappedArea;

/// Size of a descriptor (2.7.5).
pub(super) const DESC_SIZE: u64 = 16;
/// Alignment of the descriptor table, available ring and used ring (2.7).
pub(super) const DESC_ALIGN: usize = 16;
pub(super) const AVAIL_ALIGN: usize = 2;
pub(super) const USED_ALIGN: usize = 4;

/// Offsets of `flags`, `idx` and `ring`, in either ring (2.7.6, 2.7.8).
pub(super) const RING_FLAGS: usize = 0;
pub(super) const RING_IDX: usize = 2;
pub(super) const RING_ELEMENTS: usize = 4;
/// Size of an available ring's element: a head.
pub(super) const AVAIL_ELEMENT: usize = 2;
/// Size of a used ring's element: a head and a length.
pub(super) const USED_ELEMENT: usize = 8;

/// `VIRTQ_DESC_F_NEXT`: the chain goes on.
pub(super) const DESC_NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`: the device writes the buffer.
pub(super) const DESC_WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`: the buffer is a table of descriptors.
pub(super) const DESC_INDIRECT: u16 = 4;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` in the available ring's `flags`.
pub(super) const AVAIL_NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY` in the used ring's `flags`.
pub(super) const USED_NO_NOTIFY: u16 = 1;

/// Size of the descriptor table.
pub(super) const fn desc_len(size: u16) -> u64 {
    DESC_SIZE * size as u64
}

/// Size of the available ring with `used_event`.
pub(super) const fn avail_len(size: u16) -> u64 {
    6 + AVAIL_ELEMENT as u64 * size as u64
}

/// Size of the used ring with `avail_event`.
pub(super) const fn used_len(size: u16) -> u64 {
    6 + USED_ELEMENT as u64 * size as u64
}

/// Offset of `used_event` in the available ring.
pub(super) const fn used_event(size: u16) -> usize {
    RING_ELEMENTS + AVAIL_ELEMENT * size as usize
}

/// Offset of `avail_event` in the used ring.
pub(super) const fn avail_event(size: u16) -> usize {
    RING_ELEMENTS + USED_ELEMENT * size as usize
}

/// One descriptor, read once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor {
    addr: u64,
    /// Length, flags and next, from the low bits up. Kept together: two words travel in registers.
    rest: u64,
}

impl Descriptor {
    /// Reads descriptor `index` of the table, which ends with the last one; `None` if there is none such.
    #[inline]
    pub(super) fn load(table: &MappedArea<DESC_ALIGN>, index: u16) -> Option<Self> {
        let [addr, rest] = table.load_u64_pair(DESC_SIZE as usize * usize::from(index))?;
        Some(Self::new(addr, rest))
    }

    /// From the sixteen bytes of an indirect table's entry.
    pub(super) fn from_bytes(bytes: [u8; 16]) -> Self {
        let whole = u128::from_le_bytes(bytes);
        Self::new(whole as u64, (whole >> 64) as u64)
    }

    #[inline]
    fn new(addr: u64, rest: u64) -> Self {
        Self { addr, rest }
    }

    /// Address of the buffer or table, as the device sees memory.
    #[inline]
    pub(super) fn addr(self) -> u64 {
        self.addr
    }

    /// Its length in bytes.
    #[inline]
    pub(super) fn len(self) -> u32 {
        self.rest as u32
    }

    /// Index of the descriptor that follows, if [`DESC_NEXT`] is set.
    #[inline]
    pub(super) fn next(self) -> u16 {
        (self.rest >> 48) as u16
    }

    #[inline]
    pub(super) fn has(self, flag: u16) -> bool {
        self.rest & (flag as u64) << 32 != 0
    }
}
