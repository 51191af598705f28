//! What the machine has besides vCPUs, memory and the devices of descriptions.

use std::fmt;
use std::sync::Arc;

use iovirt::frontends::pci::PciBus;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::{SnapshotError, check_host};
use crate::power::PowerManagement;
use crate::rtc::{Rtc, RtcState};
use crate::serial::{SerialPort, SerialPortState};
use crate::vm::VmHandle;

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// The fixed devices of a machine.
pub(crate) struct Fixed {
    pub(crate) vm: VmHandle,
    pub(crate) serial: Arc<SerialPort>,
    pub(crate) rtc: Arc<Rtc>,
    pub(crate) power: Arc<PowerManagement>,
    pub(crate) pci: Option<Arc<PciBus>>,
}

impl fmt::Debug for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fixed")
    }
}

/// Their state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FixedState {
    chips: [Box<kvm_irqchip>; 3],
    pit: kvm_pit_state2,
    /// KVM's clock in nanoseconds.
    clock: u64,
    serial: SerialPortState,
    rtc: RtcState,
    power: u16,
    pci: Option<PciState>,
}

/// What the bus itself holds; its functions have states of their own.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct PciState {
    address: u32,
    bridge: Vec<u8>,
}

impl Fixed {
    /// The state, while no vCPU runs.
    pub(crate) fn save(&self) -> Result<FixedState, SnapshotError> {
        let fd = self.vm.fd();
        check_host(fd)?;
        let chip = |id: u32| -> Result<Box<kvm_irqchip>, SnapshotError> {
            let mut chip = Box::new(kvm_irqchip { chip_id: id, ..Default::default() });
            fd.get_irqchip(&mut chip).map_err(SnapshotError::kvm("read an interrupt controller"))?;
            Ok(chip)
        };
        let [master, slave, io_apic] = CHIPS;
        let clock = fd.get_clock().map_err(SnapshotError::kvm("read KVM's clock"))?;
        Ok(FixedState {
            chips: [chip(master)?, chip(slave)?, chip(io_apic)?],
            pit: fd.get_pit2().map_err(SnapshotError::kvm("read the timer"))?,
            clock: clock.clock,
            serial: self.serial.save(),
            rtc: self.rtc.save(),
            power: self.power.save(),
            pci: self.pci.as_deref().map(save_pci).transpose()?,
        })
    }

    /// Takes the state back, once every vCPU has its own. Devices that raise interrupts come later.
    pub(crate) fn restore(&self, state: &FixedState) -> Result<(), SnapshotError> {
        let fd = self.vm.fd();
        for (chip, id) in state.chips.iter().zip(CHIPS) {
            if chip.chip_id != id {
                return Err(SnapshotError::Content(
                    "an interrupt controller is not the one that it should be",
                ));
            }
            fd.set_irqchip(chip).map_err(SnapshotError::kvm("set an interrupt controller"))?;
        }
        fd.set_pit2(&state.pit).map_err(SnapshotError::kvm("set the timer"))?;
        self.serial.restore(&state.serial).map_err(SnapshotError::Content)?;
        self.rtc.restore(&state.rtc).map_err(SnapshotError::Content)?;
        self.power.restore(state.power);
        match (&self.pci, &state.pci) {
            (Some(bus), Some(state)) => restore_pci(bus, state)?,
            (None, None) => {}
            _ => return Err(SnapshotError::Content("only one of the two machines has a PCI bus")),
        }
        set_clock(fd, state.clock)
    }

    /// The bus looks again where the windows of its functions are, once these are restored.
    pub(crate) fn find_windows(&self) {
        if let Some(bus) = &self.pci {
            bus.refresh();
        }
    }
}

/// The guest's clock goes on from there: it stood still in between.
fn set_clock(fd: &VmFd, clock: u64) -> Result<(), SnapshotError> {
    let data = kvm_clock_data { clock, ..Default::default() };
    fd.set_clock(&data).map_err(SnapshotError::kvm("set KVM's clock"))
}

fn save_pci(bus: &PciBus) -> Result<PciState, SnapshotError> {
    let functions = bus.functions();
    let bridge = functions.first().ok_or(SnapshotError::Content("the PCI bus has no host bridge"))?;
    Ok(PciState { address: bus.config_address(), bridge: bridge.1.save().map_err(SnapshotError::Device)? })
}

fn restore_pci(bus: &PciBus, state: &PciState) -> Result<(), SnapshotError> {
    let functions = bus.functions();
    let bridge = functions.first().ok_or(SnapshotError::Content("the PCI bus has no host bridge"))?;
    bridge.1.restore(&state.bridge).map_err(SnapshotError::Device)?;
    bus.set_config_address(state.address);
    Ok(())
}
