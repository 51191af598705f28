//! What a virtual processor says about itself: all that KVM can do, and its place among the others.
//!
//! The topology is one socket with one core per vCPU and one thread per core; APIC ids count from zero.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::error::MachineError;

const FEATURES: u32 = 1;
const CACHES: u32 = 4;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

const FEATURES_ECX_TSC_DEADLINE: u32 = 1 << 24;
const FEATURES_ECX_HYPERVISOR: u32 = 1 << 31;
const FEATURES_EDX_MULTI_THREADING: u32 = 1 << 28;
const AMD_ECX_LEGACY_MULTI_CORE: u32 = 1 << 1;

/// The answers of processor `index` of `count`.
pub(crate) fn for_vcpu(kvm: &Kvm, index: u32, count: u32) -> Result<CpuId, MachineError> {
    let mut cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(MachineError::kvm("ask for the CPUID"))?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        place(entry, index, count, deadline);
    }
    Ok(cpuid)
}

/// Replaces `count` bits from bit `from` on.
fn set_bits(register: &mut u32, from: u32, count: u32, value: u32) {
    let mask = ((1u32 << count) - 1) << from;
    *register = *register & !mask | value << from & mask;
}

fn set_flag(register: &mut u32, flag: u32, on: bool) {
    *register = if on { *register | flag } else { *register & !flag };
}

fn place(entry: &mut kvm_cpuid_entry2, index: u32, count: u32, deadline: bool) {
    let many = count > 1;
    // The number of bits of an APIC id that tell cores apart.
    let id_bits = count.next_power_of_two().trailing_zeros();
    match entry.function {
        FEATURES => {
            set_bits(&mut entry.ebx, 24, 8, index);
            set_bits(&mut entry.ebx, 16, 8, count);
            entry.ecx |= FEATURES_ECX_HYPERVISOR;
            set_flag(&mut entry.ecx, FEATURES_ECX_TSC_DEADLINE, deadline);
            set_flag(&mut entry.edx, FEATURES_EDX_MULTI_THREADING, many);
        }
        CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            // Caches of the first two levels belong to one core, the others to all.
            let sharing = if level < 3 { 0 } else { (1 << id_bits) - 1 };
            set_bits(&mut entry.eax, 14, 12, sharing);
            set_bits(&mut entry.eax, 26, 6, ((1 << id_bits) - 1).min(0x3f));
        }
        TOPOLOGY | TOPOLOGY_V2 => {
            // Level 0 are threads of a core, level 1 cores of the socket, then comes the end.
            let (shift, processors, kind) = match entry.index {
                0 => (0, 1, 1),
                1 => (id_bits, count, 2),
                _ => (0, 0, 0),
            };
            entry.eax = shift;
            entry.ebx = processors;
            entry.ecx = entry.index & 0xff | kind << 8;
            entry.edx = index;
        }
        AMD_FEATURES => {
            set_flag(&mut entry.ecx, AMD_ECX_LEGACY_MULTI_CORE, many);
        }
        AMD_SIZES => {
            set_bits(&mut entry.ecx, 0, 8, count - 1);
            set_bits(&mut entry.ecx, 12, 4, id_bits);
        }
        AMD_CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            set_bits(&mut entry.eax, 14, 12, if level < 3 { 0 } else { count - 1 });
        }
        AMD_TOPOLOGY => {
            entry.eax = index;
            set_bits(&mut entry.ebx, 0, 8, index);
            set_bits(&mut entry.ebx, 8, 8, 0);
            entry.ecx = 0;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(function: u32, sub: u32, eax: u32, index: u32, count: u32) -> kvm_cpuid_entry2 {
        let mut entry = kvm_cpuid_entry2 { function, index: sub, eax, ebx: 0x0800, ..Default::default() };
        place(&mut entry, index, count, true);
        entry
    }

    #[test]
    fn every_processor_knows_its_place() {
        let features = placed(FEATURES, 0, 0, 2, 3);
        assert_eq!(features.ebx, 0x0203_0800);
        assert_eq!(features.edx, FEATURES_EDX_MULTI_THREADING);
        assert_eq!(placed(FEATURES, 0, 0, 0, 1).edx, 0);
        let cores = placed(TOPOLOGY, 1, 0, 2, 3);
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, 2));
        assert_eq!(placed(TOPOLOGY, 0, 0, 2, 3).ebx, 1);
        assert_eq!(placed(AMD_SIZES, 0, 0, 2, 3).ecx, 0x2002);
        // A level 3 cache is shared by all, a level 1 cache by nobody.
        assert_eq!(placed(CACHES, 3, 0x63, 0, 4).eax >> 14 & 0xfff, 3);
        assert_eq!(placed(CACHES, 0, 0x21, 0, 4).eax >> 14 & 0xfff, 0);
    }

    #[test]
    fn the_largest_count_does_not_overflow() {
        for function in [FEATURES, CACHES, TOPOLOGY, AMD_SIZES, AMD_CACHES, AMD_TOPOLOGY, AMD_FEATURES] {
            placed(function, 1, 0x63, 253, 254);
        }
    }
}
