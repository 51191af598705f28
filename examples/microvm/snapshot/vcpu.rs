//! All that a vCPU knows, as KVM tells it.

use iovirt::core::state::SavedState;
use kvm_bindings::{
    CpuId, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use super::SnapshotError;

/// Counts down to a moment of the time stamp counter, so it comes after that counter.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// What runs a hypervisor: VMXE in CR4, SVME in EFER.
const CR4_VMXE: u64 = 1 << 13;
const EFER_SVME: u64 = 1 << 12;
/// Leaves of CPUID whose bits are features: a processor may have more of them, but not fewer.
const FEATURE_LEAVES: [u32; 5] = [1, 7, 0x8000_0001, 0x8000_0008, 0x4000_0001];
/// How many registers are asked for at once.
const BATCH: usize = 128;

/// A vCPU between two instructions.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Box<kvm_xsave>,
    xcrs: kvm_xcrs,
    debugregs: kvm_debugregs,
    lapic: Box<kvm_lapic_state>,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl SavedState for VcpuState {
    const KIND: &'static str = "microvm vCPU";
    const VERSION: u16 = 1;
}

/// The numbers of the model-specific registers that KVM knows of.
#[derive(Clone, Debug)]
pub(crate) struct MsrNumbers(Vec<u32>);

impl MsrNumbers {
    /// Those of this host.
    pub(crate) fn of(kvm: &Kvm) -> Result<Self, SnapshotError> {
        let list =
            kvm.get_msr_index_list().map_err(SnapshotError::kvm("list the model-specific registers"))?;
        Ok(Self(list.as_slice().to_vec()))
    }
}

impl VcpuState {
    /// The state of a vCPU that does not run, and that was told `cpuid`: KVM's own answer follows what the guest switched on.
    pub(crate) fn read(fd: &VcpuFd, cpuid: &CpuId, numbers: &MsrNumbers) -> Result<Self, SnapshotError> {
        let kvm = SnapshotError::kvm;
        // First of all, as the question makes KVM work off events that change the rest.
        let mp_state = fd.get_mp_state().map_err(kvm("read a vCPU's multiprocessing state"))?;
        let sregs = fd.get_sregs().map_err(kvm("read a vCPU's special registers"))?;
        if sregs.cr4 & CR4_VMXE != 0 || sregs.efer & EFER_SVME != 0 {
            return Err(SnapshotError::Hypervisor);
        }
        Ok(Self {
            cpuid: cpuid.as_slice().to_vec(),
            tsc_khz: fd.get_tsc_khz().unwrap_or(0),
            mp_state,
            regs: fd.get_regs().map_err(kvm("read a vCPU's registers"))?,
            sregs,
            xsave: Box::new(fd.get_xsave().map_err(kvm("read a vCPU's extended state"))?),
            xcrs: fd.get_xcrs().map_err(kvm("read a vCPU's extended control registers"))?,
            debugregs: fd.get_debug_regs().map_err(kvm("read a vCPU's debug registers"))?,
            lapic: Box::new(fd.get_lapic().map_err(kvm("read a vCPU's local APIC"))?),
            msrs: read_msrs(fd, &numbers.0)?,
            // Last, as nothing after it may change what is pending.
            events: fd.get_vcpu_events().map_err(kvm("read a vCPU's events"))?,
        })
    }

    /// What this vCPU was told about itself, if a processor of this host can be that: `supported` is what it would be told here.
    pub(crate) fn cpuid(&self, supported: &CpuId) -> Result<CpuId, SnapshotError> {
        for saved in self.cpuid.iter().filter(|entry| FEATURE_LEAVES.contains(&entry.function)) {
            let same =
                |entry: &&kvm_cpuid_entry2| (entry.function, entry.index) == (saved.function, saved.index);
            let here = supported.as_slice().iter().find(same).copied().unwrap_or_default();
            // Leaf 1 has numbers in EAX and EBX, leaf 7 in EAX, and the AMD ones elsewhere than in these.
            let (had, has) = match saved.function {
                1 | 0x8000_0001 => ([saved.ecx, saved.edx, 0], [here.ecx, here.edx, 0]),
                7 => ([saved.ebx, saved.ecx, saved.edx], [here.ebx, here.ecx, here.edx]),
                0x8000_0008 => ([saved.ebx, 0, 0], [here.ebx, 0, 0]),
                _ => ([saved.eax, 0, 0], [here.eax, 0, 0]),
            };
            if had.iter().zip(has).any(|(had, has)| had & !has != 0) {
                return Err(SnapshotError::Processor { leaf: saved.function });
            }
        }
        CpuId::from_entries(&self.cpuid).map_err(|_| SnapshotError::Content("a vCPU's CPUID is too long"))
    }

    /// Puts a fresh vCPU, whose CPUID is set, into this state.
    pub(crate) fn write(&self, fd: &VcpuFd) -> Result<(), SnapshotError> {
        let kvm = SnapshotError::kvm;
        if self.tsc_khz != 0 && fd.get_tsc_khz().is_ok_and(|here| here != self.tsc_khz) {
            fd.set_tsc_khz(self.tsc_khz).map_err(kvm("set the frequency of a vCPU's time stamp counter"))?;
        }
        fd.set_mp_state(self.mp_state).map_err(kvm("set a vCPU's multiprocessing state"))?;
        fd.set_regs(&self.regs).map_err(kvm("set a vCPU's registers"))?;
        fd.set_sregs(&self.sregs).map_err(kvm("set a vCPU's special registers"))?;
        fd.set_xcrs(&self.xcrs).map_err(kvm("set a vCPU's extended control registers"))?;
        write_xsave(fd, &self.xsave)?;
        fd.set_debug_regs(&self.debugregs).map_err(kvm("set a vCPU's debug registers"))?;
        fd.set_lapic(&self.lapic).map_err(kvm("set a vCPU's local APIC"))?;
        write_msrs(fd, &self.msrs)?;
        fd.set_vcpu_events(&self.events).map_err(kvm("set a vCPU's events"))?;
        // A guest that knows KVM's clock takes the time between for what it was; others get no word.
        let _ = fd.kvmclock_ctrl();
        Ok(())
    }
}

fn write_xsave(fd: &VcpuFd, xsave: &kvm_xsave) -> Result<(), SnapshotError> {
    // SAFETY: the kernel reads as many bytes as the state of a vCPU has, which are those of the struct (`check_host`): no
    // feature that needs more was asked for in this process, as it would have to be.
    unsafe { fd.set_xsave(xsave) }.map_err(SnapshotError::kvm("set a vCPU's extended state"))
}

/// Whether the state of a vCPU of this host fits what is saved.
pub(crate) fn check_host(vm: &kvm_ioctls::VmFd) -> Result<(), SnapshotError> {
    let size = vm.check_extension_int(Cap::Xsave2);
    if usize::try_from(size).is_ok_and(|size| size > size_of::<kvm_xsave>()) {
        return Err(SnapshotError::ExtendedState);
    }
    Ok(())
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, SnapshotError> {
    Msrs::from_entries(entries).map_err(|_| SnapshotError::Content("too many model-specific registers"))
}

/// All that can be read; KVM lists some that this processor does not have.
fn read_msrs(fd: &VcpuFd, numbers: &[u32]) -> Result<Vec<kvm_msr_entry>, SnapshotError> {
    let wanted: Vec<kvm_msr_entry> =
        numbers.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
    let mut read = Vec::with_capacity(wanted.len());
    let mut left = &wanted[..];
    while !left.is_empty() {
        let mut batch = list(&left[..left.len().min(BATCH)])?;
        let got = fd.get_msrs(&mut batch).map_err(SnapshotError::kvm("read model-specific registers"))?;
        read.extend_from_slice(&batch.as_slice()[..got]);
        // The first one that it did not read is left out.
        let skip = usize::from(got < batch.as_slice().len());
        left = &left[(got + skip).max(1).min(left.len())..];
    }
    // A stable sort: the rest stays in KVM's order.
    read.sort_by_key(|entry| entry.index == MSR_TSC_DEADLINE);
    Ok(read)
}

/// Sets all of them; one that cannot be set must have its value already.
fn write_msrs(fd: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), SnapshotError> {
    let mut left = entries;
    while !left.is_empty() {
        let batch = list(&left[..left.len().min(BATCH)])?;
        let set = fd.set_msrs(&batch).map_err(SnapshotError::kvm("set model-specific registers"))?;
        left = &left[set.min(left.len())..];
        if set < batch.as_slice().len() {
            let Some((refused, rest)) = left.split_first() else { break };
            let mut now = list(&[kvm_msr_entry { index: refused.index, ..Default::default() }])?;
            let read = fd.get_msrs(&mut now).is_ok_and(|read| read == 1);
            if !read || now.as_slice()[0].data != refused.data {
                return Err(SnapshotError::Register { index: refused.index, value: refused.data });
            }
            left = rest;
        }
    }
    Ok(())
}
