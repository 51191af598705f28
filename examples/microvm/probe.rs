//! Can this KVM run a 64-bit guest with paging? The only honest answer comes from running one.
//!
//! Some KVMs in virtual machines accept every setting and then run real-mode code only, or emulate instruction by
//! instruction until a kernel uses one that they lack.

use std::os::unix::thread::JoinHandleExt;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::cpuid;
use crate::entry::{self, Entry};
use crate::error::MachineError;
use crate::vcpu;

const MEMORY: usize = 0x1_0000;
const CODE: u64 = 0x1000;
const DATA: u64 = 0x2000;
const PAGE_TABLES: u64 = 0x8000;
/// A healthy KVM needs well under a millisecond; an emulated one gets time.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Reads a word through an address above 4 GiB, reverses its bytes, writes it back beside; then swaps 16 bytes, which
/// kernels do, and which an emulator that poses as a processor tends to lack; halts.
const PROGRAM: [u8; 31] = [
    0x48, 0xbb, 0x00, 0x20, 0x00, 0x00, 0x80, 0x00, 0x00, 0x00, // mov rbx, 0x80_0000_2000
    0x48, 0x8b, 0x03, // mov rax, [rbx]
    0x48, 0x0f, 0xc8, // bswap rax
    0x48, 0x89, 0x43, 0x08, // mov [rbx + 8], rax
    0x31, 0xc0, // xor eax, eax
    0x31, 0xd2, // xor edx, edx
    0xf0, 0x48, 0x0f, 0xc7, 0x4b, 0x10, // lock cmpxchg16b [rbx + 16]
    0xf4, // hlt
];
/// The address in the program, and what the swap leaves behind.
const UPPER_DATA: u64 = 0x80_0000_2000;
const WORD: u64 = 0x1122_3344_5566_7788;

/// Runs a few instructions in a small machine of its own.
pub(crate) fn runs_64_bit_guests(kvm: &Kvm) -> Result<(), MachineError> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])
        .map_err(|error| MachineError::Memory { size: MEMORY as u64, reason: error.to_string() })?;
    let write = |address: u64, bytes: &[u8]| {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(MachineError::guest_write("the probe's program"))
    };
    entry::write_page_tables(&memory, PAGE_TABLES)?;
    // The second half terabyte is the first one again.
    let second_level = PAGE_TABLES + 0x1000;
    write(PAGE_TABLES + 8, &(second_level | 0b11).to_le_bytes())?;
    write(CODE, &PROGRAM)?;
    write(DATA, &WORD.to_le_bytes())?;

    let vm = kvm.create_vm().map_err(MachineError::kvm("create a virtual machine"))?;
    let userspace_addr = memory
        .get_host_address(GuestAddress(0))
        .map_err(MachineError::guest_write("the probe's memory"))? as u64;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr,
    };
    // SAFETY: the range is the whole mapping of `memory`, which outlives `vm` and the vCPU, as this function returns
    // only after the thread with the vCPU has ended.
    unsafe { vm.set_user_memory_region(region) }.map_err(MachineError::kvm("give the guest its memory"))?;
    let vcpu = vm.create_vcpu(0).map_err(MachineError::kvm("create a vCPU"))?;

    let cpuid = cpuid::for_vcpu(kvm, 0, 1)?;
    vcpu.set_cpuid2(&cpuid).map_err(MachineError::kvm("set a vCPU's CPUID"))?;
    let outcome = set_up(&vcpu).and_then(|()| run_limited(vcpu));
    let word = |offset| memory.read_obj::<u64>(GuestAddress(DATA + offset)).unwrap_or(0);
    match outcome {
        Ok(()) if word(8) == WORD.swap_bytes() && word(16) == UPPER_DATA => Ok(()),
        Ok(()) => Err(MachineError::No64Bit("its result was wrong".to_owned())),
        Err(reason) => Err(MachineError::No64Bit(reason)),
    }
}

fn set_up(vcpu: &VcpuFd) -> Result<(), String> {
    let refused = |error: kvm_ioctls::Error| format!("it refuses long mode ({error})");
    let entry = Entry::Linux64(CODE);
    let mut sregs = vcpu.get_sregs().map_err(refused)?;
    entry::special_registers(&mut sregs, entry, PAGE_TABLES);
    vcpu.set_sregs(&sregs).map_err(refused)?;
    vcpu.set_regs(&entry::general_registers(entry)).map_err(refused)
}

/// Runs until the vCPU halts, on a thread that is kicked when time is up.
fn run_limited(mut vcpu: VcpuFd) -> Result<(), String> {
    vcpu::install_kick_handler().map_err(|error| error.to_string())?;
    let (done, outcome) = mpsc::channel();
    let runner = thread::Builder::new()
        .name("probe".to_owned())
        .spawn(move || {
            // SAFETY: the thread owns the vCPU, and drops its local values before what it captured.
            let _kickable = unsafe { vcpu::Kickable::enter(&mut vcpu) };
            let result = match vcpu.run() {
                Ok(VcpuExit::Hlt) => Ok(()),
                Ok(VcpuExit::Shutdown) => Err("it crashed".to_owned()),
                Ok(VcpuExit::InternalError) => {
                    Err("it emulates the processor, without instructions that kernels need".to_owned())
                }
                Ok(exit) => Err(format!("it ended with {exit:?}")),
                Err(error) => Err(format!("it does not start ({error})")),
            };
            // The receiver may have given up; it then has its answer.
            let _ = done.send(result);
        })
        .map_err(|error| error.to_string())?;
    let result = outcome.recv_timeout(TIME_LIMIT).unwrap_or_else(|_| Err("it never ended".to_owned()));
    while !runner.is_finished() {
        vcpu::kick(runner.as_pthread_t());
        thread::sleep(Duration::from_millis(1));
    }
    runner.join().map_err(|_| "it failed".to_owned())?;
    result
}
