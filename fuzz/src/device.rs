//! Virtio devices, each driven by a worker of this thread.

use iovirt::registry::Registry;
use iovirt_core::dma::DmaSpace;
use iovirt_core::frontend::Frontend;
use iovirt_core::irq::CountingInterrupt;
use iovirt_core::test_utils::hostile::{Layout, Target};
use iovirt_core::worker::UringPolicy;
use iovirt_core::{Worker, WorkerConfig};
use iovirt_frontends::virtio::transport::mmio::MmioDevice;
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
    let config = WorkerConfig { rounds: 1, uring: UringPolicy::Off, ..WorkerConfig::default() };
    let worker = Rc::new(RefCell::new(Worker::new(config).expect("a worker")));
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

/// Guest memory in two pieces, with a hole before and between.
///
/// # Panics
/// Where the host has no memory left.
pub fn memory() -> DmaSpace {
    DmaSpace::anonymous(&[(BASE, Layout::LEN), (BASE + Layout::LEN + 0x1_0000, 0x1000)]).expect("memory")
}
