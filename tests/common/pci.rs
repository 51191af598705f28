//! A virtio-pci function on a bus, driven as if it were virtio-mmio.

use iovirt_core::dma::DmaSpace;
use iovirt_core::frontend::Access;
use iovirt_core::irq::{CountingInterrupt, InterruptLine};
use iovirt_core::test_utils::mmio_over_pci::{Messages, MmioOverPci, PciConfigAccess};
use iovirt_core::{Frontend, WorkerHandle};
use iovirt_frontends::pci::{HostBridge, PciAddress, PciBus, PciBusConfig};
use iovirt_frontends::virtio::VirtioDevice;
use iovirt_frontends::virtio::transport::pci::PciDevice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a function reaches its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupts {
    Messages,
    Pin,
}

/// Counts how often a line was raised.
#[derive(Debug, Default)]
pub(crate) struct Line {
    raised: AtomicU64,
}

impl InterruptLine for Line {
    fn assert(&self) {
        self.raised.fetch_add(1, Ordering::SeqCst);
    }
    fn deassert(&self) {}
}

/// A bus with a host bridge and lines that only count.
pub(crate) fn bus() -> (Arc<PciBus>, [Arc<Line>; 4]) {
    let lines: [Arc<Line>; 4] = Default::default();
    let config = PciBusConfig {
        memory: 0xc000_0000..0xd000_0000,
        memory64: 0..0,
        ports: 0..0,
        lines: lines.clone().map(|line| line as Arc<dyn InterruptLine>),
    };
    let bus = Arc::new(PciBus::new(config));
    bus.add(PciAddress::new(0, 0).unwrap(), Arc::new(HostBridge::default())).unwrap();
    (bus, lines)
}

/// The configuration space by way of the two ports.
pub(crate) struct ByPorts {
    pub(crate) bus: Arc<PciBus>,
    pub(crate) address: PciAddress,
}

impl ByPorts {
    fn select(&self, offset: u16) {
        let place = u32::from(self.address.device()) << 11 | u32::from(self.address.function()) << 8;
        let word = 1 << 31 | place | u32::from(offset & 0xfc);
        let _ = self.bus.write_config_port(0, &word.to_le_bytes());
    }
}

impl PciConfigAccess for ByPorts {
    fn read(&self, offset: u16, data: &mut [u8]) {
        self.select(offset);
        self.bus.read_config_port(4 + u64::from(offset & 3), data);
    }

    fn write(&self, offset: u16, data: &[u8]) -> Access {
        self.select(offset);
        self.bus.write_config_port(4 + u64::from(offset & 3), data)
    }
}

/// A function on a bus of its own, and what counts its interrupts.
pub(crate) struct Plugged {
    pub(crate) function: Arc<PciDevice>,
    pub(crate) bus: Arc<PciBus>,
    pub(crate) address: PciAddress,
    pub(crate) interrupts: Arc<CountingInterrupt>,
    pub(crate) line: Arc<Line>,
    messages: Arc<Messages>,
}

impl Plugged {
    pub(crate) fn new(device: Arc<dyn VirtioDevice>, space: &DmaSpace, workers: &[WorkerHandle]) -> Self {
        let interrupts = Arc::new(CountingInterrupt::new());
        let messages = Messages::new(interrupts.clone());
        let function = Arc::new(PciDevice::new(device, space, messages.clone(), workers).expect("a device"));
        let (bus, lines) = bus();
        let address = bus.add_anywhere(function.clone()).expect("a free place");
        let line = lines[usize::from(address.device()) % 4].clone();
        Self { function, bus, address, interrupts, line, messages }
    }

    /// The configuration space.
    pub(crate) fn config(&self) -> ByPorts {
        ByPorts { bus: self.bus.clone(), address: self.address }
    }

    /// The same device for drivers of virtio-mmio.
    pub(crate) fn as_mmio(&self, interrupts: Interrupts) -> Arc<dyn Frontend> {
        let messages = (interrupts == Interrupts::Messages).then(|| self.messages.clone());
        Arc::new(MmioOverPci::new(self.function.clone(), self.config(), messages))
    }

    /// How often the driver was interrupted, by either way.
    pub(crate) fn raised(&self) -> u64 {
        self.interrupts.raised() + self.line.raised.load(Ordering::SeqCst)
    }
}
