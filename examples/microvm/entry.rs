//! The state of a processor at a kernel's first instruction.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::MachineError;
use crate::layout::{BOOT_STACK, GDT, PAGE_TABLES, START_INFO, ZERO_PAGE};

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
const RFLAGS_ALWAYS_SET: u64 = 2;

const PAGE: u64 = 0x1000;
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const LARGE_PAGE_LEN: u64 = 2 << 20;

/// How to enter a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Linux's own 64-bit protocol: long mode, `rsi` points to the zero page.
    Linux64(u64),
    /// PVH: 32-bit protected mode without paging, `ebx` points to the start info.
    Pvh(u64),
}

/// Puts descriptor and page tables into memory that the entry needs.
pub(crate) fn write_tables(memory: &GuestMemoryMmap, entry: Entry) -> Result<(), MachineError> {
    let gdt: Vec<u8> = descriptors(entry).iter().flat_map(|descriptor| descriptor.to_le_bytes()).collect();
    memory.write_slice(&gdt, GuestAddress(GDT)).map_err(MachineError::guest_write("the descriptor table"))?;
    if let Entry::Linux64(_) = entry {
        write_page_tables(memory, PAGE_TABLES)?;
    }
    Ok(())
}

/// Four GiB where they are, in pages of 2 MiB: three levels in six pages at `base`.
pub(crate) fn write_page_tables(memory: &GuestMemoryMmap, base: u64) -> Result<(), MachineError> {
    let write = |address: u64, value: u64| {
        memory.write_obj(value, GuestAddress(address)).map_err(MachineError::guest_write("the page tables"))
    };
    let (top, second) = (base, base + PAGE);
    write(top, second | PRESENT_WRITABLE)?;
    for gib in 0..4 {
        let third = base + (2 + gib) * PAGE;
        write(second + gib * 8, third | PRESENT_WRITABLE)?;
        for index in 0..512 {
            let page = (gib * 512 + index) * LARGE_PAGE_LEN;
            write(third + index * 8, page | PRESENT_WRITABLE | LARGE_PAGE)?;
        }
    }
    Ok(())
}

/// General registers at the entry.
pub(crate) fn general_registers(entry: Entry) -> kvm_regs {
    match entry {
        Entry::Linux64(rip) => kvm_regs {
            rip,
            rsi: ZERO_PAGE,
            rsp: BOOT_STACK,
            rbp: BOOT_STACK,
            rflags: RFLAGS_ALWAYS_SET,
            ..Default::default()
        },
        Entry::Pvh(rip) => kvm_regs { rip, rbx: START_INFO, rflags: RFLAGS_ALWAYS_SET, ..Default::default() },
    }
}

/// Changes what KVM set up for a reset into what the entry asks for; page tables are at `page_tables`.
pub(crate) fn special_registers(sregs: &mut kvm_sregs, entry: Entry, page_tables: u64) {
    let gdt = descriptors(entry);
    let [_, _, code, data, task] = std::array::from_fn(|index| segment(gdt[index], index as u16 * 8));
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task;
    sregs.gdt = kvm_dtable { base: GDT, limit: size_of_val(&gdt) as u16 - 1, ..Default::default() };
    sregs.idt = kvm_dtable::default();
    match entry {
        Entry::Linux64(_) => {
            sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
            sregs.cr3 = page_tables;
            sregs.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
            sregs.efer = EFER_LONG_MODE;
        }
        Entry::Pvh(_) => {
            sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
            sregs.cr4 = 0;
            sregs.efer = 0;
        }
    }
}

/// Two unused, then code at 0x10 and data at 0x18 as Linux asks for, and a task segment, which KVM asks for.
fn descriptors(entry: Entry) -> [u64; 5] {
    // Flags: granularity in bit 3, 32-bit in bit 2, 64-bit code in bit 1. Access: present, type, accessed.
    let code_flags = if matches!(entry, Entry::Linux64(_)) { 0b1010 } else { 0b1100 };
    [
        0,
        0,
        descriptor(code_flags, 0x9b, 0xf_ffff),
        descriptor(0b1100, 0x93, 0xf_ffff),
        descriptor(0, 0x8b, 0x67),
    ]
}

/// A segment descriptor with base 0.
fn descriptor(flags: u64, access: u64, limit: u64) -> u64 {
    flags << 52 | (limit >> 16 & 0xf) << 48 | access << 40 | limit & 0xffff
}

/// The hidden part of a segment register, as loading the descriptor would fill it.
fn segment(descriptor: u64, selector: u16) -> kvm_segment {
    let bits = |from: u32, count: u32| (descriptor >> from & ((1 << count) - 1)) as u8;
    let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
    let in_pages = bits(55, 1);
    kvm_segment {
        base: 0,
        limit: if in_pages == 1 { limit << 12 | 0xfff } else { limit },
        selector,
        type_: bits(40, 4),
        s: bits(44, 1),
        dpl: bits(45, 2),
        present: bits(47, 1),
        avl: bits(52, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g: in_pages,
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_flat() {
        let mut sregs = kvm_sregs::default();
        special_registers(&mut sregs, Entry::Linux64(0), PAGE_TABLES);
        assert_eq!((sregs.cs.limit, sregs.cs.l, sregs.cs.db, sregs.cs.type_), (u32::MAX, 1, 0, 11));
        assert_eq!((sregs.ss.limit, sregs.ss.l, sregs.ss.db, sregs.ss.type_), (u32::MAX, 0, 1, 3));
        assert_eq!((sregs.tr.limit, sregs.tr.s, sregs.tr.type_, sregs.tr.g), (0x67, 0, 11, 0));
        special_registers(&mut sregs, Entry::Pvh(0), PAGE_TABLES);
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.efer, sregs.cr0 & CR0_PAGING), (0, 1, 0, 0));
    }

    #[test]
    fn pages_lie_where_they_are() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_page_tables(&memory, PAGE_TABLES).unwrap();
        let read = |address: u64| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        let address = 0xc123_4567u64;
        let mut table = PAGE_TABLES;
        for level in [39, 30] {
            table = read(table + (address >> level & 511) * 8) & !0xfff;
        }
        assert_eq!(read(table + (address >> 21 & 511) * 8), address & !(LARGE_PAGE_LEN - 1) | 0x83);
    }
}
