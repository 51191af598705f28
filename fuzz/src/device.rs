//! Virtio devices, each driven by a worker of this thread.

use iovirt::registry::Registry;
use iovirt_core::dma::DmaSpace;
use iovirt_core::frontend::{Access, Frontend};
use iovirt_core::irq::{CountingInterrupt, InterruptLine};
use iovirt_core::test_utils::hostile::{Layout, Target};
use iovirt_core::test_utils::mmio_over_pci::{Messages, MmioOverPci, PciConfigAccess};
use iovirt_core::worker::UringPolicy;
use iovirt_core::{Worker, WorkerConfig};
use iovirt_frontends::pci::{HostBridge, PciAddress, PciBus, PciBusConfig, PciFunction};
use iovirt_frontends::virtio::transport::mmio::MmioDevice;
use iovirt_frontends::virtio::transport::pci::PciDevice;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// Where the guest's memory begins.
pub const BASE: u64 = 0x1_0000;

/// A disk of 64 KiB with two queues of 64.
pub const DISK: &str = "virtio-blk,queues=2,queue-size=64 -> memory,size=64K";

/// A card with two pairs of queues of 64, on a network on which every frame comes back.
pub const CARD: &str = "virtio-net,mac=52:54:00:12:34:56,queues=2,queue-size=64 -> loopback";

/// A fresh disk, with fresh guest memory unless some is given.
///
/// # Panics
/// Where the host has no memory or descriptor left.
pub fn disk(space: Option<DmaSpace>) -> Target {
    device(DISK, 0, space)
}

/// A fresh card, of which the driver uses that queue first.
///
/// # Panics
/// As [`disk`].
pub fn card(queue: u32, space: Option<DmaSpace>) -> Target {
    device(CARD, queue, space)
}

fn device(description: &str, queue: u32, space: Option<DmaSpace>) -> Target {
    let worker = worker();
    let space = space.unwrap_or_else(memory);
    let description = description.parse().expect("a description");
    let device = Registry::standard().build_virtio(&description).expect("a device");
    let interrupt = Arc::new(CountingInterrupt::new());
    let handle = worker.borrow().handle();
    let frontend: Arc<dyn Frontend> =
        Arc::new(MmioDevice::new(device, &space, interrupt, &[handle]).expect("a transport"));
    Target {
        frontend,
        space,
        base: BASE,
        queue,
        step: Box::new(move || worker.borrow_mut().run().expect("a step")),
        lanes: None,
    }
}

/// A line that nobody listens to.
#[derive(Debug)]
struct Line;

impl InterruptLine for Line {
    fn assert(&self) {}
    fn deassert(&self) {}
}

/// Configuration space without a bus.
struct Config(Arc<PciDevice>);

impl PciConfigAccess for Config {
    fn read(&self, offset: u16, data: &mut [u8]) {
        self.0.read_config(offset, data);
    }

    fn write(&self, offset: u16, data: &[u8]) -> Access {
        self.0.write_config(offset, data)
    }
}

fn worker() -> Rc<RefCell<Worker>> {
    let config = WorkerConfig { rounds: 1, uring: UringPolicy::Off, ..WorkerConfig::default() };
    Rc::new(RefCell::new(Worker::new(config).expect("a worker")))
}

fn pci_function(worker: &RefCell<Worker>, space: &DmaSpace) -> (Arc<PciDevice>, Arc<Messages>) {
    let description = DISK.parse().expect("a description");
    let device = Registry::standard().build_virtio(&description).expect("a disk");
    let messages = Messages::anywhere(Arc::new(CountingInterrupt::new()));
    let handle = worker.borrow().handle();
    let function = PciDevice::new(device, space, messages.clone(), &[handle]).expect("a device");
    (Arc::new(function), messages)
}

/// A fresh disk behind a PCI function: for the suites, and as it is.
///
/// # Panics
/// Where the host has no memory or descriptor left.
pub fn pci_disk() -> (Target, Arc<dyn PciFunction>) {
    let (worker, space) = (worker(), memory());
    let (function, messages) = pci_function(&worker, &space);
    let frontend = Arc::new(MmioOverPci::new(function.clone(), Config(function.clone()), Some(messages)));
    let step = Box::new(move || worker.borrow_mut().run().expect("a step"));
    (Target { frontend, space, base: BASE, queue: 0, step, lanes: None }, function)
}

/// A bus with a host bridge and a disk.
///
/// # Panics
/// Where the host has no memory or descriptor left.
pub fn bus() -> PciBus {
    let lines = [(); 4].map(|()| Arc::new(Line) as Arc<dyn InterruptLine>);
    let memory_window = 0xc000_0000..0xd000_0000;
    let bus = PciBus::new(PciBusConfig { memory: memory_window, memory64: 0..0, ports: 0..0, lines });
    let (worker, space) = (worker(), memory());
    let (disk, _) = pci_function(&worker, &space);
    let place = |device| PciAddress::new(device, 0).expect("a place");
    bus.add(place(0), Arc::new(HostBridge::default())).expect("a bridge");
    bus.add(place(1), disk).expect("a disk");
    bus
}

/// Guest memory in two pieces, with a hole before and between.
///
/// # Panics
/// Where the host has no memory left.
pub fn memory() -> DmaSpace {
    DmaSpace::anonymous(&[(BASE, Layout::LEN), (BASE + Layout::LEN + 0x1_0000, 0x1000)]).expect("memory")
}
