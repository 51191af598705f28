//! The PCI bus of the machine: ports and addresses that lead to it, its interrupt lines, and doorbells that follow windows.

use std::fmt;
use std::sync::Arc;

use iovirt::core::frontend::RegionKind;
use iovirt::frontends::pci::{
    BarListener, BarMove, CONFIG_PORT, CONFIG_PORT_LEN, ECAM_LEN, HostBridge, PciBus, PciBusConfig,
};

use crate::bus::{Bus, BusDevice};
use crate::devices::wait_for;
use crate::error::MachineError;
use crate::layout::{PCI_ECAM, PCI_GSIS, PCI_MEMORY, PCI_PORTS};
use crate::vm::{Doorbells, Vm};

/// A bus with a host bridge, reached through `ports` and `mmio`.
pub(crate) fn bus(vm: &Vm, ports: &mut Bus, mmio: &mut Bus) -> Result<Arc<PciBus>, MachineError> {
    let bus = Arc::new(PciBus::new(PciBusConfig {
        memory: PCI_MEMORY,
        memory64: 0..0,
        ports: PCI_PORTS,
        lines: PCI_GSIS.map(|gsi| vm.level_line(gsi)),
    }));
    bus.set_listener(Arc::new(MovingDoorbells(vm.doorbells())));
    bus.add_anywhere(Arc::new(HostBridge::default())).map_err(MachineError::Pci)?;
    let way = |way| Arc::new(Way { bus: bus.clone(), way });
    ports.insert(CONFIG_PORT.into(), CONFIG_PORT_LEN, "pci configuration", way(To::ConfigPorts))?;
    ports.insert(PCI_PORTS.start, PCI_PORTS.end - PCI_PORTS.start, "pci ports", way(To::Ports))?;
    mmio.insert(PCI_ECAM, ECAM_LEN, "pci ecam", way(To::Ecam))?;
    mmio.insert(PCI_MEMORY.start, PCI_MEMORY.end - PCI_MEMORY.start, "pci memory", way(To::Memory))?;
    Ok(bus)
}

/// Which accesses a range of addresses stands for.
#[derive(Clone, Copy, Debug)]
enum To {
    ConfigPorts,
    Ecam,
    Memory,
    Ports,
}

/// A range of addresses that leads to the bus.
struct Way {
    bus: Arc<PciBus>,
    way: To,
}

impl BusDevice for Way {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.way {
            To::ConfigPorts => self.bus.read_config_port(offset, data),
            To::Ecam => self.bus.read_ecam(offset, data),
            To::Memory => self.bus.read(RegionKind::Mmio, PCI_MEMORY.start + offset, data),
            To::Ports => self.bus.read(RegionKind::Pio, PCI_PORTS.start + offset, data),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        wait_for(match self.way {
            To::ConfigPorts => self.bus.write_config_port(offset, data),
            To::Ecam => self.bus.write_ecam(offset, data),
            To::Memory => self.bus.write(RegionKind::Mmio, PCI_MEMORY.start + offset, data),
            To::Ports => self.bus.write(RegionKind::Pio, PCI_PORTS.start + offset, data),
        });
    }
}

/// Has ioeventfds follow the windows of functions, where the bus forwards them.
struct MovingDoorbells(Doorbells);

impl fmt::Debug for MovingDoorbells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MovingDoorbells")
    }
}

impl BarListener for MovingDoorbells {
    fn moved(&self, change: &BarMove) {
        let forwarded = |window: Option<u64>| {
            window.filter(|start| PCI_MEMORY.contains(start) && start + change.spec.size <= PCI_MEMORY.end)
        };
        for spec in change.function.doorbells().into_iter().filter(|spec| spec.region == change.region) {
            let event = spec.doorbell.event();
            if let Some(from) = forwarded(change.from) {
                self.0.disconnect(event, from + spec.offset);
            }
            if let Some(to) = forwarded(change.to) {
                self.0.connect(event, to + spec.offset);
            }
        }
    }
}
