//! The whole machine: built in two steps, so that devices can be put in between.
//!
//! ```text
//! let mut machine = Machine::new(memory_size, vcpus)?;
//! let slot = machine.slots.take()?;                                  // an address and an interrupt line
//! machine.mmio.insert(slot.address, layout::MMIO_LEN, "virtio-blk", device)?;
//! machine.vm.irqfd(&interrupt_event, slot.gsi)?;
//! machine.vm.queue_doorbell(&queue_event, slot, 0)?;                 // for each queue
//! let outcome = machine.run(&Begin::Boot(&source), || ())?;          // until the guest ends
//! ```

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use iovirt::frontends::pci::PciBus;
use kvm_ioctls::Kvm;

use crate::acpi::Hardware;
use crate::boot::{self, BootSource};
use crate::bus::Bus;
use crate::common::signals::EndingSignals;
use crate::control::{Control, Stop};
use crate::devices::Device;
use crate::entry::Entry;
use crate::error::MachineError;
use crate::exits::{EXIT_KINDS, ExitCounters, ExitReport, VcpuReport};
use crate::layout::{SERIAL_GSI, Slots};
use crate::pci;
use crate::power::{EXIT_PORT, ExitPort, I8042, I8042_PORT, PM_BASE, PM_LEN, PowerManagement};
use crate::probe;
use crate::rtc::{RTC_PORT, Rtc};
use crate::serial::{COM1_LEN, COM1_PORT, SerialPort};
use crate::snapshot::{Fixed, MsrNumbers, Snapshot};
use crate::terminal::RawTerminal;
use crate::vcpu::{self, RunningVcpu, Vcpu};
use crate::vm::{self, Vm};

/// How long a vCPU gets to notice a kick before the next one.
const KICK_INTERVAL: Duration = Duration::from_millis(2);

/// A machine under construction.
pub(crate) struct Machine {
    pub(crate) vm: Vm,
    pub(crate) ports: Bus,
    pub(crate) mmio: Bus,
    pub(crate) slots: Slots,
    pub(crate) control: Arc<Control>,
    /// Made with the first device on it: a guest without one does not look for a bus.
    pci: Option<Arc<PciBus>>,
    serial: Arc<SerialPort>,
    rtc: Arc<Rtc>,
    power: Arc<PowerManagement>,
    signals: EndingSignals,
    /// Those of each processor.
    pub(crate) exit_counters: Vec<Arc<ExitCounters>>,
}

/// How it went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) stop: Stop,
    /// From the first instruction to the end.
    pub(crate) ran: Duration,
    pub(crate) exits: ExitReport,
}

impl Machine {
    /// A machine with its fixed devices: serial port, clock, and the ways to end.
    pub(crate) fn new(memory_size: u64, vcpus: u32) -> Result<Self, MachineError> {
        let kvm = vm::open_kvm()?;
        probe::runs_64_bit_guests(&kvm)?;
        Self::on(kvm, memory_size, vcpus)
    }

    /// The same with one processor, also on a KVM that runs 32-bit code without paging only.
    pub(crate) fn for_own_code(memory_size: u64) -> Result<Self, MachineError> {
        Self::on(vm::open_kvm()?, memory_size, 1)
    }

    /// A machine on a KVM that can run it.
    fn on(kvm: Kvm, memory_size: u64, vcpus: u32) -> Result<Self, MachineError> {
        // Every thread that starts from here on inherits this, workers of devices too, so that the signals reach the
        // one that waits for them, and the terminal is restored.
        let signals = EndingSignals::block().map_err(MachineError::host("watch for signals"))?;
        let vm = Vm::new(kvm, memory_size)?;
        let limit = vm.vcpu_limit();
        if vcpus == 0 || vcpus > limit {
            return Err(MachineError::VcpuCount { asked: vcpus, limit });
        }
        let control = Arc::new(Control::new().map_err(MachineError::host("create the stop event"))?);
        let line = vm.interrupt_line(SERIAL_GSI)?;
        let serial = SerialPort::new(line, Box::new(io::stdout()))
            .map_err(MachineError::host("create the serial port"))?;
        let serial = Arc::new(serial);
        let (rtc, power) = (Arc::new(Rtc::new()), Arc::new(PowerManagement::new(Arc::clone(&control))));
        let mut ports = Bus::default();
        ports.insert(u64::from(COM1_PORT), COM1_LEN, "serial", Arc::clone(&serial) as _)?;
        ports.insert(u64::from(RTC_PORT), 2, "rtc", Arc::clone(&rtc) as _)?;
        ports.insert(u64::from(I8042_PORT), 1, "i8042", Arc::new(I8042(Arc::clone(&control))))?;
        ports.insert(u64::from(EXIT_PORT), 1, "exit", Arc::new(ExitPort(Arc::clone(&control))))?;
        ports.insert(u64::from(PM_BASE), PM_LEN, "acpi", Arc::clone(&power) as _)?;
        let (mmio, slots) = (Bus::default(), Slots::default());
        let exit_counters = (0..vcpus).map(|_| Arc::default()).collect();
        Ok(Self { vm, ports, mmio, slots, control, pci: None, serial, rtc, power, signals, exit_counters })
    }

    /// The PCI bus.
    pub(crate) fn pci(&mut self) -> Result<Arc<PciBus>, MachineError> {
        if let Some(bus) = &self.pci {
            return Ok(bus.clone());
        }
        let bus = pci::bus(&self.vm, &mut self.ports, &mut self.mmio)?;
        self.pci = Some(bus.clone());
        Ok(bus)
    }

    /// What the machine has besides vCPUs and the devices of descriptions, for whoever saves or restores it.
    pub(crate) fn fixed(&self) -> Fixed {
        let (serial, rtc, power) = (self.serial.clone(), self.rtc.clone(), self.power.clone());
        Fixed { vm: self.vm.handle(), serial, rtc, power, pci: self.pci.clone() }
    }

    /// Boots, or goes on where another process stopped, and runs until the guest, the user or a signal ends it. `running` is
    /// called once the guest runs.
    pub(crate) fn run(self, begin: &Begin<'_>, running: impl FnOnce()) -> Result<Outcome, MachineError> {
        let memory = self.vm.memory();
        let start = match begin {
            Begin::Boot(source) => {
                let (vcpus, slots) = (self.exit_counters.len() as u8, self.slots.taken());
                let hardware = Hardware { vcpus, slots, pci: self.pci.is_some() };
                Start::At(boot::load(memory, self.vm.memory_size(), source, &hardware)?)
            }
            Begin::Restore(snapshot, devices) => {
                snapshot.load(memory)?;
                Start::Restored(snapshot, devices, self.fixed())
            }
        };
        let terminal = RawTerminal::enter().map_err(MachineError::host("switch the terminal to raw mode"))?;
        let serial = Arc::clone(&self.serial);
        let console = serial
            .serve(libc::STDIN_FILENO, terminal.is_some(), Arc::clone(&self.control))
            .map_err(MachineError::host("start the console's thread"))?;
        let control = Arc::clone(&self.control);
        let outcome = self.execute(&start, |signals| {
            running();
            wait_for_end(signals, &control, None);
        });
        control.stop(Stop::Quit);
        // It waits for the control's event, so it has ended or is about to.
        let _ = console.join();
        serial.flush();
        drop(terminal);
        outcome
    }

    /// Runs what is in memory, from `entry` until it ends, which must be within `limit`. It has no console.
    pub(crate) fn run_code(self, entry: Entry, limit: Duration) -> Result<Outcome, MachineError> {
        let control = Arc::clone(&self.control);
        self.execute(&Start::At(entry), |signals| wait_for_end(signals, &control, Some(limit)))
    }

    /// Runs what is in memory, from `start` until `wait` returns, which it does when the machine is to stop.
    fn execute(self, start: &Start<'_>, wait: impl FnOnce(&EndingSignals)) -> Result<Outcome, MachineError> {
        let Self { vm, ports, mmio, control, signals, exit_counters, .. } = self;
        let processors = start.processors(&vm, &exit_counters)?;
        let registers = MsrNumbers::of(vm.kvm())?;
        let (ports, mmio) = (Arc::new(ports), Arc::new(mmio));
        vcpu::install_kick_handler().map_err(MachineError::host("set up a signal"))?;
        let started = Instant::now();
        control.gate.expect(processors.len());
        let mut running = Vec::new();
        let mut failure = None;
        for processor in processors {
            match processor.start(
                registers.clone(),
                Arc::clone(&ports),
                Arc::clone(&mmio),
                Arc::clone(&control),
            ) {
                Ok(vcpu) => running.push(vcpu),
                Err(error) => {
                    control.stop(Stop::Failed(error.to_string()));
                    failure = Some(error);
                    break;
                }
            }
        }
        wait(&signals);
        let vcpus = running.into_iter().map(join).collect();
        let ran = started.elapsed();
        if let Some(error) = failure {
            return Err(error);
        }
        let stop = control.cause().unwrap_or(Stop::Quit);
        let vm_stats = vm.stats().map(|stats| stats.read()).unwrap_or_default();
        let exits = ExitReport { vcpus, vm: vm_stats, ports: ports.exits(), mmio: mmio.exits() };
        Ok(Outcome { stop, ran, exits })
    }
}

/// How a machine begins.
pub(crate) enum Begin<'a> {
    /// With a kernel.
    Boot(&'a BootSource),
    /// Where it was saved, with these devices.
    Restore(&'a Snapshot, &'a [Device]),
}

/// How its processors begin, once memory is filled.
enum Start<'a> {
    At(Entry),
    Restored(&'a Snapshot, &'a [Device], Fixed),
}

impl Start<'_> {
    fn processors(&self, vm: &Vm, counters: &[Arc<ExitCounters>]) -> Result<Vec<Vcpu>, MachineError> {
        match self {
            Self::At(entry) => {
                (0..).zip(counters).map(|(index, _)| Vcpu::new(vm, index, counters, *entry)).collect()
            }
            Self::Restored(snapshot, devices, fixed) => {
                let restored = (0..).zip(snapshot.vcpus()).zip(counters);
                let restored = restored.map(|((index, saved), _)| Vcpu::restored(vm, index, counters, saved));
                let processors = restored.collect::<Result<Vec<_>, _>>()?;
                snapshot.restore(fixed, devices)?;
                Ok(processors)
            }
        }
    }
}

/// Kicks a vCPU until its thread ends, and reads its counters.
fn join(vcpu: RunningVcpu) -> VcpuReport {
    while !vcpu.thread.is_finished() {
        vcpu::kick(vcpu.thread.as_pthread_t());
        thread::sleep(KICK_INTERVAL);
    }
    // A panic was caught and has become the cause of the stop.
    let _ = vcpu.thread.join();
    VcpuReport {
        exits: EXIT_KINDS.iter().map(|(kind, name)| (*name, vcpu.counters.get(*kind))).collect(),
        kvm: vcpu.stats.map(|stats| stats.read()).unwrap_or_default(),
    }
}

/// Returns when the machine is to stop; a signal makes it stop, and so does the end of the time, where it is limited.
fn wait_for_end(signals: &EndingSignals, control: &Control, limit: Option<Duration>) {
    let started = Instant::now();
    while !control.stopping() {
        let left = limit.map(|limit| limit.saturating_sub(started.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            control.stop(Stop::Failed("the guest took too long, and was stopped".to_owned()));
            return;
        }
        if let Some(signal) = signals.wait(control, left) {
            control.stop(Stop::Signal(signal));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::bus::BusDevice;
    use crate::entry;
    use crate::layout::MMIO_LEN;
    use crate::snapshot::Saver;

    /// Remembers what was written, and answers with a constant.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, _offset: u64, data: &mut [u8]) {
            data.fill(0x5a);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    /// In 32-bit mode without paging, which every KVM runs.
    const PROGRAM: [u8; 58] = [
        0xbb, 0x50, 0x00, 0x00, 0xd0, // mov ebx, 0xd0000050
        0xc7, 0x03, 0x01, 0x00, 0x00, 0x00, // mov dword [ebx], 1: the doorbell of queue 1
        0xc7, 0x03, 0x02, 0x00, 0x00, 0x00, // mov dword [ebx], 2: a queue without one
        0xbe, 0x00, 0x20, 0x00, 0x00, // mov esi, 0x2000
        0xb9, 0x02, 0x00, 0x00, 0x00, // mov ecx, 2
        0x66, 0xba, 0x00, 0x05, // mov dx, 0x500
        0xf3, 0x66, 0x6f, // rep outsw
        0x8b, 0x43, 0x04, // mov eax, [ebx + 4]
        0xef, // out dx, eax
        0x8b, 0x83, 0x00, 0x10, 0x00, 0x00, // mov eax, [ebx + 0x1000]: nobody's address
        0xef, // out dx, eax
        0xb0, 0x2a, // mov al, 42
        0xe6, 0xf4, // out 0xf4, al
        0xf4, // hlt
        0xeb, 0xfd, // jmp to the hlt
        0x90, 0x90, 0x90, 0x90, 0x90, 0x90, // nop
    ];

    #[test]
    fn a_guest_reaches_devices_and_doorbells() {
        let Ok(kvm) = vm::open_kvm() else {
            eprintln!("skipped: no KVM here");
            return;
        };
        let mut machine = Machine::on(kvm, 32 << 20, 2).unwrap();
        let (mmio, port) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        let slot = machine.slots.take().unwrap();
        machine.mmio.insert(slot.address, MMIO_LEN, "recorder", Arc::clone(&mmio) as _).unwrap();
        machine.ports.insert(0x500, 4, "recorder", Arc::clone(&port) as _).unwrap();
        let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
        machine.vm.queue_doorbell(&doorbell, slot, 1).unwrap();
        let memory = machine.vm.memory().clone();
        memory.write_slice(&PROGRAM, GuestAddress(0x1000)).unwrap();
        memory.write_slice(&[1, 2, 3, 4], GuestAddress(0x2000)).unwrap();
        let entry = Entry::Pvh(0x1000);
        entry::write_tables(&memory, entry).unwrap();

        let control = Arc::clone(&machine.control);
        let outcome = machine
            .execute(&Start::At(entry), |_| {
                let deadline = Instant::now() + Duration::from_secs(20);
                while !control.stopping() {
                    assert!(Instant::now() < deadline, "the guest hangs");
                    thread::sleep(Duration::from_millis(1));
                }
            })
            .unwrap();
        assert_eq!(outcome.stop, Stop::ExitPort(42));
        assert_eq!(doorbell.read().unwrap(), 1);
        assert_eq!(*mmio.0.lock().unwrap(), [(0x50, vec![2, 0, 0, 0])]);
        let words = [vec![1, 2], vec![3, 4], vec![0x5a; 4], vec![0xff; 4]].map(|word| (0, word));
        assert_eq!(*port.0.lock().unwrap(), words);
        assert_eq!(outcome.exits.total("mmio-write"), 1);
        assert_eq!(outcome.exits.total("mmio-read"), 2);
        let window = &outcome.exits.mmio[0];
        assert_eq!((window.reads, window.writes), (1, 1));
    }

    /// Takes a number from port 0x500 and counts at 0x3000, and tells both at that port, for ever.
    const COUNTER: [u8; 20] = [
        0x66, 0xba, 0x00, 0x05, // mov dx, 0x500
        0xed, // in eax, dx
        0xff, 0x05, 0x00, 0x30, 0x00, 0x00, // inc dword [0x3000]
        0xef, // out dx, eax
        0xa1, 0x00, 0x30, 0x00, 0x00, // mov eax, [0x3000]
        0xef, // out dx, eax
        0xeb, 0xf0, // jmp to the in
    ];

    /// Gives each number once, and remembers what it was told.
    #[derive(Default)]
    struct Numbers(Mutex<(u32, Vec<u32>)>);

    impl BusDevice for Numbers {
        fn read(&self, _: u64, data: &mut [u8]) {
            let mut state = self.0.lock().unwrap();
            state.0 += 1;
            data.copy_from_slice(&state.0.to_le_bytes());
        }

        fn write(&self, _: u64, data: &[u8]) {
            self.0.lock().unwrap().1.push(u32::from_le_bytes(data.try_into().unwrap()));
        }
    }

    impl Numbers {
        fn told(&self) -> usize {
            self.0.lock().unwrap().1.len()
        }
    }

    fn wait_for_more(port: &Numbers, than: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while port.told() <= than {
            assert!(Instant::now() < deadline, "the guest hangs");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Saved and restored again and again, each time in a machine of its own: no number is missing, none comes twice.
    #[test]
    fn a_guest_goes_on_in_another_machine() {
        if vm::open_kvm().is_err() {
            eprintln!("skipped: no KVM here");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let port = Arc::new(Numbers::default());
        let mut clock = 0;
        for generation in 0..20 {
            let mut machine = Machine::on(vm::open_kvm().unwrap(), 32 << 20, 1).unwrap();
            machine.ports.insert(0x500, 4, "numbers", Arc::clone(&port) as _).unwrap();
            let (control, devices) = (Arc::clone(&machine.control), Arc::new(Vec::new()));
            let saver = Saver { fixed: machine.fixed(), devices, control: Arc::clone(&control) };
            let before = port.told();
            let snapshot;
            let start = if generation == 0 {
                let (memory, entry) = (machine.vm.memory(), Entry::Pvh(0x1000));
                memory.write_slice(&COUNTER, GuestAddress(0x1000)).unwrap();
                entry::write_tables(memory, entry).unwrap();
                Start::At(entry)
            } else {
                snapshot = Snapshot::open(&folder.path().join((generation - 1).to_string())).unwrap();
                assert_eq!((snapshot.memory_size(), snapshot.vcpu_count()), (32 << 20, 1));
                snapshot.check_places(&[]).unwrap();
                snapshot.load(machine.vm.memory()).unwrap();
                Start::Restored(&snapshot, &[], machine.fixed())
            };
            let outcome = machine.execute(&start, |_| {
                wait_for_more(&port, before + 100);
                control.gate.close(Duration::from_secs(20), vcpu::kick).unwrap();
                let now = saver.fixed.vm.fd().get_clock().unwrap().clock;
                assert!(now > clock, "KVM's clock went back from {clock} to {now}");
                clock = now;
                saver.save(&folder.path().join(generation.to_string())).unwrap();
                control.stop(Stop::Saved);
            });
            assert_eq!(outcome.unwrap().stop, Stop::Saved);
        }
        let told = &port.0.lock().unwrap().1;
        let expected = (1..).flat_map(|number| [number, number]).take(told.len());
        assert!(told.iter().copied().eq(expected), "a number is missing or came twice");
    }
}
