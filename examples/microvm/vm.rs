//! The virtual machine as KVM sees it: memory, interrupt controllers, timer, and events instead of exits.

use std::io;
use std::sync::Arc;

use iovirt::core::irq::{InterruptLine, MsiMessage, MsiSink};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_msi, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::error::MachineError;
use crate::exits::StatsFd;
use crate::layout::{self, Slot};

/// The version of the interface that every KVM since 2007 speaks.
const KVM_API_VERSION: i32 = 12;
/// Where a virtio-mmio device takes queue notifications: four bytes, the number of the queue.
const QUEUE_NOTIFY: u64 = 0x50;
const SMALLEST_MEMORY: u64 = 32 << 20;
/// Well within the 40 bits of physical address that any 64-bit processor has.
const LARGEST_MEMORY: u64 = 512 << 30;
/// Local APIC ids have eight bits, one value of which means all, and one more stays free.
const MOST_VCPUS: u32 = 254;

const NEEDED: [(Cap, &str); 8] = [
    (Cap::Irqchip, "interrupt controllers in the kernel"),
    (Cap::Pit2, "the timer in the kernel"),
    (Cap::UserMemory, "guest memory from user space"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::SignalMsi, "message-signalled interrupts"),
    (Cap::ImmediateExit, "the immediate exit"),
    (Cap::SetTssAddr, "the address of the task state segment"),
];

/// A virtual machine with memory and interrupt controllers, without processors.
pub(crate) struct Vm {
    kvm: Kvm,
    shared: Arc<Shared>,
}

/// What devices hold of the machine: a way to interrupt it, and to move its doorbells.
struct Shared {
    /// Declared before `memory`, so that KVM lets go of the memory before it is unmapped.
    fd: VmFd,
    memory: GuestMemoryMmap,
}

impl Vm {
    /// A machine with `memory_size` bytes of memory, rounded down to whole pages.
    pub(crate) fn new(kvm: Kvm, memory_size: u64) -> Result<Self, MachineError> {
        let memory = guest_memory(memory_size)?;
        let fd = kvm.create_vm().map_err(MachineError::kvm("create a virtual machine"))?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(MachineError::kvm("set the identity map's address"))?;
        fd.set_tss_address(layout::KVM_TSS as usize)
            .map_err(MachineError::kvm("set the task state segment's address"))?;
        fd.create_irq_chip().map_err(MachineError::kvm("create the interrupt controllers"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(MachineError::kvm("create the timer"))?;
        for (slot, region) in memory.iter().enumerate() {
            let host = memory
                .get_host_address(region.start_addr())
                .map_err(MachineError::guest_write("a memory slot"))?;
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the range is the mapping of one region, which `memory` keeps mapped for as long as `fd` lives
            // because both become fields of the same value and `fd` is dropped first. Regions don't overlap.
            unsafe { fd.set_user_memory_region(region) }
                .map_err(MachineError::kvm("give the guest its memory"))?;
        }
        Ok(Self { kvm, shared: Arc::new(Shared { fd, memory }) })
    }

    pub(crate) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    pub(crate) fn fd(&self) -> &VmFd {
        &self.shared.fd
    }

    /// The guest's memory; clones share it.
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.shared.memory
    }

    /// The number of bytes of memory.
    pub(crate) fn memory_size(&self) -> u64 {
        self.shared.memory.iter().map(GuestMemoryRegion::len).sum()
    }

    /// How many processors this machine can have.
    pub(crate) fn vcpu_limit(&self) -> u32 {
        (self.kvm.get_max_vcpus() as u32).min(MOST_VCPUS)
    }

    /// A write to `event` raises the edge-triggered line `gsi`.
    pub(crate) fn irqfd(&self, event: &EventFd, gsi: u32) -> Result<(), MachineError> {
        self.shared.fd.register_irqfd(event, gsi).map_err(MachineError::kvm("connect an interrupt line"))
    }

    /// A new event that raises the edge-triggered line `gsi`.
    pub(crate) fn interrupt_line(&self, gsi: u32) -> Result<EventFd, MachineError> {
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
            .map_err(MachineError::host("create an interrupt event"))?;
        self.irqfd(&event, gsi)?;
        Ok(event)
    }

    /// The guest's notification of one queue of the device in `slot` becomes an event, without an exit to this
    /// process.
    pub(crate) fn queue_doorbell(&self, event: &EventFd, slot: Slot, queue: u16) -> Result<(), MachineError> {
        self.mmio_doorbell(event, slot.address + QUEUE_NOTIFY, u32::from(queue))
    }

    /// A four-byte write of `value` at `address` becomes an event.
    pub(crate) fn mmio_doorbell(
        &self,
        event: &EventFd,
        address: u64,
        value: u32,
    ) -> Result<(), MachineError> {
        self.shared
            .fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(MachineError::kvm("connect a doorbell"))
    }

    /// The machine, for whoever saves or restores it.
    pub(crate) fn handle(&self) -> VmHandle {
        VmHandle(self.shared.clone())
    }

    /// KVM's own counters for the machine.
    pub(crate) fn stats(&self) -> Option<StatsFd> {
        StatsFd::open(&self.shared.fd)
    }

    /// Sends messages to the guest's interrupt controllers.
    pub(crate) fn messages(&self) -> Arc<dyn MsiSink> {
        Arc::new(Messages(self.shared.clone()))
    }

    /// A level-triggered line.
    pub(crate) fn level_line(&self, gsi: u32) -> Arc<dyn InterruptLine> {
        Arc::new(LevelLine { vm: self.shared.clone(), gsi })
    }

    /// Registers doorbells where they are now, and takes them back where they were.
    pub(crate) fn doorbells(&self) -> Doorbells {
        Doorbells(self.shared.clone())
    }
}

/// A machine whose owner runs it.
pub(crate) struct VmHandle(Arc<Shared>);

impl VmHandle {
    pub(crate) fn fd(&self) -> &VmFd {
        &self.0.fd
    }

    /// The guest's memory.
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.0.memory
    }

    /// The number of bytes of memory.
    pub(crate) fn memory_size(&self) -> u64 {
        self.0.memory.iter().map(GuestMemoryRegion::len).sum()
    }
}

struct Messages(Arc<Shared>);

impl MsiSink for Messages {
    fn signal(&self, message: MsiMessage) {
        let msi = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        // It is refused where the guest wrote an address that no interrupt controller has: then nobody hears it, as on a
        // real bus.
        let _ = self.0.fd.signal_msi(msi);
    }
}

struct LevelLine {
    vm: Arc<Shared>,
    gsi: u32,
}

impl std::fmt::Debug for LevelLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LevelLine({})", self.gsi)
    }
}

impl InterruptLine for LevelLine {
    // The only refusal is for a line that does not exist.
    fn assert(&self) {
        let _ = self.vm.fd.set_irq_line(self.gsi, true);
    }

    fn deassert(&self) {
        let _ = self.vm.fd.set_irq_line(self.gsi, false);
    }
}

/// Doorbells for writes of any value and any width.
pub(crate) struct Doorbells(Arc<Shared>);

impl Doorbells {
    /// A write at `address` becomes an event. Where KVM refuses, as it does where another doorbell is there, the write comes to
    /// this process, which rings by hand.
    pub(crate) fn connect(&self, event: &EventFd, address: u64) {
        let _ = self.0.fd.register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch);
    }

    /// No longer.
    pub(crate) fn disconnect(&self, event: &EventFd, address: u64) {
        let _ = self.0.fd.unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch);
    }
}

/// Opens `/dev/kvm` and checks what it offers.
pub(crate) fn open_kvm() -> Result<Kvm, MachineError> {
    let kvm = Kvm::new().map_err(|error| {
        let source = io::Error::from_raw_os_error(error.errno());
        MachineError::OpenKvm(match source.kind() {
            io::ErrorKind::NotFound => {
                "it does not exist (is virtualisation switched on, and the kernel's kvm module loaded?)"
                    .to_owned()
            }
            io::ErrorKind::PermissionDenied => "permission denied (is the user in group kvm?)".to_owned(),
            _ => source.to_string(),
        })
    })?;
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION {
        return Err(MachineError::KvmVersion(version));
    }
    match NEEDED.into_iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(MachineError::KvmLacks(name)),
        None => Ok(kvm),
    }
}

fn guest_memory(size: u64) -> Result<GuestMemoryMmap, MachineError> {
    let size = size & !0xfff;
    if size < SMALLEST_MEMORY {
        return Err(MachineError::MemoryTooSmall(size));
    }
    let refused = |reason: String| MachineError::Memory { size, reason };

    if size > LARGEST_MEMORY {
        return Err(refused("a guest can have 512G at most".to_owned()));
    }
    let ranges: Vec<(GuestAddress, usize)> = layout::memory_ranges(size)
        .into_iter()
        .map(|(start, len)| (GuestAddress(start), len as usize))
        .collect();
    GuestMemoryMmap::from_ranges(&ranges).map_err(|error| refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_sizes_are_checked() {
        assert!(matches!(guest_memory(1 << 20), Err(MachineError::MemoryTooSmall(_))));
        assert!(matches!(guest_memory(u64::MAX), Err(MachineError::Memory { .. })));
        let memory = guest_memory((64 << 20) + 5).unwrap();
        assert_eq!(memory.iter().map(GuestMemoryRegion::len).sum::<u64>(), 64 << 20);
    }
}
