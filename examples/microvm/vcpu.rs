//! Virtual processors: what they are told about themselves, and the loop that runs them.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use iovirt::core::state::SavedState;
use kvm_bindings::{CpuId, Msrs, kvm_fpu, kvm_msr_entry, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::Bus;
use crate::control::{Control, Stop};
use crate::cpuid;
use crate::entry::{self, Entry};
use crate::error::MachineError;
use crate::exits::{ExitCounters, ExitKind, StatsFd};
use crate::layout::PAGE_TABLES;
use crate::snapshot::{MsrNumbers, VcpuState, check_host};
use crate::vm::Vm;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Local APIC registers, and what they hold on a PC: line 0 takes interrupts of the old controller, line 1 the NMI.
const LAPIC_LINT0: usize = 0x350;
const LAPIC_LINT1: usize = 0x360;
const DELIVERY_EXTINT: u32 = 0x700;
const DELIVERY_NMI: u32 = 0x400;

/// The state of the floating-point unit after `finit`, and all of SSE's exceptions masked.
const FPU_CONTROL: u16 = 0x37f;
const SSE_CONTROL: u32 = 0x1f80;

/// One virtual processor, set up and not yet running.
pub(crate) struct Vcpu {
    index: u32,
    fd: VcpuFd,
    /// What it was told about itself.
    cpuid: CpuId,
    counters: Arc<ExitCounters>,
    stats: Option<StatsFd>,
}

/// A processor's thread.
pub(crate) struct RunningVcpu {
    pub(crate) thread: JoinHandle<()>,
    pub(crate) counters: Arc<ExitCounters>,
    pub(crate) stats: Option<StatsFd>,
}

impl Vcpu {
    /// Processor `index` of as many as there are counters. The first one starts at `entry`, the others wait for the first to start them.
    pub(crate) fn new(
        vm: &Vm,
        index: u32,
        counters: &[Arc<ExitCounters>],
        entry: Entry,
    ) -> Result<Self, MachineError> {
        let fd = vm.fd().create_vcpu(u64::from(index)).map_err(MachineError::kvm("create a vCPU"))?;
        let cpuid = cpuid::for_vcpu(vm.kvm(), index, counters.len() as u32)?;
        fd.set_cpuid2(&cpuid).map_err(MachineError::kvm("set a vCPU's CPUID"))?;
        set_msrs(&fd)?;
        set_lapic(&fd).map_err(MachineError::kvm("set a vCPU's local APIC"))?;
        let fpu = kvm_fpu { fcw: FPU_CONTROL, mxcsr: SSE_CONTROL, ..Default::default() };
        fd.set_fpu(&fpu).map_err(MachineError::kvm("set a vCPU's floating-point state"))?;
        if index == 0 {
            let mut sregs = fd.get_sregs().map_err(MachineError::kvm("read a vCPU's registers"))?;
            entry::special_registers(&mut sregs, entry, PAGE_TABLES);
            fd.set_sregs(&sregs).map_err(MachineError::kvm("set a vCPU's special registers"))?;
            fd.set_regs(&entry::general_registers(entry))
                .map_err(MachineError::kvm("set a vCPU's registers"))?;
        }
        let stats = StatsFd::open(&fd);
        Ok(Self { index, fd, cpuid, counters: counters[index as usize].clone(), stats })
    }

    /// Processor `index` of as many as there are counters, as it was saved.
    pub(crate) fn restored(
        vm: &Vm,
        index: u32,
        counters: &[Arc<ExitCounters>],
        saved: &VcpuState,
    ) -> Result<Self, MachineError> {
        let count = counters.len() as u32;
        let fd = vm.fd().create_vcpu(u64::from(index)).map_err(MachineError::kvm("create a vCPU"))?;
        check_host(vm.fd())?;
        let supported = cpuid::for_vcpu(vm.kvm(), index, count)?;
        let cpuid = saved.cpuid(&supported)?;
        fd.set_cpuid2(&cpuid).map_err(MachineError::kvm("set a vCPU's CPUID"))?;
        saved.write(&fd)?;
        let stats = StatsFd::open(&fd);
        Ok(Self { index, fd, cpuid, counters: counters[index as usize].clone(), stats })
    }

    /// Runs until the machine stops, on a thread of its own; `registers` are those to be saved.
    pub(crate) fn start(
        mut self,
        registers: MsrNumbers,
        ports: Arc<Bus>,
        mmio: Arc<Bus>,
        control: Arc<Control>,
    ) -> Result<RunningVcpu, MachineError> {
        let counters = Arc::clone(&self.counters);
        let stats = self.stats.take();
        let thread = thread::Builder::new()
            .name(format!("vcpu{}", self.index))
            .spawn(move || {
                let run = AssertUnwindSafe(|| self.run(&ports, &mmio, &control, &registers));
                if catch_unwind(run).is_err() {
                    // The panic hook has told the details.
                    control.stop(Stop::Failed("the thread of a vCPU panicked".to_owned()));
                }
            })
            .map_err(MachineError::host("start the thread of a vCPU"))?;
        Ok(RunningVcpu { thread, counters, stats })
    }

    fn run(&mut self, ports: &Bus, mmio: &Bus, control: &Control, registers: &MsrNumbers) {
        // SAFETY: the value lives as long as this call at most, and `self` longer.
        let kickable = unsafe { Kickable::enter(&mut self.fd) };
        let run = kickable.run;
        let seat = control.gate.enter(self.index);
        while !control.stopping() {
            if control.gate.is_closed() {
                // An access that a device has answered is finished, and then the guest is not entered.
                self.fd.set_kvm_immediate_exit(1);
            }
            let kind = match self.fd.run() {
                Ok(VcpuExit::IoIn(port, data)) => {
                    // SAFETY: the exit is one of port I/O, so that the kernel filled this member of the union; no
                    // reference to this part of the page exists, as `data` lies behind it.
                    let size = unsafe { (*run).__bindgen_anon_1.io.size };
                    for element in data.chunks_mut(usize::from(size).max(1)) {
                        ports.read(u64::from(port), element);
                    }
                    ExitKind::PortRead
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    // SAFETY: as above.
                    let size = unsafe { (*run).__bindgen_anon_1.io.size };
                    for element in data.chunks(usize::from(size).max(1)) {
                        ports.write(u64::from(port), element);
                    }
                    ExitKind::PortWrite
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    mmio.read(address, data);
                    ExitKind::MmioRead
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    mmio.write(address, data);
                    ExitKind::MmioWrite
                }
                Ok(VcpuExit::Hlt) => ExitKind::Halt,
                Ok(VcpuExit::Intr) => ExitKind::Interrupted,
                Ok(VcpuExit::Shutdown) => {
                    control.stop(Stop::TripleFault);
                    ExitKind::Shutdown
                }
                Ok(VcpuExit::SystemEvent(event, _)) => {
                    control.stop(system_event(event));
                    ExitKind::SystemEvent
                }
                Ok(VcpuExit::InternalError) => {
                    // SAFETY: the exit is an internal error, so that the kernel filled this member of the union.
                    let error = unsafe { (*run).__bindgen_anon_1.internal };
                    control.stop(self.failed(&internal_error(error.suberror, error.ndata, &error.data)));
                    ExitKind::Error
                }
                Ok(VcpuExit::FailEntry(reason, _)) => {
                    control.stop(
                        self.failed(&format!("KVM cannot enter the guest, hardware reason {reason:#x}")),
                    );
                    ExitKind::Error
                }
                Ok(exit) => {
                    let what = format!("unexpected exit {exit:?}");
                    control.stop(self.failed(&what));
                    ExitKind::Other
                }
                Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {
                    self.fd.set_kvm_immediate_exit(0);
                    if control.gate.is_closed() {
                        let tell = || {
                            VcpuState::read(&self.fd, &self.cpuid, registers).map(|state| state.to_envelope())
                        };
                        seat.wait(|| control.stopping(), || tell().map_err(|error| error.to_string()));
                        // A guest that knows KVM's clock takes the pause for what it is; others get no word.
                        let _ = self.fd.kvmclock_ctrl();
                    }
                    ExitKind::Interrupted
                }
                Err(error) => {
                    control.stop(self.failed(&format!("KVM_RUN: {error}")));
                    ExitKind::Error
                }
            };
            self.counters.count(kind);
        }
    }

    /// A vCPU that cannot go on, and where it stood.
    fn failed(&self, what: &str) -> Stop {
        let at = self.fd.get_regs().map(|regs| format!(" at {:#x}", regs.rip)).unwrap_or_default();
        Stop::Failed(format!("vCPU {} failed{at}: {what}", self.index))
    }
}

/// Names KVM's internal error; for an instruction that it could not emulate, with the bytes of the instruction.
fn internal_error(suberror: u32, count: u32, data: &[u64]) -> String {
    if suberror != kvm_bindings::KVM_INTERNAL_ERROR_EMULATION {
        return format!("KVM's internal error {suberror}");
    }
    // The data are flags, and if the first of them is set, a byte with the length and 15 bytes of code.
    let code: Vec<u8> = match data {
        [flags, code @ ..] if count >= 3 && flags & 1 == 1 => {
            code.iter().take(2).flat_map(|word| word.to_le_bytes()).collect()
        }
        _ => Vec::new(),
    };
    let code = code.split_first().map(|(len, code)| &code[..code.len().min(usize::from(*len))]);
    match code {
        Some(code) => format!("KVM cannot emulate the instruction {code:02x?}"),
        None => "KVM cannot emulate the instruction there".to_owned(),
    }
}

fn system_event(event: u32) -> Stop {
    match event {
        kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Stop::PowerOff,
        kvm_bindings::KVM_SYSTEM_EVENT_RESET => Stop::Reset,
        _ => Stop::Failed(format!("the guest ended with system event {event}")),
    }
}

fn set_msrs(fd: &VcpuFd) -> Result<(), MachineError> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [
        entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEFAULT_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    let what = "set a vCPU's model-specific registers";
    let msrs = Msrs::from_entries(&entries)
        .map_err(|error| MachineError::Host { what, source: io::Error::other(format!("{error:?}")) })?;
    match fd.set_msrs(&msrs).map_err(MachineError::kvm(what))? {
        set if set == entries.len() => Ok(()),
        set => {
            let source = io::Error::other(format!("KVM refuses register {:#x}", entries[set].index));
            Err(MachineError::Kvm { what, source })
        }
    }
}

fn set_lapic(fd: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut lapic = fd.get_lapic()?;
    for (register, mode) in [(LAPIC_LINT0, DELIVERY_EXTINT), (LAPIC_LINT1, DELIVERY_NMI)] {
        for (byte, value) in lapic.regs[register..register + 4].iter_mut().zip(mode.to_le_bytes()) {
            *byte = value as std::os::raw::c_char;
        }
    }
    fd.set_lapic(&lapic)
}

thread_local! {
    /// The shared page of the vCPU that this thread runs, for the signal handler.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(std::ptr::null_mut()) };
}

/// While this lives, a kick makes this thread leave `KVM_RUN`, or not enter it.
pub(crate) struct Kickable {
    run: *mut kvm_run,
}

impl Kickable {
    /// Registers the vCPU that this thread is about to run.
    ///
    /// # Safety
    ///
    /// The vCPU stays alive until the value is dropped, and the value stays on this thread.
    pub(crate) unsafe fn enter(fd: &mut VcpuFd) -> Self {
        let run: *mut kvm_run = fd.get_kvm_run();
        RUN.set(run);
        Self { run }
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        RUN.set(std::ptr::null_mut());
    }
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Makes the kick signal harmless to threads that run no vCPU. To be called before the first kick.
pub(crate) fn install_kick_handler() -> io::Result<()> {
    extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // A thread that is ending has no such variable any more, and nothing to interrupt.
        let run = RUN.try_with(Cell::get).unwrap_or(std::ptr::null_mut());
        if !run.is_null() {
            // SAFETY: the pointer is to the vCPU's shared page, which stays mapped while it is in RUN; the handler
            // runs on the thread that owns the vCPU. The flag is a byte that kernel and process may change at any
            // time.
            unsafe { (&raw mut (*run).immediate_exit).write_volatile(1) };
        }
    }
    vmm_sys_util::signal::register_signal_handler(kick_signal(), on_kick)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// Makes a thread leave `KVM_RUN`. The thread must not have been joined.
pub(crate) fn kick(thread: libc::pthread_t) {
    // SAFETY: a pthread_t stays valid until the thread is joined, which the caller has not done; the signal has a
    // handler.
    unsafe { libc::pthread_kill(thread, kick_signal()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_errors_are_named() {
        let code = u64::from_le_bytes([3, 0xf0, 0x48, 0x0f, 0, 0, 0, 0]);
        assert_eq!(internal_error(1, 3, &[1, code, 0]), "KVM cannot emulate the instruction [f0, 48, 0f]");
        assert_eq!(internal_error(1, 3, &[0, code, 0]), "KVM cannot emulate the instruction there");
        assert_eq!(internal_error(1, 3, &[1, 0xff, 0]).matches("00").count(), 15);
        assert_eq!(internal_error(4, 0, &[]), "KVM's internal error 4");
    }
}
