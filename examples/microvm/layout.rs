//! Where everything lies in the guest's physical address space, and which interrupt goes where.

use crate::error::MachineError;

/// Low memory ends here at the latest; above lie devices up to 4 GiB, and the rest of the memory after that.
pub(crate) const HOLE_START: u64 = 0xc000_0000;
pub(crate) const HIGH_MEMORY: u64 = 0x1_0000_0000;

// Structures of the boot protocols, all below 640 KiB.
pub(crate) const GDT: u64 = 0x500;
pub(crate) const START_INFO: u64 = 0x6000;
pub(crate) const ZERO_PAGE: u64 = 0x7000;
pub(crate) const BOOT_STACK: u64 = 0x8ff0;
pub(crate) const PAGE_TABLES: u64 = 0x9000;
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
pub(crate) const COMMAND_LINE_MAX: usize = 0x1_0000;
/// Conventional memory ends here, as on a PC with an extended BIOS data area.
pub(crate) const LOW_MEMORY_END: u64 = 0x9_fc00;
/// ACPI tables, where a kernel looks for the first of them.
pub(crate) const ACPI_TABLES: u64 = 0xe_0000;
pub(crate) const ACPI_TABLES_LEN: u64 = 0x2_0000;
pub(crate) const MIB: u64 = 0x10_0000;

/// Windows for virtio-mmio devices.
pub(crate) const MMIO_BASE: u64 = 0xd000_0000;
pub(crate) const MMIO_LEN: u64 = 0x1000;
/// Where the windows of PCI functions may be, below the others.
pub(crate) const PCI_MEMORY: std::ops::Range<u64> = HOLE_START..MMIO_BASE;
/// Ports for windows of PCI functions.
pub(crate) const PCI_PORTS: std::ops::Range<u64> = 0xc000..0xd000;
/// PCI's configuration space in memory, of one bus.
pub(crate) const PCI_ECAM: u64 = 0xe000_0000;
/// Interrupt controllers, in the kernel.
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
/// Pages that KVM on Intel processors needs for itself.
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
pub(crate) const KVM_TSS: u64 = 0xfffb_d000;

/// Interrupt lines of the fixed devices.
pub(crate) const SERIAL_GSI: u32 = 4;
pub(crate) const SCI_GSI: u32 = 9;

/// Level-triggered interrupt lines, shared by the pins of PCI functions.
pub(crate) const PCI_GSIS: [u32; 4] = [16, 17, 18, 19];

/// The interrupt lines left for virtio-mmio devices: not the timer, the cascade, COM1 and COM2, the clock, ACPI, the
/// coprocessor or PCI's.
const FREE_GSIS: [u32; 12] = [5, 6, 7, 10, 11, 12, 14, 15, 20, 21, 22, 23];

/// The ranges `(start, length)` of a memory of `size` bytes.
pub(crate) fn memory_ranges(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(HOLE_START);
    let high = size - low;
    if high == 0 { vec![(0, low)] } else { vec![(0, low), (HIGH_MEMORY, high)] }
}

/// Kinds of memory in the maps that kernels are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum MemoryKind {
    Ram = 1,
    Reserved = 2,
}

/// The memory map for a kernel: `(start, length, kind)`.
pub(crate) fn memory_map(size: u64) -> Vec<(u64, u64, MemoryKind)> {
    let mut map = vec![
        (0, LOW_MEMORY_END, MemoryKind::Ram),
        (LOW_MEMORY_END, MIB - LOW_MEMORY_END, MemoryKind::Reserved),
    ];
    // A kernel uses ECAM only where nothing else can be.
    map.push((PCI_ECAM, iovirt::frontends::pci::ECAM_LEN, MemoryKind::Reserved));
    for (start, len) in memory_ranges(size) {
        let above = start.max(MIB);
        map.push((above, start + len - above, MemoryKind::Ram));
    }
    map
}

/// The place of one virtio-mmio device: its window and its interrupt line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) index: usize,
    pub(crate) address: u64,
    pub(crate) gsi: u32,
}

/// Hands out slots in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots {
    taken: Vec<Slot>,
}

impl Slots {
    /// The next free slot.
    pub(crate) fn take(&mut self) -> Result<Slot, MachineError> {
        let index = self.taken.len();
        let gsi = *FREE_GSIS.get(index).ok_or(MachineError::NoSlot(FREE_GSIS.len()))?;
        let slot = Slot { index, address: MMIO_BASE + index as u64 * MMIO_LEN, gsi };
        self.taken.push(slot);
        Ok(slot)
    }

    /// The slots in use, which ACPI announces.
    pub(crate) fn taken(&self) -> &[Slot] {
        &self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_around_the_hole() {
        let gib = 1 << 30;
        assert_eq!(memory_ranges(gib), [(0, gib)]);
        assert_eq!(memory_ranges(3 * gib), [(0, 3 * gib)]);
        assert_eq!(memory_ranges(5 * gib), [(0, 3 * gib), (HIGH_MEMORY, 2 * gib)]);
        let ram =
            |size| -> u64 { memory_map(size).iter().filter(|e| e.2 == MemoryKind::Ram).map(|e| e.1).sum() };
        assert_eq!(ram(5 * gib), 5 * gib - (MIB - LOW_MEMORY_END));
        let mut map = memory_map(5 * gib);
        map.sort_unstable_by_key(|entry| entry.0);
        assert!(map.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
    }

    #[test]
    fn slots_are_distinct_and_end() {
        let mut slots = Slots::default();
        while slots.take().is_ok() {}
        let gsis: std::collections::BTreeSet<u32> = slots.taken().iter().map(|slot| slot.gsi).collect();
        assert_eq!(gsis.len(), slots.taken().len());
        assert!(gsis.iter().all(|gsi| *gsi < 24 && ![0, 2, SERIAL_GSI, 8, SCI_GSI, 13].contains(gsi)));
        assert!(PCI_GSIS.iter().all(|gsi| !gsis.contains(gsi)));
        assert!(slots.take().is_err());
    }
}
